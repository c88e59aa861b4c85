//! Logic, shifts and bit manipulation (ISA "Logic and Shift Instructions", "Integer Arithmetic
//! Instructions").

use super::arithmetic::per_type;
use super::body::Body;
use super::parts::Parts;
use super::types::{PRED, S32, U32};
use super::{Result, TRUE};
use crate::counters::Class::Integer;
use crate::exec::lanes::{binary, flagged, logic, quaternary, ternary, unary};
use crate::exec::{Handler, Inst};
use crate::ptx::ast::{Kind, Operand};

pub(super) fn decode<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    match parts.base {
        "and" | "or" | "xor" | "not" | "cnot" => return bitwise(body, parts),
        "shl" | "shr" => return shift(body, parts),
        "lop3" => return lop3(body, parts),
        "shf" => return funnel(body, parts),
        "prmt" => return permute(body, parts),
        "dp4a" | "dp2a" => return dot(body, parts),
        "bmsk" => return mask(body, parts),
        "szext" => return extend(body, parts),
        "mul24" | "mad24" => return short_multiply(body, parts),
        _ => {}
    }
    let shift_amount = parts.mods.take("shiftamt");
    let ty = parts.mods.ty()?;
    match parts.base {
        "brev" => {
            let run = if ty.bits == 64 {
                unary(|a: u64| a.reverse_bits())
            } else {
                unary(|a: u32| a.reverse_bits())
            };
            parts.map(body, Integer, run, ty, &[ty])
        }
        "popc" => {
            let run =
                if ty.bits == 64 { unary(|a: u64| a.count_ones()) } else { unary(|a: u32| a.count_ones()) };
            parts.map(body, Integer, run, U32, &[ty])
        }
        "clz" => {
            let run = if ty.bits == 64 {
                unary(|a: u64| a.leading_zeros())
            } else {
                unary(|a: u32| a.leading_zeros())
            };
            parts.map(body, Integer, run, U32, &[ty])
        }
        "bfind" => {
            let run: Handler = match (ty.kind, ty.bits, shift_amount) {
                (Kind::Signed, 32, false) => unary(|a: i32| top_bit(u64::from((a ^ a >> 31) as u32))),
                (_, 32, false) => unary(|a: u32| top_bit(u64::from(a))),
                (Kind::Signed, 64, false) => unary(|a: i64| top_bit((a ^ a >> 63) as u64)),
                (_, 64, false) => unary(|a: u64| top_bit(a)),
                (Kind::Signed, 32, true) => unary(|a: i32| shift_to_top(u64::from((a ^ a >> 31) as u32), 31)),
                (_, 32, true) => unary(|a: u32| shift_to_top(u64::from(a), 31)),
                (Kind::Signed, 64, true) => unary(|a: i64| shift_to_top((a ^ a >> 63) as u64, 63)),
                (_, _, _) => unary(|a: u64| shift_to_top(a, 63)),
            };
            parts.map(body, Integer, run, U32, &[ty])
        }
        "bfe" => {
            let run = match (ty.kind, ty.bits) {
                (Kind::Signed, 32) => {
                    ternary(|a: i32, b: u32, c: u32| extract(a as u32 as u64, b, c, 32, true) as u32)
                }
                (_, 32) => ternary(|a: u32, b: u32, c: u32| extract(u64::from(a), b, c, 32, false) as u32),
                (Kind::Signed, _) => ternary(|a: u64, b: u32, c: u32| extract(a, b, c, 64, true)),
                _ => ternary(|a: u64, b: u32, c: u32| extract(a, b, c, 64, false)),
            };
            parts.map(body, Integer, run, ty, &[ty, U32, U32])
        }
        "bfi" => {
            let run = if ty.bits == 64 {
                quaternary(|a: u64, b: u64, c: u32, d: u32| insert(a, b, c, d, 64))
            } else {
                quaternary(|a: u32, b: u32, c: u32, d: u32| {
                    insert(u64::from(a), u64::from(b), c, d, 32) as u32
                })
            };
            parts.map(body, Integer, run, ty, &[ty, ty, U32, U32])
        }
        "sad" => {
            let run = per_type!(ty, T => ternary(|a: T, b: T, c: T| {
                c.wrapping_add(if a < b { b.wrapping_sub(a) } else { a.wrapping_sub(b) })
            }));
            parts.map(body, Integer, run, ty, &[ty, ty, ty])
        }
        "fns" => {
            let run = ternary(|mask: u32, base: u32, offset: i32| nth_set(mask, base, offset));
            parts.map(body, Integer, run, ty, &[U32, U32, S32])
        }
        other => Err(format!("`{other}`")),
    }
}

