//! Router logits and the four top-k operations against f64 maths.

use bytemuck::Pod;
use fp8_moe::ops::quantize::Activations;
use fp8_moe::ops::router::{
    Choice, Grouped, RouterLogits, RouterLogitsPath, SharedSlots, SqrtSoftplus, TopK, bf16_planes,
    grouped_top_k, router_logits, sigmoid_top_k, softmax_top_k, sqrt_softplus_top_k,
};
use fp8_moe::{Buffer, Device, Error, Result};
use half::{bf16, f16};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::common;
use crate::common::routing::{
    GroupedCase, SqrtSoftplusCase, check_grouped, check_lookup, check_softmax, check_sqrt_softplus,
    check_token, draw_logits, finite_or_zero, ranking, run_top_k, sigmoid, sqrt_softplus,
};

const PATHS: [RouterLogitsPath; 4] =
    [RouterLogitsPath::Auto, RouterLogitsPath::Few, RouterLogitsPath::Tile16x8, RouterLogitsPath::Tile64x64];

fn run_logits<T: Pod>(
    device: &Device,
    [tokens, experts, hidden]: [usize; 3],
    states: &[T],
    gate: &[bf16],
    path: RouterLogitsPath,
) -> Vec<f32>
where
    for<'a> Activations<'a>: From<&'a Buffer<T>>,
{
    run_biased(device, [tokens, experts, hidden], states, gate, None, path)
}

fn run_biased<T: Pod>(
    device: &Device,
    [tokens, experts, hidden]: [usize; 3],
    states: &[T],
    gate: &[bf16],
    bias: Option<&[f32]>,
    path: RouterLogitsPath,
) -> Vec<f32>
where
    for<'a> Activations<'a>: From<&'a Buffer<T>>,
{
    let bias = bias.map(|bias| device.upload(bias).unwrap());
    let stream = device.default_stream();
    let (states, gate) = (device.upload(states).unwrap(), device.upload(gate).unwrap());
    let mut logits = device.upload(&vec![f32::NAN; tokens * experts]).unwrap();
    let args = RouterLogits {
        tokens,
        experts,
        hidden,
        hidden_states: (&states).into(),
        gate: gate.as_slice(),
        planes: gate.len() / (experts * hidden).max(1),
        bias: bias.as_ref().map(|bias| bias.as_slice()),
        logits: logits.as_mut_slice(),
        path,
    };
    router_logits(&stream, args).unwrap();
    logits.to_vec(&stream).unwrap()
}

#[track_caller]
fn check_logits(device: &Device, sizes: [usize; 3], path: RouterLogitsPath, seed: u64) {
    let [tokens, experts, hidden] = sizes;
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let mut draw = |n: usize| (0..n).map(|_| bf16::from_f32(rng.random_range(-2.0..2.0))).collect::<Vec<_>>();
    let (states, gate) = (draw(tokens * hidden), draw(experts * hidden));
    let logits = run_logits(device, sizes, &states, &gate, path);
    for t in 0..tokens {
        for e in 0..experts {
            let products = (0..hidden)
                .map(|h| states[t * hidden + h].to_f64() * gate[e * hidden + h].to_f64())
                .collect::<Vec<_>>();
            let (sum, magnitude) = products.iter().fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs()));
            let error = (f64::from(logits[t * experts + e]) - sum).abs();
            assert!(
                error <= 1e-6 * magnitude,
                "{sizes:?} {path:?}: logit {t}, {e} is off by {error} of {magnitude}"
            );
        }
    }
    common::timing(seed ^ 0x5555);
    let again = run_logits(device, sizes, &states, &gate, path);
    assert!(again == logits, "{sizes:?} {path:?}: not the same bits again");
}

