//! The operations of one forward, in order.

use half::bf16;

use super::OP;
use super::call::{Hidden, Output, Request, Routed, no_token_ids};
use super::few_tokens::Work;
use super::step::Call;
use crate::config::{ActivationScales, GROUP, MoeConfig, Reduction, Routing};
use crate::error::Result;
use crate::fp8::E4m3;
use crate::gpu::buffer::{Slice, SliceMut};
use crate::gpu::stream::Stream;
use crate::ops::activation::{Activation, ActivationShape, Requantization, activation};
use crate::ops::cast::{Cast, cast};
use crate::ops::gated_gemm::{GatedGemm, GatedPlan, gated_gemm, gated_gemm_with_settled_schedule};
use crate::ops::grouped_gemm::{
    AScale, GemmOut, GemmPlan, GroupedGemm, TokenSums, grouped_gemm_with_settled_schedule,
};
use crate::ops::permutation::Permutation;
use crate::ops::permute::{
    Permute, PermutePath, PermuteRows, PermuteScales, ScaleLayout, permute, permute_rows,
};
use crate::ops::problem_sizes::TileScheduleOut;
use crate::ops::quantize::{
    Activations, ActivationsMut, Destinations, Quantize, QuantizeShape, Scheme, quantize_with_settled_input,
};
use crate::ops::router::{
    Choice, Grouped, RouterLogits, SharedSlots, SqrtSoftplus, TopK, grouped_top_k, router_logits,
    sigmoid_top_k, softmax_top_k, sqrt_softplus_top_k,
};
use crate::ops::unpermute::{Unpermute, unpermute_and_discard, unpermute_with_settled_routing};
use crate::plan::{First, SharedPlan};

/// The parts of a workspace that a shared expert beside the others uses.
pub(super) struct SharedParts<'a> {
    pub products: SliceMut<'a, f32>,
    pub middle: SliceMut<'a, bf16>,
    pub logits: SliceMut<'a, f32>,
    pub layer: SliceMut<'a, u8>,
}

/// How expert outputs become the layer's output.
enum End<'a> {
    /// GEMM 2 writes them, and a kernel behind it adds them up; and to the output, if `adds`.
    Unpermute { out: ActivationsMut<'a>, adds: bool },
    /// The quantisation sets the sums to 0, and GEMM 2 adds to them. Two kernels lie between, so that GEMM 2,
    /// which waits for the second, finds them cleared. Outputs that are not f32 are cast from them, or added
    /// to.
    Add { sums: SliceMut<'a, f32>, clears: bool, cast_to: Option<(ActivationsMut<'a>, bool)> },
}

/// The memory of the permutation.
struct Lists<'a> {
    expert_offsets: SliceMut<'a, i64>,
    sorted_rows: SliceMut<'a, i32>,
    inverse: SliceMut<'a, i32>,
    schedule: SliceMut<'a, [u32; 4]>,
}

/// Hidden states that came quantised.
#[derive(Clone, Copy)]
struct Given<'a> {
    values: Slice<'a, E4m3>,
    scales: Option<Slice<'a, f32>>,
    layout: ScaleLayout,
}

/// The workspace behind the routing and the permutation, cut up.
struct Parts<'a> {
    quantised: SliceMut<'a, E4m3>,
    scales: SliceMut<'a, f32>,
    intermediate: SliceMut<'a, E4m3>,
    intermediate_scales: SliceMut<'a, f32>,
    partials: SliceMut<'a, u8>,
    products: SliceMut<'a, u8>,
}

/// Takes parts off the front of a workspace, in the order of the layout.
struct Cutter<'a> {
    rest: SliceMut<'a, u8>,
    position: usize,
}

impl<'a> Cutter<'a> {
    fn take<T: bytemuck::Pod>(&mut self, range: &std::ops::Range<usize>) -> SliceMut<'a, T> {
        let device = self.rest.device();
        let rest = std::mem::replace(&mut self.rest, SliceMut::empty(device));
        let (_, rest) = rest.split_at(range.start - self.position);
        let (part, rest) = rest.split_at(range.len());
        (self.rest, self.position) = (rest, range.end);
        part.cast()
    }
}

