//! The product of a unit's weights and a tile's rows, by sixteen warps; three more add up what these have and
//! store it, while the sixteen are at the next unit.
//!
//! ```text
//!   a unit's rows:  row groups of 16, eight of each half       RG = half_rows / 8 of them: 1, 2, 4 or 8
//!   warp w          row group w % RG, of every stage the 128 of K number w / RG: a stage has up to 16 / RG of them
//!
//!   m16n8k16, lane (g, q) = (lane / 4, lane % 4), of 64 bytes of K from k on
//!     A   row g: row r(g) of the first half       its 16 bytes from k + 16 q on, 4 of them to each product, as f16
//!         row g + 8: row r(g) of the second half  likewise
//!     B   column g: row g of the tile             likewise
//!     D   [0], [1]: first half, row r(g), rows 2q and 2q + 1 of the tile      [2], [3]: second half
//!
//!     r(0 .. 8) = 0 4 1 5 2 6 3 7
//! ```
//!
//! Lane q of a row has the same 16 bytes of K in both operands, which is all that a sum over K asks for. The
//! columns of rows that a tile does not have repeat its first row, and are dropped. `mma.sync` on e4m3 does
//! the same on Hopper, but with two sums of each product, which are added behind it.
//!
//! Sums pass through two buffers in turn. Barrier 2 or 3 says that a buffer has a unit's sums, 4 or 5 that it
//! is free again.
//!
//! Eight lanes load together, those of two g. Of packed weights, whose 16-byte chunks of a row r are at
//! `chunk ^ (r % 8)`, rows r(g) four apart lie in all banks. Of others these rows mostly lie a multiple of
//! 128 bytes apart, which is two accesses to a bank: a stage of 32 KiB takes 512 cycles then of the 1600 in
//! which it comes.

use cuda_std::code::Flag;
use cuda_std::fp8::f16x2_from_e4m3x2;
use cuda_std::math::fma;
use cuda_std::mma::m16n8k16_f16;
use cuda_std::shared::Shared;
use cuda_std::{sync, thread};

use super::memory::Memory;
use super::queue::Unit;
use super::{CONSUMER_WARPS, CONSUMERS, FEW_STAGE_K, FEW_TILE_ROWS, FINISHERS, Projection};
use crate::abi::BScaleKind;
use crate::gemm::hopper::ring::Position;
use crate::gemm::recomputed;

/// The first of two barriers: a buffer has a unit's sums.
const DONE_BARRIERS: u32 = 2;
/// The first of two barriers: a buffer is free.
const FREE_BARRIERS: u32 = 4;

/// Multiplies the unit in the stages from `position` on by the input rows, of which there are `rows`, and
/// leaves the sums of every warp to those who finish the unit. Returns the place after the stages. `turn` is
/// the number of units that the block has multiplied before.
///
/// # Safety
/// The contract of the kernel: the stages are filled with this unit, and inputs and their scales are those of
/// a tile. All consumer threads call it together.
#[inline(always)]
pub unsafe fn unit(
    projection: &Projection,
    packed: Flag,
    unit: &Unit,
    rows: u32,
    memory: &Memory,
    mut position: Position,
    turn: u32,
) -> Position {
    let Projection { weight_scale_kind, half_rows, stage_k, .. } = *projection;
    let has_blocks = weight_scale_kind.is(BScaleKind::Block);
    // What depends on the thread is worked out for each unit: it would take registers from unit to unit.
    let thread = recomputed(thread::thread_idx_x());
    let (lane, warp) = (thread % 32, thread / 32);
    let (g, q) = (lane / 4, lane % 4);
    let log2 = projection.row_groups_log2();
    // A stage has no more groups of 128 of K than there are warps for a row group.
    let (row, group) = ((warp & ((1 << log2) - 1)) * 8 + row_of(g), warp >> log2);
    let is_packed = packed.is_set();
    // Where its chunk of the first 64 bytes of a group is, and how far that of the others is from there.
    let (swizzle, flip) = if is_packed { ((q ^ (row % 4)) * 16, row / 4 % 2 * 64) } else { (q * 16, 0) };
    // From a stage's beginning to the row of the first half, and from there to that of the second.
    let places = |bytes: u32| {
        let (of_row, of_group) = if is_packed { (128, 2 * half_rows * 128) } else { (bytes, 128) };
        (row * of_row + group * of_group + swizzle, half_rows * of_row)
    };
    let (mut at, end) = projection.part(unit.part);
    let (mut low_place, mut to_high) = places(u32::min(end - at, stage_k));
    let mut input =
        memory.inputs + if g < rows { g * memory.input_pitch } else { 0 } + 16 * q + 128 * group + at;
    let mut input_scales = memory.input_scales.add((at / 128 + group) * FEW_TILE_ROWS + 2 * q);
    let mut totals = [0.0; 4];
    while at < end {
        let bytes = u32::min(end - at, stage_k);
        memory.wait_full(position);
        let slot = memory.slot(position);
        if group * 128 < bytes {
            if !is_packed {
                (low_place, to_high) = places(bytes);
            }
            let low = memory.stage(position) + low_place;
            let high = low + to_high;
            let mut products = [[0.0; 4]; 2];
            // SAFETY: the barrier has shown the stage to this thread. Its rows have `bytes` bytes, a multiple
            // of 64; inputs have as many from `at` on, and scales for each group.
            unsafe {
                let inputs: [f32; 2] = input_scales.cast().read();
                let mut blocks = [1.0; 2];
                if has_blocks {
                    blocks = [slot.add(group).read(), slot.add(FEW_STAGE_K / 128 + group).read()];
                }
                let first = Chunk::read(low + flip, high + flip, input);
                if group * 128 + 64 < bytes {
                    let second = Chunk::read(low + 64 - flip, high + 64 - flip, input + 64);
                    first.multiply(&mut products);
                    second.multiply(&mut products);
                } else {
                    first.multiply(&mut products);
                }
                let products: [f32; 4] = core::array::from_fn(|i| products[0][i] + products[1][i]);
                totals = [
                    fma(products[0], inputs[0] * blocks[0], totals[0]),
                    fma(products[1], inputs[1] * blocks[0], totals[1]),
                    fma(products[2], inputs[0] * blocks[1], totals[2]),
                    fma(products[3], inputs[1] * blocks[1], totals[3]),
                ];
            }
        }
        if !has_blocks && at + bytes == end {
            // SAFETY: the last stage of a unit has a scale for each of its rows.
            let [low, high] = unsafe { [slot.add(row).read(), slot.add(half_rows + row).read()] };
            totals = [totals[0] * low, totals[1] * low, totals[2] * high, totals[3] * high];
        }
        memory.release(position);
        at += stage_k;
        input += stage_k;
        input_scales = input_scales.add(stage_k / 128 * FEW_TILE_ROWS);
        position = memory.next(position);
    }
    let buffer = turn % 2;
    if turn >= 2 {
        sync::named(FREE_BARRIERS + buffer, CONSUMERS + FINISHERS);
    }
    // SAFETY: each lane has a place of its own, and the buffer's last unit is finished.
    unsafe { memory.partials(buffer, warp).add(lane).write(totals) };
    sync::named_arrive(DONE_BARRIERS + buffer, CONSUMERS + FINISHERS);
    position
}

