//! Checkpoints that are malformed or unusual: loaded as they are meant, or refused in one line that names the
//! file, and the tensor or key.

#[path = "common/checkpoints.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod checkpoints;

use std::fs;
use std::path::Path;

use checkpoints::{Draft, Tensor, bf16s, e4m3s, f32s, fixtures, mixtral, qwen3};
use fp8_moe::{Checkpoint, Result};
use safetensors::Dtype;
use serde_json::json;
use tempfile::tempdir;

const MIXTRAL: &str = "model.layers.0.block_sparse_moe";
const QWEN: &str = "model.layers.0.mlp";

/// Describes the checkpoint and loads its only layer's weights on the host.
fn load(path: &Path) -> Result<()> {
    let checkpoint = Checkpoint::open(path, None)?;
    let prefix = checkpoint.find_layer(None)?;
    let described = checkpoint.inspect();
    assert_eq!(described.layers.len(), 1);
    let loaded = checkpoint.weights(&prefix, &checkpoint.layer_config(&prefix)?).map(drop);
    // What `info` says of it must be what loading says, but for values of matrices, which it does not read.
    if let Err(text) = &described.layers[0].loads {
        assert_eq!(&loaded.as_ref().expect_err("described as not to be loaded").to_string(), text);
    }
    loaded
}

/// The error about `path`, which is inside `folder`; one line that begins with a file of it.
#[track_caller]
fn refusal(folder: &Path, path: &Path) -> String {
    let error = load(path).expect_err("a broken checkpoint").to_string();
    assert!(!error.contains('\n'), "{error}");
    let rest =
        error.strip_prefix(folder.to_str().expect("a path in UTF-8")).unwrap_or_else(|| panic!("{error}"));
    rest.split_once(": ").unwrap_or_else(|| panic!("{error}")).1.to_owned()
}

/// The error about what `change` makes of a sound checkpoint.
#[track_caller]
fn refused(mut draft: Draft, change: impl FnOnce(&mut Draft)) -> String {
    change(&mut draft);
    let folder = tempdir().unwrap();
    let file = draft.write(folder.path());
    refusal(folder.path(), &file)
}

fn loads(mut draft: Draft, change: impl FnOnce(&mut Draft)) {
    change(&mut draft);
    let folder = tempdir().unwrap();
    load(&draft.write(folder.path())).unwrap_or_else(|error| panic!("{error}"));
}

/// A file of a header and data.
fn file_of(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, data].concat()
}

/// Header and data of a file.
fn parts_of(file: &[u8]) -> (&[u8], &[u8]) {
    file[8..].split_at(u64::from_le_bytes(file[..8].try_into().unwrap()) as usize)
}

