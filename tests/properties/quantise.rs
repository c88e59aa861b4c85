//! `quantize` of anything: every scheme, element type and destination, in shapes with tails; what it refuses.

use fp8_moe::ops::permute::ScaleLayout;
use fp8_moe::ops::quantize::{
    Destinations, Quantize, QuantizeShape, Scheme, quantize, quantize_workspace_bytes,
};
use fp8_moe::{Buffer, E4m3, Error};
use half::bf16;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::common;
use crate::common::gemm::Lists;
use crate::common::quantise::{Case, MODES, Mode, Places, TYPES, Type, dense, draw_scatter, draw_values};
use crate::common::{e4m3, portable};

#[test]
fn long_rows() {
    let device = common::device();
    // Past what the per-row kernels keep in shared memory.
    for columns in [16384 + 8, 20001] {
        dense(Type::Bf16, Mode::Token(None), 2, columns, 3).check(&device, 0xff);
        dense(Type::F32, Mode::Token(Some(0.2)), 1, columns, 4).check(&device, 0xff);
    }
}

#[test]
fn division_is_ieee_where_it_decides() {
    let device = common::device();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    // Values within a few units of scale times every e4m3 value and midpoint: the quotient's last bit
    // decides.
    let marks: Vec<f32> = (0..0x7e)
        .flat_map(|c| {
            let (low, high) = (e4m3::decode(c), e4m3::decode(c + 1));
            [low, (low + high) / 2.0]
        })
        .collect();
    for round in 0..24 {
        let absmax = (1.0 + rng.random::<f32>()) * 2f32.powi(rng.random_range(-9..20));
        let mode = [Mode::Token(None), Mode::Group(128, false), Mode::Token(Some(absmax / 3.0))][round % 3];
        let scale = match mode {
            Mode::Token(Some(limit)) => e4m3::scale(limit),
            Mode::Token(None) => e4m3::scale(absmax),
            _ => e4m3::group_scale(absmax),
        };
        let mut x = vec![];
        for mark in &marks {
            for ulps in -3..=3 {
                let near = mark * scale;
                let bits = (near.to_bits() as i32 + ulps).max(0) as u32;
                x.push(f32::from_bits(bits).min(absmax) * if rng.random() { 1.0 } else { -1.0 });
            }
        }
        let columns = 128;
        x.resize(x.len().next_multiple_of(columns), -0.0);
        for row in x.chunks_mut(columns) {
            row[rng.random_range(0..columns)] = absmax;
        }
        let rows = x.len() / columns;
        let case = Case { ty: Type::F32, rows, columns, x, row_weight: None, places: Places::Identity, mode };
        case.check(&device, 0xff);
    }
}

#[test]
fn older_family() {
    let device = portable();
    for (i, mode) in MODES.into_iter().enumerate() {
        dense(TYPES[i % 3], mode, 5, 1024, 6).check(&device, 0xff);
        dense(TYPES[(i + 1) % 3], mode, 5, 77, 7).check(&device, 0xff);
    }
}

#[test]
fn no_rows() {
    let device = common::device();
    for mode in MODES {
        for places in [Places::Identity, Places::Valid(0), {
            let mut rng = ChaCha8Rng::seed_from_u64(0);
            Places::Scatter(draw_scatter(0, 2, 1.0, false, &mut rng))
        }] {
            let case =
                Case { ty: Type::Bf16, rows: 0, columns: 40, x: vec![], row_weight: None, places, mode };
            case.check(&device, 0xee);
        }
    }
}

proptest! {
    #![proptest_config(common::cases(64))]

    #[test]
    fn anything(
        seed: u64,
        rows in 1..40_usize,
        columns in prop_oneof![1..70_usize, 1..700_usize, (1..90_usize).prop_map(|n| n * 8)],
        ty in prop::sample::select(&TYPES),
        mode in prop::sample::select(&MODES),
        places in 0..6_usize,
        top_k in 1..10_usize,
        keep in prop::sample::select(&[0.0, 0.1, 0.7, 1.0]),
        weighted: bool,
        special: bool,
        poison: u8,
    ) {
        common::timing(seed);
        let device = common::device();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let places = match places {
            0 => Places::Identity,
            1 => Places::Valid(rng.random_range(0..=rows)),
            2 | 3 => Places::Scatter(draw_scatter(rows, top_k, keep, places == 3, &mut rng)),
            _ => Places::Scales(draw_scatter(rows, top_k, keep, places == 5, &mut rng)),
        };
        let x = draw_values(ty, rows * columns, special, &mut rng);
        let row_weight = weighted.then(|| (0..rows).map(|_| rng.random()).collect());
        Case { ty, rows, columns, x, row_weight, places, mode }.check(&device, poison);
    }
}

#[test]
fn many_slots_and_invalid_destinations() {
    let device = common::device();
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    // More slots than a warp has lanes; and destinations below 0, which are as invalid as those past the
    // last.
    let mut scatter = draw_scatter(5, 45, 0.4, true, &mut rng);
    let valid_rows = scatter.valid_rows as i32;
    for destination in scatter.inverse.iter_mut().filter(|destination| **destination >= valid_rows) {
        *destination = [-1, i32::MIN, i32::MAX, valid_rows][rng.random_range(0..4)];
    }
    for mode in MODES {
        let x = draw_values(Type::Bf16, 5 * 300, false, &mut rng);
        for places in [Places::Scatter(scatter.clone()), Places::Scales(scatter.clone())] {
            let x = x.clone();
            Case { ty: Type::Bf16, rows: 5, columns: 300, x, row_weight: None, places, mode }
                .check(&device, 1);
        }
    }
}

