//! FP8 conversions: two values per instruction, as the hardware has them.
//!
//! ```text
//!            bit   7 6 5 4 3 2 1 0
//!   e4m3 (fn)      s e e e e m m m    max 448, no infinity, NaN = s.1111.111
//!   e5m2           s e e e e e m m    max 57344, infinities, NaN = s.11111.xx (not 00)
//!
//!   packed pair    [ high byte | low byte ]    element 0 of memory is the low byte
//! ```
//!
//! Conversions to FP8 round to nearest even and saturate to the largest finite value (`.satfinite`); NaN
//! becomes 0x7f. Names read `destination_from_source`, and where two values are packed the first argument is
//! the low half, which is the first in memory. (PTX ISA, "Data Movement and Conversion Instructions: cvt";
//! sm_89 and later.)

use core::arch::asm;

/// The largest finite e4m3 value.
pub const E4M3_MAX: f32 = 448.0;

/// The largest finite e5m2 value.
pub const E5M2_MAX: f32 = 57344.0;

/// The e4m3 encoding that a NaN converts to.
pub const E4M3_NAN: u8 = 0x7f;

/// Two e4m3 values from two f32 values, to nearest even, saturating: `low` in bits 0..8, `high` in bits
/// 8..16.
#[inline(always)]
pub fn e4m3x2_from_f32(low: f32, high: f32) -> u16 {
    let packed: u16;
    // SAFETY: a register-to-register conversion without side effects; PTX takes the upper half's source
    // first.
    unsafe {
        asm!("cvt.rn.satfinite.e4m3x2.f32 {}, {}, {};", out(reg16) packed, in(reg32) high, in(reg32) low,
            options(pure, nomem, nostack, preserves_flags));
    }
    packed
}

/// Two e5m2 values from two f32 values, to nearest even, saturating to the largest finite value.
#[inline(always)]
pub fn e5m2x2_from_f32(low: f32, high: f32) -> u16 {
    let packed: u16;
    // SAFETY: a register-to-register conversion without side effects; PTX takes the upper half's source
    // first.
    unsafe {
        asm!("cvt.rn.satfinite.e5m2x2.f32 {}, {}, {};", out(reg16) packed, in(reg32) high, in(reg32) low,
            options(pure, nomem, nostack, preserves_flags));
    }
    packed
}

/// One e4m3 value from one f32 value, to nearest even, saturating.
#[inline(always)]
pub fn e4m3_from_f32(value: f32) -> u8 {
    e4m3x2_from_f32(value, 0.0) as u8
}

/// Four e4m3 values in memory order: `values[0]` in bits 0..8.
#[inline(always)]
pub fn e4m3x4_from_f32(values: [f32; 4]) -> u32 {
    let low = e4m3x2_from_f32(values[0], values[1]);
    let high = e4m3x2_from_f32(values[2], values[3]);
    low as u32 | (high as u32) << 16
}

/// Two f16 values, packed, from two e4m3 values: exact.
#[inline(always)]
pub fn f16x2_from_e4m3x2(packed: u16) -> u32 {
    let pair: u32;
    // SAFETY: a register-to-register conversion without side effects.
    unsafe {
        asm!("cvt.rn.f16x2.e4m3x2 {}, {};", out(reg32) pair, in(reg16) packed,
            options(pure, nomem, nostack, preserves_flags));
    }
    pair
}

/// Two f16 values, packed, from two e5m2 values: exact.
#[inline(always)]
pub fn f16x2_from_e5m2x2(packed: u16) -> u32 {
    let pair: u32;
    // SAFETY: a register-to-register conversion without side effects.
    unsafe {
        asm!("cvt.rn.f16x2.e5m2x2 {}, {};", out(reg32) pair, in(reg16) packed,
            options(pure, nomem, nostack, preserves_flags));
    }
    pair
}

/// Two f32 values from two e4m3 values: exact, through f16, which holds every e4m3 value.
#[inline(always)]
pub fn f32x2_from_e4m3x2(packed: u16) -> [f32; 2] {
    crate::bf16::f32x2_from_f16x2(f16x2_from_e4m3x2(packed))
}

/// Two f32 values from two e5m2 values: exact, through f16, of which e5m2 is the upper byte.
#[inline(always)]
pub fn f32x2_from_e5m2x2(packed: u16) -> [f32; 2] {
    crate::bf16::f32x2_from_f16x2(f16x2_from_e5m2x2(packed))
}
