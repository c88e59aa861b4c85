//! A layer behind its router in one launch, for few tokens (Hopper):
//! `out = sum over slots of w * (activation(q(x) * w13^T) quantised) * w2^T`.
//!
//! It is [`permute`](mod@super::permute), [`quantize`](mod@super::quantize),
//! [`gated_gemm`](super::gated_gemm::gated_gemm), [`grouped_gemm`](super::grouped_gemm::grouped_gemm) and
//! [`unpermute`](mod@super::unpermute) in one, but that the experts' outputs are not rounded to 16 bits
//! before they are added. Ids that are no expert's of this rank contribute nothing.

use super::grouped_gemm::{AScale, BScale, check_matrix, check_matrix_mut, raw_scales};
use super::quantize::{Activations, ActivationsMut};
use crate::config::{GROUP, Gating, SCALE_BLOCK};
use crate::error::{Result, require};
use crate::fp8::E4m3;
use crate::gpu::buffer::{Buffer, Slice, SliceMut};
use crate::gpu::device::Device;
use crate::gpu::launch::{DevicePtr, Kernel};
use crate::gpu::order::{Unchanged, replays};
use crate::gpu::stream::Stream;
use crate::kernels::launchers::{
    self, AScaleKind, ActivationFunction, BScaleKind, HiddenType, OutType, Strides,
};
use crate::plan::few_tokens::{Cut, FewTokensPlan};
use crate::plan::packed::{WeightLayout, weight_len};
use crate::plan::rows::ScaleLayout;

const OP: &str = "few_tokens";

/// Words of the control memory before its two sets.
const CONTROL_WORDS: usize = launchers::FEW_CONTROL_WORDS as usize;

/// The words by which blocks of a launch hand each other what they have computed: 0 at first, and then as
/// each launch leaves them for the next. Nothing else writes them, since nothing else can borrow them.
#[derive(Debug)]
pub(crate) struct ControlWords(Buffer<u32>);

impl ControlWords {
    /// New ones, for launches that hand over up to `set_words` words ([`FewTokensPlan::set_words`]).
    pub fn new(device: &Device, set_words: usize) -> Result<ControlWords> {
        device.zeros(CONTROL_WORDS + 2 * set_words).map(ControlWords)
    }

    /// For a launch.
    pub fn lend(&mut self) -> Control<'_> {
        let set_words = (self.0.len() - CONTROL_WORDS) / 2;
        Control { words: self.0.as_mut_slice(), set_words, cleared: None }
    }
}

/// Control words as a launch needs them: [`ControlWords`], or memory that has just been cleared.
#[derive(Debug)]
pub(crate) struct Control<'a> {
    words: SliceMut<'a, u32>,
    /// Words of each of two sets behind the first words, or of the one behind cleared ones.
    set_words: usize,
    /// Launches of graphs before they were cleared, where they were.
    cleared: Option<u64>,
}

impl<'a> Control<'a> {
    /// Clears `words`: the first, and a set.
    pub fn cleared(mut words: SliceMut<'a, u32>, stream: &Stream) -> Result<Control<'a>> {
        let cleared = Some(replays());
        words.fill_bytes(0, stream)?;
        let set_words = words.len().saturating_sub(CONTROL_WORDS);
        Ok(Control { words, set_words, cleared })
    }

    /// The same, for a call that takes it by value.
    pub fn reborrow(&mut self) -> Control<'_> {
        Control { words: self.words.reborrow(), set_words: self.set_words, cleared: self.cleared }
    }

    /// What a launch relies on: memory that was cleared may lie in that of a graph, which would overwrite it.
    fn unchanged(&self) -> Unchanged<'_> {
        self.cleared.map_or(Unchanged::NOTHING, |since| Unchanged {
            since,
            memory: [self.words.as_slice().memory(), None, None, None],
        })
    }
}

/// Hidden states `[T, H]`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Input<'a> {
    /// bf16 or f16; quantised by the launch.
    Activations(Activations<'a>),
    /// e4m3 with their scales, where they have some: one per row, or one per row and 128 columns.
    Quantised { values: Slice<'a, E4m3>, scales: Option<Slice<'a, f32>>, layout: ScaleLayout },
}

/// How the inputs of a projection are quantised.
#[derive(Clone, Copy, Debug)]
pub(crate) enum InputScales<'a> {
    /// By one given scale.
    Given(Slice<'a, f32>),
    /// By one per row.
    Row,
    /// By one per row and 128 columns.
    Group,
}

/// The matrices of one projection: e4m3 `[E_loc, rows, K]`, 16-byte aligned, or packed: the elements of their
/// [`PackedShape`](super::pack_weights::PackedShape).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Projection<'a> {
    pub weights: Slice<'a, E4m3>,
    pub scales: BScale<'a>,
    pub inputs: InputScales<'a>,
}

