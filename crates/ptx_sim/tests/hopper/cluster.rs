//! Blocks of a cluster that reach into each other's shared memory (ISA "mapa", "barrier.cluster", "st.async",
//! multicast).

use super::common::{Kernel, expect_fault};
use super::{SEEDS, U8, map, noise, run, upload};
use ptx_sim::FaultKind;

/// Every thread of two blocks writes its number into the other's memory, and reads its own after `between`.
fn exchange(between: &str) -> (Kernel, u64) {
    let mut kernel = Kernel::new(&format!(
        ".param .u64 out
        ---
        .shared .align 4 .b8 data[256];
        mov.u32 %r1, %tid.x;
        mov.u32 %r2, %cluster_ctarank;
        mov.u32 %r3, %cluster_nctarank;
        mov.u32 %r4, data;
        shl.b32 %r5, %r1, 2;
        add.u32 %r4, %r4, %r5;
        xor.b32 %r6, %r2, 1;
        mapa.shared::cluster.u32 %r7, %r4, %r6;
        getctarank.shared::cluster.u32 %r8, %r7;
        mad.lo.u32 %r9, %r2, 1000, %r1;
        mad.lo.u32 %r9, %r3, 100, %r9;
        mad.lo.u32 %r9, %r8, 10000, %r9;
        st.shared::cluster.u32 [%r7], %r9;
        {between}
        ld.shared.u32 %r10, [%r4];
        ld.param.u64 %rd1, [out];
        mov.u32 %r11, %ctaid.x;
        mad.lo.u32 %r12, %r11, 64, %r1;
        mul.wide.u32 %rd2, %r12, 4;
        add.u64 %rd1, %rd1, %rd2;
        st.global.u32 [%rd1], %r10;
        ret;"
    ));
    let out = kernel.alloc(1024);
    kernel.arg(out);
    kernel.cluster = 2;
    (kernel, out)
}

#[test]
fn a_barrier_of_the_cluster_orders() {
    for seed in SEEDS {
        for between in [
            "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;",
            "barrier.cluster.arrive.release; barrier.cluster.wait.acquire;",
            "fence.acq_rel.cluster; barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.acquire.aligned;",
        ] {
            let (mut kernel, out) = exchange(between);
            kernel.seed = seed;
            run(&kernel, 4, 64);
            let value = |i: u32| {
                let (rank, thread) = (i / 64 % 2, i % 64);
                10000 * rank + 1000 * (1 - rank) + 200 + thread
            };
            assert_eq!(kernel.words(out, 256), (0..256).map(value).collect::<Vec<_>>());
        }
    }
}

#[test]
fn without_order_it_is_a_race() {
    for seed in SEEDS {
        for between in ["", "bar.sync 0;", "barrier.cluster.arrive.relaxed; barrier.cluster.wait;"] {
            let (mut kernel, _) = exchange(between);
            kernel.seed = seed;
            // The other block may not have written yet, or may have exited.
            assert!(kernel.run(4, 64).is_err(), "{between}");
        }
    }
}

#[test]
fn arriving_twice_without_waiting() {
    let (kernel, _) = exchange("barrier.cluster.arrive; barrier.cluster.arrive; barrier.cluster.wait;");
    expect_fault(kernel.run(2, 64), FaultKind::InvalidOperand);
}

#[test]
fn the_directive_sets_the_cluster() {
    let text = "
        .version 8.7\n.target sm_90a\n.address_size 64
        .visible .entry k(.param .u64 out)
        .explicitcluster .reqnctapercluster 2, 1, 1 .maxclusterrank 4
        {
        .reg .b32 %r<8>; .reg .b64 %rd<4>;
        mov.u32 %r1, %cluster_nctarank;
        mov.u32 %r2, %clusterid.x;
        mov.u32 %r3, %cluster_ctaid.x;
        mov.u32 %r4, %nclusterid.x;
        mad.lo.u32 %r1, %r1, 10, %r2;
        mad.lo.u32 %r1, %r1, 10, %r3;
        mad.lo.u32 %r1, %r1, 10, %r4;
        mov.u32 %r5, %ctaid.x;
        mul.wide.u32 %rd2, %r5, 4;
        ld.param.u64 %rd1, [out];
        add.u64 %rd1, %rd1, %rd2;
        st.global.u32 [%rd1], %r1;
        ret;
        }";
    let mut kernel = Kernel::from_module(text);
    let out = kernel.alloc(16);
    kernel.arg(out);
    run(&kernel, 4, 1);
    assert_eq!(kernel.words(out, 4), [2002, 2012, 2102, 2112]);
    kernel.cluster = 4;
    expect_fault(kernel.run(4, 1), FaultKind::InvalidLaunch);
}

