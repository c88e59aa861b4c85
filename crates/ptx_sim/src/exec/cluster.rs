//! `barrier.cluster` (ISA "Parallel Synchronization and Communication Instructions: barrier.cluster").

use super::{Ctx, Flow, Inst, Wait, lanes_of};
use crate::fault::FaultKind;

/// Flags of `inst.imm`.
pub(crate) mod flag {
    /// All lanes of the warp must be at the instruction.
    pub const ALIGNED: u64 = 1;
    /// Only what was known at the last fence is released.
    pub const RELAXED: u64 = 2;
}

/// `barrier.cluster.arrive`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn arrive(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    if inst.imm & flag::ALIGNED != 0 && ctx.exec != ctx.warp.live {
        return Flow::Meet;
    }
    let generation = ctx.cluster.barrier.generation;
    for lane in lanes_of(ctx.exec) {
        if ctx.warp.cluster_arrivals[lane].is_some() {
            let detail = "barrier.cluster.arrive without barrier.cluster.wait since the last arrival";
            return ctx.stop(FaultKind::InvalidOperand, 1 << lane, detail);
        }
        ctx.warp.cluster_arrivals[lane] = Some(generation);
    }
    ctx.tally.counters.barriers += 1;
    let threads = ctx.exec.count_ones();
    let clock = ctx.warp.clock;
    if inst.imm & flag::RELAXED != 0 {
        let fenced = ctx.warp.fenced;
        ctx.cluster.arrive(threads, fenced.as_ref());
    } else {
        let agent = ctx.warp.agent;
        ctx.warp.clock.tick(agent);
        ctx.cluster.arrive(threads, Some(&clock));
    }
    Flow::Next
}

/// `barrier.cluster.wait`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn wait(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    if inst.imm & flag::ALIGNED != 0 && ctx.exec != ctx.warp.live {
        return Flow::Meet;
    }
    let now = ctx.cluster.barrier.generation;
    for lane in lanes_of(ctx.exec) {
        match ctx.warp.cluster_arrivals[lane] {
            None => {
                let detail = "barrier.cluster.wait without barrier.cluster.arrive before it";
                return ctx.stop(FaultKind::InvalidOperand, 1 << lane, detail);
            }
            Some(generation) if generation == now => {
                ctx.wait = Wait::Cluster { generation };
                return Flow::Retry;
            }
            Some(_) => {}
        }
    }
    for lane in lanes_of(ctx.exec) {
        ctx.warp.cluster_arrivals[lane] = None;
    }
    let released = ctx.cluster.barrier.released;
    ctx.warp.clock.join(&released);
    Flow::Next
}
