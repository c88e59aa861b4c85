//! `gated_gemm` against the definition in f64, on poisoned memory.

use crate::common;
use crate::common::activation;
use crate::common::bounds::{self, Estimate};
use crate::common::gemm::{
    AKind, B_KINDS, BKind, HOPPER_A_KINDS, OnDevice, POISON, Problem, Skew, Values, draw_counts,
};
use fp8_moe::internals::HopperTile;
use fp8_moe::ops::activation::{ActivationFunction, Requantization};
use fp8_moe::ops::gated_gemm::{
    GatedGemm, GatedPlan, GatedShape, gated_gemm, gated_gemm_with_settled_schedule,
};
use fp8_moe::ops::grouped_gemm::{AScale, Accumulation, BScale, GemmOptions, Path, SCALE_BLOCK};
use fp8_moe::ops::permutation::Permutation;
use fp8_moe::ops::permute::ScaleLayout;
use fp8_moe::{Buffer, Device, E4m3, Family, SliceMut};
use proptest::prelude::*;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The test device, if its kernels include gated ones.
fn hopper() -> Option<Device> {
    let device = common::device();
    if device.family() == Family::Sm90a {
        return Some(device);
    }
    eprintln!("skipped: the kernels of {} include no gated GEMM", device.family());
    None
}

/// How the result is scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Out {
    Given(f32),
    GroupRowMajor,
    GroupColumnMajor,
}

/// The rows of A in the order of tokens, and their scales per group, if there are such; other scales are
/// those of the problem's rows.
struct Tokens {
    count: usize,
    top_k: usize,
    a: Vec<E4m3>,
    a_scale: Vec<f32>,
    a_strides: (usize, usize),
    sorted_rows: Vec<i32>,
}

impl Tokens {
    /// Gives every row of `problem` to one of `count` tokens, whose rows become the same, or makes it
    /// padding, a row of zeros. Tokens without a row are NaN, and so are scales that belong to none.
    fn draw(problem: &mut Problem, count: usize, top_k: usize, rng: &mut ChaCha8Rng) -> Tokens {
        let (k, kind, valid) = (problem.shape.k, problem.a_kind, problem.valid_rows());
        let groups = k.div_ceil(SCALE_BLOCK);
        let (per_row, a_strides) = match kind {
            AKind::Call | AKind::Row => (0, (0, 0)),
            // Any layout: row by row for a change.
            _ => (groups, (groups + 1, 1)),
        };
        let mut a_scale = vec![f32::NAN; count * (groups + 1)];
        let mut a = vec![E4m3(0x7f); count * k];
        let none = (count * top_k) as i32;
        // What belongs to no row: the permutation's word for it, or nonsense.
        let mut sorted_rows: Vec<_> =
            (0..problem.shape.rows).map(|_| [none, -1][rng.random_range(0..2usize)]).collect();
        let mut taken = vec![false; count];
        let mut slots: Vec<usize> = (0..count * top_k).collect();
        slots.shuffle(rng);
        for (row, expanded) in sorted_rows[..valid].iter_mut().enumerate() {
            let permuted = row * k..(row + 1) * k;
            let Some(slot) = slots.pop().filter(|_| rng.random_bool(0.9)) else {
                problem.a[permuted].fill(E4m3(0));
                continue;
            };
            let token = slot / top_k;
            *expanded = slot as i32;
            let own = token * k..(token + 1) * k;
            let scale = |group: usize| {
                (
                    row * problem.a_strides.0 + group * problem.a_strides.1,
                    token * a_strides.0 + group * a_strides.1,
                )
            };
            if std::mem::replace(&mut taken[token], true) {
                problem.a[permuted].copy_from_slice(&a[own]);
                (0..per_row).map(scale).for_each(|(of_row, own)| problem.a_scale[of_row] = a_scale[own]);
            } else {
                a[own].copy_from_slice(&problem.a[permuted]);
                (0..per_row).map(scale).for_each(|(of_row, own)| a_scale[own] = problem.a_scale[of_row]);
            }
        }
        Tokens { count, top_k, a, a_scale, a_strides, sorted_rows }
    }
}

