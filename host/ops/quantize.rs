//! FP8 quantisation of activations (e4m3), optionally fused with the scatter to permuted rows, or of their
//! scales alone.
//!
//! | [`Scheme`] | scale | q |
//! |---|---|---|
//! | `TensorStatic` | given | `x * (1 / scale)` |
//! | `TensorDynamic` | `max(absmax / 448, 1 / (448 * 512))` over the rows that go anywhere | `x * (1 / scale)` |
//! | `Token` | `max(min(absmax(row), limit) / 448, 1 / (448 * 512))` | `x / scale` |
//! | `Group` | `max(absmax(group), 1e-10) / 448`, groups of 128 or 64 columns, the last may be short | `x / scale` |
//!
//! All in f32 and bit-exact: to nearest even, saturating at +-448, NaN to 0x7f. NaN does not count in a
//! largest magnitude. One launch, two for `TensorDynamic`.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use super::permutation::{Permutation, Sizes};
use crate::error::{Error, Result, require};
use crate::fp8::E4m3;
use crate::gpu::buffer::{Buffer, Slice, SliceMut};
use crate::gpu::launch::{DevicePtr, Kernel};
use crate::gpu::order::{Allocation, Unchanged};
use crate::gpu::stream::Stream;
use crate::kernels::launchers;
use crate::plan::rows::{BlockRows, MAX_PARTIALS, ScaleLayout, absmax_grid, checked_columns, warp_rows_grid};
use crate::plan::{checked_i32, elements};

const OP: &str = "quantize";

/// Activations to read, in one of the element types that the kernels take.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Activations<'a> {
    /// bfloat16.
    Bf16(Slice<'a, bf16>),
    /// IEEE binary16.
    F16(Slice<'a, f16>),
    /// IEEE binary32.
    F32(Slice<'a, f32>),
}

/// Activations to write.
#[derive(Debug)]
#[non_exhaustive]
pub enum ActivationsMut<'a> {
    /// bfloat16.
    Bf16(SliceMut<'a, bf16>),
    /// IEEE binary16.
    F16(SliceMut<'a, f16>),
    /// IEEE binary32.
    F32(SliceMut<'a, f32>),
}

macro_rules! activations_from {
    ($($variant:ident: $ty:ty),+) => {$(
        impl<'a> From<Slice<'a, $ty>> for Activations<'a> {
            fn from(slice: Slice<'a, $ty>) -> Self {
                Activations::$variant(slice)
            }
        }

        impl<'a> From<&'a Buffer<$ty>> for Activations<'a> {
            fn from(buffer: &'a Buffer<$ty>) -> Self {
                Activations::$variant(buffer.as_slice())
            }
        }

        impl<'a> From<SliceMut<'a, $ty>> for ActivationsMut<'a> {
            fn from(slice: SliceMut<'a, $ty>) -> Self {
                ActivationsMut::$variant(slice)
            }
        }

        impl<'a> From<&'a mut Buffer<$ty>> for ActivationsMut<'a> {
            fn from(buffer: &'a mut Buffer<$ty>) -> Self {
                ActivationsMut::$variant(buffer.as_mut_slice())
            }
        }
    )+};
}

activations_from!(Bf16: bf16, F16: f16, F32: f32);

impl<'a> Activations<'a> {
    /// Elements.
    pub(crate) fn len(&self) -> usize {
        match self {
            Activations::Bf16(slice) => slice.len(),
            Activations::F16(slice) => slice.len(),
            Activations::F32(slice) => slice.len(),
        }
    }

