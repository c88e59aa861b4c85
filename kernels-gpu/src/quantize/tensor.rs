//! Kernels `quantize_tensor_*`: one scale for the whole tensor, given or from the partial maxima of `absmax_*`.
//!
//! `q[destination] = e4m3(x[row] * (1 / scale))`. Grid: see [`warp_rows`](super::warp_rows).

use super::cleared::Cleared;
use super::destinations::Destinations;
use super::rows::DenseRows;
use super::warp_rows::{FirstRow, THREADS, TensorScale, quantize_warp_rows};
use cuda_std::bf16::{Bf16, F16};
use cuda_std::{grid, kernel};

macro_rules! quantize_tensor {
    ($($name:ident: $ty:ident),+) => {$(
        /// Quantises `x [rows, columns]`, each row times `row_weight [rows]` where that is not null.
        ///
        /// The scale is `*scale`; where `scale` is null, the one for the largest of `partials [partial_count]`, which goes to
        /// `*scale_out`. Destinations: `inverse [rows, top_k]` below `*valid_rows`, see [`Destinations`]; padding rows by
        /// `sorted_rows [capacity]`, where that is not null. With `x_is_settled`, for a given scale alone, the first rows are read before
        /// the grid waits for its predecessor: see [`quantize`](super).
        ///
        /// With `rows_stay` row i of `q` is that of row i, and its scales alone go to the destinations and to padding rows.
        ///
        /// `cleared [rows, columns]`, where that is not null, becomes 0.
        ///
        /// # Safety
        /// Null or the sizes above; `q` has `columns` bytes for every destination, or with `rows_stay` for every row. Nothing written is read.
        #[kernel(threads = THREADS, min_blocks = 8, overlap = within)]
        pub unsafe fn $name(
            x: *const $ty,
            row_weight: *const f32,
            inverse: *const i32,
            valid_rows: *const i64,
            sorted_rows: *const i32,
            scale: *const f32,
            partials: *const f32,
            scale_out: *mut f32,
            q: *mut u8,
            cleared: *mut f32,
            rows: u32,
            columns: u32,
            top_k: u32,
            capacity: u32,
            rows_stay: u32,
            partial_count: u32,
            x_is_settled: u32,
        ) {
            // SAFETY: the kernel's contract.
            unsafe {
                let source = DenseRows::new(x, row_weight, columns);
                if x_is_settled == 0 {
                    grid::wait();
                }
                let scheme = TensorScale::given_or_from_partials(scale, partials, partial_count, scale_out);
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

quantize_tensor!(quantize_tensor_bf16: Bf16, quantize_tensor_f16: F16, quantize_tensor_f32: f32);
