//! Phases, counts, states, and what passes from who arrives to who waits (ISA "mbarrier").

use super::common::Kernel;
use super::{SEEDS, noise, run, upload};
use ptx_sim::counters::Class;

/// A kernel of one thread in which `%r1` is the address of an uninitialised mbarrier, and `out` collects
/// words.
fn one_thread(body: &str) -> Kernel {
    let mut text = String::from(
        ".param .u64 out
        ---
        .shared .align 8 .b64 bar;
        ld.param.u64 %rd1, [out];
        mov.u32 %r1, bar;\n",
    );
    // `note %p;` and `note %r;` append to the output.
    let mut at = 0;
    for line in body.lines() {
        match line.trim().strip_prefix("note ").map(|rest| rest.trim_end_matches(';')) {
            Some(p) if p.starts_with("%p") => {
                text += &format!("selp.u32 %r99, 1, 0, {p};\nst.global.u32 [%rd1+{at}], %r99;\n");
                at += 4;
            }
            Some(r) => {
                text += &format!("st.global.u32 [%rd1+{at}], {r};\n");
                at += 4;
            }
            None => text += &format!("{line}\n"),
        }
    }
    let mut kernel = Kernel::new(&(text + "ret;"));
    let out = kernel.alloc(256);
    kernel.arg(out);
    kernel
}

fn results(body: &str, count: usize) -> Vec<u32> {
    let kernel = one_thread(body);
    run(&kernel, 1, 1);
    let at = 0x1000_0000_0000 + 256;
    kernel.words(at, count)
}

#[test]
fn phases_by_parity() {
    let body = "
        mbarrier.init.shared::cta.b64 [%r1], 2;
        mbarrier.test_wait.parity.shared::cta.b64 %p1, [%r1], 0;
        note %p1;
        mbarrier.test_wait.parity.shared::cta.b64 %p1, [%r1], 1;
        note %p1;
        mbarrier.arrive.shared::cta.b64 _, [%r1];
        mbarrier.test_wait.parity.acquire.cta.shared::cta.b64 %p1, [%r1], 0;
        note %p1;
        mbarrier.arrive.release.cta.shared::cta.b64 %rd3, [%r1];
        mbarrier.test_wait.parity.shared.b64 %p1, [%r1], 0;
        note %p1;
        mbarrier.try_wait.parity.relaxed.cluster.shared::cta.b64 %p1, [%r1], 0, 1000;
        note %p1;
        mbarrier.test_wait.parity.shared.b64 %p1, [%r1], 1;
        note %p1;";
    assert_eq!(results(body, 6), [0, 1, 0, 1, 1, 0]);
}

#[test]
fn states_and_pending_counts() {
    let body = "
        mbarrier.init.shared.b64 [%r1], 5;
        mbarrier.arrive.shared.b64 %rd3, [%r1], 2;
        mbarrier.pending_count.b64 %r2, %rd3;
        note %r2;
        mbarrier.arrive.noComplete.shared.b64 %rd4, [%r1], 2;
        mbarrier.pending_count.b64 %r2, %rd4;
        note %r2;
        mbarrier.test_wait.shared.b64 %p1, [%r1], %rd3;
        note %p1;
        mbarrier.arrive.shared.b64 %rd5, [%r1];
        mbarrier.test_wait.shared.b64 %p1, [%r1], %rd3;
        note %p1;
        mbarrier.try_wait.shared.b64 %p1, [%r1], %rd5;
        note %p1;
        mbarrier.arrive_drop.shared.b64 %rd6, [%r1], 3;
        mbarrier.pending_count.b64 %r2, %rd6;
        note %r2;
        mbarrier.arrive.shared.b64 _, [%r1], 2;
        mbarrier.arrive.shared.b64 %rd7, [%r1];
        mbarrier.pending_count.b64 %r2, %rd7;
        note %r2;";
    assert_eq!(results(body, 7), [5, 3, 0, 1, 1, 5, 2]);
}

