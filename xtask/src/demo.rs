//! `cargo xtask demo`: two FP8 MoE layers, loaded from safetensors files, through the GPU kernels and against
//! the reference.

use std::process::Command;

use anyhow::Result;

use crate::process::{cargo, root, step, target_dir};
use crate::setup;

/// Layers as a Mixtral and a Qwen3 checkpoint hold them, and what tells them apart.
const LAYERS: [(&str, &str); 2] = [
    ("mixtral_static_tensor", "Mixtral-style layer: per-tensor scales, static activations"),
    ("qwen3_moe_block", "Qwen3-style layer: 128x128 block scales"),
];

/// Sets up, builds, and checks both layers on the GPU if there is one, else on the emulated device.
pub fn run() -> Result<()> {
    setup::run()?;
    step("build", cargo().args(["build", "--release", "--bin", "fp8-moe"]))?;
    for (name, title) in LAYERS {
        let fixture = root().join("tests/fixtures").join(name).with_extension("safetensors");
        let program = target_dir().join("release/fp8-moe");
        step(title, Command::new(program).arg("check").arg(fixture).args(["--device", "auto"]))?;
    }
    Ok(())
}

/// Runs `cargo bench` over the workspace.
pub fn bench(arguments: &[String]) -> Result<()> {
    setup::run()?;
    step("benchmarks", cargo().args(["bench", "--workspace"]).args(arguments))
}
