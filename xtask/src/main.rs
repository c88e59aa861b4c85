//! The repository's tasks: `cargo xtask <task>`.
//!
//! None of them needs the root package to compile first: `setup` is what makes that possible.

mod artifacts;
mod bundle;
mod candle;
mod check;
mod demo;
mod examples;
mod gate;
mod kernels;
mod occupancy;
mod packages;
mod process;
mod readme;
mod rooms;
mod semver;
mod setup;
mod symbols;
mod targets;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cuda_builder::Arch;

/// Tasks of the fp8-moe repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Finds or installs what the build needs: Rust's `core` as source, and ptxas. Safe to repeat.
    Setup,
    /// Sets up, builds, and checks two FP8 MoE layers against their references.
    Demo,
    /// Sets up and runs everything that CI checks: format, lints, docs, tests, the PTX gate.
    Test,
    /// The part of `test` that it runs beside the rest.
    #[command(hide = true)]
    Beside,
    /// Compiles the GPU kernels and prints what each uses.
    Ptx {
        /// Compile for this family only: sm_89 or sm_90a.
        #[arg(long, value_parser = parse_arch)]
        arch: Option<Arch>,
    },
    /// Compiles the GPU kernels into `host/kernels`, from where the library embeds them: after every change
    /// of theirs.
    Kernels {
        /// Compare with what is there instead.
        #[arg(long)]
        check: bool,
    },
    /// Compares what the GPU kernels use with the committed table; fails on a difference, a spill or a stack
    /// frame.
    Gate {
        /// Write the table instead.
        #[arg(long)]
        update: bool,
    },
    /// Checks who imports whom, and that no files do in a circle.
    Rooms,
    /// Packs the packages as they would be published, and builds strangers' crates that depend on them.
    Packages,
    /// Runs a checkpoint's experts as a candle op, and checks the op for GPUs, without nvcc. After
    /// `packages`.
    Candle,
    /// Compiles what users depend on for Windows and macOS, without linking.
    Targets,
    /// Runs the benchmarks.
    Bench {
        /// Passed on to `cargo bench`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Packs the program and all tests into `bundle/`, to run on a GPU machine that has neither Rust nor
    /// network.
    Bundle {
        /// Also pack NVIDIA's compute-sanitizer; `SANITIZE=1 ./run.sh` then runs the tests under it.
        #[arg(long)]
        sanitizer: bool,
        /// Pack what `cargo xtask test` has built, with debug assertions, instead of building in release.
        #[arg(long)]
        debug: bool,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Setup => setup::run(),
        Task::Demo => demo::run(),
        Task::Test => check::run(),
        Task::Beside => check::beside(),
        Task::Ptx { arch } => gate::show(arch),
        Task::Kernels { check } => kernels::run(check),
        Task::Gate { update } => gate::run(update),
        Task::Rooms => rooms::run(),
        Task::Packages => packages::run(),
        Task::Candle => candle::run(),
        Task::Targets => targets::run(),
        Task::Bench { arguments } => demo::bench(&arguments),
        Task::Bundle { sanitizer, debug } => bundle::run(sanitizer, debug),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse_arch(name: &str) -> Result<Arch, String> {
    Arch::ALL
        .into_iter()
        .find(|arch| arch.name() == name)
        .ok_or_else(|| "expected sm_89 or sm_90a".to_owned())
}
