//! Dynamic shared memory of a block.
//!
//! ```text
//!   full 0, empty 0, full 1, ..       6 x 16 B                      the ring's barriers
//!   tables                            pairs: expert, weight; tiles: expert, size, [8] pairs
//!     maxima                          [8 rows, 16 warps]            f32
//!     launch                          4 words                       the first control words, as found
//!     beginnings                      4 words                       bits: whether a pair begins a tile
//!     queue                           [16] of 4 words               units, see [`queue`](super::queue)
//!   partials                          [2, 16 warps, 32 lanes, 4]    f32, two buffers in turn
//!   slot 0 | slot 1 | ..              6 x 512 B                     scales of the stages' weights
//!   stage 0 | stage 1 | ..            stages x 32 KiB, up to 6      weights
//!   inputs                            e4m3, [rows, input_pitch] of one GEMM and then of the other
//!                                     or, for packed weights, [K / 16, input_pitch]: 16 bytes of each row
//!   input scales                      [ceil(K / 128), 8]            f32, of the larger K
//! ```
//!
//! For packed weights products read up to three slabs past the end of the inputs, which is memory of the
//! block too: the scales, and what they leave of that.
//!
//! What comes first has a fixed place, so that its addresses take no registers.
//!
//! The ring: the producer waits for `empty`, and copies; `full` completes when the bytes and the scales have
//! come; every consumer warp then arrives at `empty` when it is done. A fresh barrier counts as having
//! completed a phase of parity 1, so that the producer's first lap does not wait.

use crate::gemm::hopper::ring::Position;
use cuda_std::shared::Shared;
use cuda_std::{host, mbarrier, shared, sync, thread, warp};

use super::{CONSUMER_WARPS, FEW_MOST_PAIRS, FEW_STAGE_BYTES, FEW_TILE_ROWS, FewTokens, THREADS};

/// Bytes of a slot: scales of up to 128 rows, or of two halves and 16 groups.
const SLOT_BYTES: u32 = 512;
/// Bytes of a buffer of partial sums.
const PARTIAL_BYTES: u32 = CONSUMER_WARPS * 32 * 16;
/// Words of the tables.
const PAIR_EXPERTS: u32 = 0;
const PAIR_WEIGHTS: u32 = FEW_MOST_PAIRS;
const TILE_EXPERTS: u32 = 2 * FEW_MOST_PAIRS;
const TILE_SIZES: u32 = 3 * FEW_MOST_PAIRS;
const TILE_PAIRS: u32 = 4 * FEW_MOST_PAIRS;
const MAXIMA: u32 = TILE_PAIRS + FEW_MOST_PAIRS * FEW_TILE_ROWS;
const LAUNCH: u32 = MAXIMA + FEW_TILE_ROWS * CONSUMER_WARPS;
const BEGINNINGS: u32 = LAUNCH + 4;
const QUEUE: u32 = BEGINNINGS + FEW_MOST_PAIRS / 32;
const TABLE_WORDS: u32 = QUEUE + 4 * QUEUED;

/// Units that the queue has room for: more than there are stages and buffers of sums.
const QUEUED: u32 = 16;

/// Most stages of the ring.
#[host]
pub const FEW_MOST_STAGES: u32 = 6;

/// Where everything is, from the beginning of shared memory.
const TABLES: u32 = FEW_MOST_STAGES * 2 * mbarrier::BYTES;
const PARTIALS: u32 = TABLES + TABLE_WORDS * 4;
const SLOTS: u32 = PARTIALS + 2 * PARTIAL_BYTES;
/// Bytes of shared memory besides stages and inputs.
#[host]
pub const FEW_TABLE_BYTES: u32 = (SLOTS + FEW_MOST_STAGES * SLOT_BYTES).next_multiple_of(1024);
const _: () = assert!(TABLES.is_multiple_of(16) && PARTIALS.is_multiple_of(16));

/// Bytes of shared memory behind the inputs: for scales of `k` columns, the larger K, and for what products
/// of packed weights read past the end of inputs of up to `pitch` bytes for 16 columns; 0 for others.
#[host]
pub const fn few_input_end_bytes(k: usize, pitch: usize) -> usize {
    // Three slabs of 128, and what the last eight rows of 16 bytes may have more than a pitch. And as much as
    // inputs have that do not overlap, 32 rows of 32 bytes: memcheck takes a product to read them in a line.
    let strided = 3 * 8 * pitch + 128;
    let past_end = match pitch {
        0 => 0,
        _ if strided > 1024 => strided,
        _ => 1024,
    };
    let scales = k.div_ceil(128) * 32;
    if scales > past_end { scales } else { past_end }
}

