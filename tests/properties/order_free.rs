//! The order-free reduction: GEMM 2's sums by token against the definition in f64, the cast behind them, and
//! layers that end so against the oracle and against the deterministic layer.

use crate::common::checks::{out_of_bounds, refusal, relative_l2};
use crate::common::gemm::{
    B_KINDS, HOPPER_A_KINDS, Lists, OnDevice, POISON, Problem, Skew as Counts, Values, draw_counts,
};
use crate::common::grouped::arguments;
use crate::common::layers::{
    Poison, Skew, any_config, any_skew, config, on_device, random_routing, run_routed,
};
use crate::common::oracle::{self, Layer};
use crate::common::{cases, device, families, timing};
use fp8_moe::internals::HopperTile;
use fp8_moe::ops::cast::{Cast, cast};
use fp8_moe::ops::grouped_gemm::{Accumulation, GemmOut, Path, TokenSums, grouped_gemm};
use fp8_moe::ops::quantize::ActivationsMut;
use fp8_moe::{Buffer, Device, Family, MoeConfig, MoeLayer, Quantization, Reduction, Routing, Stream};
use half::{bf16, f16};
use proptest::prelude::*;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The tests' device, where it has the kernels that add by token.
fn hopper() -> Option<Device> {
    Some(device()).filter(|device| device.family() == Family::Sm90a)
}

/// Which slot each row of D is, and what the sums hold before.
struct Tokens {
    tokens: usize,
    top_k: usize,
    sorted_rows: Vec<i32>,
    weights: Option<Vec<f32>>,
    before: Vec<f32>,
}

impl Tokens {
    /// Rows in any order, some tokens without a row, and some rows without a token.
    fn draw(problem: &Problem, top_k: usize, rng: &mut ChaCha8Rng) -> Tokens {
        let tokens = problem.valid_rows().div_ceil(top_k) + rng.random_range(1..4);
        let slots = tokens * top_k;
        let mut sorted_rows: Vec<i32> = (0..slots as i32).collect();
        sorted_rows.shuffle(rng);
        sorted_rows.resize(problem.shape.rows.max(slots), i32::MAX);
        for row in &mut sorted_rows {
            if rng.random_bool(0.05) {
                *row = slots as i32 + rng.random_range(0..3);
            }
        }
        sorted_rows.truncate(problem.shape.rows);
        let weights = rng.random_bool(0.8).then(|| (0..slots).map(|_| rng.random_range(-1.0..1.0)).collect());
        let before = (0..tokens * problem.shape.n).map(|_| rng.random_range(-4.0..4.0)).collect();
        Tokens { tokens, top_k, sorted_rows, weights, before }
    }

    /// By element: the sum, the largest error of the products in it, the magnitudes added up, and how many
    /// terms were added.
    fn expected(&self, problem: &Problem, accumulation: Accumulation) -> Vec<(f64, f64, f64, usize)> {
        let n = problem.shape.n;
        let mut sums: Vec<_> =
            self.before.iter().map(|&x| (f64::from(x), 0.0, f64::from(x).abs(), 0)).collect();
        for (row, d) in problem.expected(accumulation).chunks(n).enumerate() {
            let slot = self.sorted_rows[row] as usize;
            if slot >= self.tokens * self.top_k {
                continue;
            }
            let weight = self.weights.as_ref().map_or(1.0, |weights| f64::from(weights[slot]));
            for (sum, (value, worst)) in sums[slot / self.top_k * n..].iter_mut().zip(d) {
                sum.0 += weight * value;
                sum.1 += weight.abs() * worst;
                sum.2 += (weight * value).abs();
                sum.3 += 1;
            }
        }
        sums
    }

    fn run(&self, problem: &OnDevice, accumulation: Accumulation, blocks: Option<u32>) -> Vec<f32> {
        let (device, stream) = (&problem.device, problem.device.default_stream());
        let mut sums = device.upload(&self.before).unwrap();
        let weights = self.weights.as_ref().map(|weights| device.upload(weights).unwrap());
        let mut lists = self.lists(problem);
        let permutation = lists.permutation(&stream);
        let plan = problem.plan(accumulation, Path::Hopper { blocks });
        let mut workspace = problem.workspace(plan.workspace_bytes());
        let out = GemmOut::TokenSums(TokenSums {
            sums: sums.as_mut_slice(),
            topk_weights: weights.as_ref().map(|weights| weights.as_slice()),
        });
        grouped_gemm(&stream, arguments(problem, &plan, permutation, &mut workspace, out)).unwrap();
        sums.to_vec(&stream).unwrap()
    }

    /// The rows of the problem, with the slot of each.
    fn lists(&self, problem: &OnDevice) -> Lists {
        let sorted_rows = Some(problem.device.upload(&self.sorted_rows).unwrap());
        Lists { tokens: self.tokens, top_k: self.top_k, sorted_rows, ..problem.lists() }
    }
}

