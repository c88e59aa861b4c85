//! Functions that kernels call and do not define: those of CUDA's device runtime ("CUDA C++ Programming
//! Guide: Formatted output, Assertion"). `malloc` and `free` have no body here: allocations do not change
//! while a kernel runs.

use super::Result;
use super::body::Body;
use super::parts::Parts;
use crate::code::NONE;
use crate::counters::Class;
use crate::exec::{Handler, Inst, system};
use crate::ptx::ast::Operand;

/// A function of the system.
#[derive(Clone, Copy)]
pub(super) struct Function {
    run: Handler,
    /// Bytes of each parameter.
    params: &'static [u32],
    returns: bool,
}

/// The function of that name.
pub(super) fn function(name: &str) -> Option<Function> {
    Some(match name {
        // Format, arguments; how many there were.
        "vprintf" => Function { run: system::print, params: &[8, 8], returns: true },
        // What was asserted, file, line, function, bytes of a character.
        "__assertfail" => Function { run: system::assertion, params: &[8, 8, 4, 8, 8], returns: false },
        _ => return None,
    })
}

/// A call of it: list `imm` holds the places of `b` arguments in local memory, `d` is that of the result.
pub(super) fn call<'a>(
    body: &mut Body<'_, 'a>,
    parts: &mut Parts<'_, 'a>,
    function: Function,
    results: &[Operand<'a>],
    arguments: &[Operand<'a>],
) -> Result<()> {
    let Function { run, params, returns } = function;
    if arguments.len() != params.len() || results.len() != usize::from(returns) {
        return Err(format!("it takes {} and returns {}", params.len(), usize::from(returns)));
    }
    let mut places = Vec::new();
    for (operand, &size) in arguments.iter().zip(params) {
        match body.argument_place(operand)? {
            (offset, has) if has >= size => places.push(offset),
            (_, has) => return Err(format!("an argument of {has} bytes where {size} are expected")),
        }
    }
    let d = match results.first() {
        Some(result) => body.argument_place(result)?.0,
        None => NONE,
    };
    let inst = Inst { imm: body.list(&places), b: places.len() as u32, d, ..parts.inst(run) };
    body.emit(parts, Class::Other, inst);
    Ok(())
}
