//! The table of models: one row for each MoE module of transformers whose experts exist in FP8.
//!
//! A row says what the module computes, what its config's keys are called and default to, and what its
//! tensors are called. [`config`](super::config) reads a config by a row; [`experts`](super::experts) reads
//! tensors by a row. Adding a model is adding a row here, and a fixture in `tests/fixtures/families.py`.
//! The file is as long as the table: rows are data, read one at a time.
//!
//! ```text
//! <prefix>.<router>                         [E, H]       bf16, f16 or f32
//! <prefix>.<bias>                           [E]          added to the scores in selection
//! <prefix>.<token_experts>                  [V, k]       or in some layers: the experts of each token id
//! <prefix>.experts.<n>.<gate|up>.weight     [I, H]       e4m3        either these
//! <prefix>.experts.<n>.<down>.weight        [H, I]       e4m3
//! <prefix>.<fused.gate_up>                  [E, 2I, H]   e4m3        or these, in an order of `Order`
//! <prefix>.<fused.down>                     [E, H, I]    e4m3
//! ```

/// A row of the table.
pub(crate) struct Model {
    /// `model_type` of the config class.
    pub model_type: &'static str,
    /// Other types of the same layer: the class of a whole multimodal model, or a name from before
    /// transformers had it.
    pub also: &'static [&'static str],
    /// The config class, and its file below [`TRANSFORMERS`].
    pub class: (&'static str, &'static str),
    /// H.
    pub hidden_size: Number,
    /// E.
    pub experts: Number,
    /// k.
    pub top_k: Number,
    /// I.
    pub intermediate_size: Number,
    /// From logits to experts and weights.
    pub scoring: Scoring,
    /// Between the projections.
    pub activation: Activation,
    /// Keys that the class does not read but configs have, with the only values that say what the class does,
    /// as JSON.
    pub fixed: &'static [(&'static str, &'static [&'static str])],
    /// Names and layouts of the tensors.
    pub tensors: Tensors,
}

/// Where the sources of the config classes are.
pub(crate) const TRANSFORMERS: &str =
    "https://github.com/huggingface/transformers/blob/main/src/transformers/models/";

/// A whole number of a config.
pub(crate) struct Number {
    /// The key, then its aliases in the class's `attribute_map`.
    pub keys: &'static [&'static str],
    /// What the class takes without the key; `None` where it has no default.
    pub default: Option<usize>,
    /// Whether the class also takes a list with a number for each layer.
    pub lists: bool,
}

/// Whether weights are divided by their sum.
#[derive(Clone, Copy)]
pub(crate) enum Renormalize {
    /// The class always does.
    Always,
    /// The class never does.
    Never,
    /// The key `norm_topk_prob` says so; its default.
    Key(bool),
}

/// How experts are scored, chosen and weighed.
#[derive(Clone, Copy)]
pub(crate) enum Scoring {
    /// Softmax over all experts, the k largest.
    Softmax(Renormalize),
    /// Groups by the sum of their two best scores, biased; then the best in the best groups. A bias that the
    /// checkpoint lacks is zeros, as the class's buffer is.
    Biased {
        /// Scores are sigmoids; else the softmax.
        sigmoid: bool,
        /// Defaults of `n_group` and `topk_group`; without groups `None`.
        groups: Option<[usize; 2]>,
        renormalize: Renormalize,
        /// Default of `routed_scaling_factor`; `None` where the class has no such key.
        factor: Option<f64>,
    },
    /// DeepSeek-V2: `topk_method` greedy is softmax top-k, `group_limited_greedy` groups by their best score;
    /// weights times `routed_scaling_factor`.
    DeepSeekV2,
    /// The largest logit; its sigmoid weighs the expert's input.
    SigmoidInput,
    /// DeepSeek-V4: `sqrt(ln(1 + e^logit))`, biased in selection, or looked up by token id; renormalised. The
    /// default of `routed_scaling_factor`.
    SqrtSoftplus(f64),
}

