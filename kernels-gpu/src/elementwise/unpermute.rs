//! Kernels `unpermute_*`: the weighted sum of each token's expert outputs.
//!
//! ```text
//!   out[t] = sum over slots, ascending, of weight[t, slot] * y[inverse[t * top_k + slot]], [+ addend[t]]
//!
//!   token 3, top_k = 4:  inverse[12..16] = 7, 90, 41, 2      90 >= valid_rows: an expert of another rank, not read
//!                        out[3] = w0 * y[7] + w2 * y[41] + w3 * y[2]
//! ```
//!
//! With `adds` the sum is added to what `out` holds: `out[t] += ..`, likewise with one rounding at the end.
//!
//! f32 accumulation by fused multiply-adds, one rounding at the end, the same order always: the result does
//! not depend on the grid. A token without a valid slot gives 0.
//!
//! A warp takes 256 columns of a token. Blocks that run at the same time have all columns of the same tokens,
//! so that whole rows are read together:
//!
//! ```text
//!               256 columns    256 columns    256 columns
//!   token 0     block (0, 0)   block (1, 0)   block (2, 0)      a warp each of tokens 0 to 3
//!   token 4     block (0, 1)   block (1, 1)   block (2, 1)      .. and on in strides of 4 * grid_dim_y tokens
//! ```
//!
//! A warp looks up to 32 slots of a token up at once, one per lane, and one step ahead: those of the next
//! token while it adds this one's rows. Four or eight slots are loaded before the first is added, so that
//! their latencies overlap.
//!
//! # Before the predecessor has ended
//! With `routing_is_settled` a warp looks its first slots up before it waits for the kernel before it in the
//! stream, which may be writing `y` at that time. The caller vouches that `inverse`, `topk_weights` and
//! `valid_rows` were complete before that kernel began. They are read past L1, which may hold those of an
//! earlier layer. `y` and `out` are touched behind the wait.
//!
//! # Rows that nobody reads again
//! The layer writes `y` for this kernel alone, and what of it still lies in L2 would be carried to device
//! memory afterwards, for nothing. With `discards` a warp discards what it has read, line by line, when it
//! has added it up. All of a line is the warp's own, where rows begin and end between lines:
//!
//! ```text
//!   a warp's 256 columns of a row:  | 128 bytes | 128 bytes | 128 bytes | 128 bytes |    columns 64 i .. 64 (i + 1)
//!   who reads them:                   lanes 0-7   lanes 8-15  16-23       24-31           16 bytes each
//!   who discards, up to 8 slots:      lane 4 s + i takes line i of the batch's slot s
//! ```

use crate::elementwise::rows::chunk::{
    CHUNK, Chunk, Element, WARP_COLUMNS, load_chunk, load_own_chunk, load_packed_chunk, store_chunk,
    vectorised,
};
use crate::elementwise::rows::warp_rows::{THREADS, WARPS};
use cuda_std::bf16::{Bf16, F16};
use cuda_std::code::Flag;
use cuda_std::math::fma;
use cuda_std::{arguments, grid, kernel, memory, sync, thread, warp};

/// Arguments of the kernels `unpermute_*`.
#[arguments]
pub struct Unpermute {
    /// `[.., columns]`, `*valid_rows` rows or more, of the first type in the kernel's name; read, and
    /// discarded with `discards`.
    pub y: *mut u8,
    /// i32 `[tokens, top_k]`.
    pub inverse: *const i32,
    /// f32 `[tokens, top_k]`; null where all weights are 1.
    pub topk_weights: *const f32,
    /// i64: rows from it on are skipped.
    pub valid_rows: *const i64,
    /// f32 `[tokens, columns]`, added behind the last slot; null for none.
    pub addend: *const f32,
    /// `[tokens, columns]`, of the last type in the kernel's name.
    pub out: *mut u8,
    /// T.
    pub tokens: u32,
    /// H.
    pub columns: u32,
    /// k, at least 1.
    pub top_k: u32,
    /// Whether lists and weights were complete before the kernel's predecessor began.
    pub routing_is_settled: Flag,
    /// Whether the sums are added to `out`, which is read then.
    pub adds: Flag,
    /// Whether rows of `y` are indeterminate once they have been read. Address and bytes of a row are
    /// multiples of 128 then, and no two slots have one row.
    pub discards: Flag,
}

/// Lines that a warp reads of a row: 256 columns of 16 bits.
const LINES: u32 = WARP_COLUMNS * 2 / memory::LINE as u32;

