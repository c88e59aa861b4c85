//! Functions of CUDA's device runtime that kernels call: `vprintf`, `__assertfail`.

use std::io::Write as _;

use super::address::{Window, window_of};
use super::{Ctx, Flow, Inst, lanes_of, printf};
use crate::fault::FaultKind;
use crate::state::memory::Lookup;

/// Longest text that is looked for, in bytes.
const LONGEST: u64 = 1 << 16;

impl Ctx<'_> {
    /// A parameter in a lane's local memory: eight bytes from its place on.
    fn argument(&self, lane: usize, offset: u32) -> u64 {
        let at = lane * self.env.frame.local_bytes as usize + offset as usize;
        let parameter = self.warp.local[at..].iter().take(8);
        parameter.rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// `len` bytes at a generic address, as a lane sees them.
    fn bytes_at(&self, lane: usize, address: u64, len: usize) -> Result<Vec<u8>, String> {
        let bytes = match window_of(address) {
            (Window::Global, _) => match self.env.memory.lookup(address) {
                Lookup::Live(allocation) => {
                    let mut bytes = vec![0; len];
                    allocation.read(address, &mut bytes).map(|()| bytes)
                }
                _ => None,
            },
            (Window::Local, at) => {
                let size = self.env.frame.local_bytes as usize;
                let own = &self.warp.local[lane * size..(lane + 1) * size];
                own.get(at as usize..at as usize + len).map(<[u8]>::to_vec)
            }
            _ => None,
        };
        bytes.ok_or_else(|| format!("{len} bytes at {address:#x} are neither in global nor in local memory"))
    }

    /// The text that ends in a NUL at a generic address.
    fn text_at(&self, lane: usize, address: u64) -> Result<String, String> {
        let mut text = Vec::new();
        for at in 0..LONGEST {
            match self.bytes_at(lane, address.wrapping_add(at), 1)?[0] {
                0 => return Ok(String::from_utf8_lossy(&text).into_owned()),
                byte => text.push(byte),
            }
        }
        Err(format!("the text at {address:#x} has no end"))
    }
}

/// `vprintf(format, arguments)`: prints for every executing lane, lowest first, when the instruction runs.
/// List `imm` has the places of both in local memory, `d` is that of the result, the number of arguments.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn print(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    let places = ctx.list(inst.imm, 2);
    for lane in lanes_of(ctx.exec) {
        let mut at = ctx.argument(lane, places[1]);
        // Arguments lie one after the other, each at a multiple of its size.
        let next = |bytes: u64| {
            at = at.next_multiple_of(bytes);
            let found = ctx.bytes_at(lane, at, bytes as usize)?;
            at += bytes;
            Ok(found.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
        };
        let format = ctx.text_at(lane, ctx.argument(lane, places[0]));
        let printed = format.and_then(|format| printf::format(&format, next, |at| ctx.text_at(lane, at)));
        match printed {
            Ok((text, count)) => {
                // Nobody is told that standard output is closed, as on a GPU.
                let _ = std::io::stdout().write_all(text.as_bytes());
                let at = lane * ctx.env.frame.local_bytes as usize + inst.d as usize;
                ctx.warp.local[at..at + 4].copy_from_slice(&count.to_le_bytes());
            }
            Err(detail) => {
                return ctx.stop(FaultKind::InvalidOperand, 1 << lane, format!("vprintf: {detail}"));
            }
        }
    }
    Flow::Next
}

/// `__assertfail(message, file, line, function, bytes of a character)`; their places are in list `imm`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn assertion(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    let places = ctx.list(inst.imm, 5);
    let lane = ctx.exec.trailing_zeros() as usize;
    let text = |at: usize| ctx.text_at(lane, ctx.argument(lane, places[at])).unwrap_or_default();
    let line = ctx.argument(lane, places[2]) as u32;
    let detail = format!("{}:{line}: {}: assertion `{}` failed", text(1), text(3), text(0));
    ctx.stop(FaultKind::Assertion, 0, detail)
}
