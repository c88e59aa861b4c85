//! Up to eight tokens: the layer behind the router in one launch, against the oracle and against itself.

use std::cell::RefCell;

use crate::common::activation::FUNCTIONS;
use crate::common::checks::{out_of_bounds, relative_l2};
use crate::common::layers::{Poison, Skew, any_quantization, any_skew, config, on_device, random_routing};
use crate::common::oracle::{self, Layer};
use crate::common::{cases, device, timing};
use crate::forward::quantised;
use fp8_moe::ops::grouped_gemm::Path;
use fp8_moe::ops::pack_weights::PackedShape;
use fp8_moe::{
    Buffer, Device, Family, Forward, Hidden, IntermediateScales, MoeConfig, MoeLayer, Output, OutputType,
    Quantization, RawForward, RawHidden, RawOutput, RawRouting, Reduction, Routing, SliceMut, Step, Stream,
    WeightScales, Workspace,
};
use half::{bf16, f16};
use proptest::prelude::*;

/// The tests' device, where it has the kernel.
fn hopper() -> Option<Device> {
    Some(device()).filter(|device| device.family() == Family::Sm90a)
}

prop_compose! {
    /// Any layer that the kernel fits: columns in steps of 64, so that groups may be half ones. Its units have
    /// as few rows as there are, or as many, or what the table says.
    fn any_layer()(
        quantization in any_quantization(),
        experts in 1usize..=14,
        k in 1usize..=10,
        hidden in 1usize..=6,
        intermediate in 1usize..=6,
        activation in prop::sample::select(&FUNCTIONS),
        token_scales in prop::bool::weighted(0.3),
        order_free: bool,
        weighs_input in prop::bool::weighted(0.2),
        costs in prop::option::of(prop::sample::select(&[(0, 1), (1 << 30, 1)][..])),
    ) -> MoeConfig {
        let k = if weighs_input { 1 } else { k.min(experts) };
        let routing = match weighs_input {
            true => Routing::SigmoidInput,
            false => Routing::Softmax { renormalize: true },
        };
        let mut config = config(quantization, routing, [experts, k, hidden * 64, intermediate * 64]);
        config.activation = activation;
        if let Some(costs) = costs {
            (config.tuning.one_launch_unit_bytes, config.tuning.one_launch_copy_bytes) = costs;
        }
        config.reduction = if order_free { Reduction::OrderFree } else { Reduction::Deterministic };
        // With scales of rows in front of GEMM 2 packed weights have gate and up apart, which the kernel does
        // not read. None are packed where I is no multiple of 128, to which weights in blocks are padded.
        let is_packed = intermediate % 2 == 0 || quantization.weights() == WeightScales::Block128;
        config.intermediate_scales = match token_scales && !is_packed {
            true => IntermediateScales::Token,
            false => IntermediateScales::Group128,
        };
        config
    }
}

/// H and I of which one is short of a multiple of 128, or both, by so little that the weights are packed: by
/// 16, 32 or 64. In blocks I is padded by the layer.
const PADDED: [[usize; 2]; 8] = [
    [1008, 128],
    [128, 1008],
    [1008, 1008],
    [1520, 256],
    [256, 2016],
    [2112, 128],
    [128, 2112],
    [2880, 1008],
];

prop_compose! {
    /// A layer whose packed weights have zeros behind K.
    fn any_padded_layer()(
        quantization in any_quantization(),
        experts in 1usize..=5,
        k in 1usize..=3,
        [hidden, intermediate] in prop::sample::select(&PADDED),
        activation in prop::sample::select(&FUNCTIONS),
        limit in prop::option::weighted(0.3, 0.5f32..3.0),
        weighs_input in prop::bool::weighted(0.2),
        costs in prop::option::of(prop::sample::select(&[(0, 1), (1 << 30, 1)][..])),
    ) -> MoeConfig {
        let (k, routing) = match weighs_input {
            true => (1, Routing::SigmoidInput),
            false => (k.min(experts), Routing::Softmax { renormalize: true }),
        };
        let mut config = config(quantization, routing, [experts, k, hidden, intermediate]);
        (config.activation, config.activation_limit) = (activation, limit);
        if let Some(costs) = costs {
            (config.tuning.one_launch_unit_bytes, config.tuning.one_launch_copy_bytes) = costs;
        }
        config
    }
}

