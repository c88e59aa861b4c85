//! FP8 sums as tensor cores truncate them: vectors worked out by hand, and the choice between them and exact
//! sums.

use ptx_sim::mma::{self, Accumulators, Lanes, Operand, TensorCores, Truncation};
use ptx_sim::wgmma::{self, MatrixA, MatrixB, Product};
use ptx_sim::{Launch, Machine, MachineConfig};

const E4M3: (Operand, Operand) = (Operand::E4m3, Operand::E4m3);
/// 1.0 as `e4m3`.
const ONE: u8 = 0x38;
/// 2^exponent as `e4m3`, for exponents from -9 (subnormal below -6) to 8.
fn power(exponent: i32) -> u8 {
    if exponent >= -6 { ((exponent + 7) << 3) as u8 } else { 1 << (exponent + 9) }
}

/// Row 0 of A, column 0 of B: their product plus `c`, by `mma`.
fn dot(model: Truncation, a: &[(usize, u8)], b: &[(usize, u8)], c: f32) -> f32 {
    let place = |k: usize| (k / 16, k % 16 / 4, 8 * (k % 4));
    let (mut left, mut right): ([Lanes; 4], [Lanes; 2]) = ([[0; 32]; 4], [[0; 32]; 2]);
    for &(k, byte) in a {
        let (block, lane, shift) = place(k);
        left[2 * block][lane] |= u32::from(byte) << shift;
    }
    for &(k, byte) in b {
        let (block, lane, shift) = place(k);
        right[block][lane] |= u32::from(byte) << shift;
    }
    let mut d: Accumulators = [[0; 32]; 4];
    d[0][0] = c.to_bits();
    f32::from_bits(mma::m16n8k32_truncated(model, E4M3, &left, &right, &d)[0][0])
}

/// As [`dot`], of products of powers of two, by their signs and exponents.
fn sum(model: Truncation, products: &[(usize, bool, i32)], c: f32) -> f32 {
    let halves = products.iter().map(|&(k, negative, exponent)| {
        let first = (exponent / 2).clamp(-9, 8);
        let sign = u8::from(negative) << 7;
        ((k, sign | power(first)), (k, power(exponent - first)))
    });
    let (a, b): (Vec<_>, Vec<_>) = halves.unzip();
    dot(model, &a, &b, c)
}

const HOPPER: Truncation = Truncation::HOPPER_FP8;

#[test]
fn thirteen_bits_below_the_largest_are_kept() {
    assert_eq!(sum(HOPPER, &[(0, false, 0), (31, false, -13)], 0.0), 1.0 + 2f32.powi(-13));
    assert_eq!(sum(HOPPER, &[(0, false, 0), (31, false, -14)], 0.0), 1.0);
    // Each term is cut by itself: 16 terms that would add up to 2^-10 vanish.
    let mut products = vec![(0, false, 0)];
    products.extend((1..17).map(|k| (k, false, -14)));
    assert_eq!(sum(HOPPER, &products, 0.0), 1.0);
    // Towards zero: negative terms vanish as well, and do not pull the sum below 1.
    products.iter_mut().skip(1).for_each(|product| product.1 = true);
    assert_eq!(sum(HOPPER, &products, 0.0), 1.0);
    assert_eq!(sum(HOPPER, &[(0, true, 0), (1, false, -14)], 0.0), -1.0);
}

#[test]
fn the_accumulator_takes_part() {
    // It is the largest: products below 2^-13 of it vanish.
    assert_eq!(sum(HOPPER, &[(0, false, 0)], 8192.0), 8193.0);
    assert_eq!(sum(HOPPER, &[(0, false, 0)], 16384.0), 16384.0);
    // It is not, and its own low bits go.
    assert_eq!(sum(HOPPER, &[(0, false, 0)], 2f32.powi(-14)), 1.0);
    assert_eq!(sum(HOPPER, &[(0, false, 0)], -(2f32.powi(-13) + 2f32.powi(-20))), 1.0 - 2f32.powi(-13));
    // The result has 13 bits of mantissa, also where nothing is added.
    assert_eq!(sum(HOPPER, &[], 1f32.next_up()), 1.0);
    assert_eq!(sum(HOPPER, &[], -(1.0 + 2f32.powi(-13) + 2f32.powi(-14))), -(1.0 + 2f32.powi(-13)));
    // A carry costs the last bit: 1 + (1 + 2^-13) is 2 + 2^-13, which has 14.
    assert_eq!(sum(HOPPER, &[(0, false, 0)], 1.0 + 2f32.powi(-13)), 2.0);
}

