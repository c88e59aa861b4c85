//! The registers that `setmaxnreg` moves between the warps of a block (ISA "setmaxnreg").
//!
//! ```text
//!   launch: every warp has 32 times the registers of a thread, and the pool is empty
//!     dec ──▶ pool ──▶ inc, which waits until there are enough
//! ```
//!
//! There are no others: what the launch left of an SM's registers (1024, with one block of 384 threads) is in
//! nobody's pool. The ISA does not say that registers of warps that have exited get there, so they do not.

use super::race::{Access, Clock};

/// The registers of a block that no warp has.
pub(crate) struct RegisterPool {
    free: u32,
    /// Registers of all warps at launch.
    launched: u32,
}

impl RegisterPool {
    /// Of a block whose warps have `launched` registers.
    pub fn new(launched: u32) -> RegisterPool {
        RegisterPool { free: 0, launched }
    }

    pub fn has(&self, registers: u32) -> bool {
        self.free >= registers
    }

    pub fn give_back(&mut self, registers: u32) {
        self.free += registers;
    }

    /// Takes registers, if there are enough.
    pub fn take(&mut self, registers: u32) -> bool {
        let enough = self.has(registers);
        if enough {
            self.free -= registers;
        }
        enough
    }

    /// What a warp that needs so many waits for.
    pub fn describe(&self, registers: u32) -> String {
        let RegisterPool { free, launched } = self;
        format!(
            "setmaxnreg.inc, which asks for {registers} registers for the warp: the block's pool has {free}, the launch gave the \
             block {launched}"
        )
    }
}

/// The last `setmaxnreg` of a warpgroup. Its warps need not execute it at one time, but all of them the same
/// one, and they must synchronise before the next.
#[derive(Default)]
pub(crate) struct Resizing {
    pub pc: u32,
    /// When each warp executed it, if it has.
    done: [Option<Access>; 4],
}

/// Why a warp may not execute a `setmaxnreg`.
pub(crate) enum Mismatch {
    /// Others of the warpgroup have executed another one.
    Other,
    /// The warp of this index in its warpgroup has not executed the last one yet.
    Missing(usize),
    /// It has, and there is no order between that and this.
    Unordered(usize),
}

impl Resizing {
    /// Warp `index` of the warpgroup, knowing `clock`, executes a `setmaxnreg` at `pc`. Whether it is the
    /// first to.
    pub fn enter(&mut self, index: usize, pc: u32, now: Access, clock: &Clock) -> Result<bool, Mismatch> {
        let joins = self.done[index].is_none() && self.has_begun();
        if joins && self.pc != pc {
            return Err(Mismatch::Other);
        }
        if !joins && self.has_begun() {
            for (other, done) in self.done.iter().enumerate() {
                match done {
                    None => return Err(Mismatch::Missing(other)),
                    Some(access) if !access.is_known(clock) => return Err(Mismatch::Unordered(other)),
                    Some(_) => {}
                }
            }
        }
        if !joins {
            (self.pc, self.done) = (pc, [None; 4]);
        }
        self.done[index] = Some(now);
        Ok(!joins)
    }

    fn has_begun(&self) -> bool {
        self.done.iter().any(Option::is_some)
    }

    /// Whether others have executed one that warp `index` has not.
    pub fn lacks(&self, index: usize) -> bool {
        self.has_begun() && self.done[index].is_none()
    }
}
