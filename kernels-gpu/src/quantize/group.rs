//! Kernels `quantize_group_*`: one scale for every 128 or 64 columns of a row.
//!
//! `scale = max(absmax(group), 1e-10) / 448`, `q[destination] = e4m3(x[row] / scale)`. Grid: see [`warp_rows`](super::warp_rows).

use super::cleared::Cleared;
use super::destinations::Destinations;
use super::rows::DenseRows;
use super::warp_rows::{FirstRow, GroupScales, THREADS, quantize_warp_rows};
use cuda_std::bf16::{Bf16, F16};
use cuda_std::{grid, kernel};

macro_rules! quantize_group {
    ($($name:ident: $ty:ident),+) => {$(
        /// Quantises `x [rows, columns]`, each row times `row_weight [rows]` where that is not null.
        ///
        /// The scale of (destination, group) goes to `scales[destination * row_stride + group * group_stride]`. Destinations:
        /// `inverse [rows, top_k]` below `*valid_rows`, see [`Destinations`]; padding rows by `sorted_rows [capacity]`, where
        /// that is not null.
        /// With `x_is_settled` the first rows are read before the grid waits for its predecessor: see [`quantize`](super).
        ///
        /// With `rows_stay` row i of `q` is that of row i, and its scales alone go to the destinations and to padding rows.
        ///
        /// `cleared [rows, columns]`, where that is not null, becomes 0.
        ///
        /// # Safety
        /// Null or the sizes above; `q` has `columns` bytes for every destination, or with `rows_stay` for every row, `scales` the groups
        /// of every destination; `group_size` is 64 or 128. Nothing written is read.
        #[kernel(threads = THREADS, min_blocks = 8, overlap = within)]
        pub unsafe fn $name(
            x: *const $ty,
            row_weight: *const f32,
            inverse: *const i32,
            valid_rows: *const i64,
            sorted_rows: *const i32,
            q: *mut u8,
            cleared: *mut f32,
            scales: *mut f32,
            row_stride: u64,
            group_stride: u64,
            rows: u32,
            columns: u32,
            top_k: u32,
            capacity: u32,
            rows_stay: u32,
            group_size: u32,
            x_is_settled: u32,
        ) {
            // SAFETY: the kernel's contract.
            unsafe {
                let source = DenseRows::new(x, row_weight, columns);
                let scheme = GroupScales::new(scales, row_stride, group_stride, group_size, columns);
                let settled = if x_is_settled != 0 { source.settled() } else { None };
                let ahead = FirstRow::quantize(settled, rows, &scheme);
                grid::wait();
                grid::launch_dependents();
                let destinations = Destinations::scatter(rows, inverse, top_k, valid_rows).of_scales(rows_stay);
                let cleared = Cleared::new(cleared, columns);
                quantize_warp_rows(source, columns, destinations, sorted_rows, capacity, scheme, ahead, q, cleared);
            }
        }
    )+};
}

quantize_group!(quantize_group_bf16: Bf16, quantize_group_f16: F16, quantize_group_f32: f32);
