//! Kernel `activation_plain`: activation to bf16, for a second projection that is not quantised: shared
//! experts in bf16.
//!
//! ```text
//!   x f32 [rows, 2 I] --> activation(gate) * up * sigmoid(row logit) --> out bf16 [rows, I]       one rounding
//! ```
//!
//! Grid: as [`tensor`](super::tensor).

use super::functions::sigmoid_weighted;
use super::gated_rows::GatedRows;
use crate::elementwise::rows::chunk::{CHUNK, WARP_COLUMNS, store_chunk, vectorised};
use crate::elementwise::rows::source::Rows;
use crate::elementwise::rows::warp_rows::{THREADS, WARPS};
use cuda_std::bf16::Bf16;
use cuda_std::{arguments, kernel, memory, thread};

/// Arguments of the kernel `activation_plain`.
#[arguments]
pub struct ActivatePlain {
    /// f32 `[rows, intermediate + gating.up]`.
    pub x: *const f32,
    /// f32 `[rows]`: each row is multiplied by the sigmoid of its own; null for none.
    pub row_logits: *const f32,
    /// bf16 `[rows, intermediate]`.
    pub out: *mut Bf16,
    /// Rows of `x` and `out`.
    pub rows: u32,
    /// I.
    pub intermediate: u32,
    /// What joins gate and up.
    pub gating: crate::abi::Gating,
}

/// Activates the rows of `x`.
///
/// # Safety
/// The arrays are null, where they may be, or have their stated sizes. Nothing written is read.
#[kernel(threads = THREADS, min_blocks = 6)]
pub unsafe fn activation_plain(arguments: ActivatePlain) {
    let ActivatePlain { x, row_logits, out, rows, intermediate, gating } = arguments;
    // SAFETY: the kernel's contract.
    let source = unsafe { GatedRows::new(x, intermediate, gating) };
    let column = thread::block_idx_y() * WARP_COLUMNS + thread::lane_id() * CHUNK;
    let vector = vectorised(out, intermediate);
    let mut row = thread::block_idx_x() * WARPS + thread::warp_id();
    while row < rows {
        let mut values = source.chunk(row, column);
        // SAFETY: the row exists, and this lane alone has its columns.
        unsafe {
            if !row_logits.is_null() {
                let logit = memory::load_nc(row_logits.add(row as usize));
                values = values.map(|value| sigmoid_weighted(value, logit));
            }
            let to = out.add(row as usize * intermediate as usize);
            store_chunk(to, column, intermediate, vector, &values);
        }
        row += thread::grid_dim_x() * WARPS;
    }
}
