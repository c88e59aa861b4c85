//! Rows of A gathered by token: what fills the ring, and the entry points, of gated kernels that need no
//! permuted copy of A.
//!
//! The permutation says whose row of A the permuted row p is: `sorted_rows[p] = token * top_k + slot`. TMA of
//! Hopper takes rows that follow each other, so that the threads of the last warpgroup copy instead, 16 bytes
//! at a time with `cp.async`, to where TMA would have put them:
//!
//! ```text
//!   thread t, of warp w = t / 32:     knows the token of row t of the tile, and copies its scale, if A has any that change along K
//!   its lane l, in copy i = 0 .. 8:   chunk l % 8 of row 32 w + 4 i + l / 8, whose token lane 4 i + l / 8 knows
//!
//!                    chunk 0   1   2   3   4   5   6   7
//!   row 32 w + 4 i (even) l0  l1  l2  l3  l4  l5  l6  l7        a row of a stage: 128 bytes, a line of L2
//!                  + 1    l9  l8 l11 l10 l13 l12 l15 l14        chunk c of row r lies at place c ^ (r % 8)
//!                  + 2   l18 l19 l16 l17 ..
//! ```
//!
//! Rows past the end of the tile, padding and bytes past the end of K become zeros, which costs no read. Of a
//! tile of up to 64 rows nobody reads the rows from 64 on, and they are left alone.
//!
//! # Order
//! B comes by TMA, half from each block that shares it. Each block gathers its own A. Each of the 128 threads
//! waits for a stage to be free, copies, and arrives behind its copies (`cp.async.mbarrier.arrive.noinc`); it
//! does not wait for them. The consumers fence ([`ring`](super::super::ring)).

use cuda_std::{arguments, cluster, cp_async, kernel, mbarrier, memory, thread, unroll, warp};

use super::fill::Fill;
use super::gated::Gated;
use super::items::{Item, Items};
use super::notes::Notes;
use super::{BLOCKS, End, STAGE_BYTES, STAGES, Source, THREADS, run_from, shared_bytes};
use crate::abi::{COPY_BYTES, SLAB};
use crate::gemm::hopper::gated::GatedArguments;
use crate::gemm::hopper::ring::{Position, Ring};
use crate::gemm::hopper::slab_scales::{BlockLanes, SlabScales, first_slot};
use crate::gemm::hopper::weights::Matrix;
use crate::gemm::hopper::{CONSUMERS, HopperGathered, ROWS_128};
use crate::schedule::work::Tile;

/// Bytes of a copy.
const CHUNK: u32 = COPY_BYTES;
/// Chunks of a row of a stage.
const CHUNKS: u32 = SLAB / CHUNK;
/// Rows that a warp copies a chunk of with one instruction.
const ROWS_AT_A_TIME: u32 = 32 / CHUNKS;

/// The place of a row that does not exist.
const NOWHERE: u32 = u32::MAX;

/// A in the order of the tokens.
#[arguments]
pub struct TokenRows {
    /// e4m3 `[tokens, k]`, 16-byte aligned, of fewer than 2^32 chunks of 16 bytes.
    pub a: *const u8,
    /// i32 `[P]`, permuted row to expanded row.
    pub sorted_rows: *const i32,
    /// T.
    pub tokens: u32,
    /// Slots of a token, at least 1.
    pub top_k: u32,
    /// Where the scale of (token, slab) is, if A's scales change along K.
    pub scale_strides: crate::abi::Strides,
}

/// A in the order of the tokens, and its scales, which are counted in 32 bits.
#[derive(Clone, Copy)]
struct Gathered {
    rows: TokenRows,
    scales: *const f32,
    row_stride: u32,
    group_stride: u32,
}

