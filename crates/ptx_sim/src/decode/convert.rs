//! `cvt` (ISA "Data Movement and Conversion Instructions: cvt").
//!
//! The conversions that compilers emit all the time have functions of their own. Every other one goes through
//! [`convert`], which is told what to do by a [`Spec`] packed into the instruction.

use super::Result;
use super::body::Body;
use super::parts::Parts;
use crate::counters::Class;
use crate::exec::lanes::{binary, flagged, unary};
use crate::exec::{Handler, Inst};
use crate::formats::{self, Clamp, Integer, Rounding};
use crate::ptx::ast::{Kind, Type};

pub(super) fn decode<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    if parts.mods.take("pack") {
        return pack(body, parts);
    }
    let integral = parts.mods.choose(&[
        ("rni", Rounding::Rn),
        ("rzi", Rounding::Rz),
        ("rmi", Rounding::Rm),
        ("rpi", Rounding::Rp),
    ]);
    let rounding = integral.or_else(|| {
        parts.mods.choose(&[
            ("rn", Rounding::Rn),
            ("rz", Rounding::Rz),
            ("rm", Rounding::Rm),
            ("rp", Rounding::Rp),
            ("rna", Rounding::Rna),
        ])
    });
    let relu = parts.mods.take("relu");
    let satfinite = parts.mods.take("satfinite");
    let ftz = parts.mods.take("ftz");
    let sat = parts.mods.take("sat");
    // What is left are the two types, some of which only `cvt` knows.
    let (Some(to), Some(from)) = (parts.mods.first(), parts.mods.first()) else {
        return Err("`cvt` needs two types".to_string());
    };
    if let Some(run) = narrow(to, from, relu, satfinite) {
        return tiny(body, parts, to, from, run);
    }
    let unknown = || format!("`cvt` from `.{from}` to `.{to}`");
    if matches!(to, "f16x2" | "bf16x2") && from == "f32" {
        return pair(body, parts, to == "bf16x2", rounding, Clamp { relu, satfinite });
    }
    if to == "tf32" && from == "f32" {
        let word = Type { kind: Kind::Bits, bits: 32 };
        const SATFINITE: Clamp = Clamp { relu: false, satfinite: true };
        const RELU: Clamp = Clamp { relu: true, satfinite: false };
        const PLAIN: Clamp = Clamp { relu: false, satfinite: false };
        let run = match (rounding, relu, satfinite) {
            (Some(Rounding::Rna), false, false) => {
                unary(|a: u32| formats::f32_to_tf32(a, Rounding::Rna, PLAIN))
            }
            (Some(Rounding::Rna), false, true) => {
                unary(|a: u32| formats::f32_to_tf32(a, Rounding::Rna, SATFINITE))
            }
            (Some(Rounding::Rn), false, false) => {
                unary(|a: u32| formats::f32_to_tf32(a, Rounding::Rn, PLAIN))
            }
            (Some(Rounding::Rn), true, false) => unary(|a: u32| formats::f32_to_tf32(a, Rounding::Rn, RELU)),
            (Some(Rounding::Rz), false, false) => {
                unary(|a: u32| formats::f32_to_tf32(a, Rounding::Rz, PLAIN))
            }
            (Some(Rounding::Rz), true, false) => unary(|a: u32| formats::f32_to_tf32(a, Rounding::Rz, RELU)),
            _ => return Err(unknown()),
        };
        return parts.map(body, Class::Convert, run, word, &[word]);
    }
    let (to, from) = (Type::parse(to).ok_or_else(unknown)?, Type::parse(from).ok_or_else(unknown)?);
    let (Some(target), Some(origin)) = (Number::of(to), Number::of(from)) else { return Err(unknown()) };
    parts.count(2..=2)?;
    let (a, a_type) = body.wide_source(parts.operand(1)?, from)?;
    let (d, d_type) = body.wide_destination(parts.operand(0)?, to)?;
    let (integral, rounding) = (integral.is_some(), rounding.unwrap_or(Rounding::Rn));
    let register = d_type.bits;
    let spec = Spec { target, origin, rounding, integral, relu, satfinite, ftz, sat, register };
    let plain = !(relu || satfinite || ftz || sat);
    let run = quick(&spec, plain, a_type.bits, d_type.bits).unwrap_or(
        match (a_type.bits == 64, d_type.bits == 64) {
            (false, false) => flagged(|a: u32, _: u32, _: u32, spec| convert(u64::from(a), spec) as u32),
            (false, true) => flagged(|a: u32, _: u32, _: u32, spec| convert(u64::from(a), spec)),
            (true, false) => flagged(|a: u64, _: u64, _: u64, spec| convert(a, spec) as u32),
            (true, true) => flagged(|a: u64, _: u64, _: u64, spec| convert(a, spec)),
        },
    );
    let inst = Inst { d, a, b: a, c: a, imm: spec.pack(), ..parts.inst(run) };
    body.emit(parts, Class::Convert, inst);
    Ok(())
}

