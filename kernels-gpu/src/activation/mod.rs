//! Activation of GEMM 1's output, and its quantisation for GEMM 2, in one pass.
//!
//! | kernels | scale |
//! |---|---|
//! | [`tensor`] | one, given |
//! | [`token`] | one per row |
//! | [`group`] | one per row and 128 or 64 columns |
//!
//! ```text
//!   x [P, 2I] bf16, f16, f32 --> activation(gate) * up --> scale --> e4m3, one rounding --> q [P, I]
//! ```
//!
//! The scales are those of [`quantize`](crate::quantize), whose row loops these kernels share. Rows from `*valid_rows` on are
//! neither read nor written.

pub mod functions;
pub mod gated_rows;
pub mod group;
pub mod tensor;
pub mod token;
