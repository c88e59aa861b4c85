//! `grouped_gemm` against the definition in f64, on poisoned memory.

mod common;

use common::gemm::{
    A_KINDS, AKind, B_KINDS, BKind, OnDevice, POISON, Problem, Skew, Values, devices, draw_counts,
};
use fp8_moe::ops::grouped_gemm::heuristics::{self, BLOCK_M, Path, PortableTile};
use fp8_moe::ops::grouped_gemm::{
    AScale, Accumulation, BScale, GemmOut, GroupedGemm, grouped_gemm, grouped_gemm_with_settled_schedule,
};
use fp8_moe::ops::problem_sizes::{TileScheduleOut, tile_schedule};
use fp8_moe::{Buffer, Device, Error, Family, Stream};
use half::{bf16, f16};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The arguments of a problem's GEMM.
fn arguments<'a>(problem: &'a OnDevice, workspace: &'a mut Buffer<u8>, out: GemmOut<'a>) -> GroupedGemm<'a> {
    let (a_scale, b_scale) = problem.scales();
    GroupedGemm {
        a: problem.a.as_slice(),
        a_scale,
        b: problem.b.as_slice(),
        b_scale,
        expert_offsets: problem.offsets.as_slice(),
        schedule: problem.schedule(),
        out,
        workspace: workspace.as_mut_slice(),
        shape: problem.shape,
        accumulation: Accumulation::Fast,
        path: Path::Auto,
    }
}

/// The bits of D, of which every byte was [`POISON`] before.
fn run(problem: &OnDevice, format: Format, accumulation: Accumulation, path: Path) -> Vec<u32> {
    run_with(problem, format, accumulation, path, false)
}

/// As [`run`]; `settled`: the schedule counts as complete since before the preceding kernel.
fn run_with(
    problem: &OnDevice,
    format: Format,
    accumulation: Accumulation,
    path: Path,
    settled: bool,
) -> Vec<u32> {
    let stream = problem.device.default_stream();
    let mut out = problem.device.uninit::<u8>(problem.shape.rows * problem.shape.n * format.bytes()).unwrap();
    out.fill_bytes(POISON, &stream).unwrap();
    let slice = out.as_mut_slice();
    let slice = match format {
        Format::Bf16 => GemmOut::Bf16(slice.cast()),
        Format::F16 => GemmOut::F16(slice.cast()),
        Format::F32 => GemmOut::F32(slice.cast()),
    };
    let mut workspace = problem.workspace();
    let arguments = GroupedGemm { accumulation, path, ..arguments(problem, &mut workspace, slice) };
    let enqueued = if settled {
        // SAFETY: the problem's schedule was built, and waited for, before.
        unsafe { grouped_gemm_with_settled_schedule(&stream, arguments) }
    } else {
        grouped_gemm(&stream, arguments)
    };
    enqueued.unwrap_or_else(|e| panic!("{e}"));
    let bytes = out.to_vec(&stream).unwrap_or_else(|e| panic!("{e}"));
    bytes.chunks(format.bytes()).map(|bits| format.bits(bits)).collect()
}

/// The paths that lead to a kernel with tiles of `block_m` rows and such scales of A on this device.
fn paths(device: &Device, block_m: usize, a_kind: AKind, blocks: Option<u32>) -> Vec<Path> {
    let mut paths = Vec::new();
    if PortableTile::for_block_m(block_m).is_ok() {
        paths.push(Path::Portable { blocks });
    }
    if device.family() == Family::Sm90a && a_kind != AKind::GroupRowMajor {
        paths.push(Path::Hopper { blocks });
    }
    paths
}

#[derive(Clone, Copy, Debug)]
enum Format {
    Bf16,
    F16,
    F32,
}

impl Format {
    fn bytes(self) -> usize {
        match self {
            Format::Bf16 | Format::F16 => 2,
            Format::F32 => 4,
        }
    }

    /// The bits of an element from its bytes.
    fn bits(self, bytes: &[u8]) -> u32 {
        bytes.iter().rev().fold(0, |bits, &byte| bits << 8 | u32::from(byte))
    }

    fn decode(self, bits: u32) -> f64 {
        match self {
            Format::Bf16 => bf16::from_bits(bits as u16).to_f64(),
            Format::F16 => f16::from_bits(bits as u16).to_f64(),
            Format::F32 => f64::from(f32::from_bits(bits)),
        }
    }

