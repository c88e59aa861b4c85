//! `permute` and `permute_rows` of anything; edge shapes, counters, refusals.

use fp8_moe::Error;
use fp8_moe::ops::permute::{Permute, PermutePath, PermuteShape, permute};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::common;
use crate::common::permute::{SKEWS, Skew, check, check_rows, draw_ids, oracle, rank_map, run, run_slice};

#[test]
fn a_small_example() {
    // The one drawn in the kernels' documentation.
    let device = common::device();
    let ids = [2, 0, 1, -1, 0, 2, 2, 0];
    let shape = PermuteShape { tokens: 4, top_k: 2, experts: 3, local_experts: 3, alignment: 1 };
    let plain = run(&device, shape, &ids, None, PermutePath::Auto, 0xff);
    assert_eq!(plain.expert_offsets, [0, 3, 4, 7]);
    assert_eq!(plain.sorted_rows, [1, 4, 7, 2, 0, 5, 6, 3]);
    assert_eq!(plain.inverse, [4, 0, 3, 7, 1, 5, 6, 2]);
    let shape = PermuteShape { alignment: 2, ..shape };
    let aligned = run(&device, shape, &ids, None, PermutePath::Auto, 0xff);
    assert_eq!(aligned.expert_offsets, [0, 4, 6, 10]);
    assert_eq!(aligned.sorted_rows, [1, 4, 7, 8, 2, 8, 0, 5, 6, 8, 3, 8]);
    assert_eq!(aligned.row_experts, [0, 0, 0, 0, 1, 1, 2, 2, 2, 2, -1, -1]);
}

/// Every way to cut the rows: that of the library, one warp with one row to a lane, the largest blocks, and
/// between.
fn paths() -> impl Strategy<Value = PermutePath> {
    prop_oneof![
        Just(PermutePath::Auto),
        (1usize..=16, 1usize..=4).prop_map(|(warps, steps)| PermutePath::Blocks { warps, steps }),
    ]
}

proptest! {
    #![proptest_config(common::cases(48))]

    #[test]
    fn equals_the_sort(
        tokens in prop_oneof![1usize..8, 8usize..300],
        experts in prop_oneof![1usize..9, 9usize..80, 250usize..600],
        top_k in prop_oneof![Just(usize::MAX), 1usize..9],
        skew in prop::sample::select(SKEWS.to_vec()),
        alignment in prop::sample::select(vec![1usize, 1, 2, 3, 16, 128]),
        ranks in prop::sample::select(vec![0usize, 1, 2, 4]),
        path in paths(),
        poison: u8,
        seed: u64,
    ) {
        common::timing(seed);
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        // k = E where the draw says "all", as long as the rows stay few.
        let top_k = if top_k == usize::MAX { experts.min(64) } else { top_k.min(experts) };
        let tokens = tokens.min(2400 / top_k);
        let experts = if ranks > 0 { experts.next_multiple_of(ranks) } else { experts };
        let (map, local_experts) = match ranks {
            0 => (None, experts),
            _ => {
                let (map, local) = rank_map(experts, rng.random_range(0..ranks), ranks);
                (Some(map), local)
            }
        };
        let ids = draw_ids(skew, tokens, top_k, experts, rng);
        let shape = PermuteShape { tokens, top_k, experts, local_experts, alignment };
        for device in common::devices() {
            check(&device, shape, &ids, map.as_deref(), path, poison);
        }
    }

    #[test]
    fn any_expert_map_is_legal(
        map in prop::collection::vec(prop_oneof![-3i32..6, Just(i32::MIN), Just(i32::MAX)], 1..20),
        local_experts in 0usize..5,
        tokens in 1usize..40,
        seed: u64,
    ) {
        common::timing(seed);
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let ids = draw_ids(Skew::Invalid, tokens, 1, map.len(), rng);
        let shape = PermuteShape { tokens, top_k: 1, experts: map.len(), local_experts, alignment: 1 };
        for device in common::devices() {
            check(&device, shape, &ids, Some(&map), PermutePath::Auto, 0xa5);
        }
    }
}