fn top_bit(a: u64) -> u32 {
    63u32.wrapping_sub(a.leading_zeros())
}

fn shift_to_top(a: u64, top: u32) -> u32 {
    if a == 0 { !0 } else { top - top_bit(a) }
}

/// ISA "bfe".
fn extract(a: u64, position: u32, len: u32, bits: u32, signed: bool) -> u64 {
    let (position, len) = (position & 255, len & 255);
    let msb = bits - 1;
    let sign_at = (position + len).saturating_sub(1).min(msb);
    let sign = if signed && len != 0 && a >> sign_at & 1 != 0 { !0 } else { 0 };
    let mut result: u64 = sign;
    if len == 0 {
        return 0;
    }
    let field = if position > msb { 0 } else { a >> position };
    let kept = len.min(bits.saturating_sub(position.min(bits)));
    let mask = if kept >= 64 { !0 } else { (1u64 << kept) - 1 };
    result = result & !mask | field & mask;
    result
}

/// ISA "bfi".
fn insert(a: u64, b: u64, position: u32, len: u32, bits: u32) -> u64 {
    let (position, len) = (position & 255, len & 255);
    if position >= bits {
        return b;
    }
    let len = len.min(bits - position);
    let mask = if len >= 64 { !0 } else { (1u64 << len) - 1 };
    b & !(mask << position) | (a & mask) << position
}

/// ISA "fns".
fn nth_set(mask: u32, base: u32, offset: i32) -> u32 {
    let base = base & 31;
    let mut left = offset.unsigned_abs();
    if offset == 0 {
        return if mask >> base & 1 != 0 { base } else { !0 };
    }
    let mut position = base as i32;
    while (0..32).contains(&position) {
        if mask >> position & 1 != 0 {
            left -= 1;
            if left == 0 {
                return position as u32;
            }
        }
        position += offset.signum();
    }
    !0
}

fn bitwise<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let ty = parts.mods.ty()?;
    if ty.kind == Kind::Pred {
        return predicates(body, parts);
    }
    let one = matches!(parts.base, "not" | "cnot");
    macro_rules! of {
        ($t:ty) => {
            match parts.base {
                "and" => binary(|a: $t, b: $t| a & b),
                "or" => binary(|a: $t, b: $t| a | b),
                "xor" => binary(|a: $t, b: $t| a ^ b),
                "not" => unary(|a: $t| !a),
                _ => unary(|a: $t| <$t>::from(a == 0)),
            }
        };
    }
    let run = match ty.bits {
        16 => of!(u16),
        32 => of!(u32),
        64 => of!(u64),
        bits => return Err(format!("`{}` of {bits} bits", parts.base)),
    };
    if one { parts.map(body, Integer, run, ty, &[ty]) } else { parts.map(body, Integer, run, ty, &[ty, ty]) }
}

