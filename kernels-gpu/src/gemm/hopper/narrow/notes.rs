//! What the producer tells the consumers: the units that it fills the ring with, one behind the other.
//!
//! ```text
//!   places of shared memory   | unit 0 | unit 1 | .. | unit 7 | unit 8 in the place of unit 0 | ..
//!
//!   a place                   | expert, first row, rows, column |
//!                             | first slab, slabs, cut, number and parts | barrier |
//! ```
//!
//! A unit is told before its first slab is asked for, stages ahead. So the consumers look nothing up, and
//! know in time which scales they will want. A unit without slabs says that there are no more.
//!
//! A place is written again eight units later. By then all consumers have read it: the producer has filled
//! seven slabs or more behind the unit's first, which is more than the ring has stages, so that the consumers
//! have given that first one back.

use cuda_std::shared::Shared;
use cuda_std::{mbarrier, thread, warp};

use super::STAGES;
use super::units::Part;

const PLACES: u32 = 8;
const _: () = assert!(STAGES < PLACES);
/// Two vectors, the barrier, and as many bytes as make it a multiple of 16.
const PLACE_BYTES: u32 = 48;
const BARRIER: u32 = 32;

/// Bytes of shared memory for all places.
pub const BYTES: u32 = PLACES * PLACE_BYTES;

/// Prepares the places at `address`. All threads of the block call it together, before the ring is made.
///
/// # Safety
/// There are [`BYTES`] of shared memory at `address`, a multiple of 16, that nothing else uses. Thread 0
/// makes its barriers visible before the block meets.
#[inline(always)]
pub unsafe fn prepare(address: u32) {
    if thread::thread_idx_x() == 0 {
        let mut place = 0;
        while place < PLACES {
            // SAFETY: the caller's contract.
            unsafe { mbarrier::init(address + place * PLACE_BYTES + BARRIER, 1) };
            place += 1;
        }
    }
}

/// A role's place among the notes.
pub struct Notes {
    address: u32,
    turn: u32,
}

impl Notes {
    /// Of the places at `address`, from the first unit on.
    #[inline(always)]
    pub fn new(address: u32) -> Self {
        Self { address, turn: 0 }
    }

    /// Address of the shared memory behind the places.
    #[inline(always)]
    pub fn end(&self) -> u32 {
        self.address + BYTES
    }

    #[inline(always)]
    fn place(&mut self) -> (u32, u32) {
        let (place, parity) = (self.turn % PLACES, self.turn / PLACES % 2);
        self.turn += 1;
        (self.address + place * PLACE_BYTES, parity)
    }

    /// Tells the next unit, or that there is none. One warp of the block, the producer, whose lanes all call
    /// it together.
    ///
    /// # Safety
    /// The places are [prepared](prepare); the slabs of all units told before have been asked for.
    #[inline(always)]
    pub unsafe fn tell(&mut self, part: Option<&Part>) {
        let (place, _) = self.place();
        if thread::lane_id() != 0 {
            return;
        }
        let (mut tile, mut slabs) = ([0; 4], [0; 4]);
        if let Some(part) = part {
            tile = [part.expert, part.first_row, part.rows, part.column];
            slabs = [part.first_slab, part.slabs, part.cut, part.number << 16 | part.parts];
        }
        // SAFETY: all consumers have read what was told there eight units ago, and read this behind the
        // barrier.
        unsafe {
            let note = Shared::<[u32; 4]>::from_address(place);
            note.write(tile);
            note.add(1).write(slabs);
            mbarrier::arrive(place + BARRIER);
        }
    }

    /// The next unit that was told. All lanes of a consumer warp call it together; after `None` never again.
    ///
    /// # Safety
    /// The places are [prepared](prepare).
    #[inline(always)]
    pub unsafe fn hear(&mut self) -> Option<Part> {
        let (place, parity) = self.place();
        // SAFETY: an initialised barrier; the producer wrote the note before it arrived.
        let (tile, slabs) = unsafe {
            mbarrier::wait(place + BARRIER, parity);
            let note = Shared::<[u32; 4]>::from_address(place);
            (note.read(), note.add(1).read())
        };
        // The same in all lanes; the shuffle says so to ptxas.
        let same = #[inline(always)]
        |value| warp::shfl_idx(warp::FULL_MASK, value, 0);
        let [expert, first_row, rows, column] = tile;
        let [first_slab, slabs, cut, number_and_parts] = slabs;
        let (rows, slabs) = (same(rows), same(slabs));
        let (number, parts) = (number_and_parts >> 16, same(number_and_parts & 0xffff));
        let part = Part { expert, first_row, rows, column, first_slab, slabs, cut, number, parts };
        (slabs > 0).then_some(part)
    }
}
