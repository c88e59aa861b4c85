//! `config.json` of a published checkpoint: what its MoE layers compute, read by a row of the table of
//! [`models`](super::models).
//!
//! Missing keys take the default of the model's config class. A key of another type than the class's is an
//! error, and so are two names of one key that say different things: nothing is taken for absent that is
//! there.
//!
//! Multimodal configs nest the language model's:
//!
//! ```text
//! {"model_type": .., "text_config": {..}}                      Llama-4, Qwen3-VL, Qwen3.5, GLM-4V, Kimi-K2.5
//! {"model_type": .., "thinker_config": {"text_config": {..}}}  Qwen3-Omni: `thinker.*`, not `talker.*`
//! ```

use std::path::Path;

use serde_json::{Map, Value};

use super::models::{Activation, Model, Number, Renormalize, Scoring, SharedSize, TokenExperts};
use crate::error::{Error, Result};
use crate::layer::{ActivationFunction, MoeConfig, Quantization, Routing};

/// What a checkpoint's config says about its MoE layers.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelConfig {
    /// `model_type`, e.g. `qwen3_moe`.
    pub model_type: String,
    /// The layers. Where they are quantised in different ways, as the first that can be loaded is; see
    /// [`Checkpoint::layer_config`](super::Checkpoint::layer_config).
    pub moe: MoeConfig,
    /// Keys that the config lacks, with what the model's class takes then.
    pub defaults: Vec<(&'static str, String)>,
    /// Columns of the intermediate of a shared expert, where the model has one.
    pub(crate) shared: Option<SharedColumns>,
    /// Which layers look their experts up by token id, where the model has such.
    pub(crate) lookups: Option<Lookups>,
}

/// Which layers look their experts up by token id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lookups {
    /// V.
    pub vocabulary: usize,
    layers: LookupLayers,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum LookupLayers {
    /// So many of the first.
    First(usize),
    /// Those that are true.
    List(Vec<bool>),
}

impl Lookups {
    /// Whether layer `number` does, and the key that says so; `None` of a layer that the config is not about.
    pub fn of(&self, number: usize) -> Option<(bool, &'static str)> {
        match &self.layers {
            LookupLayers::First(count) => Some((number < *count, "num_hash_layers")),
            LookupLayers::List(list) => Some((*list.get(number)?, "mlp_layer_types")),
        }
    }
}

/// Columns of the intermediate of a shared expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SharedColumns {
    /// 0: there is none.
    pub size: usize,
    /// Whether the config says so; else it is what the class takes.
    pub is_stated: bool,
}

/// The parts of a config that belong to the language model.
pub(crate) struct Sections<'a> {
    path: &'a Path,
    root: &'a Map<String, Value>,
    text: &'a Map<String, Value>,
    /// What layers' prefixes begin with, where others of the checkpoint have a config of their own.
    pub tower: Option<&'static str>,
}

impl<'a> Sections<'a> {
    pub fn of(path: &'a Path, root: &'a Value) -> Result<Sections<'a>> {
        let refuse = |what: String| Error::checkpoint(path, what);
        let object = |value: &'a Value, name: &str| match value {
            Value::Object(map) => Ok(map),
            other => Err(refuse(format!("config: {name} is {}; it must be an object", kind(other)))),
        };
        let root = object(root, "all of it")?;
        let (outer, tower) = match present(root, "thinker_config") {
            Some(thinker) => (object(thinker, "thinker_config")?, Some("thinker.")),
            None => (root, None),
        };
        let text = match present(outer, "text_config") {
            Some(text) => object(text, "text_config")?,
            None => outer,
        };
        if !std::ptr::eq(text, outer) && present(text, "text_config").is_some() {
            return Err(refuse("config: text_config has a text_config of its own: which is meant?".into()));
        }
        Ok(Sections { path, root, text, tower })
    }

    /// The `model_type` of the language model.
    pub fn model_type(&self) -> Result<&'a str> {
        let value = present(self.text, "model_type").or_else(|| present(self.root, "model_type"));
        match value {
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(self.error(format!("config: model_type = {other}: must be a string"))),
            None => Err(self.error("config: model_type is missing")),
        }
    }

    /// A section that may stand beside the language model's keys or at the top; null counts as absent.
    /// Refused where it stands in both places, and differs.
    pub fn section(&self, key: &str) -> Result<Option<&'a Value>> {
        let inner = present(self.text, key);
        match (inner, present(self.root, key)) {
            (Some(inner), Some(outer)) if inner != outer => {
                let what = format!(
                    "config: {key} stands in text_config and beside it, and differs: which is meant?"
                );
                Err(self.error(what))
            }
            (inner, outer) => Ok(inner.or(outer)),
        }
    }

    fn error(&self, what: impl Into<String>) -> Error {
        Error::checkpoint(self.path, what)
    }
}

