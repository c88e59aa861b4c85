//! `unpermute` of anything; edge shapes, odd numbers, refusals.

use fp8_moe::ops::quantize::{Activations, ActivationsMut};
use fp8_moe::ops::unpermute::{Unpermute, unpermute};
use fp8_moe::{Buffer, Error};
use half::{bf16, f16};
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::common;
use crate::common::gemm::Lists;
use crate::common::portable;
use crate::common::unpermute::{Case, Float, Shape, Types, bits};

#[test]
fn edge_shapes() {
    let device = common::device();
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for types in Types::ALL {
        // No tokens, one column, tails, more slots than are in flight, more tokens than the grid has warps.
        for (tokens, top_k, hidden) in
            [(0, 2, 8), (1, 1, 1), (3, 5, 17), (2, 45, 256), (5, 4, 1025), (9000, 2, 3)]
        {
            Case::draw(types, tokens, top_k, hidden, 0.7, &mut rng).check(&device, 0xff);
        }
    }
}

#[test]
fn older_family() {
    let device = portable();
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for types in Types::ALL {
        Case::draw(types, 9, 6, 264, 0.7, &mut rng).check(&device, 0xff);
        Case::draw(types, 9, 2, 77, 0.7, &mut rng).check(&device, 0xff);
    }
}

#[test]
fn tokens_without_a_local_expert_give_zero() {
    let device = common::device();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for types in Types::ALL {
        let mut case = Case::draw(types, 7, 3, 40, 0.0, &mut rng);
        // Destinations below 0 are as invalid as those past the last.
        case.inverse = vec![-1; 21];
        case.inverse[4] = i32::MIN;
        case.inverse[5] = i32::MAX;
        assert!(case.run(&device, 0xff, false).iter().all(|&x| x.to_bits() == 0));
    }
}

#[test]
fn nan_and_infinity_go_through() {
    let device = common::device();
    let shape = Shape { tokens: 1, top_k: 2, hidden: 3, capacity: 2 };
    let y = vec![f32::NAN, f32::INFINITY, f32::INFINITY, 1.0, 1.0, f32::NEG_INFINITY];
    let types = Types { y: Float::Bf16, out: Float::Bf16 };
    let case = Case { types, shape, valid_rows: 2, y, inverse: vec![0, 1], weights: Some(vec![0.5, 0.5]) };
    let out = case.run(&device, 0, true);
    assert!(out[0].is_nan() && out[1] == f32::INFINITY && out[2].is_nan(), "{out:?}");
}

proptest! {
    #![proptest_config(common::cases(32))]

    #[test]
    fn anything(
        seed: u64,
        tokens in 1..30_usize,
        top_k in 1..12_usize,
        hidden in prop_oneof![1..70_usize, 1..600_usize, (1..80_usize).prop_map(|n| n * 8)],
        types in prop::sample::select(&Types::ALL),
        keep in prop::sample::select(&[0.0, 0.1, 0.7, 1.0]),
        poison: u8,
    ) {
        common::timing(seed);
        let device = common::device();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Case::draw(types, tokens, top_k, hidden, keep, &mut rng).check(&device, poison);
    }

    /// The layer discards its own rows when they have been read. Those of a caller stay.
    #[test]
    fn the_callers_rows_stay(
        seed: u64,
        tokens in 1..20_usize,
        top_k in 1..12_usize,
        hidden in prop_oneof![1..70_usize, (1..10_usize).prop_map(|n| n * 64)],
        settled: bool,
    ) {
        common::timing(seed);
        let (device, types) = (common::device(), Types { y: Float::Bf16, out: Float::F32 });
        let case = Case::draw(types, tokens, top_k, hidden, 0.7, &mut ChaCha8Rng::seed_from_u64(seed));
        let rows: Vec<bf16> = case.y.iter().map(|&y| bf16::from_f32(y)).collect();
        let y = case.upload(&device, &rows);
        let [first, again] = [0; 2].map(|_| case.run_on::<f32>(&device, (&y).into(), 0, settled));
        prop_assert!(bits(&first) == bits(&again));
        let after = y.slice(..rows.len()).to_vec(&device.default_stream()).unwrap();
        prop_assert!(after.iter().zip(&rows).all(|(now, then)| now.to_bits() == then.to_bits()));
    }
}

#[test]
fn refusals_name_argument_value_and_rule() {
    let device = common::device();
    let stream = device.default_stream();
    let y: Buffer<bf16> = device.zeros(32).unwrap();
    let offsets = [0, 2];
    let refusal_of = |y: Activations<'_>, shape: Shape, inverse: bool, out: ActivationsMut<'_>| {
        let mut lists = Lists {
            tokens: shape.tokens,
            top_k: shape.top_k,
            inverse: inverse.then(|| device.upload(&vec![-1; shape.tokens * shape.top_k]).unwrap()),
            ..Lists::of_offsets(&device, &offsets, shape.capacity)
        };
        let permutation = lists.permutation(&stream);
        let (permutation, hidden) = (&permutation, shape.hidden);
        let args = Unpermute { y, permutation, topk_weights: None, addend: None, hidden, out, adds: false };
        match unpermute(&stream, args) {
            Err(error @ Error::Argument { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let refusal = |shape, inverse, out: ActivationsMut<'_>| refusal_of((&y).into(), shape, inverse, out);
    let shape = Shape { tokens: 2, top_k: 2, hidden: 8, capacity: 4 };
    let mut out: Buffer<bf16> = device.zeros(16).unwrap();
    let y_f16: Buffer<f16> = device.zeros(32).unwrap();
    let message = refusal(Shape { hidden: 0, ..shape }, true, (&mut out).into());
    assert_eq!(message, "unpermute: hidden = 0: must be in 1..=16776960");
    let message = refusal(Shape { capacity: 5, ..shape }, true, (&mut out).into());
    assert_eq!(message, "unpermute: y = 32 elements: must have at least 40 elements");
    let message = refusal(Shape { tokens: 3, ..shape }, true, (&mut out).into());
    assert_eq!(message, "unpermute: out = 16 elements: must have at least 24 elements");
    let message = refusal(shape, false, (&mut out).into());
    assert_eq!(message, "unpermute: permutation = without `inverse`: must have `inverse` for this");
    let message = refusal_of((&y_f16).into(), shape, true, (&mut out).into());
    let rule = "must be bf16, f16 or f32 from bf16, or f16 or f32 from f16";
    assert_eq!(message, format!("unpermute: out = bf16 from f16: {rule}"));
}
