//! f32 arithmetic that Rust's operators do not give: fused multiply-add, and the approximations of the
//! special function unit.
//!
//! | function | PTX | error |
//! |---|---|---|
//! | [`fma`] | `fma.rn.f32` | one rounding |
//! | [`ex2`] | `ex2.approx.ftz.f32` | at most 2 ulp; subnormal arguments and results are flushed to 0 |
//! | [`rcp`] | `rcp.approx.ftz.f32` | at most 1 ulp; subnormal arguments and results are flushed to 0 |
//!
//! `a / b` is `div.rn.f32` and `1.0 / b` is `rcp.rn.f32`: IEEE, and several times as many instructions. `a *
//! b + c` is two roundings, never contracted.
//!
//! PTX ISA, "Floating Point Instructions".

use core::arch::asm;

unsafe extern "C" {
    // Not `asm!`, whose operands are integers to LLVM: a negation would be an instruction of its own there.
    #[link_name = "llvm.fma.f32"]
    fn fma_f32(a: f32, b: f32, c: f32) -> f32;
}

/// `a * b + c` with one rounding.
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    // SAFETY: arithmetic on registers.
    unsafe { fma_f32(a, b, c) }
}

/// 2^x, approximately.
#[inline(always)]
pub fn ex2(x: f32) -> f32 {
    let power: f32;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!("ex2.approx.ftz.f32 {}, {};", out(reg32) power, in(reg32) x,
            options(pure, nomem, nostack, preserves_flags));
    }
    power
}

/// 1 / x, approximately.
#[inline(always)]
pub fn rcp(x: f32) -> f32 {
    let reciprocal: f32;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!("rcp.approx.ftz.f32 {}, {};", out(reg32) reciprocal, in(reg32) x,
            options(pure, nomem, nostack, preserves_flags));
    }
    reciprocal
}
