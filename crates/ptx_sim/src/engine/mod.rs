//! Operations that the copy engine of a cluster has in flight (ISA "Asynchronous operations").
//!
//! ```text
//!   issue ──▶ Issued ──▶ Read: the source is in hand ──▶ done: it has landed, and whoever waits is told
//!
//!   pace, drawn at issue:  all at once │ read now, land late │ a step now and then │ when somebody waits
//! ```
//!
//! An operation makes progress at issue, between the turns of warps, when its deadline passes, when a wait
//! that covers it forces it, and when no warp can run. What it touches in shared memory was checked and
//! marked at issue.

pub(crate) mod transfer;

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::counters::Counters;
use crate::fault::FaultKind;
use crate::random::Random;
use crate::state::block::Cluster;
use crate::state::environment::Environment;
use crate::state::mbarrier::{Hollow, Landed};
use crate::state::memory::Lookup;
use crate::state::operations::{
    Issuer, Operation, Pace, Place, SmallCopy, SmallProgress, Source, Stage, Work,
};
use crate::state::race::Clock;
use crate::state::wait::Stop;

/// A fault of an operation, and who issued it.
pub(crate) type Failure = (Issuer, Box<Stop>);

fn failed(issuer: Issuer, kind: FaultKind, detail: String) -> Failure {
    (issuer, Box::new(Stop { kind, lanes: 1 << issuer.lane, pc: Some(issuer.pc), detail }))
}

/// What the operations work with.
pub(crate) struct Surroundings<'c, 'a> {
    pub env: &'c Environment<'a>,
    pub cluster: &'c mut Cluster,
    pub counters: &'c mut Counters,
    pub random: &'c mut Random,
}

impl Surroundings<'_, '_> {
    /// Puts an operation into flight.
    pub fn issue(&mut self, issuer: Issuer, work: Work, clock: &Clock, group: u32) -> Result<(), Failure> {
        let pace = match self.random.below(4) {
            0 => Pace::AtOnce,
            1 => Pace::ReadAtOnce,
            2 => Pace::NowAndThen,
            _ => Pace::LastMoment,
        };
        let deadline = self.cluster.age + 1024 + u64::from(self.random.below(8192));
        let clock = Box::new(*clock);
        let mut operation = Operation { issuer, work, group, clock, stage: Stage::Issued, pace, deadline };
        match pace {
            Pace::AtOnce => return self.finish(operation),
            Pace::ReadAtOnce => self.read(&mut operation)?,
            Pace::NowAndThen | Pace::LastMoment => {}
        }
        self.cluster.engine.operations.push(operation);
        Ok(())
    }

    /// Some time has passed.
    pub fn pass_time(&mut self) -> Result<(), Failure> {
        let mut at = 0;
        while at < self.cluster.engine.operations.len() {
            let operation = &self.cluster.engine.operations[at];
            let late = self.cluster.age >= operation.deadline;
            let due = operation.pace != Pace::LastMoment && self.random.below(8) == 0;
            if !late && !due {
                at += 1;
                continue;
            }
            let mut operation = self.cluster.engine.operations.swap_remove(at);
            if late || operation.has_read() {
                self.finish(operation)?;
            } else {
                self.read(&mut operation)?;
                self.cluster.engine.operations.push(operation);
                at += 1;
            }
        }
        Ok(())
    }

    /// Completes some operation, if one is in flight: nothing else can happen.
    pub fn finish_any(&mut self) -> Result<bool, Failure> {
        let count = self.cluster.engine.operations.len();
        if count == 0 {
            return Ok(false);
        }
        let chosen = self.random.below(count as u32) as usize;
        let operation = self.cluster.engine.operations.swap_remove(chosen);
        self.finish(operation)?;
        Ok(true)
    }

    /// Completes every operation that a wait covers; with `read_only`, only as far as the source is
    /// concerned.
    pub fn force(&mut self, covered: impl Fn(&Operation) -> bool, read_only: bool) -> Result<(), Failure> {
        let mut at = 0;
        while at < self.cluster.engine.operations.len() {
            if !covered(&self.cluster.engine.operations[at]) {
                at += 1;
                continue;
            }
            let mut operation = self.cluster.engine.operations.swap_remove(at);
            if read_only {
                self.read(&mut operation)?;
                self.cluster.engine.operations.push(operation);
                // The one that took its place has not been looked at, unless it is this one.
                let last = self.cluster.engine.operations.len() - 1;
                self.cluster.engine.operations.swap(at, last);
                at += 1;
            } else {
                self.finish(operation)?;
            }
        }
        Ok(())
    }

