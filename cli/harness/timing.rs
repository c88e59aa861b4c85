//! Time on the device: chains of graph replays between two events.
//!
//! ```text
//!   stream   | copies (head start) | event | A B C A B C ... | event |
//!                                           one sample = time between the events / replays
//! ```
//!
//! A chain has as many replays as make a millisecond, so that the events' own time vanishes, in whole rounds
//! over the layers. The copies keep the device busy while the host enqueues the chain: what is measured is
//! the device, not the launching thread. They also leave nothing of the weights in the L2 cache.

use std::time::{Duration, Instant};

use super::run::Replays;
use fp8_moe::Buffer;
use fp8_moe::Device;
use fp8_moe::Result;
use fp8_moe::{Event, Stream};

/// Bytes of each of the two buffers that the copy rate is measured on; on the emulated device a 256th.
const COPY_BYTES: usize = 512 << 20;
/// Copies whose median is the rate.
const COPIES: usize = 11;
/// Time of a chain, microseconds, and the most replays in one.
const CHAIN_US: f64 = 1000.0;
const MOST_REPLAYS: usize = 256;
/// Warm-up before the first sample.
const WARM_UP: Duration = Duration::from_millis(50);
/// Samples that a measurement takes at most, and at least.
const MOST_SAMPLES: usize = 50;
const LEAST_SAMPLES: usize = 5;

/// Distribution of the time of one replay, microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Median.
    pub median_us: f64,
    /// Tenth percentile.
    pub p10_us: f64,
    /// Ninetieth percentile.
    pub p90_us: f64,
}

impl Timing {
    /// Of samples in microseconds, at least one.
    pub fn of(mut samples: Vec<f64>) -> Timing {
        samples.sort_unstable_by(f64::total_cmp);
        let at = |fraction: f64| {
            let position = fraction * (samples.len() - 1) as f64;
            let (low, high) = (samples[position.floor() as usize], samples[position.ceil() as usize]);
            low + (high - low) * position.fract()
        };
        Timing { median_us: at(0.5), p10_us: at(0.1), p90_us: at(0.9) }
    }
}

/// A device's clock, and its copy rate.
pub struct Timer {
    stream: Stream,
    start: Event,
    end: Event,
    from: Buffer<u8>,
    to: Buffer<u8>,
    copy_us: f64,
}

fn copy_bytes(device: &Device) -> usize {
    if device.is_emulated() { COPY_BYTES / 256 } else { COPY_BYTES }
}

impl Timer {
    /// Measures the copy rate of `device`.
    pub fn new(device: &Device) -> Result<Timer> {
        let bytes = copy_bytes(device);
        let stream = device.default_stream();
        let mut from = device.uninit(bytes)?;
        from.fill_bytes(0x5a, &stream)?;
        let (start, end) = (Event::new(device)?, Event::new(device)?);
        let mut timer = Timer { stream, start, end, from, to: device.uninit(bytes)?, copy_us: 0.0 };
        timer.copy()?;
        let samples = (0..COPIES).map(|_| timer.between_events(Timer::copy)).collect::<Result<Vec<_>>>()?;
        timer.copy_us = Timing::of(samples).median_us;
        Ok(timer)
    }

    /// Bytes of device memory that a timer on `device` takes.
    pub fn memory_bytes(device: &Device) -> u64 {
        2 * copy_bytes(device) as u64
    }

    /// The stream that everything runs in.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Bytes per second of a copy in device memory, read and written bytes together.
    pub fn copy_bytes_per_second(&self) -> f64 {
        2.0 * self.from.len() as f64 / (self.copy_us * 1e-6)
    }

    fn copy(&mut self) -> Result<()> {
        self.to.as_mut_slice().copy_from_device(self.from.as_slice(), &self.stream)
    }

