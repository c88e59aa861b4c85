//! `problem_sizes`, and the tile schedules of permutations, against their definitions.

use crate::common;
use crate::common::gemm::Lists;
use crate::common::schedule;
use fp8_moe::ops::permutation::{Permutation, PermutationLists};
use fp8_moe::ops::problem_sizes::{
    GemmDimensions, ProblemSizesOut, TILE_SCHEDULE_HEADER, TileScheduleOut, problem_sizes,
    tile_schedule_entries,
};
use fp8_moe::{Device, Error};
use proptest::prelude::*;

/// Offsets of experts with these many rows.
fn offsets(counts: &[usize]) -> Vec<i64> {
    let sums = counts.iter().scan(0, |sum, &count| {
        *sum += count as i64;
        Some(*sum)
    });
    std::iter::once(0).chain(sums).collect()
}

#[track_caller]
fn check_sizes(device: &Device, counts: &[usize], dimensions: GemmDimensions) {
    let stream = device.default_stream();
    let expert_offsets = device.upload(&offsets(counts)).unwrap();
    let mut sizes1 = device.uninit::<i32>(counts.len() * 3).unwrap();
    let mut sizes2 = device.uninit::<i32>(counts.len() * 3).unwrap();
    let out = ProblemSizesOut { dimensions, sizes1: sizes1.as_mut_slice(), sizes2: sizes2.as_mut_slice() };
    problem_sizes(&stream, expert_offsets.as_slice(), counts.len(), out).unwrap();
    let GemmDimensions { hidden, intermediate, swap_operands } = dimensions;
    let size = |m: usize, n: usize, k: usize| if swap_operands { [n, m, k] } else { [m, n, k] };
    let expected = |n, k| counts.iter().flat_map(|&m| size(m, n, k)).map(|x| x as i32).collect::<Vec<_>>();
    assert_eq!(sizes1.to_vec(&stream).unwrap(), expected(2 * intermediate, hidden));
    assert_eq!(sizes2.to_vec(&stream).unwrap(), expected(hidden, intermediate));
}

#[track_caller]
fn check_schedule(device: &Device, counts: &[usize], block_m: usize) {
    let stream = device.default_stream();
    let offsets = offsets(counts);
    let rows = offsets[counts.len()] as usize;
    let capacity = tile_schedule_entries(rows, counts.len(), block_m);
    let mut lists = Lists::of_offsets(device, &offsets, rows).with_schedule(block_m);
    let permutation = lists.permutation(&stream);
    let entries = permutation.tile_schedule().expect("a schedule");

    let mut expected = vec![[0; 4]; TILE_SCHEDULE_HEADER];
    for (expert, &count) in counts.iter().enumerate() {
        expected.extend(schedule::tiles(expert, offsets[expert] as usize, count, block_m));
    }
    let tiles = expected.len() - TILE_SCHEDULE_HEADER;
    expected[0] = [tiles as u32, block_m as u32, rows as u32, 0];
    assert!(expected.len() <= capacity, "{} entries, capacity {capacity}", expected.len());
    assert_eq!(entries.to_vec(&stream).unwrap()[..expected.len()], expected);
}

/// Rows per expert: some empty, some few, now and then many.
fn counts() -> impl Strategy<Value = Vec<usize>> {
    let count = prop_oneof![3 => Just(0usize), 4 => 1usize..40, 1 => 40usize..700];
    prop_oneof![
        6 => prop::collection::vec(count.clone(), 0..40),
        1 => prop::collection::vec(count, 300..1100),
    ]
}

proptest! {
    #![proptest_config(common::cases(32))]

    #[test]
    fn sizes_follow_the_offsets(
        counts in counts(),
        hidden in 1usize..10000,
        intermediate in 1usize..10000,
        swap_operands: bool,
    ) {
        for device in common::devices() {
            check_sizes(&device, &counts, GemmDimensions { hidden, intermediate, swap_operands });
        }
    }

    #[test]
    fn tiles_cover_the_rows(
        counts in counts(),
        block_m in prop_oneof![
            Just(1usize), prop::sample::select(vec![8usize, 16, 64, 128, 256]), 2usize..300
        ],
        seed: u64,
    ) {
        common::timing(seed);
        for device in common::devices() {
            check_schedule(&device, &counts, block_m);
        }
    }
}

#[test]
fn edge_shapes() {
    for device in common::devices() {
        let dimensions = GemmDimensions { hidden: 16, intermediate: 32, swap_operands: true };
        for counts in [vec![], vec![0], vec![1], vec![0; 1500], vec![1; 1025], vec![0, 0, 100_000, 0]] {
            check_sizes(&device, &counts, dimensions);
            check_schedule(&device, &counts, 64);
        }
        let mut last_of_many = vec![0; 3000];
        last_of_many[2999] = 200;
        check_schedule(&device, &last_of_many, 64);
    }
}

#[test]
fn refuses_bad_arguments() {
    let device = common::device();
    let stream = device.default_stream();
    let schedule = |offsets: &[i64], rows, block_m, entries: usize| {
        let mut offsets = device.upload(offsets).unwrap();
        let mut entries = device.zeros::<[u32; 4]>(entries).unwrap();
        let lists = PermutationLists {
            tokens: rows,
            top_k: 1,
            rows,
            expert_offsets: offsets.as_mut_slice(),
            sorted_rows: None,
            inverse: None,
            tile_schedule: Some(TileScheduleOut { block_m, entries: entries.as_mut_slice() }),
        };
        let error = Permutation::from_lists(&stream, lists).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error}");
        error.to_string()
    };
    let offsets = [0, 3, 5];
    assert_eq!(schedule(&offsets, 5, 0, 8), "Permutation: block_m = 0: must be at least 1");
    let short = "Permutation: entries = 68 elements: must have at least 69 elements";
    assert_eq!(schedule(&offsets, 5, 2, 68), short);
    let rule = "offsets ascend from 0 to at most the rows";
    for (offsets, at) in [
        ([1, 3, 5], format!("expert_offsets[0] = 1: must be in 0..=0: {rule}")),
        ([0, 5, 3], format!("expert_offsets[2] = 3: must be in 5..=5: {rule}")),
        ([0, 3, 6], format!("expert_offsets[2] = 6: must be in 3..=5: {rule}")),
        ([0, -1, 5], format!("expert_offsets[1] = -1: must be in 0..=5: {rule}")),
    ] {
        assert_eq!(schedule(&offsets, 5, 2, 69), format!("Permutation: {at}"));
    }

    let offsets = device.upload(&offsets).unwrap();
    let mut sizes1 = device.zeros::<i32>(6).unwrap();
    let mut sizes2 = device.zeros::<i32>(5).unwrap();
    let dimensions = GemmDimensions { hidden: 16, intermediate: 1 << 30, swap_operands: false };
    let out = ProblemSizesOut { dimensions, sizes1: sizes1.as_mut_slice(), sizes2: sizes2.as_mut_slice() };
    let error = problem_sizes(&stream, offsets.as_slice(), 2, out).unwrap_err().to_string();
    assert_eq!(error, "problem_sizes: intermediate = 1073741824: must be below 2^30, so that 2I is an i32");
    let dimensions = GemmDimensions { intermediate: 16, ..dimensions };
    let out = ProblemSizesOut { dimensions, sizes1: sizes1.as_mut_slice(), sizes2: sizes2.as_mut_slice() };
    let error = problem_sizes(&stream, offsets.as_slice(), 2, out).unwrap_err().to_string();
    assert_eq!(error, "problem_sizes: sizes2 = 5 elements: must have at least 6 elements");
}
