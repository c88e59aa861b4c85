//! The producer warp: fills stages with a unit's weights, by bulk copies, and with their scales, by
//! `cp.async`.
//!
//! A stage is full when its bytes have come and every lane's copies of scales have landed. Neither is waited
//! for here: the warp waits for free stages alone.

use cuda_std::l2::Policy;
use cuda_std::shared::Shared;
use cuda_std::warp::{FULL_MASK, elect};
use cuda_std::{bulk, cp_async, mbarrier, sync, thread};

use super::layout::Layout;
use super::memory::Memory;
use super::queue::Unit;
use super::{FEW_STAGE_K, Projection};
use crate::abi::BScaleKind;
use crate::gemm::hopper::ring::Position;
use crate::gemm::recomputed;

/// What the units of a GEMM have in common. It is chosen once: what is worked out for a unit, or a stage, is
/// time in which nothing is asked for.
#[derive(Clone, Copy)]
pub struct Source {
    weights: *const u8,
    scales: *const f32,
    /// [As the weights have it](Layout::padded).
    k: u32,
    /// Groups of 128 of K.
    groups: u32,
    /// Rows of an expert's matrix, and blocks of 128 of them.
    rows: u32,
    row_blocks: u32,
    half_rows: u32,
    half_distance: u32,
    stage_k: u32,
    parts_log2: u32,
    has_blocks: bool,
    has_channels: bool,
}

impl Source {
    #[inline(always)]
    pub fn new<L: Layout>(projection: &Projection) -> Self {
        let Projection { weights, weight_scales, weight_scale_kind, k, rows, .. } = *projection;
        let Projection { half_rows, half_distance, stage_k, parts, .. } = *projection;
        Self {
            weights,
            scales: weight_scales,
            k: L::padded(k),
            groups: k.div_ceil(128),
            rows,
            row_blocks: rows.div_ceil(128),
            half_rows,
            half_distance,
            stage_k,
            parts_log2: parts.trailing_zeros(),
            has_blocks: weight_scale_kind.is(BScaleKind::Block),
            has_channels: weight_scale_kind.is(BScaleKind::Channel),
        }
    }

    /// Whether the halves of a unit are neighbours, as those of GEMM 2 are.
    #[inline(always)]
    fn has_neighbours(&self) -> bool {
        self.half_distance == self.half_rows
    }
}

/// Fills stages from `position` on with a unit of `expert`; returns the place after them. All lanes of the
/// producer warp call it together.
///
/// # Safety
/// The contract of the kernel, for a unit of the source's GEMM.
#[inline(always)]
pub unsafe fn fill<L: Layout>(
    source: &Source,
    unit: &Unit,
    expert: u32,
    memory: &Memory,
    mut position: Position,
) -> Position {
    let Source { half_rows, stage_k, k, groups, parts_log2, .. } = *source;
    // Weights are read once, and leave L2 first.
    let once = Policy::evict_first();
    let (mut at, mut end) = (0, k);
    if parts_log2 > 0 {
        let start = |part| ((groups * part) >> parts_log2) * 128;
        (at, end) = (start(unit.part), u32::min(start(unit.part + 1), k));
    }
    let scales = Scales::new(source, unit, expert);
    let mut weights = Weights::new::<L>(source, unit, expert, at);
    while at < end {
        let bytes = u32::min(end - at, stage_k);
        let copies = weights.next::<L>(source, bytes);
        memory.wait_empty(position);
        let full = memory.full(position.stage);
        // SAFETY: the stage is free, has room for the unit's rows and for a scale of each row, or of each
        // half and group; the barrier expects the bytes before any are asked for. Rows, and scales by the
        // kind's number, exist.
        unsafe {
            if elect() {
                mbarrier::arrive_expect_tx(full, 2 * half_rows * bytes);
                let (mut to, mut from, mut copy) = (memory.stage(position), copies.first, 0);
                while copy < copies.count {
                    bulk::load_hinted(to, from, copies.bytes, full, once);
                    // A loop that is not unrolled: it would be most of the producer's code, for few copies.
                    copy = recomputed(copy + 1);
                    (to, from) = (to + copies.bytes, from.wrapping_add(copies.near));
                    if !L::IS_PACKED && copy & copies.mask == 0 {
                        from = from.wrapping_add(copies.jump);
                    }
                }
            }
            sync::warp(FULL_MASK);
            scales.copy(at, bytes, at + bytes == end, memory.slot(position));
            mbarrier::arrive_after_copies(full);
        }
        at += bytes;
        position = memory.next(position);
    }
    position
}

/// Fills a stage with nothing: the end of the queue comes with it. All lanes of the producer warp call it
/// together.
///
/// # Safety
/// The contract of the kernel.
#[inline(always)]
pub unsafe fn fill_nothing(memory: &Memory, position: Position) {
    memory.wait_empty(position);
    let full = memory.full(position.stage);
    // SAFETY: an initialised barrier, in a phase that nobody has arrived in.
    unsafe {
        if elect() {
            mbarrier::arrive_expect_tx(full, 0);
        }
        sync::warp(FULL_MASK);
        mbarrier::arrive_after_copies(full);
    }
}

