//! `discard`: a weak write of an indeterminate value. What is wrong on purpose must be caught.

#![allow(clippy::result_large_err)]

mod common;

use common::{Kernel, expect_fault};
use ptx_sim::{Chain, Counters, Fault, FaultKind, Launch};

/// A kernel of 32 threads over two lines of 128 bytes: thread t has word t of the first at `%rd2`, whose line
/// begins at `%rd1`. `%p1` holds in thread 0.
fn kernel(body: &str) -> (Kernel, u64) {
    let mut kernel = Kernel::new(&format!(
        "
        .param .u64 data
        ---
        ld.param.u64 %rd1, [data];
        mov.u32 %r1, %tid.x;
        mul.wide.u32 %rd2, %r1, 4;
        add.u64 %rd2, %rd1, %rd2;
        setp.eq.u32 %p1, %r1, 0;
        {body}
        ret;"
    ));
    let words: Vec<u32> = (0..64).collect();
    let data = kernel.upload(&words);
    kernel.arg(data);
    (kernel, data)
}

fn run(body: &str) -> Result<Counters, Fault> {
    kernel(body).0.run(1, 32)
}

#[test]
fn what_is_read_before_and_written_anew_is_right() {
    let (kernel, data) = kernel(
        "ld.global.u32 %r2, [%rd2];
        bar.warp.sync 0xffffffff;
        @%p1 discard.global.L2 [%rd1], 128;
        bar.warp.sync 0xffffffff;
        add.u32 %r2, %r2, 100;
        st.global.u32 [%rd2], %r2;
        ld.global.u32 %r3, [%rd2];",
    );
    let counters = kernel.run(1, 32).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!((counters.global_load_bytes, counters.global_store_bytes), (256, 128));
    let expected: Vec<u32> = (100..132).chain(32..64).collect();
    assert_eq!(kernel.words(data, 64), expected);
}

#[test]
fn discarded_bytes_are_not_read() {
    for discard in ["discard.global.L2 [%rd1], 128;", "discard.L2 [%rd1], 128;"] {
        let read = format!("@%p1 {discard}\nbar.warp.sync 0xffffffff;\nld.global.u32 %r2, [%rd2];");
        let fault = expect_fault(run(&read), FaultKind::Uninitialised);
        assert!(fault.detail.contains("byte 0 of"), "{fault}");
        // The next line keeps what it holds, and a part of this one that is written anew is there again.
        run(&format!("@%p1 {discard}\nbar.warp.sync 0xffffffff;\nld.global.u32 %r2, [%rd2+128];")).unwrap();
        let part = format!("@%p1 {discard}\n@%p1 st.global.u32 [%rd1+64], 7;\n@%p1 ld.global.u32 %r2, ");
        run(&format!("{part}[%rd1+64];")).unwrap();
        expect_fault(run(&format!("{part}[%rd1+68];")), FaultKind::Uninitialised);
    }
}

/// Copies are not checked: they see that the bytes have changed, and bring what says so along.
#[test]
fn discarded_bytes_change() {
    let (mut kernel, data) = kernel("@%p1 discard.global.L2 [%rd1+128], 128;");
    kernel.run(1, 32).unwrap();
    let words = kernel.words(data, 64);
    assert!(words[..32].iter().copied().eq(0..32) && words[32..].iter().all(|&word| word > 1 << 16));
    let copy = kernel.alloc(256);
    kernel.machine.copy(copy, data, 256).unwrap();
    let mut reader =
        Kernel::new(".param .u64 at\n---\nld.param.u64 %rd1, [at];\nld.global.u32 %r1, [%rd1];\nret;");
    std::mem::swap(&mut reader.machine, &mut kernel.machine);
    reader.arg(copy + 128);
    expect_fault(reader.run(1, 1), FaultKind::Uninitialised);
}

