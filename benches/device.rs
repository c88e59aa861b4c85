//! Times on the GPU, by CUDA events: the layer, its operations one by one, and the problem sizes.
//!
//! `cargo bench --bench device`. Each operation is a captured graph, replayed; the layers take turns so that
//! no weights are found in the L2 cache. Without a GPU everything here is skipped, and says so. `fp8-moe
//! bench` measures more shapes, with floors.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use fp8_moe::ops::problem_sizes::{GemmDimensions, ProblemSizesOut, problem_sizes};
use fp8_moe::{Device, DeviceSpec, Event, Result};
use fp8_moe_cli::{Fusion, Layers, Load, Model, Part, RoutingKind, Run, Scheme, Work, sets_to_outgrow_cache};

/// The model, and the batch sizes.
const MODEL: &str = "qwen3-30b";
const TOKENS: [usize; 3] = [1, 64, 4096];

fn main() -> Result<()> {
    let device = Device::open(DeviceSpec::Auto)?;
    let mut criterion = Criterion::default()
        .configure_from_args()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    if device.is_emulated() {
        println!("skipped: problem_sizes ({})", device.driver_reason());
        for part in Part::ALL {
            println!("skipped: {part} ({})", device.driver_reason());
        }
        return Ok(());
    }
    println!("on {device:?}");
    sizes(&mut criterion, &device)?;
    for scheme in Scheme::ALL {
        for tokens in TOKENS {
            layer(&mut criterion, &device, scheme, tokens)?;
        }
    }
    criterion.final_summary();
    Ok(())
}

/// The time that the device takes for `iterations` of what `enqueue` enqueues.
fn elapsed(
    device: &Device,
    iterations: u64,
    mut enqueue: impl FnMut(usize) -> Result<()>,
) -> Result<Duration> {
    let stream = device.default_stream();
    let (start, end) = (Event::new(device)?, Event::new(device)?);
    start.record(&stream)?;
    (0..iterations as usize).try_for_each(&mut enqueue)?;
    end.record(&stream)?;
    end.synchronize()?;
    Ok(Duration::from_secs_f64(f64::from(end.elapsed_ms(&start)?) / 1e3))
}

/// The layer and its parts.
fn layer(criterion: &mut Criterion, device: &Device, scheme: Scheme, tokens: usize) -> Result<()> {
    let shape = Model::named(MODEL)?.shape;
    let config = shape.config(scheme, 1, 1)?;
    let routed = RoutingKind::Uniform.draw(tokens, shape.experts, shape.top_k, 0)?;
    let load = Load::new(&config, &routed);
    let sets = sets_to_outgrow_cache(device.l2_bytes(), Work::weight_bytes(&config, &load));
    let layers = Layers::random(device, &config, sets, &load.active, 0)?;
    let mut run = Run::new(&layers, tokens, &routed, 0)?;
    let fusion = Fusion::of(run.layer(), tokens)?;
    let captured = run.capture(sets)?;
    let stream = device.default_stream();
    let parts: Vec<Part> = captured.parts().collect();
    for part in parts {
        let Some(replays) = captured.replays(part)? else { continue };
        let mut group = criterion.benchmark_group(part.name());
        group.throughput(Throughput::Bytes(Work::new(part, &config, &load, fusion).bytes));
        group.bench_function(BenchmarkId::new(scheme.name(), tokens), |bencher| {
            bencher.iter_custom(|iterations| {
                let time = elapsed(device, iterations, |index| replays.enqueue(index, &stream));
                time.unwrap_or_else(|error| panic!("{error}"))
            });
        });
        group.finish();
    }
    Ok(())
}

/// Problem sizes of every expert, from expert offsets.
fn sizes(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let shape = Model::named(MODEL)?.shape;
    let experts = shape.experts;
    let offsets: Vec<i64> = (0..=experts as i64).map(|expert| expert * 7).collect();
    let offsets = device.upload(&offsets)?;
    let (mut sizes1, mut sizes2) = (device.zeros::<i32>(experts * 3)?, device.zeros::<i32>(experts * 3)?);
    let stream = device.default_stream();
    let dimensions =
        GemmDimensions { hidden: shape.hidden, intermediate: shape.intermediate, swap_operands: false };
    criterion.bench_function(&format!("problem_sizes/{experts} experts"), |bencher| {
        bencher.iter_custom(|iterations| {
            let time = elapsed(device, iterations, |_| {
                let (sizes1, sizes2) = (sizes1.as_mut_slice(), sizes2.as_mut_slice());
                let out = ProblemSizesOut { dimensions, sizes1, sizes2 };
                problem_sizes(&stream, offsets.as_slice(), experts, out)
            });
            time.unwrap_or_else(|error| panic!("{error}"))
        });
    });
    Ok(())
}
