//! `cp.async` (ISA "Data Movement and Conversion Instructions: cp.async").
//!
//! A copy may read its source and write its destination at any time from its issue to the wait that covers
//! it. When exactly is drawn from the seed. Until the issuing thread has waited, nobody may touch the
//! destination: its bytes are marked in the bookkeeping of shared memory, whether or not they have landed.
//!
//! Copies that an mbarrier shall track move from the warp to the engine of the cluster, with the arrival that
//! they trigger.

use super::address::addresses;
use super::global::{locate, sectors};
use super::shared::block_of;
use super::{Ctx, Flow, Inst, Mask, lanes_of};
use crate::engine::{land_small, read_small};
use crate::fault::FaultKind;
use crate::state::operations::{Operation, SmallCopy, SmallProgress, Work};
use crate::state::race::Access;

/// The source-size operand in `c` is given; in `inst.imm2` terms, bit 0 of `inst.d`.
pub(crate) const SIZED: u32 = 1;
/// The operand in `c` is an ignore-source predicate.
pub(crate) const IGNORABLE: u32 = 2;

/// `cp.async.{ca,cg}.shared.global [a], [b], cp-size{, src-size}`: destination in `a` + `imm` (flags in
/// `target`), source in `b` + `e`, size in the low bits of `d` (see [`SIZED`]), source size or predicate in
/// `c`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn copy(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    let bytes = inst.d >> 2;
    let mut valid = [bytes; 32];
    // SAFETY: the decoder gives an address slot in `a`, 64-bit lanes in `b`, and in `c` what `d` says.
    let (to, from) = unsafe {
        if inst.d & SIZED != 0 {
            valid = ctx.read::<u32>(inst.c);
        } else if inst.d & IGNORABLE != 0 {
            let ignored = ctx.predicate(inst.c);
            valid = std::array::from_fn(|lane| if ignored >> lane & 1 != 0 { 0 } else { bytes });
        }
        (addresses(ctx, inst), ctx.read::<u64>(inst.b).map(|a| a.wrapping_add(inst.e as i32 as u64)))
    };
    if let Some(lane) = lanes_of(ctx.exec).find(|&lane| valid[lane] > bytes) {
        let detail = format!("source size {} of a {bytes}-byte copy", valid[lane]);
        return ctx.stop(FaultKind::InvalidOperand, 1 << lane, detail);
    }
    // Lanes that read nothing may name any source.
    let all = ctx.exec;
    let reading = lanes_of(all).filter(|&lane| valid[lane] > 0).fold(0, |m: Mask, lane| m | 1 << lane);
    if reading != 0 {
        ctx.exec = reading;
        if let Some(flow) = ctx.misaligned(&from, bytes, "asynchronous load") {
            return flow;
        }
        // The bytes that count must be in bounds.
        let found = (0..=bytes).rev().filter(|n| n.is_power_of_two()).try_for_each(|n| {
            ctx.exec =
                lanes_of(reading).filter(|&l| valid[l].next_power_of_two() == n).fold(0, |m, l| m | 1 << l);
            if ctx.exec == 0 { Ok(()) } else { locate(ctx, &from, n, "asynchronous load").map(|_| ()) }
        });
        if let Err(flow) = found {
            return flow;
        }
        let counters = &mut ctx.tally.counters;
        counters.global_load_bytes += lanes_of(reading).map(|lane| u64::from(valid[lane])).sum::<u64>();
        counters.global_load_sectors += sectors(reading, &from, bytes);
        ctx.exec = all;
    }
    let now = ctx.access(false);
    let timing = ctx.random.below(4);
    for lane in lanes_of(all) {
        let destination = to[lane];
        let inside = block_of(ctx, destination).filter(|&(rank, within)| {
            destination.is_multiple_of(u64::from(bytes))
                && ctx.cluster.blocks[rank].shared.contains(within, bytes)
        });
        let Some((rank, within)) = inside else {
            return ctx.bad_shared(lane, destination, bytes, "asynchronous store");
        };
        let shared = &mut ctx.cluster.blocks[rank].shared;
        let expected = shared.for_cells(within, bytes, |cell, mask| cell.expect(now, mask, &ctx.warp.clock));
        if let Err(hazard) = expected {
            return ctx.hazard(hazard, lane, destination, bytes, "asynchronous store");
        }
        let mut copy = SmallCopy {
            source: from[lane],
            destination: (rank, within),
            lane: lane as u8,
            bytes: bytes as u8,
            valid: valid[lane] as u8,
            progress: SmallProgress::Issued,
            group: ctx.warp.copies.committed[lane],
            by: now,
        };
        if timing < 2
            && let Err(flow) = advance(ctx, &mut copy, timing == 0)
        {
            return flow;
        }
        ctx.warp.copies.list.push(copy);
    }
    Flow::Next
}

/// Reads a copy's source; with `land`, writes its destination too.
fn advance(ctx: &mut Ctx<'_>, copy: &mut SmallCopy, land: bool) -> Result<(), Flow> {
    if let Err(detail) = read_small(ctx.env, copy) {
        let flow = ctx.stop(FaultKind::Uninitialised, 1 << copy.lane, detail);
        if let Some(stop) = &mut ctx.fault {
            stop.pc = Some(copy.by.pc());
        }
        return Err(flow);
    }
    if land {
        land_small(ctx.cluster, copy);
    }
    Ok(())
}

