//! Which accesses to global memory are ordered among the clusters of a cooperative launch.
//!
//! Blocks of such a launch wait for each other, and hand each other data through global memory. What a warp
//! knows of its own cluster is its [`Clock`]; what it knows of others comes to it by an acquire of what they
//! released there, at the scope of the GPU:
//!
//! ```text
//!   release by a warp with clock C:   at the address: C of its cluster, what it knows of others     Known
//!   acquire by warp v at its time t:  the cluster has learnt that, by v at t        Learnt
//!   access by warp u:                 knows it if u's clock holds at least t for v
//! ```
//!
//! So a barrier, or whatever orders u behind v, passes on what v has learnt, and a release what is known
//! then. An access conflicts with the last write of a byte, or a write with the last read, of another
//! cluster, if it is not known and not both are strong. Of the reads of a word the last one is kept, and none
//! before the first write of the launch: a race can be missed, a reported one is one. Reads and writes of the
//! copy engine are not compared.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::race::{Clock, NOBODY};

/// Parts of the map of words, each with a lock.
const SHARDS: u64 = 64;

/// A map by numbers of words, clusters or addresses. Every access is looked up in one.
type Numbered<T> = HashMap<u64, T, BuildHasherDefault<Spread>>;

/// Spreads a number over all bits by one multiplication.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        let spread = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ spread >> 32;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// What is known of the clusters of a grid, by their numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known(Numbered<Clock>);

/// What a cluster has learnt, by one of its warps at its time.
#[derive(Clone, Debug)]
pub(crate) struct Learnt {
    agent: u32,
    time: u32,
    known: Arc<Known>,
}

/// An access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub cluster: u64,
    pub agent: u32,
    pub time: u32,
    pub pc: u32,
    pub strong: bool,
}

/// Four bytes: the last write of each, and the last read of any.
#[derive(Clone, Copy, Debug, Default)]
struct Word {
    writes: [Option<Mark>; 4],
    read: Option<Mark>,
}

/// What the clusters of a launch have done in global memory.
#[derive(Debug)]
pub(crate) struct GridOrder {
    words: Vec<Mutex<Numbered<Word>>>,
    released: Mutex<Numbered<Arc<Known>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Known {
    /// What a warp of a cluster with this clock knows.
    pub fn of(cluster: u64, clock: &Clock, learnt: &[Learnt]) -> Known {
        let mut known = Known(Numbered::from_iter([(cluster, *clock)]));
        for learnt in learnt.iter().filter(|learnt| learnt.is_visible(clock)) {
            known.join(&learnt.known);
        }
        known
    }

    fn join(&mut self, other: &Known) {
        for (&cluster, clock) in &other.0 {
            self.0.entry(cluster).or_insert(Clock::ZERO).join(clock);
        }
    }
}

impl Learnt {
    /// By a warp with this clock, now.
    pub fn new(agent: u32, clock: &Clock, known: Arc<Known>) -> Learnt {
        Learnt { agent, time: clock.time(agent), known }
    }

    /// Whether it is the same, by the same warp.
    pub fn is(&self, agent: u32, known: &Arc<Known>) -> bool {
        self.agent == agent && Arc::ptr_eq(&self.known, known)
    }

    fn is_visible(&self, clock: &Clock) -> bool {
        clock.time(self.agent) >= self.time
    }
}

impl Mark {
    /// Whether a warp of cluster `cluster` with this clock, or an access as strong, need not fear it.
    fn is_harmless(self, now: Mark, clock: &Clock, learnt: &[Learnt]) -> bool {
        let knows = |learnt: &Learnt| {
            let there = learnt.known.0.get(&self.cluster);
            learnt.is_visible(clock) && there.is_some_and(|clock| clock.time(self.agent) >= self.time)
        };
        self.cluster == now.cluster
            || self.agent == NOBODY
            || (self.strong && now.strong)
            || learnt.iter().any(knows)
    }
}

impl GridOrder {
    pub fn new() -> GridOrder {
        let words = (0..SHARDS).map(|_| Mutex::default()).collect();
        GridOrder { words, released: Mutex::default() }
    }

    /// Leaves what a releasing write to `address` makes known.
    pub fn release(&self, address: u64, known: &Arc<Known>) {
        let mut released = lock(&self.released);
        let here = released.entry(address).or_insert_with(|| known.clone());
        if !Arc::ptr_eq(here, known) {
            let mut both = Known::clone(here);
            both.join(known);
            *here = Arc::new(both);
        }
    }

    /// What has been left at `address`.
    pub fn released(&self, address: u64) -> Option<Arc<Known>> {
        lock(&self.released).get(&address).cloned()
    }

    /// Notes an access to bytes that a warp with this clock makes, or returns the one that it races with, and
    /// whether that was a write.
    pub fn access(
        &self,
        address: u64,
        bytes: u64,
        writes: bool,
        now: Mark,
        clock: &Clock,
        learnt: &[Learnt],
    ) -> Result<(), (Mark, bool)> {
        for number in address / 4..(address + bytes).div_ceil(4) {
            let mut words = lock(&self.words[(number / 64 % SHARDS) as usize]);
            let word = words.entry(number).or_default();
            let within = |byte: &usize| (address..address + bytes).contains(&(number * 4 + *byte as u64));
            for byte in (0..4).filter(within) {
                if let Some(write) = word.writes[byte]
                    && !write.is_harmless(now, clock, learnt)
                {
                    return Err((write, true));
                }
                if writes {
                    word.writes[byte] = Some(now);
                }
            }
            if !writes {
                word.read = Some(now);
            } else if let Some(read) = word.read
                // A read of a half that this one does not write is no harm, and is forgotten.
                && bytes >= 4
                && !read.is_harmless(now, clock, learnt)
            {
                return Err((read, false));
            }
        }
        Ok(())
    }
}
