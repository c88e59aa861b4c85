//! Control flow, clocks, hints and everything else that has no module of its own.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{Ctx, Flow, Inst, lanes_of};
use crate::fault::FaultKind;

/// `bra`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn branch(_: &mut Ctx<'_>, _: &Inst) -> Flow {
    Flow::Branch
}

/// `brx.idx a, targets`: `imm` is the list of targets, `b` its length.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn switch(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    // SAFETY: the decoder gives a slot of 32-bit lanes.
    let indices = unsafe { ctx.read::<u32>(inst.a) };
    let table = ctx.list(inst.imm, inst.b as usize);
    for lane in lanes_of(ctx.exec) {
        match table.get(indices[lane] as usize) {
            Some(target) => ctx.targets[lane] = *target,
            None => {
                let detail = format!("index {} into {} branch targets", indices[lane], table.len());
                return ctx.stop(FaultKind::InvalidOperand, 1 << lane, detail);
            }
        }
    }
    Flow::Switch
}

/// `call`: copies arguments into the callee's parameters and goes there. List `imm` holds `b` triples of
/// source, destination and length in local memory.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn call(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    copy_parameters(ctx, inst);
    Flow::Call
}

/// After a `call`: copies the callee's results to the caller.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn after_call(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    copy_parameters(ctx, inst);
    Flow::Next
}

fn copy_parameters(ctx: &mut Ctx<'_>, inst: &Inst) {
    let stride = ctx.env.frame.local_bytes as usize;
    for triple in ctx.list(inst.imm, inst.b as usize * 3).chunks_exact(3) {
        let (from, to, len) = (triple[0] as usize, triple[1] as usize, triple[2] as usize);
        for lane in lanes_of(ctx.exec) {
            let base = lane * stride;
            ctx.warp.local.copy_within(base + from..base + from + len, base + to);
        }
    }
}

/// `ret`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn ret(_: &mut Ctx<'_>, _: &Inst) -> Flow {
    Flow::Return
}

/// `exit`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn exit(_: &mut Ctx<'_>, _: &Inst) -> Flow {
    Flow::Exit
}

/// `trap`, `brkpt`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn trap(ctx: &mut Ctx<'_>, _: &Inst) -> Flow {
    ctx.stop(FaultKind::Trap, 0, "the kernel stopped itself")
}

/// The end of a function's text was reached without `ret`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn fell_off(ctx: &mut Ctx<'_>, _: &Inst) -> Flow {
    ctx.stop(FaultKind::Trap, 0, "control reached the end of the function without ret")
}

/// `nanosleep`: lets others run.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn sleep(_: &mut Ctx<'_>, _: &Inst) -> Flow {
    Flow::Yield
}

/// Hints without an effect here: `prefetch`, `applypriority` and their like.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn nothing(_: &mut Ctx<'_>, _: &Inst) -> Flow {
    Flow::Next
}

/// `%clock` and `%clock64`: instructions this cluster has run. `imm` is 64 for the wide register.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn clock(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    // Moves on with every reading, so that waiting for it to pass ends.
    ctx.cluster.age += 1;
    let now = ctx.cluster.age;
    // SAFETY: the decoder gives a slot of the width that `imm` says.
    unsafe {
        if inst.imm == 64 {
            ctx.write(inst.d, &[now; 32]);
        } else {
            ctx.write(inst.d, &[now as u32; 32]);
        }
    }
    Flow::Next
}

/// `%globaltimer`: nanoseconds. `imm` is 64 for the whole, 32 for `_lo`, 33 for `_hi`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn global_timer(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    // SAFETY: the decoder gives a slot of the width that `imm` says.
    unsafe {
        match inst.imm {
            64 => ctx.write(inst.d, &[now; 32]),
            32 => ctx.write(inst.d, &[now as u32; 32]),
            _ => ctx.write(inst.d, &[(now >> 32) as u32; 32]),
        }
    }
    Flow::Next
}

/// `isspacep`: is the generic address in `a` in the window that `imm` numbers?
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn is_in_window(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    // SAFETY: the decoder gives a slot of 64-bit lanes and a predicate.
    unsafe {
        let mut result = 0;
        for (lane, address) in ctx.read::<u64>(inst.a).into_iter().enumerate() {
            let (window, within) = super::address::window_of(address);
            let own =
                window as u64 == inst.imm && (inst.b == 0 || super::shared::block_of(ctx, within).is_some());
            result |= u32::from(own) << lane;
        }
        ctx.set_predicate(inst.d, result);
    }
    Flow::Next
}
