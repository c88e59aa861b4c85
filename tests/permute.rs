//! `permute` and `permute_rows` against a sort written from the definition, bit for bit.

mod common;
#[path = "common/schedule.rs"]
mod schedule;

use common::gemm::Lists;
use fp8_moe::ops::permute::{
    Permute, PermutePath, PermuteRows, PermuteScales, PermuteShape, ScaleLayout, permute, permute_rows,
};
use fp8_moe::ops::problem_sizes::{
    GemmDimensions, ProblemSizesOut, TILE_SCHEDULE_HEADER, TileScheduleOut, tile_schedule_entries,
};
use fp8_moe::{Buffer, Device, Error, Slice};
use proptest::prelude::*;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const DIMENSIONS: GemmDimensions = GemmDimensions { hidden: 48, intermediate: 80, swap_operands: false };
const BLOCK_M: usize = 16;

/// How ids are drawn.
#[derive(Clone, Copy, Debug)]
enum Skew {
    /// k distinct experts to a token, as a router gives them.
    Distinct,
    /// Expert e with weight 1 / (e + 1).
    Zipf,
    /// All rows on one expert.
    One,
    /// A third of the ids invalid: -1, E, far below and far above.
    Invalid,
    /// No valid id at all.
    AllInvalid,
}

const SKEWS: [Skew; 5] = [Skew::Distinct, Skew::Zipf, Skew::One, Skew::Invalid, Skew::AllInvalid];

fn draw_ids(skew: Skew, tokens: usize, top_k: usize, experts: usize, rng: &mut ChaCha8Rng) -> Vec<i32> {
    let invalid = |rng: &mut ChaCha8Rng| {
        [-1, experts as i32, i32::MIN, i32::MAX, experts as i32 + 1, -7][rng.random_range(0..6)]
    };
    let one = rng.random_range(0..experts as i32);
    let zipf: Vec<f64> = (0..experts).map(|e| 1.0 / (e + 1) as f64).collect();
    let sum: f64 = zipf.iter().sum();
    let mut order: Vec<i32> = (0..experts as i32).collect();
    (0..tokens)
        .flat_map(|_| match skew {
            Skew::Distinct => order.partial_shuffle(rng, top_k).0.to_vec(),
            Skew::One => vec![one; top_k],
            Skew::AllInvalid => (0..top_k).map(|_| invalid(rng)).collect(),
            Skew::Invalid => {
                let draw = |rng: &mut ChaCha8Rng| {
                    if rng.random_bool(0.33) { invalid(rng) } else { rng.random_range(0..experts as i32) }
                };
                (0..top_k).map(|_| draw(rng)).collect()
            }
            Skew::Zipf => (0..top_k)
                .map(|_| {
                    let mut at = rng.random::<f64>() * sum;
                    zipf.iter()
                        .position(|p| {
                            at -= p;
                            at < 0.0
                        })
                        .unwrap_or(experts - 1) as i32
                })
                .collect(),
        })
        .collect()
}

/// The map of rank `rank` of `ranks` equal parts, and the experts of a rank.
fn rank_map(experts: usize, rank: usize, ranks: usize) -> (Vec<i32>, usize) {
    let each = experts / ranks;
    let map = (0..experts).map(|e| if e / each == rank { (e % each) as i32 } else { -1 }).collect();
    (map, each)
}

/// All that `permute` writes.
#[derive(Debug, PartialEq)]
struct Permuted {
    expert_offsets: Vec<i64>,
    sorted_rows: Vec<i32>,
    inverse: Vec<i32>,
    row_experts: Vec<i32>,
    sizes1: Vec<i32>,
    sizes2: Vec<i32>,
    schedule: Vec<[u32; 4]>,
}

/// Appends every expert's rows in ascending order, pads, then appends the invalid rows.
fn oracle(shape: PermuteShape, ids: &[i32], map: Option<&[i32]>) -> Permuted {
    let local = |id: i32| {
        let valid = (0..shape.experts as i32).contains(&id);
        let local = if valid { map.map_or(id, |map| map[id as usize]) } else { -1 };
        (0..shape.local_experts as i32).contains(&local).then_some(local)
    };
    let rows = ids.len() as i32;
    let mut expected = Permuted {
        expert_offsets: vec![0],
        sorted_rows: vec![],
        inverse: vec![-1; ids.len()],
        row_experts: vec![],
        sizes1: vec![],
        sizes2: vec![],
        schedule: vec![],
    };
    for expert in (0..shape.local_experts as i32).map(Some).chain([None]) {
        let first = expected.sorted_rows.len();
        for (r, _) in ids.iter().enumerate().filter(|&(_, &id)| local(id) == expert) {
            expected.inverse[r] = expected.sorted_rows.len() as i32;
            expected.sorted_rows.push(r as i32);
        }
        let Some(expert) = expert else { break };
        let end = expected.sorted_rows.len().next_multiple_of(shape.alignment);
        expected.sorted_rows.resize(end, rows);
        expected.row_experts.resize(end, expert);
        expected.expert_offsets.push(end as i64);
        let m = (end - first) as i32;
        let GemmDimensions { hidden: h, intermediate: i, .. } = DIMENSIONS;
        expected.sizes1.extend([m, 2 * i as i32, h as i32]);
        expected.sizes2.extend([m, h as i32, i as i32]);
        expected.schedule.extend(schedule::tiles(expert as usize, first, end - first, BLOCK_M));
    }
    let valid = expected.expert_offsets[shape.local_experts] as u32;
    expected.schedule.insert(0, [expected.schedule.len() as u32, BLOCK_M as u32, valid, 0]);
    assert!(expected.sorted_rows.len() <= shape.capacity(), "capacity");
    expected.sorted_rows.resize(shape.capacity(), rows);
    expected.row_experts.resize(shape.capacity(), -1);
    expected
}

