//! The rows that are quantised after GEMM 1: an activation of gate, times up.
//!
//! ```text
//!   x [rows, 2 * intermediate]      | gate 0 .. intermediate | up 0 .. intermediate |
//!                                          column c      and       column c              ->  value c
//!   x [rows, intermediate]          | up 0 .. intermediate |            without a gate, which is up then
//! ```

use super::functions::activate;
use crate::abi::Gating;
use crate::elementwise::rows::chunk::{Chunk, Element, load_chunk, vectorised};
use crate::elementwise::rows::source::Rows;

/// Rows of gate and up, as rows of activated values.
#[derive(Clone, Copy)]
pub struct GatedRows<T> {
    x: *const T,
    intermediate: u32,
    gating: Gating,
    vector: bool,
}

impl<T: Element> GatedRows<T> {
    /// The rows of `x [.., intermediate + gating.up]`, activated.
    ///
    /// # Safety
    /// The rows that are asked for exist in `x`; nobody writes them while the grid runs.
    #[inline(always)]
    pub unsafe fn new(x: *const T, intermediate: u32, gating: Gating) -> Self {
        GatedRows { x, intermediate, gating, vector: vectorised(x, intermediate) }
    }
}

impl<T: Element> Rows for GatedRows<T> {
    #[inline(always)]
    fn chunk(&self, row: u32, column: u32) -> Chunk {
        let columns = self.intermediate;
        let Gating { up, limit, function } = self.gating;
        // SAFETY: the row exists, by the constructor's contract, and holds both halves; `vector` is what
        // `vectorised` says, and holds for the upper half as well, since both are whole chunks.
        let (gate, up) = unsafe {
            let gate = self.x.add(row as usize * (columns + up) as usize);
            let up = gate.add(up as usize);
            (load_chunk(gate, column, columns, self.vector), load_chunk(up, column, columns, self.vector))
        };
        activate(function.raw(), limit, &gate, &up)
    }
}
