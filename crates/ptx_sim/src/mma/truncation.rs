//! What tensor cores really compute: the one place with the parameters.
//!
//! Xie et al. ("MMA-Sim", arXiv 2511.10909) found by bit-exact experiments that NVIDIA's tensor cores form,
//! per step of `step` elements along K:
//!
//! ```text
//!   E  = the largest exponent among the accumulator and the products  (a product's exponent is e_a + e_b)
//!   s  = sum of all terms, each truncated to `fraction_bits` bits below 2^E
//!   d  = s truncated to `mantissa_bits` bits       (f32 accumulators; f16: rounded to nearest)
//! ```
//!
//! Truncation is towards zero, of each term and of the result. Zero has no exponent: neither a zero operand
//! nor a zero accumulator takes part in E. A subnormal operand counts with the smallest normal exponent of
//! its type.
//!
//! This is the low accumulation precision of Hopper's FP8 that DeepSeek-V3 (arXiv 2412.19437) reports as
//! "about 14 bits". Which instruction is taken for what, by [`TensorCores::Hardware`]:
//!
//! | instruction | GPU | model | seen on a GPU by this project |
//! |---|---|---|---|
//! | `wgmma` on FP8 | Hopper | [`Truncation::HOPPER_FP8`] | H200: every bit, and no other model |
//! | `mma.sync` on FP8 | Ada | [`Truncation::ADA_FP8`] | not yet |
//! | `mma.sync` on FP8 | Hopper | [`Truncation::HOPPER_FP8_AS_F16`] (1) | H200: every bit |
//! | all others | all | exact, as [`TensorCores::Exact`] | |
//!
//! (1) Hopper has no such instruction. ptxas 13.0 converts the operands to `f16` and takes two `HMMA.16816`:
//! the first from zero with elements 0 and 1 of every four along K, the second with 2 and 3. An `FADD` adds
//! the accumulator.
//!
//! `tests/tensor_cores` compares it with the bits of a card, and names the parameters that fit
//! if these do not.

use super::Operand;
use crate::formats::{Rounding, f64_to_f16};

/// Which sums the emulated tensor cores form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TensorCores {
    /// Exact products, one rounding at the end: the definition in [`crate::mma`].
    #[default]
    Exact,
    /// FP8 sums lose bits as on the GPU that is emulated.
    Hardware,
}

impl TensorCores {
    /// The choice that `FP8_MOE_SIM_SUMS` names: `exact` or `hardware`.
    pub fn parse(name: &str) -> Option<TensorCores> {
        match name {
            "exact" => Some(TensorCores::Exact),
            "hardware" => Some(TensorCores::Hardware),
            _ => None,
        }
    }

    /// How `wgmma` sums products of these types; `None` for exact sums.
    pub fn wgmma(self, types: (Operand, Operand)) -> Option<Truncation> {
        (self == TensorCores::Hardware && is_fp8(types)).then_some(Truncation::HOPPER_FP8)
    }

    /// How `mma.sync` sums products of these types on a GPU of this capability; `None` for exact sums.
    pub fn mma(self, types: (Operand, Operand), capability: (u32, u32)) -> Option<Truncation> {
        if self == TensorCores::Exact || !is_fp8(types) {
            return None;
        }
        Some(if capability.0 < 9 { Truncation::ADA_FP8 } else { Truncation::HOPPER_FP8_AS_F16 })
    }
}

fn is_fp8((a, b): (Operand, Operand)) -> bool {
    a.bytes() == 1 && b.bytes() == 1
}

/// Parameters of the truncating sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncation {
    /// Elements of K that are summed at once.
    pub step: usize,
    /// Fraction bits that a term keeps below the largest exponent; at most 25.
    pub fraction_bits: i32,
    /// Mantissa bits of the result.
    pub mantissa_bits: i32,
    /// As Hopper's `mma.sync` on FP8 is compiled: operands are converted to `f16`, where `e4m3` has no
    /// subnormals; a step takes two of every four elements; the accumulator is added last, rounded to
    /// nearest.
    pub as_f16: bool,
}

impl Truncation {
    /// FP8 `mma.sync` on Ada (sm_89).
    pub const ADA_FP8: Truncation =
        Truncation { step: 16, fraction_bits: 13, mantissa_bits: 13, as_f16: false };
    /// FP8 `wgmma` on Hopper (sm_90a).
    pub const HOPPER_FP8: Truncation =
        Truncation { step: 32, fraction_bits: 13, mantissa_bits: 13, as_f16: false };
    /// FP8 `mma.sync` on Hopper: two steps of its `f16` instruction.
    pub const HOPPER_FP8_AS_F16: Truncation =
        Truncation { step: 16, fraction_bits: 25, mantissa_bits: 23, as_f16: true };
    /// `f16` and `bf16` on Hopper.
    pub const HOPPER_16BIT: Truncation =
        Truncation { step: 16, fraction_bits: 25, mantissa_bits: 23, as_f16: false };

