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
//! post-dominator is where its split is headed anyway (a loop that lanes leave one by one) adds no join.
//! Lanes that exit are struck off all joins. A call is a join at the return address, which `ret` goes to.
//!
//! Instructions that need lanes which are not here yet ([`State::Meet`]) hold their split until the other
//! splits of the warp have come to the same instruction; then it runs once, for all of them together. If they
//! can never come, the use was divergent.

use std::collections::VecDeque;
use std::sync::Arc;

use super::copies::{BulkGroups, Copies};
use super::grid_order::Known;
use super::lanes::Mask;
use super::race::Clock;
use super::registers::RegisterFile;
use super::wait::Wait;
use super::warpgroup::Products;
use crate::code::NONE;

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
    /// Innermost join; [`NONE`] if there is none.
    pub join: u32,
    pub state: State,
    /// The next instruction has begun already.
    pub resumed: bool,
}

/// Lanes expected at one program counter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Join {
    pub pc: u32,
    pub expected: Mask,
    pub arrived: Mask,
    pub parent: u32,
}

/// A strong read of global memory: where in the code, a digest of what it read, and the signs of progress
/// then.
pub(crate) type Look = (u32, u64, u64);

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
    pub waiting: u32,
    pub registers: RegisterFile,
    /// Local memory, one stretch per lane.
    pub local: Vec<u8>,
    /// What this warp knows of the progress of others.
    pub clock: Clock,
    /// `clock` at the last fence: what later relaxed writes release.
    pub fenced: Option<Clock>,
    /// `clock` at the last fence at the scope of the GPU.
    pub fenced_for_grid: Option<Clock>,
    /// As `seen`, of other clusters.
    pub seen_of_grid: Vec<Arc<Known>>,
    /// The last strong reads of global memory, each once, the next to be overwritten first.
    pub looks: VecDeque<Look>,
    /// The last of all has only repeated one of them.
    pub spins: bool,
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
            fenced_for_grid: None,
            seen_of_grid: Vec::new(),
            looks: VecDeque::new(),
            spins: false,
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
        self.fenced_for_grid = None;
        self.seen_of_grid.clear();
        self.looks.clear();
        self.spins = false;
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

    pub fn add_join(&mut self, join: Join) -> u32 {
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
    pub fn target_of(&self, join: u32) -> u32 {
        if join == NONE { NONE } else { self.joins[join as usize].pc }
    }

    /// A split has come to its join: absorb it.
    pub fn arrive(&mut self, split: usize) {
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
    pub fn part(&mut self, split: usize, parts: &[(u32, Mask)], meet: u32) {
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
    pub fn exit(&mut self, split: usize, lanes: Mask) {
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
    pub fn lose_patience(&mut self) {
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
