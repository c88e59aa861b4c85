//! Which part of D a work item is: the device-built tile schedule times the tiles of N.
//!
//! Items are numbered so that blocks that run at the same time share operands in L2. Row tiles are taken in
//! bands, as [`entry`](super::entry) cuts them: all of an expert, if they are not too many.
//! Inside a band the row tile runs fastest, then the column tile:
//!
//! ```text
//!                    n tile 0   1   2   3
//!  band 0, expert 0         0   2   4   6    tile 0      a panel of B is read from memory once for each band,
//!                           1   3   5   7    tile 1      the band's rows of A stay in L2
//!  band 1, expert 1         8  11  ...       tile 2
//!                           9  12            tile 3
//!                          10  13            tile 4
//! ```
//!
//! A band of h tiles from tile f on has h times as many items as there are column tiles, and those before it
//! f times as many: item i belongs to the band of row tile `i / column tiles`.

use core::hint::assert_unchecked;
use cuda_std::{memory, warp};

use super::entry::{Entry, Header};

/// A work item: `rows` rows of `expert` from permuted row `first_row` on, times the columns from `n0` on.
#[derive(Clone, Copy)]
pub struct Tile {
    pub expert: u32,
    pub first_row: u32,
    pub rows: u32,
    pub n0: u32,
}

impl Tile {
    /// No tile at all.
    pub const NONE: Self = Self { expert: 0, first_row: 0, rows: 0, n0: 0 };
}

/// The band that an item belongs to, as one entry of the schedule tells it.
#[derive(Clone, Copy)]
pub struct Band {
    #[cfg(target_feature = "sm_90a")]
    expert: u32,
    #[cfg(target_feature = "sm_90a")]
    first_row: u32,
    /// At least 1.
    rows: u32,
    /// Rows of all its tiles but the last, a power of two.
    block_m: u32,
    /// The item's number in it.
    pub item: u32,
}

impl Band {
    /// Its row tiles, at least 1.
    #[inline(always)]
    pub fn height(&self) -> u32 {
        let height = (self.rows + self.block_m - 1) >> self.block_m.trailing_zeros();
        // SAFETY: a band has rows. Without this, a division by the height ends in a trap, and with a trap in
        // reach ptxas does not use the registers that `setmaxnreg` brings.
        unsafe { assert_unchecked(height != 0) };
        height
    }

    /// Rows of its last tile.
    #[cfg(target_feature = "sm_90a")]
    #[inline(always)]
    pub fn last_rows(&self) -> u32 {
        self.rows - (self.height() - 1) * self.block_m
    }

    /// Its row tile of that number, times the columns from `n0` on.
    #[cfg(target_feature = "sm_90a")]
    #[inline(always)]
    pub fn tile(&self, number: u32, n0: u32) -> Tile {
        let above = number * self.block_m;
        let rows = self.block_m.min(self.rows - above);
        Tile { expert: self.expert, first_row: self.first_row + above, rows, n0 }
    }
}

/// The work items of a launch.
pub struct WorkList {
    schedule: *const [u32; 4],
    row_tiles: u32,
    column_tiles: u32,
    /// Columns of a tile.
    columns: u32,
    /// Rows of a tile, a power of two.
    block_m: u32,
}

impl WorkList {
    /// Reads the header of the schedule, of tiles of `block_m` rows. All lanes of the warp call it together.
    ///
    /// # Safety
    /// `schedule` is as [`entry`](super::entry) draws it, for tiles of `block_m` rows, a
    /// power of two.
    #[inline(always)]
    pub unsafe fn new(schedule: *const [u32; 4], block_m: u32, n: u32, columns: u32) -> Self {
        // SAFETY: a schedule begins with its header, whose first element is the number of tiles.
        let Header { tiles, .. } = Header::unpack(unsafe { memory::load_nc(schedule) });
        // The same in all lanes; the shuffle says so to ptxas, which then knows that loops over items do not
        // diverge.
        let row_tiles = warp::shfl_idx(warp::FULL_MASK, tiles, 0);
        Self { schedule, row_tiles, column_tiles: n.div_ceil(columns), columns, block_m }
    }

    /// Number of work items.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        self.row_tiles * self.column_tiles
    }

    /// The item with the given number, below [`len`](Self::len).
    #[inline(always)]
    pub fn tile(&self, item: u32) -> Tile {
        let entry = self.entry(item);
        // SAFETY: entries of the schedule, 16-byte aligned; no kernel writes the schedule while this one
        // runs. The second is loaded though it follows from the first, which takes registers that the largest
        // tile does not have.
        unsafe {
            let first = Entry::unpack(memory::load_nc(entry));
            let band = self.band_of(item, first);
            let height = band.height();
            let tile = entry.wrapping_add((band.item % height) as usize).wrapping_sub(first.number as usize);
            let Entry { expert, first_row, rows, .. } = Entry::unpack(memory::load_nc(tile));
            Tile { expert, first_row, rows, n0: band.item / height * self.columns }
        }
    }

    /// Where the schedule has the entry that tells the band of the item with the given number, below
    /// [`len`](Self::len).
    #[inline(always)]
    fn entry(&self, item: u32) -> *const [u32; 4] {
        Entry::address(self.schedule, self.near(item))
    }

    /// The band of the item with the given number, below [`len`](Self::len).
    #[cfg(target_feature = "sm_90a")]
    #[inline(always)]
    pub fn band(&self, item: u32) -> Band {
        // SAFETY: an entry of the schedule, 16-byte aligned; no kernel writes the schedule while this one
        // runs.
        self.band_of(item, Entry::unpack(unsafe { memory::load_nc(self.entry(item)) }))
    }

    /// The band of the item with the given number, whose [`entry`](Self::entry) holds `entry`.
    #[inline(always)]
    fn band_of(&self, item: u32, entry: Entry) -> Band {
        let first_item = (self.near(item) - entry.number) * self.column_tiles;
        Band {
            #[cfg(target_feature = "sm_90a")]
            expert: entry.expert,
            #[cfg(target_feature = "sm_90a")]
            first_row: entry.first_row - entry.number * self.block_m,
            rows: entry.band_rows,
            block_m: self.block_m,
            item: item - first_item,
        }
    }

    /// A row tile of the item's band.
    #[inline(always)]
    fn near(&self, item: u32) -> u32 {
        // SAFETY: there is an item, so that there are columns: no trap, as above.
        unsafe { assert_unchecked(self.column_tiles != 0) };
        item / self.column_tiles
    }
}