fn predicates<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    match parts.base {
        "and" => parts.map(body, Integer, logic(|a, b| a & b), PRED, &[PRED, PRED]),
        "or" => parts.map(body, Integer, logic(|a, b| a | b), PRED, &[PRED, PRED]),
        "xor" => parts.map(body, Integer, logic(|a, b| a ^ b), PRED, &[PRED, PRED]),
        "not" => {
            // With `true` as the second operand, negation is exclusive or.
            parts.count(2..=2)?;
            let a = body.source(parts.operand(1)?, PRED)?;
            let d = body.destination(parts.operand(0)?, PRED)?;
            let inst = Inst { d, a, b: TRUE, ..parts.inst(logic(|a, b| a ^ b)) };
            body.emit(parts, Integer, inst);
            Ok(())
        }
        other => Err(format!("`{other}.pred`")),
    }
}

fn shift<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let ty = parts.mods.ty()?;
    // Amounts over the width give zero, or copies of the sign.
    let run: Handler = match (parts.base, ty.kind, ty.bits) {
        ("shl", _, 16) => binary(|a: u16, b: u32| if b > 15 { 0 } else { a << b }),
        ("shl", _, 32) => binary(|a: u32, b: u32| if b > 31 { 0 } else { a << (b & 31) }),
        ("shl", _, 64) => binary(|a: u64, b: u32| if b > 63 { 0 } else { a << (b & 63) }),
        ("shr", Kind::Signed, 16) => binary(|a: i16, b: u32| a >> b.min(15)),
        ("shr", Kind::Signed, 32) => binary(|a: i32, b: u32| a >> b.min(31)),
        ("shr", Kind::Signed, 64) => binary(|a: i64, b: u32| a >> b.min(63)),
        ("shr", _, 16) => binary(|a: u16, b: u32| if b > 15 { 0 } else { a >> b }),
        ("shr", _, 32) => binary(|a: u32, b: u32| if b > 31 { 0 } else { a >> (b & 31) }),
        ("shr", _, 64) => binary(|a: u64, b: u32| if b > 63 { 0 } else { a >> (b & 63) }),
        (base, _, bits) => return Err(format!("`{base}` of {bits} bits")),
    };
    parts.map(body, Integer, run, ty, &[ty, U32])
}

fn lop3<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let ty = parts.mods.ty()?;
    parts.count(5..=5)?;
    let Operand::Int(table) = *parts.operand(4)? else {
        return Err("the look-up table must be a constant".to_string());
    };
    let run = flagged(|a: u32, b: u32, c: u32, table| {
        let mut result = 0;
        for (index, on) in (0..8).map(|i| (i, table >> i & 1 != 0)) {
            let pick = |value: u32, bit: u32| if index >> bit & 1 != 0 { value } else { !value };
            if on {
                result |= pick(a, 2) & pick(b, 1) & pick(c, 0);
            }
        }
        result
    });
    let [a, b, c] = [
        body.source(parts.operand(1)?, ty)?,
        body.source(parts.operand(2)?, ty)?,
        body.source(parts.operand(3)?, ty)?,
    ];
    let d = body.destination(parts.operand(0)?, ty)?;
    let inst = Inst { d, a, b, c, imm: table as u64 & 255, ..parts.inst(run) };
    body.emit(parts, Integer, inst);
    Ok(())
}

fn funnel<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let left = match parts.mods.choose(&[("l", true), ("r", false)]) {
        Some(left) => left,
        None => return Err("`.l` or `.r` is missing".to_string()),
    };
    let clamp = match parts.mods.choose(&[("clamp", true), ("wrap", false)]) {
        Some(clamp) => clamp,
        None => return Err("`.clamp` or `.wrap` is missing".to_string()),
    };
    let ty = parts.mods.ty()?;
    // a is the lower half, b the upper.
    let run = match (left, clamp) {
        (true, true) => ternary(|a: u32, b: u32, c: u32| ((joined(a, b) << c.min(32)) >> 32) as u32),
        (true, false) => ternary(|a: u32, b: u32, c: u32| ((joined(a, b) << (c & 31)) >> 32) as u32),
        (false, true) => ternary(|a: u32, b: u32, c: u32| (joined(a, b) >> c.min(32)) as u32),
        (false, false) => ternary(|a: u32, b: u32, c: u32| (joined(a, b) >> (c & 31)) as u32),
    };
    parts.map(body, Integer, run, ty, &[ty, ty, U32])
}

