//! Runs the blocks of a launch on worker threads.
//!
//! ```text
//!   clusters not started ──▶ active: up to `window` per worker ──▶ done
//!                               │  ▲ a turn: one cluster, some warps, some instructions each
//!                               └──┘
//! ```
//!
//! A worker keeps a few clusters active and gives them turns of random length. While they make progress, that
//! is enough, and they finish and make room. If they spin for something that blocks not yet started would do,
//! the window grows, up to what the simulated SMs hold at once; a grid-wide wait therefore works exactly when
//! it would on the GPU. The clusters of a cooperative launch are all active from the start. A warp whose
//! strong read of global memory repeats one of its last gives up its turn, and so does a cluster in which
//! nobody does anything else. When a full round of turns changes nothing anywhere, nobody will ever get on: a
//! deadlock.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use super::start::Spare;
use super::warp::{self, Turn};
use crate::code::Tally;
use crate::counters::Counters;
use crate::engine::Surroundings;
use crate::exec::{Code, Ctx, FULL, Mask, Stop, Wait, lanes_of, wgmma};
use crate::fault::{Fault, FaultKind};
use crate::random::Random;
use crate::state::block::Cluster;
use crate::state::environment::Environment;
use crate::state::warp::State;

/// Clusters a worker keeps active to begin with.
const WINDOW: usize = 3;
/// Turns a cluster may have before its worker suspects that it spins: about a million instructions, or as
/// many turns given up.
const SUSPICIOUS: usize = 85;
/// Instructions without any effect anywhere after which the launch is stuck.
const STUCK: u64 = 1 << 24;

/// Times that waits may time out in a row while nothing changes.
const TIMEOUTS: u32 = 64;

/// What the workers of a launch share.
struct Grid<'a> {
    env: &'a Environment<'a>,
    code: &'a Code,
    /// Next cluster to start.
    next: AtomicU64,
    /// Clusters that may be resident at once.
    resident: u64,
    /// Clusters started and not finished.
    active: AtomicU64,
    /// Total signs of progress.
    effects: AtomicU64,
    /// A worker has found a fault.
    stopped: AtomicBool,
    fault: Mutex<Option<Fault>>,
}

