//! Which items the two blocks of a cluster take, and which operand they share.
//!
//! Two row tiles of an expert side by side share the columns, and with them B, twice as large as A; a row
//! tile without a partner takes two neighbouring items of its columns, which share A:
//!
//! ```text
//!   row tiles of a band         columns 0     1     2     3           through L2 for an item of 48 KiB a slab
//!     tile 0   block 0                a     c     e     g
//!     tile 1   block 1                a     c     e     g             a pair of rows        A 16 + half of B 16 = 32 KiB
//!     tile 2   blocks 0, 1            b     b     f     f             a row on its own      half of A 8 + B 32 = 40 KiB
//! ```
//!
//! A last tile of up to 64 rows takes half the time: as the second of a pair it would wait for the first. So
//! neither it nor the tile before it is paired then, if their number is even.
//!
//! Items of clusters are numbered as [`work`](crate::schedule::work) does, a column being two
//! columns of items: a band of h tiles has h of them, above `a c b`, `e g f`.

use cuda_std::{cluster, thread};

use super::{BLOCKS, BM};
use crate::schedule::work::{Band, Tile, WorkList};

/// What a block of a cluster does next.
#[derive(Clone, Copy)]
pub struct Item {
    /// The block's own rows and columns. The right item may lie past the last column. Its block still runs,
    /// because its neighbour needs its half of the multicast.
    pub tile: Tile,
    /// Whether the blocks share B, else A.
    pub shares_b: bool,
}

/// The items of a cluster: one of every round of `G`, where G is the number of clusters.
///
/// ```text
///   round 0    items 0 ..  G       cluster c takes the c-th
///   round 1    items G .. 2G       cluster c takes the (c + 7)-th, and so on
/// ```
///
/// Without that rotation a cluster would always take the same of an expert's row tiles where their number
/// divides G, and some clusters the short last ones alone.
pub struct Items {
    work: WorkList,
    clusters: u32,
    /// The first item of the round, and the cluster's among the round's.
    round: u32,
    place: u32,
    /// Columns of D, and of a block's item.
    n: u32,
    columns: u32,
}

impl Items {
    const ROTATION: u32 = 7;

    /// The items of this block, of `columns` of D's `n` columns.
    ///
    /// # Safety
    /// `schedule` is as [`schedule::entry`](crate::schedule::entry) draws it. All lanes of the warp call it
    /// together.
    #[inline(always)]
    pub unsafe fn new(schedule: *const [u32; 4], n: u32, columns: u32) -> Self {
        // SAFETY: the caller's contract.
        let work = unsafe { WorkList::new(schedule, BM, n, BLOCKS * columns) };
        let (block, blocks) = (thread::block_idx_x(), thread::grid_dim_x());
        let (clusters, place) = (blocks / BLOCKS, block / BLOCKS);
        Self { work, clusters, round: 0, place, n, columns }
    }

    /// The block's next item. All lanes of the warp call it together, and both blocks of the cluster as
    /// often.
    #[inline(always)]
    pub fn next(&mut self) -> Option<Item> {
        loop {
            let number = self.round + self.place;
            if number >= self.work.len() {
                return None;
            }
            let item = self.item(self.work.band(number));
            self.round += self.clusters;
            self.place += if self.clusters > Self::ROTATION { Self::ROTATION } else { 1 };
            if self.place >= self.clusters {
                self.place -= self.clusters;
            }
            // Of an odd number of columns, a pair of rows has none in the last place.
            if !item.shares_b || item.tile.n0 < self.n {
                return Some(item);
            }
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
        Item { tile: band.tile(row_tile, column * self.columns), shares_b }
    }
}
