//! What all blocks of a launch share, and the state of one worker.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::block::{Block, Cluster};
use crate::code::{Code, Frame, Special};
use crate::counters::Counters;
use crate::fault::Place;
use crate::memory::Table;
use crate::race::{Agents, WARPS};
use crate::register_pool::RegisterPool;
use crate::registers::RegisterFile;
use crate::shared_memory::{FIRST, SharedMemory};
use crate::warp::Warp;

/// One launch, as its blocks see it.
pub(crate) struct Environment<'a> {
    pub code: &'a Code,
    pub frame: &'a Frame,
    pub kernel: &'a str,
    /// The allocations when the launch began.
    pub memory: Arc<Table>,
    pub params: &'a [u8],
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cluster: [u32; 3],
    pub static_shared: u32,
    pub dynamic_shared: u32,
    pub sm_count: u32,
    pub seed: u64,
    /// Its number among all launches of the machine, from 1.
    pub number: u32,
    /// Numbers of the launches whose writes threads may not touch before they wait.
    pub unsettled: &'a [u32],
    /// A block has signalled or exited before it waited.
    pub early: AtomicBool,
}

/// A small, fast generator of timing decisions (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    #[inline]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `bound`, which is not zero.
    #[inline]
    pub fn below(&mut self, bound: u32) -> u32 {
        ((u64::from(self.next() as u32) * u64::from(bound)) >> 32) as u32
    }

    #[inline]
    pub fn coin(&mut self) -> bool {
        self.next() >> 63 != 0
    }
}

/// Counters of one worker.
pub(crate) struct Tally {
    /// Executions of each instruction.
    pub executed: Vec<u64>,
    pub counters: Counters,
}

impl Tally {
    pub fn new(code: &Code) -> Tally {
        Tally { executed: vec![0; code.insts.len()], counters: Counters::default() }
    }

    /// The counters, with instructions counted by class.
    pub fn finish(mut self, code: &Code) -> Counters {
        for (count, origin) in self.executed.iter().zip(&code.origins) {
            if let Some(class) = origin.class {
                self.counters.instructions[class as usize] += count;
            }
        }
        self.counters
    }
}

/// Index of a linear number in a box, x fastest.
fn unravel(n: u32, shape: [u32; 3]) -> [u32; 3] {
    [n % shape[0], n / shape[0] % shape[1], n / shape[0] / shape[1]]
}

fn volume(shape: [u32; 3]) -> u32 {
    shape[0] * shape[1] * shape[2]
}

