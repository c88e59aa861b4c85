//! Which kernel multiplies: the one place where the grouped GEMM chooses.
//!
//! Two choices are made, at two times. Before the tile schedule is built, [`block_m`] recommends the height of its
//! tiles. When the GEMM is called, [`plan`] turns the schedule's height, the accumulation and the path into a [`Plan`]:
//! which family of kernels, which of them, how many blocks. Both are functions of sizes that the host knows; the
//! counts per expert are known on the device alone, where the schedule adapts to them.

use super::{Accumulation, GemmShape, OP};
use crate::device::Device;
use crate::error::{Error, Result, require};
use crate::ops::problem_sizes::{TILE_SCHEDULE_HEADER, tile_schedule_entries};

/// Which kernels to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Path {
    /// The best there are for the device and the shape.
    #[default]
    Auto,
    /// The kernels that every family has: `cp.async` and `mma.sync`.
    Portable {
        /// Blocks of the grid; as many as the device holds at a time, if `None`. The result does not depend on it.
        blocks: Option<u32>,
    },
}

/// Tiles of the portable kernels: 128 columns, by so many rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortableTile {
    /// For a few rows per expert, where streaming the weights is the work.
    Rows16,
    /// In between.
    Rows64,
    /// For many rows per expert.
    Rows128,
}

/// Columns of D in a work item of the portable kernels.
const BLOCK_N: usize = 128;

impl PortableTile {
    /// All of them, by height.
    pub const ALL: [PortableTile; 3] = [PortableTile::Rows16, PortableTile::Rows64, PortableTile::Rows128];

    /// The tile of this height; an error unless it is 16, 64 or 128.
    pub fn for_block_m(block_m: usize) -> Result<PortableTile> {
        let tile = Self::ALL.into_iter().find(|tile| tile.block_m() == block_m);
        tile.ok_or_else(|| Error::argument(OP, "schedule.block_m", block_m, "must be 16, 64 or 128"))
    }

    /// Most rows.
    pub const fn block_m(self) -> usize {
        match self {
            PortableTile::Rows16 => 16,
            PortableTile::Rows64 => 64,
            PortableTile::Rows128 => 128,
        }
    }

    /// Threads of a block.
    pub const fn threads(self) -> u32 {
        match self {
            PortableTile::Rows16 => 128,
            PortableTile::Rows64 | PortableTile::Rows128 => 256,
        }
    }

    /// Stages of the pipeline.
    const fn stages(self) -> u32 {
        match self {
            PortableTile::Rows16 => 5,
            PortableTile::Rows64 => 4,
            PortableTile::Rows128 => 3,
        }
    }

    /// Dynamic shared memory of a block: a stage is 128 bytes of K of every row of A and B, the tile's 16 bytes, and in the
    /// promoted kernels the scales (drawn in `kernels-gpu/src/grouped_gemm/mod.rs`). At most 99 KiB, which every GPU with
    /// FP8 tensor cores has.
    pub const fn shared_bytes(self, promoted: bool) -> u32 {
        let rows = self.block_m() as u32;
        let scales = if promoted { rows * 4 + 16 } else { 0 };
        self.stages() * ((rows + BLOCK_N as u32) * 128 + 16 + scales)
    }

    /// Blocks that an SM holds at a time. Registers allow one block of 256 threads and three of 128.
    fn blocks_per_multiprocessor(self, shared_per_block: u32, promoted: bool) -> u32 {
        match self {
            PortableTile::Rows16 => (shared_per_block / self.shared_bytes(promoted)).clamp(1, 2),
            PortableTile::Rows64 | PortableTile::Rows128 => 1,
        }
    }
}

/// What a call will launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: there are no rows or no experts.
    Nothing,
    /// A portable kernel.
    Portable {
        /// Its tile.
        tile: PortableTile,
        /// Whether it folds its sums into f32 registers every 128 of K.
        promoted: bool,
        /// Blocks of the grid.
        blocks: u32,
    },
}

/// The height of tiles to build the schedule for.
///
/// With few rows per expert the weights' stream is the work, and a tall tile would multiply mostly zeros; with many, a
/// tall tile reads each weight less often. The mean number of rows of an expert that has any, `rows / min(experts,
/// rows)`, decides: 16 up to 24, 64 up to 96, else 128. Where tiles of 128 would leave SMs without work, 64 it is.
pub fn block_m(device: &Device, shape: &GemmShape) -> usize {
    block_m_for(device.multiprocessors() as usize, shape)
}

fn block_m_for(multiprocessors: usize, shape: &GemmShape) -> usize {
    let active = shape.experts.min(shape.rows).max(1);
    let mean = shape.rows.div_ceil(active);
    let items = |block_m: usize| active * mean.div_ceil(block_m) * shape.n.div_ceil(BLOCK_N);
    match mean {
        0..=24 => 16,
        25..=96 => 64,
        _ if items(128) < multiprocessors => 64,
        _ => 128,
    }
}

/// What a call with a schedule of this height launches. `scales_change_along_k`: there are scales per group or block.
pub fn plan(
    device: &Device,
    shape: &GemmShape,
    block_m: usize,
    accumulation: Accumulation,
    scales_change_along_k: bool,
    path: Path,
) -> Result<Plan> {
    let tile = PortableTile::for_block_m(block_m)?;
    let promoted = scales_change_along_k || accumulation == Accumulation::Promoted;
    // An upper bound: the schedule's capacity. Blocks that find no work return at once.
    let row_tiles = tile_schedule_entries(shape.rows, shape.experts, block_m) - TILE_SCHEDULE_HEADER;
    if shape.rows == 0 || shape.experts == 0 {
        return Ok(Plan::Nothing);
    }
    let items = row_tiles.saturating_mul(shape.n.div_ceil(BLOCK_N));
    let value = || format!("{} rows in tiles of {block_m} x {} columns", shape.rows, shape.n);
    require(items < 1 << 31, OP, "schedule", value(), || "must have below 2^31 tiles of 128 columns".into())?;
    let blocks = match path {
        Path::Auto | Path::Portable { blocks: None } => {
            let per_sm = tile.blocks_per_multiprocessor(device.shared_per_block(), promoted);
            device.multiprocessors() * per_sm
        }
        Path::Portable { blocks: Some(blocks) } => {
            require(blocks >= 1, OP, "path.blocks", blocks, || "must be at least 1".into())?;
            blocks
        }
    };
    Ok(Plan::Portable { tile, promoted, blocks: blocks.min(items as u32) })
}

#[cfg(test)]
mod tests {
    use super::{GemmShape, PortableTile, block_m_for};

    #[test]
    fn tiles_grow_with_the_rows_per_expert() {
        let height =
            |tokens: usize| block_m_for(132, &GemmShape { rows: tokens * 8, n: 1536, k: 4096, experts: 128 });
        assert_eq!([1, 64, 256, 512, 1024, 2048, 16384].map(height), [16, 16, 16, 64, 64, 128, 128]);
    }

    #[test]
    fn a_small_problem_is_cut_finer() {
        let shape = |n| GemmShape { rows: 256, n, k: 4096, experts: 2 };
        assert_eq!(block_m_for(132, &shape(1024)), 64);
        assert_eq!(block_m_for(132, &shape(28672)), 128);
    }

    #[test]
    fn shared_memory_fits_every_gpu() {
        for tile in PortableTile::ALL {
            assert!(tile.shared_bytes(true) <= 99 * 1024, "{tile:?}");
        }
    }
}
