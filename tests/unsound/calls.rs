//! Calls of every public operation, whose slices and numbers come from a [`Source`]: it makes all of them
//! right, or one of them wrong.

use std::cell::Cell;

use bytemuck::Pod;
use fp8_moe::ops::activation::{
    Activation, ActivationFunction, ActivationPlain, ActivationShape, Requantization, activation,
    activation_plain,
};
use fp8_moe::ops::cast::{Cast, cast};
use fp8_moe::ops::gated_gemm::{GatedGemm, GatedPlan, GatedShape, gated_gemm};
use fp8_moe::ops::grouped_gemm::{
    AScale, BScale, GemmOptions, GemmOut, GemmPlan, GemmShape, GroupedGemm, TokenSums, grouped_gemm,
};
use fp8_moe::ops::pack_weights::{PackedShape, pack_weights, pack_weights_in_place, unpack_weights};
use fp8_moe::ops::permutation::{Permutation, PermutationLists};
use fp8_moe::ops::permute::{
    Permute, PermutePath, PermuteRows, PermuteScales, PermuteShape, ScaleLayout, permute, permute_rows,
};
use fp8_moe::ops::problem_sizes::{
    GemmDimensions, ProblemSizesOut, TileScheduleOut, problem_sizes, tile_schedule_entries,
};
use fp8_moe::ops::quantize::{
    Activations, ActivationsMut, Destinations, Quantize, QuantizeShape, Scheme, quantize,
    quantize_workspace_bytes,
};
use fp8_moe::ops::router::{
    AppendShared, Choice, Grouped, RouterLogits, RouterLogitsPath, SharedSlots, SqrtSoftplus, TopK,
    append_shared, grouped_top_k, router_logits, sigmoid_top_k, softmax_top_k, sqrt_softplus_top_k,
};
use fp8_moe::ops::sum_ranks::{SumRanks, sum_ranks};
use fp8_moe::ops::unpermute::{Unpermute, unpermute};
use fp8_moe::{
    Device, E4m3, Forward, Hidden, MoeLayer, Output, Quantization, Result, Routing, Slice, SliceMut, Stream,
    Workspace,
};
use half::{bf16, f16};

use crate::Memory;
use crate::common::layers::config;
use crate::common::oracle::Layer;

/// T, k, E, H and I; P, of a sort without padding; groups of 128 columns.
const TOKENS: usize = 9;
const TOP_K: usize = 2;
const EXPERTS: usize = 3;
const HIDDEN: usize = 32;
const INTERMEDIATE: usize = 16;
const ROWS: usize = TOKENS * TOP_K;

/// What is wrong with a slice, or with a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wrong {
    /// The slice lies in another context.
    Elsewhere,
    /// It has an element too few.
    Short,
    /// It begins an element behind the start of an allocation: off most alignments.
    Shifted,
    /// The number is this one.
    Number(usize),
}

/// Where the arguments of a call come from. Memory is never freed: whatever happens, nobody gets an address
/// twice.
pub struct Source<'d> {
    pub device: &'d Device,
    /// The same in another context.
    pub other: &'d Device,
    /// Which slice is wrong, or if it is a number that is wrong, which number.
    pub wrong: Option<(usize, Wrong)>,
    /// Slices and numbers so far.
    pub slices: Cell<usize>,
    pub numbers: Cell<usize>,
}

