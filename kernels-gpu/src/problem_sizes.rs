//! What the grouped GEMMs walk: the problem size of every expert, and the list of row tiles.
//!
//! Both come from `expert_offsets` and are built on the device, so that the host never waits for the routing.
//! The permutation writes them on its way; the kernels here do it from offsets that come from elsewhere.
//!
//! ```text
//! expert_offsets   0      70  70          300      block_m = 64: expert 0 has 70 rows, 1 none, 2 has 230
//! row tiles        |64  |6||  |64 |64 |64 |38|
//!
//! schedule, 16 bytes to an entry:
//!   { 6, 64, 300, 0 }                 tile count, block_m, rows over all experts, 0
//!   { 0, 0, 0, 0 } x 64               counters, at 0, for kernels that cut a tile's sum into parts
//!   { 0,   0, 64,  70:0 }  { 0,  64, 6,  70:1 }      expert, first row, rows in the tile, band
//!   { 2,  70, 64, 230:0 }  { 2, 134, 64, 230:1 }  { 2, 198, 64, 230:2 }  { 2, 262, 38, 230:3 }
//! ```
//!
//! Tiles are in ascending order of their first row. There are at most `rows / block_m + min(local_experts,
//! rows)`.
//!
//! A band is what a GEMM multiplies by one panel of weights before it takes the next: the tiles of an expert,
//! in equal parts where they have more than [`BAND_ROWS`] rows. `band` holds the band's rows (65535 for more,
//! which only a tile of its own has), and in the lower 16 bits the tile's number in it (above, 230:1): from
//! one entry follow all tiles of its band.

use crate::permute::{THREADS, exclusive_scan};
use cuda_std::code::Flag;
use cuda_std::{arguments, host, kernel, memory, sync, thread};

/// Counters in a schedule: u32, one for each block of a GEMM's grid.
#[host]
pub(crate) const SCHEDULE_COUNTERS: u32 = 256;

/// The entry of a schedule's first tile: behind the header and four counters to an entry.
#[host]
pub(crate) const FIRST_TILE: u32 = 1 + SCHEDULE_COUNTERS / 4;

/// Most rows of a band. At K = 7168 their A is 14 MiB, which any GPU with FP8 tensor cores holds in L2.
const BAND_ROWS: u32 = 2048;

/// Where the problem sizes go.
#[arguments]
pub(crate) struct ProblemSizes {
    /// i32 `[local_experts, 3]`: `(m, 2I, H)`; null if not wanted.
    pub sizes1: *mut i32,
    /// i32 `[local_experts, 3]`: `(m, H, I)`; null if not wanted.
    pub sizes2: *mut i32,
    /// H.
    pub hidden: u32,
    /// I.
    pub intermediate: u32,
    /// The weights take the place of the rows: `(n, m, k)`.
    pub swap_operands: Flag,
}

impl ProblemSizes {
    /// Writes the two problems of `expert`: `(m, 2I, H)` and `(m, H, I)`.
    ///
    /// # Safety
    /// `expert` is below the lists' length.
    #[inline(always)]
    pub unsafe fn write(self, expert: u32, m: u32) {
        let write = |sizes: *mut i32, n: u32, k: u32| {
            if sizes.is_null() {
                return;
            }
            let (first, second) = if self.swap_operands.is_set() { (n, m) } else { (m, n) };
            // SAFETY: entries 3*expert .. 3*expert + 3 exist by the caller's contract.
            unsafe {
                let size = sizes.add(expert as usize * 3);
                *size = first as i32;
                *size.add(1) = second as i32;
                *size.add(2) = k as i32;
            }
        };
        write(self.sizes1, 2 * self.intermediate, self.hidden);
        write(self.sizes2, self.hidden, self.intermediate);
    }
}

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
            let band_rows = (height * self.block_m).min(rows - (tile - number) * self.block_m).min(0xffff);
            // SAFETY: tile < tiles of the expert.
            unsafe {
                let entry = [expert, row, self.block_m.min(end - row), band_rows << 16 | number];
                self.write_entry(FIRST_TILE + first_tile + tile, entry);
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
            let entry = if index == 0 { [tiles, self.block_m, rows, 0] } else { [0; 4] };
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

/// Experts of a block of the kernel `problem_sizes`, a thread each.
#[host]
pub(crate) const PROBLEM_SIZES_EXPERTS: u32 = 128;

/// Arguments of the kernel `problem_sizes`.
#[arguments]
pub(crate) struct WriteProblemSizes {
    /// i64 `[local_experts + 1]`.
    pub expert_offsets: *const i64,
    /// Experts of this rank.
    pub local_experts: u32,
    /// Where the problem sizes go.
    pub sizes: crate::problem_sizes::ProblemSizes,
}

/// Writes the problem sizes from the offsets, one thread to an expert.
///
/// Launch: a block for every [`PROBLEM_SIZES_EXPERTS`].
///
/// # Safety
/// The lists have their stated lengths.
#[kernel(threads = PROBLEM_SIZES_EXPERTS, min_blocks = 1)]
pub unsafe fn problem_sizes(arguments: WriteProblemSizes) {
    let WriteProblemSizes { expert_offsets, local_experts, sizes } = arguments;
    let expert = thread::index_1d();
    if expert >= local_experts {
        return;
    }
    // SAFETY: expert < local_experts, and the lists have their stated lengths.
    unsafe {
        let rows = *expert_offsets.add(expert as usize + 1) - *expert_offsets.add(expert as usize);
        sizes.write(expert, rows as u32);
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
    pub schedule: crate::problem_sizes::TileSchedule,
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
