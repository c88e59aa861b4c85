//! Permutation of expanded rows into expert order, and the copy of activations along with it.
//!
//! [`permute`] sorts the routed ids: one launch up to a few thousand rows, three beyond. [`permute_rows`] copies FP8 or 16-bit
//! rows and their scales to permuted order. What the lists hold is drawn in `kernels-gpu/src/permute/mod.rs`.

use bytemuck::Pod;

use super::problem_sizes::{ProblemSizesOut, Targets, TileScheduleOut};
use crate::buffer::{Slice, SliceMut};
use crate::error::{Result, require};
use crate::kernel::DevicePtr;
use crate::kernels;
use crate::stream::Stream;

/// Sizes of a permutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PermuteShape {
    /// T.
    pub tokens: usize,
    /// k.
    pub top_k: usize,
    /// E, experts of the model: what the ids count.
    pub experts: usize,
    /// E_loc, experts of this rank; equal to `experts` without an expert map.
    pub local_experts: usize,
    /// Every expert's region is padded to a multiple of this; 1 for no padding.
    pub alignment: usize,
}

impl PermuteShape {
    /// R = T * k.
    pub fn rows(&self) -> usize {
        self.tokens * self.top_k
    }

    /// P, rows of the permuted arrays that suffice whatever the routing: R, or with padding
    /// `R + min(E_loc, R) * (alignment - 1)` rounded up to a multiple of the alignment.
    pub fn capacity(&self) -> usize {
        let padding = self.local_experts.min(self.rows()) * self.alignment.saturating_sub(1);
        (self.rows() + padding).next_multiple_of(self.alignment.max(1))
    }

    /// Bytes of workspace that [`permute`] needs with `path`.
    pub fn workspace_bytes(&self, path: PermutePath) -> usize {
        match path.blocks(self.rows()) {
            1 => 0,
            blocks => (self.local_experts + 1) * (blocks + 1) * size_of::<u32>(),
        }
    }
}

/// How the sort is cut. The result is the same, bit for bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PermutePath {
    /// One block up to 8192 rows, else blocks of 4096 rows.
    #[default]
    Auto,
    /// One block, whatever the number of rows.
    SingleBlock,
    /// Blocks of this many rows (at least 1), and three launches.
    MultiBlock {
        /// Rows that each block sorts.
        rows_per_block: usize,
    },
}

/// Most rows that [`PermutePath::Auto`] gives to one block.
const SINGLE_BLOCK_ROWS: usize = 8192;
/// Rows per block of [`PermutePath::Auto`] beyond that.
const ROWS_PER_BLOCK: usize = 4096;
/// Shared memory of the sorting kernels besides their tables: static arrays, and what the driver keeps.
const RESERVED_SHARED: u32 = 8 * 1024;

impl PermutePath {
    fn rows_per_block(self, rows: usize) -> usize {
        match self {
            PermutePath::Auto if rows <= SINGLE_BLOCK_ROWS => rows,
            PermutePath::Auto => ROWS_PER_BLOCK,
            PermutePath::SingleBlock => rows,
            PermutePath::MultiBlock { rows_per_block } => rows_per_block,
        }
        .max(1)
    }

    /// Blocks; 1 stands for the single launch.
    fn blocks(self, rows: usize) -> usize {
        rows.div_ceil(self.rows_per_block(rows)).max(1)
    }
}

/// Arguments of [`permute`].
pub struct Permute<'a> {
    /// i32 `[T, k]`, global expert ids. Any value is legal: ids below 0, at or over E, or mapped to no local expert are
    /// *invalid*, and their rows come after all others.
    pub topk_ids: Slice<'a, i32>,
    /// i32 `[E]`, global to local expert, -1 = not on this rank.
    pub expert_map: Option<Slice<'a, i32>>,
    /// i64 `[E_loc + 1]`: expert e owns permuted rows `expert_offsets[e] .. expert_offsets[e + 1]`, padding included.
    pub expert_offsets: SliceMut<'a, i64>,
    /// i32 `[P]`, destination -> r = token * k + slot; R where no row goes.
    pub sorted_rows: SliceMut<'a, i32>,
    /// i32 `[R]`, r -> destination; at or over `expert_offsets[E_loc]` for invalid rows.
    pub inverse: SliceMut<'a, i32>,
    /// i32 `[P]`, destination -> local expert, padding included; -1 past the last expert's region.
    pub row_experts: Option<SliceMut<'a, i32>>,
    /// Problem sizes, written by the last launch on its way.
    pub problem_sizes: Option<ProblemSizesOut<'a>>,
    /// Tile schedule, written by the last launch on its way.
    pub tile_schedule: Option<TileScheduleOut<'a>>,
    /// u8, [`PermuteShape::workspace_bytes`], 4-byte aligned; its contents do not matter.
    pub workspace: SliceMut<'a, u8>,
    /// How to cut the work.
    pub path: PermutePath,
}