    /// Half of the distance between neighbours, relative, and the least absolute one.
    fn rounding(self) -> (f64, f64) {
        match self {
            Format::Bf16 => (2f64.powi(-8), 0.0),
            Format::F16 => (2f64.powi(-11), 2f64.powi(-25)),
            Format::F32 => (2f64.powi(-24), 0.0),
        }
    }
}

/// One rounding to the output format, and what tensor cores may lose.
#[track_caller]
fn assert_within_rounding(problem: &Problem, d: &[u32], format: Format, accumulation: Accumulation) {
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

proptest! {
    #![proptest_config(common::cases(24))]

    #[test]
    fn equals_the_definition(
        seed in any::<u64>(),
        experts in 1usize..=9,
        rows in 0usize..300,
        spare_rows in 0usize..20,
        skew in prop::sample::select(&[Skew::Uniform, Skew::Sparse, Skew::One][..]),
        n in (1usize..=40).prop_map(|n| n * 8),
        k in (1usize..=34).prop_map(|k| k * 16),
        block_m in prop::sample::select(&BLOCK_M[..]),
        kinds in (prop::sample::select(&A_KINDS[..]), prop::sample::select(&B_KINDS[..])),
        values in prop::sample::select(&[Values::Uniform, Values::Bytes][..]),
        promoted in any::<bool>(),
        format in prop::sample::select(&[Format::Bf16, Format::F16, Format::F32][..]),
        blocks in prop::option::of(1u32..9),
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let counts = draw_counts(skew, experts, rows, &mut rng);
        let problem = Problem::draw(&counts, spare_rows, (n, k), kinds, values, &mut rng);
        let accumulation = if promoted { Accumulation::Promoted } else { Accumulation::Fast };
        for device in devices() {
            common::timing(seed);
            let on_device = OnDevice::new(&device, &problem, block_m);
            for path in paths(&device, block_m, problem.a_kind, blocks) {
                let d = run(&on_device, format, accumulation, path);
                assert_within_rounding(&problem, &d, format, accumulation);
                let settled = run_with(&on_device, format, accumulation, path, true);
                prop_assert!(settled == d, "the settled schedule's result differs");
            }
        }
    }
}

/// Every kernel with every pair of scales, on a shape with tails everywhere and several items to a block.
#[test]
fn every_kernel_and_scale() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for block_m in BLOCK_M {
        for a_kind in A_KINDS {
            for b_kind in B_KINDS {
                let kinds = (a_kind, b_kind);
                let problem = Problem::draw(&[5, 0, 70, 1], 4, (200, 304), kinds, Values::Uniform, &mut rng);
                for device in devices() {
                    let on_device = OnDevice::new(&device, &problem, block_m);
                    for accumulation in [Accumulation::Fast, Accumulation::Promoted] {
                        for path in paths(&device, block_m, a_kind, Some(3)) {
                            let d = run(&on_device, Format::Bf16, accumulation, path);
                            assert_within_rounding(&problem, &d, Format::Bf16, accumulation);
                        }
                    }
                }
            }
        }
    }
}

/// The result is the same, bit for bit, however many blocks share the work and whatever the timing. K of one slab makes
/// copies run several items ahead.
#[test]
fn deterministic() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    for (k, block_m) in [(16, 16), (128, 64), (400, 128), (1040, 16)] {
        let kinds = (AKind::GroupRowMajor, BKind::Block);
        let problem = Problem::draw(&[33, 0, 129, 16], 0, (136, k), kinds, Values::Uniform, &mut rng);
        for device in devices() {
            let on_device = OnDevice::new(&device, &problem, block_m);
            let with =
                |blocks| run(&on_device, Format::Bf16, Accumulation::Promoted, Path::Portable { blocks });
            let first = with(None);
            for (seed, blocks) in [(1, Some(1)), (2, Some(2)), (3, Some(5)), (4, None)] {
                common::timing(seed);
                assert!(with(blocks) == first, "K = {k}, {blocks:?} blocks, seed {seed}");
            }
        }
    }
}