    fn read(&mut self, operation: &mut Operation) -> Result<(), Failure> {
        if operation.has_read() {
            return Ok(());
        }
        let issuer = operation.issuer;
        let mut hollow = Hollow::new();
        let data = match &mut operation.work {
            Work::Load { source: Source::Value(value), .. } => std::mem::take(value),
            Work::Load { source: Source::Shared((rank, from)), bytes, .. } => {
                self.cluster.blocks[*rank].shared.slice(*from, *bytes).to_vec()
            }
            Work::Load { source: Source::Global(global, counts), to, bytes, .. } => {
                let mut unseen = Counters::default();
                let counters = if *counts { &mut *self.counters } else { &mut unseen };
                let (data, missing) = transfer::read(self.env, issuer.waited, counters, global, to.1, *bytes)
                    .map_err(|(kind, detail)| failed(issuer, kind, detail))?;
                hollow = missing;
                data
            }
            Work::Store { from: (rank, at), bytes, .. } => {
                self.cluster.blocks[*rank].shared.slice(*at, *bytes).to_vec()
            }
            Work::Arrive { copies, .. } => {
                for copy in copies {
                    read_small(self.env, copy).map_err(|detail| {
                        failed(Issuer { pc: copy.by.pc(), ..issuer }, FaultKind::Uninitialised, detail)
                    })?;
                }
                Vec::new()
            }
        };
        operation.stage = Stage::Read(data, hollow);
        Ok(())
    }

    fn finish(&mut self, mut operation: Operation) -> Result<(), Failure> {
        self.read(&mut operation)?;
        let issuer = operation.issuer;
        let Stage::Read(data, hollow) = std::mem::replace(&mut operation.stage, Stage::Done) else {
            return Ok(());
        };
        match operation.work {
            Work::Load { to: (rank, start), bytes, barrier, by, .. } => {
                self.cluster.blocks[rank].shared.set(start, &data);
                let landed = Landed { start, bytes, by, hollow };
                self.complete(issuer, barrier, i64::from(bytes), [landed], &operation.clock)
            }
            Work::Store { from: (_, at), to, reduce, .. } => {
                self.cluster.blocks[issuer.rank].effects += 1;
                transfer::write(self.env, issuer.waited, self.counters, &to, at, &data, reduce)
                    .map_err(|(kind, detail)| failed(issuer, kind, detail))
            }
            Work::Arrive { mut copies, barrier } => {
                for copy in &mut copies {
                    land_small(self.cluster, copy);
                }
                let landed = copies.iter().map(|copy| Landed {
                    start: copy.destination.1,
                    bytes: u32::from(copy.bytes),
                    by: copy.by,
                    hollow: Hollow::new(),
                });
                self.complete(issuer, barrier, 0, landed, &operation.clock)?;
                self.cluster
                    .at_mbarrier(barrier, |mbarrier| mbarrier.arrive(1, false, None).map(drop))
                    .map_err(|detail| failed(issuer, FaultKind::InvalidOperand, detail))
            }
        }
    }

    /// Copies have landed: their mbarrier learns it.
    fn complete(
        &mut self,
        issuer: Issuer,
        barrier: Place,
        bytes: i64,
        landed: impl IntoIterator<Item = Landed>,
        clock: &Clock,
    ) -> Result<(), Failure> {
        self.cluster
            .at_mbarrier(barrier, |mbarrier| {
                mbarrier.land(landed, clock);
                if bytes != 0 {
                    mbarrier.transact(-bytes)?;
                    mbarrier.complete();
                }
                Ok(())
            })
            .map_err(|detail| failed(issuer, FaultKind::InvalidOperand, detail))
    }
}

/// Reads the source of a copy of `cp.async`.
pub(crate) fn read_small(env: &Environment<'_>, copy: &mut SmallCopy) -> Result<(), String> {
    if copy.progress != SmallProgress::Issued {
        return Ok(());
    }
    let mut data = [0; 16];
    if copy.valid > 0 {
        let Lookup::Live(allocation) = env.memory.lookup(copy.source) else {
            unreachable!("checked at issue, and a launch sees one state of the allocations");
        };
        let offset = (copy.source - allocation.base) as usize;
        for (i, byte) in data.iter_mut().enumerate().take(copy.valid as usize) {
            // SAFETY: in bounds, as checked at issue; shared only as atomics.
            let written = unsafe {
                *byte = (*allocation.data().add(offset + i).cast::<AtomicU8>()).load(Relaxed);
                allocation.is_full()
                    || (*allocation.shadow().add(offset + i).cast::<AtomicU8>()).load(Relaxed) != 0
            };
            if !written {
                let address = copy.source + i as u64;
                return Err(format!("asynchronous load at {address:#x}, where nothing has been written"));
            }
        }
    }
    copy.progress = SmallProgress::Read(data);
    Ok(())
}

/// Writes the destination of a copy of `cp.async` whose source has been read.
pub(crate) fn land_small(cluster: &mut Cluster, copy: &mut SmallCopy) {
    if let SmallProgress::Read(data) = copy.progress {
        let (rank, within) = copy.destination;
        cluster.blocks[rank].shared.set(within, &data[..copy.bytes as usize]);
        cluster.blocks[rank].effects += 1;
        copy.progress = SmallProgress::Landed;
    }
}
