//! FP8 MoE layers of published checkpoints.
//!
//! ```no_run
//! # fn main() -> fp8_moe::Result<()> {
//! use fp8_moe::{Checkpoint, Device, DeviceSpec};
//! let device = Device::open(DeviceSpec::Auto)?;
//! let checkpoint = Checkpoint::open("Qwen3-30B-A3B-FP8", None)?;
//! let layer = checkpoint.load_layer(&device, Some("model.layers.7"))?;
//! # Ok(())
//! # }
//! ```

mod config;
mod files;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use safetensors::Dtype;

pub use config::ModelConfig;
use files::{Files, Tensor};

use crate::error::{Error, Result};
use crate::fp8::E4m3;
use crate::gpu::device::Device;
use crate::layer::{ExpertWeights, MoeConfig, MoeLayer, MoeWeights, Progress, Quantization};

/// An open checkpoint: its tensors, memory-mapped, and its config.
pub struct Checkpoint {
    files: Files,
    config: ModelConfig,
}

/// A tensor's values with its shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Values<T> {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub data: Vec<T>,
}

impl Checkpoint {
    /// Opens a safetensors file, or a folder of them.
    ///
    /// The config is `config` where given, else `config.json` beside the file (or in the folder), else the entry
    /// `config` of the file's metadata. The files must not change while the checkpoint is open.
    pub fn open(path: impl AsRef<Path>, config: Option<&Path>) -> Result<Checkpoint> {
        let path = path.as_ref();
        let files = Files::open(path)?;
        let read = |file: &Path| std::fs::read_to_string(file).map_err(|e| Error::io(file, e));
        let beside =
            if path.is_dir() { path.join("config.json") } else { path.with_file_name("config.json") };
        let (source, text): (PathBuf, Cow<'_, str>) = match (config, files.metadata("config")) {
            (Some(file), _) => (file.into(), read(file)?.into()),
            (None, _) if beside.exists() => (beside.clone(), read(&beside)?.into()),
            (None, Some(text)) => (path.into(), text.into()),
            (None, None) => {
                return Err(Error::checkpoint(
                    path,
                    "there is no config: no config.json beside it and no metadata key `config`; name one with --config",
                ));
            }
        };
        let config = ModelConfig::parse(&source, &text)?;
        Ok(Checkpoint { files, config })
    }

    /// What the config says.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The file or folder.
    pub fn path(&self) -> &Path {
        self.files.path()
    }

    /// The prefixes of the MoE layers, e.g. `model.layers.7.mlp`, sorted by layer number.
    pub fn layers(&self) -> Vec<String> {
        let suffix = format!(".experts.0.{}.weight", self.config.names.gate);
        let mut layers: Vec<_> =
            self.files.names().filter_map(|n| n.strip_suffix(&suffix)).map(String::from).collect();
        layers.sort_by_key(|prefix| (number_in(prefix), prefix.clone()));
        layers
    }

