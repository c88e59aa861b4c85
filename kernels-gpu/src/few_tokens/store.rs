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
    let mut at = recomputed(thread::thread_idx_x()) - FIRST_FINISHER;
    while at < rows << columns_log2 {
        // Of a power of two, which a division would not know.
        let (row, column) = (at >> columns_log2, at & ((1 << columns_log2) - 1));
        // SAFETY: the row is the tile's and the column the unit's; one thread fills the word.
        unsafe {
            let pair = memory.tile_pair(unit.tile, row);
            let input = if is_first { first_row(arguments, pair) } else { row };
            // Gate and up, or two columns of the products.
            let [first, second_half] = [0, 1].map(|half| sum::<L>(log2, memory, buffer, half, column, input));
            if is_first {
                let [value] = activate(function.raw(), limit, &[first], &[second_half]);
                let to = pair as usize * second.k as usize + (unit.row + column) as usize;
                control::fill(set.activated.add(to), value);
            } else {
                let of_part = (unit.part * tokens * top_k + pair) as usize;
                let to = set.products.add(of_part * second.rows as usize + (unit.row + column) as usize);
                control::fill(to, first);
                control::fill(to.add(projection.half_rows as usize), second_half);
            }
        }
        at += FINISHERS;
    }
}
