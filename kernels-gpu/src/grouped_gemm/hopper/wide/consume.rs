//! The consumer warpgroups: products of all slabs of an item, with the sum in the tensor cores or in f32 registers.

use cuda_std::shared::Shared;
use cuda_std::{thread, wgmma};

use crate::grouped_gemm::hopper::accumulator::Accumulator;
use crate::grouped_gemm::hopper::ring::{Position, Ring};
use crate::grouped_gemm::hopper::{ROWS_64, ROWS_128, SCALE_ROWS};
use crate::grouped_gemm::scale_arguments::{A_PER_GROUP, B_PER_BLOCK, ScaleArguments};

/// Which rows and columns of an item a thread holds.
pub struct Rows {
    /// The first of its two rows; the other is 8 further.
    pub row: u32,
    /// q, its lane within a quad: it holds columns `8 j + 2 q` and the next.
    pub quad_lane: u32,
    /// Offset of its warpgroup's rows of A in a stage.
    a_offset: u32,
}

impl Rows {
    #[inline(always)]
    pub fn new() -> Self {
        let thread = thread::thread_idx_x();
        let (warp, lane) = (thread / 32, thread % 32);
        Self { row: warp * 16 + lane / 4, quad_lane: lane % 4, a_offset: warp / 4 * ROWS_64 }
    }
}

/// The sum over all slabs, kept by the tensor cores. One `wgmma` group stays in flight while the next is issued.
///
/// # Safety
/// The ring is filled with the slabs of one item; all consumer warps call it together.
#[inline(always)]
pub unsafe fn fast<const STAGES: u32, const STAGE_BYTES: u32, const SCALED: bool, const BLOCKS: u32>(
    ring: &Ring<STAGES, STAGE_BYTES, SCALED, BLOCKS>,
    mut position: Position,
    slabs: u32,
    rows: &Rows,
) -> ([f32; 128], Position) {
    let mut total = <[f32; 128]>::ZERO;
    let mut previous = 0;
    let mut slab = 0;
    while slab < slabs {
        let stage = ring.stage(position.stage);
        ring.wait_full(position);
        wgmma::fence();
        // SAFETY: the stage holds 128 rows of A and 256 of B, and is released after the group has been waited for.
        unsafe {
            let a = wgmma::descriptor(stage + rows.a_offset);
            total.multiply(a, wgmma::descriptor(stage + ROWS_128), slab != 0);
        }
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
    total.tie();
    ring.release(previous);
    (total, position)
}

/// The sum over all slabs, folded into f32 registers with the scales of every slab. The first half of the columns has the
/// first block scale of the stage, the second half the second.
///
/// # Safety
/// As [`fast`].
#[inline(always)]
pub unsafe fn promoted<const STAGES: u32, const STAGE_BYTES: u32, const SCALED: bool, const BLOCKS: u32>(
    ring: &Ring<STAGES, STAGE_BYTES, SCALED, BLOCKS>,
    mut position: Position,
    slabs: u32,
    rows: &Rows,
    scales: &ScaleArguments,
) -> ([f32; 64], Position) {
    let mut total = <[f32; 64]>::ZERO;
    let mut slab = 0;
    while slab < slabs {
        let stage = ring.stage(position.stage);
        let slots = Shared::<f32>::from_address(ring.scales(position.stage));
        let mut product = <[f32; 64]>::ZERO;
        ring.wait_full(position);
        wgmma::fence();
        // SAFETY: the stage holds 128 rows of A and 128 of B, and is released after the group has been waited for.
        unsafe {
            let a = wgmma::descriptor(stage + rows.a_offset);
            product.multiply(a, wgmma::descriptor(stage + ROWS_128), false);
        }
        wgmma::commit();
        let (mut a, mut b) = ([1.0; 2], [1.0; 2]);
        // SAFETY: the slots of a scaled stage, which the barrier has shown to this thread.
        unsafe {
            if scales.a_kind == A_PER_GROUP {
                a = [slots.add(rows.row).read(), slots.add(rows.row + 8).read()];
            }
            if scales.b_kind == B_PER_BLOCK {
                b = slots.add(SCALE_ROWS).cast::<[f32; 2]>().read();
            }
        }
        let factors = [[a[0] * b[0], a[1] * b[0]], [a[0] * b[1], a[1] * b[1]]];
        wgmma::wait::<0>();
        product.tie();
        ring.release(position.stage);
        total.fold(&product, |j, h, _| factors[j / 8][h]);
        position = ring.next(position);
        slab += 1;
    }
    (total, position)
}
