//! Kernels `cast_*`: f32 to bf16 or f16, to nearest even; or added to what is there, with one rounding.
//!
//! A warp takes 256 columns of a row, as in [`warp_rows`](crate::elementwise::rows::warp_rows).

use crate::elementwise::rows::chunk::{
    CHUNK, Element, WARP_COLUMNS, load_chunk, load_own_chunk, store_chunk, vectorised,
};
use crate::elementwise::rows::warp_rows::{THREADS, WARPS};
use cuda_std::bf16::{Bf16, F16};
use cuda_std::code::Flag;
use cuda_std::{arguments, kernel, thread};

/// Arguments of the kernels `cast_*`.
#[arguments]
pub struct Cast {
    /// f32 `[rows, columns]`.
    pub x: *const f32,
    /// `[rows, columns]`, of the type that the kernel's name says.
    pub out: *mut u8,
    /// Rows of both.
    pub rows: u32,
    /// Columns of both.
    pub columns: u32,
    /// Whether `x` is added to `out`, which is read then.
    pub adds: Flag,
}

/// Writes `out [rows, columns]`, or adds to it.
///
/// # Safety
/// `x` and `out` have the rows, and nobody else accesses `out`.
#[inline(always)]
unsafe fn cast<O: Element>(x: *const f32, out: *mut O, rows: u32, columns: u32, adds: bool) {
    let column = thread::block_idx_y() * WARP_COLUMNS + thread::lane_id() * CHUNK;
    let (from, to) = (vectorised(x, columns), vectorised(out, columns));
    let mut row = thread::block_idx_x() * WARPS + thread::warp_id();
    while row < rows {
        // SAFETY: the row exists, and this lane alone has its columns.
        unsafe {
            let start = row as usize * columns as usize;
            let mut values = load_chunk(x.add(start), column, columns, from);
            if adds {
                let before = load_own_chunk(out.add(start), column, columns, to);
                values = core::array::from_fn(|i| values[i] + before[i]);
            }
            store_chunk(out.add(start), column, columns, to, &values);
        }
        row += thread::grid_dim_x() * WARPS;
    }
}

macro_rules! cast {
    ($($name:ident: $out:ident),+) => {$(
        /// Rounds `x`, or its sum with `out`, to `out`.
        ///
        /// # Safety
        /// The arrays have their stated sizes. `out` is read with `adds` alone.
        #[kernel(threads = THREADS, min_blocks = 8, overlap = before)]
        pub unsafe fn $name(arguments: Cast) {
            let Cast { x, out, rows, columns, adds } = arguments;
            // SAFETY: the kernel's contract.
            unsafe { cast::<$out>(x, out.cast(), rows, columns, adds.is_set()) }
        }
    )+};
}

cast!(cast_bf16: Bf16, cast_f16: F16);