impl Call<'_> {
    /// Enqueues everything. The request has been checked; its workspace is as long as the plan says.
    pub fn enqueue(&self, stream: &Stream, request: Request<'_>) -> Result<()> {
        let is_aligned = request.is_aligned();
        let Request { hidden, routed, token_ids, workspace, control, out, .. } = request;
        let adds = matches!(out, Output::Add(_));
        let (Output::Write(mut out) | Output::Add(mut out)) = out;
        let layout = &self.plan.layout;
        let mut cutter = Cutter { rest: workspace, position: 0 };
        let logits = cutter.take(&layout.logits);
        let mut topk_ids = cutter.take(&layout.topk_ids);
        let mut topk_weights = cutter.take(&layout.topk_weights);
        let lists = Lists {
            expert_offsets: cutter.take(&layout.expert_offsets),
            sorted_rows: cutter.take(&layout.sorted_rows),
            inverse: cutter.take(&layout.inverse),
            schedule: cutter.take(&layout.schedule),
        };
        let mut parts = Parts {
            quantised: cutter.take(&layout.quantised),
            scales: cutter.take(&layout.scales),
            intermediate: cutter.take(&layout.intermediate),
            intermediate_scales: cutter.take(&layout.intermediate_scales),
            partials: cutter.take(&layout.partials),
            products: cutter.take(&layout.products),
        };
        let mut sums = cutter.take(&layout.sums);
        let mut shared = cutter.take(&layout.shared);
        let shared_parts = SharedParts {
            products: cutter.take(&layout.shared_products),
            middle: cutter.take(&layout.shared_middle),
            logits: cutter.take(&layout.shared_logits),
            layer: cutter.take(&layout.shared_layer),
        };
        let spare = cutter.take(&layout.control);
        let is_beside = !matches!(self.plan.shared, SharedPlan::None);
        if is_beside {
            self.step(0);
            let target = match (self.config.reduction, &mut out) {
                (Reduction::Deterministic, _) => shared.reborrow(),
                (Reduction::OrderFree, ActivationsMut::F32(out)) => out.reborrow(),
                (Reduction::OrderFree, _) => sums.reborrow(),
            };
            self.shared_beside(stream, hidden, shared_parts, target)?;
        }
        let routed = match routed {
            Some(given) => {
                let (ids, weights) = (topk_ids.reborrow(), topk_weights.reborrow());
                if self.append_shared(stream, hidden, given, logits, ids, weights)? {
                    Routed { topk_ids: topk_ids.as_slice(), topk_weights: topk_weights.as_slice() }
                } else {
                    given
                }
            }
            None => {
                self.step(1);
                let hidden = match hidden {
                    Hidden::Bf16(hidden) => Activations::Bf16(hidden),
                    Hidden::F16(hidden) => Activations::F16(hidden),
                    Hidden::Quantised { .. } => {
                        let rule = "must be bf16 or f16";
                        return Err(crate::Error::argument(OP, "hidden", hidden.type_name(), rule));
                    }
                };
                let (ids, weights) = (topk_ids.reborrow(), topk_weights.reborrow());
                self.route(stream, hidden, token_ids, logits, ids, weights)?;
                Routed { topk_ids: topk_ids.as_slice(), topk_weights: topk_weights.as_slice() }
            }
        };
        if self.config.slot_local_experts() == 0 {
            return if adds { Ok(()) } else { out.fill_bytes(0, stream) };
        }
        if let Some(plan) = &self.plan.few_tokens
            && is_aligned
        {
            self.step(9);
            let expert_offsets = lists.expert_offsets;
            let work = Work { expert_offsets, control, spare };
            return self.few_tokens(stream, plan, hidden, routed, work, (out, adds));
        }
        let mut end = match (self.config.reduction, out) {
            (Reduction::Deterministic, out) => End::Unpermute { out, adds },
            (Reduction::OrderFree, ActivationsMut::F32(out)) => {
                End::Add { sums: out, clears: !adds && !is_beside, cast_to: None }
            }
            (Reduction::OrderFree, out) => End::Add { sums, clears: !is_beside, cast_to: Some((out, adds)) },
        };
        self.step(2);
        let mut permutation = self.permute(stream, routed, lists)?;
        self.step(3);
        let given = self.quantize(stream, hidden, routed, &permutation, &mut parts, &mut end)?;
        self.step(4);
        match &self.plan.first {
            First::Gated(plan) => self.gated_gemm(stream, plan, given, permutation.reborrow(), &mut parts)?,
            First::Apart(plan) => {
                self.first_gemm(stream, plan, permutation.reborrow(), &mut parts)?;
                self.step(5);
                self.activate(stream, &permutation, &mut parts)?;
            }
        }
        self.step(6);
        self.second_gemm(stream, routed, permutation.reborrow(), &mut parts, &mut end)?;
        match end {
            End::Unpermute { out, adds } => {
                self.step(7);
                let addend = is_beside.then(|| shared.as_slice());
                self.unpermute(stream, routed, &permutation, &mut parts, addend, (out, adds))
            }
            End::Add { cast_to: None, .. } => Ok(()),
            End::Add { sums, cast_to: Some((out, adds)), .. } => {
                self.step(8);
                let (rows, columns) = (self.plan.tokens(), self.config.hidden_size);
                cast(stream, Cast { rows, columns, x: sums.as_slice(), out, adds })
            }
        }
    }

    /// Enqueues the router; `token_ids` `[T]` are for experts that are looked up by them.
    pub fn route(
        &self,
        stream: &Stream,
        hidden: Activations<'_>,
        token_ids: Option<Slice<'_, i32>>,
        mut logits: SliceMut<'_, f32>,
        topk_ids: SliceMut<'_, i32>,
        topk_weights: SliceMut<'_, f32>,
    ) -> Result<()> {
        let MoeConfig { experts, top_k, hidden_size, routing, .. } = *self.config;
        let shared = SharedSlots { count: self.config.shared_slots(), gated: self.config.routes_shared() };
        let rows = experts + usize::from(shared.gated);
        let Some(router) = &self.weights.router else {
            return Err(crate::Error::argument(
                OP,
                "router",
                "None",
                "the layer was made without router weights; forward_routed takes the routing from the caller",
            ));
        };
        let tokens = self.plan.tokens();
        let args = RouterLogits {
            tokens,
            experts: rows,
            hidden: hidden_size,
            hidden_states: hidden,
            gate: router.as_slice(),
            planes: router.len() / (rows * hidden_size),
            bias: self.weights.router_bias.as_ref().map(|bias| bias.as_slice()),
            logits: logits.reborrow(),
            path: self.plan.router,
        };
        router_logits(stream, args)?;
        let top = TopK { tokens, experts, top_k, shared, logits: logits.as_slice(), topk_ids, topk_weights };
        match routing {
            Routing::Softmax { renormalize } => softmax_top_k(stream, top, renormalize),
            Routing::SigmoidInput => sigmoid_top_k(stream, top),
            Routing::Grouped { sigmoid, groups, topk_group, renormalize, scaling_factor } => {
                let correction_bias = self.weights.correction_bias.as_ref().map(|bias| bias.as_slice());
                let grouped = Grouped {
                    sigmoid,
                    correction_bias,
                    groups,
                    topk_group,
                    renormalize,
                    routed_scaling_factor: scaling_factor,
                };
                grouped_top_k(stream, top, grouped)
            }
            Routing::SqrtSoftplus { renormalize, scaling_factor, vocabulary } => {
                let choice = match (vocabulary, &self.weights.token_experts, token_ids) {
                    (None, ..) => Choice::ByScore {
                        correction_bias: self.weights.correction_bias.as_ref().map(|bias| bias.as_slice()),
                    },
                    (Some(vocabulary), Some(table), Some(token_ids)) => {
                        Choice::ByToken { token_experts: table.as_slice(), vocabulary, token_ids }
                    }
                    _ => return Err(no_token_ids()),
                };
                let scoring = SqrtSoftplus { choice, renormalize, routed_scaling_factor: scaling_factor };
                sqrt_softplus_top_k(stream, top, scoring)
            }
        }
    }

    fn permute<'p>(&self, stream: &Stream, routed: Routed<'p>, lists: Lists<'p>) -> Result<Permutation<'p>>
    where
        Self: 'p,
    {
        let Lists { expert_offsets, sorted_rows, inverse, schedule } = lists;
        let args = Permute {
            topk_ids: routed.topk_ids,
            expert_map: self.weights.expert_map.as_ref().map(|map| map.as_slice()),
            expert_offsets,
            sorted_rows,
            inverse,
            row_experts: None,
            problem_sizes: None,
            tile_schedule: Some(TileScheduleOut { block_m: self.plan.block_m, entries: schedule }),
            path: PermutePath::Auto,
        };
        permute(stream, self.plan.permutation, args)
    }

    /// Quantises the hidden states to where GEMM 1 reads them. Of those that are quantised already it copies
    /// what has to move, and returns what has not: rows that GEMM 1 gathers.
    fn quantize<'h>(
        &self,
        stream: &Stream,
        hidden: Hidden<'h>,
        routed: Routed<'_>,
        permutation: &Permutation<'_>,
        parts: &mut Parts<'_>,
        end: &mut End<'_>,
    ) -> Result<Option<Given<'h>>> {
        let x = match hidden {
            Hidden::Bf16(hidden) => Activations::Bf16(hidden),
            Hidden::F16(hidden) => Activations::F16(hidden),
            Hidden::Quantised { values, scales, layout } => {
                if let End::Add { sums, clears: true, .. } = end {
                    sums.fill_bytes(0, stream)?;
                }
                return self.scatter(stream, Given { values, scales, layout }, permutation, parts);
            }
        };
        let scales = self.config.first_scales();
        // The slots of a token have weights of their own where inputs are weighed and there is more than one.
        let by_slot = self.config.routing == Routing::SigmoidInput && self.config.slots() > 1;
        if let (End::Add { sums, clears: true, .. }, true) = (&mut *end, by_slot) {
            sums.fill_bytes(0, stream)?;
        }
        let args = Quantize {
            x,
            row_weight: (self.config.routing == Routing::SigmoidInput).then_some(routed.topk_weights),
            destinations: match (self.plan.gathers(), scales) {
                _ if by_slot => Destinations::Slots { permutation },
                (true, ActivationScales::Static | ActivationScales::Group128) => Destinations::Identity,
                (true, ActivationScales::Token) => Destinations::Scales { permutation, fill_padding: false },
                (false, _) => Destinations::Scatter { permutation, fill_padding: false },
            },
            scheme: match scales {
                ActivationScales::Static => {
                    Scheme::TensorStatic { scale: self.weights.input_scales[0].as_slice() }
                }
                ActivationScales::Token => {
                    Scheme::Token { scales: parts.scales.reborrow(), absmax_limit: None }
                }
                ActivationScales::Group128 => Scheme::Group {
                    group_size: GROUP,
                    scales: parts.scales.reborrow(),
                    layout: self.plan.first_scales,
                },
            },
            q: parts.quantised.reborrow(),
            cleared: match end {
                End::Add { clears: true, .. } if by_slot => None,
                End::Add { sums, clears: true, .. } => Some(sums.reborrow()),
                End::Unpermute { .. } | End::Add { .. } => None,
            },
        };
        let shape = QuantizeShape { rows: self.plan.tokens(), columns: self.config.hidden_size };
        // SAFETY: hidden states, weights and scale were written before `permute` was launched, which writes
        // none of them and begins when everything before it has ended: it is launched without programmatic
        // stream serialization.
        unsafe { quantize_with_settled_input(stream, shape, args) }?;
        Ok(None)
    }

    /// Copies quantised rows and their scales to where GEMM 1 reads them. Rows that it gathers stay, and
    /// scales that come along.
    fn scatter<'h>(
        &self,
        stream: &Stream,
        given: Given<'h>,
        permutation: &Permutation<'_>,
        parts: &mut Parts<'_>,
    ) -> Result<Option<Given<'h>>> {
        let (gathers, kind) = (self.plan.gathers(), self.config.first_scales());
        if gathers && kind != ActivationScales::Token {
            return Ok(Some(given));
        }
        let groups = kind.of_row(self.config.hidden_size);
        let scales = given.scales.map(|scales| PermuteScales {
            groups,
            scales,
            layout: given.layout,
            permuted: parts.scales.reborrow(),
            permuted_layout: match kind {
                ActivationScales::Token => ScaleLayout::row_major(1),
                _ => self.plan.first_scales,
            },
        });
        // Of gathered rows the scales alone go to their places.
        let columns = if gathers { 0 } else { self.config.hidden_size };
        let permuted = parts.quantised.reborrow();
        let args = PermuteRows { activations: given.values, columns, scales, permutation, permuted };
        permute_rows(stream, args)?;
        Ok(gathers.then_some(given))
    }

    /// `[P, 2I] = [P, H] * w13^T`, in f32: a rounding to 16 bits here would flip roundings to e4m3 in the
    /// activation, which is an error of 1 to 2 % in the output.
    fn first_gemm(
        &self,
        stream: &Stream,
        plan: &GemmPlan,
        permutation: Permutation<'_>,
        parts: &mut Parts<'_>,
    ) -> Result<()> {
        let args = GroupedGemm {
            a: parts.quantised.as_slice(),
            a_scale: self.first_a_scale(parts.scales.as_slice()),
            b: self.weights.w13.as_slice(),
            b_scale: self.w13_scale(),
            bias: self.bias(0),
            permutation,
            out: GemmOut::F32(parts.products.reborrow().cast()),
            workspace: parts.partials.reborrow(),
            plan,
        };
        // SAFETY: `permute` wrote the schedule, and the quantisation lies between, whose threads all wait for
        // their predecessors. No kernel of a forward writes the weights.
        unsafe { grouped_gemm_with_settled_schedule(stream, args) }
    }

    /// `[P, H] = [P, I] * w2^T`, written or added up.
    fn second_gemm(
        &self,
        stream: &Stream,
        routed: Routed<'_>,
        permutation: Permutation<'_>,
        parts: &mut Parts<'_>,
        end: &mut End<'_>,
    ) -> Result<()> {
        let out = match end {
            // Also for outputs in f16, whose range an expert's output may leave where the weighed sum does
            // not.
            End::Unpermute { .. } => GemmOut::Bf16(parts.products.reborrow().cast()),
            End::Add { sums, .. } => GemmOut::TokenSums(TokenSums {
                sums: sums.reborrow(),
                topk_weights: self.output_weights(routed),
            }),
        };
        let args = GroupedGemm {
            a: parts.intermediate.as_slice(),
            a_scale: self.second_a_scale(parts.intermediate_scales.as_slice()),
            b: self.weights.w2.as_slice(),
            b_scale: self.w2_scale(),
            bias: self.bias(1),
            permutation,
            out,
            workspace: parts.partials.reborrow(),
            plan: &self.plan.second,
        };
        // SAFETY: `permute` wrote the schedule, and GEMM 1 at least lies between, whose threads all wait for
        // their predecessors. No kernel of a forward writes the weights.
        unsafe { grouped_gemm_with_settled_schedule(stream, args) }
    }

    /// Scales of GEMM 1's activations.
    fn first_a_scale<'s>(&'s self, scales: Slice<'s, f32>) -> AScale<'s> {
        match self.config.first_scales() {
            ActivationScales::Static => AScale::Call(self.weights.input_scales[0].as_slice()),
            ActivationScales::Token => AScale::Row(scales),
            ActivationScales::Group128 => grouped_scales(scales, self.plan.first_scales),
        }
    }

    /// Scales of GEMM 2's activations.
    fn second_a_scale<'s>(&'s self, scales: Slice<'s, f32>) -> AScale<'s> {
        match self.config.second_scales() {
            ActivationScales::Static => AScale::Call(self.weights.input_scales[1].as_slice()),
            ActivationScales::Token => AScale::Row(scales),
            ActivationScales::Group128 => grouped_scales(scales, self.plan.second_scales),
        }
    }

    /// How GEMM 2's activations are scaled.
    fn requantization<'s>(&'s self, scales: SliceMut<'s, f32>) -> Requantization<'s> {
        match self.config.second_scales() {
            ActivationScales::Static => {
                Requantization::TensorStatic { scale: self.weights.input_scales[1].as_slice() }
            }
            ActivationScales::Token => Requantization::Token { scales },
            ActivationScales::Group128 => {
                Requantization::Group { group_size: GROUP, scales, layout: self.plan.second_scales }
            }
        }
    }

    /// What is added to the sums of GEMM 1 or 2.
    fn bias(&self, number: usize) -> Option<Slice<'_, f32>> {
        self.weights.expert_biases.as_ref().map(|biases| biases[number].as_slice())
    }

    /// `[P, I] = e4m3(activation([P, H] * w13^T))`, in one launch; `[P, H]` are rows of the tokens where they
    /// are gathered.
    fn gated_gemm(
        &self,
        stream: &Stream,
        plan: &GatedPlan,
        given: Option<Given<'_>>,
        permutation: Permutation<'_>,
        parts: &mut Parts<'_>,
    ) -> Result<()> {
        let own = (parts.quantised.as_slice(), self.first_a_scale(parts.scales.as_slice()));
        let (a, a_scale) = match given {
            Some(Given { values, scales: Some(scales), layout })
                if self.config.first_scales() == ActivationScales::Group128 =>
            {
                (values, grouped_scales(scales, layout))
            }
            Some(Given { values, .. }) => (values, own.1),
            None => own,
        };
        let args = GatedGemm {
            a,
            a_scale,
            b: self.weights.w13.as_slice(),
            b_scale: self.w13_scale(),
            bias: self.bias(0),
            permutation,
            gating: self.config.gating(),
            requantization: self.requantization(parts.intermediate_scales.reborrow()),
            q: parts.intermediate.reborrow(),
            workspace: parts.partials.reborrow(),
            plan,
        };
        if given.is_some() {
            // Nothing need lie between `permute` and this.
            return gated_gemm(stream, args);
        }
        // SAFETY: `permute` wrote the schedule, and the quantisation, or the copy of quantised rows, lies
        // between, whose threads all wait for their predecessors. No kernel of a forward writes the weights.
        unsafe { gated_gemm_with_settled_schedule(stream, args) }
    }

    fn activate(&self, stream: &Stream, permutation: &Permutation<'_>, parts: &mut Parts<'_>) -> Result<()> {
        let intermediate = self.config.padded_intermediate();
        let args = Activation {
            x: Activations::F32(parts.products.as_slice().cast()),
            permutation: Some(permutation),
            gating: self.config.gating(),
            requantization: self.requantization(parts.intermediate_scales.reborrow()),
            q: parts.intermediate.reborrow(),
        };
        activation(stream, ActivationShape { rows: self.plan.capacity(), intermediate }, args)
    }

    /// The weights of expert outputs; none where the inputs were weighed.
    fn output_weights<'s>(&self, routed: Routed<'s>) -> Option<Slice<'s, f32>> {
        (self.config.routing != Routing::SigmoidInput).then_some(routed.topk_weights)
    }

    fn unpermute(
        &self,
        stream: &Stream,
        routed: Routed<'_>,
        permutation: &Permutation<'_>,
        parts: &mut Parts<'_>,
        addend: Option<Slice<'_, f32>>,
        (out, adds): (ActivationsMut<'_>, bool),
    ) -> Result<()> {
        let products = parts.products.as_slice();
        let args = Unpermute {
            y: Activations::Bf16(products.cast()),
            permutation,
            topk_weights: self.output_weights(routed),
            addend,
            hidden: self.config.hidden_size,
            out,
            adds,
        };
        // Who observes the operations may capture each by itself, and replay this one on the same rows.
        if self.plan.discards && self.observe.is_none() {
            // SAFETY: the routing is settled, as below. The products are this forward's part of the
            // workspace, and this is its last operation; the next forward in that memory, and a replay of
            // this one, has GEMM 2 write them before it reads them. `permute` has given every slot a row of
            // its own.
            return unsafe { unpermute_and_discard(stream, args) };
        }
        // SAFETY: `permute` or what came before it wrote the routing, and the quantisation and the GEMMs lie
        // between, whose threads all wait for their predecessors.
        unsafe { unpermute_with_settled_routing(stream, args) }
    }
}

/// Scales of every 128 columns of rows.
fn grouped_scales(scales: Slice<'_, f32>, layout: ScaleLayout) -> AScale<'_> {
    let ScaleLayout { row_stride, group_stride } = layout;
    AScale::Group { scales, row_stride, group_stride }
}