/// What the tensor cores may lose, and half a unit in the last place for every addition to a sum.
#[track_caller]
fn assert_sums(problem: &Problem, tokens: &Tokens, accumulation: Accumulation, sums: &[f32]) {
    let n = problem.shape.n;
    let expected = tokens.expected(problem, accumulation);
    for (i, (&sum, (value, worst, added, terms))) in sums.iter().zip(expected).enumerate() {
        let bound = worst + 2f64.powi(-22) * added;
        let error = (f64::from(sum) - value).abs();
        assert!(error <= bound, "sums[{}, {}] = {sum}: {value} is expected, within {bound}", i / n, i % n);
        assert!(terms > 0 || sum == tokens.before[i], "sums[{}] changed, but no row is its", i / n);
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn sums_equal_the_definition(
        seed in any::<u64>(),
        experts in 1usize..=9,
        rows in 0usize..200,
        spare_rows in 0usize..20,
        skew in prop::sample::select(&[Counts::Uniform, Counts::Sparse, Counts::One][..]),
        n in (1usize..=70).prop_map(|n| n * 8),
        k in (1usize..=34).prop_map(|k| k * 16),
        top_k in 1usize..=9,
        block_m in prop::sample::select(HopperTile::ALL.map(HopperTile::block_m).to_vec()),
        kinds in (prop::sample::select(&HOPPER_A_KINDS[..]), prop::sample::select(&B_KINDS[..])),
        promoted in any::<bool>(),
        blocks in prop::option::of(1u32..9),
    ) {
        let Some(device) = hopper() else { return Ok(()) };
        timing(seed);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let counts = draw_counts(skew, experts, rows, &mut rng);
        let problem = Problem::draw(&counts, spare_rows, (n, k), kinds, Values::Uniform, &mut rng);
        let tokens = Tokens::draw(&problem, top_k, &mut rng);
        let accumulation = if promoted { Accumulation::Promoted } else { Accumulation::Fast };
        let sums = tokens.run(&OnDevice::new(&device, &problem, block_m), accumulation, blocks);
        assert_sums(&problem, &tokens, accumulation, &sums);
    }
}

/// Every tile with every pair of scales, items cut among more blocks than there are.
#[test]
fn every_tile_and_scale() {
    let Some(device) = hopper() else { return };
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for block_m in HopperTile::ALL.map(HopperTile::block_m) {
        for a_kind in HOPPER_A_KINDS {
            for b_kind in B_KINDS {
                let kinds = (a_kind, b_kind);
                let problem = Problem::draw(&[5, 0, 70, 1], 4, (200, 304), kinds, Values::Uniform, &mut rng);
                let tokens = Tokens::draw(&problem, 3, &mut rng);
                let problem_on_device = OnDevice::new(&device, &problem, block_m);
                let sums = tokens.run(&problem_on_device, Accumulation::Fast, Some(5));
                assert_sums(&problem, &tokens, Accumulation::Fast, &sums);
            }
        }
    }
}

/// The same layer with an order-free reduction.
fn order_free(layer: &Layer) -> MoeConfig {
    layer.config.to_builder().reduction(Reduction::OrderFree).build().unwrap()
}

proptest! {
    #![proptest_config(cases(10))]

    #[test]
    fn layers_agree_with_the_oracle_and_the_deterministic_layer(
        config in any_config(), tokens in 1usize..=120, skew in any_skew(), seed in any::<u64>(),
        sigmoid in prop::bool::weighted(0.2),
    ) {
        let Some(device) = hopper() else { return Ok(()) };
        timing(seed);
        let stream = device.default_stream();
        let own = (config.routing, config.top_k);
        let (routing, top_k) = if sigmoid { (Routing::SigmoidInput, 1) } else { own };
        let config = config.to_builder().routing(routing).top_k(top_k).build().unwrap();
        let mut layer = Layer::random(config, seed);
        if seed % 3 == 0 {
            layer.draw_biases(seed);
        }
        let (h, k) = (layer.config.hidden_size, layer.config.top_k);
        let hidden = oracle::hidden_states(tokens * h, seed ^ 1);
        let (ids, weights) = random_routing(&layer.config, tokens, skew, seed ^ 2);
        let free = order_free(&layer);
        let free = MoeLayer::new(&device, &free, &layer.weights(&free)).unwrap();
        // Sums that were not cleared would be NaN.
        let ours: Vec<f32> = run_routed(&stream, &free, &hidden, &ids, &weights, Poison::Byte(0xff)).unwrap();

        let expected = layer.forward(&hidden, &ids, &weights);
        prop_assert_eq!(out_of_bounds(&ours, &expected), None, "against the oracle");
        let same: Vec<f32> =
            run_routed(&stream, &on_device(&device, &layer), &hidden, &ids, &weights, Poison::Fresh).unwrap();
        prop_assert_eq!(out_of_bounds(&same, &expected), None, "of the deterministic layer");
        for (token, ids) in ids.chunks(k).enumerate() {
            if ids.iter().all(|id| !(0..layer.config.experts as i32).contains(id)) {
                let zero = ours[token * h..(token + 1) * h].iter().all(|&x| x.to_bits() == 0);
                prop_assert!(zero, "token {token}");
            }
        }

        // Outputs of 16 bits are one rounding away.
        let narrow: Vec<bf16> =
            run_routed(&stream, &free, &hidden, &ids, &weights, Poison::Byte(0xff)).unwrap();
        let distance = relative_l2(&narrow.into_iter().map(bf16::to_f32).collect::<Vec<_>>(), &ours);
        prop_assert!(distance < 2f64.powi(-8), "distance {distance} of bf16");
        let narrow: Vec<f16> =
            run_routed(&stream, &free, &hidden, &ids, &weights, Poison::Byte(0xff)).unwrap();
        let distance = relative_l2(&narrow.into_iter().map(f16::to_f32).collect::<Vec<_>>(), &ours);
        prop_assert!(distance < 2f64.powi(-11), "distance {distance} of f16");
    }
}

/// An order-free layer of few columns, in three launches' worth of work.
fn small(quantization: Quantization) -> (Layer, MoeConfig) {
    let routing = Routing::Softmax { renormalize: true };
    let layer = Layer::random(config(quantization, routing, [8, 3, 144, 80]), 3);
    let free = order_free(&layer);
    (layer, free)
}

/// Each replay begins with sums of 0, whatever the last one left there.
#[test]
fn a_graph_replays() {
    let Some(device) = hopper() else { return };
    let stream = Stream::new(&device).unwrap();
    for quantization in [Quantization::TensorStatic, Quantization::ChannelToken, Quantization::Block128] {
        let (layer, free) = small(quantization);
        let tokens = 21;
        let free = MoeLayer::new(&device, &free, &layer.weights(&free)).unwrap();
        let mut workspace = free.workspace(tokens).unwrap();
        let hidden = oracle::hidden_states(tokens * 144, 1);
        let (ids, weights) = random_routing(&layer.config, tokens, Skew::Uniform, 5);
        let expected = layer.forward(&hidden, &ids, &weights);
        let (hidden, ids, weights) =
            (device.upload(&hidden).unwrap(), device.upload(&ids).unwrap(), device.upload(&weights).unwrap());
        let mut out = device.uninit::<f32>(tokens * 144).unwrap();
        let graph = stream
            .capture(|stream| free.forward_routed(stream, &hidden, &ids, &weights, &mut workspace, &mut out))
            .unwrap();
        assert!(graph.kernels() <= 5, "{} kernels", graph.kernels());
        for seed in 0..3 {
            timing(seed);
            graph.launch(&stream).unwrap();
            let found = out_of_bounds(&out.to_vec(&stream).unwrap(), &expected);
            assert_eq!(found, None, "{quantization}, replay {seed}");
        }
    }
}

/// From ids to an output of 16 bits: permute, quantise, GEMM 1 with the activation, GEMM 2, cast; an output
/// in f32 is not cast.
#[test]
fn kernels_of_a_layer() {
    let Some(device) = hopper() else { return };
    let stream = Stream::new(&device).unwrap();
    let (layer, free) = small(Quantization::Block128);
    let free = MoeLayer::new(&device, &free, &layer.weights(&free)).unwrap();
    let mut workspace = free.workspace(2).unwrap();
    let hidden = device.zeros::<bf16>(2 * 144).unwrap();
    let (ids, weights) = (device.zeros::<i32>(6).unwrap(), device.zeros::<f32>(6).unwrap());
    let mut narrow = device.zeros::<bf16>(2 * 144).unwrap();
    let graph = stream
        .capture(|stream| free.forward_routed(stream, &hidden, &ids, &weights, &mut workspace, &mut narrow))
        .unwrap();
    assert_eq!(graph.kernels(), 5);
    let mut wide = device.zeros::<f32>(2 * 144).unwrap();
    let graph = stream
        .capture(|stream| free.forward_routed(stream, &hidden, &ids, &weights, &mut workspace, &mut wide))
        .unwrap();
    assert_eq!(graph.kernels(), 4);
}

#[test]
fn casts_round_to_nearest_even() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for device in families() {
        let stream = device.default_stream();
        for (rows, columns) in [(0, 8), (1, 1), (5, 300), (9, 264), (3, 7)] {
            let mut x: Vec<f32> = (0..rows * columns)
                .map(|_| f32::from_bits(rng.random()))
                .map(|x| if x.is_nan() { 0.1 } else { x })
                .collect();
            // Halfway between neighbours of either type.
            x.iter_mut()
                .step_by(3)
                .for_each(|x| *x = 1.0 + f32::from(rng.random::<u16>() >> 1) * 2f32.powi(-11));
            let from = device.upload(&x).unwrap();
            let mut out = device.uninit::<u16>(x.len()).unwrap();
            let mut run = |to: fn(&mut Buffer<u16>) -> ActivationsMut<'_>| {
                out.fill_bytes(POISON, &stream).unwrap();
                let args = Cast { rows, columns, x: from.as_slice(), out: to(&mut out), adds: false };
                cast(&stream, args).unwrap();
                out.to_vec(&stream).unwrap()
            };
            let bits = run(|out| ActivationsMut::Bf16(out.as_mut_slice().cast()));
            let expected: Vec<u16> = x.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
            assert_eq!(bits, expected, "bf16 [{rows}, {columns}]");
            let bits = run(|out| ActivationsMut::F16(out.as_mut_slice().cast()));
            let expected: Vec<u16> = x.iter().map(|&x| f16::from_f32(x).to_bits()).collect();
            assert_eq!(bits, expected, "f16 [{rows}, {columns}]");
        }
    }
}