/// The copies that make a stage, one behind the other in it. In memory they lie in runs, those of packed
/// weights in one.
struct Copies {
    first: *const u8,
    count: u32,
    /// Bytes of one.
    bytes: u32,
    /// Bytes from one to the next of a run.
    near: usize,
    /// Copies of a run, less 1: of a power of two.
    mask: u32,
    /// Bytes from a run's end to the next run.
    jump: usize,
}

/// Where a unit's weights of the next stage are.
struct Weights {
    next: *const u8,
    /// Bytes from half to half, or of packed weights from slab to slab, which both halves share evenly.
    far: usize,
}

/// Lines of a slab of a whole item of packed weights: gate and up of 128 columns, or 256 rows
/// (`gemm/hopper/weights.rs` draws them).
const ITEM: u32 = 256;

impl Weights {
    /// Those of `unit` from byte `at` of K on.
    #[inline(always)]
    fn new<L: Layout>(source: &Source, unit: &Unit, expert: u32, at: u32) -> Self {
        let Source { weights, k, groups, rows, half_distance, .. } = *source;
        if L::IS_PACKED {
            // Of gate, or up, an item has half of its lines.
            let log2 = if source.has_neighbours() { 0 } else { 1 };
            let within = unit.row & ((ITEM >> log2) - 1);
            let item = (unit.row - within) << log2;
            let line = u64::from(expert * rows + item) * u64::from(groups) + u64::from(within);
            let far = u32::min(rows - item, ITEM) * 128;
            let first = line * 128 + u64::from(at / 128) * u64::from(far);
            Self { next: weights.wrapping_add(first as usize), far: far as usize }
        } else {
            let first = (expert * rows + unit.row) as usize * k as usize + at as usize;
            Self { next: weights.wrapping_add(first), far: half_distance as usize * k as usize }
        }
    }

    /// Those of the next `bytes` bytes of K.
    #[inline(always)]
    fn next<L: Layout>(&mut self, source: &Source, bytes: u32) -> Copies {
        let Self { next: first, far } = *self;
        let Source { half_rows, k, .. } = *source;
        if L::IS_PACKED {
            let (slabs, log2) = (bytes / 128, if source.has_neighbours() { 0 } else { 1 });
            self.next = first.wrapping_add(slabs as usize * far);
            let bytes = (half_rows << (1 - log2)) * 128;
            return Copies { first, count: slabs << log2, bytes, near: far >> log2, mask: 0, jump: 0 };
        }
        self.next = first.wrapping_add(bytes as usize);
        if bytes == k {
            // Rows are neighbours: each half is one line.
            Copies { first, count: 2, bytes: half_rows * bytes, near: far, mask: 0, jump: 0 }
        } else {
            let (near, mask) = (k as usize, half_rows - 1);
            let jump = far - half_rows as usize * near;
            Copies { first, count: 2 * half_rows, bytes, near, mask, jump }
        }
    }
}

/// The scales of a unit. In a stage's slot lie those of blocks, of both halves for each 128 of K,
///
/// ```text
///   first half: 16 groups | second half: 16 groups
/// ```
///
/// or, with the last stage of a unit, one for each of its rows.
struct Scales {
    /// That of this lane: of its half and group for K = 0, or of the lane's row.
    first: *const f32,
    /// Scales from there to that of the same row of the second half.
    distance: usize,
    half_rows: u32,
    has_blocks: bool,
    has_channels: bool,
}

/// Groups of K of a half in a slot.
const GROUPS: u32 = FEW_STAGE_K / 128;

impl Scales {
    #[inline(always)]
    fn new(source: &Source, unit: &Unit, expert: u32) -> Self {
        let Source { scales, groups, rows, row_blocks, half_rows, half_distance, .. } = *source;
        let Source { has_blocks, has_channels, .. } = *source;
        let lane = thread::lane_id();
        let first = if has_blocks {
            let (half, group) = (lane / GROUPS, lane % GROUPS);
            let block = expert * row_blocks + (unit.row + half * half_distance) / 128;
            u64::from(block) * u64::from(groups) + u64::from(group)
        } else if has_channels {
            u64::from(expert * rows + unit.row + lane)
        } else {
            u64::from(expert)
        };
        let (first, distance) = (scales.wrapping_add(first as usize), half_distance as usize);
        Self { first, distance, half_rows, has_blocks, has_channels }
    }

    /// Copies those of a stage into its slot.
    ///
    /// # Safety
    /// As [`fill`]; the slot's stage is free.
    #[inline(always)]
    unsafe fn copy(&self, at: u32, bytes: u32, is_last: bool, slot: Shared<f32>) {
        let lane = thread::lane_id();
        let copy = |to: u32, from: *const f32| {
            // SAFETY: the caller's contract: the scale exists, and the slot is free.
            unsafe { cp_async::copy4_zfill(slot.add(to).address(), from.cast(), true) }
        };
        if self.has_blocks {
            if lane % GROUPS * 128 < bytes {
                copy(lane, self.first.wrapping_add(at as usize / 128));
            }
        } else if is_last {
            let mut row = lane;
            while row < self.half_rows {
                let (from, distance) = if self.has_channels {
                    (self.first.wrapping_add((row - lane) as usize), self.distance)
                } else {
                    (self.first, 0)
                };
                copy(row, from);
                copy(self.half_rows + row, from.wrapping_add(distance));
                row += 32;
            }
        }
    }
}
