//! Layers over several ranks.
//!
//! | module | what it shows |
//! |---|---|
//! | `experts` | R ranks in process are R layers added in rank order, bit for bit; chunks, three calls, replicas |
//! | `shares` | layers whose columns are spread, alone and inside spread experts |
//! | `nccl` | the order of calls, errors at every call, aborts, graphs, over a recording of NCCL (`stub`) |
//! | `start` | how processes find each other, and what is known of one that is missing, silent or dead |
//! | `gpus` | NCCL itself, on two GPUs; ignored elsewhere |
//! | `failures` | what a rank does wrong becomes an error on all others that names it |

#[path = "../common/mod.rs"]
mod common;

mod experts;
mod failures;
mod gpus;
mod group;
mod nccl;
mod shares;
mod start;
mod stub;