#[test]
fn headers() {
    let folder = tempdir().unwrap();
    let file = mixtral().write(folder.path());
    let whole = fs::read(&file).unwrap();
    let (header, data) = parts_of(&whole);
    let text = std::str::from_utf8(header).unwrap();
    let with = |bytes: Vec<u8>| {
        fs::write(&file, bytes).unwrap();
        refusal(folder.path(), &file)
    };
    let not = "is not a safetensors file: ";
    // The length with its bytes in the other order, and one that no machine has.
    let swapped = (header.len() as u64).swap_bytes();
    assert_eq!(
        with([&swapped.to_le_bytes()[..], header, data].concat()),
        format!("{not}its header would have {swapped} bytes, more than 100000000")
    );
    assert_eq!(
        with([&u64::MAX.to_le_bytes()[..], header, data].concat()),
        format!("{not}its header would have {} bytes, more than 100000000", u64::MAX)
    );
    // A name twice.
    let gate = format!("{MIXTRAL}.gate.weight");
    let again =
        format!(r#"{{"{gate}":{{"dtype":"BF16","shape":[4,64],"data_offsets":[0,512]}},{}"#, &text[1..]);
    let twice = with(file_of(again.as_bytes(), data));
    assert!(twice.starts_with(&format!("{not}its header: {gate} stands in it twice")), "{twice}");
    // A name that is no text.
    let mut bytes = header.to_vec();
    let at = text.find("gate.weight").unwrap();
    bytes[at] = 0xff;
    assert!(
        with(file_of(&bytes, data))
            .starts_with(&format!("{not}its header is not JSON: invalid unicode code point"))
    );
    // Offsets with a hole, and with others than type and shape have.
    let end = data.len();
    let last = text.rfind(&format!(",{end}]")).unwrap();
    let hole = format!("{},{}]{}", &text[..last], end + 8, &text[last + format!(",{end}]").len()..]);
    let longer = [data, &[0; 8]].concat();
    assert!(with(file_of(hole.as_bytes(), &longer)).contains(" does not have "), "{hole}");
    let beyond = text.replace("\"data_offsets\":[0,", "\"data_offsets\":[8,");
    assert!(with(file_of(beyond.as_bytes(), data)).contains(" it must begin at 0"));
    // Bytes behind the last tensor.
    assert_eq!(
        with(file_of(header, &longer)),
        format!("the header describes {} bytes, the file has {}", whole.len(), whole.len() + 8)
    );
    // Shapes whose product is no number of bytes.
    let wide =
        format!(r#"{{"{gate}":{{"dtype":"BF16","shape":[{0},{0}],"data_offsets":[0,512]}}}}"#, usize::MAX);
    assert!(with(file_of(wide.as_bytes(), &[0; 512])).contains(" does not have 512 bytes"));
    // No object, no tensors.
    assert!(with(file_of(b"[]", b"")).starts_with(&format!("{not}its header: invalid type: sequence")));
    fs::write(folder.path().join("config.json"), mixtral().config.to_string()).unwrap();
    assert_eq!(
        with(file_of(b"{}", b"")),
        "has no MoE layer: no tensor is called *.experts.0.w1.weight, as mixtral has"
    );
    assert_eq!(with(vec![]), format!("{not}0 bytes, shorter than its length field"));
}

#[test]
fn files_of_other_kinds() {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("config.json"), mixtral().config.to_string()).unwrap();
    let file = folder.path().join("layer.safetensors");
    let long = |start: &[u8]| [start, &[b' '; 100][..]].concat();
    for (start, what) in [
        (
            &b"version https://git-lfs.github.com/spec/v1\n"[..],
            "it is a Git LFS pointer (the weights were not downloaded",
        ),
        (b"GGUF\x03\0\0\0", "it is a GGUF file"),
        (b"PK\x03\x04\x14\0\0\0", "it is a zip archive, as PyTorch's .bin and .pth files are"),
        (b"\x80\x02}q\0", "it is a Python pickle, as older PyTorch .bin and .pth files are"),
        (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file"),
        (b"<!DOCTYPE html>", "it is a web page or XML (a download that failed?)"),
    ] {
        fs::write(&file, long(start)).unwrap();
        let error = refusal(folder.path(), &file);
        assert!(error.starts_with(&format!("is not a safetensors file: {what}")), "{error}");
    }
    fs::remove_file(&file).unwrap();
    let nothing = "a folder with neither model.safetensors.index.json nor a .safetensors file";
    for (name, what) in [
        ("pytorch_model.bin", "a PyTorch file"),
        ("consolidated.00.pth", "a PyTorch file"),
        ("model.gguf", "a GGUF file"),
    ] {
        fs::write(folder.path().join(name), "x").unwrap();
        assert_eq!(refusal(folder.path(), folder.path()), format!("{nothing}; {name} is {what}"));
        fs::remove_file(folder.path().join(name)).unwrap();
    }
    assert_eq!(refusal(folder.path(), folder.path()), nothing);
    // A folder in the place of a file.
    fs::create_dir(&file).unwrap();
    assert_eq!(refusal(folder.path(), folder.path()), "is not a safetensors file: it is no file");
}

#[test]
fn shards() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    qwen3().write_shards(path);
    load(path).unwrap();
    // A shard without tensors.
    let (index, empty) = (path.join("model.safetensors.index.json"), path.join("model-empty.safetensors"));
    let text = fs::read_to_string(&index).unwrap();
    fs::write(&empty, file_of(b"{}", b"")).unwrap();
    load(path).unwrap();
    // The index names another shard than the one that has the tensor.
    let name = format!("{QWEN}.experts.2.up_proj.weight");
    let moved = |from: &str, to: &str| {
        let (old, new) = (format!("\"{name}\":\"{from}\""), format!("\"{name}\":\"{to}\""));
        assert!(text.contains(&old));
        fs::write(&index, text.replace(&old, &new)).unwrap();
        refusal(path, path)
    };
    assert!(moved("model-2.safetensors", "model-empty.safetensors").ends_with("in model-empty.safetensors"));
    assert!(
        moved("model-2.safetensors", "../model-2.safetensors")
            .ends_with("a shard must be a file of this folder")
    );
    // Both shards have it.
    let shard = fs::read(path.join("model-2.safetensors")).unwrap();
    fs::write(path.join("model-copy.safetensors"), shard).unwrap();
    let twice = moved("model-2.safetensors", "model-copy.safetensors");
    assert!(
        twice.contains(" stands in ") && twice.contains("model.safetensors.index.json says that it is in "),
        "{twice}"
    );
    // The index names a tensor that its shard has not, and a shard that is not there.
    let mut without = qwen3();
    without.tensors.remove(&name);
    without.write_shards(path);
    fs::write(&index, &text).unwrap();
    assert_eq!(
        refusal(path, path),
        format!("lacks the tensor {name}, which model.safetensors.index.json says is here")
    );
    fs::remove_file(path.join("model-2.safetensors")).unwrap();
    assert!(refusal(path, path).starts_with("is missing; model.safetensors.index.json says that "));
    for (json, what) in [
        ("{}", "is not an index of safetensors shards: missing field `weight_map`"),
        (r#"{"weight_map": {"a": 3}}"#, "is not an index of safetensors shards: invalid type: integer `3`"),
        (
            r#"{"weight_map": {"a": "b", "a": "c"}}"#,
            "is not an index of safetensors shards: a is in both b and c",
        ),
        ("version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer"),
    ] {
        fs::write(&index, json).unwrap();
        let error = refusal(path, path);
        assert!(error.starts_with(what), "{error}");
    }
}

#[test]
fn experts() {
    let expert = |number: &'static str| {
        move |draft: &mut Draft| {
            let name = format!("{MIXTRAL}.experts.{number}.w1.weight");
            draft.insert(name, e4m3s(&[48, 64]));
        }
    };
    // More of them, fewer, and gaps.
    let more = refused(mixtral(), expert("4"));
    assert_eq!(more, format!("{MIXTRAL} has an expert 4, but the config says there are 4"));
    let fewer = refused(mixtral(), |draft| draft.tensors.retain(|name, _| !name.contains("experts.2.")));
    assert_eq!(fewer, format!("there is no tensor {MIXTRAL}.experts.2.w1.weight"));
    // Numbers that are written in another way would be read by nobody.
    for number in ["01", "+1", "1e0", "x"] {
        let error = refused(mixtral(), expert(number));
        assert_eq!(
            error,
            format!("{MIXTRAL}.experts.{number}.w1.weight is not known as a tensor of mixtral")
        );
    }
    let types = |dtype, shape: &[usize], size: usize| {
        let tensor =
            Tensor { dtype, shape: shape.to_vec(), bytes: vec![1; size * shape.iter().product::<usize>()] };
        refused(mixtral(), |draft| draft.insert(format!("{MIXTRAL}.experts.1.w3.weight"), tensor))
    };
    let name = format!("{MIXTRAL}.experts.1.w3.weight");
    for dtype in [Dtype::F8_E5M2, Dtype::U8, Dtype::I8] {
        assert_eq!(types(dtype, &[48, 64], 1), format!("{name}: has type {dtype:?}; F8_E4M3 is expected"));
    }
    for dtype in [Dtype::F16, Dtype::BF16] {
        let what = "F8_E4M3 is expected: experts that are not quantised are not supported";
        assert_eq!(types(dtype, &[48, 64], 2), format!("{name}: has type {dtype:?}; {what}"));
    }
    for shape in [&[0, 64][..], &[48, 0], &[64, 48], &[1, 48, 64], &[3072]] {
        let error = types(Dtype::F8_E4M3, shape, 1);
        assert_eq!(error, format!("{name}: has shape {shape:?}; the config says [48, 64]"));
    }
}

#[test]
fn scales() {
    let with = |name: &str, tensor: Tensor| {
        let name = format!("{MIXTRAL}.experts.{name}");
        refused(mixtral(), |draft| draft.insert(&name, tensor)).replace(&format!("{MIXTRAL}.experts."), "")
    };
    for (value, said) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (-1.0, "-1")] {
        for name in ["1.w2.weight_scale", "1.w2.input_scale"] {
            let rule = "a scale must be finite and not negative";
            assert_eq!(with(name, f32s(&[1], value)), format!("{name}: element 0 is {said}; {rule}"));
        }
    }
    // An all-zero matrix has the scale 0; activations that have it could not be divided by it.
    loads(mixtral(), |draft| draft.insert(format!("{MIXTRAL}.experts.1.w2.weight_scale"), f32s(&[1], 0.0)));
    loads(mixtral(), |draft| draft.insert(format!("{MIXTRAL}.experts.1.w2.input_scale"), f32s(&[1], 0.0)));
    let zeros = refused(mixtral(), |draft| {
        for (name, tensor) in &mut draft.tensors {
            if name.ends_with("w2.input_scale") {
                tensor.bytes.fill(0);
            }
        }
    });
    assert_eq!(
        zeros,
        format!(
            "the input scale of {MIXTRAL}.experts.0.w2.weight is 0, and so is that of every expert; one must be positive"
        )
    );
    for (dtype, size) in [(Dtype::F64, 8), (Dtype::I32, 4), (Dtype::U8, 1)] {
        let tensor = Tensor { dtype, shape: vec![1], bytes: vec![0; size] };
        let error = with("1.w2.weight_scale", tensor);
        assert_eq!(error, format!("1.w2.weight_scale: has type {dtype:?}; F32, BF16 or F16 is expected"));
    }
    for shape in [&[0][..], &[2], &[1, 2]] {
        let error = with("1.w2.weight_scale", f32s(shape, 1.0));
        assert_eq!(error, format!("1.w2.weight_scale: has shape {shape:?}; one number is expected"));
    }
    for shape in [&[][..], &[1, 1], &[1, 1, 1]] {
        loads(mixtral(), |draft| {
            draft.insert(format!("{MIXTRAL}.experts.1.w2.weight_scale"), f32s(shape, 1.0))
        });
    }
    // E8M0: 255 is NaN, and 0 a number.
    let name = format!("{QWEN}.experts.1.up_proj.weight_scale_inv");
    let exponent = |byte| Tensor { dtype: Dtype::F8_E8M0, shape: vec![1, 1], bytes: vec![byte] };
    loads(qwen3(), |draft| draft.insert(&name, exponent(0)));
    let nan = refused(qwen3(), |draft| draft.insert(&name, exponent(255)));
    assert_eq!(nan, format!("{name}: element 0 is NaN; a scale must be finite and not negative"));
    // The same under two names.
    let other = format!("{QWEN}.experts.1.up_proj.weight_scale");
    let two = refused(qwen3(), |draft| draft.insert(&other, f32s(&[1, 1], 0.01)));
    assert_eq!(two, format!("there are both {name} and {other}: which is meant?"));
}

