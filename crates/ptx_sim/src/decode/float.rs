//! Arithmetic on f32 and f64, and the approximations (ISA "Floating Point Instructions").
//!
//! Results that are NaN are the canonical one. The usual variants (`.rn`, with or without `.ftz`) have
//! functions of their own; directed rounding and saturation share one that looks at flags.

use super::Result;
use super::body::Body;
use super::packed;
use super::parts::Parts;
use super::types::PRED;
use crate::approx;
use crate::counters::Class;
use crate::exec::lanes::{binary, compare, flagged, ternary, unary};
use crate::exec::{Handler, Inst};
use crate::formats::{self, Rounding, flush_f32, saturate_f32};
use crate::ptx::ast::{Kind, Type};

/// The canonical NaN in place of any NaN.
#[inline(always)]
pub(super) fn canonical(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(0x7fff_ffff) } else { x }
}

#[inline(always)]
fn canonical_f64(x: f64) -> f64 {
    if x.is_nan() { f64::from_bits(0x7fff_ffff_ffff_ffff) } else { x }
}

/// Subnormals become zero.
#[inline(always)]
pub(super) fn flush(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits })
}

/// Flags of the variants, as `inst.imm`.
const FTZ: u64 = 4;
const SAT: u64 = 8;
const NAN: u64 = 16;
const XORSIGN: u64 = 32;

fn rounding(flags: u64) -> Rounding {
    match flags & 3 {
        1 => Rounding::Rz,
        2 => Rounding::Rm,
        3 => Rounding::Rp,
        _ => Rounding::Rn,
    }
}

/// Takes the rounding modifier as flag bits; `None` if there is none.
fn take_rounding(parts: &mut Parts<'_, '_>) -> Option<u64> {
    parts.mods.choose(&[("rn", 0), ("rz", 1), ("rm", 2), ("rp", 3)])
}

/// Applies `.ftz` to an operand.
#[inline(always)]
fn input(x: f32, flags: u64) -> f32 {
    if flags & FTZ != 0 { f32::from_bits(flush_f32(x.to_bits())) } else { x }
}

/// Applies `.ftz` and `.sat` to a result.
#[inline(always)]
fn output(x: f32, flags: u64) -> f32 {
    let x = input(canonical(x), flags);
    if flags & SAT != 0 { f32::from_bits(saturate_f32(x.to_bits())) } else { x }
}

/// `add`, `sub`, `mul`, `mad`, `fma`, `div`, `min`, `max`, `abs`, `neg`.
pub(super) fn arithmetic<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>, ty: Type) -> Result<()> {
    if ty.bits == 64 {
        return double(body, parts, ty);
    }
    if matches!(parts.base, "min" | "max") {
        return extremum(body, parts, ty);
    }
    let is_div = parts.base == "div";
    let approximate = is_div && parts.mods.take("approx");
    let full = is_div && parts.mods.take("full");
    let round = take_rounding(parts);
    let ftz = parts.mods.take("ftz");
    let sat = parts.mods.take("sat");
    let flags = round.unwrap_or(0) | if ftz { FTZ } else { 0 } | if sat { SAT } else { 0 };
    let usual = flags & !FTZ == 0;
    if matches!(parts.base, "fma" | "mad" | "div") && round.is_none() && !approximate && !full {
        return Err("a rounding modifier is missing".to_string());
    }
    let run: Handler = match (parts.base, usual, ftz) {
        ("abs", ..) if ftz => unary(|a: f32| flush(a).abs()),
        ("abs", ..) => unary(|a: f32| a.abs()),
        ("neg", ..) if ftz => unary(|a: f32| -flush(a)),
        ("neg", ..) => unary(|a: f32| -a),
        ("add", true, false) => binary(|a: f32, b: f32| canonical(a + b)),
        ("add", true, true) => binary(|a: f32, b: f32| flush(canonical(flush(a) + flush(b)))),
        ("add", false, _) => flagged(|a: f32, b: f32, _: f32, flags| {
            output(formats::add_f32(input(a, flags), input(b, flags), rounding(flags)), flags)
        }),
        ("sub", true, false) => binary(|a: f32, b: f32| canonical(a - b)),
        ("sub", true, true) => binary(|a: f32, b: f32| flush(canonical(flush(a) - flush(b)))),
        ("sub", false, _) => flagged(|a: f32, b: f32, _: f32, flags| {
            output(formats::add_f32(input(a, flags), -input(b, flags), rounding(flags)), flags)
        }),
        ("mul", true, false) => binary(|a: f32, b: f32| canonical(a * b)),
        ("mul", true, true) => binary(|a: f32, b: f32| flush(canonical(flush(a) * flush(b)))),
        ("mul", false, _) => flagged(|a: f32, b: f32, _: f32, flags| {
            output(formats::mul_f32(input(a, flags), input(b, flags), rounding(flags)), flags)
        }),
        ("fma" | "mad", true, false) => ternary(|a: f32, b: f32, c: f32| canonical(a.mul_add(b, c))),
        ("fma" | "mad", true, true) => {
            ternary(|a: f32, b: f32, c: f32| flush(canonical(flush(a).mul_add(flush(b), flush(c)))))
        }
        ("fma" | "mad", false, _) => flagged(|a: f32, b: f32, c: f32, flags| {
            let (a, b, c) = (input(a, flags), input(b, flags), input(c, flags));
            output(formats::fma_f32(a, b, c, rounding(flags)), flags)
        }),
        ("div", ..) if approximate => {
            flagged(|a: f32, b: f32, _: f32, flags| approx::div(a, b, flags & FTZ != 0))
        }
        ("div", ..) if full => {
            flagged(|a: f32, b: f32, _: f32, flags| approx::div_full(a, b, flags & FTZ != 0))
        }
        ("div", true, false) => binary(|a: f32, b: f32| canonical(a / b)),
        ("div", true, true) => binary(|a: f32, b: f32| flush(canonical(flush(a) / flush(b)))),
        ("div", false, _) => flagged(|a: f32, b: f32, _: f32, flags| {
            output(divide(input(a, flags), input(b, flags), rounding(flags)), flags)
        }),
        (base, ..) => return Err(format!("`{base}` on f32")),
    };
    emit(body, parts, Class::Float, run, ty, flags)
}

