//! What the grouped GEMMs walk: the problem size of every expert, and the list of row tiles.
//!
//! Both come from `expert_offsets` and are built on the device, so that the host never waits for the routing. The
//! permutation writes them in its last launch; the kernels here do it from offsets that come from elsewhere.
//!
//! ```text
//! expert_offsets   0      70  70          300      block_m = 64: expert 0 has 70 rows, 1 none, 2 has 230
//! row tiles        |64  |6||  |64 |64 |64 |38|
//!
//! schedule, 16 bytes to an entry:
//!   { 6, 64, 300, 0 }                 tile count, block_m, rows over all experts, 0
//!   { 0, 0, 0, 0 } x 64               counters, at 0, for kernels that cut a tile's sum into parts
//!   { 0,   0, 64, 0 }  { 0,  64, 6, 0 }          expert, first row, rows in the tile, 0
//!   { 2,  70, 64, 0 }  { 2, 134, 64, 0 }  { 2, 198, 64, 0 }  { 2, 262, 38, 0 }
//! ```
//!
//! Tiles are in ascending order of their first row. There are at most `rows / block_m + min(local_experts, rows)`.

use crate::permute::{THREADS, exclusive_scan};
use cuda_std::shared::Shared;
use cuda_std::{kernel, memory, shared_array, sync, thread};

/// Counters in a schedule: u32, one for each block of a GEMM's grid.
pub(crate) const COUNTERS: u32 = 256;

/// The entry of a schedule's first tile: behind the header and four counters to an entry.
pub(crate) const FIRST_TILE: u32 = 1 + COUNTERS / 4;

/// Where the problem sizes go: `[local_experts, 3]` each, null if not wanted.
#[derive(Clone, Copy)]
pub(crate) struct ProblemSizes {
    pub sizes1: *mut i32,
    pub sizes2: *mut i32,
    pub hidden: u32,
    pub intermediate: u32,
    /// The weights take the place of the rows: `(n, m, k)`.
    pub swap_operands: bool,
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
            let (first, second) = if self.swap_operands { (n, m) } else { (m, n) };
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

/// Where the tile schedule goes, and what tiles it has.
#[derive(Clone, Copy)]
pub(crate) struct TileSchedule {
    /// `[FIRST_TILE + tiles]`, 16-byte aligned.
    pub entries: *mut [u32; 4],
    /// Most rows of a tile.
    pub block_m: u32,
    pub local_experts: u32,
}

impl TileSchedule {
    /// Builds the schedule with one block. `region(expert)` is the expert's first row, and its end.
    ///
    /// A thousand experts at a time: each thread counts the tiles of one, a scan gives every expert its first tile,
    /// and then each thread writes tiles, finding a tile's expert by binary search over the first tiles. So one
    /// expert with all the rows costs no more than an even split.
    ///
    /// # Safety
    /// All [`THREADS`] threads of the block execute it together, and `region` gives all threads the same.
    #[inline(always)]
    pub unsafe fn write(self, region: impl Fn(u32) -> (u32, u32)) {
        // first_tiles[i] is the first tile of the chunk's expert i, counted from the chunk's first.
        let first_tiles = shared_array!(tile_schedule.first_tiles: [u32; 1024]);
        let mut tiles_before = 0;
        let mut chunk = 0;
        while chunk < self.local_experts {
            let expert = chunk + thread::thread_idx_x();
            let mut tiles = 0;
            if expert < self.local_experts {
                let (first_row, end) = region(expert);
                tiles = (end - first_row).div_ceil(self.block_m);
            }
            // SAFETY: all threads are here, and each writes its own word; the barrier orders them before the reads.
            let chunk_tiles = unsafe {
                let (first_tile, chunk_tiles) = exclusive_scan(tiles);
                first_tiles.add(thread::thread_idx_x()).write(first_tile);
                chunk_tiles
            };
            sync::block();
            let mut tile = thread::thread_idx_x();
            while tile < chunk_tiles {
                // SAFETY: first_tiles[0] = 0 <= tile, and all THREADS words are written.
                let (index, first_tile) = unsafe { last_at_or_below(first_tiles, tile) };
                let (first_row, end) = region(chunk + index);
                let row = first_row + (tile - first_tile) * self.block_m;
                // SAFETY: the tile count over all experts bounds the entry.
                unsafe {
                    self.write_entry(
                        FIRST_TILE + tiles_before + tile,
                        [chunk + index, row, self.block_m.min(end - row)],
                    );
                }
                tile += THREADS;
            }
            tiles_before += chunk_tiles;
            chunk += THREADS;
            // The next chunk writes `first_tiles` again.
            sync::block();
        }
        let counters = 1 + thread::thread_idx_x();
        if counters < FIRST_TILE {
            // SAFETY: the entry is one of those before the tiles.
            unsafe { self.write_entry(counters, [0; 3]) };
        }
        if thread::thread_idx_x() == 0 {
            let rows = if self.local_experts == 0 { 0 } else { region(self.local_experts - 1).1 };
            // SAFETY: entry 0 always exists.
            unsafe { self.write_entry(0, [tiles_before, self.block_m, rows]) };
        }
    }