/// The address of what is `offset` bytes from the beginning.
#[inline(always)]
fn at(offset: u32) -> u32 {
    shared::dynamic::<u8>().address() + offset
}

#[inline(always)]
fn tables() -> Shared<u32> {
    Shared::from_address(at(TABLES))
}

#[inline(always)]
fn partials() -> Shared<[f32; 4]> {
    Shared::from_address(at(PARTIALS))
}

/// Where everything is: addresses in the shared window.
#[derive(Clone, Copy)]
pub struct Memory {
    stages: u32,
    pub inputs: u32,
    pub input_scales: Shared<f32>,
    /// Rows of `input_scales`.
    pub groups: u32,
}

impl Memory {
    /// That of a launch.
    #[inline(always)]
    pub fn new(arguments: &FewTokens) -> Self {
        let FewTokens { first, second, stages, input_bytes, .. } = *arguments;
        let inputs = at(FEW_TABLE_BYTES) + stages * FEW_STAGE_BYTES;
        let groups = u32::max(first.k, second.k).div_ceil(128);
        Self { stages, inputs, input_scales: Shared::from_address(inputs + input_bytes), groups }
    }

    /// The end of what products read of the inputs and their scales; `is_packed`: so are the weights.
    #[inline(always)]
    pub fn end(&self, arguments: &FewTokens, is_packed: bool) -> u32 {
        let FewTokens { first, second, .. } = *arguments;
        let pitch = if is_packed { u32::max(first.input_pitch, second.input_pitch) } else { 0 };
        self.input_scales.address() + few_input_end_bytes(self.groups as usize * 128, pitch as usize) as u32
    }

    /// Clears all stages. All threads of the block call it together.
    ///
    /// # Safety
    /// The block has as much dynamic shared memory as the module draws, and nobody else uses the stages.
    #[inline(always)]
    pub unsafe fn clear_stages(&self) {
        let mut at = self.first_stage() + thread::thread_idx_x() * 16;
        while at < self.inputs {
            // SAFETY: the caller's contract; one thread writes each vector.
            unsafe { Shared::<[u32; 4]>::from_address(at).write([0; 4]) };
            at += THREADS * 16;
        }
    }

    /// Initialises the ring's barriers. One thread calls it; a barrier lies between it and other threads.
    ///
    /// # Safety
    /// The block has as much dynamic shared memory as the module draws.
    #[inline(always)]
    pub unsafe fn begin_ring(&self) {
        let mut stage = 0;
        while stage < self.stages {
            // SAFETY: the caller's contract: nobody else has touched them.
            unsafe {
                // One arrival tells the bytes to expect, and each lane of the producer arrives behind its
                // copies of scales.
                mbarrier::init(self.full(stage), 1 + 32);
                mbarrier::init(self.empty(stage), CONSUMER_WARPS);
            }
            stage += 1;
        }
        mbarrier::fence_init();
    }

    /// Address of the first stage, a multiple of 1024.
    #[inline(always)]
    pub fn first_stage(&self) -> u32 {
        at(FEW_TABLE_BYTES)
    }

    /// Address of a stage.
    #[inline(always)]
    pub fn stage(&self, position: Position) -> u32 {
        self.first_stage() + position.stage * FEW_STAGE_BYTES
    }

    /// The scales of a stage.
    #[inline(always)]
    pub fn slot(&self, position: Position) -> Shared<f32> {
        Shared::from_address(at(SLOTS) + position.stage * SLOT_BYTES)
    }

    /// The barrier that completes when a stage is filled.
    #[inline(always)]
    pub fn full(&self, stage: u32) -> u32 {
        at(0) + stage * 2 * mbarrier::BYTES
    }

    /// The barrier that completes when all consumer warps are done with a stage.
    #[inline(always)]
    fn empty(&self, stage: u32) -> u32 {
        self.full(stage) + mbarrier::BYTES
    }

    /// The place after `position`.
    #[inline(always)]
    pub fn next(&self, position: Position) -> Position {
        position.next(self.stages)
    }