/// Emits an instruction on one type whose operand count its name tells.
fn emit<'a>(
    body: &mut Body<'_, 'a>,
    parts: &mut Parts<'_, 'a>,
    class: Class,
    run: Handler,
    ty: Type,
    flags: u64,
) -> Result<()> {
    let sources = match parts.base {
        "fma" | "mad" => 3,
        "add" | "sub" | "mul" | "div" | "min" | "max" | "copysign" => 2,
        _ => 1,
    };
    let most = if matches!(parts.base, "min" | "max") { 3 } else { sources };
    parts.count(sources + 1..=most + 1)?;
    let sources = parts.operands.len() - 1;
    let mut slots = [0; 3];
    for (i, slot) in slots.iter_mut().enumerate() {
        // Unused operands repeat the first, so that every slot a handler may read has the right width.
        let at = if i < sources { i + 1 } else { 1 };
        *slot = body.source(parts.operand(at)?, ty)?;
    }
    let [a, b, c] = slots;
    let d = body.destination(parts.operand(0)?, ty)?;
    let inst = Inst { d, a, b, c, imm: flags, ..parts.inst(run) };
    body.emit(parts, class, inst);
    Ok(())
}

/// A quotient, correctly rounded in any direction: the nearest one, put right by the sign of its remainder.
fn divide(a: f32, b: f32, rounding: Rounding) -> f32 {
    if matches!(rounding, Rounding::Rn) {
        return a / b;
    }
    // 53 bits never lie on a tie or an f32 by accident: an inexact quotient of two 24-bit numbers differs
    // from every 25-bit number in its first 50 bits.
    let q = f64::from(a) / f64::from(b);
    f32::from_bits(formats::f64_to_f32(q.to_bits(), rounding))
}

#[inline(always)]
fn lesser(a: f32, b: f32) -> f32 {
    // Equal numbers differ in sign at most: -0 is less than +0.
    if a < b {
        a
    } else if b < a {
        b
    } else {
        f32::from_bits(a.to_bits() | b.to_bits())
    }
}

#[inline(always)]
fn greater(a: f32, b: f32) -> f32 {
    if a > b {
        a
    } else if b > a {
        b
    } else {
        f32::from_bits(a.to_bits() & b.to_bits())
    }
}

#[inline(always)]
fn over_nan(a: f32, b: f32, value: f32) -> f32 {
    canonical(if a.is_nan() {
        b
    } else if b.is_nan() {
        a
    } else {
        value
    })
}

fn extremum<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>, ty: Type) -> Result<()> {
    let flag = |on: bool, flag: u64| if on { flag } else { 0 };
    let (mods, max) = (&mut parts.mods, parts.base == "max");
    let mut flags = flag(mods.take("ftz"), FTZ) | flag(mods.take("NaN"), NAN);
    if mods.take("xorsign") {
        if !mods.take("abs") {
            return Err("`.xorsign` needs `.abs`".to_string());
        }
        flags |= XORSIGN;
    }
    let three = parts.operands.len() == 4;
    let run = match (max, flags, three) {
        (false, 0, false) => binary(|a: f32, b: f32| over_nan(a, b, lesser(a, b))),
        (true, 0, false) => binary(|a: f32, b: f32| over_nan(a, b, greater(a, b))),
        (false, _, false) => flagged(|a: f32, b: f32, _: f32, flags| bounded(a, b, flags, lesser)),
        (true, _, false) => flagged(|a: f32, b: f32, _: f32, flags| bounded(a, b, flags, greater)),
        (false, _, true) => {
            flagged(|a: f32, b: f32, c: f32, flags| bounded(bounded(a, b, flags, lesser), c, flags, lesser))
        }
        (true, _, true) => {
            flagged(|a: f32, b: f32, c: f32, flags| bounded(bounded(a, b, flags, greater), c, flags, greater))
        }
    };
    emit(body, parts, Class::Float, run, ty, flags)
}

