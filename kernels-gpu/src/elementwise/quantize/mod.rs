//! FP8 quantisation (e4m3), fused with the scatter to permuted rows.
//!
//! | kernels | scale | q |
//! |---|---|---|
//! | [`tensor`] | given, or `max(absmax / 448, 1 / (448 * 512))` over the valid rows ([`absmax`] before it) | `x * (1 / scale)` |
//! | [`token`] | `max(absmax(row) / 448, 1 / (448 * 512))`, absmax optionally bounded | `x / scale` |
//! | [`group`] | `max(absmax(group), 1e-10) / 448`, groups of 128 or 64 columns, the last may be short | `x / scale` |
//!
//! ```text
//!   x [rows, columns]             inverse [rows, top_k]                          q [capacity, columns], scales
//!   row 0  ----- read once, quantised in registers -----> rows 7, 41, 2          written once per valid destination
//! ```
//!
//! Or the rows stay, in the order of the tokens, and their scales alone are written once per valid
//! destination: for a GEMM that gathers its rows, and takes a scale of each permuted row.
//!
//! Rounding is to nearest even, saturating at +-448; NaN stays NaN (0x7f) and does not count in a largest
//! magnitude. Inputs are bf16, f16 or f32; any number of columns, at any alignment.
//!
//! # Before the predecessor has ended
//! With `x_is_settled` the first row of every warp or block is read, and scaled as far as that goes without
//! its destinations, before the kernel waits for the one before it in the stream, which may be writing the
//! destinations at that time. The caller vouches that `x`, `row_weight` and a given scale were complete
//! before that kernel began. They are read past L1, and whether a row goes anywhere or not. Destinations,
//! padding and everything that is written stay behind the wait, and no thread signals before it has waited:
//! what follows relies on that ([`cuda_std::grid`]).

use cuda_std::arguments;

/// What all of these kernels read, and where it goes.
#[arguments]
pub struct Quantize {
    /// `[rows / slots, columns]`, of the type that the kernel's name says.
    pub x: *const u8,
    /// f32 `[rows]`, multiplies each row before anything else; null for none.
    pub row_weight: *const f32,
    /// Rows to quantise.
    pub rows: u32,
    /// How many of them a row of `x` makes, one after the other; more than 1 where they have weights of their
    /// own.
    pub slots: u32,
    /// Columns of `x`.
    pub columns: u32,
    /// Where the rows go.
    pub targets: crate::elementwise::rows::destinations::RowTargets,
}

/// What all of these kernels write besides scales.
#[arguments]
pub struct QuantizedRows {
    /// e4m3: `columns` bytes for every destination, or, where rows stay, for every row.
    pub q: *mut u8,
    /// f32 `[rows, columns]`, becomes 0; null for none.
    pub cleared: *mut f32,
}

mod absmax;
mod group;
mod tensor;
mod token;