/// Blocks that the kernels cannot keep apart: tensor, block and rule are named.
#[test]
fn blocks_of_other_sizes() {
    for block in [[1, 128], [64, 128], [128, 64], [32, 32]] {
        let shape = |rows: usize, columns: usize| [rows.div_ceil(block[0]), columns.div_ceil(block[1])];
        let change = |last: f32| {
            move |draft: &mut Draft| {
                draft.config["quantization_config"] = json!({
                    "quant_method": "compressed-tensors",
                    "weights": {"strategy": "block", "block_structure": block},
                    "input_activations": {"strategy": "group", "group_size": 128, "dynamic": true},
                });
                for (name, tensor) in &mut draft.tensors {
                    if name.ends_with("weight_scale_inv") {
                        let [rows, columns] = if name.contains("down") { [64, 48] } else { [48, 64] };
                        *tensor = f32s(&shape(rows, columns), 0.5);
                        let end = tensor.bytes.len();
                        if name.contains("experts.2.down") {
                            tensor.bytes[end - 4..].copy_from_slice(&last.to_le_bytes());
                        }
                    }
                }
            }
        };
        loads(qwen3(), change(0.5));
        let [high, wide] = block;
        let is_one = shape(64, 48) == [1, 1];
        if is_one {
            loads(qwen3(), change(0.25));
            continue;
        }
        let error = refused(qwen3(), change(0.25));
        let start = format!(
            "{QWEN}.experts.2.down_proj.weight_scale_inv: the blocks of {high}x{wide} in rows 0..=63 and columns 0..=47 \
             have different scales, 0.5 and 0.25: not supported: the kernels have one for 128x128"
        );
        assert!(error.starts_with(&start), "{error}");
    }
}

