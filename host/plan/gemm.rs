//! The plan of a grouped GEMM: its kernel, its grid and its workspace, from sizes that the host knows.
//!
//! ```text
//!   before the schedule is built                when the plan is made
//!   block_m(device, shape, path) --------------> GemmPlan::new(device, shape, block_m, options)
//!     from the rows per expert                     family, tile, promoted or fast, blocks, bytes of partial sums
//! ```
//!
//! How many rows each expert has is known on the device alone, where the tile schedule adapts to it.

use super::packed::{PackedShape, WeightLayout};
use super::path::takes_hopper;
use super::permutation::tile_rows;
use super::tiles::{HopperTile, PortableTile, check_block_m, one_of};
use crate::config::{Accumulation, COPY_BYTES, Gather, Path, Tuning};
use crate::error::{Error, Result, require};
use crate::gpu::device::Device;
use crate::gpu::family::Family;
use crate::kernels::launchers;

const OP: &str = "grouped_gemm";
const GATED: &str = "gated_gemm";

/// Dimensions of a grouped GEMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmShape {
    /// P, rows of A and D: those of the permutation.
    pub rows: usize,
    /// N, columns of D: a multiple of 8.
    pub n: usize,
    /// K, what is summed over: a multiple of 16.
    pub k: usize,
    /// E_loc, experts: those of the permutation.
    pub experts: usize,
}

/// Dimensions of a gated GEMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatedShape {
    /// P, rows of A (where they are not gathered) and q: those of the permutation.
    pub rows: usize,
    /// I, columns of q: a multiple of 16; of 128 with block scales of B, so that the up half begins at a
    /// block.
    pub intermediate: usize,
    /// K, what is summed over: a multiple of 16.
    pub k: usize,
    /// E_loc, experts: those of the permutation.
    pub experts: usize,
}

impl GatedShape {
    /// As the shape of a grouped GEMM with gate and up side by side.
    pub fn gemm(&self) -> GemmShape {
        GemmShape { rows: self.rows, n: 2 * self.intermediate, k: self.k, experts: self.experts }
    }
}

/// What decides the kernel of a GEMM besides its shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GemmOptions {
    /// How the sum is kept.
    pub accumulation: Accumulation,
    /// Whether A has a scale per row and group, or B one per block: scales that change along K.
    pub slab_scales: bool,
    /// Which kernels to use.
    pub path: Path,
    /// How B lies in memory. Packed weights take the Hopper kernels.
    pub weights: WeightLayout,
}

impl GemmOptions {
    /// Whether sums are folded into f32 registers every 128 of K.
    fn promoted(self) -> bool {
        self.slab_scales || self.accumulation == Accumulation::Promoted
    }
}

/// What a grouped GEMM launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GemmKernel {
    /// Nothing: there are no rows or no experts.
    Nothing,
    /// A portable kernel with so many blocks.
    Portable { tile: PortableTile, blocks: u32 },
    /// A Hopper kernel with so many blocks.
    Hopper { tile: HopperTile, blocks: u32 },
}

/// A planned grouped GEMM, for [`grouped_gemm`](crate::ops::grouped_gemm::grouped_gemm).
#[derive(Clone, Debug)]
pub struct GemmPlan {
    device: Device,
    shape: GemmShape,
    block_m: usize,
    slab_scales: bool,
    promoted: bool,
    weights: WeightLayout,
    kernel: GemmKernel,
}

impl GemmPlan {
    /// Plans a GEMM over a tile schedule with tiles of `block_m` rows, e.g. those that [`block_m`]
    /// recommends.
    ///
    /// # Errors
    /// Dimensions that the kernels cannot do; a `block_m` that no kernel of the path has; a path that the
    /// device lacks.
    pub fn new(device: &Device, shape: GemmShape, block_m: usize, options: GemmOptions) -> Result<GemmPlan> {
        let GemmShape { rows, n, k, experts } = shape;
        check_k(OP, k)?;
        let multiple = launchers::COLUMNS_MULTIPLE as usize;
        require(n > 0 && n.is_multiple_of(multiple), OP, "n", n, || {
            format!("must be a positive multiple of {multiple}")
        })?;
        check_sizes(OP, [("rows", rows), ("n", n), ("k", k), ("experts", experts)])?;
        check_block_m(OP, block_m)?;
        let kernel = GemmKernel::new(device, &shape, block_m, options)?;
        let GemmOptions { slab_scales, weights, .. } = options;
        if weights == WeightLayout::Packed {
            require(!matches!(kernel, GemmKernel::Portable { .. }), OP, "weights", "Packed", || {
                "must be Checkpoint for the portable kernels".into()
            })?;
            PackedShape::plain(experts, n, k)?;
        }
        let promoted = options.promoted();
        Ok(GemmPlan { device: device.clone(), shape, block_m, slab_scales, promoted, weights, kernel })
    }

