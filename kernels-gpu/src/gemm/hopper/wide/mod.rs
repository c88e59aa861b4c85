//! Many rows per expert: an item is 128 rows of A on the M side of `wgmma`, times 256 rows of B.
//!
//! ```text
//!   a stage                            columns of D           accumulators of a thread
//!   +-----------------+
//!   | A: 128 rows     |  warpgroup 0: rows 0..64, warpgroup 1: rows 64..128
//!   +-----------------+
//!   | B: 2 x 128 rows |  plain             256                fast       128: one `wgmma` of N = 256
//!   |                 |  gated     128 gate | 128 up          promoted   128 of the running total, and 64: the halves of B in turn,
//!   +-----------------+                                                  N = 128
//! ```
//!
//! The gated kernels produce 128 columns of the intermediate, a whole scale group of the second projection:
//! gate and up of a column are in the same thread, and a row's maximum is in the four lanes of a quad. See
//! [`gated`].
//!
//! Two blocks, a cluster, take neighbouring items, one above the other or side by side, and share an operand;
//! a cluster that is done takes the next items that nobody has: see [`items`].
//!
//! A may lie in permuted order already, to be brought by TMA ([`produce`]), or in the order of the tokens, to
//! be gathered ([`gather`]; gated kernels alone). Everything behind the ring is the same.

mod consume;
mod end_scales;
mod fill;
mod gated;
pub(crate) mod gather;
mod items;
mod notes;
mod produce;
mod requantize;
mod store;

use cuda_std::tma::TensorMap as Map;
use cuda_std::{grid, host, kernel, shared, thread, warp, wgmma};

use super::ring::{Position, Ring};
use super::slab_scales::SlabScales;
use super::weights::{Matrix, Weights};
use super::{CONSUMER_WARPS, CONSUMERS, GATED_COLUMNS, HopperGemm, ROWS_128};
use crate::abi::{GemmTile, SLAB, Scales};
use crate::schedule::work::Tile;
use consume::Rows;
use end_scales::{EndScales, Shelf};
use items::Items;
use notes::Notes;
use produce::Producer;

/// Rows of an item.
const BM: u32 = 128;

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

/// Blocks of a cluster. They share an operand, so that less comes through L2, whose rate limits tiles of this
/// size: 32 or 40 KiB instead of 48 for every 8.4 MFLOP.
const BLOCKS: u32 = 2;

const STAGES: u32 = 4;
const STAGE_BYTES: u32 = ROWS_128 + 2 * ROWS_128;

/// Up to 128 rows. Of A a block asks for half of them, on behalf of both blocks of a cluster where they share
/// it.
#[host]
pub const WIDE: GemmTile = GemmTile {
    rows: BM,
    columns: 2 * GATED_COLUMNS,
    stages: STAGES,
    operand_bytes: STAGE_BYTES,
    a_box_rows: BM / 2,
    partial_bytes: 0,
};

/// Bytes of shared memory that a warp's 16 rows take.
const WARP_BYTES: u32 = 16 * store::ROW_BYTES;

/// Dynamic shared memory: the ring, and behind it the notes, the scales of whole sums, the numbers of items,
/// and rows on their way to D.
const fn shared_bytes<const PROMOTED: bool>() -> u32 {
    staging::<PROMOTED>() + CONSUMER_WARPS * WARP_BYTES
}

/// Where in it the numbers of items are.
const fn numbers<const PROMOTED: bool>() -> u32 {
    Ring::<STAGES, STAGE_BYTES, PROMOTED, BLOCKS>::BYTES + STAGES * notes::BYTES + Shelf::BYTES
}

/// Where in it the rows are on their way to D: at a multiple of 128 bytes, so that chunks can be exchanged by
/// their addresses' bits.
const fn staging<const PROMOTED: bool>() -> u32 {
    let offset = numbers::<PROMOTED>() + Items::BYTES;
    assert!(offset.is_multiple_of(SLAB));
    offset
}

/// What a kernel does with the items: plain or gated.
trait End {
    /// Columns of the output in an item.
    const COLUMNS: u32;

    /// Columns of the output.
    fn n(&self) -> u32;

    /// Whether the last item of an expert may be short.
    #[inline(always)]
    fn may_be_short(&self, b: &Matrix) -> bool {
        b.may_be_short(self.n(), Self::COLUMNS)
    }

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

/// Where A is, and how the ring is filled with it: by TMA, or `GATHERED`.
trait Source<const GATHERED: bool>: Copy {
    /// Warps of the last warpgroup that fill the ring; the others wait for the end.
    const WARPS: u32;

    /// Fills the ring with the slabs of the block's items, B and the scales included.
    ///
    /// # Safety
    /// The contract of the kernels; all threads of those warps call it together, once.
    unsafe fn fill<const SCALED: bool>(
        self,
        ring: Ring<STAGES, STAGE_BYTES, SCALED, BLOCKS, GATHERED>,
        items: Items,
        end: &impl End,
        b: Matrix,
        k: u32,
    );
}

/// A map of A: rows are where the schedule says, and a warp is enough to ask for them.
impl Source<false> for *const Map {
    const WARPS: u32 = 1;

