//! Barriers, fences, and instructions that pass values between lanes (ISA "Parallel Synchronization and
//! Communication Instructions").

use super::body::Body;
use super::parts::Parts;
use super::types::{PRED, U32};
use super::{Result, SCRATCH};
use crate::counters::Class;
use crate::exec::Inst;
use crate::exec::barrier::{self, kind};
use crate::exec::cluster;
use crate::exec::shuffle::{self, mode, poll};
use crate::ptx::ast::{Kind, Operand, Type};

pub(super) fn decode<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    match parts.base {
        "bar" if parts.mods.take("warp") => {
            parts.mods.take("sync");
            parts.count(1..=1)?;
            let inst = Inst { a: body.source(parts.operand(0)?, U32)?, ..parts.inst(barrier::warp_sync) };
            body.emit(parts, Class::Sync, inst);
            Ok(())
        }
        "barrier" if parts.mods.take("cluster") => cluster_barrier(body, parts),
        "bar" | "barrier" => barrier_instruction(body, parts),
        "membar" | "fence" => fence(body, parts),
        "shfl" => shfl(body, parts),
        "vote" => vote(body, parts),
        "match" => matching(body, parts),
        "redux" => redux(body, parts),
        "activemask" => {
            let ty = parts.mods.ty()?;
            parts.count(1..=1)?;
            let inst =
                Inst { d: body.destination(parts.operand(0)?, ty)?, ..parts.inst(shuffle::activemask) };
            body.emit(parts, Class::Warp, inst);
            Ok(())
        }
        _ => elect(body, parts),
    }
}

fn barrier_instruction<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    parts.mods.take("cta");
    let aligned = parts.base == "bar" || parts.mods.take("aligned");
    parts.mods.take("aligned");
    let mut imm = if aligned { kind::ALIGNED } else { 0 };
    let zero = body.constant(0, 32);
    let (mut d, mut c) = (SCRATCH, SCRATCH);
    let first;
    let action = parts.mods.choose(&[("sync", 0), ("arrive", kind::ARRIVE), ("red", kind::REDUCE)]);
    imm |= action.ok_or("`.sync`, `.arrive` or `.red` is missing")?;
    let mut operands = parts.operands.len();
    if imm & kind::REDUCE != 0 {
        let operation = parts.mods.choose(&[("popc", kind::POPC), ("and", kind::AND), ("or", kind::OR)]);
        let operation = operation.ok_or("the reduction is missing")?;
        imm |= operation;
        let ty = parts.mods.ty()?;
        if (operation == kind::POPC) != (ty.bits == 32) {
            return Err("the reduction and its type do not fit".to_string());
        }
        d = body.destination(parts.operand(0)?, ty)?;
        operands -= 1;
        let (slot, negated) = match parts.operand(operands)? {
            Operand::Not(name) => (body.predicate(name)?, true),
            other => (body.source(other, PRED)?, false),
        };
        c = slot;
        imm |= if negated { kind::NEGATED } else { 0 };
        operands -= 1;
        first = 1;
    } else {
        first = 0;
    }
    let a = match operands {
        0 => return Err("the barrier's number is missing".to_string()),
        _ => body.source(parts.operand(first)?, U32)?,
    };
    let b = match operands {
        1 => zero,
        2 => {
            imm |= kind::COUNTED;
            body.source(parts.operand(first + 1)?, U32)?
        }
        _ => return Err("too many operands".to_string()),
    };
    if imm & kind::ARRIVE != 0 && imm & kind::COUNTED == 0 {
        return Err("`.arrive` needs a thread count".to_string());
    }
    let inst = Inst { d, a, b, c, imm, ..parts.inst(barrier::barrier) };
    body.emit(parts, Class::Sync, inst);
    Ok(())
}