/// vLLM's acceptance grid: rtol 1e-2, atol 5e-4 on small integers.
fn acceptance(most_tiles_of_16: impl Fn(usize) -> (usize, usize)) {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    for experts in [8, 64] {
        let (m, nk) = most_tiles_of_16(experts);
        for a_kind in [AKind::Call, AKind::Row] {
            for b_kind in [BKind::Expert, BKind::Channel] {
                let counts: Vec<_> = (0..experts).map(|_| 16 * rng.random_range(1..=m)).collect();
                let (n, k) = (16 * rng.random_range(1..=nk), 16 * rng.random_range(1..=nk));
                let problem = Problem::draw(&counts, 0, (n, k), (a_kind, b_kind), Values::Integers, &mut rng);
                let expected: Vec<f32> =
                    problem.expected(Accumulation::Fast).iter().map(|&(value, _)| value as f32).collect();
                for device in devices() {
                    let block_m = heuristics::block_m(&device, &problem.shape, Path::Auto);
                    let on_device = OnDevice::new(&device, &problem, block_m);
                    let d = run(&on_device, Format::Bf16, Accumulation::Fast, Path::Auto);
                    let d: Vec<f32> = d.iter().map(|&bits| Format::Bf16.decode(bits) as f32).collect();
                    common::checks::assert_close(&d, &expected, 5e-4, 1e-2);
                }
            }
        }
    }
}

#[test]
fn acceptance_grid() {
    acceptance(|experts| if experts == 8 { (5, 20) } else { (2, 16) });
}

#[test]
#[ignore = "the grid at full size: for a GPU"]
fn acceptance_grid_at_full_size() {
    acceptance(|_| (63, 63));
}

#[test]
fn no_rows_is_nothing_to_do() {
    let mut rng = ChaCha8Rng::seed_from_u64(10);
    for device in devices() {
        // No rows at all, and rows none of which belongs to an expert.
        for (counts, spare_rows) in [(vec![0, 0, 0], 0), (vec![0, 0, 0], 20), (vec![], 3)] {
            let kinds = (AKind::Row, BKind::Expert);
            let problem = Problem::draw(&counts, spare_rows, (16, 32), kinds, Values::Uniform, &mut rng);
            let d = run(&OnDevice::new(&device, &problem, 16), Format::F16, Accumulation::Fast, Path::Auto);
            assert_within_rounding(&problem, &d, Format::F16, Accumulation::Fast);
        }
    }
}

/// What the memory system sees, on the emulated device: no bank conflicts, whole sectors, each operand once per tile.
#[test]
fn counters() {
    let mut rng = ChaCha8Rng::seed_from_u64(13);
    let (m, n, k) = (256, 256, 512);
    let kinds = (AKind::GroupRowMajor, BKind::Block);
    let problem = Problem::draw(&[m], 0, (n, k), kinds, Values::Uniform, &mut rng);
    for device in devices().into_iter().filter(Device::is_emulated) {
        for block_m in [16, 64, 128] {
            let on_device = OnDevice::new(&device, &problem, block_m);
            cuda_driver::sim::take_counters();
            run(&on_device, Format::Bf16, Accumulation::Promoted, Path::Portable { blocks: Some(3) });
            let counters = cuda_driver::sim::take_counters();
            assert_eq!((counters.launches, counters.blocks), (1, 3));
            assert_eq!(counters.shared_bank_conflicts, 0, "tiles of {block_m}");
            assert_eq!(counters.tensor_flops, 2 * (m * n * k) as u64, "tiles of {block_m}");
            assert_eq!(counters.global_store_bytes, 2 * (m * n) as u64);
            assert_eq!(counters.global_store_sectors * 32, counters.global_store_bytes, "tiles of {block_m}");
            // Every item reads its rows of A and of B once; scales come on top, and the schedule, counted for every lane.
            let operands = (m * n * k / 128 + m * n * k / block_m) as u64;
            let rest = counters.global_load_bytes - operands;
            assert!(rest < operands / 8, "tiles of {block_m}: {rest} bytes besides {operands}");
        }
    }
}

#[test]
fn replays_in_a_graph() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let kinds = (AKind::Row, BKind::Channel);
    let problem = Problem::draw(&[20, 3], 2, (48, 144), kinds, Values::Uniform, &mut rng);
    for device in devices() {
        let on_device = OnDevice::new(&device, &problem, 16);
        let eager = run(&on_device, Format::Bf16, Accumulation::Fast, Path::Auto);
        // A stream of its own: what other tests enqueue meanwhile on the default stream must not be captured.
        let stream = Stream::new(&device).unwrap();
        let mut out = device.uninit::<u16>(eager.len()).unwrap();
        out.fill_bytes(POISON, &stream).unwrap();
        let mut workspace = on_device.workspace();
        device.default_stream().synchronize().unwrap();
        let graph = stream
            .capture(|stream| {
                let slice = GemmOut::Bf16(out.as_mut_slice().cast());
                grouped_gemm(stream, arguments(&on_device, &mut workspace, slice))
            })
            .unwrap();
        // SAFETY: every buffer that the captured call was given is alive until `to_vec` has waited.
        unsafe { graph.launch(&stream) }.unwrap();
        let replayed: Vec<u32> = out.to_vec(&stream).unwrap().into_iter().map(u32::from).collect();
        assert_eq!(replayed, eager);
    }
}

