//! `setmaxnreg`: the pool of a block, the launch that fills it, and uses that wait for ever or that the ISA
//! leaves undefined.

use super::common::{Kernel, expect_fault};
use super::{SEEDS, run};
use ptx_sim::{Fault, FaultKind};

/// What gives a thread 168 registers if there are 384 in a block.
const BOUNDS: &str = ".maxntid 384 .minnctapersm 1";

/// A kernel with these bounds, whose warpgroups 0, 1 and 2 execute these lines.
fn roles(bounds: &str, lines: [&str; 3]) -> Kernel {
    let [first, second, third] = lines.map(|lines| {
        lines
            .replace("inc ", "setmaxnreg.inc.sync.aligned.u32 ")
            .replace("dec ", "setmaxnreg.dec.sync.aligned.u32 ")
    });
    Kernel::from_module(&format!(
        ".version 8.7\n.target sm_90a\n.address_size 64\n.visible .entry k()\n{bounds}\n{{
        .reg .pred %p<8>;
        .reg .b32 %r<8>;
        mov.u32 %r1, %tid.x;
        setp.lt.u32 %p1, %r1, 128;
        setp.lt.u32 %p2, %r1, 256;
        setp.lt.u32 %p3, %r1, 32;
        @%p1 bra FIRST;
        @%p2 bra SECOND;
        {third}
        ret;
        SECOND:
        {second}
        ret;
        FIRST:
        {first}
        ret;
        }}"
    ))
}

/// Runs it with 384 threads under every seed.
#[track_caller]
fn right(bounds: &str, lines: [&str; 3]) {
    for seed in SEEDS {
        let mut kernel = roles(bounds, lines);
        kernel.seed = seed;
        // Blocks are alike: a warp that is used again starts with the registers of the launch.
        run(&kernel, 8, 384);
    }
}

/// Runs it with 384 threads under every seed; each run must end in this fault.
#[track_caller]
fn caught(bounds: &str, lines: [&str; 3], kind: FaultKind) -> Fault {
    let mut last = None;
    for seed in SEEDS {
        let mut kernel = roles(bounds, lines);
        kernel.seed = seed;
        last = Some(expect_fault(kernel.run(2, 384), kind));
    }
    last.expect("there are seeds")
}

#[test]
fn producers_give_and_consumers_take() {
    // 128 * 40 + 256 * 232 = 128 * 24 + 256 * 240 = 384 * 168.
    right(BOUNDS, ["inc 232;", "inc 232;", "dec 40;"]);
    right(BOUNDS, ["dec 24;", "inc 240;", "inc 240;"]);
    right(".reqntid 384, 1, 1 .minnctapersm 1", ["inc 232;", "inc 232;", "dec 40;"]);
    // Nothing changes.
    right(BOUNDS, ["inc 168;", "dec 168;", ""]);
    right(BOUNDS, ["", "dec 24; bar.sync 1, 128; inc 168; bar.sync 1, 128; dec 160;", ""]);
}

#[test]
fn more_than_the_launch_gave() {
    // 128 * 48 + 256 * 232 = 65536: on an H200 this hung.
    let fault =
        caught(BOUNDS, ["inc 232; bar.sync 0;", "inc 232; bar.sync 0;", "dec 48;"], FaultKind::Deadlock);
    for part in [
        "setmaxnreg.inc, which asks for 2048 registers for the warp",
        "the block's pool has 1024, the launch gave the block 64512",
        "`setmaxnreg.inc.sync.aligned.u32 232",
        "barrier 0",
    ] {
        assert!(fault.detail.contains(part), "{fault}");
    }
    // Without the barrier, the warp that waits is the last one.
    let fault = caught(BOUNDS, ["inc 232;", "inc 232;", "dec 48;"], FaultKind::Deadlock);
    assert!(fault.place.ptx_text.starts_with("setmaxnreg.inc"), "{fault}");
    // Nobody gives anything, or warps take what they had with them.
    caught(BOUNDS, ["inc 176;", "dec 168;", "dec 168;"], FaultKind::Deadlock);
    caught(BOUNDS, ["inc 176;", "", ""], FaultKind::Deadlock);
}

#[test]
fn an_inc_waits_for_a_later_dec() {
    // The registers of one warpgroup after the other: the giver keeps the second's until the first has its
    // own.
    let lines = [
        "bar.sync 2, 256; inc 232;",
        "inc 232; bar.arrive 1, 256;",
        "dec 104; bar.sync 1, 256; bar.arrive 2, 256; dec 40;",
    ];
    right(BOUNDS, lines);
    // From one that has first met a third.
    right(BOUNDS, ["inc 184;", "bar.sync 1, 256; dec 152;", "bar.arrive 1, 256;"]);
}

