//! The scales that apply to whole sums: asked for before an item's first slab, applied behind its last.
//!
//! ```text
//!   item of a warpgroup     | ask | slab 0 | slab 1 | ..                       | apply, store |
//!   scales of two rows      L2 ------------> registers of the thread ---------------> * sums
//!   scales of 256 columns   L2 ------------> two a thread ---> shared memory ---------> * sums
//! ```
//!
//! A thread has sums of 64 columns. Loaded one by one at the end, their scales cost sixteen trips to L2 in a
//! row, as long as ten slabs: there are no registers to have more on their way. So the 128 threads of a
//! warpgroup load two columns each, and share them.

use cuda_std::code::Code;
use cuda_std::shared::Shared;
use cuda_std::{memory, sync, thread, unroll};

use super::{End, Rows};
use crate::abi::{AScaleKind, BScaleKind, Scales};
use crate::gemm::hopper::CONSUMER_BARRIER;
use crate::gemm::recomputed;
use crate::schedule::work::Tile;

/// Columns of B in an item, gate and up together.
const COLUMNS: u32 = 256;

/// Where a warpgroup shares the scales of an item's columns: in two places in turn. Who writes an item's has
/// passed the barrier of the one before, and so has everybody read those of the one before that, which lay in
/// the same place.
pub struct Shelf {
    first: Shared<f32>,
    /// 0 or [`COLUMNS`].
    place: u32,
    warpgroup: u32,
}

impl Shelf {
    /// Bytes for both warpgroups.
    pub const BYTES: u32 = 2 * 2 * COLUMNS * 4;

    /// The calling consumer's, of those at `address`.
    #[inline(always)]
    pub fn new(address: u32, warpgroup: u32) -> Self {
        Self { first: Shared::from_address(address + warpgroup * (2 * COLUMNS * 4)), place: 0, warpgroup }
    }
}

/// The kinds of scales. Asked each time: answers that are kept for all items take registers.
#[inline(always)]
fn kinds(scales: &Scales) -> (Code<AScaleKind>, Code<BScaleKind>) {
    (Code::from_raw(recomputed(scales.a_kind.raw())), Code::from_raw(recomputed(scales.b_kind.raw())))
}

/// A thread's share of an item's scales, on their way.
pub struct EndScales {
    /// Of its two rows.
    rows: [f32; 2],
    /// Of two of its warpgroup's columns: one of the first 128, and the same of the others.
    columns: [f32; 2],
}

impl EndScales {
    /// Asks for the scales of an item. Rows and columns past the end get those of the last, and nobody takes
    /// their results.
    ///
    /// # Safety
    /// The contract of the kernels, for a tile of the schedule.
    #[inline(always)]
    pub unsafe fn ask(end: &impl End, tile: &Tile, rows: &Rows) -> Self {
        let scales = *end.scales();
        let (a_kind, b_kind) = kinds(&scales);
        let mut asked = Self { rows: [1.0; 2], columns: [1.0; 2] };
        // SAFETY: there is a scale for every row of the schedule and for every column of every expert, or one
        // of the call and one an expert.
        unsafe {
            if a_kind.is_not(AScaleKind::Group) {
                asked.rows = [rows.row, rows.row + 8].map(|row| {
                    let row = tile.first_row + row.min(tile.rows - 1);
                    memory::load_nc(scales.of_row(a_kind.is(AScaleKind::Row), row))
                });
            }
            if b_kind.is_not(BScaleKind::Block) {
                let (first, n) = end.columns(tile);
                let thread = thread::thread_idx_x() % 128;
                asked.columns = first.map(|first| {
                    let column = (first + thread).min(n - 1);
                    let per_column = b_kind.is(BScaleKind::Channel);
                    memory::load_nc(scales.of_column(per_column, tile.expert, column, n))
                });
            }
        }
        asked
    }

    /// Adds the bias, if there is one, to a thread's scaled sums. Columns past the end get that of the last.
    ///
    /// Loaded here one after the other, and not shared beforehand as the scales are: few models have one.
    ///
    /// # Safety
    /// The contract of the kernels, for a tile of the schedule.
    #[inline(always)]
    pub unsafe fn add_bias(total: &mut [f32; 128], end: &impl End, tile: &Tile, rows: &Rows) {
        if end.scales().bias.is_null() {
            return;
        }
        let (first, n) = end.columns(tile);
        let bias = end.scales().bias.wrapping_add(tile.expert as usize * n as usize);
        unroll!(for j in 0..16 {
            let pair = #[inline(always)]
            |first: u32| {
                let column = (first + 8 * j + 2 * rows.quad_lane).min(n - 2);
                // SAFETY: a bias for every column of every expert; N and the column are even.
                unsafe { memory::load_nc(bias.add(column as usize).cast::<[f32; 2]>()) }
            };
            let (left, right) = (pair(first[0]), pair(first[1]));
            unroll!(for e in 0..4 {
                total[(4 * j + e) as usize] += left[e % 2];
                total[(64 + 4 * j + e) as usize] += right[e % 2];
            });
        });
    }

    /// A thread's sums times the scales. All threads of the warpgroup call it together.
    #[inline(always)]
    pub fn apply(self, total: &[f32; 128], shelf: &mut Shelf, scales: &Scales, rows: &Rows) -> [f32; 128] {
        let mut total = *total;
        // Passes that some launches need not make are branches of their own.
        let (a_kind, b_kind) = kinds(scales);
        if a_kind.is_not(AScaleKind::Group) {
            unroll!(for i in 0..128 {
                total[i] *= self.rows[i / 2 % 2];
            });
        }
        if b_kind.is_not(BScaleKind::Block) {
            let thread = thread::thread_idx_x() % 128;
            let columns = shelf.first.add(shelf.place);
            // SAFETY: the warpgroup's own memory; its threads have read what lay here before the last
            // barrier.
            unsafe {
                columns.add(thread).write(self.columns[0]);
                columns.add(128 + thread).write(self.columns[1]);
            }
            sync::named(CONSUMER_BARRIER + shelf.warpgroup, 128);
            let pairs = columns.cast::<[f32; 2]>().add(rows.quad_lane);
            unroll!(for j in 0..16 {
                // SAFETY: written before the barrier.
                let (left, right) = unsafe { (pairs.add(4 * j).read(), pairs.add(64 + 4 * j).read()) };
                unroll!(for e in 0..4 {
                    total[4 * j + e] *= left[e % 2];
                    total[64 + 4 * j + e] *= right[e % 2];
                });
            });
            shelf.place ^= COLUMNS;
        }
        total
    }
}
