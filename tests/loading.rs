//! Loading: what arrives on the device of matrices that go in several pieces and by several threads, and
//! files that change while a checkpoint is open.

#[path = "common/checkpoints.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod checkpoints;
mod common;

use std::fs::{self, File};
use std::path::PathBuf;

use checkpoints::{Draft, Tensor, bf16s, f32s, mixtral, qwen3};
use common::device;
use fp8_moe::{Checkpoint, E4m3, MoeLayer, internals};
use proptest::prelude::*;
use safetensors::Dtype;
use serde_json::json;
use tempfile::{TempDir, tempdir};

/// e4m3 numbers without a pattern.
fn numbers(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..count).map(|_| Some(next()).filter(|byte| byte & 0x7f != 0x7f).unwrap_or(0x31)).collect()
}

/// `[rows, columns]` as `[columns, rows]`.
fn transposed(matrix: &[u8], columns: usize) -> Vec<u8> {
    (0..columns).flat_map(|column| matrix.iter().skip(column).step_by(columns).copied()).collect()
}

/// w13 and w2 of a layer, as a checkpoint has them.
fn on_device(layer: &MoeLayer) -> [Vec<E4m3>; 2] {
    let stream = layer.device().default_stream();
    let wanted = vec![true; layer.config().experts];
    let weights = internals::weights(layer, &wanted, &stream).unwrap();
    [weights.w13.to_vec(&stream).unwrap(), weights.w2.to_vec(&stream).unwrap()]
}

fn bytes(elements: &[E4m3]) -> Vec<u8> {
    elements.iter().map(|element| element.0).collect()
}

const HIDDEN: usize = 1024;
/// Matrices of more than a MiB, in blocks padded to 1152.
const INTERMEDIATE: usize = 1040;

/// Gate, up and down of each of two experts.
fn experts() -> [[Vec<u8>; 3]; 2] {
    [0, 1].map(|expert| [0, 1, 2].map(|matrix| numbers(HIDDEN * INTERMEDIATE, 3 * expert + matrix)))
}

fn write(mut draft: Draft, keys: &[(&str, usize)]) -> (TempDir, PathBuf) {
    for &(key, value) in keys {
        draft.config[key] = json!(value);
    }
    let folder = tempdir().unwrap();
    let file = draft.write(folder.path());
    (folder, file)
}

fn e4m3(shape: &[usize], bytes: Vec<u8>) -> Tensor {
    Tensor { dtype: Dtype::F8_E4M3, shape: shape.to_vec(), bytes }
}

#[test]
fn matrices_of_several_pieces_arrive_padded() {
    let (prefix, experts) = ("model.layers.0.mlp", experts());
    let mut draft = qwen3();
    draft.tensors.retain(|name, _| !name.contains(".experts."));
    draft.insert(format!("{prefix}.gate.weight"), bf16s(&[2, HIDDEN], 0.1));
    for (expert, matrices) in experts.iter().enumerate() {
        let shapes = [[INTERMEDIATE, HIDDEN], [INTERMEDIATE, HIDDEN], [HIDDEN, INTERMEDIATE]];
        for ((name, shape), bytes) in ["gate_proj", "up_proj", "down_proj"].iter().zip(shapes).zip(matrices) {
            let name = format!("{prefix}.experts.{expert}.{name}");
            draft.insert(format!("{name}.weight"), e4m3(&shape, bytes.clone()));
            draft.insert(format!("{name}.weight_scale_inv"), f32s(&shape.map(|n| n.div_ceil(128)), 0.5));
        }
    }
    let sizes = [("hidden_size", HIDDEN), ("moe_intermediate_size", INTERMEDIATE), ("num_experts", 2)];
    let (_folder, file) = write(draft, &sizes);
    let checkpoint = Checkpoint::open(file, None).unwrap();
    let [w13, w2] = on_device(&checkpoint.load_layer(&device(), None).unwrap());
    let padded = INTERMEDIATE.next_multiple_of(128);
    let pad = |rows: &[u8], to: usize| [rows, &vec![0; to - rows.len()][..]].concat();
    let of_w13 = experts.iter().flat_map(|[gate, up, _]| [gate, up].map(|m| pad(m, padded * HIDDEN)));
    assert!(bytes(&w13) == of_w13.collect::<Vec<_>>().concat());
    let of_w2 = experts.iter().flat_map(|[.., down]| down.chunks(INTERMEDIATE).map(|row| pad(row, padded)));
    assert!(bytes(&w2) == of_w2.collect::<Vec<_>>().concat());
}

