//! `wgmma.mma_async` as executed: types, scales, operands from registers, groups (ISA "wgmma"). Layouts and
//! arithmetic have tests of their own in `mma_wgmma.rs`.

use super::common::Kernel;
use super::tile::{BYTES, check, operands, product, tile};
use super::{SEEDS, run};
use ptx_sim::FaultKind;
use ptx_sim::formats::{E4M3_TO_F32, E5M2_TO_F32};

#[test]
fn a_tile_through_tma() {
    for seed in SEEDS {
        let (mut kernel, out) = tile(&[]);
        kernel.seed = seed;
        let counters = run(&kernel, 1, 128);
        check(&kernel, out, 16, product);
        assert_eq!(counters.tensor_flops, 2 * 64 * 16 * 128);
        assert_eq!(counters.global_load_bytes, u64::from(BYTES));
        assert_eq!(counters.of(ptx_sim::counters::Class::Tensor), 4 * 4);
    }
}

#[test]
fn two_groups_in_flight() {
    // The second half of K is a group of its own, and only the first is waited for before its operands are
    // overwritten.
    let second = "add.u64 %rd10, %rd10, 2;
    add.u64 %rd11, %rd11, 2;
    wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 {%f0, %f1, %f2, %f3, %f4, %f5, %f6, %f7}, %rd10, %rd11, 1, 1, 1;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;";
    let split =
        second.replacen("wgmma.mma_async", "wgmma.commit_group.sync.aligned;\nwgmma.mma_async", 1).replace(
            "wait_group.sync.aligned 0;",
            "wait_group.sync.aligned 1;\nwgmma.wait_group.sync.aligned 0;",
        );
    for seed in SEEDS {
        let (mut kernel, out) = tile(&[(second, &split)]);
        kernel.seed = seed;
        run(&kernel, 1, 128);
        check(&kernel, out, 16, product);
    }
}

#[test]
fn signs_and_a_predicate_for_scale_d() {
    let first = "%rd10, %rd11, 0, 1, 1;";
    for (change, factor) in [
        ("%rd10, %rd11, 0, -1, 1;", -1.0),
        ("%rd10, %rd11, 0, -1, -1;", 1.0),
        ("%rd10, %rd11, %p9, 1, 1;", 1.0),
        ("%rd10, %rd11, !%p8, 1, 1;", 1.0),
    ] {
        let (kernel, out) = tile(&[
            (first, change),
            ("wgmma.fence", "setp.ne.u32 %p9, %r10, %r10; setp.eq.u32 %p8, %r10, %r10; wgmma.fence"),
        ]);
        run(&kernel, 1, 128);
        // Only the first 32 of K are scaled.
        let (a, b) = operands();
        let value = |byte: u8| f64::from(E4M3_TO_F32[usize::from(byte)]);
        check(&kernel, out, 16, |row, column| {
            let term = |k: usize| value(a[128 * row + k]) * value(b[128 * column + k]);
            (0..32).map(term).sum::<f64>() * factor + (32..128).map(term).sum::<f64>()
        });
    }
}

#[test]
fn other_types_of_the_same_bytes() {
    for (types, table_a, table_b) in [
        ("e4m3.e5m2", &E4M3_TO_F32, &E5M2_TO_F32),
        ("e5m2.e4m3", &E5M2_TO_F32, &E4M3_TO_F32),
        ("e5m2.e5m2", &E5M2_TO_F32, &E5M2_TO_F32),
    ] {
        let types = format!(".f32.{types}");
        let (kernel, out) = tile(&[(".f32.e4m3.e4m3", types.as_str()); 4]);
        run(&kernel, 1, 128);
        let (a, b) = operands();
        check(&kernel, out, 16, |row, column| {
            let term = |k: usize| {
                f64::from(table_a[usize::from(a[128 * row + k])])
                    * f64::from(table_b[usize::from(b[128 * column + k])])
            };
            (0..128).map(term).sum()
        });
    }
}

