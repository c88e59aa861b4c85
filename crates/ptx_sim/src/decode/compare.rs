//! `setp`, `set`, `selp`, `slct` (ISA "Comparison and Selection Instructions").

use super::body::Body;
use super::parts::Parts;
use super::types::{PRED, S32};
use super::{Result, SCRATCH, packed};
use crate::counters::Class;
use crate::exec::lanes::{combine, compare, select, ternary};
use crate::exec::{Handler, Inst};
use crate::ptx::ast::{Kind, Operand, Type};

pub(super) fn decode<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    match parts.base {
        "setp" => setp(body, parts),
        "set" => set(body, parts),
        "selp" => {
            let ty = parts.mods.ty()?;
            let run = if ty.bits == 64 { select::<u64>() } else { select::<u32>() };
            parts.map(body, Class::Integer, run, ty, &[ty, ty, PRED])
        }
        _ => slct(body, parts),
    }
}

/// The handler of a comparison.
fn comparison(name: &str, ty: Type, ftz: bool) -> Option<Handler> {
    macro_rules! integers {
        ($t:ty) => {
            match name {
                "eq" => compare(|a: $t, b: $t| a == b),
                "ne" => compare(|a: $t, b: $t| a != b),
                "lt" | "lo" => compare(|a: $t, b: $t| a < b),
                "le" | "ls" => compare(|a: $t, b: $t| a <= b),
                "gt" | "hi" => compare(|a: $t, b: $t| a > b),
                "ge" | "hs" => compare(|a: $t, b: $t| a >= b),
                _ => return None,
            }
        };
    }
    macro_rules! floats {
        ($t:ty, $in:expr) => {
            match name {
                "eq" => compare(|a: $t, b: $t| $in(a) == $in(b)),
                "ne" => compare(|a: $t, b: $t| $in(a) < $in(b) || $in(a) > $in(b)),
                "lt" => compare(|a: $t, b: $t| $in(a) < $in(b)),
                "le" => compare(|a: $t, b: $t| $in(a) <= $in(b)),
                "gt" => compare(|a: $t, b: $t| $in(a) > $in(b)),
                "ge" => compare(|a: $t, b: $t| $in(a) >= $in(b)),
                "equ" => compare(|a: $t, b: $t| !($in(a) < $in(b) || $in(a) > $in(b))),
                "neu" => compare(|a: $t, b: $t| $in(a) != $in(b)),
                "ltu" => compare(|a: $t, b: $t| !($in(a) >= $in(b))),
                "leu" => compare(|a: $t, b: $t| !($in(a) > $in(b))),
                "gtu" => compare(|a: $t, b: $t| !($in(a) <= $in(b))),
                "geu" => compare(|a: $t, b: $t| !($in(a) < $in(b))),
                "num" => compare(|a: $t, b: $t| !a.is_nan() && !b.is_nan()),
                "nan" => compare(|a: $t, b: $t| a.is_nan() || b.is_nan()),
                _ => return None,
            }
        };
    }
    Some(match (ty.kind, ty.bits) {
        (Kind::Signed, 16) => integers!(i16),
        (Kind::Signed, 32) => integers!(i32),
        (Kind::Signed, 64) => integers!(i64),
        (Kind::Float, 32) if ftz => floats!(f32, super::float::flush),
        (Kind::Float, 32) => floats!(f32, std::convert::identity::<f32>),
        (Kind::Float, 64) => floats!(f64, std::convert::identity::<f64>),
        (Kind::Float | Kind::Bf16, 16) => return packed::comparison(name, ty.kind == Kind::Bf16),
        (Kind::Bits, _) if !matches!(name, "eq" | "ne") => return None,
        (Kind::Unsigned | Kind::Bits, 16) => integers!(u16),
        (Kind::Unsigned | Kind::Bits, 32) => integers!(u32),
        (Kind::Unsigned | Kind::Bits, 64) => integers!(u64),
        _ => return None,
    })
}

fn combination(parts: &mut Parts<'_, '_>) -> u64 {
    let table = [("and", combine::AND), ("or", combine::OR), ("xor", combine::XOR)];
    parts.mods.choose(&table).unwrap_or(combine::NONE)
}

/// The comparison at the head of the modifiers.
fn name<'a>(parts: &mut Parts<'_, 'a>) -> Result<&'a str> {
    parts.mods.first().ok_or_else(|| "the comparison is missing".to_string())
}

