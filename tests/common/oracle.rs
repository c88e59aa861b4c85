//! The layer in f64, written from the definition of each step, not from the kernels: the oracle of the layer's tests.
//!
//! Quantised like the layer (weights and activations in e4m3, scales in f32), but every sum and every nonlinearity in
//! f64, and nothing rounded to 16 bits on the way.

use fp8_moe::{
    ActivationFunction, E4m3, ExpertWeights, IntermediateScales, MoeConfig, MoeWeights, Quantization, Routing,
};
use half::bf16;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};

/// A layer's weights, owned, of all experts.
pub struct Layer {
    pub config: MoeConfig,
    pub router: Vec<bf16>,
    pub bias: Option<Vec<f32>>,
    pub experts: Vec<Expert>,
    pub input_scales: Option<[f32; 2]>,
}

/// One expert's matrices and scales.
pub struct Expert {
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

struct Matrix {
    columns: usize,
    data: Vec<E4m3>,
    scale: Vec<f32>,
}

/// `n` hidden states, near the standard normal distribution.
pub fn hidden_states(n: usize, seed: u64) -> Vec<bf16> {
    let mut source = StdRng::seed_from_u64(seed);
    let mut normal = || (0..12).map(|_| source.random::<f32>()).sum::<f32>() - 6.0;
    (0..n).map(|_| bf16::from_f32(normal())).collect()
}

/// The values of all 256 e4m3 bytes.
fn decode_table() -> [f64; 256] {
    std::array::from_fn(|byte| f64::from(E4m3(byte as u8).to_f32()))
}

impl Matrix {
    /// Random, such that its product with standard normal data is about standard normal.
    fn random(quantization: Quantization, rows: usize, columns: usize, source: &mut StdRng) -> Matrix {
        let mut bytes = vec![0; rows * columns];
        source.fill_bytes(&mut bytes);
        // Exponents below 8: magnitudes below 2, about 0.6 in the mean square.
        let data = bytes.into_iter().map(|byte| E4m3(byte & 0xbf)).collect();
        let scales = match quantization {
            Quantization::TensorStatic => 1,
            Quantization::ChannelToken => rows,
            Quantization::Block128 => rows.div_ceil(128) * columns.div_ceil(128),
        };
        let unit = 1.0 / (0.6 * (columns as f32).sqrt());
        let scale = (0..scales).map(|_| unit * source.random_range(0.5..1.5)).collect();
        Matrix { columns, data, scale }
    }

    fn scale(&self, quantization: Quantization, row: usize, column: usize) -> f64 {
        let index = match quantization {
            Quantization::TensorStatic => 0,
            Quantization::ChannelToken => row,
            Quantization::Block128 => row / 128 * self.columns.div_ceil(128) + column / 128,
        };
        f64::from(self.scale[index])
    }

