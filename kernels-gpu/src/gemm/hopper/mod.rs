//! The grouped GEMM of Hopper (sm_90a): operands by TMA into swizzled shared memory, products by `wgmma`.
//!
//! | module | an item of work | made for |
//! |---|---|---|
//! | [`wide`] | 128 rows of one expert x 128 or 256 columns | many rows per expert: the tensor cores are the limit |
//! | [`narrow`] | 256 columns x 8, 16 or 32 rows, operands swapped; blocks draw items, of which the last may be cut along K | few rows per expert: the stream of weights is the limit |
//!
//! Each has two ends: D in bf16, f16 or f32, or added up by token ([`token_sums`]); and, for the first
//! projection of a layer, an activation of gate and up with requantisation to e4m3, so that the intermediate
//! never goes to memory in more than 8 bits.
//!
//! # Where to begin
//! Read `wide/mod.rs` or `narrow/mod.rs`: entry points, the producer's loop and the consumers' stand there,
//! one below the other. Then [`ring`], which joins the two. The rest are details, each for itself:
//!
//! | file | what it has |
//! |---|---|
//! | `arguments` | what a launch is given; which weights an item takes |
//! | `ring` | stages, their barriers, places in them |
//! | `weights`, `pack` | B as a checkpoint has it or packed, copies of a slab of it; the kernel that packs |
//! | `slab_scales` | the scales that change along K |
//! | `token_sums` | whose sums a row of D is added to |
//! | `notes` | by which the producer tells the consumers what the ring is filled with |
//! | `wide/items` | which items a cluster takes |
//! | `wide/turns` | which warpgroup multiplies which items |
//! | `wide/end_scales` | the scales of whole sums, and the bias |
//! | `wide/store`; `wide/gated`, `wide/requantize` | the ends |
//! | `wide/gather` | the producer that gathers rows of A |
//! | `narrow/units` | which items, or parts of them, a block takes |
//! | `narrow/parts` | sums of items that are cut |
//! | `narrow/accumulator` | a product of any of the heights, as registers of a thread |
//! | `narrow/store`, `narrow/requantize` | the ends |
//!
//! From an entry point to `wgmma`:
//!
//! ```text
//!   wide/mod.rs     hopper_wide_promoted -> multiply -> consume -> promoted -> wgmma_e4m3!
//!   wide/gated.rs   hopper_wide_gated_promoted -> multiply (wide/mod.rs) -> .. as above
//!   narrow/mod.rs   hopper_narrow_8 -> multiply -> consume -> sums -> narrow/accumulator.rs -> wgmma_e4m3!
//! ```
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
//! - [`arguments`] are as they say, `n` of the gated ends a multiple of 16;
//! - the schedule is built for the kernel's rows per item, as [`schedule::entry`](crate::schedule::entry)
//!   draws it;
//! - A, its scales and the outputs have all rows of the schedule; nobody else accesses the outputs meanwhile;
//! - the map of A's scales per group is as [`SlabScales`](slab_scales::SlabScales) wants it;
//! - fast kernels take scales of A per call or row, of B per expert or channel. What the kinds do not lead to
//!   is not read.

pub(crate) mod arguments;
mod narrow;
pub(crate) mod notes;
mod pack;
pub(crate) mod ring;
mod slab_scales;
pub(crate) mod token_sums;
mod weights;
mod wide;

use cuda_std::host;

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
