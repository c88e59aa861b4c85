//! Devices, buffers, streams, events, graphs.

mod common;

use common::{device, families};
use cust::{Context, Driver};
use fp8_moe::internals::{module, summaries};
use fp8_moe::{Device, DeviceSpec, Error, Event, Family, Stream};
use fp8_moe_cli::{Layers, Part, RoutingKind, Run, Scheme, Shape};

#[test]
fn buffers_keep_what_they_are_given() {
    let device = device();
    let stream = Stream::new(&device).unwrap();
    let mut buffer = device.upload(&[1.5f32, -2.0, 3.0, 4.0]).unwrap();
    assert_eq!((buffer.len(), buffer.is_empty()), (4, false));
    assert_eq!(buffer.to_vec(&stream).unwrap(), [1.5, -2.0, 3.0, 4.0]);
    assert_eq!(buffer.slice(1..3).to_vec(&stream).unwrap(), [-2.0, 3.0]);
    assert_eq!(buffer.slice(3..).cast::<u32>().to_vec(&stream).unwrap(), [4.0f32.to_bits()]);
    buffer.slice_mut(..2).copy_from(&[7.0, 8.0], &stream).unwrap();
    let (mut head, mut tail) = buffer.as_mut_slice().split_at(1);
    tail.slice_mut(1..).fill_bytes(0, &stream).unwrap();
    head.copy_from(&[9.0], &stream).unwrap();
    assert_eq!(buffer.to_vec(&stream).unwrap(), [9.0, 8.0, 0.0, 0.0]);
    let refusal = buffer.copy_from(&[0.0; 3], &stream).unwrap_err().to_string();
    assert_eq!(refusal, "copy_from: data = 3 elements: must have the 4 elements of the destination");
}

#[test]
fn empty_buffers_are_legal() {
    let device = device();
    let stream = device.default_stream();
    let mut buffer = device.upload::<u64>(&[]).unwrap();
    assert!(buffer.is_empty() && buffer.ptr().is_null());
    buffer.fill_bytes(1, &stream).unwrap();
    assert!(buffer.to_vec(&stream).unwrap().is_empty());
}

#[test]
#[should_panic(expected = "range 2..5 of a device slice of 4 elements")]
fn slices_stay_inside() {
    device().zeros::<u8>(4).unwrap().slice(2..5);
}

#[test]
#[should_panic(expected = "are not a slice of u32")]
fn casts_stay_aligned() {
    let _ = device().zeros::<u8>(8).unwrap().slice(1..5).cast::<u32>();
}

#[test]
fn too_much_memory_is_an_error() {
    let bytes = device().memory_bytes() as usize;
    let error = device().uninit::<u8>(bytes * 2).unwrap_err();
    assert!(matches!(error, Error::Driver { call: "cuMemAlloc", code: 2, .. }), "{error}");
    assert!(device().uninit::<u64>(usize::MAX / 4).is_err());
}

#[test]
fn buffers_go_to_other_threads() {
    let device = device();
    let buffer = device.upload(&[1, 2, 3]).unwrap();
    let thread = std::thread::spawn(move || buffer.to_vec(&buffer.device().default_stream()).unwrap());
    assert_eq!(thread.join().unwrap(), [1, 2, 3]);
}

#[test]
fn events_follow_their_stream() {
    let device = device();
    let (stream, other) = (Stream::new(&device).unwrap(), Stream::new(&device).unwrap());
    let (start, end) = (Event::new(&device).unwrap(), Event::new(&device).unwrap());
    let mut buffer = device.zeros::<u8>(1 << 20).unwrap();
    start.record(&stream).unwrap();
    buffer.fill_bytes(7, &stream).unwrap();
    end.record(&stream).unwrap();
    other.wait_event(&end).unwrap();
    assert!(buffer.to_vec(&other).unwrap().iter().all(|&x| x == 7));
    end.synchronize().unwrap();
    assert!(end.elapsed_ms(&start).unwrap() >= 0.0);
}

#[test]
fn graphs_replay_and_do_not_run_while_captured() {
    let device = device();
    let stream = Stream::new(&device).unwrap();
    let mut buffer = device.upload(&[1u8; 100]).unwrap();
    let graph = stream.capture(|stream| buffer.fill_bytes(9, stream)).unwrap();
    assert_eq!(buffer.to_vec(&stream).unwrap(), [1; 100]);
    for _ in 0..2 {
        graph.launch(&stream).unwrap();
        assert_eq!(buffer.to_vec(&stream).unwrap(), [9; 100]);
        buffer.fill_bytes(0, &stream).unwrap();
    }
}

