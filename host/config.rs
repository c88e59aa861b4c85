//! What an MoE layer computes: sizes, routing, activation, quantisation, which experts are here, and which
//! kernels may run.
//!
//! Plain data that every level above the device layer reads: the plan, the operations and the layer.

mod quantization;
mod shared;
mod tuning;

use crate::error::{Error, Result, require};
use crate::kernels::launchers;

pub use crate::kernels::launchers::ActivationFunction;
pub use quantization::{ActivationScales, Quantization, WeightScales};
pub(crate) use shared::SharedRun;
pub use shared::{SharedExpert, SharedKind};
pub use tuning::Tuning;

/// How gate and up, the first projection's results, become the second's input.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Gating {
    /// What joins them.
    pub function: ActivationFunction,
    /// What gate is at most, and up in magnitude, before that. Without, `SwigluOai` has the limit 7, which is
    /// gpt-oss's, and the others have none.
    pub limit: Option<f32>,
    /// Whether there is a gate. Without, up takes its place too: with `Relu2` the value is `relu(up)^2`.
    pub is_gated: bool,
}

impl From<ActivationFunction> for Gating {
    fn from(function: ActivationFunction) -> Gating {
        Gating { function, limit: None, is_gated: true }
    }
}

impl Gating {
    /// With [`Gating::limit`].
    pub fn limit(self, limit: Option<f32>) -> Gating {
        Gating { limit, ..self }
    }

    /// With a gate, or without.
    pub fn gated(self, is_gated: bool) -> Gating {
        Gating { is_gated, ..self }
    }

    /// The limit that applies; infinite for none.
    pub(crate) fn bound(&self) -> f32 {
        let default = if self.function == ActivationFunction::SwigluOai { 7.0 } else { f32::INFINITY };
        self.limit.unwrap_or(default)
    }

    /// Columns from a gate of `intermediate` to its up.
    pub(crate) fn up(&self, intermediate: usize) -> usize {
        if self.is_gated { intermediate } else { 0 }
    }

    /// As kernels take it.
    pub(crate) fn raw(&self, intermediate: u32) -> launchers::Gating {
        let up = self.up(intermediate as usize) as u32;
        launchers::Gating { up, limit: self.bound(), function: self.function }
    }

    /// Refuses a limit that is not positive.
    pub(crate) fn check(&self, op: &'static str, name: &str) -> Result<()> {
        require(self.bound() > 0.0, op, name, self.bound(), || "must be over 0".into())
    }
}

/// How a GEMM keeps its sum over K. Scales per group or block are applied every 128 of K in f32 with either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Accumulation {
    /// In the tensor core's accumulator, which on some GPUs has fewer bits than f32 (about 14 on Hopper).
    #[default]
    Fast,
    /// As `Fast`, but folded into f32 registers every 128 of K.
    Promoted,
}

/// Which kernels the GEMMs use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Path {
    /// The best there are for the device and the shape.
    #[default]
    Auto,
    /// The kernels that every family has: `cp.async` and `mma.sync`.
    Portable {
        /// Blocks of the grid; as many as the device holds at a time, if `None`. The result does not depend
        /// on it.
        blocks: Option<u32>,
    },
    /// The kernels of Hopper: TMA and `wgmma`. An error on other GPUs.
    Hopper {
        /// Blocks of the grid, at most one to a multiprocessor; that many, if `None`. Where sums are cut
        /// (tiles of up to 64 rows) the result depends on it within rounding.
        blocks: Option<u32>,
    },
    /// For a layer and up to eight tokens, everything behind the router in one launch wherever that kernel
    /// fits: on Hopper, with H and I multiples of 64 where weights are not packed, no scales of whole rows in
    /// front of GEMM 2 where they are, and no biases of experts; where a slot's weight multiplies its input
    /// ([`Routing::SigmoidInput`]), with at most eight pairs of a token and a slot. Else as `Auto`, which
    /// does so where it has been faster.
    OneLaunch,
}