/// `barrier.cluster.{arrive,wait}{.relaxed,.release,.acquire}{.aligned}`
fn cluster_barrier<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let arrives = parts.mods.take("arrive");
    if !arrives && !parts.mods.take("wait") {
        return Err("`.arrive` or `.wait` is missing".to_string());
    }
    let mut imm = if parts.mods.take("aligned") { cluster::flag::ALIGNED } else { 0 };
    if arrives {
        imm |= if parts.mods.take("relaxed") { cluster::flag::RELAXED } else { 0 };
        parts.mods.take("release");
    } else {
        parts.mods.take("acquire");
    }
    parts.count(0..=0)?;
    let inst = Inst { imm, ..parts.inst(if arrives { cluster::arrive } else { cluster::wait }) };
    body.emit(parts, Class::Sync, inst);
    Ok(())
}

/// `fence.proxy.async{.space}`; the other proxies are the generic one here.
fn proxy_fence<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    const SPACES: [&str; 4] = ["global", "shared", "shared::cta", "shared::cluster"];
    let run = if parts.mods.take("async") {
        parts.mods.drop_all(|m| SPACES.contains(&m));
        parts.count(0..=0)?;
        barrier::proxy_fence
    } else if parts.mods.take("async::generic") {
        // Ordering by a barrier in the space that follows: how accesses through it are ordered is known here
        // anyway.
        parts.mods.drop_all(|m| {
            ["acquire", "release", "sync_restrict", "cluster"].contains(&m) || m.contains("shared::")
        });
        parts.count(0..=0)?;
        barrier::fence
    } else if parts.mods.take("alias") {
        parts.count(0..=0)?;
        barrier::fence
    } else if parts.mods.take("tensormap::generic") {
        // Tensor maps are read at issue, from where the generic proxy writes them.
        let acquires = parts.mods.take("acquire");
        if !acquires && !parts.mods.take("release") {
            return Err("`.acquire` or `.release` is missing".to_string());
        }
        parts.mods.drop_all(|m| ["cta", "cluster", "gpu", "sys"].contains(&m));
        let operands = if acquires { 2 } else { 0 };
        parts.count(operands..=operands)?;
        if acquires {
            body.address(parts.operand(0)?)?;
        }
        barrier::fence
    } else {
        return Err("this proxy fence is not supported".to_string());
    };
    let inst = parts.inst(run);
    body.emit(parts, Class::Sync, inst);
    Ok(())
}

fn fence<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    if parts.mods.take("proxy") {
        return proxy_fence(body, parts);
    }
    // Initialised mbarriers are visible to all who are ordered behind the fence, as any fence makes things.
    parts.mods.take("mbarrier_init");
    let is_near = parts.mods.take("cta") || parts.mods.take("cluster");
    const NAMES: [&str; 7] = ["gl", "sys", "sc", "acq_rel", "acquire", "release", "gpu"];
    parts.mods.drop_all(|m| NAMES.contains(&m));
    parts.count(0..=0)?;
    let inst = Inst { imm: u64::from(is_near), ..parts.inst(barrier::fence) };
    body.emit(parts, Class::Sync, inst);
    Ok(())
}

fn need_sync(parts: &mut Parts<'_, '_>) -> Result<()> {
    if parts.mods.take("sync") {
        Ok(())
    } else {
        Err(format!("`{}` without `.sync` is not supported", parts.base))
    }
}

fn shfl<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    need_sync(parts)?;
    let modes = [("up", mode::UP), ("down", mode::DOWN), ("bfly", mode::BFLY), ("idx", mode::IDX)];
    let mut imm = parts.mods.choose(&modes).ok_or("the mode is missing")?;
    let ty = parts.mods.ty()?;
    parts.count(5..=5)?;
    let (d, target) = match parts.operand(0)? {
        Operand::Pair(d, p) => {
            imm |= mode::PREDICATE;
            let p = body.destination(&Operand::Name(p), PRED)?;
            (body.destination(&Operand::Name(d), ty)?, p)
        }
        other => (body.destination(other, ty)?, SCRATCH),
    };
    let inst = Inst {
        d,
        a: body.source(parts.operand(1)?, ty)?,
        b: body.source(parts.operand(2)?, U32)?,
        c: body.source(parts.operand(3)?, U32)?,
        e: body.source(parts.operand(4)?, U32)?,
        imm,
        target,
        ..parts.inst(shuffle::shuffle)
    };
    body.emit(parts, Class::Warp, inst);
    Ok(())
}

