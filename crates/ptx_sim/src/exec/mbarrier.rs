//! mbarrier operations (ISA "Parallel Synchronization and Communication Instructions: mbarrier"); the
//! counting is in [`crate::state::mbarrier`].
//!
//! `try_wait` suspends its lanes until the phase of one of them completes, and then says how things are. When
//! nothing else can happen any more, it times out. Under odd seeds it may time out at any time, as on the
//! GPU; under even ones the number of times that a loop around it runs does not depend on the timing, nor
//! then do the counters.

use super::address::{SHARED, addresses, window_of};
use super::shared::block_of;
use super::{Ctx, Flow, Inst, Mask, Wait, lanes_of};
use crate::fault::FaultKind;
use crate::state::mbarrier::{MAX_COUNT, Mbarrier};
use crate::state::operations::{Issuer, Place};
use crate::state::race::Clock;

/// Fields of `inst.e`.
pub(crate) mod kind {
    /// `.arrive`: the count in `b`, the bytes to expect before it in `c`.
    pub const ARRIVE: u32 = 1;
    /// `.arrive_drop`
    pub const DROP: u32 = 2;
    /// `.noComplete`
    pub const NO_COMPLETE: u32 = 4;
    /// `.expect_tx`, alone or before an arrival.
    pub const EXPECT: u32 = 8;
    /// `.complete_tx`
    pub const COMPLETE: u32 = 16;
    /// Only what was known at the last fence is released; what is learnt counts from the next fence on.
    pub const RELAXED: u32 = 32;
    /// The state is wanted in `d`.
    pub const STATE: u32 = 64;
    /// `.try_wait`, which may suspend.
    pub const TRY: u32 = 128;
    /// The phase is given by its parity, in `b`; otherwise by a state, 64 bits.
    pub const PARITY: u32 = 256;
    /// Another block's mbarrier may be meant.
    pub const REMOTE: u32 = 512;
}

impl Ctx<'_> {
    /// Where in the cluster's shared memory an address is, which may be generic.
    pub fn shared_place(&self, address: u64) -> Option<Place> {
        block_of(self, if address >= SHARED { window_of(address).1 } else { address })
    }

    /// The place of an mbarrier that a lane names, if it can be one; the launch ends otherwise.
    pub fn mbarrier_place(&mut self, lane: usize, address: u64, remote: bool) -> Result<Place, Flow> {
        let place = self.shared_place(address).filter(|&(rank, within)| {
            within.is_multiple_of(8) && self.cluster.blocks[rank].shared.contains(within, 8)
        });
        let Some(place) = place else {
            return Err(self.bad_shared(lane, address, 8, "mbarrier operation"));
        };
        if place.0 != self.rank && !remote {
            let detail = format!(
                "the mbarrier at {address:#x} is another block's: only arrivals, expect_tx and complete_tx reach it"
            );
            return Err(self.stop(FaultKind::InvalidOperand, 1 << lane, detail));
        }
        if let Some(mbarrier) = self.cluster.blocks[place.0].mbarriers.get(&place.1)
            && !mbarrier.made.is_known(&self.warp.clock)
        {
            let by = self.env.agents().describe(mbarrier.made.agent());
            let detail = format!(
                "the mbarrier at {address:#x} was initialised by {by} without order between them, at {}",
                self.place(mbarrier.made.pc())
            );
            return Err(self.stop(FaultKind::Race, 1 << lane, detail));
        }
        Ok(place)
    }

    fn no_mbarrier(&mut self, lane: usize, detail: String) -> Flow {
        self.stop(FaultKind::InvalidOperand, 1 << lane, detail)
    }

    /// This lane, as the issuer of an asynchronous operation.
    pub fn issuer(&self, lane: usize) -> Issuer {
        let waited = self.warp.waited >> lane & 1 != 0;
        Issuer { rank: self.rank, warp: self.warp.index, lane: lane as u8, pc: self.pc, waited }
    }

    /// The copies that completed phases brought may be touched now.
    fn observe(&mut self, (rank, address): Place) {
        let block = &mut self.cluster.blocks[rank];
        let Some(mbarrier) = block.mbarriers.get_mut(&address) else { return };
        for landed in mbarrier.observe() {
            let settled = block.shared.for_cells(landed.start, landed.bytes, |cell, mask| {
                cell.settle_copy(landed.by, mask);
                Ok(())
            });
            debug_assert!(settled.is_ok());
            block.shared.empty(&landed.hollow);
        }
    }
}

/// `mbarrier.init [a], b`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn init(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    // SAFETY: the decoder gives an address slot, and a slot of 32-bit lanes in `b`.
    let (at, counts) = unsafe { (addresses(ctx, inst), ctx.read::<u32>(inst.b)) };
    let now = ctx.access(false);
    for lane in lanes_of(ctx.exec) {
        let (rank, address) = match ctx.mbarrier_place(lane, at[lane], false) {
            Ok(place) => place,
            Err(flow) => return flow,
        };
        let count = counts[lane];
        if count == 0 || count > MAX_COUNT {
            return ctx
                .no_mbarrier(lane, format!("an expected count of {count}: 1 to {MAX_COUNT} are possible"));
        }
        let block = &mut ctx.cluster.blocks[rank];
        if block.mbarriers.contains_key(&address) {
            return ctx
                .no_mbarrier(lane, format!("{address:#x} holds an mbarrier already: invalidate it first"));
        }
        let clock = &ctx.warp.clock;
        let noted = block.shared.for_cells(address, 8, |cell, _| cell.become_mbarrier(now, clock));
        if let Err(hazard) = noted {
            return ctx.hazard(hazard, lane, address, 8, "mbarrier.init");
        }
        block.mbarriers.insert(address, Mbarrier::new(count, now));
        block.effects += 1;
    }
    Flow::Next
}

