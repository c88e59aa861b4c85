//! The consumer warpgroups: products of a part's slabs, folded into f32 registers with the scales of every
//! slab; and the scales of whole sums, which are asked for before the first slab. They are weights, and come
//! from memory, behind all stages that have been asked for, which takes as long as some slabs.

use cuda_std::{thread, warp, wgmma};

use super::share::Part;
use crate::abi::Scales;
use crate::gemm::hopper::accumulator::Accumulator;
use crate::gemm::hopper::ring::{Position, Ring, Shape};
use crate::gemm::hopper::slab_scales::{SlabScales, row_slot};
use crate::gemm::hopper::{ROWS_64, ROWS_128};
use crate::gemm::recomputed;
use crate::gemm::scales::column_scale;

/// Which columns of D and rows of A a thread holds.
pub struct Columns {
    /// Its column of each half of an item; another is 8 further.
    pub column: u32,
    /// q, its lane within a quad: it holds rows `8 j + 2 q` of A and the next.
    pub quad_lane: u32,
    /// Descriptors of its warpgroup's rows of the first half of B, and of A, in stage 0.
    b: u32,
    a: u32,
}

impl Columns {
    /// For a ring whose stage 0 is at `base`.
    #[inline(always)]
    pub fn new(base: u32) -> Self {
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
pub type ColumnScales = [[f32; 2]; 2];

/// Asks for the scales of a thread's columns of an item, of `expert`, whose B has `n`: the first columns are
/// `first`. They are 1 where there are none for whole sums.
///
/// # Safety
/// The contract of the kernels, for an item of the schedule.
#[inline(always)]
pub unsafe fn column_scales(scales: &Scales, expert: u32, first: [u32; 2], n: u32) -> ColumnScales {
    // SAFETY: the caller's contract.
    first.map(|first| [first, first + 8].map(|column| unsafe { column_scale(scales, expert, column, n) }))
}

/// The sums over the slabs of a part, for the two halves of an item.
///
/// # Safety
/// The ring is filled with the slabs of the part, which has up to N rows; all consumer warps call it
/// together.
#[inline(always)]
pub unsafe fn sums<A: Accumulator, S: Shape>(
    ring: &Ring<S>,
    mut position: Position,
    part: &Part,
    columns: &Columns,
    scales: &SlabScales,
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
        if scales.has_b() {
            // SAFETY: the slots of a scaled stage, which the barrier has shown to this thread.
            blocks = unsafe { ring.block_scales(position.stage).read() };
        }
        wgmma::wait::<0>();
        products[0].tie();
        products[1].tie();
        if scales.has_a() {
            // Else the slots of all rows would stay in registers.
            let rows = recomputed(part.rows);
            // SAFETY: as above; the tile has a row.
            let row = #[inline(always)]
            |j: usize, c: usize| unsafe {
                let row = 2 * columns.quad_lane + (8 * j + c) as u32;
                let slot = row_slot(row, part.first_row, rows);
                ring.row_scale(position.stage, slot).read()
            };
            totals[0].fold(
                &products[0],
                #[inline(always)]
                |j, _, c| row(j, c) * blocks[0],
            );
            totals[1].fold(
                &products[1],
                #[inline(always)]
                |j, _, c| row(j, c) * blocks[1],
            );
        } else {
            totals[0].fold(
                &products[0],
                #[inline(always)]
                |_, _, _| blocks[0],
            );
            totals[1].fold(
                &products[1],
                #[inline(always)]
                |_, _, _| blocks[1],
            );
        }
        ring.release(position.stage);
        position = ring.next(position);
        slab += 1;
    }
    (totals, position)
}
