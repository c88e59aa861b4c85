//! Counting and placing the rows of one block: steps 1 and 3 of the sort, and the scan over keys between them.
//!
//! Shared memory, in u32 words (`keys = local_experts + 1`):
//!
//! ```text
//! cursors  [ranking_warps][keys]   rows counted by each warp, then each warp's next destination
//! starts   [keys + 1]              first destination of every key; the last entry is one past the last row
//! counts   [keys]                  rows of every key, over all blocks, without padding
//! ```

use super::{Routing, THREADS, WARPS, exclusive_scan};
use cuda_std::shared::Shared;
use cuda_std::{sync, thread, warp};

/// The block's shared memory, and how it is cut.
#[derive(Clone, Copy)]
pub(super) struct Tables {
    cursors: Shared<u32>,
    starts: Shared<u32>,
    counts: Shared<u32>,
    /// Warps that count and place, 1..=32: as many as have rows and as shared memory holds cursors for.
    ranking_warps: u32,
}

/// The rows of a block: `first..end`.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub first: u32,
    pub end: u32,
}

/// Where the sums over all blocks are, when there are several.
#[derive(Clone, Copy)]
pub(super) struct OtherBlocks {
    /// `[keys]`, rows of every key over all blocks.
    pub totals: *const u32,
    /// `[keys][blocks]`, rows of every key in the blocks before.
    pub before: *const u32,
    pub blocks: u32,
    pub block: u32,
}

/// Output lists of the sort, as the kernels' arguments of the same names.
#[derive(Clone, Copy)]
pub(super) struct Outputs {
    pub sorted_rows: *mut i32,
    pub inverse: *mut i32,
    /// Null unless wanted.
    pub row_experts: *mut i32,
    /// P, the length of `sorted_rows` and `row_experts`.
    pub capacity: u32,
}

impl Tables {
    /// Cuts the dynamic shared memory at `base`.
    ///
    /// `base` has room for `(ranking_warps + 2) * keys + 1` words; `1 <= ranking_warps <= 32`.
    #[inline(always)]
    pub fn new(base: Shared<u32>, routing: Routing, ranking_warps: u32) -> Self {
        let starts = base.add(ranking_warps * routing.keys());
        Self { cursors: base, starts, counts: starts.add(routing.keys() + 1), ranking_warps }
    }

    /// Rows of `key` in this block.
    ///
    /// # Safety
    /// After [`count`](Self::count), before [`scan`](Self::scan); `key < keys`.
    #[inline(always)]
    pub unsafe fn counted(self, routing: Routing, key: u32) -> u32 {
        let mut rows = 0;
        let mut warp_id = 0;
        while warp_id < self.ranking_warps {
            // SAFETY: inside `cursors`, which `count` left complete behind a barrier.
            rows += unsafe { self.cursors.add(warp_id * routing.keys() + key).read() };
            warp_id += 1;
        }
        rows
    }

    /// First destination of `key`, and how many rows it has. `key` may be `keys - 1`, the invalid rows.
    ///
    /// # Safety
    /// After [`scan`](Self::scan); `key < keys`.
    #[inline(always)]
    pub unsafe fn region(self, key: u32) -> (u32, u32) {
        // SAFETY: key < keys, and `scan` ends with a barrier.
        unsafe { (self.starts.add(key).read(), self.counts.add(key).read()) }
    }

    /// First destination of `key`; `key == keys` gives one past the last row.
    ///
    /// # Safety
    /// After [`scan`](Self::scan); `key <= keys`.
    #[inline(always)]
    pub unsafe fn start(self, key: u32) -> u32 {
        // SAFETY: `starts` has keys + 1 entries, written before the barrier at the end of `scan`.
        unsafe { self.starts.add(key).read() }
    }

