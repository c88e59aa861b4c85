//! Asynchronous kernels that are wrong on purpose: each mistake must be caught, whatever the timing.

use super::bulk::prefetching;
use super::common::{Kernel, expect_fault};
use super::tile::{TILE, check, operands, place, product, tile};
use super::{SEEDS, U8, map, run, upload};
use ptx_sim::{Fault, FaultKind};

const FENCE: &str = "wgmma.fence.sync.aligned;";
const COMMIT: &str = "wgmma.commit_group.sync.aligned;";
const WAIT: &str = "wgmma.wait_group.sync.aligned 0;";

/// Runs the tile with lines exchanged under every seed; each run must end in this fault.
#[track_caller]
fn caught(changes: &[(&str, &str)], kind: FaultKind) -> Fault {
    let mut last = None;
    for seed in SEEDS {
        let (mut kernel, _) = tile(changes);
        kernel.seed = seed;
        last = Some(expect_fault(kernel.run(1, 128), kind));
    }
    last.expect("there are seeds")
}

#[test]
fn accumulators_before_their_wait() {
    let fault = caught(&[(WAIT, "")], FaultKind::AsyncHazard);
    assert!(fault.detail.contains("accumulator"), "{fault}");
    assert!(fault.place.ptx_text.starts_with("st.global"), "{fault}");
    caught(&[(WAIT, "wgmma.wait_group.sync.aligned 1;")], FaultKind::AsyncHazard);
    // Writing one is no better.
    caught(&[(COMMIT, "mov.f32 %f3, 0f00000000; wgmma.commit_group.sync.aligned;")], FaultKind::AsyncHazard);
    // A group that is not committed is not waited for.
    caught(&[(COMMIT, "")], FaultKind::AsyncHazard);
}

#[test]
fn operands_before_their_mbarrier() {
    let wait = "mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r12], 0;\n    @!%p2 bra WAIT;";
    let fault = caught(&[(wait, "")], FaultKind::AsyncHazard);
    assert!(fault.detail.contains("cp.async.bulk.tensor"), "{fault}");
    // A wait that gives up when its time is over may not have waited.
    let hasty = (0..32).filter(|seed| {
        let (mut kernel, _) = tile(&[("@!%p2 bra WAIT;", "")]);
        kernel.seed = 2 * seed + 1;
        kernel.run(1, 128).is_err()
    });
    assert!(hasty.count() >= 8);
    // Generic reads as well, by the warp that asked for the copy.
    let read = "bar.warp.sync -1; setp.lt.u32 %p7, %r1, 32; @%p7 ld.shared.u32 %r40, [%r10+64];";
    caught(&[("bar.warp.sync -1;", read)], FaultKind::AsyncHazard);
}

#[test]
fn wrong_numbers_of_bytes() {
    for (bytes, left) in [("10256", "16 bytes"), ("10224", "-16 bytes"), ("20480", "10240 bytes")] {
        let fault = caught(&[("_, [%r12], 10240;", &format!("_, [%r12], {bytes};"))], FaultKind::Deadlock);
        assert!(fault.detail.contains("the mbarrier at"), "{fault}");
        assert!(fault.detail.contains(left), "{fault}");
        assert!(fault.detail.contains("mbarrier.try_wait"), "{fault}");
    }
}

#[test]
fn one_load_is_forgotten() {
    let b = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r11], [%rd2, {0, 0}], [%r12];";
    let fault = caught(&[(b, "")], FaultKind::Deadlock);
    assert!(fault.detail.contains("2048 bytes"), "{fault}");
    // With the bytes to match, the operand was never written.
    caught(&[(b, ""), ("10240", "8192")], FaultKind::Uninitialised);
}

