//! `grouped_gemm` against the definition in f64, on poisoned memory.

use fp8_moe::internals::BLOCK_M;
use fp8_moe::ops::grouped_gemm::{
    AScale, Accumulation, BScale, GemmOptions, GemmOut, GemmPlan, GemmShape, GroupedGemm, Path, grouped_gemm,
    grouped_gemm_with_settled_schedule,
};
use fp8_moe::{Device, Error, Family, Stream};
use half::bf16;
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::common;
use crate::common::gemm::{
    A_KINDS, AKind, B_KINDS, BKind, OnDevice, POISON, Problem, Skew, Values, devices, draw_counts,
};
use crate::common::grouped::{Format, arguments, assert_within_rounding, paths, run, run_with};

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
                if let Path::Hopper { .. } = path {
                    let packed = OnDevice::new(&device, &problem, block_m).packed(false);
                    let again = run(&packed, format, accumulation, path);
                    prop_assert!(again == d, "packed weights' result differs");
                }
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

/// The result is the same, bit for bit, whatever the timing, in either family of kernels. Portable kernels
/// give it however many blocks share the work. K of one slab makes copies run several items ahead.
#[test]
fn deterministic() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    for (k, block_m) in [(16, 16), (128, 64), (400, 128), (1040, 16)] {
        for a_kind in [AKind::GroupRowMajor, AKind::GroupColumnMajor] {
            let kinds = (a_kind, BKind::Block);
            let problem = Problem::draw(&[33, 0, 129, 16], 0, (136, k), kinds, Values::Uniform, &mut rng);
            for device in devices() {
                let on_device = OnDevice::new(&device, &problem, block_m);
                for path in paths(&device, block_m, a_kind, Some(7)) {
                    let with = |path| run(&on_device, Format::Bf16, Accumulation::Promoted, path);
                    let first = with(path);
                    for (seed, blocks) in [(1, Some(1)), (2, Some(2)), (3, Some(5)), (4, None)] {
                        common::timing(seed);
                        let path =
                            if let Path::Portable { .. } = path { Path::Portable { blocks } } else { path };
                        assert!(with(path) == first, "K = {k}, {path:?}, seed {seed}");
                    }
                }
            }
        }
    }
}

/// Narrow kernels draw items, and cut some of them: every way of cutting, whoever comes first. An item is an
/// expert, of one tile of columns.
#[test]
fn items_are_cut_in_every_way() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let rows = [5, 8, 1, 7, 8, 3, 2, 6];
    for (items, blocks, k) in [
        // As many parts as blocks, one block without work, and three parts to an item.
        (2, 4, 400),
        (3, 4, 304),
        (4, 7, 528),
        // More items than blocks: whole; the last one in two parts.
        (5, 3, 272),
        (8, 7, 1040),
        (8, 7, 2048),
        // The last four of long items in two parts, the last two in three.
        (6, 4, 2064),
        (4, 3, 4112),
    ] {
        for block_m in [8, 16, 32] {
            // Tiles of 32 rows with one of each of their products.
            let tall = if block_m == 32 { [32, 9, 8] } else { [8; 3] };
            let mut counts = rows[..items].to_vec();
            for (count, tall) in counts.iter_mut().zip(tall) {
                *count = tall;
            }
            let kinds = if block_m == 16 {
                (AKind::Row, BKind::Channel)
            } else {
                (AKind::GroupColumnMajor, BKind::Block)
            };
            let problem = Problem::draw(&counts, 0, (136, k), kinds, Values::Uniform, &mut rng);
            for device in devices().into_iter().filter(|device| device.family() == Family::Sm90a) {
                let on_device = OnDevice::new(&device, &problem, block_m);
                let path = Path::Hopper { blocks: Some(blocks) };
                let with = |seed| {
                    common::timing(seed);
                    run(&on_device, Format::Bf16, Accumulation::Promoted, path)
                };
                let first = with(0);
                assert_within_rounding(&problem, &first, Format::Bf16, Accumulation::Promoted);
                assert!(with(1) == first, "{items} items, {blocks} blocks, K = {k}, tiles of {block_m} rows");
            }
        }
    }
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

