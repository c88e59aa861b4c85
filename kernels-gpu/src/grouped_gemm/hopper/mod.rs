//! The grouped GEMM of Hopper (sm_90a): operands by TMA into swizzled shared memory, products by `wgmma`.
//!
//! | module | an item of work | made for |
//! |---|---|---|
//! | [`wide`] | 128 rows of one expert x 128 or 256 columns | many rows per expert: the tensor cores are the limit |
//! | [`narrow`] | 256 columns x 8 to 64 rows, operands swapped; K is cut so that all blocks get the same share | few rows per expert: the stream of weights is the limit |
//!
//! Each has two ends: D in bf16, f16 or f32, or added up by token ([`token_sums`]); and, for the first projection of a layer, an
//! activation of gate and up with requantisation to e4m3 ([`gated`]), so that the intermediate never goes to memory in more than 8 bits.
//!
//! # A block
//! Nine warps, or in the wide kernels twelve. Two warpgroups (warps 0 to 7) multiply; warp 8 fills a [`ring`] of stages for them, each one
//! slab of 128 bytes of K. One lane of it asks for tiles by TMA, and brings the scales that change along K ([`slab_scales`]).
//! The sequence of slabs runs on across items: while one item's results are stored, the next one's slabs arrive.
//!
//! ```text
//!   warp 8        | slab 0 | slab 1 | slab 2 | slab 3 (next item) ..      waits only for free stages
//!   warpgroup 0      | wgmma 0 | wgmma 1 | wgmma 2 |  store | wgmma 3 ..
//!   warpgroup 1      | wgmma 0 | wgmma 1 | wgmma 2 |  store | wgmma 3 ..
//! ```
//!
//! # Scales and accumulation
//! Hopper's tensor cores keep about 14 bits of an FP8 sum. The *fast* kernels leave it there for all of K; the *promoted* ones
//! start every slab from zero and fold it into f32 registers, with the scales that change along K.
//!
//! # Contract of the entry points (checked by the host before the launch)
//! - `a` maps A `[P, k]`, `b` maps B as `[experts * rows, k]`, both e4m3, boxes of 128 bytes of K by the rows that each entry point
//!   names, 128-byte swizzle; `k` is a multiple of 16, `n` of 8 (16 for the gated ends);
//! - `schedule` is built for the kernel's rows per item, as [`problem_sizes`](crate::problem_sizes) draws it;
//! - of the kernels that gather A's rows themselves (`*_gathered`), A is as those in [`wide`] say;
//! - scales are as [`ScaleArguments`](super::scale_arguments::ScaleArguments) says, of A for all rows of the schedule, but that those
//!   of A which change along K are where `a_slab_scales` says, a map as [`SlabScales`](slab_scales::SlabScales) wants it, of boxes of
//!   four more than a tile's rows. What the kinds do not lead to is not read;
//! - outputs have room for all rows of the schedule and are 16-byte aligned; nobody else accesses them meanwhile. Where D is added up,
//!   `out` is sums f32 for all tokens, and `sorted_rows`, `topk_weights`, `slots` and `top_k` are as [`TokenSums`](token_sums::TokenSums)
//!   says; else these are not read.

mod accumulator;
mod gated;
mod narrow;
mod plain;
mod ring;
mod slab_scales;
mod token_sums;
mod wide;

use super::SLAB;

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
