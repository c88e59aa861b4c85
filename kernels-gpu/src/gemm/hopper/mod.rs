//! The grouped GEMM of Hopper (sm_90a): operands by TMA into swizzled shared memory, products by `wgmma`.
//!
//! | module | an item of work | made for |
//! |---|---|---|
//! | [`wide`] | 128 rows of one expert x 128 or 256 columns | many rows per expert: the tensor cores are the limit |
//! | [`narrow`] | 256 columns x 8, 16 or 32 rows, operands swapped; K is cut so that all blocks get the same share | few rows per expert: the stream of weights is the limit |
//!
//! Each has two ends: D in bf16, f16 or f32, or added up by token ([`token_sums`]); and, for the first
//! projection of a layer, an activation of gate and up with requantisation to e4m3 ([`gated`]), so that the
//! intermediate never goes to memory in more than 8 bits.
//!
//! # A block
//! Nine warps, or in the wide kernels twelve. Two warpgroups (warps 0 to 7) multiply; warp 8 fills a [`ring`]
//! of stages for them, each one slab of 128 bytes of K. One lane of it asks for tiles by TMA, and brings the
//! scales that change along K ([`slab_scales`]). The sequence of slabs runs on across items: while one item's
//! results are stored, the next one's slabs arrive.
//!
//! ```text
//!   warp 8        | slab 0 | slab 1 | slab 2 | slab 3 (next item) ..      waits only for free stages
//!   warpgroup 0      | wgmma 0 | wgmma 1 | wgmma 2 |  store | wgmma 3 ..
//!   warpgroup 1      | wgmma 0 | wgmma 1 | wgmma 2 |  store | wgmma 3 ..
//! ```
//!
//! # Scales and accumulation
//! Hopper's tensor cores keep about 14 bits of an FP8 sum. The *fast* kernels leave it there for all of K;
//! the *promoted* ones start every slab from zero and fold it into f32 registers, with the scales that change
//! along K.
//!
//! # Contract of the entry points (checked by the host before the launch)
//! - arguments are as [`HopperGemm`], [`HopperGated`] and [`HopperGathered`] say, `n` of the gated ends a
//!   multiple of 16;
//! - the schedule is built for the kernel's rows per item, as [`schedule::entry`](crate::schedule::entry)
//!   draws it;
//! - A, its scales and the outputs have all rows of the schedule; nobody else accesses the outputs meanwhile;
//! - the map of A's scales per group is as [`SlabScales`](slab_scales::SlabScales) wants it;
//! - fast kernels take scales of A per call or row, of B per expert or channel. What the kinds do not lead to
//!   is not read.

mod accumulator;
pub(crate) mod gated;
mod narrow;
mod pack;
mod plain;
pub(crate) mod ring;
mod slab_scales;
pub(crate) mod token_sums;
mod weights;
pub(crate) mod wide;

use cuda_std::code::{Code, Flag};
use cuda_std::{arguments, host};

use crate::abi::SLAB;

/// Warps that multiply: two warpgroups.
const CONSUMER_WARPS: u32 = 8;
/// Threads that multiply.
const CONSUMERS: u32 = CONSUMER_WARPS * 32;

/// Bytes of 64 rows of a stage: what one warpgroup's `wgmma` takes of the operand on the M side.
const ROWS_64: u32 = 64 * SLAB;
/// Bytes of 128 rows of a stage.
const ROWS_128: u32 = 128 * SLAB;

/// The named barrier of the consumers.
const CONSUMER_BARRIER: u32 = 1;

/// Rows of B in a TMA box.
#[host]
pub const B_BOX_ROWS: u32 = ROWS_128 / SLAB;

/// Columns of the intermediate in an item of a gated kernel: half of the tile's are gate, half are up.
#[host]
pub const GATED_COLUMNS: u32 = 128;

/// Arguments of the Hopper kernels that store D, or add it up by token.
#[arguments]
pub struct HopperGemm {
    /// A e4m3 `[P, k]`, in boxes of 128 bytes by the rows of the kernel's tile, 128-byte swizzle.
    pub a: TensorMap,
    /// B e4m3 `[experts * n, k]`, in boxes of 128 bytes by 128 rows, 128-byte swizzle.
    pub b: TensorMap,
    /// B packed ([`weights`]), 128-byte aligned; null where it is read by the map.
    pub b_packed: *const u8,
    /// The scales of A per group, group-major, in boxes of a tile's rows and some more; not read where there
    /// are none.
    pub a_slab_scales: TensorMap,
    /// Columns of D, a multiple of 8.
    pub n: u32,
    /// K, a multiple of 16.
    pub k: u32,
    /// The scales of both. Those of A per group are not read from here.
    pub scales: crate::abi::Scales,
    /// A tile schedule for the kernel's rows, 16-byte aligned. Its counters are at 0, and are left so.
    pub schedule: *mut [u32; 4],
    /// As many bytes as the tile says, for every block of the grid, 16-byte aligned.
    pub partials: *mut [f32; 4],
    /// D `[P, n]`, or the sums f32 `[tokens, n]`; 16-byte aligned.
    pub out: *mut u8,
    /// Whose sums rows are added to; not read where D is stored.
    pub tokens: crate::gemm::hopper::token_sums::TokenSums,
    /// What becomes of D.
    pub out_type: Code<crate::abi::OutType>,
    /// Whether the schedule's tiles were complete before the kernel's predecessor began.
    pub schedule_is_settled: Flag,
}

/// Arguments of the Hopper kernels that activate and quantise.
#[arguments]
pub struct HopperGated {
    /// A e4m3 `[P, k]`, in boxes of 128 bytes by the rows of the kernel's tile, 128-byte swizzle.
    pub a: TensorMap,
    /// w13 e4m3 `[experts * (intermediate + up), k]`, in boxes of 128 bytes by 128 rows, 128-byte swizzle;
    /// `up` as the gating has it.
    pub b: TensorMap,
    /// As `HopperGemm` has it.
    pub b_packed: *const u8,
    /// As `HopperGemm` has them.
    pub a_slab_scales: TensorMap,
    /// I, columns of the results: a multiple of 16, of 128 where B has block scales.
    pub intermediate: u32,
    /// K, a multiple of 16.
    pub k: u32,
    /// The scales of both, and the bias; N is I + up.
    pub scales: crate::abi::Scales,
    /// As `HopperGemm` has it.
    pub schedule: *mut [u32; 4],
    /// As `HopperGemm` has them.
    pub partials: *mut [f32; 4],
    /// Where the results go.
    pub out: crate::gemm::hopper::gated::Requantization,
    /// As `HopperGemm` has it.
    pub schedule_is_settled: Flag,
}

/// Arguments of the kernels that activate and quantise, and gather their rows of A by token.
#[arguments]
pub struct HopperGathered {
    /// Where A is.
    pub a: crate::gemm::hopper::wide::gather::TokenRows,
    /// As `HopperGated` has it.
    pub b: TensorMap,
    /// As `HopperGated` has it.
    pub b_packed: *const u8,
    /// I, columns of the results: a multiple of 16, of 128 where B has block scales.
    pub intermediate: u32,
    /// K, a multiple of 16.
    pub k: u32,
    /// As `HopperGated` has them; A's per group are those of the tokens.
    pub scales: crate::abi::Scales,
    /// As `HopperGated` has it.
    pub schedule: *mut [u32; 4],
    /// Where the results go.
    pub out: crate::gemm::hopper::gated::Requantization,
}