#[test]
fn a_failed_capture_leaves_the_stream_usable() {
    let device = device();
    let stream = Stream::new(&device).unwrap();
    let mut buffer = device.upload(&[1u8; 4]).unwrap();
    let failed = stream.capture(|_| Err(Error::argument("test", "x", 1, "must not be 1")));
    assert_eq!(failed.unwrap_err().to_string(), "test: x = 1: must not be 1");
    buffer.fill_bytes(2, &stream).unwrap();
    assert_eq!(buffer.to_vec(&stream).unwrap(), [2; 4]);
}

/// A device of the same kind in a context of its own, into which no kernel has been loaded.
fn fresh(device: &Device) -> Device {
    let driver = if device.is_emulated() { Driver::sim() } else { Driver::cuda() }.unwrap();
    let ordinal = device.to_string().rsplit_once(':').map_or(0, |(_, ordinal)| ordinal.parse().unwrap());
    let context = Context::create(cust::Device::get(driver, ordinal).unwrap()).unwrap();
    Device::in_context(context, Some(device.family())).unwrap()
}

#[test]
fn every_kernel_loads_as_a_module_of_its_own() {
    for device in families().iter().map(fresh) {
        assert!(device.loaded_kernels().is_empty(), "none before the first launch");
        device.load_kernels().unwrap();
        let all: Vec<_> = summaries(device.family()).iter().map(|kernel| kernel.name).collect();
        assert!(all.len() > 20 && device.loaded_kernels() == all, "{device:?}");
        for name in all {
            let text = module(device.family(), name).unwrap();
            assert_eq!(text.matches(".visible .entry ").count(), 1, "{name}");
        }
        assert_eq!(module(device.family(), "no_such_kernel"), None);
    }
}

#[test]
fn a_layer_loads_what_it_launches_and_nothing_else() {
    let device = fresh(&device());
    let shape = Shape { experts: 8, top_k: 2, hidden: 256, intermediate: 128 };
    let config = shape.config(Scheme::Block, 1, 1).unwrap();
    let layers = Layers::random(&device, &config, 1, &[true; 8], 0).unwrap();
    let packing = device.loaded_kernels();
    assert!(
        packing.iter().all(|kernel| kernel.starts_with("pack_")),
        "weights are packed at most: {packing:?}"
    );
    // Too many tokens for one launch.
    let routed = RoutingKind::Uniform.draw(9, 8, 2, 0).unwrap();
    let mut run = Run::new(&layers, 9, &routed, 0).unwrap();
    let captured = run.capture(1).unwrap();
    let launches = captured.replays(Part::Layer).unwrap().unwrap().launches();
    let mut loaded = device.loaded_kernels();
    loaded.retain(|kernel| !packing.contains(kernel));
    assert!(loaded.contains(&"permute") && loaded.len() == launches, "{loaded:?} for {launches} launches");

    // Of 200 tokens each expert gets 50: both GEMMs take another tile, and all else is there.
    let routed = RoutingKind::Uniform.draw(200, 8, 2, 0).unwrap();
    Run::new(&layers, 200, &routed, 0).unwrap().output().unwrap();
    let (before, mut added) = (loaded, device.loaded_kernels());
    added.retain(|kernel| !before.contains(kernel) && !packing.contains(kernel));
    let gemms = added.iter().filter(|kernel| kernel.contains("hopper") || kernel.contains("gemm")).count();
    // The f32 output has an unpermutation of its own.
    assert!(added.len() == 3 && gemms == 2, "{added:?}");
}

/// Threads that need the same kernels do not get in each other's way.
#[test]
fn kernels_load_from_several_threads() {
    let device = fresh(&device());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| device.load_kernels().unwrap());
        }
    });
    assert_eq!(device.loaded_kernels().len(), summaries(device.family()).len());
}

#[test]
fn kernels_load_while_their_stream_is_captured() {
    let device = fresh(&device());
    let shape = Shape { experts: 2, top_k: 1, hidden: 128, intermediate: 128 };
    let config = shape.config(Scheme::Block, 1, 1).unwrap();
    let layers = Layers::random(&device, &config, 1, &[true; 2], 0).unwrap();
    let layer = &layers.as_slice()[0];
    let stream = Stream::new(&device).unwrap();
    let hidden = device.zeros::<half::bf16>(128).unwrap();
    let (ids, weights) = (device.upload(&[1]).unwrap(), device.upload(&[1.0]).unwrap());
    let (mut workspace, mut out) = (layer.workspace(1).unwrap(), device.upload(&[7.0f32; 128]).unwrap());
    let forward =
        |stream: &Stream| layer.forward_routed(stream, &hidden, &ids, &weights, &mut workspace, &mut out);
    let packing = device.loaded_kernels().len();
    let graph = stream.capture(forward).unwrap();
    assert!(device.loaded_kernels().len() > packing);
    graph.launch(&stream).unwrap();
    assert_eq!(out.to_vec(&stream).unwrap(), [0.0; 128]);
}

