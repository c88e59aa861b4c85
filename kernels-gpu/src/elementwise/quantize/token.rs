//! Kernels `quantize_token_*`: one scale for every row.
//!
//! `scale = max(min(absmax(row), limit) / 448, 1 / (448 * 512))`, `q[destination] = e4m3(x[row] / scale)`.
//! Grid: one-dimensional, a block takes every `grid_dim_x`-th row; see
//! [`block_rows`](crate::elementwise::rows::block_rows).

use super::{Quantize, QuantizedRows};
use crate::elementwise::rows::block_rows::{FirstRow, SHARED, THREADS, quantize_block_rows};
use crate::elementwise::rows::cleared::Cleared;
use crate::elementwise::rows::destinations::{Destinations, RowTargets};
use crate::elementwise::rows::source::DenseRows;
use cuda_std::bf16::{Bf16, F16};
use cuda_std::code::Flag;
use cuda_std::{arguments, grid, kernel, shared_array};

/// Arguments of the kernels `quantize_token_*`.
#[arguments]
pub struct QuantizeToken {
    /// Magnitudes over it count as this, and saturate.
    pub absmax_limit: f32,
    /// What is read, and where it goes.
    pub common: crate::elementwise::quantize::Quantize,
    /// What becomes of the rows.
    pub out: crate::elementwise::quantize::QuantizedRows,
    /// f32, one for every destination.
    pub scales: *mut f32,
    /// Spans of a row that dynamic shared memory holds.
    pub kept_spans: u32,
    /// Whether the rows were complete before the kernel's predecessor began: the first are then read before
    /// it has ended.
    pub x_is_settled: Flag,
}

macro_rules! quantize_token {
    ($($name:ident: $ty:ident),+) => {$(
        /// Quantises `x`; the scale of a destination goes to `scales[destination]`.
        ///
        /// # Safety
        /// The arrays are null, where they may be, or have their stated sizes; dynamic shared memory holds
        /// `kept_spans` spans. Nothing written is read.
        #[kernel(threads = THREADS, min_blocks = 4, overlap = within)]
        pub unsafe fn $name(arguments: QuantizeToken) {
            let QuantizeToken { absmax_limit, common, out, scales, kept_spans, x_is_settled } = arguments;
            let Quantize { x, row_weight, rows, slots, columns, targets } = common;
            let QuantizedRows { q, cleared } = out;
            let RowTargets { sorted_rows, capacity, .. } = targets;
            let maxima = shared_array!($name.maxima: [f32; SHARED]);
            // SAFETY: the kernel's contract; the shared array is used for nothing else.
            unsafe {
                let source = DenseRows::<$ty>::new(x.cast(), row_weight, slots, columns);
                let settled = if x_is_settled.is_set() { source.settled() } else { None };
                let ahead = FirstRow::pass(settled, rows, columns, maxima, kept_spans);
                grid::wait();
                grid::launch_dependents();
                let destinations = Destinations::new(rows, &targets);
                let cleared = Cleared::new(cleared, columns);
                quantize_block_rows(
                    source, columns, destinations, sorted_rows, capacity, absmax_limit, ahead, q, scales, maxima, kept_spans, cleared,
                );
            }
        }
    )+};
}

quantize_token!(quantize_token_bf16: Bf16, quantize_token_f16: F16, quantize_token_f32: f32);
