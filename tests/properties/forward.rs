//! One forward for all: types of hidden states and ids, outputs that are added to, addresses instead of
//! slices, weights of others. Each way gives the bits of the plain one, or is refused.

use std::sync::Arc;

use crate::common::layers::{Skew, config, on_device, random_routing, run_own};
use crate::common::oracle::{self, Layer};
use crate::common::{cases, device, families, timing};
use fp8_moe::ops::permute::ScaleLayout;
use fp8_moe::ops::quantize::{Destinations, Quantize, QuantizeShape, Scheme, quantize};
use fp8_moe::{
    ActivationScales, Buffer, Device, DeviceMemory, E4m3, Error, Family, Forward, Gather, Hidden, MoeConfig,
    MoeDeviceWeights, MoeLayer, Output, OutputElement, OutputType, Quantization, RawForward, RawHidden,
    RawOutput, RawRouting, Reduction, Result, Routing, Stream, Tuning,
};
use half::{bf16, f16};
use proptest::prelude::*;

const SOFTMAX: Routing = Routing::Softmax { renormalize: true };
const SCHEMES: [Quantization; 3] =
    [Quantization::TensorStatic, Quantization::ChannelToken, Quantization::Block128];

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Inputs on a device.
struct Inputs {
    hidden: Buffer<bf16>,
    ids: Buffer<i32>,
    weights: Buffer<f32>,
}

impl Inputs {
    fn draw(device: &Device, config: &MoeConfig, tokens: usize, seed: u64) -> Inputs {
        let hidden = oracle::hidden_states(tokens * config.hidden_size, seed);
        let (ids, weights) = random_routing(config, tokens, Skew::Invalid, seed ^ 1);
        Inputs {
            hidden: device.upload(&hidden).unwrap(),
            ids: device.upload(&ids).unwrap(),
            weights: device.upload(&weights).unwrap(),
        }
    }

    /// The output of `layer` in f32, with the given routing.
    fn run<'a>(
        &'a self,
        stream: &Stream,
        layer: &MoeLayer,
        hidden: impl Into<Hidden<'a>>,
    ) -> Result<Vec<f32>> {
        let hidden: Hidden<'_> = hidden.into();
        let mut workspace = layer.workspace(self.hidden.len() / layer.config().hidden_size)?;
        let mut out = stream.device().uninit::<f32>(self.hidden.len())?;
        let forward = Forward::new(hidden, &mut workspace, &mut out);
        layer.forward_with(stream, forward.routed(&self.ids, &self.weights))?;
        out.to_vec(stream)
    }
}

/// The hidden states quantised by the scheme of `layer`, token by token.
pub(crate) fn quantised(
    stream: &Stream,
    layer: &Layer,
    hidden: &Buffer<bf16>,
) -> (Buffer<E4m3>, Option<Buffer<f32>>, ScaleLayout) {
    let (device, columns) = (stream.device(), layer.config.hidden_size);
    let rows = hidden.len() / columns;
    let mut q = device.uninit(hidden.len()).unwrap();
    let activations = layer.config.quantization.activations();
    let groups = match activations {
        ActivationScales::Group128 => columns.div_ceil(128),
        _ => 1,
    };
    let layout = ScaleLayout::row_major(groups);
    let mut scales = device.uninit(rows * groups).unwrap();
    let given = device.upload(&[layer.input_scales.map_or(0.0, |[first, _]| first)]).unwrap();
    let scheme = match activations {
        ActivationScales::Static => Scheme::TensorStatic { scale: given.as_slice() },
        ActivationScales::Token => Scheme::Token { scales: scales.as_mut_slice(), absmax_limit: None },
        ActivationScales::Group128 => {
            Scheme::Group { group_size: 128, scales: scales.as_mut_slice(), layout }
        }
        other => panic!("no test has {other}"),
    };
    let args = Quantize {
        x: hidden.into(),
        row_weight: None,
        destinations: Destinations::Identity,
        scheme,
        q: q.as_mut_slice(),
        cleared: None,
    };
    quantize(stream, QuantizeShape { rows, columns }, args).unwrap();
    stream.synchronize().unwrap();
    let has_scales = activations != ActivationScales::Static;
    (q, has_scales.then_some(scales), layout)
}

