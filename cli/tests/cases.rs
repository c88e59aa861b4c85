//! Checkpoints after public bug reports: what each must do.
//!
//! The numbers are those of `docs/CHECKPOINTS.md`. Most are a fixture of `tests/fixtures/models` with one
//! thing changed.

#[path = "../../tests/common/checkpoints.rs"]
#[allow(dead_code, reason = "shared with the checkpoint tests")]
mod checkpoints;
#[path = "common/command.rs"]
mod command;

use std::path::{Path, PathBuf};

use checkpoints::{Draft, Tensor, f32s, fixtures, qwen3};
use command::{assert_one_line_error, fp8_moe};
use fp8_moe::E4m3;
use half::bf16;
use safetensors::Dtype;
use serde_json::json;
use tempfile::{TempDir, tempdir};

/// The folder of a fixture for each family and scheme.
fn models() -> PathBuf {
    fixtures().join("models")
}

fn fixture(name: &str) -> Draft {
    Draft::read(&models().join(format!("{name}.safetensors")))
}

/// A fixture with a change, written under the name of its case.
fn changed(folder: &TempDir, case: &str, name: &str, change: impl FnOnce(&mut Draft)) -> PathBuf {
    let mut draft = fixture(name);
    change(&mut draft);
    draft.write_as(folder.path(), case)
}

/// `fp8-moe check` of all files at once; every one must match.
fn assert_match(files: &[PathBuf]) {
    let arguments = std::iter::once(Path::new("check")).chain(files.iter().map(PathBuf::as_path));
    let run = fp8_moe(arguments);
    assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
    let matches = run.stdout.lines().filter(|line| line.starts_with("match ")).count();
    assert_eq!(matches, files.len(), "{}", run.stdout);
}

/// `fp8-moe run` of a file or folder refuses it with one line that has all of `words`.
#[track_caller]
fn assert_refused(path: &Path, words: &[&str]) {
    let run = fp8_moe(["run".as_ref(), path.as_os_str(), "--tokens".as_ref(), "3".as_ref()]);
    for word in words {
        assert_one_line_error(&run, word);
    }
}

/// Every family and scheme of the table matches its module in transformers.
#[test]
fn all_models_match() {
    let files: Vec<_> = std::fs::read_dir(models()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() > 30, "{files:?}");
    let docs = include_str!("../../docs/CHECKPOINTS.md");
    for file in &files {
        let name = file.file_stem().unwrap().to_str().unwrap();
        let is_named =
            docs.contains(&format!("`{name}`")) || docs.contains("`scheme_*`") && name.starts_with("scheme_");
        assert!(is_named, "docs/CHECKPOINTS.md does not name {name}");
    }
    assert_match(&files);
}

#[test]
fn changed_layers_match() {
    let folder = tempdir().unwrap();
    let config = |draft: &mut Draft, key: &str, value| draft.config[key] = value;
    assert_match(&[
        // Two groups, of which the second is for the experts.
        changed(&folder, "c05b", "jamba_channel", |draft| {
            let experts = draft.config["quantization_config"]["config_groups"]["group_0"].clone();
            let mut attention = experts.clone();
            attention["targets"] = json!(["re:.*self_attn.*"]);
            attention["weights"]["strategy"] = json!("tensor");
            let mut experts = experts;
            experts["targets"] = json!(["re:.*feed_forward\\.experts.*"]);
            draft.config["quantization_config"]["config_groups"] =
                json!({"group_0": attention, "group_1": experts});
        }),
        // An expert that calibration never reached.
        changed(&folder, "c11", "qwen2_moe_modelopt", |draft| {
            draft.tensors.retain(|name, _| !(name.contains("experts.3.") && name.ends_with("input_scale")));
        }),
        // No tokens.
        changed(&folder, "c26", "dots1_block", |draft| {
            for (_, tensor) in draft.tensors.iter_mut().filter(|(name, _)| name.starts_with("io.")) {
                tensor.shape[0] = 0;
                tensor.bytes.clear();
            }
            draft.metadata.insert("w8a8_rel_l2".into(), "nan".into());
        }),
        // A key under its alias, as transformers 5 saves it.
        changed(&folder, "c32", "gelu", |draft| {
            let count = draft.config.as_object_mut().unwrap().remove("num_experts").unwrap();
            config(draft, "num_local_experts", count);
        }),
        // Blocks' scales called as those of tensors.
        changed(&folder, "c38", "dots1_block", |draft| draft.rename("weight_scale_inv", "weight_scale")),
        // A bias that is asked for and not there; the fixture's module has zeros.
        changed(&folder, "c54b", "deepseek_v3_no_bias", |draft| {
            config(draft, "topk_method", json!("noaux_tc"));
        }),
        // An answer of zero.
        changed(&folder, "zero", "dots1_block", |draft| {
            for (name, tensor) in &mut draft.tensors {
                let is_output = name.starts_with("io.output");
                if is_output || name.ends_with("weight_scale_inv") {
                    tensor.bytes.fill(0);
                }
            }
            draft.metadata.insert("w8a8_rel_l2".into(), "nan".into());
        }),
    ]);
}

