//! The whole sort in one block, for up to several thousand rows: one launch from ids to tile schedule.

use super::ranking::{Outputs, Span, Tables, warp_of_grid};
use super::{Routing, THREADS};
use crate::problem_sizes::{ProblemSizes, TileSchedule};
use cuda_std::{kernel, shared, thread};

/// Sorts all rows, and writes problem sizes and tile schedule where their pointers are not null.
///
/// Launch: one block; dynamic shared memory `((ranking_warps + 2) * (local_experts + 1) + 1) * 4` bytes.
///
/// # Safety
/// `topk_ids [rows]`, `expert_map [experts]` or null, `expert_offsets [local_experts + 1]`,
/// `sorted_rows [capacity]`, `inverse [rows]`, `row_experts [capacity]` or null, `problem_sizes1` and
/// `problem_sizes2` `[local_experts, 3]` or null, `schedule [FIRST_TILE + tiles]` or null, 16-byte aligned. `capacity` is
/// at least the padded number of rows, `1 <= ranking_warps <= 32`, `alignment >= 1`, `block_m >= 1`; without a map
/// `experts == local_experts`.
#[kernel(threads = 1024, min_blocks = 1)]
pub unsafe fn permute_single_block(
    topk_ids: *const i32,
    expert_map: *const i32,
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
    ranking_warps: u32,
    hidden: u32,
    intermediate: u32,
    swap_operands: u32,
    block_m: u32,
) {
    let routing = Routing { topk_ids, expert_map, rows, experts, local_experts };
    let span = Span { first: 0, end: rows };
    let outputs = Outputs { sorted_rows, inverse, row_experts, capacity };
    let sizes = ProblemSizes {
        sizes1: problem_sizes1,
        sizes2: problem_sizes2,
        hidden,
        intermediate,
        swap_operands: swap_operands != 0,
    };
    // SAFETY: the arguments are as the contract says, and all threads walk the same path.
    unsafe {
        let tables = Tables::new(shared::dynamic(), routing, ranking_warps);
        tables.count(routing, span);
        tables.scan(routing, alignment, None);
        write_offsets_and_sizes(tables, local_experts, expert_offsets, sizes);
        tables.place(routing, span, outputs);
        let (warp_index, warps) = warp_of_grid();
        tables.fill_padding(routing, outputs, warp_index, warps);
        if !schedule.is_null() {
            TileSchedule { entries: schedule, block_m, local_experts }
                .write(|expert| (tables.start(expert), tables.start(expert + 1)));
        }
    }
}

/// Writes the offsets of all experts and their problem sizes, one thread to an expert.
///
/// # Safety
/// After the scan, by all threads of one block.
#[inline(always)]
pub(super) unsafe fn write_offsets_and_sizes(
    tables: Tables,
    local_experts: u32,
    expert_offsets: *mut i64,
    sizes: ProblemSizes,
) {
    let mut expert = thread::thread_idx_x();
    while expert <= local_experts {
        // SAFETY: expert <= local_experts: offsets and starts have local_experts + 1 entries or more, and the
        // sizes of an expert below local_experts exist.
        unsafe {
            let start = tables.start(expert);
            *expert_offsets.add(expert as usize) = i64::from(start);
            if expert < local_experts {
                sizes.write(expert, tables.start(expert + 1) - start);
            }
        }
        expert += THREADS;
    }
}
