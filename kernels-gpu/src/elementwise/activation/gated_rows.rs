//! The rows that are quantised after GEMM 1: an activation of gate, times up.
//!
//! ```text
//!   x [rows, 2 * intermediate]      | gate 0 .. intermediate | up 0 .. intermediate |
//!                                          column c      and       column c              ->  value c
//! ```

use super::functions::activate;
use crate::abi::ActivationFunction;
use crate::elementwise::rows::chunk::{Chunk, Element, load_chunk, vectorised};
use crate::elementwise::rows::source::Rows;
use cuda_std::code::Code;

/// Rows of gate and up, as rows of activated values.
#[derive(Clone, Copy)]
pub struct GatedRows<T> {
    x: *const T,
    intermediate: u32,
    function: Code<ActivationFunction>,
    vector: bool,
}

impl<T: Element> GatedRows<T> {
    /// The rows of `x [.., 2 * intermediate]` through the activation `function`.
    ///
    /// # Safety
    /// The rows that are asked for exist in `x`; nobody writes them while the grid runs.
    #[inline(always)]
    pub unsafe fn new(x: *const T, intermediate: u32, function: Code<ActivationFunction>) -> Self {
        GatedRows { x, intermediate, function, vector: vectorised(x, intermediate) }
    }
}

impl<T: Element> Rows for GatedRows<T> {
    #[inline(always)]
    fn chunk(&self, row: u32, column: u32) -> Chunk {
        let columns = self.intermediate;
        // SAFETY: the row exists, by the constructor's contract, and holds both halves; `vector` is what
        // `vectorised` says, and holds for the upper half as well, since both are whole chunks.
        let (gate, up) = unsafe {
            let gate = self.x.add(row as usize * 2 * columns as usize);
            let up = gate.add(columns as usize);
            (load_chunk(gate, column, columns, self.vector), load_chunk(up, column, columns, self.vector))
        };
        activate(self.function.raw(), &gate, &up)
    }
}