impl Environment<'_> {
    /// Where an instruction comes from.
    pub fn place(&self, pc: u32) -> Place {
        self.code.place(pc)
    }

    /// Threads in a block.
    pub fn threads(&self) -> u32 {
        volume(self.block)
    }

    /// Blocks in a cluster.
    pub fn cluster_blocks(&self) -> u32 {
        volume(self.cluster)
    }

    /// Who has which place in the clocks of a cluster.
    pub fn agents(&self) -> Agents {
        Agents::new(self.cluster_blocks(), self.threads().div_ceil(32))
    }

    /// Clusters in the grid.
    pub fn clusters(&self) -> u64 {
        (0..3).map(|d| u64::from(self.grid[d] / self.cluster[d])).product()
    }

    /// Offset of dynamic shared memory in a block's window.
    pub fn dynamic_offset(&self) -> u32 {
        (FIRST + self.static_shared).next_multiple_of(self.frame.dynamic_align.max(16))
    }

    /// Bytes of shared memory of a block, without the reserved ones.
    pub fn shared_bytes(&self) -> u32 {
        self.dynamic_offset() - FIRST + self.dynamic_shared
    }

    /// The thread of a lane.
    pub fn thread(&self, warp: u32, lane: u32) -> [u32; 3] {
        unravel(warp * 32 + lane, self.block)
    }

    /// Makes cluster number `number` ready to run, out of the remains of finished ones where there are any.
    pub fn start_cluster(&self, number: u64, poison: u8, spare: &mut Spare) -> Cluster {
        let shape = [0, 1, 2].map(|d| self.grid[d] / self.cluster[d]);
        let (x, rest) = (number % u64::from(shape[0]), number / u64::from(shape[0]));
        let (y, z) = (rest % u64::from(shape[1]), rest / u64::from(shape[1]));
        let place = [x as u32, y as u32, z as u32];
        let blocks =
            (0..self.cluster_blocks()).map(|rank| self.start_block(place, rank, poison, spare)).collect();
        Cluster {
            blocks,
            age: 0,
            released: Default::default(),
            engine: Default::default(),
            barrier: Default::default(),
            timeouts: (0, 0),
        }
    }

    fn start_block(&self, cluster: [u32; 3], rank: u32, poison: u8, spare: &mut Spare) -> Block {
        let within = unravel(rank, self.cluster);
        let index = [0, 1, 2].map(|d| cluster[d] * self.cluster[d] + within[d]);
        let linear = u64::from(index[0])
            + u64::from(self.grid[0]) * (u64::from(index[1]) + u64::from(self.grid[1]) * u64::from(index[2]));
        let place = BlockPlace { index, cluster, within, rank, linear };
        let threads = self.threads();
        let agents = self.agents();
        let warps = (0..threads.div_ceil(32)).map(|number| {
            let lanes = (threads - number * 32).min(32);
            let live = if lanes == 32 { !0 } else { (1 << lanes) - 1 };
            let agent = agents.warp(rank as usize, number);
            let mut warp = match spare.warps[number as usize].pop() {
                Some(mut warp) => {
                    warp.restart(agent, live, self.frame.start);
                    warp
                }
                None => self.first_warp(number, agent, live, poison),
            };
            // Where nothing is unsettled there is nothing to wait for.
            warp.waited = if self.unsettled.is_empty() { !0 } else { 0 };
            warp.thread_registers = self.frame.thread_registers;
            for &(special, slot) in self.frame.specials.iter().filter(|(special, _)| !special.is_lane_wise())
            {
                let value = self.uniform(special, &place);
                match special {
                    Special::Gridid | Special::DynamicShared(true) => {
                        warp.registers.set_wide(slot, &[value; 32])
                    }
                    _ => warp.registers.set(slot, &[value as u32; 32]),
                }
            }
            Some(warp)
        });
        let registers = threads.next_multiple_of(32) * self.frame.thread_registers.unwrap_or(0);
        Block {
            index,
            warps: warps.collect(),
            shared: SharedMemory::new(self.shared_bytes(), poison),
            barriers: Vec::new(),
            live: threads,
            waited: self.unsettled.is_empty(),
            mbarriers: Default::default(),
            warpgroups: (0..threads.div_ceil(128)).map(|_| Default::default()).collect(),
            registers: RegisterPool::new(registers),
            effects: 0,
        }
    }

    /// A warp with constants and per-lane special registers set. No instruction changes these, so that the warp can
    /// be used again in the same place of another block.
    fn first_warp(&self, number: u32, agent: u32, live: u32, poison: u8) -> Box<Warp> {
        let mut registers = RegisterFile::from_template(&self.frame.template);
        for &(special, slot) in self.frame.specials.iter().filter(|(special, _)| special.is_lane_wise()) {
            registers.set(slot, &std::array::from_fn(|lane| self.lane_wise(special, number, lane as u32)));
        }
        let local = vec![poison; self.frame.local_bytes as usize * 32];
        Box::new(Warp::new(number, agent, live, self.frame.start, registers, local))
    }

    fn lane_wise(&self, special: Special, warp: u32, lane: u32) -> u32 {
        let bit = 1u32 << lane;
        let below = bit - 1;
        match special {
            Special::Tid(d) => self.thread(warp, lane)[d],
            Special::Laneid => lane,
            Special::Warpid => warp,
            Special::LanemaskEq => bit,
            Special::LanemaskLe => below | bit,
            Special::LanemaskLt => below,
            Special::LanemaskGe => !below,
            _ => !below & !bit,
        }
    }

    fn uniform(&self, special: Special, place: &BlockPlace) -> u64 {
        let value = match special {
            Special::Ntid(d) => self.block[d],
            Special::Ctaid(d) => place.index[d],
            Special::Nctaid(d) => self.grid[d],
            Special::Clusterid(d) => place.cluster[d],
            Special::Nclusterid(d) => self.grid[d] / self.cluster[d],
            Special::ClusterCtaid(d) => place.within[d],
            Special::ClusterNctaid(d) => self.cluster[d],
            Special::ClusterCtarank => place.rank,
            Special::ClusterNctarank => self.cluster_blocks(),
            Special::IsExplicitCluster if self.cluster_blocks() > 1 => !0,
            Special::IsExplicitCluster => 0,
            Special::Nwarpid => WARPS as u32,
            Special::Smid => (place.linear % u64::from(self.sm_count)) as u32,
            Special::Nsmid => self.sm_count,
            Special::Gridid => return self.seed,
            Special::DynamicSharedSize => self.dynamic_shared,
            Special::TotalSharedSize => self.shared_bytes(),
            Special::AggregateSharedSize => self.shared_bytes() + FIRST,
            Special::DynamicShared(_) => self.dynamic_offset(),
            lane_wise => unreachable!("{lane_wise:?} differs from lane to lane"),
        };
        u64::from(value)
    }
}

/// Where a block is in the grid and in its cluster.
struct BlockPlace {
    index: [u32; 3],
    cluster: [u32; 3],
    within: [u32; 3],
    rank: u32,
    linear: u64,
}

/// Finished warps of a launch, by their number in the block, to be used again.
pub(crate) struct Spare {
    #[expect(
        clippy::vec_box,
        reason = "a block holds its warps boxed; boxes go to and fro without copying registers"
    )]
    pub warps: Vec<Vec<Box<Warp>>>,
}

impl Spare {
    pub fn new() -> Spare {
        Spare { warps: (0..WARPS).map(|_| Vec::new()).collect() }
    }
}
