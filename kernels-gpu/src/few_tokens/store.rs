//! What becomes of a unit's sums: activated values in GEMM 1, products in GEMM 2. Both go to memory in f32.

use cuda_std::thread;

use super::memory::Memory;
use super::multiply::sum;
use super::tiles::Unit;
use super::{CONSUMERS, FewTokens, Projection};
use crate::elementwise::activation::functions::activate;

/// Stores the values or products of a unit and a tile's rows.
///
/// # Safety
/// The contract of the kernel: the sums of this unit and tile are in `buffer`. All consumers call it together.
#[inline(always)]
pub unsafe fn store(
    arguments: &FewTokens,
    projection: &Projection,
    is_first: bool,
    unit: &Unit,
    tile: u32,
    memory: &Memory,
    buffer: u32,
) {
    let FewTokens { ref second, activated, products, function, tokens, top_k, .. } = *arguments;
    let half_rows = projection.half_rows;
    let columns = if is_first { half_rows } else { 2 * half_rows };
    // SAFETY: the tile exists.
    let rows = unsafe { memory.tile_size(tile) };
    let mut at = thread::thread_idx_x();
    while at < rows * columns {
        let (row, column) = (at / columns, at % columns);
        // SAFETY: the row is the tile's and the column the unit's; one thread stores the value.
        unsafe {
            let pair = memory.tile_pair(tile, row);
            if is_first {
                let gate = sum(half_rows, memory, buffer, 0, column, row);
                let up = sum(half_rows, memory, buffer, 1, column, row);
                let [value] = activate(function.raw(), &[gate], &[up]);
                let to = pair as usize * second.k as usize + (unit.row + column) as usize;
                activated.add(to).write(value);
            } else {
                let (half, within) = (column / half_rows, column % half_rows);
                let value = sum(half_rows, memory, buffer, half, within, row);
                let of_part = (unit.part * tokens * top_k + pair) as usize;
                products.add(of_part * second.rows as usize + (unit.row + column) as usize).write(value);
            }
        }
        at += CONSUMERS;
    }
}