    /// Microseconds that the device takes for what `work` enqueues.
    fn between_events(&mut self, work: impl FnOnce(&mut Timer) -> Result<()>) -> Result<f64> {
        self.start.record(&self.stream)?;
        work(self)?;
        self.end.record(&self.stream)?;
        self.end.synchronize()?;
        Ok(f64::from(self.end.elapsed_ms(&self.start)?) * 1e3)
    }

    /// Warms up, and finds out how long a chain should be.
    pub fn warm_up(&mut self, replays: Replays<'_>) -> Result<Chain> {
        let began = Instant::now();
        let round = replays.len();
        let mut chain = Chain { replays: round, head_start: 1 };
        loop {
            let us = self.sample(replays, &chain)?;
            let rounds = (CHAIN_US / (us * round as f64)).ceil().max(1.0) as usize;
            let enqueued = Instant::now();
            for index in 0..round {
                replays.enqueue(index, &self.stream)?;
            }
            let enqueue_us = enqueued.elapsed().as_secs_f64() * 1e6 / round as f64;
            self.stream.synchronize()?;
            chain.replays = round * rounds.clamp(1, (MOST_REPLAYS / round).max(1));
            // Half as much again as enqueueing took, but no more than a fifth of a second.
            let head_start = (1.5 * enqueue_us * chain.replays as f64 / self.copy_us).ceil();
            chain.head_start = head_start.clamp(1.0, (2e5 / self.copy_us).max(1.0)) as usize;
            if began.elapsed() >= WARM_UP {
                return Ok(chain);
            }
        }
    }

    /// Microseconds of one replay, as the mean over a chain.
    pub fn sample(&mut self, replays: Replays<'_>, chain: &Chain) -> Result<f64> {
        if !self.stream.device().is_emulated() {
            for _ in 0..chain.head_start {
                self.copy()?;
            }
        }
        let us = self.between_events(|timer| {
            (0..chain.replays).try_for_each(|index| replays.enqueue(index, &timer.stream))
        })?;
        Ok(us / chain.replays as f64)
    }

    /// The distribution of a replay's time, from samples taken for at most about `limit`, but at least five
    /// of them.
    pub fn measure(&mut self, replays: Replays<'_>, limit: Duration) -> Result<Timing> {
        let chain = self.warm_up(replays)?;
        let began = Instant::now();
        let mut samples = Vec::with_capacity(MOST_SAMPLES);
        while samples.len() < MOST_SAMPLES && (samples.len() < LEAST_SAMPLES || began.elapsed() < limit) {
            samples.push(self.sample(replays, &chain)?);
        }
        Ok(Timing::of(samples))
    }
}

impl Timer {
    /// The distributions of several replays' times, sampled in turn, so that a clock that changes changes all
    /// of them: so many samples of each.
    pub fn measure_beside(&mut self, several: &[Replays<'_>], samples: usize) -> Result<Vec<Timing>> {
        let chains = several.iter().map(|replays| self.warm_up(*replays)).collect::<Result<Vec<_>>>()?;
        let mut taken = vec![Vec::with_capacity(samples); several.len()];
        for _ in 0..samples.max(1) {
            for ((replays, chain), taken) in several.iter().zip(&chains).zip(&mut taken) {
                taken.push(self.sample(*replays, chain)?);
            }
        }
        Ok(taken.into_iter().map(Timing::of).collect())
    }
}

/// How a sample is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Replays between the events: whole rounds over the layers.
    pub replays: usize,
    /// Copies before the first event.
    head_start: usize,
}

#[cfg(test)]
mod tests {
    use super::Timing;

    #[test]
    fn percentiles_interpolate() {
        let timing = Timing::of((0..=10).rev().map(f64::from).collect());
        assert_eq!(timing, Timing { median_us: 5.0, p10_us: 1.0, p90_us: 9.0 });
        assert_eq!(Timing::of(vec![1.0, 2.0]).median_us, 1.5);
        assert_eq!(Timing::of(vec![3.0]), Timing { median_us: 3.0, p10_us: 3.0, p90_us: 3.0 });
    }
}
