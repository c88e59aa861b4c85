//! Loads and stores of shared memory.

use super::address::SHARED;
use super::{Ctx, Flow, Inst, Mask, lanes_of, slot_list};
use crate::exec::address::flag;
use crate::fault::FaultKind;
use crate::state::element::Element;
use crate::state::race::{Access, Hazard};

/// Which block's shared memory an address in the shared window means, and where in it.
///
/// Bits 24 and up are 0 for the block's own, else one more than the rank in the cluster. A block that has
/// exited has no shared memory any more.
#[inline(always)]
pub(crate) fn block_of(ctx: &Ctx<'_>, address: u64) -> Option<(usize, u64)> {
    match (address >> 24) as usize {
        0 => Some((ctx.rank, address)),
        rank if rank <= ctx.cluster.blocks.len()
            && (rank - 1 == ctx.rank || ctx.cluster.blocks[rank - 1].live > 0) =>
        {
            Some((rank - 1, address & 0xff_ffff))
        }
        _ => None,
    }
}

/// Passes over shared memory beyond the least for accesses of this width.
///
/// There are 32 banks of 4 bytes. Lanes are served 32, 16 or 8 at a time for up to 4, 8 or 16 bytes each;
/// lanes that want one word are served together, different words of one bank one after the other.
pub(crate) fn bank_conflicts(exec: Mask, addresses: &[u64; 32], bytes: u32) -> u64 {
    let words = bytes.div_ceil(4);
    let group = 32 / words.max(1) as usize;
    let mut extra = 0;
    for first in (0..32).step_by(group) {
        let mut word_of = [u64::MAX; 32];
        let mut clash = false;
        for lane in first..first + group {
            if exec >> lane & 1 == 0 {
                continue;
            }
            for word in 0..u64::from(words) {
                let word = (addresses[lane] >> 2) + word;
                let held = &mut word_of[word as usize & 31];
                clash |= *held != u64::MAX && *held != word;
                *held = word;
            }
        }
        if clash {
            extra += passes(exec, addresses, words, first, group) - 1;
        }
    }
    extra
}

#[cold]
fn passes(exec: Mask, addresses: &[u64; 32], words: u32, first: usize, group: usize) -> u64 {
    let mut list = [0; 32];
    let mut count = 0;
    for lane in (first..first + group).filter(|lane| exec >> lane & 1 != 0) {
        for word in 0..u64::from(words) {
            list[count] = (addresses[lane] >> 2) + word;
            count += 1;
        }
    }
    list[..count].sort_unstable();
    let mut in_bank = [0; 32];
    for i in 0..count {
        if i == 0 || list[i] != list[i - 1] {
            in_bank[list[i] as usize & 31] += 1;
        }
    }
    in_bank.into_iter().max().unwrap_or(1)
}

impl Ctx<'_> {
    /// This instruction's access, for the race detector.
    #[inline(always)]
    pub fn access(&self, atomic: bool) -> Access {
        let agent = self.warp.agent;
        Access::new(agent, self.warp.clock.time(agent), self.pc, atomic)
    }

    /// Ends the launch because an access of shared memory is outside it or misaligned.
    #[cold]
    pub fn bad_shared(&mut self, lane: usize, address: u64, bytes: u32, what: &str) -> Flow {
        if !address.is_multiple_of(u64::from(bytes)) {
            let detail =
                format!("{bytes}-byte shared {what} at {address:#x}, which is not a multiple of {bytes}");
            return self.stop(FaultKind::Misaligned, 1 << lane, detail);
        }
        self.outside_shared(lane, address, bytes, what)
    }

    /// Ends the launch because an access of shared memory is outside it.
    #[cold]
    pub fn outside_shared(&mut self, lane: usize, address: u64, bytes: u32, what: &str) -> Flow {
        if let Some(rank) = (address >> 24 & 0xff).checked_sub(1)
            && self.cluster.blocks.get(rank as usize).is_some_and(|block| block.live == 0)
        {
            let detail = format!(
                "{bytes}-byte shared {what} at {address:#x}, in the shared memory of the block of rank {rank}, which has exited"
            );
            return self.stop(FaultKind::OutOfBounds, 1 << lane, detail);
        }
        let end = self.cluster.blocks[self.rank].shared.end();
        let detail = format!(
            "{bytes}-byte shared {what} at {address:#x}; the block has shared memory from {:#x} to {end:#x}",
            crate::state::shared_memory::FIRST
        );
        self.stop(FaultKind::OutOfBounds, 1 << lane, detail)
    }

    /// Ends the launch because of what the bookkeeping of shared memory says.
    #[cold]
    pub fn hazard(&mut self, hazard: Hazard, lane: usize, address: u64, bytes: u32, what: &str) -> Flow {
        let here = format!("{bytes}-byte shared {what} at {address:#x}");
        match hazard {
            Hazard::Uninitialised => {
                let detail = format!("{here}, where nothing has been written");
                self.stop(FaultKind::Uninitialised, 1 << lane, detail)
            }
            Hazard::Pending(by) => {
                let detail = format!(
                    "{here}, which an asynchronous copy of {} writes and nobody has waited for, started at {}",
                    self.agent(by),
                    self.place(by.pc())
                );
                self.stop(FaultKind::AsyncHazard, 1 << lane, detail)
            }
            Hazard::Mbarrier(by) => {
                let place = self.place(by.pc());
                let detail = format!("{here}, where an mbarrier is, initialised at {place}");
                self.stop(FaultKind::InvalidOperand, 1 << lane, detail)
            }
            Hazard::Race(by, wrote) => {
                let verb = if wrote { "written" } else { "read" };
                let (agent, place) = (self.agent(by), self.place(by.pc()));
                let detail = format!("{here} was {verb} by {agent} without order between them, at {place}");
                self.stop(FaultKind::Race, 1 << lane, detail)
            }
            Hazard::Proxy(by) => {
                let (agent, place) = (self.agent(by), self.place(by.pc()));
                let detail = format!(
                    "{here} through the asynchronous proxy was written by {agent} through the generic proxy, at {place}; there is no fence.proxy.async between them"
                );
                self.stop(FaultKind::MissingProxyFence, 1 << lane, detail)
            }
        }
    }

    fn agent(&self, by: Access) -> String {
        self.env.agents().describe(by.agent())
    }
}

