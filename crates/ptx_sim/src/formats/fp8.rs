//! `e4m3` and `e5m2`, one byte each; PTX always converts them in pairs.
//!
//! In `cvt.e4m3x2.f32 d, a, b` the first source goes to the upper byte of `d`. From and to `f16x2` the halves
//! keep their order.

use super::{Clamp, Format, Rounding, encode_f32, f16_to_f32};

/// Value of every `e4m3` byte.
pub static E4M3_TO_F32: [f32; 256] = widen_table(Format::E4M3);

/// Value of every `e5m2` byte.
pub static E5M2_TO_F32: [f32; 256] = widen_table(Format::E5M2);

const fn widen_table(format: Format) -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = f32::from_bits(widen(format, code as u32));
        code += 1;
    }
    table
}

/// Encoding as `f32` of the FP8 number `code`.
const fn widen(format: Format, code: u32) -> u32 {
    let sign = (code >> 7) << 31;
    let magnitude = code & 0x7f;
    let mantissa_bits = format.mantissa_bits;
    let fraction = magnitude & ((1 << mantissa_bits) - 1);
    let field = magnitude >> mantissa_bits;
    if magnitude as u64 > format.max_finite {
        return match format.infinity {
            Some(infinity) if magnitude as u64 == infinity => sign | 0x7f80_0000,
            _ => 0x7fff_ffff,
        };
    }
    let (field, fraction) = if field == 0 {
        if fraction == 0 {
            return sign;
        }
        // Normalise: move the leading bit of the fraction to the hidden position.
        let shift = mantissa_bits + 1 - (32 - fraction.leading_zeros());
        (1 - shift as i32, (fraction << shift) & ((1 << mantissa_bits) - 1))
    } else {
        (field as i32, fraction)
    };
    let bias = 1 - format.min_exponent();
    sign | (((field - bias + 127) as u32) << 23) | (fraction << (23 - mantissa_bits))
}

/// Value of an `e4m3` byte, as `f32` bits.
#[inline(always)]
pub fn e4m3_to_f32(code: u8) -> u32 {
    E4M3_TO_F32[code as usize].to_bits()
}

/// Value of an `e5m2` byte, as `f32` bits.
#[inline(always)]
pub fn e5m2_to_f32(code: u8) -> u32 {
    E5M2_TO_F32[code as usize].to_bits()
}

const SATFINITE: Clamp = Clamp { relu: false, satfinite: true };

/// `f32` bits to `e4m3`, to nearest even, saturating to ±448.
#[inline]
pub const fn f32_to_e4m3_satfinite(bits: u32) -> u8 {
    encode_f32(Format::E4M3, bits, Rounding::Rn, SATFINITE) as u8
}

/// `f32` bits to `e5m2`, to nearest even, saturating to ±57344.
#[inline]
pub const fn f32_to_e5m2_satfinite(bits: u32) -> u8 {
    encode_f32(Format::E5M2, bits, Rounding::Rn, SATFINITE) as u8
}

#[inline(always)]
fn narrow_pair(format: Format, upper: u32, lower: u32, relu: bool) -> u16 {
    let clamp = Clamp { relu, satfinite: true };
    let narrow = |bits| encode_f32(format, bits, Rounding::Rn, clamp) as u16;
    narrow(upper) << 8 | narrow(lower)
}

/// `cvt.rn.satfinite{.relu}.e4m3x2.f32 d, a, b`.
#[inline]
pub fn f32x2_to_e4m3x2(a: u32, b: u32, relu: bool) -> u16 {
    narrow_pair(Format::E4M3, a, b, relu)
}

/// `cvt.rn.satfinite{.relu}.e5m2x2.f32 d, a, b`.
#[inline]
pub fn f32x2_to_e5m2x2(a: u32, b: u32, relu: bool) -> u16 {
    narrow_pair(Format::E5M2, a, b, relu)
}

/// `cvt.rn.satfinite{.relu}.e4m3x2.f16x2 d, a`.
#[inline]
pub fn f16x2_to_e4m3x2(a: u32, relu: bool) -> u16 {
    narrow_pair(Format::E4M3, f16_to_f32((a >> 16) as u16), f16_to_f32(a as u16), relu)
}

/// `cvt.rn.satfinite{.relu}.e5m2x2.f16x2 d, a`.
#[inline]
pub fn f16x2_to_e5m2x2(a: u32, relu: bool) -> u16 {
    narrow_pair(Format::E5M2, f16_to_f32((a >> 16) as u16), f16_to_f32(a as u16), relu)
}

static E4M3_TO_F16: [u16; 256] = widen_f16_table(Format::E4M3);
static E5M2_TO_F16: [u16; 256] = widen_f16_table(Format::E5M2);

const fn widen_f16_table(format: Format) -> [u16; 256] {
    let clamp = Clamp { relu: false, satfinite: false };
    let mut table = [0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = encode_f32(Format::F16, widen(format, code as u32), Rounding::Rn, clamp) as u16;
        code += 1;
    }
    table
}

/// Value of an `e4m3` byte as `f16` bits; exact.
#[inline(always)]
pub fn e4m3_to_f16(code: u8) -> u16 {
    E4M3_TO_F16[code as usize]
}

/// Value of an `e5m2` byte as `f16` bits; exact.
#[inline(always)]
pub fn e5m2_to_f16(code: u8) -> u16 {
    E5M2_TO_F16[code as usize]
}

#[inline(always)]
fn relu_f16(bits: u16, relu: bool) -> u16 {
    let negative = bits >> 15 == 1;
    if relu && negative { 0 } else { bits }
}

/// `cvt.rn{.relu}.f16x2.e4m3x2 d, a`.
#[inline]
pub fn e4m3x2_to_f16x2(a: u16, relu: bool) -> u32 {
    let [lower, upper] = a.to_le_bytes();
    u32::from(relu_f16(e4m3_to_f16(upper), relu)) << 16 | u32::from(relu_f16(e4m3_to_f16(lower), relu))
}

/// `cvt.rn{.relu}.f16x2.e5m2x2 d, a`.
#[inline]
pub fn e5m2x2_to_f16x2(a: u16, relu: bool) -> u32 {
    let [lower, upper] = a.to_le_bytes();
    u32::from(relu_f16(e5m2_to_f16(upper), relu)) << 16 | u32::from(relu_f16(e5m2_to_f16(lower), relu))
}
