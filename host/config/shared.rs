//! Shared experts: what one is, and how it runs beside the layer's own.

use super::{Gather, MoeConfig, Quantization, Reduction, Routing, SCALE_BLOCK, WeightScales};

/// An expert that every token has, beside the chosen ones: `out[t] += g(t) * shared(x[t])`.
///
/// `shared` is one gated MLP, which several experts side by side are too: `g` is 1, or `sigmoid(x . w_gate)`.
///
/// | how it is computed | where | launches |
/// |---|---|---|
/// | as `s = intermediate_size / I` more experts of the grouped GEMMs | it is quantised as the layer is, and its intermediate is `s` times the layer's | none |
/// | beside them on the same stream, before them | it is quantised otherwise, of another size, or in bf16 | a layer of one expert, or in bf16 three and one for a gate |
///
/// Either way its output is part of the sum that is rounded once. As experts they are numbers `E .. E + s`,
/// in the slots behind those that the router fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SharedExpert {
    /// Columns of its intermediate; a multiple of 16.
    pub intermediate_size: usize,
    /// What its matrices are.
    pub weights: SharedKind,
    /// Whether its output is weighed by the sigmoid of a logit: Qwen2-MoE, Qwen3-Next.
    pub gate: bool,
}

impl SharedExpert {
    /// Without a gate.
    pub fn new(intermediate_size: usize, weights: SharedKind) -> SharedExpert {
        SharedExpert { intermediate_size, weights, gate: false }
    }

    /// With [`SharedExpert::gate`] or without.
    pub fn gate(self, gate: bool) -> SharedExpert {
        SharedExpert { gate, ..self }
    }
}

/// What the matrices of a shared expert are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SharedKind {
    /// e4m3 with scales, its activations quantised too.
    Quantised(Quantization),
    /// bf16, with hidden states in bf16 as they are, and an intermediate rounded to bf16. Weights in f32 or
    /// f16 are up to three planes of bf16 whose sum they are.
    Bf16,
}

/// How a shared expert runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SharedRun {
    /// There is none.
    None,
    /// As so many experts of the grouped GEMMs.
    Slots(usize),
    /// Beside them.
    Beside,
}

impl MoeConfig {
    /// How the shared expert runs.
    pub(crate) fn shared_run(&self) -> SharedRun {
        /// Parts that a shared expert is cut into at most.
        const MOST: usize = 8;
        let Some(shared) = self.shared else { return SharedRun::None };
        let parts = shared.intermediate_size / self.intermediate_size.max(1);
        let is_whole = parts * self.intermediate_size == shared.intermediate_size;
        // The scales of each part must be whole blocks.
        let has_blocks = self.quantization.weights() == WeightScales::Block128;
        let cuts = parts == 1 || !has_blocks || self.intermediate_size.is_multiple_of(SCALE_BLOCK);
        let is_alike = shared.weights == SharedKind::Quantised(self.quantization);
        if is_alike && is_whole && cuts && (1..=MOST).contains(&parts) {
            SharedRun::Slots(parts)
        } else {
            SharedRun::Beside
        }
    }

    /// s: slots of a token that a shared expert takes.
    pub(crate) fn shared_slots(&self) -> usize {
        match self.shared_run() {
            SharedRun::Slots(slots) => slots,
            SharedRun::None | SharedRun::Beside => 0,
        }
    }

    /// Whether a row of logits has one more, that of the shared expert's weight.
    pub(crate) fn routes_shared(&self) -> bool {
        self.shared_slots() > 0 && self.shared.is_some_and(|shared| shared.gate)
    }

    /// The layer of one expert that a quantised shared expert beside this layer is.
    pub(crate) fn shared_layer(&self) -> Option<MoeConfig> {
        let SharedExpert { intermediate_size, weights, gate } = self.shared?;
        let (SharedKind::Quantised(quantization), SharedRun::Beside) = (weights, self.shared_run()) else {
            return None;
        };
        let routing = match gate {
            true => Routing::Grouped {
                sigmoid: true,
                groups: 1,
                topk_group: 1,
                renormalize: false,
                scaling_factor: 1.0,
            },
            // Of one expert: a weight of 1.
            false => Routing::Softmax { renormalize: true },
        };
        Some(MoeConfig {
            intermediate_size,
            experts: 1,
            top_k: 1,
            routing,
            quantization,
            reduction: Reduction::Deterministic,
            gather: Gather::Auto,
            shared: None,
            local_experts: None,
            ..self.clone()
        })
    }
}