#[test]
fn the_cut_does_not_show() {
    let device = common::device();
    let rng = &mut ChaCha8Rng::seed_from_u64(3);
    let shape = PermuteShape { tokens: 700, top_k: 6, experts: 40, local_experts: 40, alignment: 1 };
    for skew in SKEWS {
        let ids = draw_ids(skew, shape.tokens, shape.top_k, shape.experts, rng);
        let expected = oracle(shape, &ids, None);
        for warps in [1, 2, 3, 7, 16] {
            for steps in 1..=4 {
                let path = PermutePath::Blocks { warps, steps };
                common::timing(rng.random());
                assert!(run(&device, shape, &ids, None, path, 0xff) == expected, "{skew:?} {path:?}");
            }
        }
    }
}

#[test]
fn ids_begin_and_end_anywhere() {
    // Ids are read 16 bytes at a time where they can be: slices that begin at any of them, and sizes around
    // those of blocks.
    let device = common::device();
    let rng = &mut ChaCha8Rng::seed_from_u64(9);
    for (case, tokens) in [1, 2, 3, 31, 33, 64, 511, 512, 513, 1025, 2049].into_iter().enumerate() {
        let shape = PermuteShape { tokens, top_k: 1, experts: 20, local_experts: 20, alignment: 1 };
        let ids = draw_ids(SKEWS[case % 5], tokens, 1, 20, rng);
        let expected = oracle(shape, &ids, None);
        for skip in 0..4 {
            // What lies before and behind is a valid id, which must not be counted.
            let buffer = device.upload(&[vec![3; skip], ids.clone(), vec![3; 4]].concat()).unwrap();
            for (warps, steps) in [(1, 1), (16, 1), (16, 4)] {
                let path = PermutePath::Blocks { warps, steps };
                let actual = run_slice(&device, shape, buffer.slice(skip..skip + tokens), None, path, 0xff);
                assert!(actual == expected, "{tokens} rows after {skip}, {path:?}");
            }
        }
    }
}

#[test]
fn many_experts() {
    // More keys than threads: the scan over keys goes round more than once. With thousands, fewer warps have
    // rows.
    let device = common::device();
    let rng = &mut ChaCha8Rng::seed_from_u64(11);
    for (experts, tokens) in [(511, 40), (512, 200), (1023, 40), (1024, 40), (2500, 300), (7000, 64)] {
        let ids = draw_ids(Skew::Invalid, tokens, 8, experts, rng);
        let shape = PermuteShape { tokens, top_k: 8, experts, local_experts: experts, alignment: 4 };
        check(&device, shape, &ids, None, PermutePath::Auto, 0x5a);
        check(&device, shape, &ids, None, PermutePath::Blocks { warps: 3, steps: 1 }, 0x5a);
    }
}

#[test]
fn one_launch_with_four_barriers() {
    let device = common::device();
    if !device.is_emulated() {
        return;
    }
    let rng = &mut ChaCha8Rng::seed_from_u64(13);
    for (tokens, blocks) in [(1, 1), (64, 1), (65, 2), (512, 8), (4096, 64)] {
        let shape = PermuteShape { tokens, top_k: 8, experts: 256, local_experts: 256, alignment: 1 };
        let ids = draw_ids(Skew::Distinct, tokens, 8, 256, rng);
        cust::sim::take_counters();
        check(&device, shape, &ids, None, PermutePath::Auto, 0);
        let counters = cust::sim::take_counters();
        assert_eq!((counters.launches, counters.blocks), (1, blocks), "{tokens} tokens");
        // Four barriers of 16 warps, whatever the size; and every block reads each id once, besides its own.
        assert_eq!(counters.barriers, blocks * 4 * 16, "{tokens} tokens");
        let ids = shape.rows() as u64 * 4;
        let own_and_all = if blocks == 1 { ids } else { ids + blocks * ids };
        assert_eq!(counters.global_load_bytes, own_and_all, "{tokens} tokens");
    }
}

#[test]
fn no_tokens_launch_nothing() {
    let device = common::device();
    let shape = PermuteShape { tokens: 0, top_k: 2, experts: 4, local_experts: 4, alignment: 128 };
    if device.is_emulated() {
        cust::sim::take_counters();
    }
    let (result, offsets) = attempt(shape, shape, false, PermutePath::Auto);
    result.unwrap();
    assert!(offsets.iter().all(|&offset| offset == -1), "{offsets:?}");
    if device.is_emulated() {
        assert_eq!(cust::sim::take_counters().launches, 0);
    }
}

