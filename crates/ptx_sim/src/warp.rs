//! A warp: lanes with their own program counters, and how they part and meet again.
//!
//! ```text
//!   split = lanes at one program counter            join = lanes expected at a meeting point
//!
//!        split {pc 10, all}                         @p bra L; diverges, its post-dominator is pc 40
//!              │
//!      join {at 40, expects all}
//!        ├── split {pc 11, lanes with !p}           each runs on its own, in any order,
//!        └── split {pc 30, lanes with p}            and is absorbed by the join when it gets to 40
//! ```
//!
//! Joins nest as the control flow does, so a split names the innermost one it belongs to. A branch whose
//! post-dominator is where its split is headed anyway (a loop that lanes leave one by one) adds no join. Lanes
//! that exit are struck off all joins. A call is a join at the return address, which `ret` goes to.
//!
//! Instructions that need lanes which are not here yet ([`Flow::Meet`]) hold their split until the other splits
//! of the warp have come to the same instruction; then it runs once, for all of them together. If they can never
//! come, the use was divergent.

use std::sync::atomic::Ordering::Relaxed;

use crate::block::Cluster;
use crate::exec::asynchronous::Copies;
use crate::exec::bulk::BulkGroups;
use crate::exec::{Ctx, Flow, Mask, Wait, lanes_of, wgmma};
use crate::fault::FaultKind;
use crate::launch::Environment;
use crate::race::Clock;
use crate::registers::RegisterFile;
use crate::warpgroup::Products;

/// No join; also no program counter.
pub(crate) const NONE: u32 = u32::MAX;

/// Instructions a warp may run while lanes wait at a join before those go ahead on their own: lanes may be
/// spinning for something that the waiting lanes do next.
const PATIENCE: u32 = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    /// At an instruction that needs more lanes.
    Meet,
    /// Before its next instruction.
    Blocked(Wait),
    /// In the middle of its next instruction.
    Retry(Wait),
}

/// Lanes at one program counter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Split {
    pub pc: u32,
    pub mask: Mask,
    /// Innermost join.
    join: u32,
    pub state: State,
    /// The next instruction has begun already.
    resumed: bool,
}

/// Lanes expected at one program counter.
#[derive(Clone, Copy, Debug)]
struct Join {
    pc: u32,
    expected: Mask,
    arrived: Mask,
    parent: u32,
}

/// One warp of a block.
pub(crate) struct Warp {
    /// Number in the block.
    pub index: u32,
    /// Its place in clocks.
    pub agent: u32,
    /// Lanes that exist and have not exited.
    pub live: Mask,
    pub splits: Vec<Split>,
    joins: Vec<Join>,
    free_joins: Vec<u32>,
    /// Instructions since a join last changed.
    waiting: u32,
    pub registers: RegisterFile,
    /// Local memory, one stretch per lane.
    pub local: Vec<u8>,
    /// What this warp knows of the progress of others.
    pub clock: Clock,
    /// `clock` at the last fence: what later relaxed writes release.
    pub fenced: Option<Clock>,
    /// Barrier generation whose reduction is awaited.
    pub generation: u32,
    /// What relaxed reads have seen released: learnt at the next fence.
    pub seen: Clock,
    /// Asynchronous copies not yet waited for.
    pub copies: Copies,
    /// Bulk stores not yet waited for.
    pub stores: BulkGroups,
    /// `wgmma`s not yet waited for.
    pub products: Products,
    /// Phase of the cluster's barrier in which each lane has arrived and not yet waited.
    pub cluster_arrivals: [Option<u32>; 32],
    /// Lanes that have executed `griddepcontrol.wait`, or need not.
    pub waited: Mask,
    /// Registers of a thread, if `setmaxnreg` can change them.
    pub thread_registers: Option<u32>,
}

/// How a turn of a warp ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The budget is used up.
    Spent,
    /// Nothing can run until some wait is over.
    Blocked,
    /// All lanes have exited.
    Done,
    /// `ctx.fault` says why the launch ends.
    Fault,
}

impl Warp {
    pub fn new(
        index: u32,
        agent: u32,
        live: Mask,
        entry: u32,
        registers: RegisterFile,
        local: Vec<u8>,
    ) -> Warp {
        let first = Split { pc: entry, mask: live, join: NONE, state: State::Ready, resumed: false };
        Warp {
            index,
            agent,
            live,
            splits: vec![first],
            joins: Vec::new(),
            free_joins: Vec::new(),
            waiting: 0,
            registers,
            local,
            clock: Clock::start(agent),
            fenced: None,
            generation: 0,
            seen: Clock::ZERO,
            copies: Copies::default(),
            stores: BulkGroups::default(),
            products: Products::default(),
            cluster_arrivals: [None; 32],
            waited: 0,
            thread_registers: None,
        }
    }

