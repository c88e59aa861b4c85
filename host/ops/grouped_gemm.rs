//! The grouped GEMM: `D[rows of e, N] = A[rows of e, K] * B[e][N, K]^T` for every expert e, with FP8
//! operands.
//!
//! ```text
//!   A e4m3 [P, K], rows in expert order   B e4m3 [E_loc, N, K]           D bf16, f16 or f32 [P, N]
//!
//!   expert_offsets[0] ->  +-------+       +---+   one matrix
//!                         |  e 0  |   *   | 0 |   per expert    =    D = cast(sa * sb * sum over K)
//!   expert_offsets[1] ->  +-------+       +---+
//!                         |  e 1  |       | 1 |                      rows at or past expert_offsets[E_loc]
//!                         +-------+       +---+                      are not written
//! ```
//!
//! How many rows an expert has is known on the device alone: the kernels walk the tile schedule of the
//! [`Permutation`]. Which kernel runs, on how many blocks, is the [`GemmPlan`]'s.

pub(super) mod hopper;
mod portable;
pub(super) mod slab_scales;
mod token_sums;

use half::{bf16, f16};

use super::permutation::Permutation;
use crate::config::COPY_BYTES;
use crate::error::{Error, Result, require};
use crate::fp8::E4m3;
use crate::gpu::buffer::{Slice, SliceMut};
use crate::gpu::device::Device;
use crate::gpu::launch::DevicePtr;
use crate::gpu::stream::Stream;
use crate::kernels::launchers::{self, AScaleKind, BScaleKind, OutType, Scales, Strides};
use crate::plan::elements;
use crate::plan::gemm::GemmKernel;
use crate::plan::packed::weight_len;

pub use crate::config::{Accumulation, Path};
pub use crate::plan::gemm::{GemmOptions, GemmPlan, GemmShape, block_m};
pub use token_sums::TokenSums;

const OP: &str = "grouped_gemm";

/// Rows and columns of a block that shares a scale.
pub const SCALE_BLOCK: usize = crate::config::SCALE_BLOCK;

/// Scales of A.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum AScale<'a> {
    /// f32 `[1]`: one for all of A.
    Call(Slice<'a, f32>),
    /// f32 `[P]`: one per row.
    Row(Slice<'a, f32>),
    /// One per row and 128 columns: that of row r and group g is element `r * row_stride + g * group_stride`.
    ///
    /// The Hopper kernels bring those of a tile's rows by TMA, and take them in the layout
    /// `ScaleLayout::group_major` alone, 16-byte aligned: with a `row_stride` of 1, and where there are
    /// several groups a `group_stride` that is at least P, and a multiple of 4. (P rounded up will do.) The
    /// portable kernels take any strides.
    Group {
        /// The scales.
        scales: Slice<'a, f32>,
        /// Elements from a row to the next.
        row_stride: usize,
        /// Elements from a group to the next.
        group_stride: usize,
    },
}

impl AScale<'_> {
    /// Strides between scales, as the kernels take them; those of other kinds than `Group` are not read.
    pub(super) fn strides(&self) -> Strides {
        match *self {
            AScale::Group { row_stride, group_stride, .. } => {
                Strides { row: row_stride as u64, group: group_stride as u64 }
            }
            AScale::Call(_) | AScale::Row(_) => Strides { row: 0, group: 0 },
        }
    }
}

