//! Branches, calls and their like (ISA "Control Flow Instructions", "Miscellaneous Instructions").

use super::body::Body;
use super::parts::Parts;
use super::types::U32;
use super::{Result, system};
use crate::counters::Class;
use crate::exec::{Inst, grid, special};
use crate::ptx::ast::Operand;

pub(super) fn decode<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    match parts.base {
        "bra" => {
            parts.mods.take("uni");
            parts.count(1..=1)?;
            let Operand::Name(label) = parts.operand(0)? else {
                return Err("a label is expected".to_string());
            };
            let inst = parts.inst(special::branch);
            body.emit_branch(parts, inst, label);
        }
        "brx" => switch(body, parts)?,
        "call" => call(body, parts)?,
        "ret" => {
            parts.mods.take("uni");
            let inst = parts.inst(special::ret);
            body.emit_end(parts, inst, false);
        }
        "exit" => {
            let inst = parts.inst(special::exit);
            body.emit_end(parts, inst, false);
        }
        "trap" | "brkpt" => {
            let inst = parts.inst(special::trap);
            body.emit_end(parts, inst, true);
        }
        "nanosleep" => {
            parts.mods.take("u32");
            body.source(parts.operand(0)?, U32)?;
            let inst = parts.inst(special::sleep);
            body.emit(parts, Class::Other, inst);
        }
        "griddepcontrol" => {
            let inst = if parts.mods.take("wait") {
                parts.inst(grid::wait)
            } else if parts.mods.take("launch_dependents") {
                parts.inst(grid::launch_dependents)
            } else {
                return Err("`.wait` or `.launch_dependents` is missing".to_string());
            };
            body.emit(parts, Class::Other, inst);
        }
        _ => {
            parts.mods.take("mask");
            let inst = parts.inst(special::nothing);
            body.emit(parts, Class::Other, inst);
        }
    }
    Ok(())
}

/// `brx.idx{.uni} index, table`
fn switch<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    if !parts.mods.take("idx") {
        return Err("only `brx.idx` exists".to_string());
    }
    parts.mods.take("uni");
    parts.count(2..=2)?;
    let a = body.source(parts.operand(0)?, U32)?;
    let labels: Vec<&'a str> = match parts.operand(1)? {
        Operand::Name(table) => {
            body.table(table).ok_or_else(|| format!("branch targets `{table}` are not declared"))?
        }
        Operand::Vector(list) => {
            let name = |operand: &Operand<'a>| match operand {
                Operand::Name(label) => Ok(*label),
                _ => Err("a label is expected".to_string()),
            };
            list.iter().map(name).collect::<Result<_>>()?
        }
        _ => return Err("a list of labels is expected".to_string()),
    };
    let imm = body.list(&vec![0; labels.len()]);
    let inst = Inst { a, b: labels.len() as u32, imm, ..parts.inst(special::switch) };
    body.emit_switch(parts, inst, &labels);
    Ok(())
}

/// `call{.uni} (results), function, (arguments)`
fn call<'a>(body: &mut Body<'_, 'a>, parts: &mut Parts<'_, 'a>) -> Result<()> {
    parts.mods.take("uni");
    let none: &[Operand<'a>] = &[];
    let (results, name, arguments) = match parts.operands {
        [Operand::Group(results), Operand::Name(name), Operand::Group(arguments)] => {
            (&results[..], name, &arguments[..])
        }
        [Operand::Group(results), Operand::Name(name)] => (&results[..], name, none),
        [Operand::Name(name), Operand::Group(arguments)] => (none, name, &arguments[..]),
        [Operand::Name(name)] => (none, name, none),
        _ => return Err("`call` with these operands (indirect calls are not supported)".to_string()),
    };
    let Some(callee) = body.context.callees.get(name).cloned() else {
        if let Some(refusal) = body.context.refused.get(name) {
            return Err(format!("it calls `{name}`, which is refused: {refusal}"));
        }
        if let Some(function) = system::function(name) {
            return system::call(body, parts, function, results, arguments);
        }
        return Err(format!("function `{name}` has no body in this module"));
    };
    if callee.params.len() != arguments.len() || callee.returns.len() != results.len() {
        return Err(format!("`{name}` takes {} and returns {}", callee.params.len(), callee.returns.len()));
    }
    let (mut into, mut back) = (Vec::new(), Vec::new());
    for (operand, &(to, size)) in arguments.iter().zip(&callee.params) {
        let (from, has) = body.argument_place(operand)?;
        into.extend([from, to, size.min(has)]);
    }
    for (operand, &(from, size)) in results.iter().zip(&callee.returns) {
        let (to, has) = body.argument_place(operand)?;
        back.extend([from, to, size.min(has)]);
    }
    body.layout.shared = body.layout.shared.max(callee.shared_end);
    let imm = body.list(&into);
    let b = (into.len() / 3) as u32;
    let inst = Inst { imm, b, target: callee.start, ..parts.inst(special::call) };
    body.emit(parts, Class::Control, inst);
    let imm = body.list(&back);
    let b = (back.len() / 3) as u32;
    let inst = Inst { imm, b, ..parts.inst(special::after_call) };
    body.emit(parts, Class::Control, inst);
    Ok(())
}
