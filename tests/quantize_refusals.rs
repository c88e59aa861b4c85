//! What quantise refuses, before any launch.

mod common;

use common::gemm::Lists;
use fp8_moe::ops::permute::ScaleLayout;
use fp8_moe::ops::quantize::{
    Destinations, Quantize, QuantizeShape, Scheme, quantize, quantize_workspace_bytes,
};
use fp8_moe::{Buffer, E4m3, Error};
use half::bf16;

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
    assert_eq!(refused(valid), "quantize: cleared = Some: must be None where only valid rows are visited");
}
