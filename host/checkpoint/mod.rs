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
mod experts;
mod files;
mod foreign;
mod header;
mod inspect;
mod json;
mod models;
mod patterns;
mod quantization;
mod scale_names;
mod scales;
mod tensor;
mod transpose;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

pub use config::ModelConfig;
use config::{Sections, SharedColumns};
use experts::{LayerReader, Layout};
use files::Files;
use header::Dtype;
pub use inspect::{Inspection, LayerSummary, LoadableLayer};
use models::{Model, Shared, Tensors};
use quantization::{Scheme, Schemes};

use crate::error::{Error, Result};
use crate::gpu::device::Device;
use crate::layer::{MoeConfig, MoeLayer, MoeWeights, Progress, Routing, SharedExpert, SharedKind};
use crate::threads;

/// An open checkpoint: its files, where their tensors are, and its config.
///
/// ```
/// # fn main() -> fp8_moe::Result<()> {
/// # if cfg!(not(feature = "sim")) { return Ok(()); }
/// # use fp8_moe::{Device, DeviceSpec};
/// # let device = Device::open(DeviceSpec::Sim)?;
/// use fp8_moe::Checkpoint;
///
/// # let path = "tests/fixtures/qwen3_moe_block.safetensors";
/// # if !std::path::Path::new(path).exists() { return Ok(()); } // packages have no fixtures
/// // A file, or a folder with shards; the config beside it, or in its metadata.
/// let checkpoint = Checkpoint::open(path, None)?;
/// let layer = checkpoint.load_layer(&device, None)?; // a prefix of its tensors, where there are several
/// assert_eq!(layer.config().hidden_size, checkpoint.config().moe.hidden_size);
/// # Ok(())
/// # }
/// ```
pub struct Checkpoint {
    files: Files,
    config: ModelConfig,
    model: &'static Model,
    schemes: Schemes,
    /// What layers' prefixes begin with that the config is of.
    tower: Option<&'static str>,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A tensor's values with its shape.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Values<T> {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub data: Vec<T>,
}

impl Checkpoint {
    /// Opens a safetensors file, or a folder of them.
    ///
    /// The config is `config` where given, else `config.json` beside the file (or in the folder), else the
    /// entry `config` of the file's metadata. Tensors are read when they are asked for: a file that changes
    /// meanwhile gives what it holds then, and one that becomes shorter an error.
    ///
    /// # Errors
    /// Files that cannot be read, or are no safetensors; a tensor that two files have; a config that is
    /// missing, or has keys of the wrong type.
    pub fn open(path: impl AsRef<Path>, config: Option<&Path>) -> Result<Checkpoint> {
        Self::open_as(path, config, None)
    }

    /// As [`Checkpoint::open`], reading config and tensors as those of `model_type`, whatever the config says
    /// it is: for models that the loader does not know and that are built as one that it knows.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`]; a model type that the loader does not know.
    pub fn open_as(
        path: impl AsRef<Path>,
        config: Option<&Path>,
        model_type: Option<&str>,
    ) -> Result<Checkpoint> {
        let path = path.as_ref();
        let files = Files::open(path)?;
        let beside = |name| if path.is_dir() { path.join(name) } else { path.with_file_name(name) };
        let (source, text): (PathBuf, Cow<'_, str>) = match (config, files.metadata("config")) {
            (Some(file), _) => (file.into(), json::read(file)?.into()),
            (None, _) if beside("config.json").exists() => {
                (beside("config.json"), json::read(&beside("config.json"))?.into())
            }
            (None, Some(text)) => (path.into(), text.into()),
            (None, None) => {
                return Err(Error::checkpoint(
                    path,
                    "there is no config: no config.json beside it and no metadata key `config`; name one with --config",
                ));
            }
        };
        let root = json::parse(&source, "config", &text)?;
        let sections = Sections::of(&source, &root)?;
        let own_type = sections.model_type()?;
        let model = find_model(&files, &source, own_type, model_type)?;
        let quantization_file = source.with_file_name("hf_quant_config.json");
        let beside = if quantization_file.exists() {
            let text = json::read(&quantization_file)?;
            Some(json::parse(&quantization_file, "hf_quant_config", &text)?)
        } else {
            None
        };
        let beside = beside.as_ref().map(|json| (quantization_file.as_path(), json));
        let schemes = Schemes::read(&sections, &source, beside)?;
        let layers = layers(&files, &model.tensors, sections.tower);
        let scheme = |prefix: &String| {
            let layout = Layout::find(&files, model, prefix)?;
            let scheme = schemes.of(&layout.modules(prefix))?;
            scheme.layer().map_err(|what| Error::checkpoint(&source, what))
        };
        let mut schemes_of_layers = layers.iter().map(|prefix| scheme(prefix).map(|scheme| (prefix, scheme)));
        let first = schemes_of_layers.next().ok_or_else(|| no_layer(&files, model))?;
        let (prefix, quantization) =
            first.or_else(|error| schemes_of_layers.find_map(Result::ok).ok_or(error))?;
        let config = ModelConfig::read(&sections, model, own_type, quantization)?;
        let mut checkpoint = Checkpoint { tower: sections.tower, files, config, model, schemes };
        // What is wrong with it is an error when the layer is asked for.
        checkpoint.config.moe.shared = checkpoint.shared_expert(prefix).ok().flatten();
        if let Ok(routing) = checkpoint.routing(prefix) {
            checkpoint.config.moe.routing = routing;
        }
        Ok(checkpoint)
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
        layers(&self.files, &self.model.tensors, self.tower)
    }

