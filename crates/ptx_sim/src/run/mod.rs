//! Runs a launch: clusters on worker threads, warps in turns, instructions one after the other.

pub(crate) mod scheduler;
mod start;
mod warp;
