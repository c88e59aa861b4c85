//! What the producer tells the consumers: the work that it fills the ring with, one note behind the other.
//!
//! ```text
//!   places of shared memory   | note 0 | note 1 | .. | note 7 | note 8 in the place of note 0 | ..
//!   a place                   | one or two vectors of four words | barrier |
//! ```
//!
//! Work is told before its first slab is asked for, stages ahead. So the consumers look nothing up, and know
//! in time which scales they will want. The last note says that there is no more.
//!
//! A place is written again eight notes later. By then all consumers have read it. What is told has a slab at
//! least, so that behind the work that they have given back last there is no more than the ring has stages,
//! and what is told next. A consumer that leaves work to others ([`turns`](super::wide::turns)) reads its
//! note before those others take the one after.

use cuda_std::shared::Shared;
use cuda_std::{mbarrier, thread, warp};

use super::CONSUMERS;
use crate::gemm::recomputed;

const PLACES: u32 = 8;
/// The most stages of a ring beside which no place is written too early: besides their work there may be one
/// that was given back and one that is told.
pub const MOST_STAGES: u32 = PLACES - 2;

/// Work that is told.
pub trait Note: Sized {
    /// Vectors of four words that say it.
    const VECTORS: u32;

    /// As words, of which all but the first [`VECTORS`](Self::VECTORS) vectors are left out.
    fn words(&self) -> [[u32; 4]; 2];

    /// What the words say. All lanes of the warp call it together.
    fn of(words: [[u32; 4]; 2]) -> Self;

    /// Whether there is work: not where all words are zeros.
    fn is_work(&self) -> bool;
}

/// A value of a note, which is the same in all lanes. The shuffle says so to ptxas.
#[inline(always)]
pub fn same(value: u32) -> u32 {
    warp::shfl_idx(warp::FULL_MASK, value, 0)
}

/// Bytes of a place: the vectors, the barrier, and as many as make it a multiple of 16.
const fn place_bytes<N: Note>() -> u32 {
    16 * N::VECTORS + 16
}

/// Bytes of shared memory for all places.
pub const fn bytes<N: Note>() -> u32 {
    PLACES * place_bytes::<N>()
}

/// Prepares the places at `address`. All threads of the block call it together, before the ring is made.
///
/// # Safety
/// There are [`bytes`] of shared memory at `address`, a multiple of 16, that nothing else uses. Thread 0
/// makes its barriers visible before the block meets.
#[inline(always)]
pub unsafe fn prepare<N: Note>(address: u32) {
    if thread::thread_idx_x() == 0 {
        let mut place = 0;
        while place < PLACES {
            // SAFETY: the caller's contract.
            unsafe { mbarrier::init(address + place * place_bytes::<N>() + 16 * N::VECTORS, 1) };
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
    /// Of the places at `address`, from the first note on.
    #[inline(always)]
    pub fn new(address: u32) -> Self {
        Self { address, turn: 0 }
    }

    /// The next place, its barrier, and the parity of the barrier's phase.
    #[inline(always)]
    fn place<N: Note>(&mut self) -> (Shared<[u32; 4]>, u32, u32) {
        let (place, parity) = (self.turn % PLACES, self.turn / PLACES % 2);
        self.turn += 1;
        let address = self.address + place * place_bytes::<N>();
        (Shared::from_address(address), address + 16 * N::VECTORS, parity)
    }

    /// Tells the next work, or that there is none. The first producing warp of the block, whose lanes all
    /// call it together; others that do, say nothing.
    ///
    /// # Safety
    /// The places are [prepared](prepare), for a ring of up to [`MOST_STAGES`]; the slabs of all work told
    /// before have been asked for.
    #[inline(always)]
    pub unsafe fn tell<N: Note>(&mut self, note: Option<&N>) {
        let (place, barrier, _) = self.place::<N>();
        if thread::thread_idx_x() != CONSUMERS {
            return;
        }
        let words = note.map_or([[0; 4]; 2], N::words);
        // SAFETY: all consumers have read what was told there eight notes ago, and read this behind the
        // barrier.
        unsafe {
            place.write(words[0]);
            if N::VECTORS == 2 {
                place.add(1).write(words[1]);
            }
            mbarrier::arrive(barrier);
        }
    }

    /// What was told next. All lanes of a consumer warp call it together; after a note without work never
    /// again. (An `Option` would keep the registers of the note before for a `None`.)
    ///
    /// # Safety
    /// The places are [prepared](prepare).
    #[inline(always)]
    pub unsafe fn hear<N: Note>(&mut self) -> N {
        let (place, barrier, parity) = self.place::<N>();
        // SAFETY: an initialised barrier; the producer wrote the note before it arrived.
        unsafe {
            mbarrier::wait(barrier, parity);
            N::of(Self::read::<N>(place))
        }
    }

    /// The work that was [heard](Self::hear) of last, read again: so that it need not be in registers
    /// meanwhile. All lanes of a consumer warp call it together, before a slab of what is told behind it is
    /// given back, by this warp or for it.
    ///
    /// # Safety
    /// There is such.
    #[inline(always)]
    pub unsafe fn again<N: Note>(&self) -> N {
        let place = recomputed(self.turn - 1) % PLACES;
        let place = Shared::from_address(self.address + place * place_bytes::<N>());
        // SAFETY: written before it was heard of.
        unsafe { N::of(Self::read::<N>(place)) }
    }

    /// # Safety
    /// The place is written.
    #[inline(always)]
    unsafe fn read<N: Note>(place: Shared<[u32; 4]>) -> [[u32; 4]; 2] {
        // SAFETY: the caller's contract.
        unsafe { [place.read(), if N::VECTORS == 2 { place.add(1).read() } else { [0; 4] }] }
    }
}
