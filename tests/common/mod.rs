//! What the tests share: the devices to run on, how many random cases to draw, distances between results.
#![allow(dead_code, reason = "every test binary uses its own part of it")]

pub mod e4m3;
pub mod gemm;

use std::sync::OnceLock;

use fp8_moe::{Device, DeviceSpec, Family};
use proptest::test_runner::{Config, FileFailurePersistence};

/// The devices that this process can run on: the one of `FP8_MOE_DEVICE` (`sim`, `cuda:N`), or by default the emulated
/// one. A process has one driver, so a GPU machine runs the same executable twice.
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

/// The first of [`devices`].
pub fn device() -> Device {
    devices().remove(0)
}

/// Random cases per property: `default`, or `FP8_MOE_CASES` when it is set.
pub fn cases(default: u32) -> Config {
    let cases = std::env::var("FP8_MOE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    Config {
        cases,
        max_shrink_iters: 64,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..Config::default()
    }
}

/// Seeds the emulated device's timing (which warp runs next, when an asynchronous copy lands) for this thread.
pub fn timing(seed: u64) {
    cust::sim::set_seed(seed);
}

/// `|a - b| / |b|` in the Euclidean norm; 0 for two empty or zero vectors, NaN when there is a NaN.
pub fn relative_l2(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "lengths");
    let (mut difference, mut norm) = (0.0, 0.0);
    for (&a, &b) in a.iter().zip(b) {
        difference += (f64::from(a) - f64::from(b)).powi(2);
        norm += f64::from(b).powi(2);
    }
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

/// Asserts `|a - b| <= atol + rtol * |b|` everywhere, NaN equal to NaN.
#[track_caller]
pub fn assert_close(a: &[f32], b: &[f32], atol: f32, rtol: f32) {
    assert_eq!(a.len(), b.len(), "lengths");
    for (i, (&a, &b)) in a.iter().zip(b).enumerate() {
        let close = (a.is_nan() && b.is_nan()) || a == b || (a - b).abs() <= atol + rtol * b.abs();
        assert!(close, "element {i}: {a} is not {b} within {atol} + {rtol} relative");
    }
}