/// A layer with its inputs.
struct Case {
    stream: Stream,
    oracle: Layer,
    layer: MoeLayer,
    tokens: usize,
    host: (Vec<bf16>, Vec<i32>, Vec<f32>),
    hidden: Buffer<bf16>,
    ids: Buffer<i32>,
    weights: Buffer<f32>,
}

impl Case {
    fn new(device: &Device, mut config: MoeConfig, tokens: usize, skew: Skew, seed: u64) -> Case {
        config.path = Path::OneLaunch;
        let oracle = Layer::random(config, seed);
        let hidden = oracle::hidden_states(tokens * oracle.config.hidden_size, seed ^ 1);
        let (ids, weights) = random_routing(&oracle.config, tokens, skew, seed ^ 2);
        Case {
            stream: device.default_stream(),
            layer: on_device(device, &oracle),
            tokens,
            hidden: device.upload(&hidden).unwrap(),
            ids: device.upload(&ids).unwrap(),
            weights: device.upload(&weights).unwrap(),
            host: (hidden, ids, weights),
            oracle,
        }
    }

    fn workspace(&self) -> Workspace {
        self.layer.workspace(self.tokens).unwrap()
    }

    fn len(&self) -> usize {
        self.hidden.len()
    }

    /// Runs it into `out`, and sees to it that it is one launch.
    fn run_into<'a>(&'a self, workspace: &'a mut Workspace, out: impl Into<Output<'a>>) {
        self.run_hidden((&self.hidden).into(), workspace, out);
    }

    /// The same of other hidden states than the case's.
    fn run_hidden<'a>(
        &'a self,
        hidden: Hidden<'a>,
        workspace: &'a mut Workspace,
        out: impl Into<Output<'a>>,
    ) {
        let steps = RefCell::new(Vec::new());
        let observe = |step: Step| steps.borrow_mut().push(step.name);
        let forward = Forward::new(hidden, workspace, out).routed(&self.ids, &self.weights);
        self.layer.forward_with(&self.stream, forward.observed(&observe)).unwrap();
        assert_eq!(*steps.borrow(), ["one launch"], "{:?}", self.layer.config());
    }

    fn run(&self, workspace: &mut Workspace) -> Vec<f32> {
        let mut out = self.stream.device().uninit::<f32>(self.len()).unwrap();
        self.run_into(workspace, &mut out);
        out.to_vec(&self.stream).unwrap()
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(cases(10))]

    #[test]
    fn agrees_with_the_oracle(
        config in any_layer(), tokens in 1usize..=8, skew in any_skew(), seed: u64,
    ) {
        timing(seed);
        let Some(device) = hopper() else { return Ok(()) };
        let case = Case::new(&device, config, tokens, skew, seed);
        let ours = case.run(&mut case.workspace());
        let (hidden, ids, weights) = &case.host;
        prop_assert_eq!(out_of_bounds(&ours, &case.oracle.forward(hidden, ids, weights)), None);
    }

    /// Launch after launch on one workspace, whatever its memory holds: the control words find back to zero.
    #[test]
    fn launches_repeat(config in any_layer(), tokens in 1usize..=8, skew in any_skew(), seed: u64, byte: u8) {
        timing(seed);
        let Some(device) = hopper() else { return Ok(()) };
        let case = Case::new(&device, config.clone(), tokens, skew, seed);
        let fewer = Case::new(&device, config, 1 + seed as usize % tokens, Skew::Invalid, seed ^ 5);
        let mut workspace = case.workspace();
        let (first, first_of_fewer) = (case.run(&mut workspace), fewer.run(&mut workspace));
        for (round, poison) in (1..).zip([Poison::Fresh, Poison::Byte(byte), Poison::Random(seed)]) {
            timing(seed.wrapping_add(round));
            poison.fill(workspace.memory(), &case.stream).unwrap();
            prop_assert!(bits(&case.run(&mut workspace)) == bits(&first), "{poison:?}");
            prop_assert!(bits(&fewer.run(&mut workspace)) == bits(&first_of_fewer), "{poison:?}");
        }
    }

    #[test]
    fn ranks_add_up(config in any_layer(), tokens in 1usize..=8, seed: u64) {
        timing(seed);
        let Some(device) = hopper() else { return Ok(()) };
        let mut case = Case::new(&device, config.clone(), tokens, Skew::Invalid, seed);
        let whole = case.run(&mut case.workspace());
        let mut sum = vec![0.0; whole.len()];
        let cut = seed as usize % (config.experts + 1);
        for local in [0..cut, cut..config.experts] {
            if local.is_empty() {
                continue;
            }
            let mut rank = config.clone();
            rank.path = Path::OneLaunch;
            rank.local_experts = Some(local.collect());
            case.layer = MoeLayer::new(&device, &rank, &case.oracle.weights(&rank)).unwrap();
            let part = case.run(&mut case.workspace());
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        let distance = relative_l2(&sum, &whole);
        prop_assert!(distance < 1e-6, "distance {distance}");
    }

    /// Outputs of 16 bits are the f32 one, rounded; and added to another it is added with one rounding.
    #[test]
    fn outputs_differ_by_a_rounding(mut config in any_layer(), tokens in 1usize..=8, seed: u64) {
        timing(seed);
        let Some(device) = hopper() else { return Ok(()) };
        config.reduction = Reduction::OrderFree;
        let case = Case::new(&device, config, tokens, Skew::Invalid, seed);
        let mut workspace = case.workspace();
        let full = case.run(&mut workspace);
        let mut half = device.uninit::<bf16>(case.len()).unwrap();
        case.run_into(&mut workspace, &mut half);
        let rounded: Vec<_> = full.iter().map(|&x| bf16::from_f32(x)).collect();
        prop_assert!(half.to_vec(&case.stream).unwrap() == rounded);
        let mut half = device.uninit::<f16>(case.len()).unwrap();
        case.run_into(&mut workspace, &mut half);
        let rounded: Vec<_> = full.iter().map(|&x| f16::from_f32(x)).collect();
        prop_assert!(half.to_vec(&case.stream).unwrap() == rounded);
        let before: Vec<f32> = (0..case.len()).map(|i| i as f32 / 7.0).collect();
        let mut out = device.upload(&before).unwrap();
        case.run_into(&mut workspace, Output::Add(SliceMut::from(&mut out).into()));
        let sum: Vec<f32> = full.iter().zip(&before).map(|(a, b)| a + b).collect();
        prop_assert_eq!(bits(&out.to_vec(&case.stream).unwrap()), bits(&sum));
        let before: Vec<_> = before.iter().map(|&x| bf16::from_f32(x)).collect();
        let mut out = device.upload(&before).unwrap();
        case.run_into(&mut workspace, Output::Add(SliceMut::from(&mut out).into()));
        let sum: Vec<_> = full.iter().zip(&before).map(|(a, b)| bf16::from_f32(a + b.to_f32())).collect();
        prop_assert!(out.to_vec(&case.stream).unwrap() == sum);
    }

    /// By addresses the control words lie in the workspace, which holds anything.
    #[test]
    fn raw_forwards_give_the_same_bits(config in any_layer(), tokens in 1usize..=8, seed: u64) {
        timing(seed);
        let Some(device) = hopper() else { return Ok(()) };
        let case = Case::new(&device, config, tokens, Skew::Uniform, seed);
        let expected = case.run(&mut case.workspace());
        let mut memory = device.uninit::<u8>(case.layer.workspace_bytes(tokens).unwrap()).unwrap();
        Poison::Random(seed).fill(memory.as_mut_slice(), &case.stream).unwrap();
        for round in 0..2 {
            timing(seed ^ round);
            let out = device.uninit::<f32>(case.len()).unwrap();
            let forward = RawForward {
                stream: case.stream.raw(),
                tokens,
                hidden: RawHidden::Bf16(case.hidden.ptr().raw()),
                routing: RawRouting::Given {
                    ids: case.ids.ptr().raw(),
                    weights: case.weights.ptr().raw(),
                },
                workspace: memory.ptr().raw(),
                workspace_bytes: memory.len(),
                out: RawOutput { address: out.ptr().raw(), element: OutputType::F32, add: false },
            };
            // SAFETY: the addresses are those of the buffers, which live until the stream is waited for.
            unsafe { case.layer.forward_raw(forward).unwrap() };
            prop_assert_eq!(bits(&out.to_vec(&case.stream).unwrap()), bits(&expected));
        }
    }
}

