//! Checkpoints: what is recognised, and what is said about those that are broken.

#[path = "common/checkpoints.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod checkpoints;
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use checkpoints::{Draft, bf16s, e4m3s, f32s, fixtures, mixtral, qwen3};
use common::device;
use fp8_moe::{Checkpoint, Error, ExpertWeights, Result};
use half::{bf16, f16};
use serde_json::{Value, json};
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
    let missing = load(folder.path()).unwrap_err().to_string();
    // Which of the expert's tensors is asked for first is open: experts are read side by side.
    let index =
        "is missing; model.safetensors.index.json says that model.layers.0.block_sparse_moe.experts.2.";
    assert!(missing.contains(&format!("model-2.safetensors: {index}")), "{missing}");
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
    let rank = checkpoint.config().moe.to_builder().local_experts(Some(vec![0])).build().unwrap();
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
    for name in ["experts.3.w2.weight_scale", "experts.2.w1.weight", "gate.weight"] {
        assert_eq!(without(name), format!("there is no tensor {PREFIX}.{name}"));
    }
    let blocks = complaint(qwen3(), |draft| {
        draft.tensors.retain(|name, _| !name.ends_with("scale_inv"));
    });
    assert!(
        blocks.starts_with("there is no tensor model.layers.0.mlp.experts.")
            && blocks.ends_with("weight_scale_inv")
    );
    let uncalibrated =
        complaint(mixtral(), |draft| draft.tensors.retain(|name, _| !name.ends_with("w2.input_scale")));
    let first = format!("there is no tensor {PREFIX}.experts.0.w2.input_scale, nor one of another expert; ");
    let asks = "quantization_config: activation_scheme \"static\" without weight_block_size needs it";
    assert_eq!(uncalibrated, format!("{first}{asks}"));
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
        format!(
            "{PREFIX}.experts.1.w1.weight: has type BF16; F8_E4M3 is expected: experts that are not quantised are not supported"
        )
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
        "config: num_experts_per_tok = 5: must be in 1..=4, the number of experts"
    );
    assert_eq!(with("hidden_size", json!("64")), "config: hidden_size = \"64\": must be a whole number");
    assert_eq!(
        with("hidden_act", json!("relu")),
        "config: hidden_act = \"relu\": must be silu, swish, gelu, gelu_pytorch_tanh or gelu_new"
    );
    let unknown = with("model_type", json!("gpt2"));
    let alike = "The tensors are called as those of mixtral, deepseek_v4, minimax_m2; if the model computes what one \
                 of them does, --as TYPE loads it as that one";
    assert!(
        unknown.starts_with("config: model_type = \"gpt2\" is not known: must be mixtral, ")
            && unknown.ends_with(alike),
        "{unknown}"
    );
    let quantization = |value| with("quantization_config", value);
    assert_eq!(
        quantization(json!({"quant_method": "awq"})),
        "config: quantization_config: quant_method \"awq\": must be fp8, compressed-tensors, modelopt, quark or fbgemm_fp8"
    );
    assert_eq!(
        quantization(
            json!({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [64, 64]})
        ),
        "config: quantization_config: activation_scheme \"dynamic\" with weight_block_size [64, 64]: activations in \
         groups of 64 are not supported: the kernels scale every 128 columns, so that groups must be multiples of 128"
    );
    assert_eq!(
        quantization(json!(null)),
        "config: quantization_config is missing, and there is no hf_quant_config.json; the checkpoint is not quantised to FP8"
    );
    let without =
        |key: &str| complaint(mixtral(), |draft| drop(draft.config.as_object_mut().unwrap().remove(key)));
    assert_eq!(
        without("num_local_experts"),
        format!("{PREFIX}.gate.weight: has shape [4, 64]; the config says [8, 64]"),
        "MixtralConfig's default"
    );
    assert_eq!(without("quantization_config"), quantization(json!(null)));
}

