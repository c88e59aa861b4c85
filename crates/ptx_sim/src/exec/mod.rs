//! What decoded instructions do to a warp.
//!
//! ```text
//!   Inst { run, d, a, b, c, .. }      run: fn(&mut Ctx, &Inst) -> Flow
//! ```
//!
//! Every handler exists twice, compiled for the baseline CPU and for AVX2 + FMA, and [`lanes`] gives the
//! decoder the one that the host can run. Handlers know the state of the machine and not who decoded them.

pub(crate) mod address;
pub(crate) mod asynchronous;
pub(crate) mod atomic;
pub(crate) mod barrier;
pub(crate) mod bulk;
pub(crate) mod cluster;
pub(crate) mod global;
pub(crate) mod grid;
mod grid_order;
pub(crate) mod lanes;
pub(crate) mod mbarrier;
pub(crate) mod parameter;
mod printf;
pub(crate) mod shared;
pub(crate) mod shuffle;
pub(crate) mod special;
pub(crate) mod system;
pub(crate) mod tensor;
pub(crate) mod wgmma;

use crate::code;
use crate::code::Tally;
use crate::fault::{FaultKind, Place};
use crate::random::Random;
use crate::state::block::Cluster;
use crate::state::environment::Environment;
pub(crate) use crate::state::lanes::{FULL, Mask, lanes_of};
pub(crate) use crate::state::wait::{Stop, Wait};
use crate::state::warp::Warp;

/// A decoded instruction with what it does.
pub(crate) type Inst = code::Inst<Run>;

/// The code of a module with what it does.
pub(crate) type Code = code::Code<Run>;

/// What an instruction does.
#[derive(Clone, Copy)]
pub(crate) struct Run(pub Handler);

/// Carries out one instruction for the lanes in `ctx.exec`, which is never empty.
///
/// # Safety
/// The instruction's operands are slots of the widths the handler was made for, inside the register file of
/// `ctx.warp`; lists and tables it names are those of `ctx.code`. The decoder guarantees both.
pub(crate) type Handler = unsafe fn(&mut Ctx<'_>, &Inst) -> Flow;

/// What follows an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// The next instruction.
    Next,
    /// The executing lanes go to `inst.target`; lanes that diverge meet again at `inst.e`.
    Branch,
    /// As `Branch`, with each lane's target in `ctx.targets`.
    Switch,
    /// The executing lanes call `inst.target` and come back to the next instruction.
    Call,
    /// The executing lanes return to their caller, or exit from an entry.
    Return,
    /// The executing lanes exit.
    Exit,
    /// The instruction needs lanes that are not here (yet).
    Meet,
    /// Done; the next instruction waits for `ctx.wait`.
    Wait,
    /// Not done: execute again when `ctx.wait` is over, with `ctx.resumed` set.
    Retry,
    /// The next instruction, after others had a chance to run.
    Yield,
    /// `ctx.fault` says why the launch ends.
    Fault,
}

/// The state a handler works on: one warp of one block of one cluster.
pub(crate) struct Ctx<'a> {
    /// Register file of the warp.
    pub regs: *mut u8,
    /// Lanes that execute this instruction.
    pub exec: Mask,
    /// Index of this instruction.
    pub pc: u32,
    /// This instruction already ran and returned [`Flow::Retry`].
    pub resumed: bool,
    /// What to wait for, with [`Flow::Wait`] and [`Flow::Retry`].
    pub wait: Wait,
    /// The instructions of the module.
    pub code: &'a Code,
    /// The launch.
    pub env: &'a Environment<'a>,
    /// The blocks of this cluster.
    pub cluster: &'a mut Cluster,
    /// This block's rank in the cluster.
    pub rank: usize,
    /// The warp.
    pub warp: Box<Warp>,
    /// Counters of this worker.
    pub tally: &'a mut Tally,
    /// Source of timing decisions.
    pub random: &'a mut Random,
    /// Per-lane targets of [`Flow::Switch`].
    pub targets: [u32; 32],
    /// Why the launch ends, with [`Flow::Fault`].
    pub fault: Option<Box<Stop>>,
}

impl Ctx<'_> {
    /// Reads a slot of 32 values.
    ///
    /// # Safety
    /// `slot` is a slot of this width in the warp's register file.
    #[inline(always)]
    pub unsafe fn read<T: Copy>(&self, slot: u32) -> [T; 32] {
        // SAFETY: by the caller's contract; slots are aligned to 64 bytes, enough for any `T` used.
        unsafe { *self.regs.add(slot as usize).cast::<[T; 32]>() }
    }

    /// Writes the executing lanes of a slot of 32 values.
    ///
    /// # Safety
    /// As for [`Ctx::read`].
    #[inline(always)]
    pub unsafe fn write<T: Copy>(&mut self, slot: u32, values: &[T; 32]) {
        // SAFETY: as for `read`; the slot is only referred to by this exclusive reference.
        let lanes = unsafe { &mut *self.regs.add(slot as usize).cast::<[T; 32]>() };
        if self.exec == FULL {
            *lanes = *values;
            return;
        }
        for (lane, (to, from)) in lanes.iter_mut().zip(values).enumerate() {
            if self.exec >> lane & 1 != 0 {
                *to = *from;
            }
        }
    }

    /// Reads a predicate.
    ///
    /// # Safety
    /// `slot` is a predicate's slot.
    #[inline(always)]
    pub unsafe fn predicate(&self, slot: u32) -> Mask {
        // SAFETY: by the caller's contract.
        unsafe { *self.regs.add(slot as usize).cast::<u32>() }
    }

    /// Writes the executing lanes of a predicate.
    ///
    /// # Safety
    /// `slot` is a predicate's slot.
    #[inline(always)]
    pub unsafe fn set_predicate(&mut self, slot: u32, value: Mask) {
        // SAFETY: by the caller's contract.
        let to = unsafe { &mut *self.regs.add(slot as usize).cast::<u32>() };
        *to = *to & !self.exec | value & self.exec;
    }

    /// Where an instruction comes from.
    pub fn place(&self, pc: u32) -> Place {
        self.code.place(pc)
    }

    /// Ends the launch, blaming `lanes`.
    #[cold]
    pub fn stop(&mut self, kind: FaultKind, lanes: Mask, detail: impl Into<String>) -> Flow {
        self.fault = Some(Box::new(Stop { kind, lanes, pc: None, detail: detail.into() }));
        Flow::Fault
    }
}

impl<'a> Ctx<'a> {
    /// The slots of a list operand.
    #[inline(always)]
    pub fn list(&self, first: u64, len: usize) -> &'a [u32] {
        &self.code.lists[first as usize..first as usize + len]
    }
}

/// The slots of a vector operand: `d` alone, or `e` of them in list `b`.
#[inline(always)]
pub(crate) fn slot_list<'i, 'a: 'i>(ctx: &Ctx<'a>, inst: &'i Inst) -> &'i [u32] {
    if inst.e == 1 { std::slice::from_ref(&inst.d) } else { ctx.list(u64::from(inst.b), inst.e as usize) }
}
