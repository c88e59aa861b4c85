//! `wgmma`, `setmaxnreg` (ISA "Asynchronous warpgroup level matrix instructions", "setmaxnreg"). Layouts and
//! arithmetic are in [`crate::wgmma`], the state of warpgroups in [`crate::state::warpgroup`].
//!
//! The four warps meet at a `wgmma.mma_async`, and the last one to come issues it for all. Its operands in
//! shared memory are checked then; they are read then or later, and the accumulators written at once or when
//! a wait demands it.

use super::{Ctx, FULL, Flow, Inst, Stop, Wait};
use crate::engine::Failure;
use crate::fault::FaultKind;
use crate::mma::{Lanes, Operand};
use crate::state::race::{Access, Clock, Hazard};
use crate::state::register_pool::Mismatch;
use crate::state::shared_memory::SharedMemory;
use crate::state::warpgroup::{Arrival, InFlight, Misuse};
use crate::wgmma::{Descriptor, Major, MatrixA, MatrixB, Product, accumulate_f16, accumulate_f32};

/// Fields of `inst.e`; see [`multiply`].
pub(crate) mod kind {
    use crate::mma::Operand;

    /// D is packed `f16`.
    pub const HALF: u32 = 1;
    /// A is four registers, at the end of the list.
    pub const REGISTERS: u32 = 2;
    /// `imm-scale-a * imm-scale-b` is -1.
    pub const NEGATE: u32 = 4;
    /// `imm-trans-a`
    pub const TRANSPOSE_A: u32 = 8;
    /// `imm-trans-b`
    pub const TRANSPOSE_B: u32 = 16;
    /// `scale-d` is negated.
    pub const NOT_SCALE: u32 = 32;
    /// Types that can be multiplied, by number.
    pub const TYPES: [Operand; 5] =
        [Operand::E4m3, Operand::E5m2, Operand::F16, Operand::Bf16, Operand::Tf32];
    /// Bits up to the number of A's type.
    pub const A: u32 = 8;
    /// Bits up to the number of B's type.
    pub const B: u32 = 12;
}

/// Bits of a descriptor that have no meaning.
const RESERVED: u64 = 3 << 14 | 3 << 30 | 7 << 46 | 0x3ff << 52;

/// An instruction is about to use registers: are they in the hands of a `wgmma`? `false` if so; the launch
/// ends.
pub(crate) fn check_registers(ctx: &mut Ctx<'_>) -> bool {
    let code = ctx.code;
    for touched in code.touched(ctx.pc) {
        let writes = touched & 1 != 0;
        let Err(misuse) = ctx.warp.products.touch(touched & !1, writes) else { continue };
        let detail = match misuse {
            Misuse::Accumulator => {
                "an accumulator of a wgmma in flight is used: wgmma.wait_group must come first"
            }
            Misuse::Operand => {
                "a register of A of a wgmma in flight is overwritten: wgmma.wait_group must come first"
            }
        };
        ctx.stop(FaultKind::AsyncHazard, 0, detail);
        return false;
    }
    true
}

impl Ctx<'_> {
    /// Whether the whole warp is here.
    fn all_lanes(&mut self) -> Result<(), Flow> {
        if self.exec == FULL {
            return Ok(());
        }
        if self.exec != self.warp.live {
            return Err(Flow::Meet);
        }
        let detail = format!("an instruction of a warpgroup needs 32 lanes; only {:#010x} exist", self.exec);
        Err(self.stop(FaultKind::Divergent, 0, detail))
    }

    /// Whether the other warps of the warpgroup can come to this instruction.
    fn others_exist(&mut self) -> Result<(), Flow> {
        let (own, group) = (self.warp.index, self.warp.index / 4);
        let warps = &self.cluster.blocks[self.rank].warps;
        let missing = (4 * group..4 * group + 4)
            .find(|&warp| warp != own && warps.get(warp as usize).is_none_or(|warp| warp.is_none()));
        let Some(warp) = missing else { return Ok(()) };
        let detail = format!("warpgroup {group} is not complete: warp {warp} has exited or does not exist");
        Err(self.stop(FaultKind::Divergent, 0, detail))
    }

    /// Ends the launch because of an operation of the engine.
    pub fn failed(&mut self, (_, stop): Failure) -> Flow {
        self.fault = Some(stop);
        Flow::Fault
    }
}