/// Names and words of a file may have line ends, an error has not.
#[test]
fn errors_are_one_line() {
    let name = format!("{MIXTRAL}.gate\n.weight\u{1b}[2J");
    let error = refused(mixtral(), |draft| draft.insert(&name, f32s(&[1], 1.0)));
    assert_eq!(error, format!("{MIXTRAL}.gate\\n.weight\\u{{1b}}[2J is not known as a tensor of mixtral"));
    let error = refused(mixtral(), |draft| draft.config["model_type"] = json!("a\r\nb"));
    assert!(error.starts_with("config: model_type = \"a\\r\\nb\" is not known: "), "{error}");
}

#[test]
fn routers() {
    let gate = format!("{MIXTRAL}.gate.weight");
    for shape in [&[64, 4][..], &[4, 64, 1], &[0, 64], &[5, 64]] {
        let error = refused(mixtral(), |draft| draft.insert(&gate, bf16s(shape, 0.5)));
        assert_eq!(error, format!("{gate}: has shape {shape:?}; the config says [4, 64]"));
    }
    let fp8 = refused(mixtral(), |draft| draft.insert(&gate, e4m3s(&[4, 64])));
    assert_eq!(fp8, format!("{gate}: has type F8_E4M3; F32, BF16 or F16 is expected"));
    for value in [f32::INFINITY, f32::NAN] {
        let error = refused(mixtral(), |draft| draft.insert(&gate, f32s(&[4, 64], value)));
        assert_eq!(error, format!("{gate}: element [0, 0] is {value}; it must be finite"));
    }
    let missing = refused(mixtral(), |draft| drop(draft.tensors.remove(&gate)));
    assert_eq!(missing, format!("there is no tensor {gate}"));
}

