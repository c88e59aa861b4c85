//! The scales of A that change along K, as the Hopper kernels take them: by TMA, a tile's rows of one group
//! at a time (`kernels-gpu/src/gemm/hopper/slab_scales.rs`).
//!
//! TMA wants lines that begin at multiples of 16 bytes, and boxes that do: a tile's box begins up to three
//! rows before it.

use super::{AScale, GemmShape, SCALE_BLOCK};
use crate::config::COPY_BYTES;
use crate::error::{Error, Result, require};
use crate::gpu::launch::TensorMap;
use crate::gpu::tensor_map;
use crate::kernels::launchers::SLAB_SCALES_EXTRA_ROWS;
use crate::plan::tiles::HopperTile;

/// The map of A's scales as `[groups, P]`, for scales that have been checked against `shape`, of which P is
/// not 0. Refuses those that TMA cannot reach. Of scales that do not change along K there is none; a kernel
/// does not read it then.
pub(in crate::ops) fn of_a(
    op: &'static str,
    a_scale: &AScale<'_>,
    shape: &GemmShape,
    tile: HopperTile,
) -> Result<TensorMap> {
    let AScale::Group { scales, row_stride, group_stride } = *a_scale else { return Ok(TensorMap([0; 16])) };
    let (rows, groups) = (shape.rows, shape.k.div_ceil(SCALE_BLOCK));
    let is_apart = groups == 1 || (group_stride >= rows && group_stride.is_multiple_of(4));
    require(
        row_stride == 1 && is_apart,
        op,
        "a_scale",
        format_args!("strides {row_stride}, {group_stride}"),
        || {
            let rule =
                "must be group-major (`ScaleLayout::group_major`) for the Hopper kernels: a row_stride of 1";
            format!("{rule}, and a group_stride that is a multiple of 4 and at least {rows}")
        },
    )?;
    let address = scales.ptr().raw();
    if !address.is_multiple_of(COPY_BYTES as u64) {
        let rule = format!("must be {COPY_BYTES}-byte aligned for the Hopper kernels");
        return Err(Error::argument(op, "a_scale", format!("{address:#x}"), rule));
    }
    // Nobody asks for a second line where there is one.
    let stride = if groups == 1 { rows.next_multiple_of(4) } else { group_stride };
    tensor_map::of_lines(&scales, (groups, rows), stride, tile.block_m() as u32 + SLAB_SCALES_EXTRA_ROWS)
}
