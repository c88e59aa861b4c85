//! Kernels that are wrong on purpose: each mistake must be caught, whatever the timing.

#![allow(clippy::result_large_err)]

mod common;

use common::{Kernel, expect_fault};
use ptx_sim::FaultKind;

const SEEDS: std::ops::Range<u64> = 0..8;

/// 64 threads; each writes a word of shared memory and reads the one of the thread 32 further.
fn exchange(between: &str) -> Kernel {
    let mut kernel = Kernel::new(&format!(
        "
        .param .u64 out
        ---
        .shared .align 4 .b8 words[256];
        mov.u32 %r1, %tid.x;
        shl.b32 %r2, %r1, 2;
        mov.u32 %r3, words;
        add.u32 %r4, %r3, %r2;
        st.shared.u32 [%r4], %r1;
        {between}
        xor.b32 %r5, %r2, 128;
        add.u32 %r6, %r3, %r5;
        ld.shared.u32 %r7, [%r6];
        ld.param.u64 %rd1, [out];
        cvt.u64.u32 %rd2, %r2;
        add.s64 %rd1, %rd1, %rd2;
        st.global.u32 [%rd1], %r7;
        ret;"
    ));
    let out = kernel.alloc(256);
    kernel.arg(out);
    kernel
}

#[test]
fn missing_barrier() {
    for seed in SEEDS {
        let mut kernel = exchange("");
        kernel.seed = seed;
        // Depending on which warp is first, the value is not there yet, or it is and nothing says so.
        match kernel.run(1, 64) {
            Err(fault) if fault.kind == FaultKind::Race => {
                assert!(fault.place.ptx_text.starts_with("ld.shared"), "{fault}");
                assert!(fault.detail.contains("st.shared"), "names both places: {fault}");
            }
            other => drop(expect_fault(other, FaultKind::Uninitialised)),
        }
    }
}

#[test]
fn barriers_of_every_kind_order() {
    for between in [
        "bar.sync 0;",
        "barrier.sync 3;",
        "bar.sync 1, 64;",
        "mov.pred %p1, 1; bar.red.popc.u32 %r9, 0, %p1;",
        "bar.arrive 2, 64; bar.sync 2, 64;",
    ] {
        // The last one arrives twice with half of the threads' weight: wrong on purpose too.
        let kernel = exchange(between);
        if between.starts_with("bar.arrive") {
            assert!(kernel.run(1, 64).is_err());
        } else {
            kernel.run(1, 64).unwrap_or_else(|fault| panic!("{between}: {fault}"));
        }
    }
}

#[test]
fn a_barrier_between_other_warps_does_not_order() {
    for seed in SEEDS {
        // Warp 0 meets itself at the barrier.
        let mut kernel = exchange("setp.lt.u32 %p1, %r1, 32; @!%p1 bra L; bar.sync 1, 32; L:");
        kernel.seed = seed;
        assert!(kernel.run(1, 64).is_err());
    }
}

#[test]
fn overwriting_what_is_still_read() {
    for seed in SEEDS {
        let mut kernel = Kernel::new(
            "
            .param .u64 out
            ---
            .shared .align 4 .b8 words[256];
            mov.u32 %r1, %tid.x;
            shl.b32 %r2, %r1, 2;
            mov.u32 %r3, words;
            add.u32 %r4, %r3, %r2;
            st.shared.u32 [%r4], %r1;
            bar.sync 0;
            xor.b32 %r5, %r2, 128;
            add.u32 %r6, %r3, %r5;
            ld.shared.u32 %r7, [%r6];
            st.shared.u32 [%r4], %r7;
            ret;",
        );
        kernel.seed = seed;
        let out = kernel.alloc(256);
        kernel.arg(out);
        expect_fault(kernel.run(1, 64), FaultKind::Race);
    }
}

#[test]
fn uninitialised_global_memory() {
    let mut kernel = Kernel::new(
        "
        .param .u64 in
        ---
        ld.param.u64 %rd1, [in];
        ld.global.u32 %r1, [%rd1+4];
        ret;",
    );
    let data = kernel.alloc(8);
    kernel.machine.write(data, &[1; 7]).expect("fits");
    kernel.arg(data);
    let fault = expect_fault(kernel.run(1, 1), FaultKind::Uninitialised);
    assert!(fault.detail.contains("byte 4"), "{fault}");
}

#[test]
fn uninitialised_shared_memory() {
    let kernel = Kernel::new(
        "
        ---
        .shared .align 4 .b8 words[256];
        mov.u32 %r1, words;
        ld.shared.u32 %r2, [%r1+16];
        ret;",
    );
    expect_fault(kernel.run(1, 1), FaultKind::Uninitialised);
}

