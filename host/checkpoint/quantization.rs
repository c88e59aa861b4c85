//! How a checkpoint's experts are quantised: `quantization_config` of `config.json`, or
//! `hf_quant_config.json`.
//!
//! | `quant_method` | scheme | tensors beside `weight` |
//! |---|---|---|
//! | `fp8` | `activation_scheme`, `weight_block_size` | `weight_scale_inv`, `weight_scale`, `scale`; `input_scale`, `activation_scale` |
//! | `compressed-tensors` | the group of `config_groups` whose `targets` match the experts | `weight_scale`, `input_scale` |
//! | `modelopt` | `quant_algo` (here, or in `hf_quant_config.json` alone) | `weight_scale`, `input_scale` |
//! | `quark` | `layer_quant_config` by pattern, else `global_quant_config` | `weight_scale`, `input_scale` |
//! | `fbgemm_fp8` | channels and tokens | `weight_scale` |
//!
//! What is read is a [`Scheme`], and which pairs a layer computes is in [`Scheme::layer`].

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::config::{Sections, kind};
use super::patterns::Pattern;
use crate::config::{GROUP, SCALE_BLOCK};
use crate::error::{Error, Result};
use crate::layer::Quantization;

/// Elements that share a scale of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightScales {
    Tensor,
    Channel,
    /// Rows and columns of a block.
    Block([usize; 2]),
}

/// Elements that share a scale of the activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ActivationScales {
    /// All; the checkpoint has the scale.
    TensorStatic,
    /// All, found at run time.
    TensorDynamic,
    /// A row, found at run time.
    Token,
    /// So many columns of a row, found at run time.
    Group(usize),
}

/// A way to quantise a projection.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scheme {
    pub weights: WeightScales,
    pub activations: ActivationScales,
    /// Bytes of scales of type U8 are exponents.
    pub byte_exponents: bool,
    /// Which words of which file say so, for errors.
    pub said_by: String,
}

/// The quantisation of a checkpoint: a scheme for each module.
pub(crate) struct Schemes {
    path: std::path::PathBuf,
    /// In the order in which they are tried.
    rules: Vec<Rule>,
    /// Modules that are not quantised.
    ignored: Vec<Pattern>,
}

/// Which modules a rule is for.
enum Targets {
    All,
    Any(Vec<Pattern>),
}

/// Which modules, and their scheme, or why it is refused should one of them be loaded.
type Rule = (Targets, Result<Scheme, String>);

/// Classes of the modules that experts are, as `targets` names them.
fn is_class_of_experts(target: &str) -> bool {
    target == "Linear" || target == "FusedMoE" || target.ends_with("Experts")
}

impl Schemes {
    /// Reads the section of `config.json`, or where it has none `beside`, the text of `hf_quant_config.json`.
    pub fn read(sections: &Sections<'_>, path: &Path, beside: Option<(&Path, &Value)>) -> Result<Schemes> {
        let (file, section, json) = match (sections.section("quantization_config")?, beside) {
            (Some(json), _) => (path, "quantization_config", json),
            (None, Some((file, json))) => (file, "hf_quant_config.json", json),
            (None, None) => {
                let what = "config: quantization_config is missing, and there is no hf_quant_config.json; the checkpoint is \
                            not quantised to FP8";
                return Err(Error::checkpoint(path, what));
            }
        };
        // DeepSeek-V4 says here what its experts are, whatever the rest of the model is.
        if let Some(dtype) = sections.section("expert_dtype")?.filter(|dtype| *dtype != "fp8") {
            let what = format!("config: expert_dtype = {dtype}: must be \"fp8\": {FP4}");
            return Err(Error::checkpoint(path, what));
        }
        let reader = Reader { section };
        reader
            .schemes(file, json)
            .map_err(|what| Error::checkpoint(file, format!("config: {section}: {what}")))
    }

