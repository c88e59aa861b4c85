//! B's half of a stage, which rows of A that come by TMA and rows that are gathered have in common: the scales
//! of its two blocks, the bytes to expect, and two boxes of 128 rows.
//!
//! ```text
//!   sharing B        block 0 asks for the first box, block 1 for the second; TMA delivers each to both
//!   sharing A        each block asks for both boxes of its own
//! ```

use cuda_std::mbarrier;
use cuda_std::tma::{self, TensorMap};

use super::{BLOCKS, BM};
use crate::gemm::hopper::ROWS_128;
use crate::gemm::hopper::slab_scales::SlabScales;

/// The mask of a cluster's blocks.
pub const BOTH: u16 = (1 << BLOCKS) - 1;

/// A stage that one thread of the block begins.
#[derive(Clone, Copy)]
pub struct Fill {
    /// Address of B's rows.
    pub to: u32,
    /// Its full barrier.
    pub full: u32,
    /// The first byte of K.
    pub k0: u32,
}

impl Fill {
    /// Stores the scales of B to the slots at `slots`, if the ring is scaled, and arrives with `bytes` to
    /// expect.
    ///
    /// # Safety
    /// The stage is free, and takes these bytes. The calling thread alone calls it, before anything else is
    /// asked for.
    #[inline(always)]
    pub unsafe fn begin<const SCALED: bool>(
        &self,
        scales: &SlabScales,
        slots: u32,
        block_scales: [f32; 2],
        bytes: u32,
    ) {
        // SAFETY: the caller's contract.
        unsafe {
            if SCALED {
                scales.store_b(slots, BM, block_scales);
            }
            mbarrier::arrive_expect_tx(self.full, bytes);
        }
    }

    /// Asks for the weights, rows `boxes` and 127 behind each: for one box of this block's rank on behalf of
    /// both blocks where they share B, else for both.
    ///
    /// # Safety
    /// The stage is free, in both blocks where they share B, and expects the bytes. `map` is the kernel's
    /// parameter.
    #[inline(always)]
    pub unsafe fn weights(&self, map: *const TensorMap, boxes: [u32; 2], shares_b: bool, rank: u32) {
        let Self { to, full, k0 } = *self;
        let [first, second] = boxes.map(|row| [k0 as i32, row as i32]);
        // SAFETY: the caller's contract.
        unsafe {
            if shares_b {
                let own = if rank == 0 { first } else { second };
                tma::load_2d_multicast(to + rank * ROWS_128, map, full, own, BOTH);
            } else {
                tma::load_2d(to, map, full, first);
                tma::load_2d(to + ROWS_128, map, full, second);
            }
        }
    }
}
