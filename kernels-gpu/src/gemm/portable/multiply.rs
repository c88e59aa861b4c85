//! A warp's share of a tile: fragments from shared memory, products into accumulators. Which share that is:
//! [`warp_tile`](super::warp_tile).

use core::arch::asm;
use cuda_std::{ldmatrix, mma};

use super::REGISTERS_TO_SPARE;
use super::scales::SlabScales;
use super::warp_tile::{NT, WarpTile, unroll};
use crate::abi::SLAB;
use crate::gemm::recomputed;

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