    /// What the layer with the full prefix `prefix` computes: [`ModelConfig::moe`] with the layer's own
    /// quantisation.
    ///
    /// # Errors
    /// A model or a quantisation that the loader does not know; keys that are missing or of the wrong type.
    pub fn layer_config(&self, prefix: &str) -> Result<MoeConfig> {
        let scheme = self.scheme(prefix)?;
        let quantization = scheme.layer().map_err(|what| Error::checkpoint(self.path(), what))?;
        let (shared, routing) = (self.shared_expert(prefix)?, self.routing(prefix)?);
        Ok(MoeConfig { quantization, shared, routing, ..self.config.moe.clone() })
    }

    /// The routing of the layer `prefix`: whether its experts are looked up by token id is said by the config
    /// and by a tensor, which must agree.
    fn routing(&self, prefix: &str) -> Result<Routing> {
        let (Some(table), Some(lookups)) = (self.model.tensors.token_experts, &self.config.lookups) else {
            return Ok(self.config.moe.routing);
        };
        let name = format!("{prefix}.{}", table.name);
        let refuse = |what: String| Err(Error::checkpoint(self.path(), what));
        let is_there = self.files.has(&name);
        // The config is about `layers.<n>`; others, such as those that predict further tokens, follow it not.
        let number = number_after("layers", prefix);
        match number.and_then(|number| Some((number, lookups.of(number)?))) {
            Some((n, (true, key))) if !is_there => {
                return refuse(format!(
                    "there is no tensor {name}, though the config says by {key} that layer {n} looks its \
                     experts up by token id"
                ));
            }
            Some((n, (false, key))) if is_there => {
                return refuse(format!(
                    "there is a tensor {name}, but the config says by {key} that layer {n} chooses its experts by score"
                ));
            }
            _ => {}
        }
        match self.config.moe.routing {
            Routing::SqrtSoftplus { renormalize, scaling_factor, .. } => {
                let vocabulary = is_there.then_some(lookups.vocabulary);
                Ok(Routing::SqrtSoftplus { renormalize, scaling_factor, vocabulary })
            }
            other => Ok(other),
        }
    }

    /// What gate, up and down of the shared expert of the layer `prefix` are called.
    fn projections(&self, shared: &Shared, prefix: &str) -> [&'static str; 3] {
        shared.projections(|name| self.files.has(&format!("{prefix}.{name}")))
    }

    /// The modules that the shared expert of the layer `prefix` is, as a config may name them.
    fn shared_modules(&self, shared: &Shared, prefix: &str) -> Vec<String> {
        let names = self.projections(shared, prefix).into_iter().skip(usize::from(!self.config.moe.gated));
        names.map(|name| format!("{prefix}.{}.{name}", shared.name)).collect()
    }

    /// The shared expert of the layer `prefix`: sizes by the config, quantised or not by its tensors.
    fn shared_expert(&self, prefix: &str) -> Result<Option<SharedExpert>> {
        let (Some(shared), Some(columns)) = (&self.model.tensors.shared, self.config.shared) else {
            return Ok(None);
        };
        let refuse = |what: String| Err(Error::checkpoint(self.path(), what));
        let own = format!("{prefix}.{}", shared.name);
        let first = self.projections(shared, prefix)[usize::from(!self.config.moe.gated)];
        let weight = format!("{own}.{first}.weight");
        match (self.shared_experts(prefix), columns) {
            (None, SharedColumns { size: 1.., is_stated: true }) => {
                return refuse(format!("there is no tensor {weight}, though the config has a shared expert"));
            }
            (None, _) => return Ok(None),
            (Some(_), SharedColumns { size: 0, .. }) => {
                return refuse(format!("there are tensors {own}.*, but the config has no shared expert"));
            }
            (Some(_), _) => {}
        }
        let weights = match self.files.tensor(&weight)?.dtype {
            Dtype::F8_E4M3 => {
                let scheme = self.schemes.of(&self.shared_modules(shared, prefix))?;
                let quantization = scheme.layer().map_err(|what| Error::checkpoint(self.path(), what))?;
                SharedKind::Quantised(quantization)
            }
            _ => SharedKind::Bf16,
        };
        let gate = shared.gate.is_some();
        Ok(Some(SharedExpert { intermediate_size: columns.size, weights, gate }))
    }

