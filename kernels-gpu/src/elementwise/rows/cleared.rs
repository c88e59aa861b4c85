//! Rows that are set to 0 on the way, for a later kernel of the layer to add to: so they cost no launch of
//! their own.

use super::chunk::{CHUNK, store_chunk, vectorised};

/// `[rows, columns]` f32, as many as are quantised; null where nothing is to be cleared.
#[derive(Clone, Copy)]
pub struct Cleared {
    rows: *mut f32,
    columns: u32,
    vector: bool,
}

impl Cleared {
    /// No rows.
    pub const NONE: Self = Cleared { rows: core::ptr::null_mut(), columns: 0, vector: false };

    /// The rows at `rows`.
    ///
    /// # Safety
    /// `rows` is null, or has every row that [`chunk`](Self::chunk) is called for, writable, and nobody else
    /// accesses them.
    #[inline(always)]
    pub unsafe fn new(rows: *mut f32, columns: u32) -> Self {
        Cleared { rows, columns, vector: vectorised(rows, columns) }
    }

    /// Clears eight columns of `row` from `column` on, as far as they exist.
    #[inline(always)]
    pub fn chunk(&self, row: u32, column: u32) {
        if self.rows.is_null() {
            return;
        }
        // SAFETY: the row exists, by the constructor's contract; `vector` is what `vectorised` says.
        unsafe {
            let row = self.rows.add(row as usize * self.columns as usize);
            store_chunk(row, column, self.columns, self.vector, &[0.0; CHUNK as usize]);
        }
    }
}
