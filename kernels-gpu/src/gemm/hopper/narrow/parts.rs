//! Sums of items that are cut, added up through memory.
//!
//! A block writes a part's sums to a slot of the part's own. The block that is last to do so, as a counter of
//! the item tells, adds the parts up in the order of K, so that the result is the same whoever is last;
//! nobody waits.
//!
//! ```text
//!   slots     | item w: part 0 | part 1 | .. | item w + 1: part 0 | ..
//!   counters  | units drawn | item w | item w + 1 | ..
//! ```

use cuda_std::atomic::{self, Order, Scope};
use cuda_std::shared::Shared;
use cuda_std::{sync, thread, warp};

use super::accumulator::Accumulator;
use super::units::Part;
use crate::gemm::hopper::{CONSUMER_BARRIER, CONSUMERS};
use crate::schedule::entry;

/// Bytes of shared memory that [`Parts`] take.
pub const SHARED_BYTES: u32 = 16;

/// Where parts are added up.
pub struct Parts {
    /// The counter of the first item that is cut.
    counters: *mut u32,
    partials: *mut [f32; 4],
    /// Whether this block is the last with a part of an item: for all its consumers to read.
    is_last: Shared<u32>,
    /// Vectors of four sums in half a slot: as many as tiles of the kernel's most rows take. Lower ones leave
    /// the end of theirs alone.
    vectors: usize,
}

impl Parts {
    /// Of tiles of up to `rows` rows; `shared` is the address of [`SHARED_BYTES`] of shared memory that
    /// nothing else uses.
    ///
    /// # Safety
    /// `schedule` is a schedule; `partials` has [`SLOTS`](super::units::SLOTS) slots for every block of the
    /// grid.
    #[inline(always)]
    pub unsafe fn new(schedule: *mut [u32; 4], partials: *mut [f32; 4], shared: u32, rows: u32) -> Self {
        // SAFETY: a schedule, by the caller's contract, whose first counter units are drawn from.
        let counters = unsafe { entry::counters(schedule).add(1) };
        let vectors = (rows / 8 * CONSUMERS) as usize;
        Self { counters, partials, is_last: Shared::from_address(shared), vectors }
    }

    /// Address of the shared memory behind what [`new`](Self::new) takes.
    #[inline(always)]
    pub fn end(&self) -> u32 {
        self.is_last.address() + SHARED_BYTES
    }

    /// Adds a part to those that are there. If it is the last of its item, `sums` become those of the item.
    ///
    /// # Safety
    /// As [`new`](Self::new), for a part of an item that is cut; all consumer threads call it together.
    #[inline(always)]
    pub unsafe fn complete<A: Accumulator>(&self, part: &Part, sums: &mut [A; 2]) -> bool {
        let (vectors, thread) = (self.vectors, thread::thread_idx_x());
        let slot = |number: u32| {
            let slot = (part.cut * part.parts + number) as usize;
            self.partials.wrapping_add(slot * 2 * vectors + thread as usize)
        };
        // SAFETY: a part is one block's, which writes its slot once a launch, each thread its own vectors of
        // it. Who counts the last part sees all of them: in every block the barrier orders the writes of all
        // threads before thread 0's arrival at the counter, which releases at the scope of the GPU what it
        // has seen; the last arrival acquires, and the next barrier hands that on to the reading threads.
        unsafe {
            let own = slot(part.number);
            sums[0].save(part.rows, own, CONSUMERS as usize);
            sums[1].save(part.rows, own.add(vectors), CONSUMERS as usize);
            sync::named(CONSUMER_BARRIER, CONSUMERS);
            if thread == 0 {
                let counter = self.counters.add(part.cut as usize);
                let is_last = atomic::add(counter, 1, Order::AcqRel, Scope::Gpu) + 1 == part.parts;
                if is_last {
                    atomic::store(counter, 0, Order::Relaxed, Scope::Gpu);
                }
                self.is_last.write(is_last as u32);
            }
            sync::named(CONSUMER_BARRIER, CONSUMERS);
            if warp::shfl_idx(warp::FULL_MASK, self.is_last.read(), 0) == 0 {
                return false;
            }
            *sums = [A::ZERO; 2];
            let mut number = 0;
            while number < part.parts {
                let from = slot(number);
                sums[0].add_saved(part.rows, from, CONSUMERS as usize);
                sums[1].add_saved(part.rows, from.add(vectors), CONSUMERS as usize);
                number += 1;
            }
        }
        true
    }
}
