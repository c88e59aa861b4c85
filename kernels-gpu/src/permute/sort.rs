//! The sort: one launch over any number of blocks, from ids to tile schedule.
//!
//! ```text
//! warps with rows                              all threads
//!    load own ids  ─────────────┐                 zero the tables
//!                            ── barrier ──────────────────────────
//!    match equal keys, count,                     several blocks: count all ids, before the
//!    keep ranks in registers                      block's rows and from there on
//!                            ── barrier ──────────────────────────
//!    thread per key: sums of the warps before, rows of the key over all blocks,
//!    scan over keys (one barrier inside) ─▶ first destination; a second scan ─▶ first tile
//!    block 0: offsets, problem sizes; all blocks: tiles, each its share
//!                            ── barrier ──────────────────────────
//!    destination = base[key] + cursor[warp][key] + rank: write it  │  all threads: padding
//! ```
//!
//! A handful of rows costs one trip to memory for the ids, four barriers, and the stores. Where there are
//! several blocks the work of each grows with all rows, but only by a shared-memory atomic per 32 ids.

use super::Routing;
use super::tables::{MAX_STEPS, Ranked, Tables};
use crate::scan::{THREADS, WARPS, exclusive_scan};
use crate::schedule::problem_sizes::ProblemSizes;
use crate::schedule::write::TileSchedule;
use cuda_std::{arguments, grid, kernel, memory, shared, sync, thread};

/// Output lists of the sort.
#[arguments]
pub(crate) struct PermutedRows {
    /// i32 `[capacity]`, destination to expanded row.
    pub sorted_rows: *mut i32,
    /// i32 `[rows]`, expanded row to destination.
    pub inverse: *mut i32,
    /// i32 `[capacity]`, destination to local expert; null unless wanted.
    pub row_experts: *mut i32,
    /// P, the length of `sorted_rows` and `row_experts`: at least the padded number of rows.
    pub capacity: u32,
}

/// Arguments of the kernel `permute`.
#[arguments]
pub(crate) struct Permute {
    /// Which rows there are, and where each belongs.
    pub routing: crate::permute::Routing,
    /// i64 `[local_experts + 1]`.
    pub expert_offsets: *mut i64,
    /// The lists of rows.
    pub outputs: crate::permute::sort::PermutedRows,
    /// What every expert's region is padded to a multiple of, at least 1.
    pub alignment: u32,
    /// Warps of a block that have rows, 1 to 16.
    pub ranking_warps: u32,
    /// Rows of a thread, 1 to 4.
    pub steps: u32,
    /// Where the problem sizes go.
    pub sizes: crate::schedule::problem_sizes::ProblemSizes,
    /// Where the tile schedule goes.
    pub schedule: crate::schedule::write::TileSchedule,
}

/// Sorts the rows, and writes problem sizes and tile schedule where their pointers are not null.
///
/// Launch: `ceil(rows / (32 * ranking_warps * steps))` blocks; dynamic shared memory for the
/// [tables](super::tables::permute_table_bytes).
///
/// # Safety
/// The lists have their stated lengths. Without a map `experts == local_experts`; with one, there is an
/// expert.
#[kernel(threads = THREADS, min_blocks = 2)]
pub unsafe fn permute(arguments: Permute) {
    let Permute { routing, expert_offsets, outputs, sizes, schedule, alignment, ranking_warps, steps } =
        arguments;
    let Routing { topk_ids, rows, local_experts, .. } = routing;
    let tables = Tables { base: shared::dynamic(), keys: routing.keys(), pairs: ranking_warps.div_ceil(2) };
    let warp_id = thread::warp_id();
    let ranks_rows = warp_id < ranking_warps;
    let (block, blocks) = (thread::block_idx_x(), thread::grid_dim_x());
    let first_of_block = block * (32 * ranking_warps * steps);
    let first_row = first_of_block + warp_id * (32 * steps) + thread::lane_id();

    // SAFETY: the arguments are as the contract says. Whole warps rank or do not; all else is the same for
    // all threads, and the barriers are as each step asks.
    unsafe {
        tables.zero();
        grid::wait();
        grid::launch_dependents();
        let id = |step: u32| {
            let row = first_row + 32 * step;
            let inside = ranks_rows && step < steps && row < rows;
            if inside { Some(memory::load(topk_ids.add(row as usize))) } else { None }
        };
        let ids = [id(0), id(1), id(2), id(3)];
        sync::block();
        let mut ranked = Ranked { keys: [0; MAX_STEPS], ranks: [0; MAX_STEPS] };
        if ranks_rows {
            ranked = tables.rank(routing, steps, ids);
        }
        if blocks > 1 {
            tables.count_all(routing, first_of_block);
        }
        sync::block();
        let tiles = scan_keys(tables, routing, alignment, expert_offsets, sizes, schedule);
        if block == 0 {
            schedule.write_header(tiles, tables.base(local_experts).read());
        }
        if ranks_rows {
            let place = |step: u32| {
                let row = first_row + 32 * step;
                if step < steps && row < rows {
                    let (key, rank) = (ranked.keys[step as usize], ranked.ranks[step as usize]);
                    outputs.place(tables, local_experts, row, key, rank);
                }
            };
            place(0);
            place(1);
            place(2);
            place(3);
        }
        outputs.fill_padding(tables, routing, alignment);
    }
}