/// Tells those who finish units that none comes behind the `turn` that there were, and waits until they have
/// finished all. All consumers call it together.
#[inline(always)]
pub fn end(turn: u32) {
    let buffer = turn % 2;
    if turn >= 2 {
        sync::named(FREE_BARRIERS + buffer, CONSUMERS + FINISHERS);
    }
    sync::named_arrive(DONE_BARRIERS + buffer, CONSUMERS + FINISHERS);
    if turn >= 1 {
        sync::named(FREE_BARRIERS + (buffer ^ 1), CONSUMERS + FINISHERS);
    }
}

/// Waits until the sums of the block's unit number `turn`, or its end, are there: then the queue tells which.
/// All threads that finish units call it together, for one unit after the other.
#[inline(always)]
pub fn wait_done(turn: u32) {
    sync::named(DONE_BARRIERS + turn % 2, CONSUMERS + FINISHERS);
}

/// Says that unit number `turn` is finished. All threads that finish units call it together.
#[inline(always)]
pub fn finished(turn: u32) {
    sync::named_arrive(FREE_BARRIERS + turn % 2, CONSUMERS + FINISHERS);
}

/// r(g) of the module's drawing.
#[inline(always)]
fn row_of(g: u32) -> u32 {
    g / 2 + g % 2 * 4
}

/// The g of a row.
#[inline(always)]
fn g_of(row: u32) -> u32 {
    row % 4 * 2 + row / 4
}

/// 64 bytes of K of the rows of both halves and of the tile that a lane has.
struct Chunk {
    low: [u32; 4],
    high: [u32; 4],
    input: [u32; 4],
}

impl Chunk {
    /// # Safety
    /// The addresses are this lane's, 16-byte aligned, written and visible.
    #[inline(always)]
    unsafe fn read(low: u32, high: u32, input: u32) -> Self {
        // SAFETY: the caller's contract.
        unsafe {
            Self {
                low: Shared::from_address(low).read(),
                high: Shared::from_address(high).read(),
                input: Shared::from_address(input).read(),
            }
        }
    }

    /// Adds the products, of every other word to either sum.
    ///
    /// # Safety
    /// All lanes of the warp call it together.
    #[inline(always)]
    unsafe fn multiply(&self, products: &mut [[f32; 4]; 2]) {
        let word = |i: usize, products: &mut [f32; 4]| {
            let ([a, b], [c, d], e) = (wide(self.low[i]), wide(self.high[i]), wide(self.input[i]));
            // SAFETY: the caller's contract.
            unsafe { m16n8k16_f16(products, [a, c, b, d], e) };
        };
        let [even, odd] = products;
        word(0, even);
        word(1, odd);
        word(2, even);
        word(3, odd);
    }
}

/// Four values as f16, which holds them all.
#[inline(always)]
fn wide(word: u32) -> [u32; 2] {
    [f16x2_from_e4m3x2(word as u16), f16x2_from_e4m3x2((word >> 16) as u16)]
}

/// The sum for row `within` of half `half` and row `row` of the tile, over the warps that have parts of it,
/// of which every `1 << log2`th has the row.
///
/// # Safety
/// [`unit`] has left the sums in `buffer`; the unit has the row, and the tile too.
#[inline(always)]
pub unsafe fn sum(log2: u32, memory: &Memory, buffer: u32, half: u32, within: u32, row: u32) -> f32 {
    let (lane, component) = (g_of(within % 8) * 4 + row / 2, 2 * half + row % 2);
    let parts = CONSUMER_WARPS >> log2;
    let first = memory.partials(buffer, within / 8).add(lane).cast::<f32>().add(component);
    // Four at once, so that their latencies overlap; some twice where there are fewer.
    let part = |part: u32| {
        let from = first.byte_add(part.min(parts - 1) * (512 << log2));
        // SAFETY: the caller's contract.
        let value = unsafe { from.read() };
        if part < parts { value } else { 0.0 }
    };
    let four = |first: u32| {
        let [a, b, c, d] = [part(first), part(first + 1), part(first + 2), part(first + 3)];
        (a + b) + (c + d)
    };
    let mut sum = four(0);
    if parts > 4 {
        sum += four(4);
    }
    if parts > 8 {
        sum += four(8) + four(12);
    }
    sum
}
