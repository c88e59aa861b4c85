//! Which items the two blocks of a cluster take, and which operand they share.
//!
//! Two row tiles of an expert side by side share the columns, and with them B, twice as large as A; a row
//! tile without a partner takes two neighbouring items of its columns, which share A:
//!
//! ```text
//!   row tiles of a band         columns 0    1    2    3       through L2 for an item of 48 KiB a slab
//!     tile 0   block 0                a    c    e    g
//!     tile 1   block 1                a    c    e    g         a pair of rows    A 16 + half of B 16 = 32 KiB
//!     tile 2   blocks 0, 1            b    b    f    f         a row on its own  half of A 8 + B 32 = 40 KiB
//! ```
//!
//! A last tile of up to 64 rows is one warpgroup's ([`turns`](super::turns)), and takes 0.6 of the time: as
//! the second of a pair it would wait for the first. So neither it nor the tile before it is paired then, if
//! their number is even.
//!
//! Items of clusters are numbered as [`work`](crate::schedule::work) does, a column being two
//! columns of items: a band of h tiles has h of them, above `a c b`, `e g f`. Clusters take them in that
//! order, each as it comes free: see [`Items`].

use core::hint::assert_unchecked;

use cuda_std::atomic::{self, Order, Scope};
use cuda_std::shared::Shared;
use cuda_std::{cluster, mbarrier, thread, unroll, warp};

use super::{BLOCKS, BM, STAGES};
use crate::gemm::hopper::CONSUMERS;
use crate::schedule::entry;
use crate::schedule::work::{Band, Tile, WorkList};

/// What a block of a cluster does next.
#[derive(Clone, Copy)]
pub struct Item {
    /// The block's own rows and columns. The right item may lie past the last column. Its block still runs,
    /// because its neighbour needs its half of the multicast.
    pub tile: Tile,
    /// Whether the blocks share B, else A.
    pub shares_b: bool,
    /// Whether the expert's rows are one tile, so that its weights are read once.
    pub is_alone: bool,
}

/// The items of a cluster, in the order of their numbers: the first is that of its own number, every other
/// the next that no cluster has taken. So whoever had short items, or came late, takes fewer or more.
///
/// The first block of a cluster draws numbers from a counter in memory, and tells both blocks: a number in
/// one of eight places, and its bytes on the place's barrier. A place is written again eight numbers later.
/// Until then everybody has read it: the producer that is ahead waits for stages that the consumers of both
/// blocks have given back, so that the other is at most [`STAGES`] slabs behind, and an item has a slab at
/// least.
///
/// Who draws last of all leaves the counter at 0: every number but the first of each cluster, and one past
/// the last for each cluster that had a first, are as many draws as there are items.
///
/// Of an odd number of columns there are items without a slab (the last place of a pair of rows), and
/// clusters take one of every round of items in turn, seven places further every time: where an expert's row
/// tiles divide the number of clusters, some would have the short last tiles alone.
pub struct Items {
    work: WorkList,
    counter: *mut u32,
    /// Address of the places.
    places: u32,
    clusters: u32,
    /// How many numbers the block has learnt.
    learnt: u32,
    /// Columns of D, and of a block's item.
    n: u32,
    columns: u32,
}

impl Items {
    const ROTATION: u32 = 7;
    const PLACES: u32 = 8;
    const _DISTANCE: () = assert!(STAGES < Self::PLACES);

    /// Bytes of a place: its barrier, and behind it the number.
    const PLACE_BYTES: u32 = 16;
    /// Bytes of shared memory for the places.
    pub const BYTES: u32 = Self::PLACES * Self::PLACE_BYTES;

    /// Prepares the places. All threads of the block call it together, before the cluster meets for the first
    /// time.
    ///
    /// # Safety
    /// There are [`BYTES`](Self::BYTES) of shared memory at `places`, at the same address in all blocks, a
    /// multiple of 8, that nothing else uses. Thread 0 makes its barriers visible before the cluster meets.
    #[inline(always)]
    pub unsafe fn prepare(places: u32) {
        if thread::thread_idx_x() == 0 {
            unroll!(for place in 0..8 {
                // SAFETY: the caller's contract.
                unsafe { mbarrier::init(places + place * Self::PLACE_BYTES, 1) };
            });
        }
    }

