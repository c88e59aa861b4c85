//! What tensor cores really compute, as far as others have measured it.
//!
//! Xie et al. ("MMA-Sim", arXiv 2511.10909) found by bit-exact experiments that NVIDIA's tensor cores form, per
//! step of `step` elements along K:
//!
//! ```text
//!   E  = the largest exponent among the accumulator and the products  (a product's exponent is e_a + e_b)
//!   s  = sum of all terms, each truncated to `fraction_bits` bits below 2^E
//!   d  = s truncated to `mantissa_bits` bits
//! ```
//!
//! This is the low accumulation precision of Hopper's FP8 that DeepSeek-V3 (arXiv 2412.19437) reports as "about
//! 14 bits". The emulated device does not use it: it is here to show by how much a card may differ.

/// Parameters of the truncating sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncation {
    /// Elements of K that are summed at once.
    pub step: usize,
    /// Fraction bits that a term keeps below the largest exponent.
    pub fraction_bits: i32,
    /// Mantissa bits of the result.
    pub mantissa_bits: i32,
}

impl Truncation {
    /// FP8 `mma.sync` on Ada (sm_89).
    pub const ADA_FP8: Truncation = Truncation { step: 16, fraction_bits: 13, mantissa_bits: 13 };
    /// FP8 `wgmma` on Hopper (sm_90a).
    pub const HOPPER_FP8: Truncation = Truncation { step: 32, fraction_bits: 13, mantissa_bits: 13 };
    /// `f16` and `bf16` on Hopper.
    pub const HOPPER_16BIT: Truncation = Truncation { step: 16, fraction_bits: 25, mantissa_bits: 23 };

    /// `c + sum of a[k] * b[k]`, for operands whose smallest normal exponents are `a_min` and `b_min` (-6 for
    /// `e4m3`, -14 for `e5m2` and `f16`).
    ///
    /// # Panics
    /// If `a` and `b` differ in length.
    pub fn dot(self, a: &[f64], a_min: i32, b: &[f64], b_min: i32, c: f32) -> f32 {
        assert_eq!(a.len(), b.len(), "operands of a dot product differ in length");
        let mut accumulator = c;
        for (a, b) in a.chunks(self.step).zip(b.chunks(self.step)) {
            accumulator = self.step_sum(a, a_min, b, b_min, accumulator);
        }
        accumulator
    }

    fn step_sum(self, a: &[f64], a_min: i32, b: &[f64], b_min: i32, c: f32) -> f32 {
        let products = || a.iter().zip(b).map(|(a, b)| a * b);
        let plain: f64 = products().sum::<f64>() + f64::from(c);
        if !plain.is_finite() {
            return if plain.is_nan() { f32::from_bits(0x7fff_ffff) } else { plain as f32 };
        }
        let exponents = a.iter().zip(b).filter(|(a, b)| **a * **b != 0.0);
        let exponents = exponents.map(|(a, b)| exponent(*a, a_min) + exponent(*b, b_min));
        let largest = exponents.fold(exponent(f64::from(c), -126), i32::max);
        // A quantum of 2^(largest - fraction_bits); every kept term is a whole number of them below 2^31.
        let quantum = 2f64.powi(largest - self.fraction_bits);
        let sum: f64 = products().chain([f64::from(c)]).map(|term| (term / quantum).trunc()).sum();
        let sum = sum * quantum;
        if sum == 0.0 {
            return 0.0;
        }
        let last_place = 2f64.powi(exponent(sum, -126) - self.mantissa_bits);
        ((sum / last_place).trunc() * last_place) as f32
    }
}

/// Exponent of `x`, not below `min`; zero counts as -126, the exponent of the smallest accumulator.
fn exponent(x: f64, min: i32) -> i32 {
    if x == 0.0 {
        return -126;
    }
    (((x.to_bits() >> 52) & 0x7ff) as i32 - 1023).max(min)
}
