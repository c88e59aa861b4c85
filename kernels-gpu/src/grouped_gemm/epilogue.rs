//! From accumulators to D: end scales, conversion, transposition within groups of four lanes, 16-byte stores.
//!
//! A lane holds two adjacent columns of each of its four `mma` tiles, 4 bytes of D a tile. Four lanes together
//! hold one row of 32 columns; a 4x4 transposition by shuffles gives each of them one tile's 8 columns, 16 bytes:
//!
//! ```text
//!              tile 0  tile 1  tile 2  tile 3                      word 0  word 1  word 2  word 3
//!  lane q=0     a0      b0      c0      d0              lane q=0    a0      a1      a2      a3     columns  0- 7
//!  lane q=1     a1      b1      c1      d1     ---->    lane q=1    b0      b1      b2      b3     columns  8-15
//!  lane q=2     a2      b2      c2      d2              lane q=2    c0      c1      c2      c3     columns 16-23
//!  lane q=3     a3      b3      c3      d3              lane q=3    d0      d1      d2      d3     columns 24-31
//! ```
//!
//! One store instruction of a warp then writes 64 contiguous bytes of each of 8 rows: whole sectors, without shared memory
//! and without a barrier. f32 results need no transposition: a lane's two columns are 8 bytes, and those of its group of four
//! a sector.

use cuda_std::bf16::{bf16x2_from_f32, f16x2_from_f32};
use cuda_std::memory;
use cuda_std::warp::{FULL_MASK, shfl_xor};

use super::Arguments;
use super::multiply::{Accumulator, NT, WarpTile, recomputed, unroll};
use super::scales::EndScales;
use super::schedule::Tile;

/// [`Arguments::out_type`] for f16.
const F16: u32 = 1;
/// [`Arguments::out_type`] for f32.
const F32: u32 = 2;

/// Writes the warp's part of a tile to D, as far as rows and columns exist.
///
/// # Safety
/// The contract of the entry points; all lanes of the warp call it together.
#[inline(always)]
pub(super) unsafe fn store<const MT: usize, const WARPS_M: u32>(
    total: &Accumulator<MT>,
    scales: &EndScales<MT>,
    tile: &Tile,
    warp: &WarpTile<MT, WARPS_M>,
    arguments: &Arguments,
) {
    if arguments.out_type == F32 {
        // SAFETY: the caller's contract.
        return unsafe { store_f32(total, scales, tile, warp, arguments) };
    }
    let mut words = [[[0; NT]; 2]; MT];
    unroll!(mt < MT => {
        unroll!(h < 2 => {
            let mut row = [0; NT];
            if arguments.out_type == F16 {
                unroll!(nt < NT => {
                    let [low, high] = scaled(total, scales, mt, nt, h);
                    row[nt] = f16x2_from_f32(low, high);
                });
            } else {
                unroll!(nt < NT => {
                    let [low, high] = scaled(total, scales, mt, nt, h);
                    row[nt] = bf16x2_from_f32(low, high);
                });
            }
            words[mt][h] = transpose_in_quad(row, warp.quad_lane);
        });
    });

    // Now this lane holds the 8 columns of `mma` tile q. All shuffles are done: from here on lanes may diverge.
    let column = tile.n0 + warp.column - warp.quad_lane * 2 + warp.quad_lane * 8;
    if column >= arguments.n {
        return;
    }
    let first_row = recomputed(warp.row);
    let n = arguments.n as usize;
    let first = (tile.first_row + first_row) as usize * n + column as usize;
    unroll!(mt < MT => {
        unroll!(h < 2 => {
            let row = mt as u32 * 16 + h as u32 * 8;
            if first_row + row < tile.rows {
                // SAFETY: the row is the tile's and the column D's; N and the column are multiples of 8, so that the 8
                // elements of 2 bytes exist and are 16-byte aligned as `out` is.
                unsafe { memory::store(arguments.out.add((first + row as usize * n) * 2).cast(), words[mt][h]) };
            }
        });
    });
}

/// As [`store`], for D in f32.
///
/// # Safety
/// As [`store`].
#[inline(always)]
unsafe fn store_f32<const MT: usize, const WARPS_M: u32>(
    total: &Accumulator<MT>,
    scales: &EndScales<MT>,
    tile: &Tile,
    warp: &WarpTile<MT, WARPS_M>,
    arguments: &Arguments,
) {
    let column = tile.n0 + warp.column;
    let first_row = recomputed(warp.row);
    let n = arguments.n as usize;
    let first = (tile.first_row + first_row) as usize * n + column as usize;
    unroll!(mt < MT => {
        unroll!(h < 2 => {
            let row = mt as u32 * 16 + h as u32 * 8;
            unroll!(nt < NT => {
                if first_row + row < tile.rows && column + nt as u32 * 8 < arguments.n {
                    let element = first + row as usize * n + nt * 8;
                    // SAFETY: the row is the tile's and the column D's; N is a multiple of 8 and the column even, so that both
                    // elements exist and are 8-byte aligned.
                    unsafe { memory::store(arguments.out.add(element * 4).cast(), scaled(total, scales, mt, nt, h)) };
                }
            });
        });
    });
}

/// The two adjacent elements of D in row half `h` of an `mma` tile.
#[inline(always)]
fn scaled<const MT: usize>(
    total: &Accumulator<MT>,
    scales: &EndScales<MT>,
    mt: usize,
    nt: usize,
    h: usize,
) -> [f32; 2] {
    let (sa, sb) = (scales.a[mt][h], scales.b[nt]);
    [total.0[mt][nt][2 * h] * sa * sb[0], total.0[mt][nt][2 * h + 1] * sa * sb[1]]
}

/// Transposes the 4x4 matrix whose row q is held by lane q of a group of four. All lanes of the warp call it together.
#[inline(always)]
fn transpose_in_quad(words: [u32; 4], quad_lane: u32) -> [u32; 4] {
    let [w0, w1, w2, w3] = words;
    let (odd, upper) = (quad_lane & 1 != 0, quad_lane & 2 != 0);
    let (w0, w1) = exchange(w0, w1, odd, 1);
    let (w2, w3) = exchange(w2, w3, odd, 1);
    let (w0, w2) = exchange(w0, w2, upper, 2);
    let (w1, w3) = exchange(w1, w3, upper, 2);
    [w0, w1, w2, w3]
}

/// Swaps `high` of the lane whose `bit` is clear with `low` of the lane `distance` above, whose bit is set. All lanes of
/// the warp call it together.
#[inline(always)]
fn exchange(low: u32, high: u32, bit: bool, distance: u32) -> (u32, u32) {
    let sent = if bit { low } else { high };
    let received = shfl_xor(FULL_MASK, sent, distance);
    if bit { (received, high) } else { (low, received) }
}
