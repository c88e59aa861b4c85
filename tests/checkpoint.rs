//! Checkpoints: what is recognised, and what is said about those that are broken.

#[path = "common/checkpoints.rs"]
mod checkpoints;
mod common;

use std::path::Path;

use checkpoints::{Draft, bf16s, e4m3s, f32s, mixtral, qwen3};
use common::device;
use fp8_moe::{Checkpoint, Error, MoeConfig, Result};
use serde_json::json;
use tempfile::{TempDir, tempdir};

const PREFIX: &str = "model.layers.0.block_sparse_moe";

/// Opens the file and loads its only layer's weights on the host.
fn load(file: &Path) -> Result<()> {
    let checkpoint = Checkpoint::open(file, None)?;
    let prefix = checkpoint.find_layer(None)?;
    checkpoint.weights(&prefix, &checkpoint.config().moe).map(drop)
}

/// The error about the checkpoint that `change` makes of a sound one, without the file's name; one line.
fn complaint(mut draft: Draft, change: impl FnOnce(&mut Draft)) -> String {
    change(&mut draft);
    let folder = tempdir().unwrap();
    complaint_about(&folder, &draft.write(folder.path()))
}

fn complaint_about(folder: &TempDir, file: &Path) -> String {
    let error = load(file).expect_err("a broken checkpoint").to_string();
    assert!(!error.contains('\n'), "{error}");
    let folder = folder.path().to_str().unwrap();
    assert!(error.starts_with(folder), "{error}");
    error.split_once(": ").unwrap().1.to_owned()
}

#[test]
fn sound_ones_load() {
    for draft in [mixtral(), qwen3()] {
        let folder = tempdir().unwrap();
        load(&draft.write(folder.path())).unwrap();
    }
}

#[test]
fn shards_are_found_through_the_index() {
    let folder = tempdir().unwrap();
    mixtral().write_shards(folder.path());
    load(folder.path()).unwrap();
    std::fs::remove_file(folder.path().join("model-2.safetensors")).unwrap();
    let Err(Error::Io { path, .. }) = load(folder.path()) else { panic!("a shard is missing") };
    assert!(path.ends_with("model-2.safetensors"));
    // A rank that does not hold expert 2 still needs its input scale; a block checkpoint has none.
    let folder = tempdir().unwrap();
    qwen3().write_shards(folder.path());
    std::fs::remove_file(folder.path().join("model-2.safetensors")).unwrap();
    let checkpoint = Checkpoint::open(folder.path(), None).unwrap();
    let rank = checkpoint.config().moe.for_rank(0, 2).unwrap();
    assert_eq!(checkpoint.weights("model.layers.0.mlp", &rank).unwrap().experts.len(), 2);
}

#[test]
fn the_config_is_looked_for_in_three_places() {
    let folder = tempdir().unwrap();
    let file = mixtral().write(folder.path());
    let top_k = |config: Option<&Path>| Checkpoint::open(&file, config).unwrap().config().moe.top_k;
    let write = |name: &str, top_k: usize| {
        let mut config = mixtral().config;
        config["num_experts_per_tok"] = json!(top_k);
        std::fs::write(folder.path().join(name), config.to_string()).unwrap();
    };
    assert_eq!(top_k(None), 2, "the metadata's");
    write("config.json", 3);
    assert_eq!(top_k(None), 3, "the one beside the file");
    write("other.json", 4);
    assert_eq!(top_k(Some(&folder.path().join("other.json"))), 4, "the given one");
}

#[test]
fn layers_are_found() {
    let mut draft = mixtral();
    draft.add_mixtral_layer(10);
    draft.add_mixtral_layer(1);
    let folder = tempdir().unwrap();
    let checkpoint = Checkpoint::open(draft.write(folder.path()), None).unwrap();
    let name = |n| format!("model.layers.{n}.block_sparse_moe");
    assert_eq!(checkpoint.layers(), [name(0), name(1), name(10)]);
    assert_eq!(checkpoint.find_layer(Some("model.layers.1")).unwrap(), name(1));
    assert_eq!(checkpoint.find_layer(Some("model.layers.10.")).unwrap(), name(10));
    assert_eq!(checkpoint.find_layer(Some("10")).unwrap(), name(10));
    assert_eq!(checkpoint.find_layer(Some(&name(0))).unwrap(), name(0));
    let error = |wanted| checkpoint.find_layer(wanted).unwrap_err().to_string();
    assert!(
        error(None).contains("has 3 MoE layers; name one with --layer: model.layers.0.block_sparse_moe, ")
    );
    assert!(error(Some("model.layers.7")).contains("has no MoE layer model.layers.7; it has model.layers.0"));
    assert!(error(Some("model")).contains("model is the beginning of 3 layers"));
}