    /// The scheme of a layer's experts, whose modules go by `modules`: all must be quantised alike.
    pub fn of(&self, modules: &[String]) -> Result<Scheme> {
        let refuse = |what: String| Error::checkpoint(&self.path, what);
        let mut found: Option<(&String, Scheme)> = None;
        for module in modules {
            let scheme = self.of_module(module).map_err(&refuse)?;
            match &found {
                None => found = Some((module, scheme)),
                Some((first, other)) => {
                    if !other.is_like(&scheme) {
                        return Err(refuse(format!(
                            "config: {first} and {module} are quantised in different ways ({}; {}): not supported",
                            other.said_by, scheme.said_by
                        )));
                    }
                }
            }
        }
        found.map(|(_, scheme)| scheme).ok_or_else(|| refuse("no module to find a scheme for".into()))
    }

    fn of_module(&self, module: &str) -> Result<Scheme, String> {
        if any(&self.ignored, module) {
            return Err(format!(
                "config: quantization_config says that {module} is not quantised: such experts are not supported"
            ));
        }
        for (targets, scheme) in &self.rules {
            let matches = match targets {
                Targets::All => true,
                Targets::Any(patterns) => any(patterns, module),
            };
            if matches {
                return scheme.clone().map_err(|what| format!("config: {what}"));
            }
        }
        Err(format!("config: quantization_config: no group has targets that match {module}"))
    }
}

fn any(patterns: &[Pattern], module: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(module))
}

/// What checkpoints such as DeepSeek-V4-Flash are told.
const FP4: &str = "experts in FP4 are not supported, only a copy of the checkpoint whose experts are FP8";

/// Reads a section; errors are what follows its name.
struct Reader {
    section: &'static str,
}

const METHODS: &str = "fp8, compressed-tensors, modelopt, quark or fbgemm_fp8";

impl Reader {
    fn schemes(&self, file: &Path, json: &Value) -> Result<Schemes, String> {
        if !json.is_object() {
            return Err(format!("is {}; it must be an object", kind(json)));
        }
        let modelopt = json.get("quantization").filter(|inner| inner.is_object());
        let method = match (text(json, "quant_method")?, modelopt) {
            (Some(method), _) => method,
            // ModelOpt's own file names its scheme one level down.
            (None, Some(_)) => "modelopt",
            (None, None) => return Err(format!("quant_method is missing: must be {METHODS}")),
        };
        let (rules, ignored) = match method {
            "fp8" => {
                let scheme = self.fp8(json).map_err(|what| format!("{}: {what}", self.section));
                let keys = ["modules_to_not_convert", "ignored_layers"];
                (vec![(Targets::All, scheme)], patterns(json, &keys, Pattern::module)?)
            }
            "compressed-tensors" => {
                let ignored = patterns(json, &["ignore", "ignored_layers"], Pattern::parse)?;
                (self.compressed_tensors(json)?, ignored)
            }
            "modelopt" | "modelopt_fp8" => {
                let inner = modelopt.unwrap_or(json);
                return Ok(Schemes {
                    path: file.into(),
                    rules: vec![(Targets::All, self.modelopt(inner))],
                    ignored: patterns(inner, &["exclude_modules", "ignore"], Pattern::glob)?,
                });
            }
            "quark" => (self.quark(json)?, patterns(json, &["exclude", "ignored_layers"], Pattern::quark)?),
            "fbgemm_fp8" => {
                let scheme =
                    self.scheme(WeightScales::Channel, ActivationScales::Token, "quant_method fbgemm_fp8");
                let keys = ["modules_to_not_convert", "ignored_layers"];
                (vec![(Targets::All, Ok(scheme))], patterns(json, &keys, Pattern::module)?)
            }
            other => return Err(format!("quant_method \"{other}\": must be {METHODS}")),
        };
        Ok(Schemes { path: file.into(), rules, ignored })
    }

    fn scheme(&self, weights: WeightScales, activations: ActivationScales, says: &str) -> Scheme {
        Scheme { weights, activations, byte_exponents: false, said_by: format!("{}: {says}", self.section) }
    }

