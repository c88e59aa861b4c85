//! `activation` against its definition in f64: the scales to the documented error of the functions, the codes
//! exactly wherever that error cannot reach a rounding boundary.

use crate::common;
use crate::common::activation::{FUNCTIONS, factor, gate as activation_of};
use crate::common::gemm::Lists;
use crate::common::{e4m3, portable};
use fp8_moe::ops::activation::{Activation, ActivationFunction, ActivationShape, Requantization, activation};
use fp8_moe::ops::permute::ScaleLayout;
use fp8_moe::ops::quantize::Activations;
use fp8_moe::{Buffer, Device, E4m3, Error};
use half::{bf16, f16};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Relative error of a value that is allowed: the documented bounds for gates of up to 12, and the product
/// with up.
const TOLERANCE: f64 = 1.0 / (1 << 19) as f64;

fn define(function: ActivationFunction, gate: f64, up: f64) -> f64 {
    activation_of(function, gate).0 * factor(function, up)
}

#[derive(Clone, Copy, Debug)]
enum Mode {
    Static(f32),
    Token,
    /// Group size, and whether the groups of a row are far apart (the rows adjacent).
    Group(usize, bool),
}

const MODES: [Mode; 4] = [Mode::Static(0.011), Mode::Token, Mode::Group(128, false), Mode::Group(64, true)];

/// Element types of the input.
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

#[derive(Clone, Debug)]
struct Case {
    ty: Type,
    rows: usize,
    valid_rows: usize,
    intermediate: usize,
    x: Vec<f32>,
    function: ActivationFunction,
    mode: Mode,
}

impl Case {
    /// Gates and ups of all sizes up to about 12; with `special`, NaN among them.
    fn draw(
        (ty, function, mode): (Type, ActivationFunction, Mode),
        (rows, valid_rows, intermediate): (usize, usize, usize),
        special: bool,
        rng: &mut ChaCha8Rng,
    ) -> Case {
        let x = (0..rows * 2 * intermediate)
            .map(|_| {
                if special && rng.random_bool(0.01) {
                    return f32::NAN;
                }
                ty.round(rng.random_range(-1.0..1.0_f32).powi(3) * 12.0)
            })
            .collect();
        Case { ty, rows, valid_rows, intermediate, x, function, mode }
    }

    fn layout(&self) -> ScaleLayout {
        match self.mode {
            Mode::Group(_, true) => ScaleLayout { row_stride: 1, group_stride: self.rows },
            Mode::Group(size, false) => ScaleLayout::row_major(self.intermediate.div_ceil(size)),
            _ => ScaleLayout::row_major(1),
        }
    }

    fn group_size(&self) -> usize {
        if let Mode::Group(size, _) = self.mode { size } else { self.intermediate }
    }

    fn run(&self, device: &Device, poison: u8) -> (Vec<u8>, Vec<f32>) {
        match self.ty {
            Type::Bf16 => {
                let x: Vec<bf16> = self.x.iter().map(|&x| bf16::from_f32(x)).collect();
                self.run_on(device, (&device.upload(&x).unwrap()).into(), poison)
            }
            Type::F16 => {
                let x: Vec<f16> = self.x.iter().map(|&x| f16::from_f32(x)).collect();
                self.run_on(device, (&device.upload(&x).unwrap()).into(), poison)
            }
            Type::F32 => self.run_on(device, (&device.upload(&self.x).unwrap()).into(), poison),
        }
    }

    fn run_on(&self, device: &Device, x: Activations<'_>, poison: u8) -> (Vec<u8>, Vec<f32>) {
        let stream = device.default_stream();
        let mut q: Buffer<E4m3> = poisoned(device, self.rows * self.intermediate, poison);
        let groups = self.intermediate.div_ceil(self.group_size());
        let mut scales: Buffer<f32> = poisoned(device, (self.rows * groups).max(1), poison);
        let mut lists = Lists::of_offsets(device, &[0, 0, self.valid_rows as i64], self.rows);
        let permutation = lists.permutation(&stream);
        let given = device.upload(&[if let Mode::Static(scale) = self.mode { scale } else { 0.0 }]).unwrap();
        let requantization = match self.mode {
            Mode::Static(_) => Requantization::TensorStatic { scale: given.as_slice() },
            Mode::Token => Requantization::Token { scales: scales.as_mut_slice() },
            Mode::Group(group_size, _) => {
                Requantization::Group { group_size, scales: scales.as_mut_slice(), layout: self.layout() }
            }
        };
        let args = Activation {
            x,
            permutation: (self.valid_rows < self.rows).then_some(&permutation),
            gating: self.function.into(),
            requantization,
            q: q.as_mut_slice(),
        };
        activation(&stream, ActivationShape { rows: self.rows, intermediate: self.intermediate }, args)
            .unwrap();
        let q = q.to_vec(&stream).unwrap().into_iter().map(|code| code.0).collect();
        (q, scales.to_vec(&stream).unwrap())
    }