/// `wgmma.mma_async.sync.aligned.m64nNkK`: list `imm` holds the slots of D and then those of A, if A is in
/// registers; `d` is the number of D's, `a` and `b` are descriptors, `c` is `scale-d`, `target` is N; the
/// rest is in `e`, see [`kind`].
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn multiply(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    if let Err(flow) = ctx.all_lanes() {
        return flow;
    }
    let has = |flag: u32| inst.e & flag != 0;
    let in_registers = has(kind::REGISTERS);
    let all = ctx.list(inst.imm, inst.d as usize + if in_registers { 4 } else { 0 });
    let (accumulators, operands) = all.split_at(inst.d as usize);
    let (group, index) = (ctx.warp.index as usize / 4, ctx.warp.index as usize % 4);
    if !ctx.resumed {
        if let Err(flow) = ctx.others_exist() {
            return flow;
        }
        // SAFETY: the decoder gives slots of the widths that `kind` says.
        let arrival = match unsafe { arrival(ctx, inst, operands) } {
            Ok(arrival) => arrival,
            Err(flow) => return flow,
        };
        if ctx.warp.products.lacks_fence(accumulators, operands) {
            let detail =
                "wgmma.fence must come first: it orders earlier accesses to these registers before the wgmma";
            return ctx.stop(FaultKind::AsyncHazard, 0, detail);
        }
        if let Some(slot) = operands.iter().find(|&&slot| ctx.warp.products.is_in_flight(slot)) {
            let which = operands.iter().position(|s| s == slot).unwrap_or(0);
            let detail = format!("register {which} of A is an accumulator of a wgmma in flight");
            return ctx.stop(FaultKind::AsyncHazard, 0, detail);
        }
        let pc = ctx.pc;
        let code = ctx.code;
        let warpgroup = &mut ctx.cluster.blocks[ctx.rank].warpgroups[group];
        if warpgroup.here() > 0 && warpgroup.pc != pc {
            let detail = format!("other warps of warpgroup {group} are at {}", code.place(warpgroup.pc));
            return ctx.stop(FaultKind::Divergent, 0, detail);
        }
        warpgroup.pc = pc;
        warpgroup.arrivals[index] = Some(arrival);
        if warpgroup.here() < 4 {
            ctx.wait = Wait::Warpgroup { group: group as u8, generation: warpgroup.generation };
            return Flow::Retry;
        }
        if let Err(flow) = issue(ctx, inst, group) {
            return flow;
        }
    }
    // No further one can have been issued: that would need this warp.
    let number = ctx.cluster.blocks[ctx.rank].warpgroups[group].issued;
    ctx.warp.products.issue(number, accumulators, operands);
    Flow::Next
}

/// What this warp brings.
///
/// # Safety
/// As for [`super::Handler`].
unsafe fn arrival(ctx: &mut Ctx<'_>, inst: &Inst, operands: &[u32]) -> Result<Arrival, Flow> {
    // SAFETY: by the caller's contract.
    let (a, b, scale) = unsafe { (ctx.read::<u64>(inst.a), ctx.read::<u64>(inst.b), ctx.predicate(inst.c)) };
    let in_registers = inst.e & kind::REGISTERS != 0;
    for (name, lanes) in [("A", &a), ("B", &b)] {
        if in_registers && name == "A" {
            continue;
        }
        let detail = if lanes.iter().any(|descriptor| *descriptor != lanes[0]) {
            format!("the lanes disagree about the descriptor of {name}")
        } else if lanes[0] & RESERVED != 0 {
            format!("the descriptor {:#x} of {name} has bits set that have no meaning", lanes[0])
        } else {
            continue;
        };
        return Err(ctx.stop(FaultKind::InvalidOperand, 0, detail));
    }
    if scale != 0 && scale != FULL {
        return Err(ctx.stop(FaultKind::InvalidOperand, 0, "the lanes disagree about scale-d"));
    }
    let a = if in_registers {
        // SAFETY: by the caller's contract; the list ends in four slots of 32-bit lanes.
        Err(Box::new(std::array::from_fn(|i| unsafe { ctx.read::<u32>(operands[i]) })))
    } else {
        Ok(a[0])
    };
    let accumulate = (scale != 0) != (inst.e & kind::NOT_SCALE != 0);
    Ok(Arrival { a, b: b[0], accumulate, committed: ctx.warp.products.committed })
}

