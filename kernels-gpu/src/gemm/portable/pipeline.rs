//! The copies: brings slab after slab of work item after work item into the ring of stages.
//!
//! Each thread copies the same chunk column of every 16*WARPS_M-th row: MT chunks of A and 8/WARPS_M of B per
//! slab. Eight threads with consecutive numbers copy the eight chunks of one row: 128 contiguous bytes of
//! global memory.

use cuda_std::shared::{self, Shared};
use cuda_std::{cp_async, thread};

use super::{BN, PortableGemm, WARPS_N, tile_rows};
use crate::abi::SLAB;
use crate::gemm::recomputed;
use crate::gemm::scales::{A_PER_GROUP, B_PER_BLOCK};
use crate::schedule::work::{Tile, WorkList};

/// Bytes of a chunk, the unit of copies and of the swizzle.
const CHUNK: u32 = 16;

/// Bytes of the B tile of a stage.
const B_BYTES: u32 = BN * SLAB;

/// Where the B tile of a stage begins.
pub(super) const fn b_offset(mt: usize, warps_m: u32) -> u32 {
    tile_rows(mt, warps_m) * SLAB
}

/// Where the item of a stage is noted: the four u32 of a [`Tile`].
const fn tile_offset(mt: usize, warps_m: u32) -> u32 {
    b_offset(mt, warps_m) + B_BYTES
}

/// Where the scales of a stage begin: one f32 per row of A, then the scale of the block of B.
pub(super) const fn scales_offset(mt: usize, warps_m: u32) -> u32 {
    tile_offset(mt, warps_m) + 16
}

/// Bytes of a stage.
pub(super) const fn stage_bytes(mt: usize, warps_m: u32, promoted: bool) -> u32 {
    scales_offset(mt, warps_m) + if promoted { tile_rows(mt, warps_m) * 4 + 16 } else { 0 }
}

/// Reads the item that the slab in `stage` belongs to.
///
/// # Safety
/// The stage has landed, and a barrier has shown it to this thread.
#[inline(always)]
pub(super) unsafe fn tile_of_stage(mt: usize, warps_m: u32, stage: u32) -> Tile {
    // SAFETY: `Loader::issue` has written the note of every stage that has landed.
    let [expert, first_row, rows, n0] =
        unsafe { Shared::from_address(stage + tile_offset(mt, warps_m)).read() };
    Tile { expert, first_row, rows, n0 }
}

/// The loading side of the pipeline, one per thread. It runs STAGES-1 slabs ahead of the multiplying side.
pub(super) struct Loader<const MT: usize, const WARPS_M: u32, const STAGES: u32, const PROMOTED: bool> {
    /// Shared address of stage 0.
    ring: u32,
    /// This thread's first row of the tile, and the byte of K within a slab at which its chunks begin.
    row: u32,
    k_byte: u32,
    /// Where in the A (and the B) tile of a stage this thread's first chunk goes.
    chunk_offset: u32,

    // The item being loaded: its tile, addresses of this thread's first chunk in the next slab, how many rows
    // and columns of the item lie at or after its first row, how many bytes of K at or after its chunk (zero
    // or less: none), and how many slabs are left.
    tile: Tile,
    a: *const u8,
    b: *const u8,
    a_scale: *const f32,
    b_scale: *const f32,
    rows_left: i32,
    columns_left: i32,
    k_left: i32,
    slabs_left: u32,
    scale_row_exists: bool,

    /// False once the last slab of this block's last item has been issued.
    active: bool,
    /// The item after the one being loaded, read ahead of its use; valid if `next_item` is in the list.
    next: Tile,
    next_item: u32,
}

