//! Kernels `quantize_tensor_*`: one scale for the whole tensor, given or from the partial maxima of
//! `absmax_*`.
//!
//! `q[destination] = e4m3(x[row] * (1 / scale))`. Grid: see
//! [`warp_rows`](crate::elementwise::rows::warp_rows).

use super::{Quantize, QuantizedRows};
use crate::elementwise::rows::cleared::Cleared;
use crate::elementwise::rows::destinations::{Destinations, RowTargets};
use crate::elementwise::rows::source::DenseRows;
use crate::elementwise::rows::warp_rows::{FirstRow, THREADS, TensorScale, quantize_warp_rows};
use cuda_std::bf16::{Bf16, F16};
use cuda_std::code::Flag;
use cuda_std::{arguments, grid, kernel};

/// Arguments of the kernels `quantize_tensor_*`.
#[arguments]
pub struct QuantizeTensor {
    /// What is read, and where it goes.
    pub common: crate::elementwise::quantize::Quantize,
    /// f32, the scale; null where it is that of the largest of `partials`.
    pub scale: *const f32,
    /// f32 `[partial_count]`.
    pub partials: *const f32,
    /// f32, to which the scale goes where it is computed.
    pub scale_out: *mut f32,
    /// What becomes of the rows.
    pub out: crate::elementwise::quantize::QuantizedRows,
    /// Partial maxima.
    pub partial_count: u32,
    /// Whether the rows were complete before the kernel's predecessor began: the first are then read before
    /// it has ended.
    pub x_is_settled: Flag,
}

macro_rules! quantize_tensor {
    ($($name:ident: $ty:ident),+) => {$(
        /// Quantises `x`. The scale is `*scale`; where `scale` is null, the one for the largest of the
        /// partial maxima, which goes to `*scale_out`. Only with a given scale may `x_is_settled` hold: see
        /// [`quantize`](super).
        ///
        /// # Safety
        /// The arrays are null, where they may be, or have their stated sizes. Nothing written is read.
        #[kernel(threads = THREADS, min_blocks = 8, overlap = within)]
        pub unsafe fn $name(arguments: QuantizeTensor) {
            let QuantizeTensor { common, scale, partials, scale_out, out, partial_count, x_is_settled } = arguments;
            let Quantize { x, row_weight, rows, slots, columns, targets } = common;
            let QuantizedRows { q, cleared } = out;
            let RowTargets { sorted_rows, capacity, .. } = targets;
            // SAFETY: the kernel's contract.
            unsafe {
                let source = DenseRows::<$ty>::new(x.cast(), row_weight, slots, columns);
                if x_is_settled.is_clear() {
                    grid::wait();
                }
                let scheme = TensorScale::given_or_from_partials(scale, partials, partial_count, scale_out);
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

quantize_tensor!(quantize_tensor_bf16: Bf16, quantize_tensor_f16: F16, quantize_tensor_f32: f32);
