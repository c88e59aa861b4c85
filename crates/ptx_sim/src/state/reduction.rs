//! What `cp.reduce.async.bulk` does to an element in global memory (ISA "cp.reduce.async.bulk").

use crate::formats::{add_half, widen};

/// A reduction: combines an element of `bits` bits, zero-extended, with what memory holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reduction {
    operation: &'static str,
    ty: &'static str,
    pub bits: u32,
    pub combine: fn(u64, u64) -> u64,
}

fn f32_of(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn wide(bits: u64, bf16: bool) -> f32 {
    widen(bits as u16, bf16)
}

macro_rules! reductions {
    ($($operation:literal $ty:literal $bits:literal $combine:expr;)*) => {
        &[$(Reduction { operation: $operation, ty: $ty, bits: $bits, combine: $combine }),*]
    };
}

const ALL: &[Reduction] = reductions! {
    "add" "u32" 32 |a, b| u64::from((a as u32).wrapping_add(b as u32));
    "add" "s32" 32 |a, b| u64::from((a as u32).wrapping_add(b as u32));
    "add" "u64" 64 |a, b| a.wrapping_add(b);
    "add" "f16" 16 |a, b| u64::from(add_half(a as u16, b as u16, false));
    "add" "bf16" 16 |a, b| u64::from(add_half(a as u16, b as u16, true));
    "add" "f32" 32 |a, b| {
        let sum = f32_of(a) + f32_of(b);
        u64::from(if sum.is_nan() { 0x7fff_ffff } else { sum.to_bits() })
    };
    "add" "f64" 64 |a, b| (f64::from_bits(a) + f64::from_bits(b)).to_bits();
    "min" "u32" 32 |a, b| a.min(b);
    "max" "u32" 32 |a, b| a.max(b);
    "min" "s32" 32 |a, b| u64::from((a as i32).min(b as i32) as u32);
    "max" "s32" 32 |a, b| u64::from((a as i32).max(b as i32) as u32);
    "min" "u64" 64 |a, b| a.min(b);
    "max" "u64" 64 |a, b| a.max(b);
    "min" "s64" 64 |a, b| (a as i64).min(b as i64) as u64;
    "max" "s64" 64 |a, b| (a as i64).max(b as i64) as u64;
    "min" "f16" 16 |a, b| if wide(b, false) < wide(a, false) || wide(a, false).is_nan() { b } else { a };
    "max" "f16" 16 |a, b| if wide(b, false) > wide(a, false) || wide(a, false).is_nan() { b } else { a };
    "min" "bf16" 16 |a, b| if wide(b, true) < wide(a, true) || wide(a, true).is_nan() { b } else { a };
    "max" "bf16" 16 |a, b| if wide(b, true) > wide(a, true) || wide(a, true).is_nan() { b } else { a };
    "inc" "u32" 32 |a, b| if a >= b { 0 } else { a + 1 };
    "dec" "u32" 32 |a, b| if a == 0 || a > b { b } else { a - 1 };
    "and" "b32" 32 |a, b| a & b;
    "or" "b32" 32 |a, b| a | b;
    "xor" "b32" 32 |a, b| a ^ b;
    "and" "b64" 64 |a, b| a & b;
    "or" "b64" 64 |a, b| a | b;
    "xor" "b64" 64 |a, b| a ^ b;
};

impl Reduction {
    /// The number of a reduction, by its names in PTX.
    pub fn find(operation: &str, ty: &str) -> Option<u32> {
        let bitwise = matches!(operation, "and" | "or" | "xor");
        let ty = match ty {
            "u32" | "s32" if bitwise => "b32",
            "u64" | "s64" if bitwise => "b64",
            ty => ty,
        };
        ALL.iter().position(|r| r.operation == operation && r.ty == ty).map(|at| at as u32)
    }

    /// The reduction of a number that [`Reduction::find`] gave.
    pub fn number(at: u32) -> Reduction {
        ALL[at as usize]
    }

    /// The same operation on elements of another type.
    pub fn on(self, ty: &str) -> Option<Reduction> {
        Reduction::find(self.operation, ty).map(Reduction::number)
    }
}
