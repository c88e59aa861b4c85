//! A block: its warps, its shared memory, its barriers; and a cluster of blocks, which one thread runs.

use std::collections::HashMap;

use crate::exec::Wait;
use crate::race::{Clock, Released};
use crate::shared_memory::SharedMemory;
use crate::warp::Warp;

/// Barriers of a block.
pub(crate) const BARRIERS: usize = 16;

/// Blocks that are scheduled together and may see each other's shared memory.
pub(crate) struct Cluster {
    pub blocks: Vec<Block>,
    /// Instructions this cluster has run.
    pub age: u64,
}

/// One block of a grid.
pub(crate) struct Block {
    /// Index in the grid.
    pub index: [u32; 3],
    /// Warps that have not finished; the running one is taken out.
    pub warps: Vec<Option<Box<Warp>>>,
    pub shared: SharedMemory,
    /// Barriers up to the highest that has been used.
    pub barriers: Vec<Barrier>,
    /// Threads that have not exited.
    pub live: u32,
    /// What releasing operations left at their addresses.
    pub released: HashMap<u64, Released>,
    /// Stores, atomics that changed something, barrier phases: signs of progress.
    pub effects: u64,
}

/// One numbered barrier.
#[derive(Clone, Debug)]
pub(crate) struct Barrier {
    /// Threads asked for by this phase's first arrival; `None` for all of the block.
    pub expected: Option<u32>,
    /// Threads that have arrived in this phase.
    pub arrived: u32,
    /// Whether anybody has arrived in this phase.
    pub open: bool,
    /// Phases completed.
    pub generation: u32,
    /// What the arrivals of this phase know.
    gathered: Clock,
    /// What the last completed phase's arrivals knew.
    pub released: Clock,
    /// Threads whose predicate held in this phase.
    pub votes: u32,
    /// Threads that voted in this phase.
    pub voters: u32,
    /// Votes and voters of the last phases, by generation.
    pub results: [(u32, u32); 4],
}

impl Default for Barrier {
    fn default() -> Barrier {
        Barrier {
            expected: None,
            arrived: 0,
            open: false,
            generation: 0,
            gathered: Clock::ZERO,
            released: Clock::ZERO,
            votes: 0,
            voters: 0,
            results: [(0, 0); 4],
        }
    }
}

impl Barrier {
    fn complete(&mut self) {
        self.results[self.generation as usize & 3] = (self.votes, self.voters);
        self.generation += 1;
        self.released = std::mem::replace(&mut self.gathered, Clock::ZERO);
        (self.arrived, self.open, self.votes, self.voters) = (0, false, 0, 0);
    }
}

impl Block {
    /// Whether a wait has come to its end.
    #[inline]
    pub fn is_over(&self, wait: Wait) -> bool {
        match wait {
            Wait::Barrier { id, generation } => self.barriers[id as usize].generation != generation,
        }
    }

    /// What a warp learns from a wait that is over.
    pub fn learn(&self, wait: Wait, clock: &mut Clock) {
        match wait {
            Wait::Barrier { id, .. } => clock.join(&self.barriers[id as usize].released),
        }
    }

    /// `threads` threads arrive at barrier `id`, `votes` of them with a true predicate. The generation to wait
    /// for, or why that is impossible.
    pub fn arrive(
        &mut self,
        id: usize,
        expected: Option<u32>,
        threads: u32,
        votes: u32,
        voters: u32,
        clock: &Clock,
    ) -> Result<u32, String> {
        let live = self.live;
        if id >= self.barriers.len() {
            self.barriers.resize_with(id + 1, Barrier::default);
        }
        let barrier = &mut self.barriers[id];
        let generation = barrier.generation;
        if barrier.open && barrier.expected != expected {
            let name = |n: Option<u32>| n.map_or("all".to_string(), |n| n.to_string());
            let (old, new) = (name(barrier.expected), name(expected));
            return Err(format!("barrier {id} expects {new} threads here, but {old} at an earlier arrival"));
        }
        barrier.open = true;
        barrier.expected = expected;
        barrier.arrived += threads;
        barrier.votes += votes;
        barrier.voters += voters;
        barrier.gathered.join(clock);
        let needed = expected.unwrap_or(live);
        if barrier.arrived > needed {
            return Err(format!(
                "{} threads arrived at barrier {id}, which expects {needed}",
                barrier.arrived
            ));
        }
        if barrier.arrived == needed {
            barrier.complete();
            self.effects += 1;
        }
        Ok(generation)
    }

    /// `threads` threads have exited.
    pub fn leave(&mut self, threads: u32) {
        self.live -= threads;
        self.effects += 1;
        for barrier in &mut self.barriers {
            if barrier.open && barrier.expected.is_none() && barrier.arrived == self.live {
                barrier.complete();
            }
        }
    }

    /// A sentence about what a wait waits for.
    pub fn describe(&self, wait: Wait) -> String {
        match wait {
            Wait::Barrier { id, .. } => {
                let barrier = &self.barriers[id as usize];
                let needed = barrier.expected.unwrap_or(self.live);
                format!("barrier {id}, where {} of {needed} threads have arrived", barrier.arrived)
            }
        }
    }
}