/// Whether the first GEMM of a layer gathers its rows of A by token, or reads copies that the quantisation
/// has scattered to permuted order. The result is the same, bit for bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gather {
    /// Where it is faster, by [`MoeConfig::tuning`].
    #[default]
    Auto,
    /// Wherever there is a kernel that can.
    Always,
    /// Nowhere.
    Never,
}

/// How experts are chosen from the router's logits, and how their outputs are weighted.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Routing {
    /// Softmax over all experts, the k largest; Mixtral, Qwen3-MoE.
    Softmax {
        /// Whether the k weights are divided by their sum.
        renormalize: bool,
    },
    /// Groups of experts first, then the best in the best groups; DeepSeek-V3.
    Grouped {
        /// Scores are sigmoids of the logits; else their softmax.
        sigmoid: bool,
        /// Groups that the experts are cut into.
        groups: usize,
        /// Groups that experts are picked from.
        topk_group: usize,
        /// Whether the k weights are divided by (their sum + 1e-20).
        renormalize: bool,
        /// Factor of all weights.
        scaling_factor: f32,
    },
    /// The largest logits; weight = sigmoid(logit), applied to the expert's input and not to its output;
    /// Llama-4.
    SigmoidInput,
    /// Scores are `sqrt(ln(1 + e^logit))`; the best by score and bias, or those that a table has for the
    /// token's id; DeepSeek-V4.
    SqrtSoftplus {
        /// Whether the k weights are divided by (their sum + 1e-20).
        renormalize: bool,
        /// Factor of all weights.
        scaling_factor: f32,
        /// V, where a table `[V, k]` names the experts of each token id
        /// ([`MoeWeights::token_experts`](crate::MoeWeights::token_experts)): a forward by the layer's own
        /// router is then told the tokens' ids. `None` where scores choose.
        vocabulary: Option<usize>,
    },
}

impl Routing {
    /// V, where a table has the experts of each token id.
    pub(crate) fn vocabulary(self) -> Option<usize> {
        match self {
            Routing::SqrtSoftplus { vocabulary, .. } => vocabulary,
            Routing::Softmax { .. } | Routing::Grouped { .. } | Routing::SigmoidInput => None,
        }
    }
}

/// Scales of the activations between the two projections, where those before the first are per token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum IntermediateScales {
    /// One per row and 128 columns: finer, and found inside the first GEMM where the device's kernels can.
    #[default]
    Group128,
    /// One per row, as vLLM and Hugging Face have it: for exact comparison.
    Token,
}

/// How each token's expert outputs are added up.
///
/// | | adds | rounds before | the same bits every time | devices |
/// |---|---|---|---|---|
/// | `Deterministic` | a kernel behind GEMM 2, slot by slot | each expert's output, to bf16 | yes | all |
/// | `OrderFree` | GEMM 2 itself, by atomic additions | nothing | no: the order of additions is arbitrary | Hopper |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reduction {
    /// `out[t] = cast(sum over slots j, ascending, of w[t, j] * cast16(y[t, j]))`, y being the expert outputs
    /// `[T, k, H]` in f32.
    #[default]
    Deterministic,
    /// `out[t] = cast(sum over slots j, in any order, of w[t, j] * y[t, j])`, summed in f32 (and cut sums
    /// over K part by part). In memory that is `[T, H]` instead of `[T * k, H]`. Refused where the layer
    /// would not run Hopper's kernels.
    OrderFree,
}

impl std::fmt::Display for Reduction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Reduction::Deterministic => "deterministic",
            Reduction::OrderFree => "order-free",
        })
    }
}

impl std::str::FromStr for Reduction {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reduction> {
        let all = [Reduction::Deterministic, Reduction::OrderFree];
        all.into_iter()
            .find(|reduction| reduction.to_string() == text)
            .ok_or_else(|| Error::argument(OP, "reduction", text, "must be deterministic or order-free"))
    }
}

