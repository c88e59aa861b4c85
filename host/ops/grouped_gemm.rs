//! The grouped GEMM: `D[rows of e, N] = A[rows of e, K] * B[e][N, K]^T` for every expert e, with FP8 operands.
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
//! How many rows an expert has is known on the device alone: the kernels walk the tile schedule that
//! [`permute`](super::permute::permute) or [`tile_schedule`](super::problem_sizes::tile_schedule) wrote for the same
//! offsets. Its `block_m` decides which kernel runs; [`heuristics`] recommends one.

pub mod heuristics;
mod hopper;
mod portable;
pub(super) mod slab_scales;
mod token_sums;

use half::{bf16, f16};

use super::problem_sizes::tile_schedule_entries;
use crate::error::{Error, Result, require};
use crate::fp8::E4m3;
use crate::gpu::buffer::{Slice, SliceMut};
use crate::gpu::device::Device;
use crate::gpu::launch::DevicePtr;
use crate::gpu::stream::Stream;
use crate::kernels::launchers::{self, AScaleKind, BScaleKind, OutType, Scales, Strides};
use heuristics::{Path, Plan};

pub use token_sums::TokenSums;

const OP: &str = "grouped_gemm";

/// Rows and columns of a block that shares a scale.
pub const SCALE_BLOCK: usize = launchers::SCALE_BLOCK as usize;

