//! A warpgroup, four warps that multiply together, and what a warp remembers of its `wgmma`s (ISA
//! "Asynchronous warpgroup level matrix instructions").
//!
//! ```text
//!   four warps meet at a wgmma ──▶ queue of the warpgroup ──▶ done in order, at once or at a wait
//!
//!   registers of a warp:  in flight (sums, fragment of A) ──wait──▶ settled ──touched──▶ needs wgmma.fence
//! ```

use std::collections::VecDeque;

use super::register_pool::Resizing;
use crate::mma::Lanes;
use crate::wgmma::{Descriptor, Major, MatrixA, MatrixB, Product};

/// What one warp brings to a `wgmma`.
#[derive(Clone)]
pub(crate) struct Arrival {
    /// Descriptor of A, or the registers of its fragment.
    pub a: Result<u64, Box<[Lanes; 4]>>,
    pub b: u64,
    /// `scale-d`
    pub accumulate: bool,
    /// Groups committed before.
    pub committed: u32,
}

/// A `wgmma` in flight.
pub(crate) struct InFlight {
    /// Its number in the warpgroup, from 1.
    pub number: u32,
    pub product: Product,
    /// The accumulators are packed `f16`.
    pub half: bool,
    /// Columns.
    pub n: u32,
    pub a: Result<(Descriptor, Major), [Box<[Lanes; 4]>; 4]>,
    pub b: (Descriptor, Major),
    /// The operands, if they have been read already.
    pub fetched: Option<(MatrixA, MatrixB)>,
    /// The list of accumulator slots.
    pub slots: u64,
}

/// Four warps.
#[derive(Default)]
pub(crate) struct Warpgroup {
    /// Meetings so far.
    pub generation: u32,
    /// The warps that are at the instruction `pc`.
    pub arrivals: [Option<Arrival>; 4],
    pub pc: u32,
    pub queue: VecDeque<InFlight>,
    /// Number of the last one issued.
    pub issued: u32,
    pub resizing: Resizing,
}

impl Warpgroup {
    /// How many warps wait for the others.
    pub fn here(&self) -> usize {
        self.arrivals.iter().flatten().count()
    }
}

/// State of a register with regard to `wgmma`, as bits.
mod mark {
    pub const ACCUMULATOR: u8 = 1;
    pub const OPERAND: u8 = 2;
    /// An accumulator that has been waited for and not been touched since.
    pub const SETTLED: u8 = 4;
    /// Touched since the last `wgmma.fence`.
    pub const TOUCHED: u8 = 8;
}

/// What an instruction may not do to a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misuse {
    Accumulator,
    Operand,
}

/// A `wgmma` that its warp has not waited for.
struct Pending {
    number: u32,
    accumulators: Vec<u32>,
    operands: Vec<u32>,
}

/// What a warp knows of its `wgmma`s.
#[derive(Default)]
pub(crate) struct Products {
    /// The last `wgmma` of each committed group that has not been waited for.
    groups: VecDeque<u32>,
    /// Groups committed.
    pub committed: u32,
    last: u32,
    pending: VecDeque<Pending>,
    marks: Vec<u8>,
    settled: u32,
    watching: bool,
    /// `wgmma.fence` has been executed.
    fenced: bool,
}

fn place(slot: u32) -> usize {
    slot as usize / 64
}

impl Products {
    /// As a warp starts.
    pub fn clear(&mut self) {
        *self = Products { marks: std::mem::take(&mut self.marks), ..Products::default() };
        self.marks.fill(0);
    }

    /// Whether registers must be checked before they are used.
    #[inline(always)]
    pub fn watches(&self) -> bool {
        self.watching
    }

    fn mark(&mut self, slot: u32) -> &mut u8 {
        let at = place(slot);
        if self.marks.len() <= at {
            self.marks.resize(at + 1, 0);
        }
        &mut self.marks[at]
    }

    /// An instruction uses a register.
    pub fn touch(&mut self, slot: u32, writes: bool) -> Result<(), Misuse> {
        let Some(mark) = self.marks.get_mut(place(slot)) else { return Ok(()) };
        if *mark & mark::ACCUMULATOR != 0 {
            return Err(Misuse::Accumulator);
        }
        if *mark & mark::OPERAND != 0 && writes {
            return Err(Misuse::Operand);
        }
        if *mark & mark::SETTLED != 0 {
            *mark = *mark & !mark::SETTLED | mark::TOUCHED;
            self.settled -= 1;
            self.watching = self.settled > 0 || !self.pending.is_empty();
        }
        Ok(())
    }

    /// `wgmma.fence`
    pub fn fence(&mut self) {
        self.fenced = true;
        self.marks.iter_mut().for_each(|mark| *mark &= !mark::TOUCHED);
    }

    /// Whether a `wgmma` on these registers needs a fence first.
    pub fn lacks_fence(&self, accumulators: &[u32], operands: &[u32]) -> bool {
        let touched = |slot: &u32| self.marks.get(place(*slot)).is_some_and(|m| m & mark::TOUCHED != 0);
        !self.fenced || accumulators.iter().chain(operands).any(touched)
    }

    /// Whether a register is an accumulator in flight.
    pub fn is_in_flight(&self, slot: u32) -> bool {
        self.marks.get(place(slot)).is_some_and(|mark| mark & mark::ACCUMULATOR != 0)
    }

    /// A `wgmma` on these registers is in flight.
    pub fn issue(&mut self, number: u32, accumulators: &[u32], operands: &[u32]) {
        for &slot in accumulators {
            let mark = self.mark(slot);
            let was_settled = *mark & mark::SETTLED != 0;
            *mark = *mark & !mark::SETTLED | mark::ACCUMULATOR;
            self.settled -= u32::from(was_settled);
        }
        for &slot in operands {
            *self.mark(slot) |= mark::OPERAND;
        }
        self.last = number;
        self.pending.push_back(Pending {
            number,
            accumulators: accumulators.to_vec(),
            operands: operands.to_vec(),
        });
        self.watching = true;
    }

    /// `wgmma.commit_group`
    pub fn commit(&mut self) {
        self.committed += 1;
        self.groups.push_back(self.last);
    }

    /// `wgmma.wait_group`: the number up to which `wgmma`s must be done, so that `left` groups are in flight.
    pub fn wait(&mut self, left: usize) -> Option<u32> {
        let mut number = None;
        while self.groups.len() > left {
            number = self.groups.pop_front();
        }
        let done = number?;
        let mut settled = Vec::new();
        while let Some(pending) = self.pending.pop_front_if(|pending| pending.number <= done) {
            settled.push(pending);
        }
        for pending in settled {
            for slot in pending.accumulators {
                let mark = &mut self.marks[place(slot)];
                if *mark & mark::SETTLED == 0 {
                    *mark |= mark::SETTLED;
                    self.settled += 1;
                }
                *mark &= !mark::ACCUMULATOR;
            }
            for slot in pending.operands {
                self.marks[place(slot)] &= !mark::OPERAND;
            }
        }
        // What is still in flight keeps its marks.
        for at in 0..self.pending.len() {
            let Pending { accumulators, operands, .. } = &self.pending[at];
            for slot in accumulators {
                let mark = &mut self.marks[place(*slot)];
                if *mark & mark::SETTLED != 0 {
                    self.settled -= 1;
                }
                *mark = *mark & !mark::SETTLED | mark::ACCUMULATOR;
            }
            for slot in operands {
                self.marks[place(*slot)] |= mark::OPERAND;
            }
        }
        self.watching = self.settled > 0 || !self.pending.is_empty();
        Some(done)
    }
}