/// A buffer whose old contents must not matter.
fn poisoned<T: bytemuck::Pod>(device: &Device, len: usize, byte: u8) -> Buffer<T> {
    let mut buffer = device.uninit(len).unwrap();
    buffer.fill_bytes(byte, &device.default_stream()).unwrap();
    buffer
}

fn run(
    device: &Device,
    shape: PermuteShape,
    ids: &[i32],
    map: Option<&[i32]>,
    path: PermutePath,
    poison: u8,
) -> Permuted {
    let topk_ids = device.upload(ids).unwrap();
    run_slice(device, shape, topk_ids.as_slice(), map, path, poison)
}

fn run_slice(
    device: &Device,
    shape: PermuteShape,
    topk_ids: Slice<'_, i32>,
    map: Option<&[i32]>,
    path: PermutePath,
    poison: u8,
) -> Permuted {
    let stream = device.default_stream();
    let expert_map = map.map(|map| device.upload(map).unwrap());
    let mut expert_offsets = poisoned::<i64>(device, shape.local_experts + 1, poison);
    let mut sorted_rows = poisoned::<i32>(device, shape.capacity(), poison);
    let mut inverse = poisoned::<i32>(device, shape.rows(), poison);
    let mut row_experts = poisoned::<i32>(device, shape.capacity(), poison);
    let mut sizes1 = poisoned::<i32>(device, shape.local_experts * 3, poison);
    let mut sizes2 = poisoned::<i32>(device, shape.local_experts * 3, poison);
    let entries = tile_schedule_entries(shape.capacity(), shape.local_experts, BLOCK_M);
    let mut schedule = poisoned::<[u32; 4]>(device, entries, poison);
    let args = Permute {
        topk_ids,
        expert_map: expert_map.as_ref().map(|map| map.as_slice()),
        expert_offsets: expert_offsets.as_mut_slice(),
        sorted_rows: sorted_rows.as_mut_slice(),
        inverse: inverse.as_mut_slice(),
        row_experts: Some(row_experts.as_mut_slice()),
        problem_sizes: Some(ProblemSizesOut {
            dimensions: DIMENSIONS,
            sizes1: sizes1.as_mut_slice(),
            sizes2: sizes2.as_mut_slice(),
        }),
        tile_schedule: Some(TileScheduleOut { block_m: BLOCK_M, entries: schedule.as_mut_slice() }),
        path,
    };
    let permutation = permute(&stream, shape, args).unwrap();
    let list = |list: Option<Slice<'_, i32>>| list.expect("asked for").to_vec(&stream).unwrap();
    let [sizes1, sizes2] = permutation.problem_sizes().expect("asked for").map(|sizes| list(Some(sizes)));
    let mut schedule = permutation.tile_schedule().expect("asked for").to_vec(&stream).unwrap();
    let counters = schedule.drain(1..TILE_SCHEDULE_HEADER).collect::<Vec<_>>();
    assert!(counters.iter().all(|counters| *counters == [0; 4]), "{counters:?}");
    schedule.truncate(1 + schedule[0][0] as usize);
    Permuted {
        expert_offsets: permutation.expert_offsets().to_vec(&stream).unwrap(),
        sorted_rows: list(permutation.sorted_rows()),
        inverse: list(permutation.inverse()),
        row_experts: list(permutation.row_experts()),
        sizes1,
        sizes2,
        schedule,
    }
}

#[track_caller]
fn check(
    device: &Device,
    shape: PermuteShape,
    ids: &[i32],
    map: Option<&[i32]>,
    path: PermutePath,
    poison: u8,
) {
    let expected = oracle(shape, ids, map);
    let actual = run(device, shape, ids, map, path, poison);
    assert!(
        actual == expected,
        "{shape:?} {path:?}\nids {ids:?}\nmap {map:?}\n{actual:?}\ninstead of\n{expected:?}"
    );
}

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

