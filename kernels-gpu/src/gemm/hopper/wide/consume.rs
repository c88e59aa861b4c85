//! The consumer warpgroups: products of all slabs of an item, with the sum in the tensor cores or in f32
//! registers.
//!
//! With promotion one warpgroup can fold while the other's products are made. Nothing makes them take turns:
//! named barriers that did gained nothing on an H100.

use cuda_std::math::fma;
use cuda_std::{thread, unroll, warp, wgmma};

use super::WARP_BYTES;
use crate::gemm::hopper::accumulator::Accumulator;
use crate::gemm::hopper::ring::{Position, Ring};
use crate::gemm::hopper::{ROWS_64, ROWS_128};
use crate::schedule::work::Tile;

/// Which rows and columns of an item a thread holds.
pub struct Rows {
    /// The first of its two rows; the other is 8 further.
    pub row: u32,
    /// q, its lane within a quad: it holds columns `8 j + 2 q` and the next.
    pub quad_lane: u32,
    /// Its warp's place in shared memory for 16 rows on their way to D.
    pub staging: u32,
    /// Descriptors of its warpgroup's rows of A, and of B, in stage 0.
    a: u32,
    b: u32,
    warpgroup: u32,
}

impl Rows {
    /// For a ring whose stage 0 is at `base`, with the warps' places from `staging` on.
    #[inline(always)]
    pub fn new(base: u32, staging: u32) -> Self {
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

/// The sum over all slabs, kept by the tensor cores. One `wgmma` group stays in flight while the next is
/// issued.
///
/// # Safety
/// The ring is filled with the slabs of one item; all consumer warps call it together.
#[inline(always)]
pub unsafe fn fast<
    const STAGES: u32,
    const STAGE_BYTES: u32,
    const SCALED: bool,
    const BLOCKS: u32,
    const GATHERED: bool,
>(
    ring: &Ring<STAGES, STAGE_BYTES, SCALED, BLOCKS, GATHERED>,
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
        // SAFETY: the stage holds 128 rows of A and 256 of B, and is released after the group has been waited
        // for.
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

/// The sum over all slabs, folded into f32 registers with the scales of every slab. Columns 0 to 127 have the
/// first block scale of the stage, the others the second. Both halves are multiplied into the same registers,
/// one after the other.
///
/// # Safety
/// As [`fast`].
#[inline(always)]
pub unsafe fn promoted<
    const STAGES: u32,
    const STAGE_BYTES: u32,
    const SCALED: bool,
    const BLOCKS: u32,
    const GATHERED: bool,
>(
    ring: &Ring<STAGES, STAGE_BYTES, SCALED, BLOCKS, GATHERED>,
    mut position: Position,
    slabs: u32,
    rows: &Rows,
    tile: &Tile,
) -> ([f32; 128], Position) {
    let mut total = <[f32; 128]>::ZERO;
    if rows.are_past(tile.rows) {
        return (total, ring.pass_over(position, slabs));
    }
    let slots = [rows.row, rows.row + 8].map(|row| {
        Ring::<STAGES, STAGE_BYTES, SCALED, BLOCKS, GATHERED>::row_slot(row, tile.first_row, tile.rows)
    });
    // Products are written over each other: one variable, so that they are never in two sets of registers.
    let mut product = <[f32; 64]>::ZERO;
    let mut slab = 0;
    while slab < slabs {
        let stage = position.stage * (STAGE_BYTES / 16);
        ring.wait_full(position);
        // SAFETY: the slots of a scaled stage, which the barrier has shown to this thread.
        let (a, b) = unsafe {
            let a = slots.map(|slot| ring.row_scale(position.stage, slot).read());
            (a, ring.block_scales(position.stage).read())
        };
        unroll!(for half in 0..2 {
            let factors = [a[0] * b[half], a[1] * b[half]];
            wgmma::fence();
            // SAFETY: the stage holds 128 rows of A and 256 of B, and is released after the groups have been
            // waited for.
            unsafe {
                let (a, b) = (rows.a + stage, rows.b + stage + half * (ROWS_128 / 16));
                product.multiply(a, b, false);
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