/// Two blocks that get the same kilobyte: each loads half for both.
const MULTICAST: &str = "
    .param .u64 map, .param .u64 out
    ---
    .shared .align 128 .b8 data[1024];
    .shared .align 8 .b64 full;
    .shared .align 8 .b64 empty;
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %cluster_ctarank;
    mov.u32 %r3, data;
    mov.u32 %r4, full;
    mov.u32 %r5, empty;
    ld.param.u64 %rd1, [map];
    ld.param.u64 %rd2, [out];
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra READY;
    mbarrier.init.shared::cta.b64 [%r4], 1;
    mbarrier.init.shared::cta.b64 [%r5], 4;
    fence.mbarrier_init.release.cluster;
    READY:
    barrier.cluster.arrive.relaxed.aligned;
    barrier.cluster.wait.acquire.aligned;
    shl.b32 %r6, %r2, 9;
    add.u32 %r7, %r3, %r6;
    shl.b32 %r8, %r2, 2;
    mov.u32 %r9, 0;
    mov.b16 %rs1, 3;
    mov.u32 %r30, 0;
    ROUND:
    and.b32 %r10, %r9, 1;
    xor.b32 %r11, %r10, 1;
    @%p1 bra LOADED;
    EMPTY:
    mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [%r5], %r11;
    @!%p2 bra EMPTY;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r4], 1024;
    shl.b32 %r16, %r9, 4;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r7], [%rd1, {%r16, %r8}], [%r4], %rs1;
    LOADED:
    bar.warp.sync -1;
    FULL:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r4], %r10;
    @!%p2 bra FULL;
    shl.b32 %r12, %r1, 4;
    add.u32 %r12, %r12, %r3;
    ld.shared.v4.u32 {%r20, %r21, %r22, %r23}, [%r12];
    xor.b32 %r20, %r20, %r21;
    xor.b32 %r22, %r22, %r23;
    xor.b32 %r20, %r20, %r22;
    mad.lo.u32 %r30, %r30, 31, %r20;
    bar.warp.sync -1;
    // One arrival of each warp at both blocks' barriers.
    and.b32 %r13, %r1, 31;
    setp.lt.u32 %p3, %r13, 2;
    @%p3 mapa.shared::cluster.u32 %r14, %r5, %r13;
    @%p3 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r14];
    add.u32 %r9, %r9, 1;
    setp.lt.u32 %p4, %r9, 5;
    @%p4 bra ROUND;
    mad.lo.u32 %r15, %r2, 64, %r1;
    mul.wide.u32 %rd3, %r15, 4;
    add.u64 %rd2, %rd2, %rd3;
    st.global.u32 [%rd2], %r30;
    // Nobody may leave while the other one arrives.
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    ret;";

fn multicast(text: &str, seed: u64) -> (Kernel, Vec<u8>, u64) {
    let mut kernel = Kernel::new(text);
    // Boxes of 4 rows of 128 bytes from column `16 * round`: rows are 256 bytes.
    let data = noise(8 * 256);
    let from = upload(&mut kernel, &data);
    let map = map(&mut kernel, U8, from, &[256, 8], &[128, 4], 0);
    let out = kernel.alloc(512);
    kernel.arg(map).arg(out);
    (kernel.cluster, kernel.seed) = (2, seed);
    (kernel, data, out)
}