#[test]
fn configs() {
    let folder = tempdir().unwrap();
    qwen3().write_folder(folder.path());
    let config = folder.path().join("config.json");
    let with = |text: &str| {
        fs::write(&config, text).unwrap();
        refusal(folder.path(), folder.path())
    };
    let sound = qwen3().config;
    assert!(with("").starts_with("config is not JSON: EOF while parsing"));
    assert!(with("\u{feff}{}").starts_with("config is not JSON: expected value at line 1 column 1"));
    assert_eq!(with("[]"), "config: all of it is a list; it must be an object");
    assert_eq!(with("{}"), "config: model_type is missing");
    assert_eq!(with(&json!({"model_type": 3}).to_string()), "config: model_type = 3: must be a string");
    fs::write(&config, b"{\"model_type\": \"\xff\"}").unwrap();
    assert_eq!(refusal(folder.path(), folder.path()), "is not text in UTF-8");
    // A language model's config inside a config, and one more inside that: the layers are the outer's.
    let mut twice = sound.clone();
    twice["text_config"] = json!({"model_type": "qwen3_moe", "text_config": sound});
    assert_eq!(with(&twice.to_string()), "config: text_config has a text_config of its own: which is meant?");
    let text = |value: serde_json::Value| {
        let mut nested = sound.clone();
        nested["text_config"] = value;
        with(&nested.to_string())
    };
    assert_eq!(text(json!("x")), "config: text_config is a string; it must be an object");
    // Null is a value, and none that these keys may have.
    for key in ["num_experts", "hidden_size", "moe_intermediate_size", "num_experts_per_tok"] {
        let mut changed = sound.clone();
        changed[key] = json!(null);
        assert_eq!(with(&changed.to_string()), format!("config: {key} = null: must be a whole number"));
    }
    for (key, value, rule) in [
        ("norm_topk_prob", json!(null), "must be true or false"),
        ("norm_topk_prob", json!("true"), "must be true or false"),
        ("hidden_act", json!(null), "must be a string"),
        ("hidden_size", json!(64.0), "must be a whole number"),
        ("hidden_size", json!(-64), "must be a whole number"),
        ("num_experts", json!([4]), "must be a whole number"),
        ("num_experts", json!(0), "must be in 1..=4096"),
        ("num_experts_per_tok", json!(0), "must be in 1..=4, the number of experts"),
        ("moe_intermediate_size", json!(8), "must be a positive multiple of 16"),
    ] {
        let mut changed = sound.clone();
        changed[key] = value.clone();
        assert_eq!(with(&changed.to_string()), format!("config: {key} = {value}: {rule}"));
    }
    for (key, value, rule) in [
        ("n_group", json!(3), "must divide the 4 experts"),
        ("topk_group", json!(2), "must be in 1..=1, the number of groups"),
        ("routed_scaling_factor", json!(1e39), "must be a number in the range of f32"),
    ] {
        let mut changed = sound.clone();
        (changed["model_type"], changed["n_routed_experts"]) = (json!("glm4_moe"), json!(4));
        changed[key] = value.clone();
        assert_eq!(with(&changed.to_string()), format!("config: {key} = {value}: {rule}"));
    }
    let mut changed = sound.clone();
    changed["quantization_config"]["activation_scheme"] = json!(null);
    let error = with(&changed.to_string());
    assert!(error.ends_with("activation_scheme = null: must be static or dynamic"), "{error}");
}

