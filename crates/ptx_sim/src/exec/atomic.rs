//! `atom` and `red` (ISA "Parallel Synchronization and Communication Instructions: atom, red"), of one value
//! or, for `red`, of a vector, each of whose elements is added atomically by itself.
//!
//! Lanes are served one after the other, beginning at a lane that the seed chooses: the order is not defined,
//! and floating-point sums show it.

use std::marker::PhantomData;

use super::address::{SHARED, Window, addresses, by_window, flag};
use super::global::{locate, note_writes, sectors, uninitialised};
use super::lanes::{Body, handler, instance};
use super::shared::{bank_conflicts, block_of};
use super::{Ctx, Flow, Handler, Inst, slot_list};
use crate::fault::FaultKind;
use crate::state::element::{Atomic, Element};

/// The executing lanes, beginning at `first`.
fn lanes_from(exec: u32, first: u32) -> impl Iterator<Item = usize> {
    super::lanes_of(exec.rotate_right(first)).map(move |lane| (lane + first as usize) % 32)
}

struct Apply<const WINDOW: u8, E, S, F>(PhantomData<(E, S, F)>);

impl<const WINDOW: u8, E: Atomic, S: Copy + TryInto<E> + From<E>, F: Fn(E, E, E) -> E + Copy> Body
    for Apply<WINDOW, E, S, F>
{
    #[inline(always)]
    unsafe fn run(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
        // SAFETY: the decoder gives this handler an address slot and operand slots of `S`.
        unsafe {
            let at = addresses(ctx, inst);
            match WINDOW {
                super::global::GLOBAL => global::<E, S, F>(ctx, inst, &at),
                super::global::SHARED => shared::<E, S, F>(ctx, inst, &at),
                _ => by_window(ctx, &at, |ctx, window, at| match window {
                    Window::Global => global::<E, S, F>(ctx, inst, at),
                    Window::Shared => shared::<E, S, F>(ctx, inst, at),
                    _ => ctx.stop(
                        FaultKind::InvalidOperand,
                        0,
                        "an atomic operation on local or parameter memory",
                    ),
                }),
            }
        }
    }
}

/// Changes the value at `at` to `f` of it, atomically. Returns what it was, and whether it is another now.
///
/// # Safety
/// `at` is aligned and inside an allocation.
#[inline(always)]
unsafe fn update<E: Atomic>(at: *mut u8, f: impl Fn(E) -> E) -> (E, bool) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut old = E::load(at);
        loop {
            let new = f(old);
            match E::exchange_if(at, old, new) {
                Ok(()) => return (old, new != old),
                Err(now) => old = now,
            }
        }
    }
}

/// The value in a lane of an operand, its upper bits dropped.
#[inline(always)]
fn narrow<S: TryInto<E>, E: Element>(value: S, zero: E) -> E {
    value.try_into().unwrap_or(zero)
}

unsafe fn global<E: Atomic, S: Copy + TryInto<E> + From<E>, F: Fn(E, E, E) -> E + Copy>(
    ctx: &mut Ctx<'_>,
    inst: &Inst,
    at: &[u64; 32],
) -> Flow {
    let f: F = instance();
    let located = match locate(ctx, at, E::BYTES, "atomic operation") {
        Ok(located) => located,
        Err(flow) => return flow,
    };
    if let Err(flow) = ctx.check_order(inst, at, E::BYTES, true, "atomic operation") {
        return flow;
    }
    ctx.release(inst, at, 0);
    let exec = ctx.exec;
    // SAFETY: the decoder gives slots of `S`; located lanes are aligned and in bounds.
    unsafe {
        if located.shadowed {
            let mut unwritten = 0;
            for lane in super::lanes_of(exec).filter(|&lane| !located.shadow[lane].is_null()) {
                unwritten |= u32::from(E::load(located.shadow[lane]) != E::WRITTEN) << lane;
            }
            if unwritten != 0 {
                return uninitialised(ctx, unwritten, at, E::BYTES);
            }
        }
        let (b, c) = (ctx.read::<S>(inst.b), ctx.read::<S>(inst.c));
        let mut results = ctx.read::<S>(inst.d);
        let first = ctx.random.below(32);
        let mut changed = false;
        let zero = E::from_bytes(&[0; 16][..size_of::<E>()]);
        for lane in lanes_from(exec, first) {
            let (b, c) = (narrow(b[lane], zero), narrow(c[lane], zero));
            let (old, is_other) = update(located.data[lane], |old| f(old, b, c));
            changed |= is_other;
            results[lane] = S::from(old);
        }
        if inst.target & flag::RESULT != 0 {
            ctx.write(inst.d, &results);
        }
        ctx.cluster.blocks[ctx.rank].effects += u64::from(changed);
    }
    note_writes(ctx, at, E::BYTES);
    let counters = &mut ctx.tally.counters;
    counters.global_store_bytes += u64::from(exec.count_ones() * E::BYTES);
    counters.global_store_sectors += sectors(exec, at, E::BYTES);
    ctx.acquire(inst, at, 0);
    Flow::Next
}

