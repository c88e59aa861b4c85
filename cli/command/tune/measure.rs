//! The choices of a plan beside each other, at the sizes of a grid.
//!
//! ```text
//!   a layer's weights --> by a forced table each --> graphs, replayed in turn --> a case: x, and us of each choice
//! ```
//!
//! A choice is forced by a table that leaves nothing else: layers of several tables share one memory.

use std::time::Instant;

use fp8_moe::internals::{block_m, expected, one_launch_cuts, padded_intermediate};
use fp8_moe::ops::quantize::Activations;
use fp8_moe::ops::router::{RouterLogits, RouterLogitsPath, router_logits};
use fp8_moe::{Device, Family, Graph, MoeConfig, Result, Stream, Tuning};
use fp8_moe_cli::{
    Layers, Load, Memory, Model, Part, Replays, RoutingKind, Run, Scheme, Timer, Work, sets_to_outgrow_cache,
};
use half::bf16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::fit::Case;

/// The sizes at which choices are measured.
#[derive(Clone, Debug)]
pub struct Grid {
    /// Tokens at which the layer in one launch stands beside several.
    pub few: &'static [usize],
    /// Mean rows of an expert at which heights of tiles stand beside each other, on Hopper.
    pub hopper_means: &'static [usize],
    /// The same with the portable kernels.
    pub portable_means: &'static [usize],
    /// Tokens at which gathered rows stand beside scattered ones.
    pub gathered: &'static [usize],
    /// Tokens at which the router's kernels stand beside each other.
    pub router: &'static [usize],
    /// Most tokens of a batch.
    pub most_tokens: usize,
    /// Samples of each choice.
    pub samples: usize,
}

/// What the command measures.
pub const GRID: Grid = Grid {
    few: &[1, 2, 4, 8],
    hopper_means: &[1, 2, 3, 4, 6, 8, 12, 16, 24],
    portable_means: &[4, 8, 16, 24, 32, 48, 64, 96, 128, 192],
    gathered: &[1024, 4096],
    router: &[1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048],
    most_tokens: 8192,
    samples: 7,
};

/// Costs of units and of short copies, in bytes, with which the launch for few tokens cuts its matrices.
pub const CUTS: [[u32; 2]; 9] = [
    [1536, 1024],
    [1536, 2048],
    [1536, 4096],
    [6144, 1024],
    [6144, 2048],
    [6144, 4096],
    [24576, 1024],
    [24576, 2048],
    [24576, 4096],
];

/// A number of few tokens: several launches, and one.
#[derive(Clone, Debug)]
pub struct Few {
    pub packed: bool,
    pub tokens: usize,
    /// Megabytes of weights that are read if tokens spread evenly.
    pub megabytes: f64,
    /// Microseconds of several launches.
    pub several: f64,
    /// Microseconds of one: cut as the table has it, then by each of [`CUTS`].
    pub one: Vec<f64>,
}

/// Scattered rows and gathered ones.
#[derive(Clone, Copy, Debug)]
pub struct Gathered {
    /// Rows of a token on this rank, and of an expert that has any, on average; columns of the intermediate.
    pub sizes: [f64; 3],
    /// Microseconds with scattered rows, and with gathered ones.
    pub us: [f64; 2],
}

/// The router's kernels.
#[derive(Clone, Copy, Debug)]
pub struct Router {
    pub tokens: usize,
    pub experts: usize,
    /// Microseconds of the kernel for few tokens, of that of 16 by 8 logits, and of 64 by 64.
    pub us: [f64; 3],
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    pub few: Vec<Few>,
    /// Tiles of 8, 16 and 128 rows over the mean rows.
    pub hopper: Vec<Case>,
    /// Tiles of 16, 64 and 128 rows over the mean rows.
    pub portable: Vec<Case>,
    pub gathered: Vec<Gathered>,
    pub router: Vec<Router>,
}

/// Measures, and keeps what was measured.
pub struct Study {
    pub device: Device,
    pub timer: Timer,
    pub grid: Grid,
    /// The table that the choices beside the forced ones come from.
    pub base: Tuning,
    pub scheme: Scheme,
    /// Each for heights and gathering, the first for the rest.
    pub routings: Vec<RoutingKind>,
    pub seed: u64,
    /// Most bytes of device memory.
    pub memory: u64,
    /// No measurement begins after this.
    pub deadline: Option<Instant>,
    pub measured: Measured,
    /// Cases that the deadline or a lack of memory left out.
    pub left_out: usize,
}

