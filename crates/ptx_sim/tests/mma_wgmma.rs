//! `wgmma` operands laid out in shared memory by the ISA's layouts, read back through descriptors.
//!
//! Each test stores matrices of small integers element by element, at addresses written down from the ISA's
//! pictures (rows of a swizzle span, chunk `c` of row `r` stored at `c ^ r`), and checks D element by
//! element.

use ptx_sim::formats::{f32_to_bf16_rn, f32_to_e4m3_satfinite, f32_to_f16_rn};
use ptx_sim::mma::{Accumulators, HalfAccumulators, Lanes, Operand};
use ptx_sim::wgmma::{self, Descriptor, Major, MatrixA, MatrixB, Product, Swizzle};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const SHARED: usize = 160 << 10;

struct Shared(Vec<u8>);

impl Shared {
    fn new() -> Shared {
        Shared(vec![0xaa; SHARED])
    }

    fn write(&mut self, address: usize, bytes: &[u8]) {
        self.0[address..address + bytes.len()].copy_from_slice(bytes);
    }

    fn reader(&self) -> impl FnMut(u32) -> Result<[u8; 16], String> {
        |address| {
            let at = address as usize;
            assert_eq!(at % 16, 0, "unaligned chunk {at:#x}");
            self.0
                .get(at..at + 16)
                .map(|bytes| bytes.try_into().unwrap())
                .ok_or(format!("{at:#x} is outside"))
        }
    }
}

/// Position of a byte after the swizzle, from the picture: chunks of 16 bytes in a span of `span` bytes,
/// exchanged by the number of the 128-byte line.
fn swizzled(address: usize, span: usize) -> usize {
    let line = address / 128 % 8;
    let chunk = address / 16 % 8;
    let exchanged = match span {
        16 => chunk,
        32 => chunk ^ (line & 1),
        64 => chunk ^ (line & 3),
        _ => chunk ^ line,
    };
    address / 128 * 128 + exchanged * 16 + address % 16
}

fn swizzle_of(span: usize) -> Swizzle {
    match span {
        16 => Swizzle::None,
        32 => Swizzle::B32,
        64 => Swizzle::B64,
        _ => Swizzle::B128,
    }
}

fn encode(operand: Operand, value: i32) -> Vec<u8> {
    let bits = (value as f32).to_bits();
    match operand {
        Operand::E4m3 => vec![f32_to_e4m3_satfinite(bits)],
        Operand::E5m2 => vec![ptx_sim::formats::f32_to_e5m2_satfinite(bits)],
        Operand::F16 => f32_to_f16_rn(bits).to_le_bytes().into(),
        Operand::Bf16 => f32_to_bf16_rn(bits).to_le_bytes().into(),
        Operand::Tf32 => bits.to_le_bytes().into(),
    }
}

/// An integer matrix, `rows` of m or n by `k`.
struct Matrix {
    rows: usize,
    k: usize,
    values: Vec<i32>,
}

impl Matrix {
    fn random(rows: usize, k: usize, rng: &mut SmallRng) -> Matrix {
        Matrix { rows, k, values: (0..rows * k).map(|_| rng.random_range(-4..=4)).collect() }
    }

    fn at(&self, row: usize, k: usize) -> i32 {
        self.values[row * self.k + k]
    }

    /// Stores K-major with rows of `span` bytes, of which `from_k` bytes precede the matrix; returns its
    /// descriptor.
    fn store_k_major(
        &self,
        operand: Operand,
        shared: &mut Shared,
        start: usize,
        span: usize,
        from_k: usize,
    ) -> u64 {
        let size = operand.bytes();
        for row in 0..self.rows {
            for k in 0..self.k {
                let address = start + row * span + from_k + k * size;
                shared.write(swizzled(address, span), &encode(operand, self.at(row, k)));
            }
        }
        let swizzle = swizzle_of(span);
        let stride = 8 * span as u32;
        Descriptor { start: (start + from_k) as u32, leading: 16, stride, base_offset: 0, swizzle }.encode()
    }

    /// Stores K-major without a swizzle: 8x16-byte core matrices, `leading` apart along k, `stride` along
    /// rows.
    fn store_cores(
        &self,
        operand: Operand,
        shared: &mut Shared,
        start: usize,
        leading: usize,
        stride: usize,
    ) -> u64 {
        let size = operand.bytes();
        for row in 0..self.rows {
            for k in 0..self.k {
                let core = start + k * size / 16 * leading + row / 8 * stride;
                shared.write(core + row % 8 * 16 + k * size % 16, &encode(operand, self.at(row, k)));
            }
        }
        let (start, leading, stride) = (start as u32, leading as u32, stride as u32);
        Descriptor { start, leading, stride, base_offset: 0, swizzle: Swizzle::None }.encode()
    }

