//! The gated end: activation of gate and up, the scale of every row's 128 columns, e4m3.
//!
//! ```text
//!   values of a thread, as accumulators: [4 j + 2 h + c]     row + 8 h, column 8 j + 2 q + c, j = 0 .. 16
//!   a row's 128 columns are in the four lanes of a quad:     its maximum takes two shuffles
//!   its bytes:   e4m3 pairs of tiles t and t + 4, one word --transposed in the quad--> 8 bytes of tile q and of tile q + 4
//! ```

use cuda_std::fp8::e4m3x2_from_f32;
use cuda_std::warp::{FULL_MASK, shfl_xor};
use cuda_std::{memory, unroll};

use super::consume::Rows;
use super::store::{RowScales, scaled};
use crate::activation::functions::activate;
use crate::grouped_gemm::hopper::gated::{GatedArguments, Requantization};
use crate::grouped_gemm::quad::transpose_in_quad;
use crate::grouped_gemm::schedule::Tile;
use crate::quantize::scale::{Divisor, of_group_absmax};

/// Activated values of 128 columns.
type Values = [f32; 64];

/// Applies end scales and the activation: the first half of the registers is gate, the second up, of the same 128 columns. Columns
/// past the intermediate become 0.
///
/// # Safety
/// The contract of the kernels, for a tile of the schedule.
#[inline(always)]
pub unsafe fn activated(
    total: &[f32; 128],
    tile: &Tile,
    rows: &Rows,
    arguments: &GatedArguments,
    per_row: &impl RowScales,
) -> Values {
    let GatedArguments { scales, out, .. } = arguments;
    let halves = (tile.n0, out.intermediate + tile.n0);
    // SAFETY: a tile of the schedule.
    let total = unsafe { scaled(total, tile, rows, scales, per_row, halves, 2 * out.intermediate) };
    let mut values = [0.0; 64];
    unroll!(for i in 0..8 {
        let (mut gate, mut up) = ([0.0; 8], [0.0; 8]);
        unroll!(for e in 0..8 {
            gate[e] = total[8 * i + e];
            up[e] = total[64 + 8 * i + e];
        });
        let activated = activate(out.activation, &gate, &up);
        unroll!(for e in 0..8 {
            values[8 * i + e] = activated[e];
        });
    });
    if tile.n0 + 128 > out.intermediate {
        unroll!(for i in 0..64 {
            let exists = tile.n0 + 8 * (i / 4) + 2 * rows.quad_lane < out.intermediate;
            values[i] = if exists { values[i] } else { 0.0 };
        });
    }
    values
}

/// Quantises 128 columns of a thread's two rows, and stores what exists of them.
///
/// # Safety
/// The contract of the kernels, for a tile of the schedule; all lanes of the warp call it together.
#[inline(always)]
pub unsafe fn store(values: Values, tile: &Tile, rows: &Rows, out: &Requantization) {
    unroll!(for h in 0..2 {
        let exists = rows.row + 8 * h < tile.rows;
        let row = (tile.first_row + rows.row + 8 * h) as usize;
        let mut packed = [0u16; 16];
        if out.given_scale.is_null() {
            let mut largest = 0.0;
            unroll!(for j in 0..16 {
                largest =
                    f32::max(largest, f32::max(values[4 * j + 2 * h].abs(), values[4 * j + 2 * h + 1].abs()));
            });
            largest = f32::max(largest, shfl_xor(FULL_MASK, largest, 1));
            largest = f32::max(largest, shfl_xor(FULL_MASK, largest, 2));
            let scale = of_group_absmax(largest);
            let divisor = Divisor::new(scale);
            unroll!(for i in 0..4 {
                let at = |t: usize, c: usize| values[16 * i + 4 * t + 2 * h + c];
                let v = divisor.divide(&[
                    at(0, 0),
                    at(0, 1),
                    at(1, 0),
                    at(1, 1),
                    at(2, 0),
                    at(2, 1),
                    at(3, 0),
                    at(3, 1),
                ]);
                unroll!(for t in 0..4 {
                    packed[4 * i + t] = e4m3x2_from_f32(v[2 * t], v[2 * t + 1]);
                });
            });
            // The right one of a pair of items may lie past the last group.
            if exists && rows.quad_lane == 0 && tile.n0 < out.intermediate {
                let group = (tile.n0 / 128) as usize;
                // SAFETY: every row of the schedule has a scale for each of its groups.
                unsafe {
                    *out.scales.add(row * out.row_stride as usize + group * out.group_stride as usize) = scale
                };
            }
        } else {
            // SAFETY: one scale, which nobody writes meanwhile.
            let reciprocal = 1.0 / unsafe { memory::load_nc(out.given_scale) };
            unroll!(for j in 0..16 {
                packed[j] = e4m3x2_from_f32(
                    values[4 * j + 2 * h] * reciprocal,
                    values[4 * j + 2 * h + 1] * reciprocal,
                );
            });
        }
        unroll!(for half in 0..2 {
            let word = |t: usize| packed[8 * half + t] as u32 | (packed[8 * half + 4 + t] as u32) << 16;
            let [w0, w1, w2, w3] = transpose_in_quad([word(0), word(1), word(2), word(3)], rows.quad_lane);
            let low = [w0 & 0xffff | w1 << 16, w2 & 0xffff | w3 << 16];
            let high = [w0 >> 16 | w1 & 0xffff_0000, w2 >> 16 | w3 & 0xffff_0000];
            let column = tile.n0 + 64 * half + 8 * rows.quad_lane;
            // SAFETY: the row is the tile's and the columns, multiples of 8, are q's, so that 8 bytes exist and are aligned.
            unsafe {
                let at = out.q.add(row * out.intermediate as usize + column as usize);
                if exists && column < out.intermediate {
                    memory::store(at.cast(), low);
                }
                if exists && column + 32 < out.intermediate {
                    memory::store(at.add(32).cast(), high);
                }
            }
        });
    });
}
