//! Times on the CPU: loading a checkpoint, the host's side of a forward, and the emulated device.
//!
//! `cargo bench --bench host`. It says too which functions of the driver a forward calls, and how much of its
//! time they take. On a GPU machine the emulated device is not measured, and that is said.

mod driver_time;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput};
use cust::{Context, Driver};
use fp8_moe::{Buffer, Checkpoint, Device, DeviceSpec, MoeConfig, Result, Stream, Workspace};
use fp8_moe_cli::{Layers, RoutingKind, Run, Scheme, Shape};
use half::bf16;

/// A layer that the emulated device runs in milliseconds.
const SMALL: Shape = Shape { experts: 8, top_k: 2, hidden: 256, intermediate: 128 };
const TOKENS: usize = 9;

fn main() -> Result<()> {
    let device = Device::open(DeviceSpec::Auto)?;
    println!("on {device:?}");
    let mut criterion = Criterion::default()
        .configure_from_args()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    checkpoints(&mut criterion, &device)?;
    forward(&mut criterion, &device)?;
    driver(&device)?;
    if device.is_emulated() {
        emulation(&mut criterion, &device)?;
    } else {
        println!("skipped: emulated device (this process uses a GPU)");
    }
    criterion.final_summary();
    Ok(())
}

fn fixture(name: &str) -> PathBuf {
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    std::env::var_os("FP8_MOE_FIXTURES")
        .map_or_else(here, PathBuf::from)
        .join(name)
        .with_extension("safetensors")
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

/// A layer and what a forward of it takes.
struct Forward {
    layers: Layers,
    hidden: Buffer<bf16>,
    ids: Buffer<i32>,
    weights: Buffer<f32>,
    workspace: Workspace,
    out: Buffer<bf16>,
}

impl Forward {
    fn new(device: &Device, scheme: Scheme) -> Result<Forward> {
        let config: MoeConfig = SMALL.config(scheme, 1, 1)?;
        let layers = Layers::random(device, &config, 1, &[true; SMALL.experts], 0)?;
        let routed = RoutingKind::Uniform.draw(TOKENS, SMALL.experts, SMALL.top_k, 0)?;
        let (ids, weights) = (device.upload(&routed.topk_ids)?, device.upload(&routed.topk_weights)?);
        let hidden = device.upload(&vec![bf16::ONE; TOKENS * SMALL.hidden])?;
        let workspace = layers.as_slice()[0].workspace(TOKENS)?;
        let out = device.zeros::<bf16>(hidden.len())?;
        Ok(Forward { layers, hidden, ids, weights, workspace, out })
    }

    /// Of the first `tokens` tokens, on `stream`.
    fn enqueue(&mut self, stream: &Stream, tokens: usize) -> Result<()> {
        let (states, slots) = (tokens * SMALL.hidden, tokens * SMALL.top_k);
        let (hidden, out) = (self.hidden.slice(..states), self.out.slice_mut(..states));
        let (ids, weights) = (self.ids.slice(..slots), self.weights.slice(..slots));
        let layer = &self.layers.as_slice()[0];
        layer.forward_routed(stream, hidden, ids, weights, &mut self.workspace, out)
    }
}

/// Forwards that are enqueued before the stream is waited for: before the driver's queue is full, where a
/// launch would wait for room.
const AT_A_TIME: u64 = 32;

/// What a forward costs the thread that enqueues it: checks, launch arguments and the driver's recording of
/// the launches, measured in a capture, where nothing runs. With no tokens, the checks alone. On a GPU also
/// as it is, all launches enqueued.
fn forward(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut run = Forward::new(device, Scheme::Block)?;
    let stream = device.default_stream();
    let mut group = criterion.benchmark_group("host side of a forward");
    for tokens in [0, TOKENS] {
        run.enqueue(&stream, tokens)?;
        stream.synchronize()?;
        group.bench_function(format!("{tokens} tokens"), |bencher| {
            bencher.iter_custom(|iterations| {
                let mut time = Duration::ZERO;
                for _ in 0..iterations {
                    let graph = stream.capture(|stream| {
                        let began = Instant::now();
                        let result = run.enqueue(stream, tokens);
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
                for forward in 1..=iterations {
                    let began = Instant::now();
                    let result = run.enqueue(&stream, TOKENS);
                    time += began.elapsed();
                    let waited = result.and_then(|()| match forward % AT_A_TIME {
                        0 => stream.synchronize(),
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

/// Which functions of the driver a forward calls, and how much of its time on the host they take; and what as
/// many launches take without a layer. (On the emulated device a launch runs the kernel.)
fn driver(device: &Device) -> Result<()> {
    let ordinary = if device.is_emulated() { Driver::sim() } else { Driver::cuda() };
    let ordinary = ordinary.unwrap_or_else(|error| panic!("{error}, and a device is open"));
    let context = Context::create(cust::Device::get(driver_time::driver(ordinary), 0)?)?;
    let device = Device::in_context(context.clone(), None)?;
    let (mut run, stream) = (Forward::new(&device, Scheme::Block)?, device.default_stream());
    run.enqueue(&stream, TOKENS)?;
    stream.synchronize()?;
    driver_time::take();
    let began = Instant::now();
    for _ in 0..AT_A_TIME {
        run.enqueue(&stream, TOKENS)?;
    }
    let time = began.elapsed().as_secs_f64() * 1e6 / AT_A_TIME as f64;
    let calls = driver_time::take();
    stream.synchronize()?;
    println!("a forward of {TOKENS} tokens: {time:.1} us on the host, of which in the driver:");
    for (name, (count, time)) in &calls {
        let (count, time) = (f64::from(*count), time.as_secs_f64() * 1e6);
        let each = AT_A_TIME as f64;
        println!("  {:5.1} x {name}: {:.2} us", count / each, time / each);
    }
    let launches = calls.get("cuLaunchKernelEx").map_or(0, |(count, _)| count / AT_A_TIME as u32);
    let bare = driver_time::bare_launches(&context, launches)?;
    println!("{launches} bare launches, of a kernel that does nothing: {:.1} us", bare.as_secs_f64() * 1e6);
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
