//! `fp8-moe bench --ranks N`: what a layer over several GPUs takes, and its steps apart.
//!
//! ```text
//!   rank 0:  [ barrier | event | graph x n | event ]  -> us --.
//!   rank 1:  [ barrier | event | graph x n | event ]  -> us ---+--> the slowest rank's median
//! ```
//!
//! `layer` is the whole forward: from each rank's hidden states and routing to its output. `dispatch`,
//! `experts` and `combine` are its steps, each in a graph of its own. A floor of an exchange is its bytes
//! over the link rate, which is measured in the same run by an all-to-all of [`LINK_BYTES`].
//!
//! Ranks in one process meet on the host, so that no time of theirs means anything: there the command runs
//! everything once, and counts bytes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fp8_moe::internals::{ParallelStep, parallel_step};
use fp8_moe::parallel::{
    Batch, Communicator, ExpertOptions, ExpertParallel, ParallelGraph, ParallelWorkspace, Placement,
};
use fp8_moe::{Buffer, Event, MoeConfig, Result, Stream};
use fp8_moe_cli::{Layers, RoutingKind, Scheme, Shape, Timing};
use half::bf16;
use rand::{Rng, SeedableRng};

use crate::record::{Record, Row};

/// Bytes of each rank in the exchange that the link rate is measured on.
pub const LINK_BYTES: usize = 256 << 20;
/// Samples of each measurement.
const SAMPLES: usize = 11;
/// What a sample should take, microseconds, and the most replays in it.
const SAMPLE_US: f64 = 5000.0;
const MOST_REPLAYS: usize = 200;
/// How long a sample may take before the group fails.
const LIMIT: Duration = Duration::from_secs(60);

/// A model with a scheme, and the batch sizes to measure it at.
pub struct Case {
    pub model: String,
    pub shape: Shape,
    pub scheme: Scheme,
    pub routing: RoutingKind,
    /// The whole layer.
    pub config: MoeConfig,
    /// Tokens of each rank.
    pub tokens: Vec<usize>,
    pub seed: u64,
}

/// What is measured.
const PARTS: [(&str, Option<ParallelStep>); 4] = [
    ("layer", None),
    ("dispatch", Some(ParallelStep::Dispatch)),
    ("experts", Some(ParallelStep::Experts)),
    ("combine", Some(ParallelStep::Combine)),
];

/// Measures all cases; rank 0 prints them, and writes them to `json`.
pub fn run(cases: &[Case], communicator: Arc<dyn Communicator>, json: Option<&Path>) -> Result<()> {
    let mut rank = Rank::new(communicator)?;
    let link = rank.link_rate()?;
    if let (true, Some(link)) = (rank.is_first(), link) {
        eprintln!(
            "link     {:.0} GB/s in each direction, by an all-to-all of {} MiB",
            link / 1e9,
            LINK_BYTES >> 20
        );
    }
    let mut record = Record::new(rank.communicator.device())?;
    for case in cases {
        for row in rank.case(case, link)? {
            record.rows.push(row);
            if let (true, Some(path)) = (rank.is_first(), json) {
                record.write(path)?;
            }
        }
    }
    rank.communicator.agree(&[])?;
    if let (true, Some(path)) = (rank.is_first(), json) {
        eprintln!("wrote    {}", path.display());
    }
    Ok(())
}

/// This rank's clock.
struct Rank {
    communicator: Arc<dyn Communicator>,
    stream: Stream,
    events: [Event; 2],
    graphs: usize,
}

impl Rank {
    fn new(communicator: Arc<dyn Communicator>) -> Result<Rank> {
        let device = communicator.device();
        let (stream, events) = (Stream::new(device)?, [Event::new(device)?, Event::new(device)?]);
        Ok(Rank { communicator, stream, events, graphs: 0 })
    }

    fn is_first(&self) -> bool {
        self.communicator.rank() == 0
    }

    /// Every rank's `value`, by rank.
    fn everybodys(&self, value: f64) -> Result<Vec<f64>> {
        let (rank, ranks) = (self.communicator.rank(), self.communicator.size());
        let mut values = vec![0.0; ranks];
        values[rank] = value;
        let mut buffer = self.communicator.device().upload(&values)?;
        self.communicator.all_gather(&self.stream, &mut [buffer.as_mut_slice().cast()])?;
        self.communicator.wait(&self.stream, LIMIT)?;
        buffer.to_vec(&self.stream)
    }

