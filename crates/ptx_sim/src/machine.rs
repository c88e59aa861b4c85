//! One simulated GPU: its memory, its modules, its launches.

use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use crate::code::Frame;
use crate::counters::Counters;
use crate::fault::{Fault, FaultKind, LoadError, Place};
use crate::mma::TensorCores;
use crate::module::{Entry, Module};
use crate::run::scheduler;
use crate::state::environment::Environment;
use crate::state::finished::Finished;
use crate::state::grid_order::GridOrder;
use crate::state::memory::{GlobalMemory, MemoryError};
use crate::state::overlap::Chain;
use crate::state::shared_memory::FIRST;
use crate::{decode, limits, ptx};

/// What GPU to simulate, and with how many threads.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// Streaming multiprocessors; they bound how many blocks are resident at once.
    pub sm_count: u32,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Size of global memory in bytes.
    pub memory_bytes: u64,
    /// Threads used by one launch.
    pub workers: usize,
    /// Which sums tensor cores form.
    pub tensor_cores: TensorCores,
}

impl Default for MachineConfig {
    /// An H200: 132 SMs of capability 9.0 and 141 GB, on all cores.
    fn default() -> Self {
        MachineConfig {
            sm_count: 132,
            capability: (9, 0),
            memory_bytes: 141_000_000_000,
            workers: std::thread::available_parallelism().map_or(1, |n| n.get()),
            tensor_cores: TensorCores::default(),
        }
    }
}

/// One simulated GPU.
pub struct Machine {
    config: MachineConfig,
    memory: Arc<GlobalMemory>,
    /// Memory of blocks that have finished.
    finished: Finished,
    /// Launches so far.
    launches: AtomicU32,
}

/// One kernel launch.
#[derive(Clone)]
pub struct Launch<'a> {
    /// The module, loaded on the same machine.
    pub module: &'a Module,
    /// Name of the entry.
    pub entry: &'a str,
    /// Blocks in the grid.
    pub grid: [u32; 3],
    /// Threads in a block.
    pub block: [u32; 3],
    /// Blocks in a cluster; `[1, 1, 1]` without clusters.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// Whether all blocks must be resident at once, because they wait for each other. Then their accesses to
    /// global memory are checked for order among clusters, too.
    pub cooperative: bool,
    /// The parameter block, packed at the entry's parameter offsets.
    pub params: &'a [u8],
    /// Chooses the timing.
    pub seed: u64,
    /// Threads for this launch; the machine's setting if `None`. One worker makes a seed fully deterministic.
    pub workers: Option<usize>,
}

impl Machine {
    /// A GPU with empty memory.
    pub fn new(config: MachineConfig) -> Machine {
        let memory = Arc::new(GlobalMemory::new(config.memory_bytes));
        Machine { config, memory, finished: Finished::default(), launches: AtomicU32::new(0) }
    }

    /// What this machine simulates.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Allocates global memory, 256-byte aligned, with uninitialised contents and a guard gap around it.
    pub fn alloc(&self, bytes: u64) -> Result<u64, MemoryError> {
        self.memory.alloc(bytes)
    }

    /// Frees an allocation by its first address.
    pub fn free(&self, ptr: u64) -> Result<(), MemoryError> {
        self.memory.free(ptr)
    }

    /// Base and size in bytes of the allocation that holds `ptr`.
    pub fn allocation(&self, ptr: u64) -> Option<(u64, u64)> {
        self.memory.allocation(ptr)
    }

    /// Free and total bytes of global memory.
    pub fn memory_info(&self) -> (u64, u64) {
        self.memory.info()
    }

    /// Copies host bytes to the device and marks them initialised.
    pub fn write(&self, dst: u64, src: &[u8]) -> Result<(), MemoryError> {
        self.memory.write(dst, src)
    }

    /// Copies device bytes to the host; bytes nobody wrote read as zero.
    pub fn read(&self, src: u64, dst: &mut [u8]) -> Result<(), MemoryError> {
        self.memory.read(src, dst)
    }

    /// As [`read`](Self::read), into memory that nobody has written yet.
    pub fn read_new(&self, src: u64, dst: &mut [MaybeUninit<u8>]) -> Result<(), MemoryError> {
        self.memory.read_new(src, dst)
    }

    /// Copies bytes on the device; whether each is initialised travels along. Ranges may not overlap.
    pub fn copy(&self, dst: u64, src: u64, bytes: u64) -> Result<(), MemoryError> {
        self.memory.copy(dst, src, bytes)
    }

    /// Repeats a pattern of 1, 2 or 4 bytes `count` times from `dst` on.
    pub fn fill(&self, dst: u64, pattern: &[u8], count: u64) -> Result<(), MemoryError> {
        self.memory.fill(dst, pattern, count)
    }

    /// Makes PTX text ready to run; refuses what it cannot execute faithfully. If some entries can be run and
    /// others cannot, [`Module::refusal`] tells why, and launching those is an error.
    pub fn load(&self, ptx: &str) -> Result<Arc<Module>, LoadError> {
        let source = ptx::parse(ptx)?;
        decode::module(&source, ptx, &self.memory).map(Arc::new)
    }