impl Source<'_> {
    /// `len` zeros to write.
    fn write<T: Pod>(&self, len: usize) -> SliceMut<'static, T> {
        let index = self.slices.replace(self.slices.get() + 1);
        let wrong = self.wrong.filter(|(at, _)| *at == index).map(|(_, wrong)| wrong);
        let device = if wrong == Some(Wrong::Elsewhere) { self.other } else { self.device };
        let buffer = Box::leak(Box::new(device.zeros::<T>(len + 1).unwrap()));
        match wrong {
            Some(Wrong::Short) => buffer.slice_mut(..len - 1),
            Some(Wrong::Shifted) => buffer.slice_mut(1..),
            _ => buffer.slice_mut(..len),
        }
    }

    /// `len` zeros to read.
    fn read<T: Pod>(&self, len: usize) -> Slice<'static, T> {
        self.write(len).into()
    }

    /// A number that says a size.
    fn number(&self, right: usize) -> usize {
        let index = self.numbers.replace(self.numbers.get() + 1);
        match self.wrong {
            Some((at, Wrong::Number(wrong))) if at == index => wrong,
            _ => right,
        }
    }

    /// The workspace of a plan; nothing where it needs none.
    fn workspace(&self, bytes: usize) -> SliceMut<'static, u8> {
        match bytes {
            0 => Box::leak(Box::new(self.device.uninit(0).unwrap())).as_mut_slice(),
            // Of a wrong number it may be more than there is memory.
            bytes => self.write(bytes.min(1 << 24)),
        }
    }

    /// A layout with group scales side by side.
    fn layout(&self) -> ScaleLayout {
        ScaleLayout { row_stride: self.number(1), group_stride: self.number(1) }
    }

    /// The layout that the Hopper GEMMs take.
    fn group_major(&self) -> AScale<'static> {
        let (row_stride, group_stride) = (self.number(1), self.number(12));
        AScale::Group { scales: self.read(ROWS), row_stride, group_stride }
    }

    /// A permutation of right lists.
    fn permutation(&self, stream: &Stream) -> Permutation<'static> {
        let ids = Box::leak(Box::new(self.device.zeros::<i32>(ROWS).unwrap()));
        let shape = PermuteShape {
            tokens: TOKENS,
            top_k: TOP_K,
            experts: EXPERTS,
            local_experts: EXPERTS,
            alignment: 1,
        };
        Box::leak(Box::new(Memory::new(self.device, shape))).permute(stream, ids, None).unwrap()
    }

    /// A layer, which looks experts up `by_token` or not, and a workspace that counts as a slice.
    fn layer(&self, by_token: bool) -> (MoeLayer, &'static mut Workspace) {
        let vocabulary = by_token.then_some(7);
        let routing = match by_token {
            true => Routing::SqrtSoftplus { renormalize: true, scaling_factor: 1.0, vocabulary },
            false => Routing::Softmax { renormalize: true },
        };
        let config = config(Quantization::ChannelToken, routing, [EXPERTS, TOP_K, HIDDEN, INTERMEDIATE]);
        let oracle = Layer::random(config, 1);
        let mut weights = oracle.weights(&oracle.config);
        if by_token {
            weights = weights.token_experts(vec![0; 7 * TOP_K]);
        }
        let on = |device| MoeLayer::new(device, &oracle.config, &weights).unwrap();
        let index = self.slices.replace(self.slices.get() + 1);
        let wrong = self.wrong.filter(|(at, _)| *at == index).map(|(_, wrong)| wrong);
        let layer = on(self.device);
        let workspace = match wrong {
            Some(Wrong::Elsewhere) => on(self.other).workspace(TOKENS),
            Some(Wrong::Short) => layer.workspace(1),
            _ => layer.workspace(TOKENS),
        };
        (layer, Box::leak(Box::new(workspace.unwrap())))
    }

    /// The slices and numbers of a top-k operation.
    fn top_k(&self, gated: bool) -> TopK<'static> {
        let columns = EXPERTS + usize::from(gated);
        TopK {
            tokens: self.number(TOKENS),
            experts: self.number(EXPERTS),
            top_k: self.number(TOP_K),
            shared: SharedSlots { count: self.number(1), gated },
            logits: self.read(TOKENS * columns),
            topk_ids: self.write(TOKENS * (TOP_K + 1)),
            topk_weights: self.write(TOKENS * (TOP_K + 1)),
        }
    }

    fn quantize(
        &self,
        stream: &Stream,
        permutation: Option<&Permutation<'_>>,
        destinations: Destinations<'_>,
        scheme: Scheme<'_>,
    ) -> Result<()> {
        let (mut rows, mut weights, mut q_rows, mut clears) = (TOKENS, TOKENS, TOKENS, true);
        match destinations {
            Destinations::Valid { .. } => (rows, weights, q_rows, clears) = (ROWS, ROWS, ROWS, false),
            Destinations::Scatter { .. } => q_rows = ROWS,
            Destinations::Slots { .. } => (weights, q_rows, clears) = (ROWS, ROWS, false),
            _ => {}
        }
        assert_eq!(permutation.is_some(), !matches!(destinations, Destinations::Identity));
        let args = Quantize {
            x: Activations::Bf16(self.read(rows * HIDDEN)),
            row_weight: Some(self.read(weights)),
            destinations,
            scheme,
            q: self.write(q_rows * HIDDEN),
            cleared: clears.then(|| self.write(rows * HIDDEN)),
        };
        let shape = QuantizeShape { rows: self.number(rows), columns: self.number(HIDDEN) };
        quantize(stream, shape, args)
    }

    fn activation(&self, stream: &Stream, requantization: Requantization<'_>) -> Result<()> {
        let args = Activation {
            x: Activations::F32(self.read(ROWS * 2 * INTERMEDIATE)),
            permutation: Some(&self.permutation(stream)),
            gating: ActivationFunction::Silu.into(),
            requantization,
            q: self.write(ROWS * INTERMEDIATE),
        };
        let shape = ActivationShape { rows: self.number(ROWS), intermediate: self.number(INTERMEDIATE) };
        activation(stream, shape, args)
    }

    fn router_logits(&self, stream: &Stream, path: RouterLogitsPath, is_f16: bool) -> Result<()> {
        let args = RouterLogits {
            tokens: self.number(TOKENS),
            experts: self.number(EXPERTS),
            hidden: self.number(HIDDEN),
            hidden_states: match is_f16 {
                true => Activations::F16(self.read::<f16>(TOKENS * HIDDEN)),
                false => Activations::Bf16(self.read(TOKENS * HIDDEN)),
            },
            gate: self.read(2 * EXPERTS * HIDDEN),
            planes: self.number(2),
            bias: Some(self.read(EXPERTS)),
            logits: self.write(TOKENS * EXPERTS),
            path,
        };
        router_logits(stream, args)
    }

    fn grouped_gemm(
        &self,
        stream: &Stream,
        (a_scale, b_scale): (AScale<'_>, BScale<'_>),
        out: GemmOut<'_>,
    ) -> Result<()> {
        let shape = GemmShape {
            rows: self.number(ROWS),
            n: self.number(INTERMEDIATE),
            k: self.number(HIDDEN),
            experts: self.number(EXPERTS),
        };
        let options = GemmOptions { slab_scales: true, ..GemmOptions::default() };
        let plan = GemmPlan::new(self.device, shape, self.number(crate::BLOCK_M), options)?;
        let args = GroupedGemm {
            a: self.read(ROWS * HIDDEN),
            a_scale,
            b: self.read(EXPERTS * INTERMEDIATE * HIDDEN),
            b_scale,
            bias: Some(self.read(EXPERTS * INTERMEDIATE)),
            permutation: self.permutation(stream),
            out,
            workspace: self.workspace(plan.workspace_bytes()),
            plan: &plan,
        };
        grouped_gemm(stream, args)
    }

    fn gated_gemm(
        &self,
        stream: &Stream,
        (a_scale, b_scale): (AScale<'_>, BScale<'_>),
        requantization: Requantization<'_>,
    ) -> Result<()> {
        let shape = GatedShape {
            rows: self.number(ROWS),
            intermediate: self.number(INTERMEDIATE),
            k: self.number(HIDDEN),
            experts: self.number(EXPERTS),
        };
        let options = GemmOptions { slab_scales: true, ..GemmOptions::default() };
        let plan = GatedPlan::new(self.device, shape, self.number(crate::BLOCK_M), options, false)?;
        let args = GatedGemm {
            a: self.read(ROWS * HIDDEN),
            a_scale,
            b: self.read(EXPERTS * 2 * INTERMEDIATE * HIDDEN),
            b_scale,
            permutation: self.permutation(stream),
            bias: Some(self.read(EXPERTS * 2 * INTERMEDIATE)),
            gating: ActivationFunction::Silu.into(),
            requantization,
            q: self.write(ROWS * INTERMEDIATE),
            workspace: self.workspace(plan.workspace_bytes()),
            plan: &plan,
        };
        gated_gemm(stream, args)
    }
}