    fn fp8(&self, json: &Value) -> Result<Scheme, String> {
        if json.get("activation_scheme").is_some_and(Value::is_null) {
            return Err("activation_scheme = null: must be static or dynamic".into());
        }
        let scheme = text(json, "activation_scheme")?.unwrap_or("dynamic");
        if let Some(format) = text(json, "fmt")?
            && !["e4m3", "e4m3fn", "float8_e4m3fn", "float8_e4m3"].contains(&format)
        {
            return Err(format!("fmt \"{format}\": must be e4m3"));
        }
        let exponents = match text(json, "scale_fmt")? {
            None | Some("float") => false,
            Some("ue8m0") => true,
            Some(other) => return Err(format!("scale_fmt \"{other}\": must be float or ue8m0")),
        };
        if let Some(other) = text(json, "expert_dtype")?.filter(|&dtype| dtype != "fp8") {
            return Err(format!("expert_dtype \"{other}\": must be fp8: {FP4}"));
        }
        let block = block(json, "weight_block_size")?;
        let weights = block.map_or(WeightScales::Tensor, WeightScales::Block);
        let activations = match (scheme, block) {
            ("static", _) => ActivationScales::TensorStatic,
            ("dynamic", None) => ActivationScales::TensorDynamic,
            ("dynamic", Some([_, columns])) => ActivationScales::Group(columns),
            (other, _) => return Err(format!("activation_scheme \"{other}\": must be static or dynamic")),
        };
        let says = match block {
            Some([rows, columns]) => {
                format!("activation_scheme \"{scheme}\" with weight_block_size [{rows}, {columns}]")
            }
            None => format!("activation_scheme \"{scheme}\" without weight_block_size"),
        };
        Ok(Scheme { byte_exponents: exponents, ..self.scheme(weights, activations, &says) })
    }

    /// The groups: those whose targets are names come before those whose targets are classes, as in vLLM.
    fn compressed_tensors(&self, json: &Value) -> Result<Vec<Rule>, String> {
        let Some(groups) = json.get("config_groups").filter(|groups| !groups.is_null()) else {
            return Ok(vec![(Targets::All, self.compressed_group("", json))]);
        };
        let groups = groups
            .as_object()
            .ok_or_else(|| format!("config_groups is {}; it must be an object", kind(groups)))?;
        let (mut named, mut classes) = (Vec::new(), Vec::new());
        let mut known: BTreeMap<&str, (&String, Result<Scheme, String>)> = BTreeMap::new();
        for (name, group) in groups {
            let targets = strings(group, "targets")?.ok_or(format!("{name}: targets is missing"))?;
            let scheme = self.compressed_group(&format!("{name}: "), group);
            for &target in &targets {
                let (first, other) = known.entry(target).or_insert_with(|| (name, scheme.clone()));
                let is_same = match (&*other, &scheme) {
                    (Ok(other), Ok(scheme)) => other.is_like(scheme),
                    (Err(_), Err(_)) => true,
                    _ => false,
                };
                if !is_same {
                    return Err(format!(
                        "{first} and {name} both have the target {target}, and differ: which is meant?"
                    ));
                }
            }
            if targets.iter().any(|target| is_class_of_experts(target)) {
                classes.push((Targets::All, scheme.clone()));
            }
            let patterns = targets.iter().map(|target| Pattern::parse(target)).collect::<Result<_, _>>()?;
            named.push((Targets::Any(patterns), scheme));
        }
        named.extend(classes);
        Ok(named)
    }

