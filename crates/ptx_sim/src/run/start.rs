//! Makes the clusters of a launch ready to run.

use crate::code::Special;
use crate::state::block::{Block, Cluster};
use crate::state::environment::{Environment, unravel};
use crate::state::finished::Finished;
use crate::state::race::WARPS;
use crate::state::register_pool::RegisterPool;
use crate::state::shared_memory::FIRST;
use crate::state::warp::Warp;

impl Environment<'_> {
    /// Makes cluster number `number` ready to run, out of the remains of finished ones where there are any.
    pub fn start_cluster(&self, number: u64, poison: u8, spare: &mut Spare) -> Cluster {
        let shape = [0, 1, 2].map(|d| self.grid[d] / self.cluster[d]);
        let (x, rest) = (number % u64::from(shape[0]), number / u64::from(shape[0]));
        let (y, z) = (rest % u64::from(shape[1]), rest / u64::from(shape[1]));
        let place = [x as u32, y as u32, z as u32];
        let blocks =
            (0..self.cluster_blocks()).map(|rank| self.start_block(place, rank, poison, spare)).collect();
        Cluster {
            number,
            blocks,
            learnt: Vec::new(),
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
            shared: self.finished.shared_memory(self.shared_bytes(), self.frame.uses_reserved_shared, poison),
            barriers: Vec::new(),
            live: threads,
            waited: self.unsettled.is_empty(),
            mbarriers: Default::default(),
            warpgroups: (0..threads.div_ceil(128)).map(|_| Default::default()).collect(),
            registers: RegisterPool::new(registers),
            effects: 0,
        }
    }

    /// A warp with constants and per-lane special registers set. No instruction changes these, so that the
    /// warp can be used again in the same place of another block.
    fn first_warp(&self, number: u32, agent: u32, live: u32, poison: u8) -> Box<Warp> {
        let mut registers = self.finished.register_file(&self.frame.template);
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
            Special::ReservedShared(offset) => offset,
            Special::Envreg => 0,
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

    /// Leaves their registers to other launches.
    pub fn keep_in(self, finished: &Finished) {
        for warp in self.warps.into_iter().flatten() {
            finished.keep_register_file(warp.registers);
        }
    }
}
