//! Kernels `activation_group_*`: activation, then quantisation with one scale for every 128 or 64 columns of a row.
//!
//! `scale = max(absmax(group), 1e-10) / 448`, `q = e4m3(value / scale)`. Grid: as [`tensor`](super::tensor).

use super::gated_rows::GatedRows;
use crate::quantize::cleared::Cleared;
use crate::quantize::destinations::Destinations;
use crate::quantize::warp_rows::{FirstRow, GroupScales, THREADS, quantize_warp_rows};
use cuda_std::bf16::{Bf16, F16};
use cuda_std::kernel;

macro_rules! activation_group {
    ($($name:ident: $ty:ident),+) => {$(
        /// Activates the rows of `x [rows, 2 * intermediate]` below `*valid_rows` (all, where null) and quantises them to
        /// `q [rows, intermediate]`; the scale of (row, group) goes to `scales[row * row_stride + group * group_stride]`.
        ///
        /// # Safety
        /// Null or the sizes above; `scales` has the groups of every row; `group_size` is 64 or 128. Nothing written is read.
        #[kernel(threads = THREADS, min_blocks = 6, overlap = before)]
        pub unsafe fn $name(
            x: *const $ty,
            valid_rows: *const i64,
            q: *mut u8,
            scales: *mut f32,
            row_stride: u64,
            group_stride: u64,
            rows: u32,
            intermediate: u32,
            activation: u32,
            group_size: u32,
        ) {
            // SAFETY: the kernel's contract.
            unsafe {
                let source = GatedRows::new(x, intermediate, activation);
                let destinations = Destinations::identity(rows, valid_rows);
                let scheme = GroupScales::new(scales, row_stride, group_stride, group_size, intermediate);
                quantize_warp_rows(source, intermediate, destinations, core::ptr::null(), 0, scheme, FirstRow::NONE, q, Cleared::NONE);
            }
        }
    )+};
}

activation_group!(activation_group_bf16: Bf16, activation_group_f16: F16, activation_group_f32: f32);
