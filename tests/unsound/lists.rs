//! Lists that are forged, of another shape, or too short.

use fp8_moe::ops::permutation::Permutation;
use fp8_moe::ops::permute::PermuteShape;
use fp8_moe::ops::problem_sizes::{TILE_SCHEDULE_HEADER, TileScheduleOut};
use fp8_moe::{Device, Error};
use proptest::prelude::*;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::common::gemm::{Lists, devices};
use crate::{BLOCK_M, Memory, Sizes, any_number, assert_harmless, common, operations, shapes};

/// Lists of a permutation as a program of its own might make them, and whether they are still right.
pub struct Forged {
    tokens: usize,
    top_k: usize,
    offsets: Vec<i64>,
    sorted_rows: Vec<i32>,
    inverse: Vec<i32>,
}

impl Forged {
    /// Right ones, with padding and invalid rows.
    pub fn right(
        tokens: usize,
        top_k: usize,
        experts: usize,
        padding: usize,
        rng: &mut ChaCha8Rng,
    ) -> Forged {
        let expanded = tokens * top_k;
        let valid = rng.random_range(0..=expanded + padding);
        let mut sorted_rows: Vec<i32> = (0..(expanded + padding) as i32).collect();
        sorted_rows.shuffle(rng);
        let mut inverse = vec![-1; expanded];
        for (row, &r) in sorted_rows.iter().enumerate() {
            if let Some(place) = inverse.get_mut(r as usize) {
                *place = row as i32;
            }
        }
        let mut offsets: Vec<i64> = (1..experts).map(|_| rng.random_range(0..=valid as i64)).collect();
        offsets.extend([0, valid as i64]);
        offsets.sort_unstable();
        Forged { tokens, top_k, offsets, sorted_rows, inverse }
    }

    /// Changes an element to any number.
    fn forge(&mut self, rng: &mut ChaCha8Rng) {
        let value = any_number(rng);
        match rng.random_range(0..3) {
            0 => {
                let at = rng.random_range(0..self.offsets.len());
                self.offsets[at] = if rng.random_bool(0.5) { rng.random() } else { value.into() };
            }
            1 if !self.sorted_rows.is_empty() => {
                let at = rng.random_range(0..self.sorted_rows.len());
                self.sorted_rows[at] = value;
            }
            _ if !self.inverse.is_empty() => {
                let at = rng.random_range(0..self.inverse.len());
                self.inverse[at] = value;
            }
            _ => {}
        }
    }

    /// The definition: offsets ascend from 0 to at most the rows, and the two lists are each other's inverse
    /// on the valid rows.
    fn is_right(&self) -> bool {
        let (rows, expanded) = (self.sorted_rows.len() as i64, self.inverse.len() as i64);
        let ascends = self.offsets[0] == 0 && self.offsets.windows(2).all(|pair| pair[0] <= pair[1]);
        let valid = self.offsets[self.offsets.len() - 1];
        let inside = |value: i32, end: i64| (0..end).contains(&i64::from(value));
        ascends
            && valid <= rows
            && self.sorted_rows[..valid as usize]
                .iter()
                .enumerate()
                .all(|(row, &r)| !inside(r, expanded) || self.inverse[r as usize] as usize == row)
            && self
                .inverse
                .iter()
                .enumerate()
                .all(|(r, &row)| !inside(row, valid) || self.sorted_rows[row as usize] as usize == r)
    }

    pub fn upload(&self, device: &Device) -> Lists {
        Lists {
            tokens: self.tokens,
            top_k: self.top_k,
            sorted_rows: Some(device.upload(&self.sorted_rows).unwrap()),
            inverse: Some(device.upload(&self.inverse).unwrap()),
            ..Lists::of_offsets(device, &self.offsets, self.sorted_rows.len()).with_schedule(BLOCK_M)
        }
    }
}