/// A problem whose N is gate and up, with what comes after the sums.
#[derive(Clone, Copy)]
struct Gated<'a> {
    problem: &'a Problem,
    /// The rows of A to gather, instead of those of the problem.
    tokens: Option<&'a Tokens>,
    function: ActivationFunction,
    out: Out,
}

impl Gated<'_> {
    fn intermediate(&self) -> usize {
        self.problem.shape.n / 2
    }

    fn layout(&self) -> ScaleLayout {
        let (rows, groups) = (self.problem.shape.rows, self.intermediate().div_ceil(128));
        match self.out {
            Out::GroupColumnMajor => ScaleLayout { row_stride: 1, group_stride: rows },
            _ => ScaleLayout::row_major(groups),
        }
    }

    /// The bytes of q and the scales, of which every byte was [`POISON`] before. `settled`: the schedule
    /// counts as complete since before the preceding kernel.
    fn run(
        &self,
        device: &Device,
        block_m: usize,
        accumulation: Accumulation,
        path: Path,
        settled: bool,
    ) -> (Vec<E4m3>, Vec<f32>) {
        self.run_on(OnDevice::new(device, self.problem, block_m), accumulation, path, settled)
    }

    /// As [`run`](Self::run), with packed weights.
    fn run_packed(
        &self,
        device: &Device,
        block_m: usize,
        accumulation: Accumulation,
        path: Path,
    ) -> (Vec<E4m3>, Vec<f32>) {
        self.run_on(OnDevice::new(device, self.problem, block_m).packed(true), accumulation, path, false)
    }

    fn run_on(
        &self,
        on_device: OnDevice,
        accumulation: Accumulation,
        path: Path,
        settled: bool,
    ) -> (Vec<E4m3>, Vec<f32>) {
        let device = &on_device.device.clone();
        let stream = device.default_stream();
        let plan = plan(&on_device, self.tokens.is_some(), accumulation, path);
        let mut lists = on_device.lists();
        if let Some(tokens) = self.tokens {
            (lists.tokens, lists.top_k) = (tokens.count, tokens.top_k);
            lists.sorted_rows = Some(device.upload(&tokens.sorted_rows).unwrap());
        }
        let permutation = lists.permutation(&stream);
        let (rows, i) = (self.problem.shape.rows, self.intermediate());
        let poisoned = |bytes: usize| {
            let mut buffer = device.uninit::<u8>(bytes).unwrap();
            buffer.fill_bytes(POISON, &stream).unwrap();
            buffer
        };
        let mut q = poisoned(rows * i);
        let mut scales = poisoned(rows * i.div_ceil(128) * 4);
        let mut workspace = on_device.workspace(plan.workspace_bytes());
        let given = device.upload(&[if let Out::Given(scale) = self.out { scale } else { 0.0 }]).unwrap();
        let requantization = match self.out {
            Out::Given(_) => Requantization::TensorStatic { scale: given.as_slice() },
            _ => Requantization::Group {
                group_size: 128,
                scales: scales.as_mut_slice().cast(),
                layout: self.layout(),
            },
        };
        let mut arguments = GatedGemm {
            gating: self.function.into(),
            requantization,
            ..arguments(&on_device, &plan, permutation, &mut workspace, q.as_mut_slice().cast(), &given)
        };
        let tokens = self.tokens.map(|tokens| {
            (tokens, device.upload(&tokens.a).unwrap(), device.upload(&tokens.a_scale).unwrap())
        });
        if let Some((tokens, a, scales)) = &tokens {
            arguments.a = a.as_slice();
            if let AScale::Group { .. } = arguments.a_scale {
                let (row_stride, group_stride) = tokens.a_strides;
                arguments.a_scale = AScale::Group { scales: scales.as_slice(), row_stride, group_stride };
            }
        }
        let enqueued = if settled {
            // SAFETY: the kernel that built the schedule is followed by a fill of `q`, which begins when it
            // has ended.
            unsafe { gated_gemm_with_settled_schedule(&stream, arguments) }
        } else {
            gated_gemm(&stream, arguments)
        };
        enqueued.unwrap_or_else(|e| panic!("{e}"));
        let q = q.to_vec(&stream).unwrap_or_else(|e| panic!("{e}"));
        let scales = scales.to_vec(&stream).unwrap();
        (
            bytemuck::cast_slice(&q).to_vec(),
            scales.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        )
    }

    /// Half an e4m3 step at the value, and what the sums and the activation may be off.
    #[track_caller]
    fn assert_within_rounding(&self, q: &[E4m3], scales: &[f32], accumulation: Accumulation) {
        let (i, n) = (self.intermediate(), self.problem.shape.n);
        let sums = self.problem.expected(accumulation);
        let layout = self.layout();
        for (row, (sums, q)) in sums.chunks(n).zip(q.chunks(i)).enumerate() {
            for (group, q) in q.chunks(128).enumerate() {
                let at = |c: usize| {
                    let (gate, up) = (sums[group * 128 + c], sums[i + group * 128 + c]);
                    let estimate = |(value, worst): (f64, f64)| Estimate { value, worst, rms: 0.0 };
                    let activated = bounds::gated(
                        estimate(gate),
                        estimate(up),
                        |gate| activation::gate(self.function, gate),
                        |up| activation::factor(self.function, up),
                    );
                    (activated.value, activated.worst + 2f64.powi(-20) * activated.value.abs())
                };
                let values: Vec<_> = (0..q.len()).map(at).collect();
                let (largest, slack) =
                    values.iter().fold((0f64, 0f64), |(l, s), (v, e)| (l.max(v.abs()), s.max(*e)));
                let scale = match self.out {
                    Out::Given(scale) => f64::from(scale),
                    _ => {
                        let scale = f64::from(scales[row * layout.row_stride + group * layout.group_stride]);
                        let expected = largest.max(1e-10) / 448.0;
                        let bound = slack / 448.0 + 1e-6 * expected;
                        assert!(
                            (scale - expected).abs() <= bound,
                            "scale {row}, {group}: {scale}, not {expected}"
                        );
                        scale
                    }
                };
                for (c, (&code, &(value, slack))) in q.iter().zip(&values).enumerate() {
                    let got = f64::from(code.to_f32()) * scale;
                    let wanted = value.clamp(-448.0 * scale, 448.0 * scale);
                    // Steps of e4m3: 1/8 of the power of two below, 2^-9 for subnormals.
                    let step = (wanted.abs() / 16.0).max(2f64.powi(-10) * scale);
                    let bound = step * 1.001 + slack;
                    assert!(
                        (got - wanted).abs() <= bound,
                        "q[{row}, {}] = {got}: {value} is expected, within {bound}",
                        group * 128 + c
                    );
                }
            }
        }
        let untouched = sums.len() / n * i;
        assert!(q[untouched..].iter().all(|q| q.0 == POISON), "rows past the last expert were written");
    }
}