/// A number type of general conversions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Integer(Integer),
    F16,
    Bf16,
    F32,
    F64,
}

const INTEGERS: [Integer; 8] = {
    let mut list = [Integer { signed: false, bits: 8 }; 8];
    let mut i = 0;
    while i < 8 {
        list[i] = Integer { signed: i & 1 != 0, bits: 8 << (i / 2) };
        i += 1;
    }
    list
};

impl Number {
    fn of(ty: Type) -> Option<Number> {
        Some(match (ty.kind, ty.bits) {
            (Kind::Unsigned | Kind::Signed, bits) => {
                Number::Integer(Integer { signed: ty.kind == Kind::Signed, bits })
            }
            (Kind::Float, 16) => Number::F16,
            (Kind::Bf16, _) => Number::Bf16,
            (Kind::Float, 32) => Number::F32,
            (Kind::Float, 64) => Number::F64,
            _ => return None,
        })
    }

    fn code(self) -> u64 {
        match self {
            Number::Integer(i) => u64::from(i.bits.trailing_zeros() - 3) * 2 + u64::from(i.signed),
            Number::F16 => 8,
            Number::Bf16 => 9,
            Number::F32 => 10,
            Number::F64 => 11,
        }
    }

    fn from_code(code: u64) -> Number {
        match code & 15 {
            8 => Number::F16,
            9 => Number::Bf16,
            10 => Number::F32,
            11 => Number::F64,
            integer => Number::Integer(INTEGERS[integer as usize & 7]),
        }
    }
}

/// A general conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spec {
    target: Number,
    origin: Number,
    rounding: Rounding,
    /// The rounding is to an integral value (`.rni` and its like).
    integral: bool,
    relu: bool,
    satfinite: bool,
    ftz: bool,
    sat: bool,
    /// Bits of the destination register: signed integers are extended to it.
    register: u32,
}

const ROUNDINGS: [Rounding; 5] = [Rounding::Rn, Rounding::Rz, Rounding::Rm, Rounding::Rp, Rounding::Rna];

impl Spec {
    fn pack(self) -> u64 {
        let rounding = ROUNDINGS.iter().position(|r| *r == self.rounding).unwrap_or(0) as u64;
        self.target.code()
            | self.origin.code() << 4
            | rounding << 8
            | u64::from(self.integral) << 11
            | u64::from(self.relu) << 12
            | u64::from(self.satfinite) << 13
            | u64::from(self.ftz) << 14
            | u64::from(self.sat) << 15
            | u64::from(self.register) << 16
    }

    fn unpack(bits: u64) -> Spec {
        let flag = |at: u64| bits >> at & 1 != 0;
        Spec {
            target: Number::from_code(bits),
            origin: Number::from_code(bits >> 4),
            rounding: ROUNDINGS[(bits >> 8 & 7).min(4) as usize],
            integral: flag(11),
            relu: flag(12),
            satfinite: flag(13),
            ftz: flag(14),
            sat: flag(15),
            register: (bits >> 16) as u32 & 255,
        }
    }
}

