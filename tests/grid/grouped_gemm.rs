//! ```text
//! grouped GEMM: E {8,64} x A scale {tensor,row} x B scale {tensor,channel}; m_e, n, k = 16*rand(1..64);
//!     small-integer e4m3 data; must hold: rtol 1e-2, atol 5e-4
//! ```
//!
//! And what promotion is for, at the K of DeepSeek-V3: `error(promoted) < error(fast)`.

use fp8_moe::Family;
use fp8_moe::ops::grouped_gemm::block_m;
use fp8_moe::ops::grouped_gemm::{Accumulation, Path};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::common::checks::assert_close;
use crate::common::gemm::{AKind, BKind, OnDevice, Problem, Values, devices};
use crate::common::grouped::{Format, run};
use crate::common::{Size, device, size};

/// `small`: the most tiles of 16 in m_e, and in n and k.
fn check(experts: usize, a_kind: AKind, b_kind: BKind, small: (usize, usize)) {
    let (m, nk) = if size() == Size::Small { small } else { (63, 63) };
    let mut rng = ChaCha8Rng::seed_from_u64(9 + experts as u64);
    let counts: Vec<_> = (0..experts).map(|_| 16 * rng.random_range(1..=m)).collect();
    let (n, k) = (16 * rng.random_range(1..=nk), 16 * rng.random_range(1..=nk));
    let problem = Problem::draw(&counts, 0, (n, k), (a_kind, b_kind), Values::Integers, &mut rng);
    let expected: Vec<f32> =
        problem.expected(Accumulation::Fast).iter().map(|&(value, _)| value as f32).collect();
    for device in devices() {
        let block_m = block_m(&device, &problem.shape, Path::Auto);
        let on_device = OnDevice::new(&device, &problem, block_m);
        let d = run(&on_device, Format::Bf16, Accumulation::Fast, Path::Auto);
        let d: Vec<f32> = d.iter().map(|&bits| Format::Bf16.decode(bits) as f32).collect();
        assert_close(&d, &expected, 5e-4, 1e-2);
    }
}

#[test]
fn e8_tensor_tensor() {
    check(8, AKind::Call, BKind::Expert, (5, 20));
}

#[test]
fn e8_tensor_channel() {
    check(8, AKind::Call, BKind::Channel, (5, 20));
}

#[test]
fn e8_row_tensor() {
    check(8, AKind::Row, BKind::Expert, (5, 20));
}

#[test]
fn e8_row_channel() {
    check(8, AKind::Row, BKind::Channel, (5, 20));
}

#[test]
fn e64_tensor_tensor() {
    check(64, AKind::Call, BKind::Expert, (2, 16));
}

#[test]
fn e64_tensor_channel() {
    check(64, AKind::Call, BKind::Channel, (2, 16));
}

#[test]
fn e64_row_tensor() {
    check(64, AKind::Row, BKind::Expert, (2, 16));
}

#[test]
fn e64_row_channel() {
    check(64, AKind::Row, BKind::Channel, (2, 16));
}

/// On tensor cores that cut sums: a GPU's, or the emulated device's with `FP8_MOE_SIM_SUMS=hardware`. Exact
/// sums have no error to reduce.
#[test]
fn promotion_reduces_the_error_at_k_7168() {
    let device = device();
    let cuts =
        !device.is_emulated() || std::env::var("FP8_MOE_SIM_SUMS").is_ok_and(|sums| sums == "hardware");
    if device.family() != Family::Sm90a || !cuts {
        eprintln!("skipped: {device} has no tensor cores that cut sums");
        return;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(10);
    let kinds = (AKind::Row, BKind::Channel);
    let problem = Problem::draw(&[16], 0, (128, 7168), kinds, Values::Uniform, &mut rng);
    // Narrow tiles are promoted in either case.
    let on_device = OnDevice::new(&device, &problem, 128);
    let error = |accumulation| {
        let d = run(&on_device, Format::F32, accumulation, Path::Hopper { blocks: Some(1) });
        let expected = problem.expected(accumulation);
        let squares = d.iter().zip(expected).map(|(&bits, (value, worst))| {
            let error = (Format::F32.decode(bits) - value).abs();
            assert!(error <= worst, "{error} of {value}, bound {worst}");
            error * error
        });
        squares.sum::<f64>().sqrt()
    };
    let (promoted, fast) = (error(Accumulation::Promoted), error(Accumulation::Fast));
    assert!(promoted > 0.0 && promoted < 0.7 * fast, "errors {promoted} and {fast}");
}