/// Just built, a schedule is not settled: the emulated device reports the read before the wait, whatever the timing.
#[test]
fn a_new_schedule_is_not_settled() {
    let mut rng = ChaCha8Rng::seed_from_u64(14);
    let kinds = (AKind::Row, BKind::Channel);
    let problem = Problem::draw(&[5, 3], 0, (256, 144), kinds, Values::Uniform, &mut rng);
    let device = common::device();
    if !device.is_emulated() || device.family() != Family::Sm90a {
        return;
    }
    let stream = Stream::new(&device).unwrap();
    common::forgive_faults();
    for seed in 0..4 {
        common::timing(seed);
        let mut on_device = OnDevice::new(&device, &problem, 8);
        let mut workspace = on_device.workspace();
        let mut out = device.zeros::<bf16>(8 * 256).unwrap();
        let mut entries = device.uninit(on_device.entries.len()).unwrap();
        let schedule = TileScheduleOut { block_m: 8, entries: entries.as_mut_slice() };
        tile_schedule(&stream, on_device.offsets.as_slice(), 2, 8, schedule).unwrap();
        on_device.entries = entries;
        let mut gemm = |settled| {
            let arguments = arguments(&on_device, &mut workspace, GemmOut::Bf16(out.as_mut_slice()));
            if settled {
                // SAFETY: on the emulated device a wrong promise is a report.
                unsafe { grouped_gemm_with_settled_schedule(&stream, arguments) }
            } else {
                grouped_gemm(&stream, arguments)
            }
        };
        let fault = gemm(true).unwrap_err().to_string();
        assert!(fault.contains("without griddepcontrol.wait"), "{fault}");
        gemm(false).unwrap();
        gemm(true).unwrap();
    }
}

