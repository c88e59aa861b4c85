//! What is quantised: rows of values, chunk by chunk.

use super::chunk::{Chunk, Element, load_chunk, vectorised};
use cuda_std::memory;

/// A source of rows of f32 values.
pub trait Rows: Copy {
    /// The values of `row` at `column..column + 8`, zeros past the last column.
    fn chunk(&self, row: u32, column: u32) -> Chunk;
}

/// The rows of a matrix, each optionally times a weight of its own, rounded to the matrix's type as the models do it.
#[derive(Clone, Copy)]
pub struct DenseRows<T> {
    x: *const T,
    row_weight: *const f32,
    columns: u32,
    vector: bool,
}

impl<T: Element> DenseRows<T> {
    /// The rows of `x`, which have `columns` columns each.
    ///
    /// # Safety
    /// The rows that are asked for exist in `x`, and in `row_weight` unless that is null; nobody writes them while the grid runs.
    #[inline(always)]
    pub unsafe fn new(x: *const T, row_weight: *const f32, columns: u32) -> Self {
        DenseRows { x, row_weight, columns, vector: vectorised(x, columns) }
    }
}

impl<T: Element> Rows for DenseRows<T> {
    #[inline(always)]
    fn chunk(&self, row: u32, column: u32) -> Chunk {
        // SAFETY: the row exists, by the constructor's contract; `vector` is what `vectorised` says.
        let values = unsafe {
            load_chunk(self.x.add(row as usize * self.columns as usize), column, self.columns, self.vector)
        };
        if self.row_weight.is_null() {
            return values;
        }
        // SAFETY: the row exists, by the constructor's contract.
        let weight = unsafe { memory::load_nc(self.row_weight.add(row as usize)) };
        values.map(|value| T::from_f32(value * weight).to_f32())
    }
}
