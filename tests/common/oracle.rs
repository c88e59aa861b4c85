//! The layer in f64, written from the definition of each step, not from the kernels: the oracle of the
//! layer's tests.
//!
//! Quantised like the layer (weights and activations in e4m3, scales in f32), but every sum and every
//! nonlinearity in f64, and nothing rounded to 16 bits on the way. [`Layer::forward`] also says how far from
//! that a device may be, element by element: `bounds.rs` derives it. [`Layer::dequantised`] leaves the
//! intermediate as it is, and [`Layer::emulated`] sums as tensor cores do.

use fp8_moe::ops::grouped_gemm::Accumulation;
use fp8_moe::{
    ActivationScales, E4m3, ExpertWeights, IntermediateScales, MoeConfig, MoeWeights, Quantization, Routing,
    WeightScales,
};
use half::bf16;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use rayon::prelude::*;

use super::activation;
use super::bounds::{self, Estimate, Outputs, Quantised, Scales};
use super::e4m3;
use super::tensor_core::{self, Sum};

/// A layer's weights, owned, of all experts.
pub struct Layer {
    pub config: MoeConfig,
    pub router: Vec<bf16>,
    pub bias: Option<Vec<f32>>,
    pub experts: Vec<Expert>,
    pub input_scales: Option<[f32; 2]>,
    /// Of gate and up `[E, 2I]` (`[E, I]` without a gate), and of down `[E, H]`.
    pub biases: Option<[Vec<f32>; 2]>,
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
    const PART: usize = 1 << 16;
    let mut states = vec![bf16::ZERO; n];
    states.par_chunks_mut(PART).enumerate().for_each(|(part, states)| {
        let mut source = StdRng::seed_from_u64(seed.wrapping_add((part as u64) << 32));
        let mut normal = || (0..12).map(|_| source.random::<f32>()).sum::<f32>() - 6.0;
        states.fill_with(|| bf16::from_f32(normal()));
    });
    states
}

impl Matrix {
    /// Random, such that its product with standard normal data is about standard normal.
    fn random(quantization: Quantization, rows: usize, columns: usize, source: &mut StdRng) -> Matrix {
        let mut bytes = vec![0; rows * columns];
        source.fill_bytes(&mut bytes);
        // Exponents below 8: magnitudes below 2, about 0.6 in the mean square.
        let data = bytes.into_iter().map(|byte| E4m3(byte & 0xbf)).collect();
        let scales = match quantization.weights() {
            WeightScales::Tensor => 1,
            WeightScales::Channel => rows,
            WeightScales::Block128 => rows.div_ceil(128) * columns.div_ceil(128),
            other => panic!("the oracle has no {other}"),
        };
        let unit = 1.0 / (0.6 * (columns as f32).sqrt());
        let scale = (0..scales).map(|_| unit * source.random_range(0.5..1.5)).collect();
        Matrix { columns, data, scale }
    }

    fn scale(&self, quantization: Quantization, row: usize, column: usize) -> f64 {
        let index = match quantization.weights() {
            WeightScales::Tensor => 0,
            WeightScales::Channel => row,
            WeightScales::Block128 => row / 128 * self.columns.div_ceil(128) + column / 128,
            other => panic!("the oracle has no {other}"),
        };
        f64::from(self.scale[index])
    }

    /// `self * x` of numbers that are not quantised.
    fn times(&self, quantization: Quantization, x: &[f64]) -> Vec<f64> {
        let element = |(n, row): (usize, &[E4m3])| {
            let groups = row.chunks(128).zip(x.chunks(128)).enumerate();
            let parts = groups.map(|(group, (row, x))| {
                let sum: f64 = row.iter().zip(x).map(|(w, x)| f64::from(e4m3::units(w.0)) * x).sum();
                sum * e4m3::UNIT * self.scale(quantization, n, group * 128)
            });
            parts.sum()
        };
        self.data.par_chunks(self.columns).enumerate().map(element).collect()
    }

    /// The rows in units of e4m3.
    fn units(&self) -> Vec<i32> {
        self.data.par_iter().map(|code| e4m3::units(code.0)).collect()
    }