    /// The elements of `range`. Panics when the range is out of bounds, as slicing does.
    pub(crate) fn slice(&self, range: Range<usize>) -> Activations<'a> {
        match self {
            Activations::Bf16(slice) => Activations::Bf16(slice.slice(range)),
            Activations::F16(slice) => Activations::F16(slice.slice(range)),
            Activations::F32(slice) => Activations::F32(slice.slice(range)),
        }
    }

    /// The name of the element type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Activations::Bf16(_) => "bf16",
            Activations::F16(_) => "f16",
            Activations::F32(_) => "f32",
        }
    }

    /// The address, for kernels whose name says the element type.
    pub(super) fn ptr(&self) -> DevicePtr<u8> {
        match self {
            Activations::Bf16(slice) => slice.ptr().cast(),
            Activations::F16(slice) => slice.ptr().cast(),
            Activations::F32(slice) => slice.ptr().cast(),
        }
    }

    /// What it is a part of, as a slice says.
    pub(super) fn memory(&self) -> Option<&'a Arc<Allocation>> {
        match self {
            Activations::Bf16(slice) => slice.memory(),
            Activations::F16(slice) => slice.memory(),
            Activations::F32(slice) => slice.memory(),
        }
    }

    /// The kernel for the element type.
    pub(super) fn pick<A>(&self, bf16: Kernel<A>, f16: Kernel<A>, f32: Kernel<A>) -> Kernel<A> {
        match self {
            Activations::Bf16(_) => bf16,
            Activations::F16(_) => f16,
            Activations::F32(_) => f32,
        }
    }

    pub(crate) fn check(&self, op: &'static str, name: &str, len: usize, stream: &Stream) -> Result<()> {
        match self {
            Activations::Bf16(slice) => slice.check(op, name, len, stream),
            Activations::F16(slice) => slice.check(op, name, len, stream),
            Activations::F32(slice) => slice.check(op, name, len, stream),
        }
    }
}

impl ActivationsMut<'_> {
    /// The same memory, for a call that takes it by value.
    pub(crate) fn reborrow(&mut self) -> ActivationsMut<'_> {
        match self {
            ActivationsMut::Bf16(slice) => ActivationsMut::Bf16(slice.reborrow()),
            ActivationsMut::F16(slice) => ActivationsMut::F16(slice.reborrow()),
            ActivationsMut::F32(slice) => ActivationsMut::F32(slice.reborrow()),
        }
    }

    /// The elements of `range`. Panics when the range is out of bounds, as slicing does.
    pub(crate) fn slice_mut(&mut self, range: Range<usize>) -> ActivationsMut<'_> {
        match self {
            ActivationsMut::Bf16(slice) => ActivationsMut::Bf16(slice.slice_mut(range)),
            ActivationsMut::F16(slice) => ActivationsMut::F16(slice.slice_mut(range)),
            ActivationsMut::F32(slice) => ActivationsMut::F32(slice.slice_mut(range)),
        }
    }

    /// Sets every byte to `byte`, in `stream`'s order.
    pub(crate) fn fill_bytes(&mut self, byte: u8, stream: &Stream) -> Result<()> {
        match self {
            ActivationsMut::Bf16(slice) => slice.fill_bytes(byte, stream),
            ActivationsMut::F16(slice) => slice.fill_bytes(byte, stream),
            ActivationsMut::F32(slice) => slice.fill_bytes(byte, stream),
        }
    }

    pub(crate) fn check(&self, op: &'static str, name: &str, len: usize, stream: &Stream) -> Result<()> {
        match self {
            ActivationsMut::Bf16(slice) => slice.check(op, name, len, stream),
            ActivationsMut::F16(slice) => slice.check(op, name, len, stream),
            ActivationsMut::F32(slice) => slice.check(op, name, len, stream),
        }
    }

    /// The same memory, to read.
    pub fn as_activations(&self) -> Activations<'_> {
        match self {
            ActivationsMut::Bf16(slice) => Activations::Bf16(slice.as_slice()),
            ActivationsMut::F16(slice) => Activations::F16(slice.as_slice()),
            ActivationsMut::F32(slice) => Activations::F32(slice.as_slice()),
        }
    }
}

/// Sizes of a quantisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantizeShape {
    /// Rows of `x`: T tokens, or P permuted rows.
    pub rows: usize,
    /// Columns: H.
    pub columns: usize,
}

