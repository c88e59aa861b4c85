//! Kernels `activation_group_*`: activation, then quantisation with one scale for every 128 or 64 columns of
//! a row.
//!
//! `scale = max(absmax(group), 1e-10) / 448`, `q = e4m3(value / scale)`. Grid: as [`tensor`](super::tensor).

use super::Activate;
use super::gated_rows::GatedRows;
use crate::elementwise::rows::cleared::Cleared;
use crate::elementwise::rows::destinations::Destinations;
use crate::elementwise::rows::warp_rows::{FirstRow, GroupScales, THREADS, quantize_warp_rows};
use cuda_std::bf16::{Bf16, F16};
use cuda_std::{arguments, kernel};

/// Arguments of the kernels `activation_group_*`.
#[arguments]
pub struct ActivateGroup {
    /// What is read and written.
    pub common: crate::elementwise::activation::Activate,
    /// Where the scales go: the groups of every row.
    pub scales: crate::abi::GroupScalesOut,
}

macro_rules! activation_group {
    ($($name:ident: $ty:ident),+) => {$(
        /// Activates the rows of `x` below `*valid_rows` and quantises them to `q`.
        ///
        /// # Safety
        /// The arrays are null, where they may be, or have their stated sizes. Nothing written is read.
        #[kernel(threads = THREADS, min_blocks = 6, overlap = before)]
        pub unsafe fn $name(arguments: ActivateGroup) {
            let ActivateGroup { common, scales } = arguments;
            let Activate { x, valid_rows, q, rows, intermediate, gating } = common;
            // SAFETY: the kernel's contract.
            unsafe {
                let source = GatedRows::<$ty>::new(x.cast(), intermediate, gating);
                let destinations = Destinations::identity(rows, valid_rows);
                let scheme = GroupScales::new(scales, intermediate);
                quantize_warp_rows(source, intermediate, destinations, core::ptr::null(), 0, scheme, FirstRow::NONE, q, Cleared::NONE);
            }
        }
    )+};
}

activation_group!(activation_group_bf16: Bf16, activation_group_f16: F16, activation_group_f32: f32);
