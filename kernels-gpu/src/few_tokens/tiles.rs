//! The tiles of a launch, which every block works out from the ids.
//!
//! ```text
//!   top_k = 2, ids   7 3 | 3 -1 | 7 3        pairs 0 .. 5
//!   tile 0           expert 7: pairs 0 4
//!   tile 1           expert 3: pairs 1 2 5
//! ```
//!
//! Tiles come in the order of their first pairs, and so do the rows of a tile; an expert with more rows than
//! a tile holds has several.
//!
//! ```text
//!   producer    ids -> experts of pairs -> which pairs begin a tile -> experts of tiles     build
//!   finishers                                                          rows of tiles        place_pairs
//! ```
//!
//! No weight can be asked for before the producer warp knows the tiles and their experts, so that it works
//! out nothing else. It has a lane to a pair, *round* for round of 32 pairs. Which pairs of a round have a
//! lane's expert is a word of 32 bits: a vote on each bit of the experts finds it, without a look at every
//! pair. What is before a pair, and how many, is then a matter of masks and counted bits.

use cuda_std::thread::WARP_SIZE;
use cuda_std::warp::{FULL_MASK, ballot};
use cuda_std::{memory, sync, thread};

use super::control;
use super::memory::Memory;
use super::{FEW_MOST_PAIRS, FEW_TILE_ROWS, FINISHERS, FIRST_FINISHER, FewTokens, Projection};
use crate::gemm::recomputed;

/// The expert of a pair that has none on this rank.
pub const NO_EXPERT: u32 = u32::MAX;
/// No tile.
pub const NO_TILE: u32 = u32::MAX;
/// Most rounds.
const MOST_ROUNDS: usize = (FEW_MOST_PAIRS / WARP_SIZE) as usize;

/// Finds the tiles and their experts, reads what the launch before has left, and initialises the ring;
/// returns the number of tiles. The producer warp calls it, all lanes together; a barrier lies between it and
/// the reads of others.
///
/// # Safety
/// The contract of the kernel.
#[inline(always)]
pub unsafe fn build(arguments: &FewTokens, shared: &Memory) -> u32 {
    let (lane, pairs) = (thread::lane_id(), arguments.tokens * arguments.top_k);
    // SAFETY: a pair has an id. One lane reads the control words, and initialises the ring.
    unsafe {
        // All of this is under way before any of it is waited for.
        let ids: [u32; MOST_ROUNDS] = core::array::from_fn(|round| {
            let pair = round as u32 * WARP_SIZE + lane;
            let id = arguments.topk_ids.wrapping_add(pair as usize);
            if pair < pairs { memory::load_nc(id) as u32 } else { NO_EXPERT }
        });
        let launch = if lane == 0 { control::read(arguments) } else { [0; 4] };
        // A number less than 2^16 is a multiple of the height if the product with this, modulo 2^32, is less
        // than this: than 2^32 where it is 0 here. The division takes its time beside the loads.
        let inverse = (u32::MAX / arguments.tile_rows.clamp(1, FEW_TILE_ROWS)).wrapping_add(1);
        if lane == 0 {
            shared.begin_ring();
            shared.launch().write(launch);
        }
        // Rounds that nobody has are not in the way of the others.
        if pairs <= WARP_SIZE {
            begin_tiles::<1>(arguments, shared, &ids, inverse)
        } else if pairs <= 2 * WARP_SIZE {
            begin_tiles::<2>(arguments, shared, &ids, inverse)
        } else {
            begin_tiles::<MOST_ROUNDS>(arguments, shared, &ids, inverse)
        }
    }
}

/// [`build`] for pairs of `ROUNDS` rounds, from their ids and the inverse of the height.
///
/// # Safety
/// As [`build`].
#[inline(always)]
unsafe fn begin_tiles<const ROUNDS: usize>(
    arguments: &FewTokens,
    shared: &Memory,
    ids: &[u32; MOST_ROUNDS],
    inverse: u32,
) -> u32 {
    let FewTokens { expert_map, experts, local_experts, .. } = *arguments;
    let (lane, before_lane) = (thread::lane_id(), (1 << thread::lane_id()) - 1);
    // SAFETY: a valid id has a place in the map, each pair in the tables, and there are no more tiles than
    // pairs. One lane writes a word.
    unsafe {
        let of: [u32; ROUNDS] = core::array::from_fn(|round| {
            let (id, mut expert) = (ids[round], ids[round]);
            if id < experts && !expert_map.is_null() {
                expert = memory::load_nc(expert_map.add(id as usize)) as u32;
            }
            if id < experts && expert < local_experts { expert } else { NO_EXPERT }
        });
        let same = same_experts(arguments, of, of);
        let (mut beginnings, mut tiles, mut round) = ([0; MOST_ROUNDS], 0, 0);
        while round < ROUNDS {
            shared.pair_expert(round as u32 * WARP_SIZE + lane).write(of[round]);
            let (mut before, mut other) = ((same[round][round] & before_lane).count_ones(), 0);
            while other < round {
                before += same[round][other].count_ones();
                other += 1;
            }
            let begins = of[round] != NO_EXPERT && before.wrapping_mul(inverse) <= inverse.wrapping_sub(1);
            let mask = ballot(FULL_MASK, begins);
            if begins {
                let tile = tiles + (mask & before_lane).count_ones();
                shared.tile_expert_place(tile).write(of[round]);
            }
            tiles += mask.count_ones();
            beginnings[round] = mask;
            round += 1;
        }
        if lane == 0 {
            shared.beginnings().write(beginnings);
        }
        sync::warp(FULL_MASK);
        tiles
    }
}

