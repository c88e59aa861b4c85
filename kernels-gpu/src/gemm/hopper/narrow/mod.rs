//! Few rows per expert: the weights are on the M side of `wgmma` and the rows of A are its N = 8, 16 or 32
//! columns, so that nothing is padded to 64 rows. The work is a stream of weights; what counts is that SMs
//! stream to the end. Tiles of up to 32 rows take the lowest N that their rows fit into: where rows
//! are uneven, fewer experts have a second tile, for which their weights are streamed again.
//!
//! ```text
//!   a stage                            product of a warpgroup: two tiles of 64 x N
//!   +--------------------+
//!   | 128 rows of B      |  plain: columns n0 .. n0 + 128 of D              gated: gate of 128 columns
//!   +--------------------+
//!   | 128 rows of B      |  plain: columns n0 + 128 .. n0 + 256             gated: up of the same columns
//!   +--------------------+    warpgroup 0: the upper 64 rows of both, warpgroup 1: the lower
//!   | N rows of A        |
//!   +--------------------+
//! ```
//!
//! Sums are always folded into f32 registers, every 128 of K: there are few of them.
//!
//! # The two loops
//! Both are below, one behind the other. A unit is an item or a part of one ([`units`]). The barriers of the
//! ring and of the [`notes`](super::notes), and nothing else, join them:
//!
//! ```text
//!   warp 8: `produce`, `fill`                      warps 0 to 7: `consume`
//!     ask for the weights of the first stages
//!     wait for the kernel before                     wait for the kernel before
//!     for each unit that the block draws             for each unit that a note tells
//!       write a note                                   ask for the scales of whole sums
//!       for each slab of 128 of K
//!         wait(empty)              <--- empty ---      for each slab: `sums`
//!         expect bytes, ask for B                        wait(full)
//!         ask for A and its scales  --- full --->        wgmma, fold with the slab's scales
//!                                                        release
//!                                                      add the part to others of its item
//!                                                      `End::finish`: store, or activate and quantise
//! ```
//!
//! # Before the predecessor has ended
//! Weights and their scales come from no kernel. Those of the first stages are asked for before this kernel
//! has waited for its predecessor, so that they arrive while that one ends:
//!
//! ```text
//!   predecessor       ............................ | end
//!   producer             schedule | B B B B B B  wait | A A A A A A | B A | B A | ..
//! ```
//!
//! With `schedule_is_settled` a block reads its first tiles of the schedule, too, before it waits. The caller
//! vouches that the number of tiles and the tiles were written by a kernel before that one, and that every
//! thread of that one waits before it signals or exits, which is what makes them visible ([`grid`] says why).
//! Everything else is touched behind the wait: rows and scales, which the predecessor may have written,
//! partial sums and counters, which it may still use (the counters lie beside the number of tiles, but are
//! words of their own), and the output.

mod accumulator;
mod parts;
mod requantize;
mod store;
mod units;

use cuda_std::code::Flag;
use cuda_std::l2::Policy;
use cuda_std::tma::{self, TensorMap};
use cuda_std::{grid, host, kernel, mbarrier, shared, thread, unroll, warp, wgmma};

use super::arguments::{HopperGated, HopperGemm};
use super::notes::{self, MOST_STAGES, Note, Notes};
use super::ring::{Position, Ring, Shape};
use super::slab_scales::{BlockLanes, SlabScales, row_slot};
use super::weights::{Matrix, Weights};
use super::{CONSUMER_WARPS, CONSUMERS, GATED_COLUMNS, ROWS_64, ROWS_128};
use crate::abi::{GemmTile, SLAB, Scales};
use crate::gemm::recomputed;
use crate::gemm::scales::column_scale;
use accumulator::Accumulator;
use parts::Parts;
use requantize::{Exchange, Gated};
use store::Plain;
use units::{Part, SLOTS, Units};

/// Threads of a block: the consumers and the producer warp.
const THREADS: u32 = CONSUMERS + 32;

/// Columns of D of a plain item; a gated one has half as many of the intermediate.
const BN: u32 = 2 * GATED_COLUMNS;

/// Rows of a box of A: as many as repeat the swizzle.
const BOX_ROWS: u32 = 8;

