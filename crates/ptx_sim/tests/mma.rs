//! `mma`, `ldmatrix` and `stmatrix` against the element formulas of the PTX ISA.
//!
//! The ISA gives, for every shape, row and column of element `i` of the fragment in lane `lane`. The tests
//! place elements by those formulas alone, multiply in exact integer arithmetic, and round once with the
//! compiler's own `i128 -> f32` conversion.

// Lanes, rows and columns are numbers of the ISA's formulas; they index several things at once.
#![allow(clippy::needless_range_loop)]

use proptest::prelude::*;
use ptx_sim::formats::*;
use ptx_sim::ldmatrix;
use ptx_sim::mma::{self, Lanes, Operand, Truncation};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// ISA formulas for one multiplicand: (row or column, k) of element `i` in a lane.
type Formula = fn(group: usize, thread: usize, i: usize) -> (usize, usize);

/// One shape of `mma` as the ISA describes it.
struct Shape {
    /// Elements per register.
    packed: usize,
    a: Formula,
    b: Formula,
}

/// "Matrix fragments for mma.m16n8k32", 8-bit types.
const K32_8BIT: Shape = Shape {
    packed: 4,
    a: |group, thread, i| {
        let row = if i < 4 || (8..12).contains(&i) { group } else { group + 8 };
        (row, thread * 4 + (i & 3) + if i >= 8 { 16 } else { 0 })
    },
    b: |group, thread, i| (group, thread * 4 + (i & 3) + if i >= 4 { 16 } else { 0 }),
};

/// "Matrix fragments for mma.m16n8k16", 8-bit types.
const K16_8BIT: Shape = Shape {
    packed: 4,
    a: |group, thread, i| (if i < 4 { group } else { group + 8 }, thread * 4 + (i & 3)),
    b: |group, thread, i| (group, thread * 4 + i),
};

/// "Matrix fragments for mma.m16n8k16", 16-bit types.
const K16_16BIT: Shape = Shape {
    packed: 2,
    a: |group, thread, i| {
        let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
        (row, thread * 2 + (i & 1) + if i >= 4 { 8 } else { 0 })
    },
    b: |group, thread, i| (group, thread * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }),
};

/// "Matrix fragments for mma.m16n8k8", 16-bit types.
const K8_16BIT: Shape = Shape {
    packed: 2,
    a: |group, thread, i| (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1)),
    b: |group, thread, i| (group, thread * 2 + i),
};

/// "Matrix fragments for mma.m16n8k8", .tf32.
const K8_TF32: Shape = Shape {
    packed: 1,
    a: |group, thread, i| {
        (if i == 0 || i == 2 { group } else { group + 8 }, if i < 2 { thread } else { thread + 4 })
    },
    b: |group, thread, i| (group, if i == 0 { thread } else { thread + 4 }),
};

/// "Matrix fragments for mma.m16n8k4", .tf32.
const K4_TF32: Shape = Shape {
    packed: 1,
    a: |group, thread, i| (if i == 0 { group } else { group + 8 }, thread),
    b: |group, thread, _| (group, thread),
};

/// Row and column of element `i` of the accumulator fragment; the same for all shapes.
fn accumulator(lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1))
}

/// Registers of a multiplicand whose element at (row, k) has the bits `element(row, k)`.
fn fragment<const R: usize>(
    shape: &Shape,
    formula: Formula,
    element: impl Fn(usize, usize) -> u32,
) -> [Lanes; R] {
    let width = 32 / shape.packed;
    let mut registers = [[0; 32]; R];
    for lane in 0..32 {
        for i in 0..R * shape.packed {
            let (row, k) = formula(lane >> 2, lane % 4, i);
            registers[i / shape.packed][lane] |= element(row, k) << (width * (i % shape.packed));
        }
    }
    registers
}

/// A problem with random elements: bits and, in units of `unit`, values.
struct Problem {
    a: Vec<u32>,
    b: Vec<u32>,
    c: Vec<f32>,
    k: usize,
}

impl Problem {
    fn new(k: usize, rng: &mut SmallRng, element: impl Fn(&mut SmallRng) -> u32) -> Problem {
        let a = (0..16 * k).map(|_| element(rng)).collect();
        let b = (0..8 * k).map(|_| element(rng)).collect();
        // Accumulators are whole multiples of 2^-40, some far larger than any product.
        let c = (0..128).map(|_| {
            rng.random_range(-0x7f_ffff..0x7f_ffffi32) as f32 * 2f32.powi(rng.random_range(-40..10))
        });
        Problem { a, b, c: c.collect(), k }
    }

