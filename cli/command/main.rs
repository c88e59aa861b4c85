//! The `fp8-moe` command: runs, checks, measures and describes FP8 MoE layers.

mod bench;
mod check;
mod flips;
mod info;
mod ranks;
mod record;
mod report;
mod run;
mod terminal;
mod tune;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use fp8_moe::{Checkpoint, DeviceSpec, Result};

const EXAMPLES: &str = "\
Examples:
  fp8-moe info
      what this machine offers: devices, driver, kernels
  fp8-moe info Qwen3-30B-A3B-FP8/
      what a checkpoint holds, and what of it would be loaded
  fp8-moe check tests/fixtures/qwen3_moe_block.safetensors
      run a small layer and compare it with the reference stored beside its weights
  fp8-moe run Qwen3-30B-A3B-FP8/ --layer model.layers.7 --tokens 4 --output out.safetensors
      run one layer of a published checkpoint on random hidden states
  fp8-moe run layer.safetensors --config config.json --input states.safetensors --device cuda:0
      the same on hidden states of your own, on a GPU
  fp8-moe bench --model qwen3-30b --tokens 1,64,4096 --part all --json today.json
      time a layer and its parts on a GPU, or count what they do on the emulated device
  fp8-moe run Qwen3-30B-A3B-FP8/ --layer model.layers.7 --tokens 64 --ranks 2
      the same with the experts spread over two GPUs, a process each
  fp8-moe tune --json l40s.json
      find the fastest choices on another GPU than an H200; bench and run take them by --tuning l40s.json
  fp8-moe report today.json vllm.json --plot compare.svg
      compare with the files of other programs

Devices:
  auto     what the environment variable FP8_MOE_DEVICE says, else the first usable GPU, else sim, with a note
  cuda:N   GPU number N
  sim      an emulated GPU: it executes the same PTX on the CPU, and checks every memory access";

/// FP8 Mixture-of-Experts layers, with GPU kernels written in Rust, on a GPU or without one.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one MoE layer of a checkpoint and write its output
    Run(run::Arguments),
    /// Run the layer of a fixture and compare it with the outputs stored in it; exits 1 out of tolerance
    Check(check::Arguments),
    /// Describe a checkpoint; or print devices, driver, and every kernel's block and shared memory
    Info(info::Arguments),
    /// Measure layers of named models on random data: time on a GPU, counts on the emulated device
    Bench(bench::Arguments),
    /// Measure on a GPU which choices of kernels are fastest at which shape, and write the table that makes
    /// them
    Tune(tune::Arguments),
    /// Compare benchmark files: ours with our peers', today's with yesterday's
    Report(report::Arguments),
}

/// Where the layer is: shared by `run` and `check`.
#[derive(Args)]
struct LayerArguments {
    /// The model's config [default: config.json beside the checkpoint, else its metadata key `config`]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Read the checkpoint as one of this model_type, whatever its config says
    #[arg(long = "as", value_name = "TYPE")]
    model_type: Option<String>,
    /// The layer: a prefix of its tensors such as model.layers.7, or its number [default: the only one]
    #[arg(long, value_name = "PREFIX")]
    layer: Option<String>,
    /// auto, cuda:N or sim
    #[arg(long, default_value = "auto")]
    device: DeviceSpec,
}

impl LayerArguments {
    /// Opens the checkpoint that the layer is in.
    fn open(&self, path: &Path) -> Result<Checkpoint> {
        Checkpoint::open_as(path, self.config.as_deref(), self.model_type.as_deref())
    }
}

fn main() -> ExitCode {
    terminal::end_with_the_reader();
    let result = match Cli::parse().command {
        Command::Run(arguments) => run::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Check(arguments) => check::check(&arguments),
        Command::Info(arguments) => info::info(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Bench(arguments) => bench::bench(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Tune(arguments) => tune::tune(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Report(arguments) => report::report(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::from(2)
    })
}
