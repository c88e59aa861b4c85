//! Which kernel multiplies: the one place where the grouped GEMM chooses.
//!
//! Two choices are made, at two times. Before the tile schedule is built, [`block_m`] recommends the height of its
//! tiles, and [`gathers`] says whether the first GEMM of a layer takes its rows from the tokens. When the GEMM is called, [`plan`] turns the schedule's height, the accumulation and the path into a [`Plan`]:
//! which family of kernels, which of them, how many blocks. Both are functions of sizes that the host knows; the
//! counts per expert are known on the device alone, where the schedule adapts to them.

use super::slab_scales::EXTRA_ROWS;
use super::{Accumulation, GemmShape, OP};
use crate::error::{Error, Result, require};
use crate::gpu::device::Device;
use crate::gpu::family::Family;
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
    /// The kernels of Hopper: TMA and `wgmma`. An error on other GPUs.
    Hopper {
        /// Blocks of the grid, at most one to a multiprocessor; that many, if `None`. Where sums are cut (tiles of up to 64 rows)
        /// the result depends on it within rounding.
        blocks: Option<u32>,
    },
}

/// Whether the first GEMM of a layer gathers its rows of A by token, or reads copies that the quantisation has scattered to permuted
/// order. The result is the same, bit for bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gather {
    /// What [`gathers`] recommends.
    #[default]
    Auto,
    /// Wherever there is a kernel that can.
    Always,
    /// Nowhere.
    Never,
}

/// Heights of tiles that some kernel has.
pub const BLOCK_M: [usize; 5] = [8, 16, 32, 64, 128];

/// Refuses a height of tiles that no kernel has.
pub(in crate::ops) fn check_block_m(op: &'static str, block_m: usize) -> Result<()> {
    require(BLOCK_M.contains(&block_m), op, "schedule.block_m", block_m, || {
        "must be 8, 16, 32, 64 or 128".into()
    })
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
        tile.ok_or_else(|| {
            Error::argument(OP, "schedule.block_m", block_m, "must be 16, 64 or 128 for the portable kernels")
        })
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

    /// Bytes of A and B on their way to an SM with `shared_per_block` bytes of shared memory, at most: all stages but the one that is
    /// multiplied, of every block that it holds. A latency of 1 us at an even share of a GPU's memory rate wants some 25 KB.
    pub fn bytes_in_flight(self, shared_per_block: u32, promoted: bool) -> u32 {
        let blocks = self.blocks_per_multiprocessor(shared_per_block, promoted);
        blocks * (self.stages() - 1) * (self.block_m() as u32 + BLOCK_N as u32) * 128
    }

    /// Blocks that an SM holds at a time. Registers allow one block of 256 threads and three of 128.
    fn blocks_per_multiprocessor(self, shared_per_block: u32, promoted: bool) -> u32 {
        match self {
            PortableTile::Rows16 => (shared_per_block / self.shared_bytes(promoted)).clamp(1, 2),
            PortableTile::Rows64 | PortableTile::Rows128 => 1,
        }
    }
}

/// Tiles of the Hopper kernels: so many rows of one expert, by 256 columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopperTile {
    /// Few rows per expert: the weights on the M side, 256 columns by up to 8 rows.
    Narrow8,
    /// As `Narrow8`, 16 rows.
    Narrow16,
    /// As `Narrow8`, 32 rows.
    Narrow32,
    /// As `Narrow8`, 64 rows.
    Narrow64,
    /// Many rows per expert: 128 rows by 256 columns.
    Wide,
}

impl HopperTile {
    /// All of them, by height; as [`BLOCK_M`].
    pub const ALL: [HopperTile; 5] = [
        HopperTile::Narrow8,
        HopperTile::Narrow16,
        HopperTile::Narrow32,
        HopperTile::Narrow64,
        HopperTile::Wide,
    ];

    /// The tile of this height, one of [`BLOCK_M`].
    pub fn for_block_m(block_m: usize) -> Option<HopperTile> {
        Self::ALL.into_iter().find(|tile| tile.block_m() == block_m)
    }