    /// Makes a finished warp ready for another block.
    pub fn restart(&mut self, agent: u32, live: Mask, entry: u32) {
        self.agent = agent;
        self.live = live;
        self.splits.clear();
        self.splits.push(Split { pc: entry, mask: live, join: NONE, state: State::Ready, resumed: false });
        self.joins.clear();
        self.free_joins.clear();
        self.waiting = 0;
        self.clock = Clock::start(agent);
        self.fenced = None;
        self.generation = 0;
        self.seen = Clock::ZERO;
        self.copies.clear();
        self.stores.clear();
        self.products.clear();
        self.cluster_arrivals = [None; 32];
    }

    /// Lets lanes in a wait that may time out look again. Whether there are any.
    pub fn time_out(&mut self) -> bool {
        let mut any = false;
        for split in &mut self.splits {
            if let State::Retry(Wait::Mbarrier { .. }) = split.state {
                (split.state, split.resumed) = (State::Ready, true);
                any = true;
            }
        }
        any
    }

    /// Whether some split could run now, or might after a meeting.
    pub fn is_runnable(&self, is_over: impl Fn(Wait) -> bool) -> bool {
        self.splits.iter().any(|s| match s.state {
            State::Ready => true,
            State::Blocked(wait) | State::Retry(wait) => is_over(wait),
            State::Meet => false,
        })
    }

    fn add_join(&mut self, join: Join) -> u32 {
        match self.free_joins.pop() {
            Some(index) => {
                self.joins[index as usize] = join;
                index
            }
            None => {
                self.joins.push(join);
                self.joins.len() as u32 - 1
            }
        }
    }

    /// Where the innermost join of a split is.
    fn target_of(&self, join: u32) -> u32 {
        if join == NONE { NONE } else { self.joins[join as usize].pc }
    }

    /// A split has come to its join: absorb it.
    fn arrive(&mut self, split: usize) {
        let split = self.splits.swap_remove(split);
        let join = &mut self.joins[split.join as usize];
        join.arrived |= split.mask;
        self.waiting = 0;
        self.release(split.join);
    }

    /// Lets a complete join go on.
    fn release(&mut self, index: u32) {
        let join = self.joins[index as usize];
        if join.arrived != join.expected {
            return;
        }
        self.free_joins.push(index);
        if join.arrived != 0 {
            let state = State::Ready;
            self.splits.push(Split {
                pc: join.pc,
                mask: join.arrived,
                join: join.parent,
                state,
                resumed: false,
            });
        }
    }

    /// Lanes of a split part at a branch: `parts` are their places, `meet` where the paths meet again.
    fn part(&mut self, split: usize, parts: &[(u32, Mask)], meet: u32) {
        let old = self.splits.swap_remove(split);
        let join = if meet == NONE || meet == self.target_of(old.join) {
            old.join
        } else {
            self.add_join(Join { pc: meet, expected: old.mask, arrived: 0, parent: old.join })
        };
        for &(pc, mask) in parts {
            self.splits.push(Split { pc, mask, join, state: State::Ready, resumed: false });
        }
    }

    /// Strikes exiting lanes of a split off everything.
    fn exit(&mut self, split: usize, lanes: Mask) {
        self.live &= !lanes;
        let Split { mut join, mask, .. } = self.splits[split];
        if mask == lanes {
            self.splits.swap_remove(split);
        } else {
            self.splits[split].mask &= !lanes;
            self.splits[split].pc += 1;
        }
        self.waiting = 0;
        while join != NONE {
            let index = join;
            join = self.joins[index as usize].parent;
            self.joins[index as usize].expected &= !lanes;
            self.release(index);
        }
    }

    /// Lets lanes that have waited long at an incomplete join go ahead without the others.
    fn lose_patience(&mut self) {
        self.waiting = 0;
        for index in 0..self.joins.len() as u32 {
            let join = self.joins[index as usize];
            if self.free_joins.contains(&index) || join.arrived == 0 {
                continue;
            }
            self.joins[index as usize].expected &= !join.arrived;
            self.joins[index as usize].arrived = 0;
            let state = State::Ready;
            self.splits.push(Split {
                pc: join.pc,
                mask: join.arrived,
                join: join.parent,
                state,
                resumed: false,
            });
            return;
        }
    }
}

