//! The top-k operations against f64 maths.

use fp8_moe::ops::router::{
    Choice, Grouped, SharedSlots, SqrtSoftplus, TopK, grouped_top_k, softmax_top_k, sqrt_softplus_top_k,
};
use fp8_moe::{Device, Result, Stream};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Runs a top-k operation: ids and weights of every token.
pub fn run_top_k(
    device: &Device,
    [tokens, experts, top_k]: [usize; 3],
    logits: &[f32],
    op: impl FnOnce(&Stream, TopK<'_>) -> Result<()>,
) -> (Vec<i32>, Vec<f32>) {
    let stream = device.default_stream();
    let logits = device.upload(logits).unwrap();
    let mut topk_ids = device.upload(&vec![-9i32; tokens * top_k]).unwrap();
    let mut topk_weights = device.upload(&vec![f32::NAN; tokens * top_k]).unwrap();
    let args = TopK {
        tokens,
        experts,
        top_k,
        shared: SharedSlots::default(),
        logits: logits.as_slice(),
        topk_ids: topk_ids.as_mut_slice(),
        topk_weights: topk_weights.as_mut_slice(),
    };
    op(&stream, args).unwrap();
    (topk_ids.to_vec(&stream).unwrap(), topk_weights.to_vec(&stream).unwrap())
}

/// Indices in the order of selection: descending, ties to the lowest; and the smallest step down among the
/// first `first + 1` that is not a tie. A tie in f64 comes from equal inputs, and is one in f32 too.
pub fn ranking(scores: &[f64], candidates: &[usize], first: usize) -> (Vec<usize>, f64) {
    let mut order = candidates.to_vec();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let steps = order.windows(2).take(first).map(|pair| scores[pair[0]] - scores[pair[1]]);
    let margin = steps.filter(|&step| step > 0.0).fold(f64::INFINITY, f64::min);
    (order, margin)
}

pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let logits = logits.iter().map(|&x| f64::from(x));
    // The maximum ignores NaN, which then makes the sum NaN, and with it every score.
    let maximum = logits.clone().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.map(|x| (x - maximum).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|p| finite_or_zero(p / sum)).collect()
}

pub fn sigmoid(x: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(x)).exp())
}

/// `sqrt(ln(1 + e^x))`, without the loss of small powers.
pub fn sqrt_softplus(x: f32) -> f64 {
    let x = f64::from(x);
    (x.max(0.0) + (-x.abs()).exp().ln_1p()).sqrt()
}

pub fn finite_or_zero(x: f64) -> f64 {
    if x.is_finite() { x } else { 0.0 }
}

/// Steps between scores that f32 resolves for certain, relative to the largest.
const RESOLVED: f64 = 2e-6;

#[track_caller]
pub fn check_token(
    ids: &[i32],
    weights: &[f32],
    expected_ids: &[usize],
    expected_weights: &[f64],
    what: &str,
) {
    let ids: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
    assert_eq!(ids, expected_ids, "{what}");
    for (&weight, &expected) in weights.iter().zip(expected_weights) {
        let close = (f64::from(weight) - expected).abs() <= 1e-5 * expected.abs() + 1e-9;
        assert!(close, "{what}: weights {weights:?} instead of {expected_weights:?}");
    }
}

/// Logits in steps of 1/64, so that unequal ones are far apart and equal ones are frequent; with `wild`, some
/// are not finite.
pub fn draw_logits(n: usize, wild: bool, rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..n)
        .map(|_| {
            if wild && rng.random_bool(0.02) {
                [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN][rng.random_range(0..4)]
            } else {
                rng.random_range(-300..300) as f32 / 64.0
            }
        })
        .collect()
}

#[track_caller]
pub fn check_softmax(device: &Device, sizes: [usize; 3], renormalize: bool, wild: bool, seed: u64) {
    let [tokens, experts, top_k] = sizes;
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let logits = draw_logits(tokens * experts, wild, rng);
    let (ids, weights) =
        run_top_k(device, sizes, &logits, |stream, args| softmax_top_k(stream, args, renormalize));
    let all: Vec<usize> = (0..experts).collect();
    for (t, row) in logits.chunks(experts).enumerate() {
        let scores = softmax(row);
        // Logits apart by 1/64 give scores apart by 1.5 %: relative, so that no margin is needed.
        let (order, _) = ranking(&scores, &all, top_k);
        let picked: Vec<f64> = order[..top_k].iter().map(|&e| scores[e]).collect();
        let sum: f64 = picked.iter().sum();
        let denominator = if renormalize && sum > 0.0 { sum } else { 1.0 };
        let expected: Vec<f64> = picked.iter().map(|p| p / denominator).collect();
        let slots = t * top_k..(t + 1) * top_k;
        check_token(
            &ids[slots.clone()],
            &weights[slots],
            &order[..top_k],
            &expected,
            &format!("{sizes:?} token {t}"),
        );
    }
}

