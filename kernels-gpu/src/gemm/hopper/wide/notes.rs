//! What the producer tells the consumers of an item: its tile, in a place of the stage that its first slab is
//! in.
//!
//! ```text
//!   stage    | slab 0 | slab 1 | slab 2 | slab 0 | ..  | nothing
//!   note     | tile   |        |        | tile   |     | no rows: there are no more items
//! ```
//!
//! So the consumers look nothing up. A look-up would cost a trip to memory, a few divisions and registers at
//! every item; the producer is stages ahead.

use cuda_std::shared::Shared;
use cuda_std::warp;

use crate::gemm::hopper::ring::{Position, Ring};
use crate::schedule::work::Tile;

/// Bytes of a note.
pub const BYTES: u32 = size_of::<[u32; 4]>() as u32;

/// The notes of a ring's stages, behind the ring.
#[derive(Clone, Copy)]
pub struct Notes {
    first: Shared<[u32; 4]>,
}

impl Notes {
    /// Those of `ring`, behind which there are 16 bytes of shared memory for every stage that nothing else
    /// uses.
    #[inline(always)]
    pub fn of<
        const STAGES: u32,
        const STAGE_BYTES: u32,
        const SCALED: bool,
        const BLOCKS: u32,
        const GATHERED: bool,
    >(
        ring: &Ring<STAGES, STAGE_BYTES, SCALED, BLOCKS, GATHERED>,
    ) -> Self {
        Self { first: Shared::from_address(ring.end()) }
    }

    /// Writes the tile of the item that begins in `stage`.
    ///
    /// # Safety
    /// The stage is free, and the calling thread arrives at its full barrier afterwards.
    #[inline(always)]
    pub unsafe fn write(&self, stage: u32, tile: &Tile) {
        // SAFETY: consumers read the note between the full barrier, at which this thread will arrive, and the
        // empty one.
        unsafe { self.first.add(stage).write([tile.expert, tile.first_row, tile.rows, tile.n0]) };
    }

    /// The tile of the item that begins at `position`, or `None` behind the last. All lanes of the warp call
    /// it together.
    #[inline(always)]
    pub fn read<
        const STAGES: u32,
        const STAGE_BYTES: u32,
        const SCALED: bool,
        const BLOCKS: u32,
        const GATHERED: bool,
    >(
        &self,
        ring: &Ring<STAGES, STAGE_BYTES, SCALED, BLOCKS, GATHERED>,
        position: Position,
    ) -> Option<Tile> {
        ring.wait_full(position);
        // SAFETY: the producer wrote it before it arrived at the barrier, and the warp has not given the
        // stage back.
        let [expert, first_row, rows, n0] = unsafe { self.first.add(position.stage).read() };
        // The same in all lanes; the shuffle says so to ptxas.
        let rows = warp::shfl_idx(warp::FULL_MASK, rows, 0);
        if rows == 0 { None } else { Some(Tile { expert, first_row, rows, n0 }) }
    }
}
