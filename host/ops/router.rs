//! The router: logits of the gate, and the choice of experts.
//!
//! ```text
//! hidden_states --router_logits--> logits [T, E] --softmax_top_k--------.
//! [T, H]                                         --grouped_top_k--------+--> topk_ids, topk_weights [T, k]
//!                                                --sigmoid_top_k--------|
//!                                                --sqrt_softplus_top_k--'
//! ```
//!
//! Where scores select, ids are in descending order of what selects, ties go to the lowest id, and no expert
//! is picked twice. With no tokens nothing is launched.
//!
//! Experts that every token has take the slots behind the picked ones, as experts `E`, `E + 1`, ..
//! ([`SharedSlots`]); [`append_shared`] gives them to a routing of the caller's.

use half::bf16;

use crate::config::Tuning;
use crate::error::{Error, Result, require};
use crate::gpu::buffer::{Slice, SliceMut};
use crate::gpu::launch::DevicePtr;
use crate::gpu::stream::Stream;
use crate::kernels::launchers;
use crate::ops::quantize::Activations;
use crate::plan::rows::BLOCKS_PER_MULTIPROCESSOR;
use crate::plan::{checked_i32, elements};

pub use crate::plan::router::RouterLogitsPath;

/// Arguments of [`router_logits`].
#[derive(Debug)]
pub struct RouterLogits<'a> {
    /// T.
    pub tokens: usize,
    /// E.
    pub experts: usize,
    /// H.
    pub hidden: usize,
    /// bf16 or f16 `[T, H]`.
    pub hidden_states: Activations<'a>,
    /// bf16 `[planes, E, H]`: the gate is the sum of its planes.
    pub gate: Slice<'a, bf16>,
    /// 1, or for a gate in f32 as many as hold it, see [`bf16_planes`].
    pub planes: usize,
    /// f32 `[E]`, added to each token's logits.
    pub bias: Option<Slice<'a, f32>>,
    /// f32 `[T, E]`.
    pub logits: SliceMut<'a, f32>,
    /// Which kernel; they differ in the order of the sum. States in f16 are for [`RouterLogitsPath::Few`] in
    /// any case.
    pub path: RouterLogitsPath,
}

/// The bf16 planes whose sum is `gate`, one behind the other: as few as hold it, at most three.
///
/// Each holds 8 bits of what the planes before left, so that three hold the 24 of an f32 exactly; but for
/// bits below 2^-133, the smallest number of bf16.
pub fn bf16_planes(gate: &[f32]) -> Vec<bf16> {
    let mut rest = gate.to_vec();
    let mut planes = Vec::new();
    for plane in 0..3 {
        if plane > 0 && rest.iter().all(|&r| r == 0.0) {
            break;
        }
        planes.extend(rest.iter_mut().map(|r| {
            // Rounding a number near the largest up would give infinity: what lies above bf16's range is cut.
            let part = bf16::from_f32(*r).clamp(bf16::MIN, bf16::MAX);
            *r -= part.to_f32();
            part
        }));
    }
    planes
}

/// `logits = hidden_states * gate^T`, accumulated in f32 in a fixed order.
///
/// # Errors
/// Sizes that the kernels cannot have; arrays that are too short, not aligned or on another device.
pub fn router_logits(stream: &Stream, args: RouterLogits<'_>) -> Result<()> {
    const OP: &str = "router_logits";
    let tokens = checked_i32(OP, "tokens", args.tokens)?;
    let experts = checked_i32(OP, "experts", args.experts)?;
    let hidden = checked_i32(OP, "hidden", args.hidden)?;
    require(experts >= 1, OP, "experts", experts, || "must be at least 1".into())?;
    args.hidden_states.check(OP, "hidden_states", args.tokens * args.hidden, stream)?;
    require((1..=3).contains(&args.planes), OP, "planes", args.planes, || "must be in 1..=3".into())?;
    args.gate.check(OP, "gate", args.planes * args.experts * args.hidden, stream)?;
    if let Some(bias) = &args.bias {
        bias.check(OP, "bias", args.experts, stream)?;
    }
    args.logits.check(OP, "logits", args.tokens * args.experts, stream)?;
    let is_f16 = matches!(args.hidden_states, Activations::F16(_));
    let path = if is_f16 {
        RouterLogitsPath::Few
    } else {
        args.path.resolve(args.tokens, args.experts, Tuning::h200())
    };
    path.check(OP, args.tokens, args.experts)?;
    if tokens == 0 {
        return Ok(());
    }
    let hidden_states = match &args.hidden_states {
        Activations::Bf16(states) => states.ptr().cast(),
        Activations::F16(states) => states.ptr().cast(),
        Activations::F32(_) => {
            return Err(Error::argument(OP, "hidden_states", "f32", "must be bf16 or f16"));
        }
    };
    let (kernel, grid) = path.launch(tokens, experts, is_f16);
    let arguments = launchers::RouterLogits {
        hidden_states,
        gate: args.gate.ptr(),
        bias: args.bias.map_or(DevicePtr::null(), |bias| bias.ptr()),
        logits: args.logits.ptr(),
        tokens,
        experts,
        hidden,
        planes: args.planes as u32,
    };
    // SAFETY: the three matrices were checked to have their sizes on this device, and the grid to reach all
    // tokens and experts.
    unsafe { stream.device().launch(stream, &kernel, grid, &arguments) }
}