    /// `self * x` with bounds, sums kept for `slab` of K.
    fn product(&self, quantization: Quantization, x: &Quantised, slab: usize) -> Vec<Estimate> {
        let units = self.units();
        let element = |(n, row): (usize, &[i32])| {
            let (mut sum, mut magnitude) = (Sum::default(), 0.0);
            for (part, (row, x_units)) in row.chunks(slab).zip(x.units.chunks(slab)).enumerate() {
                let column = part * slab;
                let scale = self.scale(quantization, n, column) * x.scales[column / 128].0;
                let part = tensor_core::analyse(row, x_units, None);
                sum.add(&part, scale);
                magnitude += (scale * part.value).abs();
            }
            // Scales and sums of slabs are multiplied and added in f32.
            let own = 2f64.powi(-22) * magnitude;
            Estimate { value: sum.value, worst: sum.worst + own, rms: sum.rms() + own / 2.0 }
        };
        units.par_chunks(self.columns).enumerate().map(element).collect()
    }

    /// `self * x`, sums of `slab` of K by `dot`.
    fn plain(
        &self,
        quantization: Quantization,
        x: &Quantised,
        slab: usize,
        dot: impl Fn(&[i32], &[i32]) -> f64 + Sync,
    ) -> Vec<f64> {
        let units = self.units();
        let element = |(n, row): (usize, &[i32])| {
            let parts = row.chunks(slab).zip(x.units.chunks(slab)).enumerate();
            let scaled = parts.map(|(part, (row, x_units))| {
                let column = part * slab;
                self.scale(quantization, n, column) * x.scales[column / 128].0 * dot(row, x_units)
            });
            scaled.sum()
        };
        units.par_chunks(self.columns).enumerate().map(element).collect()
    }
}

