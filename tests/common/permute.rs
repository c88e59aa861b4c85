//! `permute` and `permute_rows` against a sort written from the definition, bit for bit.

use fp8_moe::ops::permute::{
    Permute, PermutePath, PermuteRows, PermuteScales, PermuteShape, ScaleLayout, permute, permute_rows,
};
use fp8_moe::ops::problem_sizes::{
    GemmDimensions, ProblemSizesOut, TILE_SCHEDULE_HEADER, TileScheduleOut, tile_schedule_entries,
};
use fp8_moe::{Buffer, Device, Slice};
use rand::seq::SliceRandom;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::gemm::Lists;
use super::schedule;

pub const DIMENSIONS: GemmDimensions = GemmDimensions { hidden: 48, intermediate: 80, swap_operands: false };

pub const BLOCK_M: usize = 16;

/// How ids are drawn.
#[derive(Clone, Copy, Debug)]
pub enum Skew {
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

pub const SKEWS: [Skew; 5] = [Skew::Distinct, Skew::Zipf, Skew::One, Skew::Invalid, Skew::AllInvalid];

pub fn draw_ids(skew: Skew, tokens: usize, top_k: usize, experts: usize, rng: &mut ChaCha8Rng) -> Vec<i32> {
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
pub fn rank_map(experts: usize, rank: usize, ranks: usize) -> (Vec<i32>, usize) {
    let each = experts / ranks;
    let map = (0..experts).map(|e| if e / each == rank { (e % each) as i32 } else { -1 }).collect();
    (map, each)
}

/// All that `permute` writes.
#[derive(Debug, PartialEq)]
pub struct Permuted {
    pub expert_offsets: Vec<i64>,
    pub sorted_rows: Vec<i32>,
    pub inverse: Vec<i32>,
    pub row_experts: Vec<i32>,
    pub sizes1: Vec<i32>,
    pub sizes2: Vec<i32>,
    pub schedule: Vec<[u32; 4]>,
}

/// Appends every expert's rows in ascending order, pads, then appends the invalid rows.
pub fn oracle(shape: PermuteShape, ids: &[i32], map: Option<&[i32]>) -> Permuted {
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
pub fn poisoned<T: bytemuck::Pod>(device: &Device, len: usize, byte: u8) -> Buffer<T> {
    let mut buffer = device.uninit(len).unwrap();
    buffer.fill_bytes(byte, &device.default_stream()).unwrap();
    buffer
}

pub fn run(
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

pub fn run_slice(
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
pub fn check(
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

/// Permutes ids, copies rows of `columns` elements with `groups` scales each, and compares with the
/// definition.
#[track_caller]
pub fn check_rows<T: bytemuck::Pod + PartialEq + std::fmt::Debug>(
    device: &Device,
    shape: PermuteShape,
    (skew, map): (Skew, Option<&[i32]>),
    columns: usize,
    groups: usize,
    column_major_scales: bool,
    seed: u64,
) {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let stream = device.default_stream();
    let ids = draw_ids(skew, shape.tokens, shape.top_k, shape.experts, rng);
    let expected = oracle(shape, &ids, map);
    let capacity = shape.capacity();
    let mut bytes = vec![0; shape.tokens * columns * size_of::<T>()];
    rng.fill_bytes(&mut bytes);
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
