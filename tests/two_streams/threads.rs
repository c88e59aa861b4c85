//! Several threads: on one stream, with one layer, with one permutation.

use fp8_moe::ops::permute::{Permute, PermutePath, PermuteShape, permute};
use fp8_moe::ops::quantize::{Destinations, Quantize, QuantizeShape, Scheme, quantize};
use fp8_moe::{E4m3, Stream};
use fp8_moe_cli::{Layers, RoutingKind, Scheme as Weights};
use half::bf16;

use crate::{SHAPE, assert_sound, watched};

const THREADS: usize = 4;

/// Forwards of several threads on one stream, and each on one of its own, with one layer: each in a workspace
/// of its own. The results are read on another stream, and what a thread has used is dropped at once.
#[test]
fn one_layer_and_one_stream() {
    let (_turn, device) = watched();
    let config = SHAPE.config(Weights::Block, 1, 1).unwrap();
    let layers = Layers::random(&device, &config, 1, &[true; 4], 0).unwrap();
    let layer = &layers.as_slice()[0];
    let routed = RoutingKind::Uniform.draw(3, 4, 2, 0).unwrap();
    let hidden = device.upload(&vec![bf16::ONE; 3 * SHAPE.hidden]).unwrap();
    let (ids, weights) =
        (device.upload(&routed.topk_ids).unwrap(), device.upload(&routed.topk_weights).unwrap());
    for shares in [true, false] {
        let shared = Stream::new(&device).unwrap();
        let results: Vec<Vec<f32>> = std::thread::scope(|scope| {
            let run = || {
                let own = Stream::new(&device).unwrap();
                let stream = if shares { &shared } else { &own };
                let mut out = device.zeros::<f32>(3 * SHAPE.hidden).unwrap();
                for _ in 0..4 {
                    let mut workspace = layer.workspace(3).unwrap();
                    out.fill_bytes(0xff, stream).unwrap();
                    layer.forward_routed(stream, &hidden, &ids, &weights, &mut workspace, &mut out).unwrap();
                }
                out.to_vec(&device.default_stream()).unwrap()
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(run)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(results.iter().all(|result| *result == results[0]));
        assert!(results[0].iter().any(|&y| y != 0.0) && results[0].iter().all(|y| y.is_finite()));
    }
    assert_sound();
}

/// A permutation is read by several threads on streams of their own. Its memory is sorted into again as soon
/// as they have enqueued, on yet another stream.
#[test]
fn one_permutation() {
    let (_turn, device) = watched();
    let shape = PermuteShape { tokens: 24, top_k: 2, experts: 4, local_experts: 4, alignment: 1 };
    let x = device.upload(&vec![bf16::ONE; 24 * 32]).unwrap();
    let ids = device.upload(&(0..48).map(|r| r * 5 % 4).collect::<Vec<i32>>()).unwrap();
    let mut offsets = device.uninit::<i64>(5).unwrap();
    let (mut sorted_rows, mut inverse) = (device.uninit(48).unwrap(), device.uninit(48).unwrap());
    for _ in 0..4 {
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
        let permutation = permute(&Stream::new(&device).unwrap(), shape, args).unwrap();
        let results: Vec<Vec<E4m3>> = std::thread::scope(|scope| {
            let run = || {
                let stream = Stream::new(&device).unwrap();
                let (mut q, mut scales) =
                    (device.zeros::<E4m3>(48 * 32).unwrap(), device.zeros::<f32>(48).unwrap());
                let args = Quantize {
                    x: (&x).into(),
                    row_weight: None,
                    destinations: Destinations::Scatter { permutation: &permutation, fill_padding: true },
                    scheme: Scheme::Token { scales: scales.as_mut_slice(), absmax_limit: None },
                    q: q.as_mut_slice(),
                    cleared: None,
                };
                quantize(&stream, QuantizeShape { rows: 24, columns: 32 }, args).unwrap();
                q.to_vec(&device.default_stream()).unwrap()
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(run)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        // Ones, all of them, at the largest value of e4m3.
        assert!(results.iter().flatten().all(|&value| value == E4m3::from_f32(448.0)));
    }
    assert_sound();
}
