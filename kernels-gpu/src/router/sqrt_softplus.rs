//! DeepSeek-V4's routing: scores that grow as the root of the logit, and two ways to choose.
//!
//! ```text
//! logits[t]      | expert 0 | expert 1 | ..
//! score            sqrt(ln(1 + e^logit)); a NaN or infinite score counts as 0
//!
//! by score         the top_k best of score + correction_bias[e]      descending, ties to the lowest id
//! by token id      row token_ids[t] of token_experts [V, top_k]      in the table's order
//!
//! weight           score (not biased) [ / (sum + 1e-20) ] * routed_scaling_factor
//! ```
//!
//! One token to a warp; lane l has experts l, l + 32, .. A token id outside the table, or an expert of the
//! table that there is not, gives the id -1 and the weight 0: such a slot contributes nothing.

use super::selection::{
    self, Pick, TOP_K_TOKENS_PER_BLOCK, TokenRows, TopK, exp, finite_or_zero, key_of, next_pick,
    scale_weights,
};
use core::arch::asm;
use cuda_std::code::Flag;
use cuda_std::shared::{self, Shared};
use cuda_std::{arguments, kernel, thread};

/// Arguments of the kernel `sqrt_softplus_top_k`.
#[arguments]
pub struct SqrtSoftplusTopK {
    /// What is read and written.
    pub of: crate::router::selection::TopK,
    /// f32 `[experts]`, added to the scores in selection; null for none, and where tokens choose by id.
    pub correction_bias: *const f32,
    /// i32 `[vocabulary, top_k]`: the experts of every token id; null where tokens choose by score.
    pub token_experts: *const i32,
    /// i32 `[tokens]`; null where `token_experts` is.
    pub token_ids: *const i32,
    /// V.
    pub vocabulary: u32,
    /// Divide the weights by their sum.
    pub renormalize: Flag,
    /// Factor of all weights.
    pub routed_scaling_factor: f32,
}

/// Chooses and weighs the `top_k` experts of every token.
///
/// Launch: a block for every [`TOP_K_TOKENS_PER_BLOCK`]; where tokens choose by score, [dynamic shared
/// memory](selection::top_k_shared_bytes) for a word an expert.
///
/// # Safety
/// The arrays are null, where they may be, or have their stated sizes.
#[kernel(threads = selection::THREADS, min_blocks = 4)]
pub unsafe fn sqrt_softplus_top_k(arguments: SqrtSoftplusTopK) {
    let SqrtSoftplusTopK { of, correction_bias, token_experts, token_ids, vocabulary, .. } = arguments;
    let SqrtSoftplusTopK { renormalize, routed_scaling_factor, .. } = arguments;
    let TopK { tokens, experts, top_k, .. } = of;
    let token = thread::block_idx_x() * TOP_K_TOKENS_PER_BLOCK + thread::warp_id();
    if token >= tokens {
        return;
    }
    let lane = thread::lane_id();
    let by_score = token_experts.is_null();
    let keys: Shared<u32> = shared::dynamic().add(thread::warp_id() * experts);
    // SAFETY: token < tokens, so that its rows exist; a row of the table is read where its number is below
    // the vocabulary, and scores are of experts that were compared with their number. A lane reads back only
    // the keys and weights that it wrote itself.
    unsafe {
        let TokenRows { logits, topk_ids, topk_weights } = of.rows(token);
        let score = |expert: u32| finite_or_zero(root_of_softplus(*logits.add(expert as usize)));
        if by_score {
            let mut expert = lane;
            while expert < experts {
                let bias =
                    if correction_bias.is_null() { 0.0 } else { *correction_bias.add(expert as usize) };
                keys.add(expert).write(key_of(finite_or_zero(score(expert) + bias)));
                expert += 32;
            }
        }
        let id = if by_score { 0 } else { *token_ids.add(token as usize) as u32 };
        let row = token_experts.wrapping_add(id as usize * top_k as usize);

        let mut sum = 0.0;
        let mut pick = Pick::START;
        let mut slot = 0;
        while slot < top_k {
            let expert = if by_score {
                pick = next_pick(experts, pick, |expert| keys.add(expert).read());
                pick.index
            } else if id < vocabulary {
                *row.add(slot as usize) as u32
            } else {
                u32::MAX
            };
            let is_one = expert < experts;
            let weight = if is_one { score(expert) } else { 0.0 };
            sum += weight;
            if lane == slot % 32 {
                *topk_ids.add(slot as usize) = if is_one { expert as i32 } else { -1 };
                *topk_weights.add(slot as usize) = weight;
            }
            slot += 1;
        }
        scale_weights(topk_weights, top_k, renormalize.is_set().then_some(sum), routed_scaling_factor);
    }
}

/// `sqrt(ln(1 + e^x))` in f32, to about 2^-19 relative. NaN for NaN, infinite for infinity.
///
/// ```text
/// x < -20    sqrt(e^x) = e^(x/2), wrong by 2^-30 of it; e^x alone would leave f32's range below -87
/// else       ln(1 + e^x) = max(x, 0) + ln(1 + z),   z = e^-|x|, in (0, 1]
///            ln(1 + z) = 2 artanh(s),               s = z / (2 + z), at most 1/3:  s + s^3/3 + .. + s^13/13 + 2^-26 s
/// ```
///
/// A logarithm of `1 + z` would lose the bits of a small `z`.
#[inline(always)]
fn root_of_softplus(x: f32) -> f32 {
    if x < -20.0 {
        return exp(0.5 * x);
    }
    let z = exp(-x.abs());
    let s = z / (2.0 + z);
    let q = s * s;
    let mut series = 1.0 / 13.0;
    series = series * q + 1.0 / 11.0;
    series = series * q + 1.0 / 9.0;
    series = series * q + 1.0 / 7.0;
    series = series * q + 1.0 / 5.0;
    series = series * q + 1.0 / 3.0;
    series = series * q + 1.0;
    // The maximum of a NaN and 0 is 0, but z is NaN then.
    square_root(x.max(0.0) + 2.0 * s * series)
}

/// The square root, rounded to nearest.
#[inline(always)]
fn square_root(x: f32) -> f32 {
    let root: f32;
    // SAFETY: computes in registers.
    unsafe {
        asm!(
            "sqrt.rn.f32 {root}, {x};",
            root = out(reg32) root,
            x = in(reg32) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    root
}
