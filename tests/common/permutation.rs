//! Ids that are drawn, what `permute` makes of them, and what the definition says it must be.
#![allow(dead_code, reason = "every test binary uses its own part of it")]

use fp8_moe::ops::permute::{Permute, PermutePath, PermuteShape, Prefetch, permute};
use fp8_moe::ops::problem_sizes::{
    GemmDimensions, ProblemSizesOut, TILE_SCHEDULE_HEADER, TileScheduleOut, tile_schedule_entries,
};
use fp8_moe::{Buffer, Device, Slice};
use proptest::prelude::*;
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

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

/// The local expert that an id names, if it names one.
pub fn local_expert(shape: PermuteShape, id: i32, map: Option<&[i32]>) -> Option<i32> {
    let valid = (0..shape.experts as i32).contains(&id);
    let local = if valid { map.map_or(id, |map| map[id as usize]) } else { -1 };
    (0..shape.local_experts as i32).contains(&local).then_some(local)
}

/// Appends every expert's rows in ascending order, pads, then appends the invalid rows.
pub fn oracle(shape: PermuteShape, ids: &[i32], map: Option<&[i32]>) -> Permuted {
    let local = |id| local_expert(shape, id, map);
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

/// Runs `permute` on outputs whose old contents are `poison`.
pub fn run_slice(
    device: &Device,
    shape: PermuteShape,
    topk_ids: Slice<'_, i32>,
    map: Option<&[i32]>,
    prefetch: Option<Prefetch<'_>>,
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
        prefetch,
        path,
    };
    permute(&stream, shape, args).unwrap();
    let mut schedule = schedule.to_vec(&stream).unwrap();
    let counters = schedule.drain(1..TILE_SCHEDULE_HEADER).collect::<Vec<_>>();
    assert!(counters.iter().all(|counters| *counters == [0; 4]), "{counters:?}");
    schedule.truncate(1 + schedule[0][0] as usize);
    Permuted {
        expert_offsets: expert_offsets.to_vec(&stream).unwrap(),
        sorted_rows: sorted_rows.to_vec(&stream).unwrap(),
        inverse: inverse.to_vec(&stream).unwrap(),
        row_experts: row_experts.to_vec(&stream).unwrap(),
        sizes1: sizes1.to_vec(&stream).unwrap(),
        sizes2: sizes2.to_vec(&stream).unwrap(),
        schedule,
    }
}

/// Every way to cut the rows: that of the library, one warp with one row to a lane, the largest blocks, and between.
pub fn paths() -> impl Strategy<Value = PermutePath> {
    prop_oneof![
        Just(PermutePath::Auto),
        (1usize..=16, 1usize..=4).prop_map(|(warps, steps)| PermutePath::Blocks { warps, steps }),
    ]
}