#[test]
fn exponents_are_those_of_the_fields() {
    // 1.875 * 1.875 is 3.515625, but counts with exponent 0: 2^-13 is kept, and cut off the result, which
    // ends at 2^-12.
    let (mut a, mut b) = (vec![(0, 0x3f), (1, power(-6))], vec![(0, 0x3f), (1, power(-7))]);
    assert_eq!(dot(HOPPER, &a, &b, 0.0), 3.515625);
    // With twice -1 beside it the result has room.
    a.extend([(2, 0x80 | ONE), (3, 0x80 | ONE)]);
    b.extend([(2, ONE), (3, ONE)]);
    assert_eq!(dot(HOPPER, &a, &b, 0.0), 1.515625 + 2f32.powi(-13));
    // A subnormal counts with -6: 2^-9 * 1 beside 2^-20 * 1.
    let tiny = [(0, power(-9)), (1, power(-9))];
    let by = [(0, ONE), (1, power(-9))];
    assert_eq!(dot(HOPPER, &tiny, &by, 0.0), 2f32.powi(-9) + 2f32.powi(-18));
    assert_eq!(dot(HOPPER, &tiny, &by, 2f32.powi(-5)), 2f32.powi(-5) + 2f32.powi(-9) + 2f32.powi(-18));
    assert_eq!(dot(HOPPER, &tiny, &by, 2f32.powi(-4)), 2f32.powi(-4) + 2f32.powi(-9));
    // Zero does not count, whatever it is multiplied with.
    let a = [(0, 0), (1, power(-9))];
    let b = [(0, power(8)), (1, power(-9))];
    assert_eq!(dot(HOPPER, &a, &b, 0.0), 2f32.powi(-18));
}

#[test]
fn cancellation_leaves_what_was_kept() {
    let products = [(0, false, 4), (1, true, 4), (2, false, -9), (3, false, -10)];
    assert_eq!(sum(HOPPER, &products, 0.0), 2f32.powi(-9));
    assert_eq!(sum(HOPPER, &products[2..], 0.0), 2f32.powi(-9) + 2f32.powi(-10));
    assert_eq!(sum(HOPPER, &products[..2], 0.0).to_bits(), 0);
}

#[test]
fn ada_takes_sixteen_at_a_time() {
    // The first half is cut before the second comes: beside 2^14 in the second half, 1 in the first vanishes;
    // beside 2^14 in the first half, 1 in the second does too. With -2^14 in the same half something is left.
    let ada = Truncation::ADA_FP8;
    let split = [(0, false, 0), (16, false, 14), (17, true, 14)];
    assert_eq!(sum(ada, &split, 0.0), 0.0);
    assert_eq!(sum(ada, &[(0, false, 14), (1, true, 14), (16, false, 0)], 0.0), 1.0);
    assert_eq!(sum(HOPPER, &[(0, false, 14), (1, true, 14), (16, false, 0)], 0.0), 0.0);
}

#[test]
fn a_conversion_to_f16_keeps_more() {
    let hopper = Truncation::HOPPER_FP8_AS_F16;
    assert_eq!(sum(hopper, &[(0, false, 0), (15, false, -18)], 0.0), 1.0 + 2f32.powi(-18));
    assert_eq!(sum(hopper, &[(0, false, 8), (15, false, -18)], 0.0), 256.0);
    // Elements 0 and 1 of every four come first. 2^-18 at k = 2 meets what they leave, which is nothing;
    // beside 2^13 and -2^13 in its own step it vanishes.
    let first = [(0, false, 13), (1, true, 13), (2, false, -18)];
    assert_eq!(sum(hopper, &first, 0.0), 2f32.powi(-18));
    assert_eq!(sum(hopper, &[(2, false, 13), (3, true, 13), (6, false, -18)], 0.0), 0.0);
    // The accumulator is added last, and that sum is rounded to nearest.
    assert_eq!(sum(hopper, &[(0, false, 1), (1, false, 0)], 2f32.powi(24)), 2f32.powi(24) + 4.0);
    assert_eq!(sum(hopper, &[(0, false, -18)], 1.0), 1.0 + 2f32.powi(-18));
    // 2^-9 is no subnormal of f16: it counts with its own exponent.
    let (a, b) = ([(0, power(-9)), (1, power(-9))], [(0, ONE), (1, power(-9))]);
    assert_eq!(dot(hopper, &a, &b, 0.0), 2f32.powi(-9) + 2f32.powi(-18));
}

#[test]
fn special_values_are_those_of_exact_sums() {
    assert_eq!(dot(HOPPER, &[(0, 0x7f)], &[(0, ONE)], 0.0).to_bits(), 0x7fff_ffff);
    assert_eq!(dot(HOPPER, &[(0, 0x7f)], &[], 0.0).to_bits(), 0x7fff_ffff);
    assert_eq!(sum(HOPPER, &[(0, false, 0)], f32::NEG_INFINITY), f32::NEG_INFINITY);
    assert_eq!(sum(HOPPER, &[(0, false, 0)], f32::NAN).to_bits(), 0x7fff_ffff);
    // Accumulators below what products can reach: their 13 bits.
    assert_eq!(sum(HOPPER, &[], f32::from_bits(0x0080_03ff)), f32::from_bits(0x0080_0000));
    assert_eq!(sum(HOPPER, &[], f32::from_bits(0x7f7f_ffff)), f32::from_bits(0x7f7f_fc00));
}

