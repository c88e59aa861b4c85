//! `mbarrier` and `cp.async.mbarrier.arrive` (ISA "Parallel Synchronization and Communication Instructions:
//! mbarrier").

use super::Result;
use super::body::Body;
use super::parts::Parts;
use super::types::{PRED, U32, U64};
use crate::counters::Class;
use crate::exec::address::flag;
use crate::exec::mbarrier::{self, kind};
use crate::exec::{Handler, Inst, asynchronous};
use crate::ptx::ast::{Kind, Operand, Type};

const B64: Type = Type { kind: Kind::Bits, bits: 64 };

pub(super) fn decode<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let name = parts.mods.first().ok_or("the operation is missing")?;
    if parts.mods.ty()? != B64 {
        return Err("an mbarrier has type .b64".to_string());
    }
    match name {
        "init" => {
            space(parts, false)?;
            parts.count(2..=2)?;
            let b = body.source(parts.operand(1)?, U32)?;
            emit(body, parts, 0, mbarrier::init, |inst| inst.b = b)
        }
        "inval" => {
            space(parts, false)?;
            parts.count(1..=1)?;
            emit(body, parts, 0, mbarrier::inval, |_| {})
        }
        "arrive" => arrive(body, parts, kind::ARRIVE),
        "arrive_drop" => arrive(body, parts, kind::ARRIVE | kind::DROP),
        "expect_tx" => transact(body, parts, kind::EXPECT),
        "complete_tx" => transact(body, parts, kind::COMPLETE),
        "test_wait" => wait(body, parts, 0),
        "try_wait" => wait(body, parts, kind::TRY),
        "pending_count" => parts.map(body, Class::Sync, mbarrier::pending_count, U32, &[B64]),
        other => Err(format!("`mbarrier.{other}` is not supported")),
    }
}

/// Takes the state space, or none for a generic address; with `remote`, another block's shared memory is
/// possible.
fn space(parts: &mut Parts<'_, '_>, remote: bool) -> Result<u32> {
    match parts.mods.choose(&[("shared", 0), ("shared::cta", 0), ("shared::cluster", kind::REMOTE)]) {
        Some(kind::REMOTE) if !remote => Err("this operation is on the block's own mbarriers".to_string()),
        found => Ok(found.unwrap_or(0)),
    }
}

/// Takes ordering and scope.
fn ordering(parts: &mut Parts<'_, '_>, strong: &str) -> u32 {
    let relaxed = parts.mods.take("relaxed");
    parts.mods.take(strong);
    let _ = parts.mods.take("cta") || parts.mods.take("cluster");
    if relaxed { kind::RELAXED } else { 0 }
}

/// Adds an instruction on the mbarrier that operand `at` names.
fn emit<'a>(
    body: &mut Body<'_, 'a>,
    parts: &mut Parts<'_, 'a>,
    at: usize,
    run: Handler,
    fill: impl FnOnce(&mut Inst),
) -> Result<()> {
    let (a, imm, narrow, _) = body.address(parts.operand(at)?)?;
    let target = if narrow { flag::NARROW } else { 0 };
    let mut inst = Inst { a, imm, target, ..parts.inst(run) };
    fill(&mut inst);
    body.emit(parts, Class::Sync, inst);
    Ok(())
}

/// `mbarrier.arrive{.expect_tx}{.noComplete}{.sem.scope}{.space}.b64 {state | _,} [a] {, count | bytes}`
fn arrive<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>, what: u32) -> Result<()> {
    let expects = parts.mods.take("expect_tx");
    let no_complete = parts.mods.take("noComplete");
    let mut e = what | ordering(parts, "release") | space(parts, true)?;
    e |= if expects { kind::EXPECT } else { 0 } | if no_complete { kind::NO_COMPLETE } else { 0 };
    // The state may be left out where it cannot be had.
    let first = usize::from(!matches!(parts.operand(0)?, Operand::Address(..)));
    parts.count(first + 1..=first + 2)?;
    let mut d = 0;
    if first == 1 && *parts.operand(0)? != Operand::Name("_") {
        if e & kind::REMOTE != 0 {
            return Err("an arrival at another block's mbarrier gives no state".to_string());
        }
        d = body.destination(parts.operand(0)?, B64)?;
        e |= kind::STATE;
    }
    let one = body.constant(1, 32);
    let operand = match parts.operands.get(first + 1) {
        Some(operand) => Some(body.source(operand, U32)?),
        None if expects => return Err("the number of bytes is missing".to_string()),
        None if no_complete => return Err("`.noComplete` needs a count".to_string()),
        None => None,
    };
    let (b, c) = if expects { (one, operand.unwrap_or(one)) } else { (operand.unwrap_or(one), one) };
    emit(body, parts, first, mbarrier::arrive, |inst| (inst.d, inst.b, inst.c, inst.e) = (d, b, c, e))
}

/// `mbarrier.{expect_tx,complete_tx}{.relaxed.scope}{.space}.b64 [a], bytes`
fn transact<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>, what: u32) -> Result<()> {
    let e = what | ordering(parts, "relaxed") | space(parts, true)?;
    parts.count(2..=2)?;
    let c = body.source(parts.operand(1)?, U32)?;
    emit(body, parts, 0, mbarrier::arrive, |inst| (inst.b, inst.c, inst.e) = (c, c, e))
}

/// `mbarrier.{test_wait,try_wait}{.parity}{.sem.scope}{.space}.b64 p, [a], state | parity {, time}`
fn wait<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>, what: u32) -> Result<()> {
    let parity = parts.mods.take("parity");
    let e = what | ordering(parts, "acquire") | if parity { kind::PARITY } else { 0 };
    space(parts, false)?;
    parts.count(3..=if what == kind::TRY { 4 } else { 3 })?;
    let d = body.destination(parts.operand(0)?, PRED)?;
    let b = body.source(parts.operand(2)?, if parity { U32 } else { U64 })?;
    // How long to sleep is a hint.
    if let Some(time) = parts.operands.get(3) {
        body.source(time, U32)?;
    }
    emit(body, parts, 1, mbarrier::wait, |inst| (inst.d, inst.b, inst.e) = (d, b, e))
}

/// `cp.async.mbarrier.arrive{.noinc}{.space}.b64 [a]`
pub(super) fn copy_arrive<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    if !parts.mods.take("arrive") || parts.mods.ty()? != B64 {
        return Err("only `cp.async.mbarrier.arrive.b64` exists".to_string());
    }
    let e = u32::from(parts.mods.take("noinc"));
    space(parts, false)?;
    parts.count(1..=1)?;
    emit(body, parts, 0, asynchronous::arrive, |inst| inst.e = e)
}
