//! The four fixtures, loaded as the checkpoints they imitate, against the outputs stored in them.
//!
//! The comparison itself is `fp8-moe check`; here each published layout is loaded through the library, in
//! parts as ranks load it, and on every kernel family that the device can run.

mod common;

use std::path::PathBuf;

use common::checks::relative_l2;
use common::{device, families};
use fp8_moe::{Checkpoint, Device, IntermediateScales, Quantization, Routing};
use half::bf16;

const FIXTURES: [&str; 4] =
    ["mixtral_static_tensor", "qwen3_moe_block", "llama4_channel_token", "deepseek_v3_block"];

fn open(name: &str) -> Checkpoint {
    let folder = std::env::var_os("FP8_MOE_FIXTURES")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"), PathBuf::from);
    Checkpoint::open(folder.join(format!("{name}.safetensors")), None).unwrap_or_else(|e| panic!("{e}"))
}

/// Runs ranks `0..ranks` of a fixture's layer and adds them up; also returns the routing of the last.
fn run(
    device: &Device,
    checkpoint: &Checkpoint,
    ranks: usize,
    scales: IntermediateScales,
) -> (Vec<f32>, Vec<i32>) {
    let prefix = checkpoint.find_layer(None).unwrap();
    let hidden = checkpoint.floats("io.hidden_states").unwrap();
    let hidden: Vec<_> = hidden.data.into_iter().map(bf16::from_f32).collect();
    let stream = device.default_stream();
    let tokens = hidden.len() / checkpoint.config().moe.hidden_size;
    let mut sum = vec![0.0; hidden.len()];
    let mut ids = Vec::new();
    let hidden = device.upload(&hidden).unwrap();
    for rank in 0..ranks {
        let mut config = checkpoint.config().moe.for_rank(rank, ranks).unwrap();
        config.intermediate_scales = scales;
        let layer =
            checkpoint.load_layer_with(device, &prefix, &config, &|_| {}).unwrap_or_else(|e| panic!("{e}"));
        let mut workspace = layer.workspace(tokens).unwrap();
        let mut out = device.uninit::<f32>(sum.len()).unwrap();
        layer.forward(&stream, &hidden, &mut workspace, &mut out).unwrap_or_else(|e| panic!("{e}"));
        let out = out.to_vec(&stream).unwrap();
        sum.iter_mut().zip(out).for_each(|(sum, part)| *sum += part);
        // Without the slots of a shared expert, which is the first rank's.
        let (slots, top_k) = (layer.config().slots(), layer.config().top_k);
        ids = workspace.routing(tokens).unwrap().0.to_vec(&stream).unwrap();
        ids = ids.chunks(slots).flat_map(|token| token[..top_k].to_vec()).collect();
    }
    (sum, ids)
}

#[test]
fn layouts_are_recognised() {
    let expected = [
        ("mixtral", Quantization::TensorStatic, "model.layers.0.block_sparse_moe", false),
        ("qwen3_moe", Quantization::Block128, "model.layers.0.mlp", false),
        ("llama4_text", Quantization::ChannelToken, "language_model.model.layers.1.feed_forward", true),
        ("deepseek_v3", Quantization::Block128, "model.layers.3.mlp", true),
    ];
    for (name, (model_type, quantization, prefix, shared)) in FIXTURES.into_iter().zip(expected) {
        let checkpoint = open(name);
        assert_eq!(checkpoint.config().model_type, model_type);
        assert_eq!(checkpoint.config().moe.quantization, quantization);
        assert_eq!(checkpoint.layers(), [prefix]);
        assert_eq!(checkpoint.find_layer(None).unwrap(), prefix);
        assert_eq!(checkpoint.shared_experts(prefix).is_some(), shared);
    }
    let deepseek =
        Routing::Grouped { sigmoid: true, groups: 4, topk_group: 2, renormalize: true, scaling_factor: 2.5 };
    assert_eq!(open("deepseek_v3_block").config().moe.routing, deepseek);
}

#[test]
fn outputs_match() {
    for device in families() {
        outputs_match_on(&device);
    }
}

fn outputs_match_on(device: &Device) {
    for name in FIXTURES {
        let checkpoint = open(name);
        let (ours, mut ids) = run(device, &checkpoint, 1, IntermediateScales::Group128);
        let noise: f64 = checkpoint.metadata("w8a8_rel_l2").unwrap().parse().unwrap();
        // The whole output, that of shared experts included.
        let distance = relative_l2(&ours, &checkpoint.floats("io.output").unwrap().data);
        assert!(distance <= 1.15 * noise, "{name}: {distance} to io.output");
        // That one's scales are of whole rows, where weights are per channel.
        let (ours, _) = run(device, &checkpoint, 1, IntermediateScales::Token);
        let distance = relative_l2(&ours, &checkpoint.floats("io.output_w8a8").unwrap().data);
        assert!(distance < 1e-2, "{name}: {distance} to io.output_w8a8");
        let k = checkpoint.config().moe.top_k;
        let mut expected: Vec<_> =
            checkpoint.integers("io.topk_ids").unwrap().data.into_iter().map(|id| id as i32).collect();
        ids.chunks_mut(k).chain(expected.chunks_mut(k)).for_each(<[i32]>::sort_unstable);
        assert_eq!(ids, expected, "{name}");
    }
}

#[test]
fn ranks_add_up() {
    for name in FIXTURES {
        let checkpoint = open(name);
        let (whole, _) = run(&device(), &checkpoint, 1, IntermediateScales::Group128);
        let (sum, _) = run(&device(), &checkpoint, 4, IntermediateScales::Group128);
        let distance = relative_l2(&sum, &whole);
        assert!(distance < 1e-5, "{name}: {distance}");
    }
}