    fn compressed_group(&self, name: &str, group: &Value) -> Result<Scheme, String> {
        let refuse = |what: String| format!("{}: {name}{what}", self.section);
        let weights = compressed_part(group, "weights").map_err(refuse)?;
        let inputs = compressed_part(group, "input_activations").map_err(refuse)?;
        let Some(weights) = weights else { return Err(refuse("weights is missing".into())) };
        let Some(inputs) = inputs else {
            return Err(refuse(
                "input_activations is missing: activations that are not quantised are not supported".into(),
            ));
        };
        let weight_scales = match (weights.strategy, weights.block) {
            ("tensor", _) => WeightScales::Tensor,
            ("channel", _) => WeightScales::Channel,
            ("block", Some(block)) => WeightScales::Block(block),
            ("block", None) => return Err(refuse("weights: block_structure is missing".into())),
            ("group", _) if weights.group_size.is_some() => {
                WeightScales::Block([1, weights.group_size.unwrap_or(0)])
            }
            (other, _) => {
                return Err(refuse(format!("weights by {other}: must be tensor, channel or block")));
            }
        };
        let activations = match (inputs.strategy, inputs.dynamic, inputs.group_size) {
            ("tensor", false, _) => ActivationScales::TensorStatic,
            ("tensor", true, _) => ActivationScales::TensorDynamic,
            ("token", true, _) => ActivationScales::Token,
            ("group", true, Some(size)) => ActivationScales::Group(size),
            ("group", true, None) => return Err(refuse("input_activations: group_size is missing".into())),
            (other, dynamic, _) => {
                let when = if dynamic { "dynamic" } else { "static" };
                return Err(refuse(format!(
                    "activations {when} by {other}: must be static or dynamic by tensor, or dynamic by token or group"
                )));
            }
        };
        let when = if inputs.dynamic { "dynamic" } else { "static" };
        let says =
            format!("{name}weights by {}, activations {when} by {}", weights.strategy, inputs.strategy);
        Ok(self.scheme(weight_scales, activations, &says))
    }

    fn modelopt(&self, json: &Value) -> Result<Scheme, String> {
        let refuse = |what: String| format!("{}: {what}", self.section);
        let algorithm = text(json, "quant_algo").map_err(refuse)?;
        let Some(algorithm) = algorithm else { return Err(refuse("quant_algo is missing".into())) };
        let (weights, activations) = match algorithm {
            "FP8" => (WeightScales::Tensor, ActivationScales::TensorStatic),
            "FP8_PER_CHANNEL_PER_TOKEN" => (WeightScales::Channel, ActivationScales::Token),
            "FP8_PB_WO" | "FP8_PB_REAL" | "FP8_BLOCK_SCALES" => {
                (WeightScales::Block([SCALE_BLOCK; 2]), ActivationScales::Group(GROUP))
            }
            other => {
                return Err(refuse(format!(
                    "quant_algo \"{other}\": must be FP8, FP8_PER_CHANNEL_PER_TOKEN, FP8_PB_WO or FP8_BLOCK_SCALES"
                )));
            }
        };
        Ok(self.scheme(weights, activations, &format!("quant_algo {algorithm}")))
    }

    fn quark(&self, json: &Value) -> Result<Vec<Rule>, String> {
        let mut rules = Vec::new();
        if let Some(layers) = json.get("layer_quant_config").filter(|layers| !layers.is_null()) {
            let layers = layers
                .as_object()
                .ok_or_else(|| format!("layer_quant_config is {}; it must be an object", kind(layers)))?;
            for (pattern, config) in layers {
                let scheme = self.quark_part(&format!("layer_quant_config: {pattern}"), config);
                rules.push((Targets::Any(vec![Pattern::glob(pattern)?]), scheme));
            }
        }
        match json.get("global_quant_config").filter(|global| !global.is_null()) {
            Some(global) => rules.push((Targets::All, self.quark_part("global_quant_config", global))),
            None if rules.is_empty() => return Err("global_quant_config is missing".into()),
            None => {}
        }
        Ok(rules)
    }