    /// Step 1: `cursors[warp][key]` = rows of `key` among the rows of `warp`.
    ///
    /// # Safety
    /// All threads of the block execute it together; `span` lies in `0..routing.rows`.
    #[inline(always)]
    pub unsafe fn count(self, routing: Routing, span: Span) {
        let words = self.ranking_warps * routing.keys();
        let mut word = thread::thread_idx_x();
        while word < words {
            // SAFETY: inside `cursors`, one writer to each word.
            unsafe { self.cursors.add(word).write(0) };
            word += THREADS;
        }
        sync::block();
        // SAFETY: the walk's contract is this function's; the cursor is this warp's own.
        unsafe { self.walk(routing, span, |_, _, _| ()) };
        sync::block();
    }

    /// Walks this warp's rows in ascending order, advancing its cursors, and calls `place(row, key, cursor + rank)`
    /// on the lane of every row.
    ///
    /// # Safety
    /// All lanes of the warp execute it together; the warp's cursors were written before a barrier.
    #[inline(always)]
    unsafe fn walk(self, routing: Routing, span: Span, place: impl Fn(u32, u32, u32)) {
        let warp_id = thread::warp_id();
        if warp_id >= self.ranking_warps {
            return;
        }
        let cursors = self.cursors.add(warp_id * routing.keys());
        // 32 rows to a step, the same number of steps for every warp but the last ones.
        let steps = (span.end - span.first).div_ceil(32).div_ceil(self.ranking_warps);
        let mut first = span.first + warp_id * steps * 32;
        let end = span.end.min(first + steps * 32);
        while first < end {
            // The loads of four steps are in flight together. A lane past the end gets a key that no row has.
            let row = first + thread::lane_id();
            // SAFETY: a row below `end` is below `rows`.
            let load = |row: u32| if row < end { unsafe { routing.key(row) } } else { u32::MAX };
            let keys = [load(row), load(row + 32), load(row + 64), load(row + 96)];
            // SAFETY: all lanes are here, and every key is that of its row.
            unsafe {
                step(cursors, row, keys[0], &place);
                step(cursors, row + 32, keys[1], &place);
                step(cursors, row + 64, keys[2], &place);
                step(cursors, row + 96, keys[3], &place);
            }
            first += 128;
        }
    }

    /// Step 2: from counts to destinations. Every expert's region is padded to a multiple of `alignment`; with
    /// `others`, counts and the rows of earlier blocks come from there.
    ///
    /// # Safety
    /// All threads of the block execute it together, after [`count`](Self::count); `alignment >= 1`; the lists of
    /// `others` have their stated lengths.
    #[inline(always)]
    pub unsafe fn scan(self, routing: Routing, alignment: u32, others: Option<OtherBlocks>) {
        let keys = routing.keys();
        let mut carry = 0;
        let mut chunk = 0;
        while chunk < keys {
            let key = chunk + thread::thread_idx_x();
            let mut count = 0;
            if key < keys {
                // SAFETY: key < keys; all lists were complete before this step (barrier, or an earlier launch).
                unsafe {
                    match others {
                        Some(others) => count = *others.totals.add(key as usize),
                        None => count = self.counted(routing, key),
                    }
                }
            }
            let padded =
                if key < routing.local_experts { count.div_ceil(alignment) * alignment } else { count };
            // SAFETY: all threads are here: the loop bound is the same for all.
            let (before, total) = unsafe { exclusive_scan(padded) };
            if key < keys {
                let start = carry + before;
                // SAFETY: one thread to each key, so one writer to each word; the barrier below orders them
                // before any other thread's reads.
                unsafe {
                    self.starts.add(key).write(start);
                    self.counts.add(key).write(count);
                    if key == routing.local_experts {
                        self.starts.add(keys).write(start + count);
                    }
                    let mut next = start;
                    if let Some(others) = others {
                        next +=
                            *others.before.add(key as usize * others.blocks as usize + others.block as usize);
                    }
                    let mut warp_id = 0;
                    while warp_id < self.ranking_warps {
                        let cursor = self.cursors.add(warp_id * keys + key);
                        let rows = cursor.read();
                        cursor.write(next);
                        next += rows;
                        warp_id += 1;
                    }
                }
            }
            carry += total;
            chunk += THREADS;
        }
        sync::block();
    }

