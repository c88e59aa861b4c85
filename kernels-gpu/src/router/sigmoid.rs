//! Llama 4's routing: the k largest logits (k = 1 in the published models), weighted by their sigmoid.
//!
//! The weight belongs to the expert's *input*: the caller scales the activations by it before they are
//! quantised, and does not apply it again at the end.

use super::selection::{
    self, Pick, TOP_K_TOKENS_PER_BLOCK, TokenRows, TopK, key_of, logistic, next_pick, score_of,
};
use cuda_std::{kernel, thread};

/// The key of a logit; NaN is below all numbers.
#[inline(always)]
fn key_of_logit(logit: f32) -> u32 {
    if logit.is_nan() { 1 } else { key_of(logit) }
}

/// Picks the `top_k` largest logits of every token; the weight is their sigmoid, 0 for NaN.
///
/// Launch: a block for every [`TOP_K_TOKENS_PER_BLOCK`].
///
/// # Safety
/// The arrays have their stated sizes.
#[kernel(threads = selection::THREADS, min_blocks = 4)]
pub unsafe fn sigmoid_top_k(arguments: TopK) {
    let TopK { tokens, experts, top_k, .. } = arguments;
    let token = thread::block_idx_x() * TOP_K_TOKENS_PER_BLOCK + thread::warp_id();
    if token >= tokens {
        return;
    }
    // SAFETY: token < tokens, so that its rows exist, and expert < experts.
    unsafe {
        let TokenRows { logits, topk_ids, topk_weights } = arguments.rows(token);
        let mut pick = Pick::START;
        let mut slot = 0;
        while slot < top_k {
            pick = next_pick(experts, pick, |expert| key_of_logit(*logits.add(expert as usize)));
            if thread::lane_id() == 0 {
                *topk_ids.add(slot as usize) = pick.index as i32;
                *topk_weights.add(slot as usize) =
                    if pick.key == 1 { 0.0 } else { logistic(score_of(pick.key)) };
            }
            slot += 1;
        }
    }
}
