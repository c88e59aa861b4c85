//! `config.json` of a published checkpoint: what the MoE layers compute, how they are quantised, what their tensors
//! are called.
//!
//! | `model_type` | routing | tensors of a layer |
//! |---|---|---|
//! | `mixtral` | softmax, renormalised | `P.gate`, `P.experts.E.{w1,w3,w2}`, P = `..block_sparse_moe` |
//! | `qwen3_moe` | softmax, `norm_topk_prob` | `P.gate`, `P.experts.E.{gate,up,down}_proj`, P = `..mlp` |
//! | `deepseek_v3` | grouped sigmoid with correction bias | the same, and `P.gate.e_score_correction_bias` |
//! | `llama4_text`, `llama4` | sigmoid of the largest logit, applied to the input | `P.router`, `P.experts.E.{gate,up,down}_proj`, P = `..feed_forward` |
//!
//! | `quantization_config` | weights | activations | tensors beside `weight` |
//! |---|---|---|---|
//! | `fp8`, `activation_scheme` static | per tensor | per tensor, static | `weight_scale`, `input_scale` |
//! | `fp8`, dynamic, `weight_block_size` [128, 128] | 128x128 blocks | 1x128 groups | `weight_scale_inv` |
//! | `compressed-tensors`, channel and dynamic token | per output channel | per token | `weight_scale` |

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::layer::{MoeConfig, Quantization, Routing};

/// What a checkpoint's config says about its MoE layers.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// `model_type`, e.g. `qwen3_moe`.
    pub model_type: String,
    /// The layer.
    pub moe: MoeConfig,
    /// How a layer's tensors are called.
    pub(crate) names: Names,
}

/// How a layer's tensors are called, below its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub router: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
}

const PROJECTIONS: Names = Names { router: "gate", gate: "gate_proj", up: "up_proj", down: "down_proj" };

/// A config and where it came from, for errors.
struct Source<'a> {
    path: &'a Path,
    json: &'a Value,
}

impl Source<'_> {
    fn error(&self, what: impl Into<String>) -> Error {
        Error::checkpoint(self.path, what)
    }

    fn number(&self, key: &str) -> Result<usize> {
        match self.json.get(key) {
            Some(value) => value
                .as_u64()
                .map(|n| n as usize)
                .ok_or_else(|| self.error(format!("config: {key} = {value}: must be a whole number"))),
            None => Err(self.error(format!("config: {key} is missing"))),
        }
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        self.json.get(key).and_then(Value::as_bool).unwrap_or(default)
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.json.get(key).and_then(Value::as_str)
    }
}

impl ModelConfig {
    /// Reads the text of a config; `path` names its file in errors.
    pub fn parse(path: &Path, text: &str) -> Result<ModelConfig> {
        let root: Value = serde_json::from_str(text)
            .map_err(|e| Error::checkpoint(path, format!("config is not JSON: {e}")))?;
        // Multimodal checkpoints nest the language model; the quantisation may stay outside.
        let json = root.get("text_config").unwrap_or(&root);
        let source = Source { path, json };
        let model_type = source
            .text("model_type")
            .ok_or_else(|| source.error("config: model_type is missing"))?
            .to_owned();
        let quantization =
            quantization(&source, json.get("quantization_config").or(root.get("quantization_config")))?;

        let (experts, intermediate, routing, names) = match model_type.as_str() {
            "mixtral" => (
                source.number("num_local_experts")?,
                source.number("intermediate_size")?,
                Routing::Softmax { renormalize: true },
                Names { router: "gate", gate: "w1", up: "w3", down: "w2" },
            ),
            "qwen3_moe" => (
                source.number("num_experts")?,
                source.number("moe_intermediate_size")?,
                Routing::Softmax { renormalize: source.flag("norm_topk_prob", false) },
                PROJECTIONS,
            ),
            "deepseek_v3" => (
                source.number("n_routed_experts")?,
                source.number("moe_intermediate_size")?,
                grouped_routing(&source)?,
                PROJECTIONS,
            ),
            "llama4_text" | "llama4" => (
                source.number("num_local_experts")?,
                source.number("intermediate_size")?,
                Routing::SigmoidInput,
                Names { router: "router", ..PROJECTIONS },
            ),
            other => {
                return Err(source.error(format!(
                    "config: model_type = \"{other}\": must be mixtral, qwen3_moe, deepseek_v3, llama4_text or llama4"
                )));
            }
        };
        if let Some(activation) = source.text("hidden_act").filter(|&a| a != "silu") {
            return Err(source.error(format!("config: hidden_act = \"{activation}\": must be silu")));
        }
        let moe = MoeConfig {
            hidden_size: source.number("hidden_size")?,
            intermediate_size: intermediate,
            experts,
            top_k: source.number("num_experts_per_tok")?,
            routing,
            quantization,
            ..MoeConfig::default()
        };
        moe.validate().map_err(|e| match e {
            Error::Argument { name, value, rule, .. } => {
                source.error(format!("config: {name} = {value}: {rule}"))
            }
            other => other,
        })?;
        Ok(ModelConfig { model_type, moe, names })
    }
}

