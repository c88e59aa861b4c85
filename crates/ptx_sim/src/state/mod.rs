//! The state of a machine while it runs: memory, and clusters of blocks of warps. What an instruction is, is
//! not known here.
//!
//! ```text
//!   Environment   what all blocks of a launch share
//!   Cluster ── Block ── Warp ── RegisterFile, clock, copies and products in flight
//!      │         └── SharedMemory, barriers, mbarriers, warpgroups
//!      └── operations of the copy engine
//!   GlobalMemory  allocations, who wrote last
//! ```

pub(crate) mod block;
pub(crate) mod copies;
pub(crate) mod element;
pub(crate) mod environment;
pub(crate) mod finished;
pub(crate) mod grid_order;
pub(crate) mod lanes;
pub(crate) mod mbarrier;
pub(crate) mod memory;
pub(crate) mod operations;
pub(crate) mod overlap;
pub(crate) mod race;
pub(crate) mod reduction;
pub(crate) mod register_pool;
pub(crate) mod registers;
pub(crate) mod shared_memory;
pub(crate) mod wait;
pub(crate) mod warp;
pub(crate) mod warpgroup;
