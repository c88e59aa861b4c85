//! `red` of two or four f32 in global memory (ISA "red": `.add{.vec_32_bit}.f32`).

use super::common::{Kernel, expect_fault};
use super::{SEEDS, run};
use ptx_sim::FaultKind;

/// Thread t adds `values[4 (t % 2)..]`, the first two or four of them, with the instruction `red`, at `sums +
/// 16 (t / 2 % 2)`.
fn adder(red: &str) -> Kernel {
    Kernel::new(&format!(
        ".param .u64 values, .param .u64 sums
        ---
        .shared .align 16 .b8 data[64];
        ld.param.u64 %rd1, [values];
        ld.param.u64 %rd2, [sums];
        mov.u32 %r1, %tid.x;
        and.b32 %r2, %r1, 1;
        mul.wide.u32 %rd3, %r2, 16;
        add.u64 %rd1, %rd1, %rd3;
        ld.global.v4.f32 {{%f1, %f2, %f3, %f4}}, [%rd1];
        shr.u32 %r3, %r1, 1;
        and.b32 %r3, %r3, 1;
        mul.wide.u32 %rd4, %r3, 16;
        add.u64 %rd2, %rd2, %rd4;
        mov.u32 %r4, data;
        cvt.u64.u32 %rd5, %r4;
        cvta.shared.u64 %rd5, %rd5;
        {red}
        ret;"
    ))
}

/// The sums after `blocks` blocks of `threads` threads.
fn sums(
    red: &str,
    seed: u64,
    values: [f32; 8],
    before: [f32; 8],
    (blocks, threads): (u32, u32),
) -> (Vec<f32>, u64) {
    let mut kernel = adder(red);
    let bits = |values: [f32; 8]| values.map(f32::to_bits);
    let (values, sums) = (kernel.upload(&bits(values)), kernel.upload(&bits(before)));
    kernel.arg(values).arg(sums);
    kernel.seed = seed;
    let counters = run(&kernel, blocks, threads);
    (kernel.words(sums, 8).into_iter().map(f32::from_bits).collect(), counters.global_store_bytes)
}

const PAIR: &str = "red.relaxed.gpu.global.add.v2.f32 [%rd2], {%f1, %f2};";
const FOUR: &str = "red.relaxed.gpu.global.add.v4.f32 [%rd2], {%f1, %f2, %f3, %f4};";

#[test]
fn every_element_is_added() {
    let values = [1.0, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0];
    let before = [0.5, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 7.0];
    // 3 blocks of 40 threads: 30 with either half of the values at either place.
    for seed in SEEDS {
        for four in [
            FOUR,
            "red.global.add.v4.f32 [%rd2], {%f1, %f2, %f3, %f4};",
            "red.add.v4.f32 [%rd2], {%f1, %f2, %f3, %f4};",
        ] {
            let (sums, bytes) = sums(four, seed, values, before, (3, 40));
            assert_eq!(sums, [330.5, 660.0, 989.0, 1320.0, 330.0, 660.0, 990.0, 1327.0]);
            assert_eq!(bytes, 120 * 16);
        }
        let (sums, bytes) = sums(PAIR, seed, values, before, (3, 40));
        assert_eq!(sums, [330.5, 660.0, -1.0, 0.0, 330.0, 660.0, 0.0, 7.0]);
        assert_eq!(bytes, 120 * 8);
    }
}

/// The order is not defined, and differs with the seed.
#[test]
fn sums_come_in_any_order() {
    // Eight times 1e8 and 1 in turn. A 1 is lost in any sum but 0, so that it counts only where it comes
    // last.
    let values = [1e8, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0];
    let before = [-8e8, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let of = |seed| sums(FOUR, seed, values, before, (1, 32)).0[0];
    let mut seen: Vec<f32> = SEEDS.map(of).collect();
    seen.sort_by(f32::total_cmp);
    seen.dedup();
    assert_eq!(seen, [0.0, 1.0]);
}

#[test]
fn subnormals_are_flushed_and_nan_is_canonical() {
    let (tiny, least) = (f32::from_bits(0x8000_0001), f32::MIN_POSITIVE);
    // Thread 0 alone: an operand, a result and what was there before; NaN with a payload.
    let values = [tiny, -1.5 * least, 0.0, f32::from_bits(0x7f80_0123), 0.0, 0.0, 0.0, 0.0];
    let before = [-0.0, least, f32::from_bits(3), 1.0, 0.0, 0.0, 0.0, 0.0];
    let (sums, _) = sums(FOUR, 0, values, before, (1, 1));
    let bits: Vec<u32> = sums[..4].iter().map(|x| x.to_bits()).collect();
    assert_eq!(bits, [0x8000_0000, 0x8000_0000, 0, 0x7fff_ffff]);
}

/// One value in global memory is flushed too.
#[test]
fn a_single_value_is_flushed() {
    let least = f32::MIN_POSITIVE;
    let values = [-1.5 * least, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let before = [least, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let (sums, _) = sums("red.global.add.f32 [%rd2], %f1;", 0, values, before, (1, 1));
    assert_eq!(sums[0].to_bits(), 0x8000_0000);
}

#[test]
fn wrong_places_are_caught() {
    let caught = |red: &str, written: u32, kind| {
        let mut kernel = adder(red);
        let (values, sums) = (kernel.upload(&[0; 8]), kernel.alloc(32));
        kernel.machine.write(sums, &vec![0; written as usize]).expect("fits");
        kernel.arg(values).arg(sums);
        expect_fault(kernel.run(1, 4), kind);
    };
    caught("red.global.add.v4.f32 [%rd2+8], {%f1, %f2, %f3, %f4};", 32, FaultKind::Misaligned);
    caught("red.global.add.v2.f32 [%rd2+4], {%f1, %f2};", 32, FaultKind::Misaligned);
    caught("red.global.add.v4.f32 [%rd2+16], {%f1, %f2, %f3, %f4};", 32, FaultKind::OutOfBounds);
    caught(FOUR, 24, FaultKind::Uninitialised);
    caught("red.add.v2.f32 [%rd5], {%f1, %f2};", 32, FaultKind::InvalidOperand);
}

/// Instructions that the ISA does not have, or that are not emulated, are refused when they are met.
#[test]
fn other_vectors_are_refused() {
    for red in [
        "red.shared.add.v2.f32 [%r4], {%f1, %f2};",
        "red.global.add.v2.u32 [%rd2], {%r1, %r2};",
        "red.global.max.v2.f32 [%rd2], {%f1, %f2};",
        "red.global.add.v4.f32 [%rd2], {%f1, %f2};",
        "red.global.add.v2.f32 [%rd2], %f1;",
    ] {
        let kernel = std::panic::catch_unwind(|| {
            let mut kernel = adder(red);
            let at = kernel.upload(&[0; 8]);
            kernel.arg(at).arg(at);
            kernel.run(1, 1).map(|_| ())
        });
        assert!(!matches!(kernel, Ok(Ok(()))), "`{red}` ran");
    }
}
