//! Speed of the tensor-core arithmetic on one core, in multiply-accumulates per second.
//!
//! `cargo bench -p ptx_sim --bench tensor`. The inner loop must do at least 2 GMAC/s for `m16n8k32` e4m3. The
//! last lines are whole kernels, one warpgroup that repeats `wgmma`: instructions, checks of operands and
//! registers included.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ptx_sim::mma::{self, Lanes, Operand};
use ptx_sim::wgmma::{self, Descriptor, Major, MatrixA, MatrixB, Product, Swizzle};
use ptx_sim::{Launch, Machine, MachineConfig};

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
        let product = Product { a: operand, b: operand, negate: false, accumulate: true, model: None };
        let mut d = vec![[[0; 32]; 4]; n / 2];
        report(name, 64 * n * 32 / operand.bytes(), || {
            let a = MatrixA::fetch(black_box(descriptor), Major::K, read).expect("inside");
            let b = MatrixB::fetch(black_box(descriptor), Major::K, n as u32, read).expect("inside");
            wgmma::accumulate_f32(product, &a, &b, &mut d);
            black_box(&d);
        });
    }
    for n in [64, 256] {
        kernel(n);
    }
}

/// 64 times the product of a 64x128 and an `n`x128 tile of e4m3 in shared memory, as PTX.
fn kernel(n: usize) {
    let registers: Vec<String> = (0..n / 2).map(|i| format!("%f{i}")).collect();
    let product = format!(
        "wgmma.mma_async.sync.aligned.m64n{n}k32.f32.e4m3.e4m3 {{{}}}, %rd1, %rd2, 1, 1, 1;",
        registers.join(", ")
    );
    let clear: String = registers.iter().map(|f| format!("mov.f32 {f}, 0f00000000;\n")).collect();
    let text = format!(
        ".version 8.7\n.target sm_90a\n.address_size 64
        .extern .shared .align 1024 .b8 tiles[];
        .visible .entry k() .maxntid 128, 1, 1
        {{
        .reg .pred %p<4>; .reg .b32 %r<8>; .reg .b64 %rd<8>; .reg .f32 %f<{n}>;
        mov.u32 %r1, %tid.x;
        mov.u32 %r2, tiles;
        shl.b32 %r3, %r1, 2;
        add.u32 %r3, %r3, %r2;
        mov.u32 %r4, 0;
        FILL:
        st.shared.u32 [%r3], 0x38343630;
        add.u32 %r3, %r3, 512;
        add.u32 %r4, %r4, 512;
        setp.lt.u32 %p1, %r4, {bytes};
        @%p1 bra FILL;
        fence.proxy.async;
        bar.sync 0;
        shr.u32 %r5, %r2, 4;
        cvt.u64.u32 %rd1, %r5;
        or.b64 %rd1, %rd1, 4611686293305360384;
        add.u64 %rd2, %rd1, 512;
        {clear}
        mov.u32 %r4, 0;
        LOOP:
        wgmma.fence.sync.aligned;
        {product}
        {product}
        {product}
        {product}
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        add.u32 %r4, %r4, 1;
        setp.lt.u32 %p1, %r4, 64;
        @%p1 bra LOOP;
        ret;
        }}",
        bytes = 128 * (64 + n),
    );
    let machine = Machine::new(MachineConfig { workers: 1, ..MachineConfig::default() });
    let module = machine.load(&text).expect("every instruction is known");
    let launch = Launch {
        module: &module,
        entry: "k",
        grid: [1, 1, 1],
        block: [128, 1, 1],
        cluster: [1, 1, 1],
        dynamic_shared: 128 * (64 + n as u32),
        cooperative: false,
        params: &[],
        seed: 0,
        workers: None,
    };
    report(&format!("kernel of m64n{n}k32 e4m3"), 64 * 4 * 64 * n * 32, || {
        black_box(machine.launch(&launch).expect("a right kernel"));
    });
}