    fn a(&self, row: usize, k: usize) -> u32 {
        self.a[row * self.k + k]
    }

    fn b(&self, column: usize, k: usize) -> u32 {
        self.b[column * self.k + k]
    }

    fn c(&self) -> [Lanes; 4] {
        let mut registers = [[0; 32]; 4];
        for (i, register) in registers.iter_mut().enumerate() {
            for (lane, bits) in register.iter_mut().enumerate() {
                let (row, column) = accumulator(lane, i);
                *bits = self.c[row * 8 + column].to_bits();
            }
        }
        registers
    }

    /// The exact result, rounded once, from element values that are multiples of 2^-20.
    fn expected(&self, a_value: impl Fn(u32) -> f32, b_value: impl Fn(u32) -> f32) -> Vec<f32> {
        let units = |x: f32| (f64::from(x) * 2f64.powi(20)) as i128;
        let cell = |row: usize, column: usize| {
            let products =
                (0..self.k).map(|k| units(a_value(self.a(row, k))) * units(b_value(self.b(column, k))));
            let c = (f64::from(self.c[row * 8 + column]) * 2f64.powi(40)) as i128;
            (products.sum::<i128>() + c) as f32 * 2f32.powi(-40)
        };
        (0..16).flat_map(|row| (0..8).map(move |column| (row, column))).map(|(r, c)| cell(r, c)).collect()
    }
}

fn assert_fragment(d: &[Lanes; 4], expected: &[f32], what: &str) {
    for (i, register) in d.iter().enumerate() {
        for (lane, bits) in register.iter().enumerate() {
            let (row, column) = accumulator(lane, i);
            let expected = expected[row * 8 + column];
            assert_eq!(*bits, expected.to_bits(), "{what}: ({row}, {column}) is {expected:e}");
        }
    }
}

/// A finite FP8 byte.
fn finite(rng: &mut SmallRng, value: fn(u8) -> u32) -> u32 {
    loop {
        let code: u8 = rng.random();
        if f32::from_bits(value(code)).is_finite() {
            return code.into();
        }
    }
}

fn fp8_value(operand: Operand) -> fn(u8) -> u32 {
    if operand == Operand::E4m3 { e4m3_to_f32 } else { e5m2_to_f32 }
}

#[test]
fn fp8_k32_is_exact_in_every_combination_of_types() {
    let rng = &mut SmallRng::seed_from_u64(1);
    for (a_type, b_type) in [
        (Operand::E4m3, Operand::E4m3),
        (Operand::E4m3, Operand::E5m2),
        (Operand::E5m2, Operand::E4m3),
        (Operand::E5m2, Operand::E5m2),
    ] {
        for _ in 0..20 {
            // Half of the e5m2 range keeps every partial sum within the 53 bits of the definition.
            let pick = |operand: Operand, code: u32| match operand {
                Operand::E5m2 => code & 0xbf,
                _ => code,
            };
            let mut problem = Problem::new(32, rng, |rng| finite(rng, e4m3_to_f32));
            problem.a.iter_mut().for_each(|code| *code = pick(a_type, *code));
            problem.b.iter_mut().for_each(|code| *code = pick(b_type, *code));
            let a = fragment(&K32_8BIT, K32_8BIT.a, |row, k| problem.a(row, k));
            let b = fragment(&K32_8BIT, K32_8BIT.b, |column, k| problem.b(column, k));
            let value = |operand| move |code: u32| f32::from_bits(fp8_value(operand)(code as u8));
            let expected = problem.expected(value(a_type), value(b_type));
            let d = mma::m16n8k32(a_type, b_type, &a, &b, &problem.c());
            assert_fragment(&d, &expected, &format!("{a_type:?} x {b_type:?}"));
            if (a_type, b_type) == (Operand::E4m3, Operand::E4m3) {
                assert_eq!(mma::m16n8k32_e4m3(&a, &b, &problem.c()), d);
            }
        }
    }
}

