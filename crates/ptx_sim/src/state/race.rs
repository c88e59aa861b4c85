//! Which accesses to shared memory are ordered: vector clocks per agent, and the last accesses per word.
//!
//! Every warp counts its *releases* (barrier arrivals, fences, releasing operations). What a warp knows of
//! the others is a vector of such counts, its [`Clock`]; a barrier merges the clocks of those who arrive into
//! those who wait. An access by warp `w` at its time `t` happens before now if the clock now holds at least
//! `t` for `w`. Two accesses to one byte conflict if at least one writes, they are not both atomic, and
//! neither happens before the other.
//!
//! Warps of all blocks of a cluster have a place in the clock, and so have those who work for them (see
//! [`Agents`]): the tensor core of a warpgroup counts its `wgmma`s, known to be over by whom has waited for
//! them; the copy engine does so with a warp's bulk stores. A last place per warp holds the time up to which
//! its writes are known to have been fenced for the asynchronous proxy.
//!
//! ```text
//!   cell = 4 bytes of shared memory: last write, last read, last read by another agent, and which bytes
//!          have been written or await an asynchronous copy
//! ```
//!
//! Only the last two readers are remembered, so a race can be missed when three warps read a word and only
//! the first did so without order; a reported race is one. Accesses of lanes of one warp are not compared.

/// Warps in a block, at most.
pub(crate) const WARPS: usize = 32;
/// Places in a clock.
const PLACES: usize = 128;
/// The agent whose accesses are not tracked, for want of places.
pub(crate) const NOBODY: u32 = u32::MAX;

/// Who has which place in the clocks of a cluster.
///
/// ```text
///   0 .. n          n .. 2n                2n .. 3n             3n ..
///   warps           their proxy fences     their bulk stores    tensor cores of the warpgroups
/// ```
///
/// A cluster with too many warps for this tracks the warps only, one with still more nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Agents {
    blocks: u32,
    /// Warps in a block.
    warps: u32,
}

impl Agents {
    /// For a cluster of `blocks` blocks of `warps` warps.
    pub fn new(blocks: u32, warps: u32) -> Agents {
        Agents { blocks, warps }
    }

    fn total(self) -> u32 {
        self.blocks * self.warps
    }

    fn groups(self) -> u32 {
        self.warps.div_ceil(4)
    }

    fn has_engines(self) -> bool {
        (3 * self.total() + self.blocks * self.groups()) as usize <= PLACES
    }

    /// Warp `index` of the block of rank `rank`.
    pub fn warp(self, rank: usize, index: u32) -> u32 {
        if self.total() as usize <= PLACES { rank as u32 * self.warps + index } else { NOBODY }
    }

    /// The bulk stores of a warp.
    pub fn bulk(self, rank: usize, index: u32) -> u32 {
        if self.has_engines() { 2 * self.total() + self.warp(rank, index) } else { NOBODY }
    }

    /// The tensor core of warpgroup `group`.
    pub fn tensor(self, rank: usize, group: u32) -> u32 {
        if self.has_engines() { 3 * self.total() + rank as u32 * self.groups() + group } else { NOBODY }
    }

    /// What to add to a warp's place to get that of its proxy fences; `None` if those are not tracked.
    pub fn fences(self) -> Option<u32> {
        self.has_engines().then_some(self.total())
    }

    /// The words for an agent.
    pub fn describe(self, agent: u32) -> String {
        let total = self.total();
        let of = |what: &str, index: u32, per_block: u32| {
            let (rank, index) = (index / per_block, index % per_block);
            match self.blocks {
                1 => format!("{what} {index}"),
                _ => format!("{what} {index} of the block of rank {rank}"),
            }
        };
        match agent.checked_div(total) {
            Some(0 | 1) => of("warp", agent % total, self.warps),
            Some(2) => of("a bulk store of warp", agent - 2 * total, self.warps),
            _ => of("a wgmma of warpgroup", agent.wrapping_sub(3 * total), self.groups()),
        }
    }
}

/// How far each agent of the cluster is known to have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clock([u32; PLACES]);

impl Clock {
    /// Nothing known.
    pub const ZERO: Clock = Clock([0; PLACES]);

    /// The clock of an agent as the block starts.
    pub fn start(agent: u32) -> Clock {
        let mut clock = Clock::ZERO;
        clock.tick(agent);
        clock
    }