/// Where the quantised rows go.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Destinations<'a> {
    /// Row i to row i.
    Identity,
    /// Row i to row i, for the valid rows of the permutation, those below `expert_offsets[E_loc]`; the others
    /// are neither read nor written.
    Valid {
        /// Of as many rows as `x` has.
        permutation: &'a Permutation<'a>,
    },
    /// Token t to the rows that the permutation has for its slots. A token is read once, or not at all where
    /// none of its rows is valid.
    Scatter {
        /// Of as many tokens as `x` has rows; `q` is `[P, columns]`.
        permutation: &'a Permutation<'a>,
        /// Whether padding rows become rows of zeros, with the scale of such a row; else they are not
        /// written.
        fill_padding: bool,
    },
    /// Token t to the rows that the permutation has for its slots, each times the slot's own weight:
    /// `row_weight` is `[T, k]`. A token is read once for each of its slots.
    Slots {
        /// Of as many tokens as `x` has rows; `q` is `[P, columns]`.
        permutation: &'a Permutation<'a>,
    },
    /// The scales of token t to where [`Scatter`](Self::Scatter) would put them, and its row of `q` to row t
    /// alone: what a GEMM takes that gathers its rows
    /// ([`GatedPlan::gathers`](crate::ops::gated_gemm::GatedPlan::gathers)).
    Scales {
        /// Of as many tokens as `x` has rows; `q` is `[T, columns]`, the scales are of P rows.
        permutation: &'a Permutation<'a>,
        /// Whether padding rows get the scale of a row of zeros; else they get none.
        fill_padding: bool,
    },
}

/// How to scale.
#[derive(Debug)]
#[non_exhaustive]
pub enum Scheme<'a> {
    /// One scale, given.
    TensorStatic {
        /// f32 `[1]`.
        scale: Slice<'a, f32>,
    },
    /// One scale, computed.
    TensorDynamic {
        /// f32 `[1]`, written.
        scale: SliceMut<'a, f32>,
        /// u8, [`quantize_workspace_bytes`], 4-byte aligned; its contents do not matter.
        workspace: SliceMut<'a, u8>,
    },
    /// One scale per row.
    Token {
        /// f32, one per row of `q`, or per permuted row with [`Destinations::Scales`].
        scales: SliceMut<'a, f32>,
        /// Upper bound on the largest magnitude of a row; what is over it saturates.
        absmax_limit: Option<f32>,
    },
    /// One scale per row and group of columns.
    Group {
        /// Columns that share a scale: 128 or 64.
        group_size: usize,
        /// f32, of the rows of `q`, or of the permuted ones with [`Destinations::Scales`].
        scales: SliceMut<'a, f32>,
        /// Layout of `scales`, e.g. `ScaleLayout::row_major(columns.div_ceil(group_size))`.
        layout: ScaleLayout,
    },
}

/// Arguments of [`quantize`].
#[derive(Debug)]
pub struct Quantize<'a> {
    /// `[rows, columns]`: bf16, f16 or f32.
    pub x: Activations<'a>,
    /// f32 `[rows]`, multiplies each row before anything else, rounding to the type of `x`: Llama-4's routing
    /// weight. With [`Destinations::Slots`] `[rows, k]`.
    pub row_weight: Option<Slice<'a, f32>>,
    /// Where the rows go.
    pub destinations: Destinations<'a>,
    /// How to scale.
    pub scheme: Scheme<'a>,
    /// e4m3 `[rows, columns]`; `[P, columns]` with [`Destinations::Scatter`].
    pub q: SliceMut<'a, E4m3>,
    /// f32 `[rows, columns]`, set to 0 on the way, for a later operation to add to. Not with
    /// [`Destinations::Valid`], whose rows the device alone knows, nor with [`Destinations::Slots`], which
    /// visits a row several times.
    pub cleared: Option<SliceMut<'a, f32>>,
}

/// Bytes of workspace that [`Scheme::TensorDynamic`] needs.
pub const fn quantize_workspace_bytes() -> usize {
    MAX_PARTIALS as usize * size_of::<f32>()
}

/// Columns that may share a scale.
const GROUP_SIZES: [usize; 2] = [launchers::SMALL_GROUP as usize, launchers::SLAB as usize];

