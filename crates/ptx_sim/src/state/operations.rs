//! Operations that the copy engine of a cluster has in flight. What becomes of them is in [`crate::engine`].

use super::mbarrier::Hollow;
use super::race::{Access, Clock};
use super::reduction::Reduction;
use crate::tensor_map::TensorMap;

/// A place in the shared memory of a block of the cluster: its rank, and the address there.
pub(crate) type Place = (usize, u64);

/// Bytes in global memory.
#[derive(Clone, Debug)]
pub(crate) enum Global {
    /// One after the other.
    Line(u64),
    /// A box of a tensor, by its innermost-first coordinates.
    Tile(Box<TensorMap>, Vec<i32>),
}

/// Where a load comes from.
pub(crate) enum Source {
    /// Global memory; `true` if the transfer counts. A multicast is read once for all blocks.
    Global(Global, bool),
    Shared(Place),
    /// `st.async`: it is known at issue.
    Value(Vec<u8>),
}

/// One lane's copy of `cp.async`, which fills up to 16 bytes.
#[derive(Clone, Copy)]
pub(crate) struct SmallCopy {
    pub source: u64,
    pub destination: Place,
    pub lane: u8,
    pub bytes: u8,
    /// Bytes to read; the rest is filled with zeros.
    pub valid: u8,
    pub progress: SmallProgress,
    pub group: u32,
    pub by: Access,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum SmallProgress {
    Issued,
    Read([u8; 16]),
    Landed,
}

/// What an operation does.
pub(crate) enum Work {
    /// Copies to shared memory, and completes the bytes on an mbarrier.
    Load { source: Source, to: Place, bytes: u32, barrier: Place, by: Access },
    /// Copies from shared memory, or reduces into what is there.
    Store { from: Place, bytes: u32, to: Global, reduce: Option<Reduction> },
    /// `cp.async.mbarrier.arrive`: arrives once the copies have landed.
    Arrive { copies: Vec<SmallCopy>, barrier: Place },
}

pub(crate) enum Stage {
    Issued,
    Read(Vec<u8>, Hollow),
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    AtOnce,
    ReadAtOnce,
    NowAndThen,
    LastMoment,
}

/// Who issued an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Issuer {
    pub rank: usize,
    pub warp: u32,
    pub lane: u8,
    pub pc: u32,
    /// It had executed `griddepcontrol.wait`, or need not have.
    pub waited: bool,
}

/// An operation in flight.
pub(crate) struct Operation {
    pub issuer: Issuer,
    pub work: Work,
    /// Bulk group of the issuing lane.
    pub group: u32,
    /// What the issuer knew.
    pub clock: Box<Clock>,
    pub stage: Stage,
    pub pace: Pace,
    pub deadline: u64,
}

impl Operation {
    /// Whether its source need not be kept any longer.
    pub fn has_read(&self) -> bool {
        !matches!(self.stage, Stage::Issued)
    }
}

/// The operations of a cluster.
#[derive(Default)]
pub(crate) struct Engine {
    pub operations: Vec<Operation>,
}
