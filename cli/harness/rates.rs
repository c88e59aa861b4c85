//! The rate of matrix products that floors are computed with: our own largest dense GEMM.

use std::time::Duration;

use super::layers::Layers;
use super::models::{Scheme, Shape};
use super::part::Part;
use super::routing::RoutingKind;
use super::run::Run;
use super::timing::Timer;
use fp8_moe::Result;
use fp8_moe::{Accumulation, IntermediateScales};

/// M, N and K of the dense GEMM.
pub const MATRIX_SIZE: usize = 8192;

/// FLOP per second of the second GEMM of a layer with one expert, `MATRIX_SIZE` in every dimension, with the
/// faster accumulation: our own kernels, so a lower bound of what the tensor cores can do.
pub fn matrix_flops_per_second(timer: &mut Timer) -> Result<f64> {
    let n = MATRIX_SIZE;
    let shape = Shape { experts: 1, top_k: 1, hidden: n, intermediate: n };
    let device = timer.stream().device().clone();
    // With scales per token the second GEMM's do not change along K, and its sums stay in the tensor cores.
    let config = shape
        .config(Scheme::PerToken, 1, 1)?
        .to_builder()
        .accumulation(Accumulation::Fast)
        .intermediate_scales(IntermediateScales::Token)
        .build()?;
    let layers = Layers::random(&device, &config, 1, &[true], 0)?;
    let mut run = Run::new(&layers, n, &RoutingKind::Uniform.draw(n, 1, 1, 0)?, 0)?;
    let captured = run.capture(1)?;
    let replays = captured.replays(Part::Gemm2)?.expect("a layer has a second GEMM");
    let timing = timer.measure(replays, Duration::from_secs(1))?;
    Ok(2.0 * (n as f64).powi(3) / (timing.median_us * 1e-6))
}
