//! The first grouped GEMM of a layer with what follows it, in one launch (Hopper): `q = e4m3(activation(A * gate^T, A * up^T))`.
//!
//! ```text
//!   A e4m3 [P, K]     B e4m3 [E_loc, 2I, K]: gate rows 0..I, up rows I..2I
//!
//!   gate = sa * sb * sum over K,  up likewise       f32, in registers
//!   value = activation(gate, up)                    f32
//!   q [P, I] = e4m3(value / scale)                  scale given, or max |value| over 128 columns / 448
//! ```
//!
//! A may also lie in the order of the tokens, `[T, K]`, if the plan gathers: permuted row p is then row `sorted_rows[p] / top_k`
//! of A, or a row of zeros where that is no token, as in padding; nobody writes a token's row `top_k` times.
//!
//! It is [`grouped_gemm`](super::grouped_gemm::grouped_gemm) followed by [`activation`](super::activation::activation) without the
//! products going to memory. Scales per token are not offered: a row's maximum is known only when all its columns are.

use super::activation::{ActivationFunction, Requantization};
use super::grouped_gemm::{
    AScale, BScale, GemmShape, check_matrix, check_matrix_mut, check_plan, check_scales, slab_scales,
};
use super::permutation::Permutation;
use super::quantize::check_groups;
use crate::error::{Error, Result, require};
use crate::fp8::E4m3;
use crate::gpu::buffer::{Slice, SliceMut};
use crate::gpu::launch::DevicePtr;
use crate::gpu::stream::Stream;
use crate::gpu::tensor_map;
use crate::kernels;
use crate::plan::elements;
use crate::plan::tiles::HopperTile;

pub use crate::plan::gemm::{GatedPlan, GatedShape};

const OP: &str = "gated_gemm";

/// Arguments of [`gated_gemm`]. A, B and q are 16-byte aligned.
#[derive(Debug)]
pub struct GatedGemm<'a> {
    /// e4m3 `[P, K]`, or `[T, K]` where rows are gathered.
    pub a: Slice<'a, E4m3>,
    /// Its scales. Where rows are gathered, scales per group are those of the T tokens, in any layout, since they come along
    /// with the rows; scales per row are those of the P permuted rows
    /// ([`Destinations::Scales`](super::quantize::Destinations::Scales)).
    pub a_scale: AScale<'a>,
    /// e4m3 `[E_loc, 2I, K]`.
    pub b: Slice<'a, E4m3>,
    /// Its scales, N being 2I.
    pub b_scale: BScale<'a>,
    /// Which rows are whose, and where rows are gathered whose token's they are, with a tile schedule of the plan's height: the
    /// GEMM counts in it, so that it takes it exclusively ([`Permutation::reborrow`]).
    pub permutation: Permutation<'a>,
    /// What joins gate and up.
    pub function: ActivationFunction,
    /// How to scale: one given scale, or one per row and group of 128.
    pub requantization: Requantization<'a>,
    /// e4m3 `[P, I]`.
    pub q: SliceMut<'a, E4m3>,
    /// At least [`GatedPlan::workspace_bytes`], 16-byte aligned. Its contents do not matter.
    pub workspace: SliceMut<'a, u8>,
    /// Dimensions, kernel and grid, and whether rows are gathered.
    pub plan: &'a GatedPlan,
}

/// Multiplies, activates and quantises. One launch; nothing is written past row `expert_offsets[E_loc]`.
///
/// # Errors
/// Arrays that are too short, not aligned or on another device; a permutation of other sizes than the plan's, or without a
/// schedule of its height; scales that the plan or its kernels cannot have.
pub fn gated_gemm(stream: &Stream, arguments: GatedGemm<'_>) -> Result<()> {
    arguments.enqueue(stream, false)
}

/// As [`gated_gemm`], for a schedule that was complete before the kernel that precedes this call in the stream began to write. A
/// kernel for few rows then streams its first weights while that one ends.
///
/// # Safety
/// As for [`grouped_gemm_with_settled_schedule`](super::grouped_gemm::grouped_gemm_with_settled_schedule).
pub unsafe fn gated_gemm_with_settled_schedule(stream: &Stream, arguments: GatedGemm<'_>) -> Result<()> {
    arguments.enqueue(stream, true)
}

