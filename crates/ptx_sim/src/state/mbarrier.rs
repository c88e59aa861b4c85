//! What an mbarrier counts (ISA "mbarrier": phase, pending count, expected count, tx-count).
//!
//! ```text
//!   pending arrivals ──▶ 0 ┐
//!                          ├─ both: the phase completes; pending becomes the expected count again
//!   tx-count (bytes) ──▶ 0 ┘
//!
//!   copy lands ──▶ its place is kept with the phase ──▶ its completion is seen: the bytes may be touched
//! ```
//!
//! The state is kept beside shared memory, not in it; nobody but mbarrier operations may touch the object's
//! bytes. A state token holds the phase (from bit 20 on) and the pending count before the arrival.

use super::race::{Access, Clock};

/// The largest pending count (ISA "Size and alignment of mbarrier object").
pub(crate) const MAX_COUNT: u32 = (1 << 20) - 1;

/// 4-byte words of shared memory whose source nobody had written: their places and bytes.
pub(crate) type Hollow = Vec<(u64, u8)>;

/// Bytes of shared memory that an asynchronous copy has written.
#[derive(Clone, Debug)]
pub(crate) struct Landed {
    pub start: u64,
    pub bytes: u32,
    /// The access as it was noted when the copy was issued.
    pub by: Access,
    pub hollow: Hollow,
}

/// One mbarrier.
#[derive(Clone, Debug)]
pub(crate) struct Mbarrier {
    /// Arrivals of a phase.
    expected: u32,
    /// Arrivals still missing.
    pending: u32,
    /// Bytes still missing; negative if more came than were expected so far.
    bytes: i64,
    /// Phases completed.
    pub phase: u64,
    /// Who initialised it.
    pub made: Access,
    gathered: Clock,
    /// What those who arrived in the completed phases knew.
    pub released: Clock,
    /// Copies that landed in this phase.
    landed: Vec<Landed>,
    /// Copies of completed phases that nobody has observed yet.
    unobserved: Vec<Landed>,
}

impl Mbarrier {
    /// As `mbarrier.init` makes it.
    pub fn new(count: u32, made: Access) -> Mbarrier {
        Mbarrier {
            expected: count,
            pending: count,
            bytes: 0,
            phase: 0,
            made,
            gathered: Clock::ZERO,
            released: Clock::ZERO,
            landed: Vec::new(),
            unobserved: Vec::new(),
        }
    }

    /// The state token now.
    pub fn token(&self) -> u64 {
        self.phase << 20 | u64::from(self.pending)
    }

    /// Whether the phase of a token is complete.
    pub fn is_past(&self, token: u64) -> bool {
        self.phase != token >> 20
    }

    /// Whether the phase of this parity is complete: it is the one before the current phase.
    pub fn is_past_parity(&self, parity: u32) -> bool {
        self.phase as u32 & 1 != parity & 1
    }

    /// The expected bytes change by `bytes`: `expect_tx`, or `complete_tx` if negative.
    pub fn transact(&mut self, bytes: i64) -> Result<(), String> {
        self.bytes += bytes;
        if self.bytes.unsigned_abs() > u64::from(MAX_COUNT) {
            return Err(format!("a tx-count of {} is out of range", self.bytes));
        }
        Ok(())
    }

    /// One more arrival is pending in this phase.
    pub fn add_pending(&mut self) -> Result<(), String> {
        if self.pending == MAX_COUNT {
            return Err("the pending count is at its largest".to_string());
        }
        self.pending += 1;
        Ok(())
    }

    /// `count` arrivals, which know `clock`; with `drop`, later phases expect as many fewer. Whether it
    /// completed the phase.
    pub fn arrive(&mut self, count: u32, drop: bool, clock: Option<&Clock>) -> Result<bool, String> {
        if count == 0 || count > self.pending {
            return Err(format!("{count} arrivals where {} are pending", self.pending));
        }
        self.pending -= count;
        if drop {
            self.expected -= count;
        }
        if let Some(clock) = clock {
            self.gathered.join(clock);
        }
        Ok(self.complete())
    }

    /// A copy has landed, issued by somebody who knew `clock`.
    pub fn land(&mut self, landed: impl IntoIterator<Item = Landed>, clock: &Clock) {
        self.landed.extend(landed);
        self.gathered.join(clock);
    }

    /// Completes the phase if nothing is pending.
    pub fn complete(&mut self) -> bool {
        if self.pending != 0 || self.bytes != 0 {
            return false;
        }
        self.phase += 1;
        self.pending = self.expected;
        let gathered = std::mem::replace(&mut self.gathered, Clock::ZERO);
        self.released.join(&gathered);
        self.unobserved.append(&mut self.landed);
        true
    }

    /// Somebody has seen a completed phase: the copies that may be touched now.
    pub fn observe(&mut self) -> Vec<Landed> {
        std::mem::take(&mut self.unobserved)
    }

    /// The words for what is missing.
    pub fn describe(&self) -> String {
        format!(
            "phase {} has {} of {} arrivals and {} bytes pending",
            self.phase, self.pending, self.expected, self.bytes
        )
    }
}
