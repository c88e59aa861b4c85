//! The gated end: activation of gate and up, the scale of every row's 128 columns, e4m3.
//!
//! ```text
//!   a row of A is a column of the product: its 128 values are in the lanes of one q, in all eight consumer warps
//!   maximum of a row:   lanes of a warp by shuffles --> shared memory [warp][row] --> one thread a row --> scale [row]
//! ```

use cuda_std::fp8::e4m3_from_f32;
use cuda_std::shared::Shared;
use cuda_std::warp::{FULL_MASK, shfl_xor};
use cuda_std::{memory, sync, thread};

use super::BN;
use super::consume::{ColumnScales, Columns};
use super::share::Part;
use crate::elementwise::activation::functions::activate;
use crate::elementwise::rows::scale::{Divisor, of_group_absmax};
use crate::gemm::hopper::accumulator::Accumulator;
use crate::gemm::hopper::arguments::GatedArguments;
use crate::gemm::hopper::{CONSUMER_BARRIER, CONSUMER_WARPS, CONSUMERS};
use crate::gemm::scales::{column_bias, row_scale};

/// Bytes of shared memory for the exchange of `n` rows: a word for each in every warp, and their scales.
pub const fn shared_bytes(n: u32) -> u32 {
    (CONSUMER_WARPS + 1) * n * 4
}

/// A thread's first column of gate and of up of an item, among all columns of B.
#[inline(always)]
pub fn first_columns(part: &Part, columns: &Columns, arguments: &GatedArguments) -> [u32; 2] {
    let first = part.column * (BN / 2) + columns.column;
    [first, arguments.out.gating.up + first]
}

/// Activates and quantises a thread's part of an item, and stores what exists of it. `shared` is the address
/// of [`shared_bytes`] of `N` that nothing else uses, N being the rows of the tallest tiles. Those of lower
/// ones share the layout: what an item leaves for its last reads must not lie where the next begins to write.
///
/// # Safety
/// The contract of the kernels, for an item of the schedule; all consumer threads call it together.
#[inline(always)]
pub unsafe fn store<A: Accumulator, const N: u32>(
    totals: &[A; 2],
    part: &Part,
    b: ColumnScales,
    columns: &Columns,
    arguments: &GatedArguments,
    shared: u32,
) {
    let GatedArguments { scales, out, intermediate: n, .. } = *arguments;
    let [first, _] = first_columns(part, columns, arguments);
    let row_of = #[inline(always)]
    |j: usize, c: usize| 8 * j as u32 + 2 * columns.quad_lane + c as u32;
    let (up, all) = (out.gating.up, n + out.gating.up);
    // SAFETY: an item of the schedule.
    let bias_of = #[inline(always)]
    |column| unsafe { column_bias(&scales, part.expert, column, all) };
    let [gate_scales, up_scales] = b;
    let gate_bias = [bias_of(first), bias_of(first + 8)];
    let up_bias = [bias_of(up + first), bias_of(up + first + 8)];
    let values = totals[0].zip(
        &totals[1],
        #[inline(always)]
        |j, gate, up| {
            // SAFETY: a row of the schedule.
            let a = [0, 1]
                .map(|c| unsafe { row_scale(&scales, part.first_row + row_of(j, c).min(part.rows - 1)) });
            let factor =
                #[inline(always)]
                |scales: [f32; 2]| [a[0] * scales[0], a[1] * scales[0], a[0] * scales[1], a[1] * scales[1]];
            let (g, u) = (factor(gate_scales), factor(up_scales));
            let scaled = #[inline(always)]
            |sums: &[f32; 4], scales: [f32; 4], bias: [f32; 2]| {
                let at = |i: usize| sums[i] * scales[i] + bias[i / 2];
                [at(0), at(1), at(2), at(3)]
            };
            let (gate, up) = (scaled(gate, g, gate_bias), scaled(up, u, up_bias));
            let [v0, v1, v2, v3] = activate(out.gating.function.raw(), out.gating.limit, &gate, &up);
            let exists = [first < n, first + 8 < n];
            let keep = |value, exists| if exists { value } else { 0.0 };
            [keep(v0, exists[0]), keep(v1, exists[0]), keep(v2, exists[1]), keep(v3, exists[1])]
        },
    );
    let store = #[inline(always)]
    |j: usize, h: usize, c: usize, quotient: f32| {
        let (row, column) = (row_of(j, c), first + 8 * h as u32);
        if row < part.rows && column < n {
            let at = (part.first_row + row) as usize * n as usize + column as usize;
            // SAFETY: the row is the tile's and the column q's.
            unsafe { *out.q.add(at) = e4m3_from_f32(quotient) };
        }
    };
    if !out.given_scale.is_null() {
        // SAFETY: one scale, which nobody writes meanwhile.
        let reciprocal = 1.0 / unsafe { memory::load_nc(out.given_scale) };
        values.for_each(
            #[inline(always)]
            |j, h, c, value| store(j, h, c, value * reciprocal),
        );
        return;
    }
    let (thread, lane) = (thread::thread_idx_x(), thread::lane_id());
    let maxima = Shared::<f32>::from_address(shared);
    let row_scales = maxima.add(CONSUMER_WARPS * N);
    values.for_each_column(
        #[inline(always)]
        |j, c, low, high| {
            let mut largest = f32::max(low.abs(), high.abs());
            largest = f32::max(largest, shfl_xor(FULL_MASK, largest, 4));
            largest = f32::max(largest, shfl_xor(FULL_MASK, largest, 8));
            largest = f32::max(largest, shfl_xor(FULL_MASK, largest, 16));
            if lane < 4 {
                // SAFETY: each warp has N words, written by one lane each; the barrier of the last item lies
                // behind its reads.
                unsafe { maxima.add(thread / 32 * N + row_of(j, c)).write(largest) };
            }
        },
    );
    sync::named(CONSUMER_BARRIER, CONSUMERS);
    if thread < A::N {
        let mut largest = 0.0;
        let mut warp = 0;
        while warp < CONSUMER_WARPS {
            // SAFETY: written before the barrier.
            largest = f32::max(largest, unsafe { maxima.add(warp * N + thread).read() });
            warp += 1;
        }
        let scale = of_group_absmax(largest);
        // SAFETY: a word for each row; every row of the schedule has a scale for each of its groups.
        unsafe {
            row_scales.add(thread).write(scale);
            if thread < part.rows {
                let row = (part.first_row + thread) as usize;
                let group = part.column as usize;
                *out.scales.add(row * out.strides.row as usize + group * out.strides.group as usize) = scale;
            }
        }
    }
    sync::named(CONSUMER_BARRIER, CONSUMERS);
    values.for_each(
        #[inline(always)]
        |j, h, c, value| {
            // SAFETY: written before the barrier.
            let scale = unsafe { row_scales.add(row_of(j, c)).read() };
            let [quotient] = Divisor::new(scale).divide(&[value]);
            store(j, h, c, quotient);
        },
    );
}
