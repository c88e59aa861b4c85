//! What becomes of a unit's sums: activated values, or products. Both go to memory in f32.

use cuda_std::thread;

use super::memory::Memory;
use super::multiply::{Unit, sum};
use super::{CONSUMERS, FewTokens};
use crate::activation::functions::activate;

/// Joins gate and up of a unit of GEMM 1, and stores the values of the tile's rows.
///
/// # Safety
/// The contract of the kernel: the sums of this unit and tile are in `buffer`. All consumers call it together.
#[inline(always)]
pub unsafe fn activated(arguments: &FewTokens, unit: &Unit, tile: u32, memory: &Memory, buffer: u32) {
    let FewTokens { ref first, ref second, activated, function, .. } = *arguments;
    let columns = first.half_rows;
    // SAFETY: the tile exists.
    let rows = unsafe { memory.tile_size(tile) };
    let mut at = thread::thread_idx_x();
    while at < rows * columns {
        let (row, within) = (at / columns, at % columns);
        // SAFETY: the row is the tile's and the column the unit's; one thread stores the value.
        unsafe {
            let gate = sum(first, memory, buffer, 0, within, row);
            let up = sum(first, memory, buffer, 1, within, row);
            let [value] = activate(function.raw(), &[gate], &[up]);
            let pair = memory.tile_pair(tile, row);
            let to = pair as usize * second.k as usize + (unit.row + within) as usize;
            activated.add(to).write(value);
        }
        at += CONSUMERS;
    }
}

/// Stores the products of a unit of GEMM 2.
///
/// # Safety
/// As [`activated`].
#[inline(always)]
pub unsafe fn products(arguments: &FewTokens, unit: &Unit, tile: u32, memory: &Memory, buffer: u32) {
    let FewTokens { ref second, products, tokens, top_k, .. } = *arguments;
    let columns = 2 * second.half_rows;
    // SAFETY: the tile exists.
    let rows = unsafe { memory.tile_size(tile) };
    let mut at = thread::thread_idx_x();
    while at < rows * columns {
        let (row, column) = (at / columns, at % columns);
        let (half, within) = (column / second.half_rows, column % second.half_rows);
        // SAFETY: the row is the tile's and the column the unit's; one thread stores the value.
        unsafe {
            let value = sum(second, memory, buffer, half, within, row);
            let pair = unit.part * tokens * top_k + memory.tile_pair(tile, row);
            let to = pair as usize * second.rows as usize + (unit.row + column) as usize;
            products.add(to).write(value);
        }
        at += CONSUMERS;
    }
}
