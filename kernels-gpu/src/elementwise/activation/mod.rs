//! Activation of GEMM 1's output, and its quantisation for GEMM 2, in one pass.
//!
//! | kernels | scale |
//! |---|---|
//! | [`tensor`] | one, given |
//! | [`token`] | one per row |
//! | [`group`] | one per row and 128 or 64 columns |
//! | [`plain`] | none: bf16, for shared experts that are not quantised |
//!
//! ```text
//!   x [P, 2I] bf16, f16, f32 --> activation(gate) * up --> scale --> e4m3, one rounding --> q [P, I]
//! ```
//!
//! The scales are those of [`quantize`](crate::elementwise::quantize), whose row loops these kernels share.
//! Rows from `*valid_rows` on are neither read nor written.

use cuda_std::arguments;

/// What all of these kernels read and write.
#[arguments]
pub struct Activate {
    /// `[rows, intermediate + gating.up]`, of the type that the kernel's name says.
    pub x: *const u8,
    /// i64: rows from it on are neither read nor written; null for no limit.
    pub valid_rows: *const i64,
    /// e4m3 `[rows, intermediate]`.
    pub q: *mut u8,
    /// Rows of `x` and `q`.
    pub rows: u32,
    /// I.
    pub intermediate: u32,
    /// What joins gate and up.
    pub gating: crate::abi::Gating,
}

pub mod functions;
mod gated_rows;
mod group;
mod plain;
mod tensor;
mod token;
