//! What a forward asks of the driver, counted on the emulated device: an engine pays for each call, at every
//! layer of every token. A number here goes up only by a decision.

mod common;

use std::collections::BTreeMap;

use common::device;
use fp8_moe::{
    Device, Family, Forward, MoeLayer, OutputType, RawForward, RawHidden, RawOutput, RawRouting, Stream,
    Workspace,
};
use fp8_moe_cli::{Layers, RoutingKind, Scheme, Shape};
use half::bf16;

const SHAPE: Shape = Shape { experts: 8, top_k: 2, hidden: 256, intermediate: 128 };

/// Whether calls can be counted. If not, the test says that it skips.
fn counts(device: &Device) -> bool {
    if !device.is_emulated() {
        println!("skipped: the calls of a GPU's driver are not counted");
    }
    device.is_emulated()
}

/// By its name, how often each function was called.
fn counted(calls: Vec<&'static str>) -> BTreeMap<&'static str, usize> {
    calls.into_iter().fold(BTreeMap::new(), |mut counts, call| {
        *counts.entry(call).or_default() += 1;
        counts
    })
}

/// The calls of a forward that is as the one before it.
fn calls(mut forward: impl FnMut() -> fp8_moe::Result<()>) -> BTreeMap<&'static str, usize> {
    forward().unwrap();
    let (outcome, calls) = cust::sim::record_calls(forward);
    outcome.unwrap();
    counted(calls)
}

/// A layer, and a forward of a number of tokens with a given routing.
struct Case {
    layers: Layers,
    hidden: fp8_moe::Buffer<bf16>,
    ids: fp8_moe::Buffer<i32>,
    weights: fp8_moe::Buffer<f32>,
    workspace: Workspace,
    out: fp8_moe::Buffer<bf16>,
}

impl Case {
    fn new(device: &Device, scheme: Scheme, tokens: usize) -> Case {
        let config = SHAPE.config(scheme, 1, 1).unwrap();
        let layers = Layers::random(device, &config, 1, &[true; SHAPE.experts], 0).unwrap();
        let routed = RoutingKind::Uniform.draw(tokens, SHAPE.experts, SHAPE.top_k, 0).unwrap();
        let workspace = layers.as_slice()[0].workspace(tokens).unwrap();
        Case {
            hidden: device.upload(&vec![bf16::ONE; tokens * SHAPE.hidden]).unwrap(),
            ids: device.upload(&routed.topk_ids).unwrap(),
            weights: device.upload(&routed.topk_weights).unwrap(),
            out: device.zeros(tokens * SHAPE.hidden).unwrap(),
            layers,
            workspace,
        }
    }

    fn layer(&self) -> &MoeLayer {
        &self.layers.as_slice()[0]
    }

    fn forward(&mut self, stream: &Stream) -> fp8_moe::Result<()> {
        let layer = &self.layers.as_slice()[0];
        layer.forward_routed(
            stream,
            &self.hidden,
            &self.ids,
            &self.weights,
            &mut self.workspace,
            &mut self.out,
        )
    }
}

/// One launch for up to eight tokens where there is the kernel, else five, or six where the activation is one of its
/// own. Nothing else, but for the question which context is current, which is asked once for the forward and
/// once for each launch.
#[test]
fn a_forward_is_its_launches() {
    let device = device();
    if !counts(&device) {
        return;
    }
    for scheme in Scheme::ALL {
        for tokens in [1, 8, 9, 150] {
            let (mut case, stream) = (Case::new(&device, scheme, tokens), device.default_stream());
            let calls = calls(|| case.forward(&stream));
            let launches = calls["cuLaunchKernelEx"];
            let expected = BTreeMap::from([
                ("cuCtxGetCurrent", launches + 1),
                ("cuCtxPushCurrent_v2", 1),
                ("cuLaunchKernelEx", launches),
                ("cuCtxPopCurrent_v2", 1),
            ]);
            let is_one = tokens <= 8 && device.family() == Family::Sm90a;
            let wanted = if is_one { 1..=1 } else { 5..=6 };
            assert!(wanted.contains(&launches), "{scheme}, {tokens} tokens: {launches}");
            assert_eq!(calls, expected, "{scheme}, {tokens} tokens");
        }
    }
}