#[test]
fn refusals_name_argument_value_and_rule() {
    let device = common::device();
    let stream = device.default_stream();
    let x: Buffer<bf16> = device.zeros(64).unwrap();
    let scale: Buffer<f32> = device.zeros(1).unwrap();
    let refusal = |shape: QuantizeShape, destinations: Destinations<'_>, scheme: Scheme<'_>, q_len: usize| {
        let mut q: Buffer<E4m3> = device.zeros(q_len).unwrap();
        let args = Quantize {
            x: (&x).into(),
            row_weight: None,
            destinations,
            scheme,
            q: q.as_mut_slice(),
            cleared: None,
        };
        match quantize(&stream, shape, args) {
            Err(error @ Error::Argument { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let shape = QuantizeShape { rows: 2, columns: 32 };
    let given = || Scheme::TensorStatic { scale: scale.as_slice() };
    let mut scales: Buffer<f32> = device.zeros(2).unwrap();
    let identity = Destinations::Identity;

    let message = refusal(QuantizeShape { rows: 2, columns: 0 }, identity, given(), 64);
    assert_eq!(message, "quantize: columns = 0: must be in 1..=16776960");
    let message = refusal(QuantizeShape { rows: 3, columns: 32 }, identity, given(), 96);
    assert_eq!(message, "quantize: x = 64 elements: must have at least 96 elements");
    let message = refusal(shape, identity, given(), 63);
    assert_eq!(message, "quantize: q = 63 elements: must have at least 64 elements");
    let scheme =
        Scheme::Group { group_size: 32, scales: scales.as_mut_slice(), layout: ScaleLayout::row_major(1) };
    assert_eq!(refusal(shape, identity, scheme, 64), "quantize: group_size = 32: must be 64 or 128");
    let scheme =
        Scheme::Group { group_size: 64, scales: scales.as_mut_slice(), layout: ScaleLayout::row_major(2) };
    assert_eq!(
        refusal(shape, identity, scheme, 64),
        "quantize: scales = 2 elements: must have at least 3 elements"
    );
    for limit in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let scheme = Scheme::Token { scales: scales.as_mut_slice(), absmax_limit: Some(limit) };
        let message = refusal(shape, identity, scheme, 64);
        assert_eq!(
            message,
            format!("quantize: absmax_limit = {limit}: must be over 0 and at most 1.7014117e38")
        );
    }
    let mut workspace = device.zeros(8).unwrap();
    let scheme = Scheme::TensorDynamic { scale: scales.as_mut_slice(), workspace: workspace.as_mut_slice() };
    let rule = format!("must have at least {} elements", quantize_workspace_bytes());
    assert_eq!(refusal(shape, identity, scheme, 64), format!("quantize: workspace = 8 elements: {rule}"));
    let lists = |tokens, top_k, capacity| {
        let inverse = Some(device.upload(&vec![-1; tokens * top_k]).unwrap());
        Lists { tokens, top_k, inverse, ..Lists::of_offsets(&device, &[0, 0], capacity) }
    };
    let (mut other, mut lists) = (lists(3, 2, 6), lists(2, 2, 4));
    let (other, permutation) = (&other.permutation(&stream), &lists.permutation(&stream));
    let scatter = |permutation| Destinations::Scatter { permutation, fill_padding: false };
    let message = refusal(shape, scatter(other), given(), 192);
    assert_eq!(message, "quantize: rows = 2: must be 3, the tokens of the permutation");
    let message = refusal(shape, scatter(permutation), given(), 127);
    assert_eq!(message, "quantize: q = 127 elements: must have at least 128 elements");
    let message = refusal(shape, Destinations::Scatter { permutation, fill_padding: true }, given(), 128);
    assert_eq!(message, "quantize: permutation = without `sorted_rows`: must have `sorted_rows` for this");

    let by_scales = Destinations::Scales { permutation, fill_padding: false };
    // Rows of q are those of the tokens, scales those of the permuted rows.
    let message = refusal(shape, by_scales, given(), 63);
    assert_eq!(message, "quantize: q = 63 elements: must have at least 64 elements");
    let mut scales: Buffer<f32> = device.zeros(3).unwrap();
    let per_row = Scheme::Token { scales: scales.as_mut_slice(), absmax_limit: None };
    let message = refusal(shape, by_scales, per_row, 64);
    assert_eq!(message, "quantize: scales = 3 elements: must have at least 4 elements");

    let refused = |destinations: Destinations<'_>| {
        let (mut q, mut cleared) = (device.zeros(64).unwrap(), device.zeros(63).unwrap());
        let cleared = Some(cleared.as_mut_slice());
        let args = Quantize {
            x: (&x).into(),
            row_weight: None,
            destinations,
            scheme: given(),
            q: q.as_mut_slice(),
            cleared,
        };
        quantize(&stream, shape, args).unwrap_err().to_string()
    };
    assert_eq!(refused(identity), "quantize: cleared = 63 elements: must have at least 64 elements");
    let mut two_rows = Lists::of_offsets(&device, &[0, 2], 2);
    let valid = Destinations::Valid { permutation: &two_rows.permutation(&stream) };
    assert_eq!(refused(valid), "quantize: cleared = Some: must be None where rows are not visited once each");
}