/// # Safety
/// As for [`super::Handler`]; destination slots have lanes of `S`.
#[inline(always)]
pub(crate) unsafe fn load<E: Element, S: Copy, F: Fn(E) -> S + Copy>(
    ctx: &mut Ctx<'_>,
    inst: &Inst,
    addresses: &[u64; 32],
    f: F,
) -> Flow {
    let bytes = E::BYTES * inst.e;
    let slots = slot_list(ctx, inst);
    let now = ctx.access(inst.target & flag::STRONG != 0);
    for lane in lanes_of(ctx.exec) {
        let address = addresses[lane];
        let Some((rank, within)) = block_of(ctx, address) else {
            return ctx.bad_shared(lane, address, bytes, "load");
        };
        let shared = &mut ctx.cluster.blocks[rank].shared;
        if address & u64::from(bytes - 1) != 0 || !shared.contains(within, bytes) {
            return ctx.bad_shared(lane, address, bytes, "load");
        }
        if let Err(hazard) = shared.note_read(within, bytes, now, &ctx.warp.clock) {
            return ctx.hazard(hazard, lane, address, bytes, "load");
        }
        for (part, slot) in slots.iter().enumerate() {
            let value = E::from_bytes(shared.slice(within + part as u64 * u64::from(E::BYTES), E::BYTES));
            // SAFETY: the decoder lists slots of `S`.
            unsafe { ctx.regs.add(*slot as usize).cast::<S>().add(lane).write(f(value)) };
        }
    }
    ctx.tally.counters.shared_bank_conflicts += bank_conflicts(ctx.exec, addresses, bytes);
    ctx.acquire(inst, addresses, SHARED);
    Flow::Next
}

/// # Safety
/// As for [`super::Handler`]; source slots have lanes of `S`.
#[inline(always)]
pub(crate) unsafe fn store<E: Element, S: Copy, F: Fn(S) -> E + Copy>(
    ctx: &mut Ctx<'_>,
    inst: &Inst,
    addresses: &[u64; 32],
    f: F,
) -> Flow {
    let bytes = E::BYTES * inst.e;
    let slots = slot_list(ctx, inst);
    let now = ctx.access(inst.target & flag::STRONG != 0);
    ctx.release(inst, addresses, SHARED);
    for lane in lanes_of(ctx.exec) {
        let address = addresses[lane];
        let Some((rank, within)) = block_of(ctx, address) else {
            return ctx.bad_shared(lane, address, bytes, "store");
        };
        let shared = &mut ctx.cluster.blocks[rank].shared;
        if address & u64::from(bytes - 1) != 0 || !shared.contains(within, bytes) {
            return ctx.bad_shared(lane, address, bytes, "store");
        }
        if let Err(hazard) = shared.note_write(within, bytes, now, &ctx.warp.clock) {
            return ctx.hazard(hazard, lane, address, bytes, "store");
        }
        for (part, slot) in slots.iter().enumerate() {
            // SAFETY: the decoder lists slots of `S`.
            let value = f(unsafe { ctx.regs.add(*slot as usize).cast::<S>().add(lane).read() });
            shared.set(within + part as u64 * u64::from(E::BYTES), &value.to_bytes()[..size_of::<E>()]);
        }
    }
    ctx.tally.counters.shared_bank_conflicts += bank_conflicts(ctx.exec, addresses, bytes);
    ctx.cluster.blocks[ctx.rank].effects += 1;
    Flow::Next
}
