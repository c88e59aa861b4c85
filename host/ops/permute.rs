//! Permutation of expanded rows into expert order, and the copy of activations along with it.
//!
//! [`permute`] sorts the routed ids in one launch. [`permute_rows`] copies FP8 or 16-bit rows and their
//! scales to permuted order. What the lists hold is drawn in `kernels-gpu/src/permute/mod.rs`.

use bytemuck::Pod;

use super::permutation::{Permutation, Sizes};
use super::problem_sizes::{ProblemSizesOut, TileScheduleOut, raw_schedule, raw_sizes};
use crate::error::{Result, require};
use crate::gpu::buffer::{Slice, SliceMut};
use crate::gpu::launch::DevicePtr;
use crate::gpu::order::replays;
use crate::gpu::stream::Stream;
use crate::kernels::launchers;
use crate::plan::{checked_i32, elements};

use crate::plan::permutation::Cut;
pub use crate::plan::permutation::{PermutePath, PermuteShape};
pub use crate::plan::rows::ScaleLayout;

/// Arguments of [`permute`]: what is sorted, and the memory that the [`Permutation`] is written to and
/// borrows.
#[derive(Debug)]
pub struct Permute<'a> {
    /// i32 `[T, k]`, global expert ids. Any value is legal: ids below 0, at or over E, or mapped to no local
    /// expert are *invalid*, and their rows come after all others.
    pub topk_ids: Slice<'a, i32>,
    /// i32 `[E]`, global to local expert, -1 = not on this rank.
    pub expert_map: Option<Slice<'a, i32>>,
    /// i64 `[E_loc + 1]`: expert e owns permuted rows `expert_offsets[e] .. expert_offsets[e + 1]`, padding
    /// included.
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

const OP: &str = "permute";

/// Sorts the rows of `topk_ids` by local expert: stable, deterministic, in one launch, without
/// synchronisation or workspace.
///
/// Ids and map may hold anything. With no tokens nothing is launched, and nothing is written; no operation
/// reads the lists then.
///
/// # Errors
/// Sizes that the sort cannot have; lists that are too short or on another device.
pub fn permute<'a>(stream: &Stream, shape: PermuteShape, args: Permute<'a>) -> Result<Permutation<'a>> {
    let since = replays();
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
    let cut = shape.cut(args.path, stream.device())?;
    if rows > 0 {
        args.launch(stream, shape, &cut)?;
    }
    let sizes = Sizes { tokens: shape.tokens, top_k: shape.top_k, local_experts, rows: capacity };
    Ok(Permutation {
        sizes,
        expert_offsets: args.expert_offsets.into_slice_mut(..local_experts + 1),
        sorted_rows: Some(args.sorted_rows.into_slice_mut(..capacity)),
        inverse: Some(args.inverse.into_slice_mut(..rows)),
        row_experts: args.row_experts.map(|list| list.into_slice_mut(..capacity)),
        problem_sizes: args
            .problem_sizes
            .map(|sizes| [sizes.sizes1, sizes.sizes2].map(|list| list.into_slice_mut(..local_experts * 3))),
        tile_schedule: args.tile_schedule,
        capture: stream.capture_id(),
        since,
    })
}

impl Permute<'_> {
    /// Launches the sort. The arguments have been checked, and there are rows.
    fn launch(&self, stream: &Stream, shape: PermuteShape, cut: &Cut) -> Result<()> {
        let arguments = launchers::Permute {
            routing: launchers::Routing {
                topk_ids: self.topk_ids.ptr(),
                expert_map: self.expert_map.map_or(DevicePtr::null(), |map| map.ptr()),
                rows: shape.rows() as u32,
                experts: shape.experts as u32,
                local_experts: shape.local_experts as u32,
            },
            expert_offsets: self.expert_offsets.ptr(),
            outputs: launchers::PermutedRows {
                sorted_rows: self.sorted_rows.ptr(),
                inverse: self.inverse.ptr(),
                row_experts: self.row_experts.as_ref().map_or(DevicePtr::null(), |experts| experts.ptr()),
                capacity: shape.capacity() as u32,
            },
            alignment: shape.alignment as u32,
            ranking_warps: cut.warps as u32,
            steps: cut.steps as u32,
            sizes: raw_sizes(self.problem_sizes.as_ref()),
            schedule: raw_schedule(self.tile_schedule.as_ref()),
        };
        let kernel = launchers::PERMUTE.with_shared(cut.shared_bytes as u32);
        // SAFETY: every list was checked to have its length on this device, and the numbers to fit in i32.
        // The kernel takes any ids, and any map: what does not lead to one of the E_loc experts is invalid.
        unsafe { stream.device().launch(stream, &kernel, cut.blocks as u32, &arguments) }
    }
}

