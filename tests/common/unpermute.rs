//! `unpermute` against its definition: bit for bit with fused multiply-adds in slot order, and near the sum
//! in f64.

use fp8_moe::ops::permute::PermuteShape;
use fp8_moe::ops::quantize::{Activations, ActivationsMut};
use fp8_moe::ops::unpermute::{Unpermute, unpermute, unpermute_with_settled_routing};
use fp8_moe::{Buffer, Device};
use half::{bf16, f16};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::gemm::Lists;
use super::permute::{self, Skew, draw_ids, rank_map};

/// A type of floating-point numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Float {
    Bf16,
    F16,
    F32,
}

impl Float {
    pub fn round(self, x: f32) -> f32 {
        match self {
            Float::Bf16 => bf16::from_f32(x).to_f32(),
            Float::F16 => f16::from_f32(x).to_f32(),
            Float::F32 => x,
        }
    }
}

/// The types of the expert outputs and of the result.
#[derive(Clone, Copy, Debug)]
pub struct Types {
    pub y: Float,
    pub out: Float,
}

impl Types {
    pub const ALL: [Types; 5] = [
        Types { y: Float::Bf16, out: Float::Bf16 },
        Types { y: Float::Bf16, out: Float::F16 },
        Types { y: Float::Bf16, out: Float::F32 },
        Types { y: Float::F16, out: Float::F16 },
        Types { y: Float::F16, out: Float::F32 },
    ];

    /// Half a unit in the last place of the result, relative.
    pub fn rounding(self) -> f64 {
        match self.out {
            Float::F32 => 2f64.powi(-24),
            Float::F16 => 2f64.powi(-11),
            Float::Bf16 => 2f64.powi(-8),
        }
    }
}

/// Sizes of a reduction: T, k, H, and the rows of `y`.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub tokens: usize,
    pub top_k: usize,
    pub hidden: usize,
    pub capacity: usize,
}

/// Where rows of `y` may begin among the numbers that they are drawn from.
const POOL: usize = 1 << 16;

#[derive(Clone, Debug)]
pub struct Case {
    pub types: Types,
    pub shape: Shape,
    pub valid_rows: usize,
    /// Valid rows alone: what lies behind them is never initialised.
    pub y: Vec<f32>,
    pub inverse: Vec<i32>,
    pub weights: Option<Vec<f32>>,
}

impl Case {
    pub fn draw(
        types: Types,
        tokens: usize,
        top_k: usize,
        hidden: usize,
        keep: f64,
        rng: &mut ChaCha8Rng,
    ) -> Case {
        let rows = tokens * top_k;
        let mut order: Vec<i32> = (0..rows as i32).collect();
        order.shuffle(rng);
        let mut valid_rows = order.iter().filter(|_| rng.random_bool(keep)).count();
        // Padding moves some destinations up; their old places are valid rows that no token asks for.
        let padding = if rows == 0 { 0 } else { rng.random_range(0..5) };
        for destination in &mut order {
            if *destination as usize >= valid_rows / 2 {
                *destination += padding;
            }
        }
        valid_rows += padding as usize;
        let shape = Shape { tokens, top_k, hidden, capacity: rows + padding as usize };
        Case::at(types, shape, valid_rows, order, rng)
    }

    /// Behind a sort of k distinct experts for each token, for one of so many ranks; the rows that pad an
    /// expert's region are valid memory that no token asks for.
    pub fn permuted(
        types: Types,
        sort: PermuteShape,
        hidden: usize,
        ranks: usize,
        rng: &mut ChaCha8Rng,
    ) -> Case {
        let PermuteShape { tokens, top_k, experts, .. } = sort;
        let (map, local_experts) = rank_map(experts, rng.random_range(0..ranks), ranks);
        let sort = PermuteShape { local_experts, ..sort };
        let sorted =
            permute::oracle(sort, &draw_ids(Skew::Distinct, tokens, top_k, experts, rng), Some(&map));
        let shape = Shape { tokens, top_k, hidden, capacity: sort.capacity() };
        Case::at(types, shape, sorted.expert_offsets[local_experts] as usize, sorted.inverse, rng)
    }

    /// Random rows, each slot's at its place of `inverse`.
    fn at(types: Types, shape: Shape, valid_rows: usize, inverse: Vec<i32>, rng: &mut ChaCha8Rng) -> Case {
        let Shape { tokens, top_k, hidden, .. } = shape;
        // A row is a random part of so many random numbers: at full size y has a hundred million.
        let pool: Vec<f32> = (0..POOL + hidden).map(|_| types.y.round(rng.random_range(-2.0..2.0))).collect();
        let starts: Vec<usize> = (0..valid_rows).map(|_| rng.random_range(0..POOL)).collect();
        let y =
            starts.par_iter().flat_map_iter(|&start| pool[start..start + hidden].iter().copied()).collect();
        let weights = rng.random_bool(0.8).then(|| (0..tokens * top_k).map(|_| rng.random()).collect());
        Case { types, shape, valid_rows, y, inverse, weights }
    }