#[test]
fn multicast_to_both_blocks() {
    for seed in SEEDS {
        let (kernel, data, out) = multicast(MULTICAST, seed);
        let counters = run(&kernel, 2, 64);
        assert_eq!(counters.global_load_bytes, 5 * 1024, "read once for both blocks");
        let value = |thread: usize| {
            (0..5).fold(0u32, |sum, round| {
                let at = 256 * (thread / 8) + 16 * (thread % 8) + 16 * round;
                let words = data[at..at + 16].chunks(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                sum.wrapping_mul(31).wrapping_add(words.fold(0, |x, w| x ^ w))
            })
        };
        assert_eq!(kernel.words(out, 128), (0..128).map(|i| value(i % 64)).collect::<Vec<_>>());
    }
}

#[test]
fn multicast_into_memory_that_the_other_block_still_reads() {
    // Warps tell only their own block that they are done.
    let broken = MULTICAST
        .replace("[%r5], 4;", "[%r5], 2;")
        .replace("setp.lt.u32 %p3, %r13, 2;", "setp.eq.u32 %p3, %r13, 0;")
        .replace("mapa.shared::cluster.u32 %r14, %r5, %r13;", "mapa.shared::cluster.u32 %r14, %r5, %r2;");
    for seed in SEEDS {
        let (kernel, ..) = multicast(&broken, seed);
        let fault = kernel.run(2, 64).expect_err("nothing orders the reads before the next load");
        assert!(
            matches!(fault.kind, FaultKind::Race | FaultKind::AsyncHazard | FaultKind::Deadlock),
            "{fault}"
        );
    }
}

/// Rank 0 sends 16 bytes to rank 1, which waits for them on its mbarrier.
fn sent(send: &str) -> Kernel {
    let mut kernel = Kernel::new(&format!(
        ".param .u64 out
        ---
        .shared .align 16 .b8 data[16];
        .shared .align 16 .b8 source[16];
        .shared .align 8 .b64 bar;
        mov.u32 %r1, data;
        mov.u32 %r2, bar;
        mov.u32 %r3, source;
        mov.u32 %r4, %cluster_ctarank;
        mbarrier.init.shared::cta.b64 [%r2], 1;
        fence.mbarrier_init.release.cluster;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 16;
        barrier.cluster.arrive;
        barrier.cluster.wait;
        setp.ne.u32 %p1, %r4, 0;
        @%p1 bra RECEIVE;
        mapa.shared::cluster.u32 %r5, %r1, 1;
        mapa.shared::cluster.u32 %r6, %r2, 1;
        mov.u32 %r10, 11; mov.u32 %r11, 22; mov.u32 %r12, 33; mov.u32 %r13, 44;
        {send}
        bra DONE;
        RECEIVE:
        mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], 0;
        @!%p2 bra RECEIVE;
        ld.shared.v4.u32 {{%r10, %r11, %r12, %r13}}, [%r1];
        ld.param.u64 %rd1, [out];
        st.global.v4.u32 [%rd1], {{%r10, %r11, %r12, %r13}};
        DONE:
        barrier.cluster.arrive;
        barrier.cluster.wait;
        ret;"
    ));
    kernel.cluster = 2;
    kernel
}

#[test]
fn sending_to_another_block() {
    let store = "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%r5], {%r10, %r11, %r12, %r13}, [%r6];";
    let copy = "st.shared.v4.u32 [%r3], {%r10, %r11, %r12, %r13};
        fence.proxy.async.shared::cta;
        cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r5], [%r3], 16, [%r6];";
    for seed in SEEDS {
        for send in [store, copy] {
            let mut kernel = sent(send);
            let out = kernel.alloc(16);
            kernel.arg(out).seed = seed;
            run(&kernel, 2, 1);
            assert_eq!(kernel.words(out, 4), [11, 22, 33, 44]);
        }
    }
}

#[test]
fn a_block_that_has_exited_cannot_be_reached() {
    let mut kernel = Kernel::new(
        "---
        .shared .align 8 .b64 bar;
        mov.u32 %r2, bar;
        mov.u32 %r4, %cluster_ctarank;
        mbarrier.init.shared::cta.b64 [%r2], 1;
        barrier.cluster.arrive;
        barrier.cluster.wait;
        setp.ne.u32 %p1, %r4, 0;
        @%p1 ret;
        mov.u32 %r5, 0;
        LATER:
        nanosleep.u32 100;
        add.u32 %r5, %r5, 1;
        setp.lt.u32 %p2, %r5, 200;
        @%p2 bra LATER;
        mapa.shared::cluster.u32 %r6, %r2, 1;
        mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r6];
        ret;",
    );
    kernel.cluster = 2;
    for seed in SEEDS {
        kernel.seed = seed;
        let fault = expect_fault(kernel.run(2, 1), FaultKind::OutOfBounds);
        assert!(fault.detail.contains("exited"), "{fault}");
    }
}
