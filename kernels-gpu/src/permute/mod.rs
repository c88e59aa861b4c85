//! Permutation of expanded rows into expert order: a stable counting sort of the routed ids.
//!
//! Token `t` and slot `s` make the *expanded row* `r = t*k + s`, and `topk_ids[r]` is the expert it goes to.
//! The grouped GEMM wants the rows of one expert together, so the sort brings them there and leaves two index
//! lists:
//!
//! ```text
//! r                      0  1  2  3  4  5  6  7        (R = 8 rows, 3 local experts, one id is invalid)
//! key(topk_ids[r])       2  0  1  .  0  2  2  0        . = invalid, sorts as key 3
//!
//! expert_offsets         0        3  4        7        expert e owns [expert_offsets[e], expert_offsets[e+1])
//! sorted_rows            1  4  7  2  0  5  6  3        destination -> r; ascending inside an expert (stable)
//! inverse                4  0  3  7  1  5  6  2        r -> destination; invalid rows at or past expert_offsets[3]
//!
//! aligned to 2:          0           4     6           8
//! sorted_rows            1  4  7  R  2  R  0  5  6  R  3  R ..   padding, and all after the last row, is R
//! ```
//!
//! The *key* of a row is its local expert, or `local_experts` if the id is invalid (`< 0`, `>= experts`, or
//! mapped outside `0..local_experts`): invalid rows form one more bucket behind all experts, in no expert's
//! count.
//!
//! The result is unique (stable sort), so it is the same bit for bit however the work is cut. The cut:
//!
//! ```text
//!            block 0                     block 1            each block owns consecutive rows,
//! |-- warp 0 --|-- warp 1 --| .. |-- warp 0 --|-- ..        each ranking warp 1 to 4 times 32 of them
//! ```
//!
//! One launch does all, and no block waits for another: every block reads *all* ids, and so knows by itself
//! how many rows of each key come before its own. That is cheap: the ids are few (128 KB for 4096 tokens with
//! 8 experts each), they lie in L2, and counting them is one shared-memory atomic per 32 ids. See [`sort`]
//! for the steps.

mod rows;
pub(crate) mod sort;
mod tables;

use cuda_std::{arguments, host, memory};

use crate::scan::WARPS;

/// Most warps of a block of the sort that have rows.
#[host]
pub(crate) const PERMUTE_MOST_WARPS: u32 = WARPS;
/// Most rows of a thread of the sort.
#[host]
pub(crate) const PERMUTE_MOST_STEPS: u32 = tables::MAX_STEPS as u32;

/// What decides the key of every expanded row.
#[arguments]
pub(crate) struct Routing {
    /// `[rows]`, global expert ids; any value is legal.
    pub topk_ids: *const i32,
    /// `[experts]`, global to local expert, -1 = not on this rank; null if ids are local already.
    pub expert_map: *const i32,
    /// R = tokens * top_k.
    pub rows: u32,
    /// Global experts, at least 1; equal to `local_experts` without a map.
    pub experts: u32,
    /// Experts of this rank.
    pub local_experts: u32,
}

impl Routing {
    /// Buckets of the sort: the local experts, and one for the invalid rows.
    #[inline(always)]
    pub fn keys(self) -> u32 {
        self.local_experts + 1
    }

    /// The bucket of the rows with this id.
    ///
    /// # Safety
    /// `expert_map` is null or has `experts` entries.
    #[inline(always)]
    pub unsafe fn key(self, id: i32) -> u32 {
        // A negative id becomes a number over 2^31, as does a negative map entry.
        let id = id as u32;
        if self.expert_map.is_null() {
            return id.min(self.local_experts);
        }
        // Loaded whether needed or not: without a branch, several loads are in flight together.
        // SAFETY: the index is below `experts`, the length of the map, which is at least 1.
        let local = unsafe { memory::load(self.expert_map.add(id.min(self.experts - 1) as usize)) } as u32;
        let local = if id < self.experts { local } else { u32::MAX };
        local.min(self.local_experts)
    }
}
