//! The input rows of a tile, quantised into shared memory.
//!
//! ```text
//!   GEMM 1   hidden states of the pairs' tokens, bf16 or f16, perhaps weighed      --> e4m3 [rows, pitch], scales [groups, 8]
//!            hidden states in e4m3 with their scales                               --> copied
//!   GEMM 2   activated values of the pairs, f32                                    --> e4m3, scales
//! ```
//!
//! Every block quantises the rows of the tiles that it works on, mostly one or two; they come from L2. There
//! is a scale for each 128 columns in any case: where a row, or everything, has one, it is repeated.
//!
//! A warp takes 256 columns of a row, eight to a lane, and four such at a time, so that their loads are in
//! flight together.

use cuda_std::bf16::{Bf16, F16};
use cuda_std::shared::Shared;
use cuda_std::warp::{self, FULL_MASK, shfl_xor};
use cuda_std::{memory as global, sync, thread};

use super::memory::Memory;
use super::{CONSUMER_BARRIER, CONSUMER_WARPS, CONSUMERS, FEW_TILE_ROWS, FewTokens, HiddenType, Projection};
use crate::abi::AScaleKind;
use crate::quantize::chunk::{CHUNK, Chunk, Element, PackedChunk, WARP_COLUMNS, absmax, load_chunk, pack, vectorised};
use crate::quantize::scale::{self, Divisor};

/// Where inputs come from and go to.
pub struct Inputs<'a> {
    pub arguments: &'a FewTokens,
    pub memory: &'a Memory,
}

/// Pieces of 256 columns that a warp has in flight.
const BATCH: u32 = 4;