    /// How B lies in memory.
    pub fn weights(&self) -> WeightLayout {
        self.weights
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The dimensions.
    pub fn shape(&self) -> GemmShape {
        self.shape
    }

    /// Most rows of a tile: those of the schedule.
    pub fn block_m(&self) -> usize {
        self.block_m
    }

    /// Bytes of workspace that the GEMM needs; 16-byte aligned.
    pub fn workspace_bytes(&self) -> usize {
        match self.kernel {
            GemmKernel::Hopper { tile, blocks } => blocks as usize * tile.partials_bytes(),
            GemmKernel::Nothing | GemmKernel::Portable { .. } => 0,
        }
    }

    /// Whether scales that change along K were planned for.
    pub(crate) fn slab_scales(&self) -> bool {
        self.slab_scales
    }

    /// Whether sums are folded into f32 registers every 128 of K.
    pub(crate) fn promoted(&self) -> bool {
        self.promoted
    }

    /// What it launches.
    pub(crate) fn kernel(&self) -> GemmKernel {
        self.kernel
    }
}

impl GemmKernel {
    fn new(device: &Device, shape: &GemmShape, block_m: usize, options: GemmOptions) -> Result<GemmKernel> {
        let path = options.path;
        let hopper = takes_hopper(OP, device, path)?;
        if shape.rows == 0 || shape.experts == 0 {
            return Ok(GemmKernel::Nothing);
        }
        // An upper bound. Blocks that find no work return at once.
        let row_tiles = tile_rows(shape.rows, shape.experts, block_m);
        if hopper && let Some(tile) = HopperTile::for_block_m(block_m) {
            let pairs = shape.n.div_ceil(tile.columns() * tile.cluster() as usize);
            let items = row_tiles.saturating_mul(pairs * tile.cluster() as usize);
            return Ok(GemmKernel::Hopper {
                tile,
                blocks: hopper_blocks(OP, device, tile, items, shape.k, path)?,
            });
        }
        if let Path::Hopper { .. } = path {
            return Err(no_tile(OP, block_m));
        }
        let tile = PortableTile::for_block_m(block_m)?;
        let items = row_tiles.saturating_mul(shape.n.div_ceil(tile.columns()));
        let value = || format!("{} rows in tiles of {block_m} x {} columns", shape.rows, shape.n);
        require(items < 1 << 31, OP, "schedule", value(), || {
            format!("must have below 2^31 tiles of {} columns", tile.columns())
        })?;
        let blocks = match path {
            Path::Auto | Path::OneLaunch | Path::Portable { blocks: None } | Path::Hopper { .. } => {
                let per_sm = tile.blocks_per_multiprocessor(device.shared_per_block(), options.promoted());
                device.multiprocessors() * per_sm
            }
            Path::Portable { blocks: Some(blocks) } => {
                require(blocks >= 1, OP, "path.blocks", blocks, || "must be at least 1".into())?;
                blocks
            }
        };
        Ok(GemmKernel::Portable { tile, blocks: blocks.min(items as u32) })
    }
}

/// A planned gated GEMM, for [`gated_gemm`](crate::ops::gated_gemm::gated_gemm).
#[derive(Clone, Debug)]
pub struct GatedPlan {
    device: Device,
    shape: GatedShape,
    slab_scales: bool,
    promoted: bool,
    weights: WeightLayout,
    gathers: bool,
    tile: HopperTile,
    /// 0 where there is nothing to do.
    blocks: u32,
}

impl GatedPlan {
    /// Plans a gated GEMM over a tile schedule with tiles of `block_m` rows. `gathers`: A is in the order of
    /// the tokens, and the kernel gathers its rows by the permutation; with tiles of 128 rows alone.
    ///
    /// # Errors
    /// As [`GemmPlan::new`]; a path that does not lead to the Hopper kernels; rows that are gathered in tiles
    /// of another height.
    pub fn new(
        device: &Device,
        shape: GatedShape,
        block_m: usize,
        options: GemmOptions,
        gathers: bool,
    ) -> Result<GatedPlan> {
        let path = options.path;
        require(takes_hopper(GATED, device, path)?, GATED, "path", format_args!("{path:?}"), || {
            "must lead to the Hopper kernels: others have no gated GEMM".into()
        })?;
        let GatedShape { rows, intermediate, k, experts } = shape;
        check_k(GATED, k)?;
        require(
            intermediate > 0 && intermediate.is_multiple_of(COPY_BYTES),
            GATED,
            "intermediate",
            intermediate,
            || format!("must be a positive multiple of {COPY_BYTES}"),
        )?;
        let columns = intermediate.saturating_mul(2);
        check_sizes(GATED, [("rows", rows), ("intermediate", columns), ("k", k), ("experts", experts)])?;
        check_block_m(GATED, block_m)?;
        let tile = HopperTile::for_block_m(block_m).ok_or_else(|| no_tile(GATED, block_m))?;
        require(tile.gathers() || !gathers, GATED, "block_m", block_m, || {
            format!("must be {} where rows are gathered", HopperTile::Wide.block_m())
        })?;
        let row_tiles = tile_rows(rows, experts, block_m);
        let panels = intermediate.div_ceil(launchers::GATED_COLUMNS as usize);
        let panels = panels.next_multiple_of(tile.cluster() as usize);
        let items = row_tiles.saturating_mul(panels);
        let blocks =
            if rows == 0 || experts == 0 { 0 } else { hopper_blocks(GATED, device, tile, items, k, path)? };
        let GemmOptions { slab_scales, weights, .. } = options;
        if weights == WeightLayout::Packed {
            PackedShape::gated(experts, intermediate, k)?;
        }
        let promoted = options.promoted();
        Ok(GatedPlan { device: device.clone(), shape, slab_scales, promoted, weights, gathers, tile, blocks })
    }

