//! Who am I: the index of a thread in its block, of a block in its grid, and their extents.
//!
//! Each function reads one special register (PTX ISA, "Special Registers"). All are free of side effects and
//! need no convergence. Kernels here use one-dimensional blocks; where a function assumes that, it says so.

#[allow(improper_ctypes)]
unsafe extern "C" {
    #[link_name = "llvm.nvvm.read.ptx.sreg.tid.x"]
    safe fn sreg_tid_x() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.tid.y"]
    safe fn sreg_tid_y() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ctaid.x"]
    safe fn sreg_ctaid_x() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ctaid.y"]
    safe fn sreg_ctaid_y() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ctaid.z"]
    safe fn sreg_ctaid_z() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ntid.x"]
    safe fn sreg_ntid_x() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.nctaid.x"]
    safe fn sreg_nctaid_x() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.nctaid.y"]
    safe fn sreg_nctaid_y() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.laneid"]
    safe fn sreg_laneid() -> u32;
}

/// Threads in a warp.
pub const WARP_SIZE: u32 = 32;

/// Index of the thread in its block along x: `%tid.x`.
#[inline(always)]
pub fn thread_idx_x() -> u32 {
    sreg_tid_x()
}

/// Index of the thread in its block along y: `%tid.y`.
#[inline(always)]
pub fn thread_idx_y() -> u32 {
    sreg_tid_y()
}

/// Index of the block in the grid along x: `%ctaid.x`.
#[inline(always)]
pub fn block_idx_x() -> u32 {
    sreg_ctaid_x()
}

/// Index of the block in the grid along y: `%ctaid.y`.
#[inline(always)]
pub fn block_idx_y() -> u32 {
    sreg_ctaid_y()
}

/// Index of the block in the grid along z: `%ctaid.z`.
#[inline(always)]
pub fn block_idx_z() -> u32 {
    sreg_ctaid_z()
}

/// Threads of a block along x: `%ntid.x`.
#[inline(always)]
pub fn block_dim_x() -> u32 {
    sreg_ntid_x()
}

/// Blocks of the grid along x: `%nctaid.x`.
#[inline(always)]
pub fn grid_dim_x() -> u32 {
    sreg_nctaid_x()
}

/// Blocks of the grid along y: `%nctaid.y`.
#[inline(always)]
pub fn grid_dim_y() -> u32 {
    sreg_nctaid_y()
}

/// Index of the thread in a one-dimensional grid of one-dimensional blocks: `%ctaid.x * %ntid.x + %tid.x`.
#[inline(always)]
pub fn index_1d() -> u32 {
    block_idx_x() * block_dim_x() + thread_idx_x()
}

/// Index of the thread in its warp, 0 to 31: `%laneid`.
#[inline(always)]
pub fn lane_id() -> u32 {
    sreg_laneid()
}

/// Index of the warp in a one-dimensional block: `%tid.x / 32`.
///
/// `%warpid` is not used: the ISA lets it change while the thread runs.
#[inline(always)]
pub fn warp_id() -> u32 {
    thread_idx_x() / WARP_SIZE
}