#[test]
fn overwriting_what_a_wgmma_reads() {
    let store = "@%p1 bra PAST; st.shared.u32 [%r10], %r1; PAST: bar.warp.sync -1;";
    let fault = caught(&[(WAIT, &format!("{store} {WAIT}"))], FaultKind::Race);
    assert!(fault.detail.contains("a wgmma of warpgroup 0"), "{fault}");
    // The copy engine may not do it either.
    let again = "@%p1 bra PAST;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r12], 8192;
        cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r10], [%rd1, {0, 0}], [%r12];
        PAST: bar.warp.sync -1;";
    caught(&[(WAIT, &format!("{again} {WAIT}"))], FaultKind::Race);
    // After the wait of every warp it is right.
    let after = format!("{WAIT} bar.sync 0; {again}");
    for seed in SEEDS {
        let (mut kernel, out) = tile(&[(WAIT, &after)]);
        kernel.seed = seed;
        run(&kernel, 1, 128);
        check(&kernel, out, 16, product);
    }
}

#[test]
fn generic_writes_need_a_proxy_fence() {
    // Thread 0 writes a word of A again, with what it holds.
    let touch = |fence: &str| {
        format!(
            "@%p1 bra PAST; ld.shared.u32 %r40, [%r10]; st.shared.u32 [%r10], %r40; {fence} PAST: bar.sync 0; {FENCE}"
        )
    };
    let fault = caught(&[(FENCE, &touch(""))], FaultKind::MissingProxyFence);
    assert!(fault.detail.contains("st.shared.u32"), "{fault}");
    caught(&[(FENCE, &touch("fence.acq_rel.cta;"))], FaultKind::MissingProxyFence);
    for fence in ["fence.proxy.async;", "fence.proxy.async.shared::cta;"] {
        for seed in SEEDS {
            let (mut kernel, out) = tile(&[(FENCE, &touch(fence))]);
            kernel.seed = seed;
            run(&kernel, 1, 128);
            check(&kernel, out, 16, product);
        }
    }
}

/// Changes that make every thread bring 16 bytes of B with `cp.async`, tracked by the mbarrier, with `before`
/// before it arrives and `after` behind its wait. The copies write through the generic proxy.
fn gathered(before: &str, after: &str) -> (Kernel, u64) {
    let copy = format!(
        "LOADED: bar.warp.sync -1;
        ld.param.u64 %rd20, [raw_b];
        mul.wide.u32 %rd21, %r1, 16;
        add.u64 %rd20, %rd20, %rd21;
        shr.u32 %r30, %r1, 3;
        xor.b32 %r31, %r1, %r30;
        and.b32 %r31, %r31, 7;
        shl.b32 %r31, %r31, 4;
        mad.lo.u32 %r30, %r30, 128, %r31;
        add.u32 %r30, %r30, %r11;
        cp.async.cg.shared.global [%r30], [%rd20], 16;
        {before}
        cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%r12];"
    );
    let b = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r11], [%rd2, {0, 0}], [%r12];";
    let (mut kernel, out) = tile(&[
        (".param .u64 out", ".param .u64 out, .param .u64 raw_b"),
        ("[%r12], 1;", "[%r12], 129;"),
        ("10240;", "8192;"),
        (b, ""),
        ("LOADED:\n    bar.warp.sync -1;", &copy),
        (FENCE, &format!("{after} {FENCE}")),
    ]);
    let raw_b = upload(&mut kernel, &operands().1);
    kernel.arg(raw_b);
    (kernel, out)
}

#[test]
fn gathered_operands_need_a_proxy_fence() {
    let fence = "fence.proxy.async.shared::cta;";
    for seed in SEEDS {
        // By those who multiply, or by those who copied, when they have waited for their copies.
        for (before, after) in [("", fence), (&*format!("cp.async.wait_all; {fence}"), "")] {
            let (mut kernel, out) = gathered(before, after);
            kernel.seed = seed;
            run(&kernel, 1, 128);
            check(&kernel, out, 16, product);
        }
        // A fence that comes while copies are under way is none for them.
        for before in ["", fence] {
            let (mut kernel, _) = gathered(before, "");
            kernel.seed = seed;
            let fault = expect_fault(kernel.run(1, 128), FaultKind::MissingProxyFence);
            assert!(fault.detail.contains("cp.async"), "{fault}");
        }
    }
}

