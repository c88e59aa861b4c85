//! What an SM of compute capability 9.0 holds (CUDA C++ Programming Guide, "Technical Specifications per
//! Compute Capability").

pub(crate) const SHARED_PER_SM: u32 = 228 << 10;
pub(crate) const SHARED_PER_BLOCK: u32 = 227 << 10;
pub(crate) const THREADS_PER_SM: u32 = 2048;
pub(crate) const BLOCKS_PER_SM: u32 = 32;
pub(crate) const REGISTERS_PER_SM: u32 = 64 << 10;