proptest! {
    #![proptest_config(cases(8))]

    /// Where packed weights have zeros behind K: against the oracle, in 16 bits, and of hidden states that
    /// the caller has quantised.
    #[test]
    fn padded_columns(
        config in any_padded_layer(), tokens in 1usize..=8, skew in any_skew(), seed: u64,
    ) {
        timing(seed);
        let Some(device) = hopper() else { return Ok(()) };
        let case = Case::new(&device, config, tokens, skew, seed);
        prop_assert!(PackedShape::of_layer(&device, case.layer.config()).is_some());
        let mut workspace = case.workspace();
        let ours = case.run(&mut workspace);
        let (hidden, ids, weights) = &case.host;
        prop_assert_eq!(out_of_bounds(&ours, &case.oracle.forward(hidden, ids, weights)), None);
        let mut half = device.uninit::<bf16>(case.len()).unwrap();
        case.run_into(&mut workspace, &mut half);
        let rounded: Vec<_> = ours.iter().map(|&x| bf16::from_f32(x)).collect();
        prop_assert!(half.to_vec(&case.stream).unwrap() == rounded);
        // A weight that multiplies an input does so before it is quantised.
        if case.oracle.config.routing != Routing::SigmoidInput {
            let (values, scales, layout) = quantised(&case.stream, &case.oracle, &case.hidden);
            let scales = scales.as_ref().map(|scales| scales.as_slice());
            let given = Hidden::Quantised { values: values.as_slice(), scales, layout };
            let mut out = device.uninit::<f32>(case.len()).unwrap();
            case.run_hidden(given, &mut workspace, &mut out);
            prop_assert_eq!(bits(&out.to_vec(&case.stream).unwrap()), bits(&ours));
        }
    }
}