/// Scales of B.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum BScale<'a> {
    /// f32 `[E_loc]`: one per expert.
    Expert(Slice<'a, f32>),
    /// f32 `[E_loc, N]`: one per output channel.
    Channel(Slice<'a, f32>),
    /// f32 `[E_loc, ceil(N / 128), ceil(K / 128)]`: one per 128 x 128 block.
    Block(Slice<'a, f32>),
}

/// The scales of both operands and the bias, as the kernels take them.
pub(super) fn raw_scales(a_scale: &AScale<'_>, b_scale: &BScale<'_>, bias: Option<Slice<'_, f32>>) -> Scales {
    let (a, a_kind) = match a_scale {
        AScale::Call(scale) => (scale, AScaleKind::Call),
        AScale::Row(scales) => (scales, AScaleKind::Row),
        AScale::Group { scales, .. } => (scales, AScaleKind::Group),
    };
    let (b, b_kind) = match b_scale {
        BScale::Expert(scales) => (scales, BScaleKind::Expert),
        BScale::Channel(scales) => (scales, BScaleKind::Channel),
        BScale::Block(scales) => (scales, BScaleKind::Block),
    };
    let bias = bias.map_or(DevicePtr::null(), |bias| bias.ptr());
    Scales { a: a.ptr(), b: b.ptr(), bias, a_kind, b_kind }
}

/// Rows of B, and bytes of K, that are asked for at a time.
pub(super) const B_BOX: [u32; 2] = [launchers::B_BOX_ROWS, launchers::SLAB];

/// Where D goes.
#[derive(Debug)]
#[non_exhaustive]
pub enum GemmOut<'a> {
    /// bf16 `[P, N]`.
    Bf16(SliceMut<'a, bf16>),
    /// f16 `[P, N]`; what is too large becomes an infinity.
    F16(SliceMut<'a, f16>),
    /// f32 `[P, N]`.
    F32(SliceMut<'a, f32>),
    /// f32 `[T, N]`: added up by token, in any order.
    TokenSums(TokenSums<'a>),
}

impl GemmOut<'_> {
    /// Address and type, as the kernels take them.
    fn raw(&self) -> (DevicePtr<u8>, OutType) {
        match self {
            GemmOut::Bf16(out) => (out.ptr().cast(), OutType::Bf16),
            GemmOut::F16(out) => (out.ptr().cast(), OutType::F16),
            GemmOut::F32(out) => (out.ptr().cast(), OutType::F32),
            GemmOut::TokenSums(tokens) => (tokens.sums.ptr().cast(), OutType::TokenSums),
        }
    }

    /// Bytes that are written, or added to.
    fn bytes(&self) -> usize {
        match self {
            Self::Bf16(out) => 2 * out.len(),
            Self::F16(out) => 2 * out.len(),
            Self::F32(out) => 4 * out.len(),
            Self::TokenSums(sums) => 4 * sums.sums.len(),
        }
    }

    /// Which token's sum each row goes to.
    fn raw_tokens(&self, permutation: &Permutation<'_>) -> launchers::TokenSums {
        match self {
            GemmOut::TokenSums(tokens) => tokens.raw(permutation),
            _ => token_sums::NONE,
        }
    }
}

impl<'a> From<SliceMut<'a, bf16>> for GemmOut<'a> {
    fn from(slice: SliceMut<'a, bf16>) -> Self {
        Self::Bf16(slice)
    }
}

impl<'a> From<SliceMut<'a, f16>> for GemmOut<'a> {
    fn from(slice: SliceMut<'a, f16>) -> Self {
        Self::F16(slice)
    }
}

impl<'a> From<SliceMut<'a, f32>> for GemmOut<'a> {
    fn from(slice: SliceMut<'a, f32>) -> Self {
        Self::F32(slice)
    }
}

/// Arguments of [`grouped_gemm`]. A, B and D are 16-byte aligned.
#[derive(Debug)]
pub struct GroupedGemm<'a> {
    /// e4m3 `[P, K]`.
    pub a: Slice<'a, E4m3>,
    /// Its scales.
    pub a_scale: AScale<'a>,
    /// e4m3 `[E_loc, N, K]`, or packed as the plan has it.
    pub b: Slice<'a, E4m3>,
    /// Its scales.
    pub b_scale: BScale<'a>,
    /// f32 `[E_loc, N]`, added to each scaled sum, before a weight where rows are added up by token.
    pub bias: Option<Slice<'a, f32>>,
    /// Which rows are whose, with a tile schedule of the plan's height: the GEMM counts in it, so that it
    /// takes it exclusively ([`Permutation::reborrow`]).
    pub permutation: Permutation<'a>,
    /// `[P, N]`, or sums `[T, N]`.
    pub out: GemmOut<'a>,
    /// At least [`GemmPlan::workspace_bytes`], 16-byte aligned. Its contents do not matter.
    pub workspace: SliceMut<'a, u8>,
    /// Dimensions, kernel and grid.
    pub plan: &'a GemmPlan,
}

