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
//! A may also lie in the order of the tokens, `[T, K]`, with the permutation beside it ([`GatheredRows`]). The kernel then gathers
//! its rows, and no kernel writes a token's row `top_k` times.
//!
//! It is [`grouped_gemm`](super::grouped_gemm::grouped_gemm) followed by [`activation`](super::activation::activation) without the
//! products going to memory. Scales per token are not offered: a row's maximum is known only when all its columns are.

use super::activation::{ActivationFunction, Requantization};
use super::grouped_gemm::heuristics::{self, HopperTile, Path};
use super::grouped_gemm::slab_scales;
use super::grouped_gemm::{
    AScale, Accumulation, BScale, GemmShape, SCALE_BLOCK, Schedule, change_along_k, check_matrix,
    check_scales, elements, raw_scales, workspace_bytes,
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
use crate::kernels::launchers;

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
        let columns = self.shape.intermediate.div_ceil(launchers::GATED_COLUMNS as usize);
        let items = row_tiles.saturating_mul(columns.next_multiple_of(tile.cluster() as usize));
        heuristics::check_slabs(OP, items, &shape)?;
        let blocks = heuristics::hopper_blocks(OP, device, tile, items, path)?;
        self.launch(stream, tile, promoted, blocks, schedule_is_settled)
    }

    fn check(&self, stream: &Stream) -> Result<HopperTile> {
        let GatedShape { rows, intermediate, k, experts } = self.shape;
        require(k >= 16 && k.is_multiple_of(16), OP, "k", k, || "must be a positive multiple of 16".into())?;
        let multiple = if matches!(self.b_scale, BScale::Block(_)) { SCALE_BLOCK } else { 16 };
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
        let GatedShape { rows, intermediate, k, experts } = self.shape;
        let b = tensor_map::of_matrix(&self.b, experts * 2 * intermediate, k, launchers::B_BOX_ROWS)?;
        let scales = raw_scales(&self.a_scale, &self.b_scale);
        let schedule = self.schedule.entries.ptr();
        let out = self.requantization();
        let (intermediate, k) = (intermediate as u32, k as u32);
        let is_silu = self.function == ActivationFunction::Silu;
        if let Some(GatheredRows { sorted_rows, tokens, top_k }) = self.rows {
            let a = launchers::TokenRows {
                a: self.a.ptr().cast(),
                sorted_rows: sorted_rows.ptr(),
                tokens: tokens as u32,
                top_k: top_k as u32,
                scale_strides: self.a_scale.strides(),
            };
            let arguments = launchers::HopperGathered { a, b, intermediate, k, scales, schedule, out };
            let kernel = match (promoted, is_silu) {
                (true, true) => launchers::HOPPER_WIDE_GATED_PROMOTED_GATHERED_SILU,
                (true, false) => launchers::HOPPER_WIDE_GATED_PROMOTED_GATHERED,
                (false, true) => launchers::HOPPER_WIDE_GATED_FAST_GATHERED_SILU,
                (false, false) => launchers::HOPPER_WIDE_GATED_FAST_GATHERED,
            };
            // SAFETY: as below; A has the tokens' rows, and `sorted_rows` an element for each of the P.
            return unsafe { stream.device().launch(stream, &kernel, blocks, &arguments) };
        }
        let arguments = launchers::HopperGated {
            a: tensor_map::of_matrix(&self.a, rows, self.shape.k, tile.numbers().a_box_rows)?,
            b,
            a_slab_scales: slab_scales::of_a(OP, &self.a_scale, &self.shape.gemm(), tile)?,
            scales,
            schedule,
            partials: self.workspace.ptr().cast(),
            out,
            intermediate,
            k,
            schedule_is_settled,
        };
        let kernel = match (tile, promoted, is_silu) {
            (HopperTile::Narrow8, ..) => launchers::HOPPER_NARROW_GATED_8,
            (HopperTile::Narrow16, ..) => launchers::HOPPER_NARROW_GATED_16,
            (HopperTile::Narrow32, ..) => launchers::HOPPER_NARROW_GATED_32,
            (HopperTile::Narrow64, ..) => launchers::HOPPER_NARROW_GATED_64,
            (HopperTile::Wide, true, true) => launchers::HOPPER_WIDE_GATED_PROMOTED_SILU,
            (HopperTile::Wide, true, false) => launchers::HOPPER_WIDE_GATED_PROMOTED,
            (HopperTile::Wide, false, true) => launchers::HOPPER_WIDE_GATED_FAST_SILU,
            (HopperTile::Wide, false, false) => launchers::HOPPER_WIDE_GATED_FAST,
        };
        // SAFETY: `check` has compared lengths, alignments, devices and the schedule's block size with what the kernel asks for,
        // and the maps were made of the matrices; that the schedule belongs to `expert_offsets`, and that these end within P
        // rows, is what the operations that make them guarantee.
        unsafe { stream.device().launch(stream, &kernel, blocks, &arguments) }
    }

    /// Where the results go, as the kernels take it.
    fn requantization(&self) -> launchers::Requantization {
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
            function: self.function,
        }
    }
}
