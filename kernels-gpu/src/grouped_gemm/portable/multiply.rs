//! A warp's share of a tile: fragments from shared memory, products into accumulators.
//!
//! Warp (wm, wn) owns rows `wm*MT*16 ..` and columns `wn*32 ..` of the block's tile, as MT x 4 `mma` tiles of
//! 16 x 8. In lane `l`, with `g = l / 4` and `q = l % 4`, element `[mt][nt][2*h + j]` of an accumulator is
//!
//! ```text
//! row    wm*MT*16 + mt*16 + h*8 + g         column    wn*32 + nt*8 + 2*q + j
//! ```
//!
//! `ldmatrix` takes row addresses from lanes. The eight rows of a matrix start 128 bytes apart, and the
//! swizzle spreads them over the eight 16-byte columns: no bank conflicts. In a step of 32 bytes of K
//! (`k32`):
//!
//! ```text
//! A, 16 rows   lanes  0-15: rows 0-15, chunk 2*k32        B, 16 columns  lanes  0- 7: columns 0- 7, chunk 2*k32
//!              lanes 16-31: rows 0-15, chunk 2*k32+1                     lanes  8-15: columns 0- 7, chunk 2*k32+1
//!                                                                        lanes 16-23: columns 8-15, chunk 2*k32
//!                                                                        lanes 24-31: columns 8-15, chunk 2*k32+1
//! ```

use crate::grouped_gemm::recomputed;
use core::arch::asm;

use cuda_std::{ldmatrix, mma, thread};

use super::pipeline::b_offset;
use super::scales::SlabScales;
use super::{REGISTERS_TO_SPARE, WARPS_N};
use crate::abi::SLAB;

/// Column tiles of 8 that a warp owns.
pub(super) const NT: usize = 4;

/// Repeats a block with `$i` = 0, 1, 2, 3, as far as it is below `$n`, as straight code: a register array may
/// be indexed by constants only.
macro_rules! unroll {
    ($i:ident < $n:expr => $body:block) => {{
        unroll!(@ 0, $i, $n, $body);
        unroll!(@ 1, $i, $n, $body);
        unroll!(@ 2, $i, $n, $body);
        unroll!(@ 3, $i, $n, $body);
    }};
    (@ $value:literal, $i:ident, $n:expr, $body:block) => {
        if $value < $n {
            let $i: usize = $value;
            $body
        }
    };
}
pub(super) use unroll;

/// Where a lane finds its part of the tile.
pub(super) struct WarpTile<const MT: usize, const WARPS_M: u32> {
    /// Row `g` and column `2*q` of the warp's first `mma` tile, within the block's tile.
    pub row: u32,
    pub column: u32,
    /// Lane number within its group of four, `q`.
    pub quad_lane: u32,
    // Offsets in a stage of the row that this lane addresses for `ldmatrix`, and the swizzle of its chunk.
    a_row: u32,
    a_swizzle: u32,
    b_row: u32,
    b_swizzle: u32,
}

impl<const MT: usize, const WARPS_M: u32> WarpTile<MT, WARPS_M> {
    #[inline(always)]
    pub fn new() -> Self {
        let thread = thread::thread_idx_x();
        let (warp, lane) = (thread / 32, thread % 32);
        let (first_row, first_column) = (warp / WARPS_N * (MT as u32 * 16), warp % WARPS_N * (NT as u32 * 8));
        let (a_row, a_chunk) = (first_row + lane % 16, lane / 16);
        let (b_row, b_chunk) = (first_column + lane / 16 * 8 + lane % 8, lane / 8 % 2);
        Self {
            row: first_row + lane / 4,
            column: first_column + lane % 4 * 2,
            quad_lane: lane % 4,
            a_row: a_row * SLAB,
            a_swizzle: (a_chunk ^ (lane % 8)) * 16,
            b_row: b_offset(MT, WARPS_M) + b_row * SLAB,
            b_swizzle: (b_chunk ^ (lane % 8)) * 16,
        }
    }
}

/// The operands of one k32 step.
pub(super) struct Fragments<const MT: usize> {
    a: [[u32; 4]; MT],
    b: [[u32; 2]; NT],
}

