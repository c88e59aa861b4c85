//! Picking the best of many scores, one after the other, by one warp.
//!
//! A score becomes a *key*, a u32 that orders like the score, so that comparing candidates is comparing
//! integers:
//!
//! ```text
//! f32   -inf .. -1.0 .. 0.0 .. 1.0 .. +inf        sign bit set: invert all bits; clear: set the sign bit
//! u32   007fffff ..  80000000 ..  ff800000        0 is below every number: not a candidate
//! ```
//!
//! Candidates are ordered by descending key, then ascending index: that is the order of the output, and ties
//! go to the lowest index. The next pick is the first candidate *behind the last pick* in that order. So
//! nothing has to be marked as taken, no candidate can be picked twice, and the scores are only read.

use core::arch::asm;
use cuda_std::code::Flag;
use cuda_std::{arguments, host, thread, warp};

/// Tokens that a block of the top-k kernels handles, a warp each.
#[host]
pub(super) const TOP_K_TOKENS_PER_BLOCK: u32 = 4;
/// Threads of a block of the top-k kernels.
pub(super) const THREADS: u32 = 32 * TOP_K_TOKENS_PER_BLOCK;

/// Bytes of dynamic shared memory of a top-k kernel that keeps `words` numbers of a token.
#[host]
pub(super) const fn top_k_shared_bytes(words: usize) -> usize {
    words * 4 * TOP_K_TOKENS_PER_BLOCK as usize
}

/// What all top-k kernels read and write.
#[arguments]
pub struct TopK {
    /// f32 `[tokens, experts]`; with `shared_gate` `[tokens, experts + 1]`.
    pub logits: *const f32,
    /// i32 `[tokens, top_k + shared]`.
    pub topk_ids: *mut i32,
    /// f32 `[tokens, top_k + shared]`.
    pub topk_weights: *mut f32,
    /// T.
    pub tokens: u32,
    /// E.
    pub experts: u32,
    /// k, from 1 to E.
    pub top_k: u32,
    /// Slots behind the picked ones, for experts that every token has: `E`, `E + 1`, ..
    pub shared: u32,
    /// Whether their weight is the sigmoid of the logit behind those of the experts; else it is 1.
    pub shared_gate: Flag,
}

/// A token's rows of what a top-k kernel reads and writes.
pub(super) struct TokenRows {
    pub logits: *const f32,
    pub topk_ids: *mut i32,
    pub topk_weights: *mut f32,
}

impl TopK {
    /// The rows of `token`, the slots behind the picked ones filled.
    ///
    /// # Safety
    /// The arrays have their stated sizes and the token exists; all lanes of a warp call it together.
    #[inline(always)]
    pub(super) unsafe fn rows(&self, token: u32) -> TokenRows {
        let columns = self.experts + if self.shared_gate.is_set() { 1 } else { 0 };
        let first = token as usize * (self.top_k + self.shared) as usize;
        let rows = TokenRows {
            logits: self.logits.wrapping_add(token as usize * columns as usize),
            topk_ids: self.topk_ids.wrapping_add(first),
            topk_weights: self.topk_weights.wrapping_add(first),
        };
        let mut slot = thread::lane_id();
        while slot < self.shared {
            // SAFETY: the token's rows have the slot, and with a gate a logit behind those of the experts.
            unsafe {
                let gate =
                    if self.shared_gate.is_set() { *rows.logits.add(self.experts as usize) } else { 0.0 };
                let weight = if self.shared_gate.is_set() { logistic(gate) } else { 1.0 };
                *rows.topk_ids.add((self.top_k + slot) as usize) = (self.experts + slot) as i32;
                *rows.topk_weights.add((self.top_k + slot) as usize) = weight;
            }
            slot += 32;
        }
        rows
    }
}

/// A key and the index it belongs to.
#[derive(Clone, Copy)]
pub(super) struct Pick {
    pub key: u32,
    pub index: u32,
}

impl Pick {
    /// Before every candidate.
    pub const START: Pick = Pick { key: u32::MAX, index: u32::MAX };
}