    /// Runs a kernel to its end.
    pub fn launch(&self, launch: &Launch<'_>) -> Result<Counters, Fault> {
        self.launch_in(&mut Chain::default(), false, launch)
    }

    /// Runs a kernel of a stream to its end; `programmatic`: launched with programmatic stream serialization,
    /// so that it waits for its predecessor itself.
    pub fn launch_in(
        &self,
        chain: &mut Chain,
        programmatic: bool,
        launch: &Launch<'_>,
    ) -> Result<Counters, Fault> {
        let invalid = |detail: String| Fault {
            kind: FaultKind::InvalidLaunch,
            kernel: launch.entry.to_string(),
            block: [0; 3],
            thread: None,
            lanes: None,
            place: Place::default(),
            detail,
        };
        let module = launch.module;
        let Some(at) = module.entries.iter().position(|entry| entry.name == launch.entry) else {
            return Err(invalid("the module has no entry of this name".to_string()));
        };
        if let Some(refusal) = &module.refusals[at] {
            return Err(invalid(format!("the entry was refused when its module was loaded: {refusal}")));
        }
        let (entry, frame) = (&module.entries[at], &module.frames[at]);
        let cluster = match frame.required_cluster {
            Some(shape) if launch.cluster == [1, 1, 1] => shape,
            _ => launch.cluster,
        };
        self.check(launch, entry, frame, cluster).map_err(&invalid)?;
        let env = Environment {
            frame,
            kernel: &entry.name,
            memory: self.memory.table(),
            finished: &self.finished,
            params: launch.params,
            grid: launch.grid,
            block: launch.block,
            cluster,
            static_shared: entry.static_shared,
            dynamic_shared: launch.dynamic_shared,
            sm_count: self.config.sm_count,
            capability: self.config.capability,
            tensor_cores: self.config.tensor_cores,
            seed: launch.seed,
            number: self.launches.fetch_add(1, Relaxed) + 1,
            unsettled: chain.unsettled(programmatic),
            order: launch.cooperative.then(GridOrder::new),
            early: AtomicBool::new(false),
        };
        let per_sm = (limits::SHARED_PER_SM / (env.shared_bytes() + FIRST))
            .min(limits::THREADS_PER_SM / env.threads().next_multiple_of(32))
            .min(limits::BLOCKS_PER_SM);
        let resident = u64::from(self.config.sm_count * per_sm.max(1)) / u64::from(env.cluster_blocks());
        if launch.cooperative && env.clusters() > resident {
            let (clusters, blocks) = (env.clusters(), env.cluster_blocks());
            return Err(invalid(format!(
                "{clusters} clusters of {blocks} blocks must be resident together: {resident} can"
            )));
        }
        let result =
            scheduler::run(&env, &module.code, launch.workers.unwrap_or(self.config.workers), resident);
        let (number, early) = (env.number, env.early.into_inner());
        chain.ran(number, programmatic, early);
        result
    }

    fn check(
        &self,
        launch: &Launch<'_>,
        entry: &Entry,
        frame: &Frame,
        cluster: [u32; 3],
    ) -> Result<(), String> {
        let threads: u64 = launch.block.iter().map(|n| u64::from(*n)).product();
        let [x, y, z] = launch.block;
        if threads == 0 || threads > 1024 || z > 64 {
            return Err(format!("block of {x} x {y} x {z} threads: 1 to 1024 are possible, 64 in z"));
        }
        let [x, y, z] = launch.grid;
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65535 || z > 65535 {
            return Err(format!(
                "grid of {x} x {y} x {z} blocks: 1 to 2147483647 x 65535 x 65535 are possible"
            ));
        }
        if let Some(most) = entry.max_threads
            && threads > u64::from(most)
        {
            return Err(format!("{threads} threads in a block: the kernel was compiled for at most {most}"));
        }
        if let Some(exact) = entry.required_threads
            && launch.block != exact
        {
            return Err(format!("block {:?}: the kernel demands {exact:?}", launch.block));
        }
        if let Some(required) = frame.required_cluster
            && cluster != required
        {
            return Err(format!("cluster {cluster:?}: the kernel demands {required:?}"));
        }
        let fits = (0..3).all(|d| cluster[d] != 0 && launch.grid[d].is_multiple_of(cluster[d]));
        let blocks = cluster.iter().fold(1_u64, |blocks, &along| blocks.saturating_mul(along.into()));
        if !fits || blocks > 16 {
            return Err(format!(
                "cluster {cluster:?} of a grid {:?}: up to 16 blocks that divide the grid",
                launch.grid
            ));
        }
        if launch.params.len() < entry.params_size as usize {
            let (has, needs) = (launch.params.len(), entry.params_size);
            return Err(format!("{has} bytes of parameters: the kernel takes {needs}"));
        }
        let start = (FIRST + entry.static_shared).next_multiple_of(frame.dynamic_align) - FIRST;
        let shared = u64::from(start) + u64::from(launch.dynamic_shared);
        if shared > u64::from(limits::SHARED_PER_BLOCK) {
            let most = limits::SHARED_PER_BLOCK;
            return Err(format!("{shared} bytes of shared memory in a block: {most} are possible"));
        }
        Ok(())
    }
}
