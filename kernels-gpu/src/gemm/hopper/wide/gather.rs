//! The producer that gathers rows of A by token, and the entry points of the gated kernels that take it: they
//! need no permuted copy of A.
//!
//! The permutation says whose row of A the permuted row p is: `sorted_rows[p] = token * top_k + slot`. TMA of
//! Hopper takes rows that follow each other, so that the threads of the last warpgroup copy instead, 16 bytes
//! at a time with `cp.async`, to where TMA would have put them:
//!
//! ```text
//!   thread t, of warp w = t / 32     knows the token of row t of the tile, and copies its scale of the slab
//!   its lane l, in copy i = 0 .. 8   chunk l % 8 of row 32 w + 4 i + l / 8: lane 4 i + l / 8 knows its token
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

use cuda_std::code::Flag;
use cuda_std::{cp_async, kernel, mbarrier, memory, thread, unroll, warp};

use super::gated::Gated;
use super::items::Item;
use super::turns::LOW;
use super::{BLOCKS, BM, Launch, Pipeline, STAGES, THREADS, multiply, shared_bytes, wgmma_n};
use crate::abi::{COPY_BYTES, SLAB};
use crate::gemm::hopper::CONSUMERS;
use crate::gemm::hopper::arguments::{HopperGathered, TokenRows};
use crate::gemm::hopper::ring::{Ring, Shape};
use crate::gemm::hopper::slab_scales::{SlabScales, first_slot};
use crate::gemm::recomputed;
use crate::schedule::work::Tile;

/// Bytes of a copy.
const CHUNK: u32 = COPY_BYTES;
/// Chunks of a row of a stage.
const CHUNKS: u32 = SLAB / CHUNK;
/// Rows that a warp copies a chunk of with one instruction.
const ROWS_AT_A_TIME: u32 = 32 / CHUNKS;

/// The place of a row that does not exist.
const NOWHERE: u32 = u32::MAX;

/// The ring of the kernels whose producers gather: of sums as those of [`Wide`](super::Wide) have them.
#[derive(Clone, Copy)]
struct Gathered<const PROMOTED: bool>;

impl<const PROMOTED: bool> Shape for Gathered<PROMOTED> {
    const STAGES: u32 = STAGES;
    const A_ROWS: u32 = BM;
    const SCALED: bool = PROMOTED;
    const BLOCKS: u32 = BLOCKS;
    const COPIERS: u32 = 128;
}

/// A in the order of the tokens, and its scales, which are counted in 32 bits.
#[derive(Clone, Copy)]
struct Source {
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

/// What a thread knows of an item's rows.
struct GatheredRows {
    a: *const u8,
    /// Bytes of a row.
    k: u32,
    /// Of each of its copies, the row in chunks, which 32 bits can count.
    chunks: [u32; 8],
    /// Whether its own row exists, and where the scale of its next slab is, in elements.
    exists: bool,
    scales: *const f32,
    scale: u32,
    group_stride: u32,
}

impl<const PROMOTED: bool> Pipeline for Gathered<PROMOTED> {
    type A = Source;
    type Rows = GatheredRows;
    const PRODUCERS: u32 = 4;

    /// None: its threads arrive behind their copies.
    #[inline(always)]
    fn bytes(_: &Tile, _: &SlabScales) -> u32 {
        0
    }

    #[inline(always)]
    unsafe fn rows(a: Source, item: &Item, k: u32) -> GatheredRows {
        let thread = thread::thread_idx_x() - CONSUMERS;
        let tile = &item.tile;
        // SAFETY: the permutation has the tile's rows.
        let token = unsafe { if thread < tile.rows { a.rows.token(tile.first_row + thread) } else { None } };
        let own = token.map_or(NOWHERE, |token| token * (recomputed(k) / CHUNK));
        let mut chunks = [0; 8];
        unroll!(for i in 0..8 {
            chunks[i] = warp::shfl_idx(warp::FULL_MASK, own, ROWS_AT_A_TIME * i + thread % 32 / CHUNKS);
        });
        GatheredRows {
            a: a.rows.a,
            k,
            chunks,
            exists: token.is_some(),
            scales: a.scales,
            // Counted in 32 bits, which registers are few of.
            scale: token.map_or(0, |token| token * a.row_stride),
            group_stride: a.group_stride,
        }
    }

