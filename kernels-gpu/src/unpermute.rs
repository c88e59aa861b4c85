//! Kernels `unpermute_*`: the weighted sum of each token's expert outputs.
//!
//! ```text
//!   out[t] = sum over slots, ascending, of weight[t, slot] * y[inverse[t * top_k + slot]]
//!
//!   token 3, top_k = 4:  inverse[12..16] = 7, 90, 41, 2      90 >= valid_rows: an expert of another rank, not read
//!                        out[3] = w0 * y[7] + w2 * y[41] + w3 * y[2]
//! ```
//!
//! f32 accumulation by fused multiply-adds, one rounding at the end, the same order always: the result does not depend on
//! the grid. A token without a valid slot gives 0.
//!
//! A warp takes 256 columns of a token, as in [`warp_rows`](crate::quantize::warp_rows). Four slots are loaded before the
//! first is added, so that their latencies overlap.

use crate::quantize::chunk::{CHUNK, Chunk, Element, WARP_COLUMNS, load_chunk, store_chunk, vectorised};
use cuda_std::bf16::{Bf16, F16};
use cuda_std::math::fma;
use cuda_std::{kernel, memory, thread};

/// Threads of a block: four tokens.
const THREADS: u32 = 128;

const WARPS: u32 = THREADS / 32;

/// Slots whose rows are in flight at a time.
const BATCH: u32 = 4;

/// The expert outputs and where each token finds its own.
struct Slots<T> {
    y: *const T,
    inverse: *const i32,
    topk_weights: *const f32,
    valid_rows: u32,
    columns: u32,
    top_k: u32,
    vector: bool,
}

impl<T: Element> Slots<T> {
    /// The weight of a token's slot and its chunk of `y` at `column`: zeros where the slot is past the last or not valid.
    ///
    /// # Safety
    /// The token exists.
    #[inline(always)]
    unsafe fn load(&self, token: u32, slot: u32, column: u32) -> (f32, Chunk) {
        let nothing = (0.0, [0.0; CHUNK as usize]);
        if slot >= self.top_k {
            return nothing;
        }
        let r = token as usize * self.top_k as usize + slot as usize;
        // SAFETY: `inverse` has `top_k` elements for every token.
        let row = unsafe { memory::load_nc(self.inverse.add(r)) } as u32;
        if row >= self.valid_rows {
            return nothing;
        }
        let mut weight = 1.0;
        if !self.topk_weights.is_null() {
            // SAFETY: as `inverse`.
            weight = unsafe { memory::load_nc(self.topk_weights.add(r)) };
        }
        // SAFETY: rows below `valid_rows` exist in `y`.
        let values = unsafe {
            let row = self.y.add(row as usize * self.columns as usize);
            load_chunk(row, column, self.columns, self.vector)
        };
        (weight, values)
    }
}

/// `sum + weight * values`.
#[inline(always)]
fn accumulate(sum: &Chunk, (weight, values): (f32, Chunk)) -> Chunk {
    core::array::from_fn(|i| fma(weight, values[i], sum[i]))
}

/// Sums for every token and writes `out [tokens, columns]`.
///
/// # Safety
/// `out` is writable, and the arrays of `slots` have their elements for every token.
#[inline(always)]
unsafe fn unpermute<T: Element, O: Element>(slots: Slots<T>, out: *mut O, tokens: u32) {
    let column = thread::block_idx_y() * WARP_COLUMNS + thread::lane_id() * CHUNK;
    let vector = vectorised(out, slots.columns);
    let mut token = thread::block_idx_x() * WARPS + thread::warp_id();
    while token < tokens {
        let mut sum = [0.0; CHUNK as usize];
        let mut slot = 0;
        while slot < slots.top_k {
            // SAFETY: the token exists.
            let batch = unsafe {
                [
                    slots.load(token, slot, column),
                    slots.load(token, slot + 1, column),
                    slots.load(token, slot + 2, column),
                    slots.load(token, slot + 3, column),
                ]
            };
            sum = accumulate(&sum, batch[0]);
            sum = accumulate(&sum, batch[1]);
            sum = accumulate(&sum, batch[2]);
            sum = accumulate(&sum, batch[3]);
            slot += BATCH;
        }
        // SAFETY: the token's row exists in `out`, and this lane alone has its columns.
        unsafe {
            let row = out.add(token as usize * slots.columns as usize);
            store_chunk(row, column, slots.columns, vector, &sum);
        }
        token += thread::grid_dim_x() * WARPS;
    }
}

macro_rules! unpermute {
    ($($name:ident: $ty:ident => $out:ident),+) => {$(
        /// Sums the rows of `y [.., columns]` into `out [tokens, columns]`, by `inverse [tokens, top_k]` and
        /// `topk_weights [tokens, top_k]` (all 1 where null); rows from `*valid_rows` on are skipped.
        ///
        /// # Safety
        /// Null or the sizes above; `y` has `*valid_rows` rows; `valid_rows` is not null. `out` is not read.
        #[kernel(threads = THREADS, min_blocks = 6, overlap = before)]
        pub unsafe fn $name(
            y: *const $ty,
            inverse: *const i32,
            topk_weights: *const f32,
            valid_rows: *const i64,
            out: *mut $out,
            tokens: u32,
            columns: u32,
            top_k: u32,
        ) {
            // SAFETY: the kernel's contract.
            unsafe {
                let valid_rows = memory::load_nc(valid_rows).clamp(0, i32::MAX as i64) as u32;
                let vector = vectorised(y, columns);
                unpermute(Slots { y, inverse, topk_weights, valid_rows, columns, top_k, vector }, out, tokens);
            }
        }
    )+};
}

unpermute!(
    unpermute_bf16: Bf16 => Bf16,
    unpermute_bf16_f32: Bf16 => f32,
    unpermute_f16: F16 => F16,
    unpermute_f16_f32: F16 => f32
);