/// The last warp of a warpgroup has come: its `wgmma` goes into flight.
fn issue(ctx: &mut Ctx<'_>, inst: &Inst, group: usize) -> Result<(), Flow> {
    let env = ctx.env;
    let (rank, pc) = (ctx.rank, ctx.pc);
    let block = &mut ctx.cluster.blocks[rank];
    let warpgroup = &mut block.warpgroups[group];
    warpgroup.generation += 1;
    warpgroup.issued += 1;
    let number = warpgroup.issued;
    let arrivals = std::mem::take(&mut warpgroup.arrivals).map(|a| a.expect("all four are here"));
    block.effects += 1;
    let first = &arrivals[0];
    let differ = arrivals.iter().find_map(|other| {
        if other.b != first.b || other.a.as_ref().ok() != first.a.as_ref().ok() {
            Some("descriptors")
        } else if other.accumulate != first.accumulate {
            Some("scale-d")
        } else if other.committed != first.committed {
            Some("the group it belongs to")
        } else {
            None
        }
    });
    if let Some(what) = differ {
        let detail = format!("the warps of warpgroup {group} disagree about {what} of a wgmma");
        return Err(ctx.stop(FaultKind::InvalidOperand, 0, detail));
    }
    let has = |flag: u32| inst.e & flag != 0;
    let major = |flag: u32| if has(flag) { Major::Mn } else { Major::K };
    let [a, b] = [kind::A, kind::B].map(|at| kind::TYPES[(inst.e >> at & 7) as usize]);
    let product = Product {
        a,
        b,
        model: env.tensor_cores.wgmma((a, b)),
        negate: has(kind::NEGATE),
        accumulate: first.accumulate,
    };
    let b = (Descriptor::decode(first.b), major(kind::TRANSPOSE_B));
    let a = match first.a {
        Ok(bits) => Ok((Descriptor::decode(bits), major(kind::TRANSPOSE_A))),
        Err(_) => Err(arrivals.map(|arrival| arrival.a.expect_err("all four are alike"))),
    };
    // The running warp is not among the block's.
    let mut clocks = [ctx.warp.clock; 4];
    for (clock, warp) in clocks.iter_mut().zip(&block.warps[4 * group..4 * group + 4]) {
        if let Some(warp) = warp {
            *clock = warp.clock;
        }
    }
    let mut common = clocks[0];
    clocks[1..].iter().for_each(|clock| common.meet(clock));
    let agents = env.agents();
    let now = Access::new(agents.tensor(rank, group as u32), number, pc, false).asynchronous();
    let check = Check { now, clocks: &clocks, common: &common, fences: agents.fences() };
    let mut operation = InFlight {
        number,
        product,
        half: has(kind::HALF),
        n: inst.target,
        a,
        b,
        fetched: None,
        slots: inst.imm,
    };
    match fetch(&operation, &mut block.shared, Some(&check)) {
        Ok(fetched) => operation.fetched = (ctx.random.below(4) != 0).then_some(fetched),
        Err((address, None)) => return Err(ctx.bad_shared(0, u64::from(address), 16, "wgmma operand")),
        Err((address, Some(hazard))) => {
            return Err(ctx.hazard(hazard, 0, u64::from(address), 16, "wgmma operand"));
        }
    }
    ctx.tally.counters.tensor_flops += 2 * 64 * u64::from(inst.target) * (32 / product.a.bytes() as u64);
    let warpgroup = &mut ctx.cluster.blocks[rank].warpgroups[group];
    warpgroup.queue.push_back(operation);
    if ctx.random.below(4) == 0 {
        finish(ctx, group, number);
    }
    Ok(())
}

/// How reads of operands are noted. Each warp reads its own rows of A, and all read B.
struct Check<'c> {
    now: Access,
    clocks: &'c [Clock; 4],
    /// What all four warps know.
    common: &'c Clock,
    fences: Option<u32>,
}