/// The plan of a problem's gated GEMM.
#[track_caller]
fn plan(problem: &OnDevice, gathers: bool, accumulation: Accumulation, path: Path) -> GatedPlan {
    let options = problem.options(accumulation, path);
    GatedPlan::new(&problem.device, gated_shape(problem), problem.block_m, options, gathers)
        .unwrap_or_else(|e| panic!("{e}"))
}

fn gated_shape(problem: &OnDevice) -> GatedShape {
    let shape = problem.shape;
    GatedShape { rows: shape.rows, intermediate: shape.n / 2, k: shape.k, experts: shape.experts }
}

/// The arguments of a problem's gated GEMM, with one given scale.
fn arguments<'a>(
    problem: &'a OnDevice,
    plan: &'a GatedPlan,
    permutation: Permutation<'a>,
    workspace: &'a mut Buffer<u8>,
    q: SliceMut<'a, E4m3>,
    given: &'a Buffer<f32>,
) -> GatedGemm<'a> {
    let (a_scale, b_scale) = problem.scales();
    GatedGemm {
        a: problem.a.as_slice(),
        a_scale,
        b: problem.b.as_slice(),
        b_scale,
        bias: None,
        permutation,
        gating: ActivationFunction::Silu.into(),
        requantization: Requantization::TensorStatic { scale: given.as_slice() },
        q,
        workspace: workspace.as_mut_slice(),
        plan,
    }
}

