//! `fp8-moe info`: devices, driver, kernels.

use fp8_moe::{DeviceSpec, Family, Result, kernels};

use crate::terminal;

/// Arguments of `fp8-moe info`.
#[derive(clap::Args)]
pub struct Arguments {
    /// auto, cuda:N or sim
    #[arg(long, default_value = "auto")]
    device: DeviceSpec,
}

/// Runs the command.
pub fn info(arguments: &Arguments) -> Result<()> {
    let device = terminal::open_device(arguments.device)?;
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
        let (used, summaries) = (family == device.family(), kernels::summaries(family));
        println!();
        println!(
            "kernels   {family}: {} modules, {} KiB of PTX{}",
            summaries.len(),
            kernels::ptx(family).len() / 1024,
            if used { ", all loaded" } else { "" }
        );
        println!("          {:<36} {:>8} {:>10} {:>14}", "kernel", "threads", "registers", "static shared");
        for kernel in summaries {
            let registers = kernel.registers.map_or("-".into(), |n| n.to_string());
            println!(
                "          {:<36} {:>8} {registers:>10} {:>14}",
                kernel.name, kernel.threads, kernel.static_shared
            );
        }
    }
    Ok(())
}
