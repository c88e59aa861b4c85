//! Many rows per expert: an item is 128 rows of A on the M side of `wgmma`, times 256 rows of B.
//!
//! ```text
//!   a stage
//!   +-----------------+
//!   | A: 128 rows     |  warpgroup 0: rows 0..64, warpgroup 1: rows 64..128
//!   +-----------------+
//!   | B: 2 x 128 rows |  plain: 256 columns of D       gated: 128 of gate and 128 of up
//!   +-----------------+
//!
//!   accumulators of a thread    fast       128: one `wgmma` of N = 256, K by K into the same registers
//!                               promoted   128 of the total, and 64: the halves of B in turn, N = 128
//! ```
//!
//! # The two loops
//! Both are below, one behind the other. The ring's barriers, and nothing else, join them:
//!
//! ```text
//!   warp 8: `produce`                              warps 0 to 7: `consume`
//!     for each item that the cluster takes           for each item that a note tells
//!       wait(empty), write the item's note             ask for the scales of whole sums
//!       for each slab of 128 of K                      for each slab: `fast` or `promoted`
//!         wait(empty)    <-- empty, both blocks' --      wait(full)
//!         expect bytes                                   wgmma; if promoted, fold with the slab's scales
//!         ask for A, B, scales  -- full -->              release
//!     write a note without rows                        scale the sums, add the bias
//!                                                      `End::finish`: store, or activate and quantise
//! ```
//!
//! Two blocks, a cluster, take neighbouring items, one above the other or side by side, and share an operand.
//! A cluster that is done takes the next items that nobody has. [`items`] says which, and how a note tells
//! them.
//!
//! This producer brings A by TMA, from rows in permuted order. [`gather`] has another, of four warps, which
//! copy A's rows from where the tokens have them. Everything behind the ring is the same.
//!
//! # Shared memory
//! ```text
//!   | ring | notes | scales of whole sums | numbers of items | rows on their way to D |
//! ```

mod end_scales;
mod gated;
mod gather;
mod items;
mod requantize;
mod store;

use cuda_std::math::fma;
use cuda_std::tma::{self, TensorMap};
use cuda_std::wgmma::{self, wgmma_e4m3, wgmma_tie};
use cuda_std::{cluster, grid, host, kernel, mbarrier, shared, thread, unroll, warp};

use super::arguments::HopperGemm;
use super::ring::{Position, Ring, Shape};
use super::slab_scales::{BlockLanes, SlabScales, row_slot};
use super::weights::{Matrix, Weights};
use super::{CONSUMER_WARPS, CONSUMERS, GATED_COLUMNS, ROWS_64, ROWS_128};
use crate::abi::{GemmTile, SLAB, Scales};
use crate::schedule::work::Tile;
use end_scales::{EndScales, Shelf};
use items::{Item, Items, Notes};
use store::Plain;

/// Rows of an item.
const BM: u32 = 128;

/// Stages of the ring.
const STAGES: u32 = 4;

/// Blocks of a cluster. They share an operand, so that less comes through L2, whose rate limits tiles of this
/// size: 32 or 40 KiB instead of 48 for every 8.4 MFLOP.
const BLOCKS: u32 = 2;
/// The mask of both.
const BOTH: u16 = (1 << BLOCKS) - 1;

/// Threads of a block: two warpgroups that multiply, and one of whose warps the first fills the ring; the
/// others wait for the end.
///
/// A warp's registers come from a quarter of the multiprocessor. With nine warps a quarter may hold three,
/// and none can have more than 168 a thread; with twelve, a whole warpgroup gives registers back.
const THREADS: u32 = CONSUMERS + 128;

/// Registers of a thread that does not multiply, and of one that does. Threads start with 168 registers.
/// `setmaxnreg.inc` deadlocks if it asks for more than the producers released.
const PRODUCER_REGISTERS: u32 = 40;
const CONSUMER_REGISTERS: u32 = 232;
const _: () =
    assert!((THREADS - CONSUMERS) * PRODUCER_REGISTERS + CONSUMERS * CONSUMER_REGISTERS <= THREADS * 168);

