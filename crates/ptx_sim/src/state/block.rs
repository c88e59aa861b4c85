//! A block: its warps, its shared memory, its barriers; and a cluster of blocks, which one thread runs.

use std::collections::HashMap;

use super::grid_order::Learnt;
use super::lanes::{Mask, lanes_of};
use super::mbarrier::Mbarrier;
use super::operations::{Engine, Place};
use super::race::{Clock, Released};
use super::register_pool::RegisterPool;
use super::shared_memory::SharedMemory;
use super::wait::Wait;
use super::warp::Warp;
use super::warpgroup::Warpgroup;

/// Barriers of a block.
pub(crate) const BARRIERS: usize = 16;

/// Blocks that are scheduled together and may see each other's shared memory.
pub(crate) struct Cluster {
    /// Its number in the grid.
    pub number: u64,
    pub blocks: Vec<Block>,
    /// What its warps have learnt of other clusters, in a cooperative launch.
    pub learnt: Vec<Learnt>,
    /// Instructions this cluster has run.
    pub age: u64,
    /// What releasing operations left at their addresses.
    pub released: HashMap<u64, Released>,
    /// Asynchronous operations in flight.
    pub engine: Engine,
    /// `barrier.cluster`
    pub barrier: ClusterBarrier,
    /// Times that all warps were woken from timed waits since anything last changed, and what had changed
    /// then.
    pub timeouts: (u32, u64),
}

/// The barrier of all threads of a cluster.
pub(crate) struct ClusterBarrier {
    /// Threads that have arrived in this phase.
    arrived: u32,
    /// Phases completed.
    pub generation: u32,
    gathered: Clock,
    /// What those who arrived in completed phases knew.
    pub released: Clock,
}

impl Default for ClusterBarrier {
    fn default() -> ClusterBarrier {
        ClusterBarrier { arrived: 0, generation: 0, gathered: Clock::ZERO, released: Clock::ZERO }
    }
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
    /// A thread has executed `griddepcontrol.wait`, or need not.
    pub waited: bool,
    /// mbarriers by address.
    pub mbarriers: HashMap<u64, Mbarrier>,
    pub warpgroups: Vec<Warpgroup>,
    pub registers: RegisterPool,
    /// Stores, atomics that changed something, barrier phases, changes of registers: signs of progress.
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
    /// `threads` threads arrive at barrier `id`, `votes` of them with a true predicate. The generation to
    /// wait for, or why that is impossible.
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
}

impl Cluster {
    /// Whether a wait of a warp of the block of rank `rank` has come to its end.
    #[inline]
    pub fn is_over(&self, rank: usize, wait: Wait) -> bool {
        let block = &self.blocks[rank];
        match wait {
            Wait::Barrier { id, generation } => block.barriers[id as usize].generation != generation,
            Wait::Mbarrier { address, phase } => {
                block.mbarriers.get(&u64::from(address)).is_none_or(|mbarrier| mbarrier.phase != phase)
            }
            Wait::Warpgroup { group, generation } => {
                block.warpgroups[group as usize].generation != generation
            }
            Wait::Cluster { generation } => self.barrier.generation != generation,
            Wait::Registers { needed } => block.registers.has(needed),
        }
    }

    /// What a warp learns from a wait that is over.
    pub fn learn(&self, rank: usize, wait: Wait, clock: &mut Clock) {
        match wait {
            Wait::Barrier { id, .. } => clock.join(&self.blocks[rank].barriers[id as usize].released),
            // These instructions run again, and learn then.
            Wait::Mbarrier { .. }
            | Wait::Warpgroup { .. }
            | Wait::Cluster { .. }
            | Wait::Registers { .. } => {}
        }
    }

    /// Signs of progress in all blocks.
    pub fn effects(&self) -> u64 {
        self.blocks.iter().map(|block| block.effects).sum()
    }

    /// Changes the mbarrier at a place.
    pub fn at_mbarrier<T>(
        &mut self,
        (rank, address): Place,
        f: impl FnOnce(&mut Mbarrier) -> Result<T, String>,
    ) -> Result<T, String> {
        let block = &mut self.blocks[rank];
        let Some(mbarrier) = block.mbarriers.get_mut(&address) else {
            return Err(format!("{address:#x} holds no mbarrier (not initialised, or invalidated)"));
        };
        block.effects += 1;
        f(mbarrier).map_err(|reason| format!("mbarrier at {address:#x}: {reason}"))
    }

    /// `threads` threads arrive at the cluster's barrier, knowing `clock`.
    pub fn arrive(&mut self, threads: u32, clock: Option<&Clock>) {
        self.barrier.arrived += threads;
        if let Some(clock) = clock {
            self.barrier.gathered.join(clock);
        }
        self.complete_barrier();
    }

    fn complete_barrier(&mut self) {
        let live: u32 = self.blocks.iter().map(|block| block.live).sum();
        let barrier = &mut self.barrier;
        if barrier.arrived == 0 || barrier.arrived < live {
            return;
        }
        barrier.arrived = 0;
        barrier.generation += 1;
        let gathered = std::mem::replace(&mut barrier.gathered, Clock::ZERO);
        barrier.released.join(&gathered);
        self.blocks[0].effects += 1;
    }

    /// Lanes of a warp have exited; `arrived` says in which phase of the cluster's barrier each has arrived.
    pub fn leave(&mut self, rank: usize, lanes: Mask, arrived: &[Option<u32>; 32]) {
        self.blocks[rank].leave(lanes.count_ones());
        let here = self.barrier.generation;
        let counted = lanes_of(lanes).filter(|&lane| arrived[lane] == Some(here)).count() as u32;
        self.barrier.arrived -= counted;
        self.complete_barrier();
    }

    /// A sentence about what a wait of a warp of the block of rank `rank` waits for.
    pub fn describe(&self, rank: usize, wait: Wait) -> String {
        let block = &self.blocks[rank];
        match wait {
            Wait::Barrier { id, .. } => {
                let barrier = &block.barriers[id as usize];
                let needed = barrier.expected.unwrap_or(block.live);
                format!("barrier {id}, where {} of {needed} threads have arrived", barrier.arrived)
            }
            Wait::Mbarrier { address, .. } => match block.mbarriers.get(&u64::from(address)) {
                Some(mbarrier) => format!("the mbarrier at {address:#x}, whose {}", mbarrier.describe()),
                None => format!("the mbarrier at {address:#x}, which was invalidated"),
            },
            Wait::Warpgroup { group, .. } => {
                format!(
                    "the other warps of warpgroup {group} ({} of 4 are here)",
                    block.warpgroups[group as usize].here()
                )
            }
            Wait::Cluster { .. } => {
                let live: u32 = self.blocks.iter().map(|block| block.live).sum();
                format!(
                    "the cluster's barrier, where {} of {live} threads have arrived",
                    self.barrier.arrived
                )
            }
            Wait::Registers { needed } => block.registers.describe(needed),
        }
    }
}