/// Stages of the ring. On an H200 five and six are 0.5 to 1 % slower.
const STAGES: u32 = 4;
const _: () = assert!(STAGES <= MOST_STAGES);

/// The ring of the kernels of tiles of up to `N` rows.
#[derive(Clone, Copy)]
struct Narrow<const N: u32>;

impl<const N: u32> Shape for Narrow<N> {
    const STAGES: u32 = STAGES;
    const A_ROWS: u32 = N;
    const SCALED: bool = true;
    const BLOCKS: u32 = 1;
    const COPIERS: u32 = 0;
}

/// Which products a kernel has.
trait Products: Shape {
    /// Of as many rows as its tiles have at most.
    type Tallest: Accumulator;
    /// Whether it has those of 8 and of 16 rows besides, for tiles with as few.
    const LOWER: bool;
}

// rustfmt would indent the attribute further each time.
#[rustfmt::skip]
macro_rules! kernels {
    ($(#[$doc:meta])* $tile:ident = $n:literal, $wgmma_n:tt, $lower:literal: $plain:ident, $gated:ident) => {
        $(#[$doc])*
        #[host]
        pub const $tile: GemmTile = GemmTile {
            rows: $n,
            columns: BN,
            stages: STAGES,
            operand_bytes: Narrow::<$n>::STAGE_BYTES,
            a_box_rows: BOX_ROWS,
            partial_bytes: partial_bytes($n),
        };

        impl Products for Narrow<$n> {
            type Tallest = [f32; $n / 2];
            const LOWER: bool = $lower;
        }

        #[doc = concat!("D in items of 256 columns x ", stringify!($n), " rows. All scales.")]
        ///
        /// # Safety
        /// The contract in the module documentation of [`hopper`](super).
        #[kernel(
            threads = THREADS,
            wgmma_n = $wgmma_n,
            overlap = within,
            shared = shared_bytes::<Narrow<$n>>()
        )]
        pub unsafe fn $plain(arguments: HopperGemm) {
            // SAFETY: the kernel's contract.
            unsafe { multiply::<Narrow<$n>, _>(&Plain(arguments)) }
        }

        #[doc = concat!("128 columns of the intermediate x ", stringify!($n), " rows: gate, up, activation.")]
        /// E4m3. All scales.
        ///
        /// # Safety
        /// The contract in the module documentation of [`hopper`](super).
        #[kernel(
            threads = THREADS,
            wgmma_n = $wgmma_n,
            overlap = within,
            shared = shared_bytes::<Narrow<$n>>()
        )]
        pub unsafe fn $gated(arguments: HopperGated) {
            // SAFETY: the kernel's contract.
            unsafe { multiply::<Narrow<$n>, _>(&Gated::new(arguments)) }
        }
    };
}

kernels! {
    /// Up to 8 rows.
    NARROW_8 = 8, [8], false: hopper_narrow_8, hopper_narrow_gated_8
}
kernels! {
    /// Up to 16 rows.
    NARROW_16 = 16, [16], false: hopper_narrow_16, hopper_narrow_gated_16
}
kernels! {
    /// Up to 32 rows: products of 8, 16 or 32, by the rows that a tile has.
    NARROW_32 = 32, [8, 16, 32], true: hopper_narrow_32, hopper_narrow_gated_32
}

/// The body of every kernel: the roles of the warps.
///
/// # Safety
/// The contract of the kernels; all threads of the block call it together.
#[inline(always)]
unsafe fn multiply<S: Products, E: End>(end: &E) {
    let launch = end.launch();
    // SAFETY: the kernel's contract. Warps 0 to 7 and warp 8 take different branches for good, and each role
    // executes its collective operations with whole warps; branches depend on the schedule and the block
    // alone. Units and stages pass between the roles by the barriers of the notes and of the ring alone.
    unsafe {
        prefetch_maps(&launch);
        let told = shared::dynamic::<u8>().address() + const { Ring::<S>::BYTES };
        notes::prepare::<Part>(told);
        let ring = Ring::<S>::new(cleared::<S>(launch.b.may_be_short(end.n(), E::COLUMNS)));
        if thread::warp_id() == CONSUMER_WARPS {
            if launch.schedule_is_settled.is_clear() {
                grid::wait();
            }
            let units = Units::new(launch.schedule, end.n().div_ceil(E::COLUMNS), launch.k.div_ceil(SLAB));
            produce(&Producer::new(&ring, &launch), units, Notes::new(told), end);
            return;
        }
        grid::wait();
        grid::launch_dependents();
        consume(&ring, &launch, Notes::new(told), end);
    }
}

