//! Kernels `sum_ranks_*`: the sum of what several ranks made of each row, in the order of the ranks.
//!
//! ```text
//!   out[row] = cast(x[0][row] + x[1][row] + x[2][row] + ..)      left to right, in f32, from +0
//!
//!   x   [ rank 0: row 0, row 1, .. ][ rank 1: row 0, row 1, .. ] ..      rank_stride elements from one to the next
//! ```
//!
//! One rounding at the end, the same order always: the result depends neither on the grid nor on who sent
//! first.
//!
//! A warp takes 256 columns of a row, as in [`warp_rows`](crate::elementwise::rows::warp_rows). Four ranks are loaded
//! before the first is added, so that their latencies overlap.

use crate::elementwise::rows::chunk::{
    CHUNK, Chunk, Element, WARP_COLUMNS, load_chunk, store_chunk, vectorised,
};
use crate::elementwise::rows::warp_rows::{THREADS, WARPS};
use cuda_std::bf16::{Bf16, F16};
use cuda_std::{arguments, kernel, thread};

/// Arguments of the kernels `sum_ranks_*`.
#[arguments]
pub struct SumRanks {
    /// `[ranks, .., columns]`, of the first type in the kernel's name.
    pub x: *const u8,
    /// `[rows, columns]`, of the last type in the kernel's name.
    pub out: *mut u8,
    /// Elements from a rank's rows to the next rank's: a multiple of `columns`.
    pub rank_stride: u64,
    /// Ranks, at least 1.
    pub ranks: u32,
    /// Rows of each rank, and of the output.
    pub rows: u32,
    /// Columns of both.
    pub columns: u32,
}

/// Ranks whose values are in flight at a time.
const BATCH: u32 = 4;

/// Writes `out [rows, columns]`.
///
/// # Safety
/// `x` and `out` have the rows, and nobody else accesses `out`.
#[inline(always)]
unsafe fn sum_ranks<T: Element, O: Element>(arguments: SumRanks) {
    let SumRanks { x, out, rank_stride, ranks, rows, columns } = arguments;
    let (x, out) = (x.cast::<T>(), out.cast::<O>());
    let column = thread::block_idx_y() * WARP_COLUMNS + thread::lane_id() * CHUNK;
    // A rank's rows begin at a multiple of `columns`, and so are aligned if rows are.
    let (from, to) = (vectorised(x, columns), vectorised(out, columns));
    let mut row = thread::block_idx_x() * WARPS + thread::warp_id();
    while row < rows {
        let start = row as usize * columns as usize;
        let mut sum: Chunk = [0.0; CHUNK as usize];
        let mut rank = 0;
        while rank < ranks {
            let load = |rank: u32| {
                if rank >= ranks {
                    return [0.0; CHUNK as usize];
                }
                // SAFETY: the rank has the row.
                unsafe {
                    load_chunk(x.add(rank as usize * rank_stride as usize + start), column, columns, from)
                }
            };
            let batch = [load(rank), load(rank + 1), load(rank + 2), load(rank + 3)];
            add(&mut sum, &batch[0]);
            add(&mut sum, &batch[1]);
            add(&mut sum, &batch[2]);
            add(&mut sum, &batch[3]);
            rank += BATCH;
        }
        // SAFETY: the row exists, and this lane alone has its columns.
        unsafe { store_chunk(out.add(start), column, columns, to, &sum) };
        row += thread::grid_dim_x() * WARPS;
    }
}

/// `sum += values`. Zeros of ranks that there are not change nothing: a sum that begins at +0 is never -0.
#[inline(always)]
fn add(sum: &mut Chunk, values: &Chunk) {
    *sum = core::array::from_fn(|i| sum[i] + values[i]);
}

macro_rules! sum_ranks {
    ($($name:ident: $ty:ident => $out:ident),+) => {$(
        /// Adds the ranks' rows up.
        ///
        /// # Safety
        /// The arrays have their stated sizes. `out` is not read.
        #[kernel(threads = THREADS, min_blocks = 8, overlap = before)]
        pub unsafe fn $name(arguments: SumRanks) {
            // SAFETY: the kernel's contract.
            unsafe { sum_ranks::<$ty, $out>(arguments) }
        }
    )+};
}

sum_ranks!(
    sum_ranks_bf16: Bf16 => Bf16,
    sum_ranks_bf16_f16: Bf16 => F16,
    sum_ranks_bf16_f32: Bf16 => f32,
    sum_ranks_f16: F16 => F16,
    sum_ranks_f32: f32 => f32,
    sum_ranks_f32_bf16: f32 => Bf16,
    sum_ranks_f32_f16: f32 => F16
);