/// `fp8-moe check` of a file, which must not match.
#[track_caller]
fn assert_mismatch(file: &Path) {
    let run = fp8_moe([Path::new("check"), file]);
    assert_eq!(run.code, 1, "{}: {}{}", file.display(), run.stdout, run.stderr);
    assert!(
        run.stdout.contains("io.output_w8a8") && run.stdout.contains("OUT OF TOLERANCE"),
        "{}",
        run.stdout
    );
}

/// The expert with the most tokens, and the one with the most after it.
fn busiest(draft: &mut Draft) -> [i64; 2] {
    let ids =
        draft.tensor("io.topk_ids").bytes.chunks(8).map(|id| i64::from_le_bytes(id.try_into().unwrap()));
    let mut counts = std::collections::BTreeMap::<i64, usize>::new();
    ids.for_each(|id| *counts.entry(id).or_default() += 1);
    let mut experts: Vec<_> = counts.into_iter().collect();
    experts.sort_by_key(|&(id, count)| (std::cmp::Reverse(count), id));
    [experts[0].0, experts[1].0]
}

/// One weight, one scale, or the matrices of two experts, are told from roundings: of exact sums, and of
/// those that tensor cores cut, where these fixtures have roundings that flip.
#[test]
fn wrong_weights_scales_and_experts_do_not_match() {
    let folder = tempdir().unwrap();
    let layers = [
        ("mixtral_compressed_static", ["w1", "w3", "w2"]),
        ("scheme_compressed_tensor_token", ["gate_proj", "up_proj", "down_proj"]),
    ];
    for (name, matrices) in layers {
        for matrix in matrices {
            // The largest weight, with the other sign.
            assert_mismatch(&changed(&folder, "weight", name, |draft| {
                let [expert, _] = busiest(draft);
                let weights = &mut draft.tensor(&format!("experts.{expert}.{matrix}.weight")).bytes;
                let largest = weights.iter_mut().max_by_key(|byte| **byte & 0x7f).unwrap();
                *largest ^= 0x80;
            }));
            // A scale a tenth too large.
            assert_mismatch(&changed(&folder, "scale", name, |draft| {
                let [expert, _] = busiest(draft);
                let scales = &mut draft.tensor(&format!("experts.{expert}.{matrix}.weight_scale")).bytes;
                let scale = f32::from_le_bytes(scales[..4].try_into().unwrap()) * 1.1;
                scales[..4].copy_from_slice(&scale.to_le_bytes());
            }));
        }
    }
    let layers = [
        ("mixtral_compressed_static", "w2"),
        ("scheme_compressed_tensor_token", "down_proj"),
        // Ten experts a token, and a shared one.
        ("qwen3_next_block", "down_proj"),
    ];
    for (name, down) in layers {
        assert_mismatch(&changed(&folder, "expert", name, |draft| {
            let [one, other] = busiest(draft).map(|expert| format!("experts.{expert}.{down}.weight"));
            let bytes = std::mem::take(&mut draft.tensor(&one).bytes);
            let bytes = std::mem::replace(&mut draft.tensor(&other).bytes, bytes);
            draft.tensor(&one).bytes = bytes;
        }));
    }
}

