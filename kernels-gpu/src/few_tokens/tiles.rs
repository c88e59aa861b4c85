//! The tiles of a launch, which every block works out from the ids, and a block's share of their units.
//!
//! ```text
//!   top_k = 2, ids   7 3 | 3 -1 | 7 3        pairs 0 .. 5
//!   tile 0           expert 3: pairs 1 2 5
//!   tile 1           expert 7: pairs 0 4
//! ```
//!
//! Tiles ascend by expert, the rows of an expert by pair; an expert with more rows than a tile holds has
//! several. One thread to a pair compares it with all others: a sort of some tens of pairs.

use cuda_std::{memory, sync, thread};

use super::memory::Memory;
use super::{FEW_TILE_ROWS, FewTokens, Projection};

/// The expert of a pair that has none on this rank.
pub const NO_EXPERT: u32 = u32::MAX;
/// No tile.
pub const NO_TILE: u32 = u32::MAX;

/// Builds the tables; returns the number of tiles. All threads of the block call it together.
///
/// # Safety
/// The contract of the kernel.
#[inline(always)]
pub unsafe fn build(arguments: &FewTokens, shared: &Memory) -> u32 {
    let FewTokens { topk_ids, topk_weights, expert_map, tokens, top_k, experts, local_experts, .. } =
        *arguments;
    let (pair, pairs, height) =
        (thread::thread_idx_x(), tokens * top_k, arguments.tile_rows.min(FEW_TILE_ROWS));
    let mut expert = NO_EXPERT;
    // SAFETY: a pair has an id and a weight, a valid id a place in the map. Every word of the tables is
    // written by one thread, and block barriers lie between writes and reads.
    unsafe {
        if pair < pairs {
            let id = memory::load_nc(topk_ids.add(pair as usize)) as u32;
            let weight = memory::load_nc(topk_weights.add(pair as usize));
            if id < experts {
                expert = if expert_map.is_null() {
                    id
                } else {
                    memory::load_nc(expert_map.add(id as usize)) as u32
                };
            }
            if expert >= local_experts {
                expert = NO_EXPERT;
            }
            shared.pair_expert(pair).write(expert);
            shared.pair_weight(pair).write(weight);
        }
        sync::block();
        // Its place among the pairs of its expert, and how many those are.
        let (mut place, mut count, mut other) = (0, 0, 0);
        if pair < pairs {
            while other < pairs {
                let same = shared.pair_expert(other).read() == expert;
                count += u32::from(same);
                place += u32::from(same && other < pair);
                other += 1;
            }
            let begins = place.is_multiple_of(height);
            shared.pair_begins(pair).write(if begins { expert } else { NO_EXPERT });
        }
        sync::block();
        let (mut tiles, mut before, mut other) = (0, 0, 0);
        while other < pairs {
            let begun = shared.pair_begins(other).read();
            tiles += u32::from(begun != NO_EXPERT);
            before += u32::from(begun < expert);
            other += 1;
        }
        if expert != NO_EXPERT {
            let (tile, row) = (before + place / height, place % height);
            shared.tile_pair_place(tile, row).write(pair);
            if row == 0 {
                shared.tile_expert_place(tile).write(expert);
                shared.tile_size_place(tile).write(u32::min(count - place, height));
            }
        }
        sync::block();
        tiles
    }
}

/// Stores how many pairs the experts before each have, as a sort by expert would begin. All lanes of a warp call
/// it together.
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

/// What is left of a block's share of the units of all tiles.
#[derive(Clone, Copy)]
pub struct Share {
    /// The next unit, and the one behind the last, counted over all tiles.
    pub next: u32,
    pub end: u32,
    /// Units of a tile.
    pub units: u32,
    /// Where the next one is, counted up: divisions take longer than a stage's copies.
    index: u32,
    unit: Unit,
    stride: u32,
    parts: u32,
}

/// Some rows of an expert's matrix, by some of K.
#[derive(Clone, Copy)]
pub struct Unit {
    pub tile: u32,
    /// Its first row.
    pub row: u32,
    /// Its number among the parts of K.
    pub part: u32,
}

impl Share {
    /// This block's.
    #[inline(always)]
    pub fn new(tiles: u32, projection: &Projection) -> Self {
        let Projection { units, stride, parts, .. } = *projection;
        let (block, blocks) = (thread::block_idx_x(), thread::grid_dim_x());
        let all = tiles * units;
        // floor(all * block / blocks), without the product that would take 64 bits.
        let start = |block: u32| all / blocks * block + all % blocks * block / blocks;
        let (next, end) = (start(block), start(block + 1));
        let index = next % units;
        let unit = Unit { tile: next / units, row: index / parts * stride, part: index % parts };
        Self { next, end, units, index, unit, stride, parts }
    }

    #[inline(always)]
    pub fn next(&mut self) -> Option<Unit> {
        if self.next == self.end {
            return None;
        }
        let unit = self.unit;
        self.next += 1;
        self.index += 1;
        self.unit.part += 1;
        if self.unit.part == self.parts {
            (self.unit.part, self.unit.row) = (0, unit.row + self.stride);
        }
        if self.index == self.units {
            self.index = 0;
            self.unit = Unit { tile: unit.tile + 1, row: 0, part: 0 };
        }
        Some(unit)
    }
}

impl Projection {
    /// Where a part of K begins, a multiple of 128, and where it ends. Parts are a power of two.
    #[inline(always)]
    pub fn part(&self, part: u32) -> (u32, u32) {
        let (groups, shift) = (self.k.div_ceil(128), self.parts.trailing_zeros());
        let start = |part| (groups * part >> shift) * 128;
        (start(part), u32::min(start(part + 1), self.k))
    }

    /// The binary logarithm of its row groups: eight rows of each half.
    #[inline(always)]
    pub fn row_groups_log2(&self) -> u32 {
        self.half_rows.trailing_zeros() - 3
    }
}