/// One `m64n8k16` on halves: A from registers or row-major in shared memory, B transposed.
fn halves(a: &str, transposes: &str) -> (Kernel, u64) {
    let mut kernel = Kernel::new(&format!(
        ".param .u64 out
        ---
        .shared .align 1024 .b8 a[2048];
        .shared .align 1024 .b8 b[256];
        mov.u32 %r1, %tid.x;
        // Half number i of A is i % 7; of B, i % 5.
        mov.u32 %r10, a;
        mov.u32 %r11, b;
        mov.u32 %r2, %r1;
        FILL:
        rem.u32 %r3, %r2, 7;
        cvt.rn.f16.u32 %rs1, %r3;
        shl.b32 %r4, %r2, 1;
        add.u32 %r4, %r4, %r10;
        st.shared.b16 [%r4], %rs1;
        setp.ge.u32 %p1, %r2, 128;
        @%p1 bra SKIP;
        rem.u32 %r3, %r2, 5;
        cvt.rn.f16.u32 %rs1, %r3;
        shl.b32 %r4, %r2, 1;
        add.u32 %r4, %r4, %r11;
        st.shared.b16 [%r4], %rs1;
        SKIP:
        add.u32 %r2, %r2, 128;
        setp.lt.u32 %p2, %r2, 1024;
        @%p2 bra FILL;
        fence.proxy.async;
        bar.sync 0;
        // Four registers of A with 1.0 and 2.0 in each.
        mov.u32 %r30, 0x40003c00; mov.u32 %r31, %r30; mov.u32 %r32, %r30; mov.u32 %r33, %r30;
        // No swizzle: LBO 128, SBO 256 bytes.
        shr.u32 %r20, %r10, 4;
        cvt.u64.u32 %rd10, %r20;
        or.b64 %rd10, %rd10, 0x1000080000;
        shr.u32 %r21, %r11, 4;
        cvt.u64.u32 %rd11, %r21;
        or.b64 %rd11, %rd11, 0x1000080000;
        wgmma.fence.sync.aligned;
        wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {{%f0, %f1, %f2, %f3}}, {a}, %rd11, 0, 1, 1{transposes};
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        ld.param.u64 %rd3, [out];
        mul.wide.u32 %rd4, %r1, 16;
        add.u64 %rd3, %rd3, %rd4;
        st.global.v4.f32 [%rd3], {{%f0, %f1, %f2, %f3}};
        ret;"
    ));
    let out = kernel.alloc(2048);
    kernel.arg(out);
    (kernel, out)
}

#[test]
fn halves_from_shared_memory_and_registers() {
    // Cores of 8 rows of 8 halves: K in steps of 128 bytes, rows in steps of 256.
    let core = |row: usize, k: usize| 128 * (row / 8) + 64 * (k / 8) + 8 * (row % 8) + k % 8;
    let a = |row: usize, k: usize| (core(row, k) % 7) as f64;
    for seed in SEEDS {
        for (transposes, transposed) in [(", 0, 0", false), (", 0, 1", true)] {
            let (mut kernel, out) = halves("%rd10", transposes);
            kernel.seed = seed;
            run(&kernel, 1, 128);
            // Transposed, a core holds 8 rows of K and 8 columns, and K advances by LBO.
            let b = |n: usize, k: usize| match transposed {
                false => (core(n, k) % 5) as f64,
                true => ((64 * (k / 8) + 8 * (k % 8) + n) % 5) as f64,
            };
            check(&kernel, out, 8, |row, n| (0..16).map(|k| a(row, k) * b(n, k)).sum());
        }
        let (mut kernel, out) = halves("{%r30, %r31, %r32, %r33}", ", 0");
        kernel.seed = seed;
        run(&kernel, 1, 128);
        check(&kernel, out, 8, |_, n| (0..16).map(|k| (1 + k % 2) as f64 * (core(n, k) % 5) as f64).sum());
    }
}

#[test]
fn fragments_of_a_stay_until_the_wait() {
    for seed in SEEDS {
        let (mut kernel, _) = halves("{%r30, %r31, %r32, %r33}", ", 0; mov.u32 %r31, 0");
        kernel.seed = seed;
        super::common::expect_fault(kernel.run(1, 128), FaultKind::AsyncHazard);
    }
}

#[test]
fn register_counts() {
    for direction in ["inc", "dec"] {
        let count = format!("setmaxnreg.{direction}.sync.aligned.u32 40; wgmma.fence");
        let (kernel, out) = tile(&[("wgmma.fence", &count)]);
        run(&kernel, 1, 128);
        check(&kernel, out, 16, product);
    }
}
