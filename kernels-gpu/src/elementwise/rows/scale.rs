//! From a largest magnitude to a scale, and from values to quotients.
//!
//! A scale multiplies back, `x ~= q * scale`. NaN does not count in a largest magnitude. An infinite one
//! makes the scale infinite: the finite values of that row become 0 and the infinite ones NaN, as the
//! divisions say.

use cuda_std::fp8::E4M3_MAX;
use cuda_std::math::fma;

/// The smallest scale of a whole tensor or of a row.
const SCALE_FLOOR: f32 = 1.0 / (E4M3_MAX * 512.0);

/// The smallest magnitude that counts in a group.
const GROUP_ABSMAX_FLOOR: f32 = 1e-10;

/// The scale of a tensor or of a row whose largest magnitude is `absmax`.
#[inline(always)]
pub fn of_absmax(absmax: f32) -> f32 {
    f32::max(absmax / E4M3_MAX, SCALE_FLOOR)
}

/// The scale of a group whose largest magnitude is `absmax`.
#[inline(always)]
pub fn of_group_absmax(absmax: f32) -> f32 {
    f32::max(absmax, GROUP_ABSMAX_FLOOR) / E4M3_MAX
}

/// Division of many values by one scale: three instructions each, and the e4m3 value of the IEEE quotient.
///
/// ```text
///   r = RN(1 / s)                    once
///   q0 = RN(x * r)                   within 1.5 units in the last place of x / s
///   e  = RN(s * q0 - x)              exact: the residual, negated so that a zero keeps its sign
///   q  = RN(q0 - r * e)
/// ```
///
/// An e4m3 result depends on how the quotient compares with the e4m3 values and the midpoints between them,
/// all of which have five significant bits. For every such m, every significand of s and every x within 6
/// units of m * s, q compares with m as RN(x / s) does (`tests/quantize.rs` checks all of them; powers of two
/// do not matter). Elsewhere the error of q cannot reach an m.
///
/// Preconditions, which the scales of this module satisfy: `2^-43 < s`, and `|x / s|` does not overflow.
/// Below 2^-10, where the residual may underflow, the e4m3 value is a zero with the sign of x in any case. An
/// infinite scale gives 0, and NaN for an infinite x.
#[derive(Clone, Copy)]
pub struct Divisor {
    scale: f32,
    reciprocal: f32,
}

impl Divisor {
    /// Division by `scale`.
    #[inline(always)]
    pub fn new(scale: f32) -> Self {
        // With an infinite scale the reciprocal is 0, and the residual must be finite for it to have no
        // effect.
        Divisor { scale: if scale < f32::INFINITY { scale } else { 0.0 }, reciprocal: 1.0 / scale }
    }

    /// The quotients of some values.
    #[inline(always)]
    pub fn divide<const N: usize>(&self, values: &[f32; N]) -> [f32; N] {
        values.map(|x| {
            let quotient = x * self.reciprocal;
            let residual = fma(self.scale, quotient, -x);
            fma(-self.reciprocal, residual, quotient)
        })
    }
}