/// Adds the chunks of `$ty` that the lanes from `$lane` on have found to `$sum`, all loaded before the first
/// is added: as many as numbers are given. Returns how many.
macro_rules! add_slots {
    ($sum:ident, $ty:ident, $slots:ident, $found:ident, $lane:ident, $column:ident: $($i:literal)+) => {{
        let batch = [$($slots.load($found, $lane + $i, $column)),+];
        $(
            let weight = warp::shfl_idx(warp::FULL_MASK, $found.weight, $lane + $i);
            $sum = accumulate(&$sum, weight, $ty::widen(batch[$i]));
        )+
        batch.len() as u32
    }};
}

/// The expert outputs and where each token finds its own.
struct Slots<T> {
    y: *mut T,
    inverse: *const i32,
    topk_weights: *const f32,
    valid_rows: *const i64,
    tokens: u32,
    columns: u32,
    top_k: u32,
    vector: bool,
    discards: Flag,
}

/// Up to 32 slots of a token, one in each lane.
#[derive(Clone, Copy)]
struct Found {
    /// The slot's row of `y`; [`NO_ROW`](Self::NO_ROW) past the last slot, and where the slot is not valid.
    row: u32,
    /// Its weight; 0 where there is no row.
    weight: f32,
}

impl Found {
    /// Valid rows are counted in i32.
    const NO_ROW: u32 = u32::MAX;
}

impl<T: Element> Slots<T> {
    /// Looks up the slots `first..first + 32` of `token`. None of a token past the last.
    ///
    /// # Safety
    /// The arrays have their elements for every token, and nobody writes them from now on while the grid
    /// runs.
    #[inline(always)]
    unsafe fn find(&self, token: u32, first: u32) -> Found {
        let slot = first + thread::lane_id();
        let mut found = Found { row: Found::NO_ROW, weight: 0.0 };
        if token < self.tokens && slot < self.top_k {
            let r = token as usize * self.top_k as usize + slot as usize;
            // SAFETY: token and slot exist. The loads do not depend on each other: their latencies overlap.
            unsafe {
                let valid_rows = memory::load_strong(self.valid_rows).clamp(0, i32::MAX as i64) as u32;
                let row = memory::load_strong(self.inverse.add(r)) as u32;
                let mut weight = 1.0;
                if !self.topk_weights.is_null() {
                    weight = memory::load_strong(self.topk_weights.add(r));
                }
                if row < valid_rows {
                    found = Found { row, weight };
                }
            }
        }
        found
    }

    /// The chunk of `y` at `column` of the slot that lane `lane` has found: zeros where there is no such
    /// slot. The whole warp calls it.
    ///
    /// # Safety
    /// The rows below `*valid_rows` exist in `y` and are complete.
    #[inline(always)]
    unsafe fn load(&self, found: Found, lane: u32, column: u32) -> T::Packed {
        let row = warp::shfl_idx(warp::FULL_MASK, found.row, lane);
        if row == Found::NO_ROW {
            return T::narrow(&[0.0; CHUNK as usize]);
        }
        // SAFETY: the row is below `*valid_rows`.
        unsafe {
            let row = self.y.add(row as usize * self.columns as usize);
            load_packed_chunk(row, column, self.columns, self.vector)
        }
    }

    /// Discards what the warp has read of the slots that the `count` lanes from `lane` on have found, up to
    /// eight. The whole warp calls it.
    ///
    /// # Safety
    /// `discards` is set, nobody else reads these columns of these rows, and the warp does not read them
    /// again.
    #[inline(always)]
    unsafe fn discard(&self, found: Found, lane: u32, count: u32) {
        const { assert!(size_of::<T>() == 2 && LINES * CHUNK == 32) };
        let slot = thread::lane_id() / LINES;
        let row = warp::shfl_idx(warp::FULL_MASK, found.row, lane + slot);
        let column =
            thread::block_idx_x() * WARP_COLUMNS + thread::lane_id() % LINES * (WARP_COLUMNS / LINES);
        // All lanes have read.
        sync::warp(warp::FULL_MASK);
        if slot < count && row != Found::NO_ROW && column < self.columns {
            // SAFETY: the row exists, and all of the line, since rows are whole lines from an address of one.
            // This warp alone has read it, by coherent loads, which come before the meeting.
            unsafe {
                let at = self.y.add(row as usize * self.columns as usize + column as usize);
                memory::discard_line(at.cast());
            }
        }
    }
}

