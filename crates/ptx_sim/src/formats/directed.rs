//! Arithmetic under the rounding modes that the CPU does not offer per instruction.
//!
//! `a * b + c` is formed in `f64`, where the product of two `f32` is exact, the error of the one addition is
//! recovered exactly, and the sum is rounded *to odd*: its last bit is set if anything was lost. 53 bits
//! rounded to odd round to 24 bits, in any direction, as the exact value would.
//!
//! `f64` results are formed in integers of 128 bits; what is shifted out of them is kept as their last bit.

use super::{Format, Rounding, encode, f64_to_f32};

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

/// Significand with its leading bit at bit 126, and exponent of its unit, of a finite number that is not
/// zero.
fn spread(x: f64) -> (u128, i32) {
    let field = (x.to_bits() >> 52 & 0x7ff) as i32;
    let fraction = u128::from(x.to_bits() & 0xf_ffff_ffff_ffff);
    let (significand, exponent) =
        if field == 0 { (fraction, -1074) } else { (fraction | 1 << 52, field - 1075) };
    let up = significand.leading_zeros() as i32 - 1;
    (significand << up, exponent - up)
}

/// `significand >> by`, with the last bit set if anything was lost.
fn shift_jamming(significand: u128, by: u32) -> u128 {
    if by == 0 {
        return significand;
    }
    if by > 127 {
        return u128::from(significand != 0);
    }
    significand >> by | u128::from(significand & ((1 << by) - 1) != 0)
}

/// Rounds `±significand * 2^exponent`; a significand of more than 62 bits may have its last bit set for what
/// was lost.
fn round_f64(negative: bool, significand: u128, exponent: i32, rounding: Rounding) -> f64 {
    let excess = (66 - significand.leading_zeros() as i32).max(0);
    let kept = shift_jamming(significand, excess as u32) as u64;
    f64::from_bits(encode(Format::F64, negative, kept, exponent + excess, rounding, false))
}

/// Zero as the sum of terms with these signs.
fn zero(x_negative: bool, y_negative: bool, rounding: Rounding) -> f64 {
    let negative = if x_negative == y_negative { x_negative } else { rounding == Rounding::Rm };
    if negative { -0.0 } else { 0.0 }
}

/// `fma.{rn,rz,rm,rp}.f64`.
#[inline]
pub fn fma_f64(a: f64, b: f64, c: f64, rounding: Rounding) -> f64 {
    if rounding == Rounding::Rn || !(a.is_finite() && b.is_finite() && c.is_finite()) {
        return a.mul_add(b, c);
    }
    let negative = a.is_sign_negative() != b.is_sign_negative();
    if a == 0.0 || b == 0.0 {
        return if c == 0.0 { zero(negative, c.is_sign_negative(), rounding) } else { c };
    }
    let ((x, x_exponent), (y, y_exponent)) = (spread(a), spread(b));
    // 53 bits each, so that their product has 105 or 106; its leading bit goes to 126 as well.
    let product = (x >> 74) * (y >> 74);
    let up = product.leading_zeros() as i32 - 1;
    let (product, exponent) = (product << up, x_exponent + y_exponent + 148 - up);
    if c == 0.0 {
        return round_f64(negative, product, exponent, rounding);
    }
    let (addend, addend_exponent) = spread(c);
    let first = (negative, product, exponent);
    let second = (c.is_sign_negative(), addend, addend_exponent);
    let ((sign, large, exponent), (other, small, below)) =
        if (exponent, product) >= (addend_exponent, addend) { (first, second) } else { (second, first) };
    let small = shift_jamming(small, (exponent - below) as u32);
    if sign == other {
        return round_f64(sign, large + small, exponent, rounding);
    }
    if large == small {
        return zero(sign, other, rounding);
    }
    round_f64(sign, large - small, exponent, rounding)
}

/// `add.{rn,rz,rm,rp}.f64`.
#[inline]
pub fn add_f64(a: f64, b: f64, rounding: Rounding) -> f64 {
    if rounding == Rounding::Rn { a + b } else { fma_f64(a, 1.0, b, rounding) }
}

/// `mul.{rn,rz,rm,rp}.f64`.
#[inline]
pub fn mul_f64(a: f64, b: f64, rounding: Rounding) -> f64 {
    // A zero of the product's sign changes nothing.
    let zero = if a.is_sign_negative() != b.is_sign_negative() { -0.0 } else { 0.0 };
    if rounding == Rounding::Rn { a * b } else { fma_f64(a, b, zero, rounding) }
}

/// `div.{rn,rz,rm,rp}.f64`.
#[inline]
pub fn div_f64(a: f64, b: f64, rounding: Rounding) -> f64 {
    let plain = a.is_finite() && b.is_finite() && a != 0.0 && b != 0.0;
    if rounding == Rounding::Rn || !plain {
        return a / b;
    }
    let ((x, x_exponent), (y, y_exponent)) = (spread(a), spread(b));
    let y = y >> 74;
    let quotient = (x / y) | u128::from(x % y != 0);
    let negative = a.is_sign_negative() != b.is_sign_negative();
    round_f64(negative, quotient, x_exponent - y_exponent - 74, rounding)
}

/// `sqrt.{rn,rz,rm,rp}.f64`.
#[inline]
pub fn sqrt_f64(a: f64, rounding: Rounding) -> f64 {
    if rounding == Rounding::Rn || !(a > 0.0 && a.is_finite()) {
        return a.sqrt();
    }
    let (x, exponent) = spread(a);
    let (x, exponent) = if exponent % 2 == 0 { (x, exponent) } else { (x >> 1, exponent + 1) };
    let root = x.isqrt();
    round_f64(false, root | u128::from(root * root != x), exponent / 2, rounding)
}
