//! What has run in a stream and may still run when its next kernel begins, as programmatic dependent launch
//! has it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::state::lock;
use crate::Chain;

/// Times that the host has waited for all work, or may have.
static WAITS: AtomicU64 = AtomicU64::new(0);

/// The launches of one stream.
pub(super) struct History(Mutex<(u64, Chain)>);

impl History {
    pub const fn new() -> History {
        History(Mutex::new((0, Chain::new())))
    }

    /// Runs something that continues the stream. Other threads may do so meanwhile; whoever is last counts.
    pub fn continued<T>(&self, run: impl FnOnce(&mut Chain) -> T) -> T {
        let (waits, mut chain) = lock(&self.0).clone();
        if waits != WAITS.load(Ordering::Relaxed) {
            chain.interrupt();
        }
        let waits = WAITS.load(Ordering::Relaxed);
        let result = run(&mut chain);
        *lock(&self.0) = (waits, chain);
        result
    }

    /// The host has waited for the stream.
    pub fn end(&self) {
        lock(&self.0).1.interrupt();
    }
}

/// The host has waited for all work.
pub(super) fn end_all() {
    WAITS.fetch_add(1, Ordering::Relaxed);
}
