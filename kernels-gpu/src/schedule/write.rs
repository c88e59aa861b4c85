//! The tile schedule from the experts' rows: written by the permutation on its way, or by the kernel
//! `tile_schedule` from offsets that come from elsewhere.

use cuda_std::{arguments, kernel, memory, sync, thread};

use super::entry::{COUNTERS_AT_ZERO, Entry, FIRST_TILE, Header};
use crate::scan::{THREADS, exclusive_scan};

/// Most rows of a band. At K = 7168 their A is 14 MiB, which any GPU with FP8 tensor cores holds in L2.
const BAND_ROWS: u32 = 2048;

/// Where the tile schedule goes, and what tiles it has. A thread to an expert writes it, once a scan over the
/// experts' tiles says where each begins.
#[arguments]
pub(crate) struct TileSchedule {
    /// `[FIRST_TILE + tiles]`, 16-byte aligned; null if not wanted.
    pub entries: *mut [u32; 4],
    /// Most rows of a tile, at least 1.
    pub block_m: u32,
}

impl TileSchedule {
    /// Tiles of an expert with `rows` rows.
    #[inline(always)]
    pub fn tiles(self, rows: u32) -> u32 {
        // A division takes longer, and stands between two barriers.
        if self.block_m.is_power_of_two() {
            (rows + self.block_m - 1) >> self.block_m.trailing_zeros()
        } else {
            rows.div_ceil(self.block_m)
        }
    }

    /// Writes this block's share of the `tiles` of an expert, whose rows are `first_row .. first_row + rows`:
    /// every so many-th tile. So one expert with all the rows costs no block more than its share.
    ///
    /// # Safety
    /// `tiles` is that of `rows`; the entries exist, from `first_tile` on behind the header; `first_row +
    /// rows < 2^31`.
    #[inline(always)]
    pub unsafe fn write_tiles(self, expert: u32, first_tile: u32, tiles: u32, first_row: u32, rows: u32) {
        if self.entries.is_null() {
            return;
        }
        let end = first_row + rows;
        // Most experts have one band, which takes no division.
        let bands = rows.div_ceil(BAND_ROWS.max(self.block_m));
        let height = if bands <= 1 { tiles } else { tiles.div_ceil(bands) };
        let mut tile = thread::block_idx_x();
        while tile < tiles {
            let row = first_row + tile * self.block_m;
            let number = if bands <= 1 { tile } else { tile % height };
            let band_rows = (height * self.block_m).min(rows - (tile - number) * self.block_m);
            // SAFETY: tile < tiles of the expert.
            unsafe {
                let entry =
                    Entry { expert, first_row: row, rows: self.block_m.min(end - row), band_rows, number };
                self.write_entry(FIRST_TILE + first_tile + tile, entry.pack());
            }
            tile += thread::grid_dim_x();
        }
    }

    /// Writes what comes before the first tile.
    ///
    /// # Safety
    /// All [`THREADS`] threads of one block execute it; the entries exist.
    #[inline(always)]
    pub unsafe fn write_header(self, tiles: u32, rows: u32) {
        const { assert!(THREADS >= FIRST_TILE) };
        let index = thread::thread_idx_x();
        if !self.entries.is_null() && index < FIRST_TILE {
            let header = Header { tiles, block_m: self.block_m, rows };
            let entry = if index == 0 { header.pack() } else { COUNTERS_AT_ZERO };
            // SAFETY: the entry is one of those before the tiles.
            unsafe { self.write_entry(index, entry) };
        }
    }

    /// # Safety
    /// `index` is below the number of entries.
    #[inline(always)]
    unsafe fn write_entry(self, index: u32, entry: [u32; 4]) {
        // SAFETY: the entry exists by the caller's contract, and is 16-byte aligned.
        unsafe { memory::store(self.entries.add(index as usize), entry) };
    }
}

/// Arguments of the kernel `tile_schedule`.
#[arguments]
pub(crate) struct WriteTileSchedule {
    /// i64 `[local_experts + 1]`, ascending from 0 to less than 2^31.
    pub expert_offsets: *const i64,
    /// Experts of this rank.
    pub local_experts: u32,
    /// Where the schedule goes.
    pub schedule: crate::schedule::write::TileSchedule,
}

/// Builds the tile schedule from the offsets.
///
/// Launch: any number of blocks; each scans all experts, and writes its share of every expert's tiles.
///
/// # Safety
/// The lists are as the arguments say; the schedule has an entry for every tile.
#[kernel(threads = THREADS, min_blocks = 2)]
pub unsafe fn tile_schedule(arguments: WriteTileSchedule) {
    let WriteTileSchedule { expert_offsets, local_experts, schedule } = arguments;
    let mut tiles_before = 0;
    let mut chunk = 0;
    while chunk < local_experts {
        let expert = chunk + thread::thread_idx_x();
        let (mut first_row, mut rows) = (0, 0);
        if expert < local_experts {
            // SAFETY: expert < local_experts, and there is one more offset.
            unsafe {
                let offsets = expert_offsets.add(expert as usize);
                first_row = *offsets as u32;
                rows = *offsets.add(1) as u32 - first_row;
            }
        }
        // SAFETY: all threads are here: the loop bound is the same for all, and a barrier follows every scan.
        // The tile count over all experts bounds the tiles.
        unsafe {
            let tiles = schedule.tiles(rows);
            let ([_, first_tile], [_, all_tiles]) = exclusive_scan([0, tiles]);
            schedule.write_tiles(expert, tiles_before + first_tile, tiles, first_row, rows);
            tiles_before += all_tiles;
        }
        chunk += THREADS;
        sync::block();
    }
    if thread::block_idx_x() == 0 {
        // SAFETY: the last offset exists, and all threads are here.
        unsafe {
            schedule.write_header(tiles_before, *expert_offsets.add(local_experts as usize) as u32);
        }
    }
}