/// Refuses a value over `i32::MAX`.
pub(super) fn checked_i32(op: &'static str, name: &str, value: usize) -> Result<u32> {
    require(value <= i32::MAX as usize, op, name, value, || "must be below 2^31".into())?;
    Ok(value as u32)
}

const OP: &str = "permute";

impl PermuteShape {
    fn check(&self, has_map: bool) -> Result<()> {
        let positive =
            |name, value: usize| require(value > 0, OP, name, value, || "must be at least 1".into());
        positive("experts", self.experts)?;
        positive("alignment", self.alignment)?;
        require((1..=self.experts).contains(&self.top_k), OP, "top_k", self.top_k, || {
            format!("must be in 1..={}, the number of experts", self.experts)
        })?;
        require(
            has_map || self.local_experts == self.experts,
            OP,
            "local_experts",
            self.local_experts,
            || format!("must be {}, the number of experts, without an expert_map", self.experts),
        )?;
        let limit = i32::MAX as usize;
        require(self.tokens <= limit / self.top_k, OP, "tokens", self.tokens, || {
            format!(
                "must be at most {} with top_k {}: rows are counted in i32",
                limit / self.top_k,
                self.top_k
            )
        })?;
        require(self.experts <= limit, OP, "experts", self.experts, || "must be below 2^31".into())?;
        let padding = self.local_experts.min(self.rows()).checked_mul(self.alignment);
        let fits =
            padding.is_some_and(|padding| padding <= limit - self.rows() && self.alignment <= limit / 2);
        require(fits, OP, "alignment", self.alignment, || {
            format!("must keep the {} rows of {} experts below 2^31", self.rows(), self.local_experts)
        })
    }

    /// Warps that sort a block's rows, and the shared memory of their tables.
    fn ranking(&self, rows_per_block: usize, shared_per_block: u32) -> Result<(u32, u32)> {
        let keys = self.local_experts + 1;
        let words = shared_per_block.saturating_sub(RESERVED_SHARED) as usize / size_of::<u32>();
        let most = ((words - 1) / keys).saturating_sub(2).min(32);
        require(most >= 1, OP, "local_experts", self.local_experts, || {
            format!("must be at most {} on this device", (words - 1) / 3 - 1)
        })?;
        let warps = rows_per_block.div_ceil(32).clamp(1, most);
        Ok((warps as u32, (((warps + 2) * keys + 1) * size_of::<u32>()) as u32))
    }
}

