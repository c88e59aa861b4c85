//! `fp8-moe check`: a fixture's layer against the outputs stored in it.
//!
//! A fixture is a layer as published checkpoints have it, with `io.*` tensors: the hidden states, and what
//! the reference implementation made of them.
//!
//! | tensor | what | must hold |
//! |---|---|---|
//! | `io.token_ids` | of layers that look experts up by them | given |
//! | `io.topk_ids`, `io.topk_weights` | routing | ids equal; weights within 1e-4 |
//! | `io.output_w8a8` | the layer with quantised weights and activations | relative L2 distance at most 1e-2, or 2^-8 less flips |
//! | `io.output` | the layer in f64 on dequantised weights | distance at most 1.15 times the metadata's `w8a8_rel_l2` |
//!
//! On sums that tensor cores cut, single elements of a small layer's intermediate are rounded otherwise than
//! the reference's. Where the distance is larger there, such flips are found and taken away, and what is left
//! must be at most 2^-8: [`flips`](crate::flips) has the derivation. On exact sums the distance alone counts.
//!
//! With a shared expert these are outputs of the whole layer, that expert included and quantised as the
//! others are. Two other kinds of reference are recognised by `io.output_routed`, the output without it, and
//! the layer without it is run for them too:
//!
//! - `io.output` is `io.output_routed`: they leave the shared expert out, and the rest is compared.
//! - `io.output_w8a8` leaves its activations as they are. The rest is compared with `io.output_w8a8` less the
//!   shared part, `io.output - io.output_routed`, and that with ours, which is quantised: within 2^-4, the
//!   largest relative error of a rounding to e4m3.

use std::path::PathBuf;
use std::process::ExitCode;

use fp8_moe::{Checkpoint, Device, Error, IntermediateScales, MoeConfig, Reduction, Result};

use crate::flips::{Downs, ROUNDING, norm};
use crate::run::{self, Output};
use crate::{LayerArguments, terminal};

/// Arguments of `fp8-moe check`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Safetensors files of a layer with `io.*` tensors
    #[arg(value_name = "FIXTURE", required = true)]
    fixtures: Vec<PathBuf>,
    #[command(flatten)]
    layer: LayerArguments,
}

const W8A8_TOLERANCE: f64 = 1e-2;
const OUTPUT_FACTOR: f64 = 1.15;
const WEIGHT_TOLERANCE: f64 = 1e-4;
const SHARED_TOLERANCE: f64 = 1.0 / 16.0;

/// Runs the command; exit code 1 when a fixture is out of tolerance.
pub fn check(arguments: &Arguments) -> Result<ExitCode> {
    let device = terminal::open_device(arguments.layer.device)?;
    let mut failed = 0;
    for path in &arguments.fixtures {
        eprintln!("fixture  {}", path.display());
        let checkpoint = arguments.layer.open(path)?;
        if !checkpoint.has("io.hidden_states") {
            let what = "has no io.* tensors to compare with: it is no fixture. `fp8-moe run` runs it";
            return Err(Error::checkpoint(path, what));
        }
        let hidden = run::hidden_states(&checkpoint, "io.hidden_states")?;
        // The references scale the intermediate as published checkpoints are served: per token where weights
        // are per channel.
        let scales = IntermediateScales::Token;
        let (prefix, layer) = terminal::load_layer(
            &checkpoint,
            &device,
            arguments.layer.layer.as_deref(),
            scales,
            Reduction::default(),
        )?;
        let tokens = hidden.len() / layer.config().hidden_size;
        let vocabulary = layer.config().vocabulary();
        let ids = vocabulary.map(|vocabulary| run::token_ids_in(&checkpoint, vocabulary, tokens));
        let ids = ids.transpose()?;
        let output = run::forward(&layer, &device, &hidden, ids.as_deref())?;
        let mut rows = routing(&checkpoint, &output, layer.config().top_k)?;
        let compared = Compared {
            checkpoint: &checkpoint,
            prefix: &prefix,
            ids: &output.topk_ids,
            cuts_sums: cuts_sums(&device),
        };
        rows.extend(match layer.config().shared {
            Some(_) if checkpoint.has("io.output_routed") => {
                let config = layer.config().to_builder().shared(None).build()?;
                let without_shared = || {
                    let routed = checkpoint.load_layer_with(&device, &prefix, &config, &|_| {})?;
                    Ok(run::forward(&routed, &device, &hidden, ids.as_deref())?.hidden_states)
                };
                compared.with_shared([layer.config(), &config], &output.hidden_states, without_shared)?
            }
            _ => compared.whole(layer.config(), &output.hidden_states)?,
        });
        for row in &rows {
            println!("  {row}");
        }
        let passed = rows.iter().all(|row| row.passed);
        println!("{} {}", if passed { "match   " } else { "MISMATCH" }, path.display());
        failed += usize::from(!passed);
    }
    if failed > 0 {
        eprintln!("error: {failed} of {} fixtures out of tolerance", arguments.fixtures.len());
    }
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// One comparison.
struct Row {
    what: String,
    found: String,
    rule: String,
    passed: bool,
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = if self.passed { "ok" } else { "OUT OF TOLERANCE" };
        write!(f, "{:<44} {:>12}   {:<12} {verdict}", self.what, self.found, self.rule)
    }
}

