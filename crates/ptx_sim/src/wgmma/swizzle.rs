//! Shared-memory swizzles, as TMA writes them and `wgmma` reads them (ISA "Swizzling modes").
//!
//! A swizzle exchanges 16-byte chunks within spans of 32, 64 or 128 bytes by an exclusive or of address bits:
//!
//! ```text
//!   address bit   ... 9  8  7 | 6  5  4 | 3 2 1 0
//!   128 bytes         y2 y1 y0| x2 x1 x0|             x ^= y
//!    64 bytes            y1 y0|    x1 x0|
//!    32 bytes               y0|       x0|
//!
//!   128-byte swizzle of 8 rows of 128 bytes: the 16-byte chunk that row r stores in column c
//!     r = 0:  0 1 2 3 4 5 6 7
//!     r = 1:  1 0 3 2 5 4 7 6
//!     r = 2:  2 3 0 1 6 7 4 5
//!     ...
//!     r = 7:  7 6 5 4 3 2 1 0
//! ```
//!
//! The bits are those of the shared-memory address itself, so the pattern does not move with the buffer; a
//! buffer that does not start on the pattern's period (256, 512 or 1024 bytes) starts in the middle of it.

/// A swizzle mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Swizzle {
    /// Addresses are used as they are.
    #[default]
    None,
    /// Within 32 bytes, period 256.
    B32,
    /// Within 64 bytes, period 512.
    B64,
    /// Within 128 bytes, period 1024.
    B128,
}

impl Swizzle {
    /// Bytes within which chunks move; 16 without a swizzle.
    pub const fn span(self) -> u32 {
        match self {
            Swizzle::None => 16,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }

    /// Bytes after which the pattern repeats; 16 without a swizzle.
    pub const fn period(self) -> u32 {
        match self {
            Swizzle::None => 16,
            _ => 8 * self.span(),
        }
    }

    /// Where the byte of unswizzled address `address` lies, if the pattern starts `base_offset` 128-byte
    /// lines late.
    #[inline(always)]
    pub const fn apply_from(self, address: u32, base_offset: u32) -> u32 {
        let chunks = self.span() / 16 - 1;
        address ^ (((address >> 7).wrapping_sub(base_offset) & chunks) << 4)
    }

    /// Where the byte of unswizzled address `address` lies.
    #[inline(always)]
    pub const fn apply(self, address: u32) -> u32 {
        self.apply_from(address, 0)
    }
}
