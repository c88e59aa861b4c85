//! A layer over several GPUs: exchange, placement, failure.
//!
//! ```text
//!   ExpertParallel            TensorParallel                      whose experts, whose columns; what travels when
//!        |   wire, placement       |
//!        '------ Communicator -----'                              all_gather, all_to_all, all_reduce; agree, wait, abort
//!                 |            |
//!             InProcess       Nccl                                threads over one device; a process, or a thread, per GPU
//!                              |
//!                             Peers (start)                       torchrun's variables, TCP: ids, agreement, heartbeats
//! ```
//!
//! | file | what it is |
//! |---|---|
//! | `communicator` | the trait, what ranks must have alike, limits |
//! | `in_process` | ranks as threads over one device |
//! | `failure` | who failed, and who is told |
//! | `wire` | what travels, drawn; the memory of forwards |
//! | `placement` | which rank holds which experts |
//! | `routing` | launches of the kernels on routings that travel |
//! | `expert_parallel` | experts spread over ranks |

mod communicator;
mod expert_parallel;
mod failure;
mod in_process;
mod placement;
mod routing;
mod wire;

pub use communicator::{Calls, Communicator, Limits, Term};
pub use expert_parallel::{Batch, Dispatched, ExpertOptions, ExpertParallel};
pub use failure::{AbortHandle, Failure};
pub use in_process::InProcess;
pub use placement::Placement;
pub use wire::{ParallelWorkspace, Partials};
