//! The tiles of a launch, which every block works out from the ids.
//!
//! ```text
//!   top_k = 2, ids   7 3 | 3 -1 | 7 3        pairs 0 .. 5
//!   tile 0           expert 7: pairs 0 4
//!   tile 1           expert 3: pairs 1 2 5
//! ```
//!
//! Tiles come in the order of their first pairs, and so do the rows of a tile; an expert with more rows than
//! a tile holds has several. The producer warp alone builds the tables, since no weight can be asked for
//! before they are there: a lane to a pair, which it compares with all others, four to a read.

use cuda_std::thread::WARP_SIZE;
use cuda_std::warp::{FULL_MASK, ballot};
use cuda_std::{memory, sync, thread};

use super::control;
use super::memory::Memory;
use super::{FEW_TILE_ROWS, FewTokens, Projection};
use crate::gemm::recomputed;

/// The expert of a pair that has none on this rank.
pub const NO_EXPERT: u32 = u32::MAX;
/// No tile.
pub const NO_TILE: u32 = u32::MAX;

/// Builds the tables, reads what the launch before has left, and initialises the ring; returns the number of
/// tiles. The producer warp calls it, all lanes together; a barrier of the block lies between it and the
/// reads of others.
///
/// # Safety
/// The contract of the kernel.
#[inline(always)]
pub unsafe fn build(arguments: &FewTokens, shared: &Memory) -> u32 {
    let FewTokens { topk_ids, expert_map, tokens, top_k, experts, local_experts, .. } = *arguments;
    let (lane, pairs, height) = (thread::lane_id(), tokens * top_k, arguments.tile_rows.min(FEW_TILE_ROWS));
    let mut tiles = 0;
    // SAFETY: a pair has an id, a valid id a place in the map, and each pair a place in the tables. Every
    // word of them is written by one lane, and barriers of the warp lie between writes and reads.
    unsafe {
        // All four are under way before one is waited for.
        let load = |round: u32| {
            let pair = round * WARP_SIZE + lane;
            if pair < pairs { memory::load_nc(topk_ids.add(pair as usize)) as u32 } else { NO_EXPERT }
        };
        let ids = [load(0), load(1), load(2), load(3)];
        if lane == 0 {
            let launch = control::read(arguments);
            shared.begin_ring();
            shared.launch().write(launch);
        }
        let local = |id: u32| {
            let mut expert = id;
            if id < experts && !expert_map.is_null() {
                expert = memory::load_nc(expert_map.add(id as usize)) as u32;
            }
            if id < experts && expert < local_experts { expert } else { NO_EXPERT }
        };
        let of = [local(ids[0]), local(ids[1]), local(ids[2]), local(ids[3])];
        shared.pair_expert(lane).write(of[0]);
        shared.pair_expert(WARP_SIZE + lane).write(of[1]);
        shared.pair_expert(2 * WARP_SIZE + lane).write(of[2]);
        shared.pair_expert(3 * WARP_SIZE + lane).write(of[3]);
        sync::warp(FULL_MASK);

        let mut first = 0;
        while first < pairs {
            let pair = first + lane;
            let expert = shared.pair_expert(pair).read();
            // The pair that begins its tile, its row there, and how many its expert has before it and in all.
            let (mut leader, mut row, mut before, mut count) = (pair, 0, 0, 0);
            let mut visit = |other: u32, its: u32| {
                let is_same = its == expert;
                count += u32::from(is_same);
                if is_same && other < pair {
                    leader = if row == 0 { other } else { leader };
                    row = if row + 1 == height { 0 } else { row + 1 };
                    before += 1;
                }
            };
            let mut other = 0;
            while other < pairs {
                let [a, b, c, d]: [u32; 4] = shared.pair_expert(other).cast().read();
                visit(other, a);
                visit(other + 1, b);
                visit(other + 2, c);
                visit(other + 3, d);
                other += 4;
            }
            if row == 0 {
                leader = pair;
            }
            let begins = expert != NO_EXPERT && leader == pair;
            let mask = ballot(FULL_MASK, begins);
            if begins {
                let tile = tiles + (mask & ((1 << lane) - 1)).count_ones();
                shared.pair_tile(pair).write(tile);
                shared.tile_expert_place(tile).write(expert);
                shared.tile_size_place(tile).write(u32::min(count - before, height));
            }
            sync::warp(FULL_MASK);
            if expert != NO_EXPERT {
                let tile = shared.pair_tile(leader).read();
                shared.tile_pair_place(tile, row).write(pair);
            }
            tiles += mask.count_ones();
            first += WARP_SIZE;
        }
        if lane == 0 {
            shared.tiles().write(tiles);
        }
        sync::warp(FULL_MASK);
    }
    tiles
}

/// Stores how many pairs the experts before each have, as a sort by expert would begin. All lanes of a warp
/// call it together.
///
/// # Safety
/// The contract of the kernel; the tables have been built, and no other warp calls it.
#[inline(always)]
pub unsafe fn store_offsets(arguments: &FewTokens, shared: &Memory) {
    let pairs = arguments.tokens * arguments.top_k;
    let mut expert = thread::lane_id();
    while expert <= arguments.local_experts {
        let (mut before, mut pair) = (0, 0);
        // SAFETY: the caller's contract; each offset is written by one lane.
        unsafe {
            while pair < pairs {
                before += i64::from(shared.pair_expert(pair).read() < expert);
                pair += 1;
            }
            arguments.expert_offsets.add(expert as usize).write(before);
        }
        expert += 32;
    }
}

impl Projection {
    /// Where a part of K begins, a multiple of 128, and where it ends. Parts are a power of two.
    #[inline(always)]
    pub fn part(&self, part: u32) -> (u32, u32) {
        let (groups, shift) = (self.k.div_ceil(128), self.parts.trailing_zeros());
        let start = |part| ((groups * part) >> shift) * 128;
        (start(part), u32::min(start(part + 1), self.k))
    }

    /// The binary logarithm of its row groups: eight rows of each half.
    #[inline(always)]
    pub fn row_groups_log2(&self) -> u32 {
        recomputed(self.half_rows).trailing_zeros() - 3
    }
}
