//! The rows that a unit's weights are multiplied by, quantised into shared memory.
//!
//! ```text
//!   GEMM 1   hidden states of all tokens, bf16 or f16                            --> e4m3, scales [groups, 8]
//!            .. of all pairs, where a pair's weight multiplies its input
//!            hidden states in e4m3 with their scales                             --> copied
//!   GEMM 2   activated values of a tile's pairs, f32, as soon as they are there  --> e4m3, scales
//! ```
//!
//! Products have eight columns in any case. So in GEMM 1 there is one for each token, whoever its experts
//! are, and a block quantises a token's hidden states once, when the first of its tiles has the token; of a
//! tile's products those columns are stored that are its pairs'. In GEMM 2 a block quantises the rows of each
//! tile that it works on. All of them come from L2. There is a scale for each 128 columns in any case: where
//! a row, or everything, has one, it is repeated. Where packed weights have zeros behind K, so have the rows:
//! zero times a NaN that GEMM 1 has left there is a NaN.
//!
//! A warp takes 256 columns of a row, eight to a lane, and loads the next ones before it is done with them.

use cuda_std::bf16::{bf16x2_from_f32, f16x2_from_f32, f32x2_from_bf16x2, f32x2_from_f16x2};
use cuda_std::shared::Shared;
use cuda_std::warp::{self, FULL_MASK, all, shfl_xor};
use cuda_std::{bulk, memory as global, sync, thread};

use super::control::{Set, are_filled, look_again};
use super::layout::Layout;
use super::memory::Memory;
use super::queue::Unit;
use super::{CONSUMER_BARRIER, CONSUMER_WARPS, CONSUMERS, FEW_TILE_ROWS, FewTokens, HiddenType, Projection};
use crate::abi::AScaleKind;
use crate::elementwise::rows::chunk::{CHUNK, Chunk, Element, PackedChunk, WARP_COLUMNS, absmax, pack};
use crate::elementwise::rows::scale::{self, Divisor};
use crate::gemm::recomputed;

/// Eight columns of a row as they are loaded: hidden states in the first four words, two to a word, or
/// activated values.
type Words = [f32; CHUNK as usize];

/// What is past the end of a row: zeros that do not look empty, of either type.
const ABSENT: Words = [-0.0; CHUNK as usize];
/// Pieces of rows that a warp has on their way.
const AHEAD: u32 = 3;
/// Bytes of a line of L2.
const LINE: u32 = 128;

/// Prepares what inputs need: values and scales of 0, for what products read and nobody writes, and the
/// pairs' weights. Brings the hidden states into L2, before the weights' stream
/// stands in their way. All consumers call it together; a barrier of the block follows.
///
/// # Safety
/// The contract of the kernel.
#[inline(always)]
pub unsafe fn begin<L: Layout>(arguments: &FewTokens, memory: &Memory) {
    let thread = thread::thread_idx_x();
    let of_element = if arguments.hidden_type.is(HiddenType::E4m3) { 1 } else { 2 };
    let (bytes, mut at) = (arguments.tokens * arguments.first.k * of_element, thread * LINE);
    while at < bytes {
        global::prefetch_l2(arguments.hidden.wrapping_add(at as usize));
        at += CONSUMERS * LINE;
    }
    // SAFETY: each place is written by one thread; a pair has a weight.
    unsafe {
        if thread < arguments.tokens * arguments.top_k {
            let weight = global::load_nc(arguments.topk_weights.add(thread as usize));
            memory.pair_weight(thread).write(weight);
        }
        let mut at = memory.inputs + thread * 16;
        while at < memory.end(arguments, L::IS_PACKED) {
            Shared::<[u32; 4]>::from_address(at).write([0; 4]);
            at += CONSUMERS * 16;
        }
    }
}

/// How many rows GEMM 1 multiplies by: those of all tokens, or of all pairs.
#[inline(always)]
pub fn first_rows(arguments: &FewTokens) -> u32 {
    let FewTokens { tokens, top_k, weighs_input, .. } = *arguments;
    if weighs_input.is_set() { tokens * top_k } else { tokens }
}

/// The row of a pair in GEMM 1.
#[inline(always)]
pub fn first_row(arguments: &FewTokens, pair: u32) -> u32 {
    if arguments.weighs_input.is_set() { pair } else { pair / arguments.top_k }
}