    fn quark_part(&self, name: &str, json: &Value) -> Result<Scheme, String> {
        let refuse = |what: String| format!("{}: {name}: {what}", self.section);
        let part = |key: &str| -> Result<(&str, &Value), String> {
            let part = json.get(key).filter(|part| part.is_object());
            let part = part.ok_or_else(|| {
                refuse(format!("{key} is missing: only FP8 weights and activations are supported"))
            })?;
            let dtype = text(part, "dtype").map_err(refuse)?.unwrap_or("missing");
            if dtype != "fp8_e4m3" {
                return Err(refuse(format!("{key}: dtype \"{dtype}\": must be fp8_e4m3")));
            }
            Ok((text(part, "qscheme").map_err(refuse)?.unwrap_or("missing"), part))
        };
        let (weights, of_weights) = part("weight")?;
        let (inputs, of_inputs) = part("input_tensors")?;
        let weight_scales = match weights {
            "per_tensor" => WeightScales::Tensor,
            "per_channel" => WeightScales::Channel,
            "per_block" => {
                let block = block(of_weights, "block_size").map_err(refuse)?;
                WeightScales::Block(block.ok_or_else(|| refuse("weight: block_size is missing".into()))?)
            }
            other => {
                return Err(refuse(format!(
                    "weight: qscheme \"{other}\": must be per_tensor, per_channel or per_block"
                )));
            }
        };
        let dynamic = flag(of_inputs, "is_dynamic").map_err(refuse)?.unwrap_or(false);
        let activations = match (inputs, dynamic) {
            ("per_tensor", false) => ActivationScales::TensorStatic,
            ("per_tensor", true) => ActivationScales::TensorDynamic,
            ("per_channel" | "per_token", true) => ActivationScales::Token,
            ("per_group", true) => {
                let size = size(of_inputs, "group_size").map_err(refuse)?;
                ActivationScales::Group(
                    size.ok_or_else(|| refuse("input_tensors: group_size is missing".into()))?,
                )
            }
            (other, dynamic) => {
                return Err(refuse(format!(
                    "input_tensors: qscheme \"{other}\", is_dynamic {dynamic}: must be per_tensor, or dynamic \
                     per_channel or per_group"
                )));
            }
        };
        Ok(self.scheme(
            weight_scales,
            activations,
            &format!("{name}: weights {weights}, activations {inputs}"),
        ))
    }
}

/// `weights` or `input_activations` of a group.
struct CompressedPart<'a> {
    strategy: &'a str,
    dynamic: bool,
    block: Option<[usize; 2]>,
    group_size: Option<usize>,
}

fn compressed_part<'a>(group: &'a Value, key: &str) -> Result<Option<CompressedPart<'a>>, String> {
    let Some(part) = group.get(key).filter(|part| !part.is_null()) else { return Ok(None) };
    let refuse = |what: String| format!("{key}: {what}");
    if let Some(bits) = part.get("num_bits").filter(|bits| bits.as_u64() != Some(8)) {
        return Err(refuse(format!("num_bits = {bits}: must be 8")));
    }
    if let Some(other) = text(part, "type").map_err(refuse)?.filter(|&kind| kind != "float") {
        return Err(refuse(format!("type \"{other}\": must be float")));
    }
    if flag(part, "symmetric").map_err(refuse)? == Some(false) {
        return Err(refuse("symmetric is false: zero points are not supported".into()));
    }
    let strategy = text(part, "strategy").map_err(refuse)?;
    let group_size = size(part, "group_size").map_err(refuse)?;
    Ok(Some(CompressedPart {
        // compressed-tensors takes a strategy that is missing from the group size.
        strategy: strategy.unwrap_or(if group_size.is_some() { "group" } else { "tensor" }),
        dynamic: flag(part, "dynamic").map_err(refuse)?.unwrap_or(false),
        block: block(part, "block_structure").map_err(refuse)?,
        group_size,
    }))
}

/// A string under `key`; null counts as absent.
fn text<'a>(json: &'a Value, key: &str) -> Result<Option<&'a str>, String> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("{key} = {other}: must be a string")),
    }
}

/// True or false under `key`; null counts as absent.
fn flag(json: &Value, key: &str) -> Result<Option<bool>, String> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(other) => Err(format!("{key} = {other}: must be true or false")),
    }
}

/// A whole number under `key`; null counts as absent.
fn size(json: &Value, key: &str) -> Result<Option<usize>, String> {
    let Some(value) = json.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
    let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
    size.map(Some).ok_or_else(|| format!("{key} = {value}: must be a whole number"))
}

