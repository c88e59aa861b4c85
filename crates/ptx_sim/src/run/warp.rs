//! Runs instructions of one warp: which of its splits, and what becomes of them (see [`crate::state::warp`]).

use std::sync::atomic::Ordering::Relaxed;

use crate::code::NONE;
use crate::exec::{Ctx, Flow, Mask, lanes_of, wgmma};
use crate::fault::FaultKind;
use crate::state::block::Cluster;
use crate::state::environment::Environment;
use crate::state::warp::{Join, Split, State, Warp};

/// Instructions a warp may run while lanes wait at a join before those go ahead on their own: lanes may be
/// spinning for something that the waiting lanes do next.
const PATIENCE: u32 = 100_000;

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

/// Runs the warp in `ctx` for up to `budget` instructions, and takes off it what was run.
///
/// # Safety
/// The warp was made for the entry that `ctx.env` launches.
pub(crate) unsafe fn run(ctx: &mut Ctx<'_>, budget: &mut u32) -> Turn {
    let code = ctx.code;
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
            match unsafe { (inst.run.0)(ctx, inst) } {
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
    let inst = &ctx.code.insts[split.pc as usize];
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
            exit_and_wake(warp, ctx.env, ctx.cluster, ctx.rank, current, exec)
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
        Flow::Exit => exit_and_wake(warp, ctx.env, ctx.cluster, ctx.rank, current, exec),
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

/// Lanes exit; barriers that waited only for them may complete.
fn exit_and_wake(
    warp: &mut Warp,
    env: &Environment<'_>,
    cluster: &mut Cluster,
    rank: usize,
    split: usize,
    lanes: Mask,
) {
    warp.exit(split, lanes);
    cluster.leave(rank, lanes, &warp.cluster_arrivals);
    let block = &cluster.blocks[rank];
    if block.live == 0 && !block.waited {
        env.early.store(true, Relaxed);
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
    let code = ctx.code;
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
        let flow = unsafe { (inst.run.0)(ctx, inst) };
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
        let place = ctx.place(split.pc);
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
