//! Loads and stores of global memory, and of generic addresses; `discard`.

use std::marker::PhantomData;

use super::address::{Window, addresses, by_window, flag};
use super::lanes::{Body, handler};
use super::{Ctx, FULL, Flow, Handler, Inst, Mask, lanes_of, parameter, shared, slot_list};
use crate::fault::FaultKind;
use crate::state::element::Element;
use crate::state::memory::{Allocation, Lookup};

/// Host addresses behind the lanes' device addresses; those of lanes that do not execute mean nothing.
pub(crate) struct Located {
    pub data: [*mut u8; 32],
    /// Shadow bytes; null where everything is known to be initialised.
    pub shadow: [*mut u8; 32],
    /// Some lane has a shadow.
    pub shadowed: bool,
}

/// Finds the memory behind the executing lanes' addresses, or ends the launch.
#[inline(always)]
pub(crate) fn locate(
    ctx: &mut Ctx<'_>,
    addresses: &[u64; 32],
    bytes: u32,
    what: &str,
) -> Result<Located, Flow> {
    let env = ctx.env;
    let first = addresses[ctx.exec.trailing_zeros() as usize & 31];
    if let Lookup::Live(allocation) = env.memory.lookup(first)
        && let Some(limit) = allocation.len.checked_sub(u64::from(bytes))
    {
        let mut bad: Mask = 0;
        for (lane, address) in addresses.iter().enumerate() {
            let outside = address.wrapping_sub(allocation.base) > limit;
            let skewed = address & u64::from(bytes - 1) != 0;
            bad |= u32::from(outside | skewed) << lane;
        }
        if bad & ctx.exec == 0 {
            let null = std::ptr::null_mut();
            let mut located =
                Located { data: [null; 32], shadow: [null; 32], shadowed: !allocation.is_full() };
            let (data, shadow) = (allocation.data(), allocation.shadow());
            for lane in 0..32 {
                located.data[lane] =
                    data.wrapping_add(addresses[lane].wrapping_sub(allocation.base) as usize);
            }
            if located.shadowed {
                for lane in 0..32 {
                    located.shadow[lane] =
                        shadow.wrapping_add(addresses[lane].wrapping_sub(allocation.base) as usize);
                }
            }
            if ctx.exec & !ctx.warp.waited != 0 {
                ctx.check_settled(addresses, bytes, what)?;
            }
            return Ok(located);
        }
    }
    locate_each(ctx, addresses, bytes, what)
}

/// As [`locate`], for lanes in several allocations or at fault.
#[cold]
fn locate_each(ctx: &mut Ctx<'_>, addresses: &[u64; 32], bytes: u32, what: &str) -> Result<Located, Flow> {
    if let Some(flow) = ctx.misaligned(addresses, bytes, what) {
        return Err(flow);
    }
    let env = ctx.env;
    let null = std::ptr::null_mut();
    let mut located = Located { data: [null; 32], shadow: [null; 32], shadowed: false };
    for lane in lanes_of(ctx.exec) {
        let address = addresses[lane];
        let (kind, reason) = match env.memory.lookup(address) {
            Lookup::Live(allocation) => {
                let Allocation { base, len, .. } = *allocation;
                if address >= base && address - base + u64::from(bytes) <= len {
                    let offset = (address - base) as usize;
                    located.data[lane] = allocation.data().wrapping_add(offset);
                    if !allocation.is_full() {
                        located.shadow[lane] = allocation.shadow().wrapping_add(offset);
                        located.shadowed = true;
                    }
                    continue;
                }
                let where_ = if address < base {
                    format!("{} bytes before", base - address)
                } else {
                    format!("at byte {} of", address - base)
                };
                (FaultKind::OutOfBounds, format!("{where_} the allocation of {len} bytes at {base:#x}"))
            }
            Lookup::Freed => (FaultKind::UseAfterFree, "in an allocation that was freed".to_string()),
            Lookup::Unmapped => (FaultKind::OutOfBounds, "in no allocation".to_string()),
        };
        return Err(ctx.stop(kind, 1 << lane, format!("{bytes}-byte {what} at {address:#x}, {reason}")));
    }
    ctx.check_settled(addresses, bytes, what)?;
    Ok(located)
}

