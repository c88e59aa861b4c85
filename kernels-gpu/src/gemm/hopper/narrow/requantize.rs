//! The gated end: activation of gate and up, the scale of every row's 128 columns, e4m3.
//!
//! ```text
//!   a row of A is a column of the product: its 128 values are in the lanes of one q of all eight warps
//!   maximum of a row: lanes by shuffles --> shared memory [warp][row] --> one thread a row --> scale [row]
//! ```

use cuda_std::fp8::e4m3_from_f32;
use cuda_std::shared::Shared;
use cuda_std::warp::{FULL_MASK, shfl_xor};
use cuda_std::{memory, sync, thread};

use super::accumulator::Accumulator;
use super::units::Part;
use super::{ColumnScales, Columns, End, Launch};
use crate::elementwise::activation::functions::activate;
use crate::elementwise::rows::scale::{Divisor, of_group_absmax};
use crate::gemm::hopper::arguments::{GatedArguments, HopperGated};
use crate::gemm::hopper::weights::Weights;
use crate::gemm::hopper::{CONSUMER_BARRIER, CONSUMER_WARPS, CONSUMERS, GATED_COLUMNS};
use crate::gemm::scales::{column_bias, row_scale};

/// Shared memory in which the warps exchange maxima and scales of rows, of as many rows as the kernel's
/// tallest tiles have. Lower ones share the layout: what an item leaves for its last reads must not lie where
/// the next begins to write.
#[derive(Clone, Copy)]
pub struct Exchange {
    /// Of each row in every warp.
    maxima: Shared<f32>,
    rows: u32,
}

impl Exchange {
    /// Bytes for tiles of up to `rows` rows: a word for each in every warp, and their scales.
    pub const fn bytes(rows: u32) -> u32 {
        (CONSUMER_WARPS + 1) * rows * 4
    }

    /// At an address from which on nothing else uses the [`bytes`](Self::bytes).
    #[inline(always)]
    pub fn new(address: u32, rows: u32) -> Self {
        Self { maxima: Shared::from_address(address), rows }
    }
}

/// 128 columns of the intermediate: gate and up in one item.
pub struct Gated {
    launch: HopperGated,
    arguments: GatedArguments,
}

impl Gated {
    #[inline(always)]
    pub fn new(launch: HopperGated) -> Self {
        Self { launch, arguments: launch.end(launch.slab_scales()) }
    }
}

impl End for Gated {
    const COLUMNS: u32 = GATED_COLUMNS;

    #[inline(always)]
    fn launch(&self) -> Launch {
        let HopperGated { a, scales, schedule, partials, k, schedule_is_settled, .. } = self.launch;
        let (b, slab_scales) = (self.launch.matrix(), self.arguments.slab_scales);
        Launch { a, b, scales, slab_scales, schedule, partials, k, schedule_is_settled }
    }

    #[inline(always)]
    fn n(&self) -> u32 {
        self.arguments.intermediate
    }

    #[inline(always)]
    fn b_columns(&self) -> u32 {
        self.arguments.intermediate + self.arguments.out.gating.up
    }

    #[inline(always)]
    fn weights(&self, part: &Part) -> Weights {
        self.arguments.weights(part.expert, part.column * GATED_COLUMNS)
    }

    #[inline(always)]
    fn first_columns(&self, part: &Part, columns: &Columns) -> [u32; 2] {
        let first = part.column * GATED_COLUMNS + columns.column;
        [first, self.arguments.out.gating.up + first]
    }

    #[inline(always)]
    fn takes_parts(&self) -> bool {
        false
    }

    #[inline(always)]
    unsafe fn finish<A: Accumulator>(
        &self,
        totals: &[A; 2],
        part: &Part,
        b: ColumnScales,
        columns: &Columns,
        exchange: Exchange,
    ) {
        let [first, _] = self.first_columns(part, columns);
        // SAFETY: the caller's contract.
        unsafe { store(totals, part, first, b, columns, &self.arguments, exchange) }
    }
}

/// Activates and quantises a thread's part of an item from column `first` on, and stores what exists of it.
///
/// # Safety
/// As [`End::finish`].
#[inline(always)]
unsafe fn store<A: Accumulator>(
    totals: &[A; 2],
    part: &Part,
    first: u32,
    b: ColumnScales,
    columns: &Columns,
    arguments: &GatedArguments,
    exchange: Exchange,
) {
    let GatedArguments { scales, out, intermediate: n, .. } = *arguments;
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
            if 8 * j as u32 >= part.rows {
                return [0.0; 4];
            }
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
    let Exchange { maxima, rows } = exchange;
    let row_scales = maxima.add(CONSUMER_WARPS * rows);
    values.for_each_column(
        #[inline(always)]
        |j, c, low, high| {
            if 8 * j as u32 >= part.rows {
                return;
            }
            let mut largest = f32::max(low.abs(), high.abs());
            largest = f32::max(largest, shfl_xor(FULL_MASK, largest, 4));
            largest = f32::max(largest, shfl_xor(FULL_MASK, largest, 8));
            largest = f32::max(largest, shfl_xor(FULL_MASK, largest, 16));
            if lane < 4 {
                // SAFETY: each warp has a word for each row, written by one lane; the barrier of the last
                // item lies behind its reads.
                unsafe { maxima.add(thread / 32 * rows + row_of(j, c)).write(largest) };
            }
        },
    );
    sync::named(CONSUMER_BARRIER, CONSUMERS);
    if thread < part.rows {
        let mut largest = 0.0;
        let mut warp = 0;
        while warp < CONSUMER_WARPS {
            // SAFETY: written before the barrier.
            largest = f32::max(largest, unsafe { maxima.add(warp * rows + thread).read() });
            warp += 1;
        }
        let scale = of_group_absmax(largest);
        // SAFETY: a word for each row; every row of the schedule has a scale for each of its groups.
        unsafe {
            row_scales.add(thread).write(scale);
            let row = (part.first_row + thread) as usize;
            let group = part.column as usize;
            *out.scales.add(row * out.strides.row as usize + group * out.strides.group as usize) = scale;
        }
    }
    sync::named(CONSUMER_BARRIER, CONSUMERS);
    values.for_each(
        #[inline(always)]
        |j, h, c, value| {
            if row_of(j, c) >= part.rows {
                return;
            }
            // SAFETY: written before the barrier.
            let scale = unsafe { row_scales.add(row_of(j, c)).read() };
            let [quotient] = Divisor::new(scale).divide(&[value]);
            store(j, h, c, quotient);
        },
    );
}