/// Keys that a config lacks are what the model's class in transformers takes, which
/// `tests/fixtures/defaults.py` has written down; where that has none either, the key is said to be missing.
#[test]
fn missing_keys_take_the_defaults_of_the_class() {
    let text = std::fs::read_to_string(fixtures().join("defaults.json")).unwrap();
    let classes: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap();
    let mut checked = BTreeSet::new();
    for entry in std::fs::read_dir(fixtures().join("models")).unwrap() {
        let mut draft = Draft::read(&entry.unwrap().path());
        let outer = draft.config.clone();
        let inner =
            ["/thinker_config/text_config", "/text_config", ""].iter().find_map(|at| outer.pointer(at));
        let model_type = inner.unwrap()["model_type"].as_str().unwrap();
        let Some(class) = classes.get(model_type).filter(|_| !checked.contains(model_type)) else { continue };
        let section = ["quantization_config", "text_config/quantization_config"];
        let section = section.iter().find_map(|at| outer.pointer(&format!("/{at}")));
        draft.config = json!({"model_type": model_type, "quantization_config": section});
        let folder = tempdir().unwrap();
        match Checkpoint::open(draft.write(folder.path()), None) {
            Ok(checkpoint) => {
                let defaults = &checkpoint.config().defaults;
                assert!(defaults.len() >= 4, "{model_type}: {defaults:?}");
                for (key, value) in defaults {
                    let ours: Value = serde_json::from_str(value).unwrap();
                    let theirs = class.get(key).unwrap_or_else(|| panic!("{model_type} has no {key}"));
                    let is_same = ours == *theirs || ours.is_number() && ours.as_f64() == theirs.as_f64();
                    assert!(is_same, "{model_type}: {key} = {ours}, {theirs} in the class");
                }
            }
            Err(error) => {
                let error = error.to_string();
                let missing = error.strip_suffix(" is missing").and_then(|start| start.rsplit(' ').next());
                let is_none = |key: &str| class.get(key).is_none_or(Value::is_null);
                // Nemotron-H's is 7688.
                let is_odd = error.ends_with("must be a positive multiple of 16");
                assert!(missing.is_some_and(is_none) || is_odd, "{model_type}: {error}");
            }
        }
        checked.insert(model_type.to_owned());
    }
    assert_eq!(checked.len(), classes.len());
}

