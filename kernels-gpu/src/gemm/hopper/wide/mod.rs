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
//! Both are below, one behind the other. The ring's barriers, those of the [`notes`](super::notes) and of the
//! warpgroups' [`turns`], and nothing else, join them:
//!
//! ```text
//!   warp 8: `produce`                              warps 0 to 7: `consume`
//!     ask for the weights of the first stages
//!     wait for the kernel before                     wait for the kernel before
//!     for each item that the cluster takes           for each item that a note tells
//!       write a note                                   leave it to the other warpgroup, or
//!       for each slab of 128 of K                      ask for the scales of whole sums
//!         wait(empty)    <-- empty, both blocks' --    for each slab: `fast` or `promoted`
//!         expect bytes, ask for B                        wait(full)
//!         ask for A and its scales -- full -->           wgmma; if promoted, fold with the slab's scales
//!                                                        release
//!                                                      scale the sums, add the bias
//!                                                      `End::finish`: store, or activate and quantise
//! ```
//!
//! Two blocks, a cluster, take neighbouring items, one above the other or side by side, and share an operand.
//! A cluster that is done takes the next items that nobody has: [`items`] says which. Of a tile of up to 64
//! rows one warpgroup multiplies all, and the other the next such.
//!
//! Who brings A is the pipeline's: TMA, from rows in permuted order ([`Wide`]), or four warps that copy A's
//! rows from where the tokens have them ([`gather`]). Weights come from no kernel, so that those of the first
//! stages are asked for before the kernel waits for its predecessor, as the
//! [narrow kernels](super::narrow) have it.
//!
//! # Shared memory
//! ```text
//!   | ring | notes | turns | scales of whole sums | numbers of items | rows on their way to D |
//! ```

mod end_scales;
mod gated;
mod gather;
mod items;
mod requantize;
mod store;
pub mod turns;

use core::ops::Range;

use cuda_std::code::Flag;
use cuda_std::l2::Policy;
use cuda_std::math::fma;
use cuda_std::tma::{self, TensorMap};
use cuda_std::wgmma::{self, wgmma_e4m3, wgmma_tie};
use cuda_std::{cluster, grid, host, kernel, mbarrier, shared, thread, unroll, warp};

use super::arguments::HopperGemm;
use super::notes::{self, MOST_STAGES, Note, Notes};
use super::ring::{Ring, Shape};
use super::slab_scales::{BlockLanes, SlabScales, row_slot};
use super::weights::{Matrix, Weights};
use super::{CONSUMER_WARPS, CONSUMERS, GATED_COLUMNS, ROWS_64, ROWS_128};
use crate::abi::{GemmTile, SLAB, Scales};
use crate::gemm::recomputed;
use crate::schedule::work::Tile;
use end_scales::{EndScales, Shelf};
use items::{Item, Items};
use store::Plain;
use turns::{LOW, Told, Turns};

/// Rows of an item.
const BM: u32 = 128;

/// Stages of the ring.
const STAGES: u32 = 4;
const _: () = assert!(STAGES <= MOST_STAGES);

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
    unsafe { multiply::<Fast, _>(&Launch::of(&arguments), arguments.a, &end) }
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
    unsafe { multiply::<Promoted, _>(&Launch::of(&arguments), arguments.a, &end) }
}

/// What a kernel is given, wherever A is and whatever becomes of its sums.
#[derive(Clone, Copy)]
struct Launch {
    b: Matrix,
    schedule: *mut [u32; 4],
    k: u32,
    schedule_is_settled: Flag,
    /// As [`HopperGemm`] has it.
    out_stays: Flag,
}

impl Launch {
    #[inline(always)]
    fn of(arguments: &HopperGemm) -> Self {
        let HopperGemm { schedule, k, schedule_is_settled, out_stays, .. } = *arguments;
        Self { b: arguments.matrix(), schedule, k, schedule_is_settled, out_stays }
    }

    #[inline(always)]
    fn slabs(&self) -> u32 {
        self.k.div_ceil(SLAB)
    }
}

