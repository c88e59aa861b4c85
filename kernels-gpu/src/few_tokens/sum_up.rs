//! The end of a launch: the weighed sums of the tokens' products.
//!
//! A stripe is 128 columns of the output. Every block counts its units of each, and the block that completes a
//! stripe's count sums it up: half a warp to a token, eight columns to a lane, slot by slot and part by part
//! of K. f32 throughout, one rounding at the end.

use cuda_std::bf16::{Bf16, F16};
use cuda_std::math::fma;
use cuda_std::warp::{FULL_MASK, ballot};
use cuda_std::{sync, thread};

use super::control::Control;
use super::memory::Memory;
use super::tiles::{NO_EXPERT, Share};
use super::{CONSUMER_BARRIER, CONSUMER_WARPS, CONSUMERS, FEW_STRIPE, FewTokens};
use crate::abi::OutType;
use crate::elementwise::rows::chunk::{CHUNK, Chunk, Element};

/// Lanes that share a token's stripe.
const LANES: u32 = FEW_STRIPE / CHUNK;

/// Counts the block's units, and sums up the stripes that are complete. All consumers call it together, after
/// their last product.
///
/// # Safety
/// The contract of the kernel; `share` is the block's of GEMM 2, as it was at first.
#[inline(always)]
pub unsafe fn sum_up(arguments: &FewTokens, tiles: u32, share: &Share, control: &Control, memory: &Memory) {
    let columns = arguments.second.rows;
    let stripes = columns.div_ceil(FEW_STRIPE);
    // SAFETY: the contract of the kernel. Masks are written by one lane each, and read behind the barrier.
    unsafe {
        sync::named(CONSUMER_BARRIER, CONSUMERS);
        let stripe = thread::thread_idx_x();
        let mut is_complete = false;
        if tiles == 0 {
            // Nobody has units: some stripes of zeros for every block.
            is_complete = stripe < stripes && stripe % thread::grid_dim_x() == thread::block_idx_x();
        } else if stripe < stripes {
            let (mine, of_tile) = count(arguments, share, stripe);
            if mine > 0 {
                is_complete = control.count_stripe(stripe, mine, tiles * of_tile, stripes);
            }
        }
        let mask = ballot(FULL_MASK, is_complete);
        if thread::lane_id() == 0 {
            memory.mask(thread::warp_id()).write(mask);
        }
        sync::named(CONSUMER_BARRIER, CONSUMERS);
        let mut word = 0;
        while word < CONSUMER_WARPS && word * 32 < stripes {
            let mut mask = memory.mask(word).read();
            while mask != 0 {
                sum_stripe(arguments, word * 32 + mask.trailing_zeros(), memory);
                mask &= mask - 1;
            }
            word += 1;
        }
    }
}

/// How many units of a share are of a stripe, and how many each tile has.
#[inline(always)]
fn count(arguments: &FewTokens, share: &Share, stripe: u32) -> (u32, u32) {
    let second = &arguments.second;
    let of_stripe = FEW_STRIPE / second.stride * second.parts;
    let first = stripe * of_stripe;
    let last = u32::min(first + of_stripe, second.units);
    let mut mine = 0;
    let mut start = share.next / share.units * share.units;
    while start < share.end {
        let from = u32::max(share.next, start + first);
        mine += u32::min(share.end, start + last).saturating_sub(from);
        start += share.units;
    }
    (mine, last - first)
}

/// Sums up a stripe of all tokens. All consumers call it together.
///
/// # Safety
/// The contract of the kernel; the stripe's products are visible to this thread, and nobody else sums it up.
#[inline(always)]
unsafe fn sum_stripe(arguments: &FewTokens, stripe: u32, memory: &Memory) {
    let FewTokens { out, tokens, out_type, adds, .. } = *arguments;
    let columns = arguments.second.rows;
    let column = stripe * FEW_STRIPE + thread::thread_idx_x() % LANES * CHUNK;
    let mut token = thread::thread_idx_x() / LANES;
    while token < tokens {
        if column < columns {
            let row = token as usize * columns as usize;
            // SAFETY: the token's row exists in `out`, of the type that the code says, and this lane alone has
            // its columns, all eight of them, H being a multiple of 64.
            unsafe {
                let sum = sum_token(arguments, token, column, memory);
                let (at, adds) = (row + column as usize, adds.is_set());
                if out_type.is(OutType::F32) {
                    store(out.cast::<f32>().add(at), adds, sum);
                } else if out_type.is(OutType::F16) {
                    store(out.cast::<F16>().add(at), adds, sum);
                } else {
                    store(out.cast::<Bf16>().add(at), adds, sum);
                }
            }
        }
        token += CONSUMERS / LANES;
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

/// Products whose loads are in flight at a time.
const BATCH: u32 = 4;

/// A token's sum for eight columns.
///
/// # Safety
/// As [`sum_stripe`].
#[inline(always)]
unsafe fn sum_token(arguments: &FewTokens, token: u32, column: u32, memory: &Memory) -> Chunk {
    let count = arguments.top_k * arguments.second.parts;
    let mut sum = [0.0; CHUNK as usize];
    let mut at = 0;
    while at < count {
        // SAFETY: the caller's contract.
        let batch = unsafe {
            [
                product(arguments, token, at, column, memory),
                product(arguments, token, at + 1, column, memory),
                product(arguments, token, at + 2, column, memory),
                product(arguments, token, at + 3, column, memory),
            ]
        };
        sum = accumulate(&sum, batch[0]);
        sum = accumulate(&sum, batch[1]);
        sum = accumulate(&sum, batch[2]);
        sum = accumulate(&sum, batch[3]);
        at += BATCH;
    }
    sum
}

/// `sum + weight * values`.
#[inline(always)]
fn accumulate(sum: &Chunk, (weight, values): (f32, Chunk)) -> Chunk {
    core::array::from_fn(|i| fma(weight, values[i], sum[i]))
}

/// The weight and the values of number `at` of a token's products, slot by slot and part by part: zeros where
/// there is none.
///
/// # Safety
/// As [`sum_stripe`].
#[inline(always)]
unsafe fn product(arguments: &FewTokens, token: u32, at: u32, column: u32, memory: &Memory) -> (f32, Chunk) {
    let FewTokens { ref second, products, tokens, top_k, weighs_input, .. } = *arguments;
    let (slot, part) = (at / second.parts, at % second.parts);
    let pair = token * top_k + slot;
    // SAFETY: the pair exists where the slot does, and then its row of products, which is complete where it has
    // an expert.
    unsafe {
        if slot >= top_k || memory.pair_expert(pair).read() == NO_EXPERT {
            return (0.0, [0.0; CHUNK as usize]);
        }
        let weight = if weighs_input.is_set() { 1.0 } else { memory.pair_weight(pair).read() };
        let row = (part * tokens * top_k + pair) as usize;
        let values = f32::load_strong(products.add(row * second.rows as usize + column as usize));
        (weight, values)
    }
}