    /// `self * x` for a quantised row `x` with one scale per 128 columns.
    fn product(&self, quantization: Quantization, x: &Quantised, table: &[f64; 256]) -> Vec<f64> {
        let dot = |(row, weights): (usize, &[E4m3])| {
            let groups = weights.chunks(128).zip(x.bytes.chunks(128)).enumerate();
            let partial = groups.map(|(group, (weights, x_bytes))| {
                let pairs = weights.iter().zip(x_bytes);
                let sum: f64 = pairs.map(|(w, x)| table[w.0 as usize] * table[x.0 as usize]).sum();
                sum * self.scale(quantization, row, group * 128) * f64::from(x.scales[group])
            });
            partial.sum()
        };
        self.data.chunks(self.columns).enumerate().map(dot).collect()
    }
}

/// A row in e4m3, with a scale for every 128 columns (equal ones where the scheme has one scale).
struct Quantised {
    bytes: Vec<E4m3>,
    scales: Vec<f32>,
}

fn absmax(values: &[f32]) -> f32 {
    values.iter().filter(|x| !x.is_nan()).fold(0.0, |max, x| max.max(x.abs()))
}

impl Quantised {
    fn new(quantization: Quantization, row: &[f32], static_scale: Option<f32>) -> Quantised {
        let groups = row.len().div_ceil(128);
        let by_scale = |x: &f32, s: f32| E4m3::from_f32(x / s);
        match quantization {
            Quantization::TensorStatic => {
                let scale = static_scale.expect("the static scheme has input scales");
                let bytes = row.iter().map(|x| E4m3::from_f32(x * (1.0 / scale))).collect();
                Quantised { bytes, scales: vec![scale; groups] }
            }
            Quantization::ChannelToken => {
                let scale = (absmax(row) / 448.0).max(1.0 / (448.0 * 512.0));
                Quantised {
                    bytes: row.iter().map(|x| by_scale(x, scale)).collect(),
                    scales: vec![scale; groups],
                }
            }
            Quantization::Block128 => {
                let scales: Vec<f32> = row.chunks(128).map(|g| absmax(g).max(1e-10) / 448.0).collect();
                let bytes = row.iter().enumerate().map(|(i, x)| by_scale(x, scales[i / 128])).collect();
                Quantised { bytes, scales }
            }
        }
    }
}

fn activate(activation: ActivationFunction, gate: f64) -> f64 {
    match activation {
        ActivationFunction::Silu => gate / (1.0 + (-gate).exp()),
        other => panic!("the oracle has no {other:?}"),
    }
}

impl Layer {
    /// Random weights for all experts of `config`.
    pub fn random(config: MoeConfig, seed: u64) -> Layer {
        let mut source = StdRng::seed_from_u64(seed);
        let (h, i, e, q) =
            (config.hidden_size, config.intermediate_size, config.experts, config.quantization);
        let unit = 1.0 / (h as f32).sqrt();
        let router = (0..e * h).map(|_| bf16::from_f32(unit * source.random_range(-3.0..3.0))).collect();
        let bias = (0..e).map(|_| source.random_range(-0.2..0.2)).collect();
        let experts = (0..e).map(|_| Expert {
            gate: Matrix::random(q, i, h, &mut source),
            up: Matrix::random(q, i, h, &mut source),
            down: Matrix::random(q, h, i, &mut source),
        });
        Layer {
            experts: experts.collect(),
            router,
            bias: matches!(config.routing, Routing::Grouped { .. }).then_some(bias),
            input_scales: (q == Quantization::TensorStatic).then_some([4.0 / 448.0, 6.0 / 448.0]),
            config,
        }
    }

    /// The weights as the rank of `config` takes them.
    pub fn weights(&self, config: &MoeConfig) -> MoeWeights<'_> {
        let expert = |n: usize| {
            let Expert { gate, up, down } = &self.experts[n];
            ExpertWeights {
                gate: gate.data.as_slice().into(),
                up: up.data.as_slice().into(),
                down: down.data.as_slice().into(),
                gate_scale: gate.scale.as_slice().into(),
                up_scale: up.scale.as_slice().into(),
                down_scale: down.scale.as_slice().into(),
            }
        };
        MoeWeights {
            router: Some(self.router.as_slice().into()),
            correction_bias: self.bias.as_deref().map(Into::into),
            experts: config.local_ids().into_iter().map(expert).collect(),
            input_scales: self.input_scales,
        }
    }

    /// The layer on `hidden [T, H]` with the given routing `[T, k]`; ids outside `0..E` contribute nothing.
    pub fn forward(&self, hidden: &[bf16], ids: &[i32], weights: &[f32]) -> Vec<f32> {
        let MoeConfig { hidden_size: h, top_k, quantization, routing, activation, .. } = self.config;
        let table = decode_table();
        let [scale1, scale2] = self.input_scales.map_or([None; 2], |s| s.map(Some));
        let second = match (quantization, self.config.intermediate_scales) {
            (Quantization::ChannelToken, IntermediateScales::Group128) => Quantization::Block128,
            _ => quantization,
        };
        let weight_on_input = routing == Routing::SigmoidInput;
        let mut out = Vec::with_capacity(hidden.len());
        for (token, row) in hidden.chunks(h).enumerate() {
            let mut sum = vec![0.0f64; h];
            for slot in token * top_k..(token + 1) * top_k {
                let Some(expert) = usize::try_from(ids[slot]).ok().and_then(|id| self.experts.get(id)) else {
                    continue;
                };
                let (before, after) =
                    if weight_on_input { (weights[slot], 1.0) } else { (1.0, weights[slot]) };
                // The models multiply in the type of their hidden states.
                let row: Vec<f32> =
                    row.iter().map(|x| bf16::from_f32(x.to_f32() * before).to_f32()).collect();
                let x = Quantised::new(quantization, &row, scale1);
                let gate = expert.gate.product(quantization, &x, &table);
                let up = expert.up.product(quantization, &x, &table);
                let middle: Vec<f32> =
                    gate.iter().zip(&up).map(|(&g, &u)| (activate(activation, g) * u) as f32).collect();
                let x = Quantised::new(second, &middle, scale2);
                for (sum, y) in sum.iter_mut().zip(expert.down.product(quantization, &x, &table)) {
                    *sum += f64::from(after) * y;
                }
            }
            out.extend(sum.iter().map(|&x| x as f32));
        }
        out
    }

