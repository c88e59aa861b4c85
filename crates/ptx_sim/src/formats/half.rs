//! `f16` and `bf16`, scalar and packed: in `cvt.f16x2.f32 d, a, b` the first source goes to the upper half.

use super::{Clamp, Format, Rounding, encode_f32, encode_f64};

/// `cvt.f32.f16`: `f16` bits to `f32` bits; exact.
#[inline(always)]
pub const fn f16_to_f32(bits: u16) -> u32 {
    let sign = (bits as u32 & 0x8000) << 16;
    let magnitude = bits as u32 & 0x7fff;
    if magnitude > 0x7c00 {
        return 0x7fff_ffff;
    }
    if magnitude == 0x7c00 {
        return sign | 0x7f80_0000;
    }
    // Read with an f32 exponent field, the bits are 2^112 too small, subnormals included.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
    sign | scaled.to_bits()
}

/// `cvt.f32.bf16`: `bf16` bits to `f32` bits; exact, NaN payload kept.
#[inline(always)]
pub const fn bf16_to_f32(bits: u16) -> u32 {
    (bits as u32) << 16
}

/// `cvt.rn.f16.f32`.
#[inline]
pub const fn f32_to_f16_rn(bits: u32) -> u16 {
    encode_f32(Format::F16, bits, Rounding::Rn, Clamp { relu: false, satfinite: false }) as u16
}

/// `cvt.rn.bf16.f32`.
#[inline(always)]
pub const fn f32_to_bf16_rn(bits: u32) -> u16 {
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return 0x7fff;
    }
    // Adding just under half of the last place, plus its own bit, carries exactly when `.rn` rounds up.
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// `cvt.{rn,rz,rm,rp}{.relu}{.satfinite}.f16.f32`.
#[inline]
pub const fn f32_to_f16(bits: u32, rounding: Rounding, clamp: Clamp) -> u16 {
    encode_f32(Format::F16, bits, rounding, clamp) as u16
}

/// `cvt.{rn,rz,rm,rp}{.relu}{.satfinite}.bf16.f32`.
#[inline]
pub const fn f32_to_bf16(bits: u32, rounding: Rounding, clamp: Clamp) -> u16 {
    encode_f32(Format::BF16, bits, rounding, clamp) as u16
}

/// `cvt.{rn,rz}{.relu}{.satfinite}.f16x2.f32 d, a, b`.
#[inline]
pub const fn f32_to_f16x2(a: u32, b: u32, rounding: Rounding, clamp: Clamp) -> u32 {
    (f32_to_f16(a, rounding, clamp) as u32) << 16 | f32_to_f16(b, rounding, clamp) as u32
}

/// `cvt.{rn,rz}{.relu}{.satfinite}.bf16x2.f32 d, a, b`.
#[inline]
pub const fn f32_to_bf16x2(a: u32, b: u32, rounding: Rounding, clamp: Clamp) -> u32 {
    (f32_to_bf16(a, rounding, clamp) as u32) << 16 | f32_to_bf16(b, rounding, clamp) as u32
}

/// `cvt.{rn,rz,rm,rp}.f16.f64`; rounded once.
#[inline]
pub const fn f64_to_f16(bits: u64, rounding: Rounding) -> u16 {
    encode_f64(Format::F16, bits, rounding, Clamp { relu: false, satfinite: false }) as u16
}

/// `cvt.{rn,rz,rm,rp}.bf16.f64`; rounded once.
#[inline]
pub const fn f64_to_bf16(bits: u64, rounding: Rounding) -> u16 {
    encode_f64(Format::BF16, bits, rounding, Clamp { relu: false, satfinite: false }) as u16
}

/// The value of an `f16` or `bf16` number.
pub(crate) fn widen(bits: u16, bf16: bool) -> f32 {
    f32::from_bits(if bf16 { bf16_to_f32(bits) } else { f16_to_f32(bits) })
}

/// The sum of two `f16` or `bf16` numbers, rounded to nearest: atomic additions.
pub(crate) fn add_half(a: u16, b: u16, bf16: bool) -> u16 {
    let sum = widen(a, bf16) + widen(b, bf16);
    // A sum of two 16-bit numbers rounds to f32 and then to 16 bits as it would at once: 24 >= 2 * 11 + 2.
    let bits = sum.to_bits();
    if sum.is_nan() {
        0x7fff
    } else if bf16 {
        f32_to_bf16_rn(bits)
    } else {
        f32_to_f16_rn(bits)
    }
}
