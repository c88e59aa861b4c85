//! B's half of a stage, which rows of A that come by TMA and rows that are gathered have in common: the scales
//! of its two blocks, the bytes to expect, and two halves of up to 128 rows.
//!
//! ```text
//!   sharing B        block 0 asks for the first half, block 1 for the second; each is delivered to both
//!   sharing A        each block asks for both halves of its own
//! ```

use cuda_std::mbarrier;

use super::{BLOCKS, BM};
use crate::gemm::hopper::ROWS_128;
use crate::gemm::hopper::slab_scales::SlabScales;
use crate::gemm::hopper::weights::{Matrix, Weights};

/// The mask of a cluster's blocks.
pub const BOTH: u16 = (1 << BLOCKS) - 1;

/// A stage that one thread of the block begins.
#[derive(Clone, Copy)]
pub struct Fill {
    /// Address of B's rows.
    pub to: u32,
    /// Its full barrier.
    pub full: u32,
    /// Its slab of K.
    pub slab: u32,
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

    /// Asks for the weights: for the half of this block's rank on behalf of both blocks where they share B, else
    /// for both halves.
    ///
    /// # Safety
    /// The stage is free, in both blocks where they share B, and expects the bytes. The weights are an item's
    /// of `b`.
    #[inline(always)]
    pub unsafe fn weights(&self, b: &Matrix, weights: &Weights, shares_b: bool, rank: u32) {
        let Self { to, full, slab } = *self;
        // SAFETY: the caller's contract.
        unsafe {
            if shares_b {
                b.load_half(to + rank * ROWS_128, full, slab, weights, rank, BOTH);
            } else {
                b.load(to, full, slab, weights, None);
            }
        }
    }
}