    /// Learns what `other` knows.
    pub fn join(&mut self, other: &Clock) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine = (*mine).max(theirs);
        }
    }

    /// Forgets what `other` does not know.
    pub fn meet(&mut self, other: &Clock) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine = (*mine).min(theirs);
        }
    }

    /// Counts a release by the agent whose clock this is.
    pub fn tick(&mut self, agent: u32) {
        if agent != NOBODY {
            self.0[agent as usize] += 1;
        }
    }

    /// The time of an agent.
    #[inline(always)]
    pub fn time(&self, agent: u32) -> u32 {
        self.0[agent as usize & (PLACES - 1)]
    }

    /// An agent is known to have come to `time`.
    pub fn reach(&mut self, agent: u32, time: u32) {
        if agent != NOBODY {
            let known = &mut self.0[agent as usize];
            *known = (*known).max(time);
        }
    }

    /// `fence.proxy.async`: every write known now is fenced.
    pub fn fence_proxy(&mut self, agents: Agents) {
        if let Some(offset) = agents.fences() {
            for agent in 0..offset {
                self.reach(agent + offset, self.time(agent));
            }
        }
    }
}

/// One access, packed: time (28 bits), instruction (22), agent (7), asynchronous proxy (1), bytes of the word
/// (4), atomic (1), valid (1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access(u64);

impl Access {
    /// An access by `agent` at its `time`, by the instruction at `pc`, to no byte yet.
    pub fn new(agent: u32, time: u32, pc: u32, atomic: bool) -> Access {
        if agent == NOBODY {
            return Access(u64::from(pc & 0x3f_ffff) << 14);
        }
        let time = u64::from(time & 0xfff_ffff);
        Access(
            time << 36 | u64::from(pc & 0x3f_ffff) << 14 | u64::from(agent) << 7 | u64::from(atomic) << 1 | 1,
        )
    }

    /// The same access, made through the asynchronous proxy.
    pub fn asynchronous(self) -> Access {
        Access(self.0 | 1 << 6)
    }

    fn is_asynchronous(self) -> bool {
        self.0 & 1 << 6 != 0
    }

    fn is_tracked(self) -> bool {
        self.0 & 1 != 0
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

    /// Who made the access.
    #[inline(always)]
    pub fn agent(self) -> u32 {
        (self.0 >> 7 & 127) as u32
    }

    /// Instruction that made the access.
    pub fn pc(self) -> u32 {
        (self.0 >> 14 & 0x3f_ffff) as u32
    }

    #[inline(always)]
    fn time(self) -> u32 {
        (self.0 >> 36) as u32
    }

    /// Whether an agent with this clock knows of the access.
    pub fn is_known(self, clock: &Clock) -> bool {
        !self.is_tracked() || clock.time(self.agent()) >= self.time()
    }

    /// Whether `self`, made earlier, conflicts with `now`, made by an agent with this clock.
    #[inline(always)]
    fn conflicts(self, now: Access, bytes: u8, clock: &Clock) -> bool {
        self.is_tracked()
            && self.agent() != now.agent()
            && clock.time(self.agent()) < self.time()
            && self.bytes() & bytes != 0
            && !(self.is_atomic() && now.is_atomic())
    }

    /// Same agent and time.
    #[inline(always)]
    fn same_epoch(self, other: Access) -> bool {
        (self.0 ^ other.0) & !(0x3f_ffff << 14 | 15 << 2 | 2) == 0
    }
}

/// What is known about 4 bytes of shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    write: Access,
    reads: [Access; 2],
    /// Bytes that hold a value.
    pub written: u8,
    /// Bytes that an asynchronous copy will write, or wrote unobserved; all of them and [`MBARRIER`] in an
    /// mbarrier.
    pub pending: u8,
    /// Bytes that hold a copy of global memory that nobody had written.
    pub hollow: u8,
}

/// Mark of the cells of an mbarrier, in [`Cell::pending`].
const MBARRIER: u8 = 16;

/// Why an access may not happen.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hazard {
    /// Unordered with this access; `true` if that one was a write.
    Race(Access, bool),
    /// Reads a byte nobody wrote.
    Uninitialised,
    /// Touches a byte in the hands of an asynchronous copy.
    Pending(Access),
    /// Touches an mbarrier, initialised by this access.
    Mbarrier(Access),
    /// The asynchronous proxy reads what this access wrote through the generic one, without a fence between
    /// them.
    Proxy(Access),
}