/// A difference along a column of a token's expert is a flipped rounding, if it is no larger than one can be
/// and the column's only one.
#[test]
fn flipped_roundings_are_known_by_their_column() {
    const NAME: &str = "mixtral_compressed_static";
    let folder = tempdir().unwrap();
    // Moves tokens of the reference by `part` of their norm along `column` of an expert that they have, or
    // along a row of the output.
    let moved = |case: &str, count: usize, part: f32, column: Option<usize>| {
        changed(&folder, case, NAME, |draft| {
            let [expert, _] = busiest(draft);
            let weights = draft.tensor(&format!("experts.{expert}.w2.weight")).clone();
            let [h, i] = weights.shape[..] else { panic!("{:?}", weights.shape) };
            let ids = draft.tensor("io.topk_ids").clone();
            let own = |id: &[u8]| id == expert.to_le_bytes();
            let tokens = ids.bytes.chunks(16).enumerate().filter(|(_, ids)| ids.chunks(8).any(own));
            let tokens: Vec<_> = tokens.map(|(token, _)| token).take(count).collect();
            assert_eq!(tokens.len(), count);
            let direction: Vec<f32> = (0..h)
                .map(|row| match column {
                    Some(column) => E4m3(weights.bytes[row * i + column]).to_f32(),
                    None => f32::from(u8::from(row == 5)),
                })
                .collect();
            let norm = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
            let output = &mut draft.tensor("io.output_w8a8").bytes;
            for token in tokens {
                let row = &mut output[token * h * 4..][..h * 4];
                let mut values: Vec<f32> = bytemuck::pod_collect_to_vec(row);
                let factor = part * norm(&values) / norm(&direction);
                values.iter_mut().zip(&direction).for_each(|(value, x)| *value += factor * x);
                row.copy_from_slice(bytemuck::cast_slice(&values));
            }
        })
    };
    let on_cut_sums = |file: &Path| {
        command::run(command::command().env("FP8_MOE_SIM_SUMS", "hardware").arg("check").arg(file))
    };
    let flipped = moved("flipped", 1, 0.1, Some(7));
    let run = on_cut_sums(&flipped);
    assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
    assert!(run.stdout.contains("io.output_w8a8, less flips"), "{}", run.stdout);
    for (case, count, part, column) in
        [("too_far", 1, 0.25, Some(7)), ("twice", 2, 0.1, Some(7)), ("no_column", 1, 0.1, None)]
    {
        let run = on_cut_sums(&moved(case, count, part, column));
        assert!(run.code == 1 && run.stdout.contains("OUT OF TOLERANCE"), "{case}: {}", run.stdout);
    }
    // On exact sums no rounding flips.
    let run = command::run(
        command::command().env("FP8_MOE_SIM_SUMS", "exact").args(["check", "--device", "sim"]).arg(&flipped),
    );
    assert!(run.code == 1 && run.stdout.contains("OUT OF TOLERANCE"), "{}", run.stdout);
}