#[derive(Clone, Copy, Debug)]
pub struct GroupedCase {
    /// T, E, k.
    pub sizes: [usize; 3],
    pub groups: usize,
    pub topk_group: usize,
    pub sigmoid: bool,
    pub bias: bool,
    pub renormalize: bool,
    pub routed_scaling_factor: f32,
    pub wild: bool,
}

/// Checks every token whose order f64 can tell for certain; returns how many others there are.
#[track_caller]
pub fn check_grouped(device: &Device, case: GroupedCase, seed: u64) -> usize {
    let GroupedCase { sizes, groups, topk_group, renormalize, routed_scaling_factor, .. } = case;
    let [tokens, experts, top_k] = sizes;
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let logits = draw_logits(tokens * experts, case.wild, rng);
    // A bias is of the size of the scores: sigmoids are near 1, softmax scores near 1 / E.
    let step = if case.sigmoid { 1.0 / 64.0 } else { 1.0 / (64.0 * experts as f32) };
    let bias: Vec<f32> = (0..experts).map(|_| rng.random_range(-20..20) as f32 * step).collect();
    let device_bias = device.upload(&bias).unwrap();
    let (ids, weights) = run_top_k(device, sizes, &logits, |stream, args| {
        let grouped = Grouped {
            sigmoid: case.sigmoid,
            correction_bias: case.bias.then(|| device_bias.as_slice()),
            groups,
            topk_group,
            renormalize,
            routed_scaling_factor,
        };
        grouped_top_k(stream, args, grouped)
    });

    let size = experts / groups;
    let mut unresolved = 0;
    for (t, row) in logits.chunks(experts).enumerate() {
        let scores: Vec<f64> = match case.sigmoid {
            true => row.iter().map(|&x| finite_or_zero(sigmoid(x))).collect(),
            false => softmax(row),
        };
        let biased: Vec<f64> =
            scores.iter().zip(&bias).map(|(s, &b)| s + if case.bias { f64::from(b) } else { 0.0 }).collect();
        let group_scores: Vec<f64> = biased
            .chunks(size)
            .map(|group| {
                let mut sorted = group.to_vec();
                sorted.sort_by(|a, b| b.total_cmp(a));
                sorted.iter().take(if case.bias { 2 } else { 1 }).sum()
            })
            .collect();
        let (order, group_margin) = ranking(&group_scores, &(0..groups).collect::<Vec<_>>(), topk_group);
        let candidates: Vec<usize> =
            order[..topk_group].iter().flat_map(|g| g * size..(g + 1) * size).collect();
        let (order, margin) = ranking(&biased, &candidates, top_k);
        let resolved = RESOLVED * biased.iter().map(|score| score.abs()).fold(0.0, f64::max);
        // Softmax scores of one row differ by 1.5 % or not at all, but small ones by little in absolute
        // terms, which is what a bias sees.
        let relative = !case.bias;
        if !relative && margin.min(group_margin) < resolved {
            unresolved += 1;
            continue;
        }
        let picked: Vec<f64> = order[..top_k].iter().map(|&e| scores[e]).collect();
        let sum: f64 = picked.iter().sum();
        let factor = f64::from(routed_scaling_factor) / if renormalize { sum + 1e-20 } else { 1.0 };
        let expected: Vec<f64> = picked.iter().map(|p| p * factor).collect();
        let slots = t * top_k..(t + 1) * top_k;
        check_token(
            &ids[slots.clone()],
            &weights[slots],
            &order[..top_k],
            &expected,
            &format!("{case:?} token {t}"),
        );
    }
    unresolved
}

#[derive(Clone, Copy, Debug)]
pub struct SqrtSoftplusCase {
    /// T, E, k.
    pub sizes: [usize; 3],
    pub bias: bool,
    pub renormalize: bool,
    pub routed_scaling_factor: f32,
    pub wild: bool,
}

