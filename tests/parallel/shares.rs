//! Layers whose intermediate columns are spread over ranks: alone, and with experts spread over others.

use std::sync::Arc;

use fp8_moe::parallel::{
    Batch, Communicator, ExpertOptions, ExpertParallel, InProcess, Placement, TensorParallel, TensorShare,
};
use fp8_moe::{Device, MoeConfig, MoeLayer, Quantization, Routing, Stream};
use half::bf16;

use crate::common::checks::out_of_bounds;
use crate::common::device;
use crate::common::layers::{Poison, Skew, config, run_routed};
use crate::common::oracle::Layer;
use crate::group::{Tokens, limits, on_ranks};

const SOFTMAX: Routing = Routing::Softmax { renormalize: true };
const SCHEMES: [Quantization; 3] =
    [Quantization::TensorStatic, Quantization::ChannelToken, Quantization::Block128];

/// The layer of a rank's share by the oracle.
fn exact_share(layer: &Layer, rank: usize, ranks: usize) -> Layer {
    let share = TensorShare::new(&layer.config, rank, ranks).expect("a share");
    let weights = layer.weights(&layer.config);
    Layer::of(share.config(&layer.config), &share.weights(&weights).expect("its weights"))
}

/// The layer of a rank's share, of some of the experts.
fn share(device: &Device, layer: &Layer, experts: &MoeConfig, rank: usize, ranks: usize) -> MoeLayer {
    let share = TensorShare::new(experts, rank, ranks).expect("a share");
    let weights = share.weights(&layer.weights(experts)).expect("its weights");
    MoeLayer::new(device, &share.config(experts), &weights).expect("a layer")
}

