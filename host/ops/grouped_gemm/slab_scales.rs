//! The scales that change along K, as the Hopper kernels take them: by TMA (`kernels-gpu/src/grouped_gemm/hopper/slab_scales.rs`).
//!
//! | scales | seen as | a box |
//! |---|---|---|
//! | `AScale::Group`, group-major | `[groups, P]` | a tile's rows of one group |
//! | `BScale::Block` | one line of all of them | 4, of which the first is asked for |
//!
//! TMA wants lines that begin at multiples of 16 bytes; where in a line a box begins is free.

use super::heuristics::HopperTile;
use super::{AScale, BScale, GemmShape, SCALE_BLOCK};
use crate::error::{Error, Result, require};
use crate::kernel::{DevicePtr, TensorMap};
use crate::tensor_map;

/// Elements of a box of B's scales: the least that TMA takes.
const B_BOX: u32 = 4;

/// The maps that the promoted kernels take. Of scales that do not change along K there is none; a kernel does not read it then.
pub(in crate::ops) struct SlabScales {
    pub a: TensorMap,
    pub b: TensorMap,
}

impl SlabScales {
    /// For scales that have been checked against `shape`, of which P and E_loc are not 0. Refuses those that TMA cannot reach.
    pub(in crate::ops) fn new(
        op: &'static str,
        a_scale: &AScale<'_>,
        b_scale: &BScale<'_>,
        shape: &GemmShape,
        tile: HopperTile,
    ) -> Result<SlabScales> {
        let GemmShape { rows, n, k, experts } = *shape;
        let groups = k.div_ceil(SCALE_BLOCK);
        let (mut a, mut b) = (TensorMap([0; 16]), TensorMap([0; 16]));
        if let AScale::Group { scales, row_stride, group_stride } = *a_scale {
            let is_apart = groups == 1 || (group_stride >= rows && group_stride.is_multiple_of(4));
            require(
                row_stride == 1 && is_apart,
                op,
                "a_scale",
                format!("strides {row_stride}, {group_stride}"),
                || {
                    let rule = "must be group-major (`ScaleLayout::group_major`) for the Hopper kernels: a row_stride of 1";
                    format!("{rule}, and a group_stride that is a multiple of 4 and at least {rows}")
                },
            )?;
            // Nobody asks for a second line where there is one.
            let stride = if groups == 1 { rows.next_multiple_of(4) } else { group_stride };
            let start = aligned(op, "a_scale", scales.ptr())?;
            a = tensor_map::of_lines(start, (groups, rows), stride, tile.block_m() as u32)?;
        }
        if let BScale::Block(scales) = *b_scale {
            let count = experts * n.div_ceil(SCALE_BLOCK) * groups;
            // Less what a box and an item's second block may add.
            require(count <= i32::MAX as usize / 2, op, "b_scale", format!("{count} elements"), || {
                "must have below 2^30 elements for the Hopper kernels".into()
            })?;
            let start = aligned(op, "b_scale", scales.ptr())?;
            b = tensor_map::of_lines(start, (1, count), count.next_multiple_of(4), B_BOX)?;
        }
        Ok(SlabScales { a, b })
    }
}

/// Refuses scales where no line of TMA can begin.
fn aligned(op: &'static str, name: &str, start: DevicePtr<f32>) -> Result<DevicePtr<f32>> {
    let address = start.raw();
    if !address.is_multiple_of(16) {
        let rule = "must be 16-byte aligned for the Hopper kernels";
        return Err(Error::argument(op, name, format!("{address:#x}"), rule));
    }
    Ok(start)
}
