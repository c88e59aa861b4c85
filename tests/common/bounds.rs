//! How far a layer's output may be from the exact one, derived for every element from the exact layer's own
//! intermediates.
//!
//! A layer computes, for each token and each of its k experts,
//!
//! ```text
//!     g = sg * sum x * wg,   u = su * sum x * wu       GEMM 1: x and w are e4m3, the same bits on any device
//!     v = act(g) * u                                              [I]
//!     s = max |v| / 448 (of the row, or of 128 columns), or given;   q = e4m3(v / s)
//!     y = sum over i of q_i * s_i * w2_i                          GEMM 2
//!     out = sum over the k experts of weight * cast16(y)
//! ```
//!
//! and the only step that amplifies an error is `e4m3`: an error of `v / s` that is too small to matter can
//! carry it over the boundary between two roundings, and then q is off by a step of e4m3, up to 1/8 of its
//! value.
//!
//! # A bound per element
//!
//! 1. *GEMM 1.* `tensor_core::analyse` gives for every g and u the largest error `E` there can be, and its
//!    root mean square `R`.
//! 2. *Activation.* `E(v) = 1.13 E(g) (|m| + E(u)) + |act(g)| E(u) + A |v|`, where 1.13 bounds the slope of
//!    every activation, m is what the gate is multiplied by (u, or clamp(u) + 1), and `A = (8 + 2 |x|) 2^-23`
//!    is the activation's documented error, x depending on its exponential. `R(v)` likewise, by the root of
//!    squares.
//! 3. *Scale.* `|s' - s| <= max over the group of (|v| + E(v)) / 448 - s`, and likewise below.
//! 4. *Which roundings can flip.* v'/s' lies between the least and the largest of `(v -+ E(v)) / (s -+
//!    E(s))`, widened by 2^-20 for the division. Where both ends round to the same code, q cannot flip. Else
//!    its error is at most `c_i = s max |q' - q|` over the two ends: a step of e4m3, where the interval holds
//!    one boundary.
//! 5. *GEMM 2.* With q' and s' for q and s,
//!
//!    ```text
//!    |y' - y| <=   sum over the i that can flip of c_i |w2_i|
//!                + sum over groups of E(s) / s |the group's part of y|
//!                + the tensor cores' error of the sum, from `analyse`
//!    ```
//!
//! 6. *Output.* `|out' - out| <= sum over the k experts of |weight| (|y' - y| + 2^-8 |y'|) + 2^-20 sum
//!    |weight y|`: a rounding of y to bf16 and the f32 sum. An order-free layer rounds no y; it is held to
//!    the same bound.
//!
//! # The likely error
//!
//! With a thousand columns a bound in which every possible flip happens, all in one direction, is some times
//! the output. It hides a missing element. But flips are independent, as likely up as down, and rare:
//!
//! - v/s is as likely at one place between two boundaries as at another. Given that a boundary lies in the
//!   interval of 4, an error of mean size `R / s` crosses it with probability `p_i = R(v/s) / (the interval's
//!   length)`.
//! - So the flips' part of y has the variance `V = sum p_i (c_i w2_i)^2` and consists of terms of at most `b
//!   = max c_i |w2_i|`. By Bernstein's inequality it exceeds `sqrt(2 V L) + b L / 3` with probability `2
//!   exp(-L)`. `L = 28` makes that 1e-12 for an element, and 1e-5 for all elements that a run of the tests
//!   compares.
//!
//! The bound of an element is the smaller of the two; the tensor cores' own error in GEMM 2 has its `worst`
//! and `sqrt(2 L) R` likewise. On random data with standard normal hidden states that is some 10 to 30 % of
//! the output's root mean square.
//!
//! # Why no bound of the distance
//!
//! The relative L2 distance of a few tokens to the oracle fluctuates too much for one. A flip of q_i moves a
//! whole row of outputs by `c_i w2[:, i]`, and a few columns dominate a row of v. With the tensor cores of
//! [`tensor_core::truncated`], T = 83, I = 1024, H = 128, E = 8, k = 2 in blocks, the distance over all
//! tokens is 0.0033 to 0.0039, but that of one token 0.0003 to 0.014. Over eight tokens its median is 0.0036,
//! and one draw in a hundred exceeds 0.010. (On an H200 one gave 0.0086.) With I = 128, H = 112, k = 1 one
//! draw in a hundred exceeds 0.017. A number chosen near the median fails by chance, and one that holds
//! catches nothing that the bounds of elements do not. Where the specification names a distance the tests
//! hold results to that as well.

use rayon::prelude::*;

use super::e4m3;
use super::tensor_core::{self, STEP};

/// `2 exp(-L)` is the probability that an element's likely bound does not hold.
const L: f64 = 28.0;

/// A number of the exact layer, and what bounds the error of a device's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Estimate {
    /// The exact number.
    pub value: f64,
    /// The largest error there can be.
    pub worst: f64,
    /// The root mean square of the error.
    pub rms: f64,
}