/// Slots behind the picked ones of every token, for experts that all tokens have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SharedSlots {
    /// How many: s.
    pub count: usize,
    /// Whether their weight is the sigmoid of one more logit, behind those of the experts; else it is 1.
    pub gated: bool,
}

/// What all top-k operations read and write.
#[derive(Debug)]
pub struct TopK<'a> {
    /// T.
    pub tokens: usize,
    /// E.
    pub experts: usize,
    /// k, at most E.
    pub top_k: usize,
    /// s, and whether they have a gate.
    pub shared: SharedSlots,
    /// f32 `[T, E]`; `[T, E + 1]` with a gate.
    pub logits: Slice<'a, f32>,
    /// i32 `[T, k + s]`.
    pub topk_ids: SliceMut<'a, i32>,
    /// f32 `[T, k + s]`.
    pub topk_weights: SliceMut<'a, f32>,
}

/// Slots of all tokens, `T * (k + s)`; refused where ids would not be i32, or slots could not be counted.
fn shared_slots(
    op: &'static str,
    tokens: usize,
    experts: usize,
    top_k: usize,
    shared: usize,
) -> Result<usize> {
    let most = i32::MAX as usize - experts;
    require(shared <= most, op, "shared", shared, || format!("must be at most {most}"))?;
    elements(op, "tokens", &[tokens, top_k + shared])
}

impl TopK<'_> {
    fn check(&self, op: &'static str, stream: &Stream) -> Result<()> {
        checked_i32(op, "tokens", self.tokens)?;
        checked_i32(op, "experts", self.experts)?;
        require(self.experts >= 1, op, "experts", self.experts, || "must be at least 1".into())?;
        require((1..=self.experts).contains(&self.top_k), op, "top_k", self.top_k, || {
            format!("must be in 1..={}, the number of experts", self.experts)
        })?;
        let columns = self.experts + usize::from(self.shared.gated);
        let slots = shared_slots(op, self.tokens, self.experts, self.top_k, self.shared.count)?;
        self.logits.check(op, "logits", self.tokens * columns, stream)?;
        self.topk_ids.check(op, "topk_ids", slots, stream)?;
        self.topk_weights.check(op, "topk_weights", slots, stream)
    }

    fn blocks(&self) -> u32 {
        (self.tokens as u32).div_ceil(launchers::TOP_K_TOKENS_PER_BLOCK)
    }

    /// As kernels take it.
    fn raw(&self) -> launchers::TopK {
        launchers::TopK {
            logits: self.logits.ptr(),
            topk_ids: self.topk_ids.ptr(),
            topk_weights: self.topk_weights.ptr(),
            tokens: self.tokens as u32,
            experts: self.experts as u32,
            top_k: self.top_k as u32,
            shared: self.shared.count as u32,
            shared_gate: self.shared.gated,
        }
    }

    /// Shared memory for `words` words to a token.
    fn shared_bytes(&self, op: &'static str, words: usize, stream: &Stream) -> Result<u32> {
        let bytes = launchers::top_k_shared_bytes(words);
        let most = stream.device().shared_per_block() as usize;
        require(bytes <= most, op, "experts", self.experts, || {
            let most = most / launchers::top_k_shared_bytes(1);
            format!("must be at most {most} with their groups on this device")
        })?;
        Ok(bytes as u32)
    }
}

/// Softmax over all experts, the k largest; weights are divided by their sum (by 1 if it is not positive) if
/// `renormalize`.
///
/// A NaN or infinite score counts as 0. A row with a NaN or +inf logit has only such scores: its weights are
/// 0.
///
/// # Errors
/// Sizes that the kernels cannot have; arrays that are too short or on another device.
pub fn softmax_top_k(stream: &Stream, args: TopK<'_>, renormalize: bool) -> Result<()> {
    const OP: &str = "softmax_top_k";
    args.check(OP, stream)?;
    let shared_bytes = args.shared_bytes(OP, args.experts, stream)?;
    let kernel = launchers::SOFTMAX_TOP_K.with_shared(shared_bytes);
    let arguments = launchers::SoftmaxTopK { of: args.raw(), renormalize };
    // SAFETY: lengths, device and k were checked above.
    unsafe { stream.device().launch(stream, &kernel, args.blocks(), &arguments) }
}