/// Up to 128 rows. Of A a block asks for half of them, on behalf of both blocks of a cluster where they share
/// it.
#[host]
pub const WIDE: GemmTile = GemmTile {
    rows: BM,
    columns: 2 * GATED_COLUMNS,
    stages: STAGES,
    operand_bytes: Fast::STAGE_BYTES,
    a_box_rows: BM / 2,
    partial_bytes: 0,
};

/// The ring of the kernels whose A comes by TMA: those that leave sums in the tensor cores for all of K, or
/// the promoted ones, which fold them into f32 every slab.
#[derive(Clone, Copy)]
struct Wide<const PROMOTED: bool>;
type Fast = Wide<false>;
type Promoted = Wide<true>;

impl<const PROMOTED: bool> Shape for Wide<PROMOTED> {
    const STAGES: u32 = STAGES;
    const A_ROWS: u32 = BM;
    const SCALED: bool = PROMOTED;
    const BLOCKS: u32 = BLOCKS;
    const COPIERS: u32 = 0;
}

/// D, the sum over all of K in the tensor cores. Scales of A per call or row, of B per expert or channel.
///
/// # Safety
/// The contract in the module documentation of [`hopper`](super).
#[kernel(
    threads = THREADS,
    cluster = BLOCKS,
    wgmma_n = wgmma_n::<Fast>(),
    overlap = within,
    shared = shared_bytes::<Fast>()
)]
pub unsafe fn hopper_wide_fast(arguments: HopperGemm) {
    let end = Plain { arguments, slab_scales: SlabScales::NONE };
    // SAFETY: the kernel's contract.
    unsafe { multiply::<Fast, _>(arguments.a, arguments.matrix(), arguments.schedule, arguments.k, &end) }
}

/// As [`hopper_wide_fast`], the sum folded into f32 every 128 of K. All scales.
///
/// # Safety
/// The contract in the module documentation of [`hopper`](super).
#[kernel(
    threads = THREADS,
    cluster = BLOCKS,
    wgmma_n = wgmma_n::<Promoted>(),
    overlap = within,
    shared = shared_bytes::<Promoted>()
)]
pub unsafe fn hopper_wide_promoted(arguments: HopperGemm) {
    let end = Plain { arguments, slab_scales: arguments.slab_scales() };
    // SAFETY: the kernel's contract.
    unsafe { multiply::<Promoted, _>(arguments.a, arguments.matrix(), arguments.schedule, arguments.k, &end) }
}

/// The body of every kernel: the roles of the warps.
///
/// # Safety
/// The contract of the kernels; all threads of the block call it together.
#[inline(always)]
unsafe fn multiply<P: Pipeline, E: End>(a: P::A, b: Matrix, schedule: *mut [u32; 4], k: u32, end: &E) {
    // SAFETY: the contract. The warpgroups take different branches for good, and each role executes its
    // collective operations with whole warps. Stages pass between them by the ring's barriers alone.
    unsafe {
        let cleared = if b.may_be_short(end.n(), E::COLUMNS) { 0 } else { P::STAGE_BYTES };
        let numbers = shared::dynamic::<u8>().address() + const { numbers::<P>() };
        Items::prepare(numbers);
        let ring = Ring::<P>::new(cleared);
        if P::SCALED {
            ring.fill_constant_scales(&end.slab_scales());
        }
        grid::wait();
        grid::launch_dependents();
        // The same in all lanes; the shuffle says so to ptxas.
        let warp = warp::shfl_idx(warp::FULL_MASK, thread::warp_id(), 0);
        if warp >= CONSUMER_WARPS {
            wgmma::release_registers::<PRODUCER_REGISTERS>();
            if warp < CONSUMER_WARPS + P::PRODUCERS {
                P::produce(&ring, a, &b, Items::new(schedule, numbers, end.n(), E::COLUMNS), end, k);
            }
            ring.leave();
            return;
        }
        wgmma::raise_registers::<CONSUMER_REGISTERS>();
        consume(&ring, end, k, warp / 4);
        ring.leave();
    }
}

impl<const PROMOTED: bool> Pipeline for Wide<PROMOTED> {
    type A = *const TensorMap;
    const PRODUCERS: u32 = 1;

