//! Blocks of the sort's launch that sort nothing: they ask L2 for the first part of the weights that the ids will need.
//!
//! With few tokens a layer is the stream of its experts' weights, and memory idles while the kernels before the first GEMM run.
//! The ids say which weights those are as soon as the sort begins. Nobody writes weights, so asking early changes no result.
//!
//! ```text
//! w13 [experts, 2I, H], rows of H bytes           of every row of an active expert's w13 the same part
//!   expert 2  |######......|                      (with A active experts: budget / (A * 2I) bytes, rounded down to 128):
//!             |######......|                      a block of GEMM 1 finds an equal part of its share,
//!   expert 5  |######......|                      whichever rows it has
//!             |######......|
//! w2  [experts, H, I]                             where the budget holds all rows of w13, the same with what is left of it
//! ```
//!
//! Rows that are wanted whole lie one behind the other, and are asked for [`PIECE`] bytes at a time. Request `i` goes to block
//! `i % blocks`, so that the SMs have equal parts, and what comes first in memory is asked for first.
//!
//! All blocks make the same list of experts, each on its own. There are at most [`MAX_ROWS`] ids.

use super::{Routing, exclusive_scan};
use cuda_std::shared::Shared;
use cuda_std::{grid, memory, shared_array, sync, thread};

/// Most ids.
const MAX_ROWS: u32 = 64;
/// Bytes of a request for whole rows.
const PIECE: u32 = 8 * 1024;
/// Parts of rows are multiples of this: a line of L2.
const LINE: u32 = 128;

/// Weights, and how much of them is asked for.
#[derive(Clone, Copy)]
pub(super) struct Prefetch {
    /// e4m3 `[local_experts, 2 * intermediate, hidden]`.
    pub w13: *const u8,
    /// e4m3 `[local_experts, hidden, intermediate]`.
    pub w2: *const u8,
    pub hidden: u32,
    pub intermediate: u32,
    /// Most bytes of all requests together.
    pub budget: u32,
}

/// Rows of one of the weights, of every active expert.
#[derive(Clone, Copy)]
struct Region {
    weights: *const u8,
    /// Rows of an expert.
    rows: u32,
    /// Bytes of a row.
    row: u32,
}

impl Region {
    /// Asks for this block's share of what `budget` holds. Returns what is left of the budget, 0 unless all rows were asked for.
    ///
    /// # Safety
    /// The weights have `rows` rows of `row` bytes for each of the `active >= 1` experts in the list; they begin at a multiple of 16,
    /// which `row` is too; `active * rows < 2^32`, and `rows >= 1`.
    #[inline(always)]
    unsafe fn ask(self, experts: Shared<u32>, active: u32, budget: u32, (block, blocks): (u32, u32)) -> u32 {
        let expert_bytes = u64::from(self.rows) * u64::from(self.row);
        let of_row = budget / (active * self.rows);
        let whole = of_row >= self.row;
        // A request begins every `stride` bytes of an expert, and has `bytes` bytes or what is left of the expert's.
        let (stride, bytes) = if whole { (PIECE, PIECE) } else { (self.row, of_row / LINE * LINE) };
        if bytes == 0 {
            return 0;
        }
        // Of whole rows there are no more bytes than in the budget.
        let of_expert = if whole { (expert_bytes as u32).div_ceil(PIECE) } else { self.rows };
        let mut request = block + blocks * thread::thread_idx_x();
        while request < active * of_expert {
            let begin = u64::from(request % of_expert) * u64::from(stride);
            let length = u64::from(bytes).min(expert_bytes - begin) as u32;
            // SAFETY: the list has `active` entries. The request lies in the rows of its expert; where it begins, and its length, are
            // multiples of 16, as `row`, `PIECE` and `LINE` are.
            unsafe {
                let expert = experts.add(request / of_expert).read();
                let from = self.weights.add((u64::from(expert) * expert_bytes + begin) as usize);
                prefetch(from, length);
            }
            request += blocks * thread::block_dim_x();
        }
        if whole { budget - active * expert_bytes as u32 } else { 0 }
    }
}

/// Asks L2 for bytes; GPUs before Hopper have no such request, and their launches no blocks that come here.
///
/// # Safety
/// As for [`cuda_std::bulk::prefetch_l2`].
#[inline(always)]
unsafe fn prefetch(from: *const u8, bytes: u32) {
    #[cfg(target_feature = "sm_90a")]
    // SAFETY: the caller's contract.
    unsafe {
        cuda_std::bulk::prefetch_l2(from, bytes)
    }
    #[cfg(not(target_feature = "sm_90a"))]
    let _ = (from, bytes);
}

impl Prefetch {
    /// Asks for the share of block `block` of `blocks`.
    ///
    /// # Safety
    /// All threads of the block execute it. `routing` is the sort's, with at most [`MAX_ROWS`] rows; the weights are as described, with
    /// `hidden` and `intermediate` multiples of 16 from 16 to below 2^24, and begin at multiples of 16.
    #[inline(always)]
    pub unsafe fn run(self, routing: Routing, block: u32, blocks: u32) {
        let keys = shared_array!(prefetch.keys: [u32; 64]);
        let experts = shared_array!(prefetch.experts: [u32; 64]);
        // The ids are the predecessor's.
        grid::wait();
        grid::launch_dependents();
        let row = thread::thread_idx_x();
        let mut key = routing.local_experts;
        if row < routing.rows {
            // SAFETY: row < rows; the map is the sort's.
            key = unsafe { routing.key(memory::load(routing.topk_ids.add(row as usize))) };
        }
        if row < MAX_ROWS {
            // SAFETY: row < 64, one writer to each word.
            unsafe { keys.add(row).write(key) };
        }
        sync::block();
        // SAFETY: the keys of the rows before were written before the barrier; a row behind the last has the key of no expert.
        let is_first = key < routing.local_experts && !unsafe { is_among(keys, row, key) };
        // SAFETY: all threads are here, and a barrier follows.
        let ([place, _], [active, _]) = unsafe { exclusive_scan([u32::from(is_first), 0]) };
        if is_first {
            // SAFETY: at most 64 rows are the first of their expert, each with a place of its own.
            unsafe { experts.add(place).write(key) };
        }
        sync::block();
        if active == 0 {
            return;
        }
        let (w13, w2) = (
            Region { weights: self.w13, rows: 2 * self.intermediate, row: self.hidden },
            Region { weights: self.w2, rows: self.hidden, row: self.intermediate },
        );
        // SAFETY: the list was written before the barrier, with local experts alone; `active * rows` is at most 64 * 2^25, below 2^32.
        unsafe {
            let left = w13.ask(experts, active, self.budget, (block, blocks));
            w2.ask(experts, active, left, (block, blocks));
        }
    }
}

/// Whether one of the first `count` keys is `key`.
///
/// # Safety
/// `count < 64`, and all 64 keys have been written.
#[inline(always)]
unsafe fn is_among(keys: Shared<u32>, count: u32, key: u32) -> bool {
    let mut found = false;
    let mut at = 0;
    while at < count {
        // Four at a time, since the loads are what takes time.
        // SAFETY: at + 3 < 64.
        let [a, b, c, d] = unsafe { keys.cast::<[u32; 4]>().add(at / 4).read() };
        found |= a == key;
        found |= b == key && at + 1 < count;
        found |= c == key && at + 2 < count;
        found |= d == key && at + 3 < count;
        at += 4;
    }
    found
}