    #[inline(always)]
    unsafe fn load(
        ring: &Ring<Self>,
        rows: &mut GatheredRows,
        stage: u32,
        slab: u32,
        item: &Item,
        scales: &SlabScales,
    ) {
        let thread = thread::thread_idx_x() - CONSUMERS;
        let (warp, lane) = (thread / 32, thread % 32);
        let (chunk, row) = (lane % CHUNKS, lane / CHUNKS);
        // Four rows further, the place within the row changes in its highest bit.
        let even = (32 * warp + row) * SLAB + (chunk ^ row) * CHUNK;
        let places = [even, even ^ (4 * CHUNK)];
        let (to, slots) = (ring.stage(stage), ring.scales(stage));
        // SAFETY: the stage is free. Tokens that exist have a row, of which the chunks before the end of K
        // are read, and a scale for every slab where A has such. Each thread arrives once, behind its copies.
        unsafe {
            if scales.has_a() {
                // Of a row without a token, 0.
                let slot = first_slot(item.tile.first_row) + thread;
                let from = rows.scales.wrapping_add(rows.scale as usize).cast();
                cp_async::copy4_zfill(slots + slot * 4, from, rows.exists);
                rows.scale += rows.group_stride;
            }
            if LOW * (warp / 2) < item.tile.rows {
                let column = slab * SLAB + chunk * CHUNK;
                let source = rows.a.wrapping_add(column as usize);
                unroll!(for i in 0..8 {
                    cp_async::copy16_zfill(
                        to + places[i % 2] + i * ROWS_AT_A_TIME * SLAB,
                        source.wrapping_add(rows.chunks[i] as usize * CHUNK as usize),
                        rows.chunks[i] != NOWHERE && column < rows.k,
                    );
                });
            }
            mbarrier::arrive_after_copies(ring.full(stage));
        }
    }

    /// A thread does not exit with copies in flight.
    #[inline(always)]
    fn leave() {
        cp_async::wait_all();
    }
}

// rustfmt would indent the attribute further each time.
#[rustfmt::skip]
macro_rules! gathered {
    ($name:ident, $pipeline:ty, $is_silu:literal, $what:literal) => {
        #[doc = concat!("128 columns of the intermediate, A gathered; ", $what)]
        ///
        /// The schedule's row p is row `sorted_rows[p] / top_k` of A, or zeros where there is no such token.
        ///
        /// # Safety
        /// The contract in the module documentation of [`hopper`](super::super). The activation is one of
        /// those.
        #[kernel(
            threads = THREADS,
            cluster = BLOCKS,
            wgmma_n = wgmma_n::<$pipeline>(),
            overlap = within,
            shared = shared_bytes::<$pipeline>()
        )]
        pub unsafe fn $name(arguments: HopperGathered) {
            let HopperGathered { a: rows, scales, schedule, k, schedule_is_settled, .. } = arguments;
            let mut a = Source { rows, scales: scales.a, row_stride: 0, group_stride: 0 };
            let mut slab_scales = SlabScales::NONE;
            if <$pipeline>::SCALED {
                a.row_stride = rows.scale_strides.row as u32;
                a.group_stride = rows.scale_strides.group as u32;
                slab_scales = SlabScales::new(core::ptr::null(), &scales);
            }
            let end = Gated::<$is_silu>(arguments.end(slab_scales));
            let b = arguments.matrix();
            let launch = Launch { b, schedule, k, schedule_is_settled, out_stays: Flag::SET };
            // SAFETY: the kernel's contract.
            unsafe { multiply::<$pipeline, _>(&launch, a, &end) }
        }
    };
}

gathered!(
    hopper_wide_gated_fast_gathered_silu,
    Gathered<false>,
    true,
    "silu. Scales of A per call or permuted row."
);
gathered!(
    hopper_wide_gated_fast_gathered,
    Gathered<false>,
    false,
    "other activations than silu. Scales of A per call or permuted row."
);
gathered!(
    hopper_wide_gated_promoted_gathered_silu,
    Gathered<true>,
    true,
    "silu. All scales; those of A per group are fewer than 2^31."
);
gathered!(
    hopper_wide_gated_promoted_gathered,
    Gathered<true>,
    false,
    "other activations than silu. All scales; those of A per group are fewer than 2^31."
);
