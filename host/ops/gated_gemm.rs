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
//! A may also lie in the order of the tokens, `[T, K]`, with the permutation beside it ([`GatheredRows`]): the kernel then gathers
//! its rows, and nobody writes a token's row `top_k` times. Its scales are those of the permuted rows in either case.
//!
//! It is [`grouped_gemm`](super::grouped_gemm::grouped_gemm) followed by [`activation`](super::activation::activation) without the
//! products going to memory. Scales per token are not offered: a row's maximum is known only when all its columns are.

use super::activation::{ActivationFunction, Requantization};
use super::grouped_gemm::heuristics::{self, HopperTile, Path};
use super::grouped_gemm::slab_scales;
use super::grouped_gemm::{
    AScale, Accumulation, BScale, GemmShape, Schedule, change_along_k, check_matrix, check_scales, elements,
    workspace_bytes,
};
use super::problem_sizes::{TILE_SCHEDULE_HEADER, tile_schedule_entries};
use super::quantize::check_groups;
use crate::error::{Error, Result, require};
use crate::fp8::E4m3;
use crate::gpu::buffer::{Slice, SliceMut};
use crate::gpu::device::Device;
use crate::gpu::launch::DevicePtr;
use crate::gpu::stream::Stream;
use crate::gpu::tensor_map;
use crate::kernels;

const OP: &str = "gated_gemm";

/// Dimensions of a gated GEMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatedShape {
    /// P, rows of A and q that exist, at least `expert_offsets[E_loc]`.
    pub rows: usize,
    /// I, columns of q: a multiple of 16; of 128 with block scales of B, so that the up half begins at a block.
    pub intermediate: usize,
    /// K, what is summed over: a multiple of 16.
    pub k: usize,
    /// E_loc.
    pub experts: usize,
}

impl GatedShape {
    /// As the shape of a grouped GEMM with gate and up side by side.
    pub fn gemm(&self) -> GemmShape {
        GemmShape { rows: self.rows, n: 2 * self.intermediate, k: self.k, experts: self.experts }
    }
}

/// Where the rows of A are, if they are not in permuted order: permuted row p is row `sorted_rows[p] / top_k` of A, or a row of
/// zeros where that is not one of its `tokens` rows, as in padding.
#[derive(Clone, Copy)]
pub struct GatheredRows<'a> {
    /// i32 `[P]`, from [`permute`](super::permute::permute).
    pub sorted_rows: Slice<'a, i32>,
    /// T, rows of A.
    pub tokens: usize,
    /// k of the permutation.
    pub top_k: usize,
}

/// Arguments of [`gated_gemm`]. A, B and q are 16-byte aligned.
pub struct GatedGemm<'a> {
    /// e4m3 `[P, K]`, or `[T, K]` where rows are gathered.
    pub a: Slice<'a, E4m3>,
    /// Its scales. Where rows are gathered, scales per group are those of the T tokens, in any layout, since they come along with the
    /// rows; scales per row are those of the P permuted rows ([`Destinations::Scales`](super::quantize::Destinations::Scales)).
    pub a_scale: AScale<'a>,
    /// Which rows of A to gather, in tiles of 128 rows; `None` for all, in order.
    pub rows: Option<GatheredRows<'a>>,
    /// e4m3 `[E_loc, 2I, K]`.
    pub b: Slice<'a, E4m3>,
    /// Its scales, N being 2I.
    pub b_scale: BScale<'a>,
    /// i64 `[E_loc + 1]`: expert e has rows `expert_offsets[e] .. expert_offsets[e + 1]`.
    pub expert_offsets: Slice<'a, i64>,
    /// The row tiles of those offsets.
    pub schedule: Schedule<'a>,
    /// What joins gate and up.
    pub function: ActivationFunction,
    /// How to scale: one given scale, or one per row and group of 128.
    pub requantization: Requantization<'a>,
    /// e4m3 `[P, I]`.
    pub q: SliceMut<'a, E4m3>,
    /// At least [`workspace_bytes`], 16-byte aligned. Its contents do not matter.
    pub workspace: SliceMut<'a, u8>,
    /// The dimensions.
    pub shape: GatedShape,
    /// How the sum is kept.
    pub accumulation: Accumulation,
    /// Which kernels to use.
    pub path: Path,
}

/// Whether `path` leads to a gated kernel on this device.
pub fn is_supported(device: &Device, path: Path) -> bool {
    heuristics::takes_hopper(OP, device, path).unwrap_or(false)
}