    /// The full prefix of the layer that `wanted` means: a full prefix, the beginning of one (`model.layers.7`), or a
    /// layer number. `None` means the only layer there is.
    pub fn find_layer(&self, wanted: Option<&str>) -> Result<String> {
        let layers = self.layers();
        let list = |layers: &[String]| match layers {
            [a, b, c, .., last] if layers.len() > 4 => format!("{a}, {b}, {c}, ... {last}"),
            all => all.join(", "),
        };
        if layers.is_empty() {
            let experts = format!("*.experts.0.{}.weight", self.config.names.gate);
            let what =
                format!("has no MoE layer: no tensor is called {experts}, as {} has", self.config.model_type);
            return Err(Error::checkpoint(self.path(), what));
        }
        let Some(wanted) = wanted else {
            let [only] = layers.as_slice() else {
                let what =
                    format!("has {} MoE layers; name one with --layer: {}", layers.len(), list(&layers));
                return Err(Error::checkpoint(self.path(), what));
            };
            return Ok(only.clone());
        };
        let matches = |layer: &&String| {
            let rest = layer.strip_prefix(wanted.trim_end_matches('.'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
                || (wanted.parse().ok() == number_in(layer) && number_in(layer).is_some())
        };
        match layers.iter().filter(matches).collect::<Vec<_>>().as_slice() {
            [one] => Ok((*one).clone()),
            [] => Err(Error::checkpoint(
                self.path(),
                format!("has no MoE layer {wanted}; it has {}", list(&layers)),
            )),
            several => Err(Error::checkpoint(
                self.path(),
                format!(
                    "{wanted} is the beginning of {} layers: {} and {}",
                    several.len(),
                    several[0],
                    several[1]
                ),
            )),
        }
    }

    /// What of the layer `prefix` is in the checkpoint but not computed by [`MoeLayer`]: the prefix of its shared experts.
    pub fn shared_experts(&self, prefix: &str) -> Option<String> {
        let shared = ["shared_experts", "shared_expert"].map(|name| format!("{prefix}.{name}"));
        shared.into_iter().find(|s| self.files.names().any(|name| name.starts_with(&format!("{s}."))))
    }

    /// Loads a layer with all its experts. `layer` as for [`Checkpoint::find_layer`].
    pub fn load_layer(&self, device: &Device, layer: Option<&str>) -> Result<MoeLayer> {
        let prefix = self.find_layer(layer)?;
        self.load_layer_with(device, &prefix, &self.config.moe, &|_| {})
    }

    /// Loads the experts that `config` says are local (see [`MoeConfig::for_rank`]) of the layer with the full prefix
    /// `prefix`, telling `progress` how far it is.
    pub fn load_layer_with(
        &self,
        device: &Device,
        prefix: &str,
        config: &MoeConfig,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<MoeLayer> {
        let weights = self.weights(prefix, config)?;
        MoeLayer::with_progress(device, config, &weights, progress)
    }

    /// A layer's weights on the host: the matrices as they are mapped, the scales as f32.
    pub fn weights(&self, prefix: &str, config: &MoeConfig) -> Result<MoeWeights<'_>> {
        let (e, h) = (config.experts, config.hidden_size);
        self.check_expert_count(prefix, e)?;
        let router_name = format!("{prefix}.{}", self.config.names.router);
        let router = self.files.tensor(&format!("{router_name}.weight"))?.expect(Dtype::BF16, &[e, h])?;
        let bias_name = format!("{router_name}.e_score_correction_bias");
        let correction_bias = if self.files.has(&bias_name) {
            Some(self.files.tensor(&bias_name)?.expect_shape(&[e])?.to_f32()?.into())
        } else {
            None
        };
        let experts = config.local_ids().into_par_iter().map(|n| self.expert(prefix, config, n));
        Ok(MoeWeights {
            router: Some(from_bytes(router.bytes)),
            correction_bias,
            experts: experts.collect::<Result<_>>()?,
            input_scales: match config.quantization {
                Quantization::TensorStatic => Some(self.input_scales(prefix, e)?),
                Quantization::ChannelToken | Quantization::Block128 => None,
            },
        })
    }

    /// Refuses a checkpoint with more experts than the config says; fewer are found when one is missing.
    fn check_expert_count(&self, prefix: &str, experts: usize) -> Result<()> {
        let start = format!("{prefix}.experts.");
        let number = |name: &str| name.strip_prefix(&start)?.split('.').next()?.parse::<usize>().ok();
        let numbers: BTreeSet<_> = self.files.names().filter_map(number).collect();
        match numbers.last() {
            Some(&last) if last >= experts => {
                let what = format!("{prefix} has an expert {last}, but the config says there are {experts}");
                Err(Error::checkpoint(self.path(), what))
            }
            _ => Ok(()),
        }
    }

    fn expert(&self, prefix: &str, config: &MoeConfig, expert: usize) -> Result<ExpertWeights<'_>> {
        let (h, i, names) = (config.hidden_size, config.intermediate_size, &self.config.names);
        let matrix = |name: &str, rows: usize, columns: usize| {
            let name = format!("{prefix}.experts.{expert}.{name}");
            let weight =
                self.files.tensor(&format!("{name}.weight"))?.expect(Dtype::F8_E4M3, &[rows, columns])?;
            let scale = self.weight_scale(&name, config.quantization, rows, columns)?;
            Ok::<_, Error>((bytemuck::cast_slice::<u8, E4m3>(weight.bytes), scale))
        };
        let (gate, gate_scale) = matrix(names.gate, i, h)?;
        let (up, up_scale) = matrix(names.up, i, h)?;
        let (down, down_scale) = matrix(names.down, h, i)?;
        Ok(ExpertWeights { gate, up, down, gate_scale, up_scale, down_scale })
    }

    fn weight_scale(
        &self,
        matrix: &str,
        quantization: Quantization,
        rows: usize,
        columns: usize,
    ) -> Result<Cow<'_, [f32]>> {
        let (suffix, shape) = match quantization {
            Quantization::TensorStatic => {
                return Ok(vec![self.scalar(&format!("{matrix}.weight_scale"))?].into());
            }
            Quantization::ChannelToken => ("weight_scale", vec![rows, 1]),
            Quantization::Block128 => ("weight_scale_inv", vec![rows.div_ceil(128), columns.div_ceil(128)]),
        };
        let tensor = self.files.tensor(&format!("{matrix}.{suffix}"))?;
        let flat = quantization == Quantization::ChannelToken && tensor.shape == [rows];
        let tensor = if flat { tensor } else { tensor.expect_shape(&shape)? };
        let values = tensor.to_f32()?;
        check_scales(&tensor, &values)?;
        Ok(values.into())
    }

