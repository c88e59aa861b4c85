//! Layers over several ranks.
//!
//! | module | what it shows |
//! |---|---|
//! | `experts` | R ranks in process are R layers added in rank order, bit for bit; chunks, three calls, replicas |
//! | `failures` | what a rank does wrong becomes an error on all others that names it |

#[path = "../common/mod.rs"]
mod common;

mod experts;
mod failures;
mod group;