/// `mbarrier.inval [a]`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn inval(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    // SAFETY: the decoder gives an address slot.
    let at = unsafe { addresses(ctx, inst) };
    for lane in lanes_of(ctx.exec) {
        let (rank, address) = match ctx.mbarrier_place(lane, at[lane], false) {
            Ok(place) => place,
            Err(flow) => return flow,
        };
        let block = &mut ctx.cluster.blocks[rank];
        if block.mbarriers.remove(&address).is_none() {
            return ctx.no_mbarrier(lane, format!("{address:#x} holds no mbarrier"));
        }
        let left = block.shared.for_cells(address, 8, |cell, _| {
            cell.leave_mbarrier();
            Ok(())
        });
        debug_assert!(left.is_ok());
        block.effects += 1;
    }
    Flow::Next
}

/// `mbarrier.arrive`, `.arrive_drop`, `.expect_tx`, `.complete_tx` and their combinations; see [`kind`].
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn arrive(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    // SAFETY: the decoder gives an address slot, and slots of 32-bit lanes in `b` and `c`.
    let (at, counts, bytes) =
        unsafe { (addresses(ctx, inst), ctx.read::<u32>(inst.b), ctx.read::<u32>(inst.c)) };
    let has = |flag: u32| inst.e & flag != 0;
    let mut tokens = [0; 32];
    let known = if has(kind::RELAXED) { ctx.warp.fenced } else { Some(ctx.warp.clock) };
    for lane in lanes_of(ctx.exec) {
        let place = match ctx.mbarrier_place(lane, at[lane], has(kind::REMOTE)) {
            Ok(place) => place,
            Err(flow) => return flow,
        };
        let done = ctx.cluster.at_mbarrier(place, |mbarrier| {
            tokens[lane] = mbarrier.token();
            if has(kind::EXPECT) {
                mbarrier.transact(i64::from(bytes[lane]))?;
            }
            if has(kind::COMPLETE) {
                mbarrier.transact(-i64::from(bytes[lane]))?;
                mbarrier.complete();
            }
            if has(kind::ARRIVE) {
                let completed = mbarrier.arrive(counts[lane], has(kind::DROP), known.as_ref())?;
                if completed && has(kind::NO_COMPLETE) {
                    return Err("an arrival with .noComplete completed the phase".to_string());
                }
            }
            Ok(())
        });
        if let Err(detail) = done {
            return ctx.no_mbarrier(lane, detail);
        }
    }
    if has(kind::ARRIVE) && !has(kind::RELAXED) {
        let agent = ctx.warp.agent;
        ctx.warp.clock.tick(agent);
    }
    if has(kind::STATE) {
        // SAFETY: the decoder gives a slot of 64-bit lanes.
        unsafe { ctx.write(inst.d, &tokens) };
    }
    Flow::Next
}

/// `mbarrier.test_wait` and `.try_wait`: predicate in `d`, state or parity in `b`; see [`kind`].
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn wait(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    // SAFETY: the decoder gives an address slot, and in `b` lanes of the width that `e` says.
    let (at, states) = unsafe {
        let states = if inst.e & kind::PARITY != 0 {
            ctx.read::<u32>(inst.b).map(u64::from)
        } else {
            ctx.read::<u64>(inst.b)
        };
        (addresses(ctx, inst), states)
    };
    let mut passed: Mask = 0;
    let mut learnt = Clock::ZERO;
    let mut missing = None;
    for lane in lanes_of(ctx.exec) {
        let place = match ctx.mbarrier_place(lane, at[lane], false) {
            Ok(place) => place,
            Err(flow) => return flow,
        };
        let Some(mbarrier) = ctx.cluster.blocks[place.0].mbarriers.get(&place.1) else {
            let detail = format!("{:#x} holds no mbarrier (not initialised, or invalidated)", place.1);
            return ctx.no_mbarrier(lane, detail);
        };
        let past = if inst.e & kind::PARITY != 0 {
            mbarrier.is_past_parity(states[lane] as u32)
        } else {
            mbarrier.is_past(states[lane])
        };
        if past {
            passed |= 1 << lane;
            learnt.join(&mbarrier.released);
            ctx.observe(place);
        } else {
            missing = Some(Wait::Mbarrier { address: place.1 as u32, phase: mbarrier.phase });
        }
    }
    if let Some(wait) = missing
        && inst.e & kind::TRY != 0
        && !ctx.resumed
        && !(ctx.env.seed & 1 != 0 && ctx.random.below(4) == 0)
    {
        ctx.wait = wait;
        return Flow::Retry;
    }
    if passed != 0 {
        ctx.warp.seen.join(&learnt);
        if inst.e & kind::RELAXED == 0 {
            ctx.warp.clock.join(&learnt);
        }
    }
    // SAFETY: the decoder gives a predicate.
    unsafe { ctx.set_predicate(inst.d, passed) };
    // Who polls lets the others work.
    if missing.is_some() { Flow::Yield } else { Flow::Next }
}

/// `mbarrier.pending_count d, a`: the count that a state held.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn pending_count(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    // SAFETY: the decoder gives a slot of 64-bit lanes, and one of 32-bit lanes.
    unsafe {
        let states = ctx.read::<u64>(inst.a);
        ctx.write(inst.d, &states.map(|state| state as u32 & MAX_COUNT));
    }
    Flow::Next
}
