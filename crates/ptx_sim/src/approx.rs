//! The `.approx` functions of PTX, computed to within half a unit in the last place of `f32` plus 2^-30.
//!
//! The ISA bounds the error of each (about 2^-22 relative) but does not define its bits, and hardware
//! generations differ. Here each is evaluated in `f64` and rounded once to `f32`, so results are the same on
//! every host and always at least as accurate as the ISA asks. Special values follow the ISA's tables:
//!
//! ```text
//!            -inf  -normal  -0    +0    +inf   NaN      error bound of the ISA
//!  ex2        +0     ..     +1    +1    +inf   NaN      2^-22 relative
//!  lg2       NaN    NaN    -inf  -inf   +inf   NaN      2^-22 relative, absolute 2^-22 near 1
//!  rcp        -0     ..    -inf  +inf    +0    NaN      2^-23 relative
//!  sqrt      NaN    NaN     -0    +0    +inf   NaN      2^-23 relative
//!  rsqrt     NaN    NaN    -inf  +inf    +0    NaN      2^-22.9 relative
//!  sin       NaN     ..     -0    +0     NaN   NaN      2^-20.5 absolute in [-pi, pi]
//!  cos       NaN     ..     +1    +1     NaN   NaN      2^-20.5 absolute in [-pi, pi]
//!  tanh       -1     ..     -0    +0     +1    NaN      2^-11 relative
//! ```
//!
//! With `ftz`, subnormal operands and results become zeros of the same sign.

use crate::formats::flush_f32;

#[inline(always)]
fn operand(x: f32, ftz: bool) -> f32 {
    if ftz { f32::from_bits(flush_f32(x.to_bits())) } else { x }
}

#[inline(always)]
fn result(x: f64, ftz: bool) -> f32 {
    if x.is_nan() {
        return f32::from_bits(0x7fff_ffff);
    }
    operand(x as f32, ftz)
}

/// `2^k / k!` scaled by `ln(2)^k`: the Taylor series of `2^r` about 0.
const EX2: [f64; 11] = {
    let mut terms = [1.0; 11];
    let mut k = 1;
    while k < 11 {
        terms[k] = terms[k - 1] * std::f64::consts::LN_2 / k as f64;
        k += 1;
    }
    terms
};

/// `2^x` for finite or infinite `x`, relative error below 2^-38 (the series is cut at r^10, |r| <= 1/2).
#[inline(always)]
fn exp2(x: f32) -> f64 {
    let x = f64::from(x).clamp(-300.0, 300.0);
    let whole = x.round_ties_even();
    let r = x - whole;
    let mut sum = EX2[10];
    let mut k = 10;
    while k > 0 {
        k -= 1;
        sum = sum * r + EX2[k];
    }
    sum * f64::from_bits(((whole as i64 + 1023) as u64) << 52)
}

/// `ex2.approx{.ftz}.f32`.
#[inline]
pub fn ex2(x: f32, ftz: bool) -> f32 {
    let x = operand(x, ftz);
    // `clamp` keeps NaN; 2^300 and 2^-300 round to infinity and zero.
    result(exp2(x), ftz)
}

/// `lg2.approx{.ftz}.f32`.
#[inline]
pub fn lg2(x: f32, ftz: bool) -> f32 {
    let x = operand(x, ftz);
    if x == 0.0 {
        return f32::NEG_INFINITY;
    }
    if x.is_nan() || x < 0.0 {
        return f32::from_bits(0x7fff_ffff);
    }
    if x == f32::INFINITY {
        return x;
    }
    // Every positive f32 is a normal f64: split it into 2^e * m with m in [sqrt(1/2), sqrt(2)).
    let bits = f64::from(x).to_bits();
    let sqrt_half = std::f64::consts::FRAC_1_SQRT_2.to_bits();
    let e = (bits.wrapping_sub(sqrt_half) as i64) >> 52;
    let m = f64::from_bits(bits.wrapping_sub((e << 52) as u64));
    // ln(m) = 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.172.
    let s = (m - 1.0) / (m + 1.0);
    let s2 = s * s;
    let mut sum = 0.0;
    for k in (0..9).rev() {
        sum = sum * s2 + 1.0 / f64::from(2 * k + 1);
    }
    result(e as f64 + 2.0 * std::f64::consts::LOG2_E * s * sum, ftz)
}

/// `rcp.approx{.ftz}.f32`.
#[inline]
pub fn rcp(x: f32, ftz: bool) -> f32 {
    result(1.0 / f64::from(operand(x, ftz)), ftz)
}

/// `sqrt.approx{.ftz}.f32`.
#[inline]
pub fn sqrt(x: f32, ftz: bool) -> f32 {
    result(f64::from(operand(x, ftz)).sqrt(), ftz)
}

/// `rsqrt.approx{.ftz}.f32`.
#[inline]
pub fn rsqrt(x: f32, ftz: bool) -> f32 {
    result(1.0 / f64::from(operand(x, ftz)).sqrt(), ftz)
}

/// `rcp.approx.ftz.f64`, which reads and writes the upper 32 bits of the number only.
#[inline]
pub fn rcp_f64(x: f64) -> f64 {
    upper_word(1.0 / flush_f64(upper_word(x)))
}

/// `rsqrt.approx.f64`: double precision, to two roundings.
#[inline]
pub fn rsqrt_f64(x: f64) -> f64 {
    1.0 / x.sqrt()
}

/// `rsqrt.approx.ftz.f64`, which reads and writes the upper 32 bits of the number only.
#[inline]
pub fn rsqrt_ftz_f64(x: f64) -> f64 {
    upper_word(1.0 / flush_f64(upper_word(x)).sqrt())
}

#[inline(always)]
fn upper_word(x: f64) -> f64 {
    if x.is_nan() {
        f64::from_bits(0x7fff_ffff_0000_0000)
    } else {
        f64::from_bits(x.to_bits() & !0xffff_ffff)
    }
}

#[inline(always)]
fn flush_f64(x: f64) -> f64 {
    if x.is_subnormal() { 0f64.copysign(x) } else { x }
}

/// `sin.approx{.ftz}.f32`.
#[inline]
pub fn sin(x: f32, ftz: bool) -> f32 {
    result(f64::from(operand(x, ftz)).sin(), ftz)
}

/// `cos.approx{.ftz}.f32`.
#[inline]
pub fn cos(x: f32, ftz: bool) -> f32 {
    result(f64::from(operand(x, ftz)).cos(), ftz)
}

/// `tanh.approx.f32`, and after widening `tanh.approx.{f16,bf16}`.
#[inline]
pub fn tanh(x: f32) -> f32 {
    result(f64::from(x).tanh(), false)
}

/// `div.approx{.ftz}.f32`: divisors over 2^126 give zero for a finite dividend, NaN for an infinite one.
#[inline]
pub fn div(a: f32, b: f32, ftz: bool) -> f32 {
    let (a, b) = (operand(a, ftz), operand(b, ftz));
    if b.is_finite() && b.abs() > 2f32.powi(126) {
        return if a.is_finite() { 0f32.copysign(a) * b.signum() } else { f32::from_bits(0x7fff_ffff) };
    }
    result(f64::from(a) / f64::from(b), ftz)
}

/// `div.full{.ftz}.f32`: like division, without the promise of a correctly rounded result.
#[inline]
pub fn div_full(a: f32, b: f32, ftz: bool) -> f32 {
    result(f64::from(operand(a, ftz)) / f64::from(operand(b, ftz)), ftz)
}
