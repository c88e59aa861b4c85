//! Arithmetic on f16, bf16 and pairs of them (ISA "Half Precision Floating Point Instructions").
//!
//! Sums, products and fused multiply-adds of 16-bit numbers are exact enough in f64 to be rounded once: f64
//! holds the product of two f16 or bf16, and a sum that does not fit is rounded to odd before it is rounded
//! to 16 bits.

use super::Result;
use super::body::Body;
use super::parts::Parts;
use crate::approx;
use crate::counters::Class;
use crate::exec::Inst;
use crate::exec::lanes::{compare, flagged};
use crate::formats::{Rounding, add_to_odd, f64_to_bf16, f64_to_f16, widen};
use crate::ptx::ast::{Kind, Type};

const FTZ: u64 = 1 << 8;
const SAT: u64 = 1 << 9;
const RELU: u64 = 1 << 10;
const NAN: u64 = 1 << 11;
const XORSIGN: u64 = 1 << 12;
/// Two numbers in a register.
const PAIR: u64 = 1 << 13;
/// bf16 rather than f16.
const BF16: u64 = 1 << 14;

/// What to compute, in the low bits of the flags.
const NAMES: [(&str, u64); 12] = [
    ("add", 0),
    ("sub", 1),
    ("mul", 2),
    ("fma", 3),
    ("min", 4),
    ("max", 5),
    ("abs", 6),
    ("neg", 7),
    ("ex2", 8),
    ("tanh", 9),
    ("rcp", 10),
    ("sqrt", 11),
];

fn type_flags(ty: Type) -> u64 {
    match ty.kind {
        Kind::F16x2 => PAIR,
        Kind::Bf16 => BF16,
        Kind::Bf16x2 => BF16 | PAIR,
        _ => 0,
    }
}

fn narrow(value: f64, flags: u64) -> u16 {
    if value.is_nan() {
        return 0x7fff;
    }
    let bits = value.to_bits();
    if flags & BF16 != 0 { f64_to_bf16(bits, Rounding::Rn) } else { f64_to_f16(bits, Rounding::Rn) }
}

fn flush(bits: u16, flags: u64) -> u16 {
    // `.ftz` exists for f16 only.
    if flags & FTZ != 0 && bits & 0x7c00 == 0 { bits & 0x8000 } else { bits }
}

fn one(a: u16, b: u16, c: u16, flags: u64) -> u16 {
    let bf16 = flags & BF16 != 0;
    let (a, b, c) = (flush(a, flags), flush(b, flags), flush(c, flags));
    match flags & 255 {
        6 => return a & 0x7fff,
        7 => return a ^ 0x8000,
        4 | 5 => return extremum(a, b, flags),
        _ => {}
    }
    let [x, y, z] = [a, b, c].map(|v| f64::from(widen(v, bf16)));
    let value = match flags & 255 {
        0 => add_to_odd(x, y),
        1 => add_to_odd(x, -y),
        2 => x * y,
        3 => add_to_odd(x * y, z),
        8 => f64::from(approx::ex2(x as f32, false)),
        9 => f64::from(approx::tanh(x as f32)),
        10 => 1.0 / x,
        _ => x.sqrt(),
    };
    let mut result = flush(narrow(value, flags), flags);
    let is_nan = result & 0x7fff > if bf16 { 0x7f80 } else { 0x7c00 };
    if flags & SAT != 0 {
        let unit = if bf16 { 0x3f80 } else { 0x3c00 };
        result = if is_nan || result & 0x8000 != 0 { 0 } else { result.min(unit) };
    }
    if flags & RELU != 0 && !is_nan && result & 0x8000 != 0 {
        result = 0;
    }
    result
}

fn extremum(a: u16, b: u16, flags: u64) -> u16 {
    let bf16 = flags & BF16 != 0;
    let sign = (a ^ b) & 0x8000;
    let (a, b) = if flags & XORSIGN != 0 { (a & 0x7fff, b & 0x7fff) } else { (a, b) };
    let nan = |v: u16| widen(v, bf16).is_nan();
    let result = match (nan(a), nan(b)) {
        (false, false) => {
            // As sign and magnitude, so that -0 is below +0.
            let order = |v: u16| if v & 0x8000 != 0 { -i32::from(v & 0x7fff) - 1 } else { i32::from(v) };
            let a_less = order(a) < order(b);
            if a_less == (flags & 255 == 4) { a } else { b }
        }
        (true, true) => return 0x7fff,
        _ if flags & NAN != 0 => return 0x7fff,
        (true, false) => b,
        (false, true) => a,
    };
    if flags & XORSIGN != 0 { result | sign } else { result }
}