/// Notes that the executing lanes have written to located addresses.
#[inline(always)]
pub(crate) fn note_writes(ctx: &Ctx<'_>, addresses: &[u64; 32], bytes: u32) {
    let (env, mut last) = (ctx.env, None::<&Allocation>);
    for lane in lanes_of(ctx.exec) {
        let address = addresses[lane];
        if last.is_none_or(|a| address.wrapping_sub(a.base) >= a.len) {
            let Lookup::Live(allocation) = env.memory.lookup(address) else { continue };
            last = Some(allocation);
        }
        if let Some(allocation) = last {
            allocation.note_writer(address - allocation.base, bytes.into(), env.number);
        }
    }
}

/// Distinct 32-byte sectors that naturally aligned accesses of `bytes` bytes touch.
#[inline(always)]
pub(crate) fn sectors(exec: Mask, addresses: &[u64; 32], bytes: u32) -> u64 {
    if exec == FULL {
        let mut apart = 0;
        for lane in 0..32 {
            apart |= addresses[lane].wrapping_sub(addresses[0]) ^ (lane as u64 * u64::from(bytes));
        }
        if apart == 0 {
            return ((addresses[31] + u64::from(bytes) - 1) >> 5) - (addresses[0] >> 5) + 1;
        }
    }
    scattered_sectors(exec, addresses, bytes)
}

fn scattered_sectors(exec: Mask, addresses: &[u64; 32], bytes: u32) -> u64 {
    let mut list = [0; 32];
    let mut count = 0;
    let mut ascending = true;
    for lane in lanes_of(exec) {
        let sector = addresses[lane] >> 5;
        if count > 0 && list[count - 1] == sector {
            continue;
        }
        ascending &= count == 0 || list[count - 1] < sector;
        list[count] = sector;
        count += 1;
    }
    if !ascending {
        list[..count].sort_unstable();
        let mut distinct = 1;
        for i in 1..count {
            distinct += usize::from(list[i] != list[i - 1]);
        }
        count = distinct;
    }
    // An access wider than a sector touches several.
    count as u64 * u64::from(bytes.div_ceil(32))
}

/// # Safety
/// As for [`Handler`]; destination slots have lanes of `S`.
#[inline(always)]
unsafe fn load_global<E: Element, S: Copy, F: Fn(E) -> S + Copy>(
    ctx: &mut Ctx<'_>,
    inst: &Inst,
    addresses: &[u64; 32],
    f: F,
) -> Flow {
    let bytes = E::BYTES * inst.e;
    let located = match locate(ctx, addresses, bytes, "load") {
        Ok(located) => located,
        Err(flow) => return flow,
    };
    if let Err(flow) = ctx.check_order(inst, addresses, bytes, false, "load") {
        return flow;
    }
    let exec = ctx.exec;
    if located.shadowed {
        let mut unwritten = 0;
        for lane in lanes_of(exec).filter(|&lane| !located.shadow[lane].is_null()) {
            for part in 0..inst.e as usize {
                // SAFETY: the shadow is as long and as aligned as the data.
                let shadow = unsafe { E::load(located.shadow[lane].add(part * size_of::<E>())) };
                unwritten |= u32::from(shadow != E::WRITTEN) << lane;
            }
        }
        if unwritten != 0 {
            return uninitialised(ctx, unwritten, addresses, bytes);
        }
    }
    let slots = slot_list(ctx, inst);
    for (part, slot) in slots.iter().enumerate() {
        // SAFETY: the decoder lists slots of `S`; located lanes are aligned and in bounds.
        unsafe {
            let lanes = &mut *ctx.regs.add(*slot as usize).cast::<[S; 32]>();
            if exec == FULL {
                for lane in 0..32 {
                    lanes[lane] = f(E::load(located.data[lane].add(part * size_of::<E>())));
                }
            } else {
                for lane in lanes_of(exec) {
                    lanes[lane] = f(E::load(located.data[lane].add(part * size_of::<E>())));
                }
            }
        }
    }
    let counters = &mut ctx.tally.counters;
    counters.global_load_bytes += u64::from(exec.count_ones() * bytes);
    counters.global_load_sectors += sectors(exec, addresses, bytes);
    ctx.acquire(inst, addresses, 0);
    if inst.target & flag::STRONG != 0 {
        // SAFETY: the decoder lists slots of `S`.
        let digest =
            slots.iter().fold(0u64, |all, slot| all.rotate_left(7) ^ unsafe { ctx.digest::<S>(*slot) });
        if ctx.only_looks(inst, digest) {
            return Flow::Yield;
        }
    }
    Flow::Next
}

