//! The first grouped GEMM of a layer with what follows it, in one launch (Hopper): `q = e4m3(activation(A *
//! gate^T, A * up^T))`.
//!
//! ```text
//!   A e4m3 [P, K]     B e4m3 [E_loc, 2I, K]: gate rows 0..I, up rows I..2I
//!
//!   gate = sa * sb * sum over K,  up likewise       f32, in registers
//!   value = activation(gate, up)                    f32
//!   q [P, I] = e4m3(value / scale)                  scale given, or max |value| over 128 columns / 448
//! ```
//!
//! A may also lie in the order of the tokens, `[T, K]`, if the plan gathers: permuted row p is then row
//! `sorted_rows[p] / top_k` of A, or a row of zeros where that is no token, as in padding; nobody writes a
//! token's row `top_k` times.
//!
//! It is [`grouped_gemm`](super::grouped_gemm::grouped_gemm) followed by
//! [`activation`](super::activation::activation) without the products going to memory. Scales per token are
//! not offered: a row's maximum is known only when all its columns are.

use super::activation::{ActivationFunction, Gating, Requantization};
use super::grouped_gemm::hopper::weights;
use super::grouped_gemm::{
    AScale, BScale, GemmShape, check_bias, check_matrix, check_matrix_mut, check_plan, check_scales,
    raw_scales, slab_scales,
};
use super::permutation::Permutation;
use super::quantize::check_groups;
use crate::config::{COPY_BYTES, SCALE_BLOCK};
use crate::error::{Error, Result, require};
use crate::fp8::E4m3;
use crate::gpu::buffer::{Slice, SliceMut};
use crate::gpu::launch::DevicePtr;
use crate::gpu::stream::Stream;
use crate::gpu::tensor_map;
use crate::kernels::launchers;
use crate::plan::elements;
use crate::plan::packed::{WeightLayout, weight_len};
use crate::plan::tiles::HopperTile;

pub use crate::plan::gemm::{GatedPlan, GatedShape};

const OP: &str = "gated_gemm";

/// Arguments of [`gated_gemm`]. A, B and q are 16-byte aligned.
#[derive(Debug)]
pub struct GatedGemm<'a> {
    /// e4m3 `[P, K]`, or `[T, K]` where rows are gathered.
    pub a: Slice<'a, E4m3>,
    /// Its scales. Where rows are gathered, scales per group are those of the T tokens, in any layout, since
    /// they come along with the rows; scales per row are those of the P permuted rows
    /// ([`Destinations::Scales`](super::quantize::Destinations::Scales)).
    pub a_scale: AScale<'a>,
    /// e4m3 `[E_loc, 2I, K]`, or packed as the plan has it.
    pub b: Slice<'a, E4m3>,
    /// Its scales, N being 2I.
    pub b_scale: BScale<'a>,
    /// Which rows are whose, and where rows are gathered whose token's they are, with a tile schedule of the
    /// plan's height: the GEMM counts in it, so that it takes it exclusively ([`Permutation::reborrow`]).
    pub permutation: Permutation<'a>,
    /// f32 `[E_loc, 2I]`, added to the scaled sums: the bias of gate and up.
    pub bias: Option<Slice<'a, f32>>,
    /// What joins gate and up. Without a gate B is `[E_loc, I, K]`, up alone, and the kernels multiply by it
    /// twice: what comes from memory is the same, what is multiplied is not.
    pub gating: Gating,
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
/// Arrays that are too short, not aligned or on another device; a permutation of other sizes than the plan's,
/// or without a schedule of its height; scales that the plan or its kernels cannot have.
pub fn gated_gemm(stream: &Stream, arguments: GatedGemm<'_>) -> Result<()> {
    arguments.enqueue(stream, false)
}