/// What experts do between their projections.
#[derive(Clone, Copy)]
pub(crate) enum Activation {
    /// `f(gate) * up`, the key and the default of `f`.
    Gated(&'static str, &'static str),
    /// The same within `swiglu_limit`; the default of that.
    GatedWithin(&'static str, &'static str, f64),
    /// gpt-oss: `(up + 1) * gate * sigmoid(1.702 gate)` within `swiglu_limit`, 7 where it is missing.
    SwigluOai,
    /// `relu(up)^2` without a gate; the key that says so.
    Relu2(&'static str),
}

const SILU: Activation = Activation::Gated("hidden_act", "silu");

impl Activation {
    /// Whether experts have a gate.
    pub fn is_gated(self) -> bool {
        !matches!(self, Activation::Relu2(_))
    }
}

/// What the tensors of a layer are called, below its prefix.
pub(crate) struct Tensors {
    /// The router's weight.
    pub router: &'static [&'static str],
    /// What is added to the logits; none where the model has nothing of the kind.
    pub router_bias: Option<&'static str>,
    /// Whether matrices have biases: `<matrix>.bias`, or in fused layouts `<tensor>_bias`.
    pub biases: bool,
    /// The bias of the scores in selection; none where the model has none.
    pub bias: &'static [&'static str],
    /// Where layers have it instead of a bias: the experts `[V, k]` of each token id. Which layers do is in
    /// `mlp_layer_types` or `num_hash_layers`, and V in `vocab_size`, whose defaults are here.
    pub token_experts: Option<TokenExperts>,
    /// Matrices of expert n: `experts.<n>.<name>.weight`, in the order gate, up, down; without a gate its
    /// name is up's.
    pub matrices: Option<[&'static str; 3]>,
    /// One tensor for all experts.
    pub fused: Option<Fused>,
    /// An MLP that every token goes through.
    pub shared: Option<Shared>,
}

/// A table of experts by token id.
#[derive(Clone, Copy)]
pub(crate) struct TokenExperts {
    pub name: &'static str,
    /// Default of `num_hash_layers`, the first layers of the model.
    pub layers: usize,
    /// Default of `vocab_size`.
    pub vocabulary: usize,
}

/// An MLP that every token goes through: `<prefix>.<name>.<gate_proj|up_proj|down_proj>.weight`.
pub(crate) struct Shared {
    pub name: &'static str,
    /// What its gate, up and down may be called; a layer has one of these.
    pub matrices: &'static [[&'static str; 3]],
    /// Columns of its intermediate.
    pub size: SharedSize,
    /// The tensor `[1, H]` whose product with a token, through a sigmoid, weighs its output.
    pub gate: Option<&'static str>,
}

/// How many columns the intermediate of a shared expert has.
pub(crate) enum SharedSize {
    /// What the key says.
    Own(Number),
    /// As many experts' as the key says; null says none.
    Experts(Number),
    /// An expert's.
    Expert,
}

/// Tensors that hold a matrix of every expert.
#[derive(Clone, Copy)]
pub(crate) struct Fused {
    /// The names that gate and up, and down, go by.
    pub names: &'static [[&'static str; 2]],
    pub order: Order,
}

/// How a fused tensor lies in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// `[E, 2I, H]`, gate rows first; `[E, H, I]`.
    Rows,
    /// `[E, H, 2I]`, gate columns first; `[E, I, H]`.
    Columns,
    /// `[E, H, 2I]`, gate in even columns, up in odd ones; `[E, I, H]`.
    Interleaved,
}

impl Shared {
    /// The names of gate, up and down in a layer where `has` says what there is below its prefix.
    pub fn projections(&self, has: impl Fn(&str) -> bool) -> [&'static str; 3] {
        let is_there =
            |names: &&[&str; 3]| names.iter().any(|name| has(&format!("{}.{name}.weight", self.name)));
        *self.matrices.iter().find(is_there).unwrap_or(&self.matrices[0])
    }
}

impl Order {
    /// Whether an expert's matrix lies transposed.
    pub fn is_transposed(self) -> bool {
        self != Order::Rows
    }
}

const fn number(keys: &'static [&'static str], default: usize) -> Number {
    Number { keys, default: Some(default), lists: false }
}

const fn required(keys: &'static [&'static str]) -> Number {
    Number { keys, default: None, lists: false }
}

