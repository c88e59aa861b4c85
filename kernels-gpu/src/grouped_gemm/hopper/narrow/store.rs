//! The plain end: end scales, conversion to D's type, one element at a time.
//!
//! A lane has two columns of D that are 8 apart, of rows of A two by two; eight lanes of a warp write eight neighbours of a row.
//! That is few bytes beside the weights. Sums by token are added to in the same way.

use cuda_std::atomic::{self, Scope};
use cuda_std::bf16::{Bf16, F16 as Half};
use cuda_std::memory;

use super::BN;
use super::consume::Columns;
use super::share::Part;
use crate::grouped_gemm::hopper::accumulator::Accumulator;
use crate::grouped_gemm::hopper::plain::PlainArguments;
use crate::grouped_gemm::scale_arguments::{
    A_PER_GROUP, A_PER_ROW, B_PER_BLOCK, B_PER_COLUMN, ScaleArguments,
};
use crate::grouped_gemm::{F16, F32, TOKEN_SUMS};

/// The scale of a row that applies to the whole sum.
///
/// # Safety
/// The contract of the kernels; the row exists.
#[inline(always)]
pub unsafe fn row_scale(scales: &ScaleArguments, row: u32) -> f32 {
    match scales.a_kind {
        A_PER_GROUP => 1.0,
        // SAFETY: one scale for every row.
        A_PER_ROW => unsafe { memory::load_nc(scales.a.add(row as usize)) },
        // SAFETY: one scale.
        _ => unsafe { memory::load_nc(scales.a) },
    }
}

/// The scale of a column of `n` that applies to the whole sum; 1 past the end.
///
/// # Safety
/// The contract of the kernels.
#[inline(always)]
pub unsafe fn column_scale(scales: &ScaleArguments, expert: u32, column: u32, n: u32) -> f32 {
    match scales.b_kind {
        B_PER_BLOCK => 1.0,
        B_PER_COLUMN if column >= n => 1.0,
        // SAFETY: one scale per column of every expert.
        B_PER_COLUMN => unsafe {
            memory::load_nc(scales.b.add(expert as usize * n as usize + column as usize))
        },
        // SAFETY: one scale per expert.
        _ => unsafe { memory::load_nc(scales.b.add(expert as usize)) },
    }
}

/// Writes a thread's part of an item, as far as rows and columns exist.
///
/// # Safety
/// The contract of the kernels, for an item of the schedule.
#[inline(always)]
pub unsafe fn store<A: Accumulator>(
    totals: &[A; 2],
    part: &Part,
    columns: &Columns,
    arguments: &PlainArguments,
) {
    // SAFETY: the caller's contract.
    unsafe {
        store_half(&totals[0], part, part.column * BN + columns.column, columns, arguments);
        store_half(&totals[1], part, part.column * BN + BN / 2 + columns.column, columns, arguments);
    }
}

/// Writes a thread's part of half an item, from column `first` on.
///
/// # Safety
/// As [`store`].
#[inline(always)]
unsafe fn store_half<A: Accumulator>(
    total: &A,
    part: &Part,
    first: u32,
    columns: &Columns,
    arguments: &PlainArguments,
) {
    let PlainArguments { scales, out, n, out_type, .. } = arguments;
    // SAFETY: an item of the schedule.
    let b = unsafe {
        [column_scale(scales, part.expert, first, *n), column_scale(scales, part.expert, first + 8, *n)]
    };
    if *out_type == TOKEN_SUMS {
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
                        atomic::reduce_add(to, low * factor * b[0], Scope::Gpu);
                    }
                    if first + 8 < *n {
                        atomic::reduce_add(to.add(8), high * factor * b[1], Scope::Gpu);
                    }
                }
            },
        );
        return;
    }
    total.for_each(
        #[inline(always)]
        |j, h, c, sum| {
            let (row, column) = (8 * j as u32 + 2 * columns.quad_lane + c as u32, first + 8 * h as u32);
            if row >= part.rows || column >= *n {
                return;
            }
            let row = part.first_row + row;
            let at = row as usize * *n as usize + column as usize;
            // SAFETY: the row is the tile's and the column D's.
            unsafe {
                let value = sum * row_scale(scales, row) * b[h];
                match *out_type {
                    F32 => *out.cast::<f32>().add(at) = value,
                    F16 => *out.cast::<u16>().add(at) = Half::from_f32(value).0,
                    _ => *out.cast::<u16>().add(at) = Bf16::from_f32(value).0,
                }
            }
        },
    );
}