/// The inputs of GEMM 1, or of a tile in GEMM 2.
pub struct Inputs<'a> {
    arguments: &'a FewTokens,
    memory: &'a Memory,
    projection: &'a Projection,
    /// Whether they are hidden states, else activated values of `tile`.
    is_first: bool,
    set: &'a Set,
    tile: u32,
    /// How many are to be taken.
    pub rows: u32,
    /// Which, four bits each, from the lowest on.
    which: u32,
    /// 256 by the rows of a token, and a bit more: exact for up to eight rows.
    per_token: u32,
}

/// All rows, one behind the other.
const IN_ORDER: u32 = 0x7654_3210;
const _: () = assert!(FEW_TILE_ROWS == 8);

/// Which rows of GEMM 1 a tile needs, bit by bit. All lanes of a warp call it together.
///
/// # Safety
/// The contract of the kernel, for a tile that exists.
#[inline(always)]
unsafe fn needed(arguments: &FewTokens, memory: &Memory, tile: u32) -> u32 {
    // SAFETY: the caller's contract; a tile has up to eight rows.
    unsafe {
        let row = thread::lane_id().min(memory.tile_size(tile) - 1);
        let mut rows = 1 << first_row(arguments, memory.tile_pair(tile, row));
        rows |= shfl_xor(FULL_MASK, rows, 1);
        rows |= shfl_xor(FULL_MASK, rows, 2);
        rows |= shfl_xor(FULL_MASK, rows, 4);
        // The same in all lanes; the shuffle says so to ptxas.
        warp::shfl_idx(FULL_MASK, rows, 0)
    }
}

impl<'a> Inputs<'a> {
    /// The token whose hidden states a row has.
    #[inline(always)]
    fn token(&self, row: u32) -> u32 {
        (row * self.per_token) >> 8
    }

    /// Those of a unit: of GEMM 1 what its tile needs and is not among `quantised`, bit by bit, to which it is
    /// added; of GEMM 2 all of the tile. All lanes of a warp call it together.
    ///
    /// # Safety
    /// The contract of the kernel, for a unit of the projection.
    #[inline(always)]
    pub unsafe fn new(
        arguments: &'a FewTokens,
        memory: &'a Memory,
        projection: &'a Projection,
        set: &'a Set,
        unit: &Unit,
        quantised: &mut u32,
    ) -> Self {
        let Unit { is_first, tile, .. } = *unit;
        // SAFETY: the caller's contract.
        let (rows, which) = unsafe {
            if is_first {
                let mut left = needed(arguments, memory, tile) & !*quantised;
                *quantised |= left;
                let (rows, mut which) = (left.count_ones(), 0);
                // From the highest on.
                while left != 0 {
                    let row = 31 - left.leading_zeros();
                    which = which << 4 | row;
                    left ^= 1 << row;
                }
                (rows, which)
            } else {
                (memory.tile_size(tile), IN_ORDER)
            }
        };
        let per_token = if arguments.weighs_input.is_set() { 256 / arguments.top_k + 1 } else { 256 };
        Self { arguments, memory, projection, is_first, set, tile, rows, which, per_token }
    }

    /// The row that is to be taken as number `n`.
    #[inline(always)]
    fn row(&self, n: u32) -> u32 {
        self.which >> (4 * n) & 7
    }

    /// Takes them. All consumers call it together; then all see them.
    ///
    /// # Safety
    /// The contract of the kernel, in GEMM 2 for a tile that exists; activated values have been stored, or
    /// will be.
    #[inline(always)]
    pub unsafe fn take<L: Layout>(&self) {
        sync::named(CONSUMER_BARRIER, CONSUMERS);
        // SAFETY: the caller's contract.
        unsafe {
            if self.is_first && self.arguments.hidden_type.is(HiddenType::E4m3) {
                self.copy::<L>();
            } else {
                self.quantise::<L>();
            }
        }
        if L::IS_PACKED {
            // `wgmma` reads through the other proxy.
            bulk::fence_shared();
        }
        sync::named(CONSUMER_BARRIER, CONSUMERS);
    }