    /// Stores MN-major, 16-bit elements: boxes of `span` bytes of m or n by k rows, box after box.
    fn store_mn_major(&self, operand: Operand, shared: &mut Shared, start: usize, span: usize) -> u64 {
        let per_box = span / 2;
        let box_bytes = span * self.k;
        for row in 0..self.rows {
            for k in 0..self.k {
                let address = start + row / per_box * box_bytes + k * span + row % per_box * 2;
                shared.write(swizzled(address, span), &encode(operand, self.at(row, k)));
            }
        }
        let (leading, stride) = match span {
            16 => (8 * span, box_bytes), // roles change without a swizzle
            _ => (box_bytes, 8 * span),
        };
        let (leading, stride) = (leading as u32, stride as u32);
        Descriptor { start: start as u32, leading, stride, base_offset: 0, swizzle: swizzle_of(span) }
            .encode()
    }
}

/// Row and column of element `i` of D in thread `thread` of the warpgroup, from the ISA's figure.
fn accumulator(thread: usize, i: usize) -> (usize, usize) {
    let (warp, lane) = (thread / 32, thread % 32);
    (16 * warp + lane / 4 + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * (lane % 4) + i % 2)
}

/// D after one `wgmma`, for D starting as row + 1000 * column.
fn check(product: Product, a: &MatrixA, b: &MatrixB, left: &Matrix, right: &Matrix) {
    let panels = right.rows / 8;
    let before = |row: usize, column: usize| (row as i32 - 3 * column as i32) as f32;
    let mut d: Vec<Accumulators> = vec![[[0; 32]; 4]; 4 * panels];
    for thread in 0..128 {
        for i in 0..4 * panels {
            let (row, column) = accumulator(thread, i);
            d[thread / 32 * panels + i / 4][i % 4][thread % 32] = before(row, column).to_bits();
        }
    }
    wgmma::accumulate_f32(product, a, b, &mut d);
    for thread in 0..128 {
        for i in 0..4 * panels {
            let (row, column) = accumulator(thread, i);
            let sum: i32 = (0..left.k).map(|k| left.at(row, k) * right.at(column, k)).sum();
            let sum = if product.negate { -sum } else { sum };
            let expected = sum as f32 + if product.accumulate { before(row, column) } else { 0.0 };
            let actual = f32::from_bits(d[thread / 32 * panels + i / 4][i % 4][thread % 32]);
            assert_eq!(actual, expected, "D[{row}][{column}]");
        }
    }
}

fn product(operand: Operand) -> Product {
    Product { a: operand, b: operand, negate: false, accumulate: true, model: None }
}

#[test]
fn k_major_with_every_swizzle_and_k_step() {
    let rng = &mut SmallRng::seed_from_u64(1);
    for operand in [Operand::E4m3, Operand::E5m2, Operand::F16, Operand::Bf16, Operand::Tf32] {
        let k = 32 / operand.bytes();
        for span in [32, 64, 128] {
            for step in 0..span / 32 {
                for n in [8, 72, 256] {
                    let (left, right) = (Matrix::random(64, k, rng), Matrix::random(n, k, rng));
                    let mut shared = Shared::new();
                    let a = left.store_k_major(operand, &mut shared, 0x400, span, 32 * step);
                    let b = right.store_k_major(operand, &mut shared, 0x8000, span, 32 * step);
                    let a = MatrixA::fetch(Descriptor::decode(a), Major::K, shared.reader()).unwrap();
                    let b =
                        MatrixB::fetch(Descriptor::decode(b), Major::K, n as u32, shared.reader()).unwrap();
                    assert_eq!(b.columns(), n);
                    check(product(operand), &a, &b, &left, &right);
                }
            }
        }
    }
}

#[test]
fn k_major_core_matrices_without_swizzle() {
    let rng = &mut SmallRng::seed_from_u64(2);
    for operand in [Operand::E4m3, Operand::Bf16] {
        let k = 32 / operand.bytes();
        let (left, right) = (Matrix::random(64, k, rng), Matrix::random(40, k, rng));
        for (leading, stride) in [(128, 256), (1024, 128)] {
            let mut shared = Shared::new();
            let a = left.store_cores(operand, &mut shared, 0x110, leading, stride);
            let b = right.store_cores(operand, &mut shared, 0x4000, leading, stride);
            let a = MatrixA::fetch(Descriptor::decode(a), Major::K, shared.reader()).unwrap();
            let b = MatrixB::fetch(Descriptor::decode(b), Major::K, 40, shared.reader()).unwrap();
            check(product(operand), &a, &b, &left, &right);
        }
    }
}

#[test]
fn mn_major_sixteen_bit() {
    let rng = &mut SmallRng::seed_from_u64(3);
    for operand in [Operand::F16, Operand::Bf16] {
        for span in [16, 32, 64, 128] {
            let (left, right) = (Matrix::random(64, 16, rng), Matrix::random(128, 16, rng));
            let mut shared = Shared::new();
            let a = left.store_mn_major(operand, &mut shared, 0x400, span);
            let b = right.store_mn_major(operand, &mut shared, 0x4000, span);
            let a = MatrixA::fetch(Descriptor::decode(a), Major::Mn, shared.reader()).unwrap();
            let b = MatrixB::fetch(Descriptor::decode(b), Major::Mn, 128, shared.reader()).unwrap();
            check(product(operand), &a, &b, &left, &right);
        }
    }
}