/// gpt-oss's sizes, of usual layers.
#[test]
fn columns_of_gpt_oss() {
    let Some(device) = hopper() else { return };
    for (seed, quantization) in (0..).zip([Quantization::Block128, Quantization::ChannelToken]) {
        timing(seed);
        let config = config(quantization, Routing::Softmax { renormalize: true }, [2, 1, 2880, 2880]);
        let case = Case::new(&device, config, 2, Skew::Uniform, seed);
        assert!(PackedShape::of_layer(&device, case.layer.config()).is_some());
        let mut workspace = case.workspace();
        let full = case.run(&mut workspace);
        let (hidden, ids, weights) = &case.host;
        assert_eq!(out_of_bounds(&full, &case.oracle.forward(hidden, ids, weights)), None, "{quantization}");
        let mut half = device.uninit::<bf16>(case.len()).unwrap();
        case.run_into(&mut workspace, &mut half);
        let rounded: Vec<_> = full.iter().map(|&x| bf16::from_f32(x)).collect();
        assert!(half.to_vec(&case.stream).unwrap() == rounded, "{quantization}");
    }
}

/// Shared memory behind K has what GEMM 1 has left there, unless zeros are written: a token of NaNs is one in
/// its own row alone.
#[test]
fn nans_stay_in_their_row() {
    let Some(device) = hopper() else { return };
    for quantization in [Quantization::ChannelToken, Quantization::TensorStatic] {
        let mut config = config(quantization, Routing::Softmax { renormalize: true }, [5, 3, 1024, 1008]);
        // Blocks have units of any tile.
        config.tuning.one_launch_draw_bytes = 0;
        for seed in 0..2 {
            timing(seed);
            let mut case = Case::new(&device, config.clone(), 6, Skew::Uniform, seed);
            let columns = case.len() / 6;
            let mut workspace = case.workspace();
            let clean = case.run(&mut workspace);
            let row = seed as usize * columns..(seed as usize + 1) * columns;
            case.host.0[row.clone()].fill(bf16::NAN);
            case.hidden = device.upload(&case.host.0).unwrap();
            let ours = case.run(&mut workspace);
            assert!(ours[row.clone()].iter().all(|x| x.is_nan()), "{quantization}");
            for others in [0..row.start, row.end..ours.len()] {
                assert_eq!(bits(&ours[others.clone()]), bits(&clean[others]), "{quantization}");
            }
        }
    }
}