#[test]
fn fp8_k16_is_exact() {
    let rng = &mut SmallRng::seed_from_u64(2);
    for _ in 0..20 {
        let problem = Problem::new(16, rng, |rng| finite(rng, e4m3_to_f32));
        let a = fragment(&K16_8BIT, K16_8BIT.a, |row, k| problem.a(row, k));
        let b = fragment(&K16_8BIT, K16_8BIT.b, |column, k| problem.b(column, k));
        let value = |code: u32| f32::from_bits(e4m3_to_f32(code as u8));
        let d = mma::m16n8k16_fp8(Operand::E4m3, Operand::E4m3, &a, &b, &problem.c());
        assert_fragment(&d, &problem.expected(value, value), "m16n8k16 e4m3");
    }
}

#[test]
fn sixteen_bit_and_tf32_shapes_are_exact_on_numbers_of_like_size() {
    let rng = &mut SmallRng::seed_from_u64(3);
    let f16 = |x: f32| u32::from(f32_to_f16_rn(x.to_bits()));
    let bf16 = |x: f32| u32::from(f32_to_bf16_rn(x.to_bits()));
    let f16_back = |bits: u32| f32::from_bits(f16_to_f32(bits as u16));
    let bf16_back = |bits: u32| f32::from_bits(bf16_to_f32(bits as u16));
    let tf32_back = |bits: u32| f32::from_bits(bits & 0xffff_e000);
    let sample = |rng: &mut SmallRng| rng.random_range(-1023..1024i32) as f32 / 1024.0;
    for _ in 0..20 {
        let problem = Problem::new(16, rng, |rng| f16(sample(rng)));
        let a = fragment(&K16_16BIT, K16_16BIT.a, |row, k| problem.a(row, k));
        let b = fragment(&K16_16BIT, K16_16BIT.b, |column, k| problem.b(column, k));
        let d = mma::m16n8k16_f16(&a, &b, &problem.c());
        assert_fragment(&d, &problem.expected(f16_back, f16_back), "m16n8k16 f16");

        let problem = Problem::new(16, rng, |rng| bf16((sample(rng) * 64.0).round() / 64.0));
        let a = fragment(&K16_16BIT, K16_16BIT.a, |row, k| problem.a(row, k));
        let b = fragment(&K16_16BIT, K16_16BIT.b, |column, k| problem.b(column, k));
        let d = mma::m16n8k16_bf16(&a, &b, &problem.c());
        assert_fragment(&d, &problem.expected(bf16_back, bf16_back), "m16n8k16 bf16");

        let problem = Problem::new(8, rng, |rng| f16(sample(rng)));
        let a = fragment(&K8_16BIT, K8_16BIT.a, |row, k| problem.a(row, k));
        let b = fragment(&K8_16BIT, K8_16BIT.b, |column, k| problem.b(column, k));
        let d = mma::m16n8k8_f16(&a, &b, &problem.c());
        assert_fragment(&d, &problem.expected(f16_back, f16_back), "m16n8k8 f16");

        // The low bits of a tf32 register are junk that the tensor core ignores.
        let problem = Problem::new(8, rng, |rng| sample(rng).to_bits() | rng.random_range(0..0x2000));
        let a = fragment(&K8_TF32, K8_TF32.a, |row, k| problem.a(row, k));
        let b = fragment(&K8_TF32, K8_TF32.b, |column, k| problem.b(column, k));
        let d = mma::m16n8k8_tf32(&a, &b, &problem.c());
        assert_fragment(&d, &problem.expected(tf32_back, tf32_back), "m16n8k8 tf32");

        let problem = Problem::new(4, rng, |rng| sample(rng).to_bits());
        let a = fragment(&K4_TF32, K4_TF32.a, |row, k| problem.a(row, k));
        let b = fragment(&K4_TF32, K4_TF32.b, |column, k| problem.b(column, k));
        let d = mma::m16n8k4_tf32(&a, &b, &problem.c());
        assert_fragment(&d, &problem.expected(tf32_back, tf32_back), "m16n8k4 tf32");
    }
}

#[test]
fn bf16_k8_follows_the_f16_layout() {
    let rng = &mut SmallRng::seed_from_u64(4);
    let bf16 = |x: i32| u32::from(f32_to_bf16_rn((x as f32).to_bits()));
    let problem = Problem::new(8, rng, |rng| bf16(rng.random_range(-100..100)));
    let a = fragment(&K8_16BIT, K8_16BIT.a, |row, k| problem.a(row, k));
    let b = fragment(&K8_16BIT, K8_16BIT.b, |column, k| problem.b(column, k));
    let value = |bits: u32| f32::from_bits(bits << 16);
    let d = mma::m16n8k8_bf16(&a, &b, &problem.c());
    assert_fragment(&d, &problem.expected(value, value), "m16n8k8 bf16");
}