    /// A scale that is one number, of shape `[]` or `[1]`.
    fn scalar(&self, name: &str) -> Result<f32> {
        let tensor = self.files.tensor(name)?;
        if !matches!(tensor.shape, [] | [1]) {
            return Err(tensor.error(format!("has shape {:?}; one number is expected", tensor.shape)));
        }
        let values = tensor.to_f32()?;
        check_scales(&tensor, &values)?;
        Ok(values[0])
    }

    /// The static scales of the activations, before the first projection and before the second.
    ///
    /// A checkpoint has them per expert and matrix; tokens are quantised once for all experts, so the largest is taken,
    /// over all experts of the model, so that every rank uses the same.
    fn input_scales(&self, prefix: &str, experts: usize) -> Result<[f32; 2]> {
        let names = &self.config.names;
        let largest = |matrices: &[&str]| {
            let mut largest = 0.0f32;
            for expert in 0..experts {
                for matrix in matrices {
                    largest =
                        largest.max(self.scalar(&format!("{prefix}.experts.{expert}.{matrix}.input_scale"))?);
                }
            }
            Ok::<_, Error>(largest)
        };
        Ok([largest(&[names.gate, names.up])?, largest(&[names.down])?])
    }

    /// Whether there is a tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.files.has(name)
    }

    /// Whether a tensor whose name begins with `start` is FP8.
    pub fn has_fp8(&self, start: &str) -> bool {
        let mut names = self.files.names().filter(|name| name.starts_with(start));
        names.any(|name| self.files.tensor(name).is_ok_and(|tensor| tensor.dtype == Dtype::F8_E4M3))
    }

    /// The tensor `name`, of any floating-point type f32 can hold.
    pub fn floats(&self, name: &str) -> Result<Values<f32>> {
        let tensor = self.files.tensor(name)?;
        Ok(Values { shape: tensor.shape.to_vec(), data: tensor.to_f32()? })
    }

    /// The tensor `name`, of 32- or 64-bit integers.
    pub fn integers(&self, name: &str) -> Result<Values<i64>> {
        let tensor = self.files.tensor(name)?;
        Ok(Values { shape: tensor.shape.to_vec(), data: tensor.to_i64()? })
    }

    /// The entry `key` of the metadata of a single file.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.files.metadata(key)
    }
}

/// Refuses scales that are no numbers. Zero is one: an all-zero block may have it.
fn check_scales(tensor: &Tensor<'_>, values: &[f32]) -> Result<()> {
    match values.iter().position(|s| !(s.is_finite() && *s >= 0.0)) {
        Some(at) => {
            Err(tensor
                .error(format!("element {at} is {}; a scale must be finite and not negative", values[at])))
        }
        None => Ok(()),
    }
}

/// The bytes as bf16, without a copy where they are aligned.
fn from_bytes(bytes: &[u8]) -> Cow<'_, [half::bf16]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(aligned) => Cow::Borrowed(aligned),
        Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(bytes)),
    }
}

/// The layer number in a prefix such as `model.layers.7.mlp`.
fn number_in(prefix: &str) -> Option<usize> {
    prefix.split('.').find_map(|part| part.parse().ok())
}

/// The floating-point tensor `name` of the safetensors file `path`: its shape and its values as f32.
pub fn read_floats(path: &Path, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
    let files = Files::open(path)?;
    let tensor = files.tensor(name)?;
    Ok((tensor.shape.to_vec(), tensor.to_f32()?))
}
