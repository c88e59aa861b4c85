//! Speed of the tensor-core arithmetic on one core, in multiply-accumulates per second.
//!
//! `cargo bench -p ptx_sim --bench tensor`. The inner loop must do at least 2 GMAC/s for `m16n8k32` e4m3.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ptx_sim::mma::{self, Lanes, Operand};
use ptx_sim::wgmma::{self, Descriptor, Major, MatrixA, MatrixB, Product, Swizzle};

/// Best of several samples: calls per second of `work`.
fn rate(mut work: impl FnMut()) -> f64 {
    let mut calls = 1u32;
    let mut best = f64::MAX;
    let mut samples = 0;
    while samples < 7 {
        let start = Instant::now();
        for _ in 0..calls {
            work();
        }
        let elapsed = start.elapsed();
        if elapsed < Duration::from_millis(20) {
            calls *= 2;
            continue;
        }
        best = best.min(elapsed.as_secs_f64() / f64::from(calls));
        samples += 1;
    }
    1.0 / best
}

fn report(name: &str, macs: usize, work: impl FnMut()) {
    let rate = rate(work);
    println!("{name:<28} {:>8.2} GMAC/s   {:>8.0} ns", rate * macs as f64 / 1e9, 1e9 / rate);
}

/// Bytes that are small finite numbers in every format.
fn operand<const R: usize>() -> [Lanes; R] {
    std::array::from_fn(|register| {
        std::array::from_fn(|lane| {
            0x3238_2a34u32.rotate_left((8 * register + lane) as u32 % 4 * 8) ^ lane as u32
        })
    })
}

fn main() {
    let c = [[0x3f80_0000; 32]; 4];
    let (a, b) = (operand::<4>(), operand::<2>());
    report("mma m16n8k32 e4m3", 16 * 8 * 32, || {
        black_box(mma::m16n8k32_e4m3(black_box(&a), black_box(&b), black_box(&c)));
    });
    report("mma m16n8k32 e5m2", 16 * 8 * 32, || {
        black_box(mma::m16n8k32(Operand::E5m2, Operand::E5m2, black_box(&a), black_box(&b), black_box(&c)));
    });
    report("mma m16n8k16 bf16", 16 * 8 * 16, || {
        black_box(mma::m16n8k16_bf16(black_box(&a), black_box(&b), black_box(&c)));
    });
    report("mma m16n8k16 f16", 16 * 8 * 16, || {
        black_box(mma::m16n8k16_f16(black_box(&a), black_box(&b), black_box(&c)));
    });

    let shared: Vec<u8> = (0..64 << 10).map(|i: u32| (i * 37 % 64) as u8).collect();
    let read = |address: u32| -> Result<[u8; 16], ()> {
        shared[address as usize..address as usize + 16].try_into().map_err(|_| ())
    };
    let descriptor = Descriptor { stride: 1024, swizzle: Swizzle::B128, ..Descriptor::default() };
    for (name, operand, n) in [
        ("wgmma m64n256k32 e4m3", Operand::E4m3, 256),
        ("wgmma m64n16k32 e4m3", Operand::E4m3, 16),
        ("wgmma m64n128k16 bf16", Operand::Bf16, 128),
    ] {
        let product = Product { a: operand, b: operand, negate: false, accumulate: true };
        let mut d = vec![[[0; 32]; 4]; n / 2];
        report(name, 64 * n * 32 / operand.bytes(), || {
            let a = MatrixA::fetch(black_box(descriptor), Major::K, read).expect("inside");
            let b = MatrixB::fetch(black_box(descriptor), Major::K, n as u32, read).expect("inside");
            wgmma::accumulate_f32(product, &a, &b, &mut d);
            black_box(&d);
        });
    }
}