proptest! {
    #![proptest_config(common::cases(24))]

    #[test]
    fn rows_follow(
        tokens in 1usize..40,
        experts in 1usize..12,
        top_k in 1usize..5,
        columns in prop::sample::select(vec![1usize, 15, 16, 17, 128, 192, 520]),
        groups in 0usize..4,
        alignment in prop::sample::select(vec![1usize, 4, 128]),
        skew in prop::sample::select(SKEWS.to_vec()),
        column_major_scales: bool,
        seed: u64,
    ) {
        common::timing(seed);
        let top_k = top_k.min(experts);
        let shape = PermuteShape { tokens, top_k, experts, local_experts: experts, alignment };
        for device in common::devices() {
            check_rows::<u8>(&device, shape, (skew, None), columns, groups, column_major_scales, seed);
            check_rows::<u16>(&device, shape, (skew, None), columns, groups, column_major_scales, seed);
        }
    }
}

/// Runs `permute` of `shape` on buffers for the shape `enough`: the result, and the offsets, which were -1.
fn attempt(
    shape: PermuteShape,
    enough: PermuteShape,
    with_map: bool,
    path: PermutePath,
) -> (fp8_moe::Result<()>, Vec<i64>) {
    let device = common::device();
    let stream = device.default_stream();
    let ids = device.zeros::<i32>(enough.rows()).unwrap();
    let map = device.zeros::<i32>(enough.experts).unwrap();
    let mut offsets = device.upload(&vec![-1i64; enough.local_experts + 1]).unwrap();
    let mut sorted = device.zeros::<i32>(enough.capacity()).unwrap();
    let mut inverse = device.zeros::<i32>(enough.rows()).unwrap();
    let args = Permute {
        topk_ids: ids.as_slice(),
        expert_map: with_map.then(|| map.as_slice()),
        expert_offsets: offsets.as_mut_slice(),
        sorted_rows: sorted.as_mut_slice(),
        inverse: inverse.as_mut_slice(),
        row_experts: None,
        problem_sizes: None,
        tile_schedule: None,
        path,
    };
    let result = permute(&stream, shape, args).map(|_| ());
    (result, offsets.to_vec(&stream).unwrap())
}

#[track_caller]
fn refusal(shape: PermuteShape, enough: PermuteShape, with_map: bool, path: PermutePath) -> String {
    let error = attempt(shape, enough, with_map, path).0.unwrap_err();
    assert!(matches!(error, Error::Argument { .. }), "{error}");
    error.to_string()
}

#[test]
fn refuses_bad_arguments() {
    let good = PermuteShape { tokens: 4, top_k: 2, experts: 8, local_experts: 8, alignment: 1 };
    let cases: [(PermuteShape, bool, &str); 8] = [
        (
            PermuteShape { top_k: 9, ..good },
            false,
            "permute: top_k = 9: must be in 1..=8, the number of experts",
        ),
        (
            PermuteShape { top_k: 0, ..good },
            false,
            "permute: top_k = 0: must be in 1..=8, the number of experts",
        ),
        (PermuteShape { experts: 0, ..good }, false, "permute: experts = 0: must be at least 1"),
        (PermuteShape { alignment: 0, ..good }, false, "permute: alignment = 0: must be at least 1"),
        (
            PermuteShape { local_experts: 4, ..good },
            false,
            "permute: local_experts = 4: must be 8, the number of experts, without an expert_map",
        ),
        (
            PermuteShape { tokens: 1 << 30, ..good },
            false,
            "permute: tokens = 1073741824: must be at most 1073741823 with top_k 2: rows are counted in i32",
        ),
        (
            PermuteShape { tokens: 5, ..good },
            false,
            "permute: topk_ids = 8 elements: must have at least 10 elements",
        ),
        (
            PermuteShape { alignment: 1 << 29, ..good },
            false,
            "permute: alignment = 536870912: must keep the 8 rows of 8 experts below 2^31",
        ),
    ];
    for (shape, with_map, message) in cases {
        assert_eq!(refusal(shape, good, with_map, PermutePath::Auto), message);
    }
    let crowd = PermuteShape { experts: 1 << 20, local_experts: 1 << 20, ..good };
    assert!(
        refusal(crowd, crowd, false, PermutePath::Auto)
            .starts_with("permute: local_experts = 1048576: must be at most ")
    );
    for (warps, steps, rule) in
        [(17, 1, "warps = 17: must be in 1..=16"), (16, 5, "steps = 5: must be in 1..=4")]
    {
        let message = refusal(good, good, false, PermutePath::Blocks { warps, steps });
        assert_eq!(message, format!("permute: {rule}"));
    }
}
