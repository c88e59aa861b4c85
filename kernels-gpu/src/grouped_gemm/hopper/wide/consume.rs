//! The consumer warpgroups: products of all slabs of an item, with the sum in the tensor cores or in f32 registers.
//!
//! With promotion one warpgroup folds while the other's products are made. Left alone they fall into that step by themselves.

use cuda_std::shared::Shared;
use cuda_std::math::fma;
use cuda_std::wgmma::wgmma_e4m3_rs;
use cuda_std::{ldmatrix, thread, unroll, warp, wgmma};

use crate::grouped_gemm::hopper::accumulator::Accumulator;
use crate::grouped_gemm::hopper::ring::{Position, Ring};
use crate::grouped_gemm::SLAB;
use crate::grouped_gemm::hopper::{ROWS_64, ROWS_128, SCALE_ROWS};

/// Which rows and columns of an item a thread holds.
pub struct Rows {
    /// The first of its two rows; the other is 8 further.
    pub row: u32,
    /// q, its lane within a quad: it holds columns `8 j + 2 q` and the next.
    pub quad_lane: u32,
    /// Descriptors of its warpgroup's rows of A, and of B, in stage 0.
    a: u32,
    b: u32,
    /// Where in a stage the lane's 16 bytes of A's step 0 are: those of lanes l and l + 16 are the two columns of row l. A row's
    /// eight columns are permuted by the number of the row, so that those of a step are 32 bytes further in exclusive or.
    fragment: u32,
    warpgroup: u32,
}

impl Rows {
    /// For a ring whose stage 0 is at `base`.
    #[inline(always)]
    pub fn new(base: u32) -> Self {
        let thread = thread::thread_idx_x();
        // The same in all lanes; the shuffle says so to ptxas, which computes descriptors in uniform registers then.
        let warp = warp::shfl_idx(warp::FULL_MASK, thread / 32, 0);
        let lane = thread % 32;
        Self {
            row: thread / 32 * 16 + thread % 32 / 4,
            quad_lane: thread % 4,
            a: wgmma::descriptor(base + warp / 4 * ROWS_64),
            b: wgmma::descriptor(base + ROWS_128),
            fragment: (warp * 16 + lane % 16) * SLAB + (lane / 16 ^ lane % 8) * 16,
            warpgroup: warp / 4,
        }
    }

    /// Whether none of the warpgroup's rows are among the first `tile_rows`.
    #[inline(always)]
    fn are_past(&self, tile_rows: u32) -> bool {
        tile_rows <= 64 * self.warpgroup
    }

    /// The warp's 16 rows of A in the stage at address `stage`, as `wgmma` takes them from registers: four for each step of 32 of K.
    ///
    /// # Safety
    /// The stage holds 128 rows of A; all lanes of the warp call it together.
    #[inline(always)]
    unsafe fn fragments(&self, stage: u32) -> [[u32; 4]; 4] {
        let mut fragments = [[0; 4]; 4];
        unroll!(for step in 0..4 {
            // SAFETY: 16 bytes of A's rows.
            fragments[step] = unsafe { ldmatrix::x4(stage + (self.fragment ^ (32 * step))) };
        });
        fragments
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
    tile_rows: u32,
) -> ([f32; 128], Position) {
    let mut total = <[f32; 128]>::ZERO;
    if rows.are_past(tile_rows) {
        return (total, ring.pass_over(position, slabs));
    }
    let mut previous = 0;
    let mut slab = 0;
    while slab < slabs {
        let stage = position.stage * (STAGE_BYTES / 16);
        ring.wait_full(position);
        wgmma::fence();
        // SAFETY: the stage holds 128 rows of A and 256 of B, and is released after the group has been waited for.
        unsafe { total.multiply(rows.a + stage, rows.b + stage, slab != 0) };
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

/// The sum over all slabs, folded into f32 registers with the scales of every slab. Columns 0 to 127 have the first block scale of
/// the stage, the others the second. Both halves are multiplied into the same registers, one after the other, by the same rows of A:
/// these are in registers too, since shared memory could not feed the tensor cores otherwise.
///
/// ```text
///   bytes of shared memory for a slab's 1024 cycles of tensor cores, of 128 a cycle     A in shared memory     in registers
///     written by TMA                                                                           48 KiB               48 KiB
///     B, by either warpgroup                                                                   64                   64
///     A, by either half                                                                        32                   16
///   cycles                                                                                   1152                 1024
/// ```
///
/// # Safety
/// As [`fast`].
#[inline(always)]
pub unsafe fn promoted<const STAGES: u32, const STAGE_BYTES: u32, const SCALED: bool, const BLOCKS: u32>(
    ring: &Ring<STAGES, STAGE_BYTES, SCALED, BLOCKS>,
    mut position: Position,
    slabs: u32,
    rows: &Rows,
    tile_rows: u32,
) -> ([f32; 128], Position) {
    let mut total = <[f32; 128]>::ZERO;
    if rows.are_past(tile_rows) {
        return (total, ring.pass_over(position, slabs));
    }
    // Products are written over each other: one variable, so that they are never in two sets of registers.
    let mut product = <[f32; 64]>::ZERO;
    let mut slab = 0;
    while slab < slabs {
        let stage = position.stage * (STAGE_BYTES / 16);
        let slots = Shared::<f32>::from_address(ring.scales(position.stage));
        ring.wait_full(position);
        // SAFETY: the slots of a scaled stage and its rows of A, which the barrier has shown to this thread.
        let (a_scales, b_scales, a) = unsafe {
            let a = [slots.add(rows.row).read(), slots.add(rows.row + 8).read()];
            let b = slots.add(SCALE_ROWS).cast::<[f32; 2]>().read();
            (a, b, rows.fragments(ring.stage(position.stage)))
        };
        unroll!(for half in 0..2 {
            let factors = [a_scales[0] * b_scales[half], a_scales[1] * b_scales[half]];
            wgmma::fence();
            // SAFETY: the stage holds 256 rows of B, and is released after the groups have been waited for.
            unsafe {
                let b = rows.b + stage + half * (ROWS_128 / 16);
                wgmma_e4m3_rs!(128, product, a, b, false);
                wgmma::commit();
            }
            wgmma::wait::<0>();
            product.tie();
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
