//! The decoded instructions of a module, and what a warp of each entry needs.

use crate::counters::Class;
use crate::exec::Inst;
use crate::fault::Place;

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

/// All code of a module.
#[derive(Default)]
pub(crate) struct Code {
    pub insts: Vec<Inst>,
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

impl Code {
    /// The registers that an instruction uses, as in the field of that name.
    pub fn touched(&self, pc: u32) -> &[u32] {
        let start = pc.checked_sub(1).map_or(0, |before| self.touches[before as usize]);
        &self.touched[start as usize..self.touches[pc as usize] as usize]
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
}
