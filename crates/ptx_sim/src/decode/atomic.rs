//! `atom` and `red` (ISA "Parallel Synchronization and Communication Instructions: atom, red").

use super::body::Body;
use super::parts::Parts;
use super::{Result, float, memory};
use crate::counters::Class;
use crate::exec::address::flag;
use crate::exec::atomic::{apply, apply_vector};
use crate::exec::global::{GENERIC, GLOBAL, SHARED};
use crate::exec::{Handler, Inst};
use crate::formats::add_half;
use crate::ptx::ast::{Kind, Operand, Type};

/// The same operation in each window an atomic can reach.
macro_rules! windows {
    ($window:expr, $e:ty, $s:ty, $f:expr) => {
        match $window {
            GLOBAL => apply::<GLOBAL, $e, $s, _>($f),
            SHARED => apply::<SHARED, $e, $s, _>($f),
            _ => apply::<GENERIC, $e, $s, _>($f),
        }
    };
}

fn f32_of(bits: u32) -> f32 {
    f32::from_bits(bits)
}

/// The sum in global memory, where subnormals are flushed before and after.
fn add_flushing(old: u32, value: u32) -> u32 {
    let sum = float::flush(f32_of(old)) + float::flush(f32_of(value));
    float::flush(float::canonical(sum)).to_bits()
}

fn operation(name: &str, ty: Type, window: u8) -> Option<Handler> {
    macro_rules! bits {
        ($t:ty, $signed:ty, $slot:ty) => {
            match name {
                "and" => windows!(window, $t, $slot, |old: $t, b: $t, _: $t| old & b),
                "or" => windows!(window, $t, $slot, |old: $t, b: $t, _: $t| old | b),
                "xor" => windows!(window, $t, $slot, |old: $t, b: $t, _: $t| old ^ b),
                "exch" => windows!(window, $t, $slot, |_: $t, b: $t, _: $t| b),
                "cas" => windows!(window, $t, $slot, |old: $t, b: $t, c: $t| if old == b { c } else { old }),
                "add" => windows!(window, $t, $slot, |old: $t, b: $t, _: $t| old.wrapping_add(b)),
                "inc" => {
                    windows!(window, $t, $slot, |old: $t, b: $t, _: $t| if old >= b { 0 } else { old + 1 })
                }
                "dec" => {
                    windows!(window, $t, $slot, |old: $t, b: $t, _: $t| if old == 0 || old > b {
                        b
                    } else {
                        old - 1
                    })
                }
                "min" if ty.kind == Kind::Signed => {
                    windows!(window, $t, $slot, |old: $t, b: $t, _: $t| (old as $signed).min(b as $signed)
                        as $t)
                }
                "max" if ty.kind == Kind::Signed => {
                    windows!(window, $t, $slot, |old: $t, b: $t, _: $t| (old as $signed).max(b as $signed)
                        as $t)
                }
                "min" => windows!(window, $t, $slot, |old: $t, b: $t, _: $t| old.min(b)),
                "max" => windows!(window, $t, $slot, |old: $t, b: $t, _: $t| old.max(b)),
                _ => return None,
            }
        };
    }
    Some(match (ty.kind, ty.bits, name) {
        (Kind::Float, 32, "add") if window == GLOBAL => {
            apply::<GLOBAL, u32, u32, _>(|old: u32, b: u32, _: u32| add_flushing(old, b))
        }
        (Kind::Float, 32, "add") => {
            windows!(window, u32, u32, |old: u32, b: u32, _: u32| {
                float::canonical(f32_of(old) + f32_of(b)).to_bits()
            })
        }
        (Kind::Float, 64, "add") => {
            windows!(window, u64, u64, |old: u64, b: u64, _: u64| (f64::from_bits(old) + f64::from_bits(b))
                .to_bits())
        }
        (Kind::Float, 16, "add") => {
            windows!(window, u16, u32, |old: u16, b: u16, _: u16| add_half(old, b, false))
        }
        (Kind::Bf16, 16, "add") => {
            windows!(window, u16, u32, |old: u16, b: u16, _: u16| add_half(old, b, true))
        }
        (Kind::F16x2, _, "add") => windows!(window, u32, u32, |old: u32, b: u32, _: u32| {
            u32::from(add_half(old as u16, b as u16, false))
                | u32::from(add_half((old >> 16) as u16, (b >> 16) as u16, false)) << 16
        }),
        (Kind::Bf16x2, _, "add") => windows!(window, u32, u32, |old: u32, b: u32, _: u32| {
            u32::from(add_half(old as u16, b as u16, true))
                | u32::from(add_half((old >> 16) as u16, (b >> 16) as u16, true)) << 16
        }),
        (Kind::Float | Kind::Bf16 | Kind::F16x2 | Kind::Bf16x2 | Kind::Pred, ..) => return None,
        (Kind::Bits, _, "add" | "min" | "max" | "inc" | "dec") => return None,
        (_, 16, "cas") => {
            windows!(window, u16, u32, |old: u16, b: u16, c: u16| if old == b { c } else { old })
        }
        (_, 16, "exch") => windows!(window, u16, u32, |_: u16, b: u16, _: u16| b),
        (_, 32, _) => bits!(u32, i32, u32),
        (_, 64, _) => bits!(u64, i64, u64),
        _ => return None,
    })
}

