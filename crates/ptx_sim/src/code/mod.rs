//! Decoded instructions, and what a warp of each entry starts with.
//!
//! ```text
//!   Inst { run, d, a, b, c, .. }      an operand is a byte offset into a warp's register file
//!
//!     predicates: one u32 mask each │ 16/32-bit: [u32; 32] │ 64-bit: [u64; 32] │ 128-bit │ constants
//! ```
//!
//! Constants and special registers that do not change live in the file as well, written once when a warp
//! starts: an instruction need not know what kind of operand it has.
//!
//! What `run` is, and what it does to a warp, is not known here: `R` is a type of the execution's
//! ([`exec`](crate::exec)).

pub(crate) mod control_flow;
mod tally;

pub(crate) use tally::Tally;

use crate::counters::Class;
use crate::fault::Place;

/// No instruction: a program counter that is nowhere.
pub(crate) const NONE: u32 = u32::MAX;

/// Where an instruction comes from and how it counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// Line in the PTX.
    pub line: u32,
    /// Number of a file and line of the source; 0 if unknown.
    pub source: (u32, u32),
    /// What it counts as; `None` for the further pieces of a PTX instruction that was decoded into several.
    pub class: Option<Class>,
}

/// A decoded instruction.
#[derive(Clone, Copy)]
pub(crate) struct Inst<R> {
    /// What to do.
    pub run: R,
    /// Immediate: address offset, table index, flags; by instruction.
    pub imm: u64,
    /// Destination slot.
    pub d: u32,
    /// Source slots.
    pub a: u32,
    /// Source slots.
    pub b: u32,
    /// Source slots.
    pub c: u32,
    /// Further slot or small immediate, by instruction.
    pub e: u32,
    /// Slot of the guard predicate; the always-true predicate if unguarded.
    pub guard: u32,
    /// All ones if the guard is negated.
    pub flip: u32,
    /// Branches: the target; other instructions: further small immediate.
    pub target: u32,
}

/// All code of a module.
pub(crate) struct Code<R> {
    pub insts: Vec<Inst<R>>,
    /// Parallel to `insts`.
    pub origins: Vec<Origin>,
    /// Operand lists and branch tables.
    pub lists: Vec<u32>,
    /// Where in `touched` the registers of each instruction end; parallel to `insts`.
    pub touches: Vec<u32>,
    /// Slots of the registers that instructions use; bit 0 is set if they are written.
    pub touched: Vec<u32>,
    /// Paths by `.file` number.
    pub files: std::collections::HashMap<u32, String>,
    /// Lines of the PTX.
    pub text: Vec<String>,
}

impl<R> Default for Code<R> {
    fn default() -> Code<R> {
        Code {
            insts: Vec::new(),
            origins: Vec::new(),
            lists: Vec::new(),
            touches: Vec::new(),
            touched: Vec::new(),
            files: Default::default(),
            text: Vec::new(),
        }
    }
}

impl<R> Code<R> {
    /// The registers that an instruction uses, as in the field of that name.
    pub fn touched(&self, pc: u32) -> &[u32] {
        let start = pc.checked_sub(1).map_or(0, |before| self.touches[before as usize]);
        &self.touched[start as usize..self.touches[pc as usize] as usize]
    }

    /// How much there is, for [`Code::rewind`].
    pub fn mark(&self) -> [usize; 3] {
        [self.insts.len(), self.lists.len(), self.touched.len()]
    }

    /// Drops what came after a mark.
    pub fn rewind(&mut self, [insts, lists, touched]: [usize; 3]) {
        self.insts.truncate(insts);
        self.origins.truncate(insts);
        self.touches.truncate(insts);
        self.lists.truncate(lists);
        self.touched.truncate(touched);
    }

    /// Where an instruction comes from.
    pub fn place(&self, pc: u32) -> Place {
        let Some(origin) = self.origins.get(pc as usize) else { return Place::default() };
        let (file, line) = origin.source;
        Place {
            ptx_line: origin.line,
            ptx_text: self.text.get(origin.line as usize - 1).cloned().unwrap_or_default(),
            source: self.files.get(&file).map(|path| (path.clone(), line)),
        }
    }
}

/// A special register whose value a warp knows when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    /// `%tid`, by dimension.
    Tid(usize),
    /// `%ntid`
    Ntid(usize),
    /// `%ctaid`
    Ctaid(usize),
    /// `%nctaid`
    Nctaid(usize),
    /// `%clusterid`
    Clusterid(usize),
    /// `%nclusterid`
    Nclusterid(usize),
    /// `%cluster_ctaid`
    ClusterCtaid(usize),
    /// `%cluster_nctaid`
    ClusterNctaid(usize),
    /// `%cluster_ctarank`
    ClusterCtarank,
    /// `%cluster_nctarank`
    ClusterNctarank,
    /// `%is_explicit_cluster`, a predicate.
    IsExplicitCluster,
    /// `%laneid`
    Laneid,
    /// `%warpid`
    Warpid,
    /// `%nwarpid`
    Nwarpid,
    /// `%smid`
    Smid,
    /// `%nsmid`
    Nsmid,
    /// `%gridid`, 64 bits.
    Gridid,
    /// `%lanemask_{eq,le,lt,ge,gt}`
    LanemaskEq,
    /// See [`Special::LanemaskEq`].
    LanemaskLe,
    /// See [`Special::LanemaskEq`].
    LanemaskLt,
    /// See [`Special::LanemaskEq`].
    LanemaskGe,
    /// See [`Special::LanemaskEq`].
    LanemaskGt,
    /// `%dynamic_smem_size`
    DynamicSharedSize,
    /// `%total_smem_size`
    TotalSharedSize,
    /// `%aggr_smem_size`
    AggregateSharedSize,
    /// `%reserved_smem_offset_{begin,end,cap,0,1}`, by the value.
    ReservedShared(u32),
    /// `%envreg`: what a driver hands to a kernel beside its parameters, which is nothing here.
    Envreg,
    /// The address of the dynamic shared memory: `mov` of an `.extern .shared` array. 64 bits if `true`.
    DynamicShared(bool),
}

impl Special {
    /// Whether its value depends on the lane and the warp alone, rather than on the block alone.
    pub fn is_lane_wise(self) -> bool {
        matches!(
            self,
            Special::Tid(_)
                | Special::Laneid
                | Special::Warpid
                | Special::LanemaskEq
                | Special::LanemaskLe
                | Special::LanemaskLt
                | Special::LanemaskGe
                | Special::LanemaskGt
        )
    }
}

/// What a warp of an entry starts with.
#[derive(Default)]
pub(crate) struct Frame {
    /// First instruction.
    pub start: u32,
    /// Contents of the register file: constants, and poison elsewhere.
    pub template: Vec<u8>,
    /// Special registers and their slots.
    pub specials: Vec<(Special, u32)>,
    /// Bytes of local memory per lane.
    pub local_bytes: u32,
    /// Shape of the cluster that `.reqnctapercluster` demands.
    pub required_cluster: Option<[u32; 3]>,
    /// Alignment of dynamic shared memory.
    pub dynamic_align: u32,
    /// Registers of a thread, if `setmaxnreg` can change them.
    pub thread_registers: Option<u32>,
    /// The kernel uses the part of the reserved shared memory that is its to use.
    pub uses_reserved_shared: bool,
}