const fn hidden(default: usize) -> Number {
    number(&["hidden_size"], default)
}

const fn intermediate(default: usize) -> Number {
    number(&["moe_intermediate_size"], default)
}

const fn per_token(default: usize) -> Number {
    number(&["num_experts_per_tok"], default)
}

/// DeepSeek-V3's routing.
const fn grouped(groups: [usize; 2], renormalize: bool, factor: f64) -> Scoring {
    Scoring::Biased {
        sigmoid: true,
        groups: Some(groups),
        renormalize: Renormalize::Key(renormalize),
        factor: Some(factor),
    }
}

/// Qwen's shared expert, with a gate.
const fn gated_shared(default: usize) -> Option<Shared> {
    let size = SharedSize::Own(number(&["shared_expert_intermediate_size"], default));
    Some(Shared { name: "shared_expert", matrices: PROJECTED, size, gate: Some("shared_expert_gate.weight") })
}

/// DeepSeek's shared experts, so many of the routed ones' size.
const fn shared_experts(count: Number) -> Option<Shared> {
    Some(Shared { name: "shared_experts", matrices: PROJECTED, size: SharedSize::Experts(count), gate: None })
}

const PROJECTIONS: Option<[&str; 3]> = Some(PROJECTED[0]);
/// What the matrices of nearly all shared experts are called.
const PROJECTED: &[[&str; 3]] = &[["gate_proj", "up_proj", "down_proj"]];
/// The names that DeepSeek's own code has, for single experts and shared ones.
const NUMBERED: [&str; 3] = ["w1", "w3", "w2"];
const GATE: &[&str] = &["gate.weight"];
const FUSED: Option<Fused> =
    Some(Fused { names: &[["experts.gate_up_proj", "experts.down_proj"]], order: Order::Rows });
const FUSED_COLUMNS: Option<Fused> =
    Some(Fused { names: &[["experts.gate_up_proj", "experts.down_proj"]], order: Order::Columns });

const MIXTRAL: Tensors = Tensors {
    router: GATE,
    router_bias: None,
    biases: false,
    bias: &[],
    token_experts: None,
    matrices: Some(NUMBERED),
    fused: FUSED,
    shared: None,
};
const QWEN: Tensors = Tensors {
    router: GATE,
    router_bias: None,
    biases: false,
    bias: &[],
    token_experts: None,
    matrices: PROJECTIONS,
    fused: FUSED,
    shared: None,
};
const DEEPSEEK: Tensors = Tensors {
    router: GATE,
    router_bias: None,
    biases: false,
    bias: &["gate.e_score_correction_bias"],
    token_experts: None,
    matrices: PROJECTIONS,
    fused: FUSED,
    shared: shared_experts(number(&["n_shared_experts"], 1)),
};
const GRANITE: Tensors = Tensors {
    router: &["router.layer.weight", "router.weight"],
    router_bias: None,
    biases: false,
    bias: &[],
    token_experts: None,
    matrices: None,
    fused: Some(Fused {
        names: &[
            ["input_linear.weight", "output_linear.weight"],
            ["experts.gate_up_proj", "experts.down_proj"],
        ],
        order: Order::Rows,
    }),
    shared: None,
};

type Fixed = &'static [(&'static str, &'static [&'static str])];

const SOFTMAX: Fixed = &[("scoring_func", &["\"softmax\""])];
const SOFTMAX_RENORMALIZED: Fixed = &[("scoring_func", &["\"softmax\""]), ("norm_topk_prob", &["true"])];
const SIGMOID: Fixed = &[("scoring_func", &["\"sigmoid\""]), ("topk_method", &["\"noaux_tc\""])];

/// The number of routed experts as DeepSeek's classes call it.
const ROUTED: &[&str] = &["n_routed_experts", "num_local_experts"];
const ROUTED_OR_NUM: &[&str] = &["n_routed_experts", "num_local_experts", "num_experts"];