impl Cell {
    /// Memory as a block finds it: all zeros, which memory that comes from the system is.
    pub const FRESH: Cell =
        Cell { write: Access(0), reads: [Access(0); 2], written: 0, pending: 0, hollow: 0 };

    /// Notes a read of `bytes`.
    #[inline(always)]
    pub fn read(&mut self, now: Access, bytes: u8, clock: &Clock) -> Result<(), Hazard> {
        if (self.written & !self.pending) & bytes != bytes || self.write.conflicts(now, bytes, clock) {
            return Err(self.why_not(now, bytes, clock));
        }
        self.remember(now, bytes);
        Ok(())
    }

    #[inline(always)]
    fn remember(&mut self, now: Access, bytes: u8) {
        let mark = now.on(bytes);
        let last = self.reads[0];
        if last.same_epoch(now) {
            self.reads[0] = Access(last.0 | u64::from(bytes) << 2);
        } else if last.agent() == now.agent() || last.0 == 0 {
            self.reads[0] = mark;
        } else {
            self.reads = [mark, last];
        }
    }

    /// Notes a read of `bytes` through the asynchronous proxy, issued by somebody with this clock. What was
    /// copied from unwritten global memory may be read. `fences` is that of [`Agents`].
    #[inline(always)]
    pub fn read_async(
        &mut self,
        now: Access,
        bytes: u8,
        clock: &Clock,
        fences: Option<u32>,
    ) -> Result<(), Hazard> {
        if ((self.written | self.hollow) & !self.pending) & bytes != bytes
            || self.write.conflicts(now, bytes, clock)
        {
            return Err(self.why_not(now, bytes, clock));
        }
        if let Some(offset) = fences
            && self.write.is_tracked()
            && !self.write.is_asynchronous()
            && self.write.bytes() & bytes != 0
            && clock.time(self.write.agent() + offset) < self.write.time()
        {
            return Err(Hazard::Proxy(self.write));
        }
        self.remember(now, bytes);
        Ok(())
    }

    #[cold]
    fn why_not(&self, now: Access, bytes: u8, clock: &Clock) -> Hazard {
        if self.pending & bytes != 0 {
            self.pending_hazard()
        } else if self.write.conflicts(now, bytes, clock) {
            Hazard::Race(self.write, true)
        } else {
            Hazard::Uninitialised
        }
    }

    fn pending_hazard(&self) -> Hazard {
        if self.pending & MBARRIER != 0 { Hazard::Mbarrier(self.write) } else { Hazard::Pending(self.write) }
    }

    /// Notes a write of `bytes`.
    #[inline(always)]
    pub fn write(&mut self, now: Access, bytes: u8, clock: &Clock) -> Result<(), Hazard> {
        if self.pending & bytes != 0 {
            return Err(self.pending_hazard());
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
        self.hollow &= !bytes;
        Ok(())
    }

    /// Notes that an asynchronous copy will write `bytes`.
    pub fn expect(&mut self, now: Access, bytes: u8, clock: &Clock) -> Result<(), Hazard> {
        self.write(now, bytes, clock)?;
        self.pending |= bytes;
        Ok(())
    }

    /// Somebody has observed that the asynchronous copy `by`, which wrote `bytes`, is complete.
    pub fn settle_copy(&mut self, by: Access, bytes: u8) {
        if self.pending & bytes != 0 && self.pending & MBARRIER == 0 && self.write.same_epoch(by) {
            self.pending &= !bytes;
        }
    }

    /// The asynchronous copy `by` counts as made by `now` instead.
    pub fn postpone(&mut self, by: Access, now: Access) {
        if self.write.same_epoch(by) {
            self.write = now.on(self.write.bytes());
        }
    }

    /// What an asynchronous copy brought for `bytes` had not been written where it came from.
    pub fn empty(&mut self, bytes: u8) {
        self.written &= !bytes;
        self.hollow |= bytes;
    }

    /// The word becomes part of an mbarrier.
    pub fn become_mbarrier(&mut self, now: Access, clock: &Clock) -> Result<(), Hazard> {
        self.write(now, 15, clock)?;
        self.pending = 15 | MBARRIER;
        Ok(())
    }

    /// The word is no longer part of an mbarrier.
    pub fn leave_mbarrier(&mut self) {
        self.pending = 0;
        self.written = 0;
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