/// The refusal of an argument, as text.
#[track_caller]
fn refusal<T>(result: Result<T>) -> String {
    match result {
        Err(error @ Error::Argument { .. }) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("was accepted"),
    }
}

proptest! {
    #![proptest_config(cases(6))]

    /// Quantised by the caller as the layer would, whether rows are scattered or gathered, is the same bit
    /// for bit.
    #[test]
    fn quantised_hidden_states(
        tokens in 1usize..150, hidden in 1usize..20, gather: bool, seed: u64,
        quantization in prop::sample::select(&SCHEMES),
    ) {
        timing(seed);
        let gather = if gather { Gather::Always } else { Gather::Never };
        let config = config(quantization, SOFTMAX, [4, 2, hidden * 16, 64]).to_builder().gather(gather);
        let layer = Layer::random(config.build().unwrap(), seed);
        for device in families() {
            let stream = Stream::new(&device).unwrap();
            let inputs = Inputs::draw(&device, &layer.config, tokens, seed);
            let on_device = on_device(&device, &layer);
            let (values, scales, layout) = quantised(&stream, &layer, &inputs.hidden);
            let scales = scales.as_ref().map(|scales| scales.as_slice());
            let given = Hidden::Quantised { values: values.as_slice(), scales, layout };
            let ours = inputs.run(&stream, &on_device, &inputs.hidden).unwrap();
            prop_assert_eq!(bits(&inputs.run(&stream, &on_device, given).unwrap()), bits(&ours));
        }
    }

    /// Hidden states that both types hold give the same in either, and ids in either type.
    #[test]
    fn f16_hidden_states_and_unsigned_ids(tokens in 1usize..40, seed: u64) {
        let layer = Layer::random(config(Quantization::Block128, SOFTMAX, [6, 2, 144, 64]), seed);
        let device = device();
        let stream = Stream::new(&device).unwrap();
        let inputs = Inputs::draw(&device, &layer.config, tokens, seed);
        let values: Vec<f32> = inputs.hidden.to_vec(&stream).unwrap().iter().map(|x| x.to_f32()).collect();
        // Both hold eighths of small numbers.
        let values: Vec<f32> = values.iter().map(|x| (x * 8.0).round().clamp(-100.0, 100.0) / 8.0).collect();
        let wide = device.upload(&values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>()).unwrap();
        let half = device.upload(&values.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>()).unwrap();
        let on_device = on_device(&device, &layer);
        let expected = inputs.run(&stream, &on_device, &wide).unwrap();
        prop_assert_eq!(bits(&inputs.run(&stream, &on_device, &half).unwrap()), bits(&expected));

        let unsigned = inputs.ids.as_slice().cast::<u32>();
        let mut workspace = on_device.workspace(tokens).unwrap();
        let mut out = device.uninit::<f32>(wide.len()).unwrap();
        let forward = Forward::new(&wide, &mut workspace, &mut out).routed(unsigned, &inputs.weights);
        on_device.forward_with(&stream, forward).unwrap();
        prop_assert_eq!(bits(&out.to_vec(&stream).unwrap()), bits(&expected));
    }
}

/// A type of outputs, for the next test.
trait Out: OutputElement + PartialEq + std::fmt::Debug {
    /// What rounding moves a number by at most, relative to it.
    const ROUNDING: f32;
    fn of(value: f32) -> Self;
    fn wide(self) -> f32;
}

macro_rules! out {
    ($($ty:ty: $rounding:expr, $of:expr, $wide:expr;)*) => {$(
        impl Out for $ty {
            const ROUNDING: f32 = $rounding;
            fn of(value: f32) -> $ty {
                $of(value)
            }
            fn wide(self) -> f32 {
                $wide(self)
            }
        }
    )*};
}
out! {
    f32: 0.0, std::convert::identity, std::convert::identity;
    bf16: 1.0 / 256.0, bf16::from_f32, bf16::to_f32;
    f16: 1.0 / 2048.0, f16::from_f32, f16::to_f32;
}