/// DeepSeek-V3's routing.
fn grouped_routing(source: &Source<'_>) -> Result<Routing> {
    let sigmoid = match source.text("scoring_func") {
        None | Some("sigmoid") => true,
        Some("softmax") => false,
        Some(other) => {
            return Err(
                source.error(format!("config: scoring_func = \"{other}\": must be sigmoid or softmax"))
            );
        }
    };
    let factor = source.json.get("routed_scaling_factor").map_or(Some(1.0), Value::as_f64);
    let factor = factor.ok_or_else(|| source.error("config: routed_scaling_factor must be a number"))?;
    Ok(Routing::Grouped {
        sigmoid,
        groups: source.number("n_group")?,
        topk_group: source.number("topk_group")?,
        renormalize: source.flag("norm_topk_prob", true),
        scaling_factor: factor as f32,
    })
}

/// Recognises `quantization_config`.
fn quantization(source: &Source<'_>, json: Option<&Value>) -> Result<Quantization> {
    let Some(json) = json else {
        return Err(
            source.error("config: quantization_config is missing; the checkpoint is not quantised to FP8")
        );
    };
    let text = |value: Option<&Value>| match value {
        Some(Value::String(s)) => s.clone(),
        Some(other) => other.to_string(),
        None => "missing".to_owned(),
    };
    let method = text(json.get("quant_method"));
    let unknown = |what: String| {
        source.error(format!(
            "config: quantization_config: {what}: must be fp8 static, fp8 dynamic with weight_block_size [128, 128], or \
             compressed-tensors with channel weights and dynamic token activations"
        ))
    };
    match method.as_str() {
        "fp8" => {
            let scheme = text(json.get("activation_scheme"));
            let block = json.get("weight_block_size").filter(|b| !b.is_null());
            let is_128 = block.is_some_and(|b| *b == serde_json::json!([128, 128]));
            match (scheme.as_str(), block) {
                ("static", None) => Ok(Quantization::TensorStatic),
                ("dynamic", Some(_)) if is_128 => Ok(Quantization::Block128),
                (_, Some(block)) => {
                    Err(unknown(format!("activation_scheme \"{scheme}\" with weight_block_size {block}")))
                }
                (_, None) => {
                    Err(unknown(format!("activation_scheme \"{scheme}\" without weight_block_size")))
                }
            }
        }
        "compressed-tensors" => {
            // Published configs keep the scheme in a group; one group is all that an FP8 checkpoint has.
            let group =
                json.get("config_groups").and_then(|g| g.as_object()?.values().next()).unwrap_or(json);
            let weights = text(group.pointer("/weights/strategy"));
            let inputs = text(group.pointer("/input_activations/strategy"));
            let dynamic =
                group.pointer("/input_activations/dynamic").and_then(Value::as_bool).unwrap_or(false);
            if (weights.as_str(), inputs.as_str(), dynamic) == ("channel", "token", true) {
                Ok(Quantization::ChannelToken)
            } else {
                let kind = if dynamic { "dynamic" } else { "static" };
                Err(unknown(format!("weights by {weights}, activations {kind} by {inputs}")))
            }
        }
        other => Err(unknown(format!("quant_method \"{other}\""))),
    }
}
