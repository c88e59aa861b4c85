//! `add`, `sub`, `mul`, `mad`, `fma`, `div`, `rem`, `min`, `max`, `abs`, `neg` and the carry chain, on
//! integers; the floating-point types of these go on to `float` and `packed` (ISA "Integer Arithmetic
//! Instructions", "Extended-Precision Integer Arithmetic Instructions").

use super::body::Body;
use super::parts::Parts;
use super::{Result, float, packed};
use crate::counters::Class::Integer;
use crate::exec::lanes::{binary, carry, ternary, unary};
use crate::exec::{Handler, Inst};
use crate::ptx::ast::{Kind, Type};

/// One handler per integer type: `per_type!(ty, T => expression of T)`.
macro_rules! per_type {
    ($ty:expr, $t:ident => $handler:expr) => {
        match ($ty.kind, $ty.bits) {
            (Kind::Signed, 16) => {
                type $t = i16;
                $handler
            }
            (_, 16) => {
                type $t = u16;
                $handler
            }
            (Kind::Signed, 32) => {
                type $t = i32;
                $handler
            }
            (_, 32) => {
                type $t = u32;
                $handler
            }
            (Kind::Signed, 64) => {
                type $t = i64;
                $handler
            }
            (_, 64) => {
                type $t = u64;
                $handler
            }
            (_, bits) => return Err(format!("integers of {bits} bits are not possible here")),
        }
    };
}
pub(super) use per_type;

pub(super) fn decode<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    // The type stands last, except after `.wide`.
    let ty = parts.mods.ty()?;
    match ty.kind {
        Kind::Float if ty.bits >= 32 => return float::arithmetic(body, parts, ty),
        Kind::Float | Kind::Bf16 | Kind::F16x2 | Kind::Bf16x2 => return packed::arithmetic(body, parts, ty),
        Kind::Pred | Kind::Bits => return Err(format!("`{}` on this type", parts.base)),
        Kind::Unsigned | Kind::Signed => {}
    }
    match parts.base {
        "add" | "sub" if parts.mods.take("sat") => {
            if ty != (Type { kind: Kind::Signed, bits: 32 }) {
                return Err("`.sat` needs `.s32`".to_string());
            }
            let run = if parts.base == "add" {
                binary(|a: i32, b: i32| a.saturating_add(b))
            } else {
                binary(|a: i32, b: i32| a.saturating_sub(b))
            };
            parts.map(body, Integer, run, ty, &[ty, ty])
        }
        "add" | "sub" if parts.mods.take("cc") => chain(body, parts, ty, true),
        "addc" | "subc" => {
            let keep = parts.mods.take("cc");
            chain(body, parts, ty, keep)
        }
        "mul" => multiply(body, parts, ty),
        "mad" | "madc" => multiply_add(body, parts, ty),
        "abs" | "neg" => {
            let run = match parts.base {
                "abs" => {
                    per_type!(ty, T => unary(|a: T| if (a as i64) < 0 { (0 as T).wrapping_sub(a) } else { a }))
                }
                _ => per_type!(ty, T => unary(|a: T| (0 as T).wrapping_sub(a))),
            };
            parts.map(body, Integer, run, ty, &[ty])
        }
        "min" | "max" if parts.mods.take("relu") => {
            let run = if parts.base == "min" {
                binary(|a: i32, b: i32| a.min(b).max(0))
            } else {
                binary(|a: i32, b: i32| a.max(b).max(0))
            };
            if ty != (Type { kind: Kind::Signed, bits: 32 }) {
                return Err("`.relu` needs `.s32`".to_string());
            }
            parts.map(body, Integer, run, ty, &[ty, ty])
        }
        base => {
            let run: Handler = match base {
                "add" => per_type!(ty, T => binary(|a: T, b: T| a.wrapping_add(b))),
                "sub" => per_type!(ty, T => binary(|a: T, b: T| a.wrapping_sub(b))),
                // Division by zero gives a value of the machine's choice: all ones, as hardware does.
                "div" => per_type!(ty, T => binary(|a: T, b: T| if b == 0 { !0 } else { a.wrapping_div(b) })),
                "rem" => per_type!(ty, T => binary(|a: T, b: T| if b == 0 { a } else { a.wrapping_rem(b) })),
                "min" => per_type!(ty, T => binary(|a: T, b: T| a.min(b))),
                "max" => per_type!(ty, T => binary(|a: T, b: T| a.max(b))),
                other => return Err(format!("`{other}` on integers")),
            };
            parts.map(body, Integer, run, ty, &[ty, ty])
        }
    }
}