    /// Most rows.
    pub const fn block_m(self) -> usize {
        BLOCK_M[self as usize]
    }

    /// Threads of a block: two warpgroups that multiply and a producer warp, of the wide kernels a producer warpgroup.
    pub const fn threads(self) -> u32 {
        match self {
            HopperTile::Wide => 384,
            _ => 288,
        }
    }

    /// Blocks that share their rows of A, side by side: a cluster.
    pub const fn cluster(self) -> u32 {
        match self {
            HopperTile::Wide => 2,
            _ => 1,
        }
    }

    /// Whether its gated kernels can gather their rows of A.
    pub const fn gathers(self) -> bool {
        matches!(self, HopperTile::Wide)
    }

    /// Rows of A that are asked for at a time: of a wide tile, what one block of the cluster asks for on behalf of both; of a narrow one,
    /// as few as can be, since an expert seldom has as many rows as its tile.
    pub(in crate::ops) const fn a_box_rows(self) -> u32 {
        match self {
            HopperTile::Wide => 64,
            _ => 8,
        }
    }

    /// Columns of D in an item.
    pub const COLUMNS: usize = 256;

    /// Stages of the ring, and bytes of A and B in each.
    const fn ring(self) -> (u32, u32) {
        const ROWS_128: u32 = 128 * 128;
        let rows = self.block_m() as u32;
        match self {
            HopperTile::Wide => (4, 3 * ROWS_128),
            HopperTile::Narrow64 => (5, 2 * ROWS_128 + rows * 128),
            _ => (6, 2 * ROWS_128 + rows * 128),
        }
    }

    /// Bytes of A and B on their way to an SM, at most: all stages but the one that is multiplied. A latency of 1 us at an even share
    /// of an H200's memory rate wants some 36 KB.
    pub const fn bytes_in_flight(self) -> u32 {
        let (stages, stage) = self.ring();
        (stages - 1) * stage
    }

    /// Dynamic shared memory of a block: the ring of stages with scales and barriers (`kernels-gpu/src/grouped_gemm/hopper/ring.rs`),
    /// and what the narrow kernels exchange, or the wide ones note of their items.
    pub const fn shared_bytes(self, promoted: bool) -> u32 {
        let rows = self.block_m() as u32;
        let (stages, stage) = self.ring();
        // Of the rows of a box, and of two blocks of B: TMA puts them at multiples of 128.
        let scales = ((rows + EXTRA_ROWS + 2) * 4).next_multiple_of(128);
        let (scales, exchange) = match self {
            HopperTile::Wide => (if promoted { scales } else { 0 }, stages * 16),
            _ => (scales, 16 + 9 * rows * 4),
        };
        stages * (stage + scales + 16) + exchange
    }

    /// Bytes of the partial sums of a block: two slots of 256 columns by the tile's rows, f32. None where items are not cut.
    const fn partials_bytes(self) -> usize {
        match self {
            HopperTile::Wide => 0,
            _ => 2 * 256 * self.block_m() * 4,
        }
    }
}

/// Bytes for the partial sums of every block of a grid with tiles of `block_m` rows.
pub(super) fn partials_bytes(device: &Device, block_m: usize) -> usize {
    match HopperTile::for_block_m(block_m) {
        Some(tile) if device.family() == Family::Sm90a => {
            device.multiprocessors() as usize * tile.partials_bytes()
        }
        _ => 0,
    }
}

/// Whether `path` leads to the Hopper kernels on this device; an error if it asks for them in vain.
pub(crate) fn takes_hopper(op: &'static str, device: &Device, path: Path) -> Result<bool> {
    let is_hopper = device.family() == Family::Sm90a;
    match path {
        Path::Auto => Ok(is_hopper),
        Path::Portable { .. } => Ok(false),
        Path::Hopper { .. } => {
            require(is_hopper, op, "path", "Hopper", || {
                format!("must not be Hopper for the kernels of {}", device.family())
            })?;
            Ok(true)
        }
    }
}

