//! Permutation of expanded rows into expert order, and the copy of activations along with it.
//!
//! [`permute`] sorts the routed ids in one launch. [`permute_rows`] copies FP8 or 16-bit rows and their scales to permuted order. What the lists hold is drawn in `kernels-gpu/src/permute/mod.rs`.

use bytemuck::Pod;

use super::problem_sizes::{ProblemSizesOut, TileScheduleOut, raw_schedule, raw_sizes};
use crate::error::{Error, Result, require};
use crate::gpu::buffer::{Slice, SliceMut};
use crate::gpu::launch::DevicePtr;
use crate::gpu::stream::Stream;
use crate::kernels::launchers;

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
}

/// How the sort is cut into blocks. The result is the same, bit for bit.
///
/// Blocks do not wait for each other: each counts all ids, and places its own rows. So the time of a block grows with all rows,
/// and small blocks cost nothing as long as all of them run at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PermutePath {
    /// Blocks of 512 rows, or of up to 2048 where there would be more blocks than multiprocessors.
    #[default]
    Auto,
    /// Blocks of `warps * steps * 32` rows.
    Blocks {
        /// Warps of a block that have rows, 1 to 16. Fewer are taken where shared memory does not hold the counters of so many:
        /// that is with some thousand experts.
        warps: usize,
        /// Rows of each thread, 1 to 4.
        steps: usize,
    },
}

/// Most warps of a block that have rows.
const WARPS: usize = launchers::PERMUTE_MOST_WARPS as usize;
/// Most rows of a thread.
const MAX_STEPS: usize = launchers::PERMUTE_MOST_STEPS as usize;
/// Shared memory of the sort besides its tables: static arrays, and what the driver keeps.
const RESERVED_SHARED: u32 = 8 * 1024;

/// How [`permute`] is launched.
struct Cut {
    /// Warps of a block that have rows.
    warps: usize,
    /// Rows of a thread.
    steps: usize,
    blocks: usize,
    shared_bytes: usize,
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
    /// Problem sizes, written on the way.
    pub problem_sizes: Option<ProblemSizesOut<'a>>,
    /// Tile schedule, written on the way.
    pub tile_schedule: Option<TileScheduleOut<'a>>,
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

    /// How `path` cuts the rows on a device with this many multiprocessors and this much shared memory.
    fn cut(&self, path: PermutePath, multiprocessors: u32, shared_per_block: u32) -> Result<Cut> {
        let rows = self.rows();
        let (warps, steps) = match path {
            PermutePath::Auto => {
                let warps = rows.div_ceil(32).clamp(1, WARPS);
                let steps = rows.div_ceil(32 * warps * multiprocessors.max(1) as usize);
                (warps, steps.clamp(1, MAX_STEPS))
            }
            PermutePath::Blocks { warps, steps } => {
                let limit = |name, value: usize, most: usize| {
                    require((1..=most).contains(&value), OP, name, value, || format!("must be in 1..={most}"))
                };
                limit("warps", warps, WARPS)?;
                limit("steps", steps, MAX_STEPS)?;
                (warps, steps)
            }
        };
        // As many warps as shared memory holds the counters of.
        let room = shared_per_block.saturating_sub(RESERVED_SHARED) as usize;
        let fits = |warps: usize, experts: usize| launchers::permute_table_bytes(warps, experts) <= room;
        let Some(warps) = (1..=warps).rev().find(|&warps| fits(warps, self.local_experts)) else {
            let most = (0..self.local_experts).rev().find(|&experts| fits(1, experts)).unwrap_or(0);
            let rule = format!("must be at most {most} on this device");
            return Err(Error::argument(OP, "local_experts", self.local_experts, rule));
        };
        let shared_bytes = launchers::permute_table_bytes(warps, self.local_experts);
        Ok(Cut { warps, steps, blocks: rows.div_ceil(32 * warps * steps), shared_bytes })
    }
}

/// Sorts the rows of `topk_ids` by local expert: stable, deterministic, in one launch, without synchronisation or workspace.
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
    let device = stream.device();
    let cut = shape.cut(args.path, device.multiprocessors(), device.shared_per_block())?;
    if rows == 0 {
        return Ok(());
    }

    let arguments = launchers::Permute {
        routing: launchers::Routing {
            topk_ids: args.topk_ids.ptr(),
            expert_map: args.expert_map.map_or(DevicePtr::null(), |map| map.ptr()),
            rows: rows as u32,
            experts: shape.experts as u32,
            local_experts: local_experts as u32,
        },
        expert_offsets: args.expert_offsets.ptr(),
        outputs: launchers::PermutedRows {
            sorted_rows: args.sorted_rows.ptr(),
            inverse: args.inverse.ptr(),
            row_experts: args.row_experts.as_ref().map_or(DevicePtr::null(), |experts| experts.ptr()),
            capacity: capacity as u32,
        },
        sizes: raw_sizes(args.problem_sizes.as_ref()),
        schedule: raw_schedule(args.tile_schedule.as_ref()),
        alignment: shape.alignment as u32,
        ranking_warps: cut.warps as u32,
        steps: cut.steps as u32,
    };
    let kernel = launchers::PERMUTE.with_shared(cut.shared_bytes as u32);
    // SAFETY: every list was checked to have its length on this device, and the numbers to fit.
    unsafe { device.launch(stream, &kernel, cut.blocks as u32, &arguments) }
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

    /// `[groups, rows]`, rows adjacent: what the Hopper GEMMs take, which bring one group of many rows at a time. For them `rows` is a
    /// multiple of 4, as TMA has it: that of the rows rounded up, the last of which stay unwritten.
    pub fn group_major(rows: usize) -> Self {
        Self { row_stride: 1, group_stride: rows }
    }

    /// As kernels take it.
    pub(super) fn raw(&self) -> launchers::Strides {
        launchers::Strides { row: self.row_stride as u64, group: self.group_stride as u64 }
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
    let arguments = launchers::PermuteRows {
        activations: args.activations.ptr().cast(),
        scales: from.0,
        sorted_rows: args.sorted_rows.ptr(),
        expert_offsets: args.expert_offsets.ptr(),
        permuted: args.permuted.ptr().cast(),
        permuted_scales: to.0,
        row_bytes: row_bytes as u32,
        scale_groups: groups,
        scale_strides: from.1.raw(),
        permuted_scale_strides: to.1.raw(),
        rows: rows as u32,
        top_k: shape.top_k as u32,
        local_experts: shape.local_experts as u32,
    };
    let blocks = (capacity as u32).div_ceil(launchers::PERMUTE_ROWS_PER_BLOCK);
    // SAFETY: every array was checked to have its extent on this device; sorted_rows and expert_offsets are `permute`'s.
    unsafe { stream.device().launch(stream, &launchers::PERMUTE_ROWS, blocks, &arguments) }
}