/// Multiplies. One launch; nothing is written past row `expert_offsets[E_loc]`.
///
/// # Errors
/// Arrays that are too short, not aligned or on another device; a permutation of other sizes than the plan's,
/// or without a schedule of its height; scales that the plan or its kernels cannot have; sums by token where
/// the portable kernels would multiply.
pub fn grouped_gemm(stream: &Stream, arguments: GroupedGemm<'_>) -> Result<()> {
    arguments.enqueue(stream, false)
}

/// As [`grouped_gemm`], for a schedule that was complete before the kernel that precedes this call in the
/// stream began to write. Hopper's kernels then stream their first weights while that one ends.
///
/// # Safety
/// The kernel that wrote the schedule's tiles is not the one that directly precedes this call in the stream,
/// and every kernel since orders itself behind its predecessor: it was launched without programmatic stream
/// serialization, or each of its threads executes `griddepcontrol.wait` before
/// `griddepcontrol.launch_dependents` and before it exits. The kernels of this library do. The kernel that
/// directly precedes writes neither B nor its scales.
///
/// # Errors
/// Those of [`grouped_gemm`].
pub unsafe fn grouped_gemm_with_settled_schedule(stream: &Stream, arguments: GroupedGemm<'_>) -> Result<()> {
    arguments.enqueue(stream, true)
}

impl GroupedGemm<'_> {
    /// `schedule_is_settled`: see [`grouped_gemm_with_settled_schedule`].
    fn enqueue(&self, stream: &Stream, schedule_is_settled: bool) -> Result<()> {
        let schedule = self.check(stream)?;
        match self.plan.kernel() {
            GemmKernel::Nothing => Ok(()),
            GemmKernel::Portable { .. } if matches!(self.out, GemmOut::TokenSums(_)) => {
                Err(Error::argument(OP, "out", "TokenSums", "must be D itself for the portable kernels"))
            }
            GemmKernel::Portable { tile, blocks } => self.launch_portable(stream, tile, blocks, schedule),
            GemmKernel::Hopper { tile, blocks } => {
                self.launch_hopper(stream, tile, blocks, schedule, schedule_is_settled)
            }
        }
    }

    /// Compares every argument with the plan; returns the checked tile schedule.
    fn check(&self, stream: &Stream) -> Result<DevicePtr<[u32; 4]>> {
        let plan = self.plan;
        let GemmShape { rows, n, k, experts } = plan.shape();
        check_plan(OP, plan.device(), (rows, experts), &self.permutation, stream)?;
        check_matrix(OP, &self.a, "a", elements(OP, "a", &[rows, k])?, stream)?;
        check_matrix(OP, &self.b, "b", weight_len(OP, plan.weights(), [experts, n, k])?, stream)?;
        let out_elements = elements(OP, "out", &[rows, n])?;
        match &self.out {
            GemmOut::Bf16(out) => check_matrix_mut(OP, out, "out", out_elements, stream)?,
            GemmOut::F16(out) => check_matrix_mut(OP, out, "out", out_elements, stream)?,
            GemmOut::F32(out) => check_matrix_mut(OP, out, "out", out_elements, stream)?,
            GemmOut::TokenSums(sums) => sums.check(n, &self.permutation, stream)?,
        }
        check_scales(OP, &self.a_scale, &self.b_scale, &plan.shape(), plan.slab_scales(), stream)?;
        check_bias(OP, self.bias, &plan.shape(), stream)?;
        check_matrix_mut(OP, &self.workspace, "workspace", plan.workspace_bytes(), stream)?;
        self.permutation.checked_schedule(OP, plan.block_m(), stream)
    }
}

