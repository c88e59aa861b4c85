//! `mov`, with packing and unpacking, and address conversions (ISA "Data Movement and Conversion
//! Instructions: mov, cvta, isspacep, mapa, getctarank").

use super::body::Body;
use super::parts::Parts;
use super::types::{PRED, U32, U64};
use super::variables::timer;
use super::{Result, TRUE};
use crate::counters::Class;
use crate::exec::address::{LOCAL, PARAM, SHARED, Window};
use crate::exec::lanes::{binary, copy, logic, quaternary, unary};
use crate::exec::{Inst, special};
use crate::ptx::ast::{Kind, Operand, Type};

pub(super) fn decode<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    match parts.base {
        "mov" => mov(body, parts),
        "cvta" => cvta(body, parts),
        "isspacep" => isspacep(body, parts),
        "mapa" => mapa(body, parts),
        _ => rank(body, parts),
    }
}

fn mov<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let ty = parts.mods.ty()?;
    parts.count(2..=2)?;
    match (parts.operand(0)?, parts.operand(1)?) {
        (d, Operand::Vector(list)) => pack(body, parts, ty, d, list),
        (Operand::Vector(list), a) => unpack(body, parts, ty, list, a),
        (d, Operand::Name(name)) if timer(name).is_some() => {
            let (kind, bits) = timer(name).unwrap_or(("zero", 32));
            let d = body.destination(d, ty)?;
            let run = if kind == "timer" { special::global_timer } else { special::clock };
            let inst = if kind == "zero" {
                Inst { d, a: body.constant(0, 32), ..parts.inst(copy::<u32>()) }
            } else {
                Inst { d, imm: u64::from(bits), ..parts.inst(run) }
            };
            body.emit(parts, Class::Other, inst);
            Ok(())
        }
        (d, a) if ty.kind == Kind::Pred => {
            let inst = Inst {
                a: body.source(a, PRED)?,
                d: body.destination(d, PRED)?,
                b: TRUE,
                ..parts.inst(logic(|a, b| a & b))
            };
            body.emit(parts, Class::Integer, inst);
            Ok(())
        }
        _ => {
            let run = match ty.bits {
                128 => copy::<u128>(),
                64 => copy::<u64>(),
                _ => copy::<u32>(),
            };
            parts.map(body, Class::Integer, run, ty, &[ty])
        }
    }
}

/// `mov.b64 d, {a, b}`: the first is the lowest.
fn pack<'a>(
    body: &mut Body<'_, 'a>,
    parts: &mut Parts<'_, 'a>,
    ty: Type,
    d: &Operand<'a>,
    list: &[Operand<'a>],
) -> Result<()> {
    let part = Type { kind: Kind::Bits, bits: ty.bits / list.len().max(1) as u32 };
    let mut slots = [0; 4];
    for (slot, operand) in slots.iter_mut().zip(list) {
        *slot = body.source(operand, part)?;
    }
    let run = match (ty.bits, list.len()) {
        (32, 2) => binary(|a: u16, b: u16| u32::from(a) | u32::from(b) << 16),
        (64, 2) => binary(|a: u32, b: u32| u64::from(a) | u64::from(b) << 32),
        (128, 2) => binary(|a: u64, b: u64| u128::from(a) | u128::from(b) << 64),
        (16, 2) => binary(|a: u8, b: u8| u16::from(a) | u16::from(b) << 8),
        (32, 4) => quaternary(|a: u8, b: u8, c: u8, d: u8| u32::from_le_bytes([a, b, c, d])),
        (64, 4) => quaternary(|a: u16, b: u16, c: u16, d: u16| {
            u64::from(a) | u64::from(b) << 16 | u64::from(c) << 32 | u64::from(d) << 48
        }),
        (128, 4) => quaternary(|a: u32, b: u32, c: u32, d: u32| {
            u128::from(a) | u128::from(b) << 32 | u128::from(c) << 64 | u128::from(d) << 96
        }),
        (bits, n) => return Err(format!("packing {n} registers into {bits} bits")),
    };
    let [a, b, c, e] = slots;
    let inst = Inst { d: body.destination(d, ty)?, a, b, c, e, ..parts.inst(run) };
    body.emit(parts, Class::Integer, inst);
    Ok(())
}

