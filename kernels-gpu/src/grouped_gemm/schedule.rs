//! Which part of D a work item is: the device-built tile schedule times the tiles of N.
//!
//! Items are numbered so that blocks that run at the same time share operands in L2. Row tiles are taken in bands, as
//! [`problem_sizes`](crate::problem_sizes) cuts them: all of an expert, if they are not too many. Inside a band the row tile runs fastest,
//! then the column tile:
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
//! A band of h tiles from tile f on has h times as many items as there are column tiles, and those before it f times as many: item i
//! belongs to the band of row tile `i / column tiles`.

use cuda_std::{memory, warp};

use crate::problem_sizes::FIRST_TILE;

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

/// The band that an item belongs to.
#[derive(Clone, Copy)]
pub struct Band {
    /// Its first row tile.
    pub first: u32,
    /// Its row tiles, at least 1.
    pub height: u32,
    /// The item's number in it.
    pub item: u32,
}

/// The work items of a launch.
pub struct WorkList {
    schedule: *const [u32; 4],
    row_tiles: u32,
    column_tiles: u32,
    /// Columns of a tile.
    columns: u32,
}

impl WorkList {
    /// Reads the header of the schedule. All lanes of the warp call it together.
    ///
    /// # Safety
    /// `schedule` is as [`problem_sizes`](crate::problem_sizes) draws it.
    #[inline(always)]
    pub unsafe fn new(schedule: *const [u32; 4], n: u32, columns: u32) -> Self {
        // SAFETY: a schedule begins with its header, whose first element is the number of tiles.
        let [row_tiles, ..] = unsafe { memory::load_nc(schedule) };
        // The same in all lanes; the shuffle says so to ptxas, which then knows that loops over items do not diverge.
        let row_tiles = warp::shfl_idx(warp::FULL_MASK, row_tiles, 0);
        Self { schedule, row_tiles, column_tiles: n.div_ceil(columns), columns }
    }

    /// Number of work items.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        self.row_tiles * self.column_tiles
    }

    /// The item with the given number, below [`len`](Self::len).
    #[inline(always)]
    pub fn tile(&self, item: u32) -> Tile {
        let Band { first, height, item } = self.band(item);
        // SAFETY: a band's height. A check would end in a trap.
        unsafe { core::hint::assert_unchecked(height != 0) };
        let [expert, first_row, rows, _] = self.row_tile(first + item % height);
        Tile { expert, first_row, rows, n0: item / height * self.columns }
    }

    /// The band of the item with the given number, below [`len`](Self::len).
    #[inline(always)]
    pub fn band(&self, item: u32) -> Band {
        // SAFETY: there is an item, so that there are columns. A check would end in a trap, and with a trap in reach ptxas does not use
        // the registers that `setmaxnreg` brings.
        unsafe { core::hint::assert_unchecked(self.column_tiles != 0) };
        let near = item / self.column_tiles;
        let [.., band] = self.row_tile(near);
        let first = near - (band & 0xffff);
        Band { first, height: band >> 16, item: item - first * self.column_tiles }
    }

    /// The schedule's entry of a row tile, which exists: expert, first row, rows, band.
    #[inline(always)]
    pub fn row_tile(&self, row_tile: u32) -> [u32; 4] {
        // SAFETY: the tile is one of the schedule; its entry is 16-byte aligned as the schedule is, and no kernel writes the schedule
        // while this one runs.
        unsafe { memory::load_nc(self.schedule.add((FIRST_TILE + row_tile) as usize)) }
    }
}
