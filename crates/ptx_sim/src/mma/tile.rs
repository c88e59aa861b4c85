//! The inner loop of every tensor-core instruction: 16x8 tiles of `C + A * B` with K up to 32, in `f64`.
//!
//! ```text
//!            b[k][0..8]            one row of b is two AVX2 registers (one AVX-512 register);
//!          +------------+          four rows of the tile are accumulated at a time, so that
//!          |     K      |          each row of b that is loaded feeds four multiply-adds.
//!  +---+   +------------+
//!  |   |   +------------+
//!  |a K| x |    sums    |  + c     flattened, sums[16x8] is c in the order of its registers:
//!  +---+   +------------+          element 64 * h + 2 * lane + j is register 2 * h + j of the lane
//! ```
//!
//! A product of two operand elements has at most 22 significant bits, so it is exact in `f64`; whether the
//! multiply-add is fused makes no difference, and the compiled variants agree to the bit.

use super::element::{Core, Element, decode};
use super::truncated::Sum;
use super::{Accumulators, HalfAccumulators, Mode};
use crate::formats::{Rounding, add_to_odd, f16_to_f32, f64_to_f16};

/// 16 rows of A.
type TileA<const K: usize> = [[f64; K]; 16];

/// 8 columns of B, k-major.
type TileB<const K: usize> = [[f64; 8]; K];

/// `A * B`, row-major.
type Sums = [[f64; 8]; 16];

/// Decodes 16 rows of A from core matrices in fragment order (row block fastest).
#[inline(always)]
fn tile_a<E: Element, const K: usize>(cores: &[Core], sign: f64, a: &mut TileA<K>) {
    let width = 16 / E::BYTES;
    let mut values = [0.0; 128];
    for (i, core) in cores.iter().enumerate() {
        decode::<E>(core, &mut values);
        for row in 0..8 {
            let first = width * (i / 2);
            for k in 0..width {
                a[8 * (i % 2) + row][first + k] = sign * values[width * row + k];
            }
        }
    }
}

/// Decodes 8 columns of B from core matrices by k block; a row of a core is a column n.
#[inline(always)]
fn tile_b<E: Element, const K: usize>(cores: &[Core], b: &mut TileB<K>) {
    let width = 16 / E::BYTES;
    let mut values = [0.0; 128];
    for (k_block, core) in cores.iter().enumerate() {
        decode::<E>(core, &mut values);
        for k in 0..width {
            for n in 0..8 {
                b[width * k_block + k][n] = values[width * n + k];
            }
        }
    }
}

/// `sums[m][n] = sum over k of a[m][k] * b[k][n]`, k ascending.
#[inline(always)]
fn multiply<const K: usize, const FUSED: bool>(a: &TileA<K>, b: &TileB<K>) -> Sums {
    let mut sums = [[0.0; 8]; 16];
    for (rows, sums) in a.chunks_exact(4).zip(sums.chunks_exact_mut(4)) {
        let mut acc = [[0.0f64; 8]; 4];
        for k in 0..K {
            for m in 0..4 {
                for n in 0..8 {
                    acc[m][n] = if FUSED {
                        rows[m][k].mul_add(b[k][n], acc[m][n])
                    } else {
                        rows[m][k] * b[k][n] + acc[m][n]
                    };
                }
            }
        }
        sums.copy_from_slice(&acc);
    }
    sums
}

/// A 16x8 fragment of accumulators in the registers of a warp.
pub(crate) trait Fragment: Sum {
    /// Adds `sums` to the accumulators and rounds each once.
    fn add(&mut self, sums: &Sums);
    /// Sets the accumulators to zero.
    fn clear(&mut self);
}

impl Fragment for Accumulators {
    #[inline(always)]
    fn add(&mut self, sums: &Sums) {
        let sums = sums.as_flattened();
        for (i, register) in self.iter_mut().enumerate() {
            for (lane, bits) in register.iter_mut().enumerate() {
                let sum = sums[64 * (i / 2) + 2 * lane + i % 2];
                let rounded = add_to_odd(sum, f64::from(f32::from_bits(*bits))) as f32;
                *bits = if rounded.is_nan() { 0x7fff_ffff } else { rounded.to_bits() };
            }
        }
    }

    #[inline(always)]
    fn clear(&mut self) {
        *self = [[0; 32]; 4];
    }
}