/// What the producer warp does. The next unit takes two trips to memory, one behind the other, for its number
/// and for its tile. They are made while this unit's slabs are asked for.
///
/// # Safety
/// The contract of the kernels; all lanes of the producer warp call it together, once.
#[inline(always)]
unsafe fn produce<S: Shape, E: End>(producer: &Producer<S>, mut units: Units, mut notes: Notes, end: &E) {
    // SAFETY: the units are those of this launch, and the counter is touched behind the wait. A unit is told
    // before its slabs are asked for.
    unsafe {
        let mut place = Place { position: Position::START, ahead: begin(producer, units, end) };
        grid::wait();
        grid::launch_dependents();
        let first = units.draw();
        let mut next = units.part(units.look_up(first));
        while let Some(part) = next {
            notes.tell(Some(&part));
            let mut slabs = producer.slabs(part, end, place.ahead);
            // Its number comes in the time of some slabs, and its tile in that of one.
            let (drawn, some) = (units.draw(), (slabs.part.slabs - 1).clamp(1, 3));
            let at_once = place.ahead.max(some);
            fill(producer, &mut place, &mut slabs, at_once);
            let looked_up = units.look_up(drawn);
            fill(producer, &mut place, &mut slabs, u32::MAX);
            next = units.part(looked_up);
        }
        notes.tell::<Part>(None);
    }
}

/// Fills up to `most` stages with the next slabs of a unit.
///
/// # Safety
/// The contract of the kernels, and the kernel has waited for its predecessor; all lanes of the producer
/// warp call it together, slab by slab of all units.
#[inline(always)]
unsafe fn fill<S: Shape>(producer: &Producer<S>, place: &mut Place, slabs: &mut Slabs, most: u32) {
    let Producer { ring, launch, .. } = producer;
    let part = &slabs.part;
    let end = (part.first_slab + part.slabs).min(slabs.next.saturating_add(most));
    while slabs.next < end {
        let position = place.position;
        // SAFETY: the stage is free, or has been begun with the weights of this very slab.
        unsafe {
            if place.ahead > 0 {
                place.ahead -= 1;
            } else {
                let block_scales = slabs.blocks.next(&launch.slab_scales);
                ring.wait_empty(position);
                producer.load_b(position.stage, slabs.next, part, &slabs.weights, block_scales);
            }
            producer.load_a(position.stage, slabs.next, part);
        }
        place.position = ring.next(position);
        slabs.next += 1;
    }
}

/// What both multiplying warpgroups do. The scales of whole sums are weights, too: they are asked for before
/// a part's first slab, since they come from memory behind all stages that have been asked for, which takes
/// as long as some slabs.
///
/// # Safety
/// The contract of the kernels; all consumer warps call it together, once.
#[inline(always)]
unsafe fn consume<S: Products, E: End>(ring: &Ring<S>, launch: &Launch, mut notes: Notes, end: &E) {
    let columns = Columns::new(ring.stage(0));
    let mut position = Position::START;
    // SAFETY: the contract of the kernels; the producer fills the ring with the slabs of the units that it
    // tells.
    unsafe {
        let parts = Parts::new(
            launch.schedule,
            launch.partials,
            ring.end() + const { notes::bytes::<Part>() },
            S::A_ROWS,
        );
        let exchange = Exchange::new(parts.end(), S::A_ROWS);
        loop {
            let part: Part = notes.hear();
            if !part.is_work() {
                break;
            }
            let b_scales = column_scales(launch, end, &part, &columns);
            macro_rules! item {
                ($product:ty) => {{
                    let mut totals;
                    (totals, position) = sums::<$product, S>(ring, position, &part, &columns, launch);
                    if end.takes_parts() || part.is_whole() || parts.complete(&part, &mut totals) {
                        end.finish(&totals, &part, b_scales, &columns, exchange);
                    }
                }};
            }
            // The lowest product that takes the part's rows.
            if S::LOWER && part.rows <= 8 {
                item!([f32; 4])
            } else if S::LOWER && part.rows <= 16 {
                item!([f32; 8])
            } else {
                item!(S::Tallest)
            }
        }
    }
}

