//! What the subcommands show while they work: progress bars on loading and on long simulations, the device in
//! use. And what they try before they work: that somebody reads, that outputs can be written.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use fp8_moe::{
    Checkpoint, Device, DeviceSpec, Error, IntermediateScales, MoeConfig, MoeLayer, Reduction, Result, Step,
};
use indicatif::{ProgressBar, ProgressStyle};

/// Lets the program end without a word when the reader of its output goes away (`fp8-moe info | head`), as
/// other Unix commands do. Rust ignores SIGPIPE otherwise, and printing then panics.
pub fn end_with_the_reader() {
    #[cfg(unix)]
    // SAFETY: the default action is no handler of ours, and no other thread runs yet that could set one.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// Refuses an output path that cannot be written, before the work for it begins. Where there was no file,
/// none stays.
pub fn try_output(path: Option<&Path>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let failed = |e| Error::io(path, e);
    match File::options().write(true).create_new(true).open(path) {
        Ok(_) => fs::remove_file(path).map_err(failed),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => match File::options().write(true).open(path) {
            // It was the trial of another rank with the same path, which is over.
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            opened => opened.map(drop).map_err(failed),
        },
        Err(e) => Err(failed(e)),
    }
}

/// Opens a device and says which it is. Where nobody asks for one, by option or environment variable, and no
/// GPU can be used, it is the emulated one, and the reason is said.
pub fn open_device(spec: DeviceSpec) -> Result<Device> {
    let device = match Device::open(spec) {
        Err(Error::Device { reason, .. })
            if cfg!(feature = "sim") && spec == DeviceSpec::Auto && !is_asked_for() =>
        {
            let why = reason.split_once("; ").map_or(reason.as_str(), |(why, _)| why);
            eprintln!("note     {why}: the emulated device stands in");
            Device::open(DeviceSpec::Sim)?
        }
        opened => opened?,
    };
    eprintln!("device   {}", describe(&device));
    Ok(device)
}

/// Whether the environment says which device is meant.
fn is_asked_for() -> bool {
    std::env::var_os("FP8_MOE_DEVICE").is_some_and(|device| !device.is_empty() && device != "auto")
}

/// One line about a device.
pub fn describe(device: &Device) -> String {
    if device.is_emulated() {
        format!("{device}, the emulated device: {} (PTX of {})", device.name(), device.family())
    } else {
        format!("{device}, {} (PTX of {})", device.name(), device.family())
    }
}

/// One line about a layer.
pub fn describe_layer(prefix: &str, model_type: &str, config: &MoeConfig) -> String {
    let MoeConfig { experts, top_k, hidden_size, intermediate_size, quantization, .. } = config;
    let of_token = match config.vocabulary() {
        Some(_) => format!("{top_k} by token id"),
        None => format!("top {top_k}"),
    };
    format!(
        "{prefix} of {model_type}: {experts} experts, {of_token}, hidden {hidden_size}, intermediate {intermediate_size}; {quantization}"
    )
}

/// Finds and loads a layer, showing a bar; returns its prefix too.
pub fn load_layer(
    checkpoint: &Checkpoint,
    device: &Device,
    layer: Option<&str>,
    scales: IntermediateScales,
    reduction: Reduction,
) -> Result<(String, MoeLayer)> {
    let prefix = checkpoint.find_layer(layer)?;
    let config = checkpoint.config();
    let moe = checkpoint.layer_config(&prefix)?.to_builder();
    let moe = moe.intermediate_scales(scales).reduction(reduction).build()?;
    eprintln!("layer    {}", describe_layer(&prefix, &config.model_type, &moe));
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("loading  [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec}")
            .expect("a valid template"),
    );
    let started = Instant::now();
    let layer = checkpoint.load_layer_with(device, &prefix, &moe, &|progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    });
    bar.finish_and_clear();
    let (layer, seconds) = (layer?, started.elapsed().as_secs_f64());
    let bytes = bar.length().unwrap_or(0) as f64;
    let peak = peak_memory().map(|peak| format!("; host memory at most {}", mebibytes(peak as f64)));
    eprintln!(
        "loaded   {} of experts in {seconds:.3} s, {:.2} GB/s{}",
        mebibytes(bytes),
        bytes / seconds / 1e9,
        peak.unwrap_or_default()
    );
    Ok((prefix, layer))
}

fn mebibytes(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / f64::from(1 << 20))
}

/// The most host memory that this process has had, in bytes: its own, without the pages of programs and
/// libraries, which the system takes back at will. Where the system says so.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let of = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches("kB").trim().parse().ok()
    };
    // The peak of all pages less the files' now: of those there are hardly ever fewer than before.
    Some((of("VmHWM:")?.saturating_sub(of("RssFile:")?)) * 1024)
}

/// Runs `forward` with a bar that shows how far it is, where somebody watches.
pub fn watch<T>(
    device: &Device,
    tokens: usize,
    forward: impl FnOnce(&dyn Fn(Step)) -> Result<T>,
) -> Result<T> {
    let what = if device.is_emulated() { "simulating" } else { "running" };
    let style =
        ProgressStyle::with_template("{prefix} [{bar:40}] {msg} {elapsed}").expect("a valid template");
    let bar = ProgressBar::new(Step::NAMES.len() as u64)
        .with_style(style)
        .with_prefix(format!("{what} {tokens} tokens"));
    bar.enable_steady_tick(Duration::from_millis(200));
    let result = forward(&|step| {
        bar.set_position(step.index as u64);
        bar.set_message(step.name);
    });
    bar.finish_and_clear();
    result
}

/// Runs a forward that is measured, with a sign of life where somebody watches.
#[cfg(feature = "sim")]
pub fn watch_bench<T>(tokens: usize, forward: impl FnOnce() -> Result<T>) -> Result<T> {
    let bar = ProgressBar::new_spinner().with_message(format!("simulating {tokens} tokens"));
    bar.enable_steady_tick(Duration::from_millis(200));
    let result = forward();
    bar.finish_and_clear();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As ranks on one host do, which are given the same path.
    #[test]
    fn an_output_is_tried_by_several_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out.safetensors");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|_| try_output(Some(&path)).expect("writable")));
            }
        });
        assert!(!path.exists());
    }
}
