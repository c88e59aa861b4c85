//! Softmax top-k: f32 softmax over all experts, the k largest, optionally renormalised.
//!
//! ```text
//! logits[t]   2.0  -1.0   NaN? ..     one token to a warp; lane l has experts l, l + 32, ..
//! keys        shared memory           score = e^(logit - max) / sum, as a key; a NaN or infinite score counts as 0
//! k times     next_pick               descending, ties to the lowest id
//! ```

use super::selection::{
    self, Pick, Softmax, TOP_K_TOKENS_PER_BLOCK, TokenRows, TopK, finite_or_zero, key_of, score_of,
};
use cuda_std::code::Flag;
use cuda_std::shared::{self, Shared};
use cuda_std::{arguments, kernel, thread};

/// Arguments of the kernel `softmax_top_k`.
#[arguments]
pub struct SoftmaxTopK {
    /// What is read and written.
    pub of: crate::router::selection::TopK,
    /// Divide the weights by their sum.
    pub renormalize: Flag,
}

/// Picks the `top_k` experts of every token.
///
/// Launch: a block for every [`TOP_K_TOKENS_PER_BLOCK`]; [dynamic shared
/// memory](selection::top_k_shared_bytes) for a word an expert.
///
/// # Safety
/// The arrays have their stated sizes.
#[kernel(threads = selection::THREADS, min_blocks = 4)]
pub unsafe fn softmax_top_k(arguments: SoftmaxTopK) {
    let SoftmaxTopK { of, renormalize } = arguments;
    let TopK { tokens, experts, top_k, .. } = of;
    let token = thread::block_idx_x() * TOP_K_TOKENS_PER_BLOCK + thread::warp_id();
    if token >= tokens {
        return;
    }
    let lane = thread::lane_id();
    let keys: Shared<u32> = shared::dynamic().add(thread::warp_id() * experts);
    // SAFETY: token < tokens, so that its rows exist. A lane reads back only the keys and weights that it
    // wrote itself.
    unsafe {
        let TokenRows { logits, topk_ids, topk_weights } = of.rows(token);

        let softmax = Softmax::new(logits, experts);
        let mut expert = lane;
        while expert < experts {
            let score = softmax.score(*logits.add(expert as usize));
            keys.add(expert).write(key_of(finite_or_zero(score)));
            expert += 32;
        }

        let mut sum = 0.0;
        let mut pick = Pick::START;
        let mut slot = 0;
        while slot < top_k {
            pick = selection::next_pick(experts, pick, |expert| keys.add(expert).read());
            let score = score_of(pick.key);
            sum += score;
            if lane == slot % 32 {
                *topk_ids.add(slot as usize) = pick.index as i32;
                *topk_weights.add(slot as usize) = score;
            }
            slot += 1;
        }
        if renormalize.is_set() {
            let denominator = if sum > 0.0 { sum } else { 1.0 };
            let mut slot = lane;
            while slot < top_k {
                *topk_weights.add(slot as usize) /= denominator;
                slot += 32;
            }
        }
    }
}
