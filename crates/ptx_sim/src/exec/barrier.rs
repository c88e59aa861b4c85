//! Barriers and fences (ISA "Parallel Synchronization and Communication Instructions: barrier, bar.warp.sync,
//! membar, fence").

use super::{Ctx, Flow, Inst, Mask, Wait, lanes_of};
use crate::fault::FaultKind;
use crate::state::block::BARRIERS;

/// Fields of `inst.imm` for barrier instructions.
pub(crate) mod kind {
    /// All lanes of the warp must be at the instruction.
    pub const ALIGNED: u64 = 1;
    /// `.arrive`: do not wait.
    pub const ARRIVE: u64 = 2;
    /// `.red`; the operation is in bits 4 and 5, the predicate in `c`, negated by [`NEGATED`].
    pub const REDUCE: u64 = 4;
    /// The predicate of `.red` is negated.
    pub const NEGATED: u64 = 8;
    /// `.red.popc`, to a register.
    pub const POPC: u64 = 0 << 4;
    /// `.red.and`, to a predicate.
    pub const AND: u64 = 1 << 4;
    /// `.red.or`, to a predicate.
    pub const OR: u64 = 2 << 4;
    /// The thread count in `b` is given.
    pub const COUNTED: u64 = 64;
}

impl Ctx<'_> {
    /// The one value that all executing lanes hold.
    ///
    /// # Safety
    /// `slot` has 32-bit lanes.
    unsafe fn uniform(&mut self, slot: u32, name: &str) -> Result<u32, Flow> {
        // SAFETY: by the caller's contract.
        let values = unsafe { self.read::<u32>(slot) };
        let first = values[self.exec.trailing_zeros() as usize & 31];
        if lanes_of(self.exec).any(|lane| values[lane] != first) {
            let detail = format!("the lanes disagree about the {name}");
            return Err(self.stop(FaultKind::InvalidOperand, 0, detail));
        }
        Ok(first)
    }
}

/// `barrier{.cta}.{sync,arrive,red}` and `bar`: number in `a`, thread count in `b`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn barrier(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    if inst.imm & kind::ALIGNED != 0 && ctx.exec != ctx.warp.live {
        return Flow::Meet;
    }
    // SAFETY: the decoder gives slots of 32-bit lanes, and predicates where predicates are meant.
    unsafe {
        let id = match ctx.uniform(inst.a, "barrier's number") {
            Ok(id) => id as usize,
            Err(flow) => return flow,
        };
        if id >= BARRIERS {
            return ctx.stop(FaultKind::InvalidOperand, 0, format!("barrier {id}: a block has {BARRIERS}"));
        }
        if ctx.resumed {
            reduce(ctx, inst, id);
            return Flow::Next;
        }
        let mut expected = None;
        if inst.imm & kind::COUNTED != 0 {
            let count = match ctx.uniform(inst.b, "barrier's thread count") {
                Ok(count) => count,
                Err(flow) => return flow,
            };
            if count == 0 || !count.is_multiple_of(32) {
                let detail =
                    format!("thread count {count} of barrier {id}: it must be a positive multiple of 32");
                return ctx.stop(FaultKind::InvalidOperand, 0, detail);
            }
            if count != ctx.env.threads().next_multiple_of(32) {
                expected = Some(count);
            }
        }
        // A counted barrier counts whole warps, the other one the threads that there are.
        let whole = ctx.exec == ctx.warp.live && expected.is_some();
        let threads = if whole { 32 } else { ctx.exec.count_ones() };
        let (mut votes, mut voters) = (0, 0);
        if inst.imm & kind::REDUCE != 0 {
            let negated = if inst.imm & kind::NEGATED != 0 { !0 } else { 0 };
            votes = ((ctx.predicate(inst.c) ^ negated) & ctx.exec).count_ones();
            voters = ctx.exec.count_ones();
        }
        ctx.tally.counters.barriers += 1;
        let clock = ctx.warp.clock;
        let agent = ctx.warp.agent;
        ctx.warp.clock.tick(agent);
        let block = &mut ctx.cluster.blocks[ctx.rank];
        let generation = match block.arrive(id, expected, threads, votes, voters, &clock) {
            Ok(generation) => generation,
            Err(detail) => return ctx.stop(FaultKind::InvalidOperand, 0, detail),
        };
        if inst.imm & kind::ARRIVE != 0 {
            return Flow::Next;
        }
        ctx.wait = Wait::Barrier { id: id as u8, generation };
        if inst.imm & kind::REDUCE != 0 {
            // The generation is kept for when the result is there.
            ctx.warp.generation = generation;
            return Flow::Retry;
        }
        Flow::Wait
    }
}

