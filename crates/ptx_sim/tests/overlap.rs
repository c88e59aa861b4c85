//! Programmatic dependent launch: what a kernel touches before it waits for its predecessor.

#![allow(clippy::result_large_err)]

use ptx_sim::{Chain, Counters, Fault, FaultKind, Launch, Machine, MachineConfig};

const WAIT: &str = "griddepcontrol.wait;";
const SIGNAL: &str = "griddepcontrol.launch_dependents;";

/// A machine with a stream, and three buffers.
struct Stream {
    machine: Machine,
    chain: Chain,
    buffers: [u64; 3],
}

impl Stream {
    fn new() -> Stream {
        let machine = Machine::new(MachineConfig { workers: 1, ..MachineConfig::default() });
        let buffers = [1, 2, 3].map(|n| {
            let at = machine.alloc(512).expect("enough memory");
            machine.fill(at, &[n], 512).expect("in bounds");
            at
        });
        Stream { machine, chain: Chain::new(), buffers }
    }

    /// Two blocks of 64 threads copy from one buffer to another. They load behind `before`; then they wait,
    /// signal and store.
    fn copy(&mut self, from: usize, to: usize, before: &str, programmatic: bool) -> Result<Counters, Fault> {
        let module = self.machine.load(&format!(
            ".version 8.7\n.target sm_90a\n.address_size 64
            .visible .entry copy(.param .u64 from, .param .u64 to)
            {{
                .reg .b32 %r<4>;
                .reg .b64 %rd<4>;
                mov.u32 %r1, %tid.x;
                mov.u32 %r2, %ctaid.x;
                mad.lo.u32 %r1, %r2, 64, %r1;
                mul.wide.u32 %rd1, %r1, 4;
                ld.param.u64 %rd2, [from];
                ld.param.u64 %rd3, [to];
                add.s64 %rd2, %rd2, %rd1;
                add.s64 %rd3, %rd3, %rd1;
                {before}
                ld.global.u32 %r3, [%rd2];
                {WAIT}
                {SIGNAL}
                st.global.u32 [%rd3], %r3;
                ret;
            }}"
        ));
        let module = module.unwrap_or_else(|error| panic!("{error}"));
        let params = [from, to].map(|buffer| self.buffers[buffer].to_le_bytes()).concat();
        let launch = Launch {
            module: &module,
            entry: "copy",
            grid: [2, 1, 1],
            block: [64, 1, 1],
            cluster: [1, 1, 1],
            dynamic_shared: 0,
            cooperative: false,
            params: &params,
            seed: 0,
            workers: None,
        };
        self.machine.launch_in(&mut self.chain, programmatic, &launch)
    }

    /// Copies something that may be read at once.
    #[track_caller]
    fn copied(&mut self, from: usize, to: usize, before: &str, programmatic: bool) {
        self.copy(from, to, before, programmatic).unwrap_or_else(|fault| panic!("{fault}"));
    }

    /// Copies something that must be waited for, without waiting.
    #[track_caller]
    fn refused(&mut self, from: usize, to: usize) {
        let fault = self.copy(from, to, "", true).expect_err("a load before the wait");
        assert_eq!(fault.kind, FaultKind::MissingGridWait, "{fault}");
        assert!(fault.place.ptx_text.starts_with("ld.global"), "{fault}");
    }
}

#[test]
fn what_the_predecessor_wrote_is_waited_for() {
    let mut stream = Stream::new();
    stream.copied(0, 1, "", true);
    stream.copied(1, 2, WAIT, true);
    stream.refused(2, 0);
}

#[test]
fn what_it_did_not_write_is_not() {
    let mut stream = Stream::new();
    stream.copied(0, 1, WAIT, true);
    stream.copied(0, 2, "", true);
}

#[test]
fn launches_that_do_not_overlap_need_no_wait() {
    let mut stream = Stream::new();
    stream.copied(0, 1, "", true);
    stream.copied(1, 2, "", false);
    stream.chain.interrupt();
    stream.copied(2, 0, "", true);
}

/// When the third begins, every block of the second has waited for the first.
#[test]
fn what_came_before_the_predecessor_is_there() {
    let mut stream = Stream::new();
    stream.copied(0, 1, WAIT, true);
    stream.copied(1, 2, WAIT, true);
    stream.copied(1, 0, "", true);
    // A predecessor that did not overlap its own has not waited, and need not have.
    stream.copied(0, 1, WAIT, true);
    stream.copied(0, 2, SIGNAL, false);
    stream.copied(1, 0, "", true);
}

/// A predecessor that signals, or whose blocks exit, before it has waited may be over before what precedes
/// it.
#[test]
fn unless_that_one_did_not_wait() {
    const FIRST_BLOCK_EXITS: &str = ".reg .pred %p; setp.eq.u32 %p, %r2, 0; @%p ret;";
    for before in [SIGNAL, "ret;", FIRST_BLOCK_EXITS] {
        let mut stream = Stream::new();
        stream.copied(0, 1, WAIT, true);
        stream.copied(0, 2, before, true);
        stream.refused(1, 0);
    }
}
