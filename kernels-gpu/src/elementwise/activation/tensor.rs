//! Kernels `activation_tensor_*`: activation, then quantisation with one given scale: `q = e4m3(value * (1 /
//! scale))`.
//!
//! Grid: see [`warp_rows`](crate::elementwise::rows::warp_rows); the rows are known on the device alone, so
//! it is sized for the device.

use super::Activate;
use super::gated_rows::GatedRows;
use crate::elementwise::rows::cleared::Cleared;
use crate::elementwise::rows::destinations::Destinations;
use crate::elementwise::rows::warp_rows::{FirstRow, THREADS, TensorScale, quantize_warp_rows};
use cuda_std::bf16::{Bf16, F16};
use cuda_std::{arguments, kernel, memory};

/// Arguments of the kernels `activation_tensor_*`.
#[arguments]
pub struct ActivateTensor {
    /// What is read and written.
    pub common: crate::elementwise::activation::Activate,
    /// f32, the scale.
    pub scale: *const f32,
}

macro_rules! activation_tensor {
    ($($name:ident: $ty:ident),+) => {$(
        /// Activates the rows of `x` below `*valid_rows` and quantises them to `q`.
        ///
        /// # Safety
        /// The arrays are null, where they may be, or have their stated sizes. Nothing written is read.
        #[kernel(threads = THREADS, min_blocks = 6, overlap = before)]
        pub unsafe fn $name(arguments: ActivateTensor) {
            let ActivateTensor { common, scale } = arguments;
            let Activate { x, valid_rows, q, rows, intermediate, gating } = common;
            // SAFETY: the kernel's contract.
            unsafe {
                let source = GatedRows::<$ty>::new(x.cast(), intermediate, gating);
                let destinations = Destinations::identity(rows, valid_rows);
                let scheme = TensorScale::new(memory::load_nc(scale));
                quantize_warp_rows(source, intermediate, destinations, core::ptr::null(), 0, scheme, FirstRow::NONE, q, Cleared::NONE);
            }
        }
    )+};
}

activation_tensor!(activation_tensor_bf16: Bf16, activation_tensor_f16: F16, activation_tensor_f32: f32);
