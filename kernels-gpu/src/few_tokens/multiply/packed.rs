//! Products of packed weights: `wgmma` on e4m3, straight from the stages.
//!
//! ```text
//!   a stage's rows of 128 bytes    slab 0: first half, second half | slab 1: first half, second half | ..
//!   warpgroup t                    rows 64 t .. 64 t + 64: a tile of M; warp w has rows 16 w .. 16 w + 16
//!
//!   half_rows   a tile            slabs of a tile   N
//!   64          half of a slab    1                 8
//!   32          a slab            1                 8
//!   16          two slabs         2                16
//!    8          four slabs        4                32
//!
//!   of two slabs            inputs of slab 0    inputs of slab 1        columns: eight rows of inputs each
//!     rows of slab 0        taken               dropped
//!     rows of slab 1        dropped             taken
//!
//!   lane (g, q) = (lane / 4, lane % 4), of its warp's slab j in the tile, after the four products of 128 bytes
//!     [2 h + c]   row g + 8 h of the warp's by input row 2 q + c: register 4 j + 2 h + c
//! ```
//!
//! So a full stage is one group of four `wgmma` for each warpgroup, however high a unit is, and nothing is
//! converted. They sum up 128 of K in the tensor cores' own format; then the scales that change there fold
//! the sum into f32.
//!
//! Inputs lie as core matrices of 8 rows by 16 bytes, without a swizzle:
//!
//! ```text
//!   bytes 16 c .. 16 c + 16 of K     | row 0 | row 1 | .. | last row |     `input_pitch` bytes
//! ```
//!
//! Rows that there are not are what lies behind, in the next core matrices or behind all of them, and
//! their columns are dropped. So are those of slabs that the last tile of a part of K lacks: what a stage has
//! there is stale, or zeros ([`begin`](super::super::layout::begin)).

use cuda_std::math::fma;
use cuda_std::thread;
use cuda_std::unroll;
use cuda_std::wgmma::{self, Cores, wgmma_e4m3, wgmma_tie};

use crate::abi::BScaleKind;
use crate::few_tokens::layout::{Layout, Packed, Place};
use crate::few_tokens::memory::Memory;
use crate::few_tokens::queue::Unit;
use crate::few_tokens::{FEW_STAGE_BYTES, FEW_STAGE_K, FEW_TILE_ROWS, Projection};
use crate::gemm::hopper::ring::Position;
use crate::gemm::recomputed;

/// Bytes of a tile: 64 rows of 128.
const TILE_BYTES: u32 = 64 * 128;
/// Core matrices of a slab's 128 bytes of K.
const SLAB_CORES: u32 = 8;

impl Layout for Packed {
    const IS_PACKED: bool = true;

    #[inline(always)]
    fn input(projection: &Projection, memory: &Memory, row: u32, column: u32) -> u32 {
        memory.inputs + column / 16 * projection.input_pitch + row * 16 + column % 16
    }

    #[inline(always)]
    unsafe fn sums(
        projection: &Projection,
        unit: &Unit,
        _: u32,
        memory: &Memory,
        position: Position,
    ) -> ([f32; 4], Position) {
        // SAFETY: the caller's contract.
        unsafe {
            match projection.row_groups_log2() {
                0 => sums::<[f32; 16]>(projection, unit, memory, position),
                1 => sums::<[f32; 8]>(projection, unit, memory, position),
                _ => sums::<[f32; 4]>(projection, unit, memory, position),
            }
        }
    }

    #[inline(always)]
    fn place(log2: u32, half: u32, within: u32, row: u32) -> Place {
        // Among the rows of a slab.
        let line = (half << (log2 + 3)) + within;
        Place { warp: line / 16, lane: line % 8 * 4 + row / 2, component: line / 8 % 2 * 2 + row % 2 }
    }
}