proptest! {
    #![proptest_config(common::cases(24))]

    /// Ids and maps may hold anything: no operation behind the sort leaves its memory.
    #[test]
    fn any_ids_and_any_map(shape in shapes(), has_map: bool, seed: u64) {
        common::timing(seed);
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let local_experts = if has_map { shape.local_experts } else { shape.experts };
        let shape = PermuteShape { local_experts, ..shape };
        let ids: Vec<i32> = (0..shape.rows()).map(|_| any_number(rng)).collect();
        let map: Vec<i32> = (0..shape.experts).map(|_| any_number(rng)).collect();
        for device in devices() {
            let stream = device.default_stream();
            let (ids, map) = (device.upload(&ids).unwrap(), device.upload(&map).unwrap());
            let mut memory = Memory::new(&device, shape);
            let sizes = memory.sizes();
            let mut permutation = memory.permute(&stream, &ids, has_map.then_some(&map)).unwrap();
            for result in operations(&device, &stream, &mut permutation, sizes) {
                result.unwrap_or_else(|e| panic!("{shape:?}: {e}"));
            }
        }
    }

    /// A permutation of other sizes than the buffers and the plan is refused, or suffices.
    #[test]
    fn another_shape(shape in shapes(), other in shapes(), seed: u64) {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let shape = PermuteShape { local_experts: shape.experts, ..shape };
        let ids: Vec<i32> = (0..shape.rows()).map(|_| any_number(rng)).collect();
        for device in devices() {
            let stream = device.default_stream();
            let ids = device.upload(&ids).unwrap();
            let mut memory = Memory::new(&device, shape);
            let own = memory.sizes();
            let others = Memory::new(&device, other).sizes();
            let mut permutation = memory.permute(&stream, &ids, None).unwrap();
            let results = operations(&device, &stream, &mut permutation, others);
            assert_harmless(&results);
            let [_, scatter, _, multiplied, activated, _] = results;
            prop_assert_eq!(scatter.is_ok(), own.tokens == others.tokens && own.rows <= others.rows);
            let same = own.rows == others.rows;
            prop_assert_eq!(multiplied.is_ok(), same && own.experts == others.experts);
            prop_assert_eq!(activated.is_ok(), same);
        }
    }

    /// The checked constructor takes right lists and refuses all others; with those that it takes nothing
    /// goes wrong.
    #[test]
    fn forged_lists(
        tokens in 0usize..12,
        top_k in 1usize..5,
        experts in 1usize..6,
        padding in 0usize..6,
        forgeries in 0usize..3,
        seed: u64,
    ) {
        common::timing(seed);
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let padding = if tokens == 0 { 0 } else { padding };
        let mut forged = Forged::right(tokens, top_k, experts, padding, rng);
        for _ in 0..forgeries {
            forged.forge(rng);
        }
        let sizes = Sizes { tokens, rows: forged.sorted_rows.len(), experts };
        for device in devices() {
            let stream = device.default_stream();
            let mut lists = forged.upload(&device);
            match Permutation::from_lists(&stream, lists.borrow()) {
                Ok(mut permutation) => {
                    prop_assert!(forged.is_right(), "accepted");
                    for result in operations(&device, &stream, &mut permutation, sizes) {
                        result.unwrap_or_else(|e| panic!("{e}"));
                    }
                }
                Err(error) => {
                    prop_assert!(matches!(error, Error::Argument { .. }), "{}", error);
                    prop_assert!(!forged.is_right(), "{}", error);
                }
            }
        }
    }

    /// Lists and schedules of one's own that are an element too short are refused.
    #[test]
    fn short_lists(tokens in 1usize..12, top_k in 1usize..5, which in 0usize..4, seed: u64) {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let forged = Forged::right(tokens, top_k, 3, 2, rng);
        let (device, stream) = (common::device(), common::device().default_stream());
        let mut owned = forged.upload(&device);
        let mut lists = owned.borrow();
        match which {
            0 => lists.sorted_rows = lists.sorted_rows.map(|list| list.into_slice_mut(1..)),
            1 => lists.inverse = lists.inverse.map(|list| list.into_slice_mut(1..)),
            2 => lists.expert_offsets = lists.expert_offsets.into_slice_mut(..0),
            _ => {
                lists.tile_schedule = lists.tile_schedule.map(|schedule| TileScheduleOut {
                    entries: schedule.entries.into_slice_mut(1..),
                    ..schedule
                });
            }
        }
        let error = Permutation::from_lists(&stream, lists).unwrap_err();
        prop_assert!(matches!(error, Error::Argument { .. }), "{}", error);
    }
}

/// A permutation serves any number of GEMMs: each leaves the counters of the schedule at 0, and gives the
/// same.
#[test]
fn a_permutation_is_used_again_and_again() {
    let shape = PermuteShape { tokens: 20, top_k: 2, experts: 4, local_experts: 4, alignment: 1 };
    for device in devices() {
        let stream = device.default_stream();
        let ids = device.upload(&(0..40).map(|r| r * 7 % 5).collect::<Vec<i32>>()).unwrap();
        let mut memory = Memory::new(&device, shape);
        let sizes = memory.sizes();
        let mut permutation = memory.permute(&stream, &ids, None).unwrap();
        let schedule = |permutation: &Permutation<'_>| {
            permutation
                .tile_schedule()
                .expect("a schedule")
                .slice(..TILE_SCHEDULE_HEADER)
                .to_vec(&stream)
                .unwrap()
        };
        let before = schedule(&permutation);
        for _ in 0..3 {
            for result in operations(&device, &stream, &mut permutation, sizes) {
                result.unwrap();
            }
            assert_eq!(schedule(&permutation), before);
        }
    }
}

/// Of no tokens nothing is computed, and nothing is read: the lists are uninitialised, which the emulated
/// device would report.
#[test]
fn no_tokens() {
    let shape = PermuteShape { tokens: 0, top_k: 2, experts: 4, local_experts: 4, alignment: 16 };
    for device in devices() {
        let stream = device.default_stream();
        let ids = device.uninit::<i32>(0).unwrap();
        let mut memory = Memory::new(&device, shape);
        let sizes = memory.sizes();
        let mut permutation = memory.permute(&stream, &ids, None).unwrap();
        for result in operations(&device, &stream, &mut permutation, sizes) {
            result.unwrap();
        }
    }
}
