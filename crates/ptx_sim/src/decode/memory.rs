//! `ld`, `st` and hints (ISA "Data Movement and Conversion Instructions: ld, ld.global.nc, ldu, st, prefetch,
//! discard, applypriority, createpolicy").

use super::body::Body;
use super::parts::Parts;
use super::types::U64;
use super::variables::Symbol;
use super::{Result, load_class};
use crate::counters::Class;
use crate::exec::address::flag;
use crate::exec::global::{self, GENERIC, GLOBAL, LOCAL, PARAM, SHARED, load, store};
use crate::exec::{Handler, Inst, special};
use crate::ptx::ast::{Kind, Operand, Type};

pub(super) fn decode<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    match parts.base {
        "ld" | "ldu" => access(body, parts, true),
        "st" if parts.mods.take("async") => super::bulk::store_value(body, parts),
        "st" => access(body, parts, false),
        "createpolicy" => policy(body, parts),
        "discard" => discard(body, parts),
        _ => hint(body, parts),
    }
}

/// Takes modifiers that only guide caches.
pub(super) fn drop_cache_hints(parts: &mut Parts<'_, '_>) {
    const NAMES: [&str; 18] = [
        "ca",
        "cg",
        "cs",
        "lu",
        "cv",
        "wb",
        "wt",
        "nc",
        "L1::evict_normal",
        "L1::evict_unchanged",
        "L1::evict_first",
        "L1::evict_last",
        "L1::no_allocate",
        "L2::evict_normal",
        "L2::evict_first",
        "L2::evict_last",
        "L2::64B",
        "L2::128B",
    ];
    parts.mods.drop_all(|m| NAMES.contains(&m) || m == "L2::256B");
}

/// Takes memory ordering and scope, and gives the flags they mean.
pub(super) fn ordering(parts: &mut Parts<'_, '_>, reads: bool, writes: bool) -> u32 {
    let mut flags = 0;
    if parts.mods.take("volatile") || parts.mods.take("relaxed") || parts.mods.take("mmio") {
        flags |= flag::STRONG;
    }
    if parts.mods.take("acquire") {
        flags |= flag::STRONG | if reads { flag::ACQUIRE } else { 0 };
    }
    if parts.mods.take("release") {
        flags |= flag::STRONG | if writes { flag::RELEASE } else { 0 };
    }
    if parts.mods.take("acq_rel") {
        flags |= flag::STRONG | flag::ACQUIRE | flag::RELEASE;
    }
    parts.mods.take("weak");
    for scope in ["cta", "cluster"] {
        if parts.mods.take(scope) {
            flags |= flag::NEAR;
        }
    }
    for scope in ["gpu", "sys"] {
        parts.mods.take(scope);
    }
    flags
}

/// Takes the state space.
pub(super) fn space(parts: &mut Parts<'_, '_>) -> u8 {
    let table = [
        ("global", GLOBAL),
        ("const", GLOBAL),
        ("shared", SHARED),
        ("shared::cta", SHARED),
        ("shared::cluster", SHARED),
        ("local", LOCAL),
        ("param", PARAM),
        ("param::entry", PARAM),
        ("param::func", LOCAL),
    ];
    parts.mods.choose(&table).unwrap_or(GENERIC)
}

macro_rules! in_window {
    ($make:ident, $window:expr, $f:expr) => {
        match $window {
            GLOBAL => $make::<GLOBAL, _, _, _>($f),
            SHARED => $make::<SHARED, _, _, _>($f),
            LOCAL => $make::<LOCAL, _, _, _>($f),
            PARAM => $make::<PARAM, _, _, _>($f),
            _ => $make::<GENERIC, _, _, _>($f),
        }
    };
}

/// The handler that loads elements of a type into registers of some width.
fn loader(window: u8, ty: Type, register: u32) -> Result<Handler> {
    let signed = ty.kind == Kind::Signed;
    Ok(match (ty.bits, register, signed) {
        (8, 64, true) => in_window!(load, window, |v: u8| v as i8 as u64),
        (8, 64, false) => in_window!(load, window, |v: u8| u64::from(v)),
        (16, 64, true) => in_window!(load, window, |v: u16| v as i16 as u64),
        (16, 64, false) => in_window!(load, window, |v: u16| u64::from(v)),
        (32, 64, true) => in_window!(load, window, |v: u32| v as i32 as u64),
        (32, 64, false) => in_window!(load, window, |v: u32| u64::from(v)),
        (64, 64, _) => in_window!(load, window, |v: u64| v),
        (128, 128, _) => in_window!(load, window, |v: u128| v),
        (8, 32, true) => in_window!(load, window, |v: u8| v as i8 as u32),
        (8, 16, true) => in_window!(load, window, |v: u8| u32::from(v as i8 as u16)),
        (8, 8..=32, _) => in_window!(load, window, |v: u8| u32::from(v)),
        (16, 32, true) => in_window!(load, window, |v: u16| v as i16 as u32),
        (16, 16..=32, _) => in_window!(load, window, |v: u16| u32::from(v)),
        (32, 32, _) => in_window!(load, window, |v: u32| v),
        (bits, register, _) => return Err(format!("loading {bits} bits into a register of {register}")),
    })
}

