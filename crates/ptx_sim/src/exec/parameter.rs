//! Loads and stores of local memory (with it the parameters of device functions) and of kernel parameters.

use super::{Ctx, Flow, Inst, lanes_of, slot_list};
use crate::fault::FaultKind;
use crate::state::element::Element;

impl Ctx<'_> {
    /// Place of a lane's local address in the warp's local memory.
    fn local(&mut self, lane: usize, address: u64, bytes: u32, what: &str) -> Result<usize, Flow> {
        let size = u64::from(self.env.frame.local_bytes);
        if !address.is_multiple_of(u64::from(bytes)) {
            let detail = format!("{bytes}-byte local {what} at {address:#x}");
            return Err(self.stop(FaultKind::Misaligned, 1 << lane, detail));
        }
        if address + u64::from(bytes) > size {
            let detail = format!("{bytes}-byte local {what} at {address:#x}; the thread has {size} bytes");
            return Err(self.stop(FaultKind::OutOfBounds, 1 << lane, detail));
        }
        Ok(lane * size as usize + address as usize)
    }
}

/// # Safety
/// As for [`super::Handler`]; destination slots have lanes of `S`.
#[inline(always)]
pub(crate) unsafe fn load_local<E: Element, S: Copy, F: Fn(E) -> S + Copy>(
    ctx: &mut Ctx<'_>,
    inst: &Inst,
    addresses: &[u64; 32],
    f: F,
) -> Flow {
    let slots = slot_list(ctx, inst);
    for lane in lanes_of(ctx.exec) {
        let at = match ctx.local(lane, addresses[lane], E::BYTES * inst.e, "load") {
            Ok(at) => at,
            Err(flow) => return flow,
        };
        for (part, slot) in slots.iter().enumerate() {
            let at = at + part * size_of::<E>();
            let value = E::from_bytes(&ctx.warp.local[at..at + size_of::<E>()]);
            // SAFETY: the decoder lists slots of `S`.
            unsafe { ctx.regs.add(*slot as usize).cast::<S>().add(lane).write(f(value)) };
        }
    }
    Flow::Next
}

/// # Safety
/// As for [`super::Handler`]; source slots have lanes of `S`.
#[inline(always)]
pub(crate) unsafe fn store_local<E: Element, S: Copy, F: Fn(S) -> E + Copy>(
    ctx: &mut Ctx<'_>,
    inst: &Inst,
    addresses: &[u64; 32],
    f: F,
) -> Flow {
    let slots = slot_list(ctx, inst);
    for lane in lanes_of(ctx.exec) {
        let at = match ctx.local(lane, addresses[lane], E::BYTES * inst.e, "store") {
            Ok(at) => at,
            Err(flow) => return flow,
        };
        for (part, slot) in slots.iter().enumerate() {
            let at = at + part * size_of::<E>();
            // SAFETY: the decoder lists slots of `S`.
            let value = f(unsafe { ctx.regs.add(*slot as usize).cast::<S>().add(lane).read() });
            ctx.warp.local[at..at + size_of::<E>()].copy_from_slice(&value.to_bytes()[..size_of::<E>()]);
        }
    }
    Flow::Next
}

/// # Safety
/// As for [`super::Handler`]; destination slots have lanes of `S`.
#[inline(always)]
pub(crate) unsafe fn load_param<E: Element, S: Copy, F: Fn(E) -> S + Copy>(
    ctx: &mut Ctx<'_>,
    inst: &Inst,
    addresses: &[u64; 32],
    f: F,
) -> Flow {
    let slots = slot_list(ctx, inst);
    let bytes = E::BYTES * inst.e;
    let params = ctx.env.params;
    for lane in lanes_of(ctx.exec) {
        let address = addresses[lane];
        if !address.is_multiple_of(u64::from(bytes)) || address + u64::from(bytes) > params.len() as u64 {
            let detail =
                format!("{bytes}-byte load at byte {address} of {} bytes of parameters", params.len());
            return ctx.stop(FaultKind::OutOfBounds, 1 << lane, detail);
        }
        for (part, slot) in slots.iter().enumerate() {
            let at = address as usize + part * size_of::<E>();
            let value = E::from_bytes(&params[at..at + size_of::<E>()]);
            // SAFETY: the decoder lists slots of `S`.
            unsafe { ctx.regs.add(*slot as usize).cast::<S>().add(lane).write(f(value)) };
        }
    }
    Flow::Next
}