/// The sums over the slabs of a part, for the two halves of an item, by products of `A`.
///
/// # Safety
/// The ring is filled with the slabs of the part from `position` on; all consumer warps call it together.
#[inline(always)]
unsafe fn sums<A: Accumulator, S: Shape>(
    ring: &Ring<S>,
    mut position: Position,
    part: &Part,
    columns: &Columns,
    launch: &Launch,
) -> ([A; 2], Position) {
    let mut totals = [A::ZERO; 2];
    let mut slab = 0;
    while slab < part.slabs {
        let stage = position.stage * (S::STAGE_BYTES / 16);
        let mut products = [A::ZERO; 2];
        ring.wait_full(position);
        wgmma::fence();
        // SAFETY: the stage holds twice 128 rows of B and at least N rows of A, and is released after the
        // group has been waited for.
        unsafe {
            let (a, b) = (columns.a + stage, columns.b + stage);
            products[0].multiply(b, a, false);
            products[1].multiply(b + ROWS_128 / 16, a, false);
        }
        wgmma::commit();
        let mut blocks = [1.0; 2];
        if launch.slab_scales.has_b() {
            // SAFETY: the slots of a scaled stage, which the barrier has shown to this thread.
            blocks = unsafe { ring.block_scales(position.stage).read() };
        }
        wgmma::wait::<0>();
        products[0].tie();
        products[1].tie();
        if launch.slab_scales.has_a() {
            // Else the slots of all rows would stay in registers.
            let rows = recomputed(part.rows);
            // SAFETY: as above; the tile has a row.
            let row = #[inline(always)]
            |j: usize, c: usize| unsafe {
                let row = 2 * columns.quad_lane + (8 * j + c) as u32;
                ring.row_scale(position.stage, row_slot(row, part.first_row, rows)).read()
            };
            unroll!(for half in 0..2 {
                totals[half].fold(
                    &products[half],
                    #[inline(always)]
                    |j, _, c| row(j, c) * blocks[half],
                );
            });
        } else {
            unroll!(for half in 0..2 {
                totals[half].fold(
                    &products[half],
                    #[inline(always)]
                    |_, _, _| blocks[half],
                );
            });
        }
        ring.release(position.stage, 1);
        position = ring.next(position);
        slab += 1;
    }
    (totals, position)
}

/// What becomes of the sums of an item: [`Plain`] or [`Gated`].
trait End {
    /// Columns of the output in an item.
    const COLUMNS: u32;

    /// What the kernel was given.
    fn launch(&self) -> Launch;

    /// Columns of the output.
    fn n(&self) -> u32;

    /// Columns of B.
    fn b_columns(&self) -> u32;

    /// The weights that a part takes, and where their scales are.
    fn weights(&self, part: &Part) -> Weights;

    /// A thread's first column of either half of an item, among all columns of B.
    fn first_columns(&self, part: &Part, columns: &Columns) -> [u32; 2];

    /// Whether it takes sums of parts as well as of whole items.
    fn takes_parts(&self) -> bool;

    /// Takes a thread's sums of an item; `b_scales` are the scales of its columns.
    ///
    /// # Safety
    /// The contract of the kernels, for an item of the schedule; all consumer threads call it together.
    unsafe fn finish<A: Accumulator>(
        &self,
        totals: &[A; 2],
        part: &Part,
        b_scales: ColumnScales,
        columns: &Columns,
        exchange: Exchange,
    );
}

/// What a kernel is given, whatever becomes of its sums.
#[derive(Clone, Copy)]
struct Launch {
    a: *const TensorMap,
    b: Matrix,
    scales: Scales,
    slab_scales: SlabScales,
    schedule: *mut [u32; 4],
    partials: *mut [f32; 4],
    k: u32,
    schedule_is_settled: Flag,
}