/// What of compressed-tensors and Quark cannot be computed is refused with the words of the config.
#[test]
fn schemes_that_are_not_supported() {
    let with = |value| complaint(mixtral(), |draft| draft.config["quantization_config"] = value);
    let group = |weights: Value, inputs: Value| {
        let group = json!({"targets": ["Linear"], "weights": weights, "input_activations": inputs});
        with(json!({"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}))
    };
    let start = "config: quantization_config: group_0: ";
    let channel = json!({"strategy": "channel", "num_bits": 8, "type": "float"});
    assert_eq!(
        group(channel.clone(), json!(null)),
        format!("{start}input_activations is missing: activations that are not quantised are not supported")
    );
    assert_eq!(
        group(
            json!({"strategy": "channel", "num_bits": 4, "type": "int"}),
            json!({"strategy": "token", "dynamic": true})
        ),
        format!("{start}weights: num_bits = 4: must be 8")
    );
    assert_eq!(
        group(channel.clone(), json!({"strategy": "token"})),
        format!(
            "{start}activations static by token: must be static or dynamic by tensor, or dynamic by token or group"
        )
    );
    let ignored = json!({
        "quant_method": "compressed-tensors", "ignore": ["re:.*experts.*"], "weights": channel,
        "input_activations": {"strategy": "token", "dynamic": true},
    });
    assert_eq!(
        with(ignored),
        format!(
            "config: quantization_config says that {PREFIX}.experts.0.w1 is not quantised: such experts are not supported"
        )
    );
    let quark = json!({"quant_method": "quark", "global_quant_config": {
        "weight": {"dtype": "fp4", "qscheme": "per_group"}, "input_tensors": {"dtype": "fp4", "qscheme": "per_group"},
    }});
    assert_eq!(
        with(quark),
        "config: quantization_config: global_quant_config: weight: dtype \"fp4\": must be fp8_e4m3"
    );
    let elsewhere = json!({"quant_method": "compressed-tensors", "config_groups": {"group_0": {
        "targets": ["re:.*self_attn.*"], "weights": {"strategy": "channel"},
        "input_activations": {"strategy": "token", "dynamic": true},
    }}});
    assert_eq!(
        with(elsewhere),
        format!("config: quantization_config: no group has targets that match {PREFIX}.experts.0.w1")
    );
}

/// Scales of blocks of 256 x 128 are those of both their blocks of 128 x 128.
#[test]
fn larger_blocks_repeat_their_scales() {
    let mut draft = qwen3();
    draft.config["quantization_config"]["weight_block_size"] = json!([256, 128]);
    draft.config["moe_intermediate_size"] = json!(272);
    let prefix = "model.layers.0.mlp.experts";
    for expert in 0..4 {
        for (name, shape) in [("gate_proj", [272, 64]), ("up_proj", [272, 64]), ("down_proj", [64, 272])] {
            draft.insert(format!("{prefix}.{expert}.{name}.weight"), e4m3s(&shape));
            let blocks = [shape[0].div_ceil(256), shape[1].div_ceil(128)];
            let mut scale = f32s(&blocks, 0.5);
            scale.bytes[..4].copy_from_slice(&2.0f32.to_le_bytes());
            draft.insert(format!("{prefix}.{expert}.{name}.weight_scale_inv"), scale);
        }
    }
    let folder = tempdir().unwrap();
    let checkpoint = Checkpoint::open(draft.write(folder.path()), None).unwrap();
    let weights = checkpoint.weights("model.layers.0.mlp", &checkpoint.config().moe).unwrap();
    assert_eq!(*weights.experts[0].gate_scale, [2.0, 2.0, 0.5]);
    assert_eq!(*weights.experts[0].down_scale, [2.0, 0.5, 0.5]);
}

/// c13: experts fused in one tensor each for gate and up, and for down, are those of separate tensors.
#[test]
fn fused_experts_are_the_same_experts() {
    let mut draft = qwen3();
    for (number, (name, tensor)) in draft.tensors.iter_mut().enumerate() {
        match name.ends_with("scale_inv") {
            true => *tensor = f32s(&[1, 1], 0.01 * number as f32),
            false => tensor.bytes.rotate_left(2 * number),
        }
    }
    let weights = |draft: Draft| {
        let folder = tempdir().unwrap();
        let checkpoint = Checkpoint::open(draft.write(folder.path()), None).unwrap();
        checkpoint.weights("model.layers.0.mlp", &checkpoint.config().moe).unwrap().experts
    };
    let (each, fused) = (weights(draft.clone()), weights(draft.fused()));
    for (each, fused) in each.iter().zip(&fused) {
        assert_eq!([&each.gate, &each.up, &each.down], [&fused.gate, &fused.up, &fused.down]);
        let scales = |expert: &ExpertWeights<'_>| {
            [&expert.gate_scale, &expert.up_scale, &expert.down_scale].map(|scale| scale.to_vec())
        };
        assert_eq!(scales(each), scales(fused));
    }
    assert_eq!((each.len(), each[0].gate == each[1].gate), (4, false));
}

#[test]
fn progress_reaches_the_total() {
    let folder = tempdir().unwrap();
    let checkpoint = Checkpoint::open(mixtral().write(folder.path()), None).unwrap();
    let seen = std::sync::Mutex::new(Vec::new());
    let progress = |progress| seen.lock().unwrap().push(progress);
    checkpoint.load_layer_with(&device(), PREFIX, &checkpoint.config().moe, &progress).unwrap();
    let seen = seen.into_inner().unwrap();
    assert!(seen.len() >= 4, "at least once per expert: {}", seen.len());
    let total = 4 * 3 * 64 * 48;
    assert!(seen.iter().all(|p| p.total == total));
    assert_eq!(seen.iter().map(|p| p.done).max(), Some(total));
}

/// c33: outputs of experts beyond the range of f16, and a layer's output within it.
#[test]
fn f16_outputs_do_not_overflow() {
    let folder = tempdir().unwrap();
    let mut draft = Draft::read(&fixtures().join("models/jamba_channel.safetensors"));
    // Softmax weights that are not renormalised: made small by a router of zeros.
    draft.tensor("router.weight").bytes.fill(0);
    for (name, tensor) in &mut draft.tensors {
        if name.contains(".down_proj.weight_scale") {
            let larger = |b: &[u8]| bf16::from_f32(bf16::from_le_bytes([b[0], b[1]]).to_f32() * 1.2e5);
            tensor.bytes = tensor.bytes.chunks(2).flat_map(|b| larger(b).to_le_bytes()).collect();
        }
    }
    let checkpoint = Checkpoint::open(draft.write(folder.path()), None).unwrap();
    let device = common::device();
    let stream = device.default_stream();
    let layer = checkpoint.load_layer(&device, None).unwrap();
    let hidden = checkpoint.floats("io.hidden_states").unwrap().data;
    let hidden: Vec<_> = hidden.into_iter().map(bf16::from_f32).collect();
    let mut workspace = layer.workspace(9).unwrap();
    let on_device = device.upload(&hidden).unwrap();
    let mut wide = device.uninit::<f32>(hidden.len()).unwrap();
    layer.forward(&stream, &on_device, &mut workspace, &mut wide).unwrap();
    let wide = wide.to_vec(&stream).unwrap();
    let largest = wide.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    // Two experts of weight 1/8 each.
    assert!(largest < 65504.0 && largest > 2.0 / 8.0 * 65504.0, "{largest}");
    let mut narrow = device.uninit::<f16>(hidden.len()).unwrap();
    layer.forward(&stream, &on_device, &mut workspace, &mut narrow).unwrap();
    for (narrow, wide) in narrow.to_vec(&stream).unwrap().into_iter().zip(wide) {
        assert_eq!(narrow, f16::from_f32(wide), "rounded once more, from the same sum");
    }
}