    #[inline(always)]
    unsafe fn produce(
        ring: &Ring<Self>,
        a: *const TensorMap,
        b: &Matrix,
        mut items: Items,
        end: &impl End,
        k: u32,
    ) {
        let (rank, lane) = (cluster::rank(), thread::lane_id());
        let (scales, notes) = (end.slab_scales(), Notes::of(ring));
        let mut position = Position::START;
        // SAFETY: one lane writes and asks, when the stage is free in both blocks; it arrives after it has
        // written. A stage takes A's 128 rows and B's two boxes, one half of either from each block; the
        // bytes expected are theirs and the scales', whatever of them lies outside the tensors. The maps are
        // the kernel's parameters, and blocks have a scale for every slab.
        unsafe {
            while let Some(item) = items.next() {
                let weights = end.operands(&item.tile);
                ring.wait_empty(position);
                if lane == 0 {
                    notes.write(position.stage, &item.tile);
                }
                let mut blocks = BlockLanes::new(&scales, weights.blocks, 0, k.div_ceil(SLAB));
                let mut k0 = 0;
                while k0 < k {
                    let (to, slots) = (ring.stage(position.stage), ring.scales(position.stage));
                    let full = ring.full(position.stage);
                    let block_scales = if PROMOTED { blocks.next(&scales) } else { [1.0; 2] };
                    ring.wait_empty(position);
                    if lane == 0 {
                        scales.store_b(slots, BM, block_scales);
                        mbarrier::arrive_expect_tx(full, ROWS_128 + b.bytes(&weights) + scales.bytes(BM));
                        load_a(a, to, full, k0, &item, rank);
                        load_b(b, &weights, to + ROWS_128, full, k0, &item, rank);
                        scales.load_a(slots, full, item.tile.first_row, k0 / SLAB);
                    }
                    position = ring.next(position);
                    k0 += SLAB;
                }
            }
            ring.wait_empty(position);
            if lane == 0 {
                notes.write(position.stage, &Tile::NONE);
                mbarrier::arrive(ring.full(position.stage));
            }
        }
    }
}

/// What a multiplying warpgroup does. The stage at `position` holds the next item's note, and its first slab.
///
/// # Safety
/// The contract of the kernels; all warps of the warpgroup call it together, once.
#[inline(always)]
unsafe fn consume<S: Shape, E: End>(ring: &Ring<S>, end: &E, k: u32, warpgroup: u32) {
    let rows = Rows::new(ring.stage(0), ring.stage(0) + const { staging::<S>() });
    let mut shelf = Shelf::new(ring.end(), warpgroup);
    let (notes, slabs) = (Notes::of(ring), k.div_ceil(SLAB));
    let mut position = Position::START;
    // SAFETY: the producer fills the ring with the slabs of the items whose notes it writes.
    unsafe {
        while let Some(tile) = notes.read(ring, position) {
            let scales = EndScales::ask(end, &tile, &rows);
            let total;
            (total, position) = if rows.are_past(tile.rows) {
                ([0.0; 128], ring.pass_over(position, slabs))
            } else if S::SCALED {
                promoted(ring, position, slabs, &rows, &tile)
            } else {
                fast(ring, position, slabs, &rows)
            };
            let mut total = scales.apply(&total, &mut shelf, end.scales(), &rows);
            EndScales::add_bias(&mut total, end, &tile, &rows);
            end.finish(&total, &tile, &rows);
        }
    }
}

/// The sum over all slabs of an item, kept by the tensor cores. One `wgmma` group stays in flight while the
/// next is issued.
///
/// # Safety
/// The ring is filled with the slabs of one item from `position` on; all warps of the warpgroup call it
/// together.
#[inline(always)]
unsafe fn fast<S: Shape>(
    ring: &Ring<S>,
    mut position: Position,
    slabs: u32,
    rows: &Rows,
) -> ([f32; 128], Position) {
    let mut total = [0.0; 128];
    let (mut previous, mut slab) = (0, 0);
    while slab < slabs {
        let stage = position.stage * (S::STAGE_BYTES / 16);
        ring.wait_full(position);
        wgmma::fence();
        // SAFETY: the stage holds 128 rows of A and 256 of B, and is released after the group has been waited
        // for.
        unsafe { wgmma_e4m3!(256, total, rows.a + stage, rows.b + stage, slab != 0) };
        wgmma::commit();
        wgmma::wait::<1>();
        if slab != 0 {
            ring.release(previous);
        }
        previous = position.stage;
        position = ring.next(position);
        slab += 1;
    }
    wgmma::wait::<0>();
    // SAFETY: no instruction at all.
    unsafe { wgmma_tie!(128, total) };
    ring.release(previous);
    (total, position)
}

