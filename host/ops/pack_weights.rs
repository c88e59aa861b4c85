//! Weights as a checkpoint has them into packed weights, and back.
//!
//! ```text
//!   matrices e4m3 [experts, rows, K]  --pack_weights-->    packed, PackedShape::len bytes
//!                                     <--unpack_weights--
//! ```
//!
//! A layer that copies a checkpoint packs it on the device. Weights that another program owns are packed into
//! a buffer of their own, or in place, and given to the layer with
//! [`MoeDeviceWeights::layout`](crate::MoeDeviceWeights::layout).

use crate::error::{Error, Result, require};
use crate::fp8::E4m3;
use crate::gpu::buffer::{Slice, SliceMut};
use crate::gpu::family::Family;
use crate::gpu::launch::DevicePtr;
use crate::gpu::stream::Stream;
use crate::kernels::launchers;
use crate::ops::grouped_gemm::{check_matrix, check_matrix_mut};

pub use crate::plan::packed::{PackedShape, WeightLayout};

const OP: &str = "pack_weights";
const UNPACK: &str = "unpack_weights";
const IN_PLACE: &str = "pack_weights_in_place";

/// Packs `matrices`, e4m3 `[experts, rows, K]`, into `packed`, [`PackedShape::len`] elements. Both are
/// 16-byte aligned. One launch; nothing where there are no experts.
///
/// # Errors
/// Arrays that are too short, not aligned or on another device; a device without the Hopper kernels.
pub fn pack_weights(
    stream: &Stream,
    shape: PackedShape,
    matrices: Slice<'_, E4m3>,
    packed: SliceMut<'_, E4m3>,
) -> Result<()> {
    check_matrix(OP, &matrices, "matrices", shape.checkpoint_len(), stream)?;
    check_matrix_mut(OP, &packed, "packed", shape.len(), stream)?;
    // SAFETY: both have their extent on this device, and one is borrowed exclusively: they do not overlap.
    unsafe { launch(OP, stream, shape, matrices.ptr().cast(), packed.ptr().cast(), false) }
}

/// The inverse of [`pack_weights`]: `matrices` from `packed`.
///
/// # Errors
/// Those of [`pack_weights`].
pub fn unpack_weights(
    stream: &Stream,
    shape: PackedShape,
    packed: Slice<'_, E4m3>,
    matrices: SliceMut<'_, E4m3>,
) -> Result<()> {
    check_matrix(UNPACK, &packed, "packed", shape.len(), stream)?;
    check_matrix_mut(UNPACK, &matrices, "matrices", shape.checkpoint_len(), stream)?;
    // SAFETY: as in `pack_weights`.
    unsafe { launch(UNPACK, stream, shape, matrices.ptr().cast(), packed.ptr().cast(), true) }
}

/// Packs matrices where they are, expert by expert, with `scratch` for one of them,
/// [`checkpoint_len`](PackedShape::checkpoint_len) of one expert. `weights` begin with all of them and have
/// room for the packed ones, [`PackedShape::len`] elements: as many, or more where K is no multiple of 128. A
/// copy and a launch for each expert.
///
/// # Errors
/// Arrays that are too short, not aligned or on another device; a device without the Hopper kernels.
pub fn pack_weights_in_place(
    stream: &Stream,
    shape: PackedShape,
    mut weights: SliceMut<'_, E4m3>,
    mut scratch: SliceMut<'_, E4m3>,
) -> Result<()> {
    let (experts, ..) = shape.raw();
    check_matrix_mut(IN_PLACE, &weights, "weights", shape.len(), stream)?;
    // From the last on: a packed matrix begins no earlier than it did, and covers those of no expert before.
    for expert in (0..experts).rev() {
        pack_expert_in_place(stream, shape, expert, weights.reborrow(), scratch.reborrow())?;
    }
    Ok(())
}

/// Packs the matrix of one expert as [`pack_weights_in_place`] does. Where packed weights take more room, it
/// may cover matrices that follow, which are packed before.
///
/// # Errors
/// As [`pack_weights_in_place`]; an expert that there is not.
pub fn pack_expert_in_place(
    stream: &Stream,
    shape: PackedShape,
    expert: usize,
    mut weights: SliceMut<'_, E4m3>,
    mut scratch: SliceMut<'_, E4m3>,
) -> Result<()> {
    let ((experts, ..), one) = (shape.raw(), shape.of_one());
    let (from, to) = (one.checkpoint_len(), one.len());
    require(expert < experts, IN_PLACE, "expert", expert, || format!("must be below {experts}"))?;
    check_matrix_mut(IN_PLACE, &weights, "weights", shape.len(), stream)?;
    check_matrix_mut(IN_PLACE, &scratch, "scratch", from, stream)?;
    let matrix = expert * from..(expert + 1) * from;
    let mut copy = scratch.slice_mut(..from);
    copy.copy_from_device(weights.as_slice().slice(matrix), stream)?;
    pack_weights(stream, one, copy.as_slice(), weights.slice_mut(expert * to..(expert + 1) * to))
}

/// # Safety
/// Both have their extent on the stream's device, 16-byte aligned; they do not overlap, and nobody else
/// accesses the one that is written until the stream has run.
unsafe fn launch(
    op: &'static str,
    stream: &Stream,
    shape: PackedShape,
    matrix: DevicePtr<u8>,
    packed: DevicePtr<u8>,
    unpacks: bool,
) -> Result<()> {
    let device = stream.device();
    if device.family() != Family::Sm90a {
        return Err(Error::argument(op, "device", device, "must have the kernels of Hopper"));
    }
    let (experts, rows, k, is_gated) = shape.raw();
    if experts == 0 {
        return Ok(());
    }
    let (experts, rows, k) = (experts as u32, rows as u32, k as u32);
    let arguments = launchers::PackWeights { matrix, packed, experts, rows, k, is_gated, unpacks };
    // A block has a slab of an item at a time: two boxes of rows.
    let (items, slabs) = (rows.div_ceil(2 * launchers::B_BOX_ROWS), k.div_ceil(launchers::SLAB));
    let runs = u64::from(experts) * u64::from(items) * u64::from(slabs);
    let blocks = runs.min(u64::from(8 * device.multiprocessors())) as u32;
    // SAFETY: the caller's contract. The shape keeps lines below 2^32, so that slabs of items, each of which
    // has a line at least, are fewer.
    unsafe { device.launch(stream, &launchers::PACK_WEIGHTS, blocks, &arguments) }
}