#[test]
fn separate_gate_and_up_scales_are_kept() {
    let mut draft = mixtral();
    draft.insert(format!("{PREFIX}.experts.1.w3.weight_scale"), f32s(&[], 0.03));
    draft.insert(format!("{PREFIX}.experts.2.w3.input_scale"), f32s(&[1], 0.05));
    draft.insert(format!("{PREFIX}.experts.3.w2.input_scale"), bf16s(&[1], 0.5));
    let folder = tempdir().unwrap();
    let checkpoint = Checkpoint::open(draft.write(folder.path()), None).unwrap();
    let weights = checkpoint.weights(PREFIX, &checkpoint.config().moe).unwrap();
    assert_eq!((weights.experts[1].gate_scale[0], weights.experts[1].up_scale[0]), (0.01, 0.03));
    assert_eq!(weights.input_scales, Some([0.05, 0.5]), "the largest over experts");
    let rank = MoeConfig { local_experts: Some(vec![0]), ..checkpoint.config().moe.clone() };
    let rank = checkpoint.weights(PREFIX, &rank).unwrap();
    assert_eq!(rank.input_scales, weights.input_scales, "the same on every rank");
}

#[test]
fn truncated_and_foreign_files() {
    let folder = tempdir().unwrap();
    let file = mixtral().write(folder.path());
    let whole = std::fs::read(&file).unwrap();
    let with = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        complaint_about(&folder, &file)
    };
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap());
    let (all, short) = (whole.len(), whole.len() - 100);
    assert_eq!(
        with(&whole[..short]),
        format!("is truncated: the header describes {all} bytes, the file has {short}")
    );
    assert_eq!(with(&whole[..60]), format!("is truncated: the header alone has {header} bytes, the file 60"));
    assert_eq!(with(&whole[..5]), "is not a safetensors file: 5 bytes, shorter than its length field");
    assert_eq!(with(b""), "is not a safetensors file: 0 bytes, shorter than its length field");
    assert!(
        with(b"PK\x03\x04 a zip archive, such as PyTorch writes").starts_with("is not a safetensors file: ")
    );
    assert!(with(&[0; 64]).starts_with("is not a safetensors file: "));
    let error = load(&folder.path().join("absent.safetensors")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
fn missing_tensors() {
    let without = |name: &str| {
        let name = format!("{PREFIX}.{name}");
        complaint(mixtral(), |draft| drop(draft.tensors.remove(&name).expect("a tensor")))
    };
    for name in
        ["experts.3.w2.weight_scale", "experts.1.w3.input_scale", "experts.2.w1.weight", "gate.weight"]
    {
        assert_eq!(without(name), format!("there is no tensor {PREFIX}.{name}"));
    }
    let blocks = complaint(qwen3(), |draft| {
        draft.tensors.retain(|name, _| !name.ends_with("scale_inv"));
    });
    assert!(
        blocks.starts_with("there is no tensor model.layers.0.mlp.experts.")
            && blocks.ends_with("weight_scale_inv")
    );
    let nothing = complaint(mixtral(), |draft| draft.tensors.retain(|name, _| name.ends_with("gate.weight")));
    assert_eq!(nothing, "has no MoE layer: no tensor is called *.experts.0.w1.weight, as mixtral has");
}

#[test]
fn wrong_shapes_and_types() {
    let with = |name: &str, tensor| {
        let name = format!("{PREFIX}.{name}");
        complaint(mixtral(), |draft| draft.insert(name, tensor))
    };
    assert_eq!(
        with("experts.1.w2.weight", e4m3s(&[64, 32])),
        format!("{PREFIX}.experts.1.w2.weight: has shape [64, 32]; the config says [64, 48]")
    );
    assert_eq!(
        with("experts.1.w1.weight", bf16s(&[48, 64], 1.0)),
        format!("{PREFIX}.experts.1.w1.weight: has type BF16; F8_E4M3 is expected")
    );
    assert_eq!(
        with("experts.1.w1.weight_scale", f32s(&[48], 1.0)),
        format!("{PREFIX}.experts.1.w1.weight_scale: has shape [48]; one number is expected")
    );
    assert_eq!(
        with("experts.1.w1.weight_scale", f32s(&[1], f32::NAN)),
        format!(
            "{PREFIX}.experts.1.w1.weight_scale: element 0 is NaN; a scale must be finite and not negative"
        )
    );
    assert_eq!(
        with("gate.weight", bf16s(&[8, 64], 1.0)),
        format!("{PREFIX}.gate.weight: has shape [8, 64]; the config says [4, 64]")
    );
    assert_eq!(
        with("experts.4.w1.weight", e4m3s(&[48, 64])),
        format!("{PREFIX} has an expert 4, but the config says there are 4")
    );
    let scale = "model.layers.0.mlp.experts.0.up_proj.weight_scale_inv";
    assert_eq!(
        complaint(qwen3(), |draft| draft.insert(scale, f32s(&[48, 1], 1.0))),
        format!("{scale}: has shape [48, 1]; the config says [1, 1]")
    );
}

#[test]
fn configs_that_cannot_be() {
    let with = |key: &str, value| complaint(mixtral(), |draft| draft.config[key] = value);
    assert_eq!(with("hidden_size", json!(72)), "config: hidden_size = 72: must be a positive multiple of 16");
    assert_eq!(
        with("intermediate_size", json!(24)),
        "config: intermediate_size = 24: must be a positive multiple of 16"
    );
    assert_eq!(
        with("num_experts_per_tok", json!(5)),
        "config: top_k = 5: must be in 1..=4, the number of experts"
    );
    assert_eq!(with("hidden_size", json!("64")), "config: hidden_size = \"64\": must be a whole number");
    assert_eq!(with("hidden_act", json!("gelu")), "config: hidden_act = \"gelu\": must be silu");
    assert_eq!(
        with("model_type", json!("gpt2")),
        "config: model_type = \"gpt2\": must be mixtral, qwen3_moe, deepseek_v3, llama4_text or llama4"
    );
    let quantization = |value| with("quantization_config", value);
    let rule = "must be fp8 static, fp8 dynamic with weight_block_size [128, 128], or compressed-tensors with channel \
                weights and dynamic token activations";
    assert_eq!(
        quantization(json!({"quant_method": "awq"})),
        format!("config: quantization_config: quant_method \"awq\": {rule}")
    );
    assert_eq!(
        quantization(json!({"quant_method": "fp8", "activation_scheme": "dynamic"})),
        format!(
            "config: quantization_config: activation_scheme \"dynamic\" without weight_block_size: {rule}"
        )
    );
    assert_eq!(
        quantization(
            json!({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [64, 64]})
        ),
        format!(
            "config: quantization_config: activation_scheme \"dynamic\" with weight_block_size [64,64]: {rule}"
        )
    );
    assert_eq!(
        quantization(json!(null)),
        format!("config: quantization_config: quant_method \"missing\": {rule}")
    );
    let without =
        |key: &str| complaint(mixtral(), |draft| drop(draft.config.as_object_mut().unwrap().remove(key)));
    assert_eq!(without("num_local_experts"), "config: num_local_experts is missing");
    assert_eq!(
        without("quantization_config"),
        "config: quantization_config is missing; the checkpoint is not quantised to FP8"
    );
}

#[test]
fn progress_reaches_the_total() {
    let folder = tempdir().unwrap();
    let checkpoint = Checkpoint::open(mixtral().write(folder.path()), None).unwrap();
    let seen = std::sync::Mutex::new(Vec::new());
    let progress = |progress| seen.lock().unwrap().push(progress);
    checkpoint.load_layer_with(&device(), PREFIX, &checkpoint.config().moe, &progress).unwrap();
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen.len(), 4, "once per expert");
    let total = 4 * 3 * 64 * 48;
    assert!(seen.iter().all(|p| p.total == total));
    assert_eq!(seen.iter().map(|p| p.done).max(), Some(total));
}