/// All models, in the order of `docs/CHECKPOINTS.md`.
pub(crate) const MODELS: &[Model] = &[
    Model {
        model_type: "mixtral",
        also: &[],
        class: ("MixtralConfig", "mixtral/configuration_mixtral.py"),
        hidden_size: hidden(4096),
        experts: number(&["num_local_experts", "num_experts"], 8),
        top_k: per_token(2),
        intermediate_size: number(&["intermediate_size"], 14336),
        scoring: Scoring::Softmax(Renormalize::Always),
        activation: SILU,
        fixed: SOFTMAX_RENORMALIZED,
        tensors: MIXTRAL,
    },
    Model {
        model_type: "qwen2_moe",
        also: &[],
        class: ("Qwen2MoeConfig", "qwen2_moe/configuration_qwen2_moe.py"),
        hidden_size: hidden(2048),
        experts: number(&["num_experts"], 60),
        top_k: per_token(4),
        intermediate_size: intermediate(1408),
        scoring: Scoring::Softmax(Renormalize::Key(false)),
        activation: SILU,
        fixed: SOFTMAX,
        tensors: Tensors { shared: gated_shared(5632), ..QWEN },
    },
    Model {
        model_type: "qwen3_moe",
        also: &[],
        class: ("Qwen3MoeConfig", "qwen3_moe/configuration_qwen3_moe.py"),
        hidden_size: hidden(2048),
        experts: number(&["num_experts", "num_local_experts"], 128),
        top_k: per_token(8),
        intermediate_size: intermediate(768),
        scoring: Scoring::Softmax(Renormalize::Key(false)),
        activation: SILU,
        fixed: SOFTMAX,
        tensors: QWEN,
    },
    Model {
        model_type: "qwen3_next",
        also: &[],
        class: ("Qwen3NextConfig", "qwen3_next/configuration_qwen3_next.py"),
        hidden_size: hidden(2048),
        experts: number(&["num_experts"], 512),
        top_k: per_token(10),
        intermediate_size: intermediate(512),
        scoring: Scoring::Softmax(Renormalize::Key(true)),
        activation: SILU,
        fixed: SOFTMAX,
        tensors: Tensors { shared: gated_shared(512), ..QWEN },
    },
    Model {
        model_type: "qwen3_5_moe_text",
        also: &["qwen3_5_moe"],
        class: ("Qwen3_5MoeTextConfig", "qwen3_5_moe/configuration_qwen3_5_moe.py"),
        hidden_size: hidden(2048),
        experts: number(&["num_experts"], 256),
        top_k: per_token(8),
        intermediate_size: intermediate(512),
        scoring: Scoring::Softmax(Renormalize::Always),
        activation: SILU,
        fixed: SOFTMAX_RENORMALIZED,
        tensors: Tensors { shared: gated_shared(512), ..QWEN },
    },
    Model {
        model_type: "qwen3_vl_moe_text",
        also: &["qwen3_vl_moe"],
        class: ("Qwen3VLMoeTextConfig", "qwen3_vl_moe/configuration_qwen3_vl_moe.py"),
        hidden_size: hidden(2048),
        experts: number(&["num_experts", "num_local_experts"], 60),
        top_k: per_token(4),
        intermediate_size: intermediate(1408),
        scoring: Scoring::Softmax(Renormalize::Always),
        activation: SILU,
        fixed: SOFTMAX_RENORMALIZED,
        tensors: Tensors { fused: FUSED_COLUMNS, ..QWEN },
    },
    Model {
        model_type: "qwen3_omni_moe_text",
        also: &["qwen3_omni_moe_thinker", "qwen3_omni_moe"],
        class: ("Qwen3OmniMoeTextConfig", "qwen3_omni_moe/configuration_qwen3_omni_moe.py"),
        hidden_size: hidden(2048),
        experts: number(&["num_experts"], 128),
        top_k: per_token(8),
        intermediate_size: intermediate(768),
        scoring: Scoring::Softmax(Renormalize::Key(true)),
        activation: SILU,
        fixed: SOFTMAX,
        tensors: QWEN,
    },
    Model {
        model_type: "deepseek_v2",
        also: &[],
        class: ("DeepseekV2Config", "deepseek_v2/configuration_deepseek_v2.py"),
        hidden_size: hidden(4096),
        experts: number(&["n_routed_experts", "num_experts"], 64),
        top_k: required(&["num_experts_per_tok"]),
        intermediate_size: intermediate(1407),
        scoring: Scoring::DeepSeekV2,
        // DeepSeek's own code divides by the sum where this is true, the class in transformers does not.
        activation: SILU,
        fixed: &[("scoring_func", &["\"softmax\""]), ("norm_topk_prob", &["false"])],
        tensors: Tensors { bias: &[], shared: shared_experts(number(&["n_shared_experts"], 2)), ..DEEPSEEK },
    },
    Model {
        model_type: "deepseek_v3",
        also: &["kimi_k2", "kimi_k25"],
        class: ("DeepseekV3Config", "deepseek_v3/configuration_deepseek_v3.py"),
        hidden_size: hidden(7168),
        experts: number(ROUTED, 256),
        top_k: per_token(8),
        intermediate_size: intermediate(2048),
        scoring: grouped([8, 4], true, 2.5),
        activation: SILU,
        fixed: SIGMOID,
        tensors: DEEPSEEK,
    },
    Model {
        model_type: "deepseek_v32",
        also: &[],
        class: ("DeepseekV32Config", "deepseek_v32/configuration_deepseek_v32.py"),
        hidden_size: hidden(7168),
        experts: number(ROUTED_OR_NUM, 256),
        top_k: per_token(8),
        intermediate_size: intermediate(2048),
        scoring: grouped([8, 4], true, 2.5),
        activation: SILU,
        fixed: SIGMOID,
        tensors: DEEPSEEK,
    },
    Model {
        model_type: "deepseek_v4",
        also: &[],
        class: ("DeepseekV4Config", "deepseek_v4/configuration_deepseek_v4.py"),
        hidden_size: hidden(4096),
        experts: number(ROUTED, 256),
        top_k: per_token(6),
        intermediate_size: number(&["moe_intermediate_size", "intermediate_size"], 2048),
        scoring: Scoring::SqrtSoftplus(1.5),
        activation: Activation::GatedWithin("hidden_act", "silu", 10.0),
        fixed: &[
            ("scoring_func", &["\"sqrtsoftplus\""]),
            ("topk_method", &["\"noaux_tc\""]),
            ("norm_topk_prob", &["true"]),
            ("n_shared_experts", &["1"]),
            ("n_group", &["1"]),
            ("mlp_bias", &["false"]),
        ],
        tensors: Tensors {
            bias: &["gate.bias", "gate.e_score_correction_bias"],
            token_experts: Some(TokenExperts { name: "gate.tid2eid", layers: 3, vocabulary: 129_280 }),
            matrices: Some(NUMBERED),
            shared: Some(Shared {
                name: "shared_experts",
                matrices: &[NUMBERED, PROJECTED[0]],
                size: SharedSize::Experts(number(&["n_shared_experts"], 1)),
                gate: None,
            }),
            ..DEEPSEEK
        },
    },
    Model {
        model_type: "glm4_moe",
        also: &[],
        class: ("Glm4MoeConfig", "glm4_moe/configuration_glm4_moe.py"),
        hidden_size: hidden(4096),
        experts: number(ROUTED, 128),
        top_k: per_token(8),
        intermediate_size: intermediate(1408),
        scoring: grouped([1, 1], true, 1.0),
        activation: SILU,
        fixed: SIGMOID,
        tensors: DEEPSEEK,
    },
    Model {
        model_type: "glm4v_moe_text",
        also: &["glm4v_moe"],
        class: ("Glm4vMoeTextConfig", "glm4v_moe/configuration_glm4v_moe.py"),
        hidden_size: hidden(4096),
        experts: number(ROUTED, 128),
        top_k: per_token(8),
        intermediate_size: intermediate(1408),
        scoring: grouped([1, 1], true, 1.0),
        activation: SILU,
        fixed: SIGMOID,
        tensors: DEEPSEEK,
    },
    Model {
        model_type: "glm4_moe_lite",
        also: &[],
        class: ("Glm4MoeLiteConfig", "glm4_moe_lite/configuration_glm4_moe_lite.py"),
        hidden_size: hidden(2048),
        experts: number(ROUTED, 64),
        top_k: per_token(4),
        intermediate_size: intermediate(1536),
        scoring: grouped([1, 1], true, 1.8),
        activation: SILU,
        fixed: SIGMOID,
        tensors: DEEPSEEK,
    },
    Model {
        model_type: "glm_moe_dsa",
        also: &[],
        class: ("GlmMoeDsaConfig", "glm_moe_dsa/configuration_glm_moe_dsa.py"),
        hidden_size: hidden(6144),
        experts: number(ROUTED_OR_NUM, 256),
        top_k: per_token(8),
        intermediate_size: intermediate(2048),
        scoring: grouped([1, 1], true, 2.5),
        activation: SILU,
        fixed: SIGMOID,
        tensors: DEEPSEEK,
    },
    Model {
        model_type: "dots1",
        also: &[],
        class: ("Dots1Config", "dots1/configuration_dots1.py"),
        hidden_size: hidden(4608),
        experts: required(ROUTED),
        top_k: required(&["num_experts_per_tok"]),
        intermediate_size: intermediate(1408),
        scoring: grouped([1, 1], false, 1.0),
        activation: SILU,
        fixed: SIGMOID,
        tensors: Tensors { shared: shared_experts(required(&["n_shared_experts"])), ..DEEPSEEK },
    },
    Model {
        model_type: "mimo_v2_flash",
        also: &[],
        class: ("MiMoV2FlashConfig", "mimo_v2_flash/configuration_mimo_v2_flash.py"),
        hidden_size: hidden(4096),
        experts: number(ROUTED, 256),
        top_k: per_token(8),
        intermediate_size: intermediate(2048),
        scoring: grouped([1, 1], true, 1.0),
        activation: SILU,
        fixed: SIGMOID,
        tensors: Tensors { shared: None, ..DEEPSEEK },
    },
    Model {
        model_type: "exaone_moe",
        also: &[],
        class: ("ExaoneMoeConfig", "exaone_moe/configuration_exaone_moe.py"),
        hidden_size: hidden(4096),
        experts: number(&["num_experts"], 64),
        top_k: per_token(8),
        intermediate_size: intermediate(1024),
        scoring: grouped([1, 1], true, 2.5),
        activation: SILU,
        fixed: SIGMOID,
        tensors: Tensors {
            bias: &["e_score_correction_bias", "gate.e_score_correction_bias"],
            shared: shared_experts(number(&["num_shared_experts"], 1)),
            ..DEEPSEEK
        },
    },
    Model {
        model_type: "mistral4",
        also: &[],
        class: ("Mistral4Config", "mistral4/configuration_mistral4.py"),
        hidden_size: hidden(4096),
        experts: number(ROUTED, 128),
        top_k: per_token(4),
        intermediate_size: intermediate(2048),
        scoring: Scoring::Biased {
            sigmoid: false,
            groups: Some([1, 1]),
            renormalize: Renormalize::Key(true),
            factor: Some(1.0),
        },
        activation: SILU,
        fixed: SOFTMAX,
        tensors: Tensors { bias: &[], ..DEEPSEEK },
    },
    Model {
        model_type: "minimax_m2",
        also: &[],
        class: ("MiniMaxM2Config", "minimax_m2/configuration_minimax_m2.py"),
        hidden_size: hidden(3072),
        experts: number(&["num_local_experts", "num_experts"], 256),
        top_k: per_token(8),
        intermediate_size: number(&["intermediate_size"], 1536),
        scoring: Scoring::Biased {
            sigmoid: true,
            groups: None,
            renormalize: Renormalize::Always,
            factor: None,
        },
        activation: SILU,
        fixed: &[
            ("scoring_func", &["\"sigmoid\""]),
            ("use_routing_bias", &["true"]),
            ("shared_intermediate_size", &["0"]),
        ],
        tensors: Tensors { bias: &["e_score_correction_bias"], ..MIXTRAL },
    },
    Model {
        model_type: "ernie4_5_moe",
        also: &[],
        class: ("Ernie4_5_MoeConfig", "ernie4_5_moe/configuration_ernie4_5_moe.py"),
        hidden_size: hidden(2560),
        experts: number(&["moe_num_experts", "num_experts"], 64),
        top_k: number(&["moe_k", "num_experts_per_tok"], 6),
        intermediate_size: intermediate(1536),
        scoring: Scoring::Biased {
            sigmoid: false,
            groups: None,
            renormalize: Renormalize::Always,
            factor: None,
        },
        activation: SILU,
        fixed: &[],
        tensors: Tensors {
            bias: &["moe_statics.e_score_correction_bias", "gate.moe_statics.e_score_correction_bias"],
            shared: shared_experts(number(&["moe_num_shared_experts"], 2)),
            ..DEEPSEEK
        },
    },
    Model {
        model_type: "hunyuan_v1_moe",
        also: &["hunyuan"],
        class: ("HunYuanMoEV1Config", "hunyuan_v1_moe/configuration_hunyuan_v1_moe.py"),
        hidden_size: hidden(4096),
        experts: Number { lists: true, ..number(&["num_experts", "num_local_experts"], 1) },
        top_k: Number { lists: true, ..number(&["moe_topk", "num_experts_per_tok"], 1) },
        intermediate_size: number(&["intermediate_size"], 11008),
        scoring: Scoring::Softmax(Renormalize::Always),
        activation: SILU,
        fixed: SOFTMAX_RENORMALIZED,
        tensors: Tensors {
            router: &["gate.wg.weight"],
            shared: Some(Shared {
                name: "shared_mlp",
                matrices: PROJECTED,
                size: SharedSize::Expert,
                gate: None,
            }),
            ..QWEN
        },
    },
    Model {
        model_type: "granitemoe",
        also: &["granitemoeshared", "granitemoehybrid"],
        class: ("GraniteMoeConfig", "granitemoe/configuration_granitemoe.py"),
        hidden_size: hidden(4096),
        experts: number(&["num_local_experts"], 8),
        top_k: per_token(2),
        intermediate_size: number(&["intermediate_size"], 11008),
        scoring: Scoring::Softmax(Renormalize::Always),
        activation: SILU,
        fixed: SOFTMAX_RENORMALIZED,
        tensors: GRANITE,
    },
    Model {
        model_type: "jamba",
        also: &[],
        class: ("JambaConfig", "jamba/configuration_jamba.py"),
        hidden_size: hidden(4096),
        experts: number(&["num_experts", "num_local_experts"], 16),
        top_k: per_token(2),
        intermediate_size: number(&["intermediate_size"], 14336),
        scoring: Scoring::Softmax(Renormalize::Never),
        activation: SILU,
        fixed: SOFTMAX,
        tensors: Tensors { router: &["router.weight"], ..QWEN },
    },
    Model {
        model_type: "olmoe",
        also: &[],
        class: ("OlmoeConfig", "olmoe/configuration_olmoe.py"),
        hidden_size: hidden(2048),
        experts: number(&["num_experts", "num_local_experts"], 64),
        top_k: per_token(8),
        intermediate_size: number(&["intermediate_size"], 2048),
        scoring: Scoring::Softmax(Renormalize::Key(false)),
        activation: SILU,
        fixed: SOFTMAX,
        tensors: QWEN,
    },
    Model {
        model_type: "llama4_text",
        also: &["llama4"],
        class: ("Llama4TextConfig", "llama4/configuration_llama4.py"),
        hidden_size: hidden(5120),
        experts: number(&["num_local_experts"], 16),
        top_k: per_token(1),
        intermediate_size: number(&["intermediate_size"], 8192),
        scoring: Scoring::SigmoidInput,
        activation: SILU,
        fixed: &[],
        tensors: Tensors {
            router: &["router.weight"],
            fused: FUSED_COLUMNS,
            shared: Some(Shared {
                name: "shared_expert",
                matrices: PROJECTED,
                size: SharedSize::Expert,
                gate: None,
            }),
            ..QWEN
        },
    },
    Model {
        model_type: "gpt_oss",
        also: &[],
        class: ("GptOssConfig", "gpt_oss/configuration_gpt_oss.py"),
        hidden_size: hidden(2880),
        experts: number(&["num_local_experts", "num_experts"], 128),
        top_k: number(&["num_experts_per_tok", "experts_per_token"], 4),
        intermediate_size: number(&["intermediate_size"], 2880),
        scoring: Scoring::Softmax(Renormalize::Always),
        activation: Activation::SwigluOai,
        fixed: SOFTMAX_RENORMALIZED,
        tensors: Tensors {
            router: &["router.weight"],
            router_bias: Some("router.bias"),
            biases: true,
            fused: Some(Fused {
                names: &[["experts.gate_up_proj", "experts.down_proj"]],
                order: Order::Interleaved,
            }),
            ..QWEN
        },
    },
    Model {
        model_type: "nemotron_h",
        also: &[],
        class: ("NemotronHConfig", "nemotron_h/configuration_nemotron_h.py"),
        hidden_size: hidden(4096),
        experts: number(&["n_routed_experts", "num_local_experts"], 8),
        top_k: per_token(2),
        intermediate_size: intermediate(7688),
        scoring: grouped([1, 1], true, 1.0),
        activation: Activation::Relu2("mlp_hidden_act"),
        fixed: &[("moe_latent_size", &["null"]), ("mlp_bias", &["false"])],
        tensors: Tensors {
            matrices: Some(["up_proj", "up_proj", "down_proj"]),
            fused: Some(Fused { names: &[["experts.up_proj", "experts.down_proj"]], order: Order::Rows }),
            shared: Some(Shared {
                name: "shared_experts",
                matrices: PROJECTED,
                size: SharedSize::Own(number(&["moe_shared_expert_intermediate_size"], 7688)),
                gate: None,
            }),
            ..DEEPSEEK
        },
    },
];