/// What the memory system sees, on the emulated device: no bank conflicts, whole sectors, each operand once
/// per tile.
#[test]
fn counters() {
    let mut rng = ChaCha8Rng::seed_from_u64(13);
    let (m, n, k) = (256, 256, 512);
    let kinds = (AKind::GroupRowMajor, BKind::Block);
    let problem = Problem::draw(&[m], 0, (n, k), kinds, Values::Uniform, &mut rng);
    for device in devices().into_iter().filter(Device::is_emulated) {
        for block_m in [16, 64, 128] {
            let on_device = OnDevice::new(&device, &problem, block_m);
            let stream = device.default_stream();
            let plan = on_device.plan(Accumulation::Promoted, Path::Portable { blocks: Some(3) });
            let (mut lists, mut workspace) = (on_device.lists(), on_device.workspace(0));
            let permutation = lists.permutation(&stream);
            let mut out = device.uninit::<bf16>(m * n).unwrap();
            cust::sim::take_counters();
            let slice = GemmOut::Bf16(out.as_mut_slice());
            grouped_gemm(&stream, arguments(&on_device, &plan, permutation, &mut workspace, slice)).unwrap();
            let counters = cust::sim::take_counters();
            assert_eq!((counters.launches, counters.blocks), (1, 3));
            assert_eq!(counters.shared_bank_conflicts, 0, "tiles of {block_m}");
            assert_eq!(counters.tensor_flops, 2 * (m * n * k) as u64, "tiles of {block_m}");
            assert_eq!(counters.global_store_bytes, 2 * (m * n) as u64);
            assert_eq!(counters.global_store_sectors * 32, counters.global_store_bytes, "tiles of {block_m}");
            // Every item reads its rows of A and of B once; scales come on top, and the schedule, counted for
            // every lane.
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
        let (plan, mut lists) = (on_device.plan(Accumulation::Fast, Path::Auto), on_device.lists());
        let mut workspace = on_device.workspace(plan.workspace_bytes());
        device.default_stream().synchronize().unwrap();
        let graph = stream
            .capture(|stream| {
                let slice = GemmOut::Bf16(out.as_mut_slice().cast());
                // SAFETY: the offsets are the problem's, and nobody else has the lists.
                let permutation = unsafe { lists.captured(stream) }?;
                grouped_gemm(stream, arguments(&on_device, &plan, permutation, &mut workspace, slice))
            })
            .unwrap();
        graph.launch(&stream).unwrap();
        let replayed: Vec<u32> = out.to_vec(&stream).unwrap().into_iter().map(u32::from).collect();
        assert_eq!(replayed, eager);
    }
}

/// Just built, a schedule is not settled: the emulated device reports the read before the wait, whatever the
/// timing.
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
        let on_device = OnDevice::new(&device, &problem, 8);
        let (plan, mut lists) = (on_device.plan(Accumulation::Fast, Path::Auto), on_device.lists());
        let mut workspace = on_device.workspace(plan.workspace_bytes());
        let mut out = device.zeros::<bf16>(8 * 256).unwrap();
        let mut permutation = lists.permutation(&stream);
        let mut gemm = |settled| {
            let (slice, permutation) = (GemmOut::Bf16(out.as_mut_slice()), permutation.reborrow());
            let arguments = arguments(&on_device, &plan, permutation, &mut workspace, slice);
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

/// What a plan refuses, and in which words.
#[test]
fn refusals_of_plans() {
    type Change = fn(&mut GemmShape, &mut usize, &mut GemmOptions);
    const CASES: [(Change, &str); 7] = [
        (|shape, _, _| shape.k = 24, "k = 24: must be a positive multiple of 16"),
        (|shape, _, _| shape.k = 0, "k = 0: must be a positive multiple of 16"),
        (|shape, _, _| shape.n = 12, "n = 12: must be a positive multiple of 8"),
        (|shape, _, _| shape.n = 0, "n = 0: must be a positive multiple of 8"),
        (|shape, _, _| shape.rows = 1 << 31, "rows = 2147483648: must be below 2^31 - 127"),
        (|_, block_m, _| *block_m = 48, "block_m = 48: must be 8, 16, 32, 64 or 128"),
        (
            |_, _, options| options.path = Path::Portable { blocks: Some(0) },
            "path.blocks = 0: must be at least 1",
        ),
    ];
    for device in devices() {
        for (change, message) in CASES {
            let mut shape = GemmShape { rows: 20, n: 24, k: 48, experts: 2 };
            let (mut block_m, mut options) = (16, GemmOptions::default());
            change(&mut shape, &mut block_m, &mut options);
            let error = GemmPlan::new(&device, shape, block_m, options).unwrap_err();
            assert_eq!(error.to_string(), format!("grouped_gemm: {message}"));
        }
    }
}

/// What is refused before anything is launched, and in which words.
#[test]
fn refusals() {
    type Change = fn(&mut GroupedGemm<'_>);
    const CASES: [(Change, &str); 6] = [
        (|g| g.a = g.a.slice(16..), "a = 944 elements: must have at least 960 elements"),
        (|g| g.a = g.a.slice(8..), "a = 952 elements: must have at least 960 elements"),
        (|g| g.b = g.b.slice(48..), "b = 2256 elements: must have at least 2304 elements"),
        (|g| g.a_scale = shorten_a(g.a_scale), "a_scale = 19 elements: must have at least 20 elements"),
        (|g| g.b_scale = shorten_b(g.b_scale), "b_scale = 47 elements: must have at least 48 elements"),
        (
            |g| g.b_scale = blocks(g.b_scale),
            "slab_scales = false: must be true in the plan for scales per group",
        ),
    ];
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    let kinds = (AKind::Row, BKind::Channel);
    let problem = Problem::draw(&[12, 8], 0, (24, 48), kinds, Values::Uniform, &mut rng);
    for device in devices() {
        let stream = device.default_stream();
        let on_device = OnDevice::new(&device, &problem, 16);
        let (plan, mut lists) = (on_device.plan(Accumulation::Fast, Path::Auto), on_device.lists());
        let mut permutation = lists.permutation(&stream);
        let mut out = device.zeros::<bf16>(20 * 24).unwrap();
        let mut workspace = on_device.workspace(plan.workspace_bytes());
        for (change, message) in CASES {
            let (slice, permutation) = (GemmOut::Bf16(out.as_mut_slice()), permutation.reborrow());
            let mut changed = arguments(&on_device, &plan, permutation, &mut workspace, slice);
            change(&mut changed);
            let error = grouped_gemm(&stream, changed).unwrap_err();
            assert!(matches!(error, Error::Argument { op: "grouped_gemm", .. }), "{error:?}");
            assert!(error.to_string().contains(message), "{error}: {message}");
        }
        let short = GemmOut::Bf16(out.slice_mut(..20 * 24 - 1));
        let short = arguments(&on_device, &plan, permutation.reborrow(), &mut workspace, short);
        let error = grouped_gemm(&stream, short).unwrap_err().to_string();
        assert_eq!(error, "grouped_gemm: out = 479 elements: must have at least 480 elements");

        let odd = device.zeros::<u8>(20 * 48 + 8).unwrap();
        let slice = GemmOut::Bf16(out.as_mut_slice());
        let odd = GroupedGemm {
            a: odd.slice(8..).cast(),
            ..arguments(&on_device, &plan, permutation.reborrow(), &mut workspace, slice)
        };
        let error = grouped_gemm(&stream, odd).unwrap_err().to_string();
        assert!(error.ends_with("must be 16-byte aligned"), "{error}");

        let options = GemmOptions { slab_scales: true, ..GemmOptions::default() };
        let slabs = GemmPlan::new(&device, problem.shape, 16, options).unwrap();
        let far = AScale::Group { scales: on_device.a_scale.as_slice(), row_stride: 2, group_stride: 1 };
        let slice = GemmOut::Bf16(out.as_mut_slice());
        let far = GroupedGemm {
            a_scale: far,
            ..arguments(&on_device, &slabs, permutation.reborrow(), &mut workspace, slice)
        };
        let error = grouped_gemm(&stream, far).unwrap_err().to_string();
        assert_eq!(error, "grouped_gemm: a_scale = 20 elements: must have at least 39 elements");
    }
}

/// Scales of channels as if they were of blocks.
fn blocks(scale: BScale<'_>) -> BScale<'_> {
    match scale {
        BScale::Channel(scales) => BScale::Block(scales),
        other => other,
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
    let mut lists = on_device.lists();
    let mut permutation = lists.permutation(&stream);
    let mut out = device.zeros::<bf16>(21 * 24).unwrap();
    let mut gemm = |a_scale: Option<(usize, usize, usize)>, b_start: usize, path| {
        let slice = GemmOut::Bf16(out.as_mut_slice());
        let plan = on_device.plan(Accumulation::Fast, path);
        let mut workspace = on_device.workspace(plan.workspace_bytes());
        let permutation = permutation.reborrow();
        let mut arguments = arguments(&on_device, &plan, permutation, &mut workspace, slice);
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
