//! Kernels `absmax_*`: the largest magnitude of a tensor, one partial result per block.
//!
//! ```text
//!   grid (x, y):  block (i, j)  ->  partials[j * grid_dim_x + i]     every block writes its own, none is ever initialised
//! ```
//!
//! A maximum does not depend on its order, so the result is the same bits at any grid size.
//! `quantize_tensor_*` takes the largest of the partial results itself: two launches in all, no atomics,
//! nothing to clear beforehand.

use crate::elementwise::rows::block_rows::block_max;
use crate::elementwise::rows::chunk::{CHUNK, WARP_COLUMNS, absmax};
use crate::elementwise::rows::destinations::Destinations;
use crate::elementwise::rows::source::{DenseRows, Rows};
use cuda_std::bf16::{Bf16, F16};
use cuda_std::shared::Shared;
use cuda_std::{arguments, host, kernel, shared_array, thread};

/// Rows of a block at a time, a warp each, 256 columns at a time.
#[host]
const ABSMAX_ROWS_PER_BLOCK: u32 = 16;

/// Threads of a block.
const THREADS: u32 = 32 * ABSMAX_ROWS_PER_BLOCK;

const WARPS: u32 = ABSMAX_ROWS_PER_BLOCK;

/// Arguments of the kernels `absmax_*`.
#[arguments]
pub struct Absmax {
    /// `[rows, columns]`, of the type that the kernel's name says.
    pub x: *const u8,
    /// f32 `[rows]`, multiplies each row; null for none.
    pub row_weight: *const f32,
    /// Rows of `x`.
    pub rows: u32,
    /// Columns of `x`.
    pub columns: u32,
    /// Where the rows go: those that go nowhere do not count.
    pub targets: crate::elementwise::rows::destinations::RowTargets,
    /// f32, one per block of the grid.
    pub partials: *mut f32,
}

/// The largest magnitude of the block's share of the rows that go anywhere.
///
/// # Safety
/// `slots` is one f32 of shared memory per warp that nothing else uses.
#[inline(always)]
unsafe fn block_absmax(
    source: impl Rows,
    columns: u32,
    destinations: Destinations,
    slots: Shared<f32>,
) -> f32 {
    let mut largest = 0.0;
    let mut row = thread::block_idx_x() * WARPS + thread::warp_id();
    while row < destinations.rows() {
        if destinations.any(row) {
            let mut first = thread::block_idx_y() * WARP_COLUMNS;
            while first < columns {
                largest = f32::max(largest, absmax(&source.chunk(row, first + thread::lane_id() * CHUNK)));
                first += thread::grid_dim_y() * WARP_COLUMNS;
            }
        }
        row += thread::grid_dim_x() * WARPS;
    }
    // SAFETY: the only use of the slots.
    unsafe { block_max(largest, slots) }
}

macro_rules! absmax_partials {
    ($($name:ident: $ty:ident),+) => {$(
        /// The largest magnitude in the rows of `x [rows, columns]` that go anywhere, each times `row_weight
        /// [rows]` where that is not null: block (i, j) writes that of its share to `partials[j * grid_dim_x
        /// + i]`. NaN does not count.
        ///
        /// # Safety
        /// The arrays are null, where they may be, or have their stated sizes.
        #[kernel(threads = THREADS, min_blocks = 2)]
        pub unsafe fn $name(arguments: Absmax) {
            let Absmax { x, row_weight, rows, columns, targets, partials } = arguments;
            let slots = shared_array!($name.maxima: [f32; WARPS as usize]);
            // SAFETY: the kernel's contract; the shared array is used for nothing else.
            unsafe {
                let source = DenseRows::<$ty>::new(x.cast(), row_weight, 1, columns);
                let destinations = Destinations::new(rows, &targets);
                let largest = block_absmax(source, columns, destinations, slots);
                if thread::thread_idx_x() == 0 {
                    let block = thread::block_idx_y() * thread::grid_dim_x() + thread::block_idx_x();
                    partials.add(block as usize).write(largest);
                }
            }
        }
    )+};
}

absmax_partials!(absmax_bf16: Bf16, absmax_f16: F16, absmax_f32: f32);
