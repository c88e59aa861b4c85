//! Layouts that overlap, plans of other tiles, addresses that are none.

use fp8_moe::ops::grouped_gemm::{
    AScale, Accumulation, BScale, GemmOptions, GemmOut, GemmPlan, GemmShape, GroupedGemm, grouped_gemm,
};
use fp8_moe::ops::permute::ScaleLayout;
use fp8_moe::ops::quantize::{Destinations, Quantize, QuantizeShape, Scheme, quantize};
use fp8_moe::{Buffer, DevicePtr, E4m3, Slice, SliceMut};
use half::bf16;

use crate::common;
use crate::common::gemm::Lists;

/// Two scales at one place would be a race of two threads.
#[test]
fn layouts_that_overlap_are_refused() {
    let (device, stream) = (common::device(), common::device().default_stream());
    let x: Buffer<bf16> = device.zeros(4 * 256).unwrap();
    let mut q: Buffer<E4m3> = device.zeros(4 * 256).unwrap();
    let mut scales: Buffer<f32> = device.zeros(64).unwrap();
    let mut quantised = |row_stride, group_stride| {
        let layout = ScaleLayout { row_stride, group_stride };
        let args = Quantize {
            x: (&x).into(),
            row_weight: None,
            destinations: Destinations::Identity,
            scheme: Scheme::Group { group_size: 128, scales: scales.as_mut_slice(), layout },
            q: q.as_mut_slice(),
            cleared: None,
        };
        quantize(&stream, QuantizeShape { rows: 4, columns: 256 }, args)
    };
    for (row_stride, group_stride) in [(2, 1), (3, 1), (1, 4), (1, 5), (5, 2)] {
        quantised(row_stride, group_stride).unwrap();
    }
    for (row_stride, group_stride) in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 3), (2, 2)] {
        let refused = quantised(row_stride, group_stride).unwrap_err().to_string();
        let rule = "must give each of 4 rows and 2 groups a place of its own";
        assert_eq!(refused, format!("quantize: layout = strides {row_stride}, {group_stride}: {rule}"));
    }
}

/// A plan promises sizes, a height and scales; what it does not promise is refused.
#[test]
fn plans_of_other_heights_are_refused() {
    let device = common::device();
    let stream = device.default_stream();
    let mut lists = Lists::of_offsets(&device, &[0, 16], 16).with_schedule(64);
    let permutation = lists.permutation(&stream);
    let shape = GemmShape { rows: 16, n: 16, k: 16, experts: 1 };
    let options = GemmOptions { accumulation: Accumulation::Promoted, ..GemmOptions::default() };
    let plan = GemmPlan::new(&device, shape, 16, options).unwrap();
    let (a, b): (Buffer<E4m3>, Buffer<E4m3>) = (device.zeros(256).unwrap(), device.zeros(256).unwrap());
    let (scale, mut out) = (device.zeros::<f32>(1).unwrap(), device.zeros::<f32>(256).unwrap());
    let mut workspace = device.zeros(plan.workspace_bytes()).unwrap();
    let args = GroupedGemm {
        a: a.as_slice(),
        a_scale: AScale::Call(scale.as_slice()),
        b: b.as_slice(),
        b_scale: BScale::Expert(scale.as_slice()),
        bias: None,
        permutation,
        out: GemmOut::F32(out.as_mut_slice()),
        workspace: workspace.as_mut_slice(),
        plan: &plan,
    };
    let refused = grouped_gemm(&stream, args).unwrap_err().to_string();
    assert_eq!(refused, "grouped_gemm: block_m = 16: must be 64, the tiles' height of the permutation");
}

/// Null is no address of elements, whoever says so: nothing is enqueued.
#[test]
fn null_is_refused() {
    let (device, stream) = (common::device(), common::device().default_stream());
    // SAFETY: operations refuse it.
    let (null, mut place) = unsafe {
        let null = DevicePtr::<u8>::null();
        (Slice::from_raw(&device, null, 8), SliceMut::from_raw(&device, null, 8))
    };
    let mut bytes = device.zeros::<u8>(8).unwrap();
    for refused in [
        null.to_vec(&stream).map(drop),
        bytes.as_mut_slice().copy_from_device(null, &stream),
        place.copy_from_device(bytes.as_slice(), &stream),
        place.copy_from(&[1; 8], &stream),
        place.fill_bytes(1, &stream),
    ] {
        let text = refused.unwrap_err().to_string();
        assert!(text.ends_with("8 elements at null: must be the address of memory"), "{text}");
    }
    assert_eq!(bytes.to_vec(&stream).unwrap(), [0; 8]);
    // Of no elements it is as good as any.
    assert!(Slice::<u8>::empty(&device).to_vec(&stream).unwrap().is_empty());
}