/// Hidden states in f16, of all magnitudes, lose nothing.
#[track_caller]
fn check_logits_of_f16(device: &Device, sizes: [usize; 3], path: RouterLogitsPath, seed: u64) {
    let [tokens, experts, hidden] = sizes;
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let states: Vec<f16> = (0..tokens * hidden)
        .map(|_| f16::from_bits(rng.random()))
        .map(|x| if x.is_finite() { x } else { f16::MIN_POSITIVE_SUBNORMAL })
        .collect();
    let gate: Vec<_> = (0..experts * hidden).map(|_| bf16::from_f32(rng.random_range(-2.0..2.0))).collect();
    let logits = run_logits(device, sizes, &states, &gate, path);
    for (at, logit) in logits.iter().enumerate() {
        let (t, e) = (at / experts, at % experts);
        let products = (0..hidden).map(|h| states[t * hidden + h].to_f64() * gate[e * hidden + h].to_f64());
        let (sum, magnitude) = products.fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs()));
        let error = (f64::from(*logit) - sum).abs();
        assert!(
            error <= 1e-6 * magnitude,
            "{sizes:?} {path:?}: logit {t}, {e} is off by {error} of {magnitude}"
        );
    }
}

/// A gate in f32, as planes: the logits are those of its own weights, not of rounded ones.
#[test]
fn gates_in_f32() {
    let rng = &mut ChaCha8Rng::seed_from_u64(24);
    let device = common::device();
    for (sizes, path) in [
        ([3, 5, 72], RouterLogitsPath::Few),
        ([2, 7, 33], RouterLogitsPath::Few),
        ([17, 9, 136], RouterLogitsPath::Tile16x8),
        ([5, 3, 50], RouterLogitsPath::Tile16x8),
        ([66, 70, 96], RouterLogitsPath::Tile64x64),
    ] {
        let [tokens, experts, hidden] = sizes;
        let states: Vec<_> =
            (0..tokens * hidden).map(|_| bf16::from_f32(rng.random_range(-2.0..2.0))).collect();
        let gate: Vec<f32> = (0..experts * hidden).map(|_| rng.random_range(-2.0..2.0)).collect();
        let planes = bf16_planes(&gate);
        assert_eq!(planes.len(), 3 * gate.len());
        for (at, w) in gate.iter().enumerate() {
            let sum: f64 = (0..3).map(|p| planes[p * gate.len() + at].to_f64()).sum();
            assert_eq!(sum, f64::from(*w), "three planes hold 24 bits");
        }
        let logits = run_logits(&device, sizes, &states, &planes, path);
        for (at, logit) in logits.iter().enumerate() {
            let (t, e) = (at / experts, at % experts);
            let products =
                (0..hidden).map(|h| states[t * hidden + h].to_f64() * f64::from(gate[e * hidden + h]));
            let (sum, magnitude) = products.fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs()));
            let error = (f64::from(*logit) - sum).abs();
            assert!(
                error <= 1e-6 * magnitude,
                "{sizes:?} {path:?}: logit {t}, {e} is off by {error} of {magnitude}"
            );
        }
    }
    let exact: Vec<f32> = vec![0.5, -3.0, 0.0, f32::MAX];
    assert_eq!(bf16_planes(&exact[..3]).len(), 3, "one plane where bf16 holds the gate");
    let planes = bf16_planes(&exact);
    assert!(planes.iter().all(|p| p.is_finite()));
    let largest: f64 = planes.iter().skip(3).step_by(4).map(|p| p.to_f64()).sum();
    assert_eq!(largest, f64::from(f32::MAX));
}

proptest! {
    #![proptest_config(common::cases(24))]

    #[test]
    fn logits_are_the_products(
        tokens in prop_oneof![1usize..10, 10usize..80],
        experts in 1usize..80,
        hidden in prop_oneof![1usize..70, 70usize..700, Just(512usize), Just(1000usize), Just(1088usize)],
        path in prop::sample::select(PATHS.to_vec()),
        seed: u64,
    ) {
        common::timing(seed);
        for device in common::devices() {
            check_logits(&device, [tokens, experts, hidden], path, seed);
            check_logits_of_f16(&device, [tokens, experts, hidden], path, seed);
        }
    }
}

