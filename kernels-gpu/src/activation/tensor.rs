//! Kernels `activation_tensor_*`: activation, then quantisation with one given scale: `q = e4m3(value * (1 / scale))`.
//!
//! Grid: see [`warp_rows`](crate::quantize::warp_rows); the rows are known on the device alone, so it is sized for the device.

use super::gated_rows::GatedRows;
use crate::quantize::cleared::Cleared;
use crate::quantize::destinations::Destinations;
use crate::quantize::warp_rows::{FirstRow, THREADS, TensorScale, quantize_warp_rows};
use cuda_std::bf16::{Bf16, F16};
use cuda_std::{kernel, memory};

macro_rules! activation_tensor {
    ($($name:ident: $ty:ident),+) => {$(
        /// Activates the rows of `x [rows, 2 * intermediate]` below `*valid_rows` (all, where null) and quantises them to
        /// `q [rows, intermediate]` with `*scale`.
        ///
        /// # Safety
        /// Null or the sizes above. Nothing written is read.
        #[kernel(threads = THREADS, min_blocks = 6, overlap = before)]
        pub unsafe fn $name(
            x: *const $ty,
            valid_rows: *const i64,
            scale: *const f32,
            q: *mut u8,
            rows: u32,
            intermediate: u32,
            activation: u32,
        ) {
            // SAFETY: the kernel's contract.
            unsafe {
                let source = GatedRows::new(x, intermediate, activation);
                let destinations = Destinations::identity(rows, valid_rows);
                let scheme = TensorScale::new(memory::load_nc(scale));
                quantize_warp_rows(source, intermediate, destinations, core::ptr::null(), 0, scheme, FirstRow::NONE, q, Cleared::NONE);
            }
        }
    )+};
}

activation_tensor!(activation_tensor_bf16: Bf16, activation_tensor_f16: F16, activation_tensor_f32: f32);
