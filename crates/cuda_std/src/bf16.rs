//! The 16-bit floating-point types, and their conversions to and from f32.
//!
//! ```text
//!   bf16   s eeeeeeee mmmmmmm       the upper half of an f32: widening is a shift
//!   f16    s eeeee mmmmmmmmmm
//!
//!   packed pair (u32)   [ high half | low half ]    element 0 of memory is the low half
//! ```
//!
//! Conversions from f32 round to nearest even, overflow to infinity, and turn NaN into 0x7fff. Conversions to
//! f32 are exact. (PTX ISA, "Data Movement and Conversion Instructions: cvt"; the packed forms need sm_80.)

use core::arch::asm;

/// A bfloat16 value, as it lies in memory.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bf16(pub u16);

/// An IEEE binary16 value, as it lies in memory.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct F16(pub u16);

impl Bf16 {
    /// The value as f32: exact.
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        f32::from_bits((self.0 as u32) << 16)
    }

    /// The nearest bf16 value, ties to even.
    #[inline(always)]
    pub fn from_f32(value: f32) -> Self {
        Self(bf16x2_from_f32(value, 0.0) as u16)
    }
}

impl F16 {
    /// The value as f32: exact.
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        let wide: f32;
        // SAFETY: a register-to-register conversion without side effects.
        unsafe {
            asm!("cvt.f32.f16 {}, {};", out(reg32) wide, in(reg16) self.0,
                options(pure, nomem, nostack, preserves_flags));
        }
        wide
    }

    /// The nearest f16 value, ties to even; beyond 65504 (from 65520 on) infinity.
    #[inline(always)]
    pub fn from_f32(value: f32) -> Self {
        Self(f16x2_from_f32(value, 0.0) as u16)
    }
}

/// Two bf16 values from two f32 values, to nearest even: `low` in bits 0..16, `high` in bits 16..32.
#[inline(always)]
pub fn bf16x2_from_f32(low: f32, high: f32) -> u32 {
    let packed: u32;
    // SAFETY: a register-to-register conversion without side effects; PTX takes the upper half's source
    // first.
    unsafe {
        asm!("cvt.rn.bf16x2.f32 {}, {}, {};", out(reg32) packed, in(reg32) high, in(reg32) low,
            options(pure, nomem, nostack, preserves_flags));
    }
    packed
}

/// Two f16 values from two f32 values, to nearest even: `low` in bits 0..16, `high` in bits 16..32.
#[inline(always)]
pub fn f16x2_from_f32(low: f32, high: f32) -> u32 {
    let packed: u32;
    // SAFETY: a register-to-register conversion without side effects; PTX takes the upper half's source
    // first.
    unsafe {
        asm!("cvt.rn.f16x2.f32 {}, {}, {};", out(reg32) packed, in(reg32) high, in(reg32) low,
            options(pure, nomem, nostack, preserves_flags));
    }
    packed
}

/// Two f32 values from a pair of bf16 values, low half first: exact.
#[inline(always)]
pub fn f32x2_from_bf16x2(pair: u32) -> [f32; 2] {
    [f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000)]
}

/// Two f32 values from a pair of f16 values, low half first: exact.
#[inline(always)]
pub fn f32x2_from_f16x2(pair: u32) -> [f32; 2] {
    [F16(pair as u16).to_f32(), F16((pair >> 16) as u16).to_f32()]
}
