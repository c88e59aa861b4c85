//! Scales: which there are, where they lie, and when a lane reads them.
//!
//! | scale | value for row r, column c, slab g of expert e | applied |
//! |---|---|---|
//! | A per call | `a[0]` | at the end |
//! | A per row | `a[r]` | at the end |
//! | A per row and group | `a[r * row_stride + g * group_stride]` | every slab |
//! | B per expert | `b[e]` | at the end |
//! | B per column | `b[e * n + c]` | at the end |
//! | B per block | `b[(e * ceil(n / 128) + c / 128) * ceil(k / 128) + g]` | every slab |
//!
//! Scales of the first sort travel through the stages of the pipeline, those of the second sort are read while the
//! item's last slab is multiplied.

use cuda_std::memory;
use cuda_std::shared::Shared;

use super::multiply::{NT, WarpTile, recomputed, unroll};
use super::pipeline::scales_offset;
use super::schedule::Tile;
use super::{BN, SLAB, tile_rows};

/// `a_kind`: one scale for each row of A.
const A_PER_ROW: u32 = 1;
/// `a_kind`: one scale for each row of A and 128 of K.
pub(super) const A_PER_GROUP: u32 = 2;
/// `b_kind`: one scale for each column of D (row of B).
const B_PER_COLUMN: u32 = 1;
/// `b_kind`: one scale for each 128 x 128 block of B.
pub(super) const B_PER_BLOCK: u32 = 2;

/// The scales of a launch, as the entry point gets them.
pub(super) struct ScaleArguments {
    pub a: *const f32,
    pub a_row_stride: u64,
    pub a_group_stride: u64,
    pub a_kind: u32,
    pub b: *const f32,
    pub b_kind: u32,
}

impl ScaleArguments {
    /// Address of the scale of `row` and slab 0, for scales per group.
    #[inline(always)]
    pub fn a_group_row(&self, row: u32) -> *const f32 {
        self.a.wrapping_add(row as usize * self.a_row_stride as usize)
    }

    /// Address of the scale of the tile's block of B and slab 0, for scales per block.
    #[inline(always)]
    pub fn b_block_row(&self, tile: &Tile, n: u32, k: u32) -> *const f32 {
        let block = tile.expert as usize * n.div_ceil(BN) as usize + (tile.n0 / BN) as usize;
        self.b.wrapping_add(block * k.div_ceil(SLAB) as usize)
    }
}

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

    /// Reads the scales of a tile. Rows past the end of the tile get the scale of its last row, columns past the
    /// end of D the scale 1; neither is stored.
    ///
    /// # Safety
    /// The contract of the entry points, for the tile of an item of the list.
    #[inline(always)]
    pub unsafe fn load<const WARPS_M: u32>(
        arguments: &ScaleArguments,
        tile: &Tile,
        warp: &WarpTile<MT, WARPS_M>,
        n: u32,
    ) -> Self {
        let mut scales = Self::ONE;
        let (first_row, first_column) = (recomputed(warp.row), recomputed(warp.column));
        // SAFETY: rows are clamped to the tile's, which exist; columns are compared with N; N is a multiple of 8,
        // so that a column of even number and its right neighbour exist together.
        unsafe {
            if arguments.a_kind != A_PER_GROUP {
                let per_row = arguments.a_kind == A_PER_ROW;
                unroll!(mt < MT => {
                    unroll!(h < 2 => {
                        let row = tile.first_row + (first_row + mt as u32 * 16 + h as u32 * 8).min(tile.rows - 1);
                        scales.a[mt][h] = memory::load_nc(arguments.a.add(if per_row { row as usize } else { 0 }));
                    });
                });
            }
            if arguments.b_kind == B_PER_COLUMN {
                let scales_of_expert = arguments.b.add(tile.expert as usize * n as usize);
                unroll!(nt < NT => {
                    let column = tile.n0 + first_column + nt as u32 * 8;
                    if column < n {
                        scales.b[nt] = [memory::load_nc(scales_of_expert.add(column as usize)), memory::load_nc(scales_of_expert.add(column as usize + 1))];
                    }
                });
            } else if arguments.b_kind != B_PER_BLOCK {
                let scale = memory::load_nc(arguments.b.add(tile.expert as usize));
                unroll!(nt < NT => {
                    scales.b[nt] = [scale; 2];
                });
            }
        }
        scales
    }
}
