//! When a lane reads which scale.
//!
//! Scales that change along K travel through the stages of the pipeline, the others are read while the item's
//! last slab is multiplied.

use cuda_std::memory;
use cuda_std::shared::Shared;

use super::pipeline::scales_offset;
use super::tile_rows;
use super::warp_tile::{NT, WarpTile, unroll};
use crate::abi::{AScaleKind, BScaleKind, Scales};
use crate::gemm::recomputed;
use crate::schedule::work::Tile;

/// What the sum over one slab is multiplied with: `[mt][h]` for row `mt*16 + h*8 + g` of the warp.
pub(super) struct SlabScales<const MT: usize>(pub [[f32; 2]; MT]);

impl<const MT: usize> SlabScales<MT> {
    /// Reads the scales of a stage; all 1 in the fast kernels, which have none.
    ///
    /// # Safety
    /// The stage has landed, and a barrier has shown it to this thread.
    #[inline(always)]
    pub unsafe fn load<const WARPS_M: u32, const PROMOTED: bool>(
        warp: &WarpTile<MT, WARPS_M>,
        stage: u32,
    ) -> Self {
        let mut scales = Self([[1.0; 2]; MT]);
        if PROMOTED {
            let slots = Shared::<f32>::from_address(stage + scales_offset(MT, WARPS_M));
            // SAFETY: the slots of the tile's rows and of the block lie in the stage.
            unsafe {
                let b = slots.add(tile_rows(MT, WARPS_M)).read();
                unroll!(mt < MT => {
                    let row = slots.add(warp.row + mt as u32 * 16);
                    scales.0[mt] = [row.read() * b, row.add(8).read() * b];
                });
            }
        }
        scales
    }
}

/// What the total is multiplied with: `a[mt][h]` by row, `b[nt][j]` by column of the warp.
pub(super) struct EndScales<const MT: usize> {
    pub a: [[f32; 2]; MT],
    pub b: [[f32; 2]; NT],
}

impl<const MT: usize> EndScales<MT> {
    pub const ONE: Self = Self { a: [[1.0; 2]; MT], b: [[1.0; 2]; NT] };

    /// Reads the scales of a tile. Rows past the end of the tile get the scale of its last row, columns past
    /// the end of D the scale 1; neither is stored.
    ///
    /// # Safety
    /// The contract of the entry points, for the tile of an item of the list.
    #[inline(always)]
    pub unsafe fn load<const WARPS_M: u32>(
        arguments: &Scales,
        tile: &Tile,
        warp: &WarpTile<MT, WARPS_M>,
        n: u32,
    ) -> Self {
        let mut scales = Self::ONE;
        let (first_row, first_column) = (recomputed(warp.row), recomputed(warp.column));
        // SAFETY: rows are clamped to the tile's, which exist; columns are compared with N; N is a multiple
        // of 8, so that a column of even number and its right neighbour exist together.
        unsafe {
            if arguments.a_kind.is_not(AScaleKind::Group) {
                let per_row = arguments.a_kind.is(AScaleKind::Row);
                unroll!(mt < MT => {
                    unroll!(h < 2 => {
                        let row = tile.first_row + (first_row + mt as u32 * 16 + h as u32 * 8).min(tile.rows - 1);
                        scales.a[mt][h] = memory::load_nc(arguments.of_row(per_row, row));
                    });
                });
            }
            if arguments.b_kind.is(BScaleKind::Channel) {
                let scales_of_expert = arguments.of_column(true, tile.expert, 0, n);
                unroll!(nt < NT => {
                    let column = tile.n0 + first_column + nt as u32 * 8;
                    if column < n {
                        scales.b[nt] = [memory::load_nc(scales_of_expert.add(column as usize)), memory::load_nc(scales_of_expert.add(column as usize + 1))];
                    }
                });
            } else if arguments.b_kind.is_not(BScaleKind::Block) {
                let scale = memory::load_nc(arguments.of_column(false, tile.expert, 0, n));
                unroll!(nt < NT => {
                    scales.b[nt] = [scale; 2];
                });
            }
        }
        scales
    }
}
