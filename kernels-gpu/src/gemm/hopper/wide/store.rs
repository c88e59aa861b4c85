//! The plain end: conversion to D's type, transposition within quads, 16-byte stores; or `red` of two columns
//! at a time, of which the four lanes of a quad make a sector.

use cuda_std::atomic::{self, Scope};
use cuda_std::bf16::{bf16x2_from_f32, f16x2_from_f32};
use cuda_std::{memory, unroll};

use super::consume::Rows;
use crate::abi::OutType;
use crate::gemm::hopper::HopperGemm;
use crate::gemm::quad::transpose_in_quad;
use crate::schedule::work::Tile;

/// Writes a thread's part of a tile as far as rows and columns exist.
///
/// # Safety
/// The contract of the kernels; all lanes of the warp call it together.
#[inline(always)]
pub unsafe fn store(total: &[f32; 128], tile: &Tile, rows: &Rows, arguments: &HopperGemm) {
    if arguments.out_type.is(OutType::TokenSums) {
        // SAFETY: a tile of the schedule.
        return unsafe { add(total, tile, rows, arguments) };
    }
    unroll!(for group in 0..8 {
        unroll!(for h in 0..2 {
            let mut pairs = [[0.0f32; 2]; 4];
            unroll!(for t in 0..4 {
                pairs[t] = [total[16 * group + 4 * t + 2 * h], total[16 * group + 4 * t + 2 * h + 1]];
            });
            let row = rows.row + 8 * h;
            // SAFETY: the caller's contract.
            unsafe { store_32_columns(&pairs, tile, row, 32 * group, rows.quad_lane, arguments) };
        });
    });
}

/// Adds a thread's part of a tile to the sums of its rows' tokens, as far as rows and columns exist.
///
/// # Safety
/// The contract of the kernels, for a tile of the schedule.
#[inline(always)]
unsafe fn add(total: &[f32; 128], tile: &Tile, rows: &Rows, arguments: &HopperGemm) {
    let HopperGemm { out, n, tokens, .. } = arguments;
    let column = tile.n0 + 2 * rows.quad_lane;
    // Rows past the end take the last one's token, which they do not use: so both look-ups are on their way
    // together.
    // SAFETY: a tile of the schedule has a row, and its rows are among the P.
    let of_rows =
        [rows.row, rows.row + 8].map(|row| unsafe { tokens.of_row(tile.first_row + row.min(tile.rows - 1)) });
    unroll!(for h in 0..2 {
        let (token, weight) = of_rows[h];
        if let Some(token) = token
            && rows.row + 8 * h < tile.rows
        {
            let start = token as usize * *n as usize + column as usize;
            let to = out.cast::<f32>().wrapping_add(start);
            unroll!(for j in 0..32 {
                let pair = [total[4 * j + 2 * h] * weight, total[4 * j + 2 * h + 1] * weight];
                if column + 8 * j < *n {
                    // SAFETY: the token's sums exist; the column is theirs and even, so that both elements
                    // exist and are 8-byte aligned.
                    unsafe {
                        atomic::reduce_add(to.wrapping_add(8 * j).cast::<[f32; 2]>(), pair, Scope::Gpu)
                    };
                }
            });
        }
    });
}

/// Writes 32 columns of a row from `column` of the tile on: this lane's pairs, and those of its quad.
///
/// # Safety
/// As the callers; all lanes of the warp call it together.
#[inline(always)]
unsafe fn store_32_columns(
    pairs: &[[f32; 2]; 4],
    tile: &Tile,
    row: u32,
    column: u32,
    quad_lane: u32,
    arguments: &HopperGemm,
) {
    let exists = row < tile.rows;
    let start = (tile.first_row + row) as usize * arguments.n as usize;
    if arguments.out_type.is(OutType::F32) {
        unroll!(for t in 0..4 {
            let column = tile.n0 + column + 8 * t + 2 * quad_lane;
            if exists && column < arguments.n {
                // SAFETY: the row is the tile's and the column D's, even, so that both elements exist and are
                // 8-byte aligned.
                unsafe { memory::store(arguments.out.add((start + column as usize) * 4).cast(), pairs[t]) };
            }
        });
        return;
    }
    let words = if arguments.out_type.is(OutType::F16) {
        pairs.map(|[low, high]| f16x2_from_f32(low, high))
    } else {
        pairs.map(|[low, high]| bf16x2_from_f32(low, high))
    };
    let words = transpose_in_quad(words, quad_lane);
    let column = tile.n0 + column + 8 * quad_lane;
    if exists && column < arguments.n {
        // SAFETY: the row is the tile's and the column D's; N and the column are multiples of 8, so that the
        // 8 elements of 2 bytes exist and are 16-byte aligned as `out` is.
        unsafe { memory::store(arguments.out.add((start + column as usize) * 2).cast(), words) };
    }
}
