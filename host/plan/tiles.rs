//! Tiles of the grouped GEMMs: how many rows of one expert a block multiplies at a time, and what that takes
//! of an SM.
//!
//! | tiles | rows | columns | stages of the ring |
//! |---|---|---|---|
//! | [`PortableTile`] | 16, 64, 128 | 128 | 5, 4, 3 |
//! | [`HopperTile`] | 8, 16, 32, 128 | 256 | 4 |

use crate::error::{Error, Result, require};
use crate::gpu::launch::Kernel;
use crate::kernels::launchers::{self, GemmTile, PortableGemm};

/// Heights of tiles that some kernel has.
pub const BLOCK_M: [usize; 5] = {
    let ([a, b, c, e], [_, d, _]) = (HopperTile::ALL, PortableTile::ALL);
    [a.block_m(), b.block_m(), c.block_m(), d.block_m(), e.block_m()]
};

/// Refuses a height of tiles that no kernel has.
pub(super) fn check_block_m(op: &'static str, block_m: usize) -> Result<()> {
    require(BLOCK_M.contains(&block_m), op, "block_m", block_m, || format!("must be {}", one_of(BLOCK_M)))
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

/// Numbers in words: `8, 16 or 32`.
pub(super) fn one_of<const N: usize>(numbers: [usize; N]) -> String {
    let last = |index| if index + 1 == N { " or " } else { ", " };
    let words = numbers.iter().enumerate();
    words.map(|(index, number)| format!("{}{number}", if index == 0 { "" } else { last(index) })).collect()
}

impl PortableTile {
    /// All of them, by height.
    pub const ALL: [PortableTile; 3] = [PortableTile::Rows16, PortableTile::Rows64, PortableTile::Rows128];

    /// The tile of this height; an error unless it is 16, 64 or 128.
    ///
    /// # Errors
    /// A height that no portable kernel has.
    pub fn for_block_m(block_m: usize) -> Result<PortableTile> {
        let tile = Self::ALL.into_iter().find(|tile| tile.block_m() == block_m);
        tile.ok_or_else(|| {
            let rule = format!("must be {} for the portable kernels", one_of(Self::ALL.map(Self::block_m)));
            Error::argument("grouped_gemm", "block_m", block_m, rule)
        })
    }

    /// The numbers of its kernels.
    const fn numbers(self) -> GemmTile {
        match self {
            PortableTile::Rows16 => launchers::PORTABLE_16,
            PortableTile::Rows64 => launchers::PORTABLE_64,
            PortableTile::Rows128 => launchers::PORTABLE_128,
        }
    }

    /// Its kernel. At most 99 KiB of shared memory, which every GPU with FP8 tensor cores has.
    pub(crate) const fn kernel(self, promoted: bool) -> Kernel<PortableGemm> {
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

    /// Columns of D in a work item.
    pub(super) const fn columns(self) -> usize {
        self.numbers().columns as usize
    }

    /// Bytes of A and B on their way to an SM with `shared_per_block` bytes of shared memory, at most: all
    /// stages but the one that is multiplied, of every block that it holds. A latency of 1 us at an even
    /// share of a GPU's memory rate wants some 25 KB.
    pub fn bytes_in_flight(self, shared_per_block: u32, promoted: bool) -> u32 {
        let GemmTile { stages, operand_bytes, .. } = self.numbers();
        self.blocks_per_multiprocessor(shared_per_block, promoted) * (stages - 1) * operand_bytes
    }

    /// Blocks that an SM holds at a time. Registers allow one block of 256 threads and three of 128.
    pub(super) fn blocks_per_multiprocessor(self, shared_per_block: u32, promoted: bool) -> u32 {
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
    /// Up to 32 rows; of a tile with up to 8 or 16, the products are no taller.
    Narrow32,
    /// Many rows per expert: 128 rows by 256 columns.
    Wide,
}

impl HopperTile {
    /// All of them, by height.
    pub const ALL: [HopperTile; 4] =
        [HopperTile::Narrow8, HopperTile::Narrow16, HopperTile::Narrow32, HopperTile::Wide];

    /// The tile of this height, if there is one.
    pub fn for_block_m(block_m: usize) -> Option<HopperTile> {
        Self::ALL.into_iter().find(|tile| tile.block_m() == block_m)
    }

    /// The numbers of its kernels.
    const fn numbers(self) -> GemmTile {
        match self {
            HopperTile::Narrow8 => launchers::NARROW_8,
            HopperTile::Narrow16 => launchers::NARROW_16,
            HopperTile::Narrow32 => launchers::NARROW_32,
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

    /// Rows of A, and bytes of K, that are asked for at a time: of a wide tile, what one block of the cluster asks for on
    /// behalf of both; of a narrow one, as few as can be, since an expert seldom has as many rows as its
    /// tile.
    pub(crate) const fn a_box(self) -> [u32; 2] {
        [self.numbers().a_box_rows, launchers::SLAB]
    }

    /// Columns of D in an item.
    pub(super) const fn columns(self) -> usize {
        self.numbers().columns as usize
    }

    /// Bytes of A and B on their way to an SM, at most: all stages but the one that is multiplied. A latency
    /// of 1 us at an even share of an H200's memory rate wants some 36 KB.
    pub const fn bytes_in_flight(self) -> u32 {
        let GemmTile { stages, operand_bytes, .. } = self.numbers();
        (stages - 1) * operand_bytes
    }

    /// Bytes of the partial sums of a block. None where items are not cut.
    pub(super) const fn partials_bytes(self) -> usize {
        self.numbers().partial_bytes as usize
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_M, PortableTile};
    use crate::kernels::launchers::{
        HOPPER_NARROW_8, HOPPER_NARROW_16, HOPPER_NARROW_32, HOPPER_WIDE_PROMOTED,
    };

    #[test]
    fn shared_memory_fits_every_gpu() {
        for tile in PortableTile::ALL {
            assert!(tile.kernel(true).shared_bytes <= 99 * 1024, "{tile:?}");
        }
        for kernel in [HOPPER_WIDE_PROMOTED, HOPPER_NARROW_8, HOPPER_NARROW_16, HOPPER_NARROW_32] {
            assert!(kernel.shared_bytes <= 227 * 1024, "{}: {}", kernel.text.name, kernel.shared_bytes);
        }
    }

    #[test]
    fn tiles_are_in_the_order_of_their_heights() {
        assert!(BLOCK_M.is_sorted());
    }
}