    /// The items of this block, of `columns` of D's `n` columns.
    ///
    /// # Safety
    /// `schedule` is as [`schedule::entry`](crate::schedule::entry) draws it, and no other kernel counts in
    /// it now; the [`places`](Self::prepare) are prepared. All lanes of the warp call it together.
    #[inline(always)]
    pub unsafe fn new(schedule: *mut [u32; 4], places: u32, n: u32, columns: u32) -> Self {
        // SAFETY: the caller's contract.
        let (work, counter) =
            unsafe { (WorkList::new(schedule, BM, n, BLOCKS * columns), entry::counters(schedule)) };
        Self { work, counter, places, clusters: thread::grid_dim_x() / BLOCKS, learnt: 0, n, columns }
    }

    /// The block's next item. All lanes of the warp call it together, all warps that produce and both blocks
    /// of the cluster as often; after `None` never again.
    #[inline(always)]
    pub fn next(&mut self) -> Option<Item> {
        loop {
            let number = self.number();
            if number >= self.work.len() {
                return None;
            }
            let item = self.item(self.work.band(number));
            // Of an odd number of columns, a pair of rows has none in the last place.
            if !item.shares_b || item.tile.n0 < self.n {
                return Some(item);
            }
        }
    }

    /// The number of the cluster's next item; past the last where there is none.
    #[inline(always)]
    fn number(&mut self) -> u32 {
        let turn = self.learnt;
        self.learnt += 1;
        if turn == 0 || !self.n.div_ceil(self.columns).is_multiple_of(BLOCKS) {
            // SAFETY: a grid has a cluster. Without this, the division ends in a trap.
            unsafe { assert_unchecked(self.clusters != 0) };
            let place = thread::block_idx_x() / BLOCKS + Self::ROTATION * turn;
            return turn * self.clusters + place % self.clusters;
        }
        let (place, parity) = ((turn - 1) % Self::PLACES, (turn - 1) / Self::PLACES % 2);
        let barrier = self.places + place * Self::PLACE_BYTES;
        // SAFETY: the barriers are initialised in both blocks, which leave together. A place is free when its
        // turn comes (see above), and one thread of each block expects the number in it. The counter is the
        // schedule's.
        unsafe {
            if thread::thread_idx_x() == CONSUMERS {
                mbarrier::arrive_expect_tx(barrier, 4);
                if cluster::rank() == 0 {
                    let drawn = atomic::add(self.counter, 1, Order::Relaxed, Scope::Gpu);
                    if drawn + 1 == self.work.len() {
                        atomic::store(self.counter, 0, Order::Relaxed, Scope::Gpu);
                    }
                    unroll!(for rank in 0..2 {
                        let barrier = cluster::map(barrier, rank);
                        cluster::store_async(barrier + mbarrier::BYTES, self.clusters + drawn, barrier);
                    });
                }
            }
            mbarrier::wait(barrier, parity);
            // The same in all lanes; the shuffle says so to ptxas, and keeps the lanes together.
            warp::shfl_idx(warp::FULL_MASK, Shared::<u32>::from_address(barrier + mbarrier::BYTES).read(), 0)
        }
    }

    /// This block's part of an item.
    #[inline(always)]
    fn item(&self, band: Band) -> Item {
        let height = band.height();
        let paired =
            if height.is_multiple_of(2) && band.last_rows() <= 64 { height - 2 } else { height & !1 };
        let (columns, place) = (band.item / height * BLOCKS, band.item % height);
        let (rank, shares_b) = (cluster::rank(), place < paired);
        let (row_tile, column) = if shares_b {
            let (pair, right) = if place < paired / 2 { (place, 0) } else { (place - paired / 2, 1) };
            (2 * pair + rank, columns + right)
        } else {
            (place, columns + rank)
        };
        Item { tile: band.tile(row_tile, column * self.columns), shares_b, is_alone: height == 1 }
    }
}