    /// Waits until the stage at `position` may be filled.
    #[inline(always)]
    pub fn wait_empty(&self, position: Position) {
        // SAFETY: an initialised barrier; the producer is at most one lap ahead of the consumers.
        unsafe { mbarrier::wait(self.empty(position.stage), position.parity ^ 1) }
    }

    /// Waits until the stage at `position` is filled.
    #[inline(always)]
    pub fn wait_full(&self, position: Position) {
        // SAFETY: an initialised barrier; a consumer is at most one lap behind the producer.
        unsafe { mbarrier::wait(self.full(position.stage), position.parity) }
    }

    /// Gives a stage back: one arrival for this warp. All its lanes call it together, done with the stage.
    #[inline(always)]
    pub fn release(&self, position: Position) {
        sync::warp(warp::FULL_MASK);
        if thread::lane_id() == 0 {
            // SAFETY: an initialised barrier, of which this warp has an arrival pending: it waited for the
            // stage once.
            unsafe { mbarrier::arrive(self.empty(position.stage)) }
        }
    }

    /// The partial sums of this warp's lanes, or of warp `warp`'s, in a buffer.
    #[inline(always)]
    pub fn partials(&self, buffer: u32, warp: u32) -> Shared<[f32; 4]> {
        partials().add((buffer * CONSUMER_WARPS + warp) * 32)
    }

    /// The local expert of a pair, or the mark that it has none here.
    #[inline(always)]
    pub fn pair_expert(&self, pair: u32) -> Shared<u32> {
        tables().add(PAIR_EXPERTS + pair)
    }

    /// The weight of a pair.
    #[inline(always)]
    pub fn pair_weight(&self, pair: u32) -> Shared<f32> {
        tables().add(PAIR_WEIGHTS + pair).cast()
    }

    /// Which pairs begin a tile: bits, 32 to a word.
    #[inline(always)]
    pub fn beginnings(&self) -> Shared<[u32; FEW_MOST_PAIRS as usize / 32]> {
        tables().add(BEGINNINGS).cast()
    }

    /// Where the expert of a tile is.
    #[inline(always)]
    pub fn tile_expert_place(&self, tile: u32) -> Shared<u32> {
        tables().add(TILE_EXPERTS + tile)
    }

    /// Where the number of a tile's rows is.
    #[inline(always)]
    pub fn tile_size_place(&self, tile: u32) -> Shared<u32> {
        tables().add(TILE_SIZES + tile)
    }

    /// Where the pair of a tile's row is.
    #[inline(always)]
    pub fn tile_pair_place(&self, tile: u32, row: u32) -> Shared<u32> {
        tables().add(TILE_PAIRS + tile * FEW_TILE_ROWS + row)
    }

    /// The local expert of a tile.
    ///
    /// # Safety
    /// The tables have been built, and the tile exists.
    #[inline(always)]
    pub unsafe fn tile_expert(&self, tile: u32) -> u32 {
        // SAFETY: the caller's contract.
        unsafe { self.tile_expert_place(tile).read() }
    }

    /// The rows of a tile, at least 1.
    ///
    /// # Safety
    /// As [`tile_expert`](Self::tile_expert).
    #[inline(always)]
    pub unsafe fn tile_size(&self, tile: u32) -> u32 {
        // SAFETY: the caller's contract.
        unsafe { self.tile_size_place(tile).read() }
    }

    /// The pair of a tile's row.
    ///
    /// # Safety
    /// As [`tile_expert`](Self::tile_expert), and the tile has the row.
    #[inline(always)]
    pub unsafe fn tile_pair(&self, tile: u32, row: u32) -> u32 {
        // SAFETY: the caller's contract.
        unsafe { self.tile_pair_place(tile, row).read() }
    }

    /// The largest magnitude that a warp has found in an input row.
    #[inline(always)]
    pub fn maximum(&self, row: u32, warp: u32) -> Shared<f32> {
        tables().add(MAXIMA + row * CONSUMER_WARPS + warp).cast()
    }

    /// The block's unit number `turn`.
    #[inline(always)]
    pub fn queued(&self, turn: u32) -> Shared<[u32; 4]> {
        tables().add(QUEUE + turn % QUEUED * 4).cast()
    }

    /// The first control words, as the launch found them.
    #[inline(always)]
    pub fn launch(&self) -> Shared<[u32; 4]> {
        tables().add(LAUNCH).cast()
    }
}
