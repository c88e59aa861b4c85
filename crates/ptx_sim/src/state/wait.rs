//! What lanes wait for, and why a launch stops.

use super::lanes::Mask;
use crate::fault::FaultKind;

/// Why a split does not run. Evaluated by [`super::block::Cluster::is_over`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Until the barrier leaves this generation.
    Barrier {
        /// Number of the barrier.
        id: u8,
        /// Generation at arrival.
        generation: u32,
    },
    /// Until an mbarrier of the block leaves this phase, or the wait times out.
    Mbarrier {
        /// Address of the mbarrier.
        address: u32,
        /// Phase that was current.
        phase: u64,
    },
    /// Until the warps of a warpgroup have met.
    Warpgroup {
        /// Number in the block.
        group: u8,
        /// Meetings before.
        generation: u32,
    },
    /// Until the cluster's barrier leaves this generation.
    Cluster {
        /// Generation at arrival.
        generation: u32,
    },
    /// Until the block's pool has so many registers.
    Registers {
        /// For all lanes of the warp.
        needed: u32,
    },
}

/// A fault before it is dressed up with names and places.
#[derive(Debug)]
pub(crate) struct Stop {
    pub kind: FaultKind,
    /// Lanes at fault.
    pub lanes: Mask,
    /// Instruction, if another than the current one.
    pub pc: Option<u32>,
    pub detail: String,
}
