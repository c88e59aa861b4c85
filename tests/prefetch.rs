//! What `permute` asks L2 for while it sorts: the bytes that the rule says, each once, and nothing else changes.

mod common;
#[path = "common/permutation.rs"]
mod permutation;
#[path = "common/schedule.rs"]
mod schedule;

use std::collections::BTreeSet;
use std::ops::Range;

use cuda_driver::sim::prefetch_digest;
use fp8_moe::ops::permute::{Permute, PermutePath, PermuteShape, Prefetch, permute};
use fp8_moe::{Buffer, Device, E4m3, Family};
use permutation::{SKEWS, draw_ids, local_expert, oracle, paths, rank_map, run_slice};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The bytes of the weights that the documentation of [`Prefetch`] says are asked for.
fn wanted(shape: PermuteShape, ids: &[i32], map: Option<&[i32]>, prefetch: &Prefetch<'_>) -> Vec<Range<u64>> {
    let experts = BTreeSet::from_iter(ids.iter().filter_map(|&id| local_expert(shape, id, map)));
    let (h, i) = (prefetch.hidden as u64, prefetch.intermediate as u64);
    let mut ranges = Vec::new();
    let mut left = prefetch.bytes as u64;
    for (base, rows, row) in [(prefetch.w13.ptr().raw(), 2 * i, h), (prefetch.w2.ptr().raw(), h, i)] {
        let all: Vec<u64> =
            experts.iter().flat_map(|&e| (0..rows).map(move |r| e as u64 * rows + r)).collect();
        let Some(share) = left.checked_div(all.len() as u64) else { break };
        let part = if share >= row { row } else { share / 128 * 128 };
        ranges.extend(all.iter().map(|at| base + at * row..base + at * row + part));
        left = if part == row { left - all.len() as u64 * row } else { 0 };
    }
    ranges
}

/// Weights that nobody has written, of which not a byte more than is there may be asked for.
struct Weights {
    w13: Buffer<E4m3>,
    w2: Buffer<E4m3>,
    hidden: usize,
    intermediate: usize,
}

impl Weights {
    fn new(device: &Device, experts: usize, hidden: usize, intermediate: usize) -> Weights {
        let matrix = |count: usize| device.uninit(experts * count * hidden * intermediate).unwrap();
        Weights { w13: matrix(2), w2: matrix(1), hidden, intermediate }
    }

    fn prefetch(&self, bytes: usize) -> Prefetch<'_> {
        let Weights { hidden, intermediate, .. } = *self;
        Prefetch { w13: self.w13.as_slice(), w2: self.w2.as_slice(), hidden, intermediate, bytes }
    }
}

/// Permutes with a prefetch: the result is the same, and the bytes asked for are those of the rule, each once.
#[track_caller]
fn check_prefetch(
    shape: PermuteShape,
    ids: &[i32],
    map: Option<&[i32]>,
    prefetch: Prefetch<'_>,
    path: PermutePath,
) {
    let device = common::device();
    let topk_ids = device.upload(ids).unwrap();
    cuda_driver::sim::take_counters();
    let actual = run_slice(&device, shape, topk_ids.as_slice(), map, Some(prefetch), path, 0xff);
    let counters = cuda_driver::sim::take_counters();
    let bytes = prefetch.bytes;
    assert!(actual == oracle(shape, ids, map), "{shape:?} {path:?} {bytes} bytes, {ids:?} {map:?}");
    if device.is_emulated() {
        let ranges = wanted(shape, ids, map, &prefetch);
        let sum: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        assert!(sum <= bytes as u64);
        let digest = ranges.into_iter().map(prefetch_digest).fold(0, u64::wrapping_add);
        let asked = (counters.l2_prefetch_bytes, counters.l2_prefetch_digest);
        assert_eq!(asked, (sum, digest), "{shape:?} {bytes} bytes, {ids:?} {map:?}");
        assert_eq!(counters.launches, 1);
    }
}