/// What is refused before anything is launched, and in which words.
#[test]
fn refusals() {
    type Change = fn(&mut GroupedGemm<'_>);
    const CASES: [(Change, &str); 16] = [
        (|g| g.shape.k = 24, "k = 24: must be a positive multiple of 16"),
        (|g| g.shape.k = 0, "k = 0: must be a positive multiple of 16"),
        (|g| g.shape.n = 12, "n = 12: must be a positive multiple of 8"),
        (|g| g.shape.n = 0, "n = 0: must be a positive multiple of 8"),
        (|g| g.shape.rows = 1 << 31, "rows = 2147483648: must be below 2^31 - 127"),
        (|g| g.a = g.a.slice(16..), "a = 944 elements: must have at least 960 elements"),
        (|g| g.a = g.a.slice(8..), "a = 952 elements: must have at least 960 elements"),
        (|g| (g.a, g.shape.rows) = (g.a.slice(8..), 19), "must be 16-byte aligned"),
        (|g| g.b = g.b.slice(48..), "b = 2256 elements: must have at least 2304 elements"),
        (|g| g.shape.rows = 21, "a = 960 elements: must have at least 1008 elements"),
        (|g| g.a_scale = shorten_a(g.a_scale), "a_scale = 19 elements: must have at least 20 elements"),
        (|g| g.b_scale = shorten_b(g.b_scale), "b_scale = 47 elements: must have at least 48 elements"),
        (
            |g| g.expert_offsets = g.expert_offsets.slice(1..),
            "expert_offsets = 2 elements: must have at least 3",
        ),
        (|g| g.schedule.block_m = 48, "schedule.block_m = 48: must be 8, 16, 32, 64 or 128"),
        (
            |g| g.schedule.entries = g.schedule.entries.slice(1..),
            "schedule = 67 elements: must have at least 68",
        ),
        (|g| g.path = Path::Portable { blocks: Some(0) }, "path.blocks = 0: must be at least 1"),
    ];
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    let kinds = (AKind::Row, BKind::Channel);
    let problem = Problem::draw(&[12, 8], 0, (24, 48), kinds, Values::Uniform, &mut rng);
    for device in devices() {
        let stream = device.default_stream();
        let on_device = OnDevice::new(&device, &problem, 16);
        let mut out = device.zeros::<bf16>(20 * 24).unwrap();
        let mut workspace = on_device.workspace();
        for (change, message) in CASES {
            let mut changed = arguments(&on_device, &mut workspace, GemmOut::Bf16(out.as_mut_slice()));
            change(&mut changed);
            let error = grouped_gemm(&stream, changed).unwrap_err();
            assert!(matches!(error, Error::Argument { op: "grouped_gemm", .. }), "{error:?}");
            assert!(error.to_string().contains(message), "{error}: {message}");
        }
        let short = GemmOut::Bf16(out.slice_mut(..20 * 24 - 1));
        let error =
            grouped_gemm(&stream, arguments(&on_device, &mut workspace, short)).unwrap_err().to_string();
        assert_eq!(error, "grouped_gemm: out = 479 elements: must have at least 480 elements");

        let far = AScale::Group { scales: on_device.a_scale.as_slice(), row_stride: 2, group_stride: 1 };
        let slice = GemmOut::Bf16(out.as_mut_slice());
        let far = GroupedGemm { a_scale: far, ..arguments(&on_device, &mut workspace, slice) };
        let error = grouped_gemm(&stream, far).unwrap_err().to_string();
        assert_eq!(error, "grouped_gemm: a_scale = 20 elements: must have at least 39 elements");
    }
}

/// What the Hopper kernels refuse of scales that change along K, and the portable ones take.
#[test]
fn refusals_of_slab_scales() {
    let device = common::device();
    if device.family() != Family::Sm90a {
        eprintln!("skipped: the kernels of {} take any strides", device.family());
        return;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(15);
    let kinds = (AKind::Call, BKind::Block);
    let problem = Problem::draw(&[12, 9], 0, (24, 272), kinds, Values::Uniform, &mut rng);
    let (stream, on_device) = (device.default_stream(), OnDevice::new(&device, &problem, 16));
    let scales = device.upload(&[0.5f32; 100]).unwrap();
    let b_scale = device.upload(&[0.5f32; 7]).unwrap();
    let mut workspace = on_device.workspace();
    let mut out = device.zeros::<bf16>(21 * 24).unwrap();
    let mut gemm = |a_scale: Option<(usize, usize, usize)>, b_start: usize, path| {
        let slice = GemmOut::Bf16(out.as_mut_slice());
        let mut arguments = GroupedGemm { path, ..arguments(&on_device, &mut workspace, slice) };
        if let Some((start, row_stride, group_stride)) = a_scale {
            arguments.a_scale = AScale::Group { scales: scales.slice(start..), row_stride, group_stride };
        }
        arguments.b_scale = BScale::Block(b_scale.slice(b_start..));
        grouped_gemm(&stream, arguments).map_err(|e| e.to_string())
    };
    let group_major = "must be group-major (`ScaleLayout::group_major`) for the Hopper kernels: \
         a row_stride of 1, and a group_stride that is a multiple of 4 and at least 21";
    for (row_stride, group_stride) in [(3, 1), (1, 21), (1, 20), (2, 24)] {
        let refused = gemm(Some((0, row_stride, group_stride)), 0, Path::Auto).unwrap_err();
        let strides = format!("strides {row_stride}, {group_stride}");
        assert_eq!(refused, format!("grouped_gemm: a_scale = {strides}: {group_major}"));
        gemm(Some((0, row_stride, group_stride)), 0, Path::Portable { blocks: None }).unwrap();
    }
    let refused = gemm(Some((1, 1, 24)), 0, Path::Auto).unwrap_err();
    assert!(refused.starts_with("grouped_gemm: a_scale = 0x"), "{refused}");
    assert!(refused.ends_with("must be 16-byte aligned for the Hopper kernels"), "{refused}");
    gemm(Some((1, 1, 24)), 0, Path::Portable { blocks: None }).unwrap();
    // Scales of B may begin anywhere.
    gemm(Some((4, 1, 24)), 1, Path::Auto).unwrap();
}

fn shorten_a(scale: AScale<'_>) -> AScale<'_> {
    match scale {
        AScale::Row(scales) => AScale::Row(scales.slice(1..)),
        other => other,
    }
}

fn shorten_b(scale: BScale<'_>) -> BScale<'_> {
    match scale {
        BScale::Channel(scales) => BScale::Channel(scales.slice(1..)),
        other => other,
    }
}
