//! Kernels `quantize_token_*`: one scale for every row.
//!
//! `scale = max(min(absmax(row), limit) / 448, 1 / (448 * 512))`, `q[destination] = e4m3(x[row] / scale)`.
//! Grid: one-dimensional, a block takes every `grid_dim_x`-th row; see [`block_rows`](super::block_rows).

use super::block_rows::{FirstRow, SHARED, THREADS, quantize_block_rows};
use super::cleared::Cleared;
use super::destinations::Destinations;
use super::rows::DenseRows;
use cuda_std::bf16::{Bf16, F16};
use cuda_std::{grid, kernel, shared_array};

macro_rules! quantize_token {
    ($($name:ident: $ty:ident),+) => {$(
        /// Quantises `x [rows, columns]`, each row times `row_weight [rows]` where that is not null.
        ///
        /// The scale of a destination goes to `scales[destination]`. Destinations: `inverse [rows, top_k]` below `*valid_rows`,
        /// see [`Destinations`]; padding rows by `sorted_rows [capacity]`, where that is not null.
        /// With `x_is_settled` the first rows are read before the grid waits for its predecessor: see [`quantize`](super).
        ///
        /// With `rows_stay` row i of `q` is that of row i, and its scales alone go to the destinations and to padding rows.
        ///
        /// `cleared [rows, columns]`, where that is not null, becomes 0.
        ///
        /// # Safety
        /// Null or the sizes above; `q` has `columns` bytes for every destination, or with `rows_stay` for every row, `scales` an element
        /// for every destination; dynamic shared memory for `kept_spans` times 2048 f32 values. Nothing written is read.
        #[kernel(threads = THREADS, min_blocks = 4, overlap = within)]
        pub unsafe fn $name(
            x: *const $ty,
            row_weight: *const f32,
            inverse: *const i32,
            valid_rows: *const i64,
            sorted_rows: *const i32,
            q: *mut u8,
            cleared: *mut f32,
            scales: *mut f32,
            absmax_limit: f32,
            rows: u32,
            columns: u32,
            top_k: u32,
            capacity: u32,
            rows_stay: u32,
            kept_spans: u32,
            x_is_settled: u32,
        ) {
            let maxima = shared_array!($name.maxima: [f32; SHARED]);
            // SAFETY: the kernel's contract; the shared array is used for nothing else.
            unsafe {
                let source = DenseRows::new(x, row_weight, columns);
                let settled = if x_is_settled != 0 { source.settled() } else { None };
                let ahead = FirstRow::pass(settled, rows, columns, maxima, kept_spans);
                grid::wait();
                grid::launch_dependents();
                let destinations = Destinations::scatter(rows, inverse, top_k, valid_rows).of_scales(rows_stay);
                let cleared = Cleared::new(cleared, columns);
                quantize_block_rows(
                    source, columns, destinations, sorted_rows, capacity, absmax_limit, ahead, q, scales, maxima, kept_spans, cleared,
                );
            }
        }
    )+};
}

quantize_token!(quantize_token_bf16: Bf16, quantize_token_f16: F16, quantize_token_f32: f32);
