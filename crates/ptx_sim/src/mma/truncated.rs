//! The inner loop of truncating sums (see [`Truncation`]): 16x8 tiles with K up to 32.
//!
//! ```text
//!   E[n]  = max over k of 2^(e_a + e_b), and of the accumulator's      exponents as powers of two, in f32
//!   sum   = sum over k of trunc(a * b / quantum),  quantum = E / 2^fraction_bits
//!   d     = sum * quantum, cut to the accumulator's bits
//! ```
//!
//! Products of FP8 numbers are exact in `f32`, and dividing by a power of two changes no bit of them. Terms
//! are below `2^(fraction_bits + 2)`: with up to 16 fraction bits the sum of 33 of them is a whole number
//! that `f32` holds, with more they are summed in `f64`. Elements with NaN, infinities or an accumulator
//! below the smallest quantum take the slow way, [`Truncation::step_sum`].

use super::element::{Core, Element, decode};
use super::truncation::{Truncation, last_sum};
use super::{Accumulators, HalfAccumulators, Mode, Operand};
use crate::formats::f16_to_f32;

/// Values of 16 rows, and the powers of two that they count with.
#[derive(Clone, Copy)]
struct Rows<const K: usize> {
    values: [[f32; K]; 16],
    scales: [[f32; K]; 16],
    finite: [bool; 16],
}

impl<const K: usize> Rows<K> {
    const ZERO: Rows<K> = Rows { values: [[0.0; K]; 16], scales: [[0.0; K]; 16], finite: [true; 16] };
}

/// As [`Rows`], of 8 columns, k-major.
struct Columns<const K: usize> {
    values: [[f32; 8]; K],
    scales: [[f32; 8]; K],
    finite: bool,
}

/// The power of two that an element counts with: that of its exponent, not below `least`; 0 for zero.
#[inline(always)]
fn scale(value: f32, least: f32) -> f32 {
    let power = f32::from_bits(value.to_bits() & 0x7f80_0000);
    if value == 0.0 { 0.0 } else { power.max(least) }
}

#[inline(always)]
fn read_rows<E: Element, const K: usize>(
    cores: &[Core],
    sign: f32,
    least: f32,
    model: Truncation,
    rows: &mut Rows<K>,
) {
    let width = 16 / E::BYTES;
    let mut values = [0.0; 128];
    for (i, core) in cores.iter().enumerate() {
        decode::<E>(core, &mut values);
        for row in 0..8 {
            let (m, first) = (8 * (i % 2) + row, width * (i / 2));
            for k in 0..width {
                let value = values[width * row + k] as f32;
                let at = model.position(first + k, K);
                rows.values[m][at] = sign * value;
                rows.scales[m][at] = scale(value, least);
                rows.finite[m] &= value.is_finite();
            }
        }
    }
}

#[inline(always)]
fn columns<E: Element, const K: usize>(cores: &[Core], least: f32, model: Truncation) -> Columns<K> {
    let width = 16 / E::BYTES;
    let mut columns = Columns { values: [[0.0; 8]; K], scales: [[0.0; 8]; K], finite: true };
    let mut values = [0.0; 128];
    for (block, core) in cores.iter().enumerate() {
        decode::<E>(core, &mut values);
        for k in 0..width {
            let at = model.position(width * block + k, K);
            for n in 0..8 {
                let value = values[width * n + k] as f32;
                columns.values[at][n] = value;
                columns.scales[at][n] = scale(value, least);
                columns.finite &= value.is_finite();
            }
        }
    }
    columns
}

/// A fragment whose accumulators this file can read and write, element by element in the order of
/// [`super::tile`].
pub(crate) trait Sum {
    fn get(&self, row: usize, column: usize) -> f32;
    fn set(&mut self, row: usize, column: usize, value: f32);
    /// Sets an element to the sum of a step.
    fn put(&mut self, row: usize, column: usize, sum: f64, model: Truncation);
}