/// Runs the warp in `ctx` for up to `budget` instructions, and takes off it what was run.
///
/// # Safety
/// The warp was made for the entry that `ctx.env` launches.
pub(crate) unsafe fn run(ctx: &mut Ctx<'_>, budget: &mut u32) -> Turn {
    let code = ctx.env.code;
    loop {
        let Some(current) = pick(ctx) else {
            if ctx.warp.splits.is_empty() {
                return Turn::Done;
            }
            // SAFETY: as for `run`.
            match unsafe { meet(ctx) } {
                Flow::Next => continue,
                Flow::Fault => return Turn::Fault,
                _ => return Turn::Blocked,
            }
        };
        let Split { mut pc, mask, join, resumed, .. } = ctx.warp.splits[current];
        let target = ctx.warp.target_of(join);
        ctx.resumed = resumed;
        ctx.warp.splits[current].resumed = false;
        let mut left = *budget;
        // Runs until the split blocks, parts or ends; `pc` is written back by every way out.
        let flow = loop {
            if pc == target {
                break Flow::Switch;
            }
            if left == 0 {
                ctx.warp.splits[current].pc = pc;
                ctx.warp.waiting += *budget;
                *budget = 0;
                if ctx.warp.waiting > PATIENCE {
                    ctx.warp.lose_patience();
                }
                return Turn::Spent;
            }
            left -= 1;
            // SAFETY: every function's code ends in an instruction that does not fall through, and branch
            // targets are instructions, so `pc` stays inside the code.
            let inst = unsafe { code.insts.get_unchecked(pc as usize) };
            ctx.tally.executed[pc as usize] += u64::from(!ctx.resumed);
            // SAFETY: guards are predicates in every warp's register file.
            let exec = mask & unsafe { ctx.predicate(inst.guard) } ^ mask & inst.flip;
            if exec == 0 {
                pc += 1;
                continue;
            }
            ctx.exec = exec;
            ctx.pc = pc;
            if ctx.warp.products.watches() && !wgmma::check_registers(ctx) {
                return Turn::Fault;
            }
            // SAFETY: the decoder made instruction and handler for each other, and for this register file.
            match unsafe { (inst.run)(ctx, inst) } {
                Flow::Next => pc += 1,
                Flow::Branch if exec == mask => pc = inst.target,
                Flow::Exit => {
                    ctx.warp.splits[current].pc = pc;
                    break Flow::Exit;
                }
                other => {
                    ctx.warp.splits[current].pc = pc;
                    break other;
                }
            }
            ctx.resumed = false;
        };
        ctx.resumed = false;
        *budget = left;
        if flow == Flow::Switch && pc == target {
            ctx.warp.arrive(current);
            continue;
        }
        match settle(ctx, current, flow) {
            None => {}
            Some(turn) => return turn,
        }
    }
}

/// Applies what an instruction asked for to its split.
fn settle(ctx: &mut Ctx<'_>, current: usize, flow: Flow) -> Option<Turn> {
    let exec = ctx.exec;
    let wait = ctx.wait;
    let warp = &mut *ctx.warp;
    let split = &mut warp.splits[current];
    let inst = &ctx.env.code.insts[split.pc as usize];
    match flow {
        Flow::Branch => {
            let rest = split.mask & !exec;
            let next = split.pc + 1;
            // Which side runs first is a matter of timing.
            let parts = if ctx.random.coin() {
                [(inst.target, exec), (next, rest)]
            } else {
                [(next, rest), (inst.target, exec)]
            };
            warp.part(current, &parts, inst.e);
        }
        Flow::Switch => {
            let mut parts: Vec<(u32, Mask)> = Vec::new();
            let rest = split.mask & !exec;
            if rest != 0 {
                parts.push((split.pc + 1, rest));
            }
            for lane in lanes_of(exec) {
                let pc = ctx.targets[lane];
                match parts.iter_mut().find(|p| p.0 == pc) {
                    Some(part) => part.1 |= 1 << lane,
                    None => parts.push((pc, 1 << lane)),
                }
            }
            if let [(pc, _)] = parts[..] {
                split.pc = pc;
            } else {
                warp.part(current, &parts, inst.e);
            }
        }
        Flow::Call => {
            let (back, target, mask) = (split.pc + 1, inst.target, split.mask);
            let parent = split.join;
            let join = warp.add_join(Join { pc: back, expected: mask, arrived: mask & !exec, parent });
            let split = &mut warp.splits[current];
            (split.pc, split.mask, split.join) = (target, exec, join);
        }
        Flow::Return if split.join == NONE => {
            warp.exit_and_wake(ctx.env, ctx.cluster, ctx.rank, current, exec)
        }
        Flow::Return => {
            let rest = split.mask & !exec;
            if rest == 0 {
                warp.arrive(current);
            } else {
                let (next, join) = (split.pc + 1, split.join);
                split.mask = exec;
                warp.arrive(current);
                warp.splits.push(Split { pc: next, mask: rest, join, state: State::Ready, resumed: false });
            }
        }
        Flow::Exit => warp.exit_and_wake(ctx.env, ctx.cluster, ctx.rank, current, exec),
        Flow::Meet => split.state = State::Meet,
        Flow::Wait => {
            split.pc += 1;
            split.state = State::Blocked(wait);
        }
        Flow::Retry => split.state = State::Retry(wait),
        Flow::Yield => {
            split.pc += 1;
            return Some(Turn::Spent);
        }
        Flow::Fault => return Some(Turn::Fault),
        Flow::Next => split.pc += 1,
    }
    None
}