proptest! {
    #![proptest_config(common::cases(24))]

    #[test]
    fn prefetches_by_the_rule(
        tokens in 1usize..=16,
        top_k in 1usize..9,
        experts in prop_oneof![1usize..9, 9usize..80],
        skew in prop::sample::select(SKEWS.to_vec()),
        ranks in prop::sample::select(vec![0usize, 1, 2, 4]),
        (hidden, intermediate) in (1usize..20, 1usize..12),
        // From nothing over parts of either matrix to more than there is.
        part in prop_oneof![Just(0.0), 0.0..1.3],
        path in paths(),
        seed: u64,
    ) {
        let device = common::device();
        prop_assume!(device.family() == Family::Sm90a);
        common::timing(seed);
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let top_k = top_k.min(experts);
        let tokens = tokens.min(64 / top_k);
        let experts = if ranks > 0 { experts.next_multiple_of(ranks) } else { experts };
        let (map, local_experts) = match ranks {
            0 => (None, experts),
            _ => {
                let (map, local) = rank_map(experts, rng.random_range(0..ranks), ranks);
                (Some(map), local)
            }
        };
        let ids = draw_ids(skew, tokens, top_k, experts, rng);
        let shape = PermuteShape { tokens, top_k, experts, local_experts, alignment: 1 };
        let weights = Weights::new(&device, local_experts, 16 * hidden, 16 * intermediate);
        let all = ids.len().min(local_experts) * 3 * weights.hidden * weights.intermediate;
        check_prefetch(shape, &ids, map.as_deref(), weights.prefetch((all as f64 * part) as usize), path);
    }
}

#[test]
fn prefetches_to_the_last_byte() {
    // All of a few experts, the first and the last among them, in whole pieces and a rest; an id twice; none at all.
    let device = common::device();
    if device.family() != Family::Sm90a {
        return;
    }
    let weights = Weights::new(&device, 5, 528, 112);
    let shape = PermuteShape { tokens: 2, top_k: 2, experts: 5, local_experts: 5, alignment: 1 };
    let two = 2 * 3 * 528 * 112;
    for ids in [[0, 4, 4, 0], [4, 4, 4, 4], [-1, 5, i32::MIN, i32::MAX], [3, -1, 1, 3]] {
        for bytes in [0, 224 * 2 * 128 - 1, 224 * 2 * 128, two / 2, two, usize::MAX >> 33] {
            check_prefetch(shape, &ids, None, weights.prefetch(bytes), PermutePath::Auto);
        }
    }
}

#[test]
fn refuses_bad_prefetches() {
    let good = PermuteShape { tokens: 4, top_k: 2, experts: 8, local_experts: 8, alignment: 1 };
    let refusal = |device: &Device, shape: PermuteShape, change: fn(&mut Prefetch<'_>)| {
        let weights = Weights::new(device, 8, 32, 16);
        let mut prefetch = weights.prefetch(1 << 20);
        change(&mut prefetch);
        let stream = device.default_stream();
        let ids = device.zeros::<i32>(shape.rows()).unwrap();
        let mut offsets = device.zeros::<i64>(9).unwrap();
        let mut sorted = device.zeros::<i32>(shape.rows()).unwrap();
        let mut inverse = device.zeros::<i32>(shape.rows()).unwrap();
        let args = Permute {
            topk_ids: ids.as_slice(),
            expert_map: None,
            expert_offsets: offsets.as_mut_slice(),
            sorted_rows: sorted.as_mut_slice(),
            inverse: inverse.as_mut_slice(),
            row_experts: None,
            problem_sizes: None,
            tile_schedule: None,
            prefetch: Some(prefetch),
            path: PermutePath::Auto,
        };
        permute(&stream, shape, args).unwrap_err().to_string()
    };
    for device in common::families() {
        if device.family() != Family::Sm90a {
            assert_eq!(
                refusal(&device, good, |_| ()),
                "permute: prefetch = Some: must be None with kernels of sm_89: only those of sm_90a have it"
            );
            continue;
        }
        let many = PermuteShape { tokens: 33, ..good };
        let cases: [(PermuteShape, fn(&mut Prefetch<'_>), &str); 5] = [
            (many, |_| (), "prefetch = Some: must be None with 66 rows: at most 64 can have it"),
            (good, |p| p.hidden = 24, "hidden = 24: must be a multiple of 16 from 16 to below 2^24"),
            (
                good,
                |p| p.intermediate = 0,
                "intermediate = 0: must be a multiple of 16 from 16 to below 2^24",
            ),
            (good, |p| p.bytes = 1 << 31, "bytes = 2147483648: must be below 2^31"),
            (good, |p| p.hidden = 48, "w13 = 8192 elements: must have at least 12288 elements"),
        ];
        for (shape, change, message) in cases {
            assert_eq!(refusal(&device, shape, change), format!("permute: {message}"));
        }
    }
}