fn joined(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn permute<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let ty = parts.mods.ty()?;
    let modes = [("f4e", 1u64), ("b4e", 2), ("rc8", 3), ("ecl", 4), ("ecr", 5), ("rc16", 6)];
    let mode = parts.mods.choose(&modes).unwrap_or(0);
    parts.count(4..=4)?;
    let run = flagged(|a: u32, b: u32, c: u32, mode| {
        let bytes = joined(a, b);
        let byte = |i: u32| (bytes >> (8 * (i & 7)) & 255) as u32;
        let n = c & 3;
        let pick: [u32; 4] = match mode {
            1 => std::array::from_fn(|i| byte(n + i as u32)),
            2 => std::array::from_fn(|i| byte(n.wrapping_sub(i as u32))),
            3 => [byte(n); 4],
            4 => std::array::from_fn(|i| byte(n.max(i as u32))),
            5 => std::array::from_fn(|i| byte(n.min(i as u32))),
            6 => std::array::from_fn(|i| byte(2 * (n & 1) + (i as u32 & 1))),
            _ => std::array::from_fn(|i| {
                let selector = c >> (4 * i) & 15;
                let value = byte(selector);
                if selector & 8 != 0 { if value & 128 != 0 { 255 } else { 0 } } else { value }
            }),
        };
        u32::from_le_bytes(pick.map(|byte| byte as u8))
    });
    let [a, b, c] = [
        body.source(parts.operand(1)?, ty)?,
        body.source(parts.operand(2)?, ty)?,
        body.source(parts.operand(3)?, ty)?,
    ];
    let d = body.destination(parts.operand(0)?, ty)?;
    let inst = Inst { d, a, b, c, imm: mode, ..parts.inst(run) };
    body.emit(parts, Integer, inst);
    Ok(())
}

/// `dp4a.atype.btype`, `dp2a.{lo,hi}.atype.btype`. Flags: 1 a is signed, 2 b is signed, 4 `dp2a`, 8 `.hi`.
fn dot<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let two = parts.base == "dp2a";
    let high = two && parts.mods.choose(&[("lo", false), ("hi", true)]).ok_or("`.lo` or `.hi` is missing")?;
    let (a_type, b_type) = (parts.mods.ty()?, parts.mods.ty()?);
    parts.count(4..=4)?;
    let flag = |on: bool, bit: u64| if on { bit } else { 0 };
    let imm = flag(a_type.kind == Kind::Signed, 1)
        | flag(b_type.kind == Kind::Signed, 2)
        | flag(two, 4)
        | flag(high, 8);
    let run = flagged(|a: u32, b: u32, c: u32, flags| {
        let byte = |v: u32, i: u32, signed: bool| {
            let byte = (v >> (8 * i)) as u8;
            if signed { i32::from(byte as i8) } else { i32::from(byte) }
        };
        let half = |v: u32, i: u32, signed: bool| {
            let half = (v >> (16 * i)) as u16;
            if signed { i32::from(half as i16) } else { i32::from(half) }
        };
        let (sa, sb) = (flags & 1 != 0, flags & 2 != 0);
        let mut sum = c as i32;
        if flags & 4 != 0 {
            let first = if flags & 8 != 0 { 2 } else { 0 };
            for i in 0..2 {
                sum = sum.wrapping_add(half(a, i, sa).wrapping_mul(byte(b, first + i, sb)));
            }
        } else {
            for i in 0..4 {
                sum = sum.wrapping_add(byte(a, i, sa).wrapping_mul(byte(b, i, sb)));
            }
        }
        sum as u32
    });
    let [a, b, c] = [
        body.source(parts.operand(1)?, U32)?,
        body.source(parts.operand(2)?, U32)?,
        body.source(parts.operand(3)?, U32)?,
    ];
    let d = body.destination(parts.operand(0)?, U32)?;
    let inst = Inst { d, a, b, c, imm, ..parts.inst(run) };
    body.emit(parts, Integer, inst);
    Ok(())
}