/// A multiple of 16, of 128 where block scales ask for it.
fn intermediate(units: usize, b_kind: BKind) -> usize {
    if b_kind == BKind::Block { units.div_ceil(8) * 128 } else { units * 16 }
}

proptest! {
    #![proptest_config(common::cases(16))]

    #[test]
    fn equals_the_definition(
        seed in any::<u64>(),
        experts in 1usize..=6,
        rows in 0usize..200,
        spare_rows in 0usize..20,
        skew in prop::sample::select(&[Skew::Uniform, Skew::Sparse, Skew::One][..]),
        units in 1usize..=20,
        k in (1usize..=34).prop_map(|k| k * 16),
        block_m in prop::sample::select(HopperTile::ALL.map(HopperTile::block_m).to_vec()),
        kinds in (prop::sample::select(&HOPPER_A_KINDS[..]), prop::sample::select(&B_KINDS[..])),
        function in prop::sample::select(&activation::FUNCTIONS[..]),
        out in prop::sample::select(&[Out::Given(0.01), Out::GroupRowMajor, Out::GroupColumnMajor][..]),
        promoted in any::<bool>(),
        blocks in prop::option::of(1u32..9),
    ) {
        let Some(device) = hopper() else { return Ok(()) };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let counts = draw_counts(skew, experts, rows, &mut rng);
        let n = 2 * intermediate(units, kinds.1);
        let problem = Problem::draw(&counts, spare_rows, (n, k), kinds, Values::Uniform, &mut rng);
        let accumulation = if promoted { Accumulation::Promoted } else { Accumulation::Fast };
        common::timing(seed);
        let gated = Gated { problem: &problem, tokens: None, function, out };
        let run = |settled| gated.run(&device, block_m, accumulation, Path::Hopper { blocks }, settled);
        let (q, scales) = run(false);
        gated.assert_within_rounding(&q, &scales, accumulation);
        prop_assert!(run(true).0 == q, "the settled schedule's result differs");
        let packed = gated.run_packed(&device, block_m, accumulation, Path::Hopper { blocks });
        prop_assert!(packed.0 == q, "packed weights' result differs");
    }

    /// Gathered rows give what their copies give, bit for bit.
    #[test]
    fn gathered_rows_equal_scattered_ones(
        seed in any::<u64>(),
        experts in 1usize..=4,
        rows in 0usize..300,
        spare_rows in 0usize..20,
        skew in prop::sample::select(&[Skew::Uniform, Skew::Sparse, Skew::One][..]),
        units in 1usize..=20,
        k in (1usize..=34).prop_map(|k| k * 16),
        (count, top_k) in (1usize..200, 1usize..9),
        kinds in (prop::sample::select(&HOPPER_A_KINDS[..]), prop::sample::select(&B_KINDS[..])),
        function in prop::sample::select(&activation::FUNCTIONS[..]),
        out in prop::sample::select(&[Out::Given(0.01), Out::GroupRowMajor, Out::GroupColumnMajor][..]),
        promoted in any::<bool>(),
        blocks in prop::option::of(1u32..9),
    ) {
        let Some(device) = hopper() else { return Ok(()) };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let counts = draw_counts(skew, experts, rows, &mut rng);
        let n = 2 * intermediate(units, kinds.1);
        let mut problem = Problem::draw(&counts, spare_rows, (n, k), kinds, Values::Uniform, &mut rng);
        let tokens = Tokens::draw(&mut problem, count, top_k, &mut rng);
        let accumulation = if promoted { Accumulation::Promoted } else { Accumulation::Fast };
        common::timing(seed);
        let scattered = Gated { problem: &problem, tokens: None, function, out };
        let run = |gated: Gated<'_>| gated.run(&device, 128, accumulation, Path::Hopper { blocks }, false);
        let (q, scales) = run(Gated { tokens: Some(&tokens), ..scattered });
        scattered.assert_within_rounding(&q, &scales, accumulation);
        let (wanted, wanted_scales) = run(scattered);
        let bits = |scales: &[f32]| scales.iter().map(|scale| scale.to_bits()).collect::<Vec<_>>();
        prop_assert!(q == wanted && bits(&scales) == bits(&wanted_scales), "they differ");
    }
}