/// The third operand of a combined comparison, and whether it is negated.
fn third<'a>(body: &mut Body<'_, 'a>, operand: &Operand<'a>) -> Result<(u32, u64)> {
    match operand {
        Operand::Not(name) => Ok((body.predicate(name)?, combine::NOT)),
        other => Ok((body.source(other, PRED)?, 0)),
    }
}

fn setp<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let name = name(parts)?;
    let mut imm = combination(parts);
    let ftz = parts.mods.take("ftz");
    let ty = parts.mods.ty()?;
    let operands = if imm == combine::NONE { 3 } else { 4 };
    parts.count(operands..=operands)?;
    if matches!(ty.kind, Kind::F16x2 | Kind::Bf16x2) {
        return setp_pair(body, parts, name, ty, imm);
    }
    let run = comparison(name, ty, ftz).ok_or_else(|| format!("comparison `.{name}` of this type"))?;
    let (d, e) = match parts.operand(0)? {
        Operand::Pair(p, q) => {
            imm |= combine::PAIR;
            (body.destination(&Operand::Name(p), PRED)?, body.destination(&Operand::Name(q), PRED)?)
        }
        other => (body.destination(other, PRED)?, SCRATCH),
    };
    let a = body.source(parts.operand(1)?, ty)?;
    let b = body.source(parts.operand(2)?, ty)?;
    let mut c = SCRATCH;
    if operands == 4 {
        let (slot, not) = third(body, parts.operand(3)?)?;
        c = slot;
        imm |= not;
    }
    let class = if matches!(ty.kind, Kind::Float | Kind::Bf16) { Class::Float } else { Class::Integer };
    let inst = Inst { d, a, b, c, e, imm, ..parts.inst(run) };
    body.emit(parts, class, inst);
    Ok(())
}

/// `setp.f16x2 p|q, a, b`: `p` compares the lower halves, `q` the upper ones.
fn setp_pair<'a>(
    body: &mut Body<'_, 'a>,
    parts: &mut Parts<'_, 'a>,
    name: &str,
    ty: Type,
    imm: u64,
) -> Result<()> {
    let run =
        packed::comparison(name, ty.kind == Kind::Bf16x2).ok_or_else(|| format!("comparison `.{name}`"))?;
    let Operand::Pair(p, q) = parts.operand(0)? else {
        return Err("two destinations are needed".to_string());
    };
    let [p, q] = [body.destination(&Operand::Name(p), PRED)?, body.destination(&Operand::Name(q), PRED)?];
    let (a, b) = (body.source(parts.operand(1)?, ty)?, body.source(parts.operand(2)?, ty)?);
    let (c, not) = if imm == combine::NONE { (SCRATCH, 0) } else { third(body, parts.operand(3)?)? };
    let shift = body.constant(16, 32);
    let [upper_a, upper_b] = [body.temporary(32), body.temporary(32)];
    let shr = crate::exec::lanes::binary(|a: u32, b: u32| a >> (b & 31));
    let imm = imm | not;
    for inst in [
        Inst { d: upper_a, a, b: shift, ..parts.inst(shr) },
        Inst { d: upper_b, a: b, b: shift, ..parts.inst(shr) },
        Inst { d: SCRATCH, a, b, c, imm, ..parts.inst(run) },
        Inst { d: q, a: upper_a, b: upper_b, c, imm, ..parts.inst(run) },
        // Last, as `p` may be among the sources.
        Inst { d: p, a: SCRATCH, b: super::TRUE, ..parts.inst(crate::exec::lanes::logic(|a, b| a & b)) },
    ] {
        body.emit(parts, Class::Float, inst);
    }
    Ok(())
}

