//! Random values in device memory, from which larger memory is filled by copies: gigabytes of weights in well
//! under a second.
//!
//! ```text
//!   values   |..........|..........|..........|      drawn on the host, once
//!                 \________/    \________/           chunks at random offsets, copied device to device
//!   filled   |________|________|____
//! ```

use bytemuck::Pod;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use fp8_moe::Device;
use fp8_moe::E4m3;
use fp8_moe::Result;
use fp8_moe::Stream;
use fp8_moe::{Buffer, SliceMut};

/// Elements of a pool of weights on a GPU; on the emulated device, whose weights are few, a sixteenth.
const ELEMENTS: usize = 64 << 20;
/// Elements of a pool of hidden states.
const HIDDEN_ELEMENTS: usize = 1 << 20;
/// Chunks begin at multiples of this, where no row length says otherwise.
const STEP: usize = 256;
/// Standard deviation of e4m3 weights: a matrix whose largest of a million values is quantised to 448.
pub(super) const WEIGHT_DEVIATION: f32 = 90.0;

/// Random values to copy from.
pub(super) struct Pool<T: Pod> {
    values: Buffer<T>,
    step: usize,
}

/// Elements that pools of weights have on `device`.
pub(super) fn elements(device: &Device) -> usize {
    if device.is_emulated() { ELEMENTS / 16 } else { ELEMENTS }
}

/// A standard normal number, by the Box-Muller transform.
fn normal(source: &mut ChaCha8Rng) -> f32 {
    let (u, v): (f32, f32) = (source.random(), source.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}

/// 256 equally likely values of a normal distribution.
fn quantiles(source: &mut ChaCha8Rng) -> [f32; 256] {
    const DRAWS: usize = 64;
    let mut draws: Vec<f32> = (0..256 * DRAWS).map(|_| normal(source)).collect();
    draws.sort_unstable_by(f32::total_cmp);
    std::array::from_fn(|i| draws[i * DRAWS + DRAWS / 2])
}

impl<T: Pod> Pool<T> {
    /// A pool of so many values that `convert` makes of standard normal numbers. Of every row of `row`
    /// elements only the first `used` are random, the others zero; chunks begin at rows.
    fn new(
        device: &Device,
        seed: u64,
        convert: impl Fn(f32) -> T,
        elements: usize,
        (row, used): (usize, usize),
    ) -> Result<Pool<T>> {
        let mut source = ChaCha8Rng::seed_from_u64(seed);
        let table = quantiles(&mut source).map(convert);
        let step = if row == used { STEP } else { row };
        let len = elements.next_multiple_of(step);
        let mut bytes = vec![0u8; len];
        source.fill(&mut bytes[..]);
        let mut values: Vec<T> = bytes.into_iter().map(|byte| table[usize::from(byte)]).collect();
        if row != used {
            values.chunks_exact_mut(row).for_each(|row| row[used..].fill(T::zeroed()));
        }
        Ok(Pool { values: device.upload(&values)?, step })
    }

    /// Fills `to`, of whole rows, in `stream`'s order.
    pub fn fill(&self, to: SliceMut<'_, T>, source: &mut ChaCha8Rng, stream: &Stream) -> Result<()> {
        let longest = (self.values.len() / 2 / self.step).max(1) * self.step;
        let mut rest = to;
        while !rest.is_empty() {
            let len = rest.len().min(longest);
            let start = source.random_range(0..=(self.values.len() - len) / self.step) * self.step;
            let (mut head, tail) = rest.split_at(len);
            head.copy_from_device(self.values.slice(start..start + len), stream)?;
            rest = tail;
        }
        Ok(())
    }
}

impl Pool<E4m3> {
    /// Weights of standard deviation [`WEIGHT_DEVIATION`]: no NaN, and few zeros. Rows of `row` elements end
    /// in zeros after the first `used`.
    pub fn weights(device: &Device, seed: u64, row: usize, used: usize) -> Result<Pool<E4m3>> {
        Pool::new(device, seed, |x| E4m3::from_f32(WEIGHT_DEVIATION * x), elements(device), (row, used))
    }
}

impl Pool<half::bf16> {
    /// Standard normal hidden states.
    pub fn hidden_states(device: &Device, seed: u64) -> Result<Pool<half::bf16>> {
        Pool::new(device, seed, half::bf16::from_f32, HIDDEN_ELEMENTS, (1, 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fp8_moe::DeviceSpec;

    #[test]
    fn values_are_varied_and_rows_are_padded() {
        let spec = std::env::var("FP8_MOE_DEVICE").map_or(Ok(DeviceSpec::Sim), |text| text.parse());
        let device = Device::open(spec.expect("FP8_MOE_DEVICE")).expect("a device");
        let stream = device.default_stream();
        let mut source = ChaCha8Rng::seed_from_u64(1);
        let pool = Pool::weights(&device, 0, 48, 40).expect("a pool");
        let mut buffer = device.uninit::<E4m3>(48 * 100_000).expect("memory");
        pool.fill(buffer.as_mut_slice(), &mut source, &stream).expect("a copy");
        let values = buffer.to_vec(&stream).expect("a copy");
        assert!(values.iter().all(|x| !x.to_f32().is_nan()));
        assert!(values.chunks_exact(48).all(|row| row[40..].iter().all(|x| *x == E4m3(0))));
        let used: Vec<f32> = values.chunks_exact(48).flat_map(|row| &row[..40]).map(|x| x.to_f32()).collect();
        let square = used.iter().map(|x| x * x).sum::<f32>() / used.len() as f32;
        assert!((square.sqrt() - WEIGHT_DEVIATION).abs() < 10.0, "{}", square.sqrt());
    }
}
