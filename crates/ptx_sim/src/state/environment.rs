//! One launch, as its blocks see it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::finished::Finished;
use super::grid_order::GridOrder;
use super::memory::Table;
use super::race::Agents;
use super::shared_memory::FIRST;
use crate::code::Frame;
use crate::mma::TensorCores;

/// One launch, as its blocks see it.
pub(crate) struct Environment<'a> {
    pub frame: &'a Frame,
    pub kernel: &'a str,
    /// The allocations when the launch began.
    pub memory: Arc<Table>,
    /// Where blocks have their memory from.
    pub finished: &'a Finished,
    pub params: &'a [u8],
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cluster: [u32; 3],
    pub static_shared: u32,
    pub dynamic_shared: u32,
    pub sm_count: u32,
    /// Compute capability of the GPU.
    pub capability: (u32, u32),
    pub tensor_cores: TensorCores,
    pub seed: u64,
    /// Its number among all launches of the machine, from 1.
    pub number: u32,
    /// Numbers of the launches whose writes threads may not touch before they wait.
    pub unsettled: &'a [u32],
    /// Who is ordered among the clusters, which all are resident at once; none where they need not be.
    pub order: Option<GridOrder>,
    /// A block has signalled or exited before it waited.
    pub early: AtomicBool,
}

/// Index of a linear number in a box, x fastest.
pub(crate) fn unravel(n: u32, shape: [u32; 3]) -> [u32; 3] {
    [n % shape[0], n / shape[0] % shape[1], n / shape[0] / shape[1]]
}

fn volume(shape: [u32; 3]) -> u32 {
    shape[0] * shape[1] * shape[2]
}

impl Environment<'_> {
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
}