#[test]
fn bytes_hold_a_phase_back() {
    let body = "
        mbarrier.init.shared::cta.b64 [%r1], 1;
        mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r1], 8;
        mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%r1], 24;
        mbarrier.test_wait.parity.shared::cta.b64 %p1, [%r1], 0;
        note %p1;
        mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r1], 16;
        mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [%r1], 16;
        mbarrier.test_wait.parity.shared::cta.b64 %p1, [%r1], 0;
        note %p1;
        mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r1], 16;
        mbarrier.test_wait.parity.shared::cta.b64 %p1, [%r1], 0;
        note %p1;
        mbarrier.inval.shared::cta.b64 [%r1];
        st.shared.u32 [%r1], 77;
        ld.shared.u32 %r2, [%r1];
        note %r2;";
    assert_eq!(results(body, 4), [0, 0, 1, 77]);
}

#[test]
fn generic_addresses() {
    let body = "
        cvt.u64.u32 %rd2, %r1;
        cvta.shared.u64 %rd2, %rd2;
        mbarrier.init.b64 [%rd2], 1;
        mbarrier.arrive.b64 %rd3, [%rd2];
        mbarrier.test_wait.b64 %p1, [%rd2], %rd3;
        note %p1;";
    assert_eq!(results(body, 1), [1]);
}

#[test]
fn a_suspended_wait_times_out() {
    // The thread that waits is the one that has to arrive.
    let body = "
        mbarrier.init.shared::cta.b64 [%r1], 1;
        mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r1], 0;
        note %p1;
        mbarrier.arrive.shared::cta.b64 _, [%r1];
        mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r1], 0;
        note %p1;";
    assert_eq!(results(body, 2), [0, 1]);
}

/// Warp 0 fills a ring of two words per lane, warp 1 empties it, eight rounds.
const RING: &str = "
    .param .u64 out
    ---
    .shared .align 8 .b64 full[2];
    .shared .align 8 .b64 empty[2];
    .shared .align 4 .b8 ring[256];
    mov.u32 %r1, %tid.x;
    mov.u32 %r10, full;
    mov.u32 %r11, empty;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra READY;
    mbarrier.init.shared::cta.b64 [%r10], 32;
    mbarrier.init.shared::cta.b64 [%r10+8], 32;
    mbarrier.init.shared::cta.b64 [%r11], 32;
    mbarrier.init.shared::cta.b64 [%r11+8], 32;
    READY:
    bar.sync 0;
    and.b32 %r2, %r1, 31;
    shl.b32 %r2, %r2, 2;
    mov.u32 %r3, ring;
    add.u32 %r2, %r2, %r3;
    mov.u32 %r4, 0;
    mov.u32 %r9, 0;
    setp.ge.u32 %p2, %r1, 32;
    @%p2 bra CONSUME;
    PRODUCE:
    and.b32 %r5, %r4, 1;
    shr.u32 %r6, %r4, 1;
    not.b32 %r6, %r6;
    and.b32 %r6, %r6, 1;
    shl.b32 %r7, %r5, 3;
    add.u32 %r8, %r11, %r7;
    EMPTY:
    mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r8], %r6;
    @!%p3 bra EMPTY;
    shl.b32 %r12, %r5, 7;
    add.u32 %r12, %r12, %r2;
    mad.lo.u32 %r13, %r4, 100, %r1;
    st.shared.u32 [%r12], %r13;
    add.u32 %r8, %r10, %r7;
    mbarrier.arrive.shared::cta.b64 _, [%r8];
    add.u32 %r4, %r4, 1;
    setp.lt.u32 %p4, %r4, 8;
    @%p4 bra PRODUCE;
    ret;
    CONSUME:
    and.b32 %r5, %r4, 1;
    shr.u32 %r6, %r4, 1;
    and.b32 %r6, %r6, 1;
    shl.b32 %r7, %r5, 3;
    add.u32 %r8, %r10, %r7;
    FULL:
    mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r8], %r6;
    @!%p3 bra FULL;
    shl.b32 %r12, %r5, 7;
    add.u32 %r12, %r12, %r2;
    ld.shared.u32 %r13, [%r12];
    mad.lo.u32 %r9, %r9, 3, %r13;
    add.u32 %r8, %r11, %r7;
    mbarrier.arrive.shared::cta.b64 _, [%r8];
    add.u32 %r4, %r4, 1;
    setp.lt.u32 %p4, %r4, 8;
    @%p4 bra CONSUME;
    ld.param.u64 %rd1, [out];
    sub.u32 %r14, %r1, 32;
    mul.wide.u32 %rd2, %r14, 4;
    add.u64 %rd1, %rd1, %rd2;
    st.global.u32 [%rd1], %r9;
    ret;";