/// Where the context is current already, as in an engine's thread, nothing is pushed.
#[test]
fn a_current_context_stays() {
    let device = device();
    if !counts(&device) {
        return;
    }
    let driver = cust::Driver::sim().unwrap();
    let context = cust::Context::primary(cust::Device::get(driver, 0).unwrap()).unwrap();
    let _current = context.enter().unwrap();
    let (mut case, stream) = (Case::new(&device, Scheme::Block, 9), device.default_stream());
    let calls = calls(|| case.forward(&stream));
    assert_eq!(calls, BTreeMap::from([("cuCtxGetCurrent", 6), ("cuLaunchKernelEx", 5)]));
}

/// A forward by addresses opens the stream that it is given, and leaves an event behind its work, since it
/// may be gone when somebody waits for that work. Who keeps a `Stream` of it saves that.
#[test]
fn a_forward_by_addresses_asks_about_its_stream() {
    let device = device();
    if !counts(&device) {
        return;
    }
    let (mut case, stream) = (Case::new(&device, Scheme::Block, 9), Stream::new(&device).unwrap());
    let bytes = case.layer().workspace_bytes(9).unwrap();
    let forward = RawForward {
        stream: stream.raw(),
        tokens: 9,
        hidden: RawHidden::Bf16(case.hidden.ptr().raw()),
        routing: RawRouting::Given { ids: case.ids.ptr().raw(), weights: case.weights.ptr().raw() },
        workspace: case.workspace.memory().ptr().raw(),
        workspace_bytes: bytes,
        out: RawOutput { address: case.out.ptr().raw(), element: OutputType::Bf16, add: false },
    };
    // SAFETY: buffers of the case, of the lengths that the call says, which nobody else uses until the stream
    // has been waited for below.
    let raw = || unsafe { case.layer().forward_raw(forward) };
    let alone = calls(raw);
    assert_eq!((alone["cuStreamIsCapturing"], alone["cuLaunchKernelEx"]), (1, 5), "{alone:?}");
    assert_eq!((alone["cuEventRecord"], alone["cuStreamWaitEvent"]), (1, 1), "{alone:?}");
    // SAFETY: the stream outlives the handle, and nobody captures it.
    let kept = unsafe { Stream::from_raw(&device, stream.raw()) };
    let with_a_handle = calls(raw);
    assert_eq!(with_a_handle["cuStreamIsCapturing"], 1);
    assert!(!with_a_handle.contains_key("cuEventRecord"), "{with_a_handle:?}");
    assert!(!with_a_handle.contains_key("cuStreamWaitEvent"), "{with_a_handle:?}");
    stream.synchronize().unwrap();
    drop(kept);
}

/// An observer is code of others, which may use the stream between two operations: what they use is noted
/// then, and other streams wait for it.
#[test]
fn what_an_observer_enqueues_is_ordered() {
    let device = device();
    let (mut case, stream, other) =
        (Case::new(&device, Scheme::Block, 9), device.default_stream(), Stream::new(&device).unwrap());
    let buffer = std::cell::RefCell::new(device.zeros::<u8>(16).unwrap());
    let seen = std::cell::Cell::new(0);
    let observe = |_| {
        let mut buffer = buffer.borrow_mut();
        buffer.fill_bytes(7, &stream).unwrap();
        seen.set(seen.get() + usize::from(buffer.to_vec(&other).unwrap() == [7; 16]));
        buffer.fill_bytes(0, &other).unwrap();
    };
    let layer = &case.layers.as_slice()[0];
    let forward = Forward::new(&case.hidden, &mut case.workspace, &mut case.out)
        .routed(&case.ids, &case.weights)
        .observed(&observe);
    let run = || layer.forward_with(&stream, forward);
    if !counts(&device) {
        run().unwrap();
        assert_eq!(seen.get(), 5);
        return;
    }
    let (outcome, calls) = cust::sim::record_calls(run);
    outcome.unwrap();
    assert_eq!(seen.get(), 5);
    let waits = calls.iter().filter(|call| **call == "cuStreamWaitEvent").count();
    assert!(waits >= 9, "each side waits for the other: {calls:?}");
}