    /// Microseconds of `count` times `work`.
    fn sample(&self, count: usize, work: &mut dyn FnMut(&Stream) -> Result<()>) -> Result<f64> {
        self.communicator.agree(&[])?;
        let [start, end] = &self.events;
        start.record(&self.stream)?;
        (0..count).try_for_each(|_| work(&self.stream))?;
        end.record(&self.stream)?;
        self.communicator.wait(&self.stream, LIMIT)?;
        Ok(f64::from(end.elapsed_ms(start)?) * 1e3)
    }

    /// The distribution of the time of `work`, of the rank with the largest median.
    fn measure(&self, work: &mut dyn FnMut(&Stream) -> Result<()>) -> Result<Timing> {
        self.sample(2, work)?;
        let one = self.sample(5, work)? / 5.0;
        let slowest = self.everybodys(one)?.into_iter().fold(1.0, f64::max);
        let count = ((SAMPLE_US / slowest).ceil() as usize).clamp(1, MOST_REPLAYS);
        let samples = (0..SAMPLES).map(|_| Ok(self.sample(count, work)? / count as f64));
        let own = Timing::of(samples.collect::<Result<Vec<_>>>()?);
        let slowest =
            |value: f64| -> Result<f64> { Ok(self.everybodys(value)?.into_iter().fold(0.0, f64::max)) };
        Ok(Timing {
            median_us: slowest(own.median_us)?,
            p10_us: slowest(own.p10_us)?,
            p90_us: slowest(own.p90_us)?,
        })
    }

    /// Bytes per second that a rank sends, and receives; none where there is no time.
    fn link_rate(&self) -> Result<Option<f64>> {
        let ranks = self.communicator.size();
        if !self.communicator.can_be_captured() || ranks == 1 {
            return Ok(None);
        }
        let bytes = LINK_BYTES / ranks * ranks;
        let device = self.communicator.device();
        let (from, mut to) = (device.zeros::<u8>(bytes)?, device.zeros::<u8>(bytes)?);
        let mut exchange =
            |stream: &Stream| self.communicator.all_to_all(stream, from.as_slice(), to.as_mut_slice());
        exchange(&self.stream)?;
        self.communicator.wait(&self.stream, LIMIT)?;
        let samples = (0..5).map(|_| self.sample(4, &mut exchange)).collect::<Result<Vec<_>>>()?;
        let us = Timing::of(samples).median_us / 4.0;
        Ok(Some((bytes - bytes / ranks) as f64 / (us * 1e-6)))
    }

    /// Rows of all batch sizes.
    fn case(&mut self, case: &Case, link: Option<f64>) -> Result<Vec<Row>> {
        let (rank, ranks) = (self.communicator.rank(), self.communicator.size());
        let device = self.communicator.device().clone();
        let placement = Placement::linear(case.shape.experts, ranks)?;
        let config = placement.config(&case.config, rank);
        let active = vec![true; config.local_count()];
        let mut layers = Layers::random(&device, &config, 1, &active, case.seed + rank as u64)?.into_vec();
        let Some(layer) = layers.pop() else { return Ok(Vec::new()) };
        let most = case.tokens.iter().copied().max().unwrap_or(1);
        let options = ExpertOptions::new(most).placement(placement);
        let mut experts = ExpertParallel::new(layer, self.communicator.clone(), options)?;
        let mut workspace = experts.workspace()?;
        let [out_bytes, back_bytes] = experts.token_bytes();
        if self.is_first() {
            let Shape { experts, top_k, hidden, intermediate } = case.shape;
            let shape = format!("[{experts}, {top_k}, {hidden}, {intermediate}]");
            println!(
                "\n{} {shape} over {ranks} ranks, {}, {} routing",
                case.model, case.scheme, case.routing
            );
            println!(
                "{:>8} {:>10} {:>10} {:>10} {:>10} {:>12} {:>12}",
                "tokens", "layer us", "dispatch", "experts", "combine", "KiB moved", "floor us"
            );
        }
        let mut rows = Vec::new();
        for &tokens in &case.tokens {
            let mut inputs = Inputs::new(case, &device, rank, tokens)?;
            let moved = tokens * (ranks - 1) * (out_bytes + back_bytes);
            let floor = link.map(|link| moved as f64 / link * 1e6);
            let mut line = format!("{tokens:>8}");
            for (name, step) in PARTS {
                let timing = self.part(&mut experts, step, tokens, &mut inputs, &mut workspace)?;
                let text = timing.map_or("-".to_owned(), |timing| format!("{:.1}", timing.median_us));
                line += &format!(" {text:>10}");
                let bytes = match step {
                    None => moved,
                    Some(ParallelStep::Dispatch) => tokens * (ranks - 1) * out_bytes,
                    Some(ParallelStep::Experts) => 0,
                    Some(ParallelStep::Combine) => tokens * (ranks - 1) * back_bytes,
                };
                rows.push(row(case, ranks, tokens, name, bytes as u64, timing));
            }
            if self.is_first() {
                let floor = floor.map_or("-".to_owned(), |floor| format!("{floor:.1}"));
                println!("{line} {:>12.1} {floor:>12}", moved as f64 / 1024.0);
            }
        }
        Ok(rows)
    }

