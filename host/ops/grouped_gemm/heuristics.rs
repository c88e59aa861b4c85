//! Which kernel multiplies: the one place where the grouped GEMM chooses.
//!
//! Two choices are made, at two times. Before the tile schedule is built, [`block_m`] recommends the height of its tiles, and
//! [`gathers`] says whether the first GEMM of a layer takes its rows from the tokens. When the GEMM is called, [`plan`] turns the
//! schedule's height, the accumulation and the path into a [`Plan`]: which family of kernels, which of them, how many blocks.
//! Both are functions of sizes that the host knows; the counts per expert are known on the device alone, where the schedule
//! adapts to them.

use super::{Accumulation, GemmShape, OP};
use crate::error::{Error, Result, require};
use crate::gpu::device::{Device, Family};
use crate::gpu::launch::Kernel;
use crate::kernels::launchers::{self, GemmTile, PortableGemm};
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
pub const BLOCK_M: [usize; 5] = {
    let [a, b, c, d, e] = HopperTile::ALL;
    [a.block_m(), b.block_m(), c.block_m(), d.block_m(), e.block_m()]
};

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

    /// The numbers of its kernels.
    pub(crate) const fn numbers(self) -> GemmTile {
        match self {
            PortableTile::Rows16 => launchers::PORTABLE_16,
            PortableTile::Rows64 => launchers::PORTABLE_64,
            PortableTile::Rows128 => launchers::PORTABLE_128,
        }
    }

    /// Its kernel.
    pub(super) const fn kernel(self, promoted: bool) -> Kernel<PortableGemm> {
        match (self, promoted) {
            (PortableTile::Rows16, false) => launchers::GROUPED_GEMM_FAST_16,
            (PortableTile::Rows64, false) => launchers::GROUPED_GEMM_FAST_64,
            (PortableTile::Rows128, false) => launchers::GROUPED_GEMM_FAST_128,
            (PortableTile::Rows16, true) => launchers::GROUPED_GEMM_PROMOTED_16,
            (PortableTile::Rows64, true) => launchers::GROUPED_GEMM_PROMOTED_64,
            (PortableTile::Rows128, true) => launchers::GROUPED_GEMM_PROMOTED_128,
        }
    }

    /// Most rows.
    pub const fn block_m(self) -> usize {
        self.numbers().rows as usize
    }

    /// Bytes of A and B on their way to an SM with `shared_per_block` bytes of shared memory, at most: all stages but the one that
    /// is multiplied, of every block that it holds. A latency of 1 us at an even share of a GPU's memory rate wants some 25 KB.
    pub fn bytes_in_flight(self, shared_per_block: u32, promoted: bool) -> u32 {
        let GemmTile { stages, operand_bytes, .. } = self.numbers();
        self.blocks_per_multiprocessor(shared_per_block, promoted) * (stages - 1) * operand_bytes
    }

    /// Blocks that an SM holds at a time. Registers allow one block of 256 threads and three of 128.
    fn blocks_per_multiprocessor(self, shared_per_block: u32, promoted: bool) -> u32 {
        match self {
            PortableTile::Rows16 => (shared_per_block / self.kernel(promoted).shared_bytes).clamp(1, 2),
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

    /// The numbers of its kernels.
    pub(crate) const fn numbers(self) -> GemmTile {
        match self {
            HopperTile::Narrow8 => launchers::NARROW_8,
            HopperTile::Narrow16 => launchers::NARROW_16,
            HopperTile::Narrow32 => launchers::NARROW_32,
            HopperTile::Narrow64 => launchers::NARROW_64,
            HopperTile::Wide => launchers::WIDE,
        }
    }

    /// Most rows.
    pub const fn block_m(self) -> usize {
        self.numbers().rows as usize
    }

    /// Blocks that share their rows of A, side by side: a cluster.
    pub const fn cluster(self) -> u32 {
        match self {
            HopperTile::Wide => launchers::HOPPER_WIDE_FAST.cluster,
            _ => launchers::HOPPER_NARROW_8.cluster,
        }
    }

    /// Whether its gated kernels can gather their rows of A.
    pub const fn gathers(self) -> bool {
        matches!(self, HopperTile::Wide)
    }

    /// Columns of D in an item.
    pub(crate) const fn columns(self) -> usize {
        self.numbers().columns as usize
    }

    /// Bytes of A and B on their way to an SM, at most: all stages but the one that is multiplied. A latency of 1 us at an even
    /// share of an H200's memory rate wants some 36 KB.
    pub const fn bytes_in_flight(self) -> u32 {
        let GemmTile { stages, operand_bytes, .. } = self.numbers();
        (stages - 1) * operand_bytes
    }
}

/// Bytes for the partial sums of every block of a grid with tiles of `block_m` rows.
pub(super) fn partials_bytes(device: &Device, block_m: usize) -> usize {
    match HopperTile::for_block_m(block_m) {
        Some(tile) if device.family() == Family::Sm90a => {
            device.multiprocessors() as usize * tile.numbers().partial_bytes as usize
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
    let wide = PortableTile::Rows128.numbers();
    let items = active * mean.div_ceil(wide.rows as usize) * shape.n.div_ceil(wide.columns as usize);
    match mean {
        0..=24 => 16,
        25..=96 => 64,
        _ if items < multiprocessors => 64,
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
        let pairs = shape.n.div_ceil(tile.columns() * tile.cluster() as usize);
        let items = row_tiles.saturating_mul(pairs * tile.cluster() as usize);
        check_slabs(OP, items, shape)?;
        let blocks = hopper_blocks(OP, device, tile, items, path)?;
        return Ok(Plan::Hopper { tile, promoted, blocks });
    }
    let tile = PortableTile::for_block_m(block_m)?;
    let items = row_tiles.saturating_mul(shape.n.div_ceil(tile.numbers().columns as usize));
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
    let slabs_of_item = shape.k.div_ceil(launchers::SLAB as usize);
    let slabs = items.saturating_mul(slabs_of_item);
    let value = || format!("{items} items of {slabs_of_item} slabs");
    require(slabs < 1 << 31, op, "schedule", value(), || "must have below 2^31 slabs of 128 of K".into())
}

#[cfg(test)]
mod tests {
    use super::{Gather, GemmShape, PortableTile, gathers, hopper_block_m, portable_block_m};
    use crate::kernels::launchers::{
        HOPPER_NARROW_8, HOPPER_NARROW_16, HOPPER_NARROW_32, HOPPER_NARROW_64, HOPPER_WIDE_PROMOTED,
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
            assert!(tile.kernel(true).shared_bytes <= 99 * 1024, "{tile:?}");
        }
        let promoted =
            [HOPPER_WIDE_PROMOTED, HOPPER_NARROW_8, HOPPER_NARROW_16, HOPPER_NARROW_32, HOPPER_NARROW_64];
        for kernel in promoted {
            assert!(kernel.shared_bytes <= 227 * 1024, "{}: {}", kernel.name, kernel.shared_bytes);
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
    }
}