    #[track_caller]
    fn check(&self, device: &Device, poison: u8) {
        let (q, scales) = self.run(device, poison);
        let columns = self.intermediate;
        let what = format!("{:?} {:?} [{}, {columns}]", self.function, self.mode, self.rows);
        for row in 0..self.rows {
            let codes = &q[row * columns..][..columns];
            if row >= self.valid_rows {
                assert!(
                    codes.iter().all(|code| *code == poison),
                    "{what}: row {row} is not valid but written"
                );
                continue;
            }
            let (gate, up) = self.x[row * 2 * columns..][..2 * columns].split_at(columns);
            let values: Vec<f64> =
                (0..columns).map(|i| define(self.function, gate[i].into(), up[i].into())).collect();
            for (group, values) in values.chunks(self.group_size()).enumerate() {
                let layout = self.layout();
                let absmax = values.iter().filter(|v| !v.is_nan()).fold(0f64, |a, v| a.max(v.abs())) as f32;
                let at = row * layout.row_stride + group * layout.group_stride;
                let scale = match self.mode {
                    Mode::Static(scale) => scale,
                    Mode::Token => near(scales[at], e4m3::scale(absmax), &what),
                    Mode::Group(..) => near(scales[at], e4m3::group_scale(absmax), &what),
                };
                for (i, &value) in values.iter().enumerate() {
                    let column = group * self.group_size() + i;
                    let quotient = |value: f64| match self.mode {
                        Mode::Static(scale) => value as f32 * (1.0 / scale),
                        _ => value as f32 / scale,
                    };
                    let code = codes[column];
                    if value.is_nan() {
                        assert_eq!(code, 0x7f, "{what}: [{row}, {column}] must be NaN");
                        continue;
                    }
                    let margin = value.abs() * TOLERANCE;
                    let low = e4m3::decode(e4m3::encode(quotient(value - margin)));
                    let high = e4m3::decode(e4m3::encode(quotient(value + margin)));
                    let actual = e4m3::decode(code);
                    assert!(
                        (low..=high).contains(&actual),
                        "{what}: [{row}, {column}] of gate {} and up {} is {actual}, not in {low}..={high}",
                        gate[column],
                        up[column]
                    );
                }
            }
        }
    }
}

/// `actual`, which must be `expected` to the tolerance.
#[track_caller]
fn near(actual: f32, expected: f32, what: &str) -> f32 {
    let error = (f64::from(actual) / f64::from(expected) - 1.0).abs();
    assert!(error <= TOLERANCE, "{what}: scale {actual:e}, not {expected:e}");
    actual
}

/// A buffer whose old contents must not matter.
fn poisoned<T: bytemuck::Pod>(device: &Device, len: usize, byte: u8) -> Buffer<T> {
    let mut buffer = device.uninit(len).unwrap();
    buffer.fill_bytes(byte, &device.default_stream()).unwrap();
    buffer
}

#[test]
fn functions_to_their_documented_error() {
    let device = common::device();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    // One column: the scale of a group is the value itself over 448, in full precision down to 1e-10.
    let rows = 8192;
    for function in FUNCTIONS {
        let gates: Vec<f32> =
            (0..rows).map(|_| f16::from_f32(rng.random_range(-16.0..16.0_f32)).to_f32()).collect();
        let x = gates.iter().flat_map(|&gate| [gate, 1.0]).collect();
        let mode = Mode::Group(128, false);
        let case = Case { ty: Type::F16, rows, valid_rows: rows, intermediate: 1, x, function, mode };
        let (_, scales) = case.run(&device, 0);
        let mut largest = 0f64;
        for (&gate, &scale) in gates.iter().zip(&scales) {
            let value = define(function, gate.into(), 1.0).abs();
            if value < 2e-10 {
                continue;
            }
            let (_, exponent) = activation_of(function, gate.into());
            let bound = (8.0 + 2.0 * exponent.abs()) * 2f64.powi(-23);
            let error = (f64::from(scale) * 448.0 / value - 1.0).abs();
            largest = largest.max(error / bound);
            assert!(error <= bound, "{function:?} of {gate}: {:e}, not {value:e}", scale * 448.0);
        }
        eprintln!("{function:?}: {largest:.2} of the bound");
    }
}

#[test]
fn edge_shapes() {
    let device = common::device();
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for intermediate in [1, 7, 8, 64, 127, 128, 136, 192, 257, 768, 1025, 2056] {
        for (i, mode) in MODES.into_iter().enumerate() {
            let function = FUNCTIONS[(i + intermediate) % FUNCTIONS.len()];
            let kind = (TYPES[intermediate % 3], function, mode);
            Case::draw(kind, (5, 4, intermediate), false, &mut rng).check(&device, 0xff);
        }
    }
}