/// "Register fragment for wgmma .m64nNk32 matrix A": byte j of register i of a lane.
#[test]
fn a_from_registers() {
    let rng = &mut SmallRng::seed_from_u64(4);
    let (left, right) = (Matrix::random(64, 32, rng), Matrix::random(16, 32, rng));
    let mut shared = Shared::new();
    let b = right.store_k_major(Operand::E4m3, &mut shared, 0, 32, 0);
    let b = MatrixB::fetch(Descriptor::decode(b), Major::K, 16, shared.reader()).unwrap();
    let mut registers = [[[0u32; 32]; 4]; 4];
    for thread in 0..128 {
        let (warp, lane) = (thread / 32, thread % 32);
        for i in 0..16 {
            let row = 16 * warp + lane / 4 + if i / 4 % 2 == 1 { 8 } else { 0 };
            let k = 4 * (lane % 4) + i % 4 + if i >= 8 { 16 } else { 0 };
            let byte = encode(Operand::E4m3, left.at(row, k))[0];
            registers[warp][i / 4][lane] |= u32::from(byte) << (8 * (i % 4));
        }
    }
    let a = MatrixA::from_registers(registers.each_ref());
    check(product(Operand::E4m3), &a, &b, &left, &right);
    let mut stored = Shared::new();
    let descriptor = left.store_k_major(Operand::E4m3, &mut stored, 0, 128, 0);
    let through_memory = MatrixA::fetch(Descriptor::decode(descriptor), Major::K, stored.reader()).unwrap();
    assert_eq!(a, through_memory);
}

#[test]
fn overwrite_negate_and_mixed_types() {
    let rng = &mut SmallRng::seed_from_u64(5);
    let (left, right) = (Matrix::random(64, 32, rng), Matrix::random(24, 32, rng));
    let mut shared = Shared::new();
    let a = left.store_k_major(Operand::E4m3, &mut shared, 0, 128, 96);
    let b = right.store_k_major(Operand::E5m2, &mut shared, 0x4000, 64, 32);
    let a = MatrixA::fetch(Descriptor::decode(a), Major::K, shared.reader()).unwrap();
    let b = MatrixB::fetch(Descriptor::decode(b), Major::K, 24, shared.reader()).unwrap();
    for (negate, accumulate) in [(false, false), (true, false), (true, true)] {
        check(
            Product { a: Operand::E4m3, b: Operand::E5m2, negate, accumulate, model: None },
            &a,
            &b,
            &left,
            &right,
        );
    }
}

#[test]
fn half_accumulators_are_packed_in_pairs() {
    let rng = &mut SmallRng::seed_from_u64(6);
    let (left, right) = (Matrix::random(64, 16, rng), Matrix::random(16, 16, rng));
    let mut shared = Shared::new();
    let a = left.store_k_major(Operand::F16, &mut shared, 0, 128, 0);
    let b = right.store_k_major(Operand::F16, &mut shared, 0x4000, 128, 0);
    let a = MatrixA::fetch(Descriptor::decode(a), Major::K, shared.reader()).unwrap();
    let b = MatrixB::fetch(Descriptor::decode(b), Major::K, 16, shared.reader()).unwrap();
    let mut d: Vec<HalfAccumulators> = vec![[[0x3c00_3c00; 32]; 2]; 8];
    wgmma::accumulate_f16(product(Operand::F16), &a, &b, &mut d);
    for thread in 0..128 {
        for i in 0..8 {
            let (row, column) = accumulator(thread, i);
            let sum: i32 = (0..16).map(|k| left.at(row, k) * right.at(column, k)).sum();
            let register: &Lanes = &d[thread / 32 * 2 + i / 4][i / 2 % 2];
            let bits = (register[thread % 32] >> (16 * (i % 2))) as u16;
            assert_eq!(bits, f32_to_f16_rn((sum as f32 + 1.0).to_bits()), "D[{row}][{column}]");
        }
    }
}

#[test]
fn a_failed_read_is_passed_on() {
    let descriptor =
        Descriptor { start: 0x3_f000, stride: 1024, swizzle: Swizzle::B128, ..Descriptor::default() };
    let shared = Shared::new();
    assert!(MatrixA::fetch(descriptor, Major::K, shared.reader()).unwrap_err().contains("outside"));
}

#[test]
fn descriptors_hold_their_fields() {
    let descriptor =
        Descriptor { start: 0x1_2340, leading: 0x80, stride: 0x400, base_offset: 5, swizzle: Swizzle::B64 };
    // start 0x1234 | leading 8 << 16 | stride 0x40 << 32 | base offset 5 << 49 | swizzle 2 << 62
    assert_eq!(descriptor.encode(), 0x800a_0040_0008_1234);
    assert_eq!(Descriptor::decode(0x800a_0040_0008_1234), descriptor);
    // A pattern that starts on the second line of its period, told by the base offset.
    let shifted =
        Descriptor { start: 0x80, stride: 1024, base_offset: 1, swizzle: Swizzle::B128, leading: 0 };
    assert_eq!(shifted.k_major_chunk(0, 3), 0x80 + 3 * 16);
    assert_eq!(shifted.k_major_chunk(1, 3), 0x100 + (3 ^ 1) * 16);
}
