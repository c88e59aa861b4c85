//! Small checkpoints written for tests: every layout, sound or broken on purpose.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

/// The folder of the fixtures, seen from any package's tests.
pub fn fixtures() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = [here.join("tests/fixtures"), here.join("../tests/fixtures")];
    let own = own.into_iter().find(|folder| folder.exists()).unwrap_or_default();
    std::env::var_os("FP8_MOE_FIXTURES").map_or(own, PathBuf::from)
}

/// A tensor to be written.
#[derive(Clone)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// A checkpoint to be written: change it, then `write` it.
#[derive(Clone)]
pub struct Draft {
    pub config: Value,
    pub tensors: BTreeMap<String, Tensor>,
    /// Metadata beside the config.
    pub metadata: BTreeMap<String, String>,
}

/// A tensor of `f32`.
pub fn f32s(shape: &[usize], value: f32) -> Tensor {
    let count = shape.iter().product();
    Tensor { dtype: Dtype::F32, shape: shape.to_vec(), bytes: value.to_le_bytes().repeat(count) }
}

/// A tensor of `bf16`.
pub fn bf16s(shape: &[usize], value: f32) -> Tensor {
    let count = shape.iter().product();
    let bytes = half::bf16::from_f32(value).to_le_bytes().repeat(count);
    Tensor { dtype: Dtype::BF16, shape: shape.to_vec(), bytes }
}

/// A tensor of e4m3 with all kinds of values.
pub fn e4m3s(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let bytes = (0..count).map(|i| (i * 37 % 0x7f) as u8 | ((i % 3 == 0) as u8) << 7).collect();
    Tensor { dtype: Dtype::F8_E4M3, shape: shape.to_vec(), bytes }
}

const HIDDEN: usize = 64;
const INTERMEDIATE: usize = 48;
const EXPERTS: usize = 4;

/// A Mixtral layer with static per-tensor scales: hidden size 64, intermediate size 48, 4 experts, top 2.
pub fn mixtral() -> Draft {
    let config = json!({
        "model_type": "mixtral", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
        "num_local_experts": EXPERTS, "num_experts_per_tok": 2,
        "quantization_config": {"quant_method": "fp8", "activation_scheme": "static"},
    });
    let mut draft = Draft { config, tensors: BTreeMap::new(), metadata: BTreeMap::new() };
    draft.add_mixtral_layer(0);
    draft
}

/// A Qwen3-MoE layer in 128x128 blocks, of the same sizes.
pub fn qwen3() -> Draft {
    let config = json!({
        "model_type": "qwen3_moe", "hidden_size": HIDDEN, "moe_intermediate_size": INTERMEDIATE,
        "num_experts": EXPERTS, "num_experts_per_tok": 2, "norm_topk_prob": true,
        "quantization_config": {
            "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128], "fmt": "e4m3",
        },
    });
    let mut draft = Draft { config, tensors: BTreeMap::new(), metadata: BTreeMap::new() };
    let prefix = "model.layers.0.mlp";
    draft.insert(format!("{prefix}.gate.weight"), bf16s(&[EXPERTS, HIDDEN], 0.1));
    for expert in 0..EXPERTS {
        for (name, shape) in matrices(["gate_proj", "up_proj", "down_proj"]) {
            let name = format!("{prefix}.experts.{expert}.{name}");
            draft.insert(format!("{name}.weight"), e4m3s(&shape));
            draft.insert(format!("{name}.weight_scale_inv"), f32s(&[1, 1], 0.01));
        }
    }
    draft
}

fn matrices(names: [&'static str; 3]) -> [(&'static str, [usize; 2]); 3] {
    let [gate, up, down] = names;
    [(gate, [INTERMEDIATE, HIDDEN]), (up, [INTERMEDIATE, HIDDEN]), (down, [HIDDEN, INTERMEDIATE])]
}

impl Draft {
    /// A file that holds a layer with its config.
    pub fn read(file: &Path) -> Draft {
        let bytes = std::fs::read(file).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let mut metadata: BTreeMap<_, _> = header.metadata().clone().unwrap().into_iter().collect();
        let config = serde_json::from_str(&metadata.remove("config").unwrap()).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors().into_iter();
        let tensors = tensors.map(|(name, view)| {
            let (shape, bytes) = (view.shape().to_vec(), view.data().to_vec());
            (name, Tensor { dtype: view.dtype(), shape, bytes })
        });
        Draft { config, tensors: tensors.collect(), metadata }
    }