/// Every rank gets the sum of the shares' outputs, in rank order, in f32. Each of these is within the bounds of
/// the exact share: its groups of intermediate columns, and so their roundings, are not the whole layer's.
/// Before its intermediate is rounded, the whole layer is the sum of the exact shares.
#[test]
fn shares_add_up_to_the_layer() {
    for (index, quantization) in SCHEMES.into_iter().enumerate() {
        for (ranks, intermediate) in [(1, 128), (2, 384), (2, 128), (3, 384)] {
            let config = config(quantization, SOFTMAX, [4, 2, 128, intermediate]);
            let layer = Layer::random(config.clone(), 60 + index as u64);
            let tokens = Tokens::random(&config, 3, Skew::Uniform, 61);
            let Tokens { hidden, ids, weights } = &tokens;
            let outputs = on_ranks(ranks, limits(), |rank, communicator| {
                let stream = Stream::new(&device()).expect("a stream");
                let part = share(&device(), &layer, &config, rank, ranks);
                let mut workspace = part.workspace(3).expect("memory");
                let parallel = TensorParallel::new(part, communicator).expect("a rank");
                let hidden = device().upload(hidden).expect("memory");
                let (ids, weights) =
                    (device().upload(ids).expect("memory"), device().upload(weights).expect("memory"));
                let mut out = device().uninit::<f32>(3 * 128).expect("memory");
                parallel
                    .forward_routed(&stream, &hidden, &ids, &weights, &mut workspace, &mut out)
                    .expect("a forward");
                out.to_vec(&stream).expect("a copy")
            });
            let stream = device().default_stream();
            let mut sum = vec![0.0f32; 3 * 128];
            let mut exact_sum = vec![0.0; 3 * 128];
            for rank in 0..ranks {
                let exact = exact_share(&layer, rank, ranks);
                let part = share(&device(), &layer, &config, rank, ranks);
                let part: Vec<f32> =
                    run_routed(&stream, &part, hidden, ids, weights, Poison::Fresh).expect("a forward");
                let broken = out_of_bounds(&part, &exact.forward(hidden, ids, weights));
                assert_eq!(broken, None, "{quantization}, rank {rank} of {ranks}, of {intermediate}");
                sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
                let part = exact.dequantised(hidden, ids, weights);
                exact_sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
            for output in &outputs {
                assert_eq!(*output, sum, "{quantization}, {ranks} ranks of {intermediate}");
            }
            // Sums in f64 of some hundred terms of about 1.
            for (sum, whole) in exact_sum.into_iter().zip(layer.dequantised(hidden, ids, weights)) {
                let distance = (sum - whole).abs();
                assert!(distance < 1e-12, "{quantization}, {ranks} ranks of {intermediate}: {distance:e}");
            }
        }
    }
}

/// Shares inside, experts across: four ranks, two of each.
#[test]
fn shares_inside_experts_across() {
    let group = || -> [Arc<dyn Communicator>; 2] {
        let ranks = InProcess::group(&device(), 2, limits()).expect("a group").into_iter();
        let ranks: Vec<_> = ranks.map(|rank| Arc::new(rank) as _).collect();
        ranks.try_into().ok().expect("two ranks")
    };
    // A group over the shares for each part of the experts, and one over the experts for each share.
    let (inside, across) = ([group(), group()], [group(), group()]);
    assert_shares_inside_experts_across([128, 256], |expert, slice| {
        (inside[expert][slice].clone(), across[slice][expert].clone())
    });
}

/// Four ranks, `communicators(e, s)` of the one with part e of the experts and share s of their columns: over
/// the two shares, and over the two parts. The results of both experts' ranks come back, and then the shares
/// are added.
pub fn assert_shares_inside_experts_across(
    [h, i]: [usize; 2],
    communicators: impl Fn(usize, usize) -> (Arc<dyn Communicator>, Arc<dyn Communicator>) + Sync,
) {
    let config = config(Quantization::Block128, SOFTMAX, [4, 2, h, i]);
    let layer = Layer::random(config.clone(), 71);
    let placement = Placement::linear(4, 2).expect("two ranks");
    let tokens = [2, 3].map(|count| Tokens::random(&config, count, Skew::Uniform, count as u64));
    let part = |device: &Device, expert: usize, slice: usize| {
        share(device, &layer, &placement.config(&config, expert), slice, 2)
    };
    let run = |expert: usize, slice: usize| {
        let (inside, across) = communicators(expert, slice);
        let device = across.device().clone();
        let stream = Stream::new(&device).expect("a stream");
        let Tokens { hidden, ids, weights } = &tokens[expert];
        let options = ExpertOptions::new(3);
        let mut experts = ExpertParallel::new(part(&device, expert, slice), across, options).expect("a rank");
        let sums = TensorParallel::new(part(&device, expert, slice), inside).expect("a rank");
        let mut workspace = experts.workspace().expect("memory");
        let hidden = device.upload(hidden).expect("memory");
        let (ids, weights) = (device.upload(ids).expect("memory"), device.upload(weights).expect("memory"));
        let mut out = device.uninit::<f32>(hidden.len()).expect("memory");
        let batch = Batch::new(&hidden).routed(&ids, &weights);
        experts.forward(&stream, batch, &mut workspace, &mut out).expect("a forward");
        sums.reduce(&stream, (&mut out).into()).expect("a sum");
        out.to_vec(&stream).expect("a copy")
    };
    let outputs: Vec<Vec<f32>> = std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..4).map(|rank| scope.spawn(move || run(rank / 2, rank % 2))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank")).collect()
    });
    // The same by hand: both ranks' tokens, three places each.
    let mut all = Tokens { hidden: Vec::new(), ids: Vec::new(), weights: Vec::new() };
    for tokens in &tokens {
        let missing = 3 - tokens.len(&config);
        all.hidden.extend(tokens.hidden.iter().copied().chain(vec![bf16::ZERO; missing * h]));
        all.ids.extend(tokens.ids.iter().copied().chain(vec![-1; missing * 2]));
        all.weights.extend(tokens.weights.iter().copied().chain(vec![0.0; missing * 2]));
    }
    let stream = device().default_stream();
    let shares: Vec<Vec<f32>> = (0..2)
        .map(|slice| {
            let mut sum = vec![0.0f32; 6 * h];
            for expert in 0..2 {
                let layer = part(&device(), expert, slice);
                let part: Vec<bf16> =
                    run_routed(&stream, &layer, &all.hidden, &all.ids, &all.weights, Poison::Fresh)
                        .expect("a forward");
                sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part.to_f32());
            }
            sum
        })
        .collect();
    for (rank, output) in outputs.iter().enumerate() {
        let first = rank / 2 * 3 * h;
        let expected: Vec<f32> = (first..first + output.len()).map(|n| shares[0][n] + shares[1][n]).collect();
        assert_eq!(*output, expected, "rank {rank}");
    }
}

#[test]
fn shares_that_cannot_be_are_refused() {
    let block = |intermediate| config(Quantization::Block128, SOFTMAX, [4, 2, 128, intermediate]);
    let text = TensorShare::new(&block(128), 0, 3).expect_err("no multiple of 16").to_string();
    assert!(text.contains("must divide the intermediate size, 128, into multiples of 16"), "{text}");
    assert!(TensorShare::new(&block(288), 1, 3).is_err(), "rows 96 to 192 are parts of two blocks");
    let mut layer = Layer::random(block(256), 1);
    let share = TensorShare::new(&layer.config, 0, 2).expect("a share");
    assert_eq!(share.columns(), 128);
    layer.config.hidden_size = 256;
    let other = Layer::random(block(128), 1);
    let text = share.weights(&other.weights(&other.config)).expect_err("another size").to_string();
    assert_eq!(text, "TensorShare: experts[0].gate = 16384 elements: must have 32768");
}
