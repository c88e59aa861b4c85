//! Tensor maps: the 128-byte objects that `cuTensorMapEncodeTiled` makes and TMA instructions obey.
//!
//! NVIDIA's encoding is opaque, so the emulated device has one of its own; what the fields mean, and which
//! values are refused, is as the driver API documents it. A map describes a tensor of up to five dimensions
//! (innermost first) and a box of it that one instruction copies:
//!
//! ```text
//!   byte   0..8      8      9        10        11       12       13       16..24    24..44     44..54
//!        "TMAP sim"  type   rank  interleave  swizzle  l2     oob fill   address   dims - 1   box dims
//!         54..59             64..96
//!        element strides    strides (bytes; dimensions 1..rank)
//!
//!   shared memory after a load of the box at coordinates (c0, c1, ..), rows of box_dims[0] elements:
//!
//!     shared + 0           row (c1,     c2)        16-byte chunks exchanged by the swizzle of their address;
//!     shared + row bytes   row (c1 + 1, c2)        elements outside the tensor are filled (loads)
//!     ...                                          or left alone (stores)
//! ```

use std::fmt;
use std::ops::Range;

use crate::wgmma::Swizzle;

/// Element type of a tensor; the numbers are those of `CUtensorMapDataType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum DataType {
    Uint8 = 0,
    Uint16 = 1,
    Uint32 = 2,
    Int32 = 3,
    Uint64 = 4,
    Int64 = 5,
    Float16 = 6,
    Float32 = 7,
    Float64 = 8,
    Bfloat16 = 9,
}

impl DataType {
    const ALL: [DataType; 10] = [
        DataType::Uint8,
        DataType::Uint16,
        DataType::Uint32,
        DataType::Int32,
        DataType::Uint64,
        DataType::Int64,
        DataType::Float16,
        DataType::Float32,
        DataType::Float64,
        DataType::Bfloat16,
    ];

    /// Bytes of one element.
    pub const fn bytes(self) -> u32 {
        match self {
            DataType::Uint8 => 1,
            DataType::Uint16 | DataType::Float16 | DataType::Bfloat16 => 2,
            DataType::Uint32 | DataType::Int32 | DataType::Float32 => 4,
            DataType::Uint64 | DataType::Int64 | DataType::Float64 => 8,
        }
    }

    const fn is_float(self) -> bool {
        matches!(self, DataType::Float16 | DataType::Float32 | DataType::Float64 | DataType::Bfloat16)
    }
}

/// A refused argument of `cuTensorMapEncodeTiled`, or a map that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMapError {
    /// The argument, by the driver API's name.
    pub argument: String,
    /// Its value.
    pub value: String,
    /// What it must be.
    pub rule: String,
}

impl fmt::Display for TensorMapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}: {}", self.argument, self.value, self.rule)
    }
}

impl std::error::Error for TensorMapError {}

fn refuse<T>(
    argument: impl Into<String>,
    value: impl fmt::Display,
    rule: impl Into<String>,
) -> Result<T, TensorMapError> {
    Err(TensorMapError { argument: argument.into(), value: value.to_string(), rule: rule.into() })
}

/// Arguments of `cuTensorMapEncodeTiled`, enumerations as the driver API numbers them.
#[derive(Clone, Debug)]
pub struct TiledArguments<'a> {
    /// `tensorDataType`.
    pub data_type: u32,
    /// `globalAddress`.
    pub address: u64,
    /// `globalDim`: elements in each dimension, innermost first; its length is `tensorRank`.
    pub dims: &'a [u64],
    /// `globalStrides`: bytes from one index to the next of dimensions 1..rank.
    pub strides: &'a [u64],
    /// `boxDim`: elements of the box.
    pub box_dims: &'a [u32],
    /// `elementStrides`.
    pub element_strides: &'a [u32],
    /// `interleave`.
    pub interleave: u32,
    /// `swizzle`.
    pub swizzle: u32,
    /// `l2Promotion`.
    pub l2_promotion: u32,
    /// `oobFill`.
    pub oob_fill: u32,
}

