//! `MoeLayer` against the f64 oracle, and against itself: ranks, graphs, poisoned workspaces, odd inputs.

use crate::common::checks::{assert_close, out_of_bounds, refusal, relative_l2};
use crate::common::layers::{
    Poison, Skew, any_config, any_skew, config, drawn_device, on_device, random_routing, run_own, run_routed,
};
use crate::common::oracle::{self, Layer};
use crate::common::{cases, device, families, timing};
use fp8_moe::ops::pack_weights::PackedShape;
use fp8_moe::{Family, Gather, IntermediateScales, MoeConfig, MoeLayer, Quantization, Routing, Stream};
use half::bf16;
use proptest::prelude::*;

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn agrees_with_the_oracle(
        config in any_config(), tokens in 1usize..=40, skew in any_skew(), seed in any::<u64>(),
    ) {
        timing(seed);
        let device = drawn_device(seed);
        let stream = device.default_stream();
        let mut layer = Layer::random(config, seed);
        if seed % 3 == 0 {
            layer.draw_biases(seed);
        }
        let hidden = oracle::hidden_states(tokens * layer.config.hidden_size, seed ^ 1);
        let (ids, weights) = random_routing(&layer.config, tokens, skew, seed ^ 2);
        let ours: Vec<f32> =
            run_routed(&stream, &on_device(&device, &layer), &hidden, &ids, &weights, Poison::Fresh).unwrap();
        prop_assert_eq!(out_of_bounds(&ours, &layer.forward(&hidden, &ids, &weights)), None);
    }

    #[test]
    fn poisoned_workspaces_change_nothing(
        config in any_config(), tokens in 1usize..=20, skew in any_skew(), seed: u64, byte: u8,
    ) {
        timing(seed);
        let device = drawn_device(seed);
        let stream = device.default_stream();
        let mut layer = Layer::random(config, seed);
        if seed % 3 == 0 {
            layer.draw_biases(seed);
        }
        let hidden = oracle::hidden_states(tokens * layer.config.hidden_size, seed ^ 1);
        let (ids, weights) = random_routing(&layer.config, tokens, skew, seed ^ 2);
        let layer = on_device(&device, &layer);
        let clean = run_routed(&stream, &layer, &hidden, &ids, &weights, Poison::Fresh).unwrap();
        timing(!seed);
        for poison in [Poison::Byte(0xff), Poison::Byte(byte), Poison::Random(seed)] {
            let poisoned = run_routed(&stream, &layer, &hidden, &ids, &weights, poison).unwrap();
            prop_assert!(bits(&poisoned) == bits(&clean), "{poison:?}");
        }
    }

    #[test]
    fn ranks_add_up(config in any_config(), tokens in 1usize..=20, seed in any::<u64>()) {
        timing(seed);
        let device = drawn_device(seed);
        let stream = device.default_stream();
        let layer = Layer::random(config.clone(), seed);
        let hidden = oracle::hidden_states(tokens * config.hidden_size, seed ^ 1);
        let (ids, weights) = random_routing(&config, tokens, Skew::Invalid, seed ^ 2);
        let whole: Vec<f32> =
            run_routed(&stream, &on_device(&device, &layer), &hidden, &ids, &weights, Poison::Fresh).unwrap();
        // Uneven parts, one of them empty.
        let cut = seed as usize % (config.experts + 1);
        let mut sum = vec![0.0; whole.len()];
        for local in [0..cut, cut..config.experts, 0..0] {
            let rank = config.to_builder().local_experts(Some(local.collect())).build().unwrap();
            let part = MoeLayer::new(&device, &rank, &layer.weights(&rank)).unwrap();
            let part: Vec<f32> =
                run_routed(&stream, &part, &hidden, &ids, &weights, Poison::Byte(0xff)).unwrap();
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        let expected = layer.forward(&hidden, &ids, &weights);
        prop_assert_eq!(out_of_bounds(&sum, &expected), None);
        // Hopper's narrow GEMMs cut a sum where the number of all tiles says, so that a rank's sums are added
        // in another order.
        if device.family() != Family::Sm90a {
            let distance = relative_l2(&sum, &whole);
            prop_assert!(distance < 1e-5, "distance {distance}");
        }
    }

    #[test]
    fn a_nan_token_spoils_itself_alone(config in any_config(), tokens in 2usize..=20, seed in any::<u64>()) {
        timing(seed);
        let device = drawn_device(seed);
        let stream = device.default_stream();
        let layer = on_device(&device, &Layer::random(config.clone(), seed));
        let h = config.hidden_size;
        let mut hidden = oracle::hidden_states(tokens * h, seed ^ 1);
        let (ids, weights) = random_routing(&config, tokens, Skew::Uniform, seed ^ 2);
        let clean = run_routed(&stream, &layer, &hidden, &ids, &weights, Poison::Fresh).unwrap();
        let spoiled = seed as usize % tokens;
        hidden[spoiled * h + seed as usize % h] = bf16::NAN;
        let ours: Vec<f32> = run_routed(&stream, &layer, &hidden, &ids, &weights, Poison::Fresh).unwrap();
        for (token, (ours, clean)) in ours.chunks(h).zip(clean.chunks(h)).enumerate() {
            if token == spoiled {
                prop_assert!(ours.iter().all(|x| x.is_nan()), "token {token} is the NaN one");
            } else {
                prop_assert!(bits(ours) == bits(clean), "token {token}");
            }
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// K that is nearly a multiple of 128, of the first matrices and of the second: packed weights are longer than
/// a checkpoint's. Batches for narrow tiles and for wide ones.
#[test]
fn weights_are_padded_where_it_is_little() {
    let (device, routing) = (device(), Routing::Softmax { renormalize: true });
    let sizes = [[3, 2, 2112, 128], [3, 2, 128, 2112]];
    for (seed, sizes) in (0..).zip(sizes) {
        timing(seed);
        let layer = Layer::random(config(Quantization::ChannelToken, routing, sizes), seed);
        if let Some(shapes) = PackedShape::of_layer(&device, &layer.config) {
            assert!(shapes.iter().any(|shape| shape.len() > shape.checkpoint_len()), "{shapes:?}");
        } else {
            assert_ne!(device.family(), Family::Sm90a);
        }
        let on_device = on_device(&device, &layer);
        for tokens in [5, 40] {
            let hidden = oracle::hidden_states(tokens * layer.config.hidden_size, seed + 100);
            let (ids, weights) = random_routing(&layer.config, tokens, Skew::Uniform, seed + 200);
            let stream = device.default_stream();
            let ours: Vec<f32> =
                run_routed(&stream, &on_device, &hidden, &ids, &weights, Poison::Fresh).unwrap();
            assert_eq!(out_of_bounds(&ours, &layer.forward(&hidden, &ids, &weights)), None, "{sizes:?}");
        }
    }
}

#[test]
fn routes_as_the_models_do() {
    let stream = device().default_stream();
    let grouped =
        Routing::Grouped { sigmoid: true, groups: 4, topk_group: 2, renormalize: true, scaling_factor: 2.5 };
    let sqrt_softplus = Routing::SqrtSoftplus { renormalize: true, scaling_factor: 1.5, vocabulary: None };
    let layers = [
        config(Quantization::TensorStatic, Routing::Softmax { renormalize: true }, [8, 2, 128, 96]),
        config(Quantization::Block128, Routing::Softmax { renormalize: false }, [16, 4, 144, 192]),
        config(Quantization::ChannelToken, Routing::SigmoidInput, [8, 1, 128, 80]),
        config(Quantization::Block128, grouped, [16, 4, 128, 128]),
        config(Quantization::Block128, sqrt_softplus, [24, 6, 128, 96]),
        // As many as there may be in published models, and no power of two.
        config(Quantization::ChannelToken, Routing::Softmax { renormalize: true }, [1024, 32, 64, 16]),
        config(Quantization::Block128, grouped, [1000, 31, 64, 16]),
        config(Quantization::ChannelGroup, sqrt_softplus, [1023, 32, 64, 16]),
    ];
    for (seed, config) in (0..).zip(layers) {
        timing(seed);
        let layer = Layer::random(config, seed);
        // Of many experts, scores of some tokens are too close to call.
        let tokens = if layer.config.experts > 100 { 3 } else { 33 };
        let hidden = oracle::hidden_states(tokens * layer.config.hidden_size, seed + 100);
        let (out, ids, weights) = run_own(&stream, &on_device(&device(), &layer), &hidden).unwrap();
        let (expected_ids, expected_weights) = layer.route(&hidden);
        assert_eq!(ids, expected_ids, "{:?}", layer.config);
        assert_close(&weights, &expected_weights, 1e-5, 1e-5);
        assert_eq!(out_of_bounds(&out, &layer.forward(&hidden, &ids, &weights)), None, "{:?}", layer.config);
    }
}

/// Random cases that failed once.
#[test]
fn regressions() {
    // On an H200, 0.0083 away from the oracle in relative L2, within the bounds of every element.
    let softmax = Routing::Softmax { renormalize: true };
    for device in families() {
        let stream = device.default_stream();
        for (seed, tokens) in (0..).zip([1, 3, 8, 40]) {
            timing(seed);
            let layer = Layer::random(config(Quantization::Block128, softmax, [12, 1, 112, 128]), seed);
            let hidden = oracle::hidden_states(tokens * 112, seed ^ 1);
            let (ids, weights) = random_routing(&layer.config, tokens, Skew::Uniform, seed ^ 2);
            let ours: Vec<f32> =
                run_routed(&stream, &on_device(&device, &layer), &hidden, &ids, &weights, Poison::Fresh)
                    .unwrap();
            assert_eq!(
                out_of_bounds(&ours, &layer.forward(&hidden, &ids, &weights)),
                None,
                "{tokens} tokens"
            );
        }
    }
}

/// Tokens whose rows GEMM 1 gathers give what scattered copies give, bit for bit; with experts of other
/// ranks, invalid ids and a NaN token too.
#[test]
fn gathered_equals_scattered() {
    let device = device();
    if device.family() != Family::Sm90a {
        eprintln!("skipped: the kernels of {} do not gather", device.family());
        return;
    }
    let stream = device.default_stream();
    let (tokens, h) = (75, 144);
    let whole = None;
    let part = Some(vec![1, 3]);
    let softmax = Routing::Softmax { renormalize: true };
    for (seed, (quantization, routing, [experts, k], local_experts, skew)) in (0..).zip([
        (Quantization::TensorStatic, softmax, [4, 3], whole.clone(), Skew::Invalid),
        (Quantization::ChannelToken, softmax, [4, 3], whole.clone(), Skew::Steep),
        (Quantization::ChannelToken, Routing::SigmoidInput, [1, 1], whole.clone(), Skew::Uniform),
        (Quantization::Block128, softmax, [4, 3], whole, Skew::One),
        (Quantization::Block128, softmax, [4, 4], part, Skew::Invalid),
    ]) {
        timing(seed);
        let layer = Layer::random(config(quantization, routing, [experts, k, h, 80]), seed);
        let mut hidden = oracle::hidden_states(tokens * h, seed);
        hidden[7 * h + 3] = bf16::NAN;
        let (ids, weights) = random_routing(&layer.config, tokens, skew, seed);
        let run = |gather| {
            let config = layer.config.to_builder().gather(gather).local_experts(local_experts.clone());
            let config = config.build().unwrap();
            let layer = MoeLayer::new(&device, &config, &layer.weights(&config)).unwrap();
            assert_eq!(layer.gathers(tokens).unwrap(), gather == Gather::Always, "{config:?}");
            run_routed(&stream, &layer, &hidden, &ids, &weights, Poison::Byte(0xff)).unwrap()
        };
        let (gathered, scattered) = (run(Gather::Always), run(Gather::Never));
        assert!(bits(&gathered) == bits(&scattered), "{quantization}, {routing:?}, {skew:?}");
    }
}

/// A workspace for some tokens suffices for fewer, whatever kernels they take.
/// Whatever the timing, everything that a forward writes has the same bits, on the kernels of every family:
/// lists, rows, scales, intermediates, products, and the output. (Products are discarded where rows are whole
/// lines of L2; rows of 272 columns are not.)
#[test]
fn every_part_of_a_workspace_has_the_same_bits_at_any_timing() {
    let schemes = [
        (Quantization::TensorStatic, IntermediateScales::Group128),
        (Quantization::ChannelToken, IntermediateScales::Token),
        (Quantization::ChannelToken, IntermediateScales::Group128),
        (Quantization::Block128, IntermediateScales::Group128),
    ];
    for (quantization, intermediate_scales) in schemes {
        let config = config(quantization, Routing::Softmax { renormalize: true }, [6, 2, 272, 144]);
        let config = config.to_builder().intermediate_scales(intermediate_scales).build().unwrap();
        let layer = Layer::random(config, 4);
        for (device, tokens) in families().into_iter().flat_map(|device| [3, 70].map(|t| (device.clone(), t)))
        {
            let stream = device.default_stream();
            let on_device = on_device(&device, &layer);
            let hidden = device.upload(&oracle::hidden_states(tokens * 272, 5)).unwrap();
            let run = |seed| {
                timing(seed);
                let mut workspace = on_device.workspace(tokens).unwrap();
                workspace.memory().fill_bytes(0, &stream).unwrap();
                let mut out = device.uninit::<f32>(tokens * 272).unwrap();
                on_device.forward(&stream, &hidden, &mut workspace, &mut out).unwrap();
                (workspace.memory().to_vec(&stream).unwrap(), bits(&out.to_vec(&stream).unwrap()))
            };
            let first = run(0);
            for seed in 1..4 {
                let again = run(seed);
                let at = first.0.iter().zip(&again.0).position(|(a, b)| a != b);
                assert_eq!(
                    at, None,
                    "{device}, {quantization}, {tokens} tokens, seed {seed}: byte of the workspace"
                );
                assert!(first.1 == again.1, "{device}, {quantization}, {tokens} tokens, seed {seed}: output");
            }
        }
    }
}

#[test]
fn workspaces_suffice_for_fewer_tokens() {
    for device in families() {
        let sizes = [8, 4, 256, 128];
        let layer =
            Layer::random(config(Quantization::Block128, Routing::Softmax { renormalize: true }, sizes), 3);
        let layer = on_device(&device, &layer);
        let bytes: Vec<_> = (0..300).map(|tokens| layer.workspace_bytes(tokens).unwrap()).collect();
        assert!(bytes.is_sorted(), "{device}: {bytes:?}");
        // The number of tokens whose own needs are below those of one less.
        let (stream, tokens) = (device.default_stream(), 100);
        let hidden = device.upload(&oracle::hidden_states(tokens * 256, 1)).unwrap();
        let mut out = device.uninit::<f32>(tokens * 256).unwrap();
        let mut workspace = layer.workspace(tokens + 1).unwrap();
        layer.forward(&stream, &hidden, &mut workspace, &mut out).unwrap();
    }
}

#[test]
fn a_graph_replays_what_eager_computes() {
    let device = device();
    let stream = Stream::new(&device).unwrap();
    // With the last, tiles of 128 rows, which are gathered where there are kernels for it.
    for (quantization, experts, tokens) in [
        (Quantization::TensorStatic, 8, 21),
        (Quantization::ChannelToken, 8, 21),
        (Quantization::Block128, 8, 21),
        (Quantization::Block128, 3, 55),
    ] {
        let config = config(quantization, Routing::Softmax { renormalize: true }, [experts, 3, 144, 80]);
        let layer = Layer::random(config, 3);
        let h = layer.config.hidden_size;
        let layer = on_device(&device, &layer);
        let mut workspace = layer.workspace(tokens).unwrap();
        let mut hidden = device.upload(&oracle::hidden_states(tokens * h, 1)).unwrap();
        let mut out = device.uninit::<bf16>(tokens * h).unwrap();
        let graph =
            stream.capture(|stream| layer.forward(stream, &hidden, &mut workspace, &mut out)).unwrap();
        for seed in [1, 2] {
            hidden.copy_from(&oracle::hidden_states(tokens * h, seed), &stream).unwrap();
            timing(seed);
            layer.forward(&stream, &hidden, &mut workspace, &mut out).unwrap();
            let eager = out.to_vec(&stream).unwrap();
            out.fill_bytes(0xff, &stream).unwrap();
            workspace.memory().fill_bytes(0xff, &stream).unwrap();
            timing(!seed);
            graph.launch(&stream).unwrap();
            let replayed = out.to_vec(&stream).unwrap();
            assert_eq!(
                bytemuck::cast_slice::<_, u16>(&eager),
                bytemuck::cast_slice::<_, u16>(&replayed),
                "{quantization}, seed {seed}"
            );
        }
    }
}

#[test]
fn no_tokens_are_legal() {
    let stream = device().default_stream();
    let layer = Layer::random(
        config(Quantization::Block128, Routing::Softmax { renormalize: true }, [4, 2, 64, 64]),
        1,
    );
    let (out, ids, weights) = run_own(&stream, &on_device(&device(), &layer), &[]).unwrap();
    assert!(out.is_empty() && ids.is_empty() && weights.is_empty());
}

#[test]
fn refuses_what_it_cannot_do() {
    let device = device();
    let routing = Routing::Softmax { renormalize: true };
    let try_config = |sizes| {
        let [experts, top_k, hidden_size, intermediate_size] = sizes;
        let config = MoeConfig::builder().hidden_size(hidden_size).intermediate_size(intermediate_size);
        refusal(config.experts(experts).top_k(top_k).routing(routing).build())
    };
    assert_eq!(
        try_config([8, 2, 100, 64]),
        "MoeConfig: hidden_size = 100: must be a positive multiple of 16"
    );
    assert_eq!(
        try_config([8, 2, 64, 24]),
        "MoeConfig: intermediate_size = 24: must be a positive multiple of 16"
    );
    assert_eq!(try_config([8, 9, 64, 64]), "MoeConfig: top_k = 9: must be in 1..=8, the number of experts");

    let layer = Layer::random(config(Quantization::Block128, routing, [4, 2, 64, 64]), 1);
    let mut weights = layer.weights(&layer.config);
    weights.experts[3].up_scale = vec![1.0; 2].into();
    assert_eq!(
        refusal(MoeLayer::new(&device, &layer.config, &weights)),
        "MoeLayer::new: experts[3].up_scale = 2 elements: must have 1"
    );
    let mut weights = layer.weights(&layer.config);
    weights.experts.pop();
    assert_eq!(
        refusal(MoeLayer::new(&device, &layer.config, &weights)),
        "MoeLayer::new: experts = 3 elements: must have 4"
    );

    let stream = device.default_stream();
    let moe = on_device(&device, &layer);
    let mut workspace = moe.workspace(2).unwrap();
    let hidden = device.zeros::<bf16>(3 * 64).unwrap();
    let mut out = device.zeros::<f32>(3 * 64).unwrap();
    let too_many = refusal(moe.forward(&stream, &hidden, &mut workspace, &mut out));
    assert!(too_many.starts_with("MoeLayer::forward: workspace = "), "{too_many}");
    let ragged = refusal(moe.forward(&stream, hidden.slice(..100), &mut workspace, &mut out));
    assert_eq!(ragged, "MoeLayer::forward: hidden = 100 elements: must be a multiple of 64, the hidden size");
    let short = refusal(moe.forward(&stream, hidden.slice(..128), &mut workspace, out.slice_mut(..64)));
    assert_eq!(short, "MoeLayer::forward: out = 64 elements: must have at least 128 elements");
}