/// Arguments of [`few_tokens`].
pub(crate) struct FewTokens<'a> {
    pub plan: &'a FewTokensPlan,
    pub tokens: usize,
    pub top_k: usize,
    pub experts: usize,
    pub local_experts: usize,
    /// 16-byte aligned.
    pub hidden: Input<'a>,
    /// i32 `[T, k]`.
    pub topk_ids: Slice<'a, i32>,
    /// f32 `[T, k]`.
    pub topk_weights: Slice<'a, f32>,
    /// i32 `[E]`, -1 for experts of other ranks; without it all are here.
    pub expert_map: Option<Slice<'a, i32>>,
    /// Whether the weights multiply the inputs, and not the outputs.
    pub weighs_input: bool,
    /// K is H, and there are 2I rows: gate, then up.
    pub first: Projection<'a>,
    /// K is I, and there are H rows.
    pub second: Projection<'a>,
    /// How gate and up become one value; there is a gate.
    pub gating: Gating,
    /// i64 `[E_loc + 1]`: how many pairs the experts before each have.
    pub expert_offsets: SliceMut<'a, i64>,
    /// How its blocks hand each other what they compute.
    pub control: Control<'a>,
    /// `[T, H]`, 16-byte aligned.
    pub out: ActivationsMut<'a>,
    /// Whether the result is added to `out`.
    pub adds: bool,
}

/// Runs the layer. One launch.
///
/// # Errors
/// Arrays that are too short, not aligned or on another device.
pub(crate) fn few_tokens(stream: &Stream, args: FewTokens<'_>) -> Result<()> {
    let FewTokens { plan, tokens, top_k, experts, local_experts, .. } = args;
    let pairs = plan.pairs;
    require(tokens * top_k == pairs, OP, "plan", format!("{pairs} pairs"), || {
        format!("must be for {} pairs", tokens * top_k)
    })?;
    let (hidden, intermediate) = (plan.first.k, plan.second.k);
    require(args.gating.is_gated, OP, "gating", "without a gate", || "must have a gate".into())?;
    args.topk_ids.check(OP, "topk_ids", pairs, stream)?;
    args.topk_weights.check(OP, "topk_weights", pairs, stream)?;
    if let Some(map) = &args.expert_map {
        map.check(OP, "expert_map", experts, stream)?;
    } else {
        require(local_experts == experts, OP, "local_experts", local_experts, || {
            format!("must be {experts}, the number of experts, without an expert_map")
        })?;
    }
    let sets = if args.control.cleared.is_some() { 1 } else { 2 };
    let (needed, set_words) = (plan.set_words(), args.control.set_words);
    check_matrix_mut(OP, &args.control.words, "control", CONTROL_WORDS + sets * set_words, stream)?;
    require(set_words >= needed && set_words.is_multiple_of(4), OP, "control", set_words, || {
        format!("must be sets of {needed} words, or of more in fours")
    })?;
    let set_words = u32::try_from(set_words).map_err(|_| {
        crate::Error::argument(OP, "control", set_words, "must be sets of fewer than 2^32 words")
    })?;
    let out_elements = tokens * hidden;
    let (out, out_type) = match &args.out {
        ActivationsMut::Bf16(out) => {
            check_matrix_mut(OP, out, "out", out_elements, stream)?;
            (out.ptr().cast(), OutType::Bf16)
        }
        ActivationsMut::F16(out) => {
            check_matrix_mut(OP, out, "out", out_elements, stream)?;
            (out.ptr().cast(), OutType::F16)
        }
        ActivationsMut::F32(out) => {
            check_matrix_mut(OP, out, "out", out_elements, stream)?;
            (out.ptr().cast(), OutType::F32)
        }
    };
    args.expert_offsets.check(OP, "expert_offsets", local_experts + 1, stream)?;
    let input = args.check_hidden(stream)?;
    let halves = (intermediate, plan.first.half_rows);
    let layout = if plan.packed { WeightLayout::Packed } else { WeightLayout::Checkpoint };
    let first = args.first.raw(&plan.first, layout, local_experts, 2 * intermediate, halves, stream)?;
    let halves = (plan.second.half_rows, 2 * plan.second.half_rows);
    let second = args.second.raw(&plan.second, layout, local_experts, hidden, halves, stream)?;
    let arguments = launchers::FewTokens {
        hidden: input.values,
        hidden_scales: input.scales,
        hidden_scale_strides: input.strides,
        topk_ids: args.topk_ids.ptr(),
        topk_weights: args.topk_weights.ptr(),
        expert_map: args.expert_map.map_or(DevicePtr::null(), |map| map.ptr()),
        first,
        second,
        expert_offsets: args.expert_offsets.ptr(),
        control: args.control.words.ptr(),
        set_words,
        out,
        tokens: tokens as u32,
        top_k: top_k as u32,
        experts: experts as u32,
        local_experts: local_experts as u32,
        tile_rows: plan.tile_rows as u32,
        stages: plan.stages as u32,
        input_bytes: plan.input_bytes as u32,
        hidden_type: input.kind,
        out_type,
        limit: args.gating.bound(),
        function: args.gating.function,
        weighs_input: args.weighs_input,
        adds: args.adds,
    };
    let kernel = entry(plan.packed, &arguments).with_shared(plan.shared_bytes as u32).cooperative();
    // SAFETY: every array was checked to have its extent on this device, and to be aligned. The entry is one
    // for these arguments. The plan's cuts are of these matrices, its shared memory is what the kernel lays
    // out, and its grid is launched cooperatively. The control words are 0, or as a launch has left them, and
    // borrowed exclusively; sets have the words that the plan hands over, and those of earlier launches had
    // them too. Ids lead nowhere but to experts that exist: the kernel compares them with both numbers.
    unsafe {
        let lists = args.control.unchanged();
        stream.device().launch_over(stream, &kernel, plan.blocks as u32, &arguments, &lists)
    }
}

