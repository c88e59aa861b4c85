//! What the tests share: the devices to run on, how many random cases to draw, distances between results.
#![allow(dead_code, reason = "every test binary uses its own part of it")]

pub mod activation;
pub mod bounds;
pub mod checks;
pub mod e4m3;
pub mod gemm;
pub mod grouped;
pub mod layers;
pub mod oracle;
pub mod permute;
pub mod quantise;
pub mod routing;
pub mod schedule;
pub mod tensor_core;
pub mod unpermute;

use std::panic::Location;
use std::path::Path;
use std::sync::OnceLock;

use fp8_moe::{Device, DeviceSpec, Family};
use proptest::test_runner::{Config, FileFailurePersistence};

/// The devices of the tests: the one of `FP8_MOE_DEVICE` (`auto`, `sim`, `cuda:N`), or by default the
/// emulated one.
pub fn devices() -> Vec<Device> {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let device = DEVICE.get_or_init(|| {
        let spec = match std::env::var("FP8_MOE_DEVICE") {
            Ok(text) => text.parse().expect("FP8_MOE_DEVICE"),
            Err(_) => DeviceSpec::Sim,
        };
        let device = Device::open(spec).unwrap_or_else(|e| panic!("{e}"));
        if device.is_emulated() {
            eprintln!("runs on {device:?}; skipped on cuda: FP8_MOE_DEVICE does not ask for it");
        } else {
            eprintln!("runs on {device:?}");
        }
        device
    });
    vec![device.clone()]
}

/// The device of the tests, once for every kernel family that it can run, its best one first.
pub fn families() -> Vec<Device> {
    static FAMILIES: OnceLock<Vec<Device>> = OnceLock::new();
    let open = |family| {
        // The spec that opened the device: a process has one driver, and its devices have these names.
        let spec = device().to_string().parse().expect("a device's name");
        Device::open_family(spec, family).unwrap_or_else(|e| panic!("{e}"))
    };
    let older = || Family::ALL.into_iter().filter(|&family| family < device().family()).map(open);
    FAMILIES.get_or_init(|| std::iter::once(device()).chain(older()).collect()).clone()
}

/// The kernels of the oldest family, which newer GPUs run as well.
pub fn portable() -> Device {
    families().pop().expect("the device itself at least")
}

/// The first of [`devices`].
pub fn device() -> Device {
    devices().remove(0)
}

/// Random cases per property: `FP8_MOE_CASES` when it is set, else `default` on the emulated device and 200
/// on a GPU. Cases that failed are kept and tried first ([`regressions`]).
#[track_caller]
pub fn cases(default: u32) -> Config {
    let default = if device().is_emulated() { default } else { 200 };
    let cases = std::env::var("FP8_MOE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let kept = regressions(Location::caller().file());
    Config {
        cases,
        max_shrink_iters: 64,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(kept))),
        ..Config::default()
    }
}

/// The file that keeps the cases of the properties in `source`: `tests/regressions/properties/permute.txt` of
/// `tests/properties/permute.rs`, below the folder that tests run in, which is the package, or the bundle.
pub fn regressions(source: &str) -> &'static str {
    let name = Path::new(source).strip_prefix("tests").unwrap_or(Path::new(source)).with_extension("txt");
    // Named once for each property.
    format!("tests/regressions/{}", name.display()).leak()
}

/// The size at which a row of an acceptance grid runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// As small as the emulated device needs it, with the row's tails, few and many.
    Small,
    /// As the specification has it.
    Full,
}

/// `FP8_MOE_GRID` (`small` or `full`), else full on a GPU and small on the emulated device.
pub fn size() -> Size {
    match std::env::var("FP8_MOE_GRID").as_deref() {
        Ok("full") => Size::Full,
        Ok("small") => Size::Small,
        Ok(other) => panic!("FP8_MOE_GRID = {other}: must be small or full"),
        Err(_) if device().is_emulated() => Size::Small,
        Err(_) => Size::Full,
    }
}

/// For tests that make kernels fault on purpose: the context, which all tests of a process share, survives
/// what this thread does.
pub fn forgive_faults() {
    cust::sim::forgive_faults(true);
}

/// Seeds the emulated device's timing (which warp runs next, when an asynchronous copy lands) for this
/// thread.
pub fn timing(seed: u64) {
    cust::sim::set_seed(seed);
}
