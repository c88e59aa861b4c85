//! Bulk copies (ISA "Data Movement and Conversion Instructions: cp.async.bulk, cp.reduce.async.bulk,
//! cp.async.bulk.tensor, cp.async.bulk.prefetch, st.async").

use super::Result;
use super::body::Body;
use super::parts::Parts;
use super::types::{U32, U64};
use crate::counters::Class;
use crate::exec::Inst;
use crate::exec::bulk::{self, kind};
use crate::ptx::ast::{Kind, Operand, Type};
use crate::state::reduction::Reduction;

const B16: Type = Type { kind: Kind::Bits, bits: 16 };

/// `cp{.reduce}.async.bulk..`, from behind `.bulk`.
pub(super) fn decode<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>, reduces: bool) -> Result<()> {
    if parts.mods.take("commit_group") {
        parts.count(0..=0)?;
        let inst = parts.inst(bulk::commit);
        body.emit(parts, Class::AsyncCopy, inst);
        return Ok(());
    }
    if parts.mods.take("wait_group") {
        let e = u32::from(parts.mods.take("read"));
        let [Operand::Int(left)] = parts.operands else {
            return Err("`cp.async.bulk.wait_group` takes one constant".to_string());
        };
        let inst = Inst { imm: *left as u64, e, ..parts.inst(bulk::wait) };
        body.emit(parts, Class::AsyncCopy, inst);
        return Ok(());
    }
    let rank = if parts.mods.take("tensor") {
        let ranks = [("1d", 1), ("2d", 2), ("3d", 3), ("4d", 4), ("5d", 5)];
        let rank = parts.mods.choose(&ranks).ok_or("the tensor's rank is missing")?;
        parts.mods.take("tile");
        rank
    } else {
        0
    };
    if parts.mods.take("prefetch") {
        return prefetch(body, parts, rank);
    }
    let policy = parts.mods.take("L2::cache_hint");
    // The destination comes before the source.
    let first = parts.mods.first().ok_or("destination and source are missing")?;
    let second = parts.mods.first().ok_or("the source is missing")?;
    match (first, second) {
        ("shared::cluster" | "shared::cta", "global") if !reduces => load(body, parts, rank, 0, policy),
        ("shared::cluster", "shared::cta") if !reduces && rank == 0 => {
            load(body, parts, rank, kind::SHARED, policy)
        }
        ("global", "shared::cta") => store(body, parts, rank, reduces, policy),
        _ => Err(format!("a bulk copy from `.{second}` to `.{first}` is not supported here")),
    }
}

/// Slot, offset, and whether the slot has 32-bit lanes, of an address.
fn address<'a>(body: &mut Body<'_, 'a>, operand: &Operand<'a>) -> Result<[u32; bulk::ADDRESS]> {
    let (slot, offset, narrow, _) = body.address(operand)?;
    let offset = i32::try_from(offset as i64).map_err(|_| "the address's offset is too large".to_string())?;
    Ok([slot, offset as u32, u32::from(narrow)])
}

/// Tensor map and coordinates, or the address of a line if `rank` is zero.
fn global<'a>(body: &mut Body<'_, 'a>, operand: &Operand<'a>, rank: u32) -> Result<Vec<u32>> {
    let wide = |place: [u32; bulk::ADDRESS]| match place[2] {
        0 => Ok(place.to_vec()),
        _ => Err("global addresses have 64 bits".to_string()),
    };
    match operand {
        Operand::Tensor(base, offset, coordinates) if rank > 0 => {
            if coordinates.len() != rank as usize {
                return Err(format!("{} coordinates of a tensor of rank {rank}", coordinates.len()));
            }
            let mut list = wide(address(body, &Operand::Address(Some(base), *offset))?)?;
            for coordinate in coordinates {
                list.push(body.source(coordinate, U32)?);
            }
            Ok(list)
        }
        Operand::Address(..) if rank == 0 => wide(address(body, operand)?),
        _ => Err("the operand in global memory does not fit the instruction".to_string()),
    }
}

/// `[to], [from], {size,} [mbarrier] {, mask} {, policy}`
fn load<'a>(
    body: &mut Body<'_, 'a>,
    parts: &mut Parts<'_, 'a>,
    rank: u32,
    mut e: u32,
    policy: bool,
) -> Result<()> {
    if !parts.mods.take("mbarrier::complete_tx::bytes") {
        return Err("`.mbarrier::complete_tx::bytes` is missing".to_string());
    }
    let multicast = parts.mods.take("multicast::cluster");
    e |= if multicast { kind::MULTICAST } else { 0 };
    let sized = usize::from(rank == 0);
    let operands = 3 + sized + usize::from(multicast) + usize::from(policy);
    parts.count(operands..=operands)?;
    let mut list = address(body, parts.operand(0)?)?.to_vec();
    list.extend(address(body, parts.operand(2 + sized)?)?);
    list.extend(if e & kind::SHARED != 0 {
        address(body, parts.operand(1)?)?.to_vec()
    } else {
        global(body, parts.operand(1)?, rank)?
    });
    let b = if rank == 0 { body.source(parts.operand(2)?, U32)? } else { 0 };
    let c = if multicast { body.source(parts.operand(3 + sized)?, B16)? } else { 0 };
    if policy {
        body.source(parts.operand(operands - 1)?, U64)?;
    }
    let inst = Inst { imm: body.list(&list), d: rank, b, c, e, ..parts.inst(bulk::load) };
    body.emit(parts, Class::AsyncCopy, inst);
    Ok(())
}