/// The register half, the lane and the place in it of an element.
#[inline(always)]
fn place(row: usize, column: usize) -> (usize, usize, usize) {
    (row / 8, 4 * (row % 8) + column / 2, column % 2)
}

impl Sum for Accumulators {
    #[inline(always)]
    fn get(&self, row: usize, column: usize) -> f32 {
        let (half, lane, odd) = place(row, column);
        f32::from_bits(self[2 * half + odd][lane])
    }

    #[inline(always)]
    fn set(&mut self, row: usize, column: usize, value: f32) {
        let (half, lane, odd) = place(row, column);
        self[2 * half + odd][lane] = value.to_bits();
    }

    #[inline(always)]
    fn put(&mut self, row: usize, column: usize, sum: f64, model: Truncation) {
        self.set(row, column, model.to_f32(sum));
    }
}

impl Sum for HalfAccumulators {
    #[inline(always)]
    fn get(&self, row: usize, column: usize) -> f32 {
        let (half, lane, odd) = place(row, column);
        f32::from_bits(f16_to_f32((self[half][lane] >> (16 * odd)) as u16))
    }

    #[inline(always)]
    fn set(&mut self, row: usize, column: usize, value: f32) {
        self.put(row, column, f64::from(value), Truncation::HOPPER_FP8);
    }

    #[inline(always)]
    fn put(&mut self, row: usize, column: usize, sum: f64, _: Truncation) {
        let (half, lane, odd) = place(row, column);
        let bits = u32::from(Truncation::to_f16(sum)) << (16 * odd);
        self[half][lane] = self[half][lane] & !(0xffff << (16 * odd)) | bits;
    }
}

/// One row of a step: its sums before rounding; of the columns in the result's mask they must be formed the
/// slow way.
#[inline(always)]
fn row_sums<const K: usize>(
    (a, a_scales): (&[f32], &[f32]),
    b: &Columns<K>,
    first: usize,
    c: &[f32; 8],
    fraction_bits: i32,
) -> ([f64; 8], u32) {
    let mut largest = [0f32; 8];
    for (k, &scale) in a_scales.iter().enumerate() {
        for n in 0..8 {
            let product = scale * b.scales[first + k][n];
            largest[n] = if product > largest[n] { product } else { largest[n] };
        }
    }
    let mut inverse = [0f32; 8];
    let mut quantum = [0f64; 8];
    let mut slow = 0;
    for n in 0..8 {
        let bits = largest[n].to_bits().max(scale(c[n], f32::MIN_POSITIVE).to_bits());
        let field = (bits >> 23) as i32;
        // The inverse of the quantum must be an f32; infinities and NaN have no exponent. A field of 0: all
        // is zero.
        let plain = field > fraction_bits && field < 255 || field == 0;
        slow |= u32::from(!plain) << n;
        let usable = if plain && field > 0 { field } else { 127 };
        inverse[n] = f32::from_bits(((254 - usable + fraction_bits) as u32) << 23);
        quantum[n] = f64::from_bits(((usable - 127 - fraction_bits + 1023) as u64) << 52);
    }
    // (Two loops rather than one that is generic: each is what the compiler vectorises.)
    let mut sums = [0f64; 8];
    if fraction_bits <= 16 {
        let mut whole = [0f32; 8];
        for n in 0..8 {
            whole[n] = (c[n] * inverse[n]).trunc();
        }
        for (k, &a) in a.iter().enumerate() {
            for n in 0..8 {
                whole[n] += (a * b.values[first + k][n] * inverse[n]).trunc();
            }
        }
        for n in 0..8 {
            sums[n] = f64::from(whole[n]) * quantum[n];
        }
    } else {
        for n in 0..8 {
            sums[n] = f64::from(c[n] * inverse[n]).trunc();
        }
        for (k, &a) in a.iter().enumerate() {
            for n in 0..8 {
                sums[n] += f64::from(a * b.values[first + k][n] * inverse[n]).trunc();
            }
        }
        for n in 0..8 {
            sums[n] *= quantum[n];
        }
    }
    (sums, slow)
}