    /// The result, and the sum in f64 with the sum of magnitudes: every element, a token at a time.
    pub fn expected(&self) -> Vec<(f32, f64, f64)> {
        let Shape { tokens, top_k, hidden, .. } = self.shape;
        let of_token = |token: usize| {
            let mut sums = vec![(0f32, 0f64, 0f64); hidden];
            for r in token * top_k..(token + 1) * top_k {
                let row = self.inverse[r] as usize;
                if row >= self.valid_rows {
                    continue;
                }
                let weight = self.weights.as_ref().map_or(1.0, |weights| weights[r]);
                let y = &self.y[row * hidden..(row + 1) * hidden];
                for ((sum, exact, magnitude), &y) in sums.iter_mut().zip(y) {
                    let product = f64::from(weight) * f64::from(y);
                    *sum = weight.mul_add(y, *sum);
                    *exact += product;
                    *magnitude += product.abs();
                }
            }
            sums.into_iter().map(|(sum, exact, magnitude)| (self.types.out.round(sum), exact, magnitude))
        };
        (0..tokens).into_par_iter().flat_map_iter(of_token).collect()
    }

    /// `settled`: the routing counts as complete since before the preceding kernel.
    pub fn run(&self, device: &Device, poison: u8, settled: bool) -> Vec<f32> {
        let [out] = self.runs(device, poison, [settled]);
        out
    }

    /// Runs on the same `y`, one for each element of `settled`.
    fn runs<const N: usize>(&self, device: &Device, poison: u8, settled: [bool; N]) -> [Vec<f32>; N] {
        if self.types.y == Float::F16 {
            let y: Vec<f16> = self.y.par_iter().map(|&y| f16::from_f32(y)).collect();
            let y = self.upload(device, &y);
            settled.map(|settled| self.run_into(device, (&y).into(), poison, settled))
        } else {
            let y: Vec<bf16> = self.y.par_iter().map(|&y| bf16::from_f32(y)).collect();
            let y = self.upload(device, &y);
            settled.map(|settled| self.run_into(device, (&y).into(), poison, settled))
        }
    }

    /// As [`run`](Self::run) on a `y` that is on the device.
    fn run_into(&self, device: &Device, y: Activations<'_>, poison: u8, settled: bool) -> Vec<f32> {
        match self.types.out {
            Float::F32 => self.run_on::<f32>(device, y, poison, settled),
            Float::F16 => {
                self.run_on::<f16>(device, y, poison, settled).into_par_iter().map(f16::to_f32).collect()
            }
            Float::Bf16 => {
                self.run_on::<bf16>(device, y, poison, settled).into_par_iter().map(bf16::to_f32).collect()
            }
        }
    }

    /// `y` on the device; rows that are not valid stay uninitialised, which the emulated device reports if
    /// they are read.
    pub fn upload<T: bytemuck::Pod>(&self, device: &Device, y: &[T]) -> Buffer<T> {
        let mut buffer = device.uninit(self.shape.capacity * self.shape.hidden).unwrap();
        buffer.slice_mut(..y.len()).copy_from(y, &device.default_stream()).unwrap();
        buffer
    }

    pub fn run_on<T: bytemuck::Pod>(
        &self,
        device: &Device,
        y: Activations<'_>,
        poison: u8,
        settled: bool,
    ) -> Vec<T>
    where
        for<'a> ActivationsMut<'a>: From<&'a mut Buffer<T>>,
    {
        let stream = device.default_stream();
        let mut out: Buffer<T> = device.uninit(self.shape.tokens * self.shape.hidden).unwrap();
        out.fill_bytes(poison, &stream).unwrap();
        let mut lists = Lists {
            tokens: self.shape.tokens,
            top_k: self.shape.top_k,
            inverse: Some(device.upload(&self.inverse).unwrap()),
            ..Lists::of_offsets(device, &[0, self.valid_rows as i64], self.shape.capacity)
        };
        let permutation = lists.permutation(&stream);
        let weights = self.weights.as_ref().map(|weights| device.upload(weights).unwrap());
        let args = Unpermute {
            y,
            permutation: &permutation,
            topk_weights: weights.as_ref().map(|weights| weights.as_slice()),
            addend: None,
            hidden: self.shape.hidden,
            out: (&mut out).into(),
            adds: false,
        };
        let enqueued = if settled {
            // SAFETY: a copy from the host precedes; everything before it has ended.
            unsafe { unpermute_with_settled_routing(&stream, args) }
        } else {
            unpermute(&stream, args)
        };
        enqueued.unwrap();
        out.to_vec(&stream).unwrap()
    }

    #[track_caller]
    pub fn check(&self, device: &Device, poison: u8) {
        let [actual, settled] = self.runs(device, poison, [false, true]);
        assert!(
            bits(&settled) == bits(&actual),
            "{:?} {:?}: a settled routing differs",
            self.types,
            self.shape
        );
        let expected = self.expected();
        assert_eq!(actual.len(), expected.len());
        actual.into_par_iter().zip(expected).enumerate().for_each(
            |(i, (actual, (expected, exact, magnitude)))| {
                let Case { types, shape, .. } = self;
                assert!(
                    actual == expected,
                    "{types:?} {shape:?}: element {i} is {actual:e}, not {expected:e}"
                );
                let bound = exact.abs() * types.rounding() + magnitude * 2f64.powi(-22) + 2f64.powi(-25);
                let near = (f64::from(actual) - exact).abs() <= bound;
                assert!(near, "{types:?} {shape:?}: element {i} is {actual:e}, far from {exact:e}");
            },
        );
    }
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
