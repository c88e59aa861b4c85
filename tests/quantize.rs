//! `quantize` against its definition, bit for bit: every scheme, element type and destination, in shapes with tails.

mod common;

use common::e4m3;
use common::gemm::Lists;
use fp8_moe::ops::permute::ScaleLayout;
use fp8_moe::ops::quantize::{
    Activations, Destinations, Quantize, QuantizeShape, Scheme, quantize, quantize_with_settled_input,
    quantize_workspace_bytes,
};
use fp8_moe::{Buffer, Device, DeviceSpec, E4m3, Family};
use half::{bf16, f16};
use proptest::prelude::*;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[derive(Clone, Copy, Debug)]
enum Type {
    Bf16,
    F16,
    F32,
}

const TYPES: [Type; 3] = [Type::Bf16, Type::F16, Type::F32];

impl Type {
    /// The value of this type nearest to `x`.
    fn round(self, x: f32) -> f32 {
        match self {
            Type::Bf16 => bf16::from_f32(x).to_f32(),
            Type::F16 => f16::from_f32(x).to_f32(),
            Type::F32 => x,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Mode {
    Static(f32),
    Dynamic,
    Token(Option<f32>),
    /// Group size, and whether the groups of a row are far apart (the rows adjacent).
    Group(usize, bool),
}

const MODES: [Mode; 6] = [
    Mode::Static(0.013),
    Mode::Dynamic,
    Mode::Token(None),
    Mode::Token(Some(1.5)),
    Mode::Group(128, false),
    Mode::Group(64, true),
];

/// A permutation of `rows * top_k` expanded rows to fewer valid destinations, with padding among them.
#[derive(Clone, Debug)]
struct Scatter {
    top_k: usize,
    capacity: usize,
    valid_rows: usize,
    inverse: Vec<i32>,
    sorted_rows: Vec<i32>,
    aligned: bool,
}

/// How rows get their destinations.
#[derive(Clone, Debug)]
enum Places {
    Identity,
    Valid(usize),
    Scatter(Scatter),
    /// As `Scatter` for the scales, as `Identity` for the rows that go anywhere.
    Scales(Scatter),
}

#[derive(Clone, Debug)]
struct Case {
    ty: Type,
    rows: usize,
    columns: usize,
    x: Vec<f32>,
    row_weight: Option<Vec<f32>>,
    places: Places,
    mode: Mode,
}

/// Values of all sizes; with `special`, NaN, infinities, zeros of both signs and subnormals among them.
fn draw_values(ty: Type, len: usize, special: bool, rng: &mut ChaCha8Rng) -> Vec<f32> {
    const SPECIAL: [f32; 10] =
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1e-40, -1e-45, 3e38, -65504.0, 1e-8];
    let spread = rng.random_range(0.0..3.0_f32);
    (0..len)
        .map(|_| {
            if special && rng.random_bool(0.02) {
                return ty.round(SPECIAL[rng.random_range(0..SPECIAL.len())]);
            }
            ty.round((rng.random::<f32>() - 0.5) * (rng.random_range(-spread..=spread)).exp())
        })
        .collect()
}

/// Destinations as `permute` gives them: a permutation, invalid rows behind the valid ones, padding where no row goes.
fn draw_scatter(rows: usize, top_k: usize, keep: f64, aligned: bool, rng: &mut ChaCha8Rng) -> Scatter {
    let expanded = rows * top_k;
    let mut r: Vec<usize> = (0..expanded).collect();
    r.shuffle(rng);
    let valid = r.iter().filter(|_| rng.random_bool(keep)).count();
    let padding = if aligned { rng.random_range(0..70) } else { 0 };
    let valid_rows = valid + padding;
    let mut taken: Vec<bool> = (0..valid_rows).map(|i| i < valid).collect();
    taken.shuffle(rng);
    let mut sorted_rows = vec![expanded as i32; expanded + padding];
    let mut next = r.into_iter();
    for (row, _) in taken.iter().enumerate().filter(|(_, taken)| **taken) {
        sorted_rows[row] = next.next().unwrap() as i32;
    }
    for (row, r) in (valid_rows..).zip(next) {
        sorted_rows[row] = r as i32;
    }
    let mut inverse = vec![-1; expanded];
    for (row, &r) in sorted_rows.iter().enumerate().filter(|&(_, &r)| r < expanded as i32) {
        inverse[r as usize] = row as i32;
    }
    Scatter { top_k, capacity: sorted_rows.len(), valid_rows, inverse, sorted_rows, aligned }
}

/// All that `quantize` writes, over a background of `poison`.
#[derive(PartialEq)]
struct Quantized {
    q: Vec<u8>,
    scales: Vec<u32>,
}

impl Case {
    fn q_rows(&self) -> usize {
        if let Places::Scatter(scatter) = &self.places { scatter.capacity } else { self.rows }
    }

    /// Rows that have scales.
    fn scale_rows(&self) -> usize {
        match &self.places {
            Places::Identity | Places::Valid(_) => self.rows,
            Places::Scatter(scatter) | Places::Scales(scatter) => scatter.capacity,
        }
    }

    fn groups(&self) -> usize {
        if let Mode::Group(size, _) = self.mode { self.columns.div_ceil(size) } else { 1 }
    }

    fn layout(&self) -> ScaleLayout {
        match self.mode {
            Mode::Group(_, true) => ScaleLayout { row_stride: 1, group_stride: self.scale_rows() + 3 },
            _ => ScaleLayout::row_major(self.groups()),
        }
    }

    fn scales_len(&self) -> usize {
        match self.mode {
            Mode::Static(_) | Mode::Dynamic => 1,
            Mode::Token(_) => self.scale_rows(),
            Mode::Group(..) => self.scale_rows() * self.groups() + 3 * self.groups(),
        }
    }

    /// The destinations of `row`.
    fn destinations(&self, row: usize) -> Vec<usize> {
        match &self.places {
            Places::Identity => vec![row],
            Places::Valid(valid) => (row < *valid).then_some(row).into_iter().collect(),
            Places::Scatter(scatter) | Places::Scales(scatter) => scatter.inverse[row * scatter.top_k..]
                [..scatter.top_k]
                .iter()
                .map(|&destination| destination as usize)
                .filter(|&destination| destination < scatter.valid_rows)
                .collect(),
        }
    }

    fn expected(&self, poison: u8) -> Quantized {
        let mut q = vec![poison; self.q_rows() * self.columns];
        let mut scales = vec![u32::from_ne_bytes([poison; 4]); self.scales_len()];
        let layout = self.layout();
        let weighted = |row: usize| -> Vec<f32> {
            let weight = self.row_weight.as_ref().map(|weight| weight[row]);
            let values = &self.x[row * self.columns..][..self.columns];
            values.iter().map(|value| weight.map_or(*value, |weight| self.ty.round(value * weight))).collect()
        };
        let tensor = match self.mode {
            Mode::Static(scale) => scale,
            _ => {
                let rows = (0..self.rows).filter(|&row| !self.destinations(row).is_empty());
                e4m3::scale(rows.map(|row| e4m3::absmax(&weighted(row))).fold(0.0, f32::max))
            }
        };
        if let (Mode::Static(_) | Mode::Dynamic, true) = (self.mode, self.rows > 0) {
            scales[0] = tensor.to_bits();
        }
        // The values to row `place`, if there is one, and their scales to `row`.
        let mut store = |place: Option<usize>, row: usize, values: &[f32]| {
            let groups = match self.mode {
                Mode::Group(size, _) => values.chunks(size).collect(),
                _ => vec![values],
            };
            let mut codes = vec![];
            for (group, values) in groups.into_iter().enumerate() {
                let absmax = e4m3::absmax(values);
                let scale = match self.mode {
                    Mode::Static(_) | Mode::Dynamic => {
                        codes.extend(values.iter().map(|value| e4m3::encode(value * (1.0 / tensor))));
                        continue;
                    }
                    Mode::Token(limit) => e4m3::scale(limit.map_or(absmax, |limit| absmax.min(limit))),
                    Mode::Group(..) => e4m3::group_scale(absmax),
                };
                codes.extend(values.iter().map(|value| e4m3::encode(value / scale)));
                scales[row * layout.row_stride + group * layout.group_stride] = scale.to_bits();
            }
            if let Some(place) = place {
                q[place * self.columns..][..self.columns].copy_from_slice(&codes);
            }
        };
        let rows_stay = matches!(self.places, Places::Scales(_));
        for row in 0..self.rows {
            for destination in self.destinations(row) {
                store(Some(if rows_stay { row } else { destination }), destination, &weighted(row));
            }
        }
        if let Places::Scatter(scatter) | Places::Scales(scatter) = &self.places
            && scatter.aligned
            && self.rows > 0
        {
            for row in (0..scatter.valid_rows)
                .filter(|&row| scatter.sorted_rows[row] as usize == scatter.inverse.len())
            {
                store((!rows_stay).then_some(row), row, &vec![0.0; self.columns]);
            }
        }
        Quantized { q, scales }
    }

    /// `settled`: `x` counts as complete since before the preceding kernel.
    fn run(&self, device: &Device, poison: u8, settled: bool) -> Quantized {
        match self.ty {
            Type::Bf16 => {
                let x: Vec<bf16> = self.x.iter().map(|&x| bf16::from_f32(x)).collect();
                self.run_on(device, (&device.upload(&x).unwrap()).into(), poison, settled)
            }
            Type::F16 => {
                let x: Vec<f16> = self.x.iter().map(|&x| f16::from_f32(x)).collect();
                self.run_on(device, (&device.upload(&x).unwrap()).into(), poison, settled)
            }
            Type::F32 => self.run_on(device, (&device.upload(&self.x).unwrap()).into(), poison, settled),
        }
    }

    fn run_on(&self, device: &Device, x: Activations<'_>, poison: u8, settled: bool) -> Quantized {
        let stream = device.default_stream();
        let mut q: Buffer<E4m3> = poisoned(device, self.q_rows() * self.columns, poison);
        let mut scales: Buffer<f32> = poisoned(device, self.scales_len(), poison);
        let mut workspace: Buffer<u8> = poisoned(device, quantize_workspace_bytes(), poison);
        let row_weight = self.row_weight.as_ref().map(|weight| device.upload(weight).unwrap());
        let mut lists = match &self.places {
            Places::Identity => Lists::of_offsets(device, &[0], 0),
            Places::Valid(valid) => Lists::of_offsets(device, &[0, *valid as i64], self.rows),
            Places::Scatter(scatter) | Places::Scales(scatter) => Lists {
                tokens: self.rows,
                top_k: scatter.top_k,
                sorted_rows: Some(device.upload(&scatter.sorted_rows).unwrap()),
                inverse: Some(device.upload(&scatter.inverse).unwrap()),
                ..Lists::of_offsets(device, &[0, 0, scatter.valid_rows as i64], scatter.capacity)
            },
        };
        let permutation = &lists.permutation(&stream);
        let destinations = match &self.places {
            Places::Identity => Destinations::Identity,
            Places::Valid(_) => Destinations::Valid { permutation },
            Places::Scatter(scatter) => Destinations::Scatter { permutation, fill_padding: scatter.aligned },
            Places::Scales(scatter) => Destinations::Scales { permutation, fill_padding: scatter.aligned },
        };
        if let Mode::Static(scale) = self.mode
            && self.rows > 0
        {
            scales.copy_from(&[scale], &stream).unwrap();
        }
        let scheme = match self.mode {
            Mode::Static(_) => Scheme::TensorStatic { scale: scales.as_slice() },
            Mode::Dynamic => {
                Scheme::TensorDynamic { scale: scales.as_mut_slice(), workspace: workspace.as_mut_slice() }
            }
            Mode::Token(absmax_limit) => Scheme::Token { scales: scales.as_mut_slice(), absmax_limit },
            Mode::Group(group_size, _) => {
                Scheme::Group { group_size, scales: scales.as_mut_slice(), layout: self.layout() }
            }
        };
        // Of any rows that the host knows, whether they go anywhere or not.
        let clears = !matches!(self.places, Places::Valid(_));
        let mut cleared: Buffer<f32> = poisoned(device, self.rows * self.columns, poison);
        let args = Quantize {
            x,
            row_weight: row_weight.as_ref().map(|weight| weight.as_slice()),
            destinations,
            scheme,
            q: q.as_mut_slice(),
            cleared: clears.then(|| cleared.as_mut_slice()),
        };
        let shape = QuantizeShape { rows: self.rows, columns: self.columns };
        let enqueued = if settled {
            // SAFETY: a copy from the host precedes; everything before it has ended.
            unsafe { quantize_with_settled_input(&stream, shape, args) }
        } else {
            quantize(&stream, shape, args)
        };
        enqueued.unwrap();
        assert!(
            !clears || cleared.to_vec(&stream).unwrap().iter().all(|x| x.to_bits() == 0),
            "{:?}",
            self.mode
        );
        Quantized {
            q: q.to_vec(&stream).unwrap().into_iter().map(|code| code.0).collect(),
            scales: scales.to_vec(&stream).unwrap().into_iter().map(f32::to_bits).collect(),
        }
    }

    #[track_caller]
    fn check(&self, device: &Device, poison: u8) {
        let (expected, actual) = (self.expected(poison), self.run(device, poison, false));
        let shape = format!("{:?} {:?} [{}, {}]", self.mode, self.ty, self.rows, self.columns);
        for (i, (actual, expected)) in actual.scales.iter().zip(&expected.scales).enumerate() {
            let (a, e) = (f32::from_bits(*actual), f32::from_bits(*expected));
            assert!(actual == expected, "{shape}: scale {i} is {a:e}, not {e:e}");
        }
        for (i, (actual, expected)) in actual.q.iter().zip(&expected.q).enumerate() {
            let (row, column) = (i / self.columns, i % self.columns);
            assert!(actual == expected, "{shape}: q[{row}, {column}] is {actual:#04x}, not {expected:#04x}");
        }
        let settled = self.run(device, poison, true);
        assert!(settled.q == actual.q && settled.scales == actual.scales, "{shape}: settled rows differ");
    }
}

/// A buffer whose old contents must not matter.
fn poisoned<T: bytemuck::Pod>(device: &Device, len: usize, byte: u8) -> Buffer<T> {
    let mut buffer = device.uninit(len).unwrap();
    buffer.fill_bytes(byte, &device.default_stream()).unwrap();
    buffer
}

fn dense(ty: Type, mode: Mode, rows: usize, columns: usize, seed: u64) -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let x = draw_values(ty, rows * columns, false, &mut rng);
    Case { ty, rows, columns, x, row_weight: None, places: Places::Identity, mode }
}

#[test]
fn acceptance_grid() {
    let device = common::device();
    for columns in [17, 1024, 1025, 1026, 5137, 8193] {
        for rows in [1, 7] {
            for (i, mode) in MODES.into_iter().enumerate() {
                let ty = TYPES[(i + rows + columns) % 3];
                dense(ty, mode, rows, columns, columns as u64).check(&device, 0xff);
            }
        }
    }
}

#[test]
fn many_rows() {
    let device = common::device();
    // More rows than the grid has warps or blocks, so that they are strided over.
    for mode in MODES {
        dense(Type::Bf16, mode, 4096, 17, 1).check(&device, 0);
        dense(Type::Bf16, mode, 4096, 264, 2).check(&device, 0);
    }
}

#[test]
fn long_rows() {
    let device = common::device();
    // Past what the per-row kernels keep in shared memory.
    for columns in [16384 + 8, 20001] {
        dense(Type::Bf16, Mode::Token(None), 2, columns, 3).check(&device, 0xff);
        dense(Type::F32, Mode::Token(Some(0.2)), 1, columns, 4).check(&device, 0xff);
    }
}

#[test]
fn division_is_ieee_where_it_decides() {
    let device = common::device();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    // Values within a few units of scale times every e4m3 value and midpoint: the quotient's last bit decides.
    let marks: Vec<f32> = (0..0x7e)
        .flat_map(|c| {
            let (low, high) = (e4m3::decode(c), e4m3::decode(c + 1));
            [low, (low + high) / 2.0]
        })
        .collect();
    for round in 0..24 {
        let absmax = (1.0 + rng.random::<f32>()) * 2f32.powi(rng.random_range(-9..20));
        let mode = [Mode::Token(None), Mode::Group(128, false), Mode::Token(Some(absmax / 3.0))][round % 3];
        let scale = match mode {
            Mode::Token(Some(limit)) => e4m3::scale(limit),
            Mode::Token(None) => e4m3::scale(absmax),
            _ => e4m3::group_scale(absmax),
        };
        let mut x = vec![];
        for mark in &marks {
            for ulps in -3..=3 {
                let near = mark * scale;
                let bits = (near.to_bits() as i32 + ulps).max(0) as u32;
                x.push(f32::from_bits(bits).min(absmax) * if rng.random() { 1.0 } else { -1.0 });
            }
        }
        let columns = 128;
        x.resize(x.len().next_multiple_of(columns), -0.0);
        for row in x.chunks_mut(columns) {
            row[rng.random_range(0..columns)] = absmax;
        }
        let rows = x.len() / columns;
        let case = Case { ty: Type::F32, rows, columns, x, row_weight: None, places: Places::Identity, mode };
        case.check(&device, 0xff);
    }
}

/// The kernels of the older family, which newer GPUs run as well.
fn portable() -> Device {
    common::device();
    Device::open_family(DeviceSpec::Auto, Family::Sm89).unwrap()
}

#[test]
fn older_family() {
    let device = portable();
    for (i, mode) in MODES.into_iter().enumerate() {
        dense(TYPES[i % 3], mode, 5, 1024, 6).check(&device, 0xff);
        dense(TYPES[(i + 1) % 3], mode, 5, 77, 7).check(&device, 0xff);
    }
}

#[test]
fn no_rows() {
    let device = common::device();
    for mode in MODES {
        for places in [Places::Identity, Places::Valid(0), {
            let mut rng = ChaCha8Rng::seed_from_u64(0);
            Places::Scatter(draw_scatter(0, 2, 1.0, false, &mut rng))
        }] {
            let case =
                Case { ty: Type::Bf16, rows: 0, columns: 40, x: vec![], row_weight: None, places, mode };
            case.check(&device, 0xee);
        }
    }
}

/// The kernels' division, on the host: whether it compares with every e4m3 value and midpoint as the IEEE quotient does, for
/// every `stride`-th significand of the scale, all five-bit significands m, and the values within six units of scale times m.
fn division_agrees(stride: usize) {
    for bits in (0x3f80_0000..0x4000_0000_u32).step_by(stride) {
        let scale = f32::from_bits(bits);
        let reciprocal = 1.0 / scale;
        for sixteenths in 0..16_u8 {
            let mark = 1.0 + f32::from(sixteenths) / 16.0;
            for ulps in 0..=12 {
                let x = f32::from_bits((mark * scale).to_bits() + ulps - 6);
                let quotient = x * reciprocal;
                let residual = scale.mul_add(quotient, -x);
                let quotient = (-reciprocal).mul_add(residual, quotient);
                assert_eq!(quotient.partial_cmp(&mark), (x / scale).partial_cmp(&mark), "{x:e} / {scale:e}");
            }
        }
    }
}

#[test]
fn division_agrees_for_some_significands() {
    division_agrees(1021);
}

#[test]
#[ignore = "a minute: every significand"]
fn division_agrees_for_every_significand() {
    division_agrees(1);
}

proptest! {
    #![proptest_config(common::cases(64))]

    #[test]
    fn anything(
        seed: u64,
        rows in 1..40_usize,
        columns in prop_oneof![1..70_usize, 1..700_usize, (1..90_usize).prop_map(|n| n * 8)],
        ty in prop::sample::select(&TYPES),
        mode in prop::sample::select(&MODES),
        places in 0..6_usize,
        top_k in 1..10_usize,
        keep in prop::sample::select(&[0.0, 0.1, 0.7, 1.0]),
        weighted: bool,
        special: bool,
        poison: u8,
    ) {
        common::timing(seed);
        let device = common::device();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let places = match places {
            0 => Places::Identity,
            1 => Places::Valid(rng.random_range(0..=rows)),
            2 | 3 => Places::Scatter(draw_scatter(rows, top_k, keep, places == 3, &mut rng)),
            _ => Places::Scales(draw_scatter(rows, top_k, keep, places == 5, &mut rng)),
        };
        let x = draw_values(ty, rows * columns, special, &mut rng);
        let row_weight = weighted.then(|| (0..rows).map(|_| rng.random()).collect());
        Case { ty, rows, columns, x, row_weight, places, mode }.check(&device, poison);
    }
}

#[test]
fn many_slots_and_invalid_destinations() {
    let device = common::device();
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    // More slots than a warp has lanes; and destinations below 0, which are as invalid as those past the last.
    let mut scatter = draw_scatter(5, 45, 0.4, true, &mut rng);
    let valid_rows = scatter.valid_rows as i32;
    for destination in scatter.inverse.iter_mut().filter(|destination| **destination >= valid_rows) {
        *destination = [-1, i32::MIN, i32::MAX, valid_rows][rng.random_range(0..4)];
    }
    for mode in MODES {
        let x = draw_values(Type::Bf16, 5 * 300, false, &mut rng);
        for places in [Places::Scatter(scatter.clone()), Places::Scales(scatter.clone())] {
            let x = x.clone();
            Case { ty: Type::Bf16, rows: 5, columns: 300, x, row_weight: None, places, mode }
                .check(&device, 1);
        }
    }
}
