//! `fp8-moe info`: devices, driver, kernels; or with a checkpoint, its layers and what of them would be
//! loaded.

use std::path::PathBuf;

use fp8_moe::checkpoint::{Inspection, LayerSummary};
use fp8_moe::{Checkpoint, DeviceSpec, Family, MoeConfig, Result, SharedExpert, SharedKind, internals};

use crate::terminal;

/// Arguments of `fp8-moe info`.
#[derive(clap::Args)]
pub struct Arguments {
    /// A safetensors file, or a folder of them: describe it, without a device
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: Option<PathBuf>,
    /// The model's config [default: config.json beside the checkpoint, else its metadata key `config`]
    #[arg(long, value_name = "FILE", requires = "checkpoint")]
    config: Option<PathBuf>,
    /// Read the checkpoint as one of this model_type, whatever its config says
    #[arg(long = "as", value_name = "TYPE", requires = "checkpoint")]
    model_type: Option<String>,
    /// auto, cuda:N or sim
    #[arg(long, default_value = "auto", conflicts_with = "checkpoint")]
    device: DeviceSpec,
}

/// Runs the command.
pub fn info(arguments: &Arguments) -> Result<()> {
    let Some(path) = &arguments.checkpoint else { return device_info(arguments.device) };
    let checkpoint = Checkpoint::open_as(path, arguments.config.as_deref(), arguments.model_type.as_deref())?;
    checkpoint_info(&checkpoint);
    Ok(())
}

fn checkpoint_info(checkpoint: &Checkpoint) {
    let Inspection { read_as, class, defaults, layers, dense, .. } = checkpoint.inspect();
    let config = checkpoint.config();
    println!("checkpoint {}", checkpoint.path().display());
    println!("model      {}, read as {read_as} ({class})", config.model_type);
    println!("routing    {:?}", config.moe.routing);
    if !defaults.is_empty() {
        let defaults: Vec<_> = defaults.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        println!("defaults   {}: not in the config", defaults.join(", "));
    }
    for dense in &dense {
        println!("dense      {dense}: no MoE layer, not loaded");
    }
    let mut total = 0;
    for LayerSummary { prefix, loads, .. } in &layers {
        match loads {
            Ok(layer) => {
                total += layer.bytes;
                println!(
                    "layer      {}",
                    terminal::describe_layer(prefix, &config.model_type, &layer.config)
                );
                println!("           stored as {}; {} on the device", layer.scheme, mebibytes(layer.bytes));
                if let (Some(prefix), Some(shared)) = (&layer.shared, layer.config.shared) {
                    println!("           {prefix}: {}", describe_shared(&layer.config, shared));
                }
            }
            Err(why) => println!("layer      {prefix} cannot be loaded: {why}"),
        }
    }
    let loadable = layers.iter().filter(|layer| layer.loads.is_ok()).count();
    println!("total      {loadable} of {} MoE layers can be loaded, {}", layers.len(), mebibytes(total));
}

/// How a shared expert is computed.
fn describe_shared(config: &MoeConfig, shared: SharedExpert) -> String {
    let weights = match shared.weights {
        SharedKind::Quantised(quantization) => quantization.to_string(),
        SharedKind::Bf16 => "bf16, not quantised".to_owned(),
        other => format!("{other:?}"),
    };
    let how = match config.slots() - config.top_k {
        0 => "beside the experts".to_owned(),
        1 => "as one more expert".to_owned(),
        slots => format!("as {slots} more experts"),
    };
    let gate = if shared.gate { ", with a gate" } else { "" };
    format!("intermediate {}, {weights}{gate}; computed {how}", shared.intermediate_size)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn device_info(spec: DeviceSpec) -> Result<()> {
    let device = terminal::open_device(spec)?;
    let (driver_major, driver_minor) = device.driver_version()?;
    println!("device    {}", terminal::describe(&device));
    println!("name      {}", device.name());
    let (major, minor) = device.capability();
    println!(
        "has       compute capability {major}.{minor}, {} multiprocessors, {:.1} GiB, {} KiB shared memory per block",
        device.multiprocessors(),
        device.memory_bytes() as f64 / f64::from(1 << 30),
        device.shared_per_block() / 1024
    );
    println!("driver    CUDA {driver_major}.{driver_minor}");
    device.load_kernels()?;
    for family in Family::ALL {
        let (used, summaries) = (family == device.family(), internals::summaries(family));
        println!();
        println!(
            "kernels   {family}: {} modules, {} KiB of PTX{}",
            summaries.len(),
            internals::ptx(family).len() / 1024,
            if used { ", all loaded" } else { "" }
        );
        println!("          {:<36} {:>8} {:>10} {:>14}", "kernel", "threads", "blocks", "static shared");
        for kernel in summaries {
            println!(
                "          {:<36} {:>8} {:>10} {:>14}",
                kernel.name, kernel.threads, kernel.min_blocks, kernel.static_shared
            );
        }
    }
    Ok(())
}