/// DeepSeek-V4: experts by token id where config and tensors both say so, and no experts in FP4.
#[test]
fn deepseek_v4() {
    let fixture =
        |name: &str| Draft::read(&fixtures().join(format!("models/deepseek_v4_{name}.safetensors")));
    let with = |name: &str, key: &str, value: serde_json::Value| {
        refused(fixture(name), |draft| draft.config[key] = value)
    };
    let fp4 = "must be \"fp8\": experts in FP4 are not supported, only a copy of the checkpoint whose experts are FP8";
    assert_eq!(with("block", "expert_dtype", json!("fp4")), format!("config: expert_dtype = \"fp4\": {fp4}"));
    let inside = refused(fixture("block"), |draft| {
        draft.config["quantization_config"]["expert_dtype"] = json!("fp4");
    });
    assert!(
        inside.starts_with("config: quantization_config: expert_dtype \"fp4\": must be fp8: experts in FP4")
    );
    // Without the key the tensors say it: two numbers to a byte.
    let packed = refused(fixture("block"), |draft| {
        let bytes = vec![0x22; 32 * 32];
        draft.insert(
            "layers.3.ffn.experts.2.w1.weight",
            Tensor { dtype: Dtype::I8, shape: vec![32, 32], bytes },
        );
    });
    assert_eq!(
        packed,
        "layers.3.ffn.experts.2.w1.weight: has type I8 and shape [32, 32]; F8_E4M3 is expected: experts with two numbers \
         to a byte, such as FP4, are not supported"
    );

    let table = "layers.1.ffn.gate.tid2eid";
    assert_eq!(
        with("lookup", "num_hash_layers", json!(1)),
        format!(
            "there is a tensor {table}, but the config says by num_hash_layers that layer 1 chooses its experts by score"
        )
    );
    assert_eq!(
        with("block", "num_hash_layers", json!(4)),
        "there is no tensor layers.3.ffn.gate.tid2eid, though the config says by num_hash_layers that layer 3 looks its \
         experts up by token id"
    );
    assert_eq!(
        with("lookup", "mlp_layer_types", json!(["hash_moe", "moe"])),
        format!(
            "there is a tensor {table}, but the config says by mlp_layer_types that layer 1 chooses its experts by score"
        )
    );
    let kinds = "must be a list of \"hash_moe\" and \"moe\"";
    assert_eq!(
        with("lookup", "mlp_layer_types", json!(["hash_moe", "dense"])),
        format!("config: mlp_layer_types = \"dense\": {kinds}")
    );
    assert_eq!(with("lookup", "mlp_layer_types", json!(2)), format!("config: mlp_layer_types = 2: {kinds}"));
    assert_eq!(
        with("lookup", "vocab_size", json!(49)),
        format!("{table}: has shape [50, 2]; the config says [49, 2]")
    );
    assert_eq!(with("lookup", "vocab_size", json!(0)), "config: vocab_size = 0: must be positive");
    let entry = refused(fixture("lookup"), |draft| {
        draft.tensor("tid2eid").bytes[8 * (7 * 2 + 1)..][..8].copy_from_slice(&8_i64.to_le_bytes());
    });
    assert_eq!(entry, format!("{table}: element [7, 1] is 8; it must be one of the 8 experts"));
    let bias = refused(fixture("lookup"), |draft| {
        draft.insert("layers.1.ffn.gate.bias", f32s(&[8], 0.0));
    });
    assert_eq!(bias, "layers.1.ffn.gate.bias is not known as a tensor of deepseek_v4");
    let floats = refused(fixture("lookup"), |draft| draft.insert(table, f32s(&[50, 2], 1.0)));
    assert_eq!(floats, format!("{table}: has type F32; I64 or I32 is expected"));
    // 32 bits do, and a part of the model that the config's layers do not count.
    loads(fixture("lookup"), |draft| {
        let tensor = draft.tensor("tid2eid");
        tensor.bytes = tensor.bytes.as_chunks::<8>().0.iter().flat_map(|id| id[..4].to_vec()).collect();
        tensor.dtype = Dtype::I32;
    });
    loads(fixture("block"), |draft| draft.rename("layers.3.", "mtp.0."));

    assert_eq!(with("block", "swiglu_limit", json!(0)), "config: swiglu_limit = 0: must be over 0");
    assert_eq!(
        with("block", "swiglu_limit", json!(null)),
        "config: swiglu_limit = null: must be a number in the range of f32"
    );
    assert_eq!(
        with("block", "scoring_func", json!("sigmoid")),
        "config: scoring_func = \"sigmoid\": must be \"sqrtsoftplus\", which is what DeepseekV4Config computes"
    );
    let both = refused(fixture("block"), |draft| {
        draft.insert("layers.3.ffn.shared_experts.up_proj.weight", e4m3s(&[32, 64]));
    });
    assert_eq!(both, "layers.3.ffn.shared_experts.up_proj.weight is not known as a tensor of deepseek_v4");
}