/// [`Layout::sums`] by products of `P`.
///
/// # Safety
/// As there, for units of which a tile has `P::SLABS` slabs.
#[inline(always)]
unsafe fn sums<P: Product>(
    projection: &Projection,
    unit: &Unit,
    memory: &Memory,
    mut position: Position,
) -> ([f32; 4], Position) {
    let Projection { weight_scale_kind, stage_k, input_pitch, .. } = *projection;
    let has_blocks = weight_scale_kind.is(BScaleKind::Block);
    // What depends on the thread is worked out for each unit: it would take registers from unit to unit.
    let thread = recomputed(thread::thread_idx_x());
    let (lane, warp) = (thread % 32, thread / 32);
    let (g, q) = (lane / 4, lane % 4);
    let log2 = projection.row_groups_log2();
    // Of a stage's slabs the first of the tile, and the warp's.
    let (first, slab) = ((warp & !3) >> log2, warp >> log2);
    // Of a slab's eights of rows the first of the warp's two, and in which half they are.
    let eight = (warp & ((1 << log2) - 1)) * 2;
    let halves = [eight >> log2, (eight + 1) >> log2];
    let (mut at, end) = projection.part(unit.part);
    let weights = wgmma::descriptor(memory.first_stage()) + warp / 4 * (TILE_BYTES / 16);
    let of_slab = SLAB_CORES * input_pitch;
    let mut inputs = Cores::new(memory.inputs + (at / 128 + first) * of_slab, input_pitch, of_slab);
    let mut totals = [0.0; 4];
    while at < end {
        let slabs = u32::min(end - at, stage_k) / 128;
        memory.wait_full(position);
        let slot = memory.slot(position);
        // The same for all warps of the warpgroup.
        if first < slabs {
            // A slab that the stage lacks has no scales.
            let own = if P::SLABS == 1 { slab } else { u32::min(slab, slabs - 1) };
            let mut product = P::ZERO;
            // Written here, and not between the fence and the product.
            product.tie();
            wgmma::fence();
            // SAFETY: the barrier has shown the stage, which is released behind the wait. Inputs are shown to
            // this proxy by whoever wrote them; they have been written, or cleared, up to where the products
            // of all slabs of a tile end.
            unsafe { product.multiply(weights + position.stage * (FEW_STAGE_BYTES / 16), &inputs) };
            wgmma::commit();
            // SAFETY: the inputs have scales for the slab, and so has the stage, for both halves.
            let scales: [f32; 2] =
                unsafe { memory.input_scales.add((at / 128 + own) * FEW_TILE_ROWS + 2 * q).cast().read() };
            let mut blocks = [1.0; 2];
            if has_blocks {
                // SAFETY: as above.
                blocks = halves.map(|half| unsafe { slot.add(half * (FEW_STAGE_K / 128) + own).read() });
            }
            wgmma::wait::<0>();
            product.tie();
            if P::SLABS == 1 || slab < slabs {
                let product = product.of_slab(if P::SLABS == 1 { 0 } else { slab - first });
                totals = core::array::from_fn(|i| fma(product[i], scales[i % 2] * blocks[i / 2], totals[i]));
            }
        }
        if !has_blocks && at + stage_k >= end {
            let row = eight * 8 + g;
            // SAFETY: the last stage of a unit has a scale for each of its rows.
            let [low, high] = unsafe { [slot.add(row).read(), slot.add(row + 8).read()] };
            totals = [totals[0] * low, totals[1] * low, totals[2] * high, totals[3] * high];
        }
        memory.release(position);
        at += stage_k;
        inputs.low += stage_k / 128 * (of_slab / 16);
        position = memory.next(position);
    }
    (totals, position)
}

/// A thread's accumulators of a tile.
trait Product: Copy {
    /// Slabs of a tile.
    const SLABS: u32;
    /// All 0.
    const ZERO: Self;

    /// Begins the product of a tile at a [descriptor](wgmma::descriptor) by the inputs of its slabs.
    ///
    /// # Safety
    /// All warps of the warpgroup call it together, after `wgmma::fence`. The operands are in shared memory,
    /// visible to the asynchronous proxy, and stay until the group that this belongs to has been waited for;
    /// so do the registers.
    unsafe fn multiply(&mut self, weights: u32, inputs: &Cores);

    /// Pins the registers to this place of the program, behind the wait that precedes it.
    fn tie(&mut self);

    /// Those of a slab's own columns.
    fn of_slab(&self, slab: u32) -> [f32; 4];
}

macro_rules! products {
    ($($n:tt: $registers:tt, $slabs:tt;)+) => {$(
        impl Product for [f32; $registers] {
            const SLABS: u32 = $slabs;
            const ZERO: Self = [0.0; $registers];

            #[inline(always)]
            unsafe fn multiply(&mut self, weights: u32, inputs: &Cores) {
                // SAFETY: the caller's contract.
                unsafe {
                    wgmma_e4m3!($n, self, weights, [inputs.low, inputs.high, inputs.step], false)
                }
            }

            #[inline(always)]
            fn tie(&mut self) {
                // SAFETY: no instruction at all.
                unsafe { wgmma_tie!($registers, self) }
            }

            #[inline(always)]
            fn of_slab(&self, slab: u32) -> [f32; 4] {
                let mut four = [self[0], self[1], self[2], self[3]];
                unroll!(for j in 0..$slabs {
                    if j != 0 && slab == j {
                        four = [self[4 * j], self[4 * j + 1], self[4 * j + 2], self[4 * j + 3]];
                    }
                });
                four
            }
        }
    )+};
}

products! {
    8: 4, 1;
    16: 8, 2;
    32: 16, 4;
}
