//! Instructions that pass values between the lanes of a warp: `shfl.sync`, `vote.sync`, `match.sync`,
//! `redux.sync`, `activemask`, `elect.sync`.

use std::marker::PhantomData;

use super::lanes::{Body, Lane, handler, instance};
use super::{Ctx, FULL, Flow, Handler, Inst, lanes_of};
use crate::fault::FaultKind;

/// Modes of [`shuffle`], as `inst.imm & 3`.
pub(crate) mod mode {
    pub const UP: u64 = 0;
    pub const DOWN: u64 = 1;
    pub const BFLY: u64 = 2;
    pub const IDX: u64 = 3;
    /// There is a predicate destination, in `inst.target`.
    pub const PREDICATE: u64 = 4;
}

/// `shfl.sync.mode.b32 d|p, a, b, c, membermask`: mask in `e`, mode in `imm`, `p` in `target`.
///
/// # Safety
/// As for [`Handler`].
pub(crate) unsafe fn shuffle(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    // SAFETY: the decoder gives slots of 32-bit lanes, and a predicate.
    unsafe {
        if let Err(flow) = ctx.members(inst.e) {
            return flow;
        }
        let values = ctx.read::<u32>(inst.a);
        let (b, c) = (ctx.read::<u32>(inst.b), ctx.read::<u32>(inst.c));
        let mut sources = [0u32; 32];
        let mut inside = 0;
        // ISA "shfl.sync", the pseudocode of its semantics.
        for lane in 0..32u32 {
            let (b, c) = (b[lane as usize] & 31, c[lane as usize]);
            let (clamp, segment) = (c & 31, c >> 8 & 31);
            let max = lane & segment | clamp & !segment;
            let min = lane & segment;
            let (source, ok) = match inst.imm & 3 {
                mode::UP => {
                    let j = lane as i32 - b as i32;
                    (j as u32, j >= max as i32)
                }
                mode::DOWN => (lane + b, lane + b <= max),
                mode::BFLY => (lane ^ b, lane ^ b <= max),
                _ => {
                    let j = min | b & !segment;
                    (j, j <= max)
                }
            };
            sources[lane as usize] = if ok { source & 31 } else { lane };
            inside |= u32::from(ok) << lane;
        }
        let exec = ctx.exec;
        if exec != FULL {
            let absent = |lane: usize| exec >> sources[lane] & 1 == 0;
            if let Some(lane) = lanes_of(exec).find(|&lane| absent(lane)) {
                let detail = format!(
                    "lane {lane} reads lane {}, which has exited or does not take part (lanes {exec:#010x} do)",
                    sources[lane]
                );
                return ctx.stop(FaultKind::Divergent, 1 << lane, detail);
            }
        }
        let result: [u32; 32] = std::array::from_fn(|lane| values[sources[lane] as usize]);
        ctx.write(inst.d, &result);
        if inst.imm & mode::PREDICATE != 0 {
            ctx.set_predicate(inst.target, inside);
        }
    }
    Flow::Next
}

/// Kinds of [`vote`], as `inst.imm & 3`.
pub(crate) mod poll {
    pub const ALL: u64 = 0;
    pub const ANY: u64 = 1;
    pub const UNI: u64 = 2;
    pub const BALLOT: u64 = 3;
    /// The source predicate is negated.
    pub const NEGATED: u64 = 4;
}

/// `vote.sync`: source predicate in `a`, member mask in `e`.
///
/// # Safety
/// As for [`Handler`].
pub(crate) unsafe fn vote(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    // SAFETY: the decoder gives predicates and slots of 32-bit lanes.
    unsafe {
        if let Err(flow) = ctx.members(inst.e) {
            return flow;
        }
        let masks = ctx.read::<u32>(inst.e);
        let negated = if inst.imm & poll::NEGATED != 0 { !0 } else { 0 };
        let votes = (ctx.predicate(inst.a) ^ negated) & ctx.exec;
        let exec = ctx.exec;
        if inst.imm & 3 == poll::BALLOT {
            ctx.write(inst.d, &masks.map(|mask| votes & mask));
            return Flow::Next;
        }
        let mut result = 0;
        for lane in lanes_of(exec) {
            let asked = masks[lane] & exec;
            let yes = votes & asked;
            let truth = match inst.imm & 3 {
                poll::ALL => yes == asked,
                poll::ANY => yes != 0,
                _ => yes == asked || yes == 0,
            };
            result |= u32::from(truth) << lane;
        }
        ctx.set_predicate(inst.d, result);
    }
    Flow::Next
}

