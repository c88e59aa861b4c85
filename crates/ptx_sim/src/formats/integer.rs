//! Conversions between integers and floating point, and rounding to integral values.
//!
//! Floating point to integer always saturates to the range of the target. NaN becomes 0, except where the
//! source is `f64` or the target has 64 bits: there it becomes `1 << (bits - 1)` (ISA `cvt`, integer notes).

use super::{Clamp, Format, Rounding, encode};

/// Range of an integer type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Integer {
    /// Two's complement if set.
    pub signed: bool,
    /// 8, 16, 32 or 64.
    pub bits: u32,
}

impl Integer {
    /// Largest value.
    pub const fn max(self) -> i128 {
        (1i128 << (self.bits - self.signed as u32)) - 1
    }

    /// Smallest value.
    pub const fn min(self) -> i128 {
        if self.signed { -(1i128 << (self.bits - 1)) } else { 0 }
    }
}

/// `cvt.{rni,rzi,rmi,rpi}.f64.f64`: rounds to an integral value.
#[inline(always)]
pub fn round_f64(x: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Rn => x.round_ties_even(),
        Rounding::Rna => x.round(),
        Rounding::Rz => x.trunc(),
        Rounding::Rm => x.floor(),
        Rounding::Rp => x.ceil(),
    }
}

/// `cvt.{rni,rzi,rmi,rpi}.f32.f32`: rounds to an integral value.
#[inline(always)]
pub fn round_f32(x: f32, rounding: Rounding) -> f32 {
    match rounding {
        Rounding::Rn => x.round_ties_even(),
        Rounding::Rna => x.round(),
        Rounding::Rz => x.trunc(),
        Rounding::Rm => x.floor(),
        Rounding::Rp => x.ceil(),
    }
}

/// `cvt.{rni,rzi,rmi,rpi}.{u,s}{8,16,32,64}.f64`: two's complement result in the low `bits` bits, the sign
/// extended to 64 bits for signed types.
#[inline]
pub fn f64_to_integer(x: f64, target: Integer, rounding: Rounding) -> u64 {
    if x.is_nan() {
        let top = 1u64 << (target.bits - 1);
        return if target.signed { top.wrapping_neg() } else { top };
    }
    let rounded = round_f64(x, rounding);
    // `as` saturates to the range of the 64-bit type, in which every narrower range lies.
    if target.signed {
        (rounded as i64).clamp(target.min() as i64, target.max() as i64) as u64
    } else {
        (rounded as u64).min(target.max() as u64)
    }
}

/// `cvt.{rni,rzi,rmi,rpi}.{u,s}{8,16,32,64}.f32`; also for `f16` and `bf16` sources, which widen exactly.
#[inline]
pub fn f32_to_integer(x: f32, target: Integer, rounding: Rounding) -> u64 {
    if x.is_nan() && target.bits < 64 {
        return 0;
    }
    f64_to_integer(f64::from(x), target, rounding)
}

#[inline(always)]
fn integer_to(format: Format, value: i128, rounding: Rounding) -> u64 {
    let magnitude = value.unsigned_abs() as u64;
    encode(format, value < 0, magnitude, 0, rounding, Clamp::default().satfinite)
}

/// `cvt.{rn,rz,rm,rp}.f32.{u,s}*`: `f32` bits of an integer between -2^63 and 2^64.
#[inline]
pub fn integer_to_f32(value: i128, rounding: Rounding) -> u32 {
    integer_to(Format::F32, value, rounding) as u32
}

/// `cvt.{rn,rz,rm,rp}.f64.{u,s}*`: `f64` bits of an integer between -2^63 and 2^64.
#[inline]
pub fn integer_to_f64(value: i128, rounding: Rounding) -> u64 {
    integer_to(Format::F64, value, rounding)
}