impl Inputs<'_> {
    /// Takes the hidden states of a tile's tokens. All consumers call it together, done with the inputs before;
    /// then all see the new ones.
    ///
    /// # Safety
    /// The contract of the kernel, for a tile that exists.
    #[inline(always)]
    pub unsafe fn take_hidden(&self, tile: u32) {
        let FewTokens { hidden, hidden_type, top_k, weighs_input, .. } = *self.arguments;
        let Projection { k, .. } = self.arguments.first;
        // SAFETY: the caller's contract: rows of the tile are pairs, whose tokens have hidden states.
        unsafe {
            if hidden_type.is(HiddenType::E4m3) {
                self.copy(tile);
            } else {
                let token = |row| (self.memory.tile_pair(tile, row) / top_k) as usize * k as usize;
                let weight = |row: u32| {
                    let pair = self.memory.tile_pair(tile, row);
                    if weighs_input.is_set() { self.memory.pair_weight(pair).read() } else { 1.0 }
                };
                let is_vector = vectorised(hidden, k);
                let weigh = |values: Chunk, row: u32| {
                    let weight = weight(row);
                    values.map(|value| value * weight)
                };
                if hidden_type.is(HiddenType::F16) {
                    let x = hidden.cast::<F16>();
                    self.quantise(&self.arguments.first, tile, |row, column| {
                        weigh(load_chunk(x.add(token(row)), column, k, is_vector), row)
                    });
                } else {
                    let x = hidden.cast::<Bf16>();
                    self.quantise(&self.arguments.first, tile, |row, column| {
                        weigh(load_chunk(x.add(token(row)), column, k, is_vector), row)
                    });
                }
            }
        }
        sync::named(CONSUMER_BARRIER, CONSUMERS);
    }

    /// Takes the activated values of a tile's pairs. As [`take_hidden`](Self::take_hidden).
    ///
    /// # Safety
    /// As `take_hidden`; the values are complete, and visible to this thread.
    #[inline(always)]
    pub unsafe fn take_activated(&self, tile: u32) {
        let FewTokens { activated, .. } = *self.arguments;
        let Projection { k, .. } = self.arguments.second;
        // SAFETY: the caller's contract. Columns are multiples of 8 below K, a multiple of 64.
        unsafe {
            self.quantise(&self.arguments.second, tile, |row, column| {
                if column >= k {
                    return [0.0; CHUNK as usize];
                }
                let pair = self.memory.tile_pair(tile, row);
                f32::load_strong(activated.add(pair as usize * k as usize + column as usize))
            });
        }
        sync::named(CONSUMER_BARRIER, CONSUMERS);
    }

    /// Quantises the rows that `load(row, column)` gives eight columns of.
    ///
    /// # Safety
    /// As [`take_hidden`](Self::take_hidden).
    #[inline(always)]
    unsafe fn quantise(&self, projection: &Projection, tile: u32, load: impl Fn(u32, u32) -> Chunk) {
        let Projection { k, input_scale_kind, given_scale, .. } = *projection;
        // SAFETY: the caller's contract. Each place in shared memory is written by one thread, and barriers lie
        // between that and the reads.
        unsafe {
            let rows = self.memory.tile_size(tile);
            if input_scale_kind.is(AScaleKind::Group) {
                self.each(k, rows, load, |row, column, values| {
                    let mut largest = warp::reduce_groups::<f32, 8>(absmax(values), f32::max);
                    largest = f32::max(largest, shfl_xor(FULL_MASK, largest, 8));
                    let scale = scale::of_group_absmax(largest);
                    if column < k && column.is_multiple_of(128) {
                        self.scale(row, column / 128).write(scale);
                    }
                    self.put(row, column, k, pack(&Divisor::new(scale).divide(values)));
                });
                return;
            }
            if input_scale_kind.is(AScaleKind::Call) {
                let given = global::load_nc(given_scale);
                let inverse = 1.0 / given;
                self.each(k, rows, load, |row, column, values| {
                    self.put(row, column, k, pack(&values.map(|value| value * inverse)));
                });
                self.repeat(k, rows, |_| given);
                return;
            }
            let warp = thread::warp_id();
            let mut row = 0;
            while row < rows {
                let mut largest = 0.0;
                let mut column = warp * WARP_COLUMNS + thread::lane_id() * CHUNK;
                while column < k.next_multiple_of(WARP_COLUMNS) {
                    largest = f32::max(largest, absmax(&load(row, column)));
                    column += CONSUMER_WARPS * WARP_COLUMNS;
                }
                let largest = warp::reduce_max_f32(largest);
                if thread::lane_id() == 0 {
                    self.memory.maximum(row, warp).write(largest);
                }
                row += 1;
            }
            sync::named(CONSUMER_BARRIER, CONSUMERS);
            let of_row = |row: u32| {
                let [low, high]: [[f32; 4]; 2] = [
                    self.memory.maximum(row, 0).cast().read(),
                    self.memory.maximum(row, 4).cast().read(),
                ];
                let largest = low.into_iter().chain(high).fold(0.0, f32::max);
                scale::of_absmax(largest)
            };
            self.each(k, rows, load, |row, column, values| {
                self.put(row, column, k, pack(&Divisor::new(of_row(row)).divide(values)));
            });
            self.repeat(k, rows, of_row);
        }
    }

    /// Calls `f(row, column, values)` for eight columns of every row in every lane, warps together.
    ///
    /// # Safety
    /// `load` is for all rows and columns up to the next multiple of 256.
    #[inline(always)]
    unsafe fn each(
        &self,
        k: u32,
        rows: u32,
        load: impl Fn(u32, u32) -> Chunk,
        f: impl Fn(u32, u32, &Chunk),
    ) {
        let pieces = k.div_ceil(WARP_COLUMNS);
        let all = rows * pieces;
        let place = |piece: u32| {
            (piece / pieces, piece % pieces * WARP_COLUMNS + thread::lane_id() * CHUNK)
        };
        let load = |piece: u32| {
            let (row, column) = place(piece);
            if piece < all { load(row, column) } else { [0.0; CHUNK as usize] }
        };
        let f = |piece: u32, values: &Chunk| {
            let (row, column) = place(piece);
            if piece < all {
                f(row, column, values);
            }
        };
        let mut piece = thread::warp_id();
        while piece < all {
            let next = |n: u32| piece + n * CONSUMER_WARPS;
            let values = [load(piece), load(next(1)), load(next(2)), load(next(3))];
            f(piece, &values[0]);
            f(next(1), &values[1]);
            f(next(2), &values[2]);
            f(next(3), &values[3]);
            piece += BATCH * CONSUMER_WARPS;
        }
    }

    /// Copies hidden states that are e4m3, and their scales.
    ///
    /// # Safety
    /// As [`take_hidden`](Self::take_hidden).
    #[inline(always)]
    unsafe fn copy(&self, tile: u32) {
        let FewTokens { hidden, hidden_scales, hidden_scale_strides, top_k, ref first, .. } = *self.arguments;
        let Projection { k, input_scale_kind, given_scale, .. } = *first;
        // SAFETY: the caller's contract; rows are multiples of 64 bytes from an aligned address. Each place in
        // shared memory is written by one thread.
        unsafe {
            let rows = self.memory.tile_size(tile);
            let token = |row| (self.memory.tile_pair(tile, row) / top_k) as usize;
            let mut at = thread::thread_idx_x() * CHUNK;
            while at < rows * k {
                let (row, column) = (at / k, at % k);
                let packed: PackedChunk =
                    global::load_nc(hidden.add(token(row) * k as usize + column as usize).cast());
                self.put(row, column, k, packed);
                at += CONSUMERS * CHUNK;
            }
            let groups = k.div_ceil(128);
            let mut at = thread::thread_idx_x();
            while at < rows * groups {
                let (row, group) = (at / groups, at % groups);
                let scale = if input_scale_kind.is(AScaleKind::Call) {
                    global::load_nc(given_scale)
                } else {
                    let of_row = token(row) as u64 * hidden_scale_strides.row;
                    let per_group = input_scale_kind.is(AScaleKind::Group);
                    let of_group = if per_group { u64::from(group) * hidden_scale_strides.group } else { 0 };
                    global::load_nc(hidden_scales.add((of_row + of_group) as usize))
                };
                self.scale(row, group).write(scale);
                at += CONSUMERS;
            }
        }
    }

    /// Where the scale of a row and group is.
    #[inline(always)]
    fn scale(&self, row: u32, group: u32) -> Shared<f32> {
        self.memory.input_scales.add(group * FEW_TILE_ROWS + row)
    }

    /// Repeats each row's scale for all groups.
    ///
    /// # Safety
    /// As [`quantise`](Self::quantise).
    #[inline(always)]
    unsafe fn repeat(&self, k: u32, rows: u32, of_row: impl Fn(u32) -> f32) {
        let groups = k.div_ceil(128);
        let mut at = thread::thread_idx_x();
        while at < rows * groups {
            let (row, group) = (at / groups, at % groups);
            // SAFETY: each scale is written by one thread.
            unsafe { self.scale(row, group).write(of_row(row)) };
            at += CONSUMERS;
        }
    }

    /// Writes eight columns of a row, which has `k`.
    ///
    /// # Safety
    /// As [`quantise`](Self::quantise).
    #[inline(always)]
    unsafe fn put(&self, row: u32, column: u32, k: u32, packed: PackedChunk) {
        if column < k {
            let to = self.memory.inputs + row * self.memory.input_pitch + column;
            // SAFETY: the caller's contract.
            unsafe { Shared::from_address(to).write(packed) };
        }
    }
}