    /// How B lies in memory.
    pub fn weights(&self) -> WeightLayout {
        self.weights
    }

    /// Whether there is a gated GEMM for `path` on this device.
    pub fn is_supported(device: &Device, path: Path) -> bool {
        takes_hopper(GATED, device, path).unwrap_or(false)
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The dimensions.
    pub fn shape(&self) -> GatedShape {
        self.shape
    }

    /// Most rows of a tile: those of the schedule.
    pub fn block_m(&self) -> usize {
        self.tile.block_m()
    }

    /// Whether rows of A are gathered by token.
    pub fn gathers(&self) -> bool {
        self.gathers
    }

    /// Bytes of workspace that the GEMM needs; 16-byte aligned.
    pub fn workspace_bytes(&self) -> usize {
        self.blocks as usize * self.tile.partials_bytes()
    }

    /// Whether scales that change along K were planned for.
    pub(crate) fn slab_scales(&self) -> bool {
        self.slab_scales
    }

    /// Whether sums are folded into f32 registers every 128 of K.
    pub(crate) fn promoted(&self) -> bool {
        self.promoted
    }

    /// The tile.
    pub(crate) fn tile(&self) -> HopperTile {
        self.tile
    }

    /// Blocks of the grid; 0 where there is nothing to do.
    pub(crate) fn blocks(&self) -> u32 {
        self.blocks
    }
}

/// The refusal of a height that the Hopper kernels do not have.
fn no_tile(op: &'static str, block_m: usize) -> Error {
    let heights = one_of(HopperTile::ALL.map(HopperTile::block_m));
    Error::argument(op, "block_m", block_m, format!("must be {heights} for the Hopper kernels"))
}

fn check_k(op: &'static str, k: usize) -> Result<()> {
    require(k > 0 && k.is_multiple_of(COPY_BYTES), op, "k", k, || {
        format!("must be a positive multiple of {COPY_BYTES}")
    })
}

/// The kernels count rows, columns and bytes of K in i32, a tile beyond the end included.
fn check_sizes(op: &'static str, sizes: [(&str, usize); 4]) -> Result<()> {
    for (name, value) in sizes {
        let beyond = HopperTile::Wide.block_m() - 1;
        require(value <= i32::MAX as usize - beyond, op, name, value, || {
            format!("must be below 2^31 - {beyond}")
        })?;
    }
    Ok(())
}

/// Blocks of a Hopper grid for so many items of `k`.
fn hopper_blocks(
    op: &'static str,
    device: &Device,
    tile: HopperTile,
    items: usize,
    k: usize,
    path: Path,
) -> Result<u32> {
    let slabs_of_item = k.div_ceil(launchers::SLAB as usize);
    let slabs = items.saturating_mul(slabs_of_item);
    let value = || format!("{items} items of {slabs_of_item} slabs");
    require(slabs < 1 << 31, op, "schedule", value(), || {
        format!("must have below 2^31 slabs of {} of K", launchers::SLAB)
    })?;
    let most = device.multiprocessors().min(MOST_BLOCKS);
    let blocks = match path {
        Path::Hopper { blocks: Some(blocks) } => {
            require((1..=most).contains(&blocks), op, "path.blocks", blocks, || {
                format!("must be in 1..={most}, the multiprocessors")
            })?;
            blocks
        }
        _ => most,
    };
    // The narrow kernels cut items down to slabs, and blocks beyond those would have no share: nor need they
    // partial sums. A wide item takes a cluster.
    let most_shares = if tile == HopperTile::Wide { items.div_ceil(2) * 2 } else { slabs };
    let blocks = blocks.min(most_shares as u32);
    Ok(blocks.next_multiple_of(tile.cluster()).min(most / tile.cluster() * tile.cluster()))
}

/// Blocks that a schedule has counters for: one that items are drawn from, and one for each item that is cut,
/// of which there are no more than blocks.
const MOST_BLOCKS: u32 = launchers::SCHEDULE_COUNTERS - 1;

/// The height of tiles to build the schedule for, `shape.rows` being the rows to expect, by the table of
/// [`Tuning::default`].
pub fn block_m(device: &Device, shape: &GemmShape, path: Path) -> usize {
    Tuning::h200().block_m(device, shape, path)
}

impl Tuning {
    /// The height of tiles to build the schedule for, `shape.rows` being the rows to expect.
    ///
    /// With few rows per expert the weights' stream is the work, and a tall tile would multiply mostly zeros;
    /// with many, a tall tile reads each weight less often. The mean number of rows of an expert that has
    /// any, `rows / min(experts, rows)`, decides.
    ///
    /// - Hopper: 8, 16 or 128 rows. The least narrow tile that most experts fit into once streams their
    ///   weights once. 32 rows instead of 8 or 16 where experts are large and rows are many, and instead of
    ///   128 where that is little work.
    /// - Portable: 16, 64 or 128 rows. Where tiles of 128 would leave SMs without work, 64 it is.
    pub fn block_m(&self, device: &Device, shape: &GemmShape, path: Path) -> usize {
        let multiprocessors = device.multiprocessors() as usize;
        if device.family() == Family::Sm90a && !matches!(path, Path::Portable { .. }) {
            self.hopper_tile(multiprocessors, shape).block_m()
        } else {
            self.portable_tile(multiprocessors, shape).block_m()
        }
    }