/// A batch with what it means for a layer.
struct Batch {
    tokens: usize,
    routed: fp8_moe_cli::Routed,
    turns: usize,
}

/// Changes a copy of a table.
fn with(base: &Tuning, change: impl FnOnce(&mut Tuning)) -> Tuning {
    let mut tuning = base.clone();
    change(&mut tuning);
    tuning
}

/// A table by which no layer is one launch.
fn several(base: &Tuning) -> Tuning {
    with(base, |t| (t.one_launch_packed_mb, t.one_launch_checkpoint_mb) = ([0; 8], [0; 8]))
}

/// A table by which every layer is one launch that can be, cut at the costs of `[units, copies]`.
fn one(base: &Tuning, [units, copies]: [u32; 2]) -> Tuning {
    with(base, |t| {
        (t.one_launch_packed_mb, t.one_launch_checkpoint_mb) = ([u32::MAX; 8], [u32::MAX; 8]);
        (t.one_launch_unit_bytes, t.one_launch_copy_bytes) = (units, copies);
    })
}

/// Tables by which all tiles are of the lowest, the middle and the tallest kind.
fn heights(base: &Tuning) -> [Tuning; 3] {
    [[u32::MAX, u32::MAX], [0, u32::MAX], [0, 0]].map(|limits| {
        with(&several(base), |t| {
            [t.hopper_rows_8, t.hopper_rows_16] = limits;
            (t.hopper_rows_32, t.hopper_large_mb) = (0, u32::MAX);
            [t.portable_rows_16, t.portable_rows_64] = limits;
        })
    })
}

/// Tables by which rows are scattered, and gathered, in the tallest tiles.
fn gathering(base: &Tuning) -> [Tuning; 2] {
    let [_, _, tallest] = heights(base);
    [u32::MAX, 0].map(|from| with(&tallest, |t| (t.gather_from, t.gather_rows) = (from, u32::MAX)))
}