/// Runs every cluster; `resident` may be active at once.
pub(crate) fn run(
    env: &Environment<'_>,
    code: &Code,
    workers: usize,
    resident: u64,
) -> Result<Counters, Fault> {
    let grid = Grid {
        env,
        code,
        next: AtomicU64::new(0),
        resident: resident.max(1),
        active: AtomicU64::new(0),
        effects: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
        fault: Mutex::new(None),
    };
    let workers = workers.clamp(1, env.clusters().clamp(1, 256) as usize);
    let mut counters = Counters { launches: 1, ..Counters::default() };
    if workers == 1 {
        counters += work(&grid, 0, 1);
    } else {
        std::thread::scope(|scope| {
            let grid = &grid;
            let threads: Vec<_> = (1..workers).map(|w| scope.spawn(move || work(grid, w, workers))).collect();
            counters += work(grid, 0, workers);
            for thread in threads {
                match thread.join() {
                    Ok(part) => counters += part,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
    }
    match grid.fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(fault) => Err(fault),
        None => Ok(counters),
    }
}

/// A cluster in the hands of a worker.
struct Active {
    cluster: Cluster,
    /// Effects counted so far.
    effects: u64,
}

fn work(grid: &Grid<'_>, worker: usize, workers: usize) -> Counters {
    let (env, code) = (grid.env, grid.code);
    let mut random = Random::new(env.seed ^ (worker as u64).wrapping_mul(0x2545_f491_4f6c_dd1d));
    let mut tally = Tally::new(code);
    let mut spare = Spare::new();
    let mut active: Vec<Active> = Vec::new();
    let mut window = match env.order {
        Some(_) => env.clusters().div_ceil(workers as u64) as usize,
        None => WINDOW,
    };
    let mut turns_since_growth = 0;
    let mut idle = 0;
    let mut seen = 0;
    while !grid.stopped.load(Relaxed) {
        while active.len() < window
            && let Some(number) = claim(grid)
        {
            let poison = 0x80 | random.next() as u8;
            active.push(Active { cluster: env.start_cluster(number, poison, &mut spare), effects: 0 });
            // It has not had a turn yet.
            idle = 0;
        }
        if active.is_empty() {
            if grid.next.load(Relaxed) >= env.clusters() {
                break;
            }
            // The resident places are taken by the other workers.
            std::thread::yield_now();
            continue;
        }
        let chosen = random.below(active.len() as u32) as usize;
        let before = active[chosen].cluster.age;
        let outcome = turn(env, code, &mut active[chosen].cluster, &mut tally, &mut random, &mut spare);
        let ran = active[chosen].cluster.age - before;
        let effects = active[chosen].cluster.effects();
        grid.effects.fetch_add(effects - active[chosen].effects, Relaxed);
        active[chosen].effects = effects;
        match outcome {
            Ok(false) => {}
            Ok(true) => {
                tally.counters.blocks += u64::from(env.cluster_blocks());
                for block in active.swap_remove(chosen).cluster.blocks {
                    env.finished.keep_shared_memory(block.shared);
                }
                grid.active.fetch_sub(1, Relaxed);
                grid.effects.fetch_add(1, Relaxed);
            }
            Err(fault) => {
                grid.stopped.store(true, Relaxed);
                let mut first = grid.fault.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert(fault);
                break;
            }
        }
        // Grow the window when it is full, and everybody in it has run for long.
        turns_since_growth += 1;
        if turns_since_growth > SUSPICIOUS * window && active.len() >= window {
            turns_since_growth = 0;
            window *= 2;
            // Those that are new in it may change something.
            idle = 0;
        }
        let total = grid.effects.load(Relaxed);
        idle = if total == seen { idle + ran } else { 0 };
        seen = total;
        if idle > STUCK && window > active.len() {
            grid.stopped.store(true, Relaxed);
            let mut first = grid.fault.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert_with(|| stuck(env, code, &active));
            break;
        }
    }
    spare.keep_in(env.finished);
    tally.finish(code)
}

/// Takes the next cluster, if one may become resident now.
fn claim(grid: &Grid<'_>) -> Option<u64> {
    if grid.next.load(Relaxed) >= grid.env.clusters() {
        return None;
    }
    if grid.active.fetch_add(1, Relaxed) >= grid.resident {
        grid.active.fetch_sub(1, Relaxed);
        return None;
    }
    let number = grid.next.fetch_add(1, Relaxed);
    if number >= grid.env.clusters() {
        grid.active.fetch_sub(1, Relaxed);
        return None;
    }
    Some(number)
}

/// Gives a cluster a turn. `true` if it has finished.
fn turn(
    env: &Environment<'_>,
    code: &Code,
    cluster: &mut Cluster,
    tally: &mut Tally,
    random: &mut Random,
    spare: &mut Spare,
) -> Result<bool, Fault> {
    let mut left = 4096 + i64::from(random.below(16384));
    while left > 0 {
        let chosen = choose(cluster, random);
        let mut around = Surroundings { env, cluster, counters: &mut tally.counters, random };
        let progress = match chosen {
            Some(_) => around.pass_time().map(|()| true),
            None => around.finish_any(),
        };
        let progress = progress.map_err(|(issuer, stop)| {
            fault(env, code, cluster, (issuer.rank, issuer.warp), *stop, (0, issuer.pc))
        })?;
        let Some((rank, warp)) = chosen else {
            if !progress && cluster.blocks.iter().all(|b| b.live == 0) {
                return Ok(true);
            }
            if !progress && !time_out(cluster) {
                return Err(deadlock(env, code, cluster));
            }
            continue;
        };
        let given = 1 + (random.next() as u32 & 0xff);
        let mut budget = given;
        let mut taken = cluster.blocks[rank].warps[warp].take().expect("chosen warps are there");
        taken.spins = false;
        let mut ctx = Ctx {
            regs: taken.registers.start(),
            exec: FULL,
            pc: 0,
            resumed: false,
            wait: Wait::Barrier { id: 0, generation: 0 },
            code,
            env,
            cluster,
            rank,
            warp: taken,
            tally,
            random,
            targets: [0; 32],
            fault: None,
        };
        // SAFETY: `start_block` made the warp for this environment's entry.
        let outcome = unsafe { warp::run(&mut ctx, &mut budget) };
        let unfinished = if outcome == Turn::Done { wgmma::check_exit(&ctx) } else { None };
        let Ctx { warp, fault: reason, exec, pc, .. } = ctx;
        // A turn that only looked counts as one instruction.
        let ran = (given - budget).max(1);
        left -= i64::from(ran);
        cluster.age += u64::from(ran);
        match outcome {
            Turn::Done => {
                if let Some(stop) = unfinished {
                    return Err(fault(env, code, cluster, (rank, warp.index), stop, (exec, pc)));
                }
                spare.warps[warp.index as usize].push(warp);
            }
            Turn::Fault => {
                let stop = reason.expect("a fault comes with its reason");
                return Err(fault(env, code, cluster, (rank, warp.index), *stop, (exec, pc)));
            }
            Turn::Spent | Turn::Blocked => {
                let (slot, looked) = (warp.index as usize, warp.spins);
                cluster.blocks[rank].warps[slot] = Some(warp);
                if looked && only_looks(cluster) {
                    break;
                }
            }
        }
    }
    Ok(false)
}

/// Whether every warp that could run has only looked at global memory again, the last time that it did.
fn only_looks(cluster: &Cluster) -> bool {
    cluster.blocks.iter().enumerate().all(|(rank, block)| {
        let mut warps = block.warps.iter().flatten();
        warps.all(|warp| warp.spins || !warp.is_runnable(|wait| cluster.is_over(rank, wait)))
    })
}

/// Dresses up why warp `warp` of the block of rank `rank` stopped: at instruction `pc`, executed by `exec`.
fn fault(
    env: &Environment<'_>,
    code: &Code,
    cluster: &Cluster,
    (rank, warp): (usize, u32),
    stop: Stop,
    (exec, pc): (Mask, u32),
) -> Fault {
    let lanes = if stop.lanes == 0 { exec } else { stop.lanes };
    let lane = lanes.trailing_zeros().min(31);
    Fault {
        kind: stop.kind,
        kernel: env.kernel.to_string(),
        block: cluster.blocks[rank].index,
        thread: Some(env.thread(warp, lane)),
        lanes: Some((warp, lanes)),
        place: code.place(stop.pc.unwrap_or(pc)),
        detail: stop.detail,
    }
}

/// Lets every wait that may time out do so. Whether that is any use: there are such waits, and something has
/// changed not too long ago.
fn time_out(cluster: &mut Cluster) -> bool {
    let effects = cluster.effects();
    let (times, before) = &mut cluster.timeouts;
    if *before != effects {
        (*times, *before) = (0, effects);
    }
    *times += 1;
    if *times > TIMEOUTS {
        return false;
    }
    let mut any = false;
    for warp in cluster.blocks.iter_mut().flat_map(|block| block.warps.iter_mut().flatten()) {
        any |= warp.time_out();
    }
    any
}

/// A warp that can run, by chance.
fn choose(cluster: &Cluster, random: &mut Random) -> Option<(usize, usize)> {
    let blocks = cluster.blocks.len() as u32;
    let first = random.below(blocks) as usize;
    for step in 0..blocks as usize {
        let rank = (first + step) % blocks as usize;
        let block = &cluster.blocks[rank];
        let count = block.warps.len();
        let start = random.below(count as u32) as usize;
        let runnable = |slot: &usize| {
            block.warps[*slot]
                .as_ref()
                .is_some_and(|warp| warp.is_runnable(|wait| cluster.is_over(rank, wait)))
        };
        if let Some(slot) = (start..count).chain(0..start).find(runnable) {
            return Some((rank, slot));
        }
    }
    None
}

/// What the warps of a block wait for, warps that wait alike named together.
fn waits(code: &Code, cluster: &Cluster, rank: usize) -> Vec<(String, String)> {
    let mut list: Vec<(String, String)> = Vec::new();
    let block = &cluster.blocks[rank];
    for warp in block.warps.iter().flatten() {
        for split in &warp.splits {
            let (wait, pc) = match split.state {
                State::Blocked(wait) => (cluster.describe(rank, wait), split.pc.saturating_sub(1)),
                State::Retry(wait) => (cluster.describe(rank, wait), split.pc),
                State::Meet => ("the other lanes of its warp".to_string(), split.pc),
                State::Ready => ("nothing (it spins)".to_string(), split.pc),
            };
            let place = code.place(pc).to_string();
            let what = format!("{wait}, at {place}");
            let all = split.mask == warp.live;
            let lanes = if all { String::new() } else { format!(" lanes {:#x}", split.mask) };
            let who = format!("{}{lanes}", warp.index);
            match list.iter_mut().find(|(_, w)| *w == what) {
                Some((names, _)) => *names += &format!(", {who}"),
                None => list.push((who, what)),
            }
        }
    }
    list
}

fn deadlock(env: &Environment<'_>, code: &Code, cluster: &Cluster) -> Fault {
    let rank = cluster.blocks.iter().position(|b| b.live != 0).expect("a thread is left");
    let block = &cluster.blocks[rank];
    let mut detail: Vec<String> = Vec::new();
    for (other, of) in cluster.blocks.iter().enumerate().filter(|(_, block)| block.live != 0) {
        let [x, y, z] = of.index.map(|i| i.to_string());
        let whose = if other == rank { String::new() } else { format!("in block ({x},{y},{z}) ") };
        let waits = waits(code, cluster, other);
        detail.extend(waits.iter().map(|(who, what)| format!("{whose}warp {who} waits for {what}")));
    }
    let warp = block.warps.iter().flatten().next();
    let place = warp.and_then(|w| w.splits.first()).map(|s| match s.state {
        State::Blocked(_) => code.place(s.pc.saturating_sub(1)),
        _ => code.place(s.pc),
    });
    let first = warp.map(|w| (w.index, w.splits.first().map_or(0, |s| s.mask)));
    Fault {
        kind: FaultKind::Deadlock,
        kernel: env.kernel.to_string(),
        block: block.index,
        thread: first.and_then(|(w, mask)| lanes_of(mask).next().map(|lane| env.thread(w, lane as u32))),
        lanes: first,
        place: place.unwrap_or_default(),
        detail: detail.join("; "),
    }
}

fn stuck(env: &Environment<'_>, code: &Code, active: &[Active]) -> Fault {
    let mut fault = deadlock(env, code, &active[0].cluster);
    fault.detail = format!("blocks spin and nothing changes any more: {}", fault.detail);
    fault
}
