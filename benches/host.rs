//! Times on the CPU: loading a checkpoint, the host's side of a forward, and the emulated device.
//!
//! `cargo bench --bench host`. On a GPU machine the emulated device is not measured, and that is said.

use std::path::{Path, PathBuf};
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput};
use fp8_moe::{Checkpoint, Device, DeviceSpec, MoeConfig, Result, Stream};
use fp8_moe_cli::{Layers, RoutingKind, Run, Scheme, Shape};
use half::bf16;

/// A layer that the emulated device runs in milliseconds.
const SMALL: Shape = Shape { experts: 8, top_k: 2, hidden: 256, intermediate: 128 };
const TOKENS: usize = 8;

fn main() -> Result<()> {
    let device = Device::open(DeviceSpec::Auto)?;
    println!("on {device:?}");
    let mut criterion = Criterion::default()
        .configure_from_args()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    checkpoints(&mut criterion, &device)?;
    forward(&mut criterion, &device)?;
    if device.is_emulated() {
        emulation(&mut criterion, &device)?;
    } else {
        println!("skipped: emulated device (this process uses a GPU)");
    }
    criterion.final_summary();
    Ok(())
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name).with_extension("safetensors")
}

/// From a file to a layer on the device, copies included.
fn checkpoints(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut group = criterion.benchmark_group("load checkpoint");
    for name in ["mixtral_static_tensor", "qwen3_moe_block", "llama4_channel_token", "deepseek_v3_block"] {
        let path = fixture(name);
        let load = || Checkpoint::open(&path, None)?.load_layer(device, None);
        load()?;
        let bytes =
            std::fs::metadata(&path).map_err(|e| fp8_moe::Error::Io { path: path.clone(), source: e })?;
        group.throughput(Throughput::Bytes(bytes.len()));
        group.bench_function(name, |bencher| {
            bencher.iter_batched(|| (), |()| load().expect("loaded before"), BatchSize::PerIteration);
        });
    }
    group.finish();
    Ok(())
}

/// What a forward costs the thread that enqueues it: checks, launch arguments and the driver's recording of
/// the launches, measured in a capture, where nothing runs. With no tokens, the checks alone. On a GPU also as
/// it is, all launches enqueued.
fn forward(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let config: MoeConfig = SMALL.config(Scheme::Block, 1, 1)?;
    let layers = Layers::random(device, &config, 1, &[true; SMALL.experts], 0)?;
    let layer = &layers.as_slice()[0];
    let routed = RoutingKind::Uniform.draw(TOKENS, SMALL.experts, SMALL.top_k, 0)?;
    let (ids, weights) = (device.upload(&routed.topk_ids)?, device.upload(&routed.topk_weights)?);
    let hidden = device.upload(&vec![bf16::ONE; TOKENS * SMALL.hidden])?;
    let mut workspace = layer.workspace(TOKENS)?;
    let mut out = device.zeros::<bf16>(hidden.len())?;
    let stream = device.default_stream();
    let mut group = criterion.benchmark_group("host side of a forward");
    for tokens in [0, TOKENS] {
        let mut enqueue = |stream: &Stream| {
            let (hidden, out) =
                (hidden.slice(..tokens * SMALL.hidden), out.slice_mut(..tokens * SMALL.hidden));
            let (ids, weights) = (ids.slice(..tokens * SMALL.top_k), weights.slice(..tokens * SMALL.top_k));
            layer.forward_routed(stream, hidden, ids, weights, &mut workspace, out)
        };
        enqueue(&stream)?;
        stream.synchronize()?;
        group.bench_function(format!("{tokens} tokens"), |bencher| {
            bencher.iter_custom(|iterations| {
                let mut time = Duration::ZERO;
                for _ in 0..iterations {
                    let graph = stream.capture(|stream| {
                        let began = std::time::Instant::now();
                        let result = enqueue(stream);
                        time += began.elapsed();
                        result
                    });
                    graph.unwrap_or_else(|error| panic!("{error}"));
                }
                time
            });
        });
    }
    if device.is_emulated() {
        println!("skipped: all launches of a forward, enqueued (the emulated device runs what is enqueued)");
    } else {
        group.bench_function(format!("{TOKENS} tokens, launched"), |bencher| {
            bencher.iter_custom(|iterations| {
                let mut time = Duration::ZERO;
                for forward in 0..iterations {
                    let began = std::time::Instant::now();
                    let result =
                        layer.forward_routed(&stream, &hidden, &ids, &weights, &mut workspace, &mut out);
                    time += began.elapsed();
                    // Before the driver's queue is full, where a launch would wait for room.
                    let waited = result.and_then(|()| match forward % 32 {
                        31 => stream.synchronize(),
                        _ => Ok(()),
                    });
                    waited.unwrap_or_else(|error| panic!("{error}"));
                }
                time
            });
        });
    }
    group.finish();
    Ok(())
}

/// A whole forward on the emulated device, in warp instructions per second.
fn emulation(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut group = criterion.benchmark_group("emulated device, warp instructions");
    group.sample_size(10);
    for scheme in Scheme::ALL {
        let config = SMALL.config(scheme, 1, 1)?;
        let layers = Layers::random(device, &config, 1, &[true; SMALL.experts], 0)?;
        let routed = RoutingKind::Uniform.draw(TOKENS, SMALL.experts, SMALL.top_k, 0)?;
        let mut run = Run::new(&layers, TOKENS, &routed, 0)?;
        let (_, counters) = run.count()?.remove(0);
        group.throughput(Throughput::Elements(counters.warp_instructions()));
        group.bench_function(format!("layer, {scheme}"), |bencher| {
            bencher.iter(|| run.count().unwrap_or_else(|error| panic!("{error}")));
        });
    }
    group.finish();
    Ok(())
}
