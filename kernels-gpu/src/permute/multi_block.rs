//! The sort for any number of rows, in three launches over any number of blocks.
//!
//! ```text
//! permute_count    block b counts the rows of its span      -> before[key][b]
//! permute_scan     warp per key: scan over the blocks       -> before[key][b] = rows in blocks 0..b, totals[key]
//! permute_place    every block scans the keys again from `totals` (a few hundred words), ranks its own rows,
//!                  places them; block 0 also writes offsets, problem sizes and tile schedule
//! ```
//!
//! Workspace, u32: `before [keys][blocks]`, then `totals [keys]`.

use super::ranking::{OtherBlocks, Outputs, Span, Tables, warp_of_grid};
use super::single_block::write_offsets_and_sizes;
use super::{Routing, THREADS};
use crate::problem_sizes::{ProblemSizes, TileSchedule};
use cuda_std::{kernel, shared, thread, warp};

/// The rows of this block when every block takes `rows_per_block`.
#[inline(always)]
fn span_of_block(rows: u32, rows_per_block: u32) -> Span {
    let first = (thread::block_idx_x() * rows_per_block).min(rows);
    Span { first, end: first + rows_per_block.min(rows - first) }
}

/// Counts the rows of every key in every block: `before[key][block]`.
///
/// Launch: `ceil(rows / rows_per_block)` blocks; dynamic shared memory as `permute_single_block`.
///
/// # Safety
/// `topk_ids [rows]`, `expert_map [experts]` or null, `before [local_experts + 1, blocks]`;
/// `1 <= ranking_warps <= 32`; without a map `experts == local_experts`.
#[kernel(threads = 1024, min_blocks = 1)]
pub unsafe fn permute_count(
    topk_ids: *const i32,
    expert_map: *const i32,
    before: *mut u32,
    rows: u32,
    experts: u32,
    local_experts: u32,
    rows_per_block: u32,
    ranking_warps: u32,
) {
    let routing = Routing { topk_ids, expert_map, rows, experts, local_experts };
    let span = span_of_block(rows, rows_per_block);
    let (block, blocks) = (thread::block_idx_x() as usize, thread::grid_dim_x() as usize);
    // SAFETY: the arguments are as the contract says, and all threads walk the same path.
    unsafe {
        let tables = Tables::new(shared::dynamic(), routing, ranking_warps);
        tables.count(routing, span);
        let mut key = thread::thread_idx_x();
        while key < routing.keys() {
            *before.add(key as usize * blocks + block) = tables.counted(routing, key);
            key += THREADS;
        }
    }
}

/// Scans every key's counts over the blocks, in place, and writes the sums to `totals`.
///
/// Launch: a warp per key, `ceil(keys / 8)` blocks.
///
/// # Safety
/// `before [keys, blocks]` as `permute_count` leaves it, `totals [keys]`.
#[kernel(threads = 256, min_blocks = 4)]
pub unsafe fn permute_scan(before: *mut u32, totals: *mut u32, keys: u32, blocks: u32) {
    let key = thread::block_idx_x() * 8 + thread::warp_id();
    if key >= keys {
        return;
    }
    let lane = thread::lane_id();
    // SAFETY: key < keys, and block < blocks wherever an element is touched; one lane to each element.
    unsafe {
        let row = before.add(key as usize * blocks as usize);
        let mut carry = 0;
        let mut first = 0;
        while first < blocks {
            let block = first + lane;
            let count = if block < blocks { *row.add(block as usize) } else { 0 };
            let inclusive = warp::inclusive_scan_add(count);
            if block < blocks {
                *row.add(block as usize) = carry + inclusive - count;
            }
            carry += warp::shfl_idx(warp::FULL_MASK, inclusive, 31);
            first += 32;
        }
        if lane == 0 {
            *totals.add(key as usize) = carry;
        }
    }
}

/// Places the rows of every block, and writes what `permute_single_block` writes.
///
/// Launch: grid and dynamic shared memory as `permute_count`.
///
/// # Safety
/// As `permute_single_block`; `before [local_experts + 1, blocks]` and `totals [local_experts + 1]` as
/// `permute_scan` leaves them.
#[kernel(threads = 1024, min_blocks = 1)]
pub unsafe fn permute_place(
    topk_ids: *const i32,
    expert_map: *const i32,
    before: *const u32,
    totals: *const u32,
    expert_offsets: *mut i64,
    sorted_rows: *mut i32,
    inverse: *mut i32,
    row_experts: *mut i32,
    problem_sizes1: *mut i32,
    problem_sizes2: *mut i32,
    schedule: *mut [u32; 4],
    rows: u32,
    experts: u32,
    local_experts: u32,
    capacity: u32,
    alignment: u32,
    rows_per_block: u32,
    ranking_warps: u32,
    hidden: u32,
    intermediate: u32,
    swap_operands: u32,
    block_m: u32,
) {
    let routing = Routing { topk_ids, expert_map, rows, experts, local_experts };
    let span = span_of_block(rows, rows_per_block);
    let outputs = Outputs { sorted_rows, inverse, row_experts, capacity };
    let others = OtherBlocks { totals, before, blocks: thread::grid_dim_x(), block: thread::block_idx_x() };
    let sizes = ProblemSizes {
        sizes1: problem_sizes1,
        sizes2: problem_sizes2,
        hidden,
        intermediate,
        swap_operands: swap_operands != 0,
    };
    // SAFETY: the arguments are as the contract says, and all threads of a block walk the same path.
    unsafe {
        let tables = Tables::new(shared::dynamic(), routing, ranking_warps);
        tables.count(routing, span);
        tables.scan(routing, alignment, Some(others));
        tables.place(routing, span, outputs);
        let (warp_index, warps) = warp_of_grid();
        tables.fill_padding(routing, outputs, warp_index, warps);
        if thread::block_idx_x() == 0 {
            write_offsets_and_sizes(tables, local_experts, expert_offsets, sizes);
            if !schedule.is_null() {
                TileSchedule { entries: schedule, block_m, local_experts }
                    .write(|expert| (tables.start(expert), tables.start(expert + 1)));
            }
        }
    }
}