#[test]
fn what_the_launch_gives() {
    // Bounds, the largest count of an `inc`, and what a thread has: as ptxas 13.0 reports it.
    for (bounds, largest, count) in [
        (".maxntid 384 .minnctapersm 1", 232, 168),
        (".maxntid 257 .minnctapersm 1", 232, 168),
        (".maxntid 16, 24, 1 .minnctapersm 1", 232, 168),
        (".maxntid 128 .minnctapersm 3", 232, 168),
        (".maxntid 256 .minnctapersm 2", 232, 128),
        (".maxntid 416 .minnctapersm 1", 232, 128),
        (".maxntid 640 .minnctapersm 1", 232, 96),
        (".maxntid 512 .minnctapersm 3", 232, 40),
        (".maxntid 256 .minnctapersm 1", 232, 232),
        (".maxntid 256 .minnctapersm 1", 256, 256),
        (".maxntid 384 .minnctapersm 1", 96, 96),
        (".maxntid 384 .minnctapersm 1 .maxnreg 128", 232, 128),
        (".maxntid 384 .minnctapersm 1 .maxnreg 200", 232, 168),
        (".maxntid 384 .maxnreg 200", 232, 200),
        (".maxnreg 100", 232, 104),
        (".maxnreg 16", 232, 24),
    ] {
        // An `inc` to what a thread has already is nothing, and a `dec` to more says what it has.
        let lines = |first: &str| {
            let mut kernel = roles(bounds, [first, "", &format!("inc {largest};")]);
            kernel.seed = 1;
            kernel.run(1, 128)
        };
        if count == 256 {
            lines("dec 256;").unwrap_or_else(|fault| panic!("{bounds}: {fault}"));
            continue;
        }
        lines(&format!("dec {count};")).unwrap_or_else(|fault| panic!("{bounds}: {fault}"));
        let fault = expect_fault(lines(&format!("dec {};", count + 8)), FaultKind::InvalidOperand);
        assert!(fault.detail.contains(&format!("a thread has {count} ")), "{bounds}: {fault}");
    }
    // Otherwise ptxas ignores it.
    for bounds in ["", ".maxntid 384", ".minnctapersm 1", ".maxntid 384 .minnctapersm 6"] {
        right(bounds, ["inc 232;", "inc 232;", "inc 232;"]);
    }
}

#[test]
fn counts_on_the_wrong_side() {
    let fault = caught(BOUNDS, ["inc 232;", "inc 160;", "dec 24;"], FaultKind::InvalidOperand);
    assert!(fault.detail.contains("setmaxnreg.inc to 160 registers: a thread has 168"), "{fault}");
    let fault = caught(BOUNDS, ["inc 232;", "", "dec 176;"], FaultKind::InvalidOperand);
    assert!(fault.detail.contains("setmaxnreg.dec to 176 registers: a thread has 168"), "{fault}");
    let twice = "dec 40; bar.sync 1, 128; dec 48;";
    caught(BOUNDS, ["", twice, ""], FaultKind::InvalidOperand);
}

#[test]
fn all_warps_of_a_warpgroup_execute_the_same() {
    let one = "@%p3 bra LESS; dec 40; ret; LESS:";
    // Another one, or none.
    let fault = caught(BOUNDS, [&format!("{one} dec 40;"), "", ""], FaultKind::Divergent);
    assert!(fault.detail.contains("another setmaxnreg"), "{fault}");
    let fault = caught(BOUNDS, [one, "", ""], FaultKind::Divergent);
    assert!(fault.detail.contains("exits without") || fault.detail.contains("has exited"), "{fault}");
    // Lanes that part, or have exited.
    for guard in ["@%p4 ret;", "@%p4 bra SKIP;"] {
        let lines = format!("setp.eq.u32 %p4, %r1, 5; {guard} dec 40; SKIP: bar.sync 0;");
        caught(BOUNDS, [&lines, "bar.sync 0;", "bar.sync 0;"], FaultKind::Divergent);
    }
    // No such warps.
    for threads in [32, 96, 100] {
        let kernel = roles(BOUNDS, ["dec 40;", "", ""]);
        expect_fault(kernel.run(1, threads), FaultKind::Divergent);
    }
}

#[test]
fn a_second_one_needs_synchronisation() {
    let twice = |between: &str| format!("dec 40; {between} inc 48;");
    right(BOUNDS, [&twice("bar.sync 1, 128;"), "", ""]);
    for between in ["", "bar.warp.sync -1;"] {
        for seed in SEEDS {
            let mut kernel = roles(BOUNDS, [&twice(between), "", ""]);
            kernel.seed = seed;
            let fault = kernel.run(1, 384).expect_err("no order between the two");
            assert!(matches!(fault.kind, FaultKind::Divergent | FaultKind::Race), "{fault}");
            assert!(fault.detail.contains("setmaxnreg") || fault.detail.contains("synchronised"), "{fault}");
        }
    }
}