/// The body of every kernel: the roles of the warps.
///
/// # Safety
/// The contract of the kernels; all threads of the block call it together.
#[inline(always)]
unsafe fn multiply<P: Pipeline, E: End>(launch: &Launch, a: P::A, end: &E) {
    // SAFETY: the contract. The warpgroups take different branches for good, and each role executes its
    // collective operations with whole warps. Stages, items and turns pass between them by the barriers of
    // the ring, of the notes and of the turns alone.
    unsafe {
        let base = shared::dynamic::<u8>().address();
        Items::prepare(base + const { numbers::<P>() });
        notes::prepare::<Told>(base + const { Ring::<P>::BYTES });
        turns::prepare(base + const { turns::<P>() });
        let cleared = if launch.b.may_be_short(end.n(), E::COLUMNS) { 0 } else { P::STAGE_BYTES };
        let ring = Ring::<P>::new(cleared);
        if P::SCALED {
            ring.fill_constant_scales(&end.slab_scales());
        }
        // The same in all lanes; the shuffle says so to ptxas.
        let warp = warp::shfl_idx(warp::FULL_MASK, thread::warp_id(), 0);
        if warp >= CONSUMER_WARPS {
            wgmma::release_registers::<PRODUCER_REGISTERS>();
            if warp < CONSUMER_WARPS + P::PRODUCERS {
                produce::<P, E>(&ring, launch, a, end);
            }
            ring.leave();
            return;
        }
        wgmma::raise_registers::<CONSUMER_REGISTERS>();
        grid::wait();
        grid::launch_dependents();
        consume(&ring, launch, end, warp / 4);
        ring.leave();
    }
}

/// What the producing warps do. One thread, the first, asks for B and tells the consumers.
///
/// # Safety
/// The contract of the kernels; all lanes of the producing warps call it together, once.
#[inline(always)]
unsafe fn produce<P: Pipeline, E: End>(ring: &Ring<P>, launch: &Launch, a: P::A, end: &E) {
    let (slabs, scales) = (launch.slabs(), end.slab_scales());
    let mut notes = Notes::new(ring.end());
    let mut number = 0;
    // SAFETY: the items are those of this launch; the counter is touched behind the wait, and the schedule
    // before it where it is settled. An item is told before its slabs are asked for. A stage is filled when
    // it is free in both blocks, or has been begun with the weights of this very slab; blocks have a scale
    // for every slab.
    unsafe {
        if launch.schedule_is_settled.is_clear() {
            grid::wait();
        }
        let numbers = shared::dynamic::<u8>().address() + const { numbers::<P>() };
        let mut items = Items::new(launch.schedule, numbers, end.n(), E::COLUMNS);
        let mut next = items.next();
        let (mut ahead, mut low) = (0, 0);
        if let Some(item) = next {
            let mut weights = ItemWeights::new(launch, end, &item, 0);
            while ahead < slabs.min(STAGES) {
                weights.load(ring, launch, ahead, ahead, &item, &scales);
                ahead += 1;
            }
        }
        grid::wait();
        grid::launch_dependents();
        while let Some(item) = next {
            notes.tell(Some(&Told::count(item.tile, &mut low)));
            let mut weights = ItemWeights::new(launch, end, &item, ahead);
            let mut rows = P::rows(a, &item, launch.k);
            let mut slab = 0;
            while slab < slabs {
                let position = ring.place(number);
                // A stage that has been begun was free. And where the other block brings the rows, the
                // consumers may have given it back by now: there is nothing to wait for.
                if slab >= ahead {
                    ring.wait_empty(position);
                    weights.load(ring, launch, position.stage, slab, &item, &scales);
                }
                P::load(ring, &mut rows, position.stage, slab, &item, &scales);
                (slab, number) = (slab + 1, number + 1);
            }
            ahead = 0;
            next = items.next();
        }
        notes.tell::<Told>(None);
        P::leave();
    }
}

/// The weights of an item, slab by slab.
struct ItemWeights {
    weights: Weights,
    blocks: BlockLanes,
    /// Whether the thread asks for them.
    asks: bool,
}