/// The handler that stores elements of a type from registers of some width.
fn storer(window: u8, ty: Type, register: u32) -> Result<Handler> {
    Ok(match (ty.bits, register) {
        (8, 64) => in_window!(store, window, |v: u64| v as u8),
        (16, 64) => in_window!(store, window, |v: u64| v as u16),
        (32, 64) => in_window!(store, window, |v: u64| v as u32),
        (64, 64) => in_window!(store, window, |v: u64| v),
        (128, 128) => in_window!(store, window, |v: u128| v),
        (8, 8..=32) => in_window!(store, window, |v: u32| v as u8),
        (16, 16..=32) => in_window!(store, window, |v: u32| v as u16),
        (32, 32) => in_window!(store, window, |v: u32| v),
        (bits, register) => return Err(format!("storing {bits} bits from a register of {register}")),
    })
}

fn access<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>, reads: bool) -> Result<()> {
    let mut flags = ordering(parts, reads, !reads);
    let mut window = space(parts);
    drop_cache_hints(parts);
    let policy = parts.mods.take("L2::cache_hint");
    let vector = parts.mods.choose(&[("v2", 2), ("v4", 4), ("v8", 8)]).unwrap_or(1usize);
    let ty = parts.mods.ty()?;
    let operands = if policy { 3 } else { 2 };
    parts.count(operands..=operands)?;
    let (at, data) = if reads { (1, 0) } else { (0, 1) };
    let (a, imm, narrow, symbol) = body.address(parts.operand(at)?)?;
    match symbol {
        // Parameters of device functions and of calls are in local memory.
        Some(Symbol::Param(..)) if window == PARAM => window = LOCAL,
        Some(Symbol::EntryParam(_)) if window != PARAM => {
            return Err("a kernel parameter is read by `ld.param`".to_string());
        }
        None if window == PARAM && !body.is_entry => window = LOCAL,
        _ => {}
    }
    if window == PARAM && !reads {
        return Err("kernel parameters cannot be written".to_string());
    }
    if narrow {
        if window == GLOBAL || window == GENERIC {
            return Err("global addresses have 64 bits".to_string());
        }
        flags |= flag::NARROW;
    }
    let list: Vec<Operand<'a>> = match parts.operand(data)? {
        Operand::Vector(list) => list.clone(),
        one => vec![one.clone()],
    };
    if list.len() != vector {
        return Err(format!("{} registers where {vector} are expected", list.len()));
    }
    let mut slots = Vec::new();
    let mut width = ty.bits;
    for (i, operand) in list.iter().enumerate() {
        let (slot, has) =
            if reads { body.wide_destination(operand, ty)? } else { body.wide_source(operand, ty)? };
        // A sink has no width of its own.
        if *operand != Operand::Name("_")
            && !matches!(operand, Operand::Int(_) | Operand::F32(_) | Operand::F64(_))
        {
            if i > 0 && has.bits != width && width != ty.bits {
                return Err("registers of different widths".to_string());
            }
            width = has.bits;
        }
        slots.push(slot);
    }
    if width == 64 && ty.bits < 64 {
        // Constants and sinks were given slots of 32-bit lanes.
        for (slot, operand) in slots.iter_mut().zip(&list) {
            match operand {
                Operand::Int(v) => *slot = body.constant(*v as u128, 64),
                Operand::Name("_") => *slot = body.temporary(64),
                _ => {}
            }
        }
    }
    let run = if reads { loader(window, ty, width)? } else { storer(window, ty, width)? };
    let class = match (window, reads) {
        (SHARED, false) => Class::StoreShared,
        (GLOBAL | GENERIC, false) => Class::StoreGlobal,
        _ => load_class(window == SHARED, window == LOCAL || window == PARAM),
    };
    let b = if vector == 1 { 0 } else { body.list(&slots) as u32 };
    let inst = Inst { d: slots[0], a, b, e: vector as u32, imm, target: flags, ..parts.inst(run) };
    body.emit(parts, class, inst);
    Ok(())
}

/// Cache policies are opaque numbers here.
fn policy<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    parts
        .mods
        .drop_all(|m| ["fractional", "range", "cvt", "global", "b64"].contains(&m) || m.starts_with("L2::"));
    let d = body.destination(parts.operand(0)?, U64)?;
    let zero = body.constant(0, 64);
    let inst = Inst { d, a: zero, ..parts.inst(crate::exec::lanes::copy::<u64>()) };
    body.emit(parts, Class::Other, inst);
    Ok(())
}

/// `discard{.global}.L2 [a], 128`.
fn discard<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let window = space(parts);
    if !parts.mods.take("L2") || !matches!(window, GLOBAL | GENERIC) {
        return Err("only global memory is discarded, from L2".to_string());
    }
    parts.count(2..=2)?;
    if *parts.operand(1)? != Operand::Int(global::DISCARD.into()) {
        return Err(format!("{} bytes are discarded at a time", global::DISCARD));
    }
    let (a, imm, narrow, _) = body.address(parts.operand(0)?)?;
    if narrow {
        return Err("global addresses have 64 bits".to_string());
    }
    let inst = Inst { a, imm, ..parts.inst(global::discard) };
    body.emit(parts, Class::Other, inst);
    Ok(())
}

/// `prefetch`, `prefetchu`, `applypriority`: nothing happens.
fn hint<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    const NAMES: [&str; 10] = [
        "global",
        "local",
        "const",
        "param",
        "tensormap",
        "L1",
        "L2",
        "L2::evict_last",
        "L2::evict_normal",
        "L2::128B",
    ];
    parts.mods.drop_all(|m| NAMES.contains(&m));
    body.address(parts.operand(0)?)?;
    let inst = parts.inst(special::nothing);
    body.emit(parts, Class::Other, inst);
    Ok(())
}
