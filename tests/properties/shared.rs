//! Shared experts: as more experts of the grouped GEMMs they give the bits of a layer that has them as
//! experts; beside them, the sum of both, in bf16 within the bound of their own sums in f64.

use crate::common::activation;
use crate::common::layers::{
    Poison, Skew, any_quantization, config, drawn_device, random_routing, run_own, run_routed,
};
use crate::common::oracle::{Layer, hidden_states};
use crate::common::{cases, families};
use fp8_moe::ops::grouped_gemm::Path;
use fp8_moe::ops::permute::ScaleLayout;
use fp8_moe::{
    E4m3, Error, ExpertWeights, Forward, Hidden, MoeConfig, MoeLayer, MoeWeights, Quantization,
    RouterWeights, Routing, SharedExpert, SharedKind, SharedMatrices, SharedWeights,
};
use half::bf16;
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

const SOFTMAX: Routing = Routing::Softmax { renormalize: true };

/// Random numbers of deviation 1 / sqrt(columns), in bf16 or, with more bits than that, in f32.
fn numbers(rows: usize, columns: usize, exact: bool, source: &mut StdRng) -> RouterWeights<'static> {
    let unit = (3.0 / columns as f32).sqrt();
    let values = (0..rows * columns).map(|_| source.random_range(-unit..unit));
    match exact {
        true => RouterWeights::Bf16(values.map(bf16::from_f32).collect()),
        false => RouterWeights::F32(values.collect()),
    }
}

fn floats(weights: &RouterWeights<'_>) -> Vec<f64> {
    match weights {
        RouterWeights::Bf16(weights) => weights.iter().map(|w| w.to_f64()).collect(),
        RouterWeights::F32(weights) => weights.iter().map(|&w| w.into()).collect(),
        other => panic!("numbers makes no {other:?}"),
    }
}

fn dot(a: &[f64], b: &[f64]) -> (f64, f64) {
    a.iter().zip(b).fold((0.0, 0.0), |(sum, magnitude), (a, b)| (sum + a * b, magnitude + (a * b).abs()))
}

fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn shared_weights<'a>(matrices: SharedMatrices<'a>, gate: &Option<RouterWeights<'a>>) -> SharedWeights<'a> {
    let weights = SharedWeights::new(matrices);
    match gate {
        Some(gate) => weights.gate(gate.clone()),
        None => weights,
    }
}