/// An MoE layer's sizes and choices: from [`MoeConfig::builder`], or from a checkpoint.
///
/// ```
/// use fp8_moe::{MoeConfig, Quantization, Routing};
///
/// let config = MoeConfig::builder()
///     .hidden_size(2048)
///     .intermediate_size(768)
///     .experts(128)
///     .top_k(8)
///     .routing(Routing::Softmax { renormalize: true })
///     .quantization(Quantization::Block128)
///     .build()?;
/// assert_eq!(config.local_count(), 128);
///
/// let wrong = config.to_builder().top_k(200).build().unwrap_err().to_string();
/// assert_eq!(wrong, "MoeConfig: top_k = 200: must be in 1..=128, the number of experts");
/// # Ok::<(), fp8_moe::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MoeConfig {
    /// H, columns of the hidden states; a multiple of 16.
    pub hidden_size: usize,
    /// I, columns of the intermediate; a multiple of 16.
    pub intermediate_size: usize,
    /// E, experts of the model.
    pub experts: usize,
    /// k, experts per token.
    pub top_k: usize,
    /// How experts are chosen.
    pub routing: Routing,
    /// Between the projections.
    pub activation: ActivationFunction,
    /// What gate is at most, and up in magnitude, in front of the activation ([`Gating::limit`]).
    pub activation_limit: Option<f32>,
    /// Whether experts have a gate: `down(f(gate(x)) * up(x))`; else they are `down(f(up(x)) * up(x))`, with
    /// `f` the positive part for `Relu2`: `down(relu(up(x))^2)`.
    pub gated: bool,
    /// FP8 scheme.
    pub quantization: Quantization,
    /// Scales of the activations between the projections, where those before the first are per token.
    pub intermediate_scales: IntermediateScales,
    /// How the GEMMs keep their sums.
    pub accumulation: Accumulation,
    /// How expert outputs are added up.
    pub reduction: Reduction,
    /// Which kernels the GEMMs use.
    pub path: Path,
    /// Whether the first GEMM gathers its rows by token, where its kernels can; that changes no result.
    pub gather: Gather,
    /// What is fastest at which shape, where the choices above leave it open.
    pub tuning: Tuning,
    /// The expert that every token has, if this rank computes it: of the ranks of a layer one does.
    pub shared: Option<SharedExpert>,
    /// The experts this rank holds, in ascending order; `None` for all of them.
    pub local_experts: Option<Vec<usize>>,
}

impl Default for MoeConfig {
    fn default() -> MoeConfig {
        MoeConfig {
            hidden_size: 0,
            intermediate_size: 0,
            experts: 0,
            top_k: 0,
            routing: Routing::Softmax { renormalize: true },
            activation: ActivationFunction::Silu,
            activation_limit: None,
            gated: true,
            quantization: Quantization::Block128,
            intermediate_scales: IntermediateScales::default(),
            accumulation: Accumulation::Promoted,
            reduction: Reduction::default(),
            path: Path::Auto,
            gather: Gather::Auto,
            tuning: Tuning::default(),
            shared: None,
            local_experts: None,
        }
    }
}

/// An [`MoeConfig`] in the making. Every method sets the field of its name; what is not set is as in
/// `MoeConfig::default()`, which has no sizes.
#[derive(Clone, Debug)]
#[must_use]
pub struct MoeConfigBuilder {
    config: MoeConfig,
}

macro_rules! setters {
    ($($field:ident: $ty:ty,)*) => {$(
        #[doc = concat!("Sets [`MoeConfig::", stringify!($field), "`].")]
        pub fn $field(mut self, $field: $ty) -> MoeConfigBuilder {
            self.config.$field = $field;
            self
        }
    )*};
}

impl MoeConfigBuilder {
    setters! {
        hidden_size: usize,
        intermediate_size: usize,
        experts: usize,
        top_k: usize,
        routing: Routing,
        activation: ActivationFunction,
        activation_limit: Option<f32>,
        gated: bool,
        quantization: Quantization,
        intermediate_scales: IntermediateScales,
        accumulation: Accumulation,
        reduction: Reduction,
        path: Path,
        gather: Gather,
        tuning: Tuning,
        shared: Option<SharedExpert>,
        local_experts: Option<Vec<usize>>,
    }

    /// The config.
    ///
    /// # Errors
    /// Those of [`MoeConfig::validate`].
    pub fn build(self) -> Result<MoeConfig> {
        self.config.validate()?;
        Ok(self.config)
    }
}