/// The tensor `name`, of as many elements as `ours`.
fn reference(checkpoint: &Checkpoint, name: &str, ours: &[f32]) -> Result<Vec<f32>> {
    let values = checkpoint.floats(name)?;
    if values.data.len() != ours.len() {
        let what = format!("{name}: has shape {:?}; that is not {} elements", values.shape, ours.len());
        return Err(Error::checkpoint(checkpoint.path(), what));
    }
    Ok(values.data)
}

/// How far `io.output` may be: see [`check`](self).
fn allowed(checkpoint: &Checkpoint) -> Result<f64> {
    let noise: Option<f64> = checkpoint.metadata("w8a8_rel_l2").and_then(|text| text.parse().ok());
    let what = "the metadata has no number w8a8_rel_l2; this is not a fixture";
    noise.map(|noise| OUTPUT_FACTOR * noise).ok_or_else(|| Error::checkpoint(checkpoint.path(), what))
}

/// A row about the distance of `what`, which is to be below or at `limit`.
fn row(what: &str, distance: f64, limit: f64) -> Row {
    Row {
        what: format!("relative L2 distance, {what}"),
        found: format!("{distance:.3e}"),
        rule: format!("<= {limit:.3e}"),
        // What is exact needs no allowance; of an answer of zero, or of no tokens, the noise is 0 / 0.
        passed: distance == 0.0 || distance <= limit,
    }
}

/// Whether tensor cores cut what lies far below the largest product: a GPU's, and the emulated device's where
/// it is asked to.
fn cuts_sums(device: &Device) -> bool {
    !device.is_emulated() || std::env::var("FP8_MOE_SIM_SUMS").is_ok_and(|sums| sums == "hardware")
}

/// A fixture, and the routing of its tokens.
struct Compared<'a> {
    checkpoint: &'a Checkpoint,
    prefix: &'a str,
    /// `[T, k]`.
    ids: &'a [i64],
    /// Whether the device's tensor cores cut sums.
    cuts_sums: bool,
}