/// Matrices whose rows of K take more than one stage, and whose K is cut for GEMM 2.
#[test]
fn long_rows() {
    let Some(device) = hopper() else { return };
    for (seed, quantization) in
        (0..).zip([Quantization::Block128, Quantization::ChannelToken, Quantization::TensorStatic])
    {
        for (sizes, tokens) in [([4, 2, 2240, 64], 3), ([3, 1, 64, 4288], 2), ([2, 1, 5120, 2112], 1)] {
            timing(seed);
            let config = config(quantization, Routing::Softmax { renormalize: true }, sizes);
            let case = Case::new(&device, config, tokens, Skew::Uniform, seed);
            let mut workspace = case.workspace();
            let ours = case.run(&mut workspace);
            let (hidden, ids, weights) = &case.host;
            let expected = case.oracle.forward(hidden, ids, weights);
            assert_eq!(out_of_bounds(&ours, &expected), None, "{quantization}, {sizes:?}");
            assert_eq!(bits(&case.run(&mut workspace)), bits(&ours), "{quantization}, {sizes:?}");
        }
    }
}

/// As many pairs as there may be, of few experts and of many: tables of four rounds.
#[test]
fn most_pairs() {
    let Some(device) = hopper() else { return };
    for (seed, (experts, skew)) in (0..).zip([(300, Skew::Uniform), (17, Skew::Invalid)]) {
        timing(seed);
        let routing = Routing::Softmax { renormalize: true };
        let case =
            Case::new(&device, config(Quantization::Block128, routing, [experts, 16, 64, 64]), 8, skew, seed);
        let ours = case.run(&mut case.workspace());
        let (hidden, ids, weights) = &case.host;
        assert_eq!(out_of_bounds(&ours, &case.oracle.forward(hidden, ids, weights)), None, "{experts}");
    }
}

/// Layers with entries of their own, which are those with bf16 outputs: the f32 outputs of the entry for all,
/// rounded. More experts than a block stores offsets of.
#[test]
fn usual_layers() {
    let Some(device) = hopper() else { return };
    for (seed, quantization) in (0..).zip([Quantization::Block128, Quantization::ChannelToken]) {
        for (sizes, tokens, skew) in [
            ([150, 10, 128, 128], 3, Skew::Uniform),
            ([6, 2, 384, 256], 5, Skew::Invalid),
            ([3, 3, 128, 640], 2, Skew::Steep),
        ] {
            timing(seed);
            let config = config(quantization, Routing::Softmax { renormalize: true }, sizes);
            let case = Case::new(&device, config, tokens, skew, seed);
            let mut workspace = case.workspace();
            let full = case.run(&mut workspace);
            let (hidden, ids, weights) = &case.host;
            let expected = case.oracle.forward(hidden, ids, weights);
            assert_eq!(out_of_bounds(&full, &expected), None, "{quantization}, {sizes:?}");
            let mut half = device.uninit::<bf16>(case.len()).unwrap();
            case.run_into(&mut workspace, &mut half);
            let rounded: Vec<_> = full.iter().map(|&x| bf16::from_f32(x)).collect();
            assert!(half.to_vec(&case.stream).unwrap() == rounded, "{quantization}, {sizes:?}");
        }
    }
}

/// A routing without a valid id gives zeros, and leaves the control words as they were.
#[test]
fn nobody() {
    let Some(device) = hopper() else { return };
    let config = config(Quantization::Block128, Routing::Softmax { renormalize: true }, [4, 2, 320, 128]);
    let case = Case::new(&device, config, 5, Skew::Uniform, 1);
    let mut workspace = case.workspace();
    let first = case.run(&mut workspace);
    for _ in 0..2 {
        let mut out = device.uninit::<f32>(case.len()).unwrap();
        let nobody = device.upload(&[-1, 4].repeat(5)).unwrap();
        let forward = Forward::new(&case.hidden, &mut workspace, &mut out).routed(&nobody, &case.weights);
        case.layer.forward_with(&case.stream, forward).unwrap();
        assert!(out.to_vec(&case.stream).unwrap().iter().all(|&x| x == 0.0));
        assert_eq!(bits(&case.run(&mut workspace)), bits(&first));
    }
}
