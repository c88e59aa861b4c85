//! Problem sizes and tile schedule of the grouped GEMMs, from the expert offsets, on the device.
//!
//! [`permute`](super::permute::permute) writes both on its way. For offsets from elsewhere there are
//! [`problem_sizes`] and [`Permutation::from_lists`](super::permutation::Permutation::from_lists), which
//! builds the schedule. What they look like is drawn in `kernels-gpu/src/schedule/entry.rs`.

use crate::config::COPY_BYTES;
use crate::error::{Result, require};
use crate::gpu::buffer::{Slice, SliceMut};
use crate::gpu::launch::DevicePtr;
use crate::gpu::order::Unchanged;
use crate::gpu::stream::Stream;
use crate::kernels::launchers;
use crate::plan::checked_i32;

pub use crate::plan::permutation::{TILE_SCHEDULE_HEADER, tile_schedule_entries};

/// Dimensions of the two GEMMs of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmDimensions {
    /// H.
    pub hidden: usize,
    /// I, per rank.
    pub intermediate: usize,
    /// `(n, m, k)` instead of `(m, n, k)`: the weights take the place of the rows, for small batches.
    pub swap_operands: bool,
}

/// Where problem sizes go.
#[derive(Debug)]
pub struct ProblemSizesOut<'a> {
    /// The dimensions besides the number of rows.
    pub dimensions: GemmDimensions,
    /// i32 `[E_loc, 3]`: `(m_e, 2I, H)`, or `(2I, m_e, H)` swapped.
    pub sizes1: SliceMut<'a, i32>,
    /// i32 `[E_loc, 3]`: `(m_e, H, I)`, or `(H, m_e, I)` swapped.
    pub sizes2: SliceMut<'a, i32>,
}

/// Where the tile schedule goes.
#[derive(Debug)]
pub struct TileScheduleOut<'a> {
    /// Most rows of a tile.
    pub block_m: usize,
    /// Entry 0 is `{tiles, block_m, rows, 0}`; entries up to [`TILE_SCHEDULE_HEADER`] are counters, set to 0;
    /// then `{expert, first row, rows in the tile, band}` for every tile, by ascending first row; `band` is
    /// which part of its expert's tiles a GEMM takes together, drawn in `kernels-gpu/src/schedule/entry.rs`.
    /// At least [`tile_schedule_entries`] long.
    pub entries: SliceMut<'a, [u32; 4]>,
}

impl TileScheduleOut<'_> {
    /// The same memory, for a call that takes it by value.
    pub(super) fn reborrow(&mut self) -> TileScheduleOut<'_> {
        TileScheduleOut { block_m: self.block_m, entries: self.entries.reborrow() }
    }
}

impl ProblemSizesOut<'_> {
    pub(super) fn check(&self, op: &'static str, local_experts: usize, stream: &Stream) -> Result<()> {
        let GemmDimensions { hidden, intermediate, .. } = self.dimensions;
        checked_i32(op, "hidden", hidden)?;
        require(intermediate <= i32::MAX as usize / 2, op, "intermediate", intermediate, || {
            "must be below 2^30, so that 2I is an i32".into()
        })?;
        self.sizes1.check(op, "sizes1", local_experts * 3, stream)?;
        self.sizes2.check(op, "sizes2", local_experts * 3, stream)
    }
}

impl TileScheduleOut<'_> {
    pub(super) fn check(
        &self,
        op: &'static str,
        rows: usize,
        local_experts: usize,
        stream: &Stream,
    ) -> Result<()> {
        require(self.block_m >= 1, op, "block_m", self.block_m, || "must be at least 1".into())?;
        checked_i32(op, "block_m", self.block_m)?;
        self.entries.check(
            op,
            "entries",
            tile_schedule_entries(rows, local_experts, self.block_m),
            stream,
        )?;
        let address = self.entries.ptr().raw();
        require(
            address.is_multiple_of(COPY_BYTES as u64),
            op,
            "entries",
            format_args!("{address:#x}"),
            || format!("must be {COPY_BYTES}-byte aligned"),
        )
    }
}

