//! Tiles of the grouped GEMMs: how many rows of one expert a block multiplies at a time, and what that takes of an SM.
//!
//! | tiles | rows | columns | stages of the ring |
//! |---|---|---|---|
//! | [`PortableTile`] | 16, 64, 128 | 128 | 5, 4, 3 |
//! | [`HopperTile`] | 8, 16, 32, 64, 128 | 256 | 6, 6, 6, 5, 4 |

use crate::error::{Error, Result, require};

/// Heights of tiles that some kernel has.
pub const BLOCK_M: [usize; 5] = [8, 16, 32, 64, 128];

/// Refuses a height of tiles that no kernel has.
pub(super) fn check_block_m(op: &'static str, block_m: usize) -> Result<()> {
    require(BLOCK_M.contains(&block_m), op, "block_m", block_m, || "must be 8, 16, 32, 64 or 128".into())
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
pub(super) const BLOCK_N: usize = 128;

impl PortableTile {
    /// All of them, by height.
    pub const ALL: [PortableTile; 3] = [PortableTile::Rows16, PortableTile::Rows64, PortableTile::Rows128];

    /// The tile of this height; an error unless it is 16, 64 or 128.
    pub fn for_block_m(block_m: usize) -> Result<PortableTile> {
        let tile = Self::ALL.into_iter().find(|tile| tile.block_m() == block_m);
        tile.ok_or_else(|| {
            let rule = "must be 16, 64 or 128 for the portable kernels";
            Error::argument("grouped_gemm", "block_m", block_m, rule)
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
    pub(super) fn blocks_per_multiprocessor(self, shared_per_block: u32, promoted: bool) -> u32 {
        match self {
            PortableTile::Rows16 => (shared_per_block / self.shared_bytes(promoted)).clamp(1, 2),
            PortableTile::Rows64 | PortableTile::Rows128 => 1,
        }
    }
}

/// Rows that a box of A's scales has besides a tile's: TMA wants boxes that begin at multiples of 4 rows.
pub(crate) const EXTRA_ROWS: u32 = 4;

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
    pub(crate) const fn a_box_rows(self) -> u32 {
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
    pub(super) const fn partials_bytes(self) -> usize {
        match self {
            HopperTile::Wide => 0,
            _ => 2 * 256 * self.block_m() * 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_M, HopperTile, PortableTile};

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
    fn tiles_are_in_the_order_of_their_heights() {
        assert!(HopperTile::ALL.iter().zip(BLOCK_M).all(|(tile, rows)| tile.block_m() == rows));
    }
}