fn present<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    map.get(key).filter(|value| !value.is_null())
}

/// What a JSON value is, in words.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

impl ModelConfig {
    /// Reads the config by the row `model`. The quantisation is `quantization`, which other code reads.
    pub(crate) fn read(
        sections: &Sections<'_>,
        model: &Model,
        model_type: &str,
        quantization: Quantization,
    ) -> Result<ModelConfig> {
        let mut keys = Keys { sections, defaults: Vec::new() };
        for (key, allowed) in model.fixed {
            keys.fixed(key, allowed, model)?;
        }
        let experts = keys.number(&model.experts)?;
        let moe = MoeConfig {
            hidden_size: keys.number(&model.hidden_size)?,
            intermediate_size: keys.number(&model.intermediate_size)?,
            experts,
            top_k: keys.number(&model.top_k)?,
            routing: keys.routing(model.scoring)?,
            activation: keys.activation(model.activation)?,
            activation_limit: keys.limit(model.activation)?,
            gated: model.activation.is_gated(),
            quantization,
            ..MoeConfig::default()
        };
        let shared = match &model.tensors.shared {
            Some(shared) => Some(keys.shared(&shared.size, moe.intermediate_size)?),
            None => None,
        };
        let lookups = model.tensors.token_experts.map(|table| keys.lookups(table)).transpose()?;
        moe.validate().map_err(|e| match e {
            Error::Argument { name, value, rule, .. } => {
                sections.error(format!("config: {} = {value}: {rule}", keys.name_of(&name, model)))
            }
            other => other,
        })?;
        let defaults = keys.defaults;
        Ok(ModelConfig { model_type: model_type.to_owned(), moe, defaults, shared, lookups })
    }
}

/// Reads keys and notes which were missing.
struct Keys<'a> {
    sections: &'a Sections<'a>,
    defaults: Vec<(&'static str, String)>,
}

impl<'a> Keys<'a> {
    fn error(&self, what: impl Into<String>) -> Error {
        self.sections.error(what)
    }

    fn wrong(&self, key: &str, value: &Value, rule: &str) -> Error {
        self.error(format!("config: {key} = {value}: must be {rule}"))
    }