impl GatedGemm<'_> {
    /// `schedule_is_settled`: see [`gated_gemm_with_settled_schedule`].
    fn enqueue(&self, stream: &Stream, schedule_is_settled: bool) -> Result<()> {
        let schedule = self.check(stream)?;
        match self.plan.blocks() {
            0 => Ok(()),
            blocks => self.launch(stream, blocks, schedule, schedule_is_settled),
        }
    }

    /// Compares every argument with the plan; returns the checked tile schedule.
    fn check(&self, stream: &Stream) -> Result<DevicePtr<[u32; 4]>> {
        let plan = self.plan;
        let GatedShape { rows, intermediate, k, experts } = plan.shape();
        check_plan(OP, plan.device(), (rows, experts), &self.permutation, stream)?;
        let blocks_fit = !matches!(self.b_scale, BScale::Block(_)) || intermediate.is_multiple_of(128);
        require(blocks_fit, OP, "intermediate", intermediate, || {
            "must be a positive multiple of 128 with block scales".into()
        })?;
        let shape = plan.shape().gemm();
        let a_rows = if plan.gathers() { self.permutation.tokens() } else { rows };
        check_matrix(OP, &self.a, "a", elements(OP, "a", &[a_rows, k])?, stream)?;
        check_matrix(OP, &self.b, "b", elements(OP, "b", &[experts, shape.n, k])?, stream)?;
        check_matrix_mut(OP, &self.q, "q", elements(OP, "q", &[rows, intermediate])?, stream)?;
        let scaled_rows = if let AScale::Group { .. } = self.a_scale { a_rows } else { rows };
        let scaled = GemmShape { rows: scaled_rows, ..shape };
        check_scales(OP, &self.a_scale, &self.b_scale, &scaled, plan.slab_scales(), stream)?;
        match &self.requantization {
            Requantization::TensorStatic { scale } => scale.check(OP, "scale", 1, stream)?,
            Requantization::Group { group_size, scales, layout } => {
                require(*group_size == 128, OP, "group_size", *group_size, || "must be 128".into())?;
                check_groups(OP, *group_size, scales, layout, (rows, intermediate), stream)?;
            }
            Requantization::Token { .. } => {
                return Err(Error::argument(OP, "requantization", "Token", "must be TensorStatic or Group"));
            }
        }
        check_matrix_mut(OP, &self.workspace, "workspace", plan.workspace_bytes(), stream)?;
        if plan.gathers() {
            self.check_gathered(stream)?;
        }
        self.permutation.checked_schedule(OP, plan.block_m(), stream)
    }

    /// What the kernels that gather count in 32 bits.
    fn check_gathered(&self, stream: &Stream) -> Result<()> {
        let (tokens, k) = (self.permutation.tokens(), self.plan.shape().k);
        // The last number stands for no row.
        let chunks = tokens.saturating_mul(k / 16);
        require(chunks < u32::MAX as usize, OP, "tokens", tokens, || {
            format!("must keep A of {k} columns below 2^36 - 16 bytes")
        })?;
        if let AScale::Group { scales, .. } = self.a_scale {
            let most = u32::MAX as usize / 2;
            require(scales.len() <= most, OP, "a_scale", format!("{} elements", scales.len()), || {
                format!("must have at most {most} elements where rows are gathered")
            })?;
        }
        self.permutation.checked_sorted_rows(OP, stream).map(|_| ())
    }

    fn launch(
        &self,
        stream: &Stream,
        blocks: u32,
        schedule: DevicePtr<[u32; 4]>,
        schedule_is_settled: bool,
    ) -> Result<()> {
        use kernels::{
            HopperNarrowGated8, HopperNarrowGated16, HopperNarrowGated32, HopperNarrowGated64,
            HopperWideGatedFast, HopperWideGatedFastGathered, HopperWideGatedFastGatheredSilu,
            HopperWideGatedFastSilu, HopperWideGatedPromoted, HopperWideGatedPromotedGathered,
            HopperWideGatedPromotedGatheredSilu, HopperWideGatedPromotedSilu,
        };
        let (plan, tile, promoted) = (self.plan, self.plan.tile(), self.plan.promoted());
        let GatedShape { rows, intermediate, k, experts } = plan.shape();
        let b = tensor_map::of_matrix(&self.b, experts * 2 * intermediate, k, 128)?;
        let (a_scale, a_scale_kind, a_scale_row_stride, a_scale_group_stride) = self.a_scale.raw();
        let (b_scale, b_scale_kind) = self.b_scale.raw();
        let (given_scale, q_scales, q_row_stride, q_group_stride) = match &self.requantization {
            Requantization::Group { scales, layout, .. } => {
                (DevicePtr::null(), scales.ptr(), layout.row_stride as u64, layout.group_stride as u64)
            }
            Requantization::TensorStatic { scale } => (scale.ptr(), DevicePtr::null(), 0, 0),
            Requantization::Token { scales } => (DevicePtr::null(), scales.ptr(), 0, 0),
        };
        let (intermediate, k) = (intermediate as u32, k as u32);
        let (q, activation) = (self.q.ptr().cast(), self.function as u32);
        let is_silu = self.function == ActivationFunction::Silu;
        let partials = self.workspace.ptr().cast();
        let (shared, schedule_is_settled) = (tile.shared_bytes(promoted), schedule_is_settled.into());
        macro_rules! launch {
            ($a:ident, $kernel:ident { $($field:ident),* }) => {{
                let a = $a;
                let kernel = $kernel {
                    a, b, a_scale, b_scale, schedule, q, given_scale, q_scales, q_row_stride, q_group_stride,
                    intermediate, k, a_scale_kind, b_scale_kind, activation, $($field),*
                };
                // SAFETY: `check` has compared lengths, alignments and devices with the plan, whose grid is the kernel's, and the
                // maps were made of the matrices. The permutation has the plan's sizes, so that the tiles of its schedule,
                // built for this height, are inside the P rows and E_loc experts; it is borrowed exclusively, as are the partial
                // sums. A gathered row that belongs to no token is zeros. No two scales have one place.
                unsafe { stream.device().launch(stream, blocks, shared, &kernel) }
            }};
        }
        if plan.gathers() {
            let permutation = &self.permutation;
            let (a, sorted_rows) = (self.a.ptr().cast(), permutation.checked_sorted_rows(OP, stream)?);
            let (tokens, top_k) = (permutation.tokens() as u32, permutation.top_k() as u32);
            return match (promoted, is_silu) {
                (true, true) => launch!(
                    a,
                    HopperWideGatedPromotedGatheredSilu {
                        a_scale_row_stride,
                        a_scale_group_stride,
                        sorted_rows,
                        tokens,
                        top_k
                    }
                ),
                (true, false) => {
                    launch!(
                        a,
                        HopperWideGatedPromotedGathered {
                            a_scale_row_stride,
                            a_scale_group_stride,
                            sorted_rows,
                            tokens,
                            top_k
                        }
                    )
                }
                (false, true) => {
                    launch!(a, HopperWideGatedFastGatheredSilu { sorted_rows, tokens, top_k })
                }
                (false, false) => launch!(a, HopperWideGatedFastGathered { sorted_rows, tokens, top_k }),
            };
        }
        let a_slab_scales = slab_scales::of_a(OP, &self.a_scale, &plan.shape().gemm(), tile)?;
        let a = tensor_map::of_matrix(&self.a, rows, plan.shape().k, tile.a_box_rows())?;
        match (tile, promoted, is_silu) {
            (HopperTile::Narrow8, ..) => {
                launch!(a, HopperNarrowGated8 { a_slab_scales, partials, schedule_is_settled })
            }
            (HopperTile::Narrow16, ..) => {
                launch!(a, HopperNarrowGated16 { a_slab_scales, partials, schedule_is_settled })
            }
            (HopperTile::Narrow32, ..) => {
                launch!(a, HopperNarrowGated32 { a_slab_scales, partials, schedule_is_settled })
            }
            (HopperTile::Narrow64, ..) => {
                launch!(a, HopperNarrowGated64 { a_slab_scales, partials, schedule_is_settled })
            }
            (HopperTile::Wide, true, true) => {
                launch!(a, HopperWideGatedPromotedSilu { a_slab_scales })
            }
            (HopperTile::Wide, true, false) => {
                launch!(a, HopperWideGatedPromoted { a_slab_scales })
            }
            (HopperTile::Wide, false, true) => launch!(a, HopperWideGatedFastSilu {}),
            (HopperTile::Wide, false, false) => launch!(a, HopperWideGatedFast {}),
        }
    }
}
