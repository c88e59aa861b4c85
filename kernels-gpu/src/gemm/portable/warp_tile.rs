//! Which part of a tile a warp and its lanes have.
//!
//! Warp (wm, wn) owns rows `wm*MT*16 ..` and columns `wn*32 ..` of the block's tile, as MT x 4 `mma` tiles of
//! 16 x 8. In lane `l`, with `g = l / 4` and `q = l % 4`, element `[mt][nt][2*h + j]` of an accumulator is
//!
//! ```text
//! row    wm*MT*16 + mt*16 + h*8 + g         column    wn*32 + nt*8 + 2*q + j
//! ```
//!
//! `ldmatrix` takes row addresses from lanes. The eight rows of a matrix start 128 bytes apart, and the
//! swizzle spreads them over the eight 16-byte columns: no bank conflicts. In a step of 32 bytes of K
//! (`k32`):
//!
//! ```text
//! A, 16 rows   lanes  0-15: rows 0-15, chunk 2*k32        B, 16 columns  lanes  0- 7: columns 0- 7, chunk 2*k32
//!              lanes 16-31: rows 0-15, chunk 2*k32+1                     lanes  8-15: columns 0- 7, chunk 2*k32+1
//!                                                                        lanes 16-23: columns 8-15, chunk 2*k32
//!                                                                        lanes 24-31: columns 8-15, chunk 2*k32+1
//! ```

use cuda_std::thread;

use super::WARPS_N;
use super::pipeline::b_offset;
use crate::abi::SLAB;

/// Column tiles of 8 that a warp owns.
pub(super) const NT: usize = 4;

/// Repeats a block with `$i` = 0, 1, 2, 3, as far as it is below `$n`, as straight code: a register array may
/// be indexed by constants only.
macro_rules! unroll {
    ($i:ident < $n:expr => $body:block) => {{
        unroll!(@ 0, $i, $n, $body);
        unroll!(@ 1, $i, $n, $body);
        unroll!(@ 2, $i, $n, $body);
        unroll!(@ 3, $i, $n, $body);
    }};
    (@ $value:literal, $i:ident, $n:expr, $body:block) => {
        if $value < $n {
            let $i: usize = $value;
            $body
        }
    };
}
pub(super) use unroll;

/// Where a lane finds its part of the tile.
pub(super) struct WarpTile<const MT: usize, const WARPS_M: u32> {
    /// Row `g` and column `2*q` of the warp's first `mma` tile, within the block's tile.
    pub row: u32,
    pub column: u32,
    /// Lane number within its group of four, `q`.
    pub quad_lane: u32,
    // Offsets in a stage of the row that this lane addresses for `ldmatrix`, and the swizzle of its chunk.
    pub a_row: u32,
    pub a_swizzle: u32,
    pub b_row: u32,
    pub b_swizzle: u32,
}

impl<const MT: usize, const WARPS_M: u32> WarpTile<MT, WARPS_M> {
    #[inline(always)]
    pub fn new() -> Self {
        let thread = thread::thread_idx_x();
        let (warp, lane) = (thread / 32, thread % 32);
        let (first_row, first_column) = (warp / WARPS_N * (MT as u32 * 16), warp % WARPS_N * (NT as u32 * 8));
        let (a_row, a_chunk) = (first_row + lane % 16, lane / 16);
        let (b_row, b_chunk) = (first_column + lane / 16 * 8 + lane % 8, lane / 8 % 2);
        Self {
            row: first_row + lane / 4,
            column: first_column + lane % 4 * 2,
            quad_lane: lane % 4,
            a_row: a_row * SLAB,
            a_swizzle: (a_chunk ^ (lane % 8)) * 16,
            b_row: b_offset(MT, WARPS_M) + b_row * SLAB,
            b_swizzle: (b_chunk ^ (lane % 8)) * 16,
        }
    }
}
