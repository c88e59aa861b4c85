//! The engine between GPUs: NCCL, loaded at run time.
//!
//! ```text
//!   Library      the functions, found at run time: library.rs
//!      |
//!   Comm         a communicator of NCCL: every call is polled, and it is aborted once: comm.rs
//!      |
//!   Nccl         a rank of a group: communicator.rs            Peers: agreement, heartbeats (../start.rs)
//! ```
//!
//! - *Nothing blocks for ever.* Communicators are made with `blocking = 0`: NCCL's calls return while they go
//!   on, and are asked after until they are done, the group has failed, or a limit has passed.
//! - *Aborts.* Whoever finds a failure, on whatever thread, stops NCCL's kernels, so that streams end. Calls
//!   and aborts exclude each other; a second abort finds nothing to do.
//! - *Captures.* NCCL's calls can be captured. A graph keeps the communicator alive
//!   ([`ParallelGraph`](super::ParallelGraph)).

mod comm;
mod communicator;
#[allow(clippy::exhaustive_structs, reason = "laid out as `nccl.h` has them")]
mod library;

pub use communicator::Nccl;
pub use library::{Library, Table};

/// NCCL's types and constants, for those who fill a [`Table`] themselves.
pub mod sys {
    pub use super::library::{
        cudaStream_t, ncclBfloat16, ncclComm_t, ncclConfig_t, ncclFloat16, ncclFloat32, ncclInProgress,
        ncclRemoteError, ncclResult_t, ncclSuccess, ncclSum, ncclUint8, ncclUniqueId,
    };
}