impl ItemWeights {
    /// Those of the slabs from `slab` on.
    ///
    /// # Safety
    /// Blocks have a scale for every slab of the item. All lanes of the warp call it together.
    #[inline(always)]
    unsafe fn new(launch: &Launch, end: &impl End, item: &Item, slab: u32) -> Self {
        let weights = end.operands(&item.tile);
        Self {
            weights,
            // SAFETY: the caller's contract.
            blocks: unsafe {
                BlockLanes::new(&end.slab_scales(), weights.blocks, slab, launch.slabs() - slab)
            },
            asks: thread::thread_idx_x() == CONSUMERS,
        }
    }

    /// Begins a stage with the next slab: says how many bytes it takes, those of A and its scales included,
    /// and asks for the weights.
    ///
    /// # Safety
    /// The stage is free in both blocks, and the slab the next one, which exists. All lanes of the warp call
    /// it together.
    #[inline(always)]
    unsafe fn load<P: Pipeline>(
        &mut self,
        ring: &Ring<P>,
        launch: &Launch,
        stage: u32,
        slab: u32,
        item: &Item,
        scales: &SlabScales,
    ) {
        // SAFETY: the caller's contract. One thread writes and asks; it arrives after it has written. B's two
        // boxes come half from each block where they are shared; the bytes expected are theirs, whatever of
        // them lies outside the tensors, and those that A's copies bring. The map is the kernel's parameter.
        unsafe {
            let of_blocks = if P::SCALED { self.blocks.next(scales) } else { [1.0; 2] };
            if !self.asks {
                return;
            }
            let (to, full, b) = (ring.stage(stage) + ROWS_128, ring.full(stage), &launch.b);
            scales.store_b(ring.scales(stage), BM, of_blocks);
            mbarrier::arrive_expect_tx(full, b.bytes(&self.weights) + P::bytes(&item.tile, scales));
            if item.shares_b {
                let rank = cluster::rank();
                b.load_half(to + rank * ROWS_128, full, slab, &self.weights, rank, BOTH);
            } else {
                // Between two tiles of an expert more weights pass through L2 than it holds. What is read
                // once need not push out what was written.
                let is_read_once = item.is_alone && launch.out_stays.is_set();
                let policy = is_read_once.then(Policy::evict_first);
                b.load(to, full, slab, &self.weights, policy);
            }
        }
    }
}

impl<const PROMOTED: bool> Pipeline for Wide<PROMOTED> {
    type A = *const TensorMap;
    type Rows = *const TensorMap;
    const PRODUCERS: u32 = 1;

    #[inline(always)]
    fn bytes(tile: &Tile, scales: &SlabScales) -> u32 {
        scales.bytes(BM) + if tile.rows > LOW { ROWS_128 } else { ROWS_64 }
    }

    #[inline(always)]
    unsafe fn rows(a: *const TensorMap, _: &Item, _: u32) -> *const TensorMap {
        a
    }

    /// Of rows that both blocks of a cluster have, each asks for a half, and TMA delivers it to both. Of a
    /// low tile nobody wants the lower half.
    ///
    /// ```text
    ///                  A: rows 0..64   64..128     B: first half   second half
    ///   sharing A            block 0   block 1     each its own    each its own
    ///   sharing B       each its own 128 rows            block 0        block 1
    /// ```
    #[inline(always)]
    unsafe fn load(
        ring: &Ring<Self>,
        a: &mut *const TensorMap,
        stage: u32,
        slab: u32,
        item: &Item,
        scales: &SlabScales,
    ) {
        if thread::lane_id() != 0 {
            return;
        }
        let (to, full, rank) = (ring.stage(stage), ring.full(stage), cluster::rank());
        let first = item.tile.first_row;
        let [upper, lower] = [first, first + LOW].map(|row| [(slab * SLAB) as i32, row as i32]);
        let is_low = item.tile.rows <= LOW;
        // SAFETY: the caller's contract. The map is the kernel's parameter.
        unsafe {
            if item.shares_b {
                tma::load_2d(to, *a, full, upper);
                if !is_low {
                    tma::load_2d(to + ROWS_64, *a, full, lower);
                }
            } else if rank == 0 {
                tma::load_2d_multicast(to, *a, full, upper, BOTH);
            } else if !is_low {
                tma::load_2d_multicast(to + ROWS_64, *a, full, lower, BOTH);
            }
            scales.load_a(ring.scales(stage), full, first, slab);
        }
    }