/// The sum over all slabs of an item, folded into f32 registers with the scales of every slab. Columns 0 to
/// 127 have the first block scale of the stage, the others the second. Both halves are multiplied into the
/// same registers, one after the other.
///
/// One warpgroup can fold while the other's products are made. Nothing makes them take turns: named barriers
/// that did gained nothing on an H100.
///
/// # Safety
/// As [`fast`].
#[inline(always)]
unsafe fn promoted<S: Shape>(
    ring: &Ring<S>,
    mut position: Position,
    slabs: u32,
    rows: &Rows,
    tile: &Tile,
) -> ([f32; 128], Position) {
    let slots = [rows.row, rows.row + 8].map(|row| row_slot(row, tile.first_row, tile.rows));
    let mut total = [0.0; 128];
    // Products are written over each other: one variable, so that they are never in two sets of registers.
    let mut product = [0.0; 64];
    let mut slab = 0;
    while slab < slabs {
        let stage = position.stage * (S::STAGE_BYTES / 16);
        ring.wait_full(position);
        // SAFETY: the slots of a scaled stage, which the barrier has shown to this thread.
        let (a_scales, b_scales) = unsafe {
            let a_scales = slots.map(|slot| ring.row_scale(position.stage, slot).read());
            (a_scales, ring.block_scales(position.stage).read())
        };
        unroll!(for half in 0..2 {
            let factors = [a_scales[0] * b_scales[half], a_scales[1] * b_scales[half]];
            wgmma::fence();
            // SAFETY: the stage holds 128 rows of A and 256 of B, and is released after the groups have been
            // waited for.
            unsafe {
                let (a, b) = (rows.a + stage, rows.b + stage + half * (ROWS_128 / 16));
                wgmma_e4m3!(128, product, a, b, false);
            }
            wgmma::commit();
            wgmma::wait::<0>();
            // SAFETY: no instruction at all.
            unsafe { wgmma_tie!(64, product) };
            if half == 1 {
                ring.release(position.stage);
            }
            unroll!(for i in 0..64 {
                total[64 * half + i] = fma(product[i], factors[i / 2 % 2], total[64 * half + i]);
            });
        });
        position = ring.next(position);
        slab += 1;
    }
    (total, position)
}

/// Asks for a slab of A, from byte `k0` of K on, to `to`. Of rows that both blocks of a cluster have, each
/// asks for a half, and TMA delivers it to both:
///
/// ```text
///                  A: rows 0..64   64..128     B: first half   second half
///   sharing A            block 0   block 1     each its own    each its own
///   sharing B       each its own 128 rows            block 0        block 1
/// ```
///
/// # Safety
/// The calling thread alone asks. The stage is free, in both blocks where they share A, and `full` expects
/// the bytes; `a` is the kernel's map.
#[inline(always)]
unsafe fn load_a(a: *const TensorMap, to: u32, full: u32, k0: u32, item: &Item, rank: u32) {
    let first = item.tile.first_row;
    let [upper, lower] = [first, first + 64].map(|row| [k0 as i32, row as i32]);
    // SAFETY: the caller's contract.
    unsafe {
        if item.shares_b {
            tma::load_2d(to, a, full, upper);
            tma::load_2d(to + ROWS_64, a, full, lower);
        } else {
            let half = if rank == 0 { upper } else { lower };
            tma::load_2d_multicast(to + rank * ROWS_64, a, full, half, BOTH);
        }
    }
}

/// Asks for a slab of B, as [`load_a`] does for A, with two halves of up to 128 rows.
///
/// # Safety
/// As [`load_a`], for B; the weights are the item's.
#[inline(always)]
unsafe fn load_b(b: &Matrix, weights: &Weights, to: u32, full: u32, k0: u32, item: &Item, rank: u32) {
    let slab = k0 / SLAB;
    // SAFETY: the caller's contract.
    unsafe {
        if item.shares_b {
            b.load_half(to + rank * ROWS_128, full, slab, weights, rank, BOTH);
        } else {
            b.load(to, full, slab, weights, None);
        }
    }
}