/// How [`grouped_top_k`] scores, selects and weights.
#[derive(Debug)]
pub struct Grouped<'a> {
    /// Scores are sigmoids of the logits; else their softmax.
    pub sigmoid: bool,
    /// f32 `[E]`, added to the scores in selection.
    pub correction_bias: Option<Slice<'a, f32>>,
    /// Groups that the experts are cut into; divides E.
    pub groups: usize,
    /// Groups that experts are picked from.
    pub topk_group: usize,
    /// Divide the weights by (their sum + 1e-20).
    pub renormalize: bool,
    /// Factor of all weights.
    pub routed_scaling_factor: f32,
}

/// The best groups of experts, then the k best experts in them.
///
/// A group's score is its best score, or with a correction bias the sum of its two best biased scores.
/// Weights are unbiased. A NaN or infinite score counts as 0.
///
/// # Errors
/// Those of [`softmax_top_k`]; groups that do not divide the experts, or have too few.
pub fn grouped_top_k(stream: &Stream, args: TopK<'_>, grouped: Grouped<'_>) -> Result<()> {
    const OP: &str = "grouped_top_k";
    args.check(OP, stream)?;
    let Grouped { groups, topk_group, .. } = grouped;
    require(groups >= 1 && args.experts.is_multiple_of(groups), OP, "groups", groups, || {
        format!("must divide the {} experts", args.experts)
    })?;
    require((1..=groups).contains(&topk_group), OP, "topk_group", topk_group, || {
        format!("must be in 1..={groups}, the number of groups")
    })?;
    let candidates = topk_group * (args.experts / groups);
    require(args.top_k <= candidates, OP, "top_k", args.top_k, || {
        format!("must be at most {candidates}, the experts in {topk_group} groups")
    })?;
    let factor = grouped.routed_scaling_factor;
    require(factor.is_finite(), OP, "routed_scaling_factor", factor, || "must be finite".into())?;
    if let Some(bias) = &grouped.correction_bias {
        bias.check(OP, "correction_bias", args.experts, stream)?;
    }
    let shared_bytes = args.shared_bytes(OP, args.experts + groups, stream)?;
    let kernel = launchers::GROUPED_TOP_K.with_shared(shared_bytes);
    let arguments = launchers::GroupedTopK {
        of: args.raw(),
        correction_bias: grouped.correction_bias.map_or(DevicePtr::null(), |bias| bias.ptr()),
        groups: groups as u32,
        topk_group: topk_group as u32,
        softmax_scores: !grouped.sigmoid,
        renormalize: grouped.renormalize,
        routed_scaling_factor: factor,
    };
    // SAFETY: lengths, device and all counts were checked above.
    unsafe { stream.device().launch(stream, &kernel, args.blocks(), &arguments) }
}

/// Llama 4: the k largest logits, weighted by their sigmoid. The weight is for the expert's input, not for
/// its output. NaN is below all numbers and has weight 0.
///
/// # Errors
/// Those of [`softmax_top_k`].
pub fn sigmoid_top_k(stream: &Stream, args: TopK<'_>) -> Result<()> {
    const OP: &str = "sigmoid_top_k";
    args.check(OP, stream)?;
    // SAFETY: lengths, device and k were checked above.
    unsafe { stream.device().launch(stream, &launchers::SIGMOID_TOP_K, args.blocks(), &args.raw()) }
}

/// How [`sqrt_softplus_top_k`] chooses experts.
#[derive(Debug)]
#[non_exhaustive]
pub enum Choice<'a> {
    /// The k best by score and bias.
    ByScore {
        /// f32 `[E]`, added to the scores in selection.
        correction_bias: Option<Slice<'a, f32>>,
    },
    /// Those that a table has for the token's id, in its order.
    ByToken {
        /// i32 `[V, k]`. Where there is no expert of that number, the slot's id is -1 and its weight 0.
        token_experts: Slice<'a, i32>,
        /// V.
        vocabulary: usize,
        /// i32 `[T]`. All slots of a token whose id is not in `0..V` are -1, with weight 0.
        token_ids: Slice<'a, i32>,
    },
}

/// How [`sqrt_softplus_top_k`] chooses and weighs.
#[derive(Debug)]
pub struct SqrtSoftplus<'a> {
    /// Who chooses.
    pub choice: Choice<'a>,
    /// Divide the weights by (their sum + 1e-20).
    pub renormalize: bool,
    /// Factor of all weights.
    pub routed_scaling_factor: f32,
}

