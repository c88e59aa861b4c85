//! The plain end: end scales, conversion to D's type.
//!
//! A lane has two columns of D that are 8 apart, of rows of A two by two. 16-bit elements are exchanged among
//! the lanes, so that each has four neighbours of a row. f32 is stored one element at a time, and sums by
//! token are added to in the same way: eight lanes of a warp have eight neighbours of a row.

use cuda_std::atomic::{self, Scope};
use cuda_std::bf16::{bf16x2_from_f32, f16x2_from_f32};
use cuda_std::{memory, thread};

use super::accumulator::Accumulator;
use super::requantize::Exchange;
use super::units::Part;
use super::{BN, ColumnScales, Columns, End, Launch};
use crate::abi::{AScaleKind, OutType};
use crate::gemm::hopper::arguments::HopperGemm;
use crate::gemm::hopper::weights::Weights;
use crate::gemm::quad::columns_of_a_row;
use crate::gemm::scales::{column_bias, row_scale};

/// D as it is, or sums by token.
pub struct Plain(pub HopperGemm);

impl End for Plain {
    const COLUMNS: u32 = BN;

    #[inline(always)]
    fn launch(&self) -> Launch {
        let HopperGemm { a, scales, schedule, partials, k, schedule_is_settled, .. } = self.0;
        let (b, slab_scales) = (self.0.matrix(), self.0.slab_scales());
        Launch { a, b, scales, slab_scales, schedule, partials, k, schedule_is_settled }
    }

    #[inline(always)]
    fn n(&self) -> u32 {
        self.0.n
    }

    #[inline(always)]
    fn b_columns(&self) -> u32 {
        self.0.n
    }

    #[inline(always)]
    fn weights(&self, part: &Part) -> Weights {
        self.0.weights(part.expert, part.column * BN)
    }

    #[inline(always)]
    fn first_columns(&self, part: &Part, columns: &Columns) -> [u32; 2] {
        let first = part.column * BN + columns.column;
        [first, first + BN / 2]
    }

    /// Sums by token take a part as well as the whole.
    #[inline(always)]
    fn takes_parts(&self) -> bool {
        self.0.out_type.is(OutType::TokenSums)
    }

    /// Writes a thread's part of an item, as far as rows and columns exist.
    #[inline(always)]
    unsafe fn finish<A: Accumulator>(
        &self,
        totals: &[A; 2],
        part: &Part,
        b: ColumnScales,
        columns: &Columns,
        _: Exchange,
    ) {
        let [left, right] = self.first_columns(part, columns);
        // SAFETY: the caller's contract.
        unsafe {
            store_half(&totals[0], part, left, b[0], columns, &self.0);
            store_half(&totals[1], part, right, b[1], columns, &self.0);
        }
    }
}

/// Writes a thread's part of half an item, from column `first` on.
///
/// # Safety
/// As [`End::finish`].
#[inline(always)]
unsafe fn store_half<A: Accumulator>(
    total: &A,
    part: &Part,
    first: u32,
    b: [f32; 2],
    columns: &Columns,
    arguments: &HopperGemm,
) {
    let HopperGemm { scales, out, n, out_type, .. } = arguments;
    // SAFETY: an item of the schedule.
    let mut bias = unsafe {
        [column_bias(scales, part.expert, first, *n), column_bias(scales, part.expert, first + 8, *n)]
    };
    if out_type.is(OutType::TokenSums) {
        // Of an item that was cut, its head adds it.
        if part.first_slab > 0 {
            bias = [0.0; 2];
        }
        total.for_each_column(
            #[inline(always)]
            |j, c, low, high| {
                let row = 8 * j as u32 + 2 * columns.quad_lane + c as u32;
                if row >= part.rows {
                    return;
                }
                let row = part.first_row + row;
                // SAFETY: the row is the tile's, its token's sums exist, and the columns are theirs.
                unsafe {
                    let (Some(token), weight) = arguments.tokens.of_row(row) else { return };
                    let to = out.cast::<f32>().add(token as usize * *n as usize + first as usize);
                    let factor = row_scale(scales, row) * weight;
                    if first < *n {
                        atomic::reduce_add(to, low * factor * b[0] + bias[0] * weight, Scope::Gpu);
                    }
                    if first + 8 < *n {
                        atomic::reduce_add(to.add(8), high * factor * b[1] + bias[1] * weight, Scope::Gpu);
                    }
                }
            },
        );
        return;
    }
    if out_type.is_not(OutType::F32) {
        // SAFETY: as above.
        return unsafe { store_16_bits(total, part, first, b, bias, columns, arguments) };
    }
    total.for_each(
        #[inline(always)]
        |j, h, c, sum| {
            let (row, column) = (8 * j as u32 + 2 * columns.quad_lane + c as u32, first + 8 * h as u32);
            if row >= part.rows || column >= *n {
                return;
            }
            let row = part.first_row + row;
            // SAFETY: the row is the tile's and the column D's.
            unsafe {
                let value = sum * row_scale(scales, row) * b[h] + bias[h];
                *out.cast::<f32>().add(row as usize * *n as usize + column as usize) = value;
            }
        },
    );
}

/// As [`store_half`] for bf16 and f16; `b` are the scales of the thread's columns, `bias` what is added to
/// them.
///
/// # Safety
/// As [`End::finish`]; all lanes of the warp call it together.
#[inline(always)]
unsafe fn store_16_bits<A: Accumulator>(
    total: &A,
    part: &Part,
    first: u32,
    b: [f32; 2],
    bias: [f32; 2],
    columns: &Columns,
    arguments: &HopperGemm,
) {
    let HopperGemm { scales, out, n, out_type, .. } = arguments;
    let lane = thread::lane_id();
    // Where this lane's four columns and, of every eight rows, its row are after the exchange.
    let column = first - lane / 4 + (lane & 8) + lane / 16 * 4;
    let row = 2 * columns.quad_lane + lane / 4 % 2;
    let per_row = scales.a_kind.is(AScaleKind::Row);
    // SAFETY: a scale of the call, where there is one.
    let call = if per_row { 1.0 } else { unsafe { row_scale(scales, 0) } };
    let b = [b[0] * call, b[1] * call];
    total.for_each_tile(
        #[inline(always)]
        |j, values| {
            let eight = 8 * j as u32;
            if eight >= part.rows {
                return;
            }
            let mut a = [1.0; 2];
            if per_row {
                // Rows past the end get the last row's.
                a = [0, 1].map(|c| {
                    let row = (eight + 2 * columns.quad_lane + c).min(part.rows - 1);
                    // SAFETY: one of the tile's rows.
                    unsafe { row_scale(scales, part.first_row + row) }
                });
            }
            let words = [0, 1].map(|h: usize| {
                let low = values[2 * h] * a[0] * b[h] + bias[h];
                let high = values[2 * h + 1] * a[1] * b[h] + bias[h];
                if out_type.is(OutType::F16) { f16x2_from_f32(low, high) } else { bf16x2_from_f32(low, high) }
            });
            let four = columns_of_a_row(words, lane);
            if eight + row < part.rows && column < *n {
                let row = part.first_row + eight + row;
                // SAFETY: the row is the tile's and the column D's; N and the column are multiples of 4, so
                // that the four elements exist and are 8-byte aligned as `out` is.
                unsafe {
                    memory::store(
                        out.cast::<u16>().add(row as usize * *n as usize + column as usize).cast(),
                        four,
                    )
                };
            }
        },
    );
}
