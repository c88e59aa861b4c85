//! Order among the clusters of a cooperative launch: what instructions make known, and what they may touch.

use std::sync::Arc;

use super::address::flag;
use super::{Ctx, FULL, Flow, Inst, lanes_of};
use crate::fault::FaultKind;
use crate::state::grid_order::{Known, Learnt, Mark};
use crate::state::memory::Lookup;
use crate::state::race::Clock;

/// Strong reads of global memory that a warp is compared with: more than a loop that waits has.
const LOOKS: usize = 16;

impl Ctx<'_> {
    /// Leaves at these addresses of global memory (`base` is 0 there) what a strong write releases to other
    /// clusters; `clock` is what it releases to its own.
    pub(super) fn release_to_grid(
        &mut self,
        inst: &Inst,
        addresses: &[u64; 32],
        base: u64,
        clock: Option<Clock>,
    ) {
        let Some(order) = self.env.order.as_ref().filter(|_| base == 0) else { return };
        let is_own = inst.target & flag::RELEASE != 0 && inst.target & flag::NEAR == 0;
        let clock = if is_own { clock } else { self.warp.fenced_for_grid };
        let Some(clock) = clock else { return };
        let known = Arc::new(Known::of(self.cluster.number, &clock, &self.cluster.learnt));
        for lane in lanes_of(self.exec) {
            order.release(addresses[lane], &known);
        }
    }

    /// A strong read of these addresses has happened: learn what other clusters released there.
    pub(super) fn acquire_from_grid(&mut self, inst: &Inst, addresses: &[u64; 32], base: u64) {
        let Some(order) = self.env.order.as_ref().filter(|_| base == 0) else { return };
        for lane in lanes_of(self.exec) {
            if let Some(known) = order.released(addresses[lane])
                && !self.warp.seen_of_grid.iter().any(|seen| Arc::ptr_eq(seen, &known))
            {
                self.warp.seen_of_grid.push(known);
            }
        }
        if inst.target & flag::ACQUIRE != 0 && inst.target & flag::NEAR == 0 {
            self.learn_of_grid();
        }
    }

    /// What strong reads have seen of other clusters becomes known.
    pub(super) fn learn_of_grid(&mut self) {
        let (agent, clock) = (self.warp.agent, self.warp.clock);
        for known in std::mem::take(&mut self.warp.seen_of_grid) {
            if !self.cluster.learnt.iter().any(|learnt| learnt.is(agent, &known)) {
                self.cluster.learnt.push(Learnt::new(agent, &clock, known));
            }
        }
    }

    /// Notes an access of the executing lanes to located addresses of global memory; ends the launch if it
    /// races with one of another cluster.
    #[inline(always)]
    pub(super) fn check_order(
        &mut self,
        inst: &Inst,
        addresses: &[u64; 32],
        bytes: u32,
        writes: bool,
        what: &str,
    ) -> Result<(), Flow> {
        if self.env.order.is_none() { Ok(()) } else { self.compare(inst, addresses, bytes, writes, what) }
    }

    fn compare(
        &mut self,
        inst: &Inst,
        addresses: &[u64; 32],
        bytes: u32,
        writes: bool,
        what: &str,
    ) -> Result<(), Flow> {
        let Some(order) = &self.env.order else { return Ok(()) };
        let (cluster, agent) = (self.cluster.number, self.warp.agent);
        let (clock, learnt) = (&self.warp.clock, &self.cluster.learnt);
        let strong = inst.target & flag::STRONG != 0;
        let now = Mark { cluster, agent, time: clock.time(agent), pc: self.pc, strong };
        for lane in lanes_of(self.exec) {
            let address = addresses[lane];
            let Lookup::Live(allocation) = self.env.memory.lookup(address) else { continue };
            // What this launch has not written nobody can race with by reading.
            let mut writers = allocation.writers(address - allocation.base, u64::from(bytes));
            if !writes && !writers.any(|writer| writer == self.env.number) {
                continue;
            }
            if let Err((before, wrote)) = order.access(address, u64::from(bytes), writes, now, clock, learnt)
            {
                let verb = if wrote { "written" } else { "read" };
                let (who, place) = (self.env.agents().describe(before.agent), self.place(before.pc));
                let detail = format!(
                    "{bytes}-byte {what} at {address:#x}, which was {verb} by {who} of cluster {} of the grid \
                     without order between them, at {place}",
                    before.cluster
                );
                return Err(self.stop(FaultKind::Race, 1 << lane, detail));
            }
        }
        Ok(())
    }

    /// A strong read of global memory has brought these values: whether it has only repeated one of the last
    /// few, with nothing changed in this cluster. Then others should have a turn. A loop that waits may read
    /// several things.
    #[inline(always)]
    pub(super) fn only_looks(&mut self, inst: &Inst, digest: u64) -> bool {
        if inst.target & flag::STRONG == 0 {
            return false;
        }
        let look = (self.pc, digest, self.cluster.effects());
        let looks = &mut self.warp.looks;
        let repeats = looks.contains(&look);
        if !repeats {
            if looks.len() == LOOKS {
                looks.pop_front();
            }
            looks.push_back(look);
        }
        self.warp.spins = repeats;
        repeats
    }

    /// A digest of the executing lanes of a slot.
    ///
    /// # Safety
    /// `slot` is a slot of `T`.
    pub(super) unsafe fn digest<T: Copy>(&self, slot: u32) -> u64 {
        // SAFETY: by the caller's contract.
        let values = unsafe { self.read::<T>(slot) };
        let lanes = lanes_of(self.exec & FULL);
        lanes.fold(0xcbf2_9ce4_8422_2325, |digest: u64, lane| {
            let mut bytes = [0; 8];
            // SAFETY: values of registers are plain bits, of up to 8 bytes as far as they count here.
            unsafe {
                let from = (&raw const values[lane]).cast::<u8>();
                std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), size_of::<T>().min(8));
            }
            (digest ^ u64::from_le_bytes(bytes)).wrapping_mul(0x100_0000_01b3).rotate_left(9)
        })
    }
}
