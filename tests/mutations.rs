//! Checkpoints with random damage: whatever the bytes, the loader answers or refuses. It never panics, and
//! never asks for more memory at once than twice the file.
//!
//! The same is done without an end by the targets in `fuzz/`; here a few hundred cases run in every test run.

#[path = "common/checkpoints.rs"]
#[allow(dead_code, reason = "shared with the checkpoint tests")]
mod checkpoints;

#[path = "common/largest_request.rs"]
mod largest_request;

use std::path::Path;

use checkpoints::{Draft, fixtures, mixtral, qwen3};
use largest_request::{SMALL, load};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use tempfile::tempdir;

fn assert_modest(path: &Path, file_bytes: usize) -> Result<(), TestCaseError> {
    let largest = load(path);
    prop_assert!(largest <= 2 * file_bytes + SMALL, "{largest} bytes at once for a file of {file_bytes}");
    Ok(())
}

/// A layer of DeepSeek-V4 whose experts are looked up by token id.
fn lookup() -> Draft {
    Draft::read(&fixtures().join("models/deepseek_v4_lookup.safetensors"))
}

/// Damage to a text or file of bytes.
#[derive(Clone, Debug)]
enum Damage {
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
}

fn damages() -> impl Strategy<Value = Vec<Damage>> {
    let index = any::<prop::sample::Index>;
    let json = prop::sample::select(b"0123456789\"{}[],:.-etfn".to_vec());
    let one = prop_oneof![
        8 => (index(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        4 => (index(), json).prop_map(|(at, byte)| Damage::Set(at, byte)),
        1 => index().prop_map(Damage::Cut),
        2 => (index(), 1..40usize).prop_map(|(at, n)| Damage::Remove(at, n)),
        2 => (index(), 1..40usize).prop_map(|(at, n)| Damage::Repeat(at, n)),
    ];
    prop::collection::vec(one, 1..6)
}

fn apply(bytes: &mut Vec<u8>, damages: &[Damage], reach: usize) {
    for damage in damages {
        let len = bytes.len().min(reach);
        if len == 0 {
            return;
        }
        match damage {
            Damage::Set(at, byte) => bytes[at.index(len)] = *byte,
            Damage::Cut(at) => bytes.truncate(at.index(len)),
            Damage::Remove(at, n) => {
                let start = at.index(len);
                bytes.drain(start..(start + n).min(len));
            }
            Damage::Repeat(at, n) => {
                let start = at.index(len);
                let part = bytes[start..(start + n).min(len)].to_vec();
                bytes.splice(start..start, part);
            }
        }
    }
}

/// A value to put in place of one of a config.
fn values() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::json;
    prop_oneof![
        any::<i64>().prop_map(|n| json!(n)),
        (0..300u64).prop_map(|n| json!(n)),
        any::<f64>()
            .prop_filter_map("JSON has no NaN", |x| serde_json::Number::from_f64(x).map(|n| json!(n))),
        any::<bool>().prop_map(|b| json!(b)),
        prop::sample::select(vec![
            json!(null),
            json!([]),
            json!({}),
            json!("fp8"),
            json!("static"),
            json!([128, 128]),
            json!([0, 1]),
            json!("re:.*(a|a)*$"),
            json!("compressed-tensors"),
            json!("modelopt"),
            json!("quark"),
            json!("FP8"),
            json!("deepseek_v3"),
            json!("jamba"),
            json!(u64::MAX),
            json!(1e300),
            json!(["Linear"]),
        ]),
    ]
}

/// The objects of a config that have keys to change.
const PLACES: [&str; 3] = ["", "/quantization_config", "/text_config"];
const KEYS: [&str; 27] = [
    "model_type",
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "norm_topk_prob",
    "hidden_act",
    "scoring_func",
    "topk_method",
    "n_group",
    "topk_group",
    "routed_scaling_factor",
    "quantization_config",
    "text_config",
    "thinker_config",
    "quant_method",
    "activation_scheme",
    "weight_block_size",
    "config_groups",
    "quant_algo",
    "vocab_size",
    "num_hash_layers",
    "mlp_layer_types",
    "swiglu_limit",
    "expert_dtype",
];

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 128,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/regressions/mutations.txt"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn damaged_headers(damages in damages(), is_block in any::<bool>()) {
        let folder = tempdir().unwrap();
        let file = if is_block { qwen3() } else { mixtral() }.write(folder.path());
        let mut bytes = std::fs::read(&file).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        apply(&mut bytes, &damages, header);
        std::fs::write(&file, &bytes).unwrap();
        assert_modest(&file, bytes.len())?;
    }

    #[test]
    fn damaged_files(damages in damages(), looks_up in any::<bool>()) {
        let folder = tempdir().unwrap();
        let file = if looks_up { lookup() } else { mixtral() }.write(folder.path());
        let mut bytes = std::fs::read(&file).unwrap();
        apply(&mut bytes, &damages, usize::MAX);
        std::fs::write(&file, &bytes).unwrap();
        assert_modest(&file, bytes.len())?;
    }

    #[test]
    fn damaged_indices_and_configs(damages in damages(), of_index in any::<bool>()) {
        let folder = tempdir().unwrap();
        qwen3().write_shards(folder.path());
        let file = folder.path().join(if of_index { "model.safetensors.index.json" } else { "config.json" });
        let mut bytes = std::fs::read(&file).unwrap();
        apply(&mut bytes, &damages, usize::MAX);
        std::fs::write(&file, &bytes).unwrap();
        let files = std::fs::read_dir(folder.path()).unwrap();
        let all = files.map(|f| f.unwrap().metadata().unwrap().len() as usize);
        assert_modest(folder.path(), all.sum())?;
    }

    #[test]
    fn other_configs(
        changes in prop::collection::vec((0..PLACES.len(), 0..KEYS.len(), values()), 1..4),
        looks_up in any::<bool>(),
    ) {
        let mut draft = if looks_up { lookup() } else { mixtral() };
        for (place, key, value) in changes {
            if let Some(serde_json::Value::Object(object)) = draft.config.pointer_mut(PLACES[place]) {
                object.insert(KEYS[key].into(), value);
            }
        }
        let folder = tempdir().unwrap();
        let file = draft.write(folder.path());
        let bytes = std::fs::metadata(&file).unwrap().len() as usize;
        assert_modest(&file, bytes)?;
    }
}