fn mask<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let clamp =
        parts.mods.choose(&[("clamp", true), ("wrap", false)]).ok_or("`.clamp` or `.wrap` is missing")?;
    let ty = parts.mods.ty()?;
    let run = if clamp {
        binary(|a: u32, b: u32| {
            let (a, b) = (a.min(32), b.min(32));
            let end = (a + b).min(32);
            (((1u64 << end) - 1) & !((1u64 << a) - 1)) as u32
        })
    } else {
        binary(|a: u32, b: u32| {
            let (a, b) = (a & 31, b & 31);
            let end = (a + b).min(32);
            (((1u64 << end) - 1) & !((1u64 << a) - 1)) as u32
        })
    };
    parts.map(body, Integer, run, ty, &[U32, U32])
}

fn extend<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let clamp =
        parts.mods.choose(&[("clamp", true), ("wrap", false)]).ok_or("`.clamp` or `.wrap` is missing")?;
    let ty = parts.mods.ty()?;
    let run = match (ty.kind == Kind::Signed, clamp) {
        (true, true) => binary(|a: i32, b: u32| {
            if b == 0 {
                0
            } else if b > 31 {
                a
            } else {
                a << (32 - b) >> (32 - b)
            }
        }),
        (true, false) => {
            binary(|a: i32, b: u32| if b & 31 == 0 { 0 } else { a << (32 - (b & 31)) >> (32 - (b & 31)) })
        }
        (false, true) => binary(|a: u32, b: u32| if b > 31 { a } else { a & ((1 << b) - 1) }),
        (false, false) => binary(|a: u32, b: u32| a & ((1 << (b & 31)) - 1)),
    };
    parts.map(body, Integer, run, ty, &[ty, U32])
}

fn short_multiply<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let high = parts.mods.choose(&[("lo", false), ("hi", true)]).ok_or("`.lo` or `.hi` is missing")?;
    let ty = parts.mods.ty()?;
    fn signed(a: i32, b: i32) -> i64 {
        i64::from(a << 8 >> 8) * i64::from(b << 8 >> 8)
    }
    fn unsigned(a: u32, b: u32) -> u64 {
        u64::from(a & 0xff_ffff) * u64::from(b & 0xff_ffff)
    }
    // `.hi` is bits 47..16 of the 48-bit product.
    let add = parts.base == "mad24";
    let run = match (ty.kind == Kind::Signed, high, add) {
        (true, false, false) => binary(|a: i32, b: i32| signed(a, b) as i32),
        (true, true, false) => binary(|a: i32, b: i32| (signed(a, b) >> 16) as i32),
        (false, false, false) => binary(|a: u32, b: u32| unsigned(a, b) as u32),
        (false, true, false) => binary(|a: u32, b: u32| (unsigned(a, b) >> 16) as u32),
        (true, false, true) => ternary(|a: i32, b: i32, c: i32| (signed(a, b) as i32).wrapping_add(c)),
        (true, true, true) => ternary(|a: i32, b: i32, c: i32| ((signed(a, b) >> 16) as i32).wrapping_add(c)),
        (false, false, true) => ternary(|a: u32, b: u32, c: u32| (unsigned(a, b) as u32).wrapping_add(c)),
        (false, true, true) => {
            ternary(|a: u32, b: u32, c: u32| ((unsigned(a, b) >> 16) as u32).wrapping_add(c))
        }
    };
    if add {
        parts.map(body, Integer, run, ty, &[ty, ty, ty])
    } else {
        parts.map(body, Integer, run, ty, &[ty, ty])
    }
}