unsafe fn reduce(ctx: &mut Ctx<'_>, inst: &Inst, id: usize) {
    let barrier = &ctx.cluster.blocks[ctx.rank].barriers[id];
    let (votes, voters) = barrier.results[ctx.warp.generation as usize & 3];
    // SAFETY: the decoder gives a predicate to `.and` and `.or`, and a 32-bit slot to `.popc`.
    unsafe {
        match inst.imm & (3 << 4) {
            kind::AND => ctx.set_predicate(inst.d, if votes == voters { !0 } else { 0 }),
            kind::OR => ctx.set_predicate(inst.d, if votes != 0 { !0 } else { 0 }),
            _ => ctx.write(inst.d, &[votes; 32]),
        }
    }
}

/// `bar.warp.sync`: member mask in `a`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn warp_sync(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    // SAFETY: the decoder gives a slot of 32-bit lanes.
    match unsafe { ctx.members(inst.a) } {
        Ok(()) => Flow::Next,
        Err(flow) => flow,
    }
}

impl Ctx<'_> {
    /// Checks that every lane named by the member masks in `slot` is here with the same mask.
    ///
    /// # Safety
    /// `slot` has 32-bit lanes.
    #[inline(always)]
    pub unsafe fn members(&mut self, slot: u32) -> Result<(), Flow> {
        // SAFETY: by the caller's contract.
        let masks = unsafe { self.read::<u32>(slot) };
        let first = masks[self.exec.trailing_zeros() as usize & 31];
        let mut differ = 0;
        for (lane, mask) in masks.iter().enumerate() {
            differ |= u32::from(*mask != first) << lane;
        }
        if differ & self.exec == 0 && first & self.warp.live == self.exec {
            return Ok(());
        }
        self.members_each(&masks)
    }

    #[cold]
    fn members_each(&mut self, masks: &[Mask; 32]) -> Result<(), Flow> {
        let exec = self.exec;
        for lane in lanes_of(exec) {
            let mask = masks[lane];
            if mask >> lane & 1 == 0 {
                let detail =
                    format!("the member mask {mask:#010x} of lane {lane} does not name the lane itself");
                return Err(self.stop(FaultKind::Divergent, 1 << lane, detail));
            }
            let same = lanes_of(exec).filter(|&l| masks[l] == mask).fold(0, |m, l| m | 1 << l);
            if mask & self.warp.live & !same != 0 {
                let strangers = mask & exec & !same;
                if strangers != 0 {
                    let detail =
                        format!("lane {lane} names lanes {strangers:#010x}, whose member masks differ");
                    return Err(self.stop(FaultKind::Divergent, 1 << lane, detail));
                }
                return Err(Flow::Meet);
            }
        }
        Ok(())
    }
}

/// `membar`, `fence`: what was read becomes known, what is known may be released by relaxed writes. `imm` is
/// 1 where the scope is a block or a cluster.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn fence(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    let seen = ctx.warp.seen;
    ctx.warp.clock.join(&seen);
    let is_near = inst.imm != 0;
    if !is_near {
        ctx.learn_of_grid();
    }
    let warp = &mut ctx.warp;
    warp.fenced = Some(warp.clock);
    if !is_near {
        warp.fenced_for_grid = warp.fenced;
    }
    warp.clock.tick(warp.agent);
    Flow::Next
}

/// `fence.proxy.async`: what is known may be read through the asynchronous proxy.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn proxy_fence(ctx: &mut Ctx<'_>, _: &Inst) -> Flow {
    let agents = ctx.env.agents();
    let warp = &mut ctx.warp;
    warp.clock.fence_proxy(agents);
    warp.clock.tick(warp.agent);
    Flow::Next
}