/// A bias is added to the sum, with one rounding.
#[test]
fn biases_are_added() {
    let device = common::device();
    let mut source = ChaCha8Rng::seed_from_u64(7);
    for (sizes @ [tokens, experts, hidden], path) in
        [[3, 5, 24], [17, 9, 40], [70, 66, 32]].into_iter().zip(&PATHS[1..])
    {
        let mut draw =
            |len: usize| -> Vec<f32> { (0..len).map(|_| source.random_range(-1.0..1.0)).collect() };
        let states: Vec<bf16> = draw(tokens * hidden).into_iter().map(bf16::from_f32).collect();
        let gate: Vec<bf16> = draw(experts * hidden).into_iter().map(bf16::from_f32).collect();
        let bias = draw(experts);
        let plain = run_logits(&device, sizes, &states, &gate, *path);
        let biased = run_biased(&device, sizes, &states, &gate, Some(&bias), *path);
        for (n, (plain, biased)) in plain.into_iter().zip(biased).enumerate() {
            assert_eq!(biased, plain + bias[n % experts], "{path:?}, logit {n}");
        }
    }
}

#[test]
fn logits_at_edge_shapes() {
    for device in common::devices() {
        for path in PATHS {
            for sizes in [[1, 1, 1], [1, 8, 2048], [17, 9, 1032], [65, 65, 264], [8, 64, 2880], [9, 3, 4096]]
            {
                check_logits(&device, sizes, path, 5);
                check_logits_of_f16(&device, sizes, path, 6);
            }
        }
    }
}