/// Which rows and columns of an item a thread of a multiplying warpgroup holds.
///
/// ```text
///   thread t: warp w = t / 32, g = t % 32 / 4, q = t % 4
///   register 4 j + 2 h + c     row 16 w + g + 8 h     column 8 j + 2 q + c        j = 0 .. 32
/// ```
struct Rows {
    /// The first of its two rows; the other is 8 further.
    row: u32,
    /// q, its lane within a quad.
    quad_lane: u32,
    /// Its warp's place in shared memory for 16 rows on their way to D.
    staging: u32,
    /// Descriptors of its warpgroup's rows of A, and of B, in stage 0.
    a: u32,
    b: u32,
    warpgroup: u32,
}

impl Rows {
    /// For a ring whose stage 0 is at `base`, with the warps' places from `staging` on.
    #[inline(always)]
    fn new(base: u32, staging: u32) -> Self {
        let thread = thread::thread_idx_x();
        // The same in all lanes; the shuffle says so to ptxas, which computes descriptors in uniform
        // registers then.
        let warp = warp::shfl_idx(warp::FULL_MASK, thread / 32, 0);
        Self {
            row: thread / 32 * 16 + thread % 32 / 4,
            quad_lane: thread % 4,
            staging: staging + warp * WARP_BYTES,
            a: wgmma::descriptor(base + warp / 4 * ROWS_64),
            b: wgmma::descriptor(base + ROWS_128),
            warpgroup: warp / 4,
        }
    }

    /// Whether none of the warpgroup's rows are among the first `tile_rows`.
    #[inline(always)]
    fn are_past(&self, tile_rows: u32) -> bool {
        tile_rows <= 64 * self.warpgroup
    }
}

/// A ring of a wide kernel, and who fills it.
trait Pipeline: Shape {
    /// Where A is.
    type A: Copy;
    /// Warps of the last warpgroup that fill the ring; the others wait for the end.
    const PRODUCERS: u32;

    /// Fills the ring with the slabs of the block's items, B and the scales included, and says when there are
    /// no more.
    ///
    /// # Safety
    /// The contract of the kernels; all threads of those warps call it together, once.
    unsafe fn produce(ring: &Ring<Self>, a: Self::A, b: &Matrix, items: Items, end: &impl End, k: u32);
}

/// What becomes of the sums of an item: [`store::Plain`] or [`gated::Gated`].
trait End {
    /// Columns of the output in an item.
    const COLUMNS: u32;

    /// Columns of the output.
    fn n(&self) -> u32;

    /// The scales that change along K, for a promoted kernel.
    fn slab_scales(&self) -> SlabScales;

    /// The weights that an item takes. Rows may lie past the end of B; scales exist if B has any per block.
    fn operands(&self, tile: &Tile) -> Weights;

    /// The scales, of which those of whole sums are applied before [`finish`](Self::finish).
    fn scales(&self) -> &Scales;

    /// The first of an item's columns 0 to 127 and of the others, and how many columns B has in all.
    fn columns(&self, tile: &Tile) -> ([u32; 2], u32);

    /// Takes a thread's sums of an item, scaled.
    ///
    /// # Safety
    /// The contract of the kernels, for a tile of the schedule; all lanes of the warp call it together.
    unsafe fn finish(&self, total: &[f32; 128], tile: &Tile, rows: &Rows);
}

/// N of the kernel's products.
const fn wgmma_n<S: Shape>() -> u32 {
    if S::SCALED { 128 } else { 256 }
}

/// Bytes of shared memory that a warp's 16 rows take.
const WARP_BYTES: u32 = 16 * store::ROW_BYTES;

/// Dynamic shared memory, in all.
const fn shared_bytes<S: Shape>() -> u32 {
    staging::<S>() + CONSUMER_WARPS * WARP_BYTES
}

/// Where in it the numbers of items are.
const fn numbers<S: Shape>() -> u32 {
    Ring::<S>::BYTES + STAGES * Notes::BYTES + Shelf::BYTES
}

/// Where in it the rows are on their way to D: at a multiple of 128 bytes, so that chunks can be exchanged by
/// their addresses' bits.
const fn staging<S: Shape>() -> u32 {
    let offset = numbers::<S>() + Items::BYTES;
    assert!(offset.is_multiple_of(SLAB));
    offset
}