    fn scheme(&self, prefix: &str) -> Result<Scheme> {
        self.schemes.of(&Layout::find(&self.files, self.model, prefix)?.modules(prefix))
    }

    /// The full prefix of the layer that `wanted` means: a full prefix, the beginning of one
    /// (`model.layers.7`), or a layer number. `None` means the only layer there is.
    ///
    /// # Errors
    /// No layer of that name or number; several layers where none is named.
    pub fn find_layer(&self, wanted: Option<&str>) -> Result<String> {
        let layers = self.layers();
        let list = |layers: &[String]| match layers {
            [a, b, c, .., last] if layers.len() > 4 => format!("{a}, {b}, {c}, ... {last}"),
            all => all.join(", "),
        };
        if layers.is_empty() {
            return Err(no_layer(&self.files, self.model));
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

    /// The prefix of the tensors of the shared expert of the layer `prefix`, if there are any.
    pub fn shared_experts(&self, prefix: &str) -> Option<String> {
        let shared = self.model.tensors.shared.as_ref().map(|shared| format!("{prefix}.{}", shared.name));
        shared.filter(|own| self.files.names_under(&format!("{own}.")).next().is_some())
    }

    /// Loads a layer with all its experts. `layer` as for [`Checkpoint::find_layer`].
    ///
    /// # Errors
    /// Tensors that are missing, of other types or shapes than the config says, or with values that are
    /// refused: NaN, infinities. What the device lacks.
    pub fn load_layer(&self, device: &Device, layer: Option<&str>) -> Result<MoeLayer> {
        let prefix = self.find_layer(layer)?;
        self.load_layer_with(device, &prefix, &self.layer_config(&prefix)?, &|_| {})
    }

    /// Loads the experts that `config` says are local (see [`MoeConfig::for_rank`]) of the layer with the
    /// full prefix `prefix`, telling `progress` how far it is.
    ///
    /// # Errors
    /// Those of [`Checkpoint::load_layer`].
    pub fn load_layer_with(
        &self,
        device: &Device,
        prefix: &str,
        config: &MoeConfig,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<MoeLayer> {
        let reader = self.reader(prefix, config)?;
        MoeLayer::from_source(device, config, &reader.rest()?, &reader, progress)
    }

    /// A layer's weights in host memory, the scales as f32. [`Checkpoint::load_layer`] does without such a
    /// copy.
    ///
    /// # Errors
    /// Tensors that are missing, of another type or shape, or with values that are refused.
    pub fn weights(&self, prefix: &str, config: &MoeConfig) -> Result<MoeWeights<'static>> {
        let reader = self.reader(prefix, config)?;
        let rest = reader.rest()?;
        let ids = config.local_ids();
        Ok(MoeWeights { experts: threads::each(ids.len(), |index| reader.expert(ids[index]))?, ..rest })
    }

    fn reader(&self, prefix: &str, config: &MoeConfig) -> Result<LayerReader<'_>> {
        config.validate()?;
        let scheme = self.scheme(prefix)?;
        let own = scheme.layer().map_err(|what| Error::checkpoint(self.path(), what))?;
        if own != config.quantization {
            let asked = config.quantization;
            let what = format!("{prefix} has {own}; the layer is asked for with {asked}");
            return Err(Error::checkpoint(self.path(), what));
        }
        let own = self.routing(prefix)?.vocabulary();
        if own != config.vocabulary() {
            let asked = config.vocabulary();
            let what = format!("{prefix} has the vocabulary {own:?}; the layer is asked for with {asked:?}");
            return Err(Error::checkpoint(self.path(), what));
        }
        let own = self.shared_expert(prefix)?;
        if config.shared.is_some() && own != config.shared {
            let what = format!("{prefix} has {own:?}; the layer is asked for with {:?}", config.shared);
            return Err(Error::checkpoint(self.path(), what));
        }
        let shared_scheme = match (config.shared, &self.model.tensors.shared) {
            (Some(SharedExpert { weights: SharedKind::Quantised(_), .. }), Some(shared)) => {
                Some(self.schemes.of(&self.shared_modules(shared, prefix))?)
            }
            _ => None,
        };
        LayerReader::new(&self.files, self.model, prefix, config, scheme, shared_scheme)
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
    ///
    /// # Errors
    /// No such tensor; another type.
    pub fn floats(&self, name: &str) -> Result<Values<f32>> {
        let tensor = self.files.tensor(name)?;
        Ok(Values { shape: tensor.shape.to_vec(), data: tensor.to_f32()? })
    }

    /// The tensor `name`, of 32- or 64-bit integers.
    ///
    /// # Errors
    /// No such tensor; another type.
    pub fn integers(&self, name: &str) -> Result<Values<i64>> {
        let tensor = self.files.tensor(name)?;
        Ok(Values { shape: tensor.shape.to_vec(), data: tensor.to_i64()? })
    }

    /// The entry `key` of the metadata of a single file.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.files.metadata(key)
    }
}

/// The row for a checkpoint of type `own`, or of `wanted` where that is given.
fn find_model(files: &Files, config: &Path, own: &str, wanted: Option<&str>) -> Result<&'static Model> {
    let refuse = |what: String| Err(Error::checkpoint(config, what));
    if let Some(wanted) = wanted {
        return match Model::of(wanted) {
            Some(model) => Ok(model),
            None => refuse(format!("--as {wanted}: must be {}", Model::names())),
        };
    }
    if let Some(model) = Model::of(own) {
        return Ok(model);
    }
    if let Some(why) = Model::refusal(own) {
        return refuse(format!("config: model_type = \"{own}\": not supported: {why}"));
    }
    let alike = models::MODELS.iter().filter(|model| {
        let mut prefixes = layers(files, &model.tensors, None).into_iter();
        prefixes.next().is_some_and(|prefix| {
            model.tensors.router.iter().any(|router| files.has(&format!("{prefix}.{router}")))
        })
    });
    let alike: Vec<_> = alike.map(|model| model.model_type).collect();
    let all = Model::names();
    refuse(match alike.as_slice() {
        [] => format!("config: model_type = \"{own}\": must be {all}"),
        alike => format!(
            "config: model_type = \"{own}\" is not known: must be {all}. The tensors are called as those of {}; if the model \
             computes what one of them does, --as TYPE loads it as that one",
            alike.join(", ")
        ),
    })
}

/// The prefixes of a checkpoint's MoE layers, sorted by layer number.
fn layers(files: &Files, tensors: &Tensors, tower: Option<&str>) -> Vec<String> {
    let of_one = |name: &str| {
        let [gate, ..] = tensors.matrices?;
        let (start, matrix) = name.strip_suffix(".weight")?.rsplit_once('.')?;
        let (prefix, number) = start.rsplit_once(".experts.")?;
        (matrix == gate && number.parse::<usize>().is_ok()).then(|| prefix.to_owned())
    };
    let of_all = |name: &str| {
        let mut names = tensors.fused.as_ref()?.names.iter();
        names.find_map(|[gate_up, _]| name.strip_suffix(gate_up)?.strip_suffix('.').map(String::from))
    };
    let all = files.names().filter_map(|name| of_one(name).or_else(|| of_all(name)));
    let of_tower = all.filter(|prefix| tower.is_none_or(|tower| prefix.starts_with(tower)));
    let mut layers: Vec<_> = of_tower.collect::<BTreeSet<_>>().into_iter().collect();
    layers.sort_by_key(|prefix| number_in(prefix));
    layers
}

/// The error about a checkpoint without MoE layers.
fn no_layer(files: &Files, model: &Model) -> Error {
    let names = match (&model.tensors.matrices, &model.tensors.fused) {
        (Some([gate, ..]), _) => format!("*.experts.0.{gate}.weight"),
        (None, Some(fused)) => format!("*.{}", fused.names[0][0]),
        (None, None) => String::new(),
    };
    let what = format!("has no MoE layer: no tensor is called {names}, as {} has", model.model_type);
    Error::checkpoint(files.path(), what)
}

/// The layer number in a prefix such as `model.layers.7.mlp`.
fn number_in(prefix: &str) -> Option<usize> {
    prefix.split('.').find_map(|part| part.parse().ok())
}

/// The number behind the part `name` of a prefix: 7 behind `layers` in `model.layers.7.mlp`.
fn number_after(name: &str, prefix: &str) -> Option<usize> {
    let mut parts = prefix.split('.').skip_while(|part| *part != name);
    parts.nth(1)?.parse().ok()
}

/// The floating-point tensor `name` of the safetensors file `path`: its shape and its values as f32.
///
/// # Errors
/// A file that cannot be read, or is no safetensors; no such tensor; another type.
pub fn read_floats(path: &Path, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
    let files = Files::open(path)?;
    let tensor = files.tensor(name)?;
    Ok((tensor.shape.to_vec(), tensor.to_f32()?))
}

/// The tensor `name`, of 32- or 64-bit integers, of the safetensors file `path`.
///
/// # Errors
/// A file that cannot be read, or is no safetensors; no such tensor; another type.
pub fn read_integers(path: &Path, name: &str) -> Result<Values<i64>> {
    let files = Files::open(path)?;
    let tensor = files.tensor(name)?;
    Ok(Values { shape: tensor.shape.to_vec(), data: tensor.to_i64()? })
}