/// Where in the ring the producer is.
struct Place {
    position: Position,
    /// Stages from there on that have been begun.
    ahead: u32,
}

/// What of a unit is still to be asked for.
struct Slabs {
    part: Part,
    weights: Weights,
    blocks: BlockLanes,
    next: u32,
}

/// The producer warp's ring, and what it copies from.
struct Producer<'a, S: Shape> {
    ring: &'a Ring<S>,
    launch: &'a Launch,
    /// Weights are read once, and leave L2 first. An expert's rows are read again for each of its items, and
    /// between two of them more weights pass through L2 than it holds.
    once: Policy,
    lane: u32,
}

impl<'a, S: Shape> Producer<'a, S> {
    #[inline(always)]
    fn new(ring: &'a Ring<S>, launch: &'a Launch) -> Self {
        Self { ring, launch, once: Policy::evict_first(), lane: thread::lane_id() }
    }

    /// The slabs of a unit, the first of which have stages that are begun, if any are `ahead`.
    ///
    /// # Safety
    /// The contract of the kernels; all lanes of the producer warp call it together.
    #[inline(always)]
    unsafe fn slabs(&self, part: Part, end: &impl End, ahead: u32) -> Slabs {
        let (weights, begun) = (end.weights(&part), ahead.min(part.slabs));
        let (first, count) = (part.first_slab + begun, part.slabs - begun);
        // SAFETY: blocks have a scale for every slab of the part.
        let blocks = unsafe { BlockLanes::new(&self.launch.slab_scales, weights.blocks, first, count) };
        Slabs { next: part.first_slab, part, weights, blocks }
    }

    /// Begins a stage: says how many bytes it takes, those of the rows and their scales included, and asks
    /// for the weights; `block_scales` are those of their blocks.
    ///
    /// # Safety
    /// The stage is free; the weights are the part's. All lanes of the producer warp call it together.
    #[inline(always)]
    unsafe fn load_b(&self, stage: u32, slab: u32, part: &Part, weights: &Weights, block_scales: [f32; 2]) {
        if self.lane != 0 {
            return;
        }
        let Self { ring, launch: Launch { b, slab_scales, .. }, .. } = self;
        let (to, full) = (ring.stage(stage), ring.full(stage));
        // SAFETY: the stage takes two boxes of 128 rows before those of eight; the bytes expected are theirs,
        // whatever of them lies outside the tensors. The map is the kernel's parameter.
        unsafe {
            slab_scales.store_b(ring.scales(stage), S::A_ROWS, block_scales);
            let boxes = part.rows.div_ceil(BOX_ROWS);
            let bytes = b.bytes(weights) + boxes * (BOX_ROWS * SLAB) + slab_scales.bytes(S::A_ROWS);
            mbarrier::arrive_expect_tx(full, bytes);
            b.load(to, full, slab, weights, Some(self.once));
        }
    }

    /// Asks for a slab of A, as many boxes as the tile has rows for, and for its scales. The other rows of
    /// the stage are stale, at first zeros, and their sums are discarded.
    ///
    /// # Safety
    /// The stage has been begun with the weights of this slab, and the kernel has waited for its predecessor.
    /// All lanes of the producer warp call it together.
    #[inline(always)]
    unsafe fn load_a(&self, stage: u32, slab: u32, part: &Part) {
        if self.lane != 0 {
            return;
        }
        let Self { ring, launch: Launch { a, slab_scales, .. }, .. } = self;
        let (to, full) = (ring.stage(stage), ring.full(stage));
        // SAFETY: the stage takes the tile's rows behind those of B, and expects their bytes. The map is the
        // kernel's parameter.
        unsafe {
            let mut row = 0;
            while row < part.rows {
                let corner = [(slab * SLAB) as i32, (part.first_row + row) as i32];
                tma::load_2d(to + 2 * ROWS_128 + row * SLAB, *a, full, corner);
                row += BOX_ROWS;
            }
            slab_scales.load_a(ring.scales(stage), full, part.first_row, slab);
        }
    }
}