/// `add.cc`, `addc{.cc}`, `sub.cc`, `subc{.cc}`. The carry flag holds a carry for both; `sub` borrows when it
/// is set.
fn chain<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>, ty: Type, keep: bool) -> Result<()> {
    parts.count(3..=3)?;
    let a = body.source(parts.operand(1)?, ty)?;
    let b = body.source(parts.operand(2)?, ty)?;
    let d = body.destination(parts.operand(0)?, ty)?;
    macro_rules! chain_of {
        ($t:ty) => {
            match parts.base {
                "add" => carry(|a: $t, b: $t, _: $t, _| a.overflowing_add(b)),
                "sub" => carry(|a: $t, b: $t, _: $t, _| a.overflowing_sub(b)),
                "addc" => carry(|a: $t, b: $t, _: $t, c| {
                    let (sum, first) = a.overflowing_add(b);
                    let (sum, second) = sum.overflowing_add(c as $t);
                    (sum, first | second)
                }),
                _ => carry(|a: $t, b: $t, _: $t, c| {
                    let (rest, first) = a.overflowing_sub(b);
                    let (rest, second) = rest.overflowing_sub(c as $t);
                    (rest, first | second)
                }),
            }
        };
    }
    let run = match ty.bits {
        32 => chain_of!(u32),
        64 => chain_of!(u64),
        bits => return Err(format!("a carry chain of {bits} bits")),
    };
    let inst = Inst { d, a, b, c: a, e: body.carry(), imm: u64::from(keep), ..parts.inst(run) };
    body.emit(parts, Integer, inst);
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Low,
    High,
    Wide,
}

fn half(parts: &mut Parts<'_, '_>) -> Result<Half> {
    let table = [("lo", Half::Low), ("hi", Half::High), ("wide", Half::Wide)];
    parts.mods.choose(&table).ok_or_else(|| "`.lo`, `.hi` or `.wide` is missing".to_string())
}

fn multiply<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>, ty: Type) -> Result<()> {
    match half(parts)? {
        Half::Low => {
            let run = per_type!(ty, T => binary(|a: T, b: T| a.wrapping_mul(b)));
            parts.map(body, Integer, run, ty, &[ty, ty])
        }
        Half::High => {
            let bits = ty.bits;
            let run = match (ty.kind, bits) {
                (Kind::Signed, 16) => binary(|a: i16, b: i16| ((i32::from(a) * i32::from(b)) >> 16) as i16),
                (_, 16) => binary(|a: u16, b: u16| ((u32::from(a) * u32::from(b)) >> 16) as u16),
                (Kind::Signed, 32) => binary(|a: i32, b: i32| ((i64::from(a) * i64::from(b)) >> 32) as i32),
                (_, 32) => binary(|a: u32, b: u32| ((u64::from(a) * u64::from(b)) >> 32) as u32),
                (Kind::Signed, 64) => binary(|a: i64, b: i64| ((i128::from(a) * i128::from(b)) >> 64) as i64),
                (_, 64) => binary(|a: u64, b: u64| ((u128::from(a) * u128::from(b)) >> 64) as u64),
                _ => return Err(format!("`mul.hi` of {bits} bits")),
            };
            parts.map(body, Integer, run, ty, &[ty, ty])
        }
        Half::Wide => {
            let wide = Type { bits: 2 * ty.bits, ..ty };
            let run = match (ty.kind, ty.bits) {
                (Kind::Signed, 16) => binary(|a: i16, b: i16| i32::from(a) * i32::from(b)),
                (_, 16) => binary(|a: u16, b: u16| u32::from(a) * u32::from(b)),
                (Kind::Signed, 32) => binary(|a: i32, b: i32| i64::from(a) * i64::from(b)),
                (_, 32) => binary(|a: u32, b: u32| u64::from(a) * u64::from(b)),
                (_, bits) => return Err(format!("`mul.wide` of {bits} bits")),
            };
            parts.map(body, Integer, run, wide, &[ty, ty])
        }
    }
}