/// Reads the operands. On failure, the address, and why it may not be read if it is in bounds.
fn fetch(
    operation: &InFlight,
    shared: &mut SharedMemory,
    check: Option<&Check<'_>>,
) -> Result<(MatrixA, MatrixB), (u32, Option<Hazard>)> {
    let mut read = |address: u32, ty: Operand, warp: Option<usize>| {
        let at = u64::from(address);
        if !shared.contains(at, 16) {
            return Err((address, None));
        }
        if let Some(Check { now, clocks, common, fences }) = check {
            let clock = warp.map_or(*common, |warp| &clocks[warp]);
            shared
                .for_cells(at, 16, |cell, mask| cell.read_async(*now, mask, clock, *fences))
                .map_err(|hazard| (address, Some(hazard)))?;
        }
        let mut bytes = [0; 16];
        bytes.copy_from_slice(shared.slice(at, 16));
        let hollow = shared.hollow(at);
        if hollow != 0 {
            poison(&mut bytes, hollow, ty);
        }
        Ok(bytes)
    };
    let Product { a, b, .. } = operation.product;
    let matrix_a = match &operation.a {
        Ok((descriptor, major)) => {
            // 16 rows of two chunks for each warp in turn.
            let mut count = 0;
            MatrixA::fetch(*descriptor, *major, |address| {
                count += 1;
                read(address, a, Some((count - 1) / 32))
            })?
        }
        Err([w, x, y, z]) => MatrixA::from_registers([w, x, y, z]),
    };
    let (descriptor, major) = operation.b;
    let matrix_b = MatrixB::fetch(descriptor, major, operation.n, |address| read(address, b, None))?;
    Ok((matrix_a, matrix_b))
}

/// Elements with bytes that nobody has written, one bit each in `hollow`, become NaN: what depends on them
/// shows it.
#[cold]
fn poison(bytes: &mut [u8; 16], hollow: u16, ty: Operand) {
    let size = ty.bytes();
    for (i, element) in bytes.chunks_exact_mut(size).enumerate() {
        if hollow >> (i * size) & ((1 << size) - 1) != 0 {
            element.fill(0xff);
            element[size - 1] = 0x7f;
        }
    }
}

/// Carries out the `wgmma`s of a warpgroup up to `number`.
fn finish(ctx: &mut Ctx<'_>, group: usize, number: u32) {
    let rank = ctx.rank;
    let own = ctx.warp.index as usize;
    let block = &mut ctx.cluster.blocks[rank];
    // The register files of the warps that are still there.
    let mut files = [None; 4];
    for (i, file) in files.iter_mut().enumerate() {
        let warp = 4 * group + i;
        *file = if warp == own {
            Some(ctx.regs)
        } else {
            block.warps[warp].as_ref().map(|warp| warp.registers.start())
        };
    }
    while let Some(mut operation) =
        block.warpgroups[group].queue.pop_front_if(|operation| operation.number <= number)
    {
        let fetched = match operation.fetched.take() {
            Some(fetched) => fetched,
            None => match fetch(&operation, &mut block.shared, None) {
                Ok(fetched) => fetched,
                Err(_) => unreachable!("checked at issue"),
            },
        };
        let columns = operation.n as usize / 8;
        let lists = &ctx.code.lists[operation.slots as usize..];
        // SAFETY: the decoder listed the accumulators' slots, 32-bit lanes each, in the register file of the
        // entry, which all its warps have.
        unsafe {
            if operation.half {
                apply(&files, &lists[..2 * columns], |d: &mut [[Lanes; 2]]| {
                    accumulate_f16(operation.product, &fetched.0, &fetched.1, d);
                });
            } else {
                apply(&files, &lists[..4 * columns], |d: &mut [[Lanes; 4]]| {
                    accumulate_f32(operation.product, &fetched.0, &fetched.1, d);
                });
            }
        }
    }
}

/// Collects the accumulators of four warps, warp by warp, changes them and puts them back.
///
/// # Safety
/// The slots are slots of 32-bit lanes of the register files.
unsafe fn apply<const R: usize>(
    files: &[Option<*mut u8>; 4],
    slots: &[u32],
    change: impl FnOnce(&mut [[Lanes; R]]),
) {
    let per_warp = slots.len() / R;
    let mut d = vec![[[0; 32]; R]; 4 * per_warp];
    for (file, d) in files.iter().zip(d.chunks_exact_mut(per_warp)) {
        if let Some(file) = file {
            for (register, slot) in d.as_flattened_mut().iter_mut().zip(slots) {
                // SAFETY: by the caller's contract.
                *register = unsafe { *file.add(*slot as usize).cast::<Lanes>() };
            }
        }
    }
    change(&mut d);
    for (file, d) in files.iter().zip(d.chunks_exact(per_warp)) {
        if let Some(file) = file {
            for (register, slot) in d.as_flattened().iter().zip(slots) {
                // SAFETY: by the caller's contract; no reference to the slot is alive.
                unsafe { *file.add(*slot as usize).cast::<Lanes>() = *register };
            }
        }
    }
}

