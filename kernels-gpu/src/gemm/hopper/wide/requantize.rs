//! The gated end: activation of gate and up, the scale of every row's 128 columns, e4m3.
//!
//! ```text
//!   values of a thread, as accumulators: [4 j + 2 h + c]     row + 8 h, column 8 j + 2 q + c, j = 0 .. 16
//!   a row's 128 columns are in the four lanes of a quad:     its maximum takes two shuffles
//!   its bytes:   e4m3 pairs of tiles t and t + 4, a word --transposed in the quad--> 8 bytes of tiles q, q + 4
//! ```

use cuda_std::fp8::e4m3x2_from_f32;
use cuda_std::warp::{FULL_MASK, shfl_xor};
use cuda_std::{memory, unroll};

use super::Rows;
use crate::elementwise::activation::functions::{GELU, GELU_TANH, RELU2, SILU, SWIGLUOAI, activate};
use crate::elementwise::rows::scale::{Divisor, of_group_absmax};
use crate::gemm::hopper::arguments::GatedArguments;
use crate::gemm::quad::transpose_in_quad;
use crate::schedule::work::Tile;

/// Activated values of 128 columns.
type Values = [f32; 64];

/// Applies the activation, silu without a limit or one of the others. The first half of the registers is
/// gate, the second up, of the same 128 columns. Columns past the intermediate become 0.
#[inline(always)]
pub fn activated<const IS_SILU: bool>(
    total: &[f32; 128],
    tile: &Tile,
    rows: &Rows,
    arguments: &GatedArguments,
) -> Values {
    let GatedArguments { out, intermediate, .. } = *arguments;
    // One branch for all values: with one for every few, their latencies would add up.
    let limit = out.gating.limit;
    let mut values = match out.gating.function.raw() {
        _ if IS_SILU => activated_by::<SILU>(f32::INFINITY, total),
        SILU => activated_by::<SILU>(limit, total),
        GELU => activated_by::<GELU>(limit, total),
        GELU_TANH => activated_by::<GELU_TANH>(limit, total),
        RELU2 => activated_by::<RELU2>(limit, total),
        _ => activated_by::<SWIGLUOAI>(limit, total),
    };
    if tile.n0 + 128 > intermediate {
        unroll!(for i in 0..64 {
            let exists = tile.n0 + 8 * (i / 4) + 2 * rows.quad_lane < intermediate;
            values[i] = if exists { values[i] } else { 0.0 };
        });
    }
    values
}

/// The activation numbered `CODE` of gate, the first half of the registers, and up.
#[inline(always)]
fn activated_by<const CODE: u32>(limit: f32, total: &[f32; 128]) -> Values {
    let mut values = [0.0; 64];
    unroll!(for i in 0..8 {
        let (mut gate, mut up) = ([0.0; 8], [0.0; 8]);
        unroll!(for e in 0..8 {
            gate[e] = total[8 * i + e];
            up[e] = total[64 + 8 * i + e];
        });
        let activated = activate(CODE, limit, &gate, &up);
        unroll!(for e in 0..8 {
            values[8 * i + e] = activated[e];
        });
    });
    values
}

/// Quantises 128 columns of a thread's two rows, and stores what exists of them.
///
/// # Safety
/// The contract of the kernels, for a tile of the schedule; all lanes of the warp call it together.
#[inline(always)]
pub unsafe fn store(values: Values, tile: &Tile, rows: &Rows, arguments: &GatedArguments) {
    if !arguments.out.given_scale.is_null() {
        // SAFETY: one scale, which nobody writes meanwhile.
        let reciprocal = 1.0 / unsafe { memory::load_nc(arguments.out.given_scale) };
        unroll!(for h in 0..2 {
            let mut packed = [0u16; 16];
            unroll!(for j in 0..16 {
                let (left, right) = (values[4 * j + 2 * h], values[4 * j + 2 * h + 1]);
                packed[j] = e4m3x2_from_f32(left * reciprocal, right * reciprocal);
            });
            // SAFETY: the caller's contract.
            unsafe { store_row(&packed, tile, rows, h, arguments) };
        });
        return;
    }
    // Both rows step by step, so that their latencies overlap.
    let mut largest = [0.0; 2];
    unroll!(for j in 0..16 {
        unroll!(for h in 0..2 {
            let (left, right) = (values[4 * j + 2 * h], values[4 * j + 2 * h + 1]);
            largest[h] = f32::max(largest[h], f32::max(left.abs(), right.abs()));
        });
    });
    unroll!(for h in 0..2 {
        largest[h] = f32::max(largest[h], shfl_xor(FULL_MASK, largest[h], 1));
    });
    unroll!(for h in 0..2 {
        largest[h] = f32::max(largest[h], shfl_xor(FULL_MASK, largest[h], 2));
    });
    let scales = [of_group_absmax(largest[0]), of_group_absmax(largest[1])];
    let divisors = [Divisor::new(scales[0]), Divisor::new(scales[1])];
    unroll!(for h in 0..2 {
        // The right one of two neighbours may lie past the last group.
        if rows.row + 8 * h < tile.rows && rows.quad_lane == 0 && tile.n0 < arguments.intermediate {
            let (row, strides) = ((tile.first_row + rows.row + 8 * h) as usize, arguments.out.strides);
            let at = row * strides.row as usize + (tile.n0 / 128) as usize * strides.group as usize;
            // SAFETY: every row of the schedule has a scale for each of its groups.
            unsafe { *arguments.out.scales.add(at) = scales[h as usize] };
        }
        let mut packed = [0u16; 16];
        unroll!(for i in 0..4 {
            let at = |t: usize, c: usize| values[16 * i + 4 * t + 2 * h + c];
            let v = divisors[h].divide(&[
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
        // SAFETY: the caller's contract.
        unsafe { store_row(&packed, tile, rows, h, arguments) };
    });
}

/// Stores 128 columns of a thread's row `h`, as far as they exist.
///
/// # Safety
/// As [`store`].
#[inline(always)]
unsafe fn store_row(packed: &[u16; 16], tile: &Tile, rows: &Rows, h: u32, arguments: &GatedArguments) {
    let exists = rows.row + 8 * h < tile.rows;
    let row = (tile.first_row + rows.row + 8 * h) as usize;
    unroll!(for half in 0..2 {
        let word = |t: usize| packed[8 * half + t] as u32 | (packed[8 * half + 4 + t] as u32) << 16;
        let [w0, w1, w2, w3] = transpose_in_quad([word(0), word(1), word(2), word(3)], rows.quad_lane);
        let low = [w0 & 0xffff | w1 << 16, w2 & 0xffff | w3 << 16];
        let high = [w0 >> 16 | w1 & 0xffff_0000, w2 >> 16 | w3 & 0xffff_0000];
        let column = tile.n0 + 64 * half + 8 * rows.quad_lane;
        // SAFETY: the row is the tile's and the columns, multiples of 8, are q's, so that 8 bytes exist and
        // are aligned.
        unsafe {
            let at = arguments.out.q.add(row * arguments.intermediate as usize + column as usize);
            if exists && column < arguments.intermediate {
                memory::store(at.cast(), low);
            }
            if exists && column + 32 < arguments.intermediate {
                memory::store(at.add(32).cast(), high);
            }
        }
    });
}