#[test]
fn many_and_long_rows() {
    let device = common::device();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for mode in MODES {
        let kind = (Type::Bf16, ActivationFunction::Silu, mode);
        // More rows than the grid has warps or blocks; and past what the per-row kernel keeps in shared
        // memory.
        Case::draw(kind, (9000, 8901, 8), false, &mut rng).check(&device, 0);
        Case::draw(kind, (2, 2, 16384 + 16), false, &mut rng).check(&device, 0);
    }
}

#[test]
fn older_family() {
    let device = portable();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for (i, mode) in MODES.into_iter().enumerate() {
        for (ty, intermediate) in TYPES.into_iter().zip([256, 77, 768]) {
            let kind = (ty, FUNCTIONS[i], mode);
            Case::draw(kind, (5, 4, intermediate), false, &mut rng).check(&device, 0xff);
        }
    }
}

#[test]
fn infinities() {
    let device = common::device();
    // As the formulas have it: infinity times 0 is NaN.
    let cases = [
        (ActivationFunction::Silu, f32::INFINITY, 1.0, 0x7e),
        (ActivationFunction::Silu, f32::NEG_INFINITY, 1.0, 0x7f),
        (ActivationFunction::Silu, 1.0, f32::NEG_INFINITY, 0xfe),
        (ActivationFunction::Silu, -200.0, 1.0, 0x80),
        (ActivationFunction::Gelu, f32::INFINITY, 1.0, 0x7e),
        (ActivationFunction::Gelu, f32::NEG_INFINITY, 1.0, 0x7f),
        (ActivationFunction::Gelu, -60000.0, 1.0, 0x80),
        (ActivationFunction::GeluTanh, f32::INFINITY, 1.0, 0x7e),
        (ActivationFunction::GeluTanh, -60000.0, 1.0, 0x80),
        (ActivationFunction::SwigluOai, f32::INFINITY, f32::INFINITY, e4m3::encode(56.0)),
        (ActivationFunction::SwigluOai, f32::NAN, 1.0, 0x7f),
        (ActivationFunction::SwigluOai, 1.0, f32::NAN, 0x7f),
        (ActivationFunction::Relu2, f32::NAN, 1.0, 0x7f),
        (ActivationFunction::Relu2, f32::INFINITY, 2.0, 0x7e),
        (ActivationFunction::Relu2, f32::NEG_INFINITY, 2.0, 0),
        (ActivationFunction::Relu2, -3.0, 2.0, 0),
        (ActivationFunction::Relu2, 3.0, 2.0, e4m3::encode(6.0)),
    ];
    for (function, gate, up, code) in cases {
        let (x, mode) = (vec![gate, up], Mode::Static(1.0));
        let case = Case { ty: Type::F16, rows: 1, valid_rows: 1, intermediate: 1, x, function, mode };
        assert_eq!(case.run(&device, 0).0, [code], "{function:?} of {gate} and {up}");
    }
}

#[test]
fn no_rows() {
    let device = common::device();
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for mode in MODES {
        let kind = (Type::Bf16, ActivationFunction::Silu, mode);
        Case::draw(kind, (0, 0, 40), false, &mut rng).check(&device, 0xee);
        Case::draw(kind, (3, 0, 40), false, &mut rng).check(&device, 0xee);
    }
}

proptest! {
    #![proptest_config(common::cases(32))]

    #[test]
    fn anything(
        seed: u64,
        rows in 1..24_usize,
        intermediate in prop_oneof![1..70_usize, 1..600_usize, (1..80_usize).prop_map(|n| n * 8)],
        ty in prop::sample::select(&TYPES),
        function in prop::sample::select(&FUNCTIONS),
        mode in prop::sample::select(&MODES),
        special: bool,
        poison: u8,
    ) {
        common::timing(seed);
        let device = common::device();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let valid_rows = rng.random_range(0..=rows);
        let case = Case::draw((ty, function, mode), (rows, valid_rows, intermediate), special, &mut rng);
        case.check(&device, poison);
    }
}

#[test]
fn refusals_name_argument_value_and_rule() {
    let device = common::device();
    let stream = device.default_stream();
    let x: Buffer<bf16> = device.zeros(64).unwrap();
    let scale: Buffer<f32> = device.zeros(1).unwrap();
    let mut q: Buffer<E4m3> = device.zeros(31).unwrap();
    let mut refusal = |rows, intermediate, x: Activations<'_>| {
        let requantization = Requantization::TensorStatic { scale: scale.as_slice() };
        let gating = ActivationFunction::Silu.into();
        let args = Activation { x, permutation: None, gating, requantization, q: q.as_mut_slice() };
        match activation(&stream, ActivationShape { rows, intermediate }, args) {
            Err(error @ Error::Argument { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refusal(2, 0, (&x).into()), "activation: intermediate = 0: must be in 1..=16776960");
    assert_eq!(refusal(2, 17, (&x).into()), "activation: x = 64 elements: must have at least 68 elements");
    assert_eq!(refusal(2, 16, (&x).into()), "activation: q = 31 elements: must have at least 32 elements");
}