/// Refuses a plan for another device or other sizes than those of `permutation`.
pub(super) fn check_plan(
    op: &'static str,
    device: &Device,
    (rows, experts): (usize, usize),
    permutation: &Permutation<'_>,
    stream: &Stream,
) -> Result<()> {
    require(device.same_as(stream.device()), op, "plan", format_args!("a plan for {device}"), || {
        format!("must be for the stream's device, {}", stream.device())
    })?;
    permutation.check_size(op, "rows", rows, (permutation.rows(), "rows"))?;
    permutation.check_size(op, "experts", experts, (permutation.local_experts(), "local experts"))?;
    permutation.check(op, stream)
}

/// Refuses scales that are too few for the shape, or change along K where the plan has none that do.
pub(super) fn check_scales(
    op: &'static str,
    a_scale: &AScale<'_>,
    b_scale: &BScale<'_>,
    shape: &GemmShape,
    slab_scales: bool,
    stream: &Stream,
) -> Result<()> {
    let change_along_k = matches!(a_scale, AScale::Group { .. }) || matches!(b_scale, BScale::Block(_));
    require(slab_scales || !change_along_k, op, "slab_scales", slab_scales, || {
        "must be true in the plan for scales per group or block".into()
    })?;
    let GemmShape { rows, n, k, experts } = *shape;
    let groups = k.div_ceil(SCALE_BLOCK);
    match *a_scale {
        AScale::Call(scale) => scale.check(op, "a_scale", 1, stream)?,
        AScale::Row(scales) => scales.check(op, "a_scale", rows, stream)?,
        AScale::Group { scales, row_stride, group_stride } => {
            let last = elements(op, "a_scale", &[rows.saturating_sub(1), row_stride])?.checked_add(elements(
                op,
                "a_scale",
                &[groups - 1, group_stride],
            )?);
            let rule = || "strides must keep scales inside 2^63 elements".to_owned();
            require(
                last.is_some(),
                op,
                "a_scale",
                format_args!("strides {row_stride}, {group_stride}"),
                rule,
            )?;
            scales.check(
                op,
                "a_scale",
                last.map_or(0, |last| if rows == 0 { 0 } else { last + 1 }),
                stream,
            )?;
        }
    }
    match *b_scale {
        BScale::Expert(scales) => scales.check(op, "b_scale", experts, stream)?,
        BScale::Channel(scales) => {
            scales.check(op, "b_scale", elements(op, "b_scale", &[experts, n])?, stream)?
        }
        BScale::Block(scales) => {
            let blocks = elements(op, "b_scale", &[experts, n.div_ceil(SCALE_BLOCK), groups])?;
            scales.check(op, "b_scale", blocks, stream)?;
        }
    }
    Ok(())
}

/// Refuses a bias that is too short for the shape, or not aligned for pairs.
pub(super) fn check_bias(
    op: &'static str,
    bias: Option<Slice<'_, f32>>,
    shape: &GemmShape,
    stream: &Stream,
) -> Result<()> {
    let Some(bias) = bias else { return Ok(()) };
    check_matrix(op, &bias, "bias", elements(op, "bias", &[shape.experts, shape.n])?, stream)
}

/// Refuses a matrix that is too short, on another device, or not aligned for 16-byte copies.
pub(super) fn check_matrix<T: bytemuck::Pod>(
    op: &'static str,
    slice: &Slice<'_, T>,
    name: &str,
    len: usize,
    stream: &Stream,
) -> Result<()> {
    slice.check(op, name, len, stream)?;
    check_alignment(op, name, slice.ptr().raw())
}

/// As [`check_matrix`], of one that is written.
pub(super) fn check_matrix_mut<T: bytemuck::Pod>(
    op: &'static str,
    slice: &SliceMut<'_, T>,
    name: &str,
    len: usize,
    stream: &Stream,
) -> Result<()> {
    slice.check(op, name, len, stream)?;
    check_alignment(op, name, slice.ptr().raw())
}

fn check_alignment(op: &'static str, name: &str, address: u64) -> Result<()> {
    require(address.is_multiple_of(COPY_BYTES as u64), op, name, format_args!("{address:#x}"), || {
        format!("must be {COPY_BYTES}-byte aligned")
    })
}
