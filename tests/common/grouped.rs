//! `grouped_gemm` against the definition in f64, on poisoned memory.

use fp8_moe::internals::{HopperTile, PortableTile};
use fp8_moe::ops::grouped_gemm::{
    Accumulation, GemmOut, GemmPlan, GroupedGemm, Path, grouped_gemm, grouped_gemm_with_settled_schedule,
};
use fp8_moe::ops::permutation::Permutation;
use fp8_moe::{Buffer, Device, Family};
use half::{bf16, f16};

use super::gemm::{AKind, OnDevice, POISON, Problem};

/// The arguments of a problem's GEMM.
pub fn arguments<'a>(
    problem: &'a OnDevice,
    plan: &'a GemmPlan,
    permutation: Permutation<'a>,
    workspace: &'a mut Buffer<u8>,
    out: GemmOut<'a>,
) -> GroupedGemm<'a> {
    let (a_scale, b_scale) = problem.scales();
    GroupedGemm {
        a: problem.a.as_slice(),
        a_scale,
        b: problem.b.as_slice(),
        b_scale,
        bias: None,
        permutation,
        out,
        workspace: workspace.as_mut_slice(),
        plan,
    }
}

/// The bits of D, of which every byte was [`POISON`] before.
pub fn run(problem: &OnDevice, format: Format, accumulation: Accumulation, path: Path) -> Vec<u32> {
    run_with(problem, format, accumulation, path, false)
}

/// As [`run`]; `settled`: the schedule counts as complete since before the preceding kernel.
pub fn run_with(
    problem: &OnDevice,
    format: Format,
    accumulation: Accumulation,
    path: Path,
    settled: bool,
) -> Vec<u32> {
    let stream = problem.device.default_stream();
    let (plan, mut lists) = (problem.plan(accumulation, path), problem.lists());
    let permutation = lists.permutation(&stream);
    let mut out = problem.device.uninit::<u8>(problem.shape.rows * problem.shape.n * format.bytes()).unwrap();
    out.fill_bytes(POISON, &stream).unwrap();
    let slice = out.as_mut_slice();
    let slice = match format {
        Format::Bf16 => GemmOut::Bf16(slice.cast()),
        Format::F16 => GemmOut::F16(slice.cast()),
        Format::F32 => GemmOut::F32(slice.cast()),
    };
    let mut workspace = problem.workspace(plan.workspace_bytes());
    let arguments = arguments(problem, &plan, permutation, &mut workspace, slice);
    let enqueued = if settled {
        // SAFETY: the kernel that built the schedule is followed by a fill of `out`, which begins when it has
        // ended.
        unsafe { grouped_gemm_with_settled_schedule(&stream, arguments) }
    } else {
        grouped_gemm(&stream, arguments)
    };
    enqueued.unwrap_or_else(|e| panic!("{e}"));
    let bytes = out.to_vec(&stream).unwrap_or_else(|e| panic!("{e}"));
    bytes.chunks(format.bytes()).map(|bits| format.bits(bits)).collect()
}

/// The paths that lead to a kernel with tiles of `block_m` rows and such scales of A on this device.
pub fn paths(device: &Device, block_m: usize, a_kind: AKind, blocks: Option<u32>) -> Vec<Path> {
    let mut paths = Vec::new();
    if PortableTile::for_block_m(block_m).is_ok() {
        paths.push(Path::Portable { blocks });
    }
    let is_hopper = device.family() == Family::Sm90a && HopperTile::for_block_m(block_m).is_some();
    if is_hopper && a_kind != AKind::GroupRowMajor {
        paths.push(Path::Hopper { blocks });
    }
    paths
}

#[derive(Clone, Copy, Debug)]
pub enum Format {
    Bf16,
    F16,
    F32,
}

impl Format {
    pub fn bytes(self) -> usize {
        match self {
            Format::Bf16 | Format::F16 => 2,
            Format::F32 => 4,
        }
    }

    /// The bits of an element from its bytes.
    pub fn bits(self, bytes: &[u8]) -> u32 {
        bytes.iter().rev().fold(0, |bits, &byte| bits << 8 | u32::from(byte))
    }

    pub fn decode(self, bits: u32) -> f64 {
        match self {
            Format::Bf16 => bf16::from_bits(bits as u16).to_f64(),
            Format::F16 => f16::from_bits(bits as u16).to_f64(),
            Format::F32 => f64::from(f32::from_bits(bits)),
        }
    }

    /// Half of the distance between neighbours, relative, and the least absolute one.
    pub fn rounding(self) -> (f64, f64) {
        match self {
            Format::Bf16 => (2f64.powi(-8), 0.0),
            Format::F16 => (2f64.powi(-11), 2f64.powi(-25)),
            Format::F32 => (2f64.powi(-24), 0.0),
        }
    }
}

/// One rounding to the output format, and what tensor cores may lose.
#[track_caller]
pub fn assert_within_rounding(problem: &Problem, d: &[u32], format: Format, accumulation: Accumulation) {
    let n = problem.shape.n;
    let (relative, absolute) = format.rounding();
    let expected = problem.expected(accumulation);
    for (i, (&bits, &(value, worst))) in d.iter().zip(&expected).enumerate() {
        let error = (format.decode(bits) - value).abs();
        let bound = relative * value.abs() + absolute + worst;
        assert!(
            error <= bound * 1.01,
            "D[{}, {}] = {}: {value} is expected, within {bound}",
            i / n,
            i % n,
            format.decode(bits)
        );
    }
    let untouched = format.bits(&[POISON; 4][..format.bytes()]);
    assert!(
        d[expected.len()..].iter().all(|&bits| bits == untouched),
        "rows past the last expert were written"
    );
}