/// `out += result` is one addition in f32 to the result in f32, and one rounding.
fn check_added<O: Out>(device: &Device, reduction: Reduction, sizes: [usize; 4]) {
    let config = config(Quantization::Block128, SOFTMAX, sizes).to_builder().reduction(reduction);
    let layer = Layer::random(config.build().unwrap(), 3);
    let stream = Stream::new(device).unwrap();
    let inputs = Inputs::draw(device, &layer.config, 33, 4);
    let on_device = on_device(device, &layer);
    let plain = inputs.run(&stream, &on_device, &inputs.hidden).unwrap();
    let before: Vec<O> = (0..plain.len()).map(|i| O::of((i % 1400) as f32 * 0.01 - 7.0)).collect();
    let mut out = device.upload(&before).unwrap();
    let mut workspace = on_device.workspace(33).unwrap();
    let forward = Forward::new(&inputs.hidden, &mut workspace, Output::add(&mut out));
    on_device.forward_with(&stream, forward.routed(&inputs.ids, &inputs.weights)).unwrap();
    let pairs = before.iter().zip(&plain);
    for (i, (sum, (&before, &plain))) in out.to_vec(&stream).unwrap().into_iter().zip(pairs).enumerate() {
        let exact = before.wide() + plain;
        if reduction == Reduction::Deterministic {
            assert_eq!(sum, O::of(exact), "{i}: {before:?} + {plain}");
            continue;
        }
        // A part of a cut sum is added by itself: each addition rounds once, and the end once more.
        let bound = 8.0 * f32::EPSILON * (before.wide().abs() + plain.abs()) + O::ROUNDING * exact.abs();
        assert!((sum.wide() - exact).abs() <= bound, "{i}: {sum:?}, not {before:?} + {plain}");
    }
}

#[test]
fn results_are_added_to_an_output() {
    for device in families() {
        // Rows of whole chunks, and others.
        for hidden in [128, 144] {
            check_added::<f32>(&device, Reduction::Deterministic, [4, 2, hidden, 64]);
            check_added::<bf16>(&device, Reduction::Deterministic, [4, 2, hidden, 64]);
            check_added::<f16>(&device, Reduction::Deterministic, [4, 2, hidden, 64]);
        }
        if device.family() == Family::Sm90a {
            check_added::<f32>(&device, Reduction::OrderFree, [4, 1, 128, 128]);
            check_added::<bf16>(&device, Reduction::OrderFree, [4, 1, 128, 128]);
            check_added::<f16>(&device, Reduction::OrderFree, [4, 1, 128, 128]);
        }
    }
}

/// Hidden states in f16 with the layer's own router, which takes them as they are: what bf16 holds too is
/// routed the same, bit for bit where the kernels add in one order.
#[test]
fn the_router_takes_f16() {
    for device in families() {
        let stream = Stream::new(&device).unwrap();
        let layer = Layer::random(config(Quantization::Block128, SOFTMAX, [8, 2, 144, 64]), 9);
        // States in f16 take the router's kernel for few tokens in any case, and others are to as well.
        let mut tuning = Tuning::default();
        tuning.router_few_tokens = 8;
        let on_device = on_device(&device, &layer).tuned(tuning).unwrap();
        for tokens in [3, 8] {
            let hidden = oracle::hidden_states(tokens * 144, 10);
            let narrow: Vec<f16> = hidden.iter().map(|x| f16::from_f32(x.to_f32())).collect();
            // Of both types: bf16 whose exponents f16 has.
            let both: Vec<bf16> = narrow.iter().map(|x| bf16::from_f32(x.to_f32())).collect();
            let narrow: Vec<f16> = both.iter().map(|x| f16::from_f32(x.to_f32())).collect();
            assert!(both.iter().zip(&narrow).all(|(wide, narrow)| wide.to_f32() == narrow.to_f32()));
            let expected = run_own(&stream, &on_device, &both).unwrap().0;
            let narrow = device.upload(&narrow).unwrap();
            let mut workspace = on_device.workspace(tokens).unwrap();
            let mut out = device.uninit::<f32>(narrow.len()).unwrap();
            on_device.forward_with(&stream, Forward::new(&narrow, &mut workspace, &mut out)).unwrap();
            assert_eq!(bits(&out.to_vec(&stream).unwrap()), bits(&expected), "{tokens} tokens");
        }
    }
}