/// Ends the launch because lanes read global memory that nobody has written.
#[cold]
pub(crate) fn uninitialised(ctx: &mut Ctx<'_>, lanes: Mask, addresses: &[u64; 32], bytes: u32) -> Flow {
    let address = addresses[lanes.trailing_zeros() as usize];
    let place = match ctx.env.memory.lookup(address) {
        Lookup::Live(a) => {
            format!(", byte {} of the {} byte allocation at {:#x}", address - a.base, a.len, a.base)
        }
        _ => String::new(),
    };
    let detail = format!("{bytes}-byte load at {address:#x}{place}, where nothing has been written");
    ctx.stop(FaultKind::Uninitialised, lanes, detail)
}

/// # Safety
/// As for [`Handler`]; source slots have lanes of `S`.
#[inline(always)]
unsafe fn store_global<E: Element, S: Copy, F: Fn(S) -> E + Copy>(
    ctx: &mut Ctx<'_>,
    inst: &Inst,
    addresses: &[u64; 32],
    f: F,
) -> Flow {
    let bytes = E::BYTES * inst.e;
    let located = match locate(ctx, addresses, bytes, "store") {
        Ok(located) => located,
        Err(flow) => return flow,
    };
    if let Err(flow) = ctx.check_order(inst, addresses, bytes, true, "store") {
        return flow;
    }
    ctx.release(inst, addresses, 0);
    let exec = ctx.exec;
    for (part, slot) in slot_list(ctx, inst).iter().enumerate() {
        // SAFETY: the decoder lists slots of `S`; located lanes are aligned and in bounds.
        unsafe {
            let lanes = &*ctx.regs.add(*slot as usize).cast::<[S; 32]>();
            if exec == FULL {
                for lane in 0..32 {
                    f(lanes[lane]).store(located.data[lane].add(part * size_of::<E>()));
                }
            } else {
                for lane in lanes_of(exec) {
                    f(lanes[lane]).store(located.data[lane].add(part * size_of::<E>()));
                }
            }
            if located.shadowed {
                for lane in lanes_of(exec).filter(|&lane| !located.shadow[lane].is_null()) {
                    E::WRITTEN.store(located.shadow[lane].add(part * size_of::<E>()));
                }
            }
        }
    }
    note_writes(ctx, addresses, bytes);
    let counters = &mut ctx.tally.counters;
    counters.global_store_bytes += u64::from(exec.count_ones() * bytes);
    counters.global_store_sectors += sectors(exec, addresses, bytes);
    ctx.cluster.blocks[ctx.rank].effects += 1;
    Flow::Next
}

/// Bytes that `discard` takes: the only number that the ISA has.
pub(crate) const DISCARD: u32 = 128;

/// `discard.L2 [a], 128`: a weak write of an indeterminate value (ISA "discard"). No bytes are counted.
///
/// # Safety
/// As for [`Handler`]; `a` and `imm` are an address of 64 bits.
pub(crate) unsafe fn discard(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    // SAFETY: the decoder gives this handler an address slot.
    let at = unsafe { addresses(ctx, inst) };
    by_window(ctx, &at, |ctx, window, at| match window {
        Window::Global => discard_global(ctx, inst, at),
        _ => ctx.stop(FaultKind::InvalidOperand, 0, "only global memory can be discarded"),
    })
}