/// Sorts the rows of `topk_ids` by local expert: stable, deterministic, without synchronisation.
///
/// With no tokens nothing is launched, and nothing is written.
pub fn permute(stream: &Stream, shape: PermuteShape, args: Permute<'_>) -> Result<()> {
    shape.check(args.expert_map.is_some())?;
    let (rows, capacity, local_experts) = (shape.rows(), shape.capacity(), shape.local_experts);
    args.topk_ids.check(OP, "topk_ids", rows, stream)?;
    if let Some(map) = &args.expert_map {
        map.check(OP, "expert_map", shape.experts, stream)?;
    }
    args.expert_offsets.check(OP, "expert_offsets", local_experts + 1, stream)?;
    args.sorted_rows.check(OP, "sorted_rows", capacity, stream)?;
    args.inverse.check(OP, "inverse", rows, stream)?;
    if let Some(row_experts) = &args.row_experts {
        row_experts.check(OP, "row_experts", capacity, stream)?;
    }
    if let Some(sizes) = &args.problem_sizes {
        sizes.check(OP, local_experts, stream)?;
    }
    if let Some(schedule) = &args.tile_schedule {
        schedule.check(OP, capacity, local_experts, stream)?;
    }
    args.workspace.check(OP, "workspace", shape.workspace_bytes(args.path), stream)?;
    let workspace = args.workspace.ptr();
    require(workspace.raw().is_multiple_of(4), OP, "workspace", format!("{workspace:?}"), || {
        "must be 4-byte aligned".into()
    })?;
    let rows_per_block = args.path.rows_per_block(rows);
    let (ranking_warps, shared_bytes) = shape.ranking(rows_per_block, stream.device().shared_per_block())?;
    if rows == 0 {
        return Ok(());
    }

    let targets = Targets::new(args.problem_sizes.as_ref(), args.tile_schedule.as_ref());
    let (topk_ids, expert_offsets) = (args.topk_ids.ptr(), args.expert_offsets.ptr());
    let expert_map = args.expert_map.map_or(DevicePtr::null(), |map| map.ptr());
    let (sorted_rows, inverse) = (args.sorted_rows.ptr(), args.inverse.ptr());
    let row_experts = args.row_experts.as_ref().map_or(DevicePtr::null(), |experts| experts.ptr());
    let Targets { sizes1, sizes2, hidden, intermediate, swap_operands, schedule, block_m } = targets;
    let experts = shape.experts as u32;
    let alignment = shape.alignment as u32;
    let (rows, capacity, local_experts) = (rows as u32, capacity as u32, local_experts as u32);
    let device = stream.device();
    let blocks = args.path.blocks(rows as usize) as u32;
    if blocks == 1 {
        let kernel = kernels::PermuteSingleBlock {
            topk_ids,
            expert_map,
            expert_offsets,
            sorted_rows,
            inverse,
            row_experts,
            problem_sizes1: sizes1,
            problem_sizes2: sizes2,
            schedule,
            rows,
            experts,
            local_experts,
            capacity,
            alignment,
            ranking_warps,
            hidden,
            intermediate,
            swap_operands,
            block_m,
        };
        // SAFETY: every list was checked to have its length on this device, and the numbers to fit.
        return unsafe { device.launch(stream, 1, shared_bytes, &kernel) };
    }

    let keys = local_experts + 1;
    let before: DevicePtr<u32> = workspace.cast();
    let totals = before.offset(keys as usize * blocks as usize);
    let rows_per_block = rows_per_block as u32;
    let count = kernels::PermuteCount {
        topk_ids,
        expert_map,
        before,
        rows,
        experts,
        local_experts,
        rows_per_block,
        ranking_warps,
    };
    let scan = kernels::PermuteScan { before, totals, keys, blocks };
    let place = kernels::PermutePlace {
        topk_ids,
        expert_map,
        before,
        totals,
        expert_offsets,
        sorted_rows,
        inverse,
        row_experts,
        problem_sizes1: sizes1,
        problem_sizes2: sizes2,
        schedule,
        rows,
        experts,
        local_experts,
        capacity,
        alignment,
        rows_per_block,
        ranking_warps,
        hidden,
        intermediate,
        swap_operands,
        block_m,
    };
    // SAFETY: as above; the workspace holds `before [keys, blocks]` and `totals [keys]`, each written before it is read.
    unsafe {
        device.launch(stream, blocks, shared_bytes, &count)?;
        device.launch(stream, keys.div_ceil(8), 0, &scan)?;
        device.launch(stream, blocks, shared_bytes, &place)
    }
}

/// Where the scales of rows are: scale `g` of row `i` is element `i * row_stride + g * group_stride`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaleLayout {
    /// Elements between rows.
    pub row_stride: usize,
    /// Elements between the groups of a row.
    pub group_stride: usize,
}

impl ScaleLayout {
    /// `[rows, groups]`, groups adjacent.
    pub fn row_major(groups: usize) -> Self {
        Self { row_stride: groups, group_stride: 1 }
    }