#[test]
fn a_non_finite_token_touches_only_its_own_logits() {
    let [tokens, experts, hidden] = [20, 12, 96];
    for device in common::devices() {
        for path in PATHS {
            let mut states = vec![bf16::ONE; tokens * hidden];
            states[3 * hidden + 5] = bf16::NAN;
            states[19 * hidden] = bf16::INFINITY;
            let gate = vec![bf16::ONE; experts * hidden];
            let logits = run_logits(&device, [tokens, experts, hidden], &states, &gate, path);
            for (t, row) in logits.chunks(experts).enumerate() {
                let right = |x: &f32| match t {
                    3 => x.is_nan(),
                    19 => *x == f32::INFINITY,
                    _ => *x == hidden as f32,
                };
                assert!(row.iter().all(right), "{path:?}: token {t}: {row:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(common::cases(48))]

    #[test]
    fn softmax_picks_the_largest(
        tokens in 1usize..20,
        experts in prop_oneof![1usize..70, 70usize..520],
        top_k in prop_oneof![Just(usize::MAX), 1usize..10],
        renormalize: bool,
        wild: bool,
        seed: u64,
    ) {
        common::timing(seed);
        let top_k = if top_k == usize::MAX { experts } else { top_k.min(experts) };
        for device in common::devices() {
            check_softmax(&device, [tokens, experts, top_k], renormalize, wild, seed);
        }
    }

    #[test]
    fn groups_come_first(
        tokens in 1usize..12,
        groups in 1usize..12,
        size in prop_oneof![Just(1usize), 2usize..40],
        topk_group in 1usize..12,
        top_k in prop_oneof![Just(usize::MAX), 1usize..10],
        sigmoid: bool,
        bias: bool,
        renormalize: bool,
        routed_scaling_factor in prop::sample::select(vec![1.0f32, 2.5]),
        wild: bool,
        seed: u64,
    ) {
        common::timing(seed);
        let topk_group = topk_group.min(groups);
        let top_k = top_k.min(topk_group * size);
        let sizes = [tokens, groups * size, top_k];
        let case = GroupedCase {
            sizes, groups, topk_group, sigmoid, bias, renormalize, routed_scaling_factor, wild
        };
        for device in common::devices() {
            // With a bias, many experts and a large top_k, neighbours are close more often than not.
            let unresolved = check_grouped(&device, case, seed);
            prop_assume!(unresolved <= tokens / 4 + 2, "too many tokens are too close to call");
        }
    }

    #[test]
    fn sigmoid_weighs_the_largest_logits(
        tokens in 1usize..20,
        experts in 1usize..300,
        top_k in 1usize..5,
        wild: bool,
        seed: u64,
    ) {
        common::timing(seed);
        let top_k = top_k.min(experts);
        let logits = draw_logits(tokens * experts, wild, &mut ChaCha8Rng::seed_from_u64(seed));
        let all: Vec<usize> = (0..experts).collect();
        for device in common::devices() {
            let (ids, weights) = run_top_k(&device, [tokens, experts, top_k], &logits, sigmoid_top_k);
            for (t, row) in logits.chunks(experts).enumerate() {
                // NaN is below -inf: shift everything else up by one place with a finite stand-in for the
                // infinities.
                let key = |&x: &f32| if x.is_nan() { -1e30 } else { f64::from(x).clamp(-1e20, 1e20) };
                let keys: Vec<f64> = row.iter().map(key).collect();
                let (order, _) = ranking(&keys, &all, top_k);
                let picked = &order[..top_k];
                let expected: Vec<f64> = picked.iter().map(|&e| finite_or_zero(sigmoid(row[e]))).collect();
                let slots = t * top_k..(t + 1) * top_k;
                let what = format!("token {t}: {row:?}");
                check_token(&ids[slots.clone()], &weights[slots], picked, &expected, &what);
            }
        }
    }
}

proptest! {
    #![proptest_config(common::cases(32))]

    #[test]
    fn roots_of_softplus_choose_and_weigh(
        tokens in 1usize..12,
        experts in prop_oneof![1usize..70, 70usize..520],
        top_k in prop_oneof![Just(usize::MAX), 1usize..10],
        bias: bool,
        renormalize: bool,
        routed_scaling_factor in prop::sample::select(vec![1.0f32, 1.5]),
        wild: bool,
        vocabulary in 1usize..50,
        seed: u64,
    ) {
        common::timing(seed);
        let top_k = if top_k == usize::MAX { experts.min(32) } else { top_k.min(experts) };
        let case = SqrtSoftplusCase {
            sizes: [tokens, experts, top_k], bias, renormalize, routed_scaling_factor, wild
        };
        for device in common::devices() {
            check_lookup(&device, case, vocabulary, seed);
            // With a bias, many experts and a large top_k, neighbours are close more often than not.
            let unresolved = check_sqrt_softplus(&device, case, seed);
            prop_assume!(unresolved <= tokens / 4 + 2, "too many tokens are too close to call");
        }
    }
}

/// Scores over their whole range, far below that of e^x too: weights and order. Of a single expert, since
/// only that shows a score as it is.
#[test]
fn roots_of_softplus_far_from_zero() {
    let logits: Vec<f32> = (-1700..4000)
        .map(|n| n as f32 / 10.0)
        .chain([-20.0, -20.000002, -19.999998, -0.0, f32::MIN_POSITIVE, 1e-7, -1e-7, 3e38])
        .collect();
    let plain = |stream: &fp8_moe::Stream, args: TopK<'_>| {
        let choice = Choice::ByScore { correction_bias: None };
        let scoring = SqrtSoftplus { choice, renormalize: false, routed_scaling_factor: 1.0 };
        sqrt_softplus_top_k(stream, args, scoring)
    };
    for device in common::devices() {
        let (ids, weights) = run_top_k(&device, [logits.len(), 1, 1], &logits, plain);
        for ((id, weight), &logit) in ids.iter().zip(&weights).zip(&logits) {
            let expected = sqrt_softplus(logit);
            // The exponent of 2^(x log2 e / 2) is rounded, to 2^-24 of up to 123: 2^-17 of it, times ln 2.
            let close = (f64::from(*weight) - expected).abs() <= 6e-6 * expected;
            assert!(*id == 0 && close, "{logit}: {weight} instead of {expected}");
        }
        // Steps of 0.1 are 5 % of a small score and 0.01 % of the largest.
        let ascending: Vec<f32> = (0..1024).map(|n| -170.0 + 0.25 * n as f32).collect();
        let (ids, _) = run_top_k(&device, [1, 1024, 32], &ascending, plain);
        assert_eq!(ids, (992..1024).rev().collect::<Vec<_>>());
        let (ids, _) = run_top_k(&device, [1, 600, 32], &ascending[..600], plain);
        assert_eq!(ids, (568..600).rev().collect::<Vec<_>>());
        let (ids, _) = run_top_k(&device, [1, 40, 32], &ascending[..40], plain);
        assert_eq!(ids, (8..40).rev().collect::<Vec<_>>(), "scores of 1e-35");
    }
}

#[test]
fn many_experts() {
    let device = common::device();
    check_softmax(&device, [3, 3000, 8], true, false, 4);
    let case = GroupedCase {
        sizes: [3, 2000, 8],
        groups: 100,
        topk_group: 40,
        sigmoid: true,
        bias: false,
        renormalize: true,
        routed_scaling_factor: 1.0,
        wild: false,
    };
    assert_eq!(check_grouped(&device, case, 4), 0, "tokens that are too close to call");
}

#[test]
fn non_finite_logits_pick_distinct_experts() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let rows: [[f32; 6]; 6] = [
        [nan; 6],
        [inf; 6],
        [-inf; 6],
        [1.0, nan, 2.0, 0.0, -1.0, 3.0],
        [1.0, inf, 2.0, 0.0, -1.0, 3.0],
        [1.0, -inf, 2.0, 0.0, -inf, 3.0],
    ];
    let logits = rows.concat();
    for device in common::devices() {
        let (ids, weights) =
            run_top_k(&device, [6, 6, 4], &logits, |stream, args| softmax_top_k(stream, args, true));
        for t in 0..5 {
            assert_eq!(ids[t * 4..][..4], [0, 1, 2, 3], "token {t}");
            assert_eq!(weights[t * 4..][..4], [0.0; 4], "token {t}");
        }
        assert_eq!(ids[20..], [5, 2, 0, 3]);
        assert!((weights[20..].iter().sum::<f32>() - 1.0).abs() < 1e-6);
        let (ids, weights) = run_top_k(&device, [6, 6, 4], &logits, |stream, args| {
            let choice = Choice::ByScore { correction_bias: None };
            let scoring = SqrtSoftplus { choice, renormalize: true, routed_scaling_factor: 1.5 };
            sqrt_softplus_top_k(stream, args, scoring)
        });
        // A score is its own logit's alone: what is not finite counts as 0, the others as ever.
        for t in 0..3 {
            assert_eq!(ids[t * 4..][..4], [0, 1, 2, 3], "token {t}");
            assert_eq!(weights[t * 4..][..4], [0.0; 4], "token {t}");
        }
        assert_eq!(ids[12..], [5, 2, 0, 3, 5, 2, 0, 3, 5, 2, 0, 3]);
        for weights in weights[12..].chunks(4) {
            assert!((weights.iter().sum::<f32>() - 1.5).abs() < 1e-6, "{weights:?}");
        }
        let (ids, weights) = run_top_k(&device, [6, 6, 6], &logits, sigmoid_top_k);
        for (t, ids) in ids.chunks(6).enumerate() {
            let mut sorted = ids.to_vec();
            sorted.sort();
            assert_eq!(sorted, [0, 1, 2, 3, 4, 5], "token {t}");
        }
        assert_eq!(ids[18..24], [5, 2, 0, 3, 4, 1]);
        assert_eq!(weights[23], 0.0);
    }
}

#[test]
fn no_tokens_launch_nothing() {
    let device = common::device();
    if device.is_emulated() {
        cust::sim::take_counters();
    }
    assert!(
        run_logits(&device, [0, 4, 16], &[] as &[bf16], &[bf16::ONE; 64], RouterLogitsPath::Auto).is_empty()
    );
    run_top_k(&device, [0, 4, 2], &[], |stream, args| softmax_top_k(stream, args, true));
    run_top_k(&device, [0, 4, 2], &[], sigmoid_top_k);
    run_top_k(&device, [0, 4, 2], &[], |stream, args| {
        let choice = Choice::ByScore { correction_bias: None };
        let scoring = SqrtSoftplus { choice, renormalize: true, routed_scaling_factor: 1.0 };
        sqrt_softplus_top_k(stream, args, scoring)
    });
    if device.is_emulated() {
        assert_eq!(cust::sim::take_counters().launches, 0);
    }
}

#[test]
fn refuses_bad_arguments() {
    let device = common::device();
    let stream = device.default_stream();
    let logits = device.zeros::<f32>(4 * 8).unwrap();
    let mut ids = device.zeros::<i32>(4 * 2).unwrap();
    let mut weights = device.zeros::<f32>(4 * 2).unwrap();
    let mut refusal = |[tokens, experts, top_k]: [usize; 3], op: &dyn Fn(TopK<'_>) -> Result<()>| {
        let args = TopK {
            tokens,
            experts,
            top_k,
            shared: SharedSlots::default(),
            logits: logits.as_slice(),
            topk_ids: ids.as_mut_slice(),
            topk_weights: weights.as_mut_slice(),
        };
        let error = op(args).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error}");
        error.to_string()
    };
    let softmax = |args: TopK<'_>| softmax_top_k(&stream, args, false);
    assert_eq!(
        refusal([4, 8, 9], &softmax),
        "softmax_top_k: top_k = 9: must be in 1..=8, the number of experts"
    );
    assert_eq!(refusal([4, 0, 0], &softmax), "softmax_top_k: experts = 0: must be at least 1");
    assert_eq!(
        refusal([5, 8, 2], &softmax),
        "softmax_top_k: logits = 32 elements: must have at least 40 elements"
    );
    assert_eq!(
        refusal([4, 8, 3], &softmax),
        "softmax_top_k: topk_ids = 8 elements: must have at least 12 elements"
    );
    let grouped = |groups, topk_group, routed_scaling_factor| {
        let stream = &stream;
        move |args: TopK<'_>| {
            let grouped = Grouped {
                sigmoid: true,
                correction_bias: None,
                groups,
                topk_group,
                renormalize: false,
                routed_scaling_factor,
            };
            grouped_top_k(stream, args, grouped)
        }
    };
    let message = refusal([4, 8, 2], &grouped(3, 1, 1.0));
    assert_eq!(message, "grouped_top_k: groups = 3: must divide the 8 experts");
    let message = refusal([4, 8, 2], &grouped(4, 5, 1.0));
    assert_eq!(message, "grouped_top_k: topk_group = 5: must be in 1..=4, the number of groups");
    let message = refusal([4, 8, 2], &grouped(8, 1, 1.0));
    assert_eq!(message, "grouped_top_k: top_k = 2: must be at most 1, the experts in 1 groups");
    let message = refusal([4, 8, 2], &grouped(4, 2, f32::NAN));
    assert_eq!(message, "grouped_top_k: routed_scaling_factor = NaN: must be finite");

    let (table, token_ids) = (device.zeros::<i32>(5 * 2).unwrap(), device.zeros::<i32>(4).unwrap());
    let lookup = |vocabulary, tokens, routed_scaling_factor| {
        let (stream, table, token_ids) = (&stream, table.as_slice(), token_ids.slice(..tokens));
        move |args: TopK<'_>| {
            let choice = Choice::ByToken { token_experts: table, vocabulary, token_ids };
            let scoring = SqrtSoftplus { choice, renormalize: false, routed_scaling_factor };
            sqrt_softplus_top_k(stream, args, scoring)
        }
    };
    let message = refusal([4, 8, 2], &lookup(0, 4, 1.0));
    assert_eq!(message, "sqrt_softplus_top_k: vocabulary = 0: must be at least 1");
    let message = refusal([4, 8, 2], &lookup(6, 4, 1.0));
    assert_eq!(message, "sqrt_softplus_top_k: token_experts = 10 elements: must have at least 12 elements");
    let message = refusal([4, 8, 2], &lookup(5, 3, 1.0));
    assert_eq!(message, "sqrt_softplus_top_k: token_ids = 3 elements: must have at least 4 elements");
    let message = refusal([4, 8, 2], &lookup(5, 4, f32::INFINITY));
    assert_eq!(message, "sqrt_softplus_top_k: routed_scaling_factor = inf: must be finite");

    let (states, gate) = (device.zeros::<bf16>(4 * 16).unwrap(), device.zeros::<bf16>(8 * 16).unwrap());
    let mut out = device.zeros::<f32>(31).unwrap();
    let args = RouterLogits {
        tokens: 4,
        experts: 8,
        hidden: 16,
        hidden_states: (&states).into(),
        gate: gate.as_slice(),
        planes: 1,
        bias: None,
        logits: out.as_mut_slice(),
        path: RouterLogitsPath::Auto,
    };
    let message = router_logits(&stream, args).unwrap_err().to_string();
    assert_eq!(message, "router_logits: logits = 31 elements: must have at least 32 elements");
}