/// Refuses group scales that the kernels cannot write.
pub(super) fn check_groups(
    op: &'static str,
    group_size: usize,
    scales: &SliceMut<'_, f32>,
    layout: &ScaleLayout,
    (rows, columns): (usize, usize),
    stream: &Stream,
) -> Result<()> {
    require(GROUP_SIZES.contains(&group_size), op, "group_size", group_size, || {
        let [small, large] = GROUP_SIZES;
        format!("must be {small} or {large}")
    })?;
    let groups = columns.div_ceil(group_size);
    layout.check_apart(op, "layout", rows, groups)?;
    scales.check(op, "scales", layout.extent(rows, groups), stream)
}

/// Where group scales go, as kernels take it.
pub(super) fn group_scales_out(
    scales: &SliceMut<'_, f32>,
    layout: &ScaleLayout,
    group_size: usize,
) -> launchers::GroupScalesOut {
    let (scales, group_size) = (scales.ptr(), group_size as u32);
    launchers::GroupScalesOut { scales, strides: layout.raw(), group_size }
}

/// Destinations, checked.
struct Targets<'a> {
    /// The lists that they come from.
    lists: Unchanged<'a>,
    /// As the kernels take them.
    raw: launchers::RowTargets,
    /// Rows to quantise that a row of `x` makes.
    slots: usize,
    /// Rows of `q`.
    q_rows: usize,
    /// Rows that have scales.
    scale_rows: usize,
}

impl<'a> Destinations<'a> {
    fn check(&self, rows: usize, stream: &Stream) -> Result<Targets<'a>> {
        let identity = launchers::RowTargets {
            inverse: DevicePtr::null(),
            valid_rows: DevicePtr::null(),
            sorted_rows: DevicePtr::null(),
            top_k: 1,
            capacity: 0,
            rows_stay: false,
        };
        let (permutation, fill_padding) = match *self {
            Destinations::Identity => {
                let lists = Unchanged::NOTHING;
                return Ok(Targets { lists, raw: identity, slots: 1, q_rows: rows, scale_rows: rows });
            }
            Destinations::Valid { permutation } => {
                permutation.check_size(OP, "rows", rows, (permutation.rows(), "rows"))?;
                permutation.check(OP, stream)?;
                let raw = launchers::RowTargets { valid_rows: permutation.valid_rows(), ..identity };
                let lists = permutation.unchanged();
                return Ok(Targets { lists, raw, slots: 1, q_rows: rows, scale_rows: rows });
            }
            Destinations::Slots { permutation } => (permutation, false),
            Destinations::Scatter { permutation, fill_padding }
            | Destinations::Scales { permutation, fill_padding } => (permutation, fill_padding),
        };
        let Sizes { tokens, top_k, rows: scale_rows, .. } = permutation.sizes;
        permutation.check_size(OP, "rows", rows, (tokens, "tokens"))?;
        permutation.check(OP, stream)?;
        let rows_stay = matches!(self, Destinations::Scales { .. });
        let by_slot = matches!(self, Destinations::Slots { .. });
        let padding = fill_padding.then(|| permutation.checked_sorted_rows(OP, stream)).transpose()?;
        let raw = launchers::RowTargets {
            inverse: permutation.checked_inverse(OP, stream)?,
            valid_rows: permutation.valid_rows(),
            sorted_rows: padding.unwrap_or(DevicePtr::null()),
            // Slot by slot, each has one destination.
            top_k: if by_slot { 1 } else { top_k as u32 },
            capacity: scale_rows as u32,
            rows_stay,
        };
        let slots = if by_slot { top_k } else { 1 };
        let q_rows = if rows_stay { rows } else { scale_rows };
        Ok(Targets { lists: permutation.unchanged(), raw, slots, q_rows, scale_rows })
    }
}

