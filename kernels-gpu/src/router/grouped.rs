//! Grouped top-k (DeepSeek-V2/V3, GLM-4.5, Kimi-K2): first the best groups of experts, then the best experts
//! in them.
//!
//! ```text
//! logits[t]          | group 0         | group 1         | ..          experts / groups experts to a group
//! score              sigmoid, or softmax over all experts; a NaN or infinite score counts as 0
//! biased             score + correction_bias[e]                        what selects; the bias may be absent
//! group score        sum of the two best biased | maximum, without a bias
//! kept               the topk_group best groups
//! picks              the top_k best biased of the kept groups          descending, ties to the lowest id
//! weight             score (not biased) [ / (sum + 1e-20) ] * routed_scaling_factor
//! ```
//!
//! One token to a warp. Shared memory of a warp: `keys [experts]` of the biased scores, where a dropped
//! group's become 0 (no candidate), and `group_keys [groups]`.

use super::selection::{
    self, Pick, Softmax, TOP_K_TOKENS_PER_BLOCK, TokenRows, TopK, finite_or_zero, key_of, logistic,
    next_pick, scale_weights, score_of,
};
use cuda_std::code::Flag;
use cuda_std::shared::{self, Shared};
use cuda_std::{arguments, kernel, sync, thread, warp};

/// Arguments of the kernel `grouped_top_k`.
#[arguments]
pub struct GroupedTopK {
    /// What is read and written; `top_k` is at most the number of experts in `topk_group` groups.
    pub of: crate::router::selection::TopK,
    /// f32 `[experts]`, added to the scores in selection; null for none.
    pub correction_bias: *const f32,
    /// Groups, which divide the experts.
    pub groups: u32,
    /// Groups that experts are picked from, from 1 to all.
    pub topk_group: u32,
    /// Scores are the softmax of the logits, else their sigmoids.
    pub softmax_scores: Flag,
    /// Divide the weights by their sum.
    pub renormalize: Flag,
    /// Factor of all weights.
    pub routed_scaling_factor: f32,
}

/// Picks the `top_k` experts of every token.
///
/// Launch: a block for every [`TOP_K_TOKENS_PER_BLOCK`]; [dynamic shared
/// memory](selection::top_k_shared_bytes) for a word an expert and one a group.
///
/// # Safety
/// The arrays are null, where they may be, or have their stated sizes.
#[kernel(threads = selection::THREADS, min_blocks = 4)]
pub unsafe fn grouped_top_k(arguments: GroupedTopK) {
    let GroupedTopK { of, correction_bias, groups, topk_group, softmax_scores, .. } = arguments;
    let GroupedTopK { renormalize, routed_scaling_factor, .. } = arguments;
    let TopK { tokens, experts, top_k, .. } = of;
    let token = thread::block_idx_x() * TOP_K_TOKENS_PER_BLOCK + thread::warp_id();
    if token >= tokens {
        return;
    }
    let lane = thread::lane_id();
    let keys: Shared<u32> = shared::dynamic().add(thread::warp_id() * (experts + groups));
    let group_keys = keys.add(experts);
    // SAFETY: token < tokens, so that its rows exist; warp barriers separate the writes of keys from the
    // reads of other lanes; a lane reads back only weights that it wrote itself.
    unsafe {
        let TokenRows { logits, topk_ids, topk_weights } = of.rows(token);

        let softmax = if softmax_scores.is_set() { Some(Softmax::new(logits, experts)) } else { None };
        let score = |expert: u32| {
            let logit = *logits.add(expert as usize);
            finite_or_zero(match softmax {
                Some(softmax) => softmax.score(logit),
                None => logistic(logit),
            })
        };
        let mut expert = lane;
        while expert < experts {
            let bias = if correction_bias.is_null() { 0.0 } else { *correction_bias.add(expert as usize) };
            keys.add(expert).write(key_of(finite_or_zero(score(expert) + bias)));
            expert += 32;
        }
        sync::warp(warp::FULL_MASK);

        if topk_group < groups {
            let both = !correction_bias.is_null();
            keep_best_groups(keys, group_keys, experts / groups, groups, topk_group, both);
        }

        let mut sum = 0.0;
        let mut pick = Pick::START;
        let mut slot = 0;
        while slot < top_k {
            pick = next_pick(experts, pick, |expert| keys.add(expert).read());
            let weight = score(pick.index);
            sum += weight;
            if lane == slot % 32 {
                *topk_ids.add(slot as usize) = pick.index as i32;
                *topk_weights.add(slot as usize) = weight;
            }
            slot += 1;
        }
        scale_weights(topk_weights, top_k, renormalize.is_set().then_some(sum), routed_scaling_factor);
    }
}

/// Sets the keys of all but the `topk_group` best groups to 0.
///
/// # Safety
/// All lanes of the warp execute it together, behind a warp barrier after the keys were written; `keys
/// [groups * size]`, `group_keys [groups]`, `topk_group <= groups`.
#[inline(always)]
unsafe fn keep_best_groups(
    keys: Shared<u32>,
    group_keys: Shared<u32>,
    size: u32,
    groups: u32,
    topk_group: u32,
    sum_of_two: bool,
) {
    let lane = thread::lane_id();
    let mut group = lane;
    while group < groups {
        let (mut best, mut second) = (0, 0);
        let mut expert = group * size;
        let end = expert + size;
        while expert < end {
            // SAFETY: expert < groups * size, written before a barrier.
            let key = unsafe { keys.add(expert).read() };
            second = second.max(best.min(key));
            best = best.max(key);
            expert += 1;
        }
        // A group of one has no second.
        let score =
            if sum_of_two && second != 0 { score_of(best) + score_of(second) } else { score_of(best) };
        // SAFETY: group < groups; only this lane accesses the entry until it reads it back in `next_pick`.
        unsafe { group_keys.add(group).write(key_of(finite_or_zero(score))) };
        group += 32;
    }
    // The last kept group; those behind it in the order of selection are dropped.
    let mut last = Pick::START;
    let mut kept = 0;
    while kept < topk_group {
        // SAFETY: next_pick reads the entries of its own lane, which wrote them.
        last = next_pick(groups, last, |group| unsafe { group_keys.add(group).read() });
        kept += 1;
    }
    sync::warp(warp::FULL_MASK);
    let mut group = lane;
    while group < groups {
        // SAFETY: as above.
        let key = unsafe { group_keys.add(group).read() };
        if key < last.key || (key == last.key && group > last.index) {
            let mut expert = group * size;
            let end = expert + size;
            while expert < end {
                // SAFETY: this lane alone touches the keys of its group between the two barriers.
                unsafe { keys.add(expert).write(0) };
                expert += 1;
            }
        }
        group += 32;
    }
    sync::warp(warp::FULL_MASK);
}