/// The sum of one element as [`Truncation::step_sum`] forms it.
#[cold]
fn slow_sum<const K: usize>(
    a: &[f32],
    b: &Columns<K>,
    (first, column): (usize, usize),
    least: (i32, i32),
    c: f32,
    model: Truncation,
) -> f64 {
    let (mut left, mut right) = ([0.0; K], [0.0; K]);
    for (k, &a) in a.iter().enumerate() {
        left[k] = f64::from(a);
        right[k] = f64::from(b.values[first + k][column]);
    }
    model.step_sum(&left[..a.len()], least.0, &right[..a.len()], least.1, c)
}

/// Which types a product has, and how its sums are cut.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    pub types: (Operand, Operand),
    pub model: Truncation,
}

/// `d[warp * panels + panel]` gets the product of the 16 rows of `warp` and the 8 columns of `panel`, as
/// [`super::tile::panels`] forms it exactly.
#[inline(always)]
fn panels_body<A: Element, B: Element, F: Sum, const W: usize, const K: usize>(
    mode: Mode,
    rule: Rule,
    a: &[Core],
    b: &[Core],
    d: &mut [F],
) {
    let a_cores = 2 * K * A::BYTES / 16;
    let b_cores = K * B::BYTES / 16;
    let panels = b.len() / b_cores;
    assert_eq!((a.len(), d.len()), (W * a_cores, W * panels), "core matrices of A, and fragments");
    let Rule { types, model } = rule;
    let least = (model.min_exponent(types.0), model.min_exponent(types.1));
    let power = |exponent: i32| f32::from_bits(((exponent + 127) as u32) << 23);
    let sign = if mode.negate { -1.0 } else { 1.0 };
    let step = model.step.min(K);
    // (Loops rather than closures: a closure would not be compiled for the caller's instruction set.)
    let mut tiles = [Rows::<K>::ZERO; W];
    for (rows, cores) in tiles.iter_mut().zip(a.chunks_exact(a_cores)) {
        read_rows::<A, K>(cores, sign, power(least.0), model, rows);
    }
    for (panel, cores) in b.chunks_exact(b_cores).enumerate() {
        let columns = columns::<B, K>(cores, power(least.1), model);
        for (warp, rows) in tiles.iter().enumerate() {
            let fragment = &mut d[warp * panels + panel];
            for row in 0..16 {
                let mut given = [0f32; 8];
                if mode.accumulate {
                    for column in 0..8 {
                        given[column] = fragment.get(row, column);
                    }
                }
                let mut c = if model.as_f16 { [0f32; 8] } else { given };
                for first in (0..K).step_by(step) {
                    let a = &rows.values[row][first..first + step];
                    let scales = &rows.scales[row][first..first + step];
                    let (mut sums, mut slow) =
                        row_sums((a, scales), &columns, first, &c, model.fraction_bits);
                    if !(rows.finite[row] && columns.finite) {
                        slow = 0xff;
                    }
                    for column in 0..8 {
                        if slow >> column & 1 != 0 {
                            sums[column] = slow_sum(a, &columns, (first, column), least, c[column], model);
                        }
                        fragment.put(row, column, sums[column], model);
                        c[column] = fragment.get(row, column);
                    }
                }
                if model.as_f16 {
                    for column in 0..8 {
                        fragment.set(row, column, last_sum(c[column], given[column]));
                    }
                }
            }
        }
    }
}

