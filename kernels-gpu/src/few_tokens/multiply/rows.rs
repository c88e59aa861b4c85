//! Products of rows of weights as a checkpoint has them: `mma.sync` m16n8k16 on f16, which holds every e4m3
//! value.
//!
//! ```text
//!   a row group     eight rows of each half
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
//! K within 64 bytes may come in any order as long as both operands agree: lane q of a row has the same 16
//! bytes of K in both. The columns of rows that a tile does not have repeat its first row, and are dropped.
//! `mma.sync` on e4m3 does the same on Hopper, but with two sums of each product, which are added behind it.
//!
//! Eight lanes load together, those of two g, whose rows r(g) are four apart. These mostly lie a multiple of
//! 128 bytes apart, which is two accesses to a bank: a stage of 32 KiB takes 512 cycles then of the 1600 in
//! which it comes.

use cuda_std::fp8::f16x2_from_e4m3x2;
use cuda_std::math::fma;
use cuda_std::mma::m16n8k16_f16;
use cuda_std::shared::Shared;
use cuda_std::thread;

use crate::abi::BScaleKind;
use crate::few_tokens::layout::{Layout, Place, Rows};
use crate::few_tokens::memory::Memory;
use crate::few_tokens::queue::Unit;
use crate::few_tokens::{FEW_STAGE_K, FEW_TILE_ROWS, Projection};
use crate::gemm::hopper::ring::Position;
use crate::gemm::recomputed;

impl Layout for Rows {
    const IS_PACKED: bool = false;

    #[inline(always)]
    fn input(projection: &Projection, memory: &Memory, row: u32, column: u32) -> u32 {
        memory.inputs + row * projection.input_pitch + column
    }

    #[inline(always)]
    unsafe fn sums(
        projection: &Projection,
        unit: &Unit,
        rows: u32,
        memory: &Memory,
        mut position: Position,
    ) -> ([f32; 4], Position) {
        let Projection { weight_scale_kind, half_rows, stage_k, .. } = *projection;
        let has_blocks = weight_scale_kind.is(BScaleKind::Block);
        // What depends on the thread is worked out for each unit: it would take registers from unit to unit.
        let thread = recomputed(thread::thread_idx_x());
        let (lane, warp) = (thread % 32, thread / 32);
        let (g, q) = (lane / 4, lane % 4);
        let log2 = projection.row_groups_log2();
        // A stage has no more groups of 128 of K than there are warps for a row group.
        let (row, group) = ((warp & ((1 << log2) - 1)) * 8 + row_of(g), warp >> log2);
        let (mut at, end) = projection.part(unit.part);
        let end = u32::min(end, projection.k);
        let row_of_tile = if g < rows { g } else { 0 };
        let mut input = Self::input(projection, memory, row_of_tile, 16 * q + 128 * group + at);
        let mut input_scales = memory.input_scales.add((at / 128 + group) * FEW_TILE_ROWS + 2 * q);
        let mut totals = [0.0; 4];
        while at < end {
            let bytes = u32::min(end - at, stage_k);
            memory.wait_full(position);
            let slot = memory.slot(position);
            if group * 128 < bytes {
                let low = memory.stage(position) + row * bytes + group * 128 + 16 * q;
                let high = low + half_rows * bytes;
                let mut products = [[0.0; 4]; 2];
                // SAFETY: the barrier has shown the stage to this thread. Its rows have `bytes` bytes, a
                // multiple of 64; inputs have as many from `at` on, and scales for each group.
                unsafe {
                    let inputs: [f32; 2] = input_scales.cast().read();
                    let mut blocks = [1.0; 2];
                    if has_blocks {
                        blocks = [slot.add(group).read(), slot.add(FEW_STAGE_K / 128 + group).read()];
                    }
                    let first = Chunk::read(low, high, input);
                    if group * 128 + 64 < bytes {
                        let second = Chunk::read(low + 64, high + 64, input + 64);
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
        (totals, position)
    }

    #[inline(always)]
    fn place(_: u32, half: u32, within: u32, row: u32) -> Place {
        let (lane, component) = (g_of(within % 8) * 4 + row / 2, 2 * half + row % 2);
        Place { warp: within / 8, lane, component }
    }
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