/// The result is the same bit for bit whatever the timing, and from one run to the next.
#[test]
fn deterministic() {
    let Some(device) = hopper() else { return };
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for (k, block_m) in [(528, 8), (400, 16), (256, 16), (528, 128)] {
        let kinds = (AKind::GroupColumnMajor, BKind::Block);
        let problem = Problem::draw(&[5, 0, 140, 16], 3, (512, k), kinds, Values::Uniform, &mut rng);
        let (function, out) = (ActivationFunction::Silu, Out::GroupRowMajor);
        let gated = Gated { problem: &problem, tokens: None, function, out };
        let run = |settled| {
            gated.run(&device, block_m, Accumulation::Promoted, Path::Hopper { blocks: Some(7) }, settled)
        };
        let (first, scales) = run(false);
        let bits = |scales: &[f32]| scales.iter().map(|scale| scale.to_bits()).collect::<Vec<_>>();
        for seed in 1..5 {
            common::timing(seed);
            let (again, again_scales) = run(seed % 2 == 0);
            assert!(
                again == first && bits(&again_scales) == bits(&scales),
                "K = {k}, tiles of {block_m}, seed {seed}"
            );
        }
    }
}

/// What a plan refuses, and in which words.
#[test]
fn refusals_of_plans() {
    type Change = fn(&mut GatedShape, &mut usize, &mut Path, &mut bool);
    const CASES: [(Change, &str); 5] = [
        (|shape, _, _, _| shape.k = 24, "k = 24: must be a positive multiple of 16"),
        (|shape, _, _, _| shape.intermediate = 24, "intermediate = 24: must be a positive multiple of 16"),
        (|_, block_m, _, _| *block_m = 5, "block_m = 5: must be 8, 16, 32, 64 or 128"),
        (
            |_, _, path, _| *path = Path::Portable { blocks: None },
            "path = Portable { blocks: None }: must lead to the Hopper kernels: others have no gated GEMM",
        ),
        (|_, _, _, gathers| *gathers = true, "block_m = 16: must be 128 where rows are gathered"),
    ];
    let Some(device) = hopper() else { return };
    for (change, message) in CASES {
        let mut shape = GatedShape { rows: 20, intermediate: 32, k: 48, experts: 2 };
        let (mut block_m, mut path, mut gathers) = (16, Path::Auto, false);
        change(&mut shape, &mut block_m, &mut path, &mut gathers);
        let options = GemmOptions { path, ..GemmOptions::default() };
        let error = GatedPlan::new(&device, shape, block_m, options, gathers).unwrap_err();
        assert_eq!(error.to_string(), format!("gated_gemm: {message}"));
    }
}

