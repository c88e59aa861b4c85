//! The models that layers are measured at, and the schemes they are quantised with.

use std::fmt;
use std::str::FromStr;

use super::OP;
use fp8_moe::internals::require;
use fp8_moe::{Error, Result};
use fp8_moe::{MoeConfig, Quantization, Routing};

/// Sizes of a model's MoE layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// E.
    pub experts: usize,
    /// k.
    pub top_k: usize,
    /// H.
    pub hidden: usize,
    /// I.
    pub intermediate: usize,
}

/// A model by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// As the command line has it, e.g. `qwen3-30b`.
    pub name: &'static str,
    /// The routed experts of one of its layers.
    pub shape: Shape,
    /// Ranks that the intermediate size is divided among.
    pub tp: usize,
    /// Ranks that the experts are divided among.
    pub ep: usize,
}

const fn model(
    name: &'static str,
    experts: usize,
    top_k: usize,
    hidden: usize,
    intermediate: usize,
) -> Model {
    Model { name, shape: Shape { experts, top_k, hidden, intermediate }, tp: 1, ep: 1 }
}

/// One rank's share of a model.
const fn share(name: &'static str, of: Model, tp: usize, ep: usize) -> Model {
    Model { name, shape: of.shape, tp, ep }
}

const MIXTRAL_8X7B: Model = model("mixtral-8x7b", 8, 2, 4096, 14336);
const QWEN3_235B: Model = model("qwen3-235b", 128, 8, 4096, 1536);
const LLAMA4_MAVERICK: Model = model("llama4-maverick", 128, 1, 5120, 8192);
const DEEPSEEK_V3: Model = model("deepseek-v3", 256, 8, 7168, 2048);
const QWEN3_30B: Model = model("qwen3-30b", 128, 8, 2048, 768);
const GLM_46: Model = model("glm-4.6", 160, 8, 5120, 1536);
const QWEN35_35B: Model = model("qwen3.5-35b", 256, 8, 2048, 512);

/// The models that have names here, and shares of one rank: I from 128 to 512, and 4 to 64 experts.
pub const MODELS: [Model; 18] = [
    MIXTRAL_8X7B,
    QWEN3_235B,
    LLAMA4_MAVERICK,
    DEEPSEEK_V3,
    QWEN3_30B,
    GLM_46,
    QWEN35_35B,
    model("qwen3-next", 512, 10, 2048, 512),
    model("deepseek-v2-lite", 64, 6, 2048, 1408),
    model("kimi-k2", 384, 8, 7168, 2048),
    model("gpt-oss-120b", 128, 4, 2880, 2880),
    share("mixtral-8x7b-tp8", MIXTRAL_8X7B, 8, 1),
    share("qwen3-235b-tp4", QWEN3_235B, 4, 1),
    share("deepseek-v3-tp8", DEEPSEEK_V3, 8, 1),
    share("qwen3.5-35b-tp4", QWEN35_35B, 4, 1),
    share("qwen3-235b-ep2", QWEN3_235B, 1, 2),
    share("deepseek-v3-ep8", DEEPSEEK_V3, 1, 8),
    share("deepseek-v3-ep64", DEEPSEEK_V3, 1, 64),
];

impl Model {
    /// The model of this name; the error lists all of them.
    pub fn named(name: &str) -> Result<Model> {
        MODELS.into_iter().find(|model| model.name == name).ok_or_else(|| {
            let names = MODELS.map(|model| model.name).join(", ");
            Error::argument(OP, "model", name, format!("must be one of {names}"))
        })
    }
}

impl Shape {
    /// What rank 0 holds of a layer whose intermediate is divided among `tp` ranks and whose experts among
    /// `ep`. Routed weights multiply the output, in every model.
    pub fn config(&self, scheme: Scheme, tp: usize, ep: usize) -> Result<MoeConfig> {
        let Shape { experts, top_k, hidden, intermediate } = *self;
        let divides = tp > 0 && intermediate.is_multiple_of(tp);
        require(divides, OP, "tp", tp, || format!("must divide the intermediate size, {intermediate}"))?;
        let divides = ep > 0 && experts.is_multiple_of(ep);
        require(divides, OP, "ep", ep, || format!("must divide the {experts} experts"))?;
        let config = MoeConfig::builder()
            .hidden_size(hidden)
            .intermediate_size(intermediate / tp)
            .experts(experts)
            .top_k(top_k)
            .routing(Routing::Softmax { renormalize: true })
            .quantization(scheme.quantization())
            .build()?;
        if ep == 1 { Ok(config) } else { config.for_rank(0, ep) }
    }
}