impl Compared<'_> {
    /// Compares outputs of the layer of `config` with those of the reference.
    fn whole(&self, config: &MoeConfig, ours: &[f32]) -> Result<Vec<Row>> {
        let w8a8 = reference(self.checkpoint, "io.output_w8a8", ours)?;
        let exact = reference(self.checkpoint, "io.output", ours)?;
        Ok(vec![
            self.quantised("io.output_w8a8", config, ours, &w8a8)?,
            row("io.output", distance(ours, &exact, &exact), allowed(self.checkpoint)?),
        ])
    }

    /// Compares outputs with those of a reference that may leave the shared expert out, or as it is: with
    /// and without it as the two configs say.
    fn with_shared(
        &self,
        [config, config_without]: [&MoeConfig; 2],
        ours: &[f32],
        without_shared: impl Fn() -> Result<Vec<f32>>,
    ) -> Result<Vec<Row>> {
        let w8a8 = reference(self.checkpoint, "io.output_w8a8", ours)?;
        let exact = reference(self.checkpoint, "io.output", ours)?;
        let routed = reference(self.checkpoint, "io.output_routed", ours)?;
        if routed == exact {
            println!("  the reference is without the shared expert: so is what is compared");
            return self.whole(config_without, &without_shared()?);
        }
        let rows = self.whole(config, ours)?;
        if rows[0].passed {
            return Ok(rows);
        }
        println!("  the reference does not quantise the shared expert's activations: compared part by part");
        let ours_routed = without_shared()?;
        let minus = |a: &[f32], b: &[f32]| -> Vec<f32> { a.iter().zip(b).map(|(a, b)| a - b).collect() };
        let (shared, ours_shared) = (minus(&exact, &routed), minus(ours, &ours_routed));
        let w8a8 = minus(&w8a8, &shared);
        let noise = allowed(self.checkpoint)?;
        Ok(vec![
            self.quantised("routed part of io.output_w8a8", config_without, &ours_routed, &w8a8)?,
            row("io.output_routed, of io.output", distance(&ours_routed, &routed, &exact), noise),
            row("shared part of io.output", distance(&ours_shared, &shared, &shared), SHARED_TOLERANCE),
        ])
    }

    /// A row about outputs of quantised activations, less what flipped roundings explain where they are
    /// needed.
    fn quantised(&self, what: &str, config: &MoeConfig, ours: &[f32], reference: &[f32]) -> Result<Row> {
        let whole = distance(ours, reference, reference);
        if whole <= W8A8_TOLERANCE || !whole.is_finite() || !self.cuts_sums {
            return Ok(row(what, whole, W8A8_TOLERANCE));
        }
        let pairs = ours.iter().zip(reference);
        let mut difference: Vec<_> = pairs.map(|(&a, &b)| f64::from(a) - f64::from(b)).collect();
        let downs = Downs::load(self.checkpoint, self.prefix, config)?;
        match downs.take_flips(&mut difference, reference, self.ids) {
            0 => Ok(row(what, whole, W8A8_TOLERANCE)),
            flips => {
                let less = norm(difference.into_iter()) / norm(reference.iter().map(|&x| x.into()));
                println!("  {what} is {whole:.3e} away; {less:.3e} less {flips} flipped roundings");
                Ok(row(&format!("{what}, less flips"), less, ROUNDING))
            }
        }
    }
}

/// Compares the experts of every token, in whatever order each side lists them.
fn routing(checkpoint: &Checkpoint, output: &Output, top_k: usize) -> Result<Vec<Row>> {
    let ids = checkpoint.integers("io.topk_ids")?.data;
    let weights = checkpoint.floats("io.topk_weights")?.data;
    if ids.len() != output.topk_ids.len() || weights.len() != ids.len() {
        let what =
            format!("io.topk_ids and io.topk_weights must have {} elements each", output.topk_ids.len());
        return Err(Error::checkpoint(checkpoint.path(), what));
    }
    let sorted = |ids: &[i64], weights: &[f32]| {
        let mut pairs: Vec<_> = ids.iter().copied().zip(weights.iter().copied()).collect();
        pairs.sort_by_key(|&(id, _)| id);
        pairs
    };
    let (mut agree, mut largest) = (0, 0.0f64);
    for start in (0..ids.len()).step_by(top_k) {
        let token = start..start + top_k;
        let reference = sorted(&ids[token.clone()], &weights[token.clone()]);
        let ours = sorted(&output.topk_ids[token.clone()], &output.topk_weights[token]);
        for ((id, weight), (our_id, our_weight)) in reference.into_iter().zip(ours) {
            if id == our_id {
                agree += 1;
                largest = largest.max(f64::from((weight - our_weight).abs()));
            }
        }
    }
    Ok(vec![
        Row {
            what: "top-k ids that agree".into(),
            found: format!("{agree}/{}", ids.len()),
            rule: "all".into(),
            passed: agree == ids.len(),
        },
        Row {
            what: "top-k weights, largest difference".into(),
            found: format!("{largest:.3e}"),
            rule: format!("<= {WEIGHT_TOLERANCE:.0e}"),
            passed: largest <= WEIGHT_TOLERANCE,
        },
    ])
}

/// The L2 distance of `ours` to `reference`, relative to the norm of `whole`; 0 where they are equal.
fn distance(ours: &[f32], reference: &[f32], whole: &[f32]) -> f64 {
    match norm(ours.iter().zip(reference).map(|(&a, &b)| f64::from(a) - f64::from(b))) {
        0.0 => 0.0,
        difference => difference / norm(whole.iter().map(|&x| x.into())),
    }
}