/// Conversions with functions of their own.
fn quick(spec: &Spec, plain: bool, from_bits: u32, to_bits: u32) -> Option<Handler> {
    if !plain {
        return None;
    }
    let int = |signed, bits| Number::Integer(Integer { signed, bits });
    let (u8_, u16_, u32_, u64_) = (int(false, 8), int(false, 16), int(false, 32), int(false, 64));
    let (s16_, s32_, s64_) = (int(true, 16), int(true, 32), int(true, 64));
    let (origin, target) = (spec.origin, spec.target);
    Some(match (origin, target) {
        _ if from_bits == 64
            && to_bits == 32
            && [u64_, s64_].contains(&origin)
            && [u32_, s32_].contains(&target) =>
        {
            unary(|a: u64| a as u32)
        }
        (o, t) if o == u32_ && [u64_, s64_].contains(&t) && from_bits == 32 => unary(|a: u32| u64::from(a)),
        (o, t) if o == s32_ && [u64_, s64_].contains(&t) && from_bits == 32 => unary(|a: i32| i64::from(a)),
        (o, t) if o == u16_ && [u32_, s32_].contains(&t) && from_bits == 16 && to_bits == 32 => {
            unary(|a: u16| u32::from(a))
        }
        (o, t) if o == u8_ && [u32_, s32_].contains(&t) && from_bits <= 32 && to_bits == 32 => {
            unary(|a: u8| u32::from(a))
        }
        (o, t)
            if [u32_, s32_].contains(&o) && [u16_, s16_].contains(&t) && from_bits == 32 && to_bits == 16 =>
        {
            unary(|a: u32| a as u16)
        }
        (o, Number::F32) if o == u32_ && spec.rounding == Rounding::Rn && from_bits == 32 => {
            unary(|a: u32| a as f32)
        }
        (o, Number::F32) if o == s32_ && spec.rounding == Rounding::Rn && from_bits == 32 => {
            unary(|a: i32| a as f32)
        }
        (Number::F32, t) if t == s32_ && spec.rounding == Rounding::Rz && to_bits == 32 => {
            unary(|a: f32| a as i32)
        }
        (Number::F32, t) if t == u32_ && spec.rounding == Rounding::Rz && to_bits == 32 => {
            unary(|a: f32| a as u32)
        }
        (Number::Bf16, Number::F32) if from_bits == 16 && to_bits == 32 => unary(|a: u32| {
            let bits = a << 16;
            if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fff_ffff } else { bits }
        }),
        (Number::F16, Number::F32) if from_bits == 16 && to_bits == 32 => {
            unary(|a: u16| formats::f16_to_f32(a))
        }
        (Number::F32, Number::Bf16) if spec.rounding == Rounding::Rn && to_bits == 16 => {
            unary(|a: u32| formats::f32_to_bf16_rn(a))
        }
        (Number::F32, Number::F16) if spec.rounding == Rounding::Rn && to_bits == 16 => {
            unary(|a: u32| formats::f32_to_f16_rn(a))
        }
        _ => return None,
    })
}

/// Any conversion between numbers.
fn convert(value: u64, spec: u64) -> u64 {
    let spec = Spec::unpack(spec);
    let clamp = Clamp { relu: spec.relu, satfinite: spec.satfinite };
    let flush = |bits: u32| if spec.ftz { formats::flush_f32(bits) } else { bits };
    let wide = |x: f32| if spec.ftz { f32::from_bits(formats::flush_f32(x.to_bits())) } else { x };
    // Everything to an integer or to an f64 first, both exact.
    enum Exact {
        Integer(i128),
        F32(u32),
        F64(u64),
    }
    let exact = match spec.origin {
        Number::Integer(Integer { signed, bits }) => {
            let shift = 128 - bits;
            let low = i128::from(value) << shift;
            Exact::Integer(if signed { low >> shift } else { ((low as u128) >> shift) as i128 })
        }
        Number::F16 => Exact::F32(formats::f16_to_f32(value as u16)),
        Number::Bf16 => Exact::F32(formats::bf16_to_f32(value as u16)),
        Number::F32 => Exact::F32(flush(value as u32)),
        Number::F64 => Exact::F64(value),
    };
    let exact = match exact {
        Exact::F32(bits) if spec.integral => {
            Exact::F32(formats::round_f32(f32::from_bits(bits), spec.rounding).to_bits())
        }
        Exact::F64(bits) if spec.integral => {
            Exact::F64(formats::round_f64(f64::from_bits(bits), spec.rounding).to_bits())
        }
        exact => exact,
    };
    match (exact, spec.target) {
        (Exact::Integer(v), Number::Integer(to)) => {
            let v = if spec.sat { v.clamp(to.min(), to.max()) } else { v };
            extend(v as u64, to, spec.register)
        }
        (Exact::Integer(v), Number::F64) => formats::integer_to_f64(v, spec.rounding),
        (Exact::Integer(v), Number::F32) => {
            u64::from(saturate(formats::integer_to_f32(v, spec.rounding), spec.sat))
        }
        (Exact::Integer(v), Number::F16) => u64::from(formats::f64_to_f16(
            formats::integer_to_f64(v, Rounding::Rz) | sticky(v),
            spec.rounding,
        )),
        (Exact::Integer(v), Number::Bf16) => u64::from(formats::f64_to_bf16(
            formats::integer_to_f64(v, Rounding::Rz) | sticky(v),
            spec.rounding,
        )),
        (Exact::F32(bits), Number::Integer(to)) => {
            extend(formats::f32_to_integer(wide(f32::from_bits(bits)), to, spec.rounding), to, spec.register)
        }
        (Exact::F64(bits), Number::Integer(to)) => {
            extend(formats::f64_to_integer(f64::from_bits(bits), to, spec.rounding), to, spec.register)
        }
        (Exact::F32(bits), Number::F16) => u64::from(formats::f32_to_f16(bits, spec.rounding, clamp)),
        (Exact::F32(bits), Number::Bf16) => u64::from(formats::f32_to_bf16(bits, spec.rounding, clamp)),
        (Exact::F64(bits), Number::F16) => u64::from(formats::f64_to_f16(bits, spec.rounding)),
        (Exact::F64(bits), Number::Bf16) => u64::from(formats::f64_to_bf16(bits, spec.rounding)),
        (Exact::F32(bits), Number::F32) => {
            let bits = super::float::canonical(f32::from_bits(bits)).to_bits();
            u64::from(saturate(flush(bits), spec.sat))
        }
        (Exact::F32(bits), Number::F64) => formats::f32_to_f64(bits),
        (Exact::F64(bits), Number::F32) => {
            u64::from(saturate(flush(formats::f64_to_f32(bits, spec.rounding)), spec.sat))
        }
        (Exact::F64(bits), Number::F64) => {
            let x = f64::from_bits(bits);
            let bits = if x.is_nan() { 0x7fff_ffff_ffff_ffff } else { x.to_bits() };
            if spec.sat { formats::saturate_f64(bits) } else { bits }
        }
    }
}