impl Study {
    fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() > deadline)
    }

    /// Measures all choices of a model's layer. One that does not fit is left out, with a note.
    pub fn model(&mut self, model: &Model) -> Result<()> {
        let Model { name, shape, tp, ep } = *model;
        let config = shape.config(self.scheme, tp, ep)?;
        if self.is_over() {
            self.left_out += 1;
            return Ok(());
        }
        let is_hopper = self.device.family() == Family::Sm90a;
        let sets = match self.sets(&config) {
            Ok(sets) => sets,
            Err(error) => {
                eprintln!("note     {name} is left out: {error}");
                self.left_out += 1;
                return Ok(());
            }
        };
        let all = vec![true; config.local_count()];
        let layers = Layers::random(&self.device, &config, sets, &all, self.seed)?;
        if is_hopper {
            self.few(name, &layers, true)?;
        }
        for routing in self.routings.clone() {
            self.heights(name, &layers, &routing, is_hopper)?;
            if is_hopper {
                self.gathering(name, &layers, &routing)?;
            }
        }
        if is_hopper {
            drop(layers);
            let layers = Layers::random_unpacked(&self.device, &config, sets, &all, self.seed)?;
            self.few(name, &layers, false)?;
        }
        Ok(())
    }

    /// Layers to take turns: as many as outgrow the cache with one token, or fit beside two more runs of the
    /// largest batch.
    fn sets(&self, config: &MoeConfig) -> Result<usize> {
        let tokens = self.largest(config);
        let memory = Memory::new(&self.device, config, tokens)?;
        let wanted = self.batch(config, &self.routings[0], 1)?.turns;
        let free = self.device.free_memory_bytes()?.min(self.memory).saturating_sub(2 * memory.activations);
        memory.sets(&self.device, free, tokens, wanted)
    }

    /// Tokens with a mean of so many rows to an expert.
    fn tokens_for(config: &MoeConfig, mean: usize) -> usize {
        (mean * config.experts).div_ceil(config.top_k)
    }

    /// The tokens of a grid of means, with the means, but those that are too many.
    fn tokens_of_means(&self, config: &MoeConfig, is_hopper: bool) -> Vec<usize> {
        let means = if is_hopper { self.grid.hopper_means } else { self.grid.portable_means };
        let tokens = means.iter().map(|&mean| Self::tokens_for(config, mean));
        tokens.filter(|&tokens| tokens <= self.grid.most_tokens).collect()
    }

    /// Most tokens of a batch.
    fn largest(&self, config: &MoeConfig) -> usize {
        let is_hopper = self.device.family() == Family::Sm90a;
        let means = self.tokens_of_means(config, is_hopper).into_iter();
        means.chain(self.grid.few.iter().chain(self.grid.gathered).copied()).max().unwrap_or(1)
    }

    fn batch(&self, config: &MoeConfig, routing: &RoutingKind, tokens: usize) -> Result<Batch> {
        let routed = routing.draw(tokens, config.experts, config.top_k, self.seed)?;
        let bytes = Work::weight_bytes(config, &Load::new(config, &routed));
        let turns =
            if self.device.is_emulated() { 1 } else { sets_to_outgrow_cache(self.device.l2_bytes(), bytes) };
        Ok(Batch { tokens, routed, turns })
    }

    /// Microseconds of the layer by each of the tables, in turn.
    fn beside(&mut self, layers: &Layers, batch: &Batch, tables: &[Tuning]) -> Result<Vec<f64>> {
        let tuned = tables.iter().map(|table| layers.tuned(table)).collect::<Result<Vec<_>>>()?;
        let run = |layers| Run::new(layers, batch.tokens, &batch.routed, self.seed);
        let mut runs = tuned.iter().map(run).collect::<Result<Vec<_>>>()?;
        let captured =
            runs.iter_mut().map(|run| run.capture_whole(batch.turns)).collect::<Result<Vec<_>>>()?;
        let replays = captured.iter().map(|run| run.replays(Part::Layer)).collect::<Result<Vec<_>>>()?;
        let replays: Vec<Replays<'_>> = replays.into_iter().flatten().collect();
        let timings = self.timer.measure_beside(&replays, self.grid.samples)?;
        Ok(timings.into_iter().map(|timing| timing.median_us).collect())
    }

    /// One launch beside several.
    fn few(&mut self, name: &str, layers: &Layers, packed: bool) -> Result<()> {
        let config = layers.as_slice()[0].config().clone();
        let present = [self.base.one_launch_unit_bytes, self.base.one_launch_copy_bytes];
        for &tokens in self.grid.few {
            if self.is_over() {
                self.left_out += 1;
                continue;
            }
            // Most costs lead to the same few cuts, which are measured once.
            let (mut tables, mut cuts, mut index_of) = (vec![several(&self.base)], Vec::new(), Vec::new());
            for costs in std::iter::once(present).chain(CUTS) {
                let table = one(&self.base, costs);
                let cut = one_launch_cuts(&layers.as_slice()[0].tuned(table.clone())?, tokens)?;
                let Some(cut) = cut else { break };
                let known = cuts.iter().position(|known| *known == cut);
                index_of.push(known.unwrap_or(cuts.len()));
                if known.is_none() {
                    cuts.push(cut);
                    tables.push(table);
                }
            }
            if cuts.is_empty() {
                continue;
            }
            let batch = self.batch(&config, &self.routings[0], tokens)?;
            let us = self.beside(layers, &batch, &tables)?;
            let one: Vec<f64> = index_of.iter().map(|&index| us[1 + index]).collect();
            let megabytes = expected(&config, tokens).0 / 1e6;
            let layout = if packed { "packed" } else { "as in a checkpoint" };
            let of_cuts: Vec<_> = us[1..].iter().map(|us| format!("{us:.1}")).collect();
            println!(
                "{name:<20} T = {tokens:<5} {megabytes:>6.0} MB, {layout}: several launches {:.1}, one {}",
                us[0],
                of_cuts.join(" ")
            );
            self.measured.few.push(Few { packed, tokens, megabytes, several: us[0], one });
        }
        Ok(())
    }

    /// Heights of tiles beside each other.
    fn heights(&mut self, name: &str, layers: &Layers, routing: &RoutingKind, is_hopper: bool) -> Result<()> {
        let config = layers.as_slice()[0].config().clone();
        let tables = heights(&self.base);
        for tokens in self.tokens_of_means(&config, is_hopper) {
            if self.is_over() {
                self.left_out += 1;
                continue;
            }
            let batch = self.batch(&config, routing, tokens)?;
            let us = self.beside(layers, &batch, &tables)?;
            let rows =
                tables.iter().map(|table| block_m(&layers.as_slice()[0].tuned(table.clone())?, tokens));
            let rows = rows.collect::<Result<Vec<_>>>()?;
            let mean = expected(&config, tokens).1;
            let told: Vec<_> = rows.iter().zip(&us).map(|(rows, us)| format!("{rows}: {us:.1}")).collect();
            let told = told.join(", ");
            println!("{name:<20} T = {tokens:<5} {mean:>6} rows an expert, {routing}, in tiles of {told}");
            let cases = if is_hopper { &mut self.measured.hopper } else { &mut self.measured.portable };
            cases.push(Case { x: mean as f64, us });
        }
        Ok(())
    }

    /// Gathered rows beside scattered ones, where the layer's kernels gather.
    fn gathering(&mut self, name: &str, layers: &Layers, routing: &RoutingKind) -> Result<()> {
        let config = layers.as_slice()[0].config().clone();
        let tables = gathering(&self.base);
        let of_token = (config.top_k * config.local_count()) as f64 / config.experts as f64;
        for &tokens in self.grid.gathered {
            if !layers.as_slice()[0].tuned(tables[1].clone())?.gathers(tokens)? {
                continue;
            }
            if self.is_over() {
                self.left_out += 1;
                continue;
            }
            let batch = self.batch(&config, routing, tokens)?;
            let us = self.beside(layers, &batch, &tables)?;
            let sizes = [of_token, expected(&config, tokens).1 as f64, padded_intermediate(&config) as f64];
            println!(
                "{name:<20} T = {tokens:<5} {of_token:>6.2} rows a token, {routing}, scattered: {:.1}, gathered: {:.1}",
                us[0], us[1]
            );
            self.measured.gathered.push(Gathered { sizes, us: [us[0], us[1]] });
        }
        Ok(())
    }

    /// The router's kernels beside each other, for so many experts and columns.
    pub fn router(&mut self, experts: usize, hidden: usize) -> Result<()> {
        let Some(&most) = self.grid.router.iter().max() else { return Ok(()) };
        let mut source = ChaCha8Rng::seed_from_u64(self.seed);
        let mut draw = |len: usize| -> Vec<bf16> {
            (0..len).map(|_| bf16::from_f32(source.random_range(-1.0..1.0))).collect()
        };
        let bytes = 2 * (experts * hidden) as u64;
        let sets =
            if self.device.is_emulated() { 1 } else { sets_to_outgrow_cache(self.device.l2_bytes(), bytes) };
        let gate = draw(experts * hidden);
        let gates = (0..sets).map(|_| self.device.upload(&gate)).collect::<Result<Vec<_>>>()?;
        let states = self.device.upload(&draw(most * hidden))?;
        let mut logits = self.device.uninit::<f32>(most * experts)?;
        let stream = Stream::new(&self.device)?;
        for &tokens in self.grid.router {
            if self.is_over() {
                self.left_out += 1;
                continue;
            }
            let mut graphs_of = |path| -> Result<Vec<Graph>> {
                let graph = |gate: &fp8_moe::Buffer<bf16>| {
                    let logits = logits.slice_mut(..tokens * experts);
                    let hidden_states = Activations::Bf16(states.slice(..tokens * hidden));
                    let gate = gate.as_slice();
                    stream.capture(|stream| {
                        let (planes, bias) = (1, None);
                        let args = RouterLogits {
                            tokens,
                            experts,
                            hidden,
                            hidden_states,
                            gate,
                            planes,
                            bias,
                            logits,
                            path,
                        };
                        router_logits(stream, args)
                    })
                };
                gates.iter().map(graph).collect()
            };
            let paths = [RouterLogitsPath::Few, RouterLogitsPath::Tile16x8, RouterLogitsPath::Tile64x64];
            let graphs = paths.into_iter().map(&mut graphs_of).collect::<Result<Vec<_>>>()?;
            let replays: Vec<_> = graphs.iter().map(|graphs| Replays::of(graphs)).collect();
            let timings = self.timer.measure_beside(&replays, self.grid.samples)?;
            let us: Vec<f64> = timings.into_iter().map(|timing| timing.median_us).collect();
            println!(
                "router {experts:>4} x {hidden:<6} T = {tokens:<5} few: {:.1}, 16x8: {:.1}, 64x64: {:.1}",
                us[0], us[1], us[2]
            );
            self.measured.router.push(Router { tokens, experts, us: [us[0], us[1], us[2]] });
        }
        Ok(())
    }
}