/// Writes the problem sizes of every expert. `expert_offsets`: i64 `[E_loc + 1]`, ascending from 0; other
/// values give sizes that mean nothing.
///
/// # Errors
/// Lists that are too short or on another device; dimensions that are no i32.
pub fn problem_sizes(
    stream: &Stream,
    expert_offsets: Slice<'_, i64>,
    local_experts: usize,
    out: ProblemSizesOut<'_>,
) -> Result<()> {
    const OP: &str = "problem_sizes";
    let experts = checked_i32(OP, "local_experts", local_experts)?;
    expert_offsets.check(OP, "expert_offsets", local_experts + 1, stream)?;
    out.check(OP, local_experts, stream)?;
    let arguments = launchers::WriteProblemSizes {
        expert_offsets: expert_offsets.ptr(),
        local_experts: experts,
        sizes: raw_sizes(Some(&out)),
    };
    let blocks = experts.div_ceil(launchers::PROBLEM_SIZES_EXPERTS);
    // SAFETY: lengths and device were checked above; the values are only subtracted and stored.
    unsafe { stream.device().launch(stream, &launchers::PROBLEM_SIZES, blocks, &arguments) }
}

/// Builds the tile schedule of `rows` permuted rows, which has been checked. `expert_offsets`: i64 `[E_loc +
/// 1]`, in `unchanged` memory.
///
/// # Safety
/// The offsets have their length, and, if they are unchanged, ascend from 0 to at most `rows`, below 2^31.
pub(super) unsafe fn write_tile_schedule(
    stream: &Stream,
    expert_offsets: Slice<'_, i64>,
    local_experts: usize,
    rows: usize,
    out: &TileScheduleOut<'_>,
    unchanged: &Unchanged<'_>,
) -> Result<()> {
    let arguments = launchers::WriteTileSchedule {
        expert_offsets: expert_offsets.ptr(),
        local_experts: local_experts as u32,
        schedule: raw_schedule(Some(out)),
    };
    // A thread writes one expert's tiles: so many blocks that it has few to write if that expert has all the
    // rows.
    const TILES_OF_A_THREAD: usize = 64;
    let most = stream.device().multiprocessors().max(1) as usize;
    let blocks = (rows / out.block_m).div_ceil(TILES_OF_A_THREAD).clamp(1, most) as u32;
    // SAFETY: the offsets are as the caller's contract says. The schedule was checked to have room for the
    // tiles of any offsets up to `rows`, 16-byte aligned, on this device, and `block_m` not to be 0.
    unsafe { stream.device().launch_over(stream, &launchers::TILE_SCHEDULE, blocks, &arguments, unchanged) }
}

/// Where problem sizes go, as kernels take it; null pointers where there are none.
pub(super) fn raw_sizes(out: Option<&ProblemSizesOut<'_>>) -> launchers::ProblemSizes {
    let dimensions = out.map(|out| out.dimensions);
    launchers::ProblemSizes {
        sizes1: out.map_or(DevicePtr::null(), |out| out.sizes1.ptr()),
        sizes2: out.map_or(DevicePtr::null(), |out| out.sizes2.ptr()),
        hidden: dimensions.map_or(0, |dimensions| dimensions.hidden as u32),
        intermediate: dimensions.map_or(0, |dimensions| dimensions.intermediate as u32),
        swap_operands: dimensions.is_some_and(|dimensions| dimensions.swap_operands),
    }
}

/// Where the tile schedule goes, as kernels take it; a null pointer where there is none.
pub(super) fn raw_schedule(out: Option<&TileScheduleOut<'_>>) -> launchers::TileSchedule {
    launchers::TileSchedule {
        entries: out.map_or(DevicePtr::null(), |out| out.entries.ptr()),
        block_m: out.map_or(1, |out| out.block_m as u32),
    }
}