/// The last bit of the f64, set if an integer does not fit in it: rounded to odd, it rounds on correctly.
fn sticky(v: i128) -> u64 {
    u64::from(
        v.unsigned_abs() >> 53 != 0
            && formats::integer_to_f64(v, Rounding::Rm) != formats::integer_to_f64(v, Rounding::Rp),
    )
}

fn saturate(bits: u32, sat: bool) -> u32 {
    if sat { formats::saturate_f32(bits) } else { bits }
}

/// An integer of `to.bits` bits in a register that may be wider.
fn extend(value: u64, to: Integer, register: u32) -> u64 {
    let shift = 64 - to.bits;
    let value = if to.signed { ((value << shift) as i64 >> shift) as u64 } else { value << shift >> shift };
    if register >= 64 { value } else { value & ((1 << register) - 1) }
}

/// Conversions to and from pairs of 8-bit numbers.
fn narrow(to: &str, from: &str, relu: bool, satfinite: bool) -> Option<Handler> {
    Some(match (to, from, relu) {
        // The first operand becomes the upper half.
        ("e4m3x2", "f32", false) if satfinite => {
            binary(|a: u32, b: u32| formats::f32x2_to_e4m3x2(a, b, false))
        }
        ("e4m3x2", "f32", true) if satfinite => binary(|a: u32, b: u32| formats::f32x2_to_e4m3x2(a, b, true)),
        ("e5m2x2", "f32", false) if satfinite => {
            binary(|a: u32, b: u32| formats::f32x2_to_e5m2x2(a, b, false))
        }
        ("e5m2x2", "f32", true) if satfinite => binary(|a: u32, b: u32| formats::f32x2_to_e5m2x2(a, b, true)),
        ("e4m3x2", "f16x2", false) if satfinite => unary(|a: u32| formats::f16x2_to_e4m3x2(a, false)),
        ("e4m3x2", "f16x2", true) if satfinite => unary(|a: u32| formats::f16x2_to_e4m3x2(a, true)),
        ("e5m2x2", "f16x2", false) if satfinite => unary(|a: u32| formats::f16x2_to_e5m2x2(a, false)),
        ("e5m2x2", "f16x2", true) if satfinite => unary(|a: u32| formats::f16x2_to_e5m2x2(a, true)),
        ("f16x2", "e4m3x2", false) => unary(|a: u16| formats::e4m3x2_to_f16x2(a, false)),
        ("f16x2", "e4m3x2", true) => unary(|a: u16| formats::e4m3x2_to_f16x2(a, true)),
        ("f16x2", "e5m2x2", false) => unary(|a: u16| formats::e5m2x2_to_f16x2(a, false)),
        ("f16x2", "e5m2x2", true) => unary(|a: u16| formats::e5m2x2_to_f16x2(a, true)),
        _ => return None,
    })
}