impl Scheme<'_> {
    fn check(&self, scale_rows: usize, columns: usize, stream: &Stream) -> Result<()> {
        match self {
            Scheme::TensorStatic { scale } => scale.check(OP, "scale", 1, stream),
            Scheme::TensorDynamic { scale, workspace } => {
                scale.check(OP, "scale", 1, stream)?;
                workspace.check(OP, "workspace", quantize_workspace_bytes(), stream)?;
                let address = workspace.ptr();
                require(address.raw().is_multiple_of(4), OP, "workspace", format_args!("{address:?}"), || {
                    "must be 4-byte aligned".into()
                })
            }
            Scheme::Token { scales, absmax_limit } => {
                // Its scale times 448 must be finite.
                const MOST: f32 = f32::MAX / 2.0;
                if let Some(limit) = absmax_limit.filter(|limit| !(*limit > 0.0 && *limit <= MOST)) {
                    return Err(Error::argument(
                        OP,
                        "absmax_limit",
                        limit,
                        format!("must be over 0 and at most {MOST:e}"),
                    ));
                }
                scales.check(OP, "scales", scale_rows, stream)
            }
            Scheme::Group { group_size, scales, layout } => {
                check_groups(OP, *group_size, scales, layout, (scale_rows, columns), stream)
            }
        }
    }
}

/// Quantises `x` and writes each row to its destinations, with its scales.
///
/// With no rows nothing is launched, and nothing is written.
///
/// # Errors
/// Arrays that are too short or on another device; columns, group sizes, limits or layouts that the kernels
/// cannot have; a permutation of another number of rows or tokens, or without a list that this needs.
pub fn quantize(stream: &Stream, shape: QuantizeShape, args: Quantize<'_>) -> Result<()> {
    enqueue(stream, shape, args, false)
}

/// As [`quantize`], for rows that were complete before the kernel that precedes this call in the stream
/// began. With [`Destinations::Scatter`] or [`Destinations::Scales`], and other schemes than
/// [`Scheme::TensorDynamic`], their first ones are then read while that kernel ends, also those of tokens
/// that go nowhere; the results are the same.
///
/// # Safety
/// `x`, `row_weight` and a given scale were written, and what wrote them has ended, before the kernel that
/// directly precedes this call in the stream began, and that kernel does not write them. The first holds
/// where that kernel was launched without programmatic stream serialization, as `permute` is; else as for
/// [`grouped_gemm_with_settled_schedule`](super::grouped_gemm::grouped_gemm_with_settled_schedule).
///
/// # Errors
/// Those of [`quantize`].
pub unsafe fn quantize_with_settled_input(
    stream: &Stream,
    shape: QuantizeShape,
    args: Quantize<'_>,
) -> Result<()> {
    enqueue(stream, shape, args, true)
}