#[test]
fn wgmma_without_its_fence() {
    let fault = caught(&[(FENCE, "")], FaultKind::AsyncHazard);
    assert!(fault.detail.contains("wgmma.fence"), "{fault}");
    // Touching accumulators calls for another one.
    let again = |fence: &str| {
        format!(
            "{WAIT} mov.f32 %f1, 0f3f800000; {fence}
            wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 {{%f0, %f1, %f2, %f3, %f4, %f5, %f6, %f7}}, %rd10, %rd11, 0, 1, 1;
            {COMMIT} {WAIT}"
        )
    };
    caught(&[(WAIT, &again(""))], FaultKind::AsyncHazard);
    let (kernel, _) = tile(&[(WAIT, &again(FENCE))]);
    run(&kernel, 1, 128);
}

#[test]
fn part_of_a_warpgroup() {
    for seed in SEEDS {
        for threads in [32, 96, 100] {
            let (mut kernel, _) = tile(&[]);
            kernel.seed = seed;
            expect_fault(kernel.run(1, threads), FaultKind::Divergent);
        }
    }
    // One warp has gone another way: the others wait for it, or find it gone.
    for seed in SEEDS {
        let leave = format!("setp.lt.u32 %p7, %r1, 32; @%p7 ret; {FENCE}");
        let (mut kernel, _) = tile(&[(FENCE, &leave)]);
        kernel.seed = seed;
        let fault = kernel.run(1, 128).expect_err("a warp is missing");
        assert!(matches!(fault.kind, FaultKind::Divergent | FaultKind::Deadlock), "{fault}");
    }
}

#[test]
fn addresses_that_do_not_fit() {
    caught(&[("[%r11], [%rd2, {0, 0}]", "[%r11+64], [%rd2, {0, 0}]")], FaultKind::Misaligned);
    caught(&[("[%r11], [%rd2, {0, 0}]", "[%r11+1024], [%rd2, {0, 0}]")], FaultKind::OutOfBounds);
    caught(&[("[%r11], [%rd2, {0, 0}]", "[%r11+65536], [%rd2, {0, 0}]")], FaultKind::OutOfBounds);
    // A pointer in place of a tensor map.
    caught(&[("ld.param.u64 %rd2, [map_b];", "ld.param.u64 %rd2, [out];")], FaultKind::InvalidOperand);
}

#[test]
fn bad_descriptors() {
    let with = |change: &str| format!("{change} {FENCE}");
    caught(&[(FENCE, &with("or.b64 %rd10, %rd10, 0x4000;"))], FaultKind::InvalidOperand);
    caught(&[(FENCE, &with("add.u64 %rd11, %rd11, 0x1000;"))], FaultKind::OutOfBounds);
    caught(
        &[(FENCE, &with("cvt.u64.u32 %rd12, %r1; add.u64 %rd11, %rd11, %rd12;"))],
        FaultKind::InvalidOperand,
    );
}

#[test]
fn mbarriers_that_are_none() {
    caught(&[("mbarrier.init.shared::cta.b64 [%r12], 1;", "")], FaultKind::InvalidOperand);
    // Everybody has to know that it was initialised.
    for seed in SEEDS {
        let (mut kernel, _) = tile(&[("READY:\n    bar.sync 0;", "READY:")]);
        kernel.seed = seed;
        let fault = kernel.run(1, 128).expect_err("no order between initialisation and use");
        assert!(matches!(fault.kind, FaultKind::Race | FaultKind::InvalidOperand), "{fault}");
        assert!(fault.detail.contains("mbarrier"), "{fault}");
    }
    // It is nobody else's memory.
    caught(&[("bar.warp.sync -1;", "st.shared.u32 [%r12], %r1;")], FaultKind::InvalidOperand);
    caught(
        &[("_, [%r12], 10240;", "_, [%r12], 10240; mbarrier.arrive.shared::cta.b64 _, [%r12];")],
        FaultKind::InvalidOperand,
    );
}

/// The tile with row 3 of A never written on the device.
fn hollow(seed: u64, text: &str) -> (Kernel, u64) {
    let mut kernel = Kernel::new(text);
    let (a, b) = operands();
    let at_a = kernel.alloc(8192);
    kernel.machine.write(at_a, &a[..384]).expect("fits");
    kernel.machine.write(at_a + 512, &a[512..]).expect("fits");
    let at_b = upload(&mut kernel, &b);
    let map_a = map(&mut kernel, U8, at_a, &[128, 64], &[128, 64], 3);
    let map_b = map(&mut kernel, U8, at_b, &[128, 16], &[128, 16], 3);
    let out = kernel.alloc(4096);
    kernel.arg(map_a).arg(map_b).arg(out).seed = seed;
    (kernel, out)
}