    /// Router logits `[T, E]`.
    pub fn logits(&self, hidden: &[bf16]) -> Vec<f64> {
        let h = self.config.hidden_size;
        let dot = |a: &[bf16], b: &[bf16]| a.iter().zip(b).map(|(a, b)| a.to_f64() * b.to_f64()).sum();
        hidden.chunks(h).flat_map(|row| self.router.chunks(h).map(move |gate| dot(row, gate))).collect()
    }

    /// The routing of `hidden`: ids and weights `[T, k]`.
    pub fn route(&self, hidden: &[bf16]) -> (Vec<i32>, Vec<f32>) {
        let (e, k) = (self.config.experts, self.config.top_k);
        let (mut ids, mut weights) = (Vec::new(), Vec::new());
        for logits in self.logits(hidden).chunks(e) {
            let picked = self.route_token(logits);
            assert_eq!(picked.len(), k);
            ids.extend(picked.iter().map(|&(id, _)| id as i32));
            weights.extend(picked.iter().map(|&(_, weight)| weight as f32));
        }
        (ids, weights)
    }

    fn route_token(&self, logits: &[f64]) -> Vec<(usize, f64)> {
        let MoeConfig { experts: e, top_k: k, routing, .. } = self.config;
        let sigmoid = |x: &f64| 1.0 / (1.0 + (-x).exp());
        let softmax = || {
            let max = logits.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = logits.iter().map(|x| (x - max).exp()).sum();
            logits.iter().map(|x| (x - max).exp() / sum).collect::<Vec<_>>()
        };
        let best = |scores: &[f64], among: &[usize], k: usize| {
            let mut order = among.to_vec();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
            order.truncate(k);
            order
        };
        let all: Vec<usize> = (0..e).collect();
        match routing {
            Routing::Softmax { renormalize } => {
                let scores = softmax();
                let picked = best(&scores, &all, k);
                let sum: f64 = if renormalize { picked.iter().map(|&i| scores[i]).sum() } else { 1.0 };
                picked.into_iter().map(|i| (i, scores[i] / sum)).collect()
            }
            Routing::SigmoidInput => {
                best(logits, &all, k).into_iter().map(|i| (i, sigmoid(&logits[i]))).collect()
            }
            Routing::Grouped { sigmoid: by_sigmoid, groups, topk_group, renormalize, scaling_factor } => {
                let scores: Vec<f64> =
                    if by_sigmoid { logits.iter().map(sigmoid).collect() } else { softmax() };
                let bias = self.bias.as_ref().expect("the oracle routes in groups with a bias");
                let biased: Vec<f64> = scores.iter().zip(bias).map(|(s, &b)| s + f64::from(b)).collect();
                let size = e / groups;
                let group_scores: Vec<f64> = (0..groups)
                    .map(|g| {
                        let members: Vec<usize> = (g * size..(g + 1) * size).collect();
                        best(&biased, &members, 2).into_iter().map(|i| biased[i]).sum()
                    })
                    .collect();
                let kept = best(&group_scores, &(0..groups).collect::<Vec<_>>(), topk_group);
                let candidates: Vec<usize> = all.into_iter().filter(|i| kept.contains(&(i / size))).collect();
                let picked = best(&biased, &candidates, k);
                let sum: f64 = picked.iter().map(|&i| scores[i]).sum();
                let factor = f64::from(scaling_factor) / if renormalize { sum + 1e-20 } else { 1.0 };
                picked.into_iter().map(|i| (i, scores[i] * factor)).collect()
            }
        }
    }
}