/// DeepSeek-V4: scores are `sqrt(ln(1 + e^logit))`, which weigh the experts, and with a bias choose them
/// where no table does. A NaN or infinite score counts as 0.
///
/// # Errors
/// Those of [`softmax_top_k`]; a table without rows.
pub fn sqrt_softplus_top_k(stream: &Stream, args: TopK<'_>, scoring: SqrtSoftplus<'_>) -> Result<()> {
    const OP: &str = "sqrt_softplus_top_k";
    args.check(OP, stream)?;
    let factor = scoring.routed_scaling_factor;
    require(factor.is_finite(), OP, "routed_scaling_factor", factor, || "must be finite".into())?;
    let mut arguments = launchers::SqrtSoftplusTopK {
        of: args.raw(),
        correction_bias: DevicePtr::null(),
        token_experts: DevicePtr::null(),
        token_ids: DevicePtr::null(),
        vocabulary: 0,
        renormalize: scoring.renormalize,
        routed_scaling_factor: factor,
    };
    let shared_bytes = match &scoring.choice {
        Choice::ByScore { correction_bias } => {
            if let Some(bias) = correction_bias {
                bias.check(OP, "correction_bias", args.experts, stream)?;
                arguments.correction_bias = bias.ptr();
            }
            args.shared_bytes(OP, args.experts, stream)?
        }
        Choice::ByToken { token_experts, vocabulary, token_ids } => {
            arguments.vocabulary = checked_i32(OP, "vocabulary", *vocabulary)?;
            require(*vocabulary >= 1, OP, "vocabulary", vocabulary, || "must be at least 1".into())?;
            let entries = elements(OP, "vocabulary", &[*vocabulary, args.top_k])?;
            token_experts.check(OP, "token_experts", entries, stream)?;
            token_ids.check(OP, "token_ids", args.tokens, stream)?;
            (arguments.token_experts, arguments.token_ids) = (token_experts.ptr(), token_ids.ptr());
            0
        }
    };
    let kernel = launchers::SQRT_SOFTPLUS_TOP_K.with_shared(shared_bytes);
    // SAFETY: lengths, device and all counts were checked above; the table is not null, as it has elements.
    unsafe { stream.device().launch(stream, &kernel, args.blocks(), &arguments) }
}

/// Arguments of [`append_shared`].
#[derive(Debug)]
pub struct AppendShared<'a> {
    /// T.
    pub tokens: usize,
    /// E.
    pub experts: usize,
    /// k.
    pub top_k: usize,
    /// s, at least 1.
    pub shared: usize,
    /// i32 `[T, k]`. Ids outside `0..E` become -1.
    pub given_ids: Slice<'a, i32>,
    /// f32 `[T, k]`.
    pub given_weights: Slice<'a, f32>,
    /// f32 `[T]`: the weight of a token's shared experts is the sigmoid of its logit; without, it is 1.
    pub gate_logits: Option<Slice<'a, f32>>,
    /// i32 `[T, k + s]`.
    pub topk_ids: SliceMut<'a, i32>,
    /// f32 `[T, k + s]`.
    pub topk_weights: SliceMut<'a, f32>,
}

/// Puts the experts that every token has, `E .. E + s`, behind the slots of a given routing. One launch.
///
/// # Errors
/// Arrays that are too short or on another device; no shared expert; more slots than can be counted.
pub fn append_shared(stream: &Stream, args: AppendShared<'_>) -> Result<()> {
    const OP: &str = "append_shared";
    let tokens = checked_i32(OP, "tokens", args.tokens)?;
    let experts = checked_i32(OP, "experts", args.experts)?;
    let top_k = checked_i32(OP, "top_k", args.top_k)?;
    require(args.shared > 0, OP, "shared", args.shared, || "must be at least 1".into())?;
    let slots = shared_slots(OP, args.tokens, args.experts, args.top_k, args.shared)?;
    args.given_ids.check(OP, "given_ids", args.tokens * args.top_k, stream)?;
    args.given_weights.check(OP, "given_weights", args.tokens * args.top_k, stream)?;
    if let Some(logits) = &args.gate_logits {
        logits.check(OP, "gate_logits", args.tokens, stream)?;
    }
    args.topk_ids.check(OP, "topk_ids", slots, stream)?;
    args.topk_weights.check(OP, "topk_weights", slots, stream)?;
    if tokens == 0 {
        return Ok(());
    }
    let arguments = launchers::AppendShared {
        given_ids: args.given_ids.ptr(),
        given_weights: args.given_weights.ptr(),
        gate_logits: args.gate_logits.map_or(DevicePtr::null(), |logits| logits.ptr()),
        topk_ids: args.topk_ids.ptr(),
        topk_weights: args.topk_weights.ptr(),
        tokens,
        experts,
        top_k,
        shared: args.shared as u32,
    };
    let most = stream.device().multiprocessors() * BLOCKS_PER_MULTIPROCESSOR;
    let blocks = tokens.div_ceil(launchers::APPEND_SHARED_THREADS).min(most);
    // SAFETY: every array was checked to have its extent on this device.
    unsafe { stream.device().launch(stream, &launchers::APPEND_SHARED, blocks, &arguments) }
}