/// Every way to cut the rows: that of the library, one warp with one row to a lane, the largest blocks, and between.
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
fn acceptance_grid() {
    let rng = &mut ChaCha8Rng::seed_from_u64(7);
    for device in common::devices() {
        for tokens in [1, 33, 1024, 5000] {
            for experts in [16, 64, 256] {
                for top_k in [2, 6, 8] {
                    let ids = draw_ids(Skew::Distinct, tokens, top_k, experts, rng);
                    for ranks in [1, 4, 16] {
                        let (map, local_experts) = rank_map(experts, rng.random_range(0..ranks), ranks);
                        for alignment in [1, 128] {
                            let shape = PermuteShape { tokens, top_k, experts, local_experts, alignment };
                            check(&device, shape, &ids, Some(&map), PermutePath::Auto, 0xff);
                        }
                    }
                }
            }
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
    // Ids are read 16 bytes at a time where they can be: slices that begin at any of them, and sizes around those of blocks.
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
    // More keys than threads: the scan over keys goes round more than once. With thousands, fewer warps have rows.
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
        cuda_driver::sim::take_counters();
        check(&device, shape, &ids, None, PermutePath::Auto, 0);
        let counters = cuda_driver::sim::take_counters();
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
        cuda_driver::sim::take_counters();
    }
    let (result, offsets) = attempt(shape, shape, false, PermutePath::Auto);
    result.unwrap();
    assert!(offsets.iter().all(|&offset| offset == -1), "{offsets:?}");
    if device.is_emulated() {
        assert_eq!(cuda_driver::sim::take_counters().launches, 0);
    }
}

/// Permutes ids, copies rows of `columns` elements with `groups` scales each, and compares with the definition.
#[track_caller]
fn check_rows<T: bytemuck::Pod + PartialEq + std::fmt::Debug>(
    device: &Device,
    shape: PermuteShape,
    skew: Skew,
    columns: usize,
    groups: usize,
    column_major_scales: bool,
    seed: u64,
) {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let stream = device.default_stream();
    let ids = draw_ids(skew, shape.tokens, shape.top_k, shape.experts, rng);
    let expected = oracle(shape, &ids, None);
    let capacity = shape.capacity();
    let bytes: Vec<u8> = (0..shape.tokens * columns * size_of::<T>()).map(|_| rng.random()).collect();
    let elements = |bytes: &[u8]| -> Vec<T> {
        bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    };
    let activations = elements(&bytes);
    let scales: Vec<f32> = (0..shape.tokens * groups).map(|_| rng.random()).collect();
    let layout = ScaleLayout::row_major(groups);
    let permuted_layout =
        if column_major_scales { ScaleLayout { row_stride: 1, group_stride: capacity } } else { layout };

    let mut lists = Lists {
        tokens: shape.tokens,
        top_k: shape.top_k,
        sorted_rows: Some(device.upload(&expected.sorted_rows).unwrap()),
        inverse: Some(device.upload(&expected.inverse).unwrap()),
        ..Lists::of_offsets(device, &expected.expert_offsets, capacity)
    };
    let permutation = lists.permutation(&stream);
    let source = device.upload(&activations).unwrap();
    let source_scales = device.upload(&scales).unwrap();
    let mut permuted = poisoned::<T>(device, capacity * columns, 0xee);
    let mut permuted_scales = device.upload(&vec![-1.0f32; capacity * groups]).unwrap();
    let args = PermuteRows {
        activations: source.as_slice(),
        columns,
        scales: (groups > 0).then(|| PermuteScales {
            groups,
            scales: source_scales.as_slice(),
            layout,
            permuted: permuted_scales.as_mut_slice(),
            permuted_layout,
        }),
        permutation: &permutation,
        permuted: permuted.as_mut_slice(),
    };
    permute_rows(&stream, args).unwrap();

    let permuted = permuted.to_vec(&stream).unwrap();
    let permuted_scales = permuted_scales.to_vec(&stream).unwrap();
    let valid = expected.expert_offsets[shape.local_experts] as usize;
    let zeros = vec![T::zeroed(); columns];
    let untouched = elements(&vec![0xee; columns * size_of::<T>()]);
    for (p, &r) in expected.sorted_rows.iter().enumerate() {
        let token = r as usize / shape.top_k;
        let (row, scale): (&[T], &dyn Fn(usize) -> f32) = if p >= valid {
            (&untouched, &|_| -1.0)
        } else if r as usize == ids.len() {
            (&zeros, &|_| 0.0)
        } else {
            (&activations[token * columns..][..columns], &|g| scales[token * groups + g])
        };
        assert_eq!(&permuted[p * columns..][..columns], row, "row {p}");
        for g in 0..groups {
            let index = p * permuted_layout.row_stride + g * permuted_layout.group_stride;
            assert_eq!(permuted_scales[index], scale(g), "scale {g} of row {p}");
        }
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
            check_rows::<u8>(&device, shape, skew, columns, groups, column_major_scales, seed);
            check_rows::<u16>(&device, shape, skew, columns, groups, column_major_scales, seed);
        }
    }
}

#[test]
fn rows_of_published_models() {
    for device in common::devices() {
        for columns in [2048, 7168] {
            let shape = PermuteShape { tokens: 33, top_k: 6, experts: 64, local_experts: 64, alignment: 1 };
            check_rows::<u8>(&device, shape, Skew::Distinct, columns, columns / 128, false, 1);
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
