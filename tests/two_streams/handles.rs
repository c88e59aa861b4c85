//! Handles that are forgotten, dropped while their work runs, or lost in a panic.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};

use fp8_moe::{
    Buffer, DeviceMemory, E4m3, Event, Forward, MoeDeviceWeights, MoeLayer, Quantization, Routing, Step,
    Stream,
};
use half::bf16;

use crate::common::layers::config;
use crate::{assert_sound, waits, watched};

/// What is never dropped stays: nobody else gets its memory, and what is ordered behind its work still is.
#[test]
fn forgotten_handles() {
    let (_turn, device) = watched();
    let mut x = device.upload(&[1u8; 8]).unwrap();
    let graph = device.default_stream().capture(|stream| x.fill_bytes(5, stream)).unwrap();
    let stream = Stream::new(&device).unwrap();
    x.fill_bytes(2, &stream).unwrap();
    graph.launch(&stream).unwrap();
    let event = Event::new(&device).unwrap();
    event.record(&stream).unwrap();
    let mut gone = device.uninit::<u8>(8).unwrap();
    gone.as_mut_slice().copy_from_device(x.as_slice(), &stream).unwrap();
    std::mem::forget((graph, event, gone, stream));
    assert_eq!(x.to_vec(&device.default_stream()).unwrap(), [5; 8]);
    x.fill_bytes(3, &Stream::new(&device).unwrap()).unwrap();
    assert_eq!(x.to_vec(&device.default_stream()).unwrap(), [3; 8]);
    drop(x);
    assert_sound();
}

/// A context stays current where its guard is forgotten, and so alive, with all that is in it.
#[test]
fn a_forgotten_current_context() {
    let (_turn, device) = watched();
    let driver = if device.is_emulated() { cust::Driver::sim() } else { cust::Driver::cuda() }.unwrap();
    let context = cust::Context::create(cust::Device::get(driver, 0).unwrap()).unwrap();
    let before = device.upload(&[1u8; 8]).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::mem::forget(context.enter().unwrap());
            // Calls make their own context current, and put the forgotten one back.
            assert_eq!(before.to_vec(&device.default_stream()).unwrap(), [1; 8]);
            assert_eq!(context.driver().current_context().unwrap(), context.as_raw());
        });
    });
    drop(context);
    assert_eq!(before.to_vec(&device.default_stream()).unwrap(), [1; 8]);
    assert_sound();
}