/// Multiplies, activates and quantises. One launch; nothing is written past row `expert_offsets[E_loc]`.
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
        let (device, path) = (stream.device(), self.path);
        let hopper = heuristics::takes_hopper(OP, device, path)?;
        require(hopper, OP, "path", format!("{path:?}"), || {
            "must lead to the Hopper kernels: others have no gated GEMM".into()
        })?;
        let tile = self.check(stream)?;
        let shape = self.shape.gemm();
        let promoted =
            change_along_k(&self.a_scale, &self.b_scale) || self.accumulation == Accumulation::Promoted;
        if shape.rows == 0 || shape.experts == 0 {
            return Ok(());
        }
        let row_tiles =
            tile_schedule_entries(shape.rows, shape.experts, tile.block_m()) - TILE_SCHEDULE_HEADER;
        let items = row_tiles
            .saturating_mul(self.shape.intermediate.div_ceil(128).next_multiple_of(tile.cluster() as usize));
        heuristics::check_slabs(OP, items, &shape)?;
        let blocks = heuristics::hopper_blocks(OP, device, tile, items, path)?;
        self.launch(stream, tile, promoted, blocks, schedule_is_settled)
    }

    fn check(&self, stream: &Stream) -> Result<HopperTile> {
        let GatedShape { rows, intermediate, k, experts } = self.shape;
        require(k >= 16 && k.is_multiple_of(16), OP, "k", k, || "must be a positive multiple of 16".into())?;
        let multiple = if matches!(self.b_scale, BScale::Block(_)) { 128 } else { 16 };
        let fits = intermediate > 0 && intermediate.is_multiple_of(multiple);
        require(fits, OP, "intermediate", intermediate, || {
            format!("must be a positive multiple of {multiple}")
        })?;
        let sizes = [("rows", rows), ("intermediate", 2 * intermediate), ("k", k), ("experts", experts)];
        for (name, value) in sizes {
            require(value <= i32::MAX as usize - 127, OP, name, value, || "must be below 2^31 - 127".into())?;
        }
        let shape = self.shape.gemm();
        let a_rows = self.rows.map_or(rows, |gathered| gathered.tokens);
        check_matrix(OP, &self.a, "a", elements(OP, "a", &[a_rows, k])?, stream)?;
        check_matrix(OP, &self.b, "b", elements(OP, "b", &[experts, shape.n, k])?, stream)?;
        check_matrix(OP, &self.q.as_slice(), "q", elements(OP, "q", &[rows, intermediate])?, stream)?;
        let scaled_rows = if let AScale::Group { .. } = self.a_scale { a_rows } else { rows };
        check_scales(OP, &self.a_scale, &self.b_scale, &GemmShape { rows: scaled_rows, ..shape }, stream)?;
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
        self.expert_offsets.check(OP, "expert_offsets", experts + 1, stream)?;
        let Schedule { block_m, entries } = self.schedule;
        heuristics::check_block_m(OP, block_m)?;
        check_matrix(OP, &entries, "schedule", tile_schedule_entries(rows, experts, block_m), stream)?;
        let workspace = workspace_bytes(stream.device(), block_m);
        check_matrix(OP, &self.workspace.as_slice(), "workspace", workspace, stream)?;
        let tile = HopperTile::for_block_m(block_m).unwrap_or(HopperTile::Wide);
        if let Some(gathered) = &self.rows {
            self.check_gathered(gathered, tile, stream)?;
        }
        Ok(tile)
    }

    fn check_gathered(&self, gathered: &GatheredRows<'_>, tile: HopperTile, stream: &Stream) -> Result<()> {
        let GatheredRows { sorted_rows, tokens, top_k } = *gathered;
        require(tile.gathers(), OP, "schedule.block_m", tile.block_m(), || {
            "must be 128 where rows are gathered".into()
        })?;
        require(top_k >= 1, OP, "rows.top_k", top_k, || "must be at least 1".into())?;
        let most = i32::MAX as usize / top_k;
        let fits = (1..=most).contains(&tokens) || self.shape.rows == 0;
        require(fits, OP, "rows.tokens", tokens, || {
            format!("must be in 1..={most} with top_k {top_k}: expanded rows are counted in i32")
        })?;
        // The last number stands for no row.
        let chunks = tokens.saturating_mul(self.shape.k / 16);
        require(chunks < u32::MAX as usize, OP, "rows.tokens", tokens, || {
            format!("must keep A of {} columns below 2^36 - 16 bytes", self.shape.k)
        })?;
        if let AScale::Group { scales, .. } = self.a_scale {
            let most = u32::MAX as usize / 2;
            require(scales.len() <= most, OP, "a_scale", format!("{} elements", scales.len()), || {
                format!("must have at most {most} elements where rows are gathered")
            })?;
        }
        sorted_rows.check(OP, "rows.sorted_rows", self.shape.rows, stream)
    }

    fn launch(
        &self,
        stream: &Stream,
        tile: HopperTile,
        promoted: bool,
        blocks: u32,
        schedule_is_settled: bool,
    ) -> Result<()> {
        use kernels::{
            HopperNarrowGated8, HopperNarrowGated16, HopperNarrowGated32, HopperNarrowGated64,
            HopperWideGatedFast, HopperWideGatedFastGathered, HopperWideGatedFastGatheredSilu,
            HopperWideGatedFastSilu, HopperWideGatedPromoted, HopperWideGatedPromotedGathered,
            HopperWideGatedPromotedGatheredSilu, HopperWideGatedPromotedSilu,
        };
        let GatedShape { rows, intermediate, k, experts } = self.shape;
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
        let (schedule, q, activation) =
            (self.schedule.entries.ptr(), self.q.ptr().cast(), self.function as u32);
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
                // SAFETY: `check` has compared lengths, alignments, devices and the schedule's block size with what the kernel
                // asks for, and the maps were made of the matrices; that the schedule belongs to `expert_offsets`, and that
                // these end within P rows, is what the operations that make them guarantee.
                unsafe { stream.device().launch(stream, blocks, shared, &kernel) }
            }};
        }
        if let Some(GatheredRows { sorted_rows, tokens, top_k }) = self.rows {
            let (a, sorted_rows) = (self.a.ptr().cast(), sorted_rows.ptr());
            let (tokens, top_k) = (tokens as u32, top_k as u32);
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
        let a_slab_scales = slab_scales::of_a(OP, &self.a_scale, &self.shape.gemm(), tile)?;
        let a = tensor_map::of_matrix(&self.a, rows, self.shape.k, tile.a_box_rows())?;
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