fn unpack<'a>(
    body: &mut Body<'_, 'a>,
    parts: &mut Parts<'_, 'a>,
    ty: Type,
    list: &[Operand<'a>],
    a: &Operand<'a>,
) -> Result<()> {
    let part = Type { kind: Kind::Bits, bits: ty.bits / list.len().max(1) as u32 };
    let a = body.source(a, ty)?;
    let runs = match (ty.bits, list.len()) {
        (32, 2) => vec![unary(|a: u32| a as u16), unary(|a: u32| (a >> 16) as u16)],
        (64, 2) => vec![unary(|a: u64| a as u32), unary(|a: u64| (a >> 32) as u32)],
        (128, 2) => vec![unary(|a: u128| a as u64), unary(|a: u128| (a >> 64) as u64)],
        (16, 2) => vec![unary(|a: u16| a as u8), unary(|a: u16| (a >> 8) as u8)],
        (32, 4) => vec![
            unary(|a: u32| a as u8),
            unary(|a: u32| (a >> 8) as u8),
            unary(|a: u32| (a >> 16) as u8),
            unary(|a: u32| (a >> 24) as u8),
        ],
        (64, 4) => vec![
            unary(|a: u64| a as u16),
            unary(|a: u64| (a >> 16) as u16),
            unary(|a: u64| (a >> 32) as u16),
            unary(|a: u64| (a >> 48) as u16),
        ],
        (128, 4) => vec![
            unary(|a: u128| a as u32),
            unary(|a: u128| (a >> 32) as u32),
            unary(|a: u128| (a >> 64) as u32),
            unary(|a: u128| (a >> 96) as u32),
        ],
        (bits, n) => return Err(format!("unpacking {bits} bits into {n} registers")),
    };
    // Parts are narrower than the whole, so no destination is the source.
    for (run, operand) in runs.into_iter().zip(list) {
        if *operand == Operand::Name("_") {
            continue;
        }
        let inst = Inst { d: body.destination(operand, part)?, a, ..parts.inst(run) };
        body.emit(parts, Class::Integer, inst);
    }
    Ok(())
}

const SPACES: [(&str, Option<u64>); 7] = [
    ("global", None),
    ("const", None),
    ("shared", Some(SHARED)),
    ("shared::cta", Some(SHARED)),
    ("shared::cluster", Some(SHARED)),
    ("local", Some(LOCAL)),
    ("param", Some(PARAM)),
];

fn cvta<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let to = parts.mods.take("to");
    parts.mods.take("param::entry");
    let window = parts.mods.choose(&SPACES).ok_or("a state space is missing")?;
    let ty = parts.mods.ty()?;
    if ty != U64 {
        return Err("addresses have 64 bits".to_string());
    }
    parts.count(2..=2)?;
    let a = body.source(parts.operand(1)?, ty)?;
    let d = body.destination(parts.operand(0)?, ty)?;
    let inst = match window {
        None => Inst { d, a, ..parts.inst(copy::<u64>()) },
        Some(base) => {
            let run = if to {
                binary(|a: u64, b: u64| a.wrapping_sub(b))
            } else {
                binary(|a: u64, b: u64| a.wrapping_add(b))
            };
            Inst { d, a, b: body.constant(u128::from(base), 64), ..parts.inst(run) }
        }
    };
    body.emit(parts, Class::Integer, inst);
    Ok(())
}

fn isspacep<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let windows = [
        ("global", Window::Global),
        ("const", Window::Global),
        ("shared", Window::Shared),
        ("shared::cta", Window::Shared),
        ("shared::cluster", Window::Shared),
        ("local", Window::Local),
        ("param", Window::Param),
        ("param::entry", Window::Param),
    ];
    let window = parts.mods.choose(&windows).ok_or("a state space is missing")?;
    parts.count(2..=2)?;
    let a = body.source(parts.operand(1)?, U64)?;
    let d = body.destination(parts.operand(0)?, PRED)?;
    let inst = Inst { d, a, imm: window as u64, ..parts.inst(special::is_in_window) };
    body.emit(parts, Class::Integer, inst);
    Ok(())
}

/// `mapa{.shared::cluster}.{u32,u64} d, a, b`: the place of `a` in the shared memory of the block of rank
/// `b`.
fn mapa<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let window = parts.mods.take("shared::cluster");
    let ty = parts.mods.ty()?;
    let run = match (window, ty.bits) {
        (_, 32) => binary(|a: u32, b: u32| (b.wrapping_add(1)) << 24 | a & 0xff_ffff),
        (true, _) => binary(|a: u64, b: u32| u64::from(b.wrapping_add(1)) << 24 | a & 0xff_ffff),
        (false, _) => binary(|a: u64, b: u32| SHARED | u64::from(b.wrapping_add(1)) << 24 | a & 0xff_ffff),
    };
    parts.map(body, Class::Integer, run, ty, &[ty, U32])
}

/// `getctarank{.shared::cluster}.{u32,u64} d, a`.
fn rank<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    parts.mods.take("shared::cluster");
    let ty = parts.mods.ty()?;
    let own = body.special(crate::code::Special::ClusterCtarank, 32);
    let a = body.source(parts.operand(1)?, ty)?;
    let d = body.destination(parts.operand(0)?, U32)?;
    let run = match ty.bits {
        32 => binary(|a: u32, own: u32| if a >> 24 == 0 { own } else { (a >> 24) - 1 }),
        _ => binary(|a: u64, own: u32| if a >> 24 & 255 == 0 { own } else { (a >> 24 & 255) as u32 - 1 }),
    };
    let inst = Inst { d, a, b: own, ..parts.inst(run) };
    body.emit(parts, Class::Integer, inst);
    Ok(())
}
