//! What becomes of a unit's sums: activated values in GEMM 1, products in GEMM 2. Both go to memory in f32,
//! where whoever needs them waits for them.

use cuda_std::thread;

use super::control::{self, Set};
use super::inputs::first_row;
use super::layout::Layout;
use super::memory::Memory;
use super::multiply::sum;
use super::queue::Unit;
use super::{FINISHERS, FIRST_FINISHER, FewTokens, Projection};
use crate::elementwise::activation::functions::activate;
use crate::gemm::recomputed;

/// Stores the values or products of a unit and its tile's rows.
///
/// # Safety
/// The contract of the kernel: the sums of this unit are in `buffer`. All threads that finish units call it.
#[inline(always)]
pub unsafe fn store<L: Layout>(
    arguments: &FewTokens,
    projection: &Projection,
    is_first: bool,
    set: &Set,
    unit: &Unit,
    memory: &Memory,
    buffer: u32,
) {
    let FewTokens { ref second, limit, function, tokens, top_k, .. } = *arguments;
    // SAFETY: the unit's tile exists, and a barrier has brought the tables.
    let rows = unsafe { memory.tile_size(unit.tile) };
    let log2 = projection.row_groups_log2();
    let columns_log2 = log2 + 3;
    // Of a power of two, which a division would not know.
    let split = |at: u32, log2: u32| (at >> log2, at & ((1 << log2) - 1));
    let mut at = recomputed(thread::thread_idx_x()) - FIRST_FINISHER;
    let all = if is_first { rows << columns_log2 } else { rows << (columns_log2 + 1) };
    while at < all {
        // SAFETY: the row is the tile's and the column the unit's; one thread fills the word.
        unsafe {
            if is_first {
                let (row, column) = split(at, columns_log2);
                let pair = memory.tile_pair(unit.tile, row);
                let input = first_row(arguments, pair);
                let gate = sum::<L>(log2, memory, buffer, 0, column, input);
                let up = sum::<L>(log2, memory, buffer, 1, column, input);
                let [value] = activate(function.raw(), limit, &[gate], &[up]);
                let to = pair as usize * second.k as usize + (unit.row + column) as usize;
                control::fill(set.activated.add(to), value);
            } else {
                let (row, column) = split(at, columns_log2 + 1);
                let (half, within) = split(column, columns_log2);
                let value = sum::<L>(log2, memory, buffer, half, within, row);
                let pair = memory.tile_pair(unit.tile, row);
                let of_part = (unit.part * tokens * top_k + pair) as usize;
                let to = of_part * second.rows as usize + (unit.row + column) as usize;
                control::fill(set.products.add(to), value);
            }
        }
        at += FINISHERS;
    }
}