    /// # Safety
    /// `index` is below the number of entries.
    #[inline(always)]
    unsafe fn write_entry(self, index: u32, [x, y, z]: [u32; 3]) {
        // SAFETY: the entry exists by the caller's contract, and is 16-byte aligned.
        unsafe { memory::store(self.entries.add(index as usize), [x, y, z, 0]) };
    }
}

/// The last index whose word is at most `value` in the ascending `words [THREADS]`, and that word.
///
/// # Safety
/// `words[0] <= value`, and no thread writes the words meanwhile.
#[inline(always)]
unsafe fn last_at_or_below(words: Shared<u32>, value: u32) -> (u32, u32) {
    const { assert!(THREADS.is_power_of_two()) };
    let mut index = 0;
    let mut step = THREADS / 2;
    while step > 0 {
        // SAFETY: index + step < THREADS: the steps are distinct powers of two below it.
        if unsafe { words.add(index + step).read() } <= value {
            index += step;
        }
        step /= 2;
    }
    // SAFETY: index < THREADS.
    (index, unsafe { words.add(index).read() })
}

/// Writes the problem sizes from the offsets, one thread to an expert.
///
/// Launch: `ceil(local_experts / 128)` blocks.
///
/// # Safety
/// `expert_offsets [local_experts + 1]`, `problem_sizes1` and `problem_sizes2` `[local_experts, 3]` or null.
#[kernel(threads = 128, min_blocks = 1)]
pub unsafe fn problem_sizes(
    expert_offsets: *const i64,
    problem_sizes1: *mut i32,
    problem_sizes2: *mut i32,
    local_experts: u32,
    hidden: u32,
    intermediate: u32,
    swap_operands: u32,
) {
    let expert = thread::index_1d();
    if expert >= local_experts {
        return;
    }
    let sizes = ProblemSizes {
        sizes1: problem_sizes1,
        sizes2: problem_sizes2,
        hidden,
        intermediate,
        swap_operands: swap_operands != 0,
    };
    // SAFETY: expert < local_experts, and the lists have their stated lengths.
    unsafe {
        let rows = *expert_offsets.add(expert as usize + 1) - *expert_offsets.add(expert as usize);
        sizes.write(expert, rows as u32);
    }
}

/// Builds the tile schedule from the offsets.
///
/// Launch: one block.
///
/// # Safety
/// `expert_offsets [local_experts + 1]`, ascending, from 0 to less than 2^31; `schedule [FIRST_TILE + tiles]`,
/// 16-byte aligned; `block_m >= 1`.
#[kernel(threads = 1024, min_blocks = 1)]
pub unsafe fn tile_schedule(
    expert_offsets: *const i64,
    schedule: *mut [u32; 4],
    local_experts: u32,
    block_m: u32,
) {
    // SAFETY: the arguments are as the contract says; expert < local_experts wherever `region` is called.
    unsafe {
        TileSchedule { entries: schedule, block_m, local_experts }.write(|expert| {
            let offsets = expert_offsets.add(expert as usize);
            (*offsets as u32, *offsets.add(1) as u32)
        });
    }
}