#[test]
fn what_nobody_has_written() {
    for seed in SEEDS {
        // That row of D is not a number, the others are right: rows that pad a tile do no harm.
        let (kernel, out) = hollow(seed, TILE);
        run(&kernel, 1, 128);
        for (at, bits) in kernel.words(out, 1024).into_iter().enumerate() {
            let (row, _) = place(at / 8, at % 8);
            assert_eq!(f32::from_bits(bits).is_nan(), row == 3);
        }
        // A generic read of such bytes is a mistake in itself.
        let (kernel, _) =
            hollow(seed, &TILE.replace(FENCE, "ld.shared.u32 %r40, [%r10+384]; wgmma.fence.sync.aligned;"));
        expect_fault(kernel.run(1, 128), FaultKind::Uninitialised);
    }
}

#[test]
fn prefetches_of_what_is_not_there() {
    // 32 lanes, 1024 bytes apart, of 32 KiB.
    for (offset, size, kind, detail) in [
        (16, 1024, FaultKind::OutOfBounds, "bulk prefetch of 1024 bytes"),
        (0, 1040, FaultKind::OutOfBounds, "outside the allocation of 32768 bytes"),
        (1 << 40, 16, FaultKind::OutOfBounds, "never allocated"),
        (8, 512, FaultKind::Misaligned, "not a multiple of 16"),
        (0, 72, FaultKind::InvalidOperand, "the size must be a multiple of 16"),
    ] {
        let mut kernel = prefetching(1024, size, "");
        let from = kernel.alloc(32 << 10);
        kernel.arg(from + offset);
        let fault = expect_fault(kernel.run(1, 32), kind);
        assert!(fault.detail.contains(detail), "{fault}");
    }
    let mut kernel = prefetching(1024, 1024, "");
    let from = kernel.alloc(32 << 10);
    kernel.arg(from);
    kernel.machine.free(from).expect("is allocated");
    expect_fault(kernel.run(1, 32), FaultKind::UseAfterFree);
}

/// One warp writes 128 bytes, and its first lane stores them in bulk.
fn bulk_store(before: &str, after: &str) -> Kernel {
    let mut kernel = Kernel::new(&format!(
        ".param .u64 out
        ---
        .shared .align 128 .b8 data[128];
        mov.u32 %r1, %tid.x;
        mov.u32 %r3, data;
        shl.b32 %r5, %r1, 2;
        add.u32 %r5, %r5, %r3;
        st.shared.u32 [%r5], %r1;
        {before}
        bar.warp.sync -1;
        setp.ne.u32 %p1, %r1, 0;
        @%p1 bra STORED;
        ld.param.u64 %rd2, [out];
        cp.async.bulk.global.shared::cta.bulk_group [%rd2], [%r3], 128;
        cp.async.bulk.commit_group;
        {after}
        STORED:
        bar.warp.sync -1;
        st.shared.u32 [%r5], 0;
        ret;"
    ));
    let out = kernel.alloc(128);
    kernel.arg(out);
    kernel
}

#[test]
fn bulk_stores() {
    let fence = "fence.proxy.async.shared::cta;";
    for seed in SEEDS {
        for wait in ["cp.async.bulk.wait_group.read 0;", "cp.async.bulk.wait_group 0;"] {
            let mut kernel = bulk_store(fence, wait);
            kernel.seed = seed;
            run(&kernel, 1, 32);
            let mut kernel = bulk_store("", wait);
            kernel.seed = seed;
            expect_fault(kernel.run(1, 32), FaultKind::MissingProxyFence);
        }
        for wait in ["", "cp.async.bulk.wait_group.read 1;"] {
            let mut kernel = bulk_store(fence, wait);
            kernel.seed = seed;
            let fault = expect_fault(kernel.run(1, 32), FaultKind::Race);
            assert!(fault.detail.contains("a bulk store of warp 0"), "{fault}");
        }
    }
}