/// An operation by name, and how it is called.
pub type Call = (&'static str, fn(&Source<'_>, &Stream) -> Result<()>);

/// The operations that all kernels have.
pub const CALLS: &[Call] = &[
    ("permute", |source, stream| {
        let shape = PermuteShape {
            tokens: source.number(TOKENS),
            top_k: source.number(TOP_K),
            experts: source.number(EXPERTS),
            local_experts: source.number(EXPERTS),
            alignment: source.number(1),
        };
        let dimensions = GemmDimensions {
            hidden: source.number(HIDDEN),
            intermediate: source.number(INTERMEDIATE),
            swap_operands: false,
        };
        let args = Permute {
            topk_ids: source.read(ROWS),
            expert_map: Some(source.read(EXPERTS)),
            expert_offsets: source.write(EXPERTS + 1),
            sorted_rows: source.write(ROWS),
            inverse: source.write(ROWS),
            row_experts: Some(source.write(ROWS)),
            problem_sizes: Some(ProblemSizesOut {
                dimensions,
                sizes1: source.write(EXPERTS * 3),
                sizes2: source.write(EXPERTS * 3),
            }),
            tile_schedule: Some(TileScheduleOut {
                block_m: source.number(crate::BLOCK_M),
                entries: source.write(tile_schedule_entries(ROWS, EXPERTS, crate::BLOCK_M)),
            }),
            path: PermutePath::Blocks { warps: source.number(2), steps: source.number(1) },
        };
        permute(stream, shape, args).map(drop)
    }),
    ("Permutation::from_lists", |source, stream| {
        let lists = PermutationLists {
            tokens: source.number(TOKENS),
            top_k: source.number(TOP_K),
            rows: source.number(ROWS),
            expert_offsets: source.write(EXPERTS + 1),
            sorted_rows: Some(source.write(ROWS)),
            inverse: Some(source.write(ROWS)),
            tile_schedule: Some(TileScheduleOut {
                block_m: source.number(crate::BLOCK_M),
                entries: source.write(tile_schedule_entries(ROWS, EXPERTS, crate::BLOCK_M)),
            }),
        };
        Permutation::from_lists(stream, lists).map(drop)
    }),
    ("permute_rows", |source, stream| {
        let scales = PermuteScales {
            groups: source.number(1),
            scales: source.read(TOKENS),
            layout: source.layout(),
            permuted: source.write(ROWS),
            permuted_layout: source.layout(),
        };
        let args = PermuteRows::<bf16> {
            activations: source.read(TOKENS * HIDDEN),
            columns: source.number(HIDDEN),
            scales: Some(scales),
            permutation: &source.permutation(stream),
            permuted: source.write(ROWS * HIDDEN),
        };
        permute_rows(stream, args)
    }),
    ("quantize, static", |source, stream| {
        let scheme = Scheme::TensorStatic { scale: source.read(1) };
        source.quantize(stream, None, Destinations::Identity, scheme)
    }),
    ("quantize, per tensor, of valid rows", |source, stream| {
        let permutation = source.permutation(stream);
        let workspace = source.write(quantize_workspace_bytes());
        let scheme = Scheme::TensorDynamic { scale: source.write(1), workspace };
        let destinations = Destinations::Valid { permutation: &permutation };
        source.quantize(stream, Some(&permutation), destinations, scheme)
    }),
    ("quantize, per token, scattered", |source, stream| {
        let permutation = source.permutation(stream);
        let scheme = Scheme::Token { scales: source.write(ROWS), absmax_limit: None };
        let destinations = Destinations::Scatter { permutation: &permutation, fill_padding: true };
        source.quantize(stream, Some(&permutation), destinations, scheme)
    }),
    ("quantize, per token, scales alone", |source, stream| {
        let permutation = source.permutation(stream);
        let scheme = Scheme::Token { scales: source.write(ROWS), absmax_limit: None };
        let destinations = Destinations::Scales { permutation: &permutation, fill_padding: true };
        source.quantize(stream, Some(&permutation), destinations, scheme)
    }),
    ("quantize, per group, by slots", |source, stream| {
        let permutation = source.permutation(stream);
        let (scales, layout) = (source.write(ROWS), source.layout());
        let scheme = Scheme::Group { group_size: source.number(128), scales, layout };
        source.quantize(stream, Some(&permutation), Destinations::Slots { permutation: &permutation }, scheme)
    }),
    ("grouped_gemm", |source, stream| {
        let scales = (AScale::Row(source.read(ROWS)), BScale::Channel(source.read(EXPERTS * INTERMEDIATE)));
        let out = GemmOut::F32(source.write(ROWS * INTERMEDIATE));
        source.grouped_gemm(stream, scales, out)
    }),
    ("grouped_gemm, by blocks", |source, stream| {
        let scales = (source.group_major(), BScale::Block(source.read(EXPERTS)));
        let out = GemmOut::Bf16(source.write(ROWS * INTERMEDIATE));
        source.grouped_gemm(stream, scales, out)
    }),
    ("activation, static", |source, stream| {
        source.activation(stream, Requantization::TensorStatic { scale: source.read(1) })
    }),
    ("activation, per token", |source, stream| {
        source.activation(stream, Requantization::Token { scales: source.write(ROWS) })
    }),
    ("activation, per group", |source, stream| {
        let (scales, layout) = (source.write(ROWS), source.layout());
        let group_size = source.number(128);
        source.activation(stream, Requantization::Group { group_size, scales, layout })
    }),
    ("activation_plain", |source, stream| {
        let args = ActivationPlain {
            x: source.read(ROWS * 2 * INTERMEDIATE),
            row_logits: Some(source.read(ROWS)),
            gating: ActivationFunction::Silu.into(),
            out: source.write(ROWS * INTERMEDIATE),
        };
        let shape = ActivationShape { rows: source.number(ROWS), intermediate: source.number(INTERMEDIATE) };
        activation_plain(stream, shape, args)
    }),
    ("unpermute", |source, stream| {
        let args = Unpermute {
            y: Activations::Bf16(source.read(ROWS * HIDDEN)),
            permutation: &source.permutation(stream),
            topk_weights: Some(source.read(ROWS)),
            addend: Some(source.read(TOKENS * HIDDEN)),
            hidden: source.number(HIDDEN),
            out: ActivationsMut::Bf16(source.write(TOKENS * HIDDEN)),
            adds: true,
        };
        unpermute(stream, args)
    }),
    ("cast", |source, stream| {
        let args = Cast {
            rows: source.number(TOKENS),
            columns: source.number(HIDDEN),
            x: source.read(TOKENS * HIDDEN),
            out: ActivationsMut::Bf16(source.write(TOKENS * HIDDEN)),
            adds: true,
        };
        cast(stream, args)
    }),
    ("sum_ranks", |source, stream| {
        let args = SumRanks {
            ranks: source.number(3),
            rank_rows: source.number(TOKENS),
            rows: source.number(TOKENS),
            columns: source.number(HIDDEN),
            x: Activations::Bf16(source.read(3 * TOKENS * HIDDEN)),
            out: ActivationsMut::F32(source.write(TOKENS * HIDDEN)),
        };
        sum_ranks(stream, args)
    }),
    ("problem_sizes", |source, stream| {
        let dimensions = GemmDimensions {
            hidden: source.number(HIDDEN),
            intermediate: source.number(INTERMEDIATE),
            swap_operands: true,
        };
        let (sizes1, sizes2) = (source.write(EXPERTS * 3), source.write(EXPERTS * 3));
        let out = ProblemSizesOut { dimensions, sizes1, sizes2 };
        problem_sizes(stream, source.read(EXPERTS + 1), source.number(EXPERTS), out)
    }),
    ("router_logits, few", |source, stream| source.router_logits(stream, RouterLogitsPath::Few, false)),
    ("router_logits, few, f16", |source, stream| source.router_logits(stream, RouterLogitsPath::Few, true)),
    ("router_logits, 16x8", |source, stream| source.router_logits(stream, RouterLogitsPath::Tile16x8, false)),
    ("router_logits, 64x64", |source, stream| {
        source.router_logits(stream, RouterLogitsPath::Tile64x64, false)
    }),
    ("softmax_top_k", |source, stream| softmax_top_k(stream, source.top_k(true), true)),
    ("sigmoid_top_k", |source, stream| sigmoid_top_k(stream, source.top_k(false))),
    ("grouped_top_k", |source, stream| {
        let grouped = Grouped {
            sigmoid: true,
            correction_bias: Some(source.read(EXPERTS)),
            groups: source.number(1),
            topk_group: source.number(1),
            renormalize: true,
            routed_scaling_factor: 1.0,
        };
        grouped_top_k(stream, source.top_k(false), grouped)
    }),
    ("sqrt_softplus_top_k, by score", |source, stream| {
        let choice = Choice::ByScore { correction_bias: Some(source.read(EXPERTS)) };
        let scoring = SqrtSoftplus { choice, renormalize: true, routed_scaling_factor: 1.0 };
        sqrt_softplus_top_k(stream, source.top_k(false), scoring)
    }),
    ("sqrt_softplus_top_k, by token", |source, stream| {
        let choice = Choice::ByToken {
            token_experts: source.read(7 * TOP_K),
            vocabulary: source.number(7),
            token_ids: source.read(TOKENS),
        };
        let scoring = SqrtSoftplus { choice, renormalize: true, routed_scaling_factor: 1.0 };
        sqrt_softplus_top_k(stream, source.top_k(false), scoring)
    }),
    ("MoeLayer::forward_with", |source, stream| {
        let (layer, workspace) = source.layer(false);
        let out = Output::from(source.write::<bf16>(TOKENS * HIDDEN));
        let hidden = source.read::<bf16>(TOKENS * HIDDEN);
        layer.forward_with(stream, Forward::new(hidden, workspace, out))
    }),
    ("MoeLayer::forward_with, a given routing", |source, stream| {
        let (layer, workspace) = source.layer(false);
        let out = Output::add(source.write::<f32>(TOKENS * HIDDEN));
        let forward = Forward::new(source.read::<f16>(TOKENS * HIDDEN), workspace, out);
        layer.forward_with(stream, forward.routed(source.read::<i32>(ROWS), source.read::<f32>(ROWS)))
    }),
    ("MoeLayer::forward_with, quantised", |source, stream| {
        let (layer, workspace) = source.layer(false);
        let (out, layout) = (Output::from(source.write::<f16>(TOKENS * HIDDEN)), source.layout());
        let hidden = Hidden::Quantised {
            values: source.read(TOKENS * HIDDEN),
            scales: Some(source.read(TOKENS)),
            layout,
        };
        let forward = Forward::new(hidden, workspace, out);
        layer.forward_with(stream, forward.routed(source.read::<u32>(ROWS), source.read::<f32>(ROWS)))
    }),
    ("MoeLayer::forward_with, by token", |source, stream| {
        let (layer, workspace) = source.layer(true);
        let out = Output::from(source.write::<bf16>(TOKENS * HIDDEN));
        let forward = Forward::new(source.read::<bf16>(TOKENS * HIDDEN), workspace, out);
        layer.forward_with(stream, forward.token_ids(source.read::<i32>(TOKENS)))
    }),
    ("append_shared", |source, stream| {
        let args = AppendShared {
            tokens: source.number(TOKENS),
            experts: source.number(EXPERTS),
            top_k: source.number(TOP_K),
            shared: source.number(1),
            given_ids: source.read(ROWS),
            given_weights: source.read(ROWS),
            gate_logits: Some(source.read(TOKENS)),
            topk_ids: source.write(TOKENS * (TOP_K + 1)),
            topk_weights: source.write(TOKENS * (TOP_K + 1)),
        };
        append_shared(stream, args)
    }),
];

