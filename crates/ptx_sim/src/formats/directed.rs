//! `f32` arithmetic under the rounding modes that the CPU does not offer per instruction.
//!
//! `a * b + c` is formed in `f64`, where the product of two `f32` is exact, the error of the one addition is
//! recovered exactly, and the sum is rounded *to odd*: its last bit is set if anything was lost. 53 bits
//! rounded to odd round to 24 bits, in any direction, as the exact value would.

use super::{Rounding, f64_to_f32};

/// `a + b` in `f64`, rounded to odd.
#[inline(always)]
pub(crate) fn add_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let back = sum - a;
    let error = (a - (sum - back)) + (b - back);
    let bits = sum.to_bits();
    // An inexact even sum is a neighbour of the exact value: step to the odd number on the side of the error.
    let inexact_even = error != 0.0 && bits & 1 == 0 && sum.is_finite();
    let away = (error > 0.0) == (sum > 0.0);
    let odd = if away { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
    f64::from_bits(if inexact_even { odd } else { bits })
}

/// `fma.{rn,rz,rm,rp}.f32`.
#[inline]
pub fn fma_f32(a: f32, b: f32, c: f32, rounding: Rounding) -> f32 {
    if rounding == Rounding::Rn {
        return a.mul_add(b, c);
    }
    let product = f64::from(a) * f64::from(b);
    let addend = f64::from(c);
    let sum = add_to_odd(product, addend);
    if sum == 0.0 {
        // An exact zero from terms of opposite sign is -0 when rounding down, +0 otherwise.
        let (x, y) = (product.is_sign_negative(), addend.is_sign_negative());
        let negative = if x == y { x } else { rounding == Rounding::Rm };
        return if negative { -0.0 } else { 0.0 };
    }
    f32::from_bits(f64_to_f32(sum.to_bits(), rounding))
}

/// `add.{rn,rz,rm,rp}.f32`.
#[inline]
pub fn add_f32(a: f32, b: f32, rounding: Rounding) -> f32 {
    if rounding == Rounding::Rn { a + b } else { fma_f32(a, 1.0, b, rounding) }
}

/// `mul.{rn,rz,rm,rp}.f32`.
#[inline]
pub fn mul_f32(a: f32, b: f32, rounding: Rounding) -> f32 {
    if rounding == Rounding::Rn {
        return a * b;
    }
    f32::from_bits(f64_to_f32((f64::from(a) * f64::from(b)).to_bits(), rounding))
}

/// `sqrt.{rn,rz,rm,rp}.f32`.
#[inline]
pub fn sqrt_f32(a: f32, rounding: Rounding) -> f32 {
    let root = f64::from(a).sqrt();
    if rounding == Rounding::Rn || !root.is_finite() || root == 0.0 {
        return a.sqrt();
    }
    // Round the root to odd by the sign of its residual, which a fused multiply-add gives exactly.
    let residual = root.mul_add(-root, f64::from(a));
    let bits = root.to_bits();
    let odd = if residual > 0.0 { bits + 1 } else { bits - 1 };
    let root = if residual != 0.0 && bits & 1 == 0 { odd } else { bits };
    f32::from_bits(f64_to_f32(root, rounding))
}
