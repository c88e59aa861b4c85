//! The layer behind the router in one launch.

use super::call::{Hidden, Routed};
use super::step::Call;
use crate::config::{ActivationScales, MoeConfig, Routing};
use crate::error::Result;
use crate::gpu::buffer::SliceMut;
use crate::gpu::stream::Stream;
use crate::ops::few_tokens::{Control, FewTokens, Input, InputScales, Projection, few_tokens};
use crate::ops::quantize::{Activations, ActivationsMut};
use crate::plan::few_tokens::FewTokensPlan;

/// The memory of the launch.
pub(super) struct Work<'a> {
    pub expert_offsets: SliceMut<'a, i64>,
    /// Control words that every launch leaves ready for the next.
    pub control: Option<Control<'a>>,
    /// Else these, which hold anything.
    pub spare: SliceMut<'a, u32>,
}

impl Call<'_> {
    /// Enqueues it. The result is added to `out.0` if `out.1`.
    pub(super) fn few_tokens(
        &self,
        stream: &Stream,
        plan: &FewTokensPlan,
        hidden: Hidden<'_>,
        routed: Routed<'_>,
        work: Work<'_>,
        (out, adds): (ActivationsMut<'_>, bool),
    ) -> Result<()> {
        let MoeConfig { top_k, experts, routing, .. } = *self.config;
        let Work { expert_offsets, control, spare } = work;
        let control = match control {
            Some(control) => control,
            None => Control::cleared(spare, stream)?,
        };
        let inputs = |scales, index: usize| match scales {
            ActivationScales::Static => InputScales::Given(self.weights.input_scales[index].as_slice()),
            ActivationScales::Token => InputScales::Row,
            ActivationScales::Group128 => InputScales::Group,
        };
        let first = Projection {
            weights: self.weights.w13.as_slice(),
            scales: self.w13_scale(),
            inputs: inputs(self.config.first_scales(), 0),
        };
        let second = Projection {
            weights: self.weights.w2.as_slice(),
            scales: self.w2_scale(),
            inputs: inputs(self.config.second_scales(), 1),
        };
        let args = FewTokens {
            plan,
            tokens: self.plan.tokens(),
            top_k,
            experts,
            local_experts: self.config.local_count(),
            hidden: match hidden {
                Hidden::Bf16(hidden) => Input::Activations(Activations::Bf16(hidden)),
                Hidden::F16(hidden) => Input::Activations(Activations::F16(hidden)),
                Hidden::Quantised { values, scales, layout } => Input::Quantised { values, scales, layout },
            },
            topk_ids: routed.topk_ids,
            topk_weights: routed.topk_weights,
            expert_map: self.weights.expert_map.as_ref().map(|map| map.as_slice()),
            weighs_input: routing == Routing::SigmoidInput,
            first,
            second,
            gating: self.config.gating(),
            expert_offsets,
            control,
            out,
            adds,
        };
        few_tokens(stream, args)
    }
}