/// The operations that the kernels of Hopper alone have.
pub const HOPPER_CALLS: &[Call] = &[
    ("grouped_gemm, sums by token", |source, stream| {
        let scales = (AScale::Call(source.read(1)), BScale::Expert(source.read(EXPERTS)));
        let (sums, topk_weights) = (source.write(TOKENS * INTERMEDIATE), Some(source.read(ROWS)));
        source.grouped_gemm(stream, scales, GemmOut::TokenSums(TokenSums { sums, topk_weights }))
    }),
    ("gated_gemm", |source, stream| {
        let channels = BScale::Channel(source.read(EXPERTS * 2 * INTERMEDIATE));
        let scales = (AScale::Row(source.read(ROWS)), channels);
        source.gated_gemm(stream, scales, Requantization::TensorStatic { scale: source.read(1) })
    }),
    ("gated_gemm, per group", |source, stream| {
        let scales = (source.group_major(), BScale::Expert(source.read(EXPERTS)));
        let (group_size, layout) = (source.number(128), source.layout());
        let requantization = Requantization::Group { group_size, scales: source.write(ROWS), layout };
        source.gated_gemm(stream, scales, requantization)
    }),
    ("pack_weights", |source, stream| {
        let (experts, n, k) = (source.number(EXPERTS), source.number(INTERMEDIATE), source.number(HIDDEN));
        let shape = PackedShape::plain(experts, n, k)?;
        let matrices = source.read::<E4m3>(EXPERTS * INTERMEDIATE * HIDDEN);
        pack_weights(stream, shape, matrices, source.write(EXPERTS * INTERMEDIATE * 128))
    }),
    ("unpack_weights", |source, stream| {
        let (experts, n, k) = (source.number(EXPERTS), source.number(INTERMEDIATE), source.number(HIDDEN));
        let shape = PackedShape::gated(experts, n, k)?;
        let packed = source.read::<E4m3>(EXPERTS * 2 * INTERMEDIATE * 128);
        unpack_weights(stream, shape, packed, source.write(EXPERTS * 2 * INTERMEDIATE * HIDDEN))
    }),
    ("pack_weights_in_place", |source, stream| {
        let (experts, n, k) = (source.number(EXPERTS), source.number(INTERMEDIATE), source.number(128));
        let shape = PackedShape::plain(experts, n, k)?;
        let weights = source.write::<E4m3>(EXPERTS * INTERMEDIATE * 128);
        pack_weights_in_place(stream, shape, weights, source.write(INTERMEDIATE * 128))
    }),
];