    /// Elements up to the last scale of `rows` rows.
    pub(super) fn extent(&self, rows: usize, groups: usize) -> usize {
        if rows == 0 || groups == 0 {
            return 0;
        }
        ((rows - 1).saturating_mul(self.row_stride))
            .saturating_add((groups - 1).saturating_mul(self.group_stride))
            .saturating_add(1)
    }
}

/// Scales that go along with the rows.
pub struct PermuteScales<'a> {
    /// Scales of a row: 1, or one per group.
    pub groups: usize,
    /// f32, of the `T` tokens.
    pub scales: Slice<'a, f32>,
    /// Layout of `scales`.
    pub layout: ScaleLayout,
    /// f32, of the `P` permuted rows.
    pub permuted: SliceMut<'a, f32>,
    /// Layout of `permuted`.
    pub permuted_layout: ScaleLayout,
}

/// Arguments of [`permute_rows`].
pub struct PermuteRows<'a, T> {
    /// `[T, columns]`: `E4m3`, `u8`, `bf16` or `f16`.
    pub activations: Slice<'a, T>,
    /// Columns of a row.
    pub columns: usize,
    /// Scales, if the rows have any.
    pub scales: Option<PermuteScales<'a>>,
    /// From [`permute`].
    pub sorted_rows: Slice<'a, i32>,
    /// From [`permute`].
    pub expert_offsets: Slice<'a, i64>,
    /// `[P, columns]`.
    pub permuted: SliceMut<'a, T>,
}

/// Copies rows and scales to where [`permute`] with the same shape put them. Padding rows become zeros with scale 0; rows at
/// or past `expert_offsets[E_loc]` are not written.
pub fn permute_rows<T: Pod>(stream: &Stream, shape: PermuteShape, args: PermuteRows<'_, T>) -> Result<()> {
    const OP: &str = "permute_rows";
    shape.check(true)?;
    let (rows, capacity) = (shape.rows(), shape.capacity());
    let row_bytes = args.columns.saturating_mul(size_of::<T>());
    require(row_bytes <= i32::MAX as usize, OP, "columns", args.columns, || {
        "must be below 2^31 bytes to a row".into()
    })?;
    args.activations.check(OP, "activations", shape.tokens * args.columns, stream)?;
    args.sorted_rows.check(OP, "sorted_rows", capacity, stream)?;
    args.expert_offsets.check(OP, "expert_offsets", shape.local_experts + 1, stream)?;
    args.permuted.check(OP, "permuted", capacity * args.columns, stream)?;
    let none = ScaleLayout { row_stride: 0, group_stride: 0 };
    let (mut groups, mut from, mut to) = (0, (DevicePtr::null(), none), (DevicePtr::null(), none));
    if let Some(scales) = &args.scales {
        groups = checked_i32(OP, "groups", scales.groups)?;
        scales.scales.check(OP, "scales", scales.layout.extent(shape.tokens, scales.groups), stream)?;
        let extent = scales.permuted_layout.extent(capacity, scales.groups);
        scales.permuted.check(OP, "permuted_scales", extent, stream)?;
        from = (scales.scales.ptr(), scales.layout);
        to = (scales.permuted.ptr(), scales.permuted_layout);
    }
    if rows == 0 {
        return Ok(());
    }
    let kernel = kernels::PermuteRows {
        activations: args.activations.ptr().cast(),
        scales: from.0,
        sorted_rows: args.sorted_rows.ptr(),
        expert_offsets: args.expert_offsets.ptr(),
        permuted: args.permuted.ptr().cast(),
        permuted_scales: to.0,
        row_bytes: row_bytes as u32,
        scale_groups: groups,
        scale_row_stride: from.1.row_stride as u64,
        scale_group_stride: from.1.group_stride as u64,
        permuted_scale_row_stride: to.1.row_stride as u64,
        permuted_scale_group_stride: to.1.group_stride as u64,
        rows: rows as u32,
        top_k: shape.top_k as u32,
        local_experts: shape.local_experts as u32,
    };
    let blocks = (capacity as u32).div_ceil(8);
    // SAFETY: every array was checked to have its extent on this device; sorted_rows and expert_offsets are `permute`'s.
    unsafe { stream.device().launch(stream, blocks, 0, &kernel) }
}