/// `x_is_settled`: see [`quantize_with_settled_input`].
fn enqueue(stream: &Stream, shape: QuantizeShape, args: Quantize<'_>, x_is_settled: bool) -> Result<()> {
    let columns = checked_columns(OP, "columns", shape.columns)?;
    // Before anything is multiplied.
    checked_i32(OP, "rows", shape.rows)?;
    args.x.check(OP, "x", shape.rows * shape.columns, stream)?;
    let Targets { lists, raw: targets, slots, q_rows, scale_rows } =
        args.destinations.check(shape.rows, stream)?;
    let all_rows = elements(OP, "rows", &[shape.rows, slots])?;
    let rows = checked_i32(OP, "rows", all_rows)?;
    if let Some(row_weight) = &args.row_weight {
        row_weight.check(OP, "row_weight", all_rows, stream)?;
    }
    args.q.check(OP, "q", q_rows * shape.columns, stream)?;
    args.scheme.check(scale_rows, shape.columns, stream)?;
    if let Some(cleared) = &args.cleared {
        let holds = !matches!(args.destinations, Destinations::Valid { .. } | Destinations::Slots { .. });
        require(holds, OP, "cleared", "Some", || "must be None where rows are not visited once each".into())?;
        cleared.check(OP, "cleared", shape.rows * shape.columns, stream)?;
    }
    if rows == 0 {
        return Ok(());
    }

    let x = &args.x;
    let common = launchers::Quantize {
        x: x.ptr(),
        row_weight: args.row_weight.map_or(DevicePtr::null(), |row_weight| row_weight.ptr()),
        rows,
        slots: slots as u32,
        columns,
        targets,
    };
    let out = launchers::QuantizedRows {
        q: args.q.ptr().cast(),
        cleared: args.cleared.as_ref().map_or(DevicePtr::null(), |cleared| cleared.ptr()),
    };
    // Rows that are not valid need not have been written, so that only those of tokens may be read ahead.
    let x_is_settled = x_is_settled && !targets.inverse.is_null();
    // A warp looks for padding among as many rows at a time as it has lanes.
    let has_padding = !targets.sorted_rows.is_null();
    let warp_rows =
        if has_padding { rows.max(targets.capacity.div_ceil(launchers::WARP_THREADS)) } else { rows };
    let device = stream.device();
    let grid = warp_rows_grid(device, warp_rows, columns);
    let tensor = x.pick(
        launchers::QUANTIZE_TENSOR_BF16,
        launchers::QUANTIZE_TENSOR_F16,
        launchers::QUANTIZE_TENSOR_F32,
    );
    match args.scheme {
        Scheme::TensorStatic { scale } => {
            let arguments = launchers::QuantizeTensor {
                common,
                scale: scale.ptr(),
                partials: DevicePtr::null(),
                scale_out: DevicePtr::null(),
                out,
                partial_count: 0,
                x_is_settled,
            };
            // SAFETY: every array was checked to have its extent on this device, by the permutation's sizes
            // where there is one, which leads each row to places below P of its own, if its lists are
            // unchanged.
            unsafe { device.launch_over(stream, &tensor, grid, &arguments, &lists) }
        }
        Scheme::TensorDynamic { scale, workspace } => {
            let partials: DevicePtr<f32> = workspace.ptr().cast();
            let absmax_grid = absmax_grid(device, rows, columns);
            let absmax = x.pick(launchers::ABSMAX_BF16, launchers::ABSMAX_F16, launchers::ABSMAX_F32);
            let holds = slots == 1;
            require(holds, OP, "scheme", "TensorDynamic", || "must not be used with Slots".into())?;
            let launchers::Quantize { x, row_weight, .. } = common;
            let maxima = launchers::Absmax { x, row_weight, rows, columns, targets, partials };
            let arguments = launchers::QuantizeTensor {
                common,
                scale: DevicePtr::null(),
                partials,
                scale_out: scale.ptr(),
                out,
                partial_count: absmax_grid.x * absmax_grid.y,
                // The scale itself comes from the kernel before.
                x_is_settled: false,
            };
            // SAFETY: as above; the grid has at most MAX_PARTIALS blocks, and
            // the partial maxima are written before they are read.
            unsafe {
                device.launch_over(stream, &absmax, absmax_grid, &maxima, &lists)?;
                device.launch_over(stream, &tensor, grid, &arguments, &lists)
            }
        }
        Scheme::Token { scales, absmax_limit } => {
            let kernel = x.pick(
                launchers::QUANTIZE_TOKEN_BF16,
                launchers::QUANTIZE_TOKEN_F16,
                launchers::QUANTIZE_TOKEN_F32,
            );
            let BlockRows { blocks, shared, kept_spans } = BlockRows::new(device, rows, columns);
            let (scales, absmax_limit) = (scales.ptr(), absmax_limit.unwrap_or(f32::INFINITY));
            let arguments =
                launchers::QuantizeToken { absmax_limit, common, out, scales, kept_spans, x_is_settled };
            // SAFETY: as above; the shared memory holds the kept spans.
            unsafe { device.launch_over(stream, &kernel.with_shared(shared), blocks, &arguments, &lists) }
        }
        Scheme::Group { group_size, scales, layout } => {
            let kernel = x.pick(
                launchers::QUANTIZE_GROUP_BF16,
                launchers::QUANTIZE_GROUP_F16,
                launchers::QUANTIZE_GROUP_F32,
            );
            let scales = group_scales_out(&scales, &layout, group_size);
            // SAFETY: as above; no two scales have one place.
            unsafe {
                let arguments = launchers::QuantizeGroup { common, out, scales, x_is_settled };
                device.launch_over(stream, &kernel, grid, &arguments, &lists)
            }
        }
    }
}