/// `cp.async.commit_group`. Some copies make progress here, as they might anywhere.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn commit(ctx: &mut Ctx<'_>, _: &Inst) -> Flow {
    for lane in lanes_of(ctx.exec) {
        ctx.warp.copies.committed[lane] += 1;
    }
    let count = ctx.warp.copies.list.len();
    if count > 0 && ctx.random.coin() {
        let first = ctx.random.below(count as u32) as usize;
        let land = ctx.random.coin();
        for i in first..(first + 32).min(count) {
            let mut copy = ctx.warp.copies.list[i];
            if let Err(flow) = advance(ctx, &mut copy, land) {
                return flow;
            }
            ctx.warp.copies.list[i] = copy;
        }
    }
    Flow::Next
}

/// `cp.async.wait_group imm` and `cp.async.wait_all` (`imm` is then `u64::MAX`).
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn wait(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    let (exec, committed) = (ctx.exec, ctx.warp.copies.committed);
    let covered = |copy: &SmallCopy| {
        exec >> copy.lane & 1 != 0
            && (inst.imm == u64::MAX
                || u64::from(copy.group) + inst.imm < u64::from(committed[copy.lane as usize]))
    };
    let (rank, index) = (ctx.rank, ctx.warp.index);
    let tracked = |operation: &Operation| {
        (operation.issuer.rank, operation.issuer.warp) == (rank, index)
            && matches!(&operation.work, Work::Arrive { copies, .. } if copies.iter().any(covered))
    };
    // Copies that an mbarrier tracks stay ordered by it as well: they are settled as it would.
    let mut tracked_copies: Vec<SmallCopy> = Vec::new();
    for operation in &ctx.cluster.engine.operations {
        if let Work::Arrive { copies, .. } = &operation.work
            && tracked(operation)
        {
            tracked_copies.extend(copies);
        }
    }
    if !tracked_copies.is_empty()
        && let Err(failure) = ctx.surroundings().force(tracked, false)
    {
        return ctx.failed(failure);
    }
    for copy in tracked_copies {
        let (rank, within) = copy.destination;
        let settled =
            ctx.cluster.blocks[rank].shared.for_cells(within, u32::from(copy.bytes), |cell, mask| {
                cell.settle_copy(copy.by, mask);
                Ok(())
            });
        debug_assert!(settled.is_ok());
    }
    let mut done: Vec<SmallCopy> = Vec::new();
    let mut list = std::mem::take(&mut ctx.warp.copies.list);
    for copy in list.iter_mut().filter(|copy| covered(copy)) {
        if let Err(flow) = advance(ctx, copy, true) {
            return flow;
        }
        done.push(*copy);
    }
    list.retain(|copy| !covered(copy));
    ctx.warp.copies.list = list;
    let (agent, clock) = (ctx.warp.agent, ctx.warp.clock);
    for copy in done {
        let (rank, within) = copy.destination;
        let now = Access::new(agent, clock.time(agent), copy.by.pc(), false);
        let shared = &mut ctx.cluster.blocks[rank].shared;
        let settled = shared.for_cells(within, u32::from(copy.bytes), |cell, mask| {
            cell.settle(now, mask);
            Ok(())
        });
        debug_assert!(settled.is_ok());
    }
    Flow::Next
}

/// Counts a copy as made now instead of at its issue: a fence of the warp in between was none for what had
/// not landed.
fn postpone(ctx: &mut Ctx<'_>, copy: &mut SmallCopy) {
    let agent = ctx.warp.agent;
    let (by, now) = (copy.by, Access::new(agent, ctx.warp.clock.time(agent), copy.by.pc(), false));
    if by == now {
        return;
    }
    let (rank, within) = copy.destination;
    let shared = &mut ctx.cluster.blocks[rank].shared;
    let postponed = shared.for_cells(within, u32::from(copy.bytes), |cell, _| {
        cell.postpone(by, now);
        Ok(())
    });
    debug_assert!(postponed.is_ok());
    copy.by = now;
}

/// `cp.async.mbarrier.arrive{.noinc} [a]`: `e` is 1 with `.noinc`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn arrive(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    // SAFETY: the decoder gives an address slot.
    let at = unsafe { addresses(ctx, inst) };
    let clock = ctx.warp.clock;
    for lane in lanes_of(ctx.exec) {
        let barrier = match ctx.mbarrier_place(lane, at[lane], false) {
            Ok(place) => place,
            Err(flow) => return flow,
        };
        if inst.e == 0
            && let Err(detail) = ctx.cluster.at_mbarrier(barrier, |mbarrier| mbarrier.add_pending())
        {
            return ctx.stop(FaultKind::InvalidOperand, 1 << lane, detail);
        }
        let list = &mut ctx.warp.copies.list;
        let mut copies: Vec<_> = list.extract_if(.., |copy| usize::from(copy.lane) == lane).collect();
        copies.iter_mut().for_each(|copy| postpone(ctx, copy));
        let issuer = ctx.issuer(lane);
        let work = Work::Arrive { copies, barrier };
        if let Err(failure) = ctx.surroundings().issue(issuer, work, &clock, 0) {
            return ctx.failed(failure);
        }
    }
    let agent = ctx.warp.agent;
    ctx.warp.clock.tick(agent);
    Flow::Next
}