/// A decoded tensor map. Unused dimensions have size 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Element type.
    pub data_type: DataType,
    /// Dimensions, 1..=5.
    pub rank: usize,
    /// Device address of element 0.
    pub address: u64,
    /// Elements in each dimension.
    pub dims: [u64; 5],
    /// Bytes from one index to the next in dimensions 1..5.
    pub strides: [u64; 4],
    /// Elements of the box.
    pub box_dims: [u32; 5],
    /// Step within the box along dimensions 1..5; the first entry has no meaning.
    pub element_strides: [u32; 5],
    /// Swizzle of the box in shared memory.
    pub swizzle: Swizzle,
    /// L2 promotion, which has no effect here.
    pub l2_promotion: u32,
    /// Out-of-bounds elements read as NaN rather than zero.
    pub nan_fill: bool,
}

/// Sixteen bytes of a box.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Shared-memory address, after the swizzle.
    pub shared: u32,
    /// Device address of byte 0; meaningless when `valid` is empty.
    pub global: u64,
    /// Bytes of the chunk that lie inside the tensor.
    pub valid: Range<usize>,
}

const MAGIC: [u8; 8] = *b"TMAP sim";

impl TensorMap {
    /// Bytes of an encoded map.
    pub const BYTES: usize = 128;

    /// Checks the arguments of `cuTensorMapEncodeTiled` by every rule that the driver API documents.
    pub fn tiled(arguments: &TiledArguments<'_>) -> Result<TensorMap, TensorMapError> {
        let TiledArguments { address, dims, strides, box_dims, element_strides, .. } = *arguments;
        let data_type = match arguments.data_type {
            code @ 0..=9 => DataType::ALL[code as usize],
            code @ 10..=12 => {
                return refuse("tensorDataType", code, "TF32 and FTZ types are not emulated");
            }
            code @ 13..=15 => return refuse("tensorDataType", code, "packed types need sm_100"),
            code => return refuse("tensorDataType", code, "must be a CUtensorMapDataType"),
        };
        let rank = dims.len();
        if !(1..=5).contains(&rank) {
            return refuse("tensorRank", rank, "must be 1 to 5");
        }
        match arguments.interleave {
            0 => {}
            code @ 1..=2 => return refuse("interleave", code, "interleaved layouts are not emulated"),
            code => return refuse("interleave", code, "must be a CUtensorMapInterleave"),
        }
        let swizzle = match arguments.swizzle {
            0 => Swizzle::None,
            1 => Swizzle::B32,
            2 => Swizzle::B64,
            3 => Swizzle::B128,
            code @ 4..=6 => {
                return refuse("swizzle", code, "128-byte swizzles with larger atoms need sm_100");
            }
            code => return refuse("swizzle", code, "must be a CUtensorMapSwizzle"),
        };
        if arguments.l2_promotion > 3 {
            return refuse("l2Promotion", arguments.l2_promotion, "must be a CUtensorMapL2promotion");
        }
        match arguments.oob_fill {
            0 => {}
            1 if data_type.is_float() => {}
            1 => return refuse("oobFill", 1, "NaN can only fill a tensor of a floating-point type"),
            code => return refuse("oobFill", code, "must be a CUtensorMapFloatOOBfill"),
        }
        for (name, length, expected) in [
            ("globalStrides", strides.len(), rank - 1),
            ("boxDim", box_dims.len(), rank),
            ("elementStrides", element_strides.len(), rank),
        ] {
            if length < expected {
                return refuse(
                    name,
                    format!("{length} long"),
                    format!("a map of rank {rank} needs {expected}"),
                );
            }
        }
        if !address.is_multiple_of(16) {
            return refuse("globalAddress", format!("{address:#x}"), "must be a multiple of 16");
        }
        let mut map = TensorMap {
            data_type,
            rank,
            address,
            dims: [1; 5],
            strides: [0; 4],
            box_dims: [1; 5],
            element_strides: [1; 5],
            swizzle,
            l2_promotion: arguments.l2_promotion,
            nan_fill: arguments.oob_fill == 1,
        };
        for d in 0..rank {
            if !(1..=1 << 32).contains(&dims[d]) {
                return refuse(format!("globalDim[{d}]"), dims[d], "must be 1 to 2^32");
            }
            if !(1..=256).contains(&box_dims[d]) {
                return refuse(format!("boxDim[{d}]"), box_dims[d], "must be 1 to 256");
            }
            if d > 0 && !(1..=8).contains(&element_strides[d]) {
                return refuse(format!("elementStrides[{d}]"), element_strides[d], "must be 1 to 8");
            }
            map.dims[d] = dims[d];
            map.box_dims[d] = box_dims[d];
            map.element_strides[d] = if d == 0 { 1 } else { element_strides[d] };
        }
        for (d, &stride) in strides[..rank - 1].iter().enumerate() {
            let argument = || format!("globalStrides[{d}]");
            if !stride.is_multiple_of(16) {
                return refuse(argument(), stride, "must be a multiple of 16");
            }
            if stride >= 1 << 40 {
                return refuse(argument(), stride, "must be less than 2^40");
            }
            // A stride below the extent of what lies inside, or 0, is what NVIDIA's driver takes too: lines
            // then share bytes.
            map.strides[d] = stride;
        }
        let row = map.row_bytes();
        if !row.is_multiple_of(16) {
            return refuse(
                "boxDim[0]",
                box_dims[0],
                format!("a row of {row} bytes must be a multiple of 16"),
            );
        }
        if swizzle != Swizzle::None && row > swizzle.span() {
            let span = swizzle.span();
            return refuse(
                "boxDim[0]",
                box_dims[0],
                format!("a row of {row} bytes exceeds the swizzle's {span}"),
            );
        }
        Ok(map)
    }