/// Turns counts into destinations, and writes what follows from the counts alone: in block 0 the offsets of
/// all experts and their problem sizes, in every block its share of the tiles. Returns the number of tiles.
///
/// # Safety
/// All threads of the block execute it together, behind a barrier after the counting; the lists are the
/// kernel's.
#[inline(always)]
unsafe fn scan_keys(
    tables: Tables,
    routing: Routing,
    alignment: u32,
    expert_offsets: *mut i64,
    sizes: ProblemSizes,
    schedule: TileSchedule,
) -> u32 {
    let (block, blocks) = (thread::block_idx_x(), thread::grid_dim_x());
    let (mut rows_before, mut tiles_before) = (0, 0);
    let mut chunk = 0;
    while chunk < tables.keys {
        let key = chunk + thread::thread_idx_x();
        let (mut before, mut count, mut padded, mut tiles) = (0, 0, 0, 0);
        if key < tables.keys {
            // SAFETY: key < keys, one thread to each key.
            unsafe {
                count = tables.sum_warps(key);
                if blocks > 1 {
                    before = tables.base(key).read();
                    count = before + tables.end(key).read();
                }
            }
            if key < routing.local_experts {
                padded = if alignment == 1 { count } else { count.div_ceil(alignment) * alignment };
                tiles = schedule.tiles(padded);
            }
        }
        // SAFETY: all threads are here: the loop bound is the same for all. Every call is followed by a
        // barrier.
        let (sums, totals) = unsafe { exclusive_scan([padded, tiles]) };
        if key < tables.keys {
            let start = rows_before + sums[0];
            // SAFETY: one thread to each key, so one writer to each word; the offsets have `keys` entries,
            // the sizes one to an expert, and the tile count over all experts bounds the tiles.
            unsafe {
                tables.base(key).write(start + before);
                tables.end(key).write(start + count);
                if block == 0 {
                    *expert_offsets.add(key as usize) = i64::from(start);
                }
                if key < routing.local_experts {
                    if block == 0 {
                        sizes.write(key, padded);
                    }
                    schedule.write_tiles(key, tiles_before + sums[1], tiles, start, padded);
                }
            }
        }
        rows_before += totals[0];
        tiles_before += totals[1];
        chunk += THREADS;
        sync::block();
    }
    tiles_before
}

impl PermutedRows {
    /// Writes `sorted_rows`, `inverse` and `row_experts` of one row.
    ///
    /// # Safety
    /// After [`scan_keys`], by the warp that ranked the row; the outputs have their stated lengths.
    #[inline(always)]
    unsafe fn place(self, tables: Tables, local_experts: u32, row: u32, key: u32, rank: u32) {
        // SAFETY: destinations are distinct and below `capacity` by the scan, rows are below the number of
        // rows.
        unsafe {
            let destination = tables.base(key).read() + u32::from(tables.cursor(key).read()) + rank;
            *self.sorted_rows.add(destination as usize) = row as i32;
            *self.inverse.add(row as usize) = destination as i32;
            if !self.row_experts.is_null() {
                let expert = if key < local_experts { key as i32 } else { -1 };
                *self.row_experts.add(destination as usize) = expert;
            }
        }
    }

    /// Writes the sentinel R to every destination that no row has: the padding of each expert, and everything
    /// from the last row to the capacity. Every block does its share.
    ///
    /// # Safety
    /// After [`scan_keys`]; the outputs have their stated lengths.
    #[inline(always)]
    unsafe fn fill_padding(self, tables: Tables, routing: Routing, alignment: u32) {
        if self.capacity == routing.rows {
            return;
        }
        let fill = |from: u32, to: u32, stride: u32, expert: i32| {
            let mut destination = from;
            while destination < to {
                // SAFETY: destination < to <= capacity.
                unsafe {
                    *self.sorted_rows.add(destination as usize) = routing.rows as i32;
                    if !self.row_experts.is_null() {
                        *self.row_experts.add(destination as usize) = expert;
                    }
                }
                destination += stride;
            }
        };
        let (block, blocks) = (thread::block_idx_x(), thread::grid_dim_x());
        let mut key = block * WARPS + thread::warp_id();
        while key < routing.local_experts {
            // SAFETY: key < keys, after the scan. Regions begin at multiples of the alignment, so they end at
            // one.
            let end = unsafe { tables.end(key).read() };
            fill(end + thread::lane_id(), end.div_ceil(alignment) * alignment, 32, key as i32);
            key += blocks * WARPS;
        }
        // SAFETY: the last key is that of the invalid rows, which come last.
        let end = unsafe { tables.end(routing.local_experts).read() };
        fill(end + thread::index_1d(), self.capacity, blocks * THREADS, -1);
    }
}
