//! Programmatic dependent launch: what a kernel may touch before it waits.
//!
//! Launches run one after the other here, each to its end, so nothing is ever seen too early. What a GPU may
//! do instead is kept as a rule that is checked: until a thread has executed `griddepcontrol.wait`, it may
//! not touch what is *unsettled*.
//!
//! ```text
//!   stream    N - 1 ──────▶ N ──────▶ N + 1                   unsettled when N + 1 begins
//!                                                               what N wrote, always;
//!             every block of N waits, then signals (exits)      no more: N - 1 has ended when N + 1 begins
//!             some block of N signals or exits first            also what was unsettled when N began
//! ```
//!
//! A launch without programmatic stream serialization begins when everything before it has ended; so does one
//! behind a copy or a fill. Who wrote last is kept for every [`UNIT`](super::memory::UNIT) bytes of global
//! memory, as the number of the launch. Not checked is a write that overtakes a read of the predecessor.

use super::environment::Environment;
use super::memory::Lookup;

/// The launches of a stream, as far as the next one depends on them.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// Numbers of the launches whose writes are unsettled when the next one begins.
    unsettled: Vec<u32>,
}

impl Chain {
    /// Nothing has run yet.
    pub const fn new() -> Chain {
        Chain { unsettled: Vec::new() }
    }

    /// Something else than a kernel has run: the next launch begins when everything before it has ended.
    pub fn interrupt(&mut self) {
        self.unsettled.clear();
    }

    /// What is unsettled for the next launch.
    pub(crate) fn unsettled(&self, programmatic: bool) -> &[u32] {
        if programmatic { &self.unsettled } else { &[] }
    }

    /// The launch `number` has run, and `early` if a block of it signalled or exited before it waited.
    pub(crate) fn ran(&mut self, number: u32, programmatic: bool, early: bool) {
        if !(programmatic && early) {
            self.unsettled.clear();
        }
        self.unsettled.push(number);
    }
}

/// Why bytes may not be touched before the wait; `None` if they may.
pub(crate) fn refusal(env: &Environment<'_>, address: u64, bytes: u64, what: &str) -> Option<String> {
    let Lookup::Live(allocation) = env.memory.lookup(address) else { return None };
    let writer = allocation.writers(address - allocation.base, bytes).find(|w| env.unsettled.contains(w))?;
    let before = if env.unsettled.last() == Some(&writer) { "the kernel" } else { "a kernel" };
    Some(format!(
        "{bytes}-byte {what} at {address:#x}, which {before} before wrote, without griddepcontrol.wait"
    ))
}