/// The entry for these arguments that has the least to compile: one of those that take for granted what most
/// layers are, or the one for all.
fn entry(packed: bool, arguments: &launchers::FewTokens) -> Kernel<launchers::FewTokens> {
    let launchers::FewTokens { first, second, hidden_type, out_type, limit, function, .. } = arguments;
    let is_usual = (*hidden_type, *out_type) == (HiddenType::Bf16, OutType::Bf16)
        && (*function, *limit) == (ActivationFunction::Silu, f32::INFINITY)
        && !(arguments.weighs_input || arguments.adds);
    if !packed {
        return launchers::FEW_TOKENS;
    }
    let [first, second] = [first, second].map(|of| (of.weight_scale_kind, of.input_scale_kind));
    let block = (BScaleKind::Block, AScaleKind::Group);
    let [of_tokens, of_groups] = [AScaleKind::Row, AScaleKind::Group].map(|of| (BScaleKind::Channel, of));
    match is_usual {
        true if (first, second) == (block, block) => launchers::FEW_TOKENS_PACKED_BLOCK,
        true if (first, second) == (of_tokens, of_groups) => launchers::FEW_TOKENS_PACKED_TOKEN,
        _ => launchers::FEW_TOKENS_PACKED,
    }
}

/// Hidden states as the kernel takes them.
struct RawInput {
    values: DevicePtr<u8>,
    scales: DevicePtr<f32>,
    strides: Strides,
    kind: HiddenType,
}

impl FewTokens<'_> {
    fn check_hidden(&self, stream: &Stream) -> Result<RawInput> {
        let (tokens, columns) = (self.tokens, self.plan.first.k);
        let (len, strides) = (tokens * columns, Strides { row: 0, group: 0 });
        let plain = |values, kind| RawInput { values, scales: DevicePtr::null(), strides, kind };
        match self.hidden {
            Input::Activations(Activations::Bf16(x)) => {
                check_matrix(OP, &x, "hidden", len, stream)?;
                Ok(plain(x.ptr().cast(), HiddenType::Bf16))
            }
            Input::Activations(Activations::F16(x)) => {
                check_matrix(OP, &x, "hidden", len, stream)?;
                Ok(plain(x.ptr().cast(), HiddenType::F16))
            }
            Input::Activations(Activations::F32(_)) => {
                Err(crate::Error::argument(OP, "hidden", "f32", "must be bf16, f16 or e4m3"))
            }
            Input::Quantised { values, scales, layout } => {
                check_matrix(OP, &values, "hidden", len, stream)?;
                let groups = match self.first.inputs {
                    InputScales::Given(_) => 0,
                    InputScales::Row => 1,
                    InputScales::Group => columns.div_ceil(GROUP),
                };
                let plain = plain(values.ptr().cast(), HiddenType::E4m3);
                match scales {
                    Some(scales) => {
                        scales.check(OP, "hidden_scales", layout.extent(tokens, groups), stream)?;
                        Ok(RawInput { scales: scales.ptr(), strides: layout.raw(), ..plain })
                    }
                    None => {
                        require(groups == 0, OP, "hidden_scales", "None", || "must be given".into())?;
                        Ok(plain)
                    }
                }
            }
        }
    }
}