unsafe fn shared<E: Atomic, S: Copy + TryInto<E> + From<E>, F: Fn(E, E, E) -> E + Copy>(
    ctx: &mut Ctx<'_>,
    inst: &Inst,
    at: &[u64; 32],
) -> Flow {
    let f: F = instance();
    ctx.release(inst, at, SHARED);
    let now = ctx.access(true);
    let first = ctx.random.below(32);
    let zero = E::from_bytes(&[0; 16][..size_of::<E>()]);
    // SAFETY: the decoder gives slots of `S`.
    let (b, c, mut results) =
        unsafe { (ctx.read::<S>(inst.b), ctx.read::<S>(inst.c), ctx.read::<S>(inst.d)) };
    let mut changed = false;
    for lane in lanes_from(ctx.exec, first) {
        let address = at[lane];
        let Some((rank, within)) = block_of(ctx, address) else {
            return ctx.bad_shared(lane, address, E::BYTES, "atomic operation");
        };
        let shared = &mut ctx.cluster.blocks[rank].shared;
        if address & u64::from(E::BYTES - 1) != 0 || !shared.contains(within, E::BYTES) {
            return ctx.bad_shared(lane, address, E::BYTES, "atomic operation");
        }
        let clock = &ctx.warp.clock;
        let noted = shared
            .note_read(within, E::BYTES, now, clock)
            .and_then(|()| shared.note_write(within, E::BYTES, now, clock));
        if let Err(hazard) = noted {
            return ctx.hazard(hazard, lane, address, E::BYTES, "atomic operation");
        }
        let old = E::from_bytes(shared.slice(within, E::BYTES));
        let new = f(old, narrow(b[lane], zero), narrow(c[lane], zero));
        shared.set(within, &new.to_bytes()[..size_of::<E>()]);
        changed |= new != old;
        results[lane] = S::from(old);
    }
    if inst.target & flag::RESULT != 0 {
        // SAFETY: the decoder gives a slot of `S`.
        unsafe { ctx.write(inst.d, &results) };
    }
    ctx.cluster.blocks[ctx.rank].effects += u64::from(changed);
    ctx.tally.counters.shared_bank_conflicts += bank_conflicts(ctx.exec, at, E::BYTES);
    ctx.acquire(inst, at, SHARED);
    Flow::Next
}

/// `atom`, `red`: memory = `f(memory, b, c)`, `d` = what it was. Slots have lanes of `S`.
pub(crate) fn apply<
    const WINDOW: u8,
    E: Atomic,
    S: Copy + TryInto<E> + From<E>,
    F: Fn(E, E, E) -> E + Copy,
>(
    _: F,
) -> Handler {
    handler::<Apply<WINDOW, E, S, F>>()
}

struct ApplyVector<const WINDOW: u8, F>(PhantomData<F>);

impl<const WINDOW: u8, F: Fn(u32, u32) -> u32 + Copy> Body for ApplyVector<WINDOW, F> {
    #[inline(always)]
    unsafe fn run(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
        // SAFETY: the decoder gives this handler an address slot and a list of slots of `u32`.
        unsafe {
            let at = addresses(ctx, inst);
            match WINDOW {
                super::global::GLOBAL => global_vector::<F>(ctx, inst, &at),
                _ => by_window(ctx, &at, |ctx, window, at| match window {
                    Window::Global => global_vector::<F>(ctx, inst, at),
                    _ => ctx.stop(FaultKind::InvalidOperand, 0, "a vector reduction outside global memory"),
                }),
            }
        }
    }
}

unsafe fn global_vector<F: Fn(u32, u32) -> u32 + Copy>(
    ctx: &mut Ctx<'_>,
    inst: &Inst,
    at: &[u64; 32],
) -> Flow {
    let f: F = instance();
    let bytes = u32::BYTES * inst.e;
    let located = match locate(ctx, at, bytes, "vector reduction") {
        Ok(located) => located,
        Err(flow) => return flow,
    };
    if let Err(flow) = ctx.check_order(inst, at, bytes, true, "vector reduction") {
        return flow;
    }
    ctx.release(inst, at, 0);
    let exec = ctx.exec;
    let first = ctx.random.below(32);
    let mut changed = false;
    for (part, &slot) in slot_list(ctx, inst).iter().enumerate() {
        let offset = part * size_of::<u32>();
        // SAFETY: the decoder lists slots of `u32`; located lanes are aligned and in bounds, and shadows are
        // as the data.
        unsafe {
            if located.shadowed {
                let mut unwritten = 0;
                for lane in super::lanes_of(exec).filter(|&lane| !located.shadow[lane].is_null()) {
                    let shadow = u32::load(located.shadow[lane].add(offset));
                    unwritten |= u32::from(shadow != u32::WRITTEN) << lane;
                }
                if unwritten != 0 {
                    return uninitialised(ctx, unwritten, at, bytes);
                }
            }
            let values = ctx.read::<u32>(slot);
            for lane in lanes_from(exec, first) {
                changed |= update(located.data[lane].add(offset), |old| f(old, values[lane])).1;
            }
        }
    }
    ctx.cluster.blocks[ctx.rank].effects += u64::from(changed);
    note_writes(ctx, at, bytes);
    let counters = &mut ctx.tally.counters;
    counters.global_store_bytes += u64::from(exec.count_ones() * bytes);
    counters.global_store_sectors += sectors(exec, at, bytes);
    Flow::Next
}

/// `red` of a vector: every element of memory = `f(element, value)`. A list of slots with lanes of `u32`.
pub(crate) fn apply_vector<const WINDOW: u8, F: Fn(u32, u32) -> u32 + Copy>(_: F) -> Handler {
    handler::<ApplyVector<WINDOW, F>>()
}