    /// On an H200 tiles of 32 rows, which take the product that their rows fit into, are up to 3 % behind the
    /// better of 8 and 16 with rows that are even, up to 8 an expert. With rows as uneven as `zipf:1.0` they
    /// are between 7 % ahead (Mixtral) and 9 % behind (small experts, one row each). With experts of 44 MB
    /// they cost nothing at 2 rows an expert. At 8 rows an expert they take 2 to 10 % less of a layer than
    /// tiles of 128 where that is little work (Qwen3-30B, Qwen3.5-35B, Mixtral), at 16 3 % less of Mixtral's;
    /// 1 to 4 % more where it is much.
    fn hopper_tile(&self, multiprocessors: usize, shape: &GemmShape) -> HopperTile {
        /// Rows below which no expert has many.
        const MANY: usize = 128;
        /// Rows times tiles of columns of both GEMMs of a layer, to an SM.
        const LITTLE: usize = 200;
        let &GemmShape { rows, n, k, experts } = shape;
        let [of_8, of_16, of_32] =
            [self.hopper_rows_8, self.hopper_rows_16, self.hopper_rows_32].map(|most| most as usize);
        let large = u64::from(self.hopper_large_mb) * 1_000_000;
        let is_large = rows >= MANY && n as u64 * k as u64 >= large;
        let columns = HopperTile::Wide.columns();
        // The other GEMM has this one's K as its columns.
        let work = rows.saturating_mul(n.div_ceil(columns) + k.div_ceil(columns));
        match mean_rows(rows, experts) {
            mean if mean <= of_8.max(of_16) && is_large => HopperTile::Narrow32,
            mean if mean <= of_8 => HopperTile::Narrow8,
            mean if mean <= of_16 => HopperTile::Narrow16,
            mean if mean <= of_32 && work <= LITTLE * multiprocessors => HopperTile::Narrow32,
            _ => HopperTile::Wide,
        }
    }

