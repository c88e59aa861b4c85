//! Which accesses to shared memory are ordered: vector clocks per warp, and the last accesses per word.
//!
//! Every warp counts its *releases* (barrier arrivals, fences, releasing operations). What a warp knows of the
//! others is a vector of such counts, its [`Clock`]; a barrier merges the clocks of those who arrive into those
//! who wait. An access by warp `w` at its time `t` happens before now if the clock now holds at least `t` for
//! `w`. Two accesses to one byte conflict if at least one writes, they are not both atomic, and neither happens
//! before the other.
//!
//! ```text
//!   cell = 4 bytes of shared memory: last write, last read, last read by another warp, and which bytes have been
//!          written or await an asynchronous copy
//! ```
//!
//! Only the last two readers are remembered, so a race can be missed when three warps read a word and only the
//! first did so without order; a reported race is one. Accesses of lanes of one warp are not compared.

/// Warps in a block, at most.
pub(crate) const WARPS: usize = 32;

/// How far a warp knows each warp of its block to have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clock([u32; WARPS]);

impl Clock {
    /// Nothing known.
    pub const ZERO: Clock = Clock([0; WARPS]);

    /// The clock of warp `index` as the block starts.
    pub fn start(index: u32) -> Clock {
        let mut clock = Clock::ZERO;
        clock.0[index as usize] = 1;
        clock
    }

    /// Learns what `other` knows.
    pub fn join(&mut self, other: &Clock) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine = (*mine).max(theirs);
        }
    }

    /// Counts a release by warp `index`, whose clock this is.
    pub fn tick(&mut self, index: u32) {
        self.0[index as usize] += 1;
    }

    /// The time of warp `index`.
    #[inline(always)]
    pub fn time(&self, index: u32) -> u32 {
        self.0[index as usize & (WARPS - 1)]
    }
}

/// One access, packed: time (28 bits), instruction (24), warp (5), bytes of the word (4), atomic (1), valid (1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access(u64);

impl Access {
    /// An access by `warp` at its `time`, by the instruction at `pc`, to no byte yet.
    pub fn new(warp: u32, time: u32, pc: u32, atomic: bool) -> Access {
        let time = u64::from(time & 0xfff_ffff);
        Access(
            time << 35 | u64::from(pc & 0xff_ffff) << 11 | u64::from(warp) << 6 | u64::from(atomic) << 1 | 1,
        )
    }

    #[inline(always)]
    fn on(self, bytes: u8) -> Access {
        Access(self.0 | u64::from(bytes) << 2)
    }

    #[inline(always)]
    fn bytes(self) -> u8 {
        (self.0 >> 2 & 15) as u8
    }

    #[inline(always)]
    fn is_atomic(self) -> bool {
        self.0 & 2 != 0
    }

    /// Warp that made the access.
    #[inline(always)]
    pub fn warp(self) -> u32 {
        (self.0 >> 6 & 31) as u32
    }

    /// Instruction that made the access.
    pub fn pc(self) -> u32 {
        (self.0 >> 11 & 0xff_ffff) as u32
    }

    #[inline(always)]
    fn time(self) -> u32 {
        (self.0 >> 35) as u32
    }

    /// Whether `self`, made earlier, conflicts with `now`, made by a warp with this clock.
    #[inline(always)]
    fn conflicts(self, now: Access, bytes: u8, clock: &Clock) -> bool {
        self.0 != 0
            && self.warp() != now.warp()
            && clock.time(self.warp()) < self.time()
            && self.bytes() & bytes != 0
            && !(self.is_atomic() && now.is_atomic())
    }

    /// Same warp and time.
    #[inline(always)]
    fn same_epoch(self, other: Access) -> bool {
        (self.0 ^ other.0) & !(0xff_ffff << 11 | 15 << 2 | 2) == 0
    }
}

/// What is known about 4 bytes of shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    write: Access,
    reads: [Access; 2],
    /// Bytes that hold a value.
    pub written: u8,
    /// Bytes that an asynchronous copy will write, or wrote unobserved.
    pub pending: u8,
}

/// Why an access may not happen.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hazard {
    /// Unordered with this access; `true` if that one was a write.
    Race(Access, bool),
    /// Reads a byte nobody wrote.
    Uninitialised,
    /// Touches a byte in the hands of an asynchronous copy.
    Pending(Access),
}

impl Cell {
    /// Memory as a block finds it.
    pub const FRESH: Cell = Cell { write: Access(0), reads: [Access(0); 2], written: 0, pending: 0 };

    /// Notes a read of `bytes`.
    #[inline(always)]
    pub fn read(&mut self, now: Access, bytes: u8, clock: &Clock) -> Result<(), Hazard> {
        if (self.written & !self.pending) & bytes != bytes || self.write.conflicts(now, bytes, clock) {
            return Err(self.why_not(now, bytes, clock));
        }
        let mark = now.on(bytes);
        let last = self.reads[0];
        if last.same_epoch(now) {
            self.reads[0] = Access(last.0 | u64::from(bytes) << 2);
        } else if last.warp() == now.warp() || last.0 == 0 {
            self.reads[0] = mark;
        } else {
            self.reads = [mark, last];
        }
        Ok(())
    }

    #[cold]
    fn why_not(&self, now: Access, bytes: u8, clock: &Clock) -> Hazard {
        if self.pending & bytes != 0 {
            Hazard::Pending(self.write)
        } else if self.write.conflicts(now, bytes, clock) {
            Hazard::Race(self.write, true)
        } else {
            Hazard::Uninitialised
        }
    }

    /// Notes a write of `bytes`.
    #[inline(always)]
    pub fn write(&mut self, now: Access, bytes: u8, clock: &Clock) -> Result<(), Hazard> {
        if self.pending & bytes != 0 {
            return Err(Hazard::Pending(self.write));
        }
        if self.write.conflicts(now, bytes, clock) {
            return Err(Hazard::Race(self.write, true));
        }
        for read in self.reads {
            if read.conflicts(now, bytes, clock) {
                return Err(Hazard::Race(read, false));
            }
        }
        let kept = if self.write.same_epoch(now) { self.write.bytes() } else { 0 };
        self.write = now.on(bytes | kept);
        self.written |= bytes;
        Ok(())
    }

    /// Notes that an asynchronous copy will write `bytes`.
    pub fn expect(&mut self, now: Access, bytes: u8, clock: &Clock) -> Result<(), Hazard> {
        self.write(now, bytes, clock)?;
        self.pending |= bytes;
        Ok(())
    }

    /// The writer has observed that its asynchronous copy of `bytes` is complete.
    pub fn settle(&mut self, now: Access, bytes: u8) {
        self.write = now.on(bytes | self.write.bytes());
        self.written |= bytes;
        self.pending &= !bytes;
    }
}

/// What a location was released with, for those who acquire it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Released {
    pub clock: Clock,
}