/// What `of` gives of each, one behind the other.
fn all<T: Copy>(
    experts: &[ExpertWeights<'_>],
    of: impl for<'b> Fn(&'b ExpertWeights<'_>) -> &'b [T],
) -> Vec<T> {
    experts.iter().flat_map(|expert| of(expert).to_vec()).collect()
}

/// Several experts as one, whose intermediate is theirs side by side; scales by channel.
fn joined(experts: &[ExpertWeights<'_>], h: usize, i: usize) -> ExpertWeights<'static> {
    let down: Vec<_> =
        (0..h).flat_map(|n| experts.iter().flat_map(move |e| e.down[n * i..(n + 1) * i].to_vec())).collect();
    ExpertWeights::new()
        .gate(all(experts, |e| &e.gate), all(experts, |e| &e.gate_scale))
        .up(all(experts, |e| &e.up), all(experts, |e| &e.up_scale))
        .down(down, experts[0].down_scale.to_vec())
}

/// A config for comparisons of bits. One launch adds up in another order than the ordinary kernels, and of
/// two layers that are compared only one may be taken by it.
fn config_for(tokens: usize, quantization: Quantization, routing: Routing, shape: [usize; 4]) -> MoeConfig {
    let mut config = config(quantization, routing, shape);
    if tokens <= 8 {
        config.path = Path::Portable { blocks: None };
    }
    config
}

prop_compose! {
    fn any_routing()(kind in 0..3, renormalize in any::<bool>()) -> Routing {
        match kind {
            0 => Routing::Softmax { renormalize },
            1 => Routing::SigmoidInput,
            _ => grouped(2, renormalize, 1.5),
        }
    }
}

/// The best of `groups` groups of experts, by sigmoid.
fn grouped(groups: usize, renormalize: bool, scaling_factor: f32) -> Routing {
    Routing::Grouped { sigmoid: true, groups, topk_group: 1, renormalize, scaling_factor }
}

proptest! {
    #![proptest_config(cases(8))]

    /// A layer of E experts and one shared, and a layer of E + 1 experts whose last every token has, with the
    /// same weight.
    #[test]
    fn one_more_expert(
        quantization in any_quantization(),
        routing in any_routing(),
        gate in any::<bool>(),
        given in any::<bool>(),
        tokens in 1usize..40,
        sizes in (1usize..=3, 1usize..=9, 1usize..=9),
        seed in any::<u64>(),
    ) {
        let (experts, h, i) = (2 * sizes.0, 16 * sizes.1, 16 * sizes.2);
        let k = if routing == Routing::SigmoidInput { 1 } else { sizes.0 };
        let all = Layer::random(config_for(tokens, quantization, SOFTMAX, [experts + 1, 1, h, i]), seed);
        let mut source = StdRng::seed_from_u64(seed);
        let gate = gate.then(|| numbers(1, h, source.random(), &mut source));
        let shared = SharedExpert::new(i, SharedKind::Quantised(quantization)).gate(gate.is_some());
        let mut config = config_for(tokens, quantization, routing, [experts, k, h, i]);
        config.shared = Some(shared);
        if routing == Routing::SigmoidInput {
            // Its slots are compared with two forwards of half the rows: by kernels whose sums do not depend
            // on how many there are.
            config.path = Path::Portable { blocks: None };
        }
        prop_assert_eq!(config.slots(), k + 1);
        let device = drawn_device(seed);
        let stream = device.default_stream();
        let mut weights = all.weights(&all.config);
        let expert = weights.experts.pop().unwrap();
        weights.router = Some(RouterWeights::Bf16(all.router[..experts * h].into()));
        weights.correction_bias = None;
        let matrices = SharedMatrices::Quantised { expert, input_scales: None };
        weights.shared = Some(shared_weights(matrices, &gate));
        let layer = MoeLayer::new(&device, &config, &weights).unwrap();
        let hidden = hidden_states(tokens * h, seed);
        let (ours, ids, slot_weights) = if given {
            let (ids, weights) = random_routing(&config, tokens, Skew::Invalid, seed);
            let ours: Vec<f32> =
                run_routed(&stream, &layer, &hidden, &ids, &weights, Poison::Random(seed)).unwrap();
            let gates: Vec<f32> = match &gate {
                None => vec![1.0; tokens],
                // The device's own, which the own routing shows; here any will do that is near.
                Some(_) => {
                    let (_, _, weights) = run_own(&stream, &layer, &hidden).unwrap();
                    weights.chunks(k + 1).map(|token| token[k]).collect()
                }
            };
            let ids: Vec<i32> = ids.chunks(k).flat_map(|ids| {
                let valid = |&id: &i32| if (0..experts as i32).contains(&id) { id } else { -1 };
                ids.iter().map(valid).chain([experts as i32]).collect::<Vec<_>>()
            }).collect();
            let weights: Vec<f32> =
                weights.chunks(k).zip(gates).flat_map(|(w, g)| w.iter().copied().chain([g])).collect();
            (ours, ids, weights)
        } else {
            run_own(&stream, &layer, &hidden).unwrap()
        };
        for (token, (ids, weights)) in ids.chunks(k + 1).zip(slot_weights.chunks(k + 1)).enumerate() {
            prop_assert_eq!(ids[k], experts as i32);
            let row: Vec<f64> = hidden[token * h..(token + 1) * h].iter().map(|x| x.to_f64()).collect();
            let expected = gate.as_ref().map_or(1.0, |gate| logistic(dot(&row, &floats(gate)).0));
            prop_assert!((f64::from(weights[k]) - expected).abs() < 1e-5, "{} {expected}", weights[k]);
        }
        // Without a shared expert: all slots given. Llama-4's way weighs inputs, one slot a token.
        let mut plain = config.clone();
        (plain.experts, plain.top_k, plain.routing, plain.shared) = (experts + 1, k + 1, SOFTMAX, None);
        if routing != Routing::SigmoidInput {
            let plain = MoeLayer::new(&device, &plain, &all.weights(&plain)).unwrap();
            let expected: Vec<f32> =
                run_routed(&stream, &plain, &hidden, &ids, &slot_weights, Poison::Fresh).unwrap();
            prop_assert_eq!(ours, expected);
        } else {
            let one = plain.to_builder().top_k(1).routing(routing).build().unwrap();
            let one = MoeLayer::new(&device, &one, &all.weights(&one)).unwrap();
            let slots = [0, 1].map(|slot| {
                let pick = |n: usize| ids.iter().copied().skip(n).step_by(2).collect::<Vec<_>>();
                let weights: Vec<f32> = slot_weights.iter().copied().skip(slot).step_by(2).collect();
                run_routed::<f32>(&stream, &one, &hidden, &pick(slot), &weights, Poison::Fresh).unwrap()
            });
            let expected: Vec<f32> = slots[0].iter().zip(&slots[1]).map(|(a, b)| a + b).collect();
            prop_assert_eq!(ours, expected);
        }
    }

    /// Two parts are two experts.
    #[test]
    fn two_more_experts(
        by_token in any::<bool>(),
        tokens in 1usize..20,
        sizes in (1usize..=6, 1usize..=6),
        seed in any::<u64>(),
    ) {
        let quantization = if by_token { Quantization::ChannelToken } else { Quantization::ChannelGroup };
        let (experts, k, h, i) = (4, 2, 16 * sizes.0, 16 * sizes.1);
        let mut all = Layer::random(config_for(tokens, quantization, SOFTMAX, [experts + 2, 1, h, i]), seed);
        all.share_down_scales(experts, experts + 1);
        let mut config = config_for(tokens, quantization, SOFTMAX, [experts, k, h, i]);
        config.shared = Some(SharedExpert::new(2 * i, SharedKind::Quantised(quantization)));
        let device = drawn_device(seed);
        let stream = device.default_stream();
        let mut weights = all.weights(&all.config);
        let expert = joined(&weights.experts.split_off(experts), h, i);
        weights.router = None;
        let matrices = SharedMatrices::Quantised { expert, input_scales: None };
        weights.shared = Some(SharedWeights::new(matrices));
        let layer = MoeLayer::new(&device, &config, &weights).unwrap();
        let hidden = hidden_states(tokens * h, seed);
        let (ids, slot_weights) = random_routing(&config, tokens, Skew::Uniform, seed);
        let ours = run_routed::<f32>(&stream, &layer, &hidden, &ids, &slot_weights, Poison::Fresh);
        let ours = ours.unwrap();
        let ids: Vec<i32> = ids.chunks(k).flat_map(|ids| ids.iter().copied().chain([4, 5])).collect();
        let slot_weights: Vec<f32> =
            slot_weights.chunks(k).flat_map(|w| w.iter().copied().chain([1.0; 2])).collect();
        let mut plain = config;
        (plain.experts, plain.top_k, plain.shared) = (experts + 2, k + 2, None);
        let plain = MoeLayer::new(&device, &plain, &all.weights(&plain)).unwrap();
        let expected: Vec<f32> =
            run_routed(&stream, &plain, &hidden, &ids, &slot_weights, Poison::Fresh).unwrap();
        prop_assert_eq!(ours, expected);
    }

    /// Of another size or scheme: a layer of its own, added before the rounding.
    #[test]
    fn a_layer_beside(
        quantizations in (any_quantization(), any_quantization()),
        routing in any_routing(),
        gate in any::<bool>(),
        tokens in 1usize..40,
        sizes in (1usize..=9, 1usize..=9),
        seed in any::<u64>(),
    ) {
        let (experts, h, i) = (4, 16 * sizes.0, 16 * sizes.1);
        let k = if routing == Routing::SigmoidInput { 1 } else { 2 };
        let own = Layer::random(config_for(tokens, quantizations.0, routing, [experts, k, h, i]), seed);
        // Another size, which 2 I would be a part of.
        let size = i + 16;
        let other = Layer::random(config_for(tokens, quantizations.1, SOFTMAX, [1, 1, h, size]), seed ^ 1);
        let mut source = StdRng::seed_from_u64(seed);
        let gate = gate.then(|| numbers(1, h, true, &mut source));
        let shared = SharedExpert::new(size, SharedKind::Quantised(quantizations.1)).gate(gate.is_some());
        let mut with = own.config.clone();
        with.shared = Some(shared);
        prop_assume!(with.slots() == k);
        let device = drawn_device(seed);
        let stream = device.default_stream();
        let hidden = hidden_states(tokens * h, seed);
        let mut weights = own.weights(&own.config);
        let without = MoeLayer::new(&device, &own.config, &weights).unwrap();
        let routed = run_own(&stream, &without, &hidden).unwrap();
        let mut of_other = other.weights(&other.config);
        let expert = of_other.experts[0].clone();
        let matrices = SharedMatrices::Quantised { expert, input_scales: of_other.input_scales };
        weights.shared = Some(shared_weights(matrices, &gate));
        let layer = MoeLayer::new(&device, &with, &weights).unwrap();
        let (ours, ids, slot_weights) = run_own(&stream, &layer, &hidden).unwrap();
        prop_assert_eq!((&ids, &slot_weights), (&routed.1, &routed.2));
        // The same shared expert as a layer, by a router that is the gate.
        let gated = grouped(1, false, 1.0);
        let routing = if gate.is_some() { gated } else { SOFTMAX };
        let alone = other.config.to_builder().routing(routing).build().unwrap();
        of_other.correction_bias = None;
        of_other.router = Some(gate.unwrap_or(RouterWeights::Bf16(vec![bf16::ONE; h].into())));
        let alone = MoeLayer::new(&device, &alone, &of_other).unwrap();
        let (beside, ..) = run_own(&stream, &alone, &hidden).unwrap();
        let expected: Vec<f32> = routed.0.iter().zip(beside).map(|(a, b)| a + b).collect();
        prop_assert_eq!(ours, expected);
    }

    /// In bf16 or f32: products of the weights themselves with hidden states in bf16.
    #[test]
    fn unquantised_beside(
        exact in any::<bool>(),
        gate in any::<bool>(),
        function in prop::sample::select(&activation::FUNCTIONS),
        tokens in prop::sample::select(&[1usize, 3, 8, 9, 17, 40]),
        sizes in (1usize..=6, 1usize..=6),
        seed in any::<u64>(),
    ) {
        let (h, size) = (16 * sizes.0, 16 * sizes.1);
        let mut own = config_for(tokens, Quantization::ChannelToken, SOFTMAX, [4, 2, h, 32]);
        own.activation = function;
        let own = Layer::random(own, seed);
        let mut source = StdRng::seed_from_u64(seed);
        let [left, right] = [0, 1].map(|_| numbers(size, h, exact, &mut source));
        let down = numbers(h, size, exact, &mut source);
        let gate = gate.then(|| numbers(1, h, exact, &mut source));
        let (device, hidden) = (drawn_device(seed), hidden_states(tokens * h, seed));
        let stream = device.default_stream();
        let mut weights = own.weights(&own.config);
        let without = MoeLayer::new(&device, &own.config, &weights).unwrap();
        let (routed, ..) = run_own(&stream, &without, &hidden).unwrap();
        let matrices = SharedMatrices::Bf16 { gate: left.clone(), up: right.clone(), down: down.clone() };
        weights.shared = Some(shared_weights(matrices, &gate));
        let mut with = own.config.clone();
        with.shared = Some(SharedExpert::new(size, SharedKind::Bf16).gate(gate.is_some()));
        let with = MoeLayer::new(&device, &with, &weights).unwrap();
        let (ours, ..) = run_own(&stream, &with, &hidden).unwrap();
        let [left, right, down] = [&left, &right, &down].map(floats);
        for (token, x) in hidden.chunks(h).enumerate() {
            let x: Vec<f64> = x.iter().map(|x| x.to_f64()).collect();
            let weight = gate.as_ref().map_or(1.0, |gate| logistic(dot(&x, &floats(gate)).0));
            let (mut middle, mut errors) = (Vec::new(), Vec::new());
            for (left, right) in left.chunks(h).zip(right.chunks(h)) {
                let ((g, g_size), (u, u_size)) = (dot(left, &x), dot(right, &x));
                let (act, factor) = (activation::gate(function, g).0, activation::factor(function, u));
                let value = weight * act * factor;
                middle.push(value);
                // Sums of h products in f32; no function here is steeper than 1.2. bf16 keeps 8 bits.
                let magnitude = 1.2 * g_size * factor.abs() + act.abs() * u_size;
                let of_sums = (h as f64 + 8.0) * 2f64.powi(-24) * magnitude;
                errors.push(of_sums + 2f64.powi(-8) * value.abs() + 2f64.powi(-18) * value.abs() + 1e-30);
            }
            for n in 0..h {
                let row = &down[n * size..(n + 1) * size];
                let (value, magnitude) = dot(row, &middle);
                let of_middle: f64 = row.iter().zip(&errors).map(|(w, e)| w.abs() * e).sum();
                let at = token * h + n;
                let expected = value + f64::from(routed[at]);
                let of_sums = (size as f64 + 8.0) * 2f64.powi(-24) * magnitude;
                let bound = of_middle + of_sums + 2f64.powi(-22) * expected.abs();
                let found = f64::from(ours[at]);
                prop_assert!((found - expected).abs() <= bound, "{found} is not {expected} within {bound}");
            }
        }
    }
}

/// Ranks add up to the whole: the first has the shared expert.
#[test]
fn the_first_rank_has_it() {
    let shared = SharedExpert::new(32, SharedKind::Bf16).gate(true);
    let mut whole = config(Quantization::Block128, SOFTMAX, [4, 2, 64, 32]);
    whole.shared = Some(shared);
    assert_eq!(whole.for_rank(0, 2).unwrap().shared, Some(shared));
    assert_eq!(whole.for_rank(1, 2).unwrap().shared, None);
}

/// What a shared expert cannot be is refused with the rule.
#[test]
fn refusals() {
    let device = &families()[0];
    let stream = device.default_stream();
    let own = Layer::random(config(Quantization::ChannelToken, SOFTMAX, [4, 2, 64, 32]), 1);
    let mut source = StdRng::seed_from_u64(1);
    let [left, right] = [0, 1].map(|_| numbers(48, 64, true, &mut source));
    let down = numbers(64, 48, true, &mut source);
    let matrices = SharedMatrices::Bf16 { gate: left, up: right, down };
    let refusal = |config: &MoeConfig, weights: &MoeWeights<'_>| match MoeLayer::new(device, config, weights)
    {
        Err(error @ Error::Argument { .. }) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("was accepted"),
    };
    let shared = SharedExpert::new(48, SharedKind::Bf16);
    let with = |shared| {
        let mut config = own.config.clone();
        config.shared = Some(shared);
        config
    };
    let mut weights = own.weights(&own.config);
    assert!(refusal(&with(shared), &weights).contains("shared = given: false: must be given: true"));
    weights.shared = Some(SharedWeights::new(matrices).gate(numbers(1, 64, true, &mut source)));
    assert!(refusal(&own.config, &weights).contains("shared = given: true: must be given: false"));
    assert!(refusal(&with(shared), &weights).contains("shared.gate = true: must be given: false"));
    let gated = shared.gate(true);
    let odd = SharedExpert::new(40, SharedKind::Bf16).gate(true);
    assert!(
        refusal(&with(odd), &weights)
            .contains("shared.intermediate_size = 40: must be a positive multiple of 16")
    );
    let other = SharedExpert::new(64, SharedKind::Bf16).gate(true);
    assert!(refusal(&with(other), &weights).contains("shared.gate = 3072 elements: must have 4096"));
    let quantised = SharedExpert::new(48, SharedKind::Quantised(Quantization::ChannelToken)).gate(true);
    assert!(
        refusal(&with(quantised), &weights).contains("shared.matrices = of another kind: must be Quantised")
    );
    // Of hidden states that are quantised.
    let (quantised, scales) = (device.zeros::<E4m3>(64).unwrap(), device.zeros::<f32>(1).unwrap());
    let layer = MoeLayer::new(device, &with(gated), &weights).unwrap();
    let mut workspace = layer.workspace(1).unwrap();
    let hidden = Hidden::Quantised {
        values: quantised.as_slice(),
        scales: Some(scales.as_slice()),
        layout: ScaleLayout::row_major(1),
    };
    let (ids, slots) = (device.zeros::<i32>(2).unwrap(), device.zeros::<f32>(2).unwrap());
    let mut out = device.zeros::<f32>(64).unwrap();
    let forward = Forward::new(hidden, &mut workspace, &mut out).routed(&ids, &slots);
    let error = layer.forward_with(&stream, forward).unwrap_err().to_string();
    assert!(
        error.contains("hidden = e4m3: must be bf16 or f16 for a shared expert beside the others"),
        "{error}"
    );
}
