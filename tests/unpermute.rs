//! `unpermute` against its definition: bit for bit with fused multiply-adds in slot order, and near the sum in f64.

mod common;

use common::gemm::Lists;
use fp8_moe::ops::quantize::{Activations, ActivationsMut};
use fp8_moe::ops::unpermute::{Unpermute, unpermute, unpermute_with_settled_routing};
use fp8_moe::{Buffer, Device, DeviceSpec, Error, Family};
use half::{bf16, f16};
use proptest::prelude::*;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The type of the expert outputs, and whether the result is f32 instead.
#[derive(Clone, Copy, Debug)]
struct Types {
    half: bool,
    wide: bool,
}

impl Types {
    const ALL: [Types; 4] = [
        Types { half: false, wide: false },
        Types { half: false, wide: true },
        Types { half: true, wide: false },
        Types { half: true, wide: true },
    ];

    fn round_y(self, x: f32) -> f32 {
        if self.half { f16::from_f32(x).to_f32() } else { bf16::from_f32(x).to_f32() }
    }

    fn round_out(self, x: f32) -> f32 {
        if self.wide { x } else { self.round_y(x) }
    }

    /// Half a unit in the last place of the result, relative.
    fn rounding(self) -> f64 {
        match (self.wide, self.half) {
            (true, _) => 2f64.powi(-24),
            (false, true) => 2f64.powi(-11),
            (false, false) => 2f64.powi(-8),
        }
    }
}

/// Sizes of a reduction: T, k, H, and the rows of `y`.
#[derive(Clone, Copy, Debug)]
struct Shape {
    tokens: usize,
    top_k: usize,
    hidden: usize,
    capacity: usize,
}

#[derive(Clone, Debug)]
struct Case {
    types: Types,
    shape: Shape,
    valid_rows: usize,
    /// Valid rows alone: what lies behind them is never initialised.
    y: Vec<f32>,
    inverse: Vec<i32>,
    weights: Option<Vec<f32>>,
}

impl Case {
    fn draw(
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
        let padding = rng.random_range(0..5);
        for destination in &mut order {
            if *destination as usize >= valid_rows / 2 {
                *destination += padding;
            }
        }
        valid_rows += padding as usize;
        let capacity = rows + padding as usize;
        let y = (0..valid_rows * hidden).map(|_| types.round_y(rng.random_range(-2.0..2.0))).collect();
        let weights = rng.random_bool(0.8).then(|| (0..rows).map(|_| rng.random()).collect());
        let shape = Shape { tokens, top_k, hidden, capacity };
        Case { types, shape, valid_rows, y, inverse: order, weights }
    }

    /// The result, and the sum in f64 with the sum of magnitudes.
    fn expected(&self) -> Vec<(f32, f64, f64)> {
        let Shape { tokens, top_k, hidden, .. } = self.shape;
        let mut out = vec![];
        for token in 0..tokens {
            for column in 0..hidden {
                let (mut sum, mut exact, mut magnitude) = (0f32, 0f64, 0f64);
                for r in token * top_k..(token + 1) * top_k {
                    let row = self.inverse[r] as usize;
                    if row < self.valid_rows {
                        let (weight, y) =
                            (self.weights.as_ref().map_or(1.0, |w| w[r]), self.y[row * hidden + column]);
                        sum = weight.mul_add(y, sum);
                        exact += f64::from(weight) * f64::from(y);
                        magnitude += (f64::from(weight) * f64::from(y)).abs();
                    }
                }
                out.push((self.types.round_out(sum), exact, magnitude));
            }
        }
        out
    }

    /// `settled`: the routing counts as complete since before the preceding kernel.
    fn run(&self, device: &Device, poison: u8, settled: bool) -> Vec<f32> {
        if self.types.half {
            let y: Vec<f16> = self.y.iter().map(|&y| f16::from_f32(y)).collect();
            let y = self.upload(device, &y);
            if self.types.wide {
                self.run_on::<f32>(device, (&y).into(), poison, settled)
            } else {
                self.run_on::<f16>(device, (&y).into(), poison, settled)
                    .into_iter()
                    .map(f16::to_f32)
                    .collect()
            }
        } else {
            let y: Vec<bf16> = self.y.iter().map(|&y| bf16::from_f32(y)).collect();
            let y = self.upload(device, &y);
            if self.types.wide {
                self.run_on::<f32>(device, (&y).into(), poison, settled)
            } else {
                self.run_on::<bf16>(device, (&y).into(), poison, settled)
                    .into_iter()
                    .map(bf16::to_f32)
                    .collect()
            }
        }
    }

    /// `y` on the device; rows that are not valid stay uninitialised, which the emulated device reports if they are read.
    fn upload<T: bytemuck::Pod>(&self, device: &Device, y: &[T]) -> Buffer<T> {
        let mut buffer = device.uninit(self.shape.capacity * self.shape.hidden).unwrap();
        buffer.slice_mut(..y.len()).copy_from(y, &device.default_stream()).unwrap();
        buffer
    }

