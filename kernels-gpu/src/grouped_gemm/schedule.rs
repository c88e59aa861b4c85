//! Which part of D a work item is: the device-built tile schedule times the tiles of N.
//!
//! Items are numbered so that blocks that run at the same time share operands in L2. Tiles of rows are taken in
//! bands of [`BAND_ROWS`] rows; inside a band the row tile runs fastest, then the column tile:
//!
//! ```text
//!            n tile 0   1   2   3                 a wave of blocks covers a few columns of a band:
//!  band 0    0          3   6   9    tile 0       B panels are read from memory once for each band,
//!            1          4   7  10    tile 1       the band's rows of A stay in L2
//!            2          5   8  11    tile 2
//!  band 1   12  ...                  tile 3
//! ```

use cuda_std::{memory, warp};

use crate::problem_sizes::FIRST_TILE;

/// Rows of A in a band. At K = 7168 a band of A is 14 MiB, which any GPU with FP8 tensor cores holds in L2.
const BAND_ROWS: u32 = 2048;

/// A work item: `rows` rows of `expert` from permuted row `first_row` on, times the columns from `n0` on.
#[derive(Clone, Copy)]
pub struct Tile {
    pub expert: u32,
    pub first_row: u32,
    pub rows: u32,
    pub n0: u32,
}

impl Tile {
    /// The tile of the same rows, `columns` columns further right, which may be past the last.
    #[cfg(target_feature = "sm_90a")]
    #[inline(always)]
    pub fn right(self, columns: u32) -> Self {
        Self { n0: self.n0 + columns, ..self }
    }

    /// No tile at all.
    pub const NONE: Self = Self { expert: 0, first_row: 0, rows: 0, n0: 0 };
}

/// The work items of a launch.
pub struct WorkList {
    schedule: *const [u32; 4],
    row_tiles: u32,
    column_tiles: u32,
    /// Columns of a tile.
    columns: u32,
    /// Row tiles of a band.
    band: u32,
}

impl WorkList {
    /// Reads the header of the schedule. All lanes of the warp call it together.
    ///
    /// # Safety
    /// `schedule` is a schedule for tiles of `rows` rows, as [`problem_sizes`](crate::problem_sizes) draws it.
    #[inline(always)]
    pub unsafe fn new(schedule: *const [u32; 4], n: u32, rows: u32, columns: u32) -> Self {
        // SAFETY: a schedule begins with its header, whose first element is the number of tiles.
        let [row_tiles, ..] = unsafe { memory::load_nc(schedule) };
        // The same in all lanes; the shuffle says so to ptxas, which then knows that loops over items do not diverge.
        let row_tiles = warp::shfl_idx(warp::FULL_MASK, row_tiles, 0);
        Self { schedule, row_tiles, column_tiles: n.div_ceil(columns), columns, band: BAND_ROWS / rows }
    }

    /// Number of work items.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        self.row_tiles * self.column_tiles
    }

    /// The item with the given number, below [`len`](Self::len).
    #[inline(always)]
    pub fn tile(&self, item: u32) -> Tile {
        let in_full_band = self.band * self.column_tiles;
        // SAFETY: as below.
        unsafe { core::hint::assert_unchecked(in_full_band != 0) };
        let band_start = item / in_full_band * self.band;
        let in_band = item % in_full_band;
        let height = self.band.min(self.row_tiles - band_start);
        // SAFETY: there is an item, so that there are columns and the band has a tile. A check would end in a trap, and with a trap
        // in reach ptxas does not use the registers that `setmaxnreg` brings.
        unsafe { core::hint::assert_unchecked(height != 0) };
        let row_tile = band_start + in_band % height;
        let column_tile = in_band / height;
        // SAFETY: `row_tile < row_tiles`, so the entry exists; it is 16-byte aligned as the schedule is, and no
        // kernel writes the schedule while this one runs.
        let [expert, first_row, rows, _] =
            unsafe { memory::load_nc(self.schedule.add((FIRST_TILE + row_tile) as usize)) };
        Tile { expert, first_row, rows, n0: column_tile * self.columns }
    }
}