impl Projection<'_> {
    /// As the kernel takes it: `half_distance` rows from the first half of a unit to the second, `stride` to
    /// the next unit.
    fn raw(
        &self,
        cut: &Cut,
        layout: WeightLayout,
        experts: usize,
        rows: usize,
        (half_distance, stride): (usize, usize),
        stream: &Stream,
    ) -> Result<launchers::Projection> {
        let Cut { k, half_rows, stage_k, parts, units, input_pitch, dealing } = *cut;
        check_matrix(OP, &self.weights, "weights", weight_len(OP, layout, [experts, rows, k])?, stream)?;
        // The kernel counts rows in 32 bits.
        require(experts * rows < 1 << 31, OP, "weights", format!("{experts} experts"), || {
            format!("must be fewer than 2^31 / {rows}")
        })?;
        let (scales, count) = match self.scales {
            BScale::Expert(scales) => (scales, experts),
            BScale::Channel(scales) => (scales, experts * rows),
            BScale::Block(scales) => (scales, experts * rows.div_ceil(SCALE_BLOCK) * k.div_ceil(SCALE_BLOCK)),
        };
        scales.check(OP, "weight_scales", count, stream)?;
        let (given_scale, input_scale_kind) = match self.inputs {
            InputScales::Given(scale) => {
                scale.check(OP, "input_scale", 1, stream)?;
                (scale.ptr(), AScaleKind::Call)
            }
            InputScales::Row => (DevicePtr::null(), AScaleKind::Row),
            InputScales::Group => (DevicePtr::null(), AScaleKind::Group),
        };
        Ok(launchers::Projection {
            weights: self.weights.ptr().cast(),
            weight_scales: scales.ptr(),
            given_scale,
            weight_scale_kind: raw_scales(&AScale::Row(scales), &self.scales, None).b_kind,
            input_scale_kind,
            k: k as u32,
            rows: rows as u32,
            half_rows: half_rows as u32,
            stage_k: stage_k as u32,
            half_distance: half_distance as u32,
            stride: stride as u32,
            parts: parts as u32,
            units: units as u32,
            input_pitch: input_pitch as u32,
            dealing,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Arguments of a usual layer, with the scales of its weights, and of the inputs of either matrix.
    fn usual(weights: BScaleKind, inputs: [AScaleKind; 2]) -> launchers::FewTokens {
        let [first, second] = inputs.map(|input_scale_kind| launchers::Projection {
            weights: DevicePtr::null(),
            weight_scales: DevicePtr::null(),
            given_scale: DevicePtr::null(),
            weight_scale_kind: weights,
            input_scale_kind,
            k: 128,
            rows: 128,
            half_rows: 8,
            stage_k: 128,
            half_distance: 8,
            stride: 16,
            parts: 1,
            units: 8,
            input_pitch: 16,
            dealing: launchers::Dealing::Runs,
        });
        launchers::FewTokens {
            hidden: DevicePtr::null(),
            hidden_scales: DevicePtr::null(),
            hidden_scale_strides: Strides { row: 0, group: 0 },
            topk_ids: DevicePtr::null(),
            topk_weights: DevicePtr::null(),
            expert_map: DevicePtr::null(),
            first,
            second,
            expert_offsets: DevicePtr::null(),
            control: DevicePtr::null(),
            set_words: 0,
            out: DevicePtr::null(),
            tokens: 1,
            top_k: 1,
            experts: 1,
            local_experts: 1,
            tile_rows: 1,
            stages: 1,
            input_bytes: 0,
            hidden_type: HiddenType::Bf16,
            out_type: OutType::Bf16,
            limit: f32::INFINITY,
            function: ActivationFunction::Silu,
            weighs_input: false,
            adds: false,
        }
    }

    /// The entries for usual layers run with constants in place of these arguments, whatever they are.
    #[test]
    fn one_unusual_argument_takes_the_entry_for_all() {
        use AScaleKind::{Call, Group, Row};
        type Change = fn(&mut launchers::FewTokens);
        let changes: [Change; 13] = [
            |a| a.hidden_type = HiddenType::F16,
            |a| a.hidden_type = HiddenType::E4m3,
            |a| a.out_type = OutType::F16,
            |a| a.out_type = OutType::F32,
            |a| a.limit = 7.0,
            |a| a.function = ActivationFunction::Gelu,
            |a| a.weighs_input = true,
            |a| a.adds = true,
            |a| a.first.weight_scale_kind = BScaleKind::Expert,
            |a| a.second.weight_scale_kind = BScaleKind::Expert,
            |a| a.first.input_scale_kind = Call,
            |a| a.second.input_scale_kind = Call,
            |a| a.second.input_scale_kind = Row,
        ];
        for (name, weights, inputs) in [
            ("few_tokens_packed_block", BScaleKind::Block, [Group, Group]),
            ("few_tokens_packed_token", BScaleKind::Channel, [Row, Group]),
        ] {
            assert_eq!(entry(true, &usual(weights, inputs)).text.name, name);
            assert_eq!(entry(false, &usual(weights, inputs)).text.name, "few_tokens");
            for (number, change) in changes.iter().enumerate() {
                let mut arguments = usual(weights, inputs);
                change(&mut arguments);
                assert_eq!(entry(true, &arguments).text.name, "few_tokens_packed", "{name}, change {number}");
            }
        }
    }
}
