//! Kernels that prepare routings for their way between ranks, and choose among replicas where they arrive.
//!
//! ```text
//!   stage_routing     ids [T, k], weights [T, k]  ->  this rank's block of what all gather, [c, k] each: -1 and 0 behind the last token
//!   choose_replicas   ids [R * c, k] of all ranks ->  the same, -1 where another holder of the expert takes the slot
//!   count_rows        offsets [E_loc + 1]         ->  counts[e] += offsets[e + 1] - offsets[e]
//! ```

use cuda_std::{arguments, host, kernel, thread};

/// Threads per block.
#[host]
pub(crate) const ROUTING_THREADS: u32 = 256;

/// Arguments of `stage_routing`.
#[arguments]
pub struct StageRouting {
    /// i32 `[slots]`; null where ids and weights are in place already.
    pub ids: *const i32,
    /// f32 `[slots]`, likewise.
    pub weights: *const f32,
    /// i32 `[capacity]`.
    pub ids_out: *mut i32,
    /// f32 `[capacity]`.
    pub weights_out: *mut f32,
    /// T * k.
    pub slots: u32,
    /// c * k, at least `slots`.
    pub capacity: u32,
}

/// Copies the routing of T tokens, and fills the places of tokens that there are not: with the id -1, which
/// no expert has, and the weight 0.
///
/// # Safety
/// The arrays have their stated sizes; what is read does not overlap what is written.
#[kernel(threads = ROUTING_THREADS, min_blocks = 8, overlap = before)]
pub unsafe fn stage_routing(arguments: StageRouting) {
    let StageRouting { ids, weights, ids_out, weights_out, slots, capacity } = arguments;
    let mut slot = thread::block_idx_x() * ROUTING_THREADS + thread::thread_idx_x();
    while slot < capacity {
        let index = slot as usize;
        // SAFETY: the slot is below `capacity`, and below `slots` where it is read.
        unsafe {
            if slot >= slots {
                *ids_out.add(index) = -1;
                *weights_out.add(index) = 0.0;
            } else if !ids.is_null() {
                *ids_out.add(index) = *ids.add(index);
                *weights_out.add(index) = *weights.add(index);
            }
        }
        slot += thread::grid_dim_x() * ROUTING_THREADS;
    }
}

/// Arguments of `choose_replicas`.
#[arguments]
pub struct ChooseReplicas {
    /// i32 `[slots]`: slot s is of token `s / top_k`, counted over all ranks.
    pub ids: *const i32,
    /// i32 `[slots]`.
    pub out: *mut i32,
    /// u32 `[experts + 1]`: the holders of expert e are elements `first[e] .. first[e + 1]` of `holders`.
    pub first: *const u32,
    /// u32: ranks.
    pub holders: *const u32,
    /// R * c * k.
    pub slots: u32,
    /// k, at least 1.
    pub top_k: u32,
    /// c, tokens of a rank, at least 1.
    pub rank_tokens: u32,
    /// E.
    pub experts: u32,
    /// This rank.
    pub rank: u32,
}

/// Leaves this rank the slots that it takes. Of an expert with n holders, number `(source + token + expert)
/// mod n` takes the slot, source being the rank that the token comes from and `token` its number there: every
/// rank finds the same holder, and one alone.
///
/// # Safety
/// The arrays have their stated sizes; `first` ascends to at most the length of `holders`.
#[kernel(threads = ROUTING_THREADS, min_blocks = 8, overlap = before)]
pub unsafe fn choose_replicas(arguments: ChooseReplicas) {
    let ChooseReplicas { ids, out, first, holders, .. } = arguments;
    let ChooseReplicas { slots, top_k, rank_tokens, experts, rank, .. } = arguments;
    let mut slot = thread::block_idx_x() * ROUTING_THREADS + thread::thread_idx_x();
    while slot < slots {
        let index = slot as usize;
        // SAFETY: the slot is below `slots`, and the expert below `experts` where its holders are read.
        unsafe {
            let id = *ids.add(index);
            let mut chosen = -1;
            if id >= 0 && (id as u32) < experts {
                let begin = *first.add(id as usize);
                let count = *first.add(id as usize + 1) - begin;
                if count > 0 {
                    let row = slot / top_k;
                    let number = (row / rank_tokens + row % rank_tokens + id as u32) % count;
                    if *holders.add((begin + number) as usize) == rank {
                        chosen = id;
                    }
                }
            }
            *out.add(index) = chosen;
        }
        slot += thread::grid_dim_x() * ROUTING_THREADS;
    }
}

/// Arguments of `count_rows`.
#[arguments]
pub struct CountRows {
    /// i64 `[experts + 1]`.
    pub offsets: *const i64,
    /// u64 `[experts]`.
    pub counts: *mut u64,
    /// E_loc.
    pub experts: u32,
}

/// Adds the rows of every expert to its count.
///
/// # Safety
/// The arrays have their stated sizes, and nobody else accesses `counts`.
#[kernel(threads = ROUTING_THREADS, min_blocks = 8, overlap = before)]
pub unsafe fn count_rows(arguments: CountRows) {
    let CountRows { offsets, counts, experts } = arguments;
    let mut expert = thread::block_idx_x() * ROUTING_THREADS + thread::thread_idx_x();
    while expert < experts {
        let index = expert as usize;
        // SAFETY: the expert exists.
        unsafe {
            let rows = *offsets.add(index + 1) - *offsets.add(index);
            *counts.add(index) += rows as u64;
        }
        expert += thread::grid_dim_x() * ROUTING_THREADS;
    }
}
