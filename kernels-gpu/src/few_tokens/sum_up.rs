//! The end of a launch: the weighed sums of the tokens' products.
//!
//! A stripe is 128 columns of the output. Every block counts its units of each, and the block that completes
//! a stripe's count sums it up: half a warp to a quarter of a token's products, eight columns to a lane. A
//! product has a number, that of its slot and part of K, and the quarters take them in turn, so that their
//! latencies overlap; the order of the sum depends on nothing else. f32 throughout, one rounding at the end.

use cuda_std::bf16::{Bf16, F16};
use cuda_std::math::fma;
use cuda_std::warp::{FULL_MASK, ballot};
use cuda_std::{sync, thread};

use super::control::Control;
use super::memory::Memory;
use super::tiles::{NO_EXPERT, units};
use super::{CONSUMER_BARRIER, CONSUMER_WARPS, CONSUMERS, FEW_STRIPE, FewTokens};
use crate::abi::OutType;
use crate::elementwise::rows::chunk::{CHUNK, Chunk, Element};

/// Lanes that share a quarter of a token's stripe.
const LANES: u32 = FEW_STRIPE / CHUNK;
/// Into how many a token's products are dealt, number by number.
const QUARTERS: u32 = 4;
/// Tokens at a time.
const TOKENS: u32 = CONSUMERS / LANES / QUARTERS;

/// Counts the block's units, and sums up the stripes that are complete. All consumers call it together, after
/// their last product.
///
/// # Safety
/// The contract of the kernel.
#[inline(always)]
pub unsafe fn sum_up(arguments: &FewTokens, control: &Control, memory: &Memory) {
    let columns = arguments.second.rows;
    let stripes = columns.div_ceil(FEW_STRIPE);
    // SAFETY: the contract of the kernel. Masks are written by one lane each, and read behind the barrier.
    unsafe {
        sync::named(CONSUMER_BARRIER, CONSUMERS);
        let stripe = thread::thread_idx_x();
        let (tiles, mut is_complete) = (memory.tiles().read(), false);
        if tiles == 0 {
            // Nobody has units: some stripes of zeros for every block.
            is_complete = stripe < stripes && stripe % thread::grid_dim_x() == thread::block_idx_x();
        } else if stripe < stripes {
            let (mine, of_tile) = count(arguments, tiles, stripe);
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

/// How many of the block's units are of a stripe, and how many each tile has.
#[inline(always)]
fn count(arguments: &FewTokens, tiles: u32, stripe: u32) -> (u32, u32) {
    let second = &arguments.second;
    let units = units(tiles, second);
    // Units are of a power of two of columns.
    let of_stripe = (FEW_STRIPE >> second.stride.trailing_zeros()) * second.parts;
    let first = stripe * of_stripe;
    let last = u32::min(first + of_stripe, second.units);
    let mut mine = 0;
    let mut start = units.start / second.units * second.units;
    while start < units.end {
        let from = u32::max(units.start, start + first);
        mine += u32::min(units.end, start + last).saturating_sub(from);
        start += second.units;
    }
    (mine, last - first)
}

/// Sums up a stripe of all tokens. All consumers call it together.
///
/// # Safety
/// The contract of the kernel; the stripe's products are visible to this thread, nobody else sums it up, and
/// the consumers are done with the partial sums.
#[inline(always)]
unsafe fn sum_stripe(arguments: &FewTokens, stripe: u32, memory: &Memory) {
    let FewTokens { out, tokens, out_type, adds, .. } = *arguments;
    let columns = arguments.second.rows;
    let (group, lane) = (thread::thread_idx_x() / LANES, thread::thread_idx_x() % LANES);
    let (quarter, column) = (group / TOKENS, stripe * FEW_STRIPE + lane * CHUNK);
    let of_quarter = |quarter: u32| {
        let [low, high] = memory.sums((quarter * TOKENS + group % TOKENS) * LANES + lane);
        // SAFETY: the thread of that quarter has written them, and a barrier has brought them.
        unsafe { (low.read(), high.read()) }
    };
    let mut first = 0;
    while first < tokens {
        let token = first + group % TOKENS;
        let is_mine = token < tokens && column < columns;
        // SAFETY: the token's row exists in `out`, of the type that the code says, and this lane alone has
        // its columns, all eight of them, H being a multiple of 64. Sums are written by one lane each, and
        // barriers lie between that and the reads.
        unsafe {
            if is_mine {
                let sum = sum_quarter(arguments, token, quarter, column, memory);
                let [low, high] = memory.sums(thread::thread_idx_x());
                low.write([sum[0], sum[1], sum[2], sum[3]]);
                high.write([sum[4], sum[5], sum[6], sum[7]]);
            }
            sync::named(CONSUMER_BARRIER, CONSUMERS);
            if is_mine && quarter == 0 {
                let [a, b, c, d] = [of_quarter(0), of_quarter(1), of_quarter(2), of_quarter(3)];
                let low: [f32; 4] = core::array::from_fn(|i| (a.0[i] + b.0[i]) + (c.0[i] + d.0[i]));
                let high: [f32; 4] = core::array::from_fn(|i| (a.1[i] + b.1[i]) + (c.1[i] + d.1[i]));
                let sum = [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]];
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
            sync::named(CONSUMER_BARRIER, CONSUMERS);
        }
        first += TOKENS;
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

/// Products whose loads a thread has in flight at a time.
const BATCH: u32 = 4;

/// Every fourth product of a token, from number `quarter` on, summed for eight columns.
///
/// # Safety
/// As [`sum_stripe`].
#[inline(always)]
unsafe fn sum_quarter(
    arguments: &FewTokens,
    token: u32,
    quarter: u32,
    column: u32,
    memory: &Memory,
) -> Chunk {
    let count = arguments.top_k * arguments.second.parts;
    let mut sum = [0.0; CHUNK as usize];
    let mut at = quarter;
    while at < count {
        // SAFETY: the caller's contract.
        let batch = unsafe {
            [
                product(arguments, token, at, column, memory),
                product(arguments, token, at + QUARTERS, column, memory),
                product(arguments, token, at + 2 * QUARTERS, column, memory),
                product(arguments, token, at + 3 * QUARTERS, column, memory),
            ]
        };
        sum = accumulate(&sum, batch[0]);
        sum = accumulate(&sum, batch[1]);
        sum = accumulate(&sum, batch[2]);
        sum = accumulate(&sum, batch[3]);
        at += BATCH * QUARTERS;
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
    let (slot, part) = (at >> second.parts.trailing_zeros(), at & (second.parts - 1));
    let pair = token * top_k + slot;
    // SAFETY: the pair exists where the slot does, and then its row of products, which is complete where it
    // has an expert.
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