struct Match<T>(PhantomData<T>);

impl<T: Copy + Eq> Body for Match<T> {
    #[inline(always)]
    unsafe fn run(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
        // SAFETY: the decoder gives a value slot of `T`, 32-bit slots, and a predicate.
        unsafe {
            if let Err(flow) = ctx.members(inst.e) {
                return flow;
            }
            let (values, masks) = (ctx.read::<T>(inst.a), ctx.read::<u32>(inst.e));
            let mut result = [0; 32];
            let mut all = 0;
            for lane in lanes_of(ctx.exec) {
                let asked = masks[lane] & ctx.exec;
                let equal = lanes_of(asked).filter(|&l| values[l] == values[lane]).fold(0, |m, l| m | 1 << l);
                if inst.imm & 1 == 0 {
                    result[lane] = equal;
                } else if equal == asked {
                    result[lane] = asked;
                    all |= 1 << lane;
                }
            }
            ctx.write(inst.d, &result);
            if inst.imm & 2 != 0 {
                ctx.set_predicate(inst.target, all);
            }
        }
        Flow::Next
    }
}

/// `match.{any,all}.sync`: `imm` bit 0 for `.all`, bit 1 if there is a predicate destination in `target`.
pub(crate) fn matching<T: Copy + Eq>() -> Handler {
    handler::<Match<T>>()
}

struct Redux<T, F>(PhantomData<(T, F)>);

impl<T: Lane<Slot = u32>, F: Fn(T, T) -> T + Copy> Body for Redux<T, F> {
    #[inline(always)]
    unsafe fn run(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
        let f: F = instance();
        // SAFETY: the decoder gives slots of 32-bit lanes.
        unsafe {
            if let Err(flow) = ctx.members(inst.e) {
                return flow;
            }
            let (values, masks) = (ctx.read::<u32>(inst.a), ctx.read::<u32>(inst.e));
            let mut result = [0; 32];
            for lane in lanes_of(ctx.exec) {
                let lanes = lanes_of(masks[lane] & ctx.exec);
                result[lane] = lanes.map(|l| T::get(values[l])).reduce(&f).map_or(0, T::put);
            }
            ctx.write(inst.d, &result);
        }
        Flow::Next
    }
}

/// `redux.sync.op.type d, a, membermask`: mask in `e`.
pub(crate) fn redux<T: Lane<Slot = u32>, F: Fn(T, T) -> T + Copy>(_: F) -> Handler {
    handler::<Redux<T, F>>()
}

/// `activemask.b32 d`.
///
/// # Safety
/// As for [`Handler`].
pub(crate) unsafe fn activemask(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    let exec = ctx.exec;
    // SAFETY: the decoder gives a slot of 32-bit lanes.
    unsafe { ctx.write(inst.d, &[exec; 32]) };
    Flow::Next
}

/// `elect.sync d|p, membermask`: mask in `e`, `p` in `target`. The lowest lane is elected.
///
/// # Safety
/// As for [`Handler`].
pub(crate) unsafe fn elect(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    // SAFETY: the decoder gives slots of 32-bit lanes and a predicate.
    unsafe {
        if let Err(flow) = ctx.members(inst.e) {
            return flow;
        }
        let masks = ctx.read::<u32>(inst.e);
        let exec = ctx.exec;
        let leaders = masks.map(|mask| (mask & exec).trailing_zeros());
        ctx.write(inst.d, &leaders);
        let elected = lanes_of(exec).filter(|&lane| leaders[lane] == lane as u32).fold(0, |m, l| m | 1 << l);
        ctx.set_predicate(inst.target, elected);
    }
    Flow::Next
}
