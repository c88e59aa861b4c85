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
//! Nine warps. Two warpgroups (warps 0 to 7) multiply; warp 8 fills a [`ring`] of stages for them, each one slab of 128 bytes
//! of K. One lane of it asks for tiles by TMA; where scales change along K, all its lanes copy scales with `cp.async`.
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
//! - of the kernels that gather A's rows themselves (`*_gathered`), A and its scales are as those in [`wide`] say;
//! - scales are as [`ScaleArguments`](super::scale_arguments::ScaleArguments) says, of A for all rows of the schedule;
//! - outputs have room for all rows of the schedule and are 16-byte aligned; nobody else accesses them meanwhile. Where D is added up,
//!   `out` is sums f32 for all tokens, and `sorted_rows`, `topk_weights`, `slots` and `top_k` are as [`TokenSums`](token_sums::TokenSums)
//!   says; else these are not read.

mod accumulator;
mod gated;
mod narrow;
mod plain;
mod ring;
mod token_sums;
mod wide;

use cuda_std::cp_async;

use super::SLAB;
use super::scale_arguments::{A_PER_GROUP, B_PER_BLOCK, ScaleArguments};

/// Warps that multiply: two warpgroups.
const CONSUMER_WARPS: u32 = 8;
/// Threads that multiply.
const CONSUMERS: u32 = CONSUMER_WARPS * 32;

/// Bytes of 64 rows of a stage: what one warpgroup's `wgmma` takes of the operand on the M side.
const ROWS_64: u32 = 64 * SLAB;
/// Bytes of 128 rows of a stage.
const ROWS_128: u32 = 128 * SLAB;

/// Rows of A that a stage has room for scales of.
const SCALE_ROWS: u32 = 128;
/// Bytes of a stage's scales: those of A, then those of up to two blocks of B.
const SCALE_SLOT_BYTES: u32 = SCALE_ROWS * 4 + 16;

/// The named barrier of the consumers.
const CONSUMER_BARRIER: u32 = 1;

/// Where the scales of an item's two blocks of B are: slab 0 of the first, and how many elements further that of the second.
#[derive(Clone, Copy)]
struct BlockScales {
    first: *const f32,
    distance: u32,
}

/// What a lane of the producer copies of one item's scales, slab by slab: those of rows `lane`, `lane + 32`, .. of A, and
/// lanes 0 and 1 those of the item's blocks of B. Where rows are gathered, each of 128 threads copies those of one.
struct ScaleCopies {
    a: *const f32,
    rows_left: i32,
    b: *const f32,
}

impl ScaleCopies {
    /// For `rows` rows of A from `first_row` on, and the item's blocks of B.
    #[inline(always)]
    fn new(scales: &ScaleArguments, first_row: u32, rows: u32, blocks: BlockScales, lane: u32) -> Self {
        Self {
            a: scales.a_group_row(first_row + lane),
            rows_left: rows as i32 - lane as i32,
            b: blocks.first.wrapping_add((lane & 1) as usize * blocks.distance as usize),
        }
    }

    /// For a thread's one row of A, of which nothing is read if there is none, and the item's blocks of B.
    #[inline(always)]
    fn of_row(scales: &ScaleArguments, row: Option<u32>, blocks: BlockScales, thread: u32) -> Self {
        Self {
            a: scales.a_group_row(row.unwrap_or(0)),
            rows_left: row.is_some().into(),
            b: blocks.first.wrapping_add((thread & 1) as usize * blocks.distance as usize),
        }
    }

    /// Passes over `slabs` slabs.
    #[inline(always)]
    fn skip(&mut self, scales: &ScaleArguments, slabs: u32) {
        self.a = self.a.wrapping_add(slabs as usize * scales.a_group_stride as usize);
        self.b = self.b.wrapping_add(slabs as usize);
    }

    /// Copies the scales of the next slab to `to`, as one of `THREADS` threads that copy those of `ROWS` rows.
    ///
    /// # Safety
    /// The item's rows and blocks have a scale for the slab; the stage at `to` is free.
    #[inline(always)]
    unsafe fn issue<const ROWS: u32, const THREADS: u32>(
        &mut self,
        scales: &ScaleArguments,
        to: u32,
        lane: u32,
    ) {
        if scales.a_kind == A_PER_GROUP {
            let (mut row, mut source) = (0, self.a);
            while row < ROWS {
                if row + lane < ROWS {
                    // SAFETY: rows that do not exist are not read; the slot has room for `ROWS` scales.
                    unsafe {
                        cp_async::copy4_zfill(
                            to + (row + lane) * 4,
                            source.cast(),
                            self.rows_left > row as i32,
                        )
                    };
                }
                source = source.wrapping_add(THREADS as usize * scales.a_row_stride as usize);
                row += THREADS;
            }
            self.a = self.a.wrapping_add(scales.a_group_stride as usize);
        }
        if scales.b_kind == B_PER_BLOCK {
            if lane < 2 {
                // SAFETY: the block has a scale for the slab, and the slot room for two.
                unsafe { cp_async::copy4_zfill(to + (SCALE_ROWS + lane) * 4, self.b.cast(), true) };
            }
            self.b = self.b.wrapping_add(1);
        }
    }
}
