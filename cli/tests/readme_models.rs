//! The models of the README's tables can be loaded: a layer of each in its published sizes, names and scheme,
//! whose bytes are zeros that no disk has, but for the scales of the input, which have to be positive.

#[path = "common/command.rs"]
#[allow(dead_code, reason = "shared with the other tests of the command")]
mod command;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use command::fp8_moe;
use serde_json::{Map, Value, json};
use tempfile::tempdir;

/// A tensor of a file that is to be: its name, type and shape.
type Tensor = (String, &'static str, Vec<usize>);

/// Writes a safetensors file with a config.json beside it: zeros, and ones for the scales of the input. The
/// file is sparse.
fn write(folder: &Path, config: &Value, tensors: &[Tensor]) {
    let mut header = Map::new();
    let mut end = 0;
    let mut ones = Vec::new();
    for (name, dtype, shape) in tensors {
        let size = match *dtype {
            "F8_E4M3" => 1,
            "BF16" => 2,
            _ => 4,
        };
        let start = end;
        end += size * shape.iter().product::<usize>();
        if name.ends_with(".input_scale") {
            ones.push(start);
        }
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
    }
    let mut header = Value::from(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = File::create(folder.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
    for start in ones {
        file.seek(SeekFrom::Start((8 + header.len() + start) as u64)).unwrap();
        file.write_all(&1_f32.to_le_bytes()).unwrap();
    }
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

/// How a model's matrices are scaled.
#[derive(Clone, Copy, PartialEq)]
enum Scales {
    /// One, and one for the input.
    Static,
    /// `[rows, 1]` in bf16.
    Channel,
    /// `weight_scale_inv` of 128x128.
    Block,
}

/// The tensors of one expert, or of a shared one, below `prefix`.
fn expert(prefix: &str, names: [&str; 3], [h, i]: [usize; 2], scales: Scales) -> Vec<Tensor> {
    let matrices = [(names[0], [i, h]), (names[1], [i, h]), (names[2], [h, i])];
    let tensors = matrices.into_iter().flat_map(|(name, [rows, columns])| {
        let of = |what: &str| format!("{prefix}.{name}.{what}");
        let mut tensors = vec![(of("weight"), "F8_E4M3", vec![rows, columns])];
        tensors.extend(match scales {
            Scales::Static => vec![(of("weight_scale"), "F32", vec![]), (of("input_scale"), "F32", vec![])],
            Scales::Channel => vec![(of("weight_scale"), "BF16", vec![rows, 1])],
            Scales::Block => {
                vec![(of("weight_scale_inv"), "F32", vec![rows.div_ceil(128), columns.div_ceil(128)])]
            }
        });
        tensors
    });
    tensors.collect()
}

/// A layer: E, H, I; what `info` says of it.
fn check(
    mut config: Value,
    prefix: &str,
    names: [&str; 3],
    sizes: [usize; 3],
    scales: Scales,
    shared: Option<&str>,
) {
    let [experts, h, i] = sizes;
    config["quantization_config"] = match scales {
        Scales::Static => json!({"quant_method": "fp8", "activation_scheme": "static"}),
        Scales::Block => {
            json!({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]})
        }
        Scales::Channel => json!({
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "dynamic": false},
                "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": true},
            }},
        }),
    };
    let model = config["model_type"].as_str().unwrap().to_owned();
    let router = if model.starts_with("llama4") { "router.weight" } else { "gate.weight" };
    let mut tensors = vec![(format!("{prefix}.{router}"), "BF16", vec![experts, h])];
    if config.get("n_group").is_some() {
        tensors.push((format!("{prefix}.gate.e_score_correction_bias"), "F32", vec![experts]));
    }
    for n in 0..experts {
        tensors.extend(expert(&format!("{prefix}.experts.{n}"), names, [h, i], scales));
    }
    if let Some(shared) = shared {
        tensors.extend(expert(&format!("{prefix}.{shared}"), names, [h, i], scales));
    }
    let folder = tempdir().unwrap();
    write(folder.path(), &config, &tensors);
    let run = fp8_moe(["info", folder.path().to_str().unwrap()]);
    assert_eq!(run.code, 0, "{model}: {}", run.stderr);
    assert!(run.stdout.contains("1 of 1 MoE layers can be loaded"), "{model}: {}", run.stdout);
    assert_eq!(run.stdout.contains("computed as one more expert"), shared.is_some(), "{}", run.stdout);
}

const PROJECTIONS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

#[test]
fn mixtral() {
    let config = json!({
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_local_experts": 8,
        "num_experts_per_tok": 2, "hidden_act": "silu",
    });
    let prefix = "model.layers.0.block_sparse_moe";
    check(config, prefix, ["w1", "w3", "w2"], [8, 4096, 14336], Scales::Static, None);
}

#[test]
fn qwen3() {
    for (h, i) in [(4096, 1536), (2048, 768)] {
        let config = json!({
            "model_type": "qwen3_moe", "hidden_size": h, "moe_intermediate_size": i, "num_experts": 128,
            "num_experts_per_tok": 8, "norm_topk_prob": true, "hidden_act": "silu",
        });
        check(config, "model.layers.0.mlp", PROJECTIONS, [128, h, i], Scales::Block, None);
    }
}

#[test]
fn llama4() {
    let text = json!({
        "model_type": "llama4_text", "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
        "num_local_experts": 128, "num_experts_per_tok": 1, "hidden_act": "silu",
    });
    let prefix = "language_model.model.layers.1.feed_forward";
    check(text, prefix, PROJECTIONS, [128, 5120, 8192], Scales::Channel, Some("shared_expert"));
}

#[test]
fn deepseek_v3() {
    let config = json!({
        "model_type": "deepseek_v3", "hidden_size": 7168, "moe_intermediate_size": 2048, "n_routed_experts": 256,
        "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "n_shared_experts": 1, "norm_topk_prob": true,
        "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "hidden_act": "silu",
    });
    check(
        config,
        "model.layers.3.mlp",
        PROJECTIONS,
        [256, 7168, 2048],
        Scales::Block,
        Some("shared_experts"),
    );
}

#[test]
fn glm_4_6() {
    let config = json!({
        "model_type": "glm4_moe", "hidden_size": 5120, "moe_intermediate_size": 1536, "n_routed_experts": 160,
        "num_experts_per_tok": 8, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "norm_topk_prob": true,
        "routed_scaling_factor": 2.5, "hidden_act": "silu", "first_k_dense_replace": 3,
    });
    check(
        config,
        "model.layers.3.mlp",
        PROJECTIONS,
        [160, 5120, 1536],
        Scales::Channel,
        Some("shared_experts"),
    );
}