impl Fragment for HalfAccumulators {
    #[inline(always)]
    fn add(&mut self, sums: &Sums) {
        let sums = sums.as_flattened();
        for (half, register) in self.iter_mut().enumerate() {
            for (lane, bits) in register.iter_mut().enumerate() {
                let mut packed = 0;
                for column in 0..2 {
                    let c = f32::from_bits(f16_to_f32((*bits >> (16 * column)) as u16));
                    let sum = add_to_odd(sums[64 * half + 2 * lane + column], f64::from(c));
                    packed |= u32::from(f64_to_f16(sum.to_bits(), Rounding::Rn)) << (16 * column);
                }
                *bits = packed;
            }
        }
    }

    #[inline(always)]
    fn clear(&mut self) {
        *self = [[0; 32]; 2];
    }
}

/// `d[warp * panels + panel]` gets the product of the 16 rows of `warp` and the 8 columns of `panel`, for
/// each of the `W` warps of `a` and all panels of `b`.
#[inline(always)]
fn panels_body<A: Element, B: Element, F: Fragment, const W: usize, const K: usize, const FUSED: bool>(
    mode: Mode,
    a: &[Core],
    b: &[Core],
    d: &mut [F],
) {
    let a_cores = 2 * K * A::BYTES / 16;
    let b_cores = K * B::BYTES / 16;
    let panels = b.len() / b_cores;
    assert_eq!((a.len(), d.len()), (W * a_cores, W * panels), "core matrices of A, and fragments");
    let sign = if mode.negate { -1.0 } else { 1.0 };
    // (Loops rather than closures: a closure would not be compiled for the caller's instruction set.)
    let mut tiles = [[[0.0; K]; 16]; W];
    for (tile, cores) in tiles.iter_mut().zip(a.chunks_exact(a_cores)) {
        tile_a::<A, K>(cores, sign, tile);
    }
    let mut columns = [[0.0; 8]; K];
    for (panel, cores) in b.chunks_exact(b_cores).enumerate() {
        tile_b::<B, K>(cores, &mut columns);
        for (warp, a) in tiles.iter().enumerate() {
            let fragment = &mut d[warp * panels + panel];
            if !mode.accumulate {
                fragment.clear();
            }
            fragment.add(&multiply::<K, FUSED>(a, &columns));
        }
    }
}

/// [`panels_body`], compiled for each instruction set worth having and picked at run time.
#[inline]
pub(super) fn panels<A: Element, B: Element, F: Fragment, const W: usize, const K: usize>(
    mode: Mode,
    a: &[Core],
    b: &[Core],
    d: &mut [F],
) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn avx512<A: Element, B: Element, F: Fragment, const W: usize, const K: usize>(
            mode: Mode,
            a: &[Core],
            b: &[Core],
            d: &mut [F],
        ) {
            panels_body::<A, B, F, W, K, true>(mode, a, b, d);
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2<A: Element, B: Element, F: Fragment, const W: usize, const K: usize>(
            mode: Mode,
            a: &[Core],
            b: &[Core],
            d: &mut [F],
        ) {
            panels_body::<A, B, F, W, K, true>(mode, a, b, d);
        }
        let fma = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        if fma
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            // SAFETY: every feature that `avx512` is compiled for was just found on this CPU.
            return unsafe { avx512::<A, B, F, W, K>(mode, a, b, d) };
        }
        if fma {
            // SAFETY: AVX2 and FMA, which `avx2` is compiled for, were just found on this CPU.
            return unsafe { avx2::<A, B, F, W, K>(mode, a, b, d) };
        }
    }
    panels_body::<A, B, F, W, K, false>(mode, a, b, d);
}

#[cfg(test)]
mod tests {
    use super::super::element::{Bf16, E4m3, E5m2};
    use super::*;

    /// Core matrices of bytes that run through all values.
    fn cores<const N: usize>(step: usize) -> [Core; N] {
        let mut cores = [[0; 128]; N];
        for (i, byte) in cores.as_flattened_mut().iter_mut().enumerate() {
            *byte = (i * step % 251) as u8;
        }
        cores
    }

    #[test]
    fn compiled_variants_agree_to_the_bit() {
        fn check<A: Element, B: Element, const K: usize>() {
            let (a, b) = (cores::<4>(7), cores::<2>(11));
            let mode = Mode { negate: false, accumulate: true };
            let start = [[[0x3f81_2345; 32]; 4]];
            let (mut chosen, mut portable) = (start, start);
            panels::<A, B, Accumulators, 1, K>(mode, &a, &b, &mut chosen);
            panels_body::<A, B, Accumulators, 1, K, false>(mode, &a, &b, &mut portable);
            assert_eq!(chosen, portable);
            assert_ne!(chosen, start);
        }
        check::<E4m3, E4m3, 32>();
        check::<E5m2, E4m3, 32>();
        check::<Bf16, Bf16, 16>();
    }
}