/// By addresses it is the same, with the layer's own routing and with a given one.
#[test]
fn raw_forwards_do_the_same() {
    let device = device();
    let stream = Stream::new(&device).unwrap();
    let layer = Layer::random(config(Quantization::Block128, SOFTMAX, [8, 2, 128, 64]), 5);
    let on_device = on_device(&device, &layer);
    let inputs = Inputs::draw(&device, &layer.config, 9, 6);
    let hidden = inputs.hidden.to_vec(&stream).unwrap();
    let own = run_own(&stream, &on_device, &hidden).unwrap().0;
    let given = inputs.run(&stream, &on_device, &inputs.hidden).unwrap();
    let bytes = on_device.workspace_bytes(9).unwrap();
    let workspace = device.uninit::<u8>(bytes).unwrap();
    let out = device.uninit::<f32>(9 * 128).unwrap();
    stream.synchronize().unwrap();
    let forward = RawForward {
        stream: stream.raw(),
        tokens: 9,
        hidden: RawHidden::Bf16(inputs.hidden.ptr().raw()),
        routing: RawRouting::Own,
        workspace: workspace.ptr().raw(),
        workspace_bytes: bytes,
        out: RawOutput { address: out.ptr().raw(), element: OutputType::F32, add: false },
    };
    let (ids, weights) = (inputs.ids.ptr().raw(), inputs.weights.ptr().raw());
    for (routing, expected) in [(RawRouting::Own, own), (RawRouting::Given { ids, weights }, given)] {
        // SAFETY: the buffers are as long as the call says, alive until `synchronize` has waited, and used by
        // nothing else.
        unsafe { on_device.forward_raw(RawForward { routing, ..forward }) }.unwrap();
        stream.synchronize().unwrap();
        assert_eq!(bits(&out.to_vec(&stream).unwrap()), bits(&expected));
    }
    for (wrong, message) in [
        (RawForward { workspace: forward.workspace + 16, ..forward }, "must be a multiple of 256"),
        (RawForward { workspace_bytes: bytes - 1, ..forward }, "bytes for 9 tokens"),
        (
            RawForward {
                hidden: RawHidden::Quantised {
                    values: forward.workspace,
                    scales: Some(forward.workspace),
                    layout: ScaleLayout::row_major(1),
                },
                ..forward
            },
            "must be bf16 or f16 for the layer's own",
        ),
        (RawForward { tokens: usize::MAX, ..forward }, "must have below 2^63 elements"),
    ] {
        // SAFETY: as above; each is refused before anything is enqueued.
        let refused = refusal(unsafe { on_device.forward_raw(wrong) });
        assert!(refused.contains(message), "{refused}");
    }
}

