//! What is quantised: rows of values, chunk by chunk.

use super::chunk::{CHUNK, Chunk, Element, load_chunk, vectorised};
use cuda_std::memory;

/// A source of rows of f32 values.
pub trait Rows: Copy {
    /// The values of `row` at `column..column + 8`, zeros past the last column.
    fn chunk(&self, row: u32, column: u32) -> Chunk;
}

/// The rows of a matrix, each optionally times a weight of its own, rounded to the matrix's type as the
/// models do it.
#[derive(Clone, Copy)]
pub struct DenseRows<T> {
    x: *const T,
    row_weight: *const f32,
    slots: u32,
    columns: u32,
    vector: bool,
}

impl<T: Element> DenseRows<T> {
    /// The rows of `x`, which have `columns` columns each, each `slots` times, at least once.
    ///
    /// # Safety
    /// The rows that are asked for exist in `x`, and in `row_weight` unless that is null; nobody writes them
    /// while the grid runs.
    #[inline(always)]
    pub unsafe fn new(x: *const T, row_weight: *const f32, slots: u32, columns: u32) -> Self {
        DenseRows { x, row_weight, slots, columns, vector: vectorised(x, columns) }
    }

    /// The row of `x` that `row` is made of.
    #[inline(always)]
    fn start(&self, row: u32) -> *const T {
        let row = if self.slots == 1 { row } else { row / self.slots.max(1) };
        self.x.wrapping_add(row as usize * self.columns as usize)
    }

    /// The same rows, to be read before the grid waits for its predecessor. None where a chunk takes more
    /// than one access: such matrices are rare, and not worth the code.
    ///
    /// # Safety
    /// Rows and weights were written before the kernel that precedes this one in the stream began.
    #[inline(always)]
    pub unsafe fn settled(self) -> Option<SettledRows<T>> {
        if self.vector { Some(SettledRows(self)) } else { None }
    }

    /// The values of a chunk of `row`, times the weight that `load` finds, if rows have weights.
    #[inline(always)]
    fn weighted(&self, row: u32, values: Chunk, load: impl Fn(*const f32) -> f32) -> Chunk {
        if self.row_weight.is_null() {
            return values;
        }
        let weight = load(self.row_weight.wrapping_add(row as usize));
        values.map(|value| T::from_f32(value * weight).to_f32())
    }
}

/// Rows that were complete before the kernel's predecessor began, read from L2: L1 may hold what stood there
/// in an earlier layer.
#[derive(Clone, Copy)]
pub struct SettledRows<T>(DenseRows<T>);

impl<T: Element> Rows for DenseRows<T> {
    #[inline(always)]
    fn chunk(&self, row: u32, column: u32) -> Chunk {
        // SAFETY: the row exists, by the constructor's contract; `vector` is what `vectorised` says.
        let values = unsafe { load_chunk(self.start(row), column, self.columns, self.vector) };
        // SAFETY: the row exists, by the constructor's contract.
        self.weighted(row, values, |weight| unsafe { memory::load_nc(weight) })
    }
}

impl<T: Element> Rows for SettledRows<T> {
    #[inline(always)]
    fn chunk(&self, row: u32, column: u32) -> Chunk {
        let mut values = [0.0; CHUNK as usize];
        if column < self.0.columns {
            // SAFETY: the row exists, by the constructor's contract. It is whole chunks, all aligned, or
            // there were no such rows.
            values = unsafe { T::load_strong(self.0.start(row).add(column as usize)) };
        }
        // SAFETY: the row exists, by the constructor's contract.
        self.0.weighted(row, values, |weight| unsafe { memory::load_strong(weight) })
    }
}