/// Scales of A.
#[derive(Clone, Copy)]
pub enum AScale<'a> {
    /// f32 `[1]`: one for all of A.
    Call(Slice<'a, f32>),
    /// f32 `[P]`: one per row.
    Row(Slice<'a, f32>),
    /// One per row and 128 columns: that of row r and group g is element `r * row_stride + g * group_stride`.
    ///
    /// The Hopper kernels bring those of a tile's rows by TMA, and take them in the layout `ScaleLayout::group_major` alone, 16-byte
    /// aligned: with a `row_stride` of 1, and where there are several groups a `group_stride` that is at least P, and a multiple of 4.
    /// (P rounded up will do.) The portable kernels take any strides.
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
#[derive(Clone, Copy)]
pub enum BScale<'a> {
    /// f32 `[E_loc]`: one per expert.
    Expert(Slice<'a, f32>),
    /// f32 `[E_loc, N]`: one per output channel.
    Channel(Slice<'a, f32>),
    /// f32 `[E_loc, ceil(N / 128), ceil(K / 128)]`: one per 128 x 128 block.
    Block(Slice<'a, f32>),
}

/// The scales of both operands, as the kernels take them.
pub(super) fn raw_scales(a_scale: &AScale<'_>, b_scale: &BScale<'_>) -> Scales {
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
    Scales { a: a.ptr(), b: b.ptr(), a_kind, b_kind }
}

/// Where D goes.
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

    /// Which token's sum each row goes to.
    fn raw_tokens(&self) -> launchers::TokenSums {
        match self {
            GemmOut::TokenSums(tokens) => tokens.raw(),
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

/// How the sum over K is kept. Scales per group or block are applied every 128 of K in f32 with either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accumulation {
    /// In the tensor core's accumulator, which on some GPUs has fewer bits than f32 (about 14 on Hopper).
    #[default]
    Fast,
    /// As `Fast`, but folded into f32 registers every 128 of K.
    Promoted,
}

/// A tile schedule, as the device has built it or will have when the GEMM runs.
#[derive(Clone, Copy)]
pub struct Schedule<'a> {
    /// Most rows of a tile: one of [`heuristics::BLOCK_M`].
    pub block_m: usize,
    /// [`tile_schedule_entries`] of 16 bytes, built for this `block_m` and for the call's `expert_offsets`. A GEMM uses the
    /// counters in it and leaves them at 0; two GEMMs that run at the same time need a schedule each.
    pub entries: Slice<'a, [u32; 4]>,
}

/// Dimensions of a grouped GEMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmShape {
    /// P, rows of A and D that exist, at least `expert_offsets[E_loc]`.
    pub rows: usize,
    /// N, columns of D: a multiple of 8.
    pub n: usize,
    /// K, what is summed over: a multiple of 16.
    pub k: usize,
    /// E_loc.
    pub experts: usize,
}

/// Arguments of [`grouped_gemm`]. A, B and D are 16-byte aligned.
pub struct GroupedGemm<'a> {
    /// e4m3 `[P, K]`.
    pub a: Slice<'a, E4m3>,
    /// Its scales.
    pub a_scale: AScale<'a>,
    /// e4m3 `[E_loc, N, K]`.
    pub b: Slice<'a, E4m3>,
    /// Its scales.
    pub b_scale: BScale<'a>,
    /// i64 `[E_loc + 1]`: expert e has rows `expert_offsets[e] .. expert_offsets[e + 1]`.
    pub expert_offsets: Slice<'a, i64>,
    /// The row tiles of those offsets.
    pub schedule: Schedule<'a>,
    /// `[P, N]`, or sums `[T, N]`.
    pub out: GemmOut<'a>,
    /// At least [`workspace_bytes`], 16-byte aligned. Its contents do not matter.
    pub workspace: SliceMut<'a, u8>,
    /// The dimensions.
    pub shape: GemmShape,
    /// How the sum is kept.
    pub accumulation: Accumulation,
    /// Which kernels to use.
    pub path: Path,
}

/// Multiplies. One launch; nothing is written past row `expert_offsets[E_loc]`. Sums by token are refused where the portable kernels
/// would multiply.
pub fn grouped_gemm(stream: &Stream, arguments: GroupedGemm<'_>) -> Result<()> {
    arguments.enqueue(stream, false)
}

/// As [`grouped_gemm`], for a schedule that was complete before the kernel that precedes this call in the stream began to write. A
/// kernel for few rows then streams its first weights while that one ends.
///
/// # Safety
/// The kernel that wrote the schedule's tiles is not the one that directly precedes this call in the stream, and every kernel since
/// orders itself behind its predecessor: it was launched without programmatic stream serialization, or each of its threads
/// executes `griddepcontrol.wait` before `griddepcontrol.launch_dependents` and before it exits. The kernels of this library do.
/// The kernel that directly precedes writes neither B nor its scales.
pub unsafe fn grouped_gemm_with_settled_schedule(stream: &Stream, arguments: GroupedGemm<'_>) -> Result<()> {
    arguments.enqueue(stream, true)
}

/// Bytes of workspace that a grouped GEMM with tiles of `block_m` rows needs on this device, whatever its shape.
pub fn workspace_bytes(device: &Device, block_m: usize) -> usize {
    heuristics::partials_bytes(device, block_m)
}

impl GroupedGemm<'_> {
    /// `schedule_is_settled`: see [`grouped_gemm_with_settled_schedule`].
    fn enqueue(&self, stream: &Stream, schedule_is_settled: bool) -> Result<()> {
        self.check(stream)?;
        let plan = heuristics::plan(
            stream.device(),
            &self.shape,
            self.schedule.block_m,
            self.accumulation,
            self.scales_change_along_k(),
            self.path,
        )?;
        match plan {
            Plan::Nothing => Ok(()),
            Plan::Portable { .. } if matches!(self.out, GemmOut::TokenSums(_)) => {
                Err(Error::argument(OP, "out", "TokenSums", "must be D itself for the portable kernels"))
            }
            Plan::Portable { tile, promoted, blocks } => self.launch_portable(stream, tile, promoted, blocks),
            Plan::Hopper { tile, promoted, blocks } => {
                self.launch_hopper(stream, tile, promoted, blocks, schedule_is_settled)
            }
        }
    }

    /// Whether there is a scale per group or block, to be applied every 128 of K.
    fn scales_change_along_k(&self) -> bool {
        change_along_k(&self.a_scale, &self.b_scale)
    }

    fn check(&self, stream: &Stream) -> Result<()> {
        let GemmShape { rows, n, k, experts } = self.shape;
        require(k >= 16 && k.is_multiple_of(16), OP, "k", k, || "must be a positive multiple of 16".into())?;
        require(n >= 8 && n.is_multiple_of(8), OP, "n", n, || "must be a positive multiple of 8".into())?;
        for (name, value) in [("rows", rows), ("n", n), ("k", k), ("experts", experts)] {
            // The kernels count rows, columns and bytes of K in i32, a tile beyond the end included.
            require(value <= i32::MAX as usize - 127, OP, name, value, || "must be below 2^31 - 127".into())?;
        }

        check_matrix(OP, &self.a, "a", elements(OP, "a", &[rows, k])?, stream)?;
        check_matrix(OP, &self.b, "b", elements(OP, "b", &[experts, n, k])?, stream)?;
        let out_elements = elements(OP, "out", &[rows, n])?;
        match &self.out {
            GemmOut::Bf16(out) => check_matrix(OP, &out.as_slice(), "out", out_elements, stream)?,
            GemmOut::F16(out) => check_matrix(OP, &out.as_slice(), "out", out_elements, stream)?,
            GemmOut::F32(out) => check_matrix(OP, &out.as_slice(), "out", out_elements, stream)?,
            GemmOut::TokenSums(tokens) => tokens.check(&self.shape, stream)?,
        }

        check_scales(OP, &self.a_scale, &self.b_scale, &self.shape, stream)?;
        self.expert_offsets.check(OP, "expert_offsets", experts + 1, stream)?;
        let Schedule { block_m, entries } = self.schedule;
        heuristics::check_block_m(OP, block_m)?;
        check_matrix(OP, &entries, "schedule", tile_schedule_entries(rows, experts, block_m), stream)?;
        let workspace = workspace_bytes(stream.device(), block_m);
        check_matrix(OP, &self.workspace.as_slice(), "workspace", workspace, stream)
    }
}

/// Whether there is a scale per group or block, to be applied every 128 of K.
pub(super) fn change_along_k(a_scale: &AScale<'_>, b_scale: &BScale<'_>) -> bool {
    matches!(a_scale, AScale::Group { .. }) || matches!(b_scale, BScale::Block(_))
}

/// Refuses scales that are too few for the shape.
pub(super) fn check_scales(
    op: &'static str,
    a_scale: &AScale<'_>,
    b_scale: &BScale<'_>,
    shape: &GemmShape,
    stream: &Stream,
) -> Result<()> {
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
            require(last.is_some(), op, "a_scale", format!("strides {row_stride}, {group_stride}"), rule)?;
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

/// The product of dimensions, refused where it does not fit.
pub(super) fn elements(op: &'static str, name: &str, dimensions: &[usize]) -> Result<usize> {
    let product = dimensions.iter().try_fold(1usize, |product, &d| product.checked_mul(d));
    let product = product.filter(|&elements| elements <= isize::MAX as usize);
    require(product.is_some(), op, name, format!("{dimensions:?}"), || {
        "must have below 2^63 elements".into()
    })?;
    Ok(product.unwrap_or(0))
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
    let address = slice.ptr().raw();
    require(address.is_multiple_of(16), op, name, format!("{address:#x}"), || {
        "must be 16-byte aligned".into()
    })
}