/// Columns of activations that share a scale, in layers.
pub(crate) const GROUP: usize = launchers::SLAB as usize;

/// Rows and columns of weights that share a block scale.
pub(crate) const SCALE_BLOCK: usize = launchers::SCALE_BLOCK as usize;

/// Bytes that the addresses of matrices are multiples of, and columns that their widths are.
pub(crate) const COPY_BYTES: usize = launchers::COPY_BYTES as usize;

const OP: &str = "MoeConfig";

impl MoeConfig {
    /// A config without sizes, to be completed: 128x128 blocks, softmax routing, `silu`, all experts here.
    pub fn builder() -> MoeConfigBuilder {
        MoeConfigBuilder { config: MoeConfig::default() }
    }

    /// This config, to be changed.
    pub fn to_builder(&self) -> MoeConfigBuilder {
        MoeConfigBuilder { config: self.clone() }
    }

    /// Refuses sizes that the kernels cannot do, with the rule.
    ///
    /// # Errors
    /// The first size that breaks a rule.
    pub fn validate(&self) -> Result<()> {
        let columns = |name, size: usize| {
            require(size > 0 && size.is_multiple_of(COPY_BYTES), OP, name, size, || {
                format!("must be a positive multiple of {COPY_BYTES}")
            })?;
            require(size < 1 << 24, OP, name, size, || "must be below 2^24".into())
        };
        columns("hidden_size", self.hidden_size)?;
        columns("intermediate_size", self.intermediate_size)?;
        require((1..=4096).contains(&self.experts), OP, "experts", self.experts, || {
            "must be in 1..=4096".into()
        })?;
        require((1..=self.experts).contains(&self.top_k), OP, "top_k", self.top_k, || {
            format!("must be in 1..={}, the number of experts", self.experts)
        })?;
        let one = self.routing != Routing::SigmoidInput || self.top_k == 1;
        require(one, OP, "top_k", self.top_k, || {
            "must be 1 where the routing weight is applied to the input".into()
        })?;
        if let Routing::Grouped { groups, topk_group, scaling_factor, .. } = self.routing {
            require(groups > 0 && self.experts.is_multiple_of(groups), OP, "groups", groups, || {
                format!("must divide the {} experts", self.experts)
            })?;
            require((1..=groups).contains(&topk_group), OP, "topk_group", topk_group, || {
                format!("must be in 1..={groups}, the number of groups")
            })?;
            let candidates = topk_group * (self.experts / groups);
            require(self.top_k <= candidates, OP, "top_k", self.top_k, || {
                format!("must be at most {candidates}, the experts in {topk_group} groups")
            })?;
            require(scaling_factor.is_finite(), OP, "scaling_factor", scaling_factor, || {
                "must be finite".into()
            })?;
        }
        if let Routing::SqrtSoftplus { scaling_factor, vocabulary, .. } = self.routing {
            require(scaling_factor.is_finite(), OP, "scaling_factor", scaling_factor, || {
                "must be finite".into()
            })?;
            let vocabulary = vocabulary.unwrap_or(1);
            // The table's elements are counted in i32.
            let most = i32::MAX as usize / self.top_k;
            require((1..=most).contains(&vocabulary), OP, "vocabulary", vocabulary, || {
                format!("must be in 1..={most}")
            })?;
        }
        self.gating().check(OP, "activation_limit")?;
        self.tuning.validate()?;
        let joins = self.gated || self.activation == ActivationFunction::Relu2;
        require(joins, OP, "gated", "false", || format!("must be true for {:?}", self.activation))?;
        if let Some(shared) = &self.shared {
            columns("shared.intermediate_size", shared.intermediate_size)?;
            let runs = self.shared_run() != SharedRun::Beside || self.local_count() > 0;
            require(runs, OP, "shared", "Some", || "must be None on a rank without experts".into())?;
        }
        if let Some(local) = &self.local_experts {
            let ascending = local.windows(2).all(|pair| pair[0] < pair[1]);
            require(ascending, OP, "local_experts", format!("{local:?}"), || "must ascend".into())?;
            let last = local.last().copied();
            require(
                last.is_none_or(|last| last < self.experts),
                OP,
                "local_experts",
                format!("{local:?}"),
                || format!("must be below {}, the number of experts", self.experts),
            )?;
        }
        Ok(())
    }

