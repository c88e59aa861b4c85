//! `wgmma` and `setmaxnreg` (ISA "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions",
//! "setmaxnreg").

use super::Result;
use super::body::Body;
use super::parts::Parts;
use super::tensor::registers;
use super::types::{PRED, U64};
use crate::counters::Class;
use crate::exec::Inst;
use crate::exec::wgmma::{self, kind};
use crate::mma::Operand as Element;
use crate::ptx::ast::Operand;

pub(super) fn decode<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    if parts.base == "setmaxnreg" {
        return set_max_registers(body, parts);
    }
    let name = parts.mods.first().ok_or("the operation is missing")?;
    for needed in ["sync", "aligned"] {
        if !parts.mods.take(needed) {
            return Err(format!("`.{needed}` is missing"));
        }
    }
    match name {
        "mma_async" => return multiply(body, parts),
        "fence" | "commit_group" => {
            parts.count(0..=0)?;
            let inst = parts.inst(if name == "fence" { wgmma::fence } else { wgmma::commit });
            body.emit(parts, Class::Sync, inst);
        }
        "wait_group" => {
            let [Operand::Int(left)] = parts.operands else {
                return Err("`wgmma.wait_group` takes one constant".to_string());
            };
            let inst = Inst { imm: *left as u64, ..parts.inst(wgmma::wait) };
            body.emit(parts, Class::Sync, inst);
        }
        other => return Err(format!("`wgmma.{other}` is not supported")),
    }
    Ok(())
}

fn set_max_registers<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let increase = parts.mods.take("inc");
    let direction = increase || parts.mods.take("dec");
    let known = ["sync", "aligned", "u32"].iter().all(|name| parts.mods.take(name));
    let [Operand::Int(count)] = parts.operands else {
        return Err("`setmaxnreg` takes one constant".to_string());
    };
    if !direction || !known {
        return Err("only `setmaxnreg.{inc,dec}.sync.aligned.u32` exists".to_string());
    }
    if !(24..=256).contains(count) || count % 8 != 0 {
        return Err(format!("{count} registers: 24 to 256 in steps of 8 are possible"));
    }
    if increase {
        body.raise_registers(*count as u32);
    }
    let inst = Inst { imm: *count as u64, e: u32::from(increase), ..parts.inst(wgmma::set_max_registers) };
    body.emit(parts, Class::Other, inst);
    Ok(())
}

fn element(name: &str) -> Option<Element> {
    Some(match name {
        "e4m3" => Element::E4m3,
        "e5m2" => Element::E5m2,
        "f16" => Element::F16,
        "bf16" => Element::Bf16,
        "tf32" => Element::Tf32,
        _ => return None,
    })
}

/// The number of a type in [`kind::TYPES`].
fn number(element: Element) -> u32 {
    kind::TYPES.iter().position(|ty| *ty == element).expect("every type has a number") as u32
}

/// `wgmma.mma_async.sync.aligned.shape.dtype.atype.btype d, a, b-desc, scale-d, imm-scale-a, imm-scale-b {,
/// imm-trans ..}`
fn multiply<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    let mut names = [""; 4];
    for name in &mut names {
        *name = parts.mods.first().ok_or("shape and three types are needed")?;
    }
    let [shape, d_type, a_type, b_type] = names;
    let unknown = || format!("`wgmma` of shape {shape} and types {d_type}, {a_type}, {b_type}");
    let (a, b) = element(a_type).zip(element(b_type)).ok_or_else(unknown)?;
    let (n, k) = shape
        .strip_prefix("m64n")
        .and_then(|rest| rest.split_once('k'))
        .and_then(|(n, k)| Some((n.parse::<u32>().ok()?, k.parse::<usize>().ok()?)))
        .ok_or_else(unknown)?;
    let eight_bit = a.bytes() == 1;
    let half = d_type == "f16";
    if k != 32 / a.bytes()
        || !n.is_multiple_of(8)
        || !(8..=256).contains(&n)
        || a.bytes() != b.bytes()
        || !eight_bit && a != b
        || !(half || d_type == "f32")
        || half && !eight_bit && a != Element::F16
    {
        return Err(unknown());
    }
    let in_registers = matches!(parts.operand(1)?, Operand::Vector(_));
    let can_transpose = a.bytes() == 2;
    let transposes = if can_transpose { 2 - usize::from(in_registers) } else { 0 };
    parts.count(6 + transposes..=6 + transposes)?;
    let count = (n / if half { 4 } else { 2 }) as usize;
    let mut slots = registers(body, parts.operand(0)?, count, false)?;
    let mut e = number(a) << kind::A | number(b) << kind::B;
    let mut a_slot = body.constant(0, 64);
    if in_registers {
        e |= kind::REGISTERS;
        slots.extend(registers(body, parts.operand(1)?, 4, true)?);
    } else {
        a_slot = body.source(parts.operand(1)?, U64)?;
    }
    let b_slot = body.source(parts.operand(2)?, U64)?;
    let c = match parts.operand(3)? {
        Operand::Not(name) => {
            e |= kind::NOT_SCALE;
            body.predicate(name)?
        }
        other => body.source(other, PRED)?,
    };
    let constant = |at: usize, allowed: [i128; 2], name: &str| match parts.operands[at] {
        Operand::Int(value) if allowed.contains(&(value as i128)) => Ok(value as i128 == allowed[1]),
        _ => Err(format!("{name} must be {} or {}", allowed[0], allowed[1])),
    };
    let negate_a = constant(4, [1, -1], "imm-scale-a")?;
    let negate_b = constant(5, [1, -1], "imm-scale-b")?;
    let mut flags = [negate_a != negate_b, false, false];
    if transposes > 0 {
        flags[1] = !in_registers && constant(6, [0, 1], "imm-trans-a")?;
        flags[2] = constant(5 + transposes, [0, 1], "imm-trans-b")?;
    }
    for (set, bit) in flags.into_iter().zip([kind::NEGATE, kind::TRANSPOSE_A, kind::TRANSPOSE_B]) {
        e |= if set { bit } else { 0 };
    }
    e |= if half { kind::HALF } else { 0 };
    // The handler knows what it may do with these registers while another `wgmma` is in flight.
    body.forget_touched();
    let inst = Inst {
        imm: body.list(&slots),
        d: count as u32,
        a: a_slot,
        b: b_slot,
        c,
        e,
        target: n,
        ..parts.inst(wgmma::multiply)
    };
    body.emit(parts, Class::Tensor, inst);
    Ok(())
}