/// Asks for the weights of the block's first slabs, one to a stage, and says of how many.
///
/// # Safety
/// The contract of the kernels; all lanes of the producer warp call it together, first of all. The stages are
/// filled with the slabs of these units.
#[inline(always)]
unsafe fn begin<S: Shape>(producer: &Producer<S>, mut units: Units, end: &impl End) -> u32 {
    let scales = &producer.launch.slab_scales;
    let mut ahead = 0;
    while ahead < S::STAGES
        // SAFETY: the units are those of this launch.
        && let Some(part) = unsafe { units.next_fixed() }
    {
        let weights = end.weights(&part);
        // SAFETY: blocks have a scale for every slab of the part.
        let mut blocks = unsafe { BlockLanes::new(scales, weights.blocks, part.first_slab, part.slabs) };
        let mut slab = part.first_slab;
        while slab < part.first_slab + part.slabs && ahead < S::STAGES {
            // SAFETY: on the first lap all stages are free; the part has the slab.
            unsafe { producer.load_b(ahead, slab, &part, &weights, blocks.next(scales)) };
            ahead += 1;
            slab += 1;
        }
    }
    ahead
}

/// Fetches the tensor maps ahead of their first use, by a lane of the producer.
///
/// # Safety
/// They are tensor maps, and so are those of the scales that there are.
#[inline(always)]
unsafe fn prefetch_maps(launch: &Launch) {
    if thread::thread_idx_x() == CONSUMERS {
        // SAFETY: the caller's contract.
        unsafe {
            launch.b.prefetch_map();
            tma::prefetch_map(launch.a);
            launch.slab_scales.prefetch_map();
        }
    }
}

/// Which columns of D and rows of A a thread holds.
struct Columns {
    /// Its column of each half of an item; another is 8 further.
    column: u32,
    /// q, its lane within a quad: it holds rows `8 j + 2 q` of A and the next.
    quad_lane: u32,
    /// Descriptors of its warpgroup's rows of the first half of B, and of A, in stage 0.
    b: u32,
    a: u32,
}

impl Columns {
    /// For a ring whose stage 0 is at `base`.
    #[inline(always)]
    fn new(base: u32) -> Self {
        let thread = thread::thread_idx_x();
        // The same in all lanes; the shuffle says so to ptxas, which computes descriptors in uniform
        // registers then.
        let warp = warp::shfl_idx(warp::FULL_MASK, thread / 32, 0);
        Self {
            column: thread / 32 * 16 + thread % 32 / 4,
            quad_lane: thread % 4,
            b: wgmma::descriptor(base + warp / 4 * ROWS_64),
            a: wgmma::descriptor(base + 2 * ROWS_128),
        }
    }
}

/// Scales of the four columns of B that a thread has sums of: of two, 8 apart, in either half of an item.
type ColumnScales = [[f32; 2]; 2];

/// Asks for the scales of a thread's columns of an item. They are 1 where there are none for whole sums.
///
/// # Safety
/// The contract of the kernels, for an item of the schedule.
#[inline(always)]
unsafe fn column_scales(launch: &Launch, end: &impl End, part: &Part, columns: &Columns) -> ColumnScales {
    end.first_columns(part, columns).map(|first| {
        // SAFETY: the caller's contract.
        [first, first + 8]
            .map(|column| unsafe { column_scale(&launch.scales, part.expert, column, end.b_columns()) })
    })
}

/// From which byte of a stage on copies may leave something out: rows of A, where a box has fewer than the
/// tile's, and of B too where an item is `short`.
const fn cleared<S: Shape>(short: bool) -> u32 {
    match (short, S::A_ROWS == BOX_ROWS) {
        (true, _) => 0,
        (false, true) => S::STAGE_BYTES,
        (false, false) => 2 * ROWS_128,
    }
}

/// Dynamic shared memory: the ring, and what the consumers exchange behind it.
const fn shared_bytes<S: Shape>() -> u32 {
    Ring::<S>::BYTES + notes::bytes::<Part>() + parts::SHARED_BYTES + Exchange::bytes(S::A_ROWS)
}

/// Bytes of the sums of parts, f32, for every block of the grid.
const fn partial_bytes(n: u32) -> u32 {
    SLOTS * BN * n * 4
}