/// A capture whose work panics ends: the memory is not the graph's, and stream and thread go on.
#[test]
fn a_panic_in_a_capture() {
    let (_turn, device) = watched();
    let stream = Stream::new(&device).unwrap();
    let mut x = device.upload(&[1u8; 8]).unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        stream.capture(|stream| {
            x.fill_bytes(2, stream)?;
            panic!("as it happens");
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(x.to_vec(&stream).unwrap(), [1; 8], "nothing has run");
    let graph = stream.capture(|stream| x.fill_bytes(3, stream)).unwrap();
    graph.launch(&stream).unwrap();
    assert_eq!(x.to_vec(&stream).unwrap(), [3; 8]);
    assert_sound();
}

/// A capture may take for ever: other threads enqueue, wait, allocate and free meanwhile.
#[test]
fn a_capture_that_does_not_end() {
    let (_turn, device) = watched();
    let mut captured = device.upload(&[1u8; 8]).unwrap();
    let (goes_on, ends) = (mpsc::channel::<()>(), mpsc::channel::<()>());
    std::thread::scope(|scope| {
        let (begun, end) = (goes_on.0, ends.1);
        let (device, captured) = (&device, &mut captured);
        let capture = scope.spawn(move || {
            device.default_stream().capture(|stream| {
                captured.fill_bytes(2, stream)?;
                begun.send(()).unwrap();
                // The end is that the other thread has gone.
                let _ = end.recv();
                Ok(())
            })
        });
        goes_on.1.recv().unwrap();
        let stream = Stream::new(device).unwrap();
        for byte in 0..4 {
            let mut x = device.upload(&[byte; 8]).unwrap();
            x.fill_bytes(byte + 1, &stream).unwrap();
            assert_eq!(x.to_vec(&device.default_stream()).unwrap(), [byte + 1; 8]);
            let event = Event::new(device).unwrap();
            event.record(&stream).unwrap();
            event.synchronize().unwrap();
        }
        stream.synchronize().unwrap();
        drop((stream, ends.0));
        capture.join().unwrap().unwrap().launch(&device.default_stream()).unwrap();
    });
    assert_eq!(captured.to_vec(&device.default_stream()).unwrap(), [2; 8]);
    assert_sound();
}

/// A layer of `[4, 2, 64, 32]` on weights in `w13` and `w2`.
fn layer_on(w13: DeviceMemory<E4m3>, w2: DeviceMemory<E4m3>) -> MoeLayer {
    let routing = Routing::Softmax { renormalize: true };
    let config = config(Quantization::ChannelToken, routing, [4, 2, 64, 32]);
    let device = w13.device().clone();
    let [_, _, w13_scale, w2_scale] = MoeDeviceWeights::lengths(&config);
    let ones = |len| device.upload(&vec![1.0_f32; len]).unwrap();
    let weights = MoeDeviceWeights::new(w13, ones(w13_scale), w2, ones(w2_scale));
    MoeLayer::from_device(&device, &config, weights).unwrap()
}

/// Weights that are shared with a layer come back when it is dropped. They can be written then: no forward
/// reads them any more, since a layer's own memory goes when its work has ended.
#[test]
fn weights_that_come_back() {
    let (_turn, device) = watched();
    let ones = |len| Arc::new(device.upload(&vec![E4m3::from_f32(1.0); len]).unwrap());
    let (w13, w2) = (ones(4 * 64 * 64), ones(4 * 64 * 32));
    let hidden = device.upload(&[bf16::ONE; 3 * 64]).unwrap();
    let (ids, weights) = (device.upload(&[0, 1, 2, 3, 0, 1]).unwrap(), device.upload(&[0.5_f32; 6]).unwrap());
    let mut out = device.zeros::<f32>(3 * 64).unwrap();
    let (a, b) = (Stream::new(&device).unwrap(), Stream::new(&device).unwrap());
    let before = {
        let layer = layer_on(w13.clone().into(), w2.clone().into());
        let mut workspace = layer.workspace(3).unwrap();
        layer.forward_routed(&a, &hidden, &ids, &weights, &mut workspace, &mut out).unwrap();
        waits()
    };
    let mut w13: Buffer<E4m3> = Arc::try_unwrap(w13).expect("the layer is gone");
    w13.fill_bytes(0, &b).unwrap();
    assert_eq!(waits(), before);
    drop((w2, hidden, ids, weights));
    assert!(out.to_vec(&b).unwrap().iter().all(|&y| y > 0.0));
    assert_sound();
}

/// A forward whose observer panics leaves a workspace that can be used again.
#[test]
fn a_panic_in_a_forward() {
    let (_turn, device) = watched();
    let ones = |len| device.upload(&vec![E4m3::from_f32(1.0); len]).unwrap();
    let layer = layer_on(ones(4 * 64 * 64).into(), ones(4 * 64 * 32).into());
    let hidden = device.upload(&[bf16::ONE; 3 * 64]).unwrap();
    let (ids, weights) = (device.upload(&[0, 1, 2, 3, 0, 1]).unwrap(), device.upload(&[0.5_f32; 6]).unwrap());
    let (mut workspace, mut out) = (layer.workspace(3).unwrap(), device.zeros::<f32>(3 * 64).unwrap());
    let (a, b) = (Stream::new(&device).unwrap(), Stream::new(&device).unwrap());
    layer.forward_routed(&a, &hidden, &ids, &weights, &mut workspace, &mut out).unwrap();
    let right = out.to_vec(&a).unwrap();
    for at in 0..Step::NAMES.len() {
        let observe = |step: Step| assert_ne!(step.index, at, "as it happens");
        let forward =
            Forward::new(&hidden, &mut workspace, &mut out).routed(&ids, &weights).observed(&observe);
        let _ = catch_unwind(AssertUnwindSafe(|| layer.forward_with(&a, forward)));
        out.fill_bytes(0, &b).unwrap();
        layer.forward_routed(&b, &hidden, &ids, &weights, &mut workspace, &mut out).unwrap();
        assert_eq!(out.to_vec(&a).unwrap(), right);
    }
    assert_sound();
}
