//! Kernels `activation_token_*`: activation, then quantisation with one scale for every row.
//!
//! `scale = max(absmax(row) / 448, 1 / (448 * 512))`, `q = e4m3(value / scale)`. Grid: one-dimensional, a
//! block takes every `grid_dim_x`-th row; see [`block_rows`](crate::elementwise::rows::block_rows).

use super::Activate;
use super::gated_rows::GatedRows;
use crate::elementwise::rows::block_rows::{FirstRow, SHARED, THREADS, quantize_block_rows};
use crate::elementwise::rows::cleared::Cleared;
use crate::elementwise::rows::destinations::Destinations;
use cuda_std::bf16::{Bf16, F16};
use cuda_std::{arguments, kernel, shared_array};

/// Arguments of the kernels `activation_token_*`.
#[arguments]
pub struct ActivateToken {
    /// What is read and written.
    pub common: crate::elementwise::activation::Activate,
    /// f32 `[rows]`.
    pub scales: *mut f32,
    /// Spans of a row that dynamic shared memory holds.
    pub kept_spans: u32,
}

macro_rules! activation_token {
    ($($name:ident: $ty:ident),+) => {$(
        /// Activates the rows of `x` below `*valid_rows` and quantises them to `q`.
        ///
        /// # Safety
        /// The arrays are null, where they may be, or have their stated sizes; dynamic shared memory holds
        /// `kept_spans` spans. Nothing written is read.
        #[kernel(threads = THREADS, min_blocks = 4, overlap = before)]
        pub unsafe fn $name(arguments: ActivateToken) {
            let ActivateToken { common, scales, kept_spans } = arguments;
            let Activate { x, valid_rows, q, rows, intermediate, gating } = common;
            let maxima = shared_array!($name.maxima: [f32; SHARED]);
            // SAFETY: the kernel's contract; the shared array is used for nothing else.
            unsafe {
                let source = GatedRows::<$ty>::new(x.cast(), intermediate, gating);
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
