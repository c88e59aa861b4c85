//! A warpgroup's accumulators of one `wgmma` tile of 64 x N, as registers of a thread.
//!
//! ```text
//!   thread t of the warpgroup: warp w = t / 32, g = t % 32 / 4, q = t % 4
//!   register 4 j + 2 h + c     row 16 w + g + 8 h     column 8 j + 2 q + c        j = 0 .. N / 8
//! ```

use cuda_std::unroll;
use cuda_std::wgmma::{wgmma_e4m3, wgmma_tie};

/// N / 2 accumulators of a thread.
pub trait Accumulator: Copy {
    /// All 0.
    const ZERO: Self;

    /// Begins `self += A * B^T` over 128 bytes of K, or `self = ..` if not `keep`; `a` and `b` are
    /// [descriptors](cuda_std::wgmma::descriptor) of 64 and N rows.
    ///
    /// # Safety
    /// All warps of the warpgroup call it together, after `wgmma::fence`. The operands are in shared memory,
    /// visible to the asynchronous proxy, and stay until the group that this belongs to has been waited for;
    /// so do the registers.
    unsafe fn multiply(&mut self, a: u32, b: u32, keep: bool);

    /// Pins the registers to this place of the program, behind the wait that precedes it.
    fn tie(&mut self);

    /// `self += factor(j, h, c) * product`, register by register.
    fn fold(&mut self, product: &Self, factor: impl Fn(usize, usize, usize) -> f32);

    /// Calls `f(j, h, c, value)` for every register.
    fn for_each(&self, f: impl FnMut(usize, usize, usize, f32));

    /// `f(j, gate, up)` for every four registers of a `j` and the same of `up`.
    fn zip(&self, up: &Self, f: impl Fn(usize, &[f32; 4], &[f32; 4]) -> [f32; 4]) -> Self;

    /// Calls `f(j, values)` for the four registers of every j: `[2 h + c]`.
    fn for_each_tile(&self, f: impl FnMut(usize, [f32; 4]));

    /// Calls `f(j, c, h = 0, h = 1)` for every column.
    fn for_each_column(&self, f: impl FnMut(usize, usize, f32, f32));

    /// Writes the registers of the first `columns` columns, rounded up to eights, to `to[0], to[stride], ..`
    /// of four each.
    ///
    /// # Safety
    /// As many vectors as the registers fill are writable there, 16-byte aligned.
    unsafe fn save(&self, columns: u32, to: *mut [f32; 4], stride: usize);

    /// Adds what [`save`](Self::save) wrote of as many columns.
    ///
    /// # Safety
    /// As `save`, readable; what other threads wrote there has been made visible to this one.
    unsafe fn add_saved(&mut self, columns: u32, from: *const [f32; 4], stride: usize);
}

macro_rules! accumulator {
    ($($n:tt: $registers:tt, $quads:tt;)+) => {$(
        impl Accumulator for [f32; $registers] {
            const ZERO: Self = [0.0; $registers];

            #[inline(always)]
            unsafe fn multiply(&mut self, a: u32, b: u32, keep: bool) {
                // SAFETY: the caller's contract.
                unsafe { wgmma_e4m3!($n, self, a, b, keep) }
            }

            #[inline(always)]
            fn tie(&mut self) {
                // SAFETY: no instruction at all.
                unsafe { wgmma_tie!($registers, self) }
            }

            #[inline(always)]
            fn fold(&mut self, product: &Self, factor: impl Fn(usize, usize, usize) -> f32) {
                unroll!(for i in 0..$registers {
                    self[i] = cuda_std::math::fma(product[i], factor(i / 4, i / 2 % 2, i % 2), self[i]);
                });
            }

            #[inline(always)]
            fn for_each(&self, mut f: impl FnMut(usize, usize, usize, f32)) {
                unroll!(for i in 0..$registers {
                    f(i / 4, i / 2 % 2, i % 2, self[i]);
                });
            }

            #[inline(always)]
            fn zip(&self, up: &Self, f: impl Fn(usize, &[f32; 4], &[f32; 4]) -> [f32; 4]) -> Self {
                let mut values = Self::ZERO;
                unroll!(for j in 0..$quads {
                    let gate = [self[4 * j], self[4 * j + 1], self[4 * j + 2], self[4 * j + 3]];
                    let four = f(j, &gate, &[up[4 * j], up[4 * j + 1], up[4 * j + 2], up[4 * j + 3]]);
                    values[4 * j] = four[0];
                    values[4 * j + 1] = four[1];
                    values[4 * j + 2] = four[2];
                    values[4 * j + 3] = four[3];
                });
                values
            }

            #[inline(always)]
            fn for_each_tile(&self, mut f: impl FnMut(usize, [f32; 4])) {
                unroll!(for j in 0..$quads {
                    f(j, [self[4 * j], self[4 * j + 1], self[4 * j + 2], self[4 * j + 3]]);
                });
            }

            #[inline(always)]
            fn for_each_column(&self, mut f: impl FnMut(usize, usize, f32, f32)) {
                unroll!(for j in 0..$quads {
                    f(j, 0, self[4 * j], self[4 * j + 2]);
                    f(j, 1, self[4 * j + 1], self[4 * j + 3]);
                });
            }

            #[inline(always)]
            unsafe fn save(&self, columns: u32, to: *mut [f32; 4], stride: usize) {
                unroll!(for i in 0..$quads {
                    if i == 0 || 8 * (i as u32) < columns {
                        // SAFETY: the caller's contract.
                        unsafe {
                            cuda_std::memory::store(to.add(i * stride), [self[4 * i], self[4 * i + 1], self[4 * i + 2], self[4 * i + 3]])
                        };
                    }
                });
            }

            #[inline(always)]
            unsafe fn add_saved(&mut self, columns: u32, from: *const [f32; 4], stride: usize) {
                unroll!(for i in 0..$quads {
                    if i == 0 || 8 * (i as u32) < columns {
                        // SAFETY: the caller's contract.
                        let saved = unsafe { cuda_std::memory::load_strong(from.add(i * stride)) };
                        self[4 * i] += saved[0];
                        self[4 * i + 1] += saved[1];
                        self[4 * i + 2] += saved[2];
                        self[4 * i + 3] += saved[3];
                    }
                });
            }
        }
    )+};
}

accumulator! {
    8: 4, 1;
    16: 8, 2;
    32: 16, 4;
}