/// One slot of a token: its expert, its row in the type of the hidden states, its weight at the end.
struct Slot<'a> {
    number: usize,
    expert: &'a Expert,
    x: Quantised,
    weight: f64,
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
        let seeds: Vec<u64> = (0..e).map(|_| source.random()).collect();
        let experts = seeds.into_par_iter().map(|seed| {
            let source = &mut StdRng::seed_from_u64(seed);
            Expert {
                gate: Matrix::random(q, i, h, source),
                up: Matrix::random(q, i, h, source),
                down: Matrix::random(q, h, i, source),
            }
        });
        Layer {
            experts: experts.collect(),
            router,
            bias: matches!(
                config.routing,
                Routing::Grouped { .. } | Routing::SqrtSoftplus { vocabulary: None, .. }
            )
            .then_some(bias),
            // Intermediates reach 20 and more: with odd seeds they saturate.
            input_scales: q
                .is_static()
                .then_some([4.0 / 448.0, [32.0 / 448.0, 6.0 / 448.0][seed as usize % 2]]),
            biases: None,
            config,
        }
    }

    /// The layer of these weights, without biases.
    pub fn of(config: MoeConfig, weights: &MoeWeights<'_>) -> Layer {
        let matrix = |columns: usize, data: &[E4m3], scale: &[f32]| Matrix {
            columns,
            data: data.to_vec(),
            scale: scale.to_vec(),
        };
        let (h, i) = (config.hidden_size, config.intermediate_size);
        let experts = weights.experts.iter().map(|expert| Expert {
            gate: matrix(h, &expert.gate, &expert.gate_scale),
            up: matrix(h, &expert.up, &expert.up_scale),
            down: matrix(i, &expert.down, &expert.down_scale),
        });
        Layer {
            experts: experts.collect(),
            router: Vec::new(),
            bias: None,
            input_scales: weights.input_scales,
            biases: None,
            config,
        }
    }

    /// Gives expert `to` the scales of down of expert `from`, as the parts of one expert have them.
    pub fn share_down_scales(&mut self, from: usize, to: usize) {
        self.experts[to].down.scale = self.experts[from].down.scale.clone();
    }

    /// Makes outputs `factor` times as large.
    pub fn scale_outputs(&mut self, factor: f32) {
        let scales = self.experts.iter_mut().flat_map(|expert| &mut expert.down.scale);
        scales.for_each(|scale| *scale *= factor);
    }

    /// The weights as the rank of `config` takes them.
    pub fn weights(&self, config: &MoeConfig) -> MoeWeights<'_> {
        let expert = |n: usize| {
            let Expert { gate, up, down } = &self.experts[n];
            let expert = ExpertWeights::new().up(&up.data, &up.scale).down(&down.data, &down.scale);
            if config.gated { expert.gate(&gate.data, &gate.scale) } else { expert }
        };
        let experts = config.local_ids().into_iter().map(expert).collect();
        let mut weights = MoeWeights::new(experts).router(self.router.as_slice());
        weights.correction_bias = self.bias.as_deref().map(Into::into);
        weights.input_scales = self.input_scales;
        if let Some([first, second]) = &self.biases {
            let part = |biases: &[f32]| -> Vec<f32> {
                let each = biases.len() / self.config.experts;
                config
                    .local_ids()
                    .into_iter()
                    .flat_map(|n| biases[n * each..(n + 1) * each].to_vec())
                    .collect()
            };
            weights = weights.expert_biases(part(first), part(second));
        }
        weights
    }

    /// Scales of the inputs of GEMM 1 and of GEMM 2.
    fn activation_scales(&self) -> [Scales; 2] {
        match (self.config.quantization.activations(), self.config.intermediate_scales) {
            (ActivationScales::Static, _) => {
                self.input_scales.expect("the static scheme has input scales").map(Scales::Given)
            }
            (ActivationScales::Token, IntermediateScales::Token) => [Scales::Row; 2],
            (ActivationScales::Token, _) => [Scales::Row, Scales::Group],
            (ActivationScales::Group128, _) => [Scales::Group; 2],
            (other, _) => panic!("the oracle has no {other}"),
        }
    }

    /// K over which tensor cores keep a sum, whose operands have scales like these.
    fn slab(&self, scales: Scales, k: usize) -> usize {
        let scales_change =
            matches!(scales, Scales::Group) || self.config.quantization.weights() == WeightScales::Block128;
        if scales_change || self.config.accumulation == Accumulation::Promoted { 128 } else { k }
    }

    /// The bias of row `n` of gate (0) or up (1) of an expert.
    fn first_bias(&self, expert: usize, half: usize, n: usize) -> f64 {
        let (i, gated) = (self.config.intermediate_size, self.config.gated);
        let (halves, half) = if gated { (2, half) } else { (1, 0) };
        self.biases.as_ref().map_or(0.0, |[first, _]| first[(expert * halves + half) * i + n].into())
    }

    /// Draws biases of the size of the sums that they are added to.
    pub fn draw_biases(&mut self, seed: u64) {
        let mut source = StdRng::seed_from_u64(seed);
        let (h, i, e) = (self.config.hidden_size, self.config.intermediate_size, self.config.experts);
        let halves = if self.config.gated { 2 } else { 1 };
        let mut draw = |len: usize| (0..len).map(|_| source.random_range(-1.0..1.0)).collect();
        self.biases = Some([draw(e * halves * i), draw(e * h)]);
    }

    /// The slots of a token that go to an expert; ids outside `0..E` do not.
    fn slots<'a>(&'a self, row: &[bf16], ids: &'a [i32], weights: &'a [f32]) -> Vec<Slot<'a>> {
        let weight_on_input = self.config.routing == Routing::SigmoidInput;
        let slots = ids.iter().zip(weights).filter_map(|(&id, &weight)| {
            let number = usize::try_from(id).ok()?;
            let expert = self.experts.get(number)?;
            let (before, after) = if weight_on_input { (weight, 1.0) } else { (1.0, weight) };
            // The models multiply in the type of their hidden states.
            let row: Vec<f32> = row.iter().map(|x| bf16::from_f32(x.to_f32() * before).to_f32()).collect();
            let x = Quantised::exact(&row, self.activation_scales()[0]);
            Some(Slot { number, expert, x, weight: after.into() })
        });
        slots.collect()
    }

    /// The layer on `hidden [T, H]` with the given routing `[T, k]`, and how far from it a device may be; ids
    /// outside `0..E` contribute nothing.
    pub fn forward(&self, hidden: &[bf16], ids: &[i32], weights: &[f32]) -> Vec<Outputs> {
        let MoeConfig { hidden_size: h, top_k: k, quantization, activation: function, .. } = self.config;
        let limit = self.config.activation_limit.map_or(activation::limit(function), f64::from);
        let [first, second] = self.activation_scales();
        let (slab1, slab2) = (self.slab(first, h), self.slab(second, self.config.intermediate_size));
        let tokens = hidden.par_chunks(h).zip(ids.par_chunks(k)).zip(weights.par_chunks(k));
        let token = |((row, ids), weights)| {
            let mut outputs = Outputs::new(h);
            for Slot { number, expert: Expert { gate, up, down }, x, weight } in self.slots(row, ids, weights)
            {
                let biased = |half: usize, sums: Vec<Estimate>| -> Vec<Estimate> {
                    let biased = sums.into_iter().enumerate().map(|(n, sum)| {
                        let value = sum.value + self.first_bias(number, half, n);
                        Estimate { value, worst: sum.worst + 2f64.powi(-23) * value.abs(), ..sum }
                    });
                    biased.collect()
                };
                let ups = biased(1, up.product(quantization, &x, slab1));
                let gates = match self.config.gated {
                    true => biased(0, gate.product(quantization, &x, slab1)),
                    false => ups.clone(),
                };
                let act = |x| activation::gate_within(function, limit, x);
                let middle: Vec<Estimate> = gates
                    .into_iter()
                    .zip(ups)
                    .map(|(gate, up)| {
                        bounds::gated(gate, up, act, |x| activation::factor_within(function, limit, x))
                    })
                    .collect();
                let middle = Quantised::of(&middle, second);
                let scale = |row, column| down.scale(quantization, row, column);
                outputs.add_product(weight, &down.units(), &middle, scale, slab2);
                if let Some([_, second]) = &self.biases {
                    outputs.add(weight, &second[number * h..(number + 1) * h]);
                }
            }
            outputs
        };
        tokens.map(token).collect()
    }

    /// The layer with sums by `dot`, of operands in units of e4m3 and in the unit of their products; with or
    /// without quantisation of the intermediate.
    fn plain(
        &self,
        hidden: &[bf16],
        (ids, weights): (&[i32], &[f32]),
        quantised: bool,
        dot: impl Fn(&[i32], &[i32]) -> f64 + Copy + Sync,
    ) -> Vec<f64> {
        let MoeConfig { hidden_size: h, top_k: k, quantization, activation: function, .. } = self.config;
        let [first, second] = self.activation_scales();
        let (slab1, slab2) = (self.slab(first, h), self.slab(second, self.config.intermediate_size));
        let tokens = hidden.par_chunks(h).zip(ids.par_chunks(k)).zip(weights.par_chunks(k));
        let token = |((row, ids), weights)| {
            let mut out = vec![0.0; h];
            for Slot { expert: Expert { gate, up, down }, x, weight, .. } in self.slots(row, ids, weights) {
                let gates = gate.plain(quantization, &x, slab1, dot);
                let ups = up.plain(quantization, &x, slab1, dot);
                let pairs = gates.into_iter().zip(ups);
                let middle: Vec<f64> = pairs
                    .map(|(g, u)| activation::gate(function, g).0 * activation::factor(function, u))
                    .collect();
                let products = if quantised {
                    let middle: Vec<f32> = middle.into_iter().map(|x| x as f32).collect();
                    down.plain(quantization, &Quantised::exact(&middle, second), slab2, dot)
                } else {
                    down.times(quantization, &middle)
                };
                out.iter_mut().zip(products).for_each(|(out, y)| *out += weight * y);
            }
            out
        };
        tokens.flat_map_iter(token).collect()
    }

    /// The layer on dequantised inputs and weights, the intermediate in f64.
    pub fn dequantised(&self, hidden: &[bf16], ids: &[i32], weights: &[f32]) -> Vec<f64> {
        self.plain(hidden, (ids, weights), false, |a, b| {
            let sum: i64 = a.iter().zip(b).map(|(&a, &b)| i64::from(a) * i64::from(b)).sum();
            sum as f64 * tensor_core::PRODUCT_UNIT
        })
    }

    /// The layer as tensor cores compute it that cut what lies below the last bits of a sum, nothing else
    /// rounded.
    pub fn emulated(&self, hidden: &[bf16], ids: &[i32], weights: &[f32]) -> Vec<f64> {
        self.plain(hidden, (ids, weights), true, |a, b| tensor_core::truncated(a, b, 0.0))
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
            Routing::SqrtSoftplus { renormalize, scaling_factor, vocabulary: None } => {
                let softplus = |x: &f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
                let scores: Vec<f64> = logits.iter().map(|x| softplus(x).sqrt()).collect();
                let bias = self.bias.as_ref().expect("the oracle chooses with a bias");
                let biased: Vec<f64> = scores.iter().zip(bias).map(|(s, &b)| s + f64::from(b)).collect();
                let picked = best(&biased, &all, k);
                let sum: f64 = picked.iter().map(|&i| scores[i]).sum();
                let factor = f64::from(scaling_factor) / if renormalize { sum + 1e-20 } else { 1.0 };
                picked.into_iter().map(|i| (i, scores[i] * factor)).collect()
            }
            other => panic!("no oracle for {other:?}"),
        }
    }
}