/// Checks every token whose order f64 can tell for certain, of experts chosen by score; returns how many
/// others there are.
#[track_caller]
pub fn check_sqrt_softplus(device: &Device, case: SqrtSoftplusCase, seed: u64) -> usize {
    let SqrtSoftplusCase { sizes, renormalize, routed_scaling_factor, .. } = case;
    let [tokens, experts, top_k] = sizes;
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let logits = draw_logits(tokens * experts, case.wild, rng);
    let bias: Vec<f32> = (0..experts).map(|_| rng.random_range(-20..20) as f32 / 64.0).collect();
    let device_bias = device.upload(&bias).unwrap();
    let (ids, weights) = run_top_k(device, sizes, &logits, |stream, args| {
        let correction_bias = case.bias.then(|| device_bias.as_slice());
        let choice = Choice::ByScore { correction_bias };
        sqrt_softplus_top_k(stream, args, SqrtSoftplus { choice, renormalize, routed_scaling_factor })
    });
    let all: Vec<usize> = (0..experts).collect();
    let mut unresolved = 0;
    for (t, row) in logits.chunks(experts).enumerate() {
        let scores: Vec<f64> = row.iter().map(|&x| finite_or_zero(sqrt_softplus(x))).collect();
        let biased: Vec<f64> =
            scores.iter().zip(&bias).map(|(s, &b)| s + if case.bias { f64::from(b) } else { 0.0 }).collect();
        let (order, margin) = ranking(&biased, &all, top_k);
        // Logits apart by 1/64 give scores apart by 0.15 % at least; sums with a bias may be closer.
        if case.bias && margin < RESOLVED * biased.iter().map(|score| score.abs()).fold(0.0, f64::max) {
            unresolved += 1;
            continue;
        }
        let picked: Vec<f64> = order[..top_k].iter().map(|&e| scores[e]).collect();
        let expected = weighed(&picked, renormalize, routed_scaling_factor);
        let slots = t * top_k..(t + 1) * top_k;
        let what = format!("{case:?} token {t}");
        check_token(&ids[slots.clone()], &weights[slots], &order[..top_k], &expected, &what);
    }
    unresolved
}

/// Scores of the chosen as weights.
fn weighed(scores: &[f64], renormalize: bool, factor: f32) -> Vec<f64> {
    let sum: f64 = scores.iter().sum();
    let factor = f64::from(factor) / if renormalize { sum + 1e-20 } else { 1.0 };
    scores.iter().map(|score| score * factor).collect()
}

/// Checks experts that are looked up by token id, among ids and table entries that there are not.
#[track_caller]
pub fn check_lookup(device: &Device, case: SqrtSoftplusCase, vocabulary: usize, seed: u64) {
    let SqrtSoftplusCase { sizes, renormalize, routed_scaling_factor, .. } = case;
    let [tokens, experts, top_k] = sizes;
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let logits = draw_logits(tokens * experts, case.wild, rng);
    let entry = |rng: &mut ChaCha8Rng| match rng.random_range(0..12) {
        0 => [-1, experts as i32, i32::MIN, i32::MAX][rng.random_range(0..4)],
        _ => rng.random_range(0..experts as i32),
    };
    let table: Vec<i32> = (0..vocabulary * top_k).map(|_| entry(rng)).collect();
    let token = |rng: &mut ChaCha8Rng| match rng.random_range(0..8) {
        0 => [-1, vocabulary as i32, i32::MIN, i32::MAX][rng.random_range(0..4)],
        _ => rng.random_range(0..vocabulary as i32),
    };
    let token_ids: Vec<i32> = (0..tokens).map(|_| token(rng)).collect();
    let (on_table, on_ids) = (device.upload(&table).unwrap(), device.upload(&token_ids).unwrap());
    let (ids, weights) = run_top_k(device, sizes, &logits, |stream, args| {
        let choice =
            Choice::ByToken { token_experts: on_table.as_slice(), vocabulary, token_ids: on_ids.as_slice() };
        sqrt_softplus_top_k(stream, args, SqrtSoftplus { choice, renormalize, routed_scaling_factor })
    });
    for (t, row) in logits.chunks(experts).enumerate() {
        let entries = match usize::try_from(token_ids[t]) {
            Ok(id) if id < vocabulary => table[id * top_k..(id + 1) * top_k].to_vec(),
            _ => vec![-1; top_k],
        };
        let expected_ids: Vec<i32> =
            entries.iter().map(|&e| if (0..experts as i32).contains(&e) { e } else { -1 }).collect();
        let score = |&e: &i32| if e < 0 { 0.0 } else { finite_or_zero(sqrt_softplus(row[e as usize])) };
        let scores: Vec<f64> = expected_ids.iter().map(score).collect();
        let expected = weighed(&scores, renormalize, routed_scaling_factor);
        let slots = t * top_k..(t + 1) * top_k;
        assert_eq!(ids[slots.clone()], expected_ids, "{case:?} token {t}");
        let expected_ids: Vec<usize> = expected_ids.iter().map(|&id| id as usize).collect();
        check_token(
            &ids[slots.clone()],
            &weights[slots],
            &expected_ids,
            &expected,
            &format!("{case:?} token {t}"),
        );
    }
}