    /// Bytes of one row of the box.
    pub const fn row_bytes(&self) -> u32 {
        self.box_dims[0] * self.data_type.bytes()
    }

    /// Positions of the box along dimension `d`.
    const fn extent(&self, d: usize) -> u32 {
        self.box_dims[d].div_ceil(self.element_strides[d])
    }

    /// Bytes of the box in shared memory; what a load completes on its mbarrier, filled elements included.
    pub fn box_bytes(&self) -> u32 {
        (1..5).map(|d| self.extent(d)).product::<u32>() * self.row_bytes()
    }

    /// The bytes that fill an element outside the tensor, repeated to 16.
    pub fn fill(&self) -> [u8; 16] {
        let element: &[u8] = match self.data_type {
            _ if !self.nan_fill => &[0],
            DataType::Float16 | DataType::Bfloat16 => &[0xff, 0x7f],
            DataType::Float32 => &[0xff, 0xff, 0xff, 0x7f],
            _ => &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
        };
        std::array::from_fn(|i| element[i % element.len()])
    }

    /// Calls `visit` for every 16 bytes of the box at `coordinates` (elements, innermost first), in the order
    /// of the unswizzled box at shared-memory address `shared`.
    ///
    /// Refuses a destination that is not 128-byte aligned, a box that does not begin at a multiple of 16
    /// bytes of a line, and one whose rows are narrower than its swizzle: the ISA does not say where those
    /// rows lie.
    pub fn visit_box<E: From<TensorMapError>>(
        &self,
        coordinates: &[i32],
        shared: u32,
        mut visit: impl FnMut(Chunk) -> Result<(), E>,
    ) -> Result<(), E> {
        if coordinates.len() != self.rank {
            let rule = format!("the tensor map has rank {}", self.rank);
            refuse("the number of coordinates", coordinates.len(), rule)?;
        }
        if !shared.is_multiple_of(128) {
            refuse("the shared-memory address", format!("{shared:#x}"), "must be a multiple of 128")?;
        }
        let row_bytes = self.row_bytes();
        if self.swizzle != Swizzle::None && row_bytes != self.swizzle.span() {
            let rule =
                format!("rows narrower than the {}-byte swizzle are not emulated", self.swizzle.span());
            refuse("the row of the box, in bytes,", row_bytes, rule)?;
        }
        let at = |d: usize| i64::from(coordinates.get(d).copied().unwrap_or(0));
        let size = i64::from(self.data_type.bytes());
        if at(0) * size % 16 != 0 {
            // The ISA does not say so, but a GPU does: `CUDA_ERROR_ILLEGAL_INSTRUCTION`.
            refuse("the innermost coordinate, in bytes,", at(0) * size, "must be a multiple of 16")?;
        }
        // Bytes of a row that lie inside the tensor, counted from the start of the row.
        let row_end = (self.dims[0] as i64 - at(0)) * size;
        let inside = (-at(0) * size).max(0)..row_end.min(i64::from(row_bytes));
        let extents: [u32; 4] = std::array::from_fn(|d| self.extent(d + 1));
        for row in 0..extents.iter().product() {
            let mut rest = row;
            let mut global = self.address.wrapping_add_signed(at(0) * size);
            let mut row_inside = true;
            for d in 1..5 {
                let index = at(d) + i64::from(rest % extents[d - 1] * self.element_strides[d]);
                rest /= extents[d - 1];
                row_inside &= (0..self.dims[d] as i64).contains(&index);
                global = global.wrapping_add_signed(index.wrapping_mul(self.strides[d - 1] as i64));
            }
            for offset in (0..row_bytes).step_by(16) {
                let within = |byte: i64| (byte - i64::from(offset)).clamp(0, 16) as usize;
                let valid = if row_inside { within(inside.start)..within(inside.end) } else { 0..0 };
                visit(Chunk {
                    shared: self.swizzle.apply(shared + row * row_bytes + offset),
                    global: global.wrapping_add(u64::from(offset)),
                    valid: if valid.is_empty() { 0..0 } else { valid },
                })?;
            }
        }
        Ok(())
    }