/// Pairs of schemes and shapes of scales for which no fixture was made: the same numbers, said in another
/// way.
#[test]
fn schemes_and_scales_in_other_words_match() {
    let folder = tempdir().unwrap();
    // Dynamic by tensor is computed by token, which is finer: the reference is by token.
    let by_tensor = |draft: &mut Draft| {
        draft.config["quantization_config"]["config_groups"]["group_0"]["input_activations"]["strategy"] =
            json!("tensor");
    };
    let shaped = |what: &'static str, to: fn(&[usize]) -> Vec<usize>| {
        move |draft: &mut Draft| {
            for (_, tensor) in draft.tensors.iter_mut().filter(|(name, _)| name.ends_with(what)) {
                tensor.shape = to(&tensor.shape);
            }
        }
    };
    // Powers of two, which a byte holds, keep their values as E8M0 and as bf16 and f16.
    let retyped = |dtype: Dtype| {
        move |draft: &mut Draft| {
            for (_, tensor) in draft.tensors.iter_mut().filter(|(name, _)| name.contains("weight_scale")) {
                let exponents = tensor.bytes.iter().map(|&byte| f32::from_bits(u32::from(byte) << 23));
                let bytes = |value: f32| match dtype {
                    Dtype::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
                    _ => value.to_le_bytes().to_vec(),
                };
                let bytes = exponents.flat_map(bytes).collect();
                (tensor.dtype, tensor.bytes) = (dtype, bytes);
            }
        }
    };
    // Quark's words for blocks and groups.
    let by_quark = |draft: &mut Draft| {
        draft.config["quantization_config"] = json!({"quant_method": "quark", "global_quant_config": {
            "weight": {"dtype": "fp8_e4m3", "qscheme": "per_block", "block_size": [128, 128]},
            "input_tensors": {
                "dtype": "fp8_e4m3", "qscheme": "per_group", "group_size": 128, "is_dynamic": true,
            },
        }});
    };
    let (token, channel) = ("scheme_compressed_tensor_token", "glm4_moe_channel");
    assert_match(&[
        changed(&folder, "channel_by_tensor", "scheme_half_scales", by_tensor),
        changed(&folder, "block_by_tensor", "scheme_block_token", by_tensor),
        changed(&folder, "no_sizes", token, shaped("weight_scale", |_| vec![])),
        changed(&folder, "two_sizes", token, shaped("weight_scale", |_| vec![1, 1])),
        changed(&folder, "static_no_sizes", "qwen2_moe_modelopt", shaped("_scale", |_| vec![])),
        changed(&folder, "channel_one_size", channel, shaped("weight_scale", |shape| vec![shape[0]])),
        changed(&folder, "e8m0_as_f32", "deepseek_v31_e8m0", retyped(Dtype::F32)),
        changed(&folder, "e8m0_as_bf16", "deepseek_v31_e8m0", retyped(Dtype::BF16)),
        changed(&folder, "quark_blocks", "scheme_compressed_block", by_quark),
    ]);
}