pub(super) fn decode<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let returns = parts.base == "atom";
    // Without an ordering, `.relaxed` is meant.
    let mut flags = memory::ordering(parts, true, true) | flag::STRONG;
    let window = memory::space(parts);
    if !matches!(window, GLOBAL | SHARED | GENERIC) {
        return Err("atomic operations are on global or shared memory".to_string());
    }
    memory::drop_cache_hints(parts);
    let policy = parts.mods.take("L2::cache_hint");
    if let Some(elements) = parts.mods.choose(&[("v2", 2), ("v4", 4)]) {
        return vector(body, parts, (window, flags), policy, elements);
    }
    parts.mods.take("noftz");
    let name = parts.mods.first().ok_or("the operation is missing")?;
    let ty = parts.mods.ty()?;
    let run = operation(name, ty, window).ok_or_else(|| format!("`{}.{name}` of this type", parts.base))?;
    let first = usize::from(returns);
    let operands = first + if name == "cas" { 3 } else { 2 } + usize::from(policy);
    parts.count(operands..=operands)?;
    let (a, imm, narrow, _) = body.address(parts.operand(first)?)?;
    if narrow {
        if window != SHARED {
            return Err("global addresses have 64 bits".to_string());
        }
        flags |= flag::NARROW;
    }
    let b = body.source(parts.operand(first + 1)?, ty)?;
    let c = if name == "cas" { body.source(parts.operand(first + 2)?, ty)? } else { b };
    let d = match parts.operand(0)? {
        Operand::Name("_") => b,
        operand if returns => {
            flags |= flag::RESULT;
            body.destination(operand, ty)?
        }
        _ => b,
    };
    let inst = Inst { d, a, b, c, imm, target: flags, ..parts.inst(run) };
    body.emit(parts, Class::Atomic, inst);
    Ok(())
}

/// `red.add` of two or four f32 in global memory.
fn vector<'a>(
    body: &mut Body<'_, 'a>,
    parts: &mut Parts<'_, 'a>,
    (window, flags): (u8, u32),
    policy: bool,
    elements: usize,
) -> Result<()> {
    let name = parts.mods.first().ok_or("the operation is missing")?;
    let ty = parts.mods.ty()?;
    let run = match (parts.base, name, ty.kind, ty.bits, window) {
        ("red", "add", Kind::Float, 32, GLOBAL) => apply_vector::<GLOBAL, _>(add_flushing),
        ("red", "add", Kind::Float, 32, GENERIC) => apply_vector::<GENERIC, _>(add_flushing),
        _ => return Err(format!("`{}.{name}` of vectors of this type", parts.base)),
    };
    let operands = 2 + usize::from(policy);
    parts.count(operands..=operands)?;
    let (a, imm, narrow, _) = body.address(parts.operand(0)?)?;
    if narrow {
        return Err("global addresses have 64 bits".to_string());
    }
    let list = match parts.operand(1)? {
        Operand::Vector(list) if list.len() == elements => list.clone(),
        _ => return Err(format!("a vector of {elements} registers is expected")),
    };
    let slots = list.iter().map(|operand| body.source(operand, ty)).collect::<Result<Vec<_>>>()?;
    let b = body.list(&slots) as u32;
    let inst = Inst { d: slots[0], a, b, e: elements as u32, imm, target: flags, ..parts.inst(run) };
    body.emit(parts, Class::Atomic, inst);
    Ok(())
}
