//! The format of a tile schedule. It is packed and unpacked here alone.
//!
//! ```text
//! expert_offsets   0      70  70          300      block_m = 64: expert 0 has 70 rows, 1 none, 2 has 230
//! row tiles        |64  |6||  |64 |64 |64 |38|
//!
//! schedule, 16 bytes to an entry:
//!   { 6, 64, 300, 0 }                 tile count, block_m, rows over all experts, 0
//!   { 0, 0, 0, 0 } x 64               counters, at 0, for kernels that cut a tile's sum into parts, or draw
//!                                     the next tile
//!   { 0,   0, 64,  70:0 }  { 0,  64, 6,  70:1 }      expert, first row, rows in the tile, band
//!   { 2,  70, 64, 230:0 }  { 2, 134, 64, 230:1 }  { 2, 198, 64, 230:2 }  { 2, 262, 38, 230:3 }
//! ```
//!
//! Tiles are in ascending order of their first row. There are at most `rows / block_m + min(local_experts,
//! rows)`.
//!
//! A band is what a GEMM multiplies by one panel of weights before it takes the next: the tiles of an expert,
//! in equal parts where they have more rows than a band may ([`write`](super::write)). The upper half of the
//! last word holds the band's rows (65535 for more, which only a tile of its own has), the lower half the
//! tile's number in it (above, 230:1): from one entry follow all tiles of its band.

use cuda_std::host;

/// Counters in a schedule: u32, one for each block of a GEMM's grid.
#[host]
pub(crate) const SCHEDULE_COUNTERS: u32 = 256;

/// The entry of a schedule's first tile: behind the header and four counters to an entry.
#[host]
pub(crate) const FIRST_TILE: u32 = 1 + SCHEDULE_COUNTERS / 4;

/// What comes before everything else.
#[derive(Clone, Copy)]
pub(crate) struct Header {
    /// How many tiles there are.
    pub tiles: u32,
    /// Most rows of a tile.
    pub block_m: u32,
    /// Rows over all experts.
    pub rows: u32,
}

impl Header {
    #[inline(always)]
    pub fn pack(self) -> [u32; 4] {
        [self.tiles, self.block_m, self.rows, 0]
    }

    #[inline(always)]
    pub fn unpack([tiles, block_m, rows, _]: [u32; 4]) -> Self {
        Self { tiles, block_m, rows }
    }
}

/// Four counters that nobody has counted on.
pub(crate) const COUNTERS_AT_ZERO: [u32; 4] = [0; 4];

/// The counters of a schedule, which follow its header.
///
/// # Safety
/// `schedule` is a schedule.
#[cfg(target_feature = "sm_90a")]
#[inline(always)]
pub(crate) unsafe fn counters(schedule: *mut [u32; 4]) -> *mut u32 {
    // SAFETY: the caller's contract.
    unsafe { schedule.add(1) }.cast()
}

/// Most rows of a band that an entry can tell.
const MOST_BAND_ROWS: u32 = 0xffff;

/// A tile, and where it is in its band.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    /// Whose rows they are.
    pub expert: u32,
    /// The first, among the permuted rows.
    pub first_row: u32,
    /// Rows of the tile.
    pub rows: u32,
    /// Rows of the band.
    pub band_rows: u32,
    /// The tile's number in its band.
    pub number: u32,
}

impl Entry {
    /// Where the schedule has the entry of `tile`.
    #[inline(always)]
    pub fn address(schedule: *const [u32; 4], tile: u32) -> *const [u32; 4] {
        schedule.wrapping_add((FIRST_TILE + tile) as usize)
    }

    #[inline(always)]
    pub fn pack(self) -> [u32; 4] {
        let band = self.band_rows.min(MOST_BAND_ROWS) << 16 | self.number;
        [self.expert, self.first_row, self.rows, band]
    }

    #[inline(always)]
    pub fn unpack([expert, first_row, rows, band]: [u32; 4]) -> Self {
        Self { expert, first_row, rows, band_rows: band >> 16, number: band & 0xffff }
    }
}