    #[inline(always)]
    fn leave() {}
}

/// What a multiplying warpgroup does.
///
/// # Safety
/// The contract of the kernels; all warps of the warpgroup call it together, once.
#[inline(always)]
unsafe fn consume<S: Shape, E: End>(ring: &Ring<S>, launch: &Launch, end: &E, warpgroup: u32) {
    let base = shared::dynamic::<u8>().address();
    let mut shelf = Shelf::new(base + const { shelf::<S>() }, warpgroup);
    let mut notes = Notes::new(ring.end());
    let turns = Turns::new(base + const { turns::<S>() }, warpgroup);
    // Slabs are numbered from the first item on.
    let (slabs, mut first) = (launch.slabs(), 0);
    // SAFETY: the producer fills the ring with the slabs of the items that it tells. Slabs of an item that is
    // the other warpgroup's have all been there when it has its turn.
    unsafe {
        loop {
            let told: Told = notes.hear();
            if !told.is_work() {
                break;
            }
            let slabs = first..first + slabs;
            first = slabs.end;
            let Some(arrivals) = turns.take(&told) else { continue };
            let tile = told.tile;
            let rows = Rows::of::<S>(&tile, warpgroup);
            let scales = EndScales::ask(end, &tile, &rows);
            let total = if S::SCALED {
                promoted(ring, slabs, &rows, &tile, arrivals)
            } else {
                fast(ring, slabs, &rows, arrivals)
            };
            turns.pass(arrivals);
            // Read and computed again, so that little is in registers besides the sums.
            let Told { tile, .. } = notes.again();
            let rows = Rows::of::<S>(&tile, warpgroup);
            let mut total = scales.apply(&total, &mut shelf, end.scales(), &rows);
            EndScales::add_bias(&mut total, end, &tile, &rows);
            end.finish(&total, &tile, &rows);
        }
    }
}

/// The sum over all slabs of an item, kept by the tensor cores. One `wgmma` group stays in flight while the
/// next is issued. `arrivals`: as [`Ring::release`] has them.
///
/// # Safety
/// The ring is filled with the slabs, those of one item; all warps of the warpgroup call it
/// together.
#[inline(always)]
unsafe fn fast<S: Shape>(ring: &Ring<S>, slabs: Range<u32>, rows: &Rows, arrivals: u32) -> [f32; 128] {
    let mut total = [0.0; 128];
    let mut slab = slabs.start;
    while slab < slabs.end {
        let position = ring.place(slab);
        let stage = position.stage * (S::STAGE_BYTES / 16);
        ring.wait_full(position);
        wgmma::fence();
        // SAFETY: the stage holds 128 rows of A and 256 of B, and is released after the group has been waited
        // for.
        unsafe { wgmma_e4m3!(256, total, rows.a + stage, rows.b + stage, slab != slabs.start) };
        wgmma::commit();
        wgmma::wait::<1>();
        if slab != slabs.start {
            ring.release(ring.place(slab - 1).stage, arrivals);
        }
        slab += 1;
    }
    wgmma::wait::<0>();
    // SAFETY: no instruction at all.
    unsafe { wgmma_tie!(128, total) };
    ring.release(ring.place(slab - 1).stage, arrivals);
    total
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
    slabs: Range<u32>,
    rows: &Rows,
    tile: &Tile,
    arrivals: u32,
) -> [f32; 128] {
    let slots = [rows.row, rows.row + 8].map(|row| row_slot(row, tile.first_row, tile.rows));
    let mut total = [0.0; 128];
    // Products are written over each other: one variable, so that they are never in two sets of registers.
    let mut product = [0.0; 64];
    let mut slab = slabs.start;
    while slab < slabs.end {
        let position = ring.place(slab);
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
                ring.release(position.stage, arrivals);
            }
            unroll!(for i in 0..64 {
                total[64 * half + i] = fma(product[i], factors[i / 2 % 2], total[64 * half + i]);
            });
        });
        slab += 1;
    }
    total
}