#[test]
fn a_ring_between_two_warps() {
    for seed in SEEDS {
        let mut kernel = Kernel::new(RING);
        let out = kernel.alloc(128);
        kernel.arg(out);
        kernel.seed = seed;
        let counters = run(&kernel, 1, 64);
        let sum =
            |lane| (0..8u32).fold(0u32, |sum, round| sum.wrapping_mul(3).wrapping_add(100 * round + lane));
        assert_eq!(kernel.words(out, 32), (0..32).map(sum).collect::<Vec<_>>());
        assert!(counters.of(Class::Sync) >= 4 * 8 + 4);
    }
}

#[test]
fn a_ring_without_its_waits_races() {
    for wait in ["@!%p3 bra FULL;", "@!%p3 bra EMPTY;"] {
        let caught = SEEDS.filter(|&seed| {
            let mut kernel = Kernel::new(&RING.replace(wait, ""));
            let out = kernel.alloc(128);
            kernel.arg(out);
            kernel.seed = seed;
            // Where the other warp is far ahead by chance, nothing is wrong.
            kernel.run(1, 64).is_err()
        });
        assert!(caught.count() >= 3, "{wait}");
    }
}

/// Each of 64 threads copies 16 bytes, which another thread reads when the mbarrier says so.
fn tracked_copies(count: u32, arrive: &str) -> (Kernel, Vec<u8>, u64) {
    let mut kernel = Kernel::new(&format!(
        ".param .u64 in, .param .u64 out
        ---
        .shared .align 16 .b8 data[1024];
        .shared .align 8 .b64 bar;
        mov.u32 %r1, %tid.x;
        mov.u32 %r2, bar;
        mov.u32 %r3, data;
        setp.ne.u32 %p1, %r1, 0;
        @!%p1 mbarrier.init.shared::cta.b64 [%r2], {count};
        bar.sync 0;
        shl.b32 %r4, %r1, 4;
        add.u32 %r5, %r3, %r4;
        cvt.u64.u32 %rd3, %r4;
        ld.param.u64 %rd1, [in];
        add.u64 %rd1, %rd1, %rd3;
        cp.async.cg.shared.global [%r5], [%rd1], 16;
        {arrive}
        WAIT:
        mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], 0;
        @!%p2 bra WAIT;
        xor.b32 %r6, %r4, 512;
        add.u32 %r6, %r6, %r3;
        ld.shared.v4.u32 {{%r10, %r11, %r12, %r13}}, [%r6];
        ld.param.u64 %rd2, [out];
        add.u64 %rd2, %rd2, %rd3;
        st.global.v4.u32 [%rd2], {{%r10, %r11, %r12, %r13}};
        ret;"
    ));
    let data = noise(1024);
    let from = upload(&mut kernel, &data);
    let out = kernel.alloc(1024);
    kernel.arg(from).arg(out);
    (kernel, data, out)
}

#[test]
fn copies_that_an_mbarrier_tracks() {
    for seed in SEEDS {
        for (count, arrive) in [
            (64, "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%r2];"),
            // That the issuing thread waits as well takes nothing from those who wait for the mbarrier.
            (64, "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%r2]; cp.async.wait_all;"),
            (64, "cp.async.mbarrier.arrive.shared.b64 [%r2]; mbarrier.arrive.shared.b64 _, [%r2];"),
        ] {
            let (mut kernel, data, out) = tracked_copies(count, arrive);
            kernel.seed = seed;
            run(&kernel, 1, 64);
            let mut result = vec![0; 1024];
            kernel.machine.read(out, &mut result).expect("in bounds");
            let expected: Vec<u8> = data[512..].iter().chain(&data[..512]).copied().collect();
            assert_eq!(result, expected);
        }
    }
}

#[test]
fn a_plain_arrival_does_not_track_copies() {
    for seed in SEEDS {
        let (mut kernel, ..) = tracked_copies(64, "mbarrier.arrive.shared.b64 _, [%r2];");
        kernel.seed = seed;
        super::common::expect_fault(kernel.run(1, 64), ptx_sim::FaultKind::AsyncHazard);
    }
}