/// Blocks of a Hopper grid for so many items.
pub(in crate::ops) fn hopper_blocks(
    op: &'static str,
    device: &Device,
    tile: HopperTile,
    items: usize,
    path: Path,
) -> Result<u32> {
    let most = device.multiprocessors();
    let blocks = match path {
        Path::Hopper { blocks: Some(blocks) } => {
            require((1..=most).contains(&blocks), op, "path.blocks", blocks, || {
                format!("must be in 1..={most}, the multiprocessors")
            })?;
            blocks
        }
        _ => most,
    };
    // The narrow kernels cut items, so that every block has work however few there are. A wide item takes a cluster.
    let blocks = if tile == HopperTile::Wide { blocks.min(items.div_ceil(2) as u32 * 2) } else { blocks };
    Ok(blocks.next_multiple_of(tile.cluster()).min(most / tile.cluster() * tile.cluster()))
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
    /// A Hopper kernel.
    Hopper {
        /// Its tile.
        tile: HopperTile,
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
/// rows)`, decides.
///
/// - Hopper: the least narrow tile that most experts fit into once, so that their weights are streamed once: 8 up to a mean of 3, 16
///   up to 9, 32 up to 22, 64 up to 50, else 128.
/// - Portable: 16 up to 24, 64 up to 96, else 128. Where tiles of 128 would leave SMs without work, 64 it is.
pub fn block_m(device: &Device, shape: &GemmShape, path: Path) -> usize {
    let is_hopper = device.family() == Family::Sm90a && !matches!(path, Path::Portable { .. });
    if is_hopper { hopper_block_m(shape) } else { portable_block_m(device.multiprocessors() as usize, shape) }
}

/// Whether the first GEMM of a layer on Hopper, with tiles of `block_m` rows, gathers the rows of its tokens: each has `top_k` of
/// `experts`, of which `local_experts` are here.
///
/// Scattered, a token is written once for each of its experts here; gathered, once, but then GEMM 1 takes longer. On an H200 at 4096
/// tokens a layer gains 2 to 4 % with 8 experts to a token and loses 6 % with 2. So rows are gathered from four on, on average, if tokens
/// spread evenly. The kernels for few rows do not gather: their A is small, and few threads copy.
pub fn gathers(
    gather: Gather,
    block_m: usize,
    top_k: usize,
    (local_experts, experts): (usize, usize),
) -> bool {
    let can = HopperTile::for_block_m(block_m).is_some_and(HopperTile::gathers);
    match gather {
        Gather::Auto => can && top_k * local_experts >= 4 * experts,
        Gather::Always => can,
        Gather::Never => false,
    }
}

/// Mean number of rows of the experts that have any, if the rows are spread evenly.
fn mean_rows(shape: &GemmShape) -> usize {
    shape.rows.div_ceil(shape.experts.min(shape.rows).max(1))
}

fn hopper_block_m(shape: &GemmShape) -> usize {
    match mean_rows(shape) {
        0..=3 => 8,
        4..=9 => 16,
        10..=22 => 32,
        23..=50 => 64,
        _ => 128,
    }
}

fn portable_block_m(multiprocessors: usize, shape: &GemmShape) -> usize {
    let mean = mean_rows(shape);
    let active = shape.experts.min(shape.rows).max(1);
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
    let promoted = scales_change_along_k || accumulation == Accumulation::Promoted;
    // An upper bound: the schedule's capacity. Blocks that find no work return at once.
    let row_tiles = tile_schedule_entries(shape.rows, shape.experts, block_m) - TILE_SCHEDULE_HEADER;
    if shape.rows == 0 || shape.experts == 0 {
        return Ok(Plan::Nothing);
    }
    if takes_hopper(OP, device, path)?
        && let Some(tile) = HopperTile::for_block_m(block_m)
    {
        let pairs = shape.n.div_ceil(HopperTile::COLUMNS * tile.cluster() as usize);
        let items = row_tiles.saturating_mul(pairs * tile.cluster() as usize);
        check_slabs(OP, items, shape)?;
        let blocks = hopper_blocks(OP, device, tile, items, path)?;
        return Ok(Plan::Hopper { tile, promoted, blocks });
    }
    let tile = PortableTile::for_block_m(block_m)?;
    let items = row_tiles.saturating_mul(shape.n.div_ceil(BLOCK_N));
    let value = || format!("{} rows in tiles of {block_m} x {} columns", shape.rows, shape.n);
    require(items < 1 << 31, OP, "schedule", value(), || "must have below 2^31 tiles of 128 columns".into())?;
    let blocks = match path {
        Path::Auto | Path::Portable { blocks: None } | Path::Hopper { .. } => {
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

/// Refuses a problem whose slabs the Hopper kernels could not count.
pub(in crate::ops) fn check_slabs(op: &'static str, items: usize, shape: &GemmShape) -> Result<()> {
    let slabs = items.saturating_mul(shape.k.div_ceil(128));
    let value = || format!("{items} items of {} slabs", shape.k.div_ceil(128));
    require(slabs < 1 << 31, op, "schedule", value(), || "must have below 2^31 slabs of 128 of K".into())
}

#[cfg(test)]
mod tests {
    use super::{
        BLOCK_M, Gather, GemmShape, HopperTile, PortableTile, gathers, hopper_block_m, portable_block_m,
    };

    #[test]
    fn tiles_grow_with_the_rows_per_expert() {
        let height = |tokens: usize| {
            portable_block_m(132, &GemmShape { rows: tokens * 8, n: 1536, k: 4096, experts: 128 })
        };
        assert_eq!([1, 64, 256, 512, 1024, 2048, 16384].map(height), [16, 16, 16, 64, 64, 128, 128]);
    }

    #[test]
    fn a_small_problem_is_cut_finer() {
        let shape = |n| GemmShape { rows: 256, n, k: 4096, experts: 2 };
        assert_eq!(portable_block_m(132, &shape(1024)), 64);
        assert_eq!(portable_block_m(132, &shape(28672)), 128);
    }

    #[test]
    fn shared_memory_fits_every_gpu() {
        for tile in PortableTile::ALL {
            assert!(tile.shared_bytes(true) <= 99 * 1024, "{tile:?}");
        }
        for tile in HopperTile::ALL {
            let bytes = tile.shared_bytes(false).max(tile.shared_bytes(true));
            assert!(bytes <= 227 * 1024, "{tile:?}: {bytes}");
        }
    }

    #[test]
    fn rows_are_gathered_where_tokens_have_several() {
        let auto = |block_m, top_k, local| gathers(Gather::Auto, block_m, top_k, (local, 128));
        assert_eq!([64, 128].map(|block_m| auto(block_m, 8, 128)), [false, true]);
        assert_eq!([1, 2, 8].map(|top_k| auto(128, top_k, 128)), [false, false, true]);
        // Of four ranks each has two of a token's eight experts; of two, four.
        assert_eq!([32, 64].map(|local| auto(128, 8, local)), [false, true]);
        assert!(gathers(Gather::Always, 128, 1, (1, 128)) && !gathers(Gather::Always, 64, 8, (128, 128)));
        assert!(!gathers(Gather::Never, 128, 8, (128, 128)));
    }

    #[test]
    fn most_experts_fit_into_one_narrow_tile() {
        let height =
            |tokens: usize| hopper_block_m(&GemmShape { rows: tokens * 2, n: 28672, k: 4096, experts: 8 });
        assert_eq!([1, 8, 32, 64, 128, 256, 4096].map(height), [8, 8, 16, 32, 64, 128, 128]);
        assert!(HopperTile::ALL.iter().zip(BLOCK_M).all(|(tile, rows)| tile.block_m() == rows));
    }
}