#[test]
fn addresses_that_are_no_lines() {
    for (address, kind) in [
        ("%rd1+64", FaultKind::Misaligned),
        ("%rd1+4", FaultKind::Misaligned),
        ("%rd1+256", FaultKind::OutOfBounds),
        ("%rd1-128", FaultKind::OutOfBounds),
        ("0", FaultKind::OutOfBounds),
    ] {
        expect_fault(run(&format!("@%p1 discard.global.L2 [{address}], 128;")), kind);
    }
    let shared = ".shared .align 128 .b8 line[128]; cvta.shared.u64 %rd3, line; discard.L2 [%rd3], 128;";
    expect_fault(run(shared), FaultKind::InvalidOperand);
}

#[test]
fn a_discard_races_as_a_store_does() {
    // Block 0 tells all others by `red.relaxed`, which releases nothing: that it has read, or discarded.
    let meet = |first: &str, release: &str, second: &str| {
        let mut kernel = Kernel::new(&format!(
            "
            .param .u64 data, .param .u64 flag
            ---
            ld.param.u64 %rd1, [data];
            ld.param.u64 %rd2, [flag];
            mov.u32 %r1, %ctaid.x;
            setp.ne.u32 %p1, %r1, 0;
            @%p1 bra LOOK;
            {first}
            {release}
            red.relaxed.gpu.global.add.u32 [%rd2], 1;
            bra DONE;
        LOOK:
            ld.relaxed.gpu.global.u32 %r2, [%rd2];
            setp.eq.u32 %p2, %r2, 0;
            @%p2 bra LOOK;
            fence.acq_rel.gpu;
            {second}
        DONE:
            ret;"
        ));
        let data = kernel.upload(&[1; 32]);
        let flag = kernel.upload(&[0]);
        kernel.arg(data).arg(flag);
        kernel.cooperative = true;
        kernel.run(2, 1)
    };
    let discard = "discard.global.L2 [%rd1], 128;";
    for other in ["st.global.u32 [%rd1+124], 7;", discard] {
        for [first, second] in [[discard, other], [other, discard]] {
            expect_fault(meet(first, "", second), FaultKind::Race);
            meet(first, "fence.acq_rel.gpu;", second).unwrap_or_else(|fault| panic!("{fault}"));
        }
    }
    let read = "ld.global.u32 %r3, [%rd1];";
    expect_fault(meet(discard, "", read), FaultKind::Race);
    expect_fault(meet(discard, "fence.acq_rel.gpu;", read), FaultKind::Uninitialised);
}

#[test]
fn what_a_kernel_has_discarded_is_not_settled() {
    let (kernel, data) = kernel("@%p1 discard.global.L2 [%rd1], 128;");
    let mut chain = Chain::new();
    let mut launch = || {
        let launch = Launch {
            module: &kernel.module,
            entry: "k",
            grid: [1; 3],
            block: [32, 1, 1],
            cluster: [1; 3],
            dynamic_shared: 0,
            cooperative: false,
            params: &data.to_le_bytes(),
            seed: 0,
            workers: None,
        };
        kernel.machine.launch_in(&mut chain, true, &launch)
    };
    launch().unwrap();
    expect_fault(launch(), FaultKind::MissingGridWait);
}

#[test]
fn other_forms_are_refused() {
    let module = |text: &str| {
        let machine = kernel("").0.machine;
        machine
            .load(&format!(
                ".version 8.7\n.target sm_90a\n.address_size 64\n.visible .entry k()\n\
                 {{\n.reg .b64 %rd<2>;\n.reg .b32 %r<2>;\n{text}\nret;\n}}\n"
            ))
            .map(drop)
    };
    module("discard.global.L2 [%rd1], 128;").unwrap();
    for text in [
        "discard.global.L2 [%rd1], 64;",
        "discard.global.L2 [%rd1];",
        "discard.global [%rd1], 128;",
        "discard.shared.L2 [%rd1], 128;",
        "discard.global.L2 [%r1], 128;",
    ] {
        module(text).unwrap_err();
    }
}