    fn portable_tile(&self, multiprocessors: usize, shape: &GemmShape) -> PortableTile {
        let mean = mean_rows(shape.rows, shape.experts);
        let active = shape.experts.min(shape.rows).max(1);
        let tallest = PortableTile::Rows128;
        let items = active * mean.div_ceil(tallest.block_m()) * shape.n.div_ceil(tallest.columns());
        match mean {
            mean if mean <= self.portable_rows_16 as usize => PortableTile::Rows16,
            mean if mean <= self.portable_rows_64 as usize => PortableTile::Rows64,
            _ if items < multiprocessors => PortableTile::Rows64,
            _ => PortableTile::Rows128,
        }
    }
}

/// What decides whether rows are gathered, besides the height of the tiles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gathering {
    /// Rows of a token on this rank if tokens spread evenly, as numerator and denominator.
    pub of_token: (usize, usize),
    /// Mean number of rows of an expert that has any.
    pub of_expert: usize,
    /// I.
    pub intermediate: usize,
}

/// Whether the first GEMM of a layer on Hopper, with tiles of `block_m` rows, gathers the rows of its tokens.
///
/// Scattered, a token is written once for each of its experts here; gathered, once, but then GEMM 1 takes
/// longer: it gathers a row for every 128 columns of the intermediate. So it pays where a token has several
/// rows, and where either the intermediate is narrow, or an expert has so few rows that the stream of its
/// weights hides it. On an H200 a layer gains 1 to 9 % there; where products are the limit it loses 1 to 6 %
/// of wider ones, and 10 % with two rows to a token. The kernels for few rows do not gather: their A is
/// small, and few threads copy.
pub(super) fn gathers(gather: Gather, tuning: &Tuning, block_m: usize, rows: Gathering) -> bool {
    let can = HopperTile::for_block_m(block_m).is_some_and(HopperTile::gathers);
    let Gathering { of_token: (of_all, experts), of_expert, intermediate } = rows;
    let limits = [tuning.gather_from, tuning.gather_rows, tuning.gather_intermediate];
    let [from, most_rows, most_columns] = limits.map(|limit| limit as usize);
    match gather {
        Gather::Auto => {
            let pays = of_expert <= most_rows || intermediate <= most_columns;
            can && pays && of_all >= from.saturating_mul(experts)
        }
        Gather::Always => can,
        Gather::Never => false,
    }
}

/// Mean number of rows of the experts that have any, if the rows are spread evenly.
pub(super) fn mean_rows(rows: usize, experts: usize) -> usize {
    rows.div_ceil(experts.min(rows).max(1))
}

/// Refuses what the Hopper kernels alone can do where others would run.
pub(super) fn require_hopper(
    op: &'static str,
    name: &'static str,
    value: &str,
    device: &Device,
    path: Path,
    instead: &str,
) -> Result<()> {
    if takes_hopper(op, device, path)? {
        return Ok(());
    }
    let rule = match path {
        Path::Portable { .. } => format!("must be {instead} for the portable kernels"),
        _ => format!("must be {instead} for the kernels of {}", device.family()),
    };
    Err(Error::argument(op, name, value, rule))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Gathering, GemmShape, gathers, mean_rows};
    use crate::config::{Gather, Tuning};

    fn portable_block_m(multiprocessors: usize, shape: &GemmShape) -> usize {
        Tuning::h200().portable_tile(multiprocessors, shape).block_m()
    }