    /// The value under any of the names; null is a value, which no rule allows.
    fn find(&self, names: &[&'static str]) -> Result<Option<(&'static str, &'a Value)>> {
        let mut found = names.iter().filter_map(|&name| Some((name, self.sections.text.get(name)?)));
        let first = found.next();
        if let (Some((name, value)), Some((other, differs))) =
            (first, found.find(|(_, value)| Some(*value) != first.map(|(_, first)| first)))
        {
            return Err(self.error(format!(
                "config: {name} = {value} and {other} = {differs}: they are two names of one key, and differ"
            )));
        }
        Ok(first)
    }

    /// What the config calls a field of [`MoeConfig`].
    fn name_of<'n>(&self, field: &'n str, model: &Model) -> &'n str {
        let names = match field {
            "hidden_size" => model.hidden_size.keys,
            "intermediate_size" => model.intermediate_size.keys,
            "experts" => model.experts.keys,
            "top_k" => model.top_k.keys,
            "groups" => &["n_group"],
            "scaling_factor" => &["routed_scaling_factor"],
            "activation_limit" => &["swiglu_limit"],
            _ => return field,
        };
        self.find(names).ok().flatten().map_or(names[0], |(name, _)| name)
    }

    fn number(&mut self, number: &Number) -> Result<usize> {
        let key = number.keys[0];
        let Some((name, value)) = self.find(number.keys)? else {
            let default = number.default.ok_or_else(|| self.error(format!("config: {key} is missing")))?;
            self.defaults.push((key, default.to_string()));
            return Ok(default);
        };
        let whole = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
        if let (true, Value::Array(layers)) = (number.lists, value) {
            let rule = "a whole number, or a list of equal ones: layers of different sizes are not supported";
            let first = layers.first().and_then(whole).ok_or_else(|| self.wrong(name, value, rule))?;
            let equal = layers.iter().all(|layer| whole(layer) == Some(first));
            return if equal { Ok(first) } else { Err(self.wrong(name, value, rule)) };
        }
        whole(value).ok_or_else(|| self.wrong(name, value, "a whole number"))
    }

    /// The size of a shared expert beside experts of `intermediate` columns.
    fn shared(&mut self, size: &SharedSize, intermediate: usize) -> Result<SharedColumns> {
        let (number, of_each) = match size {
            SharedSize::Own(number) => (number, 1),
            SharedSize::Experts(number) => (number, intermediate),
            SharedSize::Expert => return Ok(SharedColumns { size: intermediate, is_stated: false }),
        };
        match self.find(number.keys)? {
            Some((_, Value::Null)) => Ok(SharedColumns { size: 0, is_stated: true }),
            None if number.default.is_none() => Ok(SharedColumns { size: 0, is_stated: false }),
            found => {
                let (count, is_stated) = (self.number(number)?, found.is_some());
                let size = count.checked_mul(of_each).filter(|&size| size < 1 << 24);
                let size = size.ok_or_else(|| {
                    self.error(format!("config: {} = {count}: must be below 2^24 columns", number.keys[0]))
                })?;
                Ok(SharedColumns { size, is_stated })
            }
        }
    }

    /// Which layers have the table of experts by token id.
    fn lookups(&mut self, table: TokenExperts) -> Result<Lookups> {
        let number = |key, default| Number { keys: key, default: Some(default), lists: false };
        let vocabulary = self.number(&number(&["vocab_size"], table.vocabulary))?;
        if vocabulary == 0 {
            return Err(self.error("config: vocab_size = 0: must be positive"));
        }
        const KINDS: &str = "a list of \"hash_moe\" and \"moe\"";
        let layers = match self.find(&["mlp_layer_types"])? {
            Some((key, value)) => {
                let kinds = value.as_array().ok_or_else(|| self.wrong(key, value, KINDS))?;
                let is_lookup = |kind: &Value| match kind.as_str() {
                    Some("hash_moe") => Ok(true),
                    Some("moe") => Ok(false),
                    _ => Err(self.wrong(key, kind, KINDS)),
                };
                LookupLayers::List(kinds.iter().map(is_lookup).collect::<Result<_>>()?)
            }
            None => LookupLayers::First(self.number(&number(&["num_hash_layers"], table.layers))?),
        };
        Ok(Lookups { vocabulary, layers })
    }

    fn flag(&mut self, key: &'static str, default: bool) -> Result<bool> {
        match self.find(&[key])? {
            Some((_, value)) => value.as_bool().ok_or_else(|| self.wrong(key, value, "true or false")),
            None => {
                self.defaults.push((key, default.to_string()));
                Ok(default)
            }
        }
    }

    fn real(&mut self, key: &'static str, default: f64) -> Result<f64> {
        match self.find(&[key])? {
            // The kernels have it as f32.
            Some((_, value)) => value
                .as_f64()
                .filter(|&number| (number as f32).is_finite())
                .ok_or_else(|| self.wrong(key, value, "a number in the range of f32")),
            None => {
                self.defaults.push((key, default.to_string()));
                Ok(default)
            }
        }
    }

    fn text(&mut self, key: &'static str, default: &'static str) -> Result<&'a str> {
        match self.find(&[key])? {
            Some((_, value)) => value.as_str().ok_or_else(|| self.wrong(key, value, "a string")),
            None => {
                self.defaults.push((key, format!("{default:?}")));
                Ok(default)
            }
        }
    }

    /// Refuses a value of a key that the class does not read, where it contradicts what the class does.
    fn fixed(&self, key: &'static str, allowed: &[&str], model: &Model) -> Result<()> {
        let Some((_, value)) = self.find(&[key])? else { return Ok(()) };
        if allowed.contains(&value.to_string().as_str()) {
            return Ok(());
        }
        let rule = format!("{}, which is what {} computes", allowed.join(" or "), model.class.0);
        Err(self.wrong(key, value, &rule))
    }

    fn activation(&mut self, activation: Activation) -> Result<ActivationFunction> {
        match activation {
            Activation::Gated(key, default) | Activation::GatedWithin(key, default, _) => match self
                .text(key, default)?
            {
                "silu" | "swish" => Ok(ActivationFunction::Silu),
                "gelu" => Ok(ActivationFunction::Gelu),
                "gelu_pytorch_tanh" | "gelu_new" => Ok(ActivationFunction::GeluTanh),
                other => Err(self.error(format!(
                    "config: {key} = \"{other}\": must be silu, swish, gelu, gelu_pytorch_tanh or gelu_new"
                ))),
            },
            // The class computes this, whatever `hidden_act` says; its slope is a key.
            Activation::SwigluOai => match self.real("swiglu_alpha", 1.702)? {
                1.702 => Ok(ActivationFunction::SwigluOai),
                other => Err(self.error(format!("config: swiglu_alpha = {other}: must be 1.702"))),
            },
            Activation::Relu2(key) => match self.text(key, "relu2")? {
                "relu2" => Ok(ActivationFunction::Relu2),
                other => Err(self.error(format!("config: {key} = \"{other}\": must be relu2"))),
            },
        }
    }

    fn limit(&mut self, activation: Activation) -> Result<Option<f32>> {
        match activation {
            Activation::SwigluOai => Ok(Some(self.real("swiglu_limit", 7.0)? as f32)),
            Activation::GatedWithin(.., default) => Ok(Some(self.real("swiglu_limit", default)? as f32)),
            Activation::Gated(..) | Activation::Relu2(_) => Ok(None),
        }
    }

    fn renormalize(&mut self, rule: Renormalize) -> Result<bool> {
        match rule {
            Renormalize::Always => Ok(true),
            Renormalize::Never => Ok(false),
            Renormalize::Key(default) => self.flag("norm_topk_prob", default),
        }
    }

    fn routing(&mut self, scoring: Scoring) -> Result<Routing> {
        match scoring {
            Scoring::Softmax(rule) => Ok(Routing::Softmax { renormalize: self.renormalize(rule)? }),
            Scoring::SigmoidInput => Ok(Routing::SigmoidInput),
            Scoring::SqrtSoftplus(factor) => Ok(Routing::SqrtSoftplus {
                renormalize: true,
                scaling_factor: self.real("routed_scaling_factor", factor)? as f32,
                // A layer's own, which looks experts up or not.
                vocabulary: None,
            }),
            Scoring::Biased { sigmoid, groups, renormalize, factor } => {
                let [groups, topk_group] = match groups {
                    Some(defaults) => self.groups(defaults.map(Some))?,
                    None => [1, 1],
                };
                Ok(Routing::Grouped {
                    sigmoid,
                    groups,
                    topk_group,
                    renormalize: self.renormalize(renormalize)?,
                    scaling_factor: match factor {
                        Some(default) => self.real("routed_scaling_factor", default)? as f32,
                        None => 1.0,
                    },
                })
            }
            Scoring::DeepSeekV2 => {
                let [groups, topk_group] = match self.text("topk_method", "greedy")? {
                    "greedy" => [1, 1],
                    "group_limited_greedy" => self.groups([None; 2])?,
                    other => {
                        return Err(self.error(format!(
                            "config: topk_method = \"{other}\": must be greedy or group_limited_greedy"
                        )));
                    }
                };
                Ok(Routing::Grouped {
                    sigmoid: false,
                    groups,
                    topk_group,
                    renormalize: false,
                    scaling_factor: self.real("routed_scaling_factor", 1.0)? as f32,
                })
            }
        }
    }

    /// `n_group` and `topk_group`.
    fn groups(&mut self, [groups, topk_group]: [Option<usize>; 2]) -> Result<[usize; 2]> {
        let key = |keys, default| Number { keys, default, lists: false };
        Ok([self.number(&key(&["n_group"], groups))?, self.number(&key(&["topk_group"], topk_group))?])
    }
}