impl TokenRows {
    /// The token whose row of A the permuted row `row` is; none for padding.
    ///
    /// # Safety
    /// `sorted_rows` has the row.
    #[inline(always)]
    unsafe fn token(&self, row: u32) -> Option<u32> {
        // SAFETY: the caller's contract; the permutation is complete, and `top_k` at least 1: a check would
        // end in a trap.
        let expanded = unsafe {
            core::hint::assert_unchecked(self.top_k != 0);
            memory::load_nc(self.sorted_rows.add(row as usize)) as u32
        };
        let token = expanded / self.top_k;
        (token < self.tokens).then_some(token)
    }
}

impl Source<true> for Gathered {
    const WARPS: u32 = 4;

    #[inline(always)]
    unsafe fn fill<const SCALED: bool>(
        self,
        ring: Ring<STAGES, STAGE_BYTES, SCALED, BLOCKS, true>,
        mut items: Items,
        end: &impl End,
        b: Matrix,
        k: u32,
    ) {
        let thread = thread::thread_idx_x() - CONSUMERS;
        let (warp, lane) = (thread / 32, thread % 32);
        let (chunk, row) = (lane % CHUNKS, lane / CHUNKS);
        // Four rows further, the place within the row changes in its highest bit.
        let even = (32 * warp + row) * SLAB + (chunk ^ row) * CHUNK;
        let places = [even, even ^ (4 * CHUNK)];
        let scales = end.slab_scales();
        let mut position = Position::START;
        let rank = cluster::rank();
        while let Some(Item { tile, shares_b }) = items.next() {
            let weights = end.operands(&tile);
            let bytes = b.bytes(&weights);
            let mut token = None;
            if thread < tile.rows {
                // SAFETY: the permutation has the tile's rows.
                token = unsafe { self.rows.token(tile.first_row + thread) };
            }
            // Counted in 32 bits, which registers are few of.
            let mut scale = token.map_or(0, |token| token * self.row_stride);
            // In chunks, which 32 bits can count.
            let own = token.map_or(NOWHERE, |token| token * (k / CHUNK));
            let mut rows = [0; 8];
            unroll!(for i in 0..8 {
                rows[i] = warp::shfl_idx(warp::FULL_MASK, own, ROWS_AT_A_TIME * i + row);
            });
            let is_read = 64 * (warp / 2) < tile.rows;
            ring.wait_empty(position);
            if thread == 0 {
                // SAFETY: the stage is free, and the thread will arrive at it, with bytes to expect.
                unsafe { Notes::of(&ring).write(position.stage, &tile) };
            }
            // SAFETY: blocks have a scale for every slab.
            let mut blocks = unsafe { BlockLanes::new(&scales, weights.blocks, 0, k.div_ceil(SLAB)) };
            let mut k0 = 0;
            while k0 < k {
                let Position { stage, .. } = position;
                let (to, full) = (ring.stage(stage), ring.full(stage));
                // SAFETY: as above; the item has the slab.
                let block_scales = if SCALED { unsafe { blocks.next(&scales) } } else { [1.0; 2] };
                ring.wait_empty(position);
                // SAFETY: the stage is free in both blocks and takes A's 128 rows and B's two boxes, each
                // from another block where they are shared; the bytes expected are those of B. Tokens that
                // exist have a row, of which the chunks before the end of K are read, and a scale for every
                // slab where A has such. The map is the kernel's parameter.
                unsafe {
                    if thread == 0 {
                        let fill = Fill { to: to + ROWS_128, full, slab: k0 / SLAB };
                        fill.begin::<SCALED>(&scales, ring.scales(stage), block_scales, bytes);
                        fill.weights(&b, &weights, shares_b, rank);
                    }
                    if SCALED && scales.has_a() {
                        // Of a row without a token, 0.
                        let slot = first_slot(tile.first_row) + thread;
                        let from = self.scales.wrapping_add(scale as usize).cast();
                        cp_async::copy4_zfill(ring.scales(stage) + slot * 4, from, own != NOWHERE);
                        scale += self.group_stride;
                    }
                    if is_read {
                        let column = k0 + chunk * CHUNK;
                        let source = self.rows.a.wrapping_add(column as usize);
                        unroll!(for i in 0..8 {
                            cp_async::copy16_zfill(
                                to + places[i % 2] + i * ROWS_AT_A_TIME * SLAB,
                                source.wrapping_add(rows[i] as usize * CHUNK as usize),
                                rows[i] != NOWHERE && column < k,
                            );
                        });
                    }
                    mbarrier::arrive_after_copies(full);
                }
                position = ring.next(position);
                k0 += SLAB;
            }
        }
        let full = ring.full(position.stage);
        ring.wait_empty(position);
        // SAFETY: the stage is free. No bytes are expected in it.
        unsafe {
            if thread == 0 {
                Notes::of(&ring).write(position.stage, &Tile::NONE);
                mbarrier::arrive(full);
            }
            mbarrier::arrive_after_copies(full);
        }
        // A thread does not exit with copies in flight.
        cp_async::wait_all();
    }
}

