//! The plain end: conversion to D's type, and whole lines of it; or `red` of two columns at a time, of which
//! the four lanes of a quad make a sector.
//!
//! A thread has two columns of each eight, so that rows of 16 bits go through shared memory, 16 rows x 64
//! columns of a warp at a time:
//!
//! ```text
//!           chunk 0    1    2  ..  7      chunk c of row r, 8 columns, 16 bytes, lies at place c ^ (r % 8)
//!   row 0   | matrix 0 | 2 | 0 .. |
//!   ..      |          |   |      |       `stmatrix` writes four matrices of 8 x 8: two chunks of 16 rows
//!   row 8   | matrix 1 | 3 | 1 .. |
//!   ..                                    a load and a store of 16 bytes a lane then move 4 rows of 128 bytes
//! ```
//!
//! Nobody but the warp touches its place, so that nothing but the warp has to meet.

use cuda_std::atomic::{self, Scope};
use cuda_std::bf16::{bf16x2_from_f32, f16x2_from_f32};
use cuda_std::ldmatrix;
use cuda_std::shared::Shared;
use cuda_std::warp::FULL_MASK;
use cuda_std::{memory, sync, thread, unroll};

use super::{End, Rows, WIDE};
use crate::abi::{OutType, Scales};
use crate::gemm::hopper::arguments::HopperGemm;
use crate::gemm::hopper::slab_scales::SlabScales;
use crate::gemm::hopper::weights::Weights;
use crate::schedule::work::Tile;

/// D as it is.
pub struct Plain {
    pub arguments: HopperGemm,
    pub slab_scales: SlabScales,
}

impl End for Plain {
    const COLUMNS: u32 = WIDE.columns;

    #[inline(always)]
    fn n(&self) -> u32 {
        self.arguments.n
    }

    #[inline(always)]
    fn slab_scales(&self) -> SlabScales {
        self.slab_scales
    }

    #[inline(always)]
    fn operands(&self, tile: &Tile) -> Weights {
        self.arguments.weights(tile.expert, tile.n0)
    }

    #[inline(always)]
    fn scales(&self) -> &Scales {
        &self.arguments.scales
    }

    #[inline(always)]
    fn columns(&self, tile: &Tile) -> ([u32; 2], u32) {
        ([tile.n0, tile.n0 + 128], self.arguments.n)
    }

    #[inline(always)]
    unsafe fn finish(&self, total: &[f32; 128], tile: &Tile, rows: &Rows) {
        // SAFETY: the caller's contract.
        unsafe { store(total, tile, rows, &self.arguments) };
    }
}

/// Writes a thread's part of a tile as far as rows and columns exist.
///
/// # Safety
/// The contract of the kernels; all lanes of the warp call it together.
#[inline(always)]
unsafe fn store(total: &[f32; 128], tile: &Tile, rows: &Rows, arguments: &HopperGemm) {
    if arguments.out_type.is(OutType::TokenSums) {
        // SAFETY: a tile of the schedule.
        return unsafe { add(total, tile, rows, arguments) };
    }
    // SAFETY: as above.
    unsafe {
        match arguments.out_type.raw() {
            F32 => store_f32(total, tile, rows, arguments),
            F16 => store_16_bits(total, tile, rows, arguments, f16x2_from_f32),
            _ => store_16_bits(total, tile, rows, arguments, bf16x2_from_f32),
        }
    }
}

const F32: u32 = OutType::F32 as u32;
const F16: u32 = OutType::F16 as u32;

/// Columns of a pass, and bytes of a warp's place for it.
const COLUMNS: u32 = 64;
pub const ROW_BYTES: u32 = 2 * COLUMNS;

/// Stores 16 rows of the warp as 16-bit elements; `convert` makes two of them.
///
/// # Safety
/// As [`store`].
#[inline(always)]
unsafe fn store_16_bits(
    total: &[f32; 128],
    tile: &Tile,
    rows: &Rows,
    arguments: &HopperGemm,
    convert: impl Fn(f32, f32) -> u32,
) {
    let HopperGemm { out, n, .. } = arguments;
    let lane = thread::lane_id();
    let (matrix, matrix_row) = (lane / 8, lane % 8);
    // Where the lane's row of its matrix goes, of the first two chunks: two chunks further is another xor.
    let row = matrix_row + matrix % 2 * 8;
    let to = rows.staging + row * ROW_BYTES + ((matrix / 2) ^ matrix_row) * 16;
    // In a load and store, the lane has chunk `lane % 8` of rows `4 i + lane / 8`.
    let (chunk, line) = (lane % 8, lane / 8);
    let first = rows.row - lane / 4 + line;
    let column = tile.n0 + 8 * chunk;
    let start = (tile.first_row + first) as usize * *n as usize + column as usize;
    let out = out.cast::<u16>().wrapping_add(start);
    unroll!(for pass in 0..4 {
        unroll!(for pair in 0..4 {
            let mut words = [0; 4];
            unroll!(for m in 0..4 {
                let at = 32 * pass + 8 * pair + 4 * (m / 2) + 2 * (m % 2);
                words[m] = convert(total[at], total[at + 1]);
            });
            // SAFETY: the warp's own memory, whose last readers it has met.
            unsafe { ldmatrix::store_x4(to ^ (pair * 32), words) };
        });
        sync::warp(FULL_MASK);
        let exists = column + pass * COLUMNS < *n;
        unroll!(for i in 0..4 {
            let from = rows.staging + (4 * i + line) * ROW_BYTES + (chunk ^ ((4 * i + line) % 8)) * 16;
            if exists && first + 4 * i < tile.rows {
                // SAFETY: written before the warp met. The row is the tile's and the column D's; N and the
                // column are multiples of 8, so that the 8 elements of 2 bytes exist and are 16-byte aligned
                // as `out` is.
                unsafe {
                    let words = Shared::<[u32; 4]>::from_address(from).read();
                    let to = out.wrapping_add(4 * i as usize * *n as usize + (pass * COLUMNS) as usize);
                    memory::store(to.cast(), words);
                }
            }
        });
        sync::warp(FULL_MASK);
    });
}

/// Stores a thread's part of a tile as it is, two columns at a time.
///
/// # Safety
/// As [`store`].
#[inline(always)]
unsafe fn store_f32(total: &[f32; 128], tile: &Tile, rows: &Rows, arguments: &HopperGemm) {
    let HopperGemm { out, n, .. } = arguments;
    let column = tile.n0 + 2 * rows.quad_lane;
    unroll!(for h in 0..2 {
        let row = rows.row + 8 * h;
        if row < tile.rows {
            let start = (tile.first_row + row) as usize * *n as usize + column as usize;
            let to = out.cast::<f32>().wrapping_add(start);
            unroll!(for j in 0..32 {
                let exists = column + 8 * j < *n;
                if exists {
                    // SAFETY: the row is the tile's and the column D's, even, so that both elements exist and
                    // are 8-byte aligned.
                    unsafe {
                        memory::store(
                            to.wrapping_add(8 * j).cast(),
                            [total[4 * j + 2 * h], total[4 * j + 2 * h + 1]],
                        )
                    };
                }
            });
        }
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
                let exists = column + 8 * j < *n;
                if exists {
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