#[test]
fn matrices_of_several_pieces_arrive_transposed() {
    let (prefix, experts) = ("model.layers.0.mlp", experts());
    let mut draft = qwen3();
    draft.tensors.clear();
    draft.config["model_type"] = json!("qwen3_vl_moe_text");
    draft.config["quantization_config"] = json!({"quant_method": "fbgemm_fp8"});
    draft.insert(format!("{prefix}.gate.weight"), bf16s(&[2, HIDDEN], 0.1));
    // Columns of gate, then of up, in each row.
    let gate_up = experts.iter().flat_map(|[gate, up, _]| {
        let (gate, up) = (transposed(gate, HIDDEN), transposed(up, HIDDEN));
        let rows = gate.chunks(INTERMEDIATE).zip(up.chunks(INTERMEDIATE));
        rows.flat_map(|(gate, up)| [gate, up].concat()).collect::<Vec<_>>()
    });
    let down = experts.iter().flat_map(|[.., down]| transposed(down, INTERMEDIATE));
    let name = format!("{prefix}.experts");
    draft.insert(format!("{name}.gate_up_proj"), e4m3(&[2, HIDDEN, 2 * INTERMEDIATE], gate_up.collect()));
    draft.insert(format!("{name}.down_proj"), e4m3(&[2, INTERMEDIATE, HIDDEN], down.collect()));
    draft.insert(format!("{name}.gate_up_proj_scale"), f32s(&[2, 1, 2 * INTERMEDIATE], 0.5));
    draft.insert(format!("{name}.down_proj_scale"), f32s(&[2, 1, HIDDEN], 0.5));
    let sizes = [("hidden_size", HIDDEN), ("moe_intermediate_size", INTERMEDIATE), ("num_experts", 2)];
    let (_folder, file) = write(draft, &sizes);
    let checkpoint = Checkpoint::open(file, None).unwrap();
    let [w13, w2] = on_device(&checkpoint.load_layer(&device(), None).unwrap());
    let of_w13: Vec<u8> = experts.iter().flat_map(|[gate, up, _]| [&gate[..], up].concat()).collect();
    assert!(bytes(&w13) == of_w13);
    assert!(bytes(&w2) == experts.iter().flat_map(|[.., down]| down.clone()).collect::<Vec<_>>());
}

/// The file of a checkpoint that is open becomes shorter, or is written over: an error with its name, or
/// other numbers.
#[test]
fn files_may_change_while_a_checkpoint_is_open() {
    let folder = tempdir().unwrap();
    let file = mixtral().write(folder.path());
    let whole = fs::read(&file).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let complaint = |change: &dyn Fn()| {
        fs::write(&file, &whole).unwrap();
        let checkpoint = Checkpoint::open(&file, None).unwrap();
        change();
        checkpoint.load_layer(&device(), None).unwrap_err().to_string()
    };
    let shorter =
        complaint(&|| File::options().write(true).open(&file).unwrap().set_len(header as u64).unwrap());
    let named = format!("{}: ends before byte ", file.display());
    assert!(
        shorter.starts_with(&named) && shorter.ends_with("became shorter while it was read"),
        "{shorter}"
    );
    // What was a scale or a weight is read as what stands there now.
    let nan = complaint(&|| {
        fs::write(&file, [&whole[..header], &vec![0xff; whole.len() - header][..]].concat()).unwrap()
    });
    assert!(nan.starts_with(&file.display().to_string()) && nan.contains("NaN"), "{nan}");
}

proptest! {
    #![proptest_config(common::cases(24))]

    /// Wherever the file ends meanwhile, loading says so, or finds all that it reads.
    #[test]
    fn cut_files_are_refused(cut in any::<prop::sample::Index>()) {
        let folder = tempdir().unwrap();
        let file = mixtral().write(folder.path());
        let length = fs::metadata(&file).unwrap().len() as usize;
        let checkpoint = Checkpoint::open(&file, None).unwrap();
        let kept = cut.index(length);
        File::options().write(true).open(&file).unwrap().set_len(kept as u64).unwrap();
        let error = checkpoint.load_layer(&device(), None).unwrap_err().to_string();
        prop_assert!(error.contains("became shorter while it was read"), "{}", error);
    }
}
