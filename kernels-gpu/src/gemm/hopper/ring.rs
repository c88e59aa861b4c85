//! The ring of stages between the producer warp and the consumer warps.
//!
//! ```text
//!   shared memory   | stage 0 | stage 1 | .. | scales 0 | scales 1 | .. | full 0, empty 0, full 1, empty 1, ..
//!
//!   producer                                        consumers
//!     wait(empty[s], parity ^ 1)                      wait(full[s], parity)
//!     store B's scales, expect bytes on full[s],      wgmma on stage s, read its scales
//!     issue TMA copies of operands and A's scales     arrive(empty[s]) once per warp, behind all of that
//! ```
//!
//! How many stages there are, and of what, is a [`Shape`]: one for each kind of kernel.
//!
//! `s` runs round the ring and `parity` flips at each lap. A fresh barrier counts as having completed a phase
//! of parity 1, so the producer's first lap does not wait.
//!
//! In a cluster of two, either producer also fills a part of the other block's stages. A stage is free when
//! the consumers of both blocks are done with it: every consumer warp arrives at both blocks' barriers.
//!
//! In a gathered ring 128 threads copy operands as well, with `cp.async`, and each arrives behind its copies.
//! These write through the generic proxy, and `wgmma` reads through the asynchronous one: a consumer fences
//! when it has waited.

use core::marker::PhantomData;

use cuda_std::shared::Shared;
use cuda_std::{bulk, cluster, mbarrier, shared, sync, thread};

use super::slab_scales::{SlabScales, block_slot, slot_bytes};
use super::{CONSUMER_WARPS, ROWS_128};
use crate::abi::SLAB;

/// What a kernel's ring is like.
pub trait Shape: Copy {
    /// Stages.
    const STAGES: u32;
    /// Rows of A in a stage, a multiple of 8. Of B there are 256.
    const A_ROWS: u32;
    /// Whether a stage has slots for scales that change along K.
    const SCALED: bool;
    /// Blocks of a cluster, whose producers all fill it.
    const BLOCKS: u32;
    /// Threads that copy operands themselves, and arrive behind their copies.
    const COPIERS: u32;
    /// Bytes of the operands of a stage.
    const STAGE_BYTES: u32 = 2 * ROWS_128 + Self::A_ROWS * SLAB;
}

/// A ring of stages, in dynamic shared memory from its start on.
#[derive(Clone, Copy)]
pub struct Ring<S: Shape> {
    base: u32,
    /// How much higher the other block's shared memory lies in the cluster's window than this block's in its
    /// own.
    neighbour: u32,
    shape: PhantomData<S>,
}

/// A place in the ring.
#[derive(Clone, Copy)]
pub struct Position {
    pub stage: u32,
    pub parity: u32,
}

impl Position {
    pub const START: Self = Self { stage: 0, parity: 0 };

    /// The place after it in a ring of `stages`.
    #[inline(always)]
    pub fn next(self, stages: u32) -> Self {
        if self.stage + 1 == stages {
            Self { stage: 0, parity: self.parity ^ 1 }
        } else {
            Self { stage: self.stage + 1, parity: self.parity }
        }
    }
}

impl<S: Shape> Ring<S> {
    const SLOT_BYTES: u32 = slot_bytes(S::A_ROWS);
    const SCALES: u32 = S::STAGES * S::STAGE_BYTES;
    const BARRIERS: u32 = Self::SCALES + if S::SCALED { S::STAGES * Self::SLOT_BYTES } else { 0 };
    /// Bytes of dynamic shared memory up to the end of the ring.
    pub const BYTES: u32 = Self::BARRIERS + S::STAGES * 2 * mbarrier::BYTES;

    /// Lays the ring into dynamic shared memory, initialises its barriers, and clears the operands of every
    /// stage from byte `cleared` on: those that copies may leave out, whose sums nobody takes. All threads of
    /// the block call it together.
    #[inline(always)]
    pub fn new(cleared: u32) -> Self {
        let base = shared::dynamic::<u8>().address();
        let neighbour =
            if S::BLOCKS == 2 { cluster::map(base, cluster::rank() ^ 1).wrapping_sub(base) } else { 0 };
        let ring = Self { base, neighbour, shape: PhantomData };
        if thread::thread_idx_x() == 0 {
            let mut stage = 0;
            while stage < S::STAGES {
                // SAFETY: the barriers lie in the dynamic shared memory, and no thread uses them before the
                // barrier below.
                unsafe {
                    // One arrival tells the bytes to expect.
                    mbarrier::init(ring.full(stage), 1 + S::COPIERS);
                    mbarrier::init(ring.empty(stage), S::BLOCKS * CONSUMER_WARPS);
                }
                stage += 1;
            }
            mbarrier::fence_init();
        }
        if cleared < S::STAGE_BYTES {
            ring.clear(cleared);
        }
        if S::BLOCKS == 1 {
            sync::block();
        } else {
            cluster::sync();
        }
        ring
    }

