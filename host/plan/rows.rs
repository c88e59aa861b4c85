//! Grids of the kernels that go over rows, and the layouts of scales beside them.
//!
//! ```text
//!   a warp takes 256 columns of a row, a block four rows        quantise per tensor and group, activation, unpermute, cast
//!   a block takes a row, in spans of 2048 columns               quantise and activation per token
//! ```

use crate::error::{Result, require};
use crate::gpu::device::Device;
use crate::gpu::launch::Grid;
use crate::kernels::launchers;

/// Blocks per multiprocessor that kernels whose warps are independent are launched with at most; they stride
/// over the rest.
pub(crate) const BLOCKS_PER_MULTIPROCESSOR: u32 = 16;
/// Most partial maxima of a tensor.
pub(crate) const MAX_PARTIALS: u32 = 512;
/// Spans that a block of the per-row kernels keeps in shared memory at most.
const MAX_KEPT_SPANS: u32 = 8;
/// Blocks per multiprocessor that those kernels are launched with at most.
const ROW_BLOCKS_PER_MULTIPROCESSOR: u32 = 8;
/// Most bytes of GEMM 2's rows that unpermute discards as it reads them. What L2 cannot hold, 50 MB on an
/// H200, it has written to device memory by then; only the last rows would gain. Measured there: 17 to 29 MB
/// gain 2 to 4 % of a layer, 34 and 42 MB nothing.
pub(crate) const MOST_DISCARDED_BYTES: usize = 48 << 20;
/// Most columns: what 65535 blocks along y cover.
const MAX_COLUMNS: usize = 65535 * launchers::WARP_COLUMNS as usize;

/// Refuses a number of columns that the kernels cannot have.
pub(crate) fn checked_columns(op: &'static str, name: &str, columns: usize) -> Result<u32> {
    require((1..=MAX_COLUMNS).contains(&columns), op, name, columns, || {
        format!("must be in 1..={MAX_COLUMNS}")
    })?;
    Ok(columns as u32)
}

/// The grid of kernels in which a warp takes 256 columns of a row, a block four rows.
pub(crate) fn warp_rows_grid(device: &Device, rows: u32, columns: u32) -> Grid {
    warp_rows(device, rows, columns).into()
}

/// Blocks of such a grid along the rows and along the columns.
pub(crate) fn warp_rows(device: &Device, rows: u32, columns: u32) -> (u32, u32) {
    let segments = columns.div_ceil(launchers::WARP_COLUMNS);
    let most = (device.multiprocessors() * BLOCKS_PER_MULTIPROCESSOR / segments).max(1);
    (rows.div_ceil(launchers::WARP_ROWS_PER_BLOCK).min(most), segments)
}

/// The grid of the largest magnitude of a tensor: at most [`MAX_PARTIALS`] blocks, each of which finds that
/// of its part.
pub(crate) fn absmax_grid(device: &Device, rows: u32, columns: u32) -> Grid {
    let blocks = (device.multiprocessors() * 2).min(MAX_PARTIALS);
    let segments = columns.div_ceil(launchers::WARP_COLUMNS).min(32);
    (rows.div_ceil(launchers::ABSMAX_ROWS_PER_BLOCK).min((blocks / segments).max(1)), segments).into()
}

/// The launch of kernels in which a block takes a row.
pub(crate) struct BlockRows {
    pub blocks: u32,
    /// Dynamic shared memory, bytes: the kept spans in f32.
    pub shared: u32,
    /// Spans of a row that stay in shared memory between its two passes.
    pub kept_spans: u32,
}

impl BlockRows {
    pub fn new(device: &Device, rows: u32, columns: u32) -> BlockRows {
        let most = device.multiprocessors() * ROW_BLOCKS_PER_MULTIPROCESSOR;
        let kept_spans = columns.div_ceil(launchers::SPAN_COLUMNS).min(MAX_KEPT_SPANS);
        let shared = kept_spans * launchers::SPAN_BYTES;
        BlockRows { blocks: rows.min(most), shared, kept_spans }
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

    /// `[groups, rows]`, rows adjacent: what the Hopper GEMMs take, which bring one group of many rows at a
    /// time. For them `rows` is a multiple of 4, as TMA has it: that of the rows rounded up, the last of
    /// which stay unwritten.
    pub fn group_major(rows: usize) -> Self {
        Self { row_stride: 1, group_stride: rows }
    }

    /// As kernels take it.
    pub(crate) fn raw(&self) -> launchers::Strides {
        launchers::Strides { row: self.row_stride as u64, group: self.group_stride as u64 }
    }

    /// Elements up to the last scale of `rows` rows.
    pub(crate) fn extent(&self, rows: usize, groups: usize) -> usize {
        if rows == 0 || groups == 0 {
            return 0;
        }
        ((rows - 1).saturating_mul(self.row_stride))
            .saturating_add((groups - 1).saturating_mul(self.group_stride))
            .saturating_add(1)
    }

    /// Refuses a layout to write in that may have two scales at one place, where two threads would race: rows
    /// lie apart by all groups of a row, or groups by all rows of a group.
    pub(crate) fn check_apart(&self, op: &'static str, name: &str, rows: usize, groups: usize) -> Result<()> {
        let ScaleLayout { row_stride, group_stride } = *self;
        let (last_row, last_group) = (rows.saturating_sub(1), groups.saturating_sub(1));
        let rows_apart = last_row == 0 || row_stride > last_group.saturating_mul(group_stride);
        let groups_apart = last_group == 0 || group_stride > last_row.saturating_mul(row_stride);
        let differ = (last_row == 0 || row_stride > 0) && (last_group == 0 || group_stride > 0);
        let holds = rows == 0 || groups == 0 || differ && (rows_apart || groups_apart);
        require(holds, op, name, format_args!("strides {row_stride}, {group_stride}"), || {
            format!("must give each of {rows} rows and {groups} groups a place of its own")
        })
    }
}