/// `wgmma.fence.sync.aligned`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn fence(ctx: &mut Ctx<'_>, _: &Inst) -> Flow {
    if let Err(flow) = ctx.all_lanes() {
        return flow;
    }
    ctx.warp.products.fence();
    Flow::Next
}

/// `wgmma.commit_group.sync.aligned`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn commit(ctx: &mut Ctx<'_>, _: &Inst) -> Flow {
    if let Err(flow) = ctx.all_lanes() {
        return flow;
    }
    ctx.warp.products.commit();
    Flow::Next
}

/// `wgmma.wait_group.sync.aligned imm`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn wait(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    if let Err(flow) = ctx.all_lanes() {
        return flow;
    }
    if let Some(number) = ctx.warp.products.wait(inst.imm as usize) {
        let group = ctx.warp.index / 4;
        finish(ctx, group as usize, number);
        let agent = ctx.env.agents().tensor(ctx.rank, group);
        ctx.warp.clock.reach(agent, number);
    }
    Flow::Next
}

/// `setmaxnreg.{inc,dec}.sync.aligned.u32`: the new count is in `imm`, and `e` is 1 for `.inc`.
///
/// # Safety
/// As for [`super::Handler`].
pub(crate) unsafe fn set_max_registers(ctx: &mut Ctx<'_>, inst: &Inst) -> Flow {
    if let Err(flow) = ctx.all_lanes() {
        return flow;
    }
    if !ctx.resumed
        && let Err(flow) = resize_together(ctx)
    {
        return flow;
    }
    let Some(has) = ctx.warp.thread_registers else { return Flow::Next };
    let (wanted, increase) = (inst.imm as u32, inst.e != 0);
    if wanted != has && increase != (wanted > has) {
        let (name, side) = if increase { ("inc", "more") } else { ("dec", "fewer") };
        let detail =
            format!("setmaxnreg.{name} to {wanted} registers: a thread has {has} already, which are {side}");
        return ctx.stop(FaultKind::InvalidOperand, 0, detail);
    }
    let block = &mut ctx.cluster.blocks[ctx.rank];
    let registers = 32 * wanted.abs_diff(has);
    if !increase {
        block.registers.give_back(registers);
    } else if !block.registers.take(registers) {
        ctx.wait = Wait::Registers { needed: registers };
        return Flow::Retry;
    }
    block.effects += 1;
    ctx.warp.thread_registers = Some(wanted);
    Flow::Next
}

/// Notes that this warp executes a `setmaxnreg`, which all of its warpgroup must.
fn resize_together(ctx: &mut Ctx<'_>) -> Result<(), Flow> {
    let (group, index) = (ctx.warp.index as usize / 4, ctx.warp.index as usize % 4);
    let (pc, now) = (ctx.pc, ctx.access(false));
    let resizing = &mut ctx.cluster.blocks[ctx.rank].warpgroups[group].resizing;
    let before = resizing.pc;
    let (kind, detail) = match resizing.enter(index, pc, now, &ctx.warp.clock) {
        Ok(true) => return ctx.others_exist(),
        Ok(false) => return Ok(()),
        Err(Mismatch::Other) => {
            (FaultKind::Divergent, format!("other warps of warpgroup {group} executed another setmaxnreg"))
        }
        Err(Mismatch::Missing(other)) => {
            (FaultKind::Divergent, format!("warp {} has not executed the last setmaxnreg", 4 * group + other))
        }
        Err(Mismatch::Unordered(other)) => {
            let detail =
                format!("warp {} has not synchronised with this one since the last", 4 * group + other);
            (FaultKind::Race, detail)
        }
    };
    let detail = format!("{detail}, at {}", ctx.place(before));
    Err(ctx.stop(kind, 0, detail))
}

/// Why the warp in `ctx`, all of whose lanes have exited, should not have.
pub(crate) fn check_exit(ctx: &Ctx<'_>) -> Option<Stop> {
    let (group, index) = (ctx.warp.index as usize / 4, ctx.warp.index as usize % 4);
    let resizing = &ctx.cluster.blocks[ctx.rank].warpgroups[group].resizing;
    resizing.lacks(index).then(|| Stop {
        kind: FaultKind::Divergent,
        lanes: 0,
        pc: None,
        detail: format!(
            "the warp exits without the setmaxnreg that others of warpgroup {group} executed, at {}",
            ctx.place(resizing.pc)
        ),
    })
}