    /// Gives the tensors whose names contain `old` names with `new` in its place.
    pub fn rename(&mut self, old: &str, new: &str) {
        let tensors = std::mem::take(&mut self.tensors).into_iter();
        self.tensors = tensors.map(|(name, tensor)| (name.replace(old, new), tensor)).collect();
    }

    /// A Qwen3-MoE layer with one tensor for gate and up of all its experts, and one for down, and so for
    /// their scales.
    pub fn fused(mut self) -> Draft {
        let experts = self.tensors.iter().filter(|(name, _)| name.ends_with(".gate_proj.weight")).count();
        for (end, scale) in [("weight", ""), ("weight_scale_inv", "_scale_inv")] {
            for (fused, parts) in
                [("gate_up_proj", &["gate_proj", "up_proj"][..]), ("down_proj", &["down_proj"])]
            {
                let names = (0..experts).flat_map(|expert| {
                    parts.iter().map(move |part| format!("model.layers.0.mlp.experts.{expert}.{part}.{end}"))
                });
                let all: Vec<Tensor> =
                    names.map(|name| self.tensors.remove(&name).expect("a tensor")).collect();
                let shape = vec![experts, parts.len() * all[0].shape[0], all[0].shape[1]];
                let bytes = all.iter().flat_map(|tensor| tensor.bytes.clone()).collect();
                let name = format!("model.layers.0.mlp.experts.{fused}{scale}");
                self.insert(name, Tensor { dtype: all[0].dtype, shape, bytes });
            }
        }
        self
    }

    /// The tensor whose name ends with `end`.
    pub fn tensor(&mut self, end: &str) -> &mut Tensor {
        let mut found = self.tensors.iter_mut().filter(|(name, _)| name.ends_with(end));
        found.next().unwrap_or_else(|| panic!("no tensor *{end}")).1
    }

    /// Adds layer `number` to a Mixtral checkpoint.
    pub fn add_mixtral_layer(&mut self, number: usize) {
        let prefix = format!("model.layers.{number}.block_sparse_moe");
        self.insert(format!("{prefix}.gate.weight"), bf16s(&[EXPERTS, HIDDEN], 0.1));
        for expert in 0..EXPERTS {
            for (name, shape) in matrices(["w1", "w3", "w2"]) {
                let name = format!("{prefix}.experts.{expert}.{name}");
                self.insert(format!("{name}.weight"), e4m3s(&shape));
                self.insert(format!("{name}.weight_scale"), f32s(&[1], 0.01));
                self.insert(format!("{name}.input_scale"), f32s(&[1], 0.02));
            }
        }
    }

    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.tensors.insert(name.into(), tensor);
    }

    /// The bytes of a safetensors file with the tensors that `keep` keeps.
    fn serialize(&self, keep: impl Fn(&str) -> bool, with_config: bool) -> Vec<u8> {
        let kept = self.tensors.iter().filter(|(name, _)| keep(name));
        let views =
            kept.map(|(name, t)| (name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
        let metadata = with_config.then(|| {
            let config = ("config".to_owned(), self.config.to_string());
            self.metadata.clone().into_iter().chain([config]).collect()
        });
        safetensors::serialize(views, metadata).unwrap()
    }

    /// Writes one file with the config in its metadata.
    pub fn write(&self, folder: &Path) -> PathBuf {
        self.write_as(folder, "layer")
    }

    /// As `write`, under a name of its own.
    pub fn write_as(&self, folder: &Path, name: &str) -> PathBuf {
        let file = folder.join(format!("{name}.safetensors"));
        std::fs::write(&file, self.serialize(|_| true, true)).unwrap();
        file
    }

    /// Writes a folder of one file and a config.json.
    pub fn write_folder(&self, folder: &Path) {
        std::fs::write(folder.join("model.safetensors"), self.serialize(|_| true, false)).unwrap();
        std::fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
    }

    /// Writes a folder with one shard per expert, an index and a config.json.
    pub fn write_shards(&self, folder: &Path) {
        let shard_of = |name: &str| {
            let expert = name.split(".experts.").nth(1).and_then(|rest| rest.split('.').next());
            format!("model-{}.safetensors", expert.unwrap_or("rest"))
        };
        let weight_map: BTreeMap<_, _> = self.tensors.keys().map(|name| (name, shard_of(name))).collect();
        for shard in weight_map.values() {
            std::fs::write(folder.join(shard), self.serialize(|name| shard_of(name) == *shard, false))
                .unwrap();
        }
        let index = json!({"metadata": {}, "weight_map": weight_map});
        std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
        std::fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
    }
}
