//! The end of a launch: the weighed sums of the tokens' products.
//!
//! Every block has an equal share of the output's chunks of eight columns, whoever computes their products,
//! and waits for those. Four lanes have a chunk: a product has a number, that of its slot and part of K, and
//! the lanes take them in turn, so that their latencies overlap; the order of the sum depends on nothing
//! else. f32 throughout, one rounding at the end.

use cuda_std::bf16::{Bf16, F16};
use cuda_std::math::fma;
use cuda_std::warp::{FULL_MASK, shfl_xor};
use cuda_std::{sync, thread};

use super::control::{Set, are_filled, look_again};
use super::memory::Memory;
use super::tiles::NO_EXPERT;
use super::{CONSUMERS, FewTokens};
use crate::abi::OutType;
use crate::elementwise::rows::chunk::{CHUNK, Chunk, Element};

/// Lanes that share the products of a chunk.
const LANES: u32 = 4;
/// Chunks at a time.
const CHUNKS: u32 = CONSUMERS / LANES;
/// Products whose loads a lane has in flight at a time.
const BATCH: usize = 4;

/// Sums up this block's share of the output. All consumers call it together, after their last product.
///
/// # Safety
/// The contract of the kernel; the products have been stored, or will be.
#[inline(always)]
pub unsafe fn sum_up(arguments: &FewTokens, set: &Set, memory: &Memory) {
    let FewTokens { tokens, out, out_type, adds, .. } = *arguments;
    let columns = arguments.second.rows;
    let (of_token, block, blocks) = (columns / CHUNK, thread::block_idx_x(), thread::grid_dim_x());
    // The host has checked that the product fits.
    let start = |block: u32| tokens * of_token * block / blocks;
    let (mut first, end) = (start(block), start(block + 1));
    let (within, lane) = (thread::thread_idx_x() / LANES, thread::thread_idx_x() % LANES);
    while first < end {
        let chunk = first + within;
        let is_mine = chunk < end;
        let (token, column) = (chunk / of_token, chunk % of_token * CHUNK);
        // SAFETY: the token's row exists in `out`, of the type that the code says, and this block alone has
        // its columns, and of the block one lane.
        unsafe {
            let mut sum = [0.0; CHUNK as usize];
            if is_mine {
                sum = sum_lane(arguments, set, token, lane, column, memory);
            }
            sync::warp(FULL_MASK);
            sum = sum.map(|value| value + shfl_xor(FULL_MASK, value, 1));
            sum = sum.map(|value| value + shfl_xor(FULL_MASK, value, 2));
            if is_mine && lane == 0 {
                let at = token as usize * columns as usize + column as usize;
                let adds = adds.is_set();
                if out_type.is(OutType::F32) {
                    store(out.cast::<f32>().add(at), adds, sum);
                } else if out_type.is(OutType::F16) {
                    store(out.cast::<F16>().add(at), adds, sum);
                } else {
                    store(out.cast::<Bf16>().add(at), adds, sum);
                }
            }
        }
        first += CHUNKS;
    }
}

/// Stores eight columns, or adds them to what is there, with one rounding.
///
/// # Safety
/// The columns exist, 16-byte aligned, and this thread alone has them.
#[inline(always)]
unsafe fn store<T: Element>(out: *mut T, adds: bool, sum: Chunk) {
    // SAFETY: the caller's contract.
    unsafe {
        let before = if adds { T::load_strong(out) } else { [0.0; CHUNK as usize] };
        T::store(out, &core::array::from_fn(|i| sum[i] + before[i]));
    }
}

/// Every fourth product of a token, from number `lane` on, summed for eight columns.
///
/// # Safety
/// As [`sum_up`].
#[inline(always)]
unsafe fn sum_lane(
    arguments: &FewTokens,
    set: &Set,
    token: u32,
    lane: u32,
    column: u32,
    memory: &Memory,
) -> Chunk {
    let FewTokens { ref second, tokens, top_k, weighs_input, .. } = *arguments;
    let count = top_k * second.parts;
    let mut sum = [0.0; CHUNK as usize];
    let mut at = lane;
    while at < count {
        // What each of the batch counts for, and where it lies; none where there is none.
        let of: [(f32, *const f32); BATCH] = core::array::from_fn(|i| {
            let at = at + i as u32 * LANES;
            let (slot, part) = (at >> second.parts.trailing_zeros(), at & (second.parts - 1));
            let pair = token * top_k + slot;
            // SAFETY: the pair exists where the slot does.
            if slot >= top_k || unsafe { memory.pair_expert(pair).read() } == NO_EXPERT {
                return (0.0, core::ptr::null());
            }
            // SAFETY: as above.
            let weight = if weighs_input.is_set() { 1.0 } else { unsafe { memory.pair_weight(pair).read() } };
            let row = (part * tokens * top_k + pair) as usize;
            (weight, set.products.wrapping_add(row * second.rows as usize + column as usize))
        });
        let load = || {
            of.map(|(_, from)| {
                // SAFETY: the products of a pair with an expert exist, 16-byte aligned.
                if from.is_null() { [-0.0; CHUNK as usize] } else { unsafe { f32::load_strong(from) } }
            })
        };
        let batch = loop {
            let batch = load();
            if batch.iter().fold(true, |all, words| all & are_filled(words)) {
                break batch;
            }
            look_again();
        };
        for i in 0..BATCH {
            // The words are the values' negatives.
            sum = core::array::from_fn(|j| fma(-of[i].0, batch[i][j], sum[j]));
        }
        at += BATCH as u32 * LANES;
    }
    sum
}