/// What is refused before anything is launched, and in which words.
#[test]
fn refusals() {
    type Change = fn(&mut GatedGemm<'_>);
    const CASES: [(Change, &str); 4] = [
        (
            |g| g.a_scale = regroup(g.a_scale, 0, 1),
            "a_scale = strides 0, 1: must be group-major (`ScaleLayout::group_major`) for the Hopper kernels",
        ),
        (|g| g.a = g.a.slice(16..), "a = 944 elements: must have at least 960"),
        (|g| g.q = SliceMut::empty(g.a.device()), "q = 0 elements: must have at least 640"),
        (
            |g| {
                if let BScale::Channel(scales) = g.b_scale {
                    g.b_scale = BScale::Block(scales);
                }
            },
            "intermediate = 32: must be a positive multiple of 128 with block scales",
        ),
    ];
    let Some(device) = hopper() else { return };
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let problem =
        Problem::draw(&[12, 8], 0, (64, 48), (AKind::Row, BKind::Channel), Values::Uniform, &mut rng);
    let on_device = OnDevice::new(&device, &problem, 16);
    let options = GemmOptions { slab_scales: true, ..GemmOptions::default() };
    let plan = GatedPlan::new(&device, gated_shape(&on_device), 16, options, false).unwrap();
    let (stream, given) = (device.default_stream(), device.upload(&[1f32]).unwrap());
    let mut lists = on_device.lists();
    let mut permutation = lists.permutation(&stream);
    let mut workspace = on_device.workspace(plan.workspace_bytes());
    let mut q = device.zeros::<u8>(20 * 32).unwrap();
    for (change, message) in CASES {
        let (q, permutation) = (q.as_mut_slice().cast(), permutation.reborrow());
        let mut changed = arguments(&on_device, &plan, permutation, &mut workspace, q, &given);
        change(&mut changed);
        let error = gated_gemm(&stream, changed).unwrap_err().to_string();
        assert!(error.starts_with("gated_gemm: ") && error.contains(message), "{error}: {message}");
    }
}

/// The scales of rows as scales per group, of which there is one.
fn regroup(scale: AScale<'_>, row_stride: usize, group_stride: usize) -> AScale<'_> {
    match scale {
        AScale::Row(scales) => AScale::Group { scales, row_stride, group_stride },
        other => other,
    }
}

/// The same where rows are gathered.
#[test]
fn refusals_of_gathered_rows() {
    let Some(device) = hopper() else { return };
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut problem =
        Problem::draw(&[12, 8], 0, (64, 48), (AKind::Row, BKind::Channel), Values::Uniform, &mut rng);
    let tokens = Tokens::draw(&mut problem, 7, 3, &mut rng);
    let on_device = OnDevice::new(&device, &problem, 128);
    let plan = plan(&on_device, true, Accumulation::Fast, Path::Auto);
    let (stream, given) = (device.default_stream(), device.upload(&[1f32]).unwrap());
    let a = device.upload(&tokens.a).unwrap();
    let mut workspace = on_device.workspace(plan.workspace_bytes());
    let mut q = device.zeros::<u8>(20 * 32).unwrap();
    let mut refused = |count: usize, sorted_rows: bool, a_len: usize, scales: usize| {
        let mut lists = on_device.lists();
        (lists.tokens, lists.top_k) = (count, 3);
        // Rows of no token, whatever the number of tokens.
        let rows: Vec<i32> = tokens.sorted_rows.iter().map(|&r| if r < 21 { r } else { -1 }).collect();
        lists.sorted_rows = sorted_rows.then(|| device.upload(&rows).unwrap());
        let (q, permutation) = (q.as_mut_slice().cast(), lists.permutation(&stream));
        let mut changed = arguments(&on_device, &plan, permutation, &mut workspace, q, &given);
        changed.a = a.slice(..a_len);
        changed.a_scale = AScale::Row(on_device.a_scale.slice(..scales));
        gated_gemm(&stream, changed).unwrap_err().to_string()
    };
    for (count, sorted_rows, a_len, scales, message) in [
        (7, true, 48 * 6, 20, "a = 288 elements: must have at least 336 elements"),
        (7, true, 48 * 7, 19, "a_scale = 19 elements: must have at least 20 elements"),
        (8, true, 48 * 7, 20, "a = 336 elements: must have at least 384 elements"),
        (7, false, 48 * 7, 20, "permutation = without `sorted_rows`: must have `sorted_rows` for this"),
    ] {
        assert_eq!(refused(count, sorted_rows, a_len, scales), format!("gated_gemm: {message}"));
    }
}