fn bounded(a: f32, b: f32, flags: u64, choose: fn(f32, f32) -> f32) -> f32 {
    let (mut a, mut b) = (input(a, flags), input(b, flags));
    let sign = (a.to_bits() ^ b.to_bits()) & (1 << 31);
    if flags & XORSIGN != 0 {
        (a, b) = (a.abs(), b.abs());
    }
    if flags & NAN != 0 && (a.is_nan() || b.is_nan()) {
        return canonical(f32::NAN);
    }
    let value = over_nan(a, b, choose(a, b));
    if flags & XORSIGN != 0 && !value.is_nan() { f32::from_bits(value.to_bits() | sign) } else { value }
}

fn double<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>, ty: Type) -> Result<()> {
    let round = take_rounding(parts);
    if matches!(parts.base, "fma" | "mad" | "div") && round.is_none() {
        return Err("a rounding modifier is missing".to_string());
    }
    if let Some(flags) = round.filter(|flags| *flags != 0) {
        let run: Handler = match parts.base {
            "add" => flagged(|a: f64, b: f64, _: f64, flags| {
                canonical_f64(formats::add_f64(a, b, rounding(flags)))
            }),
            "sub" => flagged(|a: f64, b: f64, _: f64, flags| {
                canonical_f64(formats::add_f64(a, -b, rounding(flags)))
            }),
            "mul" => flagged(|a: f64, b: f64, _: f64, flags| {
                canonical_f64(formats::mul_f64(a, b, rounding(flags)))
            }),
            "fma" | "mad" => flagged(|a: f64, b: f64, c: f64, flags| {
                canonical_f64(formats::fma_f64(a, b, c, rounding(flags)))
            }),
            "div" => flagged(|a: f64, b: f64, _: f64, flags| {
                canonical_f64(formats::div_f64(a, b, rounding(flags)))
            }),
            base => return Err(format!("`{base}` on f64 in this rounding")),
        };
        return emit(body, parts, Class::Float, run, ty, flags);
    }
    let run: Handler = match parts.base {
        "add" => binary(|a: f64, b: f64| canonical_f64(a + b)),
        "sub" => binary(|a: f64, b: f64| canonical_f64(a - b)),
        "mul" => binary(|a: f64, b: f64| canonical_f64(a * b)),
        "fma" | "mad" => ternary(|a: f64, b: f64, c: f64| canonical_f64(a.mul_add(b, c))),
        "div" => binary(|a: f64, b: f64| canonical_f64(a / b)),
        "abs" => unary(|a: f64| a.abs()),
        "neg" => unary(|a: f64| -a),
        "min" => binary(|a: f64, b: f64| {
            let least = if a < b || (a == b && a.is_sign_negative()) { a } else { b };
            canonical_f64(if a.is_nan() {
                b
            } else if b.is_nan() {
                a
            } else {
                least
            })
        }),
        "max" => binary(|a: f64, b: f64| {
            let most = if a > b || (a == b && a.is_sign_positive()) { a } else { b };
            canonical_f64(if a.is_nan() {
                b
            } else if b.is_nan() {
                a
            } else {
                most
            })
        }),
        base => return Err(format!("`{base}` on f64")),
    };
    emit(body, parts, Class::Float, run, ty, 0)
}