/// Models that the loader knows and cannot compute, and what they need.
const REFUSED: &[(&[&str], &str)] = &[
    (&["longcat_flash"], "some of its experts return their input"),
    (&["phimoe"], "its router masks scores before each choice (sparsemixer)"),
];

impl Model {
    /// The row of a `model_type`.
    pub fn of(model_type: &str) -> Option<&'static Model> {
        MODELS.iter().find(|m| m.model_type == model_type || m.also.contains(&model_type))
    }

    /// Whether selection goes by scores with a bias.
    pub fn has_biased_scores(&self) -> bool {
        matches!(self.scoring, Scoring::Biased { .. } | Scoring::SqrtSoftplus(_))
    }

    /// Why a known model is not in the table.
    pub fn refusal(model_type: &str) -> Option<&'static str> {
        REFUSED.iter().find(|(types, _)| types.contains(&model_type)).map(|&(_, why)| why)
    }

    /// The names of all rows, for errors.
    pub fn names() -> String {
        MODELS.iter().map(|m| m.model_type).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::{MODELS, Model, REFUSED};
    use std::collections::BTreeSet;

    #[test]
    fn each_type_has_one_row() {
        let mut seen = BTreeSet::new();
        let refused = REFUSED.iter().flat_map(|(types, _)| types.iter());
        let types = MODELS.iter().flat_map(|m| std::iter::once(&m.model_type).chain(m.also)).chain(refused);
        for model_type in types {
            assert!(seen.insert(model_type), "{model_type} stands twice");
        }
        assert_eq!(Model::of("kimi_k2").expect("a row").model_type, "deepseek_v3");
        assert!(Model::of("phimoe").is_none() && Model::refusal("phimoe").is_some());
    }

    #[test]
    fn rows_are_documented() {
        let docs = include_str!("../../docs/CHECKPOINTS.md");
        for model in MODELS {
            let row = docs.lines().find(|line| line.starts_with(&format!("| `{}`", model.model_type)));
            let row = row.unwrap_or_else(|| panic!("no row for {}", model.model_type));
            assert!(row.split('|').nth(4).is_some_and(|fixture| fixture.contains('`')), "{row}");
        }
    }

    #[test]
    fn rows_name_their_class() {
        for model in MODELS {
            let (class, file) = model.class;
            assert!(class.ends_with("Config") && file.ends_with(".py"), "{}", model.model_type);
            assert!(
                model.tensors.matrices.is_some() || model.tensors.fused.is_some(),
                "{}",
                model.model_type
            );
        }
    }
}