    /// Clears the operands of every stage from byte `first` on, a multiple of 16, before anything is copied
    /// there. All threads of the block call it together, and meet afterwards.
    #[inline(always)]
    fn clear(&self, first: u32) {
        let mut stage = 0;
        while stage < S::STAGES {
            let mut at = first + thread::thread_idx_x() * 16;
            while at < S::STAGE_BYTES {
                // SAFETY: the stage's own memory, each vector of which one thread writes, before any copy.
                unsafe { Shared::<[u32; 4]>::from_address(self.stage(stage) + at).write([0; 4]) };
                at += thread::block_dim_x() * 16;
            }
            stage += 1;
        }
        // Copies and `wgmma` come through the other proxy.
        bulk::fence_shared();
    }

    /// Address of a stage.
    #[inline(always)]
    pub fn stage(&self, stage: u32) -> u32 {
        self.base + stage * S::STAGE_BYTES
    }

    /// Address of the scales of a stage.
    #[inline(always)]
    pub fn scales(&self, stage: u32) -> u32 {
        self.base + Self::SCALES + stage * Self::SLOT_BYTES
    }

    /// The scale of a row in a stage, by its [`row_slot`](super::slab_scales::row_slot).
    #[inline(always)]
    pub fn row_scale(&self, stage: u32, slot: u32) -> Shared<f32> {
        Shared::from_address(self.scales(stage)).add(slot)
    }

    /// The scales of a stage's two blocks of B.
    #[inline(always)]
    pub fn block_scales(&self, stage: u32) -> Shared<[f32; 2]> {
        Shared::from_address(self.scales(stage) + block_slot(S::A_ROWS) * 4)
    }

    /// Writes 1 into every scale of all stages that no copy will write, so that the consumers need not ask
    /// which there are. All threads of the block call it together, before anything is copied.
    #[inline(always)]
    pub fn fill_constant_scales(&self, scales: &SlabScales) {
        let (thread, mut stage) = (thread::thread_idx_x(), 0);
        while stage < S::STAGES {
            // SAFETY: the slots of the ring's stages, each written by one thread; the barrier orders them
            // before all reads.
            unsafe {
                if !scales.has_a() && thread < block_slot(S::A_ROWS) {
                    self.row_scale(stage, thread).write(1.0);
                }
                if !scales.has_b() && thread == 0 {
                    self.block_scales(stage).write([1.0; 2]);
                }
            }
            stage += 1;
        }
        sync::block();
    }

    /// The barrier that completes when a stage is filled.
    #[inline(always)]
    pub fn full(&self, stage: u32) -> u32 {
        self.base + Self::BARRIERS + stage * 2 * mbarrier::BYTES
    }

    /// The barrier that completes when all consumer warps are done with a stage.
    #[inline(always)]
    pub fn empty(&self, stage: u32) -> u32 {
        self.full(stage) + mbarrier::BYTES
    }

    /// Address of the shared memory behind the ring.
    #[inline(always)]
    pub fn end(&self) -> u32 {
        self.base + Self::BYTES
    }

    /// The place after `position`.
    #[inline(always)]
    pub fn next(&self, position: Position) -> Position {
        position.next(S::STAGES)
    }

    /// The place of slab `number`, of all that go through a ring of a power of two of stages.
    #[inline(always)]
    pub fn place(&self, number: u32) -> Position {
        const { assert!(S::STAGES.is_power_of_two()) };
        Position { stage: number % S::STAGES, parity: number / S::STAGES % 2 }
    }

    /// Waits until the stage at `position` may be filled.
    #[inline(always)]
    pub fn wait_empty(&self, position: Position) {
        // SAFETY: an initialised barrier; the producer is at most one lap ahead of the consumers.
        unsafe { mbarrier::wait(self.empty(position.stage), position.parity ^ 1) }
    }

    /// Waits until the stage at `position` is filled. It was a lap before: this warp has waited for that, or
    /// for others that have.
    #[inline(always)]
    pub fn wait_full(&self, position: Position) {
        // SAFETY: an initialised barrier; a consumer is at most one lap behind the producer.
        unsafe { mbarrier::wait(self.full(position.stage), position.parity) }
        if S::COPIERS > 0 {
            // Here and not in the producer, which would have to wait for its copies before it could fence and
            // arrive.
            bulk::fence_shared();
        }
    }

    /// Gives the stage back for this warp and those of the block that leave it alone: `arrivals` of the
    /// [`CONSUMER_WARPS`] in all. All lanes of the warp call it together, done with the stage.
    #[inline(always)]
    pub fn release(&self, stage: u32, arrivals: u32) {
        sync::warp(cuda_std::warp::FULL_MASK);
        let lane = thread::lane_id();
        // SAFETY: initialised barriers, of each of which these arrivals are pending: this warp waited for the
        // stage once, and those it arrives for do not arrive. Blocks of a cluster exit together.
        unsafe {
            if lane < arrivals {
                mbarrier::arrive(self.empty(stage));
                if S::BLOCKS == 2 {
                    mbarrier::arrive_mapped(self.empty(stage).wrapping_add(self.neighbour));
                }
            }
        }
    }

    /// Waits until no block of the cluster touches another's shared memory any more: the last thing that a
    /// thread does.
    #[inline(always)]
    pub fn leave(&self) {
        if S::BLOCKS > 1 {
            cluster::sync();
        }
    }
}