/// [`panels_body`], compiled for each instruction set worth having and picked at run time.
#[inline]
pub(super) fn panels<A: Element, B: Element, F: Sum, const W: usize, const K: usize>(
    mode: Mode,
    rule: Rule,
    a: &[Core],
    b: &[Core],
    d: &mut [F],
) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn avx512<A: Element, B: Element, F: Sum, const W: usize, const K: usize>(
            mode: Mode,
            rule: Rule,
            a: &[Core],
            b: &[Core],
            d: &mut [F],
        ) {
            panels_body::<A, B, F, W, K>(mode, rule, a, b, d);
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2<A: Element, B: Element, F: Sum, const W: usize, const K: usize>(
            mode: Mode,
            rule: Rule,
            a: &[Core],
            b: &[Core],
            d: &mut [F],
        ) {
            panels_body::<A, B, F, W, K>(mode, rule, a, b, d);
        }
        let avx2_and_fma = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        if avx2_and_fma
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            // SAFETY: every feature that `avx512` is compiled for was just found on this CPU.
            return unsafe { avx512::<A, B, F, W, K>(mode, rule, a, b, d) };
        }
        if avx2_and_fma {
            // SAFETY: AVX2 and FMA, which `avx2` is compiled for, were just found on this CPU.
            return unsafe { avx2::<A, B, F, W, K>(mode, rule, a, b, d) };
        }
    }
    panels_body::<A, B, F, W, K>(mode, rule, a, b, d);
}

#[cfg(test)]
mod tests {
    use super::super::element::{E4m3, E5m2, core_of};
    use super::*;

    /// Words that run through all bytes, in an order of their own for each `step`.
    fn cores<const N: usize>(step: u32) -> [Core; N] {
        std::array::from_fn(|i| {
            core_of(&std::array::from_fn(|lane| (128 * i as u32 + lane as u32).wrapping_mul(step)))
        })
    }

    /// Every element against [`Truncation::dot`], which goes from element to element in `f64`.
    fn agrees<A: Element, B: Element>(rule: Rule, c: u32) {
        let (a, b) = (cores::<4>(0x9e37_79b1), cores::<2>(0x85eb_ca77));
        let mode = Mode { negate: false, accumulate: true };
        let mut d = [[[0; 32]; 4]];
        for (register, lanes) in d[0].iter_mut().enumerate() {
            for (lane, bits) in lanes.iter_mut().enumerate() {
                *bits = c.wrapping_mul(1 + 2 * (32 * register + lane) as u32);
            }
        }
        let start = d[0];
        panels::<A, B, Accumulators, 1, 32>(mode, rule, &a, &b, &mut d);
        let Rule { types, model } = rule;
        let (a_min, b_min) = (model.min_exponent(types.0), model.min_exponent(types.1));
        for row in 0..16 {
            for column in 0..8 {
                let left: Vec<f64> = (0..32)
                    .map(|k| A::value(u32::from(a[row / 8 + 2 * (k / 16)][16 * (row % 8) + k % 16])).into())
                    .collect();
                let right: Vec<f64> =
                    (0..32).map(|k| B::value(u32::from(b[k / 16][16 * column + k % 16])).into()).collect();
                let expected = model.dot(&left, a_min, &right, b_min, start.get(row, column));
                assert_eq!(
                    d[0].get(row, column).to_bits(),
                    expected.to_bits(),
                    "{types:?} {model:?} ({row}, {column})"
                );
            }
        }
    }

    #[test]
    fn the_fast_way_is_the_slow_one() {
        use Operand as O;
        for model in [Truncation::HOPPER_FP8, Truncation::ADA_FP8, Truncation::HOPPER_FP8_AS_F16] {
            for c in [0, 0x3f80_0001, 0x2b_4d71, 0x5bd1_e995, 0x4000_0000] {
                agrees::<E4m3, E4m3>(Rule { types: (O::E4m3, O::E4m3), model }, c);
                agrees::<E5m2, E4m3>(Rule { types: (O::E5m2, O::E4m3), model }, c);
                agrees::<E5m2, E5m2>(Rule { types: (O::E5m2, O::E5m2), model }, c);
            }
        }
    }
}