/// The key of a number; the two zeros have the same. Not for NaN.
#[inline(always)]
pub(super) fn key_of(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    if bits >> 31 != 0 { !bits } else { bits | 0x8000_0000 }
}

/// The number whose key this is.
#[inline(always)]
pub(super) fn score_of(key: u32) -> f32 {
    f32::from_bits(if key >> 31 != 0 { key ^ 0x8000_0000 } else { !key })
}

/// A score that selection may use: NaN and infinities count as 0.
#[inline(always)]
pub(super) fn finite_or_zero(score: f32) -> f32 {
    if score.abs() < f32::INFINITY { score } else { 0.0 }
}

/// The first candidate behind `last`, in all lanes of the warp; index `u32::MAX` if there is none. `key(i)`
/// is called for `i = lane, lane + 32, ..` below `count`; all lanes execute it together.
#[inline(always)]
pub(super) fn next_pick(count: u32, last: Pick, key: impl Fn(u32) -> u32) -> Pick {
    let mut best = Pick { key: 0, index: u32::MAX };
    let mut index = thread::lane_id();
    while index < count {
        let key = key(index);
        let behind = key < last.key || (key == last.key && index > last.index);
        // Indices ascend, so that `>` keeps the lowest of equal keys; a key of 0 never gets in.
        if behind && key > best.key {
            best = Pick { key, index };
        }
        index += 32;
    }
    let key = warp::reduce_max_u32(warp::FULL_MASK, best.key);
    let index = warp::reduce_min_u32(warp::FULL_MASK, if best.key == key { best.index } else { u32::MAX });
    Pick { key, index }
}

/// Multiplies the weights of one token by `factor`; before, divides them by `sum + 1e-20` where there is a
/// sum.
///
/// # Safety
/// All lanes of the warp call it together; `topk_weights` points to `top_k` weights, and the lane `slot % 32`
/// has written that of `slot`.
#[inline(always)]
pub(super) unsafe fn scale_weights(topk_weights: *mut f32, top_k: u32, sum: Option<f32>, factor: f32) {
    let mut slot = thread::lane_id();
    while slot < top_k {
        // SAFETY: the caller's contract: a weight of the token, and of this lane.
        unsafe {
            let weight = topk_weights.add(slot as usize);
            let share = sum.map_or(*weight, |sum| *weight / (sum + 1e-20));
            *weight = share * factor;
        }
        slot += 32;
    }
}

/// e^x in f32, to about 2^-21 relative near 0: `ex2.approx.ftz.f32` of `x * log2(e)`. NaN for NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let power: f32;
    // SAFETY: computes in registers.
    unsafe {
        asm!(
            "ex2.approx.ftz.f32 {power}, {exponent};",
            power = out(reg32) power,
            exponent = in(reg32) x * core::f32::consts::LOG2_E,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    power
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(super) fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// One row of logits, scored by softmax over all its entries.
#[derive(Clone, Copy)]
pub(super) struct Softmax {
    maximum: f32,
    sum: f32,
}

impl Softmax {
    /// Finds the row's maximum (NaN ignored) and the sum of `e^(logit - maximum)`.
    ///
    /// # Safety
    /// `logits [experts]` is readable; all lanes of the warp execute it together.
    #[inline(always)]
    pub unsafe fn new(logits: *const f32, experts: u32) -> Self {
        let mut maximum = f32::NEG_INFINITY;
        let mut expert = thread::lane_id();
        while expert < experts {
            // SAFETY: expert < experts.
            maximum = maximum.max(unsafe { *logits.add(expert as usize) });
            expert += 32;
        }
        let maximum = warp::reduce_max_f32(maximum);
        let mut sum = 0.0;
        let mut expert = thread::lane_id();
        while expert < experts {
            // SAFETY: expert < experts.
            sum += exp(unsafe { *logits.add(expert as usize) } - maximum);
            expert += 32;
        }
        Self { maximum, sum: warp::reduce_add_f32(sum) }
    }

    /// The score of a logit of the row. If any logit is NaN or +inf, all scores are NaN, as the maths says.
    #[inline(always)]
    pub fn score(self, logit: f32) -> f32 {
        exp(logit - self.maximum) / self.sum
    }
}