/// `[to], [from] {, size} {, policy}`, of tensors `[map, {coordinates}], [from] {, policy}`
fn store<'a>(
    body: &mut Body<'_, 'a>,
    parts: &mut Parts<'_, 'a>,
    rank: u32,
    reduces: bool,
    policy: bool,
) -> Result<()> {
    let mut e = 0;
    if reduces {
        e = 1 + reduction(parts, rank)?;
    }
    if !parts.mods.take("bulk_group") {
        return Err("`.bulk_group` is missing".to_string());
    }
    let operands = 2 + usize::from(rank == 0) + usize::from(policy);
    parts.count(operands..=operands)?;
    let mut list = address(body, parts.operand(1)?)?.to_vec();
    list.extend(global(body, parts.operand(0)?, rank)?);
    let b = if rank == 0 { body.source(parts.operand(2)?, U32)? } else { 0 };
    if policy {
        body.source(parts.operand(operands - 1)?, U64)?;
    }
    let inst = Inst { imm: body.list(&list), d: rank, b, e, ..parts.inst(bulk::store) };
    body.emit(parts, Class::AsyncCopy, inst);
    Ok(())
}

/// The number of the reduction. On tensors the element type is the map's, which any type stands for here.
fn reduction(parts: &mut Parts<'_, '_>, rank: u32) -> Result<u32> {
    const NAMES: [&str; 8] = ["add", "min", "max", "inc", "dec", "and", "or", "xor"];
    let name = NAMES.into_iter().find(|name| parts.mods.take(name)).ok_or("the reduction is missing")?;
    if rank > 0 {
        let ty = if matches!(name, "and" | "or" | "xor") { "b32" } else { "u32" };
        return Reduction::find(name, ty).ok_or_else(|| format!("`.{name}` on tensors"));
    }
    let noftz = parts.mods.take("noftz");
    const TYPES: [&str; 10] = ["f16", "bf16", "f32", "f64", "u32", "s32", "u64", "s64", "b32", "b64"];
    let ty = TYPES.into_iter().find(|ty| parts.mods.take(ty)).ok_or("a type is missing")?;
    if noftz != (name == "add" && matches!(ty, "f16" | "bf16")) {
        return Err("`.noftz` belongs to additions of f16 and bf16".to_string());
    }
    Reduction::find(name, ty).ok_or_else(|| format!("`cp.reduce.async.bulk.{name}.{ty}` is not supported"))
}

/// `cp.async.bulk.prefetch{.tensor}.L2.global [from] {, size} {, policy}`
fn prefetch<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>, rank: u32) -> Result<()> {
    if !parts.mods.take("L2") || !parts.mods.take("global") {
        return Err("only prefetches from global memory into L2 exist".to_string());
    }
    let policy = parts.mods.take("L2::cache_hint");
    let operands = 1 + usize::from(rank == 0) + usize::from(policy);
    parts.count(operands..=operands)?;
    let list = global(body, parts.operand(0)?, rank)?;
    let b = if rank == 0 { body.source(parts.operand(1)?, U32)? } else { 0 };
    if policy {
        body.source(parts.operand(operands - 1)?, U64)?;
    }
    let inst = Inst { imm: body.list(&list), d: rank, b, ..parts.inst(bulk::prefetch) };
    body.emit(parts, Class::AsyncCopy, inst);
    Ok(())
}

/// `st.async{.weak}{.shared::cluster}.mbarrier::complete_tx::bytes{.v2,.v4}.type [to], value, [mbarrier]`
pub(super) fn store_value<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    parts.mods.take("weak");
    parts.mods.take("shared::cluster");
    if !parts.mods.take("mbarrier::complete_tx::bytes") {
        return Err("`st.async` without `.mbarrier::complete_tx::bytes` is not supported".to_string());
    }
    let count = parts.mods.choose(&[("v2", 2), ("v4", 4)]).unwrap_or(1usize);
    let ty = parts.mods.ty()?;
    if !matches!(ty.bits, 32 | 64) || count == 4 && ty.bits == 64 {
        return Err("`st.async` of this type".to_string());
    }
    parts.count(3..=3)?;
    let mut list = address(body, parts.operand(0)?)?.to_vec();
    list.extend(address(body, parts.operand(2)?)?);
    let values = match parts.operand(1)? {
        Operand::Vector(values) => values.as_slice(),
        one => std::slice::from_ref(one),
    };
    if values.len() != count {
        return Err(format!("{} registers where {count} are expected", values.len()));
    }
    for value in values {
        list.push(body.source(value, ty)?);
    }
    let inst =
        Inst { imm: body.list(&list), d: count as u32, e: ty.bits / 8, ..parts.inst(bulk::store_value) };
    body.emit(parts, Class::AsyncCopy, inst);
    Ok(())
}