#[test]
fn layers_are_refused_without_the_kernels() {
    let (layer, free) = small(Quantization::Block128);
    for device in families() {
        let portable = free.to_builder().path(Path::Portable { blocks: None }).build().unwrap();
        assert_eq!(
            refusal(MoeLayer::new(&device, &portable, &layer.weights(&portable))),
            "MoeConfig: reduction = OrderFree: must be Deterministic for the portable kernels"
        );
        if device.family() != Family::Sm90a {
            assert_eq!(
                refusal(MoeLayer::new(&device, &free, &layer.weights(&free))),
                format!(
                    "MoeConfig: reduction = OrderFree: must be Deterministic for the kernels of {}",
                    device.family()
                )
            );
        }
    }
}

#[test]
fn refusals_name_argument_value_and_rule() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let kinds = (HOPPER_A_KINDS[0], B_KINDS[0]);
    let problem = Problem::draw(&[5, 3], 0, (24, 32), kinds, Values::Uniform, &mut rng);
    let (device, stream) = (device(), device().default_stream());
    let on_device = OnDevice::new(&device, &problem, 16);
    let mut sums = device.zeros::<f32>(4 * 24).unwrap();
    let weights = device.zeros::<f32>(8).unwrap();
    let mut refused = |[len, slots]: [usize; 2], tokens, sorted_rows: bool, path| {
        let out = GemmOut::TokenSums(TokenSums {
            sums: sums.slice_mut(..len),
            topk_weights: Some(weights.slice(..slots)),
        });
        let plan = on_device.plan(Accumulation::Fast, path);
        let mut workspace = on_device.workspace(plan.workspace_bytes());
        let sorted_rows = sorted_rows.then(|| device.upload(&[-1i32; 8]).unwrap());
        let mut lists = Lists { tokens, top_k: 2, sorted_rows, ..on_device.lists() };
        let permutation = lists.permutation(&stream);
        refusal(grouped_gemm(&stream, arguments(&on_device, &plan, permutation, &mut workspace, out)))
    };
    let all = [4 * 24, 8];
    for (lengths, tokens, sorted_rows, message) in [
        (all, 5, true, "out.sums = 96 elements: must have at least 120 elements"),
        ([96, 7], 4, true, "out.topk_weights = 7 elements: must have at least 8 elements"),
        (all, 4, false, "permutation = without `sorted_rows`: must have `sorted_rows` for this"),
    ] {
        assert_eq!(refused(lengths, tokens, sorted_rows, Path::Auto), format!("grouped_gemm: {message}"));
    }
    assert_eq!(
        refused(all, 4, true, Path::Portable { blocks: None }),
        "grouped_gemm: out = TokenSums: must be D itself for the portable kernels"
    );
    let mut out = device.zeros::<f32>(8).unwrap();
    let args = Cast {
        rows: 1,
        columns: 8,
        x: weights.as_slice(),
        out: ActivationsMut::F32(out.as_mut_slice()),
        adds: false,
    };
    assert_eq!(refusal(cast(&stream, args)), "cast: out = f32: must be bf16 or f16");
    let mut out = device.zeros::<bf16>(8).unwrap();
    let args = Cast {
        rows: 2,
        columns: 8,
        x: weights.as_slice(),
        out: ActivationsMut::Bf16(out.as_mut_slice()),
        adds: false,
    };
    assert_eq!(refusal(cast(&stream, args)), "cast: x = 8 elements: must have at least 16 elements");
}