/// Which lanes have each expert of `mine` in which round of `of`, as bits; anything for a pair that has none.
/// All lanes of a warp call it together.
#[inline(always)]
fn same_experts<const MINE: usize, const ROUNDS: usize>(
    arguments: &FewTokens,
    mut mine: [u32; MINE],
    mut of: [u32; ROUNDS],
) -> [[u32; ROUNDS]; MINE] {
    let mut same = [of.map(|expert| ballot(FULL_MASK, expert != NO_EXPERT)); MINE];
    // Bits of the largest expert.
    let mut left = arguments.local_experts.wrapping_sub(1);
    // Four at once, but where that were most of what the driver compiles.
    let bits = if ROUNDS > 2 { 1 } else { 4 };
    while left != 0 {
        let mut bit = 0;
        while bit < bits {
            let votes = of.map(|expert| ballot(FULL_MASK, (expert >> bit) & 1 != 0));
            let mut i = 0;
            while i < MINE {
                let flip = if (mine[i] >> bit) & 1 != 0 { 0 } else { u32::MAX };
                let mut round = 0;
                while round < ROUNDS {
                    same[i][round] &= votes[round] ^ flip;
                    round += 1;
                }
                i += 1;
            }
            bit += 1;
        }
        (mine, of) = (mine.map(|expert| expert >> bits), of.map(|expert| expert >> bits));
        left = recomputed(left >> bits);
    }
    same
}

/// Puts the pairs into their tiles, and says how many each has: what [`build`] has left. Those who finish
/// units call it, whole warps together, each with its number in the block, behind a barrier; another lies
/// between it and the reads of others.
///
/// # Safety
/// The contract of the kernel.
#[inline(always)]
pub unsafe fn place_pairs(arguments: &FewTokens, shared: &Memory, warp: u32) {
    let (lane, pairs) = (thread::lane_id(), arguments.tokens * arguments.top_k);
    let mut first = warp * WARP_SIZE - FIRST_FINISHER;
    while first < pairs {
        let pair = first + lane;
        // Its tile, the rows of that up to its own, and the pairs of its expert behind it.
        let (mut tile, mut rows, mut behind) = (0, 0, 0);
        // SAFETY: the tables have been built, for whole rounds of pairs. Each pair has a tile of its expert's
        // that begins at it or before, with a row for it; one lane writes a word.
        unsafe {
            let expert = shared.pair_expert(pair).read();
            let (mut other, mut tiles) = (0, 0);
            while other < pairs {
                let [[same]] = same_experts(arguments, [expert], [shared.pair_expert(other + lane).read()]);
                let beginnings = shared.beginnings().cast::<u32>().add(other / WARP_SIZE).read();
                let up_to_it = match other {
                    _ if other < first => u32::MAX,
                    _ if other == first => u32::MAX >> (31 - lane),
                    _ => 0,
                };
                let (near, its_beginnings) = (same & up_to_it, same & up_to_it & beginnings);
                if its_beginnings == 0 {
                    rows += near.count_ones();
                } else {
                    let from = u32::MAX << (31 - its_beginnings.leading_zeros());
                    tile = tiles + (beginnings & !from).count_ones();
                    rows = (near & from).count_ones();
                }
                behind += (same & !up_to_it).count_ones();
                tiles += beginnings.count_ones();
                other += WARP_SIZE;
            }
            if expert != NO_EXPERT {
                shared.tile_pair_place(tile, rows - 1).write(pair);
                if rows == 1 {
                    let height = arguments.tile_rows.clamp(1, FEW_TILE_ROWS);
                    shared.tile_size_place(tile).write(u32::min(1 + behind, height));
                }
            }
        }
        first += FINISHERS;
    }
}

/// Stores how many pairs the experts before each have, as a sort by expert would begin: this block's share of
/// them. All lanes of a warp call it together.
///
/// # Safety
/// The contract of the kernel; the tables have been built, and no other warp of the block calls it.
#[inline(always)]
pub unsafe fn store_offsets(arguments: &FewTokens, shared: &Memory) {
    let pairs = arguments.tokens * arguments.top_k;
    let mut expert = thread::block_idx_x() * WARP_SIZE + thread::lane_id();
    while expert <= arguments.local_experts {
        let (mut before, mut pair) = (0, 0);
        // SAFETY: the caller's contract; each offset is written by one lane. The table has whole rounds.
        unsafe {
            while pair < pairs {
                let of: [u32; 4] = shared.pair_expert(pair).cast().read();
                before += of.iter().fold(0, |sum, &of| sum + u32::from(of < expert));
                // A loop that is not unrolled.
                pair = recomputed(pair + 4);
            }
            arguments.expert_offsets.add(expert as usize).write(i64::from(before));
        }
        expert += thread::grid_dim_x() * WARP_SIZE;
    }
}

impl Projection {
    /// Where a part of K begins, and where it ends: multiples of 128, the end of the last one past K where
    /// that is none. Parts are a power of two.
    #[inline(always)]
    pub fn part(&self, part: u32) -> (u32, u32) {
        let (groups, shift) = (self.k.div_ceil(128), self.parts.trailing_zeros());
        let start = |part| ((groups * part) >> shift) * 128;
        (start(part), start(part + 1))
    }

    /// The binary logarithm of its row groups: eight rows of each half.
    #[inline(always)]
    pub fn row_groups_log2(&self) -> u32 {
        recomputed(self.half_rows).trailing_zeros() - 3
    }
}