#[test]
fn names_of_devices() {
    for (text, spec) in [
        ("auto", DeviceSpec::Auto),
        ("sim", DeviceSpec::Sim),
        ("cuda", DeviceSpec::Cuda(0)),
        ("cuda:3", DeviceSpec::Cuda(3)),
    ] {
        assert_eq!(text.parse::<DeviceSpec>().unwrap(), spec);
    }
    for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1"] {
        let error = text.parse::<DeviceSpec>().unwrap_err().to_string();
        assert_eq!(error, format!("device {text}: must be auto, sim or cuda:N"));
    }
}

#[test]
fn a_gpu_and_the_emulated_device_live_side_by_side() {
    let sim = Device::open(DeviceSpec::Sim).unwrap();
    assert!(sim.is_emulated() && sim.to_string() == "sim");
    match Device::open(DeviceSpec::Cuda(0)) {
        Ok(gpu) => {
            assert!(!gpu.same_as(&sim));
            let (on_gpu, on_sim) = (gpu.upload(&[1, 2]).unwrap(), sim.upload(&[3, 4]).unwrap());
            assert_eq!(on_gpu.to_vec(&gpu.default_stream()).unwrap(), [1, 2]);
            assert_eq!(on_sim.to_vec(&sim.default_stream()).unwrap(), [3, 4]);
            assert!(on_sim.to_vec(&gpu.default_stream()).is_err());
        }
        Err(error) => assert!(error.to_string().starts_with("device cuda:0: "), "{error}"),
    }
}

/// Kernels are loaded once for a context, however many devices it has.
#[test]
fn devices_of_one_context_share_kernels() {
    let first = fresh(&device());
    let driver = if first.is_emulated() { Driver::sim() } else { Driver::cuda() }.unwrap();
    first.load_kernels().unwrap();
    let context = Context::create(cust::Device::get(driver, 0).unwrap()).unwrap();
    let [a, b] = [(); 2].map(|()| Device::in_context(context.clone(), None).unwrap());
    assert!(a.same_as(&b) && !a.same_as(&first) && b.loaded_kernels().is_empty());
    a.load_kernels().unwrap();
    assert_eq!(b.loaded_kernels(), a.loaded_kernels());
    let buffer = a.upload(&[5u8; 3]).unwrap();
    assert_eq!(buffer.to_vec(&Stream::new(&b).unwrap()).unwrap(), [5; 3]);
    // SAFETY: the context is of that driver, and lives longer than the device.
    let borrowed = unsafe { Context::from_raw(driver, context.as_raw()) }.unwrap();
    assert!(Device::in_context(borrowed, None).unwrap().same_as(&a));
}

/// Whatever waited for an event of a stream that another program captures would be captured too.
#[test]
fn events_of_a_foreign_capture_are_refused() {
    let driver = if device().is_emulated() { Driver::sim() } else { Driver::cuda() }.unwrap();
    let context = Context::create(cust::Device::get(driver, 0).unwrap()).unwrap();
    let device = Device::in_context(context.clone(), None).unwrap();
    let theirs = cust::Stream::new(&context).unwrap();
    let event = Event::new(&device).unwrap();
    theirs.begin_capture().unwrap();
    // SAFETY: the stream lives longer than the handle, and the capture ends after it.
    let stream = unsafe { Stream::from_raw(&device, theirs.as_raw()) };
    let text = event.record(&stream).unwrap_err().to_string();
    assert!(text.ends_with("must not be one that another program captures"), "{text}");
    drop(stream);
    theirs.end_capture().unwrap();
}

#[test]
fn families_by_capability() {
    let family = Family::for_capability;
    assert_eq!(family(9, 0), Some(Family::Sm90a));
    assert_eq!([family(8, 9), family(10, 0), family(12, 0)], [Some(Family::Sm89); 3]);
    assert_eq!([family(8, 6), family(8, 0), family(7, 5)], [None; 3]);
}