    /// V, where a table has the experts of each token id.
    pub fn vocabulary(&self) -> Option<usize> {
        self.routing.vocabulary()
    }

    /// How gate and up become the second projection's input.
    pub(crate) fn gating(&self) -> Gating {
        Gating::from(self.activation).limit(self.activation_limit).gated(self.gated)
    }

    /// Columns of the router's logits: E, and one for a shared expert that has a gate and is computed as
    /// experts.
    pub(crate) fn logits(&self) -> usize {
        self.experts + usize::from(self.routes_shared())
    }

    /// Rows of w13 for each column of the intermediate: gate and up, or up alone.
    pub(crate) fn halves(&self) -> usize {
        if self.gated { 2 } else { 1 }
    }

    /// E_loc, the experts this rank holds.
    pub fn local_count(&self) -> usize {
        self.local_experts.as_ref().map_or(self.experts, Vec::len)
    }

    /// The global numbers of this rank's experts.
    pub fn local_ids(&self) -> Vec<usize> {
        self.local_experts.clone().unwrap_or_else(|| (0..self.experts).collect())
    }

    /// Slots of a token: k, and those of a shared expert that is computed as experts.
    pub fn slots(&self) -> usize {
        self.top_k + self.shared_slots()
    }

    /// E + s, experts that slots may name.
    pub(crate) fn slot_experts(&self) -> usize {
        self.experts + self.shared_slots()
    }

    /// Experts that the grouped GEMMs have here: those of this rank, then the shared ones.
    pub(crate) fn slot_local_experts(&self) -> usize {
        self.local_count() + self.shared_slots()
    }

    /// The same layer as rank `rank` of `ranks` sees it, the experts in equal consecutive parts. A shared
    /// expert is the first rank's, so that the sum over ranks has it once.
    ///
    /// # Errors
    /// A rank that is not below `ranks`; more ranks than experts.
    pub fn for_rank(&self, rank: usize, ranks: usize) -> Result<MoeConfig> {
        require(ranks > 0 && self.experts.is_multiple_of(ranks), OP, "ranks", ranks, || {
            format!("must divide the {} experts", self.experts)
        })?;
        require(rank < ranks, OP, "rank", rank, || format!("must be below {ranks}, the number of ranks"))?;
        let each = self.experts / ranks;
        let local_experts = Some((rank * each..(rank + 1) * each).collect());
        let shared = self.shared.filter(|_| rank == 0);
        Ok(MoeConfig { local_experts, shared, ..self.clone() })
    }

    /// `expert_map [E + s]`: global expert to local expert, -1 where it is not on this rank; `None` when all
    /// are here. The shared ones are behind this rank's others.
    pub(crate) fn expert_map(&self) -> Option<Vec<i32>> {
        let local = self.local_experts.as_ref()?;
        let mut map = vec![-1; self.experts];
        for (index, &expert) in local.iter().enumerate() {
            map[expert] = index as i32;
        }
        map.extend((local.len()..self.slot_local_experts()).map(|index| index as i32));
        Some(map)
    }

    /// Scales of the activations before the first projection.
    pub(crate) fn first_scales(&self) -> ActivationScales {
        self.quantization.activations()
    }

    /// Scales of the activations before the second projection.
    pub(crate) fn second_scales(&self) -> ActivationScales {
        match (self.first_scales(), self.intermediate_scales) {
            (ActivationScales::Token, IntermediateScales::Group128) => ActivationScales::Group128,
            (first, _) => first,
        }
    }

    /// Columns of the intermediate as it lies in device memory. Block scales of the up half must begin at a
    /// block, so there the intermediate is padded with zero weights to a multiple of 128; that changes no
    /// result.
    pub(crate) fn padded_intermediate(&self) -> usize {
        match self.quantization.weights() {
            WeightScales::Block128 => self.intermediate_size.next_multiple_of(SCALE_BLOCK),
            WeightScales::Tensor | WeightScales::Channel => self.intermediate_size,
        }
    }
}