    /// The time of the whole forward, or of a step; none where the ranks have no time.
    fn part(
        &mut self,
        experts: &mut ExpertParallel,
        step: Option<ParallelStep>,
        tokens: usize,
        inputs: &mut Inputs,
        workspace: &mut ParallelWorkspace,
    ) -> Result<Option<Timing>> {
        let Inputs { hidden, ids, weights, out } = inputs;
        let mut enqueue = |stream: &Stream| {
            let batch = Batch::new(&*hidden).routed(&*ids, &*weights).capacity(tokens);
            match step {
                None => experts.forward(stream, batch, workspace, &mut *out),
                Some(step) => parallel_step(experts, step, stream, batch, workspace, out),
            }
        };
        // Once, so that what a step reads is there; it also loads the kernels.
        enqueue(&self.stream)?;
        self.communicator.wait(&self.stream, LIMIT)?;
        if !self.communicator.can_be_captured() {
            return Ok(None);
        }
        self.graphs += 1;
        let name = format!("graph {}", self.graphs);
        let graph = ParallelGraph::capture(&self.communicator, &self.stream, &name, enqueue)?;
        self.measure(&mut |stream| graph.launch(stream)).map(Some)
    }
}

/// A rank's tokens.
struct Inputs {
    hidden: Buffer<bf16>,
    ids: Buffer<i32>,
    weights: Buffer<f32>,
    out: Buffer<bf16>,
}

impl Inputs {
    fn new(case: &Case, device: &fp8_moe::Device, rank: usize, tokens: usize) -> Result<Inputs> {
        let Shape { experts, top_k, hidden: width, .. } = case.shape;
        let seed = case.seed.wrapping_add(1000 * rank as u64 + tokens as u64);
        let routed = case.routing.draw(tokens, experts, top_k, seed)?;
        // The sum of a few uniform numbers is close to normal, and quickly drawn.
        let mut source = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut normal = || (0..4).map(|_| source.random_range(-0.866f32..0.866)).sum::<f32>();
        let hidden: Vec<bf16> = (0..tokens * width).map(|_| bf16::from_f32(normal())).collect();
        Ok(Inputs {
            hidden: device.upload(&hidden)?,
            ids: device.upload(&routed.topk_ids)?,
            weights: device.upload(&routed.topk_weights)?,
            out: device.uninit(tokens * width)?,
        })
    }
}

/// A row of the record.
fn row(case: &Case, ranks: usize, tokens: usize, part: &str, bytes: u64, timing: Option<Timing>) -> Row {
    let Shape { experts, top_k, hidden, intermediate } = case.shape;
    let mut row = Row {
        implementation: crate::record::our_name(&case.config).into(),
        model: case.model.clone(),
        shape: [experts, top_k, hidden, intermediate],
        tp: 1,
        ep: ranks,
        tokens,
        scheme: case.scheme.to_string(),
        routing: case.routing.to_string(),
        part: format!("{part} over ranks"),
        accumulation: None,
        gathered: None,
        median_us: None,
        p10_us: None,
        p90_us: None,
        launches: None,
        flops: 0,
        bytes,
        floor_us: None,
        fraction: None,
        error: None,
        exact_rel_l2: None,
        counted: None,
    };
    if let Some(timing) = timing {
        row.set_timing(timing);
    }
    row
}
