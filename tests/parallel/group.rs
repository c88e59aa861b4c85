//! Ranks as threads, and what they have: layers, tokens, references.

use std::sync::Arc;
use std::time::Duration;

use fp8_moe::parallel::{Batch, Communicator, ExpertOptions, ExpertParallel, InProcess, Limits, Placement};
use fp8_moe::{Device, MoeConfig, MoeLayer, Result, Stream};
use half::bf16;

use crate::common::device;
use crate::common::layers::{Poison, Skew, random_routing, run_routed};
use crate::common::oracle::{self, Layer};

/// Long enough for the emulated device, short enough for a test.
pub fn limits() -> Limits {
    Limits::new(Duration::from_secs(60), Duration::from_secs(60))
}

/// Runs `work` on every rank of a group over the tests' device, a thread to a rank; the results by rank. A
/// rank's handle is dropped when its work returns.
pub fn on_ranks<T: Send>(
    ranks: usize,
    limits: Limits,
    work: impl Fn(usize, Arc<dyn Communicator>) -> T + Sync,
) -> Vec<T> {
    let group = InProcess::group(&device(), ranks, limits).expect("a group");
    std::thread::scope(|scope| {
        let work = &work;
        let start =
            |communicator: InProcess| scope.spawn(move || work(communicator.rank(), Arc::new(communicator)));
        let threads: Vec<_> = group.into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank")).collect()
    })
}

/// A rank's tokens.
#[derive(Clone)]
pub struct Tokens {
    pub hidden: Vec<bf16>,
    pub ids: Vec<i32>,
    pub weights: Vec<f32>,
}

impl Tokens {
    pub fn random(config: &MoeConfig, tokens: usize, skew: Skew, seed: u64) -> Tokens {
        let hidden = oracle::hidden_states(tokens * config.hidden_size, seed);
        let (ids, weights) = random_routing(config, tokens, skew, seed ^ 0x5eed);
        Tokens { hidden, ids, weights }
    }

    pub fn len(&self, config: &MoeConfig) -> usize {
        self.hidden.len() / config.hidden_size
    }
}

/// A layer, a placement, options, and each rank's tokens.
pub struct Case {
    pub layer: Layer,
    pub placement: Placement,
    pub options: ExpertOptions,
    pub capacity: usize,
    pub tokens: Vec<Tokens>,
}

impl Case {
    /// `tokens[r]` tokens on rank r, experts in consecutive parts.
    pub fn new(config: MoeConfig, tokens: &[usize], skew: Skew, seed: u64) -> Case {
        let capacity = tokens.iter().copied().max().expect("a rank").max(1);
        let placement = Placement::linear(config.experts, tokens.len()).expect("ranks");
        let draw = |(rank, &count): (usize, &usize)| {
            Tokens::random(&config, count, skew, seed.wrapping_add(rank as u64))
        };
        let tokens = tokens.iter().enumerate().map(draw).collect();
        Case {
            options: ExpertOptions::new(capacity),
            layer: Layer::random(config, seed),
            placement,
            capacity,
            tokens,
        }
    }

    pub fn placed(mut self, placement: Placement) -> Case {
        self.placement = placement;
        self
    }

    pub fn config(&self) -> &MoeConfig {
        &self.layer.config
    }

    pub fn ranks(&self) -> usize {
        self.tokens.len()
    }

    /// The layer of a rank.
    pub fn part(&self, device: &Device, rank: usize) -> MoeLayer {
        let config = self.placement.config(self.config(), rank);
        MoeLayer::new(device, &config, &self.layer.weights(&config)).expect("a layer")
    }

    /// What a rank makes of the case, in memory filled with `poison`.
    pub fn run(&self, rank: usize, communicator: Arc<dyn Communicator>, poison: Poison) -> Result<Vec<bf16>> {
        let device = communicator.device().clone();
        let mut experts = self.expert_parallel(rank, communicator)?;
        let stream = Stream::new(&device)?;
        let mut workspace = experts.workspace()?;
        workspace.memory().into_iter().try_for_each(|memory| poison.fill(memory, &stream))?;
        let Tokens { hidden, ids, weights } = &self.tokens[rank];
        let (hidden, ids, weights) = (device.upload(hidden)?, device.upload(ids)?, device.upload(weights)?);
        let mut out = device.uninit::<bf16>(hidden.len())?;
        let batch = Batch::new(&hidden).routed(&ids, &weights).capacity(self.capacity);
        experts.forward(&stream, batch, &mut workspace, &mut out)?;
        experts.communicator().wait(&stream, limits().call)?;
        out.to_vec(&stream)
    }

    pub fn expert_parallel(
        &self,
        rank: usize,
        communicator: Arc<dyn Communicator>,
    ) -> Result<ExpertParallel> {
        let options = self.options.clone().placement(self.placement.clone());
        let layer = self.part(communicator.device(), rank);
        ExpertParallel::new(layer, communicator, options)
    }

