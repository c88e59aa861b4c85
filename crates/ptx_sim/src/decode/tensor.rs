//! `cp.async`, `ldmatrix`, `stmatrix`, `movmatrix`, `mma.sync` (ISA "Asynchronous copy", "Warp-level Matrix
//! Instructions").

use super::body::Body;
use super::memory::drop_cache_hints;
use super::parts::Parts;
use super::types::U32;
use super::{Result, bulk, mbarrier};
use crate::counters::Class;
use crate::exec::address::flag;
use crate::exec::asynchronous::{self, IGNORABLE, SIZED};
use crate::exec::tensor::{Sums, load_matrix, move_matrix, multiply, store_matrix};
use crate::exec::{Handler, Inst};
use crate::mma;
use crate::ptx::ast::{Kind, Operand, Type};

const WORD: Type = Type { kind: Kind::Bits, bits: 32 };

pub(super) fn decode<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    match parts.base {
        "cp" => copy(body, parts),
        "ldmatrix" | "stmatrix" => matrix(body, parts),
        "movmatrix" => {
            let known = ["sync", "aligned", "m8n8", "trans", "b16"].iter().all(|name| parts.mods.take(name));
            if !known {
                return Err("only `movmatrix.sync.aligned.m8n8.trans.b16` exists".to_string());
            }
            parts.map(body, Class::Warp, move_matrix, WORD, &[WORD])
        }
        _ => multiply_accumulate(body, parts),
    }
}

fn copy<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let reduces = parts.mods.take("reduce");
    if !parts.mods.take("async") {
        return Err("only `cp.async` is supported".to_string());
    }
    if parts.mods.take("bulk") {
        return bulk::decode(body, parts, reduces);
    }
    if parts.mods.take("mbarrier") {
        return mbarrier::copy_arrive(body, parts);
    }
    if parts.mods.take("commit_group") {
        let inst = parts.inst(asynchronous::commit);
        body.emit(parts, Class::AsyncCopy, inst);
        return Ok(());
    }
    let all = parts.mods.take("wait_all");
    if all || parts.mods.take("wait_group") {
        let imm = match parts.operands {
            [] if all => u64::MAX,
            [Operand::Int(n)] if !all => *n as u64,
            _ => return Err("`cp.async.wait_group` takes one constant, `.wait_all` nothing".to_string()),
        };
        let inst = Inst { imm, ..parts.inst(asynchronous::wait) };
        body.emit(parts, Class::AsyncCopy, inst);
        return Ok(());
    }
    let only16 = parts.mods.choose(&[("ca", false), ("cg", true)]).ok_or("`.ca` or `.cg` is missing")?;
    if !(parts.mods.take("shared") || parts.mods.take("shared::cta")) || !parts.mods.take("global") {
        return Err("`cp.async` copies from global to shared memory".to_string());
    }
    drop_cache_hints(parts);
    let policy = parts.mods.take("L2::cache_hint");
    let operands = parts.operands.len() - usize::from(policy);
    let (a, imm, narrow, _) = body.address(parts.operand(0)?)?;
    let (b, from, from_narrow, _) = body.address(parts.operand(1)?)?;
    if from_narrow {
        return Err("global addresses have 64 bits".to_string());
    }
    let Operand::Int(bytes) = *parts.operand(2)? else {
        return Err("the size must be a constant".to_string());
    };
    if !matches!((bytes, only16), (4 | 8 | 16, false) | (16, true)) {
        return Err(format!("a copy of {bytes} bytes"));
    }
    let (c, kind) = match operands {
        3 => (super::SCRATCH, 0),
        4 => match parts.operand(3)? {
            Operand::Name(name) if body.predicate(name).is_ok() => (body.predicate(name)?, IGNORABLE),
            other => (body.source(other, U32)?, SIZED),
        },
        n => return Err(format!("{n} operands where 3 or 4 are expected")),
    };
    let offset = i32::try_from(from as i64).map_err(|_| "the source's offset is too large".to_string())?;
    let target = if narrow { flag::NARROW } else { 0 };
    let d = (bytes as u32) << 2 | kind;
    let inst = Inst { d, a, b, c, e: offset as u32, imm, target, ..parts.inst(asynchronous::copy) };
    body.emit(parts, Class::AsyncCopy, inst);
    Ok(())
}