fn tiny<'a>(
    body: &mut Body<'_, 'a>,
    parts: &mut Parts<'_, 'a>,
    to: &str,
    from: &str,
    run: Handler,
) -> Result<()> {
    let bits = |name: &str| Type { kind: Kind::Bits, bits: if name.starts_with('e') { 16 } else { 32 } };
    if from == "f32" {
        let f32_ = Type { kind: Kind::Float, bits: 32 };
        return parts.map(body, Class::Convert, run, bits(to), &[f32_, f32_]);
    }
    parts.map(body, Class::Convert, run, bits(to), &[bits(from)])
}

/// `cvt.rn.{f16x2,bf16x2}.f32 d, a, b`: `a` becomes the upper half.
fn pair<'a>(
    body: &mut Body<'_, 'a>,
    parts: &mut Parts<'_, 'a>,
    bf16: bool,
    rounding: Option<Rounding>,
    clamp: Clamp,
) -> Result<()> {
    let rounding = rounding.ok_or("a rounding modifier is missing")?;
    let word = Type { kind: Kind::Bits, bits: 32 };
    let usual = rounding == Rounding::Rn && clamp == Clamp::default();
    let run = match (bf16, usual) {
        (true, true) => binary(|a: u32, b: u32| {
            u32::from(formats::f32_to_bf16_rn(a)) << 16 | u32::from(formats::f32_to_bf16_rn(b))
        }),
        (false, true) => binary(|a: u32, b: u32| {
            u32::from(formats::f32_to_f16_rn(a)) << 16 | u32::from(formats::f32_to_f16_rn(b))
        }),
        (true, false) => flagged(|a: u32, b: u32, _: u32, spec| {
            let spec = Spec::unpack(spec);
            formats::f32_to_bf16x2(a, b, spec.rounding, Clamp { relu: spec.relu, satfinite: spec.satfinite })
        }),
        (false, false) => flagged(|a: u32, b: u32, _: u32, spec| {
            let spec = Spec::unpack(spec);
            formats::f32_to_f16x2(a, b, spec.rounding, Clamp { relu: spec.relu, satfinite: spec.satfinite })
        }),
    };
    parts.count(3..=3)?;
    let [a, b] = [body.source(parts.operand(1)?, word)?, body.source(parts.operand(2)?, word)?];
    let d = body.destination(parts.operand(0)?, word)?;
    let number = Number::F32;
    let Clamp { relu, satfinite } = clamp;
    let spec = Spec {
        target: number,
        origin: number,
        rounding,
        integral: false,
        relu,
        satfinite,
        ftz: false,
        sat: false,
        register: 32,
    };
    let inst = Inst { d, a, b, c: b, imm: spec.pack(), ..parts.inst(run) };
    body.emit(parts, Class::Convert, inst);
    Ok(())
}

/// `cvt.pack.sat.{u16,s16,u8,s8}.s32{.b32} d, a, b{, c}`. Flags: bits of a number, 64 if signed.
fn pack<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    if !parts.mods.take("sat") {
        return Err("`cvt.pack` needs `.sat`".to_string());
    }
    let (to, from) = (parts.mods.ty()?, parts.mods.ty()?);
    let chained = parts.mods.take("b32");
    if from != super::types::S32 || !matches!(to.bits, 8 | 16) || chained != (to.bits == 8) {
        return Err("`cvt.pack` of these types".to_string());
    }
    let run = flagged(|a: i32, b: i32, c: u32, flags| {
        let to = Integer { signed: flags & 64 != 0, bits: flags as u32 & 63 };
        let mask = (1u32 << to.bits) - 1;
        let clamp = |v: i32| v.clamp(to.min() as i32, to.max() as i32) as u32 & mask;
        let low = clamp(a) << to.bits | clamp(b);
        if to.bits == 8 { c << 16 | low } else { low }
    });
    parts.count(if chained { 4..=4 } else { 3..=3 })?;
    let [a, b] = [body.source(parts.operand(1)?, from)?, body.source(parts.operand(2)?, from)?];
    let c = if chained { body.source(parts.operand(3)?, super::types::U32)? } else { a };
    let d = body.destination(parts.operand(0)?, super::types::U32)?;
    let imm = u64::from(to.bits) | if to.kind == Kind::Signed { 64 } else { 0 };
    let inst = Inst { d, a, b, c, imm, ..parts.inst(run) };
    body.emit(parts, Class::Convert, inst);
    Ok(())
}