    /// Step 3: writes `sorted_rows`, `inverse` and `row_experts` of the block's rows.
    ///
    /// # Safety
    /// All threads of the block execute it together, after [`scan`](Self::scan); the outputs have their stated
    /// lengths, and `capacity` is at least the padded number of rows.
    #[inline(always)]
    pub unsafe fn place(self, routing: Routing, span: Span, outputs: Outputs) {
        // SAFETY: destinations are distinct and below `capacity` by the scan, rows are below `routing.rows`.
        unsafe {
            self.walk(routing, span, |row, key, destination| {
                *outputs.sorted_rows.add(destination as usize) = row as i32;
                *outputs.inverse.add(row as usize) = destination as i32;
                if !outputs.row_experts.is_null() {
                    let expert = if key < routing.local_experts { key as i32 } else { -1 };
                    *outputs.row_experts.add(destination as usize) = expert;
                }
            });
        }
    }

    /// Writes the sentinel R to every destination that no row has: the padding of each expert, and everything
    /// from the last row to the capacity. Warp `warp_index` of `warps` (over all blocks) does its share.
    ///
    /// # Safety
    /// After [`scan`](Self::scan); outputs as in [`place`](Self::place).
    #[inline(always)]
    pub unsafe fn fill_padding(self, routing: Routing, outputs: Outputs, warp_index: u32, warps: u32) {
        let lane = thread::lane_id();
        let fill = |from: u32, to: u32, stride: u32, expert: i32| {
            let mut destination = from;
            while destination < to {
                // SAFETY: destination < to <= capacity.
                unsafe {
                    *outputs.sorted_rows.add(destination as usize) = routing.rows as i32;
                    if !outputs.row_experts.is_null() {
                        *outputs.row_experts.add(destination as usize) = expert;
                    }
                }
                destination += stride;
            }
        };
        let mut key = warp_index;
        while key < routing.local_experts {
            // SAFETY: key < keys, after the scan.
            let ((start, count), end) = unsafe { (self.region(key), self.start(key + 1)) };
            fill(start + count + lane, end, 32, key as i32);
            key += warps;
        }
        // SAFETY: `starts` has keys + 1 entries.
        let end = unsafe { self.start(routing.keys()) };
        fill(end + warp_index * 32 + lane, outputs.capacity, warps * 32, -1);
    }
}

/// One step of the walk: a row on every lane. Lanes with key `u32::MAX` have none.
///
/// # Safety
/// All lanes of the warp execute it together; other keys index `cursors`, which only this warp touches.
#[inline(always)]
unsafe fn step(cursors: Shared<u32>, row: u32, key: u32, place: &impl Fn(u32, u32, u32)) {
    let inside = key != u32::MAX;
    let equals = warp::match_any(warp::FULL_MASK, key);
    let rank = (equals & ((1u32 << thread::lane_id()) - 1)).count_ones();
    // SAFETY: the key of a lane inside indexes `cursors`. The two warp barriers keep the reads of all equal lanes
    // before the one write, and the next step's reads after it.
    unsafe {
        let cursor = if inside { cursors.add(key).read() } else { 0 };
        sync::warp(warp::FULL_MASK);
        if inside && rank == 0 {
            cursors.add(key).write(cursor + equals.count_ones());
        }
        sync::warp(warp::FULL_MASK);
        if inside {
            place(row, key, cursor + rank);
        }
    }
}

/// Index of this thread's warp over all blocks of the launch, and how many there are.
#[inline(always)]
pub(super) fn warp_of_grid() -> (u32, u32) {
    (thread::block_idx_x() * WARPS + thread::warp_id(), thread::grid_dim_x() * WARPS)
}