/// The slots of a vector operand, or of a single register.
pub(super) fn registers<'a>(
    body: &mut Body<'_, 'a>,
    operand: &Operand<'a>,
    count: usize,
    reads: bool,
) -> Result<Vec<u32>> {
    let list = match operand {
        Operand::Vector(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    if list.len() != count {
        return Err(format!("{} registers where {count} are expected", list.len()));
    }
    list.iter().map(|o| if reads { body.source(o, WORD) } else { body.destination(o, WORD) }).collect()
}

fn matrix<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let loads = parts.base == "ldmatrix";
    for name in ["sync", "aligned", "m8n8", "b16"] {
        if !parts.mods.take(name) {
            return Err(format!("`.{name}` is missing"));
        }
    }
    let count =
        parts.mods.choose(&[("x1", 1), ("x2", 2), ("x4", 4)]).ok_or("the number of matrices is missing")?;
    let transposed = parts.mods.take("trans");
    // Without a space the address is generic; it still has to be one of shared memory.
    let _ = parts.mods.take("shared") || parts.mods.take("shared::cta");
    parts.count(2..=2)?;
    let (data, at) = if loads { (0, 1) } else { (1, 0) };
    let slots = registers(body, parts.operand(data)?, count, !loads)?;
    let (a, imm, narrow, _) = body.address(parts.operand(at)?)?;
    let run: Handler = if loads { load_matrix } else { store_matrix };
    let inst = Inst {
        d: slots[0],
        a,
        b: body.list(&slots) as u32,
        c: u32::from(transposed),
        e: count as u32,
        imm,
        target: if narrow { flag::NARROW } else { 0 },
        ..parts.inst(run)
    };
    body.emit(parts, if loads { Class::LoadShared } else { Class::StoreShared }, inst);
    Ok(())
}

/// `mma.sync.aligned.shape.row.col.dtype.atype.btype.ctype`
fn multiply_accumulate<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    for name in ["sync", "aligned", "row", "col"] {
        if !parts.mods.take(name) {
            return Err(format!("`.{name}` is missing"));
        }
    }
    let mut names = [""; 5];
    for name in &mut names {
        *name = parts.mods.first().ok_or("shape and four types are needed")?;
    }
    use mma::Operand::{E4m3, E5m2};
    let [shape, d, a, b, c] = names;
    // Sums that truncate are those of FP8.
    macro_rules! fp8 {
        ($a:expr, $b:expr) => {
            (multiply(|sums: &Sums, a: &_, b: &_, c: &_| sums.m16n8k32(($a, $b), a, b, c)), [4, 2, 4], 32)
        };
    }
    macro_rules! exact {
        ($f:path, $registers:expr, $k:expr) => {
            (multiply(|_: &Sums, a: &_, b: &_, c: &_| $f(a, b, c)), $registers, $k)
        };
    }
    let (run, registers_of, k): (Handler, [usize; 3], u32) = match (shape, d, a, b, c) {
        ("m16n8k32", "f32", "e4m3", "e4m3", "f32") => fp8!(E4m3, E4m3),
        ("m16n8k32", "f32", "e4m3", "e5m2", "f32") => fp8!(E4m3, E5m2),
        ("m16n8k32", "f32", "e5m2", "e4m3", "f32") => fp8!(E5m2, E4m3),
        ("m16n8k32", "f32", "e5m2", "e5m2", "f32") => fp8!(E5m2, E5m2),
        ("m16n8k16", "f32", "f16", "f16", "f32") => exact!(mma::m16n8k16_f16, [4, 2, 4], 16),
        ("m16n8k16", "f32", "bf16", "bf16", "f32") => exact!(mma::m16n8k16_bf16, [4, 2, 4], 16),
        ("m16n8k16", "f16", "f16", "f16", "f16") => exact!(mma::m16n8k16_f16_f16, [4, 2, 2], 16),
        ("m16n8k8", "f32", "f16", "f16", "f32") => exact!(mma::m16n8k8_f16, [2, 1, 4], 8),
        ("m16n8k8", "f32", "bf16", "bf16", "f32") => exact!(mma::m16n8k8_bf16, [2, 1, 4], 8),
        ("m16n8k8", "f16", "f16", "f16", "f16") => exact!(mma::m16n8k8_f16_f16, [2, 1, 2], 8),
        ("m16n8k8", "f32", "tf32", "tf32", "f32") => exact!(mma::m16n8k8_tf32, [4, 2, 4], 8),
        ("m16n8k4", "f32", "tf32", "tf32", "f32") => exact!(mma::m16n8k4_tf32, [2, 1, 4], 4),
        _ => return Err(format!("`mma` of shape {shape} and types {d}, {a}, {b}, {c}")),
    };
    parts.count(4..=4)?;
    let [na, nb, nc] = registers_of;
    let mut slots = registers(body, parts.operand(0)?, nc, false)?;
    slots.extend(registers(body, parts.operand(1)?, na, true)?);
    slots.extend(registers(body, parts.operand(2)?, nb, true)?);
    slots.extend(c_registers(body, parts.operand(3)?, nc)?);
    let inst = Inst { imm: body.list(&slots), b: 2 * 16 * 8 * k, ..parts.inst(run) };
    body.emit(parts, Class::Tensor, inst);
    Ok(())
}

/// Accumulators may be constants.
fn c_registers<'a>(body: &mut Body<'_, 'a>, operand: &Operand<'a>, count: usize) -> Result<Vec<u32>> {
    registers(body, operand, count, true)
}