/// Whatever memory a block gets, what an earlier one wrote there is not there for it.
#[test]
fn shared_memory_of_another_block() {
    let mut kernel = Kernel::new(
        "
        .param .u64 writes
        ---
        .shared .align 4 .b8 words[16384];
        ld.param.u64 %rd1, [writes];
        ld.global.u32 %r3, [%rd1];
        setp.ne.u32 %p1, %r3, 0;
        mov.u32 %r1, words;
        @%p1 st.shared.u32 [%r1+16], %r3;
        @%p1 st.shared.u32 [%r1+12288], %r3;
        ld.shared.u32 %r2, [%r1+12288];
        ret;",
    );
    let writes = kernel.alloc(4);
    kernel.arg(writes);
    kernel.machine.write(writes, &[1, 0, 0, 0]).expect("fits");
    kernel.run(40, 1).expect("it reads what it wrote");
    kernel.machine.write(writes, &[0; 4]).expect("fits");
    expect_fault(kernel.run(1, 1), FaultKind::Uninitialised);
}

#[test]
fn shared_out_of_bounds() {
    for address in ["0", "%r9"] {
        let kernel = Kernel::new(&format!(
            "
            ---
            .shared .align 4 .b8 words[256];
            mov.u32 %r9, words;
            add.u32 %r9, %r9, 256;
            mov.u32 %r1, {address};
            st.shared.u32 [%r1], 7;
            ret;"
        ));
        expect_fault(kernel.run(1, 1), FaultKind::OutOfBounds);
    }
}

#[test]
fn misaligned_accesses() {
    for access in [
        "ld.global.u32 %r1, [%rd1+2];",
        "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1+8];",
        "st.global.u16 [%rd1+1], 0;",
    ] {
        let mut kernel =
            Kernel::new(&format!(".param .u64 in\n---\nld.param.u64 %rd1, [in];\n{access}\nret;"));
        let data = kernel.upload(&[0; 16]);
        kernel.arg(data);
        expect_fault(kernel.run(1, 1), FaultKind::Misaligned);
    }
}

#[test]
fn freed_memory() {
    let mut kernel =
        Kernel::new(".param .u64 in\n---\nld.param.u64 %rd1, [in];\nld.global.u32 %r1, [%rd1];\nret;");
    let data = kernel.upload(&[0; 16]);
    kernel.machine.free(data).expect("allocated");
    kernel.arg(data);
    expect_fault(kernel.run(1, 1), FaultKind::UseAfterFree);
}

#[test]
fn divergent_aligned_barrier() {
    for seed in SEEDS {
        let mut kernel = Kernel::new(
            "
            ---
            mov.u32 %r1, %tid.x;
            setp.lt.u32 %p1, %r1, 16;
            @%p1 bra L;
            bar.sync 0;
            L:
            bar.sync 1;
            ret;",
        );
        kernel.seed = seed;
        let fault = expect_fault(kernel.run(1, 32), FaultKind::Divergent);
        assert!(fault.place.ptx_text.starts_with("bar.sync"), "{fault}");
    }
}

#[test]
fn shuffle_without_its_lanes() {
    // Half of the lanes never come.
    let kernel = Kernel::new(
        "
        ---
        mov.u32 %r1, %tid.x;
        setp.lt.u32 %p1, %r1, 16;
        @!%p1 bra L;
        shfl.sync.bfly.b32 %r2, %r1, 1, 31, 0xffffffff;
        L:
        bar.warp.sync 0xffffffff;
        ret;",
    );
    expect_fault(kernel.run(1, 32), FaultKind::Divergent);
    // They have exited.
    let kernel = Kernel::new(
        "
        ---
        mov.u32 %r1, %tid.x;
        setp.ge.u32 %p1, %r1, 16;
        @%p1 exit;
        shfl.sync.bfly.b32 %r2, %r1, 16, 31, 0xffffffff;
        ret;",
    );
    let fault = expect_fault(kernel.run(1, 32), FaultKind::Divergent);
    assert!(fault.detail.contains("exited"), "{fault}");
    // The mask leaves the lane itself out.
    let kernel = Kernel::new("---\nshfl.sync.idx.b32 %r2, %r1, 0, 31, 0x0000ffff;\nret;");
    expect_fault(kernel.run(1, 32), FaultKind::Divergent);
}

#[test]
fn shuffle_among_those_who_are_there() {
    // Naming exited lanes is allowed as long as nobody reads them.
    let kernel = Kernel::new(
        "
        ---
        mov.u32 %r1, %tid.x;
        setp.ge.u32 %p1, %r1, 16;
        @%p1 exit;
        shfl.sync.bfly.b32 %r2, %r1, 8, 31, 0xffffffff;
        ret;",
    );
    kernel.run(1, 32).expect("no lane reads an exited one");
}

#[test]
fn matrix_instruction_without_a_whole_warp() {
    let kernel = Kernel::new(
        "
        ---
        mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%f1, %f2, %f3, %f4}, {%r1, %r2, %r3, %r4}, {%r5, %r6}, {%f1, %f2, %f3, %f4};
        ret;",
    );
    expect_fault(kernel.run(1, 31), FaultKind::Divergent);
}