/// The scales of a quantised row.
#[derive(Clone, Copy, Debug)]
pub enum Scales {
    /// One for all rows.
    Given(f32),
    /// One for the row.
    Row,
    /// One for 128 columns.
    Group,
}

/// A row that was quantised from numbers with errors.
pub struct Quantised {
    /// In units of e4m3.
    pub units: Vec<i32>,
    /// For every 128 columns: the scale, the largest relative error of it and the root mean square of that.
    pub scales: Vec<(f64, f64, f64)>,
    /// The elements that can flip.
    pub flips: Vec<Flip>,
    /// How many can flip in every step of a sum.
    pub moved: Vec<u32>,
}

/// An element that may be rounded to another code.
#[derive(Clone, Copy, Debug)]
pub struct Flip {
    /// Its column.
    pub column: usize,
    /// The largest error, scaled.
    pub size: f64,
    /// How likely it is.
    pub probability: f64,
}

impl Quantised {
    /// A row without errors.
    pub fn exact(values: &[f32], scales: Scales) -> Quantised {
        let of_values = |values: &[f32]| match scales {
            Scales::Given(scale) => scale,
            Scales::Row => e4m3::scale(e4m3::absmax(values)),
            Scales::Group => e4m3::group_scale(e4m3::absmax(values)),
        };
        let of_row = of_values(values);
        let mut row = Quantised { units: vec![], scales: vec![], flips: vec![], moved: vec![] };
        for group in values.chunks(128) {
            let scale = if let Scales::Group = scales { of_values(group) } else { of_row };
            let quotient =
                |x: &f32| if let Scales::Given(_) = scales { x * (1.0 / scale) } else { x / scale };
            row.units.extend(group.iter().map(|x| e4m3::units(e4m3::encode(quotient(x)))));
            row.scales.push((f64::from(scale), 0.0, 0.0));
        }
        row.moved = vec![0; values.len().div_ceil(STEP)];
        row
    }

    /// A row with errors: steps 3 and 4 of the module's derivation.
    pub fn of(values: &[Estimate], scales: Scales) -> Quantised {
        let exact: Vec<f32> = values.iter().map(|v| v.value as f32).collect();
        let mut row = Quantised::exact(&exact, scales);
        let spread = |values: &[Estimate], scale: f64| {
            let most = values.iter().map(|v| v.value.abs() + v.worst).fold(0.0, f64::max) / 448.0;
            let least = values.iter().map(|v| v.value.abs() - v.worst).fold(0.0, f64::max) / 448.0;
            let rms =
                values.iter().max_by(|a, b| a.value.abs().total_cmp(&b.value.abs())).map_or(0.0, |v| v.rms);
            let worst = (most - scale).max(scale - least).max(0.0) / scale;
            // At its floor a scale has no error.
            if most <= scale * 0.999 { (0.0, 0.0) } else { (worst + 2f64.powi(-22), rms / 448.0 / scale) }
        };
        let groups = values.chunks(128).zip(&mut row.scales);
        for (group, (scale, worst, rms)) in groups {
            (*worst, *rms) = match scales {
                Scales::Given(_) => (0.0, 0.0),
                Scales::Row => spread(values, *scale),
                Scales::Group => spread(group, *scale),
            };
        }
        for (column, v) in values.iter().enumerate() {
            let (scale, worst, rms) = row.scales[column / 128];
            let slack = 2f64.powi(-20);
            let ends = [v.value - v.worst, v.value + v.worst]
                .map(|v| [v / (scale * (1.0 + worst)), v / (scale * (1.0 - worst).max(0.1))])
                .concat();
            let low = ends.iter().map(|x| x - x.abs() * slack).fold(f64::INFINITY, f64::min);
            let high = ends.iter().map(|x| x + x.abs() * slack).fold(f64::NEG_INFINITY, f64::max);
            let own = row.units[column];
            let away = [low, high].map(|x| (e4m3::units(e4m3::encode_wide(x)) - own).abs());
            let size = f64::from(away[0].max(away[1])) * e4m3::UNIT * scale * (1.0 + worst);
            if size > 0.0 {
                let rms = v.rms / scale + v.value.abs() / scale * (rms + slack);
                let probability = (rms / (high - low)).min(1.0);
                row.flips.push(Flip { column, size, probability });
                row.moved[column / STEP] += 1;
            }
        }
        row
    }
}

/// Step 2 of the module's derivation: `act(gate) * m(up)`. `act`: the gate's activation, and x.
pub fn gated(
    gate: Estimate,
    up: Estimate,
    act: impl Fn(f64) -> (f64, f64),
    m: impl Fn(f64) -> f64,
) -> Estimate {
    const SLOPE: f64 = 1.13;
    let (activated, exponent) = act(gate.value);
    let factor = m(up.value);
    let value = activated * factor;
    let own = (8.0 + 2.0 * exponent.abs()) * 2f64.powi(-23) * value.abs();
    let slope = SLOPE * factor.abs();
    Estimate {
        value,
        worst: (slope + SLOPE * up.worst) * gate.worst + activated.abs() * up.worst + own,
        rms: (slope * gate.rms).hypot(activated * up.rms) + own / 3.0,
    }
}