    proptest! {
        /// Heights follow the table, and do not fall as rows grow, which the workspace counts on.
        #[test]
        fn heights_are_the_tables(
            limits in any::<[u8; 5]>(),
            is_large in any::<bool>(),
            experts in 1usize..300,
            rows in 0usize..40_000,
            more in 0usize..1000,
        ) {
            let limits = limits.map(u32::from);
            let [hopper_rows_8, hopper_rows_16, hopper_rows_32, portable_rows_16, portable_rows_64] = limits;
            let tuning = Tuning {
                hopper_rows_8,
                hopper_rows_16,
                hopper_rows_32,
                hopper_large_mb: if is_large { 0 } else { u32::MAX },
                portable_rows_16,
                portable_rows_64,
                ..Tuning::default()
            };
            let shape = |rows| GemmShape { rows, n: 256, k: 128, experts };
            let mean = mean_rows(rows, experts) as u32;
            let expected = match mean {
                mean if is_large && rows >= 128 && mean <= hopper_rows_8.max(hopper_rows_16) => 32,
                mean if mean <= hopper_rows_8 => 8,
                mean if mean <= hopper_rows_16 => 16,
                // Two tiles of columns.
                mean if mean <= hopper_rows_32 && 2 * rows <= 200 * 132 => 32,
                _ => 128,
            };
            let hopper = |rows| tuning.hopper_tile(132, &shape(rows)).block_m();
            prop_assert_eq!(hopper(rows), expected);
            let portable = |rows| tuning.portable_tile(1, &shape(rows)).block_m();
            let expected = if mean <= portable_rows_16 { 16 } else if mean <= portable_rows_64 { 64 } else { 128 };
            prop_assert_eq!(portable(rows), expected);
            let taller = shape(rows + more);
            prop_assert!(hopper(rows + more) >= hopper(rows));
            for multiprocessors in [1, 132] {
                let height = |shape| tuning.portable_tile(multiprocessors, shape).block_m();
                prop_assert!(height(&taller) >= height(&shape(rows)));
            }
        }

        #[test]
        fn gathering_is_the_tables(
            gather_from in 0u32..12,
            top_k in 1usize..12,
            local in 1usize..64,
            [gather_rows, of_expert, gather_intermediate, intermediate] in any::<[u8; 4]>(),
        ) {
            let [gather_rows, gather_intermediate] = [gather_rows, gather_intermediate].map(u32::from);
            let [of_expert, intermediate] = [of_expert, intermediate].map(usize::from);
            let tuning = Tuning { gather_from, gather_rows, gather_intermediate, ..Tuning::default() };
            let rows = Gathering { of_token: (top_k * local, 64), of_expert, intermediate };
            let pays = of_expert <= gather_rows as usize || intermediate <= gather_intermediate as usize;
            let expected = pays && top_k * local >= 64 * gather_from as usize;
            prop_assert_eq!(gathers(Gather::Auto, &tuning, 128, rows), expected);
            prop_assert!(!gathers(Gather::Auto, &tuning, 16, rows));
        }
    }

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
    fn rows_are_gathered_where_tokens_have_several() {
        let gathers = |gather, block_m, top_k: usize, (local, experts): (usize, usize)| {
            let rows = Gathering { of_token: (top_k * local, experts), of_expert: 32, intermediate: 512 };
            gathers(gather, Tuning::h200(), block_m, rows)
        };
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
        let heights = |[experts, top_k, k, intermediate]: [usize; 4]| {
            [1, 8, 32, 64, 128, 256, 512, 4096].map(|tokens| {
                let shape = GemmShape { rows: tokens * top_k, n: 2 * intermediate, k, experts };
                Tuning::h200().hopper_tile(132, &shape).block_m()
            })
        };
        assert_eq!(heights([128, 8, 2048, 768]), [8, 8, 8, 16, 32, 128, 128, 128]);
        assert_eq!(heights([256, 8, 7168, 256]), [8, 8, 8, 8, 16, 128, 128, 128]);
        // Few experts.
        assert_eq!(heights([8, 2, 4096, 14336]), [8, 8, 32, 32, 128, 128, 128, 128]);
        assert_eq!(heights([8, 2, 4096, 1792]), [8, 8, 32, 32, 128, 128, 128, 128]);
        // Large ones.
        assert_eq!(heights([384, 8, 7168, 2048]), [8, 8, 32, 32, 32, 32, 128, 128]);
        assert_eq!(heights([256, 8, 7168, 2048]), [8, 8, 32, 32, 32, 128, 128, 128]);
    }
}
