//! Kernels `cast_*`: f32 to bf16 or f16, to nearest even.
//!
//! A warp takes 256 columns of a row, as in [`warp_rows`](crate::quantize::warp_rows).

use crate::quantize::chunk::{CHUNK, Element, WARP_COLUMNS, load_chunk, store_chunk, vectorised};
use cuda_std::bf16::{Bf16, F16};
use cuda_std::{kernel, thread};

/// Threads of a block: four rows.
const THREADS: u32 = 128;

const WARPS: u32 = THREADS / 32;

/// Writes `out [rows, columns]`.
///
/// # Safety
/// `x` and `out` have the rows, and nobody else accesses `out`.
#[inline(always)]
unsafe fn cast<O: Element>(x: *const f32, out: *mut O, rows: u32, columns: u32) {
    let column = thread::block_idx_y() * WARP_COLUMNS + thread::lane_id() * CHUNK;
    let (from, to) = (vectorised(x, columns), vectorised(out, columns));
    let mut row = thread::block_idx_x() * WARPS + thread::warp_id();
    while row < rows {
        // SAFETY: the row exists, and this lane alone has its columns.
        unsafe {
            let start = row as usize * columns as usize;
            let values = load_chunk(x.add(start), column, columns, from);
            store_chunk(out.add(start), column, columns, to, &values);
        }
        row += thread::grid_dim_x() * WARPS;
    }
}

macro_rules! cast {
    ($($name:ident: $out:ident),+) => {$(
        /// Rounds `x [rows, columns]` to `out [rows, columns]`.
        ///
        /// # Safety
        /// The sizes above. `out` is not read.
        #[kernel(threads = THREADS, min_blocks = 8, overlap = before)]
        pub unsafe fn $name(x: *const f32, out: *mut $out, rows: u32, columns: u32) {
            // SAFETY: the kernel's contract.
            unsafe { cast(x, out, rows, columns) }
        }
    )+};
}

cast!(cast_bf16: Bf16, cast_f16: F16);
