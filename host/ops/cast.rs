//! f32 to bf16 or f16: what follows an order-free reduction, whose sums are f32.
//!
//! `out[r, c] = cast(x[r, c])`, or `cast(f32(out[r, c]) + x[r, c])`, to nearest even; what is too large for
//! f16 becomes an infinity.

use super::quantize::ActivationsMut;
use crate::error::{Error, Result};
use crate::gpu::buffer::Slice;
use crate::gpu::stream::Stream;
use crate::kernels::launchers;
use crate::plan::checked_i32;
use crate::plan::rows::{checked_columns, warp_rows_grid};

const OP: &str = "cast";

/// Arguments of [`cast`].
#[derive(Debug)]
pub struct Cast<'a> {
    /// Rows: T.
    pub rows: usize,
    /// Columns: H.
    pub columns: usize,
    /// f32 `[rows, columns]`.
    pub x: Slice<'a, f32>,
    /// bf16 or f16 `[rows, columns]`.
    pub out: ActivationsMut<'a>,
    /// Whether `x` is added to what `out` holds, with one rounding, instead of written.
    pub adds: bool,
}

/// Rounds every element to the type of `out`. One launch; with no rows nothing is launched.
///
/// # Errors
/// Arrays that are too short or on another device; an `out` in f32.
pub fn cast(stream: &Stream, args: Cast<'_>) -> Result<()> {
    let columns = checked_columns(OP, "columns", args.columns)?;
    let rows = checked_i32(OP, "rows", args.rows)?;
    args.x.check(OP, "x", args.rows * args.columns, stream)?;
    args.out.check(OP, "out", args.rows * args.columns, stream)?;
    if rows == 0 {
        return Ok(());
    }
    let (kernel, out) = match &args.out {
        ActivationsMut::Bf16(out) => (launchers::CAST_BF16, out.ptr().cast()),
        ActivationsMut::F16(out) => (launchers::CAST_F16, out.ptr().cast()),
        ActivationsMut::F32(_) => return Err(Error::argument(OP, "out", "f32", "must be bf16 or f16")),
    };
    let arguments = launchers::Cast { x: args.x.ptr(), out, rows, columns, adds: args.adds };
    let device = stream.device();
    // SAFETY: both arrays were checked to have their extent on this device.
    unsafe { device.launch(stream, &kernel, warp_rows_grid(device, rows, columns), &arguments) }
}