/// A layer over memory of others, shared or by address, gate and up together or joined, gives the same bits.
#[test]
fn weights_of_others() {
    let device = device();
    let stream = Stream::new(&device).unwrap();
    let layer = Layer::random(config(Quantization::ChannelToken, SOFTMAX, [4, 2, 64, 48]), 7);
    let config = &layer.config;
    let expected = on_device(&device, &layer);
    let inputs = Inputs::draw(&device, config, 12, 8);
    let expected = inputs.run(&stream, &expected, &inputs.hidden).unwrap();

    let weights = layer.weights(config);
    let all = |part: fn(&fp8_moe::ExpertWeights<'_>) -> Vec<E4m3>| {
        device.upload(&weights.experts.iter().flat_map(part).collect::<Vec<_>>()).unwrap()
    };
    let scales = |part: fn(&fp8_moe::ExpertWeights<'_>) -> Vec<f32>| {
        device.upload(&weights.experts.iter().flat_map(part).collect::<Vec<_>>()).unwrap()
    };
    let (gate, up, down) = (all(|e| e.gate.to_vec()), all(|e| e.up.to_vec()), all(|e| e.down.to_vec()));
    let (gate_scale, up_scale) = (scales(|e| e.gate_scale.to_vec()), scales(|e| e.up_scale.to_vec()));
    let down_scale = scales(|e| e.down_scale.to_vec());
    let w13 = MoeDeviceWeights::join(&stream, 4, gate.as_slice(), up.as_slice()).unwrap();
    let w13_scale = MoeDeviceWeights::join(&stream, 4, gate_scale.as_slice(), up_scale.as_slice()).unwrap();
    stream.synchronize().unwrap();
    let (w13, w13_scale) = (Arc::new(w13), Arc::new(w13_scale));
    let (down, down_scale) = (Arc::new(down), Arc::new(down_scale));
    for raw in [false, true] {
        let matrix = |buffer: &Arc<Buffer<E4m3>>| -> DeviceMemory<E4m3> {
            if raw {
                // SAFETY: the buffer outlives the layer, and nobody writes it.
                unsafe { DeviceMemory::from_raw(&device, buffer.ptr().raw(), buffer.len()) }.unwrap()
            } else {
                DeviceMemory::part(buffer.clone(), 0..buffer.len()).unwrap()
            }
        };
        let weights =
            MoeDeviceWeights::new(matrix(&w13), w13_scale.clone(), matrix(&down), down_scale.clone());
        let layer = MoeLayer::from_device(&device, config, weights).unwrap();
        assert_eq!(bits(&inputs.run(&stream, &layer, &inputs.hidden).unwrap()), bits(&expected));
    }
    assert!(refusal(DeviceMemory::part(down, 1..1 << 40)).starts_with("DeviceMemory::part: range = "));
    // SAFETY: refused.
    let odd = refusal(unsafe { DeviceMemory::<E4m3>::from_raw(&device, 8, 0) });
    assert_eq!(odd, "DeviceMemory::from_raw: address = 0x8: must be a multiple of 16");
    let uneven = refusal(MoeDeviceWeights::join(&stream, 3, gate_scale.as_slice(), gate_scale.slice(1..)));
    assert!(uneven.starts_with("MoeDeviceWeights::join: up = "), "{uneven}");
}

#[test]
fn what_cannot_be_combined_is_refused() {
    let device = device();
    let stream = device.default_stream();
    let layer = Layer::random(config(Quantization::Block128, SOFTMAX, [4, 2, 64, 64]), 1);
    let moe = on_device(&device, &layer);
    let inputs = Inputs::draw(&device, &layer.config, 2, 2);
    let mut out = device.zeros::<bf16>(128).unwrap();
    let values = device.zeros::<E4m3>(128).unwrap();
    let layout = ScaleLayout::row_major(1);
    let unscaled = Hidden::Quantised { values: values.as_slice(), scales: None, layout };
    let refused = refusal(inputs.run(&stream, &moe, unscaled));
    assert!(refused.starts_with("MoeLayer::forward: scales = None: must be given for 128x128"), "{refused}");
    let scales = device.zeros::<f32>(2).unwrap();
    let scaled = Hidden::Quantised { values: values.as_slice(), scales: Some(scales.as_slice()), layout };
    let mut workspace = moe.workspace(2).unwrap();
    let refused = refusal(moe.forward_with(&stream, Forward::new(scaled, &mut workspace, &mut out)));
    let rule = "must be bf16 or f16 for the layer's own router; quantised ones take a given routing";
    assert_eq!(refused, format!("MoeLayer::forward: hidden = e4m3: {rule}"));

    let other = Layer::random(config(Quantization::Block128, SOFTMAX, [4, 1, 64, 64]), 1);
    let mut others = on_device(&device, &other).workspace(2).unwrap();
    let refused = refusal(moe.forward(&stream, &inputs.hidden, &mut others, &mut out));
    let rule = "must be of this layer, or of one with an equal config";
    assert_eq!(refused, format!("MoeLayer::forward: workspace = one of a layer of another config: {rule}"));

    let mut weights = layer.weights(&layer.config);
    weights.correction_bias = Some(vec![0.0; 4].into());
    let refused = refusal(MoeLayer::new(&device, &layer.config, &weights));
    assert!(
        refused.starts_with("MoeLayer::new: correction_bias = Some: must be None for Softmax"),
        "{refused}"
    );
}