/// Scales that go along with the rows.
#[derive(Debug)]
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
#[derive(Debug)]
pub struct PermuteRows<'a, T> {
    /// `[T, columns]`: `E4m3`, `u8`, `bf16` or `f16`.
    pub activations: Slice<'a, T>,
    /// Columns of a row.
    pub columns: usize,
    /// Scales, if the rows have any.
    pub scales: Option<PermuteScales<'a>>,
    /// Where the rows go.
    pub permutation: &'a Permutation<'a>,
    /// `[P, columns]`.
    pub permuted: SliceMut<'a, T>,
}

/// Copies rows and scales to where the permutation has them. Padding rows become zeros with scale 0; rows at
/// or past `expert_offsets[E_loc]` are not written.
///
/// # Errors
/// Arrays that are too short or on another device; rows of 2^31 bytes or more; a permutation without
/// `sorted_rows`; a layout that puts two permuted scales at one place.
pub fn permute_rows<T: Pod>(stream: &Stream, args: PermuteRows<'_, T>) -> Result<()> {
    const OP: &str = "permute_rows";
    let Sizes { tokens, top_k, local_experts, rows: capacity } = args.permutation.sizes;
    let row_bytes = args.columns.saturating_mul(size_of::<T>());
    require(row_bytes <= i32::MAX as usize, OP, "columns", args.columns, || {
        "must be below 2^31 bytes to a row".into()
    })?;
    let rows_of = |name, rows| elements(OP, name, &[rows, args.columns]);
    args.activations.check(OP, "activations", rows_of("activations", tokens)?, stream)?;
    args.permutation.check(OP, stream)?;
    let sorted_rows = args.permutation.checked_sorted_rows(OP, stream)?;
    args.permuted.check(OP, "permuted", rows_of("permuted", capacity)?, stream)?;
    let none = ScaleLayout { row_stride: 0, group_stride: 0 };
    let (mut groups, mut from, mut to) = (0, (DevicePtr::null(), none), (DevicePtr::null(), none));
    if let Some(scales) = &args.scales {
        groups = checked_i32(OP, "groups", scales.groups)?;
        scales.scales.check(OP, "scales", scales.layout.extent(tokens, scales.groups), stream)?;
        let extent = scales.permuted_layout.extent(capacity, scales.groups);
        scales.permuted_layout.check_apart(OP, "permuted_layout", capacity, scales.groups)?;
        scales.permuted.check(OP, "permuted_scales", extent, stream)?;
        from = (scales.scales.ptr(), scales.layout);
        to = (scales.permuted.ptr(), scales.permuted_layout);
    }
    if tokens == 0 {
        return Ok(());
    }
    let arguments = launchers::PermuteRows {
        activations: args.activations.ptr().cast(),
        scales: from.0,
        sorted_rows,
        expert_offsets: args.permutation.expert_offsets.ptr(),
        permuted: args.permuted.ptr().cast(),
        permuted_scales: to.0,
        row_bytes: row_bytes as u32,
        scale_groups: groups,
        scale_strides: from.1.raw(),
        permuted_scale_strides: to.1.raw(),
        rows: (tokens * top_k) as u32,
        top_k: top_k as u32,
        local_experts: local_experts as u32,
    };
    let blocks = (capacity as u32).div_ceil(launchers::PERMUTE_ROWS_PER_BLOCK);
    // SAFETY: every array was checked to have its extent on this device, by the sizes of the permutation,
    // whose last offset is at most P, if its lists are unchanged. A row of `sorted_rows` that is none of the
    // R is padding to the kernel. No two threads write one place.
    unsafe {
        let lists = args.permutation.unchanged();
        stream.device().launch_over(stream, &launchers::PERMUTE_ROWS, blocks, &arguments, &lists)
    }
}
