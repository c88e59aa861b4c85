//! What a checkpoint holds and what of it would be loaded, without a device.

use std::collections::BTreeSet;

use super::Checkpoint;
use super::models::TRANSFORMERS;
use crate::layer::{MoeConfig, MoeDeviceWeights, SharedExpert, SharedKind};

/// What [`Checkpoint::inspect`] finds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Inspection {
    /// `model_type` of the row of the table of models by which the checkpoint is read.
    pub read_as: &'static str,
    /// Where the config class is.
    pub class: String,
    /// Keys that the config lacks, with what the class takes then.
    pub defaults: Vec<(&'static str, String)>,
    /// The MoE layers, by number.
    pub layers: Vec<LayerSummary>,
    /// Prefixes of MLPs that are no MoE layers: the dense layers.
    pub dense: Vec<String>,
}

/// An MoE layer of a checkpoint.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LayerSummary {
    /// E.g. `model.layers.7.mlp`.
    pub prefix: String,
    /// What would be loaded, or why nothing would be.
    pub loads: Result<LoadableLayer, String>,
}

/// What of a layer would be loaded.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoadableLayer {
    /// What it computes.
    pub config: MoeConfig,
    /// The scheme as the checkpoint names it.
    pub scheme: String,
    /// Bytes of weights and scales on the device.
    pub bytes: u64,
    /// The prefix of shared experts.
    pub shared: Option<String>,
}

impl Checkpoint {
    /// Looks at every layer's tensors: names, types and shapes, and the values of routers and scales. The
    /// matrices are not read, so that a NaN among them is not seen.
    pub fn inspect(&self) -> Inspection {
        let layers = self.layers();
        let (_, file) = self.model.class;
        Inspection {
            read_as: self.model.model_type,
            class: format!("{TRANSFORMERS}{file}"),
            defaults: self.config.defaults.clone(),
            dense: self.dense(&layers),
            layers: layers
                .into_iter()
                .map(|prefix| LayerSummary {
                    loads: self.inspect_layer(&prefix).map_err(|error| error.to_string()),
                    prefix,
                })
                .collect(),
        }
    }

    fn inspect_layer(&self, prefix: &str) -> crate::Result<LoadableLayer> {
        let config = self.layer_config(prefix)?;
        self.reader(prefix, &config)?.check()?;
        let bytes = |config: &MoeConfig| {
            let [w13, w2, w13_scale, w2_scale] = MoeDeviceWeights::lengths(config);
            (w13 + w2 + 4 * (w13_scale + w2_scale)) as u64
        };
        let beside = match (config.shared, config.shared_layer()) {
            (_, Some(layer)) => bytes(&layer),
            (Some(SharedExpert { weights: SharedKind::Bf16, intermediate_size, .. }), None) => {
                2 * 3 * (intermediate_size * config.hidden_size) as u64
            }
            _ => 0,
        };
        Ok(LoadableLayer {
            scheme: self.scheme(prefix)?.to_string(),
            bytes: bytes(&config) + beside,
            shared: self.shared_experts(prefix),
            config,
        })
    }

    /// The prefixes of MLPs outside the MoE layers.
    fn dense(&self, layers: &[String]) -> Vec<String> {
        let [gate, ..] = self.model.tensors.matrices.unwrap_or(["gate_proj", "up_proj", "down_proj"]);
        let prefixes = self.files.names().filter_map(|name| {
            let (prefix, matrix) = name.strip_suffix(".weight")?.rsplit_once('.')?;
            (matrix == gate).then_some(prefix)
        });
        let is_inside = |prefix: &str| {
            layers
                .iter()
                .any(|layer| prefix.strip_prefix(layer.as_str()).is_some_and(|rest| rest.starts_with('.')))
        };
        let mut dense: Vec<_> = prefixes
            .filter(|prefix| !is_inside(prefix))
            .map(String::from)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        dense.sort_by_key(|prefix| super::number_in(prefix));
        dense
    }
}