impl<const MT: usize> Fragments<MT> {
    /// Loads step `k32` (0 to 3) of a stage.
    ///
    /// # Safety
    /// All lanes of the warp call it together; the stage has landed, and a barrier has shown it to this
    /// thread.
    #[inline(always)]
    pub unsafe fn load<const WARPS_M: u32>(warp: &WarpTile<MT, WARPS_M>, stage: u32, k32: u32) -> Self {
        let (mut a_swizzle, mut b_swizzle) = (warp.a_swizzle, warp.b_swizzle);
        if !REGISTERS_TO_SPARE {
            (a_swizzle, b_swizzle) = (recomputed(a_swizzle), recomputed(b_swizzle));
        }
        let a_address = stage + warp.a_row + (a_swizzle ^ (k32 * 32));
        let b_address = stage + warp.b_row + (b_swizzle ^ (k32 * 32));
        let mut fragments = Self { a: [[0; 4]; MT], b: [[0; 2]; NT] };
        // SAFETY: the caller vouches for the stage; all addresses lie in its A and B tiles, at multiples of
        // 16.
        unsafe {
            unroll!(mt < MT => {
                fragments.a[mt] = ldmatrix::x4(a_address + mt as u32 * 16 * SLAB);
            });
            unroll!(pair < NT / 2 => {
                let [b0, b1, b2, b3] = ldmatrix::x4(b_address + pair as u32 * 16 * SLAB);
                fragments.b[2 * pair] = [b0, b1];
                fragments.b[2 * pair + 1] = [b2, b3];
            });
        }
        fragments
    }
}

/// The warp's part of D.
pub(super) struct Accumulator<const MT: usize>(pub [[[f32; 4]; NT]; MT]);

impl<const MT: usize> Accumulator<MT> {
    pub const ZERO: Self = Self([[[0.0; 4]; NT]; MT]);

    /// `self += A * B` over the 32 of K that the fragments hold.
    ///
    /// # Safety
    /// All lanes of the warp call it together.
    #[inline(always)]
    unsafe fn add_product(&mut self, fragments: &Fragments<MT>) {
        unroll!(mt < MT => {
            unroll!(nt < NT => {
                // SAFETY: the warp is together, says the caller.
                unsafe { mma::m16n8k32_e4m3(&mut self.0[mt][nt], fragments.a[mt], fragments.b[nt]) };
            });
        });
    }

    /// [`add_product`](Self::add_product) of the fragments of one step, and the fragments of the next: step
    /// `k32` of `stage`. Loaded first, if registers permit.
    ///
    /// # Safety
    /// As [`Fragments::load`].
    #[inline(always)]
    pub unsafe fn add_product_and_load<const WARPS_M: u32>(
        &mut self,
        fragments: &Fragments<MT>,
        warp: &WarpTile<MT, WARPS_M>,
        stage: u32,
        k32: u32,
    ) -> Fragments<MT> {
        // SAFETY: the warp is together and the stage has landed, says the caller.
        unsafe {
            if REGISTERS_TO_SPARE {
                let next = Fragments::load(warp, stage, k32);
                self.add_product(fragments);
                next
            } else {
                self.add_product(fragments);
                Fragments::load(warp, stage, k32)
            }
        }
    }

    /// `self += scale * partial`, with the scale of each row.
    #[inline(always)]
    pub fn fold(&mut self, partial: &Self, scales: &SlabScales<MT>) {
        unroll!(mt < MT => {
            unroll!(nt < NT => {
                unroll!(i < 4 => {
                    let scaled = scales.0[mt][i / 2];
                    self.0[mt][nt][i] = fma(scaled, partial.0[mt][nt][i], self.0[mt][nt][i]);
                });
            });
        });
    }
}

/// `a * b + c`, rounded once.
#[inline(always)]
fn fma(a: f32, b: f32, c: f32) -> f32 {
    let d: f32;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!("fma.rn.f32 {}, {}, {}, {};", out(reg32) d, in(reg32) a, in(reg32) b, in(reg32) c,
            options(pure, nomem, nostack, preserves_flags));
    }
    d
}