/// `set.cmp{.op}.dtype.stype d, a, b{, c}`: all ones or zero, or 1.0 or 0.0.
fn set<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let name = name(parts)?;
    let mut imm = combination(parts);
    let ftz = parts.mods.take("ftz");
    let (to, ty) = (parts.mods.ty()?, parts.mods.ty()?);
    let operands = if imm == combine::NONE { 3 } else { 4 };
    parts.count(operands..=operands)?;
    if matches!(ty.kind, Kind::F16x2 | Kind::Bf16x2) {
        return set_pair(body, parts, name, (to, ty), imm);
    }
    let run = comparison(name, ty, ftz).ok_or_else(|| format!("comparison `.{name}` of this type"))?;
    let a = body.source(parts.operand(1)?, ty)?;
    let b = body.source(parts.operand(2)?, ty)?;
    let mut c = SCRATCH;
    if operands == 4 {
        let (slot, not) = third(body, parts.operand(3)?)?;
        c = slot;
        imm |= not;
    }
    let d = body.destination(parts.operand(0)?, to)?;
    let one = match (to.kind, to.bits) {
        (Kind::Float, 32) => 0x3f80_0000,
        (Kind::Float, 16) => 0x3c00,
        (Kind::Bf16, 16) => 0x3f80,
        (Kind::Unsigned | Kind::Signed, 32) => 0xffff_ffff,
        (Kind::Unsigned | Kind::Signed, 16) => 0xffff,
        _ => return Err("`set` to this type".to_string()),
    };
    let (yes, no) = (body.constant(one, 32), body.constant(0, 32));
    let test = Inst { d: SCRATCH, a, b, c, imm, ..parts.inst(run) };
    let choose = Inst { d, a: yes, b: no, c: SCRATCH, ..parts.inst(select::<u32>()) };
    body.emit(parts, Class::Integer, test);
    body.emit(parts, Class::Integer, choose);
    Ok(())
}

/// `set.cmp{.op}.f16x2.f16x2 d, a, b{, c}`, or of `bf16x2`: 1.0 or 0.0 in each half.
fn set_pair<'a>(
    body: &mut Body<'_, 'a>,
    parts: &mut Parts<'_, 'a>,
    name: &str,
    (to, ty): (Type, Type),
    imm: u64,
) -> Result<()> {
    let bf16 = ty.kind == Kind::Bf16x2;
    if to != ty {
        return Err("`set` of pairs gives pairs of the same type".to_string());
    }
    let run = packed::comparison(name, bf16).ok_or_else(|| format!("comparison `.{name}`"))?;
    let (a, b) = (body.source(parts.operand(1)?, ty)?, body.source(parts.operand(2)?, ty)?);
    let (c, not) = if imm == combine::NONE { (SCRATCH, 0) } else { third(body, parts.operand(3)?)? };
    let imm = imm | not;
    let d = body.destination(parts.operand(0)?, to)?;
    let one = if bf16 { 0x3f80 } else { 0x3c00 };
    let (low, high, none) = (body.constant(one, 32), body.constant(one << 16, 32), body.constant(0, 32));
    let shift = body.constant(16, 32);
    let [upper_a, upper_b, lower] = [body.temporary(32), body.temporary(32), body.temporary(32)];
    let shr = crate::exec::lanes::binary(|a: u32, b: u32| a >> (b & 31));
    let or = crate::exec::lanes::binary(|a: u32, b: u32| a | b);
    for inst in [
        Inst { d: upper_a, a, b: shift, ..parts.inst(shr) },
        Inst { d: upper_b, a: b, b: shift, ..parts.inst(shr) },
        Inst { d: SCRATCH, a, b, c, imm, ..parts.inst(run) },
        Inst { d: lower, a: low, b: none, c: SCRATCH, ..parts.inst(select::<u32>()) },
        Inst { d: SCRATCH, a: upper_a, b: upper_b, c, imm, ..parts.inst(run) },
        Inst { d: upper_a, a: high, b: none, c: SCRATCH, ..parts.inst(select::<u32>()) },
        Inst { d, a: lower, b: upper_a, ..parts.inst(or) },
    ] {
        body.emit(parts, Class::Float, inst);
    }
    Ok(())
}

/// `slct.dtype.{s32,f32} d, a, b, c`: `c >= 0 ? a : b`.
fn slct<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let ftz = parts.mods.take("ftz");
    let (ty, by) = (parts.mods.ty()?, parts.mods.ty()?);
    let run = match (ty.bits, by.kind == Kind::Float) {
        (64, true) => ternary(|a: u64, b: u64, c: f32| if c >= 0.0 { a } else { b }),
        (64, false) => ternary(|a: u64, b: u64, c: i32| if c >= 0 { a } else { b }),
        // A subnormal below zero counts as -0 with `.ftz`.
        (_, true) if ftz => {
            ternary(|a: u32, b: u32, c: f32| if super::float::flush(c) >= 0.0 { a } else { b })
        }
        (_, true) => ternary(|a: u32, b: u32, c: f32| if c >= 0.0 { a } else { b }),
        (_, false) => ternary(|a: u32, b: u32, c: i32| if c >= 0 { a } else { b }),
    };
    let by = if by.kind == Kind::Float { Type { kind: Kind::Float, bits: 32 } } else { S32 };
    parts.map(body, Class::Integer, run, ty, &[ty, ty, by])
}
