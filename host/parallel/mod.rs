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
//! | `batch` | what a forward over ranks is asked to do |
//! | `expert_parallel` | experts spread over ranks |
//! | `tensor_parallel` | experts cut over ranks |
//! | `graph` | captured forwards |
//! | `nccl/` | the engine between GPUs |
//! | `start` | how processes find each other, and know of each other |

mod batch;
mod communicator;
mod expert_parallel;
mod failure;
mod graph;
mod in_process;
pub mod nccl;
mod placement;
mod routing;
mod start;
mod tensor_parallel;
mod wire;

pub use batch::{Batch, ExpertOptions};
pub use communicator::{Calls, Communicator, Limits, Part, Term};
pub use expert_parallel::ExpertParallel;
#[doc(hidden)]
pub use expert_parallel::Step;
pub use expert_parallel::dispatched::Dispatched;
pub use failure::{AbortHandle, Failure};
pub use graph::ParallelGraph;
pub use in_process::InProcess;
pub use nccl::Nccl;
pub use placement::Placement;
pub use start::{Peers, Rendezvous};
pub use tensor_parallel::{TensorParallel, TensorShare};
pub use wire::{ParallelWorkspace, Partials};
