//! `quantize` against its definition, bit for bit.

use fp8_moe::ops::permute::ScaleLayout;
use fp8_moe::ops::quantize::{
    Activations, Destinations, Quantize, QuantizeShape, Scheme, quantize, quantize_with_settled_input,
    quantize_workspace_bytes,
};
use fp8_moe::{Buffer, Device, E4m3};
use half::{bf16, f16};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::e4m3;
use super::gemm::Lists;

#[derive(Clone, Copy, Debug)]
pub enum Type {
    Bf16,
    F16,
    F32,
}

pub const TYPES: [Type; 3] = [Type::Bf16, Type::F16, Type::F32];

impl Type {
    /// The value of this type nearest to `x`.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Type::Bf16 => bf16::from_f32(x).to_f32(),
            Type::F16 => f16::from_f32(x).to_f32(),
            Type::F32 => x,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Mode {
    Static(f32),
    Dynamic,
    Token(Option<f32>),
    /// Group size, and whether the groups of a row are far apart (the rows adjacent).
    Group(usize, bool),
}

pub const MODES: [Mode; 6] = [
    Mode::Static(0.013),
    Mode::Dynamic,
    Mode::Token(None),
    Mode::Token(Some(1.5)),
    Mode::Group(128, false),
    Mode::Group(64, true),
];

/// A permutation of `rows * top_k` expanded rows to fewer valid destinations, with padding among them.
#[derive(Clone, Debug)]
pub struct Scatter {
    pub top_k: usize,
    pub capacity: usize,
    pub valid_rows: usize,
    pub inverse: Vec<i32>,
    pub sorted_rows: Vec<i32>,
    pub aligned: bool,
}

/// How rows get their destinations.
#[derive(Clone, Debug)]
pub enum Places {
    Identity,
    Valid(usize),
    Scatter(Scatter),
    /// As `Scatter` for the scales, as `Identity` for the rows that go anywhere.
    Scales(Scatter),
}

#[derive(Clone, Debug)]
pub struct Case {
    pub ty: Type,
    pub rows: usize,
    pub columns: usize,
    pub x: Vec<f32>,
    pub row_weight: Option<Vec<f32>>,
    pub places: Places,
    pub mode: Mode,
}

/// Values of all sizes; with `special`, NaN, infinities, zeros of both signs and subnormals among them.
pub fn draw_values(ty: Type, len: usize, special: bool, rng: &mut ChaCha8Rng) -> Vec<f32> {
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

/// Destinations as `permute` gives them: a permutation, invalid rows behind the valid ones, padding where no
/// row goes.
pub fn draw_scatter(rows: usize, top_k: usize, keep: f64, aligned: bool, rng: &mut ChaCha8Rng) -> Scatter {
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
pub struct Quantized {
    pub q: Vec<u8>,
    pub scales: Vec<u32>,
}

impl Case {
    pub fn q_rows(&self) -> usize {
        if let Places::Scatter(scatter) = &self.places { scatter.capacity } else { self.rows }
    }

    /// Rows that have scales.
    pub fn scale_rows(&self) -> usize {
        match &self.places {
            Places::Identity | Places::Valid(_) => self.rows,
            Places::Scatter(scatter) | Places::Scales(scatter) => scatter.capacity,
        }
    }

    pub fn groups(&self) -> usize {
        if let Mode::Group(size, _) = self.mode { self.columns.div_ceil(size) } else { 1 }
    }

    pub fn layout(&self) -> ScaleLayout {
        match self.mode {
            Mode::Group(_, true) => ScaleLayout { row_stride: 1, group_stride: self.scale_rows() + 3 },
            _ => ScaleLayout::row_major(self.groups()),
        }
    }

    pub fn scales_len(&self) -> usize {
        match self.mode {
            Mode::Static(_) | Mode::Dynamic => 1,
            Mode::Token(_) => self.scale_rows(),
            Mode::Group(..) => self.scale_rows() * self.groups() + 3 * self.groups(),
        }
    }

    /// The destinations of `row`.
    pub fn destinations(&self, row: usize) -> Vec<usize> {
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

    pub fn expected(&self, poison: u8) -> Quantized {
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
    pub fn run(&self, device: &Device, poison: u8, settled: bool) -> Quantized {
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

    pub fn run_on(&self, device: &Device, x: Activations<'_>, poison: u8, settled: bool) -> Quantized {
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
    pub fn check(&self, device: &Device, poison: u8) {
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
pub fn poisoned<T: bytemuck::Pod>(device: &Device, len: usize, byte: u8) -> Buffer<T> {
    let mut buffer = device.uninit(len).unwrap();
    buffer.fill_bytes(byte, &device.default_stream()).unwrap();
    buffer
}

pub fn dense(ty: Type, mode: Mode, rows: usize, columns: usize, seed: u64) -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let x = draw_values(ty, rows * columns, false, &mut rng);
    Case { ty, rows, columns, x, row_weight: None, places: Places::Identity, mode }
}
