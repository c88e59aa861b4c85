//! What an operation reads before it waits for its predecessor must not be what that one wrote: wrong
//! promises are reported.

use crate::common;
use crate::common::gemm::Lists;
use fp8_moe::ops::permute::{Permute, PermutePath, PermuteShape, ScaleLayout, permute};
use fp8_moe::ops::quantize::{
    Destinations, Quantize, QuantizeShape, Scheme, quantize, quantize_with_settled_input,
};
use fp8_moe::ops::unpermute::{Unpermute, unpermute, unpermute_with_settled_routing};
use fp8_moe::{Buffer, Device, E4m3, Family, Stream};
use half::bf16;

/// The emulated device with a stream of its own, since what others enqueue would order its kernels; a GPU
/// reports nothing.
fn emulated() -> Option<(Device, Stream)> {
    let device = common::device();
    let stream = Stream::new(&device).unwrap();
    common::forgive_faults();
    (device.is_emulated() && device.family() == Family::Sm90a).then_some((device, stream))
}

/// Just written, rows are not settled: the emulated device reports the read before the wait, in every scheme.
#[test]
fn new_rows_are_not_settled() {
    let Some((device, stream)) = emulated() else { return };
    let (y, mut x): (Buffer<bf16>, Buffer<bf16>) = (device.zeros(256).unwrap(), device.zeros(256).unwrap());
    let inverse = Some(device.upload(&[0]).unwrap());
    let mut lists = Lists { inverse, ..Lists::of_offsets(&device, &[0, 1], 1) };
    let permutation = &lists.permutation(&stream);
    let scale = device.upload(&[1.0f32]).unwrap();
    let mut scales: Buffer<f32> = device.zeros(2).unwrap();
    let mut q: Buffer<E4m3> = device.zeros(256).unwrap();
    for number in 0..6 {
        let args = Unpermute {
            y: (&y).into(),
            permutation,
            topk_weights: None,
            addend: None,
            hidden: 256,
            out: (&mut x).into(),
            adds: false,
        };
        unpermute(&stream, args).unwrap();
        let mut quantized = |settled| {
            let scales = scales.as_mut_slice();
            let args = Quantize {
                x: (&x).into(),
                row_weight: None,
                destinations: if number < 3 {
                    Destinations::Scatter { permutation, fill_padding: false }
                } else {
                    Destinations::Scales { permutation, fill_padding: false }
                },
                scheme: match number % 3 {
                    0 => Scheme::TensorStatic { scale: scale.as_slice() },
                    1 => Scheme::Token { scales, absmax_limit: None },
                    _ => Scheme::Group { group_size: 128, scales, layout: ScaleLayout::row_major(2) },
                },
                q: q.as_mut_slice(),
                cleared: None,
            };
            let shape = QuantizeShape { rows: 1, columns: 256 };
            if settled {
                // SAFETY: on the emulated device a wrong promise is a report.
                unsafe { quantize_with_settled_input(&stream, shape, args) }
            } else {
                quantize(&stream, shape, args)
            }
        };
        let fault = quantized(true).unwrap_err().to_string();
        assert!(fault.contains("without griddepcontrol.wait"), "{fault}");
        quantized(false).unwrap();
        quantized(true).unwrap();
    }
}

/// Just built, a routing is not settled: the emulated device reports the read before the wait.
#[test]
fn a_new_routing_is_not_settled() {
    let Some((device, stream)) = emulated() else { return };
    let ids = device.upload(&[1, 0]).unwrap();
    let y: Buffer<bf16> = device.zeros(16).unwrap();
    let mut out: Buffer<bf16> = device.zeros(8).unwrap();
    let (mut inverse, mut sorted_rows) = (device.zeros(2).unwrap(), device.zeros(2).unwrap());
    let mut offsets = device.zeros(3).unwrap();
    let args = Permute {
        topk_ids: ids.as_slice(),
        expert_map: None,
        expert_offsets: offsets.as_mut_slice(),
        sorted_rows: sorted_rows.as_mut_slice(),
        inverse: inverse.as_mut_slice(),
        row_experts: None,
        problem_sizes: None,
        tile_schedule: None,
        path: PermutePath::Auto,
    };
    let shape = PermuteShape { tokens: 1, top_k: 2, experts: 2, local_experts: 2, alignment: 1 };
    let permutation = permute(&stream, shape, args).unwrap();
    let mut unpermuted = |settled| {
        let args = Unpermute {
            y: (&y).into(),
            permutation: &permutation,
            topk_weights: None,
            addend: None,
            hidden: 8,
            out: (&mut out).into(),
            adds: false,
        };
        if settled {
            // SAFETY: on the emulated device a wrong promise is a report.
            unsafe { unpermute_with_settled_routing(&stream, args) }
        } else {
            unpermute(&stream, args)
        }
    };
    let fault = unpermuted(true).unwrap_err().to_string();
    assert!(fault.contains("without griddepcontrol.wait"), "{fault}");
    unpermuted(false).unwrap();
    unpermuted(true).unwrap();
}