#[test]
fn deadlock_says_who_waits_for_what() {
    for seed in SEEDS {
        let mut kernel = Kernel::new(
            "
            ---
            mov.u32 %r1, %tid.x;
            setp.lt.u32 %p1, %r1, 32;
            @%p1 bra FIRST;
            bar.sync 2, 64;
            bra.uni DONE;
            FIRST:
            bar.sync 1, 64;
            DONE:
            ret;",
        );
        kernel.seed = seed;
        let fault = expect_fault(kernel.run(1, 64), FaultKind::Deadlock);
        for part in ["barrier 1", "barrier 2", "warp 0", "warp 1", "32 of 64"] {
            assert!(fault.detail.contains(part), "{part}: {fault}");
        }
    }
}

#[test]
fn spinning_for_nobody_is_a_deadlock() {
    let mut kernel = Kernel::new(
        "
        .param .u64 flag
        ---
        ld.param.u64 %rd1, [flag];
        L:
        ld.acquire.gpu.global.u32 %r1, [%rd1];
        setp.eq.u32 %p1, %r1, 0;
        @%p1 bra L;
        ret;",
    );
    let flag = kernel.upload(&[0]);
    kernel.arg(flag);
    expect_fault(kernel.run(3, 32), FaultKind::Deadlock);
}

/// Copies 16 bytes per lane into shared memory, does `between`, reads them back in warp 1's place.
fn pipeline(between: &str) -> Kernel {
    let mut kernel = Kernel::new(&format!(
        "
        .param .u64 in, .param .u64 out
        ---
        .shared .align 16 .b8 stage[1024];
        mov.u32 %r1, %tid.x;
        shl.b32 %r2, %r1, 4;
        mov.u32 %r3, stage;
        add.u32 %r4, %r3, %r2;
        ld.param.u64 %rd1, [in];
        ld.param.u64 %rd2, [out];
        cvt.u64.u32 %rd3, %r2;
        add.s64 %rd1, %rd1, %rd3;
        cp.async.cg.shared.global [%r4], [%rd1], 16;
        cp.async.commit_group;
        {between}
        xor.b32 %r5, %r2, 512;
        add.u32 %r6, %r3, %r5;
        ld.shared.v4.u32 {{%r10, %r11, %r12, %r13}}, [%r6];
        add.s64 %rd2, %rd2, %rd3;
        st.global.v4.u32 [%rd2], {{%r10, %r11, %r12, %r13}};
        ret;"
    ));
    let data: Vec<u32> = (0..256).collect();
    let from = kernel.upload(&data);
    let out = kernel.alloc(1024);
    kernel.arg(from).arg(out);
    kernel
}

#[test]
fn copies_waited_for() {
    for seed in SEEDS {
        let mut kernel = pipeline("cp.async.wait_group 0;\nbar.sync 0;");
        kernel.seed = seed;
        kernel.run(1, 64).unwrap_or_else(|fault| panic!("{fault}"));
    }
}

#[test]
fn copies_not_waited_for() {
    for seed in SEEDS {
        for between in ["bar.sync 0;", "cp.async.wait_group 1;\nbar.sync 0;"] {
            let mut kernel = pipeline(between);
            kernel.seed = seed;
            let fault = expect_fault(kernel.run(1, 64), FaultKind::AsyncHazard);
            assert!(fault.detail.contains("cp.async"), "{fault}");
        }
    }
}

#[test]
fn copies_waited_for_by_their_own_warp_only() {
    for seed in SEEDS {
        let mut kernel = pipeline("cp.async.wait_group 0;");
        kernel.seed = seed;
        match kernel.run(1, 64) {
            Err(fault) if fault.kind == FaultKind::AsyncHazard => {}
            Err(fault) if fault.kind == FaultKind::Uninitialised => {}
            other => drop(expect_fault(other, FaultKind::Race)),
        }
    }
}

#[test]
fn trap_names_the_thread() {
    let kernel = Kernel::new(
        "
        ---
        .loc 1 42 7
        mov.u32 %r1, %tid.x;
        setp.eq.u32 %p1, %r1, 5;
        @%p1 trap;
        ret;",
    );
    let fault = expect_fault(kernel.run(2, 32), FaultKind::Trap);
    assert_eq!(fault.thread, Some([5, 0, 0]));
}

#[test]
fn the_source_line_is_named() {
    let text = "
        .version 8.7
        .target sm_90a
        .address_size 64
        .visible .entry k()
        {
        .reg .b32 %r<4>;
        .loc 1 42 7
        st.shared.u32 [0], %r1;
        ret;
        }
        .file 1 \"src/kernel.rs\"
        .file 2 \"/rustc/library/core/src/ptr/mut_ptr.rs\"
    ";
    let fault = expect_fault(Kernel::from_module(text).run(1, 1), FaultKind::OutOfBounds);
    assert_eq!(fault.rust_location(), Some(&("src/kernel.rs".to_string(), 42)));
    assert!(fault.to_string().contains("src/kernel.rs:42"), "{fault}");
}