/// Which rows and columns of an item a thread of a multiplying warpgroup holds, of its upper 64 rows or the
/// lower.
///
/// ```text
///   thread t of the warpgroup: warp w = t / 32, g = t % 32 / 4, q = t % 4
///   register 4 j + 2 h + c     row 16 w + g + 8 h     column 8 j + 2 q + c        j = 0 .. 32
/// ```
#[derive(Clone, Copy)]
struct Rows {
    /// The first of its two rows; the other is 8 further.
    row: u32,
    /// q, its lane within a quad.
    quad_lane: u32,
    /// Its warp's place in shared memory for 16 rows on their way to D.
    staging: u32,
    /// Descriptors of the warpgroup's rows of A, and of B, in stage 0.
    a: u32,
    b: u32,
}

impl Rows {
    /// Those of a thread of the warpgroup.
    #[inline(always)]
    fn of<S: Shape>(tile: &Tile, warpgroup: u32) -> Self {
        let base = shared::dynamic::<u8>().address();
        let half = if tile.rows > LOW { warpgroup } else { 0 };
        // Computed each time: else they would be in registers twice.
        let thread = recomputed(thread::thread_idx_x());
        // The same in all lanes; the shuffle says so to ptxas, which computes descriptors in uniform
        // registers then.
        let warp = warp::shfl_idx(warp::FULL_MASK, thread / 32, 0);
        Self {
            row: half * LOW + thread % 128 / 32 * 16 + thread % 32 / 4,
            quad_lane: thread % 4,
            staging: base + const { staging::<S>() } + warp * WARP_BYTES,
            a: wgmma::descriptor(base + half * ROWS_64),
            b: wgmma::descriptor(base + ROWS_128),
        }
    }
}

/// A ring of a wide kernel, and who brings A.
trait Pipeline: Shape {
    /// Where A is.
    type A: Copy;
    /// What a producing thread has to know of an item's rows.
    type Rows;
    /// Warps of the last warpgroup that fill the ring; the others wait for the end.
    const PRODUCERS: u32;

    /// Bytes of a slab of a tile's rows, and of their scales, that the barrier of a stage expects.
    fn bytes(tile: &Tile, scales: &SlabScales) -> u32;

    /// The rows of an item, of `k` columns.
    ///
    /// # Safety
    /// The contract of the kernels, for an item of the schedule; the kernel has waited for its predecessor.
    /// All lanes of the producing warps call it together.
    unsafe fn rows(a: Self::A, item: &Item, k: u32) -> Self::Rows;

    /// Brings a slab of the rows and of their scales to a stage.
    ///
    /// # Safety
    /// As [`rows`](Self::rows), slab by slab. The stage is free, in both blocks where they share A, and its
    /// barrier expects the [`bytes`](Self::bytes).
    unsafe fn load(
        ring: &Ring<Self>,
        rows: &mut Self::Rows,
        stage: u32,
        slab: u32,
        item: &Item,
        scales: &SlabScales,
    );

    /// The last thing that a producing thread does.
    fn leave();
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

/// Where in it the barriers of the warpgroups' turns are, behind the notes.
const fn turns<S: Shape>() -> u32 {
    Ring::<S>::BYTES + notes::bytes::<Told>()
}

/// Where in it the scales of whole sums are.
const fn shelf<S: Shape>() -> u32 {
    turns::<S>() + turns::BYTES
}

/// Where in it the numbers of items are.
const fn numbers<S: Shape>() -> u32 {
    shelf::<S>() + Shelf::BYTES
}

/// Where in it the rows are on their way to D: at a multiple of 128 bytes, so that chunks can be exchanged by
/// their addresses' bits.
const fn staging<S: Shape>() -> u32 {
    (numbers::<S>() + Items::BYTES).next_multiple_of(SLAB)
}