    /// The 128 bytes of the map.
    pub fn encode(&self) -> [u8; 128] {
        let mut bytes = [0; 128];
        bytes[..8].copy_from_slice(&MAGIC);
        let swizzle = match self.swizzle {
            Swizzle::None => 0,
            Swizzle::B32 => 1,
            Swizzle::B64 => 2,
            Swizzle::B128 => 3,
        };
        bytes[8] = self.data_type as u8;
        bytes[9] = self.rank as u8;
        bytes[11] = swizzle;
        bytes[12] = self.l2_promotion as u8;
        bytes[13] = u8::from(self.nan_fill);
        bytes[16..24].copy_from_slice(&self.address.to_le_bytes());
        for d in 0..5 {
            bytes[24 + 4 * d..28 + 4 * d].copy_from_slice(&((self.dims[d] - 1) as u32).to_le_bytes());
            bytes[44 + 2 * d..46 + 2 * d].copy_from_slice(&(self.box_dims[d] as u16).to_le_bytes());
            bytes[54 + d] = self.element_strides[d] as u8;
        }
        for (d, stride) in self.strides.iter().enumerate() {
            bytes[64 + 8 * d..72 + 8 * d].copy_from_slice(&stride.to_le_bytes());
        }
        bytes
    }

    /// Reads a map back. Bytes that [`encode`](Self::encode) did not write, or that a kernel has overwritten,
    /// are refused.
    pub fn decode(bytes: &[u8; 128]) -> Result<TensorMap, TensorMapError> {
        if bytes[..8] != MAGIC {
            return refuse(
                "the tensor map",
                format!("{:02x?}..", &bytes[..8]),
                "not made by cuTensorMapEncodeTiled",
            );
        }
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let half = |at: usize| word(at) as u32;
        let rank = usize::from(bytes[9]).clamp(1, 5);
        let dims: [u64; 5] = std::array::from_fn(|d| u64::from(half(24 + 4 * d)) + 1);
        let strides: [u64; 4] = std::array::from_fn(|d| word(64 + 8 * d));
        let box_dims: [u32; 5] = std::array::from_fn(|d| half(44 + 2 * d) & 0xffff);
        let element_strides: [u32; 5] = std::array::from_fn(|d| u32::from(bytes[54 + d]));
        TensorMap::tiled(&TiledArguments {
            data_type: bytes[8].into(),
            address: word(16),
            dims: &dims[..rank],
            strides: &strides[..rank - 1],
            box_dims: &box_dims[..rank],
            element_strides: &element_strides[..rank],
            interleave: bytes[10].into(),
            swizzle: bytes[11].into(),
            l2_promotion: bytes[12].into(),
            oob_fill: bytes[13].into(),
        })
    }
}