    #[inline(always)]
    unsafe fn fill<const SCALED: bool>(
        self,
        ring: Ring<STAGES, STAGE_BYTES, SCALED, BLOCKS>,
        mut items: Items,
        end: &impl End,
        b: Matrix,
        k: u32,
    ) {
        let mut producer = Producer::new(ring, self, b, end.slab_scales(), k);
        while let Some(item) = items.next() {
            let weights = end.operands(&item.tile);
            // SAFETY: the caller's contract.
            unsafe { producer.fill(&item, weights) };
        }
        // SAFETY: as above.
        unsafe { producer.finish() };
    }
}

/// The body of the kernels whose rows of A are where the schedule says.
///
/// # Safety
/// The contract of the kernels; all threads of the block call it together.
#[inline(always)]
unsafe fn run<const PROMOTED: bool, E: End>(
    a: *const Map,
    b: Matrix,
    schedule: *mut [u32; 4],
    k: u32,
    end: &E,
) {
    // SAFETY: the caller's contract.
    unsafe { run_from::<PROMOTED, false, _, _>(a, b, schedule, k, end) }
}

/// The body of every kernel: the roles of the warps, and the loop over items.
///
/// # Safety
/// The contract of the kernels; all threads of the block call it together.
#[inline(always)]
unsafe fn run_from<const PROMOTED: bool, const GATHERED: bool, S: Source<GATHERED>, E: End>(
    a: S,
    b: Matrix,
    schedule: *mut [u32; 4],
    k: u32,
    end: &E,
) {
    // SAFETY: the contract. The warpgroups take different branches for good, and each role executes its
    // collective operations with whole warps. Stages pass between them by the ring's barriers alone.
    unsafe {
        let cleared = if end.may_be_short(&b) { 0 } else { STAGE_BYTES };
        let numbers = shared::dynamic::<u8>().address() + const { numbers::<PROMOTED>() };
        Items::prepare(numbers);
        let ring = Ring::<STAGES, STAGE_BYTES, PROMOTED, BLOCKS, GATHERED>::new(cleared);
        if PROMOTED {
            ring.fill_constant_scales(&end.slab_scales());
        }
        grid::wait();
        grid::launch_dependents();
        // The same in all lanes; the shuffle says so to ptxas.
        let warp = warp::shfl_idx(warp::FULL_MASK, thread::warp_id(), 0);
        if warp >= CONSUMER_WARPS {
            wgmma::release_registers::<PRODUCER_REGISTERS>();
            if warp < CONSUMER_WARPS + S::WARPS {
                a.fill(ring, Items::new(schedule, numbers, end.n(), E::COLUMNS), end, b, k);
            }
            ring.leave();
            return;
        }
        wgmma::raise_registers::<CONSUMER_REGISTERS>();
        let rows = Rows::new(ring.stage(0), ring.stage(0) + const { staging::<PROMOTED>() });
        let mut shelf = Shelf::new(ring.end(), warp / 4);
        let slabs = k.div_ceil(SLAB);
        let mut position = Position::START;
        while let Some(tile) = Notes::of(&ring).read(&ring, position) {
            let scales = EndScales::ask(end, &tile, &rows);
            let total;
            (total, position) = if PROMOTED {
                consume::promoted(&ring, position, slabs, &rows, &tile)
            } else {
                consume::fast(&ring, position, slabs, &rows, tile.rows)
            };
            let mut total = scales.apply(&total, &mut shelf, end.scales(), &rows);
            if !end.scales().bias.is_null() {
                EndScales::add_bias(&mut total, end, &tile, &rows);
            }
            end.finish(&total, &tile, &rows);
        }
        ring.leave();
    }
}

/// D as it is.
struct Plain {
    arguments: HopperGemm,
    slab_scales: SlabScales,
}

impl End for Plain {
    const COLUMNS: u32 = WIDE.columns;

    #[inline(always)]
    fn n(&self) -> u32 {
        self.arguments.n
    }

    #[inline(always)]
    fn slab_scales(&self) -> SlabScales {
        self.slab_scales
    }

    #[inline(always)]
    fn operands(&self, tile: &Tile) -> Weights {
        self.arguments.weights(tile.expert, tile.n0)
    }

    #[inline(always)]
    fn scales(&self) -> &Scales {
        &self.arguments.scales
    }

    #[inline(always)]
    fn columns(&self, tile: &Tile) -> ([u32; 2], u32) {
        ([tile.n0, tile.n0 + 128], self.arguments.n)
    }

    #[inline(always)]
    unsafe fn finish(&self, total: &[f32; 128], tile: &Tile, rows: &Rows) {
        // SAFETY: the caller's contract.
        unsafe { store::store(total, tile, rows, &self.arguments) };
    }
}

/// D, the sum over all of K in the tensor cores. Scales of A per call or row, of B per expert or channel.
///
/// # Safety
/// The contract in the module documentation of [`hopper`](super).
#[kernel(threads = THREADS, cluster = BLOCKS, wgmma_n = 256, overlap = within, shared = shared_bytes::<false>())]
pub unsafe fn hopper_wide_fast(arguments: HopperGemm) {
    let (b, HopperGemm { a, schedule, k, .. }) = (arguments.matrix(), arguments);
    let end = Plain { arguments, slab_scales: SlabScales::NONE };
    // SAFETY: the kernel's contract.
    unsafe { run::<false, _>(a, b, schedule, k, &end) }
}

/// As [`hopper_wide_fast`], the sum folded into f32 every 128 of K. All scales.
///
/// # Safety
/// The contract in the module documentation of [`hopper`](super).
#[kernel(threads = THREADS, cluster = BLOCKS, wgmma_n = 128, overlap = within, shared = shared_bytes::<true>())]
pub unsafe fn hopper_wide_promoted(arguments: HopperGemm) {
    let (b, HopperGemm { a, schedule, k, .. }) = (arguments.matrix(), arguments);
    let end = Plain { arguments, slab_scales: arguments.slab_scales() };
    // SAFETY: the kernel's contract.
    unsafe { run::<true, _>(a, b, schedule, k, &end) }
}
