//! What names mean: special registers, and variables in global and constant memory.

use std::collections::HashMap;
use std::sync::Arc;

use crate::code::Special;
use crate::ptx::ast::{Init, Source, Space, Variable};
use crate::state::memory::GlobalMemory;

/// A variable, by where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Symbol {
    /// Address in global memory (of `.const` variables too).
    Global(u64),
    /// Offset in the block's shared window.
    Shared(u32),
    /// The array that dynamic shared memory begins with.
    DynamicShared,
    /// Offset in a lane's local memory.
    Local(u32),
    /// A parameter of a device function or of a call: offset and size in local memory.
    Param(u32, u32),
    /// Offset in the entry's parameter block.
    EntryParam(u32),
}

/// The special register of that name, if its value is known when a warp starts, and its width.
pub(crate) fn special(name: &str) -> Option<(Special, u32)> {
    let name = name.strip_prefix('%')?;
    let (base, dimension) = match name.split_once('.') {
        Some((base, "x")) => (base, 0),
        Some((base, "y")) => (base, 1),
        Some((base, "z")) => (base, 2),
        Some(_) => return None,
        None => (name, usize::MAX),
    };
    let special = if dimension < 3 {
        match base {
            "tid" => Special::Tid(dimension),
            "ntid" => Special::Ntid(dimension),
            "ctaid" => Special::Ctaid(dimension),
            "nctaid" => Special::Nctaid(dimension),
            "clusterid" => Special::Clusterid(dimension),
            "nclusterid" => Special::Nclusterid(dimension),
            "cluster_ctaid" => Special::ClusterCtaid(dimension),
            "cluster_nctaid" => Special::ClusterNctaid(dimension),
            _ => return None,
        }
    } else {
        match base {
            "laneid" => Special::Laneid,
            "warpid" => Special::Warpid,
            "nwarpid" => Special::Nwarpid,
            "smid" => Special::Smid,
            "nsmid" => Special::Nsmid,
            "gridid" => return Some((Special::Gridid, 64)),
            "lanemask_eq" => Special::LanemaskEq,
            "lanemask_le" => Special::LanemaskLe,
            "lanemask_lt" => Special::LanemaskLt,
            "lanemask_ge" => Special::LanemaskGe,
            "lanemask_gt" => Special::LanemaskGt,
            "cluster_ctarank" => Special::ClusterCtarank,
            "cluster_nctarank" => Special::ClusterNctarank,
            "dynamic_smem_size" => Special::DynamicSharedSize,
            "total_smem_size" => Special::TotalSharedSize,
            "aggr_smem_size" => Special::AggregateSharedSize,
            _ => return None,
        }
    };
    Some((special, 32))
}

/// Special registers that change: name to width, and for the timers which part of them.
pub(crate) fn timer(name: &str) -> Option<(&'static str, u32)> {
    match name {
        "%clock" => Some(("clock", 32)),
        "%clock64" => Some(("clock", 64)),
        "%clock_hi" => Some(("zero", 32)),
        "%globaltimer" => Some(("timer", 64)),
        "%globaltimer_lo" => Some(("timer", 32)),
        "%globaltimer_hi" => Some(("timer", 33)),
        _ => None,
    }
}

/// Global and constant variables of a module, in memory.
pub(crate) struct Globals<'a>(HashMap<&'a str, (u64, u64)>);

impl<'a> Globals<'a> {
    /// Allocates and initialises them. On failure, the line and the reason.
    pub fn allocate(source: &Source<'a>, memory: &Arc<GlobalMemory>) -> Result<Globals<'a>, (u32, String)> {
        let variables =
            || source.variables.iter().filter(|v| matches!(v.space, Space::Global | Space::Const));
        let mut globals = Globals(HashMap::new());
        for variable in variables() {
            if variable.external {
                return Err((variable.line, format!("external variable `{}` is not defined", variable.name)));
            }
            let base = memory.alloc(variable.bytes).map_err(|e| (variable.line, e.to_string()))?;
            globals.0.insert(variable.name, (base, variable.bytes));
        }
        for variable in variables() {
            if let Err(reason) = globals.initialise(variable, memory) {
                globals.0.values().for_each(|(base, _)| {
                    // Allocated above, and known to nobody else.
                    let _ = memory.free(*base);
                });
                return Err((variable.line, reason));
            }
        }
        Ok(globals)
    }

    fn initialise(&self, variable: &Variable<'a>, memory: &GlobalMemory) -> Result<(), String> {
        // Without an initialiser, variables are zero.
        let mut bytes = vec![0; variable.bytes as usize];
        let size = variable.ty.bytes() as usize;
        for (at, init) in variable.init.iter().enumerate() {
            let find =
                |name: &str| self.address(name).ok_or_else(|| format!("`{name}` is not a global variable"));
            let value = match init {
                Init::Value(value) => *value,
                Init::Address(name, offset, _) => find(name)?.wrapping_add(*offset as u64),
                Init::Masked(name, offset, mask) => {
                    let address = find(name)?.wrapping_add(*offset as u64);
                    (address & mask) >> mask.trailing_zeros()
                }
            };
            bytes[at * size..(at + 1) * size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
        let (base, _) = self.0[variable.name];
        memory.write(base, &bytes).map_err(|e| e.to_string())
    }

    /// Address of a variable.
    pub fn address(&self, name: &str) -> Option<u64> {
        self.0.get(name).map(|(base, _)| *base)
    }

    /// Name to address and size.
    pub fn addresses(&self) -> HashMap<String, (u64, u64)> {
        self.0.iter().map(|(name, place)| (name.to_string(), *place)).collect()
    }
}
