//! The rates that floors are computed with: a stream that is only read, and our own largest dense GEMM.

use std::time::Duration;

use super::layers::Layers;
use super::models::{Scheme, Shape};
use super::part::Part;
use super::routing::RoutingKind;
use super::run::Run;
use super::timing::{Timer, Timing};
use fp8_moe::internals::read_stream;
use fp8_moe::{Accumulation, IntermediateScales};
use fp8_moe::{Device, Event, Result, Stream};

/// Bytes of the stream whose rate is measured: no cache holds any of it, and its start and end do not count.
const STREAM_BYTES: usize = 2 << 30;
/// Streams whose median is the rate.
const STREAMS: usize = 11;

/// Bytes per second of a stream of bulk copies that is only read, 2 GiB a launch; none where the kernels of
/// the device have no such thing, or where there is no memory for it.
pub fn read_bytes_per_second(device: &Device) -> Result<Option<f64>> {
    if device.capability().0 != 9 || device.free_memory_bytes()? < 2 * STREAM_BYTES as u64 {
        return Ok(None);
    }
    let stream = Stream::new(device)?;
    let (start, end) = (Event::new(device)?, Event::new(device)?);
    let mut memory = device.uninit::<u8>(STREAM_BYTES)?;
    memory.fill_bytes(0x5a, &stream)?;
    let once = || -> Result<f64> {
        start.record(&stream)?;
        read_stream(&stream, memory.as_slice())?;
        end.record(&stream)?;
        end.synchronize()?;
        Ok(f64::from(end.elapsed_ms(&start)?) * 1e3)
    };
    once()?;
    let samples = (0..STREAMS).map(|_| once()).collect::<Result<Vec<_>>>()?;
    Ok(Some(STREAM_BYTES as f64 / (Timing::of(samples).median_us * 1e-6)))
}

/// M, N and K of the dense GEMM.
pub const MATRIX_SIZE: usize = 8192;

/// FLOP per second of the second GEMM of a layer with one expert, `MATRIX_SIZE` in every dimension, with the
/// faster accumulation: our own kernels, so a lower bound of what the tensor cores can do.
pub fn matrix_flops_per_second(timer: &mut Timer) -> Result<f64> {
    let n = MATRIX_SIZE;
    let shape = Shape { experts: 1, top_k: 1, hidden: n, intermediate: n };
    let device = timer.stream().device().clone();
    // With scales per token the second GEMM's do not change along K, and its sums stay in the tensor cores.
    let config = shape
        .config(Scheme::PerToken, 1, 1)?
        .to_builder()
        .accumulation(Accumulation::Fast)
        .intermediate_scales(IntermediateScales::Token)
        .build()?;
    let layers = Layers::random(&device, &config, 1, &[true], 0)?;
    let mut run = Run::new(&layers, n, &RoutingKind::Uniform.draw(n, 1, 1, 0)?, 0)?;
    let captured = run.capture(1)?;
    let replays = captured.replays(Part::Gemm2)?.expect("a layer has a second GEMM");
    let timing = timer.measure(replays, Duration::from_secs(1))?;
    Ok(2.0 * (n as f64).powi(3) / (timing.median_us * 1e-6))
}

#[cfg(test)]
mod tests {
    use cust::sim::take_counters;
    use fp8_moe::internals::read_stream;
    use fp8_moe::{Device, DeviceSpec};

    #[test]
    fn a_stream_reads_whole_runs_once() {
        let device = Device::open(DeviceSpec::Sim).expect("the emulated device");
        let stream = device.default_stream();
        for runs in [0, 1, 131, 1000] {
            let bytes = device.upload(&vec![7u8; (runs << 15) + 16]).expect("memory");
            take_counters();
            read_stream(&stream, bytes.as_slice()).expect("a stream");
            stream.synchronize().expect("no fault");
            assert_eq!(take_counters().global_load_bytes, (runs << 15) as u64, "{runs} runs");
        }
    }
}
