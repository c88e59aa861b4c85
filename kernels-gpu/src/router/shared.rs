//! Kernel `append_shared`: a routing of the caller's, with the experts behind it that every token has.
//!
//! ```text
//!   ids [T, k]        3  17          E = 64, two shared      3  17  64  65      ids [T, k + 2]
//!   weights [T, k]  0.7 0.3        ----------------------> 0.7 0.3   g   g      weights [T, k + 2]
//! ```
//!
//! `g` is 1, or the sigmoid of the token's logit. Ids outside `0..E` become -1: one that is `E` or more would
//! mean a shared expert. The layer's own router needs no such kernel: [`selection`](super::selection) writes
//! these slots with the others.

use super::selection::logistic;
use cuda_std::{arguments, host, kernel, thread};

/// Threads of a block, a token each at a time.
#[host]
pub const APPEND_SHARED_THREADS: u32 = 256;

/// Arguments of the kernel `append_shared`.
#[arguments]
pub struct AppendShared {
    /// i32 `[tokens, top_k]`.
    pub given_ids: *const i32,
    /// f32 `[tokens, top_k]`.
    pub given_weights: *const f32,
    /// f32 `[tokens]`; null where the weight of shared experts is 1.
    pub gate_logits: *const f32,
    /// i32 `[tokens, top_k + shared]`.
    pub topk_ids: *mut i32,
    /// f32 `[tokens, top_k + shared]`.
    pub topk_weights: *mut f32,
    /// T.
    pub tokens: u32,
    /// E.
    pub experts: u32,
    /// k.
    pub top_k: u32,
    /// Shared experts, at least 1.
    pub shared: u32,
}

/// Writes ids and weights. Grid: any number of blocks; threads stride over the tokens.
///
/// # Safety
/// The arrays are null, where they may be, or have their stated sizes. What is written is not read.
#[kernel(threads = APPEND_SHARED_THREADS)]
pub unsafe fn append_shared(arguments: AppendShared) {
    let AppendShared { given_ids, given_weights, gate_logits, topk_ids, topk_weights, .. } = arguments;
    let AppendShared { tokens, experts, top_k, shared, .. } = arguments;
    let mut token = thread::block_idx_x() * APPEND_SHARED_THREADS + thread::thread_idx_x();
    while token < tokens {
        let from = token as usize * top_k as usize;
        let to = token as usize * (top_k + shared) as usize;
        // SAFETY: token and slots exist.
        unsafe {
            let mut slot = 0;
            while slot < top_k as usize {
                let id = *given_ids.add(from + slot);
                *topk_ids.add(to + slot) = if (id as u32) < experts { id } else { -1 };
                *topk_weights.add(to + slot) = *given_weights.add(from + slot);
                slot += 1;
            }
            let weight = if gate_logits.is_null() { 1.0 } else { logistic(*gate_logits.add(token as usize)) };
            let mut expert = 0;
            while expert < shared {
                let slot = to + (top_k + expert) as usize;
                *topk_ids.add(slot) = (experts + expert) as i32;
                *topk_weights.add(slot) = weight;
                expert += 1;
            }
        }
        token += thread::grid_dim_x() * APPEND_SHARED_THREADS;
    }
}