/// Rows and columns under `key`; null counts as absent.
fn block(json: &Value, key: &str) -> Result<Option<[usize; 2]>, String> {
    let Some(value) = json.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
    let size = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
    match value.as_array().map(Vec::as_slice) {
        Some([rows, columns]) => match (size(rows), size(columns)) {
            (Some(rows), Some(columns)) => Ok(Some([rows, columns])),
            _ => Err(format!("{key} = {value}: must be two positive whole numbers")),
        },
        _ => Err(format!("{key} = {value}: must be two positive whole numbers")),
    }
}

/// A list of strings under `key`; null counts as absent.
fn strings<'a>(json: &'a Value, key: &str) -> Result<Option<Vec<&'a str>>, String> {
    let Some(value) = json.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
    let list = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
    list.map(Some).ok_or_else(|| format!("{key} = {value}: must be a list of strings"))
}

/// The patterns under the first of `keys` that is there.
fn patterns(
    json: &Value,
    keys: &[&str],
    parse: impl Fn(&str) -> Result<Pattern, String>,
) -> Result<Vec<Pattern>, String> {
    for key in keys {
        if let Some(list) = strings(json, key)? {
            return list.into_iter().map(&parse).collect();
        }
    }
    Ok(Vec::new())
}

impl Scheme {
    /// Whether it has the same scales as another.
    fn is_like(&self, other: &Scheme) -> bool {
        self.weights == other.weights && self.activations == other.activations
    }

    /// The way to quantise of a layer that computes this scheme: the same numbers, or finer ones for the
    /// activations.
    ///
    /// | activations | tensor | channel | blocks |
    /// |---|---|---|---|
    /// | static | `TensorStatic` | `ChannelStatic` | `BlockStatic` |
    /// | by token, or dynamic by tensor | `ChannelToken` | `ChannelToken` | `BlockToken` |
    /// | groups of multiples of 128 | `ChannelGroup` | `ChannelGroup` | `Block128` |
    ///
    /// A scale for each row is finer than one for all, and one for 128 columns than one for more. A scale of
    /// a tensor is repeated for each of its channels. Whether blocks of another size than 128x128 can be
    /// kept is a question of their scales, which [`experts`](super::experts) answers.
    pub fn layer(&self) -> Result<Quantization, String> {
        use ActivationScales as A;
        use WeightScales as W;
        match (self.weights, self.activations) {
            (W::Tensor, A::TensorStatic) => Ok(Quantization::TensorStatic),
            (W::Channel, A::TensorStatic) => Ok(Quantization::ChannelStatic),
            (W::Block(_), A::TensorStatic) => Ok(Quantization::BlockStatic),
            (W::Tensor | W::Channel, A::Token | A::TensorDynamic) => Ok(Quantization::ChannelToken),
            (W::Block(_), A::Token | A::TensorDynamic) => Ok(Quantization::BlockToken),
            (_, A::Group(columns)) if columns == 0 || !columns.is_multiple_of(GROUP) => Err(format!(
                "config: {}: activations in groups of {columns} are not supported: the kernels scale every \
                 {GROUP} columns, so that groups must be multiples of {GROUP}",
                self.said_by
            )),
            (W::Tensor | W::Channel, A::Group(_)) => Ok(Quantization::ChannelGroup),
            (W::Block(_), A::Group(_)) => Ok(Quantization::Block128),
        }
    }
}

impl std::fmt::Display for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {} ({})", self.weights, self.activations, self.said_by)
    }
}

impl std::fmt::Display for WeightScales {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WeightScales::Tensor => f.write_str("per-tensor weights"),
            WeightScales::Channel => f.write_str("per-channel weights"),
            WeightScales::Block([rows, columns]) => write!(f, "{rows}x{columns}-block weights"),
        }
    }
}

impl std::fmt::Display for ActivationScales {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ActivationScales::TensorStatic => f.write_str("static per-tensor activations"),
            ActivationScales::TensorDynamic => f.write_str("dynamic per-tensor activations"),
            ActivationScales::Token => f.write_str("per-token activations"),
            ActivationScales::Group(size) => write!(f, "1x{size}-group activations"),
        }
    }
}
