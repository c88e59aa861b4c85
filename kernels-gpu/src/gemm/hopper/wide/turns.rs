//! Which warpgroup multiplies what: both have their half of a tile with more than 64 rows; a lower tile is
//! all of one, and the next such of the other, so that the end of one is hidden behind the products of the
//! next.
//!
//! ```text
//!   rows of tiles    128              40         40          40           | 100
//!   warpgroup 0      upper 64 | end | products | end ....  | products | end | upper 64 | end
//!   warpgroup 1      lower 64 | end |     -    | products  | end ....     | lower 36 | end
//!                                        pass --^     pass --^     pass --^
//! ```
//!
//! Both hear of every item. A warpgroup whose turn it is not waits until the other has seen the item's last
//! slab, and goes on with the next item: so slabs are taken in their order, and nobody waits for a stage of
//! the ring that is laps behind. It gives no stage back; the other does for both.
//!
//! The barrier of a warpgroup's turns is at most one phase ahead of it: behind a low item of the other comes
//! one of its own, or none, before the other has one again.

use cuda_std::{mbarrier, sync, thread, warp};

use crate::gemm::hopper::CONSUMER_WARPS;
use crate::gemm::hopper::notes::{Note, same};
use crate::schedule::work::Tile;

/// Rows of a tile that one warpgroup multiplies.
pub const LOW: u32 = 64;

/// Bytes of shared memory for the barriers of both.
pub const BYTES: u32 = 2 * mbarrier::BYTES;

/// Prepares the barriers at `address`. All threads of the block call it together, before the ring is made.
///
/// # Safety
/// There are [`BYTES`] of shared memory at `address`, a multiple of 8, that nothing else uses. Thread 0 makes
/// its barriers visible before the block meets.
#[inline(always)]
pub unsafe fn prepare(address: u32) {
    if thread::thread_idx_x() == 0 {
        // SAFETY: the caller's contract. All warps of the other warpgroup arrive.
        unsafe {
            mbarrier::init(address, CONSUMER_WARPS / 2);
            mbarrier::init(address + mbarrier::BYTES, CONSUMER_WARPS / 2);
        }
    }
}

/// A tile as the producer tells it: with the number of low tiles before it, modulo 4. Warpgroup 0 has the
/// even ones.
pub struct Told {
    pub tile: Tile,
    low: u32,
}

impl Told {
    /// The tile, and counts it in `low`.
    #[inline(always)]
    pub fn count(tile: Tile, low: &mut u32) -> Self {
        let told = Self { tile, low: *low };
        *low = (*low + u32::from(tile.rows <= LOW)) % 4;
        told
    }
}

impl Note for Told {
    const VECTORS: u32 = 1;

    #[inline(always)]
    fn words(&self) -> [[u32; 4]; 2] {
        let Tile { expert, first_row, rows, n0 } = self.tile;
        [[expert, first_row, rows | self.low << 16, n0], [0; 4]]
    }

    #[inline(always)]
    fn of([[expert, first_row, word, n0], _]: [[u32; 4]; 2]) -> Self {
        let word = same(word);
        Self { tile: Tile { expert, first_row, rows: word & 0xffff, n0 }, low: word >> 16 }
    }

    #[inline(always)]
    fn is_work(&self) -> bool {
        self.tile.rows > 0
    }
}

/// A warpgroup's turns.
pub struct Turns {
    address: u32,
    warpgroup: u32,
}

impl Turns {
    /// Of the warpgroup, with barriers at `address`.
    #[inline(always)]
    pub fn new(address: u32, warpgroup: u32) -> Self {
        Self { address, warpgroup }
    }

    /// For how many warps each of the warpgroup's gives the stages of an item back; or `None` if the other
    /// has all of it, as soon as that has seen its last slab. All lanes of the warpgroup's warps call it
    /// together, once for each item.
    ///
    /// # Safety
    /// The barriers are [prepared](prepare).
    #[inline(always)]
    pub unsafe fn take(&self, told: &Told) -> Option<u32> {
        if told.tile.rows > LOW {
            return Some(1);
        }
        if told.low % 2 == self.warpgroup {
            return Some(2);
        }
        // SAFETY: an initialised barrier, at most a phase ahead.
        unsafe { mbarrier::wait(self.barrier(self.warpgroup), told.low / 2) };
        None
    }

    /// Lets the other warpgroup go on, if it has nothing of an item, whose slabs have all been seen. All
    /// lanes of the warp call it together.
    ///
    /// # Safety
    /// As [`take`](Self::take), which has given this item, and `arrivals`.
    #[inline(always)]
    pub unsafe fn pass(&self, arrivals: u32) {
        sync::warp(warp::FULL_MASK);
        if arrivals == 2 && thread::lane_id() == 0 {
            // SAFETY: an initialised barrier, of whose phase this warp's arrival is pending.
            unsafe { mbarrier::arrive(self.barrier(self.warpgroup ^ 1)) };
        }
    }

    #[inline(always)]
    fn barrier(&self, warpgroup: u32) -> u32 {
        self.address + warpgroup * mbarrier::BYTES
    }
}