/// Outputs and what bounds their errors, summed over the experts of a token.
#[derive(Clone, Debug)]
pub struct Outputs {
    /// The exact outputs.
    pub values: Vec<f64>,
    /// Bounds in which every flip happens.
    worst: Vec<f64>,
    /// Variances of flips, largest flips, and all other bounds.
    variances: Vec<f64>,
    peaks: Vec<f64>,
    others: Vec<f64>,
}

impl Outputs {
    /// Zeros.
    pub fn new(columns: usize) -> Outputs {
        let zeros = vec![0.0; columns];
        Outputs {
            values: zeros.clone(),
            worst: zeros.clone(),
            variances: zeros.clone(),
            peaks: zeros.clone(),
            others: zeros,
        }
    }

    /// Adds `weight` times the product of `matrix` (rows of `x.units.len()` elements, in units of e4m3) with
    /// `x`: steps 5 and 6. `scale(row, column)` is the matrix's, the same for 128 columns; sums are kept for
    /// `slab` of K.
    pub fn add_product(
        &mut self,
        weight: f64,
        matrix: &[i32],
        x: &Quantised,
        scale: impl Fn(usize, usize) -> f64 + Sync,
        slab: usize,
    ) {
        let k = x.units.len();
        let rows = matrix.par_chunks(k).enumerate();
        let products: Vec<_> =
            rows.map(|(n, row)| Product::new(row, x, |column| scale(n, column), slab)).collect();
        for (n, product) in products.into_iter().enumerate() {
            let Product { value, of_flips, variance, peak, of_scales, of_sum, of_sum_likely, rounding } =
                product;
            self.values[n] += weight * value;
            self.worst[n] += weight.abs() * (of_flips + of_scales + of_sum + rounding);
            self.variances[n] += weight * weight * variance;
            self.peaks[n] = self.peaks[n].max(weight.abs() * peak);
            self.others[n] += weight.abs() * (of_scales + of_sum_likely + rounding);
        }
    }

    /// Adds `weight` times exact numbers.
    pub fn add(&mut self, weight: f64, numbers: &[f32]) {
        for (n, &number) in numbers.iter().enumerate() {
            let value = weight * f64::from(number);
            self.values[n] += value;
            // The expert's output is rounded with it: to 16 bits.
            self.worst[n] += 2f64.powi(-8) * value.abs();
            self.others[n] += 2f64.powi(-8) * value.abs();
        }
    }

    /// The bound of output `n`.
    pub fn bound(&self, n: usize) -> f64 {
        let likely = (2.0 * L * self.variances[n]).sqrt() + self.peaks[n] * L / 3.0 + self.others[n];
        // A rounding is relative to a number that has errors itself.
        1.01 * likely.min(self.worst[n])
    }
}

/// An element of a product, and the parts of its error.
struct Product {
    value: f64,
    /// All flips in one direction; their variance; the largest.
    of_flips: f64,
    variance: f64,
    peak: f64,
    of_scales: f64,
    /// The tensor cores' error, at worst and likely.
    of_sum: f64,
    of_sum_likely: f64,
    rounding: f64,
}

impl Product {
    fn new(row: &[i32], x: &Quantised, scale: impl Fn(usize) -> f64, slab: usize) -> Product {
        let k = row.len();
        let mut sum = tensor_core::Sum::default();
        let (mut of_scales, mut magnitude) = (0.0, 0.0);
        for start in (0..k).step_by(slab) {
            let columns = start..k.min(start + slab);
            let steps = start / STEP..columns.end.div_ceil(STEP);
            let moved = (!x.flips.is_empty()).then(|| &x.moved[steps]);
            let part = tensor_core::analyse(&row[columns.clone()], &x.units[columns], moved);
            let (of_x, worst, _) = x.scales[start / 128];
            let scale = of_x * scale(start);
            sum.add(&part, scale);
            of_scales += worst * (scale * part.value).abs();
            magnitude += (scale * part.value).abs();
        }
        let (mut of_flips, mut variance, mut peak) = (0.0, 0.0, 0f64);
        for flip in &x.flips {
            let w2 = f64::from(row[flip.column]).abs() * e4m3::UNIT * scale(flip.column / 128 * 128);
            let size = flip.size * w2;
            of_flips += size;
            variance += flip.probability * size * size;
            peak = peak.max(size);
        }
        Product {
            value: sum.value,
            of_flips,
            variance,
            peak,
            of_scales,
            of_sum: sum.worst,
            of_sum_likely: sum.worst.min((2.0 * L).sqrt() * sum.rms()),
            rounding: 2f64.powi(-8) * sum.value.abs() + 2f64.powi(-20) * magnitude + 1e-30,
        }
    }
}