/// Packed f16 accumulators: element i of a lane is half `i & 1` of register `i / 2`.
#[test]
fn f16_accumulators_are_rounded_once() {
    let rng = &mut SmallRng::seed_from_u64(5);
    for _ in 0..20 {
        let mut problem = Problem::new(32, rng, |rng| finite(rng, e4m3_to_f32) & 0xbf);
        for c in &mut problem.c {
            *c = f32::from_bits(f16_to_f32(f32_to_f16_rn((*c % 64.0).to_bits())));
        }
        let a = fragment(&K32_8BIT, K32_8BIT.a, |row, k| problem.a(row, k));
        let b = fragment(&K32_8BIT, K32_8BIT.b, |column, k| problem.b(column, k));
        let mut c = [[0u32; 32]; 2];
        for lane in 0..32 {
            for i in 0..4 {
                let (row, column) = accumulator(lane, i);
                let bits = f32_to_f16_rn(problem.c[row * 8 + column].to_bits());
                c[i / 2][lane] |= u32::from(bits) << (16 * (i & 1));
            }
        }
        let d = mma::m16n8k32_f16(Operand::E4m3, Operand::E4m3, &a, &b, &c);
        let value = |code: u32| f64::from(f32::from_bits(e4m3_to_f32(code as u8)));
        for lane in 0..32 {
            for i in 0..4 {
                let (row, column) = accumulator(lane, i);
                let sum: f64 = (0..32).map(|k| value(problem.a(row, k)) * value(problem.b(column, k))).sum();
                let exact = sum + f64::from(problem.c[row * 8 + column]);
                let expected = half::f16::from_f64(exact).to_bits();
                assert_eq!((d[i / 2][lane] >> (16 * (i & 1))) as u16, expected, "({row}, {column})");
            }
        }
    }
}

#[test]
fn f16_accumulating_f16_shapes() {
    // A = row number, B = 1 at k = column: D[row][column] = C + row.
    let one = 0x3c00;
    let f16 = |x: usize| u32::from(half::f16::from_f32(x as f32).to_bits());
    let a = fragment(&K16_16BIT, K16_16BIT.a, |row, _| f16(row));
    let b = fragment(&K16_16BIT, K16_16BIT.b, |column, k| if column == k { one } else { 0 });
    let d = mma::m16n8k16_f16_f16(&a, &b, &[[one << 16; 32]; 2]);
    let a8 = fragment(&K8_16BIT, K8_16BIT.a, |row, _| f16(row));
    let b8 = fragment(&K8_16BIT, K8_16BIT.b, |column, k| if column == k { one } else { 0 });
    assert_eq!(mma::m16n8k8_f16_f16(&a8, &b8, &[[one << 16; 32]; 2]), d);
    for lane in 0..32 {
        for half in 0..2 {
            let row = lane / 4 + 8 * half;
            assert_eq!(d[half][lane], f16(row + 1) << 16 | f16(row), "lane {lane}");
        }
    }
}

#[test]
fn special_values_propagate() {
    let one = 0x38;
    let mut a = [[0x3838_3838; 32]; 4];
    let b = [[0x3838_3838; 32]; 2];
    a[0][0] = 0x7f << 8 | one; // NaN at row 0, k = 1
    let mut c = [[0; 32]; 4];
    c[2][0] = f32::NEG_INFINITY.to_bits();
    c[3][4] = f32::NAN.to_bits() | 0x123;
    let d = mma::m16n8k32_e4m3(&a, &b, &c);
    assert_eq!(d[0][0], 0x7fff_ffff);
    assert_eq!(d[1][3], 0x7fff_ffff);
    assert_eq!(d[2][0], f32::NEG_INFINITY.to_bits());
    assert_eq!(d[3][4], 0x7fff_ffff);
    assert_eq!(f32::from_bits(d[3][0]), 32.0);
    // Infinities of opposite sign, from e5m2.
    let mut a = [[0u32; 32]; 4];
    a[0][0] = 0x7c;
    let mut b = [[0x3c3c_3c3c; 32]; 2];
    let c = [[0xff80_0000; 32]; 4];
    assert_eq!(mma::m16n8k32(Operand::E5m2, Operand::E5m2, &a, &b, &c)[0][0], 0x7fff_ffff);
    b[0] = [0; 32];
    assert_eq!(mma::m16n8k32(Operand::E5m2, Operand::E5m2, &a, &b, &[[0; 32]; 4])[0][0], 0x7fff_ffff);
}

