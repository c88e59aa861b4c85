//! Kernels `activation_token_*`: activation, then quantisation with one scale for every row.
//!
//! `scale = max(absmax(row) / 448, 1 / (448 * 512))`, `q = e4m3(value / scale)`. Grid: one-dimensional, a block takes every
//! `grid_dim_x`-th row; see [`block_rows`](crate::quantize::block_rows).

use super::gated_rows::GatedRows;
use crate::quantize::block_rows::{FirstRow, SHARED, THREADS, quantize_block_rows};
use crate::quantize::cleared::Cleared;
use crate::quantize::destinations::Destinations;
use cuda_std::bf16::{Bf16, F16};
use cuda_std::{kernel, shared_array};

macro_rules! activation_token {
    ($($name:ident: $ty:ident),+) => {$(
        /// Activates the rows of `x [rows, 2 * intermediate]` below `*valid_rows` (all, where null) and quantises them to
        /// `q [rows, intermediate]` and `scales [rows]`.
        ///
        /// # Safety
        /// Null or the sizes above; dynamic shared memory for `kept_spans` times 2048 f32 values. Nothing written is read.
        #[kernel(threads = THREADS, min_blocks = 4, overlap = before)]
        pub unsafe fn $name(
            x: *const $ty,
            valid_rows: *const i64,
            q: *mut u8,
            scales: *mut f32,
            rows: u32,
            intermediate: u32,
            activation: u32,
            kept_spans: u32,
        ) {
            let maxima = shared_array!($name.maxima: [f32; SHARED]);
            // SAFETY: the kernel's contract; the shared array is used for nothing else.
            unsafe {
                let source = GatedRows::new(x, intermediate, activation);
                let destinations = Destinations::identity(rows, valid_rows);
                let (no_padding, no_limit) = (core::ptr::null(), f32::INFINITY);
                quantize_block_rows(
                    source, intermediate, destinations, no_padding, 0, no_limit, FirstRow::NONE, q, scales, maxima, kept_spans, Cleared::NONE,
                );
            }
        }
    )+};
}

activation_token!(activation_token_bf16: Bf16, activation_token_f16: F16, activation_token_f32: f32);