#[test]
fn a_warpgroup_does_as_a_warp() {
    let fragment: [Lanes; 4] = std::array::from_fn(|r| {
        std::array::from_fn(|lane| (0x3a41_b728u32.rotate_left(lane as u32)) & 0xf7f7_f7f7 ^ r as u32)
    });
    let a = MatrixA::from_registers([&fragment; 4]);
    let columns: [u8; 512] = std::array::from_fn(|i| (i * 37 % 0x77) as u8);
    let descriptor = wgmma::Descriptor { leading: 128, stride: 256, ..Default::default() };
    let read = |address: u32| -> Result<[u8; 16], ()> {
        columns[address as usize..][..16].try_into().map_err(|_| ())
    };
    let b = MatrixB::fetch(descriptor, wgmma::Major::K, 16, read).expect("inside");
    let model = Some(HOPPER);
    let product = Product { a: Operand::E4m3, b: Operand::E4m3, negate: false, accumulate: true, model };
    let c = [[0x4123_4567; 32]; 4];
    let mut d = vec![c; 8];
    wgmma::accumulate_f32(product, &a, &b, &mut d);
    for panel in 0..2 {
        let word = |half: usize, lane: usize| {
            let at = 256 * panel + 128 * half + 16 * (lane / 4) + 4 * (lane % 4);
            u32::from_le_bytes(columns[at..at + 4].try_into().expect("four bytes"))
        };
        let b: [Lanes; 2] = std::array::from_fn(|half| std::array::from_fn(|lane| word(half, lane)));
        let one = mma::m16n8k32_truncated(HOPPER, E4M3, &fragment, &b, &c);
        for warp in 0..4 {
            assert_eq!(d[2 * warp + panel], one, "warp {warp}, panel {panel}");
        }
        assert_ne!(one, mma::m16n8k32_e4m3(&fragment, &b, &c), "the model must make a difference here");
    }
}

/// 1 * 1 + 2^-6 * 2^-9 in element (0, 0), by `mma.sync` of a kernel.
fn on_a_machine(tensor_cores: TensorCores, capability: (u32, u32)) -> f32 {
    let machine = Machine::new(MachineConfig {
        workers: 1,
        memory_bytes: 1 << 30,
        tensor_cores,
        capability,
        ..MachineConfig::default()
    });
    let module = machine
        .load(
            ".version 8.7
            .target sm_89
            .address_size 64
            .visible .entry k(.param .u64 out) {
                .reg .b32 %r<8>; .reg .f32 %f<5>; .reg .b64 %rd1; .reg .pred %p1;
                mov.u32 %r1, %laneid;
                setp.eq.u32 %p1, %r1, 0;
                selp.b32 %r2, 0x0838, 0, %p1;
                selp.b32 %r3, 0x0138, 0, %p1;
                mov.u32 %r4, 0;
                mov.f32 %f0, 0f00000000;
                mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32
                    {%f1, %f2, %f3, %f4}, {%r2, %r4, %r4, %r4}, {%r3, %r4}, {%f0, %f0, %f0, %f0};
                ld.param.u64 %rd1, [out];
                @%p1 st.global.f32 [%rd1], %f1;
                ret;
            }",
        )
        .expect("it loads");
    let out = machine.alloc(4).expect("enough memory");
    let launch = Launch {
        module: &module,
        entry: "k",
        grid: [1; 3],
        block: [32, 1, 1],
        cluster: [1; 3],
        dynamic_shared: 0,
        cooperative: false,
        params: &out.to_le_bytes(),
        seed: 0,
        workers: None,
    };
    machine.launch(&launch).unwrap_or_else(|fault| panic!("{fault}"));
    let mut bytes = [0; 4];
    machine.read(out, &mut bytes).expect("in bounds");
    f32::from_le_bytes(bytes)
}

#[test]
fn a_machine_sums_as_it_is_told() {
    // 0x08 is 2^-6, 0x01 is 2^-9.
    let exact = 1.0 + 2f32.powi(-15);
    assert_eq!(on_a_machine(TensorCores::Exact, (8, 9)), exact);
    assert_eq!(on_a_machine(TensorCores::Hardware, (8, 9)), 1.0);
    assert_eq!(on_a_machine(TensorCores::Hardware, (9, 0)), exact);
    assert_eq!(TensorCores::parse("hardware"), Some(TensorCores::Hardware));
    assert_eq!(TensorCores::parse("exact"), Some(TensorCores::default()));
    assert_eq!(TensorCores::parse("fast"), None);
    assert_eq!(TensorCores::Hardware.wgmma((Operand::Bf16, Operand::Bf16)), None);
    assert_eq!(TensorCores::Hardware.wgmma(E4M3), Some(HOPPER));
}