fn both(a: u32, b: u32, c: u32, flags: u64) -> u32 {
    let low = one(a as u16, b as u16, c as u16, flags);
    if flags & PAIR == 0 {
        return u32::from(low);
    }
    u32::from(low) | u32::from(one((a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16, flags)) << 16
}

/// `add`, `sub`, `mul`, `fma`, `min`, `max`, `abs`, `neg`.
pub(super) fn arithmetic<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>, ty: Type) -> Result<()> {
    let op = NAMES.iter().find(|(name, _)| *name == parts.base).map(|(_, op)| *op);
    let op = op.filter(|op| *op < 8).ok_or_else(|| format!("`{}` on 16-bit floating point", parts.base))?;
    parts.mods.take("rn");
    let mut flags = op | type_flags(ty);
    for (name, flag) in [("ftz", FTZ), ("sat", SAT), ("relu", RELU), ("NaN", NAN), ("xorsign", XORSIGN)] {
        if parts.mods.take(name) {
            flags |= flag;
        }
    }
    if flags & XORSIGN != 0 && !parts.mods.take("abs") {
        return Err("`.xorsign` needs `.abs`".to_string());
    }
    emit(body, parts, Class::Float, ty, flags)
}

/// `ex2.approx` and `tanh.approx` of 16-bit numbers.
pub(super) fn approximate<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>, ty: Type) -> Result<()> {
    let op = match parts.base {
        "ex2" => 8,
        "tanh" => 9,
        base => return Err(format!("`{base}` on 16-bit floating point")),
    };
    emit(body, parts, Class::Special, ty, op | type_flags(ty))
}

fn emit<'a>(
    body: &mut Body<'_, 'a>,
    parts: &mut Parts<'_, 'a>,
    class: Class,
    ty: Type,
    flags: u64,
) -> Result<()> {
    let sources = match flags & 255 {
        3 => 3,
        0..=5 => 2,
        _ => 1,
    };
    parts.count(sources + 1..=sources + 1)?;
    let mut slots = [0; 3];
    for (i, slot) in slots.iter_mut().enumerate() {
        *slot = body.source(parts.operand(if i < sources { i + 1 } else { 1 })?, ty)?;
    }
    let [a, b, c] = slots;
    let d = body.destination(parts.operand(0)?, ty)?;
    let inst = Inst { d, a, b, c, imm: flags, ..parts.inst(flagged(both)) };
    body.emit(parts, class, inst);
    Ok(())
}

/// Handlers that compare 16-bit numbers, by comparison; the operands are one number per register.
pub(super) fn comparison(name: &str, bf16: bool) -> Option<crate::exec::Handler> {
    macro_rules! of {
        ($f:expr) => {
            if bf16 {
                compare(|a: u16, b: u16| $f(widen(a, true), widen(b, true)))
            } else {
                compare(|a: u16, b: u16| $f(widen(a, false), widen(b, false)))
            }
        };
    }
    Some(match name {
        "eq" => of!(|a: f32, b: f32| a == b),
        "ne" => of!(|a: f32, b: f32| a < b || a > b),
        "lt" => of!(|a: f32, b: f32| a < b),
        "le" => of!(|a: f32, b: f32| a <= b),
        "gt" => of!(|a: f32, b: f32| a > b),
        "ge" => of!(|a: f32, b: f32| a >= b),
        "equ" => of!(|a: f32, b: f32| !(a < b || a > b)),
        "neu" => of!(|a: f32, b: f32| a != b),
        "ltu" => of!(|a: f32, b: f32| !(a >= b)),
        "leu" => of!(|a: f32, b: f32| !(a > b)),
        "gtu" => of!(|a: f32, b: f32| !(a <= b)),
        "geu" => of!(|a: f32, b: f32| !(a < b)),
        "num" => of!(|a: f32, b: f32| !a.is_nan() && !b.is_nan()),
        "nan" => of!(|a: f32, b: f32| a.is_nan() || b.is_nan()),
        _ => return None,
    })
}