    /// Eight columns of a row; zeros past its end. Of activated values the words, filled or not, and none
    /// past the end that look empty.
    ///
    /// # Safety
    /// As [`take`](Self::take), for a row that there is and a multiple of 8.
    #[inline(always)]
    unsafe fn load(&self, row: u32, column: u32) -> Words {
        let k = self.projection.k;
        if column >= k {
            return ABSENT;
        }
        // SAFETY: the pair, and its token, have the columns, K being a multiple of 16; 16-byte aligned.
        unsafe {
            if !self.is_first {
                let pair = self.memory.tile_pair(self.tile, row);
                let at = pair as usize * k as usize + column as usize;
                return f32::load_strong(self.set.activated.add(at));
            }
            let at = self.token(row) as usize * k as usize + column as usize;
            let words: [u32; 4] = global::load_nc(self.arguments.hidden.cast::<u16>().add(at).cast());
            let mut all = ABSENT;
            for i in 0..4 {
                all[i] = f32::from_bits(words[i]);
            }
            all
        }
    }

    /// The values that [`load`](Self::load) has brought of a row, where they are filled.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn values(&self, row: u32, words: &Words) -> Chunk {
        let FewTokens { hidden_type, weighs_input, .. } = *self.arguments;
        if !self.is_first {
            return words.map(|word| -word);
        }
        let is_f16 = hidden_type.is(HiddenType::F16);
        let widen = |pair| if is_f16 { f32x2_from_f16x2(pair) } else { f32x2_from_bf16x2(pair) };
        let mut pairs: [[f32; 2]; 4] = core::array::from_fn(|i| widen(words[i].to_bits()));
        if weighs_input.is_set() {
            // SAFETY: the caller's contract.
            let weight = unsafe { self.memory.pair_weight(row).read() };
            // Rounded to the type of the hidden states, as the models do.
            pairs = pairs.map(|[low, high]| {
                let (low, high) = (low * weight, high * weight);
                widen(if is_f16 { f16x2_from_f32(low, high) } else { bf16x2_from_f32(low, high) })
            });
        }
        let [a, b, c, d] = pairs;
        [a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]]
    }

    /// Quantises the rows.
    ///
    /// # Safety
    /// As [`take`](Self::take).
    #[inline(always)]
    unsafe fn quantise<L: Layout>(&self) {
        let Projection { k, input_scale_kind, given_scale, .. } = *self.projection;
        // SAFETY: the caller's contract. Each place in shared memory is written by one thread, and barriers
        // lie between that and the reads.
        unsafe {
            if input_scale_kind.is(AScaleKind::Row) {
                self.find_maxima();
            }
            let is_given = input_scale_kind.is(AScaleKind::Call);
            let given = if is_given { global::load_nc(given_scale) } else { 1.0 };
            let (inverse, pieces) = (1.0 / given, k.div_ceil(WARP_COLUMNS));
            let pieces_of_all = self.rows * pieces;
            // Worked out for each tile: it would take registers from tile to tile.
            let thread = recomputed(thread::thread_idx_x());
            // Exact: a row takes a byte of shared memory for each column, so that `pieces_of_all * pieces`
            // is less than 2^20.
            let inverse_of_pieces = (1 << 20) / pieces + 1;
            let place = |piece: u32| {
                let n = (piece * inverse_of_pieces) >> 20;
                (self.row(n), (piece - n * pieces) * WARP_COLUMNS + thread % 32 * CHUNK)
            };
            let load = |piece: u32| {
                if piece >= pieces_of_all {
                    return ABSENT;
                }
                let (row, column) = place(piece);
                self.load(row, column)
            };
            let finish = |piece: u32, words: &Words| {
                let (row, column) = place(piece);
                let values = &self.values(row, words);
                let mut largest = warp::reduce_groups::<f32, 8>(absmax(values), f32::max);
                largest = f32::max(largest, shfl_xor(FULL_MASK, largest, 8));
                let scale = if input_scale_kind.is(AScaleKind::Group) {
                    scale::of_group_absmax(largest)
                } else if is_given {
                    given
                } else {
                    scale::of_absmax(self.maximum(row))
                };
                let quotients = if is_given {
                    values.map(|value| value * inverse)
                } else {
                    Divisor::new(scale).divide(values)
                };
                if column < L::padded(k) {
                    if column.is_multiple_of(128) {
                        self.scale(row, column / 128).write(scale);
                    }
                    self.put::<L>(row, column, pack(&quotients));
                }
            };
            let mut piece = thread / 32;
            while piece < pieces_of_all {
                // Behind the weights' stream a trip to L2 takes as long as several pieces.
                let mut words = [load(piece), load(piece + CONSUMER_WARPS), load(piece + 2 * CONSUMER_WARPS)];
                let mut left = AHEAD;
                while left > 0 && piece < pieces_of_all {
                    if !self.is_first {
                        while !all(FULL_MASK, are_filled(&words[0])) {
                            look_again();
                            words[0] = load(piece);
                        }
                    }
                    finish(piece, &words[0]);
                    words = [words[1], words[2], words[2]];
                    piece += CONSUMER_WARPS;
                    // A loop that is not unrolled: the driver compiles it.
                    left = recomputed(left - 1);
                }
            }
        }
    }

    /// Leaves the largest magnitude of each row that each warp finds, for [`maximum`](Self::maximum).
    ///
    /// # Safety
    /// As [`quantise`](Self::quantise).
    #[inline(always)]
    unsafe fn find_maxima(&self) {
        let mut n = 0;
        while n < self.rows {
            let row = self.row(n);
            let mut largest = 0.0;
            let mut column = recomputed(thread::thread_idx_x()) * CHUNK;
            while column < self.projection.k {
                // SAFETY: the caller's contract.
                unsafe {
                    let words = loop {
                        let words = self.load(row, column);
                        if self.is_first || are_filled(&words) {
                            break words;
                        }
                        look_again();
                    };
                    largest = f32::max(largest, absmax(&self.values(row, &words)));
                }
                column += CONSUMERS * CHUNK;
            }
            sync::warp(FULL_MASK);
            let largest = warp::reduce_max_f32(largest);
            if thread::lane_id() == 0 {
                // SAFETY: one lane writes.
                unsafe { self.memory.maximum(row, thread::warp_id()).write(largest) };
            }
            n += 1;
        }
        sync::named(CONSUMER_BARRIER, CONSUMERS);
    }

    /// The largest magnitude of a row.
    ///
    /// # Safety
    /// [`find_maxima`](Self::find_maxima) has been called.
    #[inline(always)]
    unsafe fn maximum(&self, row: u32) -> f32 {
        // SAFETY: the caller's contract; a row's sixteen are 16-byte aligned.
        let four = |warp: u32| -> [f32; 4] { unsafe { self.memory.maximum(row, warp).cast().read() } };
        let [a, b, c, d] = [four(0), four(4), four(8), four(12)];
        let [a, b, c, d] = core::array::from_fn(|i| f32::max(f32::max(a[i], b[i]), f32::max(c[i], d[i])));
        f32::max(f32::max(a, b), f32::max(c, d))
    }

    /// Copies hidden states that are e4m3, and their scales.
    ///
    /// # Safety
    /// As [`take`](Self::take).
    #[inline(always)]
    unsafe fn copy<L: Layout>(&self) {
        let FewTokens { hidden, hidden_scales, hidden_scale_strides, .. } = *self.arguments;
        let Projection { k, input_scale_kind, given_scale, .. } = *self.projection;
        // SAFETY: the caller's contract; rows are multiples of 16 bytes from an aligned address. Each place
        // in shared memory is written by one thread. What packed weights have behind K is multiplied by the
        // zeros that `begin` has left, since only these rows come before those of GEMM 2.
        unsafe {
            let thread = recomputed(thread::thread_idx_x());
            let mut at = thread * CHUNK;
            while at < self.rows * k {
                let (row, column) = (self.row(at / k), at % k);
                let from = hidden.add(self.token(row) as usize * k as usize + column as usize);
                self.put::<L>(row, column, global::load_nc(from.cast()));
                at += CONSUMERS * CHUNK;
            }
            let groups = k.div_ceil(128);
            let mut at = thread;
            while at < self.rows * groups {
                let (row, group) = (self.row(at / groups), at % groups);
                let scale = if input_scale_kind.is(AScaleKind::Call) {
                    global::load_nc(given_scale)
                } else {
                    let of_row = u64::from(self.token(row)) * hidden_scale_strides.row;
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

    /// Writes eight columns of a row.
    ///
    /// # Safety
    /// The row has them, and this thread alone writes them.
    #[inline(always)]
    unsafe fn put<L: Layout>(&self, row: u32, column: u32, packed: PackedChunk) {
        // SAFETY: the caller's contract.
        unsafe { Shared::from_address(L::input(self.projection, self.memory, row, column)).write(packed) };
    }
}