fn multiply_add<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>, ty: Type) -> Result<()> {
    let half = half(parts)?;
    if parts.base == "madc" || parts.mods.take("cc") {
        return multiply_add_carry(body, parts, ty, half);
    }
    if parts.mods.take("sat") {
        if half != Half::High || ty != (Type { kind: Kind::Signed, bits: 32 }) {
            return Err("`mad.sat` needs `.hi.s32`".to_string());
        }
        let run = ternary(|a: i32, b: i32, c: i32| {
            (((i64::from(a) * i64::from(b)) >> 32) + i64::from(c))
                .clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32
        });
        return parts.map(body, Integer, run, ty, &[ty, ty, ty]);
    }
    let (run, d) = match half {
        Half::Low => (per_type!(ty, T => ternary(|a: T, b: T, c: T| a.wrapping_mul(b).wrapping_add(c))), ty),
        Half::High => {
            let run = match (ty.kind, ty.bits) {
                (Kind::Signed, 16) => ternary(|a: i16, b: i16, c: i16| {
                    (((i32::from(a) * i32::from(b)) >> 16) as i16).wrapping_add(c)
                }),
                (_, 16) => ternary(|a: u16, b: u16, c: u16| {
                    (((u32::from(a) * u32::from(b)) >> 16) as u16).wrapping_add(c)
                }),
                (Kind::Signed, 32) => ternary(|a: i32, b: i32, c: i32| {
                    (((i64::from(a) * i64::from(b)) >> 32) as i32).wrapping_add(c)
                }),
                (_, 32) => ternary(|a: u32, b: u32, c: u32| {
                    (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c)
                }),
                (Kind::Signed, 64) => ternary(|a: i64, b: i64, c: i64| {
                    (((i128::from(a) * i128::from(b)) >> 64) as i64).wrapping_add(c)
                }),
                (_, 64) => ternary(|a: u64, b: u64, c: u64| {
                    (((u128::from(a) * u128::from(b)) >> 64) as u64).wrapping_add(c)
                }),
                (_, bits) => return Err(format!("`mad.hi` of {bits} bits")),
            };
            (run, ty)
        }
        Half::Wide => {
            let run = match (ty.kind, ty.bits) {
                (Kind::Signed, 16) => {
                    ternary(|a: i16, b: i16, c: i32| (i32::from(a) * i32::from(b)).wrapping_add(c))
                }
                (_, 16) => ternary(|a: u16, b: u16, c: u32| (u32::from(a) * u32::from(b)).wrapping_add(c)),
                (Kind::Signed, 32) => {
                    ternary(|a: i32, b: i32, c: i64| (i64::from(a) * i64::from(b)).wrapping_add(c))
                }
                (_, 32) => ternary(|a: u32, b: u32, c: u64| (u64::from(a) * u64::from(b)).wrapping_add(c)),
                (_, bits) => return Err(format!("`mad.wide` of {bits} bits")),
            };
            (run, Type { bits: 2 * ty.bits, ..ty })
        }
    };
    parts.map(body, Integer, run, d, &[ty, ty, d])
}

/// `mad{.lo,.hi}.cc` and `madc{.lo,.hi}{.cc}`.
fn multiply_add_carry<'a>(
    body: &mut Body<'_, 'a>,
    parts: &mut Parts<'_, 'a>,
    ty: Type,
    half: Half,
) -> Result<()> {
    let chained = parts.base == "madc";
    let keep = !chained || parts.mods.take("cc");
    parts.count(4..=4)?;
    macro_rules! of {
        ($t:ty, $wide:ty) => {{
            fn add(product: $t, c: $t, carry: bool) -> ($t, bool) {
                let (sum, first) = product.overflowing_add(c);
                let (sum, second) = sum.overflowing_add(carry as $t);
                (sum, first | second)
            }
            match (half, chained) {
                (Half::Low, false) => carry(|a: $t, b: $t, c: $t, _| add(a.wrapping_mul(b), c, false)),
                (Half::Low, true) => carry(|a: $t, b: $t, c: $t, k| add(a.wrapping_mul(b), c, k)),
                (Half::High, false) => carry(|a: $t, b: $t, c: $t, _| {
                    add(((a as $wide * b as $wide) >> <$t>::BITS) as $t, c, false)
                }),
                (Half::High, true) => {
                    carry(|a: $t, b: $t, c: $t, k| add(((a as $wide * b as $wide) >> <$t>::BITS) as $t, c, k))
                }
                (Half::Wide, _) => return Err("`.wide` with a carry".to_string()),
            }
        }};
    }
    macro_rules! of_signed {
        ($t:ty, $u:ty, $wide:ty) => {{
            fn add(product: $t, c: $t, carry: bool) -> ($t, bool) {
                let (sum, first) = (product as $u).overflowing_add(c as $u);
                let (sum, second) = sum.overflowing_add(carry as $u);
                (sum as $t, first | second)
            }
            match (half, chained) {
                (Half::Low, false) => carry(|a: $t, b: $t, c: $t, _| add(a.wrapping_mul(b), c, false)),
                (Half::Low, true) => carry(|a: $t, b: $t, c: $t, k| add(a.wrapping_mul(b), c, k)),
                (Half::High, false) => carry(|a: $t, b: $t, c: $t, _| {
                    add(((a as $wide * b as $wide) >> <$t>::BITS) as $t, c, false)
                }),
                (Half::High, true) => {
                    carry(|a: $t, b: $t, c: $t, k| add(((a as $wide * b as $wide) >> <$t>::BITS) as $t, c, k))
                }
                (Half::Wide, _) => return Err("`.wide` with a carry".to_string()),
            }
        }};
    }
    let run = match (ty.kind, ty.bits) {
        (Kind::Signed, 32) => of_signed!(i32, u32, i64),
        (_, 32) => of!(u32, u64),
        (Kind::Signed, 64) => of_signed!(i64, u64, i128),
        (_, 64) => of!(u64, u128),
        (_, bits) => return Err(format!("a carry chain of {bits} bits")),
    };
    let [a, b, c] = [
        body.source(parts.operand(1)?, ty)?,
        body.source(parts.operand(2)?, ty)?,
        body.source(parts.operand(3)?, ty)?,
    ];
    let d = body.destination(parts.operand(0)?, ty)?;
    let inst = Inst { d, a, b, c, e: body.carry(), imm: u64::from(keep), ..parts.inst(run) };
    body.emit(parts, Integer, inst);
    Ok(())
}
