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

/// Blocks that a schedule has counters for.
const MOST_BLOCKS: u32 = launchers::SCHEDULE_COUNTERS;

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
    ///   weights once.
    /// - Portable: 16, 64 or 128 rows. Where tiles of 128 would leave SMs without work, 64 it is.
    pub fn block_m(&self, device: &Device, shape: &GemmShape, path: Path) -> usize {
        if device.family() == Family::Sm90a && !matches!(path, Path::Portable { .. }) {
            self.hopper_tile(shape).block_m()
        } else {
            self.portable_tile(device.multiprocessors() as usize, shape).block_m()
        }
    }

    /// On an H200 tiles of 128 rows take 1 % less of a layer with 128 large experts at 8 rows an expert than
    /// those of 16, but 5 % more with small ones; at 16 rows they take 1 to 3 % less, with 32 or 64 rows a
    /// tile too.
    fn hopper_tile(&self, shape: &GemmShape) -> HopperTile {
        match mean_rows(shape.rows, shape.experts) {
            mean if mean <= self.hopper_rows_8 as usize => HopperTile::Narrow8,
            mean if mean <= self.hopper_rows_16 as usize => HopperTile::Narrow16,
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

/// Whether the first GEMM of a layer on Hopper, with tiles of `block_m` rows, gathers the rows of its tokens:
/// each has `top_k` of `experts`, of which `local_experts` are here.
///
/// Scattered, a token is written once for each of its experts here; gathered, once, but then GEMM 1 takes
/// longer. On an H200 at 4096 tokens a layer gains 2 to 4 % with 8 experts to a token and loses 6 % with 2.
/// So rows are gathered from some number on (`tuning`), on average, if tokens spread evenly. The kernels for
/// few rows do not gather: their A is small, and few threads copy.
pub(super) fn gathers(
    gather: Gather,
    tuning: &Tuning,
    block_m: usize,
    top_k: usize,
    (local_experts, experts): (usize, usize),
) -> bool {
    let can = HopperTile::for_block_m(block_m).is_some_and(HopperTile::gathers);
    match gather {
        Gather::Auto => can && top_k * local_experts >= (tuning.gather_from as usize).saturating_mul(experts),
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

    use super::{GemmShape, gathers, mean_rows};
    use crate::config::{Gather, Tuning};

    fn portable_block_m(multiprocessors: usize, shape: &GemmShape) -> usize {
        Tuning::h200().portable_tile(multiprocessors, shape).block_m()
    }

    proptest! {
        /// Heights follow the table, and do not fall as rows grow, which the workspace counts on.
        #[test]
        fn heights_are_the_tables(
            limits in any::<[u8; 4]>(),
            experts in 1usize..300,
            rows in 0usize..40_000,
            more in 0usize..1000,
        ) {
            let [hopper_rows_8, hopper_rows_16, portable_rows_16, portable_rows_64] = limits.map(u32::from);
            let tuning = Tuning {
                hopper_rows_8, hopper_rows_16, portable_rows_16, portable_rows_64, ..Tuning::default()
            };
            let shape = |rows| GemmShape { rows, n: 256, k: 128, experts };
            let mean = mean_rows(rows, experts) as u32;
            let expected = if mean <= hopper_rows_8 { 8 } else if mean <= hopper_rows_16 { 16 } else { 128 };
            prop_assert_eq!(tuning.hopper_tile(&shape(rows)).block_m(), expected);
            let portable = |rows| tuning.portable_tile(1, &shape(rows)).block_m();
            let expected = if mean <= portable_rows_16 { 16 } else if mean <= portable_rows_64 { 64 } else { 128 };
            prop_assert_eq!(portable(rows), expected);
            let taller = shape(rows + more);
            prop_assert!(tuning.hopper_tile(&taller).block_m() >= tuning.hopper_tile(&shape(rows)).block_m());
            for multiprocessors in [1, 132] {
                let height = |shape| tuning.portable_tile(multiprocessors, shape).block_m();
                prop_assert!(height(&taller) >= height(&shape(rows)));
            }
        }

        #[test]
        fn gathering_is_the_tables(from in 0u32..12, top_k in 1usize..12, local in 1usize..64) {
            let tuning = Tuning { gather_from: from, ..Tuning::default() };
            let gathered = gathers(Gather::Auto, &tuning, 128, top_k, (local, 64));
            prop_assert_eq!(gathered, top_k * local >= 64 * from as usize);
            prop_assert!(!gathers(Gather::Auto, &tuning, 16, top_k, (local, 64)));
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
        let gathers = |gather, block_m, top_k, of| gathers(gather, Tuning::h200(), block_m, top_k, of);
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
        let height = |tokens: usize| {
            let shape = GemmShape { rows: tokens * 2, n: 28672, k: 4096, experts: 8 };
            Tuning::h200().hopper_tile(&shape).block_m()
        };
        assert_eq!([1, 8, 32, 64, 128, 256, 4096].map(height), [8, 8, 16, 128, 128, 128, 128]);
    }
}