fn vote<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    need_sync(parts)?;
    let kinds = [("all", poll::ALL), ("any", poll::ANY), ("uni", poll::UNI), ("ballot", poll::BALLOT)];
    let mut imm = parts.mods.choose(&kinds).ok_or("the kind of vote is missing")?;
    let ty = parts.mods.ty()?;
    if (imm == poll::BALLOT) == (ty.kind == Kind::Pred) {
        return Err("the vote and its type do not fit".to_string());
    }
    parts.count(3..=3)?;
    let a = match parts.operand(1)? {
        Operand::Not(name) => {
            imm |= poll::NEGATED;
            body.predicate(name)?
        }
        other => body.source(other, PRED)?,
    };
    let e = body.source(parts.operand(2)?, U32)?;
    let inst = Inst { d: body.destination(parts.operand(0)?, ty)?, a, e, imm, ..parts.inst(shuffle::vote) };
    body.emit(parts, Class::Warp, inst);
    Ok(())
}

fn matching<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let mut imm = parts.mods.choose(&[("any", 0), ("all", 1)]).ok_or("`.any` or `.all` is missing")?;
    need_sync(parts)?;
    let ty = parts.mods.ty()?;
    parts.count(3..=3)?;
    let (d, target) = match parts.operand(0)? {
        Operand::Pair(d, p) => {
            imm |= 2;
            (body.destination(&Operand::Name(d), U32)?, body.destination(&Operand::Name(p), PRED)?)
        }
        other => (body.destination(other, U32)?, SCRATCH),
    };
    let run = if ty.bits == 64 { shuffle::matching::<u64>() } else { shuffle::matching::<u32>() };
    let a = body.source(parts.operand(1)?, ty)?;
    let e = body.source(parts.operand(2)?, U32)?;
    let inst = Inst { d, a, e, imm, target, ..parts.inst(run) };
    body.emit(parts, Class::Warp, inst);
    Ok(())
}

fn redux<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    need_sync(parts)?;
    let name = parts.mods.first().ok_or("the operation is missing")?;
    let ty = parts.mods.ty()?;
    let run = match (name, ty.kind) {
        ("add", _) => shuffle::redux(|a: u32, b: u32| a.wrapping_add(b)),
        ("min", Kind::Signed) => shuffle::redux(|a: i32, b: i32| a.min(b)),
        ("max", Kind::Signed) => shuffle::redux(|a: i32, b: i32| a.max(b)),
        ("min", Kind::Unsigned) => shuffle::redux(|a: u32, b: u32| a.min(b)),
        ("max", Kind::Unsigned) => shuffle::redux(|a: u32, b: u32| a.max(b)),
        ("and", Kind::Bits) => shuffle::redux(|a: u32, b: u32| a & b),
        ("or", Kind::Bits) => shuffle::redux(|a: u32, b: u32| a | b),
        ("xor", Kind::Bits) => shuffle::redux(|a: u32, b: u32| a ^ b),
        _ => return Err(format!("`redux.sync.{name}` of this type")),
    };
    if ty.bits != 32 {
        return Err("`redux.sync` is on 32 bits".to_string());
    }
    parts.count(3..=3)?;
    let d = body.destination(parts.operand(0)?, ty)?;
    let a = body.source(parts.operand(1)?, ty)?;
    let e = body.source(parts.operand(2)?, U32)?;
    let inst = Inst { d, a, e, ..parts.inst(run) };
    body.emit(parts, Class::Warp, inst);
    Ok(())
}

/// `elect.sync d|p, membermask`
fn elect<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    need_sync(parts)?;
    parts.count(2..=2)?;
    let Operand::Pair(d, p) = parts.operand(0)? else {
        return Err("two destinations are needed".to_string());
    };
    let word = Type { kind: Kind::Bits, bits: 32 };
    let d = body.destination(&Operand::Name(d), word)?;
    let target = body.destination(&Operand::Name(p), PRED)?;
    let inst = Inst { d, e: body.source(parts.operand(1)?, U32)?, target, ..parts.inst(shuffle::elect) };
    body.emit(parts, Class::Warp, inst);
    Ok(())
}