#[test]
fn one_rounding_where_two_would_differ() {
    // 1 + 2^-24 + 2^-52: rounded to f64 and then to f32 it would be 1; in truth it is over the tie.
    let mut a = [[0u32; 32]; 4];
    let mut b = [[0u32; 32]; 2];
    let bf16 = |x: f32| f32_to_bf16_rn(x.to_bits()) as u32;
    a[0][0] = bf16(2f32.powi(-24)) | bf16(2f32.powi(-60)) << 16;
    b[0][0] = bf16(1.0) | bf16(1.0) << 16;
    let mut c = [[0; 32]; 4];
    c[0][0] = 1f32.to_bits();
    let d = mma::m16n8k16_bf16(&a, &b, &c);
    assert_eq!(f32::from_bits(d[0][0]), 1f32.next_up());
}

#[test]
fn truncation_is_less_exact_than_the_definition() {
    // 13 fraction bits: next to a product of 1, 2^-14 vanishes; 2^-13 does not.
    let hopper = Truncation::HOPPER_FP8;
    let dot = |x: f64, c: f32| hopper.dot(&[1.0, x], -6, &[1.0, 2f64.powi(-9)], -6, c);
    assert_eq!(dot(2f64.powi(-4), 0.0), 1.0 + 2f32.powi(-13));
    assert_eq!(dot(2f64.powi(-5), 0.0), 1.0);
    assert_eq!(hopper.dot(&[0.0], -6, &[0.0], -6, 3.0), 3.0);
    // The result itself keeps 13 bits, so a long accumulator is cut.
    assert_eq!(hopper.dot(&[0.0], -6, &[0.0], -6, 1f32.next_up()), 1.0);
    // Ada sums 16 at a time, so a second step sees the truncated first.
    let ones = [1.0; 32];
    assert_eq!(Truncation::ADA_FP8.dot(&ones, -6, &ones, -6, 0.0), 32.0);
    assert!(hopper.dot(&[f64::NAN], -6, &[1.0], -6, 0.0).is_nan());
}

/// Eight rows of random 16-bit elements.
fn rows(seed: u64) -> [[u16; 8]; 8] {
    let rng = &mut SmallRng::seed_from_u64(seed);
    std::array::from_fn(|_| std::array::from_fn(|_| rng.random()))
}

fn words(rows: &[[u16; 8]; 8]) -> ldmatrix::Rows {
    rows.map(|row| std::array::from_fn(|i| u32::from(row[2 * i]) | u32::from(row[2 * i + 1]) << 16))
}

proptest! {
    /// "each thread loads a fragment of a row": thread t of row r holds elements 2t and 2t + 1.
    #[test]
    fn ldmatrix_fragments(seed: u64) {
        let rows = rows(seed);
        let plain = ldmatrix::distribute(&words(&rows));
        let transposed = ldmatrix::distribute_transposed(&words(&rows));
        for lane in 0..32 {
            let (row, first) = (lane / 4, 2 * (lane % 4));
            prop_assert_eq!(plain[lane], u32::from(rows[row][first]) | u32::from(rows[row][first + 1]) << 16);
            // With .trans the matrix is loaded in column-major format: rows and columns change places.
            let pair = u32::from(rows[first][row]) | u32::from(rows[first + 1][row]) << 16;
            prop_assert_eq!(transposed[lane], pair);
        }
        prop_assert_eq!(ldmatrix::collect(&plain), words(&rows));
        prop_assert_eq!(ldmatrix::collect_transposed(&transposed), words(&rows));
    }
}

#[test]
fn ldmatrix_addresses_come_from_consecutive_groups_of_eight_lanes() {
    // Threads 0-7 address the rows of the first matrix, 8-15 of the second, and so on.
    for matrix in 0..4 {
        for row in 0..8 {
            assert_eq!(ldmatrix::address_lane(matrix, row), matrix * 8 + row);
        }
    }
}
