//! `fp8-moe check`: a fixture's layer against the outputs stored in it.
//!
//! A fixture is a layer as published checkpoints have it, with `io.*` tensors: the hidden states, and what
//! the reference implementation made of them.
//!
//! | tensor | what | must hold |
//! |---|---|---|
//! | `io.topk_ids`, `io.topk_weights` | routing | ids equal; weights within 1e-4 |
//! | `io.output_w8a8` | the layer with quantised weights and activations | relative L2 distance below 1e-2 |
//! | `io.output` | the layer in f64 on dequantised weights | distance at most 1.15 times the metadata's `w8a8_rel_l2` |

use std::path::PathBuf;
use std::process::ExitCode;

use fp8_moe::{Checkpoint, Error, IntermediateScales, Reduction, Result};

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

/// Runs the command; exit code 1 when a fixture is out of tolerance.
pub fn check(arguments: &Arguments) -> Result<ExitCode> {
    let device = terminal::open_device(arguments.layer.device)?;
    let mut failed = 0;
    for path in &arguments.fixtures {
        eprintln!("fixture  {}", path.display());
        let checkpoint = arguments.layer.open(path)?;
        let hidden = run::hidden_states(&checkpoint, "io.hidden_states")?;
        // The references scale the intermediate as published checkpoints are served: per token where weights
        // are per channel.
        let scales = IntermediateScales::Token;
        let (_, layer) = terminal::load_layer(
            &checkpoint,
            &device,
            arguments.layer.layer.as_deref(),
            scales,
            Reduction::default(),
        )?;
        let output = run::forward(&layer, &device, &hidden)?;
        let rows = compare(&checkpoint, &output, layer.config().top_k)?;
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

fn compare(checkpoint: &Checkpoint, output: &Output, top_k: usize) -> Result<Vec<Row>> {
    let mut rows = routing(checkpoint, output, top_k)?;
    let ours = &output.hidden_states;
    let reference = |name: &str| {
        let values = checkpoint.floats(name)?;
        if values.data.len() != ours.len() {
            let what = format!("{name}: has shape {:?}; that is not {} elements", values.shape, ours.len());
            return Err(Error::checkpoint(checkpoint.path(), what));
        }
        Ok(values.data)
    };
    let noise: f64 =
        checkpoint.metadata("w8a8_rel_l2").and_then(|text| text.parse().ok()).ok_or_else(|| {
            Error::checkpoint(
                checkpoint.path(),
                "the metadata has no number w8a8_rel_l2; this is not a fixture",
            )
        })?;
    let exact = reference("io.output")?;
    let w8a8 = reference("io.output_w8a8")?;
    let to_w8a8 = distance(ours, &w8a8);
    rows.push(Row {
        what: "relative L2 distance to io.output_w8a8".into(),
        found: format!("{to_w8a8:.3e}"),
        rule: format!("< {W8A8_TOLERANCE:.0e}"),
        passed: to_w8a8 < W8A8_TOLERANCE,
    });
    let to_exact = distance(ours, &exact);
    let allowed = OUTPUT_FACTOR * noise;
    rows.push(Row {
        what: "relative L2 distance to io.output".into(),
        found: format!("{to_exact:.3e}"),
        rule: format!("<= {allowed:.3e}"),
        // What is exact needs no allowance; of an answer of zero, or of no tokens, the noise is 0 / 0.
        passed: to_exact == 0.0 || to_exact <= allowed,
    });
    Ok(rows)
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

/// The L2 distance of `ours` to `reference`, relative to the norm of that; 0 where they are equal.
fn distance(ours: &[f32], reference: &[f32]) -> f64 {
    match norm(ours.iter().zip(reference).map(|(a, b)| a - b)) {
        0.0 => 0.0,
        difference => difference / norm(reference.iter().copied()),
    }
}

/// The Euclidean norm, in f64.
fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}
