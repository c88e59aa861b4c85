//! `tf32`: an `f32` register of which tensor cores read the upper 19 bits.

use super::{Clamp, Format, Rounding, encode_f32};

/// `cvt.{rna,rn,rz}{.satfinite}{.relu}.tf32.f32`: the 13 lowest bits of the result are zero, except in a NaN.
#[inline]
pub const fn f32_to_tf32(bits: u32, rounding: Rounding, clamp: Clamp) -> u32 {
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return Format::F32.nan as u32;
    }
    (encode_f32(Format::TF32, bits, rounding, clamp) as u32) << 13
}

/// What a tensor core reads from a `tf32` register: the 13 lowest bits are ignored.
#[inline(always)]
pub const fn tf32_to_f32(bits: u32) -> u32 {
    bits & !0x1fff
}