impl Warp {
    /// Lanes exit; barriers that waited only for them may complete.
    fn exit_and_wake(
        &mut self,
        env: &Environment<'_>,
        cluster: &mut Cluster,
        rank: usize,
        split: usize,
        lanes: Mask,
    ) {
        self.exit(split, lanes);
        cluster.leave(rank, lanes, &self.cluster_arrivals);
        let block = &cluster.blocks[rank];
        if block.live == 0 && !block.waited {
            env.early.store(true, Relaxed);
        }
    }
}

/// A split that can run, by chance if there are several.
fn pick(ctx: &mut Ctx<'_>) -> Option<usize> {
    if let [split] = &ctx.warp.splits[..]
        && split.state == State::Ready
    {
        return Some(0);
    }
    let (cluster, rank) = (&*ctx.cluster, ctx.rank);
    let Warp { splits, clock, .. } = &mut *ctx.warp;
    let mut ready = 0;
    for split in splits {
        if let State::Blocked(wait) | State::Retry(wait) = split.state
            && cluster.is_over(rank, wait)
        {
            cluster.learn(rank, wait, clock);
            split.resumed = matches!(split.state, State::Retry(_));
            split.state = State::Ready;
        }
        ready += usize::from(split.state == State::Ready);
    }
    if ready == 0 {
        return None;
    }
    let chosen = ctx.random.below(ready as u32) as usize;
    let mut indices = (0..ctx.warp.splits.len()).filter(|&i| ctx.warp.splits[i].state == State::Ready);
    indices.nth(chosen)
}

/// Runs an instruction for which enough splits have gathered. [`Flow::Next`] if one ran.
///
/// # Safety
/// As for [`run`].
unsafe fn meet(ctx: &mut Ctx<'_>) -> Flow {
    let code = ctx.env.code;
    for first in 0..ctx.warp.splits.len() {
        let Split { pc, state, .. } = ctx.warp.splits[first];
        let seen = ctx.warp.splits[..first].iter().any(|s| s.state == State::Meet && s.pc == pc);
        if state != State::Meet || seen {
            continue;
        }
        let inst = &code.insts[pc as usize];
        let here = |s: &Split| s.state == State::Meet && s.pc == pc;
        // SAFETY: guards are predicates in every warp's register file.
        let guard = unsafe { ctx.predicate(inst.guard) } ^ inst.flip;
        ctx.exec = ctx.warp.splits.iter().filter(|s| here(s)).fold(0, |m, s| m | s.mask) & guard;
        ctx.pc = pc;
        // SAFETY: as in `run`.
        let flow = unsafe { (inst.run)(ctx, inst) };
        let (next, state) = match flow {
            Flow::Meet => continue,
            Flow::Fault => return Flow::Fault,
            Flow::Wait => (pc + 1, State::Blocked(ctx.wait)),
            Flow::Retry => (pc, State::Retry(ctx.wait)),
            _ => (pc + 1, State::Ready),
        };
        // Those of one join go on as one split.
        let mut merged: Vec<Split> = Vec::new();
        for mut split in std::mem::take(&mut ctx.warp.splits) {
            if here(&split) {
                (split.pc, split.state) = (next, state);
                if let Some(twin) =
                    merged.iter_mut().find(|s| s.pc == next && s.state == state && s.join == split.join)
                {
                    twin.mask |= split.mask;
                    continue;
                }
            }
            merged.push(split);
        }
        ctx.warp.splits = merged;
        return Flow::Next;
    }
    divergence(ctx)
}

/// No split can run: a fault if none of them waits for anything outside the warp.
fn divergence(ctx: &mut Ctx<'_>) -> Flow {
    let warp = &ctx.warp;
    if warp.splits.iter().any(|s| s.state != State::Meet) {
        return Flow::Meet;
    }
    let first = warp.splits[0];
    let mut detail = format!("lanes {:#010x} are here", first.mask);
    for split in &warp.splits[1..] {
        let place = ctx.env.place(split.pc);
        detail += &format!("; lanes {:#010x} wait at {place}", split.mask);
    }
    let missing = warp.live & !warp.splits.iter().fold(0, |m, s| m | s.mask);
    if missing != 0 {
        detail += &format!("; lanes {missing:#010x} wait to reconverge with them");
    }
    let exited = !warp.live;
    if exited != 0 {
        detail += &format!("; lanes {exited:#010x} have exited or do not exist");
    }
    ctx.pc = first.pc;
    ctx.stop(FaultKind::Divergent, first.mask, detail)
}
