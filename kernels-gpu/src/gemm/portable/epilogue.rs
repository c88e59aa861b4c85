//! From accumulators to D: end scales, conversion, transposition within groups of four lanes
//! ([`quad`](crate::gemm::quad)), 16-byte stores.
//!
//! f32 results need no transposition: a lane's two columns are 8 bytes, and those of its group of four a
//! sector.

use cuda_std::bf16::{bf16x2_from_f32, f16x2_from_f32};
use cuda_std::memory;

use super::PortableGemm;
use super::multiply::Accumulator;
use super::scales::EndScales;
use super::warp_tile::{NT, WarpTile, unroll};
use crate::abi::OutType;
use crate::gemm::quad::transpose_in_quad;
use crate::gemm::recomputed;
use crate::schedule::work::Tile;

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
    arguments: &PortableGemm,
) {
    if arguments.out_type.is(OutType::F32) {
        // SAFETY: the caller's contract.
        return unsafe { store_f32(total, scales, tile, warp, arguments) };
    }
    // SAFETY: as above.
    let bias = unsafe { bias_of(tile, warp, arguments) };
    let mut words = [[[0; NT]; 2]; MT];
    unroll!(mt < MT => {
        unroll!(h < 2 => {
            let mut row = [0; NT];
            if arguments.out_type.is(OutType::F16) {
                unroll!(nt < NT => {
                    let [low, high] = scaled(total, scales, &bias, mt, nt, h);
                    row[nt] = f16x2_from_f32(low, high);
                });
            } else {
                unroll!(nt < NT => {
                    let [low, high] = scaled(total, scales, &bias, mt, nt, h);
                    row[nt] = bf16x2_from_f32(low, high);
                });
            }
            words[mt][h] = transpose_in_quad(row, warp.quad_lane);
        });
    });

    // Now this lane holds the 8 columns of `mma` tile q. All shuffles are done: from here on lanes may
    // diverge.
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
                // SAFETY: the row is the tile's and the column D's; N and the column are multiples of 8, so
                // that the 8 elements of 2 bytes exist and are 16-byte aligned as `out` is.
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
    arguments: &PortableGemm,
) {
    // SAFETY: the caller's contract.
    let bias = unsafe { bias_of(tile, warp, arguments) };
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
                    // SAFETY: the row is the tile's and the column D's; N is a multiple of 8 and the column
                    // even, so that both elements exist and are 8-byte aligned.
                    unsafe { memory::store(arguments.out.add(element * 4).cast(), scaled(total, scales, &bias, mt, nt, h)) };
                }
            });
        });
    });
}

/// What is added to the lane's columns; 0 without a bias, and past the end of D.
///
/// # Safety
/// The contract of the entry points.
#[inline(always)]
unsafe fn bias_of<const MT: usize, const WARPS_M: u32>(
    tile: &Tile,
    warp: &WarpTile<MT, WARPS_M>,
    arguments: &PortableGemm,
) -> [[f32; 2]; NT] {
    let mut bias = [[0.0; 2]; NT];
    if arguments.scales.bias.is_null() {
        return bias;
    }
    let of_expert = arguments.scales.bias.wrapping_add(tile.expert as usize * arguments.n as usize);
    unroll!(nt < NT => {
        let column = tile.n0 + warp.column + nt as u32 * 8;
        if column < arguments.n {
            // SAFETY: one for every column of every expert; N is a multiple of 8 and the column even.
            bias[nt] = unsafe { memory::load_nc(of_expert.add(column as usize).cast::<[f32; 2]>()) };
        }
    });
    bias
}

/// The two adjacent elements of D in row half `h` of an `mma` tile.
#[inline(always)]
fn scaled<const MT: usize>(
    total: &Accumulator<MT>,
    scales: &EndScales<MT>,
    bias: &[[f32; 2]; NT],
    mt: usize,
    nt: usize,
    h: usize,
) -> [f32; 2] {
    let (sa, sb) = (scales.a[mt][h], scales.b[nt]);
    let [left, right] = bias[nt];
    [total.0[mt][nt][2 * h] * sa * sb[0] + left, total.0[mt][nt][2 * h + 1] * sa * sb[1] + right]
}