/// What a config says twice is the same both times, or refused.
#[test]
fn contradictions() {
    let folder = tempdir().unwrap();
    qwen3().write_folder(folder.path());
    let config = folder.path().join("config.json");
    let with = |text: &str| {
        fs::write(&config, text).unwrap();
        refusal(folder.path(), folder.path())
    };
    let sound = qwen3().config;
    let text = sound.to_string();
    let doubled = |key: &str| format!("{{{key}, {}", &text[1..]);
    assert!(
        with(&doubled("\"num_experts_per_tok\": 1"))
            .starts_with("config: num_experts_per_tok stands twice, as 1 and 2 at line 1 column"),
    );
    fs::write(&config, doubled("\"num_experts_per_tok\": 2")).unwrap();
    load(folder.path()).unwrap();

    let mut nested = json!({"model_type": "x", "text_config": sound});
    nested["quantization_config"] = sound["quantization_config"].clone();
    fs::write(&config, nested.to_string()).unwrap();
    load(folder.path()).unwrap();
    nested["quantization_config"]["activation_scheme"] = json!("static");
    assert_eq!(
        with(&nested.to_string()),
        "config: quantization_config stands in text_config and beside it, and differs: which is meant?"
    );

    let group = |strategy: &str| {
        json!({
            "targets": ["Linear"], "weights": {"strategy": strategy},
            "input_activations": {"strategy": "token", "dynamic": true},
        })
    };
    let mut groups = sound.clone();
    groups["quantization_config"] = json!({
        "quant_method": "compressed-tensors", "config_groups": {"a": group("channel"), "b": group("tensor")},
    });
    assert_eq!(
        with(&groups.to_string()),
        "config: quantization_config: a and b both have the target Linear, and differ: which is meant?"
    );
}

/// Modules that are not quantised: transformers names them, or what they are inside of, or expressions.
#[test]
fn modules_that_are_not_converted() {
    let with = |names: &[&str]| {
        let mut draft = qwen3();
        draft.config["quantization_config"]["modules_to_not_convert"] = json!(names);
        draft
    };
    let experts =
        ["model.layers.0.mlp.experts", "model.layers.0.mlp", "model.layers.*", "experts.0.gate_proj"];
    for name in experts.into_iter().chain(["model.layers.0.mlp.experts.0.gate_proj", "re:.*experts"]) {
        assert_eq!(
            refused(with(&["lm_head", name]), |_| {}),
            format!(
                "config: quantization_config says that {QWEN}.experts.0.gate_proj is not quantised: such experts are not \
                 supported"
            ),
            "{name}"
        );
    }
    // Others, some of which begin or end like these, and what is no expression.
    loads(
        with(&["lm_head", "gate", "mlp.gate", "model.layers.0.mlp.gate", "model.layers.00", "", "*("]),
        |_| {},
    );
}
