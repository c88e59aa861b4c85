//! Kernels `quantize_group_*`: one scale for every 128 or 64 columns of a row.
//!
//! `scale = max(absmax(group), 1e-10) / 448`, `q[destination] = e4m3(x[row] / scale)`. Grid: see
//! [`warp_rows`](crate::elementwise::rows::warp_rows).

use super::{Quantize, QuantizedRows};
use crate::elementwise::rows::cleared::Cleared;
use crate::elementwise::rows::destinations::{Destinations, RowTargets};
use crate::elementwise::rows::source::DenseRows;
use crate::elementwise::rows::warp_rows::{FirstRow, GroupScales, THREADS, quantize_warp_rows};
use cuda_std::bf16::{Bf16, F16};
use cuda_std::code::Flag;
use cuda_std::{arguments, grid, kernel};

/// Arguments of the kernels `quantize_group_*`.
#[arguments]
pub struct QuantizeGroup {
    /// What is read, and where it goes.
    pub common: crate::elementwise::quantize::Quantize,
    /// What becomes of the rows.
    pub out: crate::elementwise::quantize::QuantizedRows,
    /// Where the scales go: the groups of every destination.
    pub scales: crate::abi::GroupScalesOut,
    /// Whether the rows were complete before the kernel's predecessor began: the first are then read before
    /// it has ended.
    pub x_is_settled: Flag,
}

macro_rules! quantize_group {
    ($($name:ident: $ty:ident),+) => {$(
        /// Quantises `x`; the scales of a destination go to its row of `scales`.
        ///
        /// # Safety
        /// The arrays are null, where they may be, or have their stated sizes. Nothing written is read.
        #[kernel(threads = THREADS, min_blocks = 8, overlap = within)]
        pub unsafe fn $name(arguments: QuantizeGroup) {
            let QuantizeGroup { common, out, scales, x_is_settled } = arguments;
            let Quantize { x, row_weight, rows, slots, columns, targets } = common;
            let QuantizedRows { q, cleared } = out;
            let RowTargets { sorted_rows, capacity, .. } = targets;
            // SAFETY: the kernel's contract.
            unsafe {
                let source = DenseRows::<$ty>::new(x.cast(), row_weight, slots, columns);
                let scheme = GroupScales::new(scales, columns);
                let settled = if x_is_settled.is_set() { source.settled() } else { None };
                let ahead = FirstRow::quantize(settled, rows, &scheme);
                grid::wait();
                grid::launch_dependents();
                let destinations = Destinations::new(rows, &targets);
                let cleared = Cleared::new(cleared, columns);
                quantize_warp_rows(source, columns, destinations, sorted_rows, capacity, scheme, ahead, q, cleared);
            }
        }
    )+};
}

quantize_group!(quantize_group_bf16: Bf16, quantize_group_f16: F16, quantize_group_f32: f32);
