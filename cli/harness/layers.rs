//! Layers of random weights, made on the device: several of them, so that replays in turn find no weights in
//! the L2 cache.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::pool::{Pool, WEIGHT_DEVIATION};
use fp8_moe::Buffer;
use fp8_moe::Device;
use fp8_moe::E4m3;
use fp8_moe::Result;
use fp8_moe::SliceMut;
use fp8_moe::Stream;
use fp8_moe::internals::padded_intermediate;
use fp8_moe::ops::pack_weights::{PackedShape, WeightLayout, pack_expert_in_place};
use fp8_moe::{MoeConfig, MoeDeviceWeights, MoeLayer, Tuning, WeightScales};

/// Layers of one config.
pub struct Layers {
    layers: Vec<MoeLayer>,
}

impl Layers {
    /// `sets` layers with weights of their own, without routers. On the emulated device only the experts that
    /// are `active` (one bool per local expert) get weights.
    pub fn random(
        device: &Device,
        config: &MoeConfig,
        sets: usize,
        active: &[bool],
        seed: u64,
    ) -> Result<Layers> {
        Self::make(device, config, sets, active, seed, true)
    }

    /// As [`Layers::random`], the weights as a checkpoint has them even where they could be packed.
    pub fn random_unpacked(
        device: &Device,
        config: &MoeConfig,
        sets: usize,
        active: &[bool],
        seed: u64,
    ) -> Result<Layers> {
        Self::make(device, config, sets, active, seed, false)
    }

    fn make(
        device: &Device,
        config: &MoeConfig,
        sets: usize,
        active: &[bool],
        seed: u64,
        packs: bool,
    ) -> Result<Layers> {
        let mut source = ChaCha8Rng::seed_from_u64(seed);
        let stream = device.default_stream();
        let (used, row) = (config.intermediate_size, padded_intermediate(config));
        let w13_pool = Pool::weights(device, seed, 1, 1)?;
        // Rows of w2 end in padding where I' is larger than I.
        let w2_pool = if used == row { None } else { Some(Pool::weights(device, seed + 1, row, used)?) };
        let w2_pool = w2_pool.as_ref().unwrap_or(&w13_pool);
        let layer = || {
            let [w13, w2, ..] = MoeDeviceWeights::lengths(config);
            let [w13, w2] = if packs { weight_lengths(device, config) } else { [w13, w2] };
            let (mut w13, mut w2) = (device.uninit(w13)?, device.uninit(w2)?);
            let [mut w13_rest, mut w2_rest] = [w13.as_mut_slice(), w2.as_mut_slice()];
            for &active in active {
                let (gate, rest) = w13_rest.split_at(row * config.hidden_size);
                let (up, rest) = rest.split_at(row * config.hidden_size);
                let (down, w2_tail) = w2_rest.split_at(config.hidden_size * row);
                (w13_rest, w2_rest) = (rest, w2_tail);
                if device.is_emulated() && !active {
                    continue;
                }
                for half in [gate, up] {
                    fill_half(half, used * config.hidden_size, &w13_pool, &mut source, &stream)?;
                }
                w2_pool.fill(down, &mut source, &stream)?;
            }
            let layout = match packs {
                true => pack(&stream, config, [&mut w13, &mut w2], active)?,
                false => WeightLayout::Checkpoint,
            };
            let (w13_scale, w2_scale) = scales(config, &mut source);
            let (w13_scale, w2_scale) = (device.upload(&w13_scale)?, device.upload(&w2_scale)?);
            let mut weights = MoeDeviceWeights::new(w13, w13_scale, w2, w2_scale);
            if config.quantization.is_static() {
                weights = weights.input_scales(INPUT_SCALES);
            }
            MoeLayer::from_device(device, config, weights.layout(layout))
        };
        let layers = std::iter::repeat_with(layer).take(sets).collect::<Result<Vec<_>>>()?;
        // The pools are freed on return.
        stream.synchronize()?;
        Ok(Layers { layers })
    }

    /// The same layers, planned by another table, on the same weights.
    pub fn tuned(&self, tuning: &Tuning) -> Result<Layers> {
        let layers = self.layers.iter().map(|layer| layer.tuned(tuning.clone())).collect::<Result<_>>()?;
        Ok(Layers { layers })
    }

    /// The layers, to be kept.
    pub fn into_vec(self) -> Vec<MoeLayer> {
        self.layers
    }

    /// The layers.
    pub fn as_slice(&self) -> &[MoeLayer] {
        &self.layers
    }
}

/// For standard normal hidden states, and the products of two roughly normal numbers.
const INPUT_SCALES: [f32; 2] = [5.0 / 448.0, 10.0 / 448.0];

/// Packs w13 and w2 as a layer that is loaded would. On the emulated device the experts that are not `active`
/// have no weights.
fn pack(
    stream: &Stream,
    config: &MoeConfig,
    matrices: [&mut Buffer<E4m3>; 2],
    active: &[bool],
) -> Result<WeightLayout> {
    let device = stream.device();
    let Some(shapes) = PackedShape::of_layer(device, config) else { return Ok(WeightLayout::Checkpoint) };
    for (matrix, shape) in matrices.into_iter().zip(shapes) {
        let mut scratch = device.uninit(shape.of_one().checkpoint_len())?;
        for expert in (0..active.len()).rev().filter(|&expert| active[expert] || !device.is_emulated()) {
            pack_expert_in_place(stream, shape, expert, matrix.as_mut_slice(), scratch.as_mut_slice())?;
        }
    }
    Ok(WeightLayout::Packed)
}

/// Elements of w13 and w2 of a layer as it would be loaded.
pub fn weight_lengths(device: &Device, config: &MoeConfig) -> [usize; 2] {
    let [w13, w2, ..] = MoeDeviceWeights::lengths(config);
    PackedShape::of_layer(device, config).map_or([w13, w2], |shapes| shapes.map(|shape| shape.len()))
}

/// Fills the rows of gate or up, `used` elements, and zeros what pads them.
fn fill_half(
    half: SliceMut<'_, E4m3>,
    used: usize,
    pool: &Pool<E4m3>,
    source: &mut ChaCha8Rng,
    stream: &Stream,
) -> Result<()> {
    let (weights, mut padding) = half.split_at(used);
    pool.fill(weights, source, stream)?;
    padding.fill_bytes(0, stream)
}

/// Scales of w13 and w2 that keep the deviation of products near that of their inputs.
fn scales(config: &MoeConfig, source: &mut ChaCha8Rng) -> (Vec<f32>, Vec<f32>) {
    let [.., w13, w2] = MoeDeviceWeights::lengths(config);
    let mut draw =
        |columns: usize| source.random_range(0.5..1.5) / (WEIGHT_DEVIATION * (columns as f32).sqrt());
    let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
    let w13: Vec<f32> = if config.quantization.weights() == WeightScales::Tensor {
        // One scale per half of an expert.
        (0..2 * config.local_count())
            .flat_map(|_| std::iter::repeat_n(draw(hidden), padded_intermediate(config)))
            .collect()
    } else {
        (0..w13).map(|_| draw(hidden)).collect()
    };
    (w13, (0..w2).map(|_| draw(intermediate)).collect())
}
