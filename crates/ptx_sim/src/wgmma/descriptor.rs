//! The 64-bit matrix descriptor of `wgmma` and the shared-memory layouts that it describes (ISA "Asynchronous
//! warpgroup-level matrix shared memory layout").
//!
//! ```text
//!   bits  0..14   start address >> 4
//!   bits 16..30   leading dimension byte offset >> 4   (LBO)
//!   bits 32..46   stride dimension byte offset >> 4    (SBO)
//!   bits 49..52   base offset: 128-byte line of the swizzle period on which the pattern starts
//!   bits 62..64   swizzle: 0 none, 1 128 bytes, 2 64 bytes, 3 32 bytes
//! ```
//!
//! Memory is addressed in 16-byte chunks. With `W` the span of the swizzle (16 bytes without one):
//!
//! ```text
//!   K-major: chunk c of row r (a row is one m or one n; a chunk is 16 bytes along k)
//!     none       start + (r / 8) * SBO + (r % 8) * 16 + c * LBO
//!     swizzled   start + (r / 8) * SBO + (r % 8) * W  + c * 16             LBO is not used
//!
//!   MN-major (16-bit types): chunk c of row k (a chunk is 8 elements along m or n)
//!     none       start + c * SBO + (k / 8) * LBO + (k % 8) * 16
//!     swizzled   start + (c / (W/16)) * LBO + (k / 8) * SBO + (k % 8) * W + (c % (W/16)) * 16
//! ```
//!
//! The swizzle then permutes the bits of the sum. A descriptor whose start address is advanced inside a span
//! (by 32 bytes, to the next k step of a 128-byte row) therefore reads what it should.

use super::swizzle::Swizzle;

/// Which dimension of an operand is contiguous in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Major {
    /// K is contiguous (`imm-trans` 0).
    K,
    /// M of A, or N of B, is contiguous (`imm-trans` 1; 16-bit types only).
    Mn,
}

/// A decoded matrix descriptor; offsets in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Shared-memory address of the first element, below 2^18.
    pub start: u32,
    /// Leading dimension byte offset.
    pub leading: u32,
    /// Stride dimension byte offset.
    pub stride: u32,
    /// 128-byte line on which the swizzle pattern starts, 0..8.
    pub base_offset: u32,
    /// Swizzle mode.
    pub swizzle: Swizzle,
}

/// Bits of a shared-memory address that a descriptor can name.
const ADDRESS_MASK: u32 = 0x3_ffff;

impl Descriptor {
    /// Reads the fields of a descriptor; every bit pattern is one.
    pub fn decode(bits: u64) -> Descriptor {
        let field = |shift: u32| ((bits >> shift) as u32 & 0x3fff) << 4;
        Descriptor {
            start: field(0),
            leading: field(16),
            stride: field(32),
            base_offset: (bits >> 49) as u32 & 7,
            swizzle: match bits >> 62 {
                0 => Swizzle::None,
                1 => Swizzle::B128,
                2 => Swizzle::B64,
                _ => Swizzle::B32,
            },
        }
    }

    /// The 64 bits of the descriptor.
    pub fn encode(self) -> u64 {
        let field = |bytes: u32, shift: u32| (((bytes & ADDRESS_MASK) >> 4) as u64) << shift;
        let swizzle = match self.swizzle {
            Swizzle::None => 0,
            Swizzle::B128 => 1,
            Swizzle::B64 => 2,
            Swizzle::B32 => 3,
        };
        field(self.start, 0)
            | field(self.leading, 16)
            | field(self.stride, 32)
            | ((self.base_offset & 7) as u64) << 49
            | swizzle << 62
    }

    /// Shared-memory address of 16-byte chunk `chunk` along k of row `row`, in a K-major operand.
    #[inline]
    pub const fn k_major_chunk(&self, row: u32, chunk: u32) -> u32 {
        let group = row / 8 * self.stride;
        let inside = match self.swizzle {
            Swizzle::None => row % 8 * 16 + chunk * self.leading,
            swizzle => row % 8 * swizzle.span() + chunk * 16,
        };
        self.place(group + inside)
    }

    /// Shared-memory address of the chunk of 8 elements `8 * chunk..` of row `k`, in an MN-major operand.
    #[inline]
    pub const fn mn_major_chunk(&self, chunk: u32, k: u32) -> u32 {
        let offset = match self.swizzle {
            Swizzle::None => chunk * self.stride + k / 8 * self.leading + k % 8 * 16,
            swizzle => {
                let per_span = swizzle.span() / 16;
                chunk / per_span * self.leading
                    + k / 8 * self.stride
                    + k % 8 * swizzle.span()
                    + chunk % per_span * 16
            }
        };
        self.place(offset)
    }

    const fn place(&self, offset: u32) -> u32 {
        self.swizzle.apply_from((self.start + offset) & ADDRESS_MASK, self.base_offset)
    }
}
