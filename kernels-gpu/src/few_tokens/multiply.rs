//! The product of a unit's weights and a tile's rows, by sixteen warps.
//!
//! ```text
//!   a unit's rows:  row groups of 16, eight of each half       RG = half_rows / 8 of them: 1, 2, 4 or 8
//!   warp w          row group w % RG, of every stage the groups of 128 of K  w / RG, w / RG + 16 / RG, ..
//!
//!   m16n8k32, lane (g, q) = (lane / 4, lane % 4), of 64 bytes of K from k on
//!     A   row g: row r(g) of the first half       its 16 bytes from k + 16 q on, 8 of them to each product
//!         row g + 8: row r(g) of the second half  likewise
//!     B   column g: row g of the tile             likewise
//!     D   [0], [1]: first half, row r(g), rows 2q and 2q + 1 of the tile      [2], [3]: second half
//!
//!     r(0 .. 8) = 0 4 1 5 2 6 3 7
//! ```
//!
//! Lane q of a row has the same 16 bytes of K in both operands, which is all that a sum over K asks for. The
//! columns of rows that a tile does not have repeat its first row, and are dropped.
//!
//! Eight lanes load together, those of two g. Of packed weights, whose 16-byte chunks of a row r are at
//! `chunk ^ (r % 8)`, rows r(g) four apart lie in all banks. Of others these rows mostly lie a multiple of
//! 128 bytes apart, which is two accesses to a bank: a stage of 32 KiB takes 512 cycles then of the 1600 in
//! which it comes.

use cuda_std::code::Flag;
use cuda_std::math::fma;
use cuda_std::mma::m16n8k32_e4m3;
use cuda_std::shared::Shared;
use cuda_std::{sync, thread};

use super::memory::Memory;
use super::tiles::Unit;
use super::{CONSUMER_BARRIER, CONSUMER_WARPS, CONSUMERS, FEW_STAGE_K, FEW_TILE_ROWS, Projection};
use crate::abi::BScaleKind;
use crate::gemm::hopper::ring::Position;
use crate::gemm::recomputed;

/// Multiplies the unit in the stages from `position` on by the input rows, of which there are `rows`, and
/// leaves the sums of every warp in `buffer`, visible to all consumers. Returns the place after the stages.
///
/// # Safety
/// The contract of the kernel: the stages are filled with this unit, and inputs and their scales are those of
/// a tile. All consumer threads call it together. Reads of the buffer are over that lie before the last call
/// with the other one.
#[inline(always)]
pub unsafe fn unit(
    projection: &Projection,
    packed: Flag,
    unit: &Unit,
    rows: u32,
    memory: &Memory,
    mut position: Position,
    buffer: u32,
) -> Position {
    let Projection { weight_scale_kind, half_rows, stage_k, .. } = *projection;
    let has_blocks = weight_scale_kind.is(BScaleKind::Block);
    // What depends on the thread is worked out for each unit: it would take registers from unit to unit.
    let thread = recomputed(thread::thread_idx_x());
    let (lane, warp) = (thread % 32, thread / 32);
    let (g, q) = (lane / 4, lane % 4);
    let log2 = projection.row_groups_log2();
    let (row, first_group, step) =
        ((warp & ((1 << log2) - 1)) * 8 + row_of(g), warp >> log2, CONSUMER_WARPS >> log2);
    let is_packed = packed.is_set();
    // Where its chunk of the first 64 bytes of a group is, and how far that of the others is from there.
    let (swizzle, flip) = if is_packed { ((q ^ (row % 4)) * 16, row / 4 % 2 * 64) } else { (q * 16, 0) };
    let input = memory.inputs + if g < rows { g * memory.input_pitch } else { 0 } + 16 * q;
    let mut totals = [0.0; 4];
    let (mut at, end) = projection.part(unit.part);
    while at < end {
        let bytes = u32::min(end - at, stage_k);
        memory.wait_full(position);
        let slot = memory.slot(position);
        let (of_row, of_group) = if is_packed { (128, 2 * half_rows * 128) } else { (bytes, 128) };
        let low = memory.stage(position) + row * of_row + swizzle;
        let mut group = first_group;
        while group * 128 < bytes {
            let (k, low) = (group * 128, low + group * of_group);
            let (high, input) = (low + half_rows * of_row, input + at + k);
            let mut products = [0.0; 4];
            // SAFETY: the barrier has shown the stage to this thread. Its rows have `bytes` bytes, a multiple
            // of 64; inputs have as many from `at` on, and scales for each group.
            unsafe {
                let scales = memory.input_scales.add((at + k) / 128 * FEW_TILE_ROWS + 2 * q);
                let inputs: [f32; 2] = scales.cast().read();
                let mut blocks = [1.0; 2];
                if has_blocks {
                    blocks = [slot.add(group).read(), slot.add(FEW_STAGE_K / 128 + group).read()];
                }
                let first = Chunk::read(low + flip, high + flip, input);
                if k + 64 < bytes {
                    let second = Chunk::read(low + 64 - flip, high + 64 - flip, input + 64);
                    first.multiply(&mut products);
                    second.multiply(&mut products);
                } else {
                    first.multiply(&mut products);
                }
                totals = [
                    fma(products[0], inputs[0] * blocks[0], totals[0]),
                    fma(products[1], inputs[1] * blocks[0], totals[1]),
                    fma(products[2], inputs[0] * blocks[1], totals[2]),
                    fma(products[3], inputs[1] * blocks[1], totals[3]),
                ];
            }
            group += step;
        }
        if !has_blocks && at + bytes == end {
            // SAFETY: the last stage of a unit has a scale for each of its rows.
            let [low, high] = unsafe { [slot.add(row).read(), slot.add(half_rows + row).read()] };
            totals = [totals[0] * low, totals[1] * low, totals[2] * high, totals[3] * high];
        }
        memory.release(position);
        at += bytes;
        position = memory.next(position);
    }
    // SAFETY: each lane has a place of its own.
    unsafe { memory.partials(buffer, warp).add(lane).write(totals) };
    sync::named(CONSUMER_BARRIER, CONSUMERS);
    position
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

    /// Adds the products.
    ///
    /// # Safety
    /// All lanes of the warp call it together.
    #[inline(always)]
    unsafe fn multiply(&self, products: &mut [f32; 4]) {
        let Self { low: a, high: c, input: b } = self;
        // SAFETY: the caller's contract.
        unsafe {
            m16n8k32_e4m3(products, [a[0], c[0], a[1], c[1]], [b[0], b[1]]);
            m16n8k32_e4m3(products, [a[2], c[2], a[3], c[3]], [b[2], b[3]]);
        }
    }
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