    /// The smallest exponent that an operand of this type counts with.
    pub fn min_exponent(self, operand: Operand) -> i32 {
        match operand {
            Operand::E4m3 if !self.as_f16 => -6,
            Operand::E4m3 | Operand::E5m2 | Operand::F16 => -14,
            Operand::Bf16 | Operand::Tf32 => -126,
        }
    }

    /// `c + sum of a[k] * b[k]`, for operands whose smallest normal exponents are `a_min` and `b_min` (-6 for
    /// `e4m3`, -14 for `e5m2` and `f16`).
    ///
    /// # Panics
    /// If `a` and `b` differ in length.
    pub fn dot(self, a: &[f64], a_min: i32, b: &[f64], b_min: i32, c: f32) -> f32 {
        assert_eq!(a.len(), b.len(), "operands of a dot product differ in length");
        let ordered = |x: &[f64]| -> Vec<f64> {
            let mut ordered = vec![0.0; x.len()];
            x.iter().enumerate().for_each(|(k, x)| ordered[self.position(k, a.len())] = *x);
            ordered
        };
        let (a, b) = (ordered(a), ordered(b));
        let mut accumulator = if self.as_f16 { 0.0 } else { c };
        for (a, b) in a.chunks(self.step).zip(b.chunks(self.step)) {
            accumulator = self.to_f32(self.step_sum(a, a_min, b, b_min, accumulator));
        }
        if self.as_f16 { last_sum(accumulator, c) } else { accumulator }
    }

    /// Where element `k` of `len` comes in the order of the steps.
    #[inline(always)]
    pub(super) fn position(self, k: usize, len: usize) -> usize {
        if self.as_f16 { len / 2 * (k / 2 % 2) + k / 4 * 2 + k % 2 } else { k }
    }

    /// The sum of one step before it is rounded to the accumulator's type; exact in `f64`.
    pub(super) fn step_sum(self, a: &[f64], a_min: i32, b: &[f64], b_min: i32, c: f32) -> f64 {
        let products = || a.iter().zip(b).map(|(a, b)| a * b);
        let plain: f64 = products().sum::<f64>() + f64::from(c);
        if !plain.is_finite() {
            return plain;
        }
        let exponents = a.iter().zip(b).filter(|(a, b)| **a * **b != 0.0);
        let exponents = exponents.map(|(a, b)| exponent(*a, a_min) + exponent(*b, b_min));
        let c_exponent = (c != 0.0).then(|| exponent(f64::from(c), -126));
        let Some(largest) = exponents.chain(c_exponent).max() else { return 0.0 };
        // A quantum of 2^(largest - fraction_bits); every kept term is a whole number of them below 2^31.
        let quantum = 2f64.powi(largest - self.fraction_bits);
        let sum: f64 = products().chain([f64::from(c)]).map(|term| (term / quantum).trunc()).sum();
        sum * quantum
    }

    /// The sum of a step as an `f32` accumulator.
    #[inline(always)]
    pub(super) fn to_f32(self, sum: f64) -> f32 {
        if sum.is_nan() {
            return f32::from_bits(0x7fff_ffff);
        }
        if sum == 0.0 || sum.is_infinite() {
            return sum as f32 + 0.0;
        }
        let last_place = 2f64.powi(exponent(sum, -126) - self.mantissa_bits);
        ((sum / last_place).trunc() * last_place) as f32
    }

    /// The sum of a step as an `f16` accumulator.
    pub(super) fn to_f16(sum: f64) -> u16 {
        f64_to_f16((sum + 0.0).to_bits(), Rounding::Rn)
    }
}

/// What is left to add when the products have been summed from zero.
#[inline(always)]
pub(super) fn last_sum(products: f32, c: f32) -> f32 {
    let sum = products + c;
    if sum.is_nan() { f32::from_bits(0x7fff_ffff) } else { sum }
}

/// Exponent of `x`, which is not zero, and not below `min`.
fn exponent(x: f64, min: i32) -> i32 {
    (((x.to_bits() >> 52) & 0x7ff) as i32 - 1023).max(min)
}
