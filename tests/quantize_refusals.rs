//! What quantise refuses, before any launch.

mod common;

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
    let offsets: Buffer<i64> = device.zeros(2).unwrap();
    let inverse: Buffer<i32> = device.zeros(4).unwrap();
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
    let scatter = |top_k, capacity| Destinations::Scatter {
        top_k,
        capacity,
        inverse: inverse.as_slice(),
        expert_offsets: offsets.as_slice(),
        sorted_rows: None,
    };
    let message = refusal(shape, scatter(3, 6), given(), 192);
    assert_eq!(message, "quantize: inverse = 4 elements: must have at least 6 elements");
    let message = refusal(shape, scatter(0, 6), given(), 192);
    assert!(message.starts_with("quantize: top_k = 0: must be in 1..=1073741823"), "{message}");
    let message = refusal(shape, scatter(2, 4), given(), 127);
    assert_eq!(message, "quantize: q = 127 elements: must have at least 128 elements");

    let by_scales = Destinations::Scales {
        top_k: 2,
        capacity: 4,
        inverse: inverse.as_slice(),
        expert_offsets: offsets.as_slice(),
        sorted_rows: None,
    };
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
    let valid = Destinations::Valid { expert_offsets: offsets.as_slice() };
    assert_eq!(refused(valid), "quantize: cleared = Some: must be None where only valid rows are visited");
}