macro_rules! fast {
    ($name:ident, $is_silu:literal, $activations:literal) => {
        #[doc = concat!("As [`hopper_wide_gated_fast`](super::gated::hopper_wide_gated_fast), A gathered; ", $activations, ".")]
        ///
        /// The schedule's row p is row `sorted_rows[p] / top_k` of A, or zeros where there is no such token.
        /// Scales of A per call or permuted row.
        ///
        /// # Safety
        /// The contract in the module documentation of [`hopper`](super::super). The activation is one of
        /// those.
        #[kernel(threads = THREADS, cluster = BLOCKS, wgmma_n = 256, overlap = within, shared = shared_bytes::<false>())]
        pub unsafe fn $name(arguments: HopperGathered) {
            let (b, packed) = (arguments.matrix(), !arguments.b_packed.is_null());
            let HopperGathered { a, scales, schedule, out, intermediate, k, .. } = arguments;
            let rows = Gathered { rows: a, scales: scales.a, row_stride: 0, group_stride: 0 };
            let end = Gated::<$is_silu>(GatedArguments { scales, slab_scales: SlabScales::NONE, out, intermediate, k, packed });
            // SAFETY: the kernel's contract.
            unsafe { run_from::<false, true, _, _>(rows, b, schedule, k, &end) }
        }
    };
}

fast!(hopper_wide_gated_fast_gathered_silu, true, "silu");
fast!(hopper_wide_gated_fast_gathered, false, "other activations than silu");

macro_rules! promoted {
    ($name:ident, $is_silu:literal, $activations:literal) => {
        #[doc = concat!("As [`hopper_wide_gated_fast_gathered`], the sums folded into f32 every 128 of K; ", $activations, ".")]
        ///
        /// All scales; those of A per group are fewer than 2^31.
        ///
        /// # Safety
        /// As [`hopper_wide_gated_fast_gathered`].
        #[kernel(threads = THREADS, cluster = BLOCKS, wgmma_n = 128, overlap = within, shared = shared_bytes::<true>())]
        pub unsafe fn $name(arguments: HopperGathered) {
            let (b, packed) = (arguments.matrix(), !arguments.b_packed.is_null());
            let HopperGathered { a, scales, schedule, out, intermediate, k, .. } = arguments;
            let (row_stride, group_stride) = (a.scale_strides.row as u32, a.scale_strides.group as u32);
            let rows = Gathered { rows: a, scales: scales.a, row_stride, group_stride };
            let slab_scales = SlabScales::new(core::ptr::null(), &scales);
            let end = Gated::<$is_silu>(GatedArguments { scales, slab_scales, out, intermediate, k, packed });
            // SAFETY: the kernel's contract.
            unsafe { run_from::<true, true, _, _>(rows, b, schedule, k, &end) }
        }
    };
}

promoted!(hopper_wide_gated_promoted_gathered_silu, true, "silu");
promoted!(hopper_wide_gated_promoted_gathered, false, "other activations than silu");