/// `sum + weight * values`.
#[inline(always)]
fn accumulate(sum: &Chunk, weight: f32, values: Chunk) -> Chunk {
    core::array::from_fn(|i| fma(weight, values[i], sum[i]))
}

/// Waits for the predecessor, sums for every token and writes `out [tokens, columns]`, or adds to it.
///
/// # Safety
/// `out` is writable, complete when the predecessor has ended if it is added to, `addend` null or readable,
/// and the arrays of `slots` have their elements for every token; those that name rows and weights were
/// complete before the predecessor began, if `routing_is_settled`; and what [`Unpermute::discards`] says.
#[inline(always)]
unsafe fn unpermute<T: Element, O: Element>(
    slots: Slots<T>,
    addend: *const f32,
    out: *mut O,
    routing_is_settled: bool,
    adds: bool,
) {
    let column = thread::block_idx_x() * WARP_COLUMNS + thread::lane_id() * CHUNK;
    let vector = vectorised(out, slots.columns);
    let addend_vector = vectorised(addend, slots.columns);
    let stride = thread::grid_dim_y() * WARPS;
    let (mut token, mut first) = (thread::block_idx_y() * WARPS + thread::warp_id(), 0);
    if !routing_is_settled {
        grid::wait();
    }
    // SAFETY: the caller's contract.
    let mut next = unsafe { slots.find(token, first) };
    grid::wait();
    grid::launch_dependents();
    let mut sum = [0.0; CHUNK as usize];
    while token < slots.tokens {
        let (found, count) = (next, u32::min(slots.top_k - first, 32));
        let of_token = token;
        first += 32;
        if first >= slots.top_k {
            (token, first) = (token + stride, 0);
        }
        // SAFETY: the caller's contract.
        next = unsafe { slots.find(token, first) };
        let mut lane = 0;
        while lane < count {
            // SAFETY: lanes up to 31, behind the wait. Slots have rows of their own where they are discarded,
            // by the caller's contract.
            unsafe {
                let added = if count - lane > 4 {
                    add_slots!(sum, T, slots, found, lane, column: 0 1 2 3 4 5 6 7)
                } else {
                    add_slots!(sum, T, slots, found, lane, column: 0 1 2 3)
                };
                if slots.discards.is_set() {
                    slots.discard(found, lane, added);
                }
                lane += added;
            }
        }
        // No more slots of this token.
        if first == 0 {
            // SAFETY: the token's row exists in `out`, and in `addend` if that is not null, and this lane
            // alone has its columns.
            unsafe {
                let start = of_token as usize * slots.columns as usize;
                if !addend.is_null() {
                    let values = load_chunk(addend.add(start), column, slots.columns, addend_vector);
                    sum = accumulate(&sum, 1.0, values);
                }
                let row = out.add(start);
                if adds {
                    let before = load_own_chunk(row, column, slots.columns, vector);
                    sum = core::array::from_fn(|i| sum[i] + before[i]);
                }
                store_chunk(row, column, slots.columns, vector, &sum);
            }
            sum = [0.0; CHUNK as usize];
        }
    }
}

macro_rules! unpermute {
    ($($name:ident: $ty:ident => $out:ident),+) => {$(
        /// Sums the rows of `y` into `out`. `routing_is_settled`: see [`unpermute`](self).
        ///
        /// # Safety
        /// The arrays are null, where they may be, or have their stated sizes. `out` is read with `adds`
        /// alone. With `discards` nobody reads `y` afterwards, before it is written anew.
        #[kernel(threads = THREADS, min_blocks = 8, overlap = within)]
        pub unsafe fn $name(arguments: Unpermute) {
            let Unpermute { y, inverse, topk_weights, valid_rows, out, .. } = arguments;
            let Unpermute { tokens, columns, top_k, addend, .. } = arguments;
            let Unpermute { routing_is_settled, adds, discards, .. } = arguments;
            let (y, out) = (y.cast::<$ty>(), out.cast::<$out>());
            let vector = vectorised(y, columns);
            let slots =
                Slots { y, inverse, topk_weights, valid_rows, tokens, columns, top_k, vector, discards };
            // SAFETY: the kernel's contract.
            unsafe { unpermute(slots, addend, out, routing_is_settled.is_set(), adds.is_set()) }
        }
    )+};
}

unpermute!(
    unpermute_bf16: Bf16 => Bf16,
    unpermute_bf16_f16: Bf16 => F16,
    unpermute_bf16_f32: Bf16 => f32,
    unpermute_f16: F16 => F16,
    unpermute_f16_f32: F16 => f32
);