fn discard_global(ctx: &mut Ctx<'_>, inst: &Inst, addresses: &[u64; 32]) -> Flow {
    if let Err(flow) = locate(ctx, addresses, DISCARD, "discard") {
        return flow;
    }
    if let Err(flow) = ctx.check_order(inst, addresses, DISCARD, true, "discard") {
        return flow;
    }
    let env = ctx.env;
    for lane in lanes_of(ctx.exec) {
        if let Lookup::Live(allocation) = env.memory.lookup(addresses[lane]) {
            allocation.discard(addresses[lane] - allocation.base, DISCARD.into());
        }
    }
    note_writes(ctx, addresses, DISCARD);
    ctx.cluster.blocks[ctx.rank].effects += 1;
    Flow::Next
}

struct Load<const WINDOW: u8, E, S, F>(PhantomData<(E, S, F)>);

impl<const WINDOW: u8, E: Element, S: Copy, F: Fn(E) -> S + Copy> Body for Load<WINDOW, E, S, F> {
    #[inline(always)]
    unsafe fn run(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
        let f: F = super::lanes::instance();
        // SAFETY: the decoder gives this handler an address slot and slots of `S`.
        unsafe {
            let at = addresses(ctx, inst);
            match WINDOW {
                GLOBAL => load_global(ctx, inst, &at, f),
                SHARED => shared::load(ctx, inst, &at, f),
                LOCAL => parameter::load_local(ctx, inst, &at, f),
                PARAM => parameter::load_param(ctx, inst, &at, f),
                _ => by_window(ctx, &at, |ctx, window, at| match window {
                    Window::Global => load_global(ctx, inst, at, f),
                    Window::Shared => shared::load(ctx, inst, at, f),
                    Window::Local => parameter::load_local(ctx, inst, at, f),
                    Window::Param => parameter::load_param(ctx, inst, at, f),
                }),
            }
        }
    }
}

struct Store<const WINDOW: u8, E, S, F>(PhantomData<(E, S, F)>);

impl<const WINDOW: u8, E: Element, S: Copy, F: Fn(S) -> E + Copy> Body for Store<WINDOW, E, S, F> {
    #[inline(always)]
    unsafe fn run(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
        let f: F = super::lanes::instance();
        // SAFETY: the decoder gives this handler an address slot and slots of `S`.
        unsafe {
            let at = addresses(ctx, inst);
            match WINDOW {
                GLOBAL => store_global(ctx, inst, &at, f),
                SHARED => shared::store(ctx, inst, &at, f),
                LOCAL => parameter::store_local(ctx, inst, &at, f),
                _ => by_window(ctx, &at, |ctx, window, at| match window {
                    Window::Global => store_global(ctx, inst, at, f),
                    Window::Shared => shared::store(ctx, inst, at, f),
                    Window::Local => parameter::store_local(ctx, inst, at, f),
                    Window::Param => {
                        ctx.stop(FaultKind::OutOfBounds, 0, "kernel parameters cannot be written")
                    }
                }),
            }
        }
    }
}

/// State spaces as constants of [`load`] and [`store`].
pub(crate) const GLOBAL: u8 = 0;
/// See [`GLOBAL`].
pub(crate) const SHARED: u8 = 1;
/// See [`GLOBAL`].
pub(crate) const LOCAL: u8 = 2;
/// See [`GLOBAL`].
pub(crate) const PARAM: u8 = 3;
/// See [`GLOBAL`].
pub(crate) const GENERIC: u8 = 4;

/// `ld`: destination lane = `f(element)`.
pub(crate) fn load<const WINDOW: u8, E: Element, S: Copy, F: Fn(E) -> S + Copy>(_: F) -> Handler {
    handler::<Load<WINDOW, E, S, F>>()
}

/// `st`: element = `f(source lane)`.
pub(crate) fn store<const WINDOW: u8, E: Element, S: Copy, F: Fn(S) -> E + Copy>(_: F) -> Handler {
    handler::<Store<WINDOW, E, S, F>>()
}