    /// What every rank must get: for each chunk, each rank's layer on the tokens of all ranks, padded to the
    /// capacity; their outputs in bf16 added in rank order in f32, and rounded once.
    pub fn expected(&self) -> Vec<Vec<bf16>> {
        let (h, k) = (self.config().hidden_size, self.config().top_k);
        let stream = device().default_stream();
        let layers: Vec<_> = (0..self.ranks()).map(|rank| self.part(&device(), rank)).collect();
        let chunk = self.options.chunk.unwrap_or(self.options.max_tokens);
        let mut outputs = vec![Vec::new(); self.ranks()];
        for first in (0..self.capacity).step_by(chunk) {
            let rows = chunk.min(self.capacity - first);
            let mut gathered = Tokens { hidden: Vec::new(), ids: Vec::new(), weights: Vec::new() };
            for tokens in &self.tokens {
                let count = tokens.len(self.config());
                for token in first..first + rows {
                    if token < count {
                        gathered.hidden.extend(&tokens.hidden[token * h..(token + 1) * h]);
                        gathered.ids.extend(&tokens.ids[token * k..(token + 1) * k]);
                        gathered.weights.extend(&tokens.weights[token * k..(token + 1) * k]);
                    } else {
                        gathered.hidden.extend(vec![bf16::ZERO; h]);
                        gathered.ids.extend(vec![-1; k]);
                        gathered.weights.extend(vec![0.0; k]);
                    }
                }
            }
            let mut sums = vec![0.0f32; gathered.hidden.len()];
            for (rank, layer) in layers.iter().enumerate() {
                let ids = self.chosen(rank, rows, &gathered.ids);
                let (hidden, weights) = (&gathered.hidden, &gathered.weights);
                let part: Vec<bf16> =
                    run_routed(&stream, layer, hidden, &ids, weights, Poison::Fresh).expect("a forward");
                sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part.to_f32());
            }
            for (rank, output) in outputs.iter_mut().enumerate() {
                let count = self.tokens[rank].len(self.config()).saturating_sub(first).min(rows);
                let own = &sums[rank * rows * h..][..count * h];
                output.extend(own.iter().map(|&sum| bf16::from_f32(sum)));
            }
        }
        outputs
    }

    /// The ids that `rank` takes of those of all ranks, `rows` tokens each: of n holders of an expert the one
    /// with the number `(source + token + expert) mod n`.
    fn chosen(&self, rank: usize, rows: usize, ids: &[i32]) -> Vec<i32> {
        let k = self.config().top_k;
        let choose = |(slot, &id): (usize, &i32)| {
            let expert = usize::try_from(id).ok().filter(|&expert| expert < self.config().experts)?;
            let holders: Vec<_> = self.placement.holders(expert).collect();
            let (source, token) = (slot / k / rows, slot / k % rows);
            (holders[(source + token + expert) % holders.len()] == rank).then_some(id)
        };
        ids.iter().enumerate().map(|slot| choose(slot).unwrap_or(-1)).collect()
    }

    /// By rank: every output of the exact layer, and how far from it a group may be that forwards in one
    /// chunk. A holder's part, which is within its own bound, is rounded to bf16, and so is the sum: by 2^-8
    /// of a number at most.
    pub fn exact(&self) -> Vec<Vec<(f64, f64)>> {
        const HALF_ULP: f64 = 1.0 / 256.0;
        let (h, k, rows) = (self.config().hidden_size, self.config().top_k, self.capacity);
        // As the ranks have them: tokens behind one another, each rank's with room for `rows`.
        let mut ids = vec![-1; self.ranks() * rows * k];
        for (source, tokens) in self.tokens.iter().enumerate() {
            ids[source * rows * k..][..tokens.ids.len()].copy_from_slice(&tokens.ids);
        }
        let mut outputs: Vec<_> =
            self.tokens.iter().map(|tokens| vec![(0.0, 0.0); tokens.hidden.len()]).collect();
        for holder in 0..self.ranks() {
            let chosen = self.chosen(holder, rows, &ids);
            for (source, (tokens, outputs)) in self.tokens.iter().zip(&mut outputs).enumerate() {
                let chosen = &chosen[source * rows * k..][..tokens.ids.len()];
                let parts = self.layer.forward(&tokens.hidden, chosen, &tokens.weights);
                for (part, outputs) in parts.iter().zip(outputs.chunks_mut(h)) {
                    for (n, (value, bound)) in outputs.iter_mut().enumerate() {
                        let of_part = part.bound(n);
                        *value += part.values[n];
                        *bound += of_part + HALF_ULP * (part.values[n].abs() + of_part);
                    }
                }
            }
        }
        for (value, bound) in outputs.iter_mut().flatten() {
            *bound += HALF_ULP * (value.abs() + *bound);
        }
        outputs
    }

    /// Runs the case on all ranks and compares, bit for bit.
    #[track_caller]
    pub fn check(&self, poison: Poison) {
        let outputs =
            on_ranks(self.ranks(), limits(), |rank, communicator| self.run(rank, communicator, poison));
        let expected = self.expected();
        for (rank, (output, expected)) in outputs.into_iter().zip(expected).enumerate() {
            let output = output.unwrap_or_else(|error| panic!("rank {rank}: {error}"));
            let bits = |values: &[bf16]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&output), bits(&expected), "rank {rank} of {}", self.ranks());
        }
    }
}