impl FromStr for Shape {
    type Err = Error;

    fn from_str(text: &str) -> Result<Shape> {
        let refuse =
            || Error::argument(OP, "shape", text, "must be E,k,H,I in whole numbers, e.g. 128,8,2048,768");
        let sizes: Vec<usize> =
            text.split(',').map(|n| n.trim().parse()).collect::<Result<_, _>>().map_err(|_| refuse())?;
        let [experts, top_k, hidden, intermediate] = sizes[..] else { return Err(refuse()) };
        Ok(Shape { experts, top_k, hidden, intermediate })
    }
}

/// How weights and activations are quantised, by the names that benchmarks use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Activations per token, weights per channel.
    PerToken,
    /// Both per tensor, with given scales.
    PerTensor,
    /// Activations in 1x128 groups, weights in 128x128 blocks.
    Block,
}

impl Scheme {
    /// All of them.
    pub const ALL: [Scheme; 3] = [Scheme::PerToken, Scheme::PerTensor, Scheme::Block];

    /// As the layer calls it.
    pub const fn quantization(self) -> Quantization {
        match self {
            Scheme::PerToken => Quantization::ChannelToken,
            Scheme::PerTensor => Quantization::TensorStatic,
            Scheme::Block => Quantization::Block128,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Scheme::PerToken => "per-token",
            Scheme::PerTensor => "per-tensor",
            Scheme::Block => "block",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Scheme {
    type Err = Error;

    fn from_str(text: &str) -> Result<Scheme> {
        Scheme::ALL
            .into_iter()
            .find(|scheme| scheme.name() == text)
            .ok_or_else(|| Error::argument(OP, "scheme", text, "must be one of per-token, per-tensor, block"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_model_is_refused_with_the_list() {
        let text = Model::named("gpt-5").expect_err("unknown").to_string();
        assert_eq!(
            text,
            "bench: model = gpt-5: must be one of mixtral-8x7b, qwen3-235b, llama4-maverick, deepseek-v3, \
             qwen3-30b, glm-4.6, qwen3.5-35b, qwen3-next, deepseek-v2-lite, kimi-k2, gpt-oss-120b, \
             mixtral-8x7b-tp8, qwen3-235b-tp4, deepseek-v3-tp8, qwen3.5-35b-tp4, qwen3-235b-ep2, \
             deepseek-v3-ep8, deepseek-v3-ep64"
        );
    }

    #[test]
    fn shares_are_of_the_sizes_that_ranks_have() {
        let rank = |name: &str| {
            let Model { shape, tp, ep, .. } = Model::named(name).expect("a model");
            let config = shape.config(Scheme::Block, tp, ep).expect("a config");
            (config.intermediate_size, config.local_count())
        };
        assert_eq!(rank("deepseek-v3-tp8"), (256, 256));
        assert_eq!(rank("qwen3.5-35b-tp4"), (128, 256));
        assert_eq!(rank("deepseek-v3-ep64"), (2048, 4));
        for model in MODELS {
            assert_eq!(model.name.ends_with(&format!("-tp{}", model.tp)), model.tp > 1, "{}", model.name);
            assert_eq!(model.name.ends_with(&format!("-ep{}", model.ep)), model.ep > 1, "{}", model.name);
        }
    }

    #[test]
    fn shapes_are_read_and_divided() {
        let shape: Shape = "16,4, 256,512".parse().expect("a shape");
        let config = shape.config(Scheme::Block, 2, 4).expect("a config");
        assert_eq!((config.intermediate_size, config.local_count(), config.experts), (256, 4, 16));
        assert_eq!(config.local_ids(), [0, 1, 2, 3]);
        for text in ["16,4,256", "16,4,256,x", ""] {
            assert!(text.parse::<Shape>().is_err(), "{text}");
        }
        let refusal = |tp, ep| shape.config(Scheme::Block, tp, ep).expect_err("refused").to_string();
        assert_eq!(refusal(3, 1), "bench: tp = 3: must divide the intermediate size, 512");
        assert_eq!(refusal(1, 3), "bench: ep = 3: must divide the 16 experts");
        assert!(refusal(0, 1).starts_with("bench: tp = 0"));
    }
}