impl<const MT: usize, const WARPS_M: u32, const STAGES: u32, const PROMOTED: bool>
    Loader<MT, WARPS_M, STAGES, PROMOTED>
{
    const STAGE_BYTES: u32 = stage_bytes(MT, WARPS_M, PROMOTED);
    /// Rows that the block covers with one chunk per thread.
    const ROWS_PER_COPY: u32 = 16 * WARPS_M;
    const THREADS: u32 = WARPS_M * WARPS_N * 32;

    /// Prepares to load the block's items, of which `item` is the first.
    ///
    /// # Safety
    /// The contract of the entry points; `item` is in the list.
    #[inline(always)]
    pub unsafe fn new(arguments: &PortableGemm, work: &WorkList, item: u32) -> Self {
        let thread = thread::thread_idx_x();
        let (row, chunk) = (thread / 8, thread % 8);
        let mut loader = Self {
            ring: shared::dynamic::<u8>().address(),
            row,
            k_byte: chunk * CHUNK,
            chunk_offset: row * SLAB + (chunk ^ (row % 8)) * CHUNK,
            a: arguments.a,
            b: arguments.b,
            a_scale: arguments.scales.a,
            b_scale: arguments.scales.b,
            rows_left: 0,
            columns_left: 0,
            k_left: 0,
            slabs_left: 0,
            scale_row_exists: false,
            active: true,
            tile: Tile::NONE,
            next: work.tile(item),
            next_item: item,
        };
        // SAFETY: `next` is the tile of an item of the list.
        unsafe { loader.begin_next_item(arguments, work) };
        loader
    }

    /// Sets the constant scales of all stages, issues the first STAGES-1 slabs, and returns the first stage.
    ///
    /// # Safety
    /// The contract of the entry points; all threads of the block call it, once, before any `issue`.
    #[inline(always)]
    pub unsafe fn fill(&mut self, arguments: &PortableGemm, work: &WorkList) -> u32 {
        let mut stage = self.ring;
        for i in 0..STAGES {
            // SAFETY: `stage` runs over the STAGES stages of the block's dynamic shared memory, none of which
            // is in use yet; the scale slots written here are those that no copy ever writes.
            unsafe {
                if PROMOTED {
                    self.set_constant_scales(stage, arguments);
                }
                if i + 1 < STAGES {
                    self.issue(stage, arguments, work);
                }
            }
            stage += Self::STAGE_BYTES;
        }
        self.ring
    }

    /// The stage after `stage` in the ring.
    #[inline(always)]
    pub fn after(&self, stage: u32) -> u32 {
        let next = stage + Self::STAGE_BYTES;
        if next == self.ring + STAGES * Self::STAGE_BYTES { self.ring } else { next }
    }

    /// The stage before `stage` in the ring.
    #[inline(always)]
    pub fn before(&self, stage: u32) -> u32 {
        if stage == self.ring { stage + (STAGES - 1) * Self::STAGE_BYTES } else { stage - Self::STAGE_BYTES }
    }

    /// Waits until this thread's copies for the stage after the one being multiplied have landed.
    #[inline(always)]
    pub fn wait_for_next_stage(&self) {
        // One group is committed per slab, STAGES-1 slabs ahead: all but the youngest STAGES-2 groups.
        match STAGES {
            3 => cp_async::wait::<1>(),
            4 => cp_async::wait::<2>(),
            5 => cp_async::wait::<3>(),
            _ => cp_async::wait::<0>(),
        }
    }

    /// Issues the copies of the next slab into `stage`, and commits them as one group (empty if there is
    /// none).
    ///
    /// # Safety
    /// The contract of the entry points; no thread reads `stage` until it has landed.
    #[inline(always)]
    pub unsafe fn issue(&mut self, stage: u32, arguments: &PortableGemm, work: &WorkList) {
        if self.active {
            let k_exists = self.k_left > 0;
            let step = Self::ROWS_PER_COPY as usize * arguments.k as usize;
            let a_stage = stage + self.chunk_offset;
            let b_stage = a_stage + b_offset(MT, WARPS_M);
            // SAFETY: `keep` is true only for chunks inside the item's rows of A and expert's rows of B; all
            // chunks are 16-byte aligned since the bases are and K is a multiple of 16. The stage is the
            // caller's.
            unsafe {
                let mut source = self.a;
                for i in 0..MT as u32 {
                    let keep = k_exists && self.rows_left > (i * Self::ROWS_PER_COPY) as i32;
                    cp_async::copy16_zfill(a_stage + i * Self::ROWS_PER_COPY * SLAB, source, keep);
                    source = source.wrapping_add(step);
                }
                let mut source = self.b;
                for i in 0..8 / WARPS_M {
                    let keep = k_exists && self.columns_left > (i * Self::ROWS_PER_COPY) as i32;
                    cp_async::copy16_zfill(b_stage + i * Self::ROWS_PER_COPY * SLAB, source, keep);
                    source = source.wrapping_add(step);
                }
                if thread::thread_idx_x() == 0 {
                    let Tile { expert, first_row, rows, n0 } = self.tile;
                    Shared::from_address(stage + tile_offset(MT, WARPS_M))
                        .write([expert, first_row, rows, n0]);
                }
                if PROMOTED {
                    self.issue_scales(stage, arguments);
                }
            }
            self.a = self.a.wrapping_add(SLAB as usize);
            self.b = self.b.wrapping_add(SLAB as usize);
            self.k_left -= SLAB as i32;
            self.slabs_left -= 1;
            if self.slabs_left == 0 {
                // SAFETY: `next` holds the tile of `next_item` if that is in the list.
                unsafe { self.begin_next_item(arguments, work) };
            }
        }
        cp_async::commit();
    }

    /// Turns to `next`, if there is one, and reads the tile after it.
    #[inline(always)]
    unsafe fn begin_next_item(&mut self, arguments: &PortableGemm, work: &WorkList) {
        self.active = self.next_item < work.len();
        if !self.active {
            return;
        }
        let (tile, k) = (self.next, arguments.k as usize);
        self.tile = tile;
        let a_row = (tile.first_row + self.row) as usize;
        let b_row = tile.expert as usize * arguments.n as usize + (tile.n0 + self.row) as usize;
        let k_byte = recomputed(self.k_byte) as usize;
        self.a = arguments.a.wrapping_add(a_row * k + k_byte);
        self.b = arguments.b.wrapping_add(b_row * k + k_byte);
        self.rows_left = tile.rows as i32 - self.row as i32;
        self.columns_left = arguments.n as i32 - (tile.n0 + self.row) as i32;
        self.k_left = arguments.k as i32 - self.k_byte as i32;
        self.slabs_left = arguments.k.div_ceil(SLAB);
        if PROMOTED {
            let thread = thread::thread_idx_x();
            self.scale_row_exists = thread < tile.rows;
            self.a_scale = arguments.scales.a_group_row(arguments.a_scale_strides, tile.first_row + thread);
            self.b_scale = arguments.scales.b_block_row(tile.expert, tile.n0, arguments.n, arguments.k);
        }
        self.next_item += thread::grid_dim_x();
        if self.next_item < work.len() {
            self.next = work.tile(self.next_item);
        }
    }

    /// Issues the copies of the scales that belong to the slab being issued.
    #[inline(always)]
    unsafe fn issue_scales(&mut self, stage: u32, arguments: &PortableGemm) {
        let (thread, rows) = (thread::thread_idx_x(), tile_rows(MT, WARPS_M));
        let slots = stage + scales_offset(MT, WARPS_M);
        if let A_PER_GROUP = arguments.scales.a_kind.raw() {
            if thread < rows {
                // SAFETY: the scale exists if the row does, and every row of a schedule does.
                unsafe {
                    cp_async::copy4_zfill(slots + thread * 4, self.a_scale.cast(), self.scale_row_exists)
                };
            }
            self.a_scale = self.a_scale.wrapping_add(arguments.a_scale_strides.group as usize);
        }
        if let B_PER_BLOCK = arguments.scales.b_kind.raw() {
            // The last warp, which has no scale of A to copy unless the tile is as high as the block has
            // threads.
            if thread == Self::THREADS - 1 {
                // SAFETY: the item's block of B and this slab have a scale: `ceil(K / 128)` of them in a row.
                unsafe { cp_async::copy4_zfill(slots + rows * 4, self.b_scale.cast(), true) };
            }
            self.b_scale = self.b_scale.wrapping_add(1);
        }
    }

    /// Writes 1 into the scale slots of a stage that no copy will write.
    #[inline(always)]
    unsafe fn set_constant_scales(&self, stage: u32, arguments: &PortableGemm) {
        let (thread, rows) = (thread::thread_idx_x(), tile_rows(MT, WARPS_M));
        let slots = stage + scales_offset(MT, WARPS_M);
        // SAFETY: each slot is inside the stage and written by one thread; the barrier before the first slab
        // is multiplied orders the writes before all reads.
        unsafe {
            if arguments.scales.a_kind.raw() != A_PER_GROUP && thread < rows {
                Shared::<f32>::from_address(slots).add(thread).write(1.0);
            }
            if arguments.scales.b_kind.raw() != B_PER_BLOCK && thread == Self::THREADS - 1 {
                Shared::<f32>::from_address(slots).add(rows).write(1.0);
            }
        }
    }
}
