//! The sum of what several ranks made of each row, in the order of the ranks.
//!
//! `out[t] = cast(x[0][t] + x[1][t] + .. + x[R - 1][t])`, from left to right in f32, from +0, with one
//! rounding. The result depends neither on the grid nor on which rank was first.

use super::quantize::{Activations, ActivationsMut};
use crate::error::{Error, Result, require};
use crate::gpu::stream::Stream;
use crate::kernels::launchers;
use crate::plan::rows::{checked_columns, warp_rows_grid};
use crate::plan::{checked_i32, elements};

const OP: &str = "sum_ranks";

/// Arguments of [`sum_ranks`].
#[derive(Debug)]
pub struct SumRanks<'a> {
    /// R, at least 1.
    pub ranks: usize,
    /// Rows that each rank has room for: rank r's begin at element `r * rank_rows * columns`. At least
    /// `rows`.
    pub rank_rows: usize,
    /// Rows to sum: T.
    pub rows: usize,
    /// Columns: H.
    pub columns: usize,
    /// bf16, f16 or f32 `[R, rank_rows, columns]`; rows past `rows` are not read.
    pub x: Activations<'a>,
    /// `[rows, columns]`: bf16, f16 or f32 of an `x` in bf16 or f32, f16 of one in f16.
    pub out: ActivationsMut<'a>,
}

/// Adds the rows of all ranks up. One launch; with no rows nothing is launched.
///
/// # Errors
/// Arrays that are too short or on another device; types of `x` and `out` that do not match.
pub fn sum_ranks(stream: &Stream, args: SumRanks<'_>) -> Result<()> {
    let SumRanks { ranks, rank_rows, rows, columns, x, out } = args;
    require(ranks > 0, OP, "ranks", ranks, || "must be at least 1".into())?;
    require(rows <= rank_rows, OP, "rows", rows, || {
        format!("must be at most {rank_rows}, the rows that a rank has")
    })?;
    let narrow_columns = checked_columns(OP, "columns", columns)?;
    let narrow_rows = checked_i32(OP, "rows", rows)?;
    let narrow_ranks = checked_i32(OP, "ranks", ranks)?;
    let of_rank = elements(OP, "rank_rows", &[rank_rows, columns])?;
    // What the last rank has behind its last row need not be there.
    let before = elements(OP, "ranks", &[ranks - 1, rank_rows, columns])?;
    x.check(OP, "x", before + rows * columns, stream)?;
    out.check(OP, "out", rows * columns, stream)?;
    use {Activations as A, ActivationsMut as M};
    let kernel = match (&x, &out) {
        (A::Bf16(_), M::Bf16(_)) => launchers::SUM_RANKS_BF16,
        (A::Bf16(_), M::F16(_)) => launchers::SUM_RANKS_BF16_F16,
        (A::Bf16(_), M::F32(_)) => launchers::SUM_RANKS_BF16_F32,
        (A::F16(_), M::F16(_)) => launchers::SUM_RANKS_F16,
        (A::F32(_), M::F32(_)) => launchers::SUM_RANKS_F32,
        (A::F32(_), M::Bf16(_)) => launchers::SUM_RANKS_F32_BF16,
        (A::F32(_), M::F16(_)) => launchers::SUM_RANKS_F32_F16,
        (A::F16(_), M::Bf16(_) | M::F32(_)) => {
            let types = format!("{} from f16", out.as_activations().type_name());
            return Err(Error::argument(OP, "out", types, "must be f16 from f16"));
        }
    };
    if rows == 0 {
        return Ok(());
    }
    let device = stream.device();
    let arguments = launchers::SumRanks {
        x: x.ptr(),
        out: out.as_activations().ptr().cast(),
        rank_stride: of_rank as u64,
        ranks: narrow_ranks,
        rows: narrow_rows,
        columns: narrow_columns,
    };
    // SAFETY: `x` reaches to the last row of the last rank and `out` to its last, as checked; they are on
    // this device, and `out` overlaps nothing, as a `SliceMut` has it.
    unsafe { device.launch(stream, &kernel, warp_rows_grid(device, narrow_rows, narrow_columns), &arguments) }
}