/// As [`gated_gemm`], for a schedule that was complete before the kernel that precedes this call in the
/// stream began to write. Hopper's kernels then stream their first weights while that one ends.
///
/// # Safety
/// As for [`grouped_gemm_with_settled_schedule`](super::grouped_gemm::grouped_gemm_with_settled_schedule).
///
/// # Errors
/// Those of [`gated_gemm`].
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
        let blocks_fit =
            !matches!(self.b_scale, BScale::Block(_)) || intermediate.is_multiple_of(SCALE_BLOCK);
        require(blocks_fit, OP, "intermediate", intermediate, || {
            format!("must be a positive multiple of {SCALE_BLOCK} with block scales")
        })?;
        self.gating.check(OP, "gating.limit")?;
        let n = intermediate + self.gating.up(intermediate);
        let packs = plan.weights() == WeightLayout::Checkpoint || n == 2 * intermediate;
        require(packs, OP, "weights", "Packed", || "must be Checkpoint without a gate".into())?;
        let shape = GemmShape { n, ..plan.shape().gemm() };
        let a_rows = if plan.gathers() { self.permutation.tokens() } else { rows };
        check_matrix(OP, &self.a, "a", elements(OP, "a", &[a_rows, k])?, stream)?;
        check_matrix(OP, &self.b, "b", weight_len(OP, plan.weights(), [experts, shape.n, k])?, stream)?;
        check_matrix_mut(OP, &self.q, "q", elements(OP, "q", &[rows, intermediate])?, stream)?;
        let scaled_rows = if let AScale::Group { .. } = self.a_scale { a_rows } else { rows };
        let scaled = GemmShape { rows: scaled_rows, ..shape };
        check_scales(OP, &self.a_scale, &self.b_scale, &scaled, plan.slab_scales(), stream)?;
        check_bias(OP, self.bias, &shape, stream)?;
        match &self.requantization {
            Requantization::TensorStatic { scale } => scale.check(OP, "scale", 1, stream)?,
            Requantization::Group { group_size, scales, layout } => {
                let columns = launchers::GATED_COLUMNS as usize;
                require(*group_size == columns, OP, "group_size", *group_size, || {
                    format!("must be {columns}")
                })?;
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
        let chunks = tokens.saturating_mul(k / COPY_BYTES);
        require(chunks < u32::MAX as usize, OP, "tokens", tokens, || {
            format!("must keep A of {k} columns below 2^32 - 1 times {COPY_BYTES} bytes")
        })?;
        if let AScale::Group { scales, .. } = self.a_scale {
            let most = u32::MAX as usize / 2;
            require(scales.len() <= most, OP, "a_scale", format_args!("{} elements", scales.len()), || {
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
        let (plan, tile, promoted) = (self.plan, self.plan.tile(), self.plan.promoted());
        let GatedShape { rows, intermediate, k, experts } = plan.shape();
        let n = intermediate + self.gating.up(intermediate);
        let (b, b_packed) = weights(&self.b, plan.weights(), experts * n, k)?;
        let scales = raw_scales(&self.a_scale, &self.b_scale, self.bias);
        let out = self.raw_out();
        let (intermediate, k) = (intermediate as u32, k as u32);
        let is_silu =
            self.gating.function == ActivationFunction::Silu && self.gating.bound() == f32::INFINITY;
        let lists = self.permutation.unchanged();
        if plan.gathers() {
            let a = launchers::TokenRows {
                a: self.a.ptr().cast(),
                sorted_rows: self.permutation.checked_sorted_rows(OP, stream)?,
                tokens: self.permutation.tokens() as u32,
                top_k: self.permutation.top_k() as u32,
                scale_strides: self.a_scale.strides(),
            };
            let arguments = launchers::HopperGathered {
                a,
                b,
                b_packed,
                intermediate,
                k,
                scales,
                schedule,
                out,
                schedule_is_settled,
            };
            let kernel = match (promoted, is_silu) {
                (true, true) => launchers::HOPPER_WIDE_GATED_PROMOTED_GATHERED_SILU,
                (true, false) => launchers::HOPPER_WIDE_GATED_PROMOTED_GATHERED,
                (false, true) => launchers::HOPPER_WIDE_GATED_FAST_GATHERED_SILU,
                (false, false) => launchers::HOPPER_WIDE_GATED_FAST_GATHERED,
            };
            // SAFETY: as below. A gathered row that belongs to no token is zeros.
            return unsafe { stream.device().launch_over(stream, &kernel, blocks, &arguments, &lists) };
        }
        let arguments = launchers::HopperGated {
            a: tensor_map::of_matrix(&self.a, (rows, plan.shape().k), tile.a_box())?,
            b,
            b_packed,
            a_slab_scales: slab_scales::of_a(OP, &self.a_scale, &plan.shape().gemm(), tile)?,
            intermediate,
            k,
            scales,
            schedule,
            partials: self.workspace.ptr().cast(),
            out,
            schedule_is_settled,
        };
        let kernel = match (tile, promoted, is_silu) {
            (HopperTile::Narrow8, ..) => launchers::HOPPER_NARROW_GATED_8,
            (HopperTile::Narrow16, ..) => launchers::HOPPER_NARROW_GATED_16,
            (HopperTile::Narrow32, ..) => launchers::HOPPER_NARROW_GATED_32,
            (HopperTile::Wide, true, true) => launchers::HOPPER_WIDE_GATED_PROMOTED_SILU,
            (HopperTile::Wide, true, false) => launchers::HOPPER_WIDE_GATED_PROMOTED,
            (HopperTile::Wide, false, true) => launchers::HOPPER_WIDE_GATED_FAST_SILU,
            (HopperTile::Wide, false, false) => launchers::HOPPER_WIDE_GATED_FAST,
        };
        // SAFETY: `check` has compared lengths, alignments and devices with the plan, whose grid is the
        // kernel's, and the maps were made of the matrices. The permutation has the plan's sizes, so that the
        // tiles of its schedule, built for this height, are inside the P rows and E_loc experts, if its lists
        // are unchanged; it is borrowed exclusively, as are the partial sums. No two scales have one place.
        unsafe { stream.device().launch_over(stream, &kernel, blocks, &arguments, &lists) }
    }

    /// Where the results go, as the kernels take it.
    fn raw_out(&self) -> launchers::Requantization {
        let (given_scale, scales, strides) = match &self.requantization {
            Requantization::Group { scales, layout, .. } => (DevicePtr::null(), scales.ptr(), layout.raw()),
            Requantization::TensorStatic { scale } => {
                (scale.ptr(), DevicePtr::null(), launchers::Strides { row: 0, group: 0 })
            }
            // Refused by `check`.
            Requantization::Token { scales } => {
                (DevicePtr::null(), scales.ptr(), launchers::Strides { row: 1, group: 0 })
            }
        };
        launchers::Requantization {
            q: self.q.ptr().cast(),
            given_scale,
            scales,
            strides,
            gating: self.gating.raw(self.plan.shape().intermediate as u32),
        }
    }
}