/// DeepSeek-V4: the limit of gate and up is applied, to shared experts too, and token ids choose.
#[test]
fn limits_and_token_ids_are_used() {
    let folder = tempdir().unwrap();
    let off = |case: &str, name: &str, change: &dyn Fn(&mut Draft)| {
        let run = fp8_moe(["check".as_ref(), changed(&folder, case, name, change).as_os_str()]);
        assert_eq!(run.code, 1, "{case}: {}{}", run.stdout, run.stderr);
    };
    // The default, which nothing here reaches.
    off("no_limit", "deepseek_v4_block", &|draft| {
        draft.config.as_object_mut().unwrap().remove("swiglu_limit");
    });
    off("other_ids", "deepseek_v4_lookup", &|draft| draft.tensor("io.token_ids").bytes.rotate_left(8));
    let lookup = changed(&folder, "lookup", "deepseek_v4_lookup", |_| {});
    let lookup = lookup.to_str().unwrap();
    let run = fp8_moe(["run", lookup, "--tokens", "3"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stderr.contains("8 experts, 2 by token id, hidden 64"), "{}", run.stderr);
    assert_one_line_error(
        &fp8_moe(["run", lookup, "--tokens", "4", "--ranks", "2", "--device", "sim"]),
        "run: --ranks = 2: must be left out: ranks do not look experts up by token id",
    );
    let without = changed(&folder, "no_ids", "deepseek_v4_lookup", |draft| {
        draft.tensors.remove("io.token_ids").unwrap();
    });
    assert_one_line_error(&fp8_moe(["check", without.to_str().unwrap()]), "there is no tensor io.token_ids");
    let far = changed(&folder, "far", "deepseek_v4_lookup", |draft| {
        draft.tensor("io.token_ids").bytes[8..16].copy_from_slice(&50_i64.to_le_bytes());
    });
    let rule = "io.token_ids: has the token id 50; it must be in 0..50";
    assert_one_line_error(&fp8_moe(["check", far.to_str().unwrap()]), rule);
}

#[test]
fn values_that_are_no_numbers_are_refused() {
    let folder = tempdir().unwrap();
    let refused = |case: &str, name: &str, words: &[&str], change: &dyn Fn(&mut Draft)| {
        assert_refused(&changed(&folder, case, name, change), words);
    };
    refused("c12b", "gelu", &["experts.1.up_proj.weight: element [3, 5] is NaN"], &|draft| {
        draft.tensor("experts.1.up_proj.weight").bytes[3 * 64 + 5] = 0x7f;
    });
    refused(
        "c12b_fused",
        "qwen3_vl_moe_columns",
        &["experts.gate_up_proj: element [2, 1, 40] is NaN"],
        &|draft| {
            draft.tensor("experts.gate_up_proj").bytes[(2 * 64 + 1) * 64 + 40] = 0xff;
        },
    );
    refused("c44", "gelu", &["norm_topk_prob = 1: must be true or false"], &|draft| {
        draft.config["norm_topk_prob"] = json!(1);
    });
    refused("c44_text", "dots1_block", &["scoring_func = 5: must be \"sigmoid\""], &|draft| {
        draft.config["scoring_func"] = json!(5);
    });
    refused("c44_act", "dots1_block", &["hidden_act = 5: must be a string"], &|draft| {
        draft.config["hidden_act"] = json!(5);
    });
    refused("c56", "dots1_block", &["gate.e_score_correction_bias: element [2] is NaN"], &|draft| {
        draft.tensor("e_score_correction_bias").bytes[8..12].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    refused("c57", "gelu", &["gate.weight: element [3, 0] is NaN"], &|draft| {
        let row = bf16::NAN.to_le_bytes().repeat(64);
        draft.tensor("gate.weight").bytes[3 * 128..].copy_from_slice(&row);
    });
    refused("alias", "gelu", &["num_experts = 4 and num_local_experts = 8", "differ"], &|draft| {
        draft.config["num_local_experts"] = json!(8);
    });
    refused(
        "unknown",
        "gelu",
        &["experts.0.gate_proj.bias is not known as a tensor of qwen3_moe"],
        &|draft| {
            draft.insert("model.layers.3.mlp.experts.0.gate_proj.bias", f32s(&[32], 0.0));
        },
    );
}

#[test]
fn folders() {
    let folder = tempdir().unwrap();
    let run = |draft: &Draft| {
        draft.write_folder(folder.path());
        let path = folder.path().to_str().unwrap();
        let run = fp8_moe(["run", path, "--tokens", "3"]);
        assert_eq!(run.code, 0, "{}", run.stderr);
    };
    // c31d: the quantisation of the outer config, the inner being null.
    let mut nested = qwen3();
    let mut text = nested.config.clone();
    text["quantization_config"] = json!(null);
    nested.config = json!({
        "model_type": "x", "text_config": text, "quantization_config": nested.config["quantization_config"],
    });
    nested.rename("model.layers", "model.language_model.layers");
    run(&nested);
    // c13: experts fused in one tensor each for gate and up, and for down. Nothing to compare with is in it:
    // the outputs are, byte for byte, those of the same experts in tensors of their own.
    let out = tempdir().unwrap();
    let output = |draft: &Draft, name: &str| {
        draft.write_folder(folder.path());
        let file = out.path().join(name);
        let (path, to) = (folder.path().to_str().unwrap(), file.to_str().unwrap());
        let run = fp8_moe(["run", path, "--tokens", "20", "--output", to]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        std::fs::read(file).unwrap()
    };
    let mut separate = qwen3();
    for (number, (_, tensor)) in separate.tensors.iter_mut().enumerate() {
        match tensor.dtype {
            Dtype::F32 => *tensor = f32s(&[1, 1], 0.01 * number as f32),
            _ => tensor.bytes.rotate_left(2 * number),
        }
    }
    assert!(output(&separate, "separate") == output(&separate.clone().fused(), "fused"));
    let check = fp8_moe(["check", folder.path().to_str().unwrap()]);
    assert_one_line_error(&check, "has no io.* tensors to compare with");
    run(&nested);
    // c22d: a name that stands in two files.
    let copy = folder.path().join("zz_old.safetensors");
    std::fs::copy(folder.path().join("model.safetensors"), &copy).unwrap();
    assert_refused(folder.path(), &["zz_old.safetensors", "model.safetensors", "stands in both"]);
    std::fs::remove_file(copy).unwrap();
    // c05d: ModelOpt's scheme in a file of its own; these tensors are not what it says.
    let mut modelopt = qwen3();
    modelopt.config.as_object_mut().unwrap().remove("quantization_config");
    modelopt.write_folder(folder.path());
    let write = |algorithm: &str| {
        let text = json!({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algorithm}});
        std::fs::write(folder.path().join("hf_quant_config.json"), text.to_string()).unwrap();
    };
    write("FP8");
    assert_refused(folder.path(), &["input_scale", "hf_quant_config.json: quant_algo FP8 needs it"]);
    write("FP8_PB_WO");
    run(&modelopt);
    write("NVFP4");
    assert_refused(folder.path(), &["hf_quant_config.json: quant_algo \"NVFP4\": must be FP8"]);
    // c51: an LFS pointer in the place of the weights.
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4998650000\n";
    std::fs::write(folder.path().join("model.safetensors"), pointer).unwrap();
    assert_refused(folder.path(), &["model.safetensors: is not a safetensors file: it is a Git LFS pointer"]);
}

/// `--as`: an unknown type whose tensors are those of a known one.
#[test]
fn unknown_models_are_read_as_known_ones() {
    let folder = tempdir().unwrap();
    let file = changed(&folder, "unknown", "gelu", |draft| draft.config["model_type"] = json!("new_moe"));
    assert_refused(&file, &["model_type = \"new_moe\" is not known", "qwen3_moe", "--as TYPE"]);
    let file = file.to_str().unwrap();
    let run = fp8_moe(["check", file, "--as", "qwen3_moe"]);
    assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
    assert_one_line_error(&fp8_moe(["check", file, "--as", "gpt2"]), "--as gpt2: must be mixtral, ");
    let phi = changed(&folder, "phi", "gelu", |draft| draft.config["model_type"] = json!("phimoe"));
    assert_refused(&phi, &["model_type = \"phimoe\": not supported: its router masks scores"]);
}

/// `info` describes a checkpoint with a dense layer, one that is not quantised, and one that can be loaded.
#[test]
fn info_describes_checkpoints() {
    let folder = tempdir().unwrap();
    let file = changed(&folder, "mixed", "glm4_moe_channel", |draft| {
        let weight = |shape: &[usize]| Tensor {
            dtype: Dtype::BF16,
            shape: shape.to_vec(),
            bytes: vec![0; 2 * shape.iter().product::<usize>()],
        };
        draft.insert("model.layers.0.mlp.gate_proj.weight", weight(&[128, 64]));
        draft.insert("model.layers.4.mlp.gate.weight", weight(&[8, 64]));
        for (name, shape) in [("gate_proj", [32, 64]), ("up_proj", [32, 64]), ("down_proj", [64, 32])] {
            draft.insert(format!("model.layers.4.mlp.shared_experts.{name}.weight"), weight(&shape));
        }
        for expert in 0..8 {
            for (name, shape) in [("gate_proj", [32, 64]), ("up_proj", [32, 64]), ("down_proj", [64, 32])] {
                draft.insert(format!("model.layers.4.mlp.experts.{expert}.{name}.weight"), weight(&shape));
            }
        }
    });
    let run = fp8_moe(["info", file.to_str().unwrap()]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    for expected in [
        "model      glm4_moe, read as glm4_moe (https://github.com/huggingface/transformers/",
        "dense      model.layers.0.mlp: no MoE layer, not loaded",
        "layer      model.layers.3.mlp of glm4_moe: 8 experts, top 2, hidden 64, intermediate 32",
        "stored as per-channel weights, per-token activations",
        "layer      model.layers.4.mlp cannot be loaded: ",
        "experts that are not quantised are not supported",
        "total      1 of 2 MoE layers can be loaded",
    ] {
        assert!(run.stdout.contains(expected), "no {expected:?} in {}", run.stdout);
    }
}