/// `rcp`, `sqrt`, `rsqrt`, `sin`, `cos`, `lg2`, `ex2`, `tanh`, `copysign`, `testp`.
pub(super) fn decode<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    if parts.base == "testp" {
        return test(body, parts);
    }
    if parts.base == "copysign" {
        let ty = parts.mods.ty()?;
        // copysign d, a, b: the sign of a on the magnitude of b.
        let run = match ty.bits {
            32 => binary(|a: f32, b: f32| b.copysign(a)),
            _ => binary(|a: f64, b: f64| b.copysign(a)),
        };
        return emit(body, parts, Class::Float, run, ty, 0);
    }
    let approximate = parts.mods.take("approx");
    let round = take_rounding(parts);
    let ftz = parts.mods.take("ftz");
    let ty = parts.mods.ty()?;
    if approximate == round.is_some() {
        return Err("`.approx` or a rounding modifier is needed".to_string());
    }
    if ty.bits == 16 || matches!(ty.kind, Kind::F16x2 | Kind::Bf16x2) {
        return packed::approximate(body, parts, ty);
    }
    let flags = round.unwrap_or(0) | if ftz { FTZ } else { 0 };
    if ty.bits == 64 {
        let run = match (parts.base, round) {
            ("rcp", Some(0)) => unary(|a: f64| canonical_f64(1.0 / a)),
            ("sqrt", Some(0)) => unary(|a: f64| canonical_f64(a.sqrt())),
            ("rcp", Some(_)) => flagged(|a: f64, _: f64, _: f64, flags| {
                canonical_f64(formats::div_f64(1.0, a, rounding(flags)))
            }),
            ("sqrt", Some(_)) => {
                flagged(|a: f64, _: f64, _: f64, flags| canonical_f64(formats::sqrt_f64(a, rounding(flags))))
            }
            ("rcp", None) => unary(approx::rcp_f64),
            ("rsqrt", None) if ftz => unary(approx::rsqrt_ftz_f64),
            ("rsqrt", None) => unary(|a: f64| canonical_f64(approx::rsqrt_f64(a))),
            (base, _) => return Err(format!("`{base}` on f64 in this rounding")),
        };
        return emit(body, parts, Class::Special, run, ty, flags);
    }
    let run: Handler = match (parts.base, round, ftz) {
        ("rcp", None, false) => unary(|a: f32| approx::rcp(a, false)),
        ("rcp", None, true) => unary(|a: f32| approx::rcp(a, true)),
        ("sqrt", None, false) => unary(|a: f32| approx::sqrt(a, false)),
        ("sqrt", None, true) => unary(|a: f32| approx::sqrt(a, true)),
        ("rsqrt", None, false) => unary(|a: f32| approx::rsqrt(a, false)),
        ("rsqrt", None, true) => unary(|a: f32| approx::rsqrt(a, true)),
        ("sin", None, false) => unary(|a: f32| approx::sin(a, false)),
        ("sin", None, true) => unary(|a: f32| approx::sin(a, true)),
        ("cos", None, false) => unary(|a: f32| approx::cos(a, false)),
        ("cos", None, true) => unary(|a: f32| approx::cos(a, true)),
        ("lg2", None, false) => unary(|a: f32| approx::lg2(a, false)),
        ("lg2", None, true) => unary(|a: f32| approx::lg2(a, true)),
        ("ex2", None, false) => unary(|a: f32| approx::ex2(a, false)),
        ("ex2", None, true) => unary(|a: f32| approx::ex2(a, true)),
        ("tanh", None, false) => unary(|a: f32| approx::tanh(a)),
        ("rcp", Some(0), false) => unary(|a: f32| canonical(1.0 / a)),
        ("rcp", Some(0), true) => unary(|a: f32| flush(canonical(1.0 / flush(a)))),
        ("sqrt", Some(0), false) => unary(|a: f32| canonical(a.sqrt())),
        ("sqrt", Some(0), true) => unary(|a: f32| canonical(flush(a).sqrt())),
        ("rcp", Some(_), _) => flagged(|a: f32, _: f32, _: f32, flags| {
            output(divide(1.0, input(a, flags), rounding(flags)), flags)
        }),
        ("sqrt", Some(_), _) => flagged(|a: f32, _: f32, _: f32, flags| {
            output(formats::sqrt_f32(input(a, flags), rounding(flags)), flags)
        }),
        (base, ..) => return Err(format!("`{base}` with these modifiers")),
    };
    emit(body, parts, Class::Special, run, ty, flags)
}

fn test<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let kinds =
        [("finite", 0), ("infinite", 1), ("number", 2), ("notanumber", 3), ("normal", 4), ("subnormal", 5)];
    let kind: usize = parts.mods.choose(&kinds).ok_or("what to test is missing")?;
    let ty = parts.mods.ty()?;
    parts.count(2..=2)?;
    // Comparisons take two operands: the number, twice.
    macro_rules! of {
        ($t:ty) => {
            match kind {
                0 => compare(|a: $t, _: $t| a.is_finite()),
                1 => compare(|a: $t, _: $t| a.is_infinite()),
                2 => compare(|a: $t, _: $t| !a.is_nan()),
                3 => compare(|a: $t, _: $t| a.is_nan()),
                4 => compare(|a: $t, _: $t| a.is_normal()),
                _ => compare(|a: $t, _: $t| a.is_subnormal()),
            }
        };
    }
    let run = if ty.bits == 64 { of!(f64) } else { of!(f32) };
    let a = body.source(parts.operand(1)?, ty)?;
    let d = body.destination(parts.operand(0)?, PRED)?;
    let inst = Inst { d, a, b: a, ..parts.inst(run) };
    body.emit(parts, Class::Float, inst);
    Ok(())
}