    fn run_on<T: bytemuck::Pod>(
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
            hidden: self.shape.hidden,
            out: (&mut out).into(),
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
    fn check(&self, device: &Device, poison: u8) {
        let actual = self.run(device, poison, false);
        let settled = self.run(device, poison, true);
        assert!(
            bits(&settled) == bits(&actual),
            "{:?} {:?}: a settled routing differs",
            self.types,
            self.shape
        );
        let expected = self.expected();
        assert_eq!(actual.len(), expected.len());
        for (i, (actual, (expected, exact, magnitude))) in actual.into_iter().zip(expected).enumerate() {
            let what = format!("{:?} {:?}: element {i}", self.types, self.shape);
            assert!(actual == expected, "{what} is {actual:e}, not {expected:e}");
            let bound = exact.abs() * self.types.rounding() + magnitude * 2f64.powi(-22) + 2f64.powi(-25);
            assert!((f64::from(actual) - exact).abs() <= bound, "{what} is {actual:e}, far from {exact:e}");
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn acceptance_grid() {
    let device = common::device();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for tokens in [1, 33] {
        for hidden in [2048, 7168] {
            for top_k in [2, 6, 8] {
                for ranks in [1, 4, 16] {
                    let types = Types::ALL[(top_k + ranks) % 4];
                    Case::draw(types, tokens, top_k, hidden, 1.0 / ranks as f64, &mut rng)
                        .check(&device, 0xff);
                }
            }
        }
    }
}

#[test]
fn edge_shapes() {
    let device = common::device();
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for types in Types::ALL {
        // No tokens, one column, tails, more slots than are in flight, more tokens than the grid has warps.
        for (tokens, top_k, hidden) in
            [(0, 2, 8), (1, 1, 1), (3, 5, 17), (2, 45, 256), (5, 4, 1025), (9000, 2, 3)]
        {
            Case::draw(types, tokens, top_k, hidden, 0.7, &mut rng).check(&device, 0xff);
        }
    }
}

/// The kernels of the older family, which newer GPUs run as well.
fn portable() -> Device {
    common::device();
    Device::open_family(DeviceSpec::Auto, Family::Sm89).unwrap()
}

#[test]
fn older_family() {
    let device = portable();
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for types in Types::ALL {
        Case::draw(types, 9, 6, 264, 0.7, &mut rng).check(&device, 0xff);
        Case::draw(types, 9, 2, 77, 0.7, &mut rng).check(&device, 0xff);
    }
}

#[test]
fn tokens_without_a_local_expert_give_zero() {
    let device = common::device();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for types in Types::ALL {
        let mut case = Case::draw(types, 7, 3, 40, 0.0, &mut rng);
        // Destinations below 0 are as invalid as those past the last.
        case.inverse = vec![-1; 21];
        case.inverse[4] = i32::MIN;
        case.inverse[5] = i32::MAX;
        assert!(case.run(&device, 0xff, false).iter().all(|&x| x.to_bits() == 0));
    }
}

#[test]
fn nan_and_infinity_go_through() {
    let device = common::device();
    let shape = Shape { tokens: 1, top_k: 2, hidden: 3, capacity: 2 };
    let y = vec![f32::NAN, f32::INFINITY, f32::INFINITY, 1.0, 1.0, f32::NEG_INFINITY];
    let types = Types { half: false, wide: false };
    let case = Case { types, shape, valid_rows: 2, y, inverse: vec![0, 1], weights: Some(vec![0.5, 0.5]) };
    let out = case.run(&device, 0, true);
    assert!(out[0].is_nan() && out[1] == f32::INFINITY && out[2].is_nan(), "{out:?}");
}

proptest! {
    #![proptest_config(common::cases(32))]

    #[test]
    fn anything(
        seed: u64,
        tokens in 1..30_usize,
        top_k in 1..12_usize,
        hidden in prop_oneof![1..70_usize, 1..600_usize, (1..80_usize).prop_map(|n| n * 8)],
        types in prop::sample::select(&Types::ALL),
        keep in prop::sample::select(&[0.0, 0.1, 0.7, 1.0]),
        poison: u8,
    ) {
        common::timing(seed);
        let device = common::device();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Case::draw(types, tokens, top_k, hidden, keep, &mut rng).check(&device, poison);
    }
}

#[test]
fn refusals_name_argument_value_and_rule() {
    let device = common::device();
    let stream = device.default_stream();
    let y: Buffer<bf16> = device.zeros(32).unwrap();
    let offsets = [0, 2];
    let refusal = |shape: Shape, inverse: bool, out: ActivationsMut<'_>| {
        let mut lists = Lists {
            tokens: shape.tokens,
            top_k: shape.top_k,
            inverse: inverse.then(|| device.upload(&vec![-1; shape.tokens * shape.top_k]).unwrap()),
            ..Lists::of_offsets(&device, &offsets, shape.capacity)
        };
        let permutation = lists.permutation(&stream);
        let (permutation, hidden) = (&permutation, shape.hidden);
        let args = Unpermute { y: (&y).into(), permutation, topk_weights: None, hidden, out };
        match unpermute(&stream, args) {
            Err(error @ Error::Argument { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let shape = Shape { tokens: 2, top_k: 2, hidden: 8, capacity: 4 };
    let mut out: Buffer<bf16> = device.zeros(16).unwrap();
    let mut narrow: Buffer<f16> = device.zeros(16).unwrap();
    let message = refusal(Shape { hidden: 0, ..shape }, true, (&mut out).into());
    assert_eq!(message, "unpermute: hidden = 0: must be in 1..=16776960");
    let message = refusal(Shape { capacity: 5, ..shape }, true, (&mut out).into());
    assert_eq!(message, "unpermute: y = 32 elements: must have at least 40 elements");
    let message = refusal(Shape { tokens: 3, ..shape }, true, (&mut out).into());
    assert_eq!(message, "unpermute: out = 16 elements: must have at least 24 elements");
    let message = refusal(shape, false, (&mut out).into());
    assert_eq!(message, "unpermute: permutation = without `inverse`: must have `inverse` for this");
    let message = refusal(shape, true, (&mut narrow).into());
    let rule = "must be bf16 from bf16, f16 from f16, or f32 from either";
    assert_eq!(message, format!("unpermute: out = f16 from bf16: {rule}"));
}
