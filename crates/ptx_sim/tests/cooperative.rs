//! Blocks that wait for each other: all resident and scheduled fairly, their order through global memory
//! checked, and a deadlock where one of them has no place.

#![allow(clippy::result_large_err)]

mod common;

use common::{Kernel, expect_fault};
use ptx_sim::{Counters, Fault, FaultKind};

/// Every block stores a word, says so, waits until all have said so, and reads its neighbour's.
const MEETING: &str = ".param .u64 counter, .param .u64 data, .param .u64 out
    ---
    ld.param.u64 %rd1, [counter];
    ld.param.u64 %rd2, [data];
    ld.param.u64 %rd3, [out];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %nctaid.x;
    mov.u32 %r3, %tid.x;
    setp.ne.u32 %p1, %r3, STORER;
    mul.wide.u32 %rd4, %r1, 4;
    add.u64 %rd5, %rd2, %rd4;
    add.u32 %r4, %r1, 1;
    @%p1 bra SAY;
    st.global.u32 [%rd5], %r4;
SAY:
    bar.sync 0;
    setp.ne.u32 %p2, %r3, 0;
    @%p2 bra MEET;
    RELEASE
LOOK:
    ACQUIRE
    setp.lt.u32 %p3, %r5, %r2;
    @%p3 bra LOOK;
MEET:
    WAIT
    setp.ne.u32 %p4, %r3, READER;
    @%p4 bra DONE;
    rem.u32 %r6, %r4, %r2;
    mul.wide.u32 %rd6, %r6, 4;
    add.u64 %rd7, %rd2, %rd6;
    ld.LOAD.u32 %r7, [%rd7];
    add.u64 %rd8, %rd3, %rd4;
    st.global.u32 [%rd8], %r7;
DONE:
    ret;";

/// How the blocks meet, in PTX.
#[derive(Clone, Copy)]
struct Meeting {
    release: &'static str,
    acquire: &'static str,
    wait: &'static str,
    load: &'static str,
    /// The threads that store and read; thread 0 counts and looks.
    storer: u32,
    reader: u32,
}

const RIGHT: Meeting = Meeting {
    release: "red.release.gpu.global.add.u32 [%rd1], 1;",
    acquire: "ld.acquire.gpu.global.u32 %r5, [%rd1];",
    wait: "bar.sync 0;",
    load: "global",
    storer: 40,
    reader: 70,
};

impl Meeting {
    fn run(
        self,
        blocks: u32,
        seed: u64,
        change: impl Fn(&mut Kernel),
    ) -> (Kernel, Result<Counters, Fault>, u64) {
        let text = MEETING
            .replace("RELEASE", self.release)
            .replace("ACQUIRE", self.acquire)
            .replace("WAIT", self.wait)
            .replace("LOAD", self.load)
            .replace("STORER", &self.storer.to_string())
            .replace("READER", &self.reader.to_string());
        let mut kernel = Kernel::new(&text);
        let counter = kernel.upload(&[0]);
        let data = kernel.upload(&vec![0; blocks as usize]);
        let out = kernel.upload(&vec![0; blocks as usize]);
        kernel.arg(counter).arg(data).arg(out);
        (kernel.cooperative, kernel.seed) = (true, seed);
        change(&mut kernel);
        let result = kernel.run(blocks, 96);
        (kernel, result, out)
    }

    fn is_a_race(self) {
        for seed in 0..8 {
            expect_fault(self.run(7, seed, |_| ()).1, FaultKind::Race);
        }
    }
}

#[test]
fn blocks_meet() {
    let fences = Meeting {
        release: "fence.acq_rel.gpu; red.relaxed.gpu.global.add.u32 [%rd1], 1;",
        acquire: "ld.relaxed.gpu.global.u32 %r5, [%rd1]; fence.acq_rel.gpu;",
        ..RIGHT
    };
    let strong = Meeting { load: "relaxed.gpu.global", ..RIGHT };
    for meeting in [RIGHT, fences, strong] {
        for seed in 0..8 {
            for blocks in [1, 2, 132] {
                let (kernel, result, out) = meeting.run(blocks, seed, |_| ());
                result.unwrap_or_else(|fault| panic!("{fault}"));
                let expected: Vec<u32> = (0..blocks).map(|block| (block + 1) % blocks + 1).collect();
                assert_eq!(kernel.words(out, blocks as usize), expected);
            }
        }
    }
}

#[test]
fn a_missing_release_is_a_race() {
    Meeting { release: "red.relaxed.gpu.global.add.u32 [%rd1], 1;", ..RIGHT }.is_a_race();
}

#[test]
fn a_missing_acquire_is_a_race() {
    Meeting { acquire: "ld.relaxed.gpu.global.u32 %r5, [%rd1];", ..RIGHT }.is_a_race();
}

#[test]
fn the_scope_of_a_block_is_too_small() {
    Meeting { release: "red.release.cta.global.add.u32 [%rd1], 1;", ..RIGHT }.is_a_race();
    Meeting { acquire: "ld.acquire.cta.global.u32 %r5, [%rd1];", ..RIGHT }.is_a_race();
    Meeting { release: "fence.acq_rel.cta; red.relaxed.gpu.global.add.u32 [%rd1], 1;", ..RIGHT }.is_a_race();
}

/// A strong read is still unordered with a plain write.
#[test]
fn one_strong_side_is_not_enough() {
    let release = "red.relaxed.gpu.global.add.u32 [%rd1], 1;";
    Meeting { release, load: "relaxed.gpu.global", ..RIGHT }.is_a_race();
}

/// What thread 0 has acquired, a thread of another warp knows only behind a barrier. Without one some order
/// shows it: the reader has waited for nobody.
#[test]
fn an_acquire_is_not_everybodys() {
    let seen = (0..32).any(|seed| {
        matches!(Meeting { wait: "", ..RIGHT }.run(7, seed, |_| ()).1, Err(fault) if fault.kind == FaultKind::Race)
    });
    assert!(seen);
}

/// Two blocks that store to one word.
#[test]
fn unordered_writes_are_a_race() {
    let mut kernel = Kernel::new(
        ".param .u64 word
        ---
        ld.param.u64 %rd1, [word];
        mov.u32 %r1, %ctaid.x;
        st.global.u32 [%rd1], %r1;
        ret;",
    );
    let word = kernel.upload(&[0]);
    kernel.arg(word).cooperative = true;
    expect_fault(kernel.run(2, 32), FaultKind::Race);
    kernel.cooperative = false;
    assert!(kernel.run(2, 32).is_ok());
}

/// One block to an SM, for the shared memory that it takes: as many as there are SMs meet, one more would
/// never begin.
#[test]
fn a_block_too_many_is_a_deadlock() {
    let fill = |kernel: &mut Kernel| kernel.dynamic_shared = 200 * 1024;
    let multiprocessors = RIGHT.run(1, 0, fill).0.machine.config().sm_count;
    assert!(RIGHT.run(multiprocessors, 0, fill).1.is_ok());
    let (_, result, _) = RIGHT.run(multiprocessors + 1, 0, fill);
    expect_fault(result, FaultKind::InvalidLaunch);
    let plainly = |kernel: &mut Kernel| {
        fill(kernel);
        kernel.cooperative = false;
    };
    let plain = RIGHT.run(multiprocessors, 0, plainly).1;
    assert!(plain.is_ok(), "{plain:?}");
    let (_, result, _) = RIGHT.run(multiprocessors + 1, 0, plainly);
    expect_fault(result, FaultKind::Deadlock);
}
