//! What names mean: special registers, and variables in global and constant memory.

use std::collections::HashMap;
use std::sync::Arc;

use crate::code::Special;
use crate::ptx::ast::{Init, Source, Space, Variable};
use crate::state::memory::GlobalMemory;
use crate::state::shared_memory::{FIRST, RESERVED_FOR_KERNELS};

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
            "reserved_smem_offset_begin" => Special::ReservedShared(0),
            "reserved_smem_offset_end" | "reserved_smem_offset_cap" => Special::ReservedShared(FIRST),
            "reserved_smem_offset_0" => Special::ReservedShared(0),
            "reserved_smem_offset_1" => Special::ReservedShared(RESERVED_FOR_KERNELS),
            _ if base.strip_prefix("envreg").and_then(|n| n.parse().ok()).is_some_and(|n: u32| n < 32) => {
                Special::Envreg
            }
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
#[derive(Default)]
pub(crate) struct Globals<'a> {
    /// Address, size, and size of an element.
    places: HashMap<&'a str, (u64, u64, u32)>,
    /// Those that cannot be had, and why: a refusal of the functions that name them.
    refused: HashMap<&'a str, String>,
}

impl<'a> Globals<'a> {
    /// Allocates and initialises them. On failure, the line and the reason.
    pub fn allocate(source: &Source<'a>, memory: &Arc<GlobalMemory>) -> Result<Globals<'a>, (u32, String)> {
        let variables =
            || source.variables.iter().filter(|v| matches!(v.space, Space::Global | Space::Const));
        let mut globals = Globals::default();
        for (name, refusal) in &source.refused {
            globals.refused.insert(name, refusal.to_string());
        }
        for variable in variables() {
            if variable.external {
                let reason = format!("external variable `{}` is not defined", variable.name);
                globals.refused.insert(variable.name, reason);
                continue;
            }
            match memory.alloc(variable.bytes) {
                Ok(base) => {
                    let element = variable.ty.bytes() * variable.vector;
                    globals.places.insert(variable.name, (base, variable.bytes, element));
                }
                Err(error) => {
                    globals.free(memory);
                    return Err((variable.line, error.to_string()));
                }
            }
        }
        for variable in variables().filter(|variable| !variable.external) {
            if let Err(reason) = globals.initialise(variable, memory) {
                let reason = format!("variable `{}` of line {}: {reason}", variable.name, variable.line);
                globals.refused.insert(variable.name, reason);
            }
        }
        Ok(globals)
    }

    /// Gives their memory back.
    pub fn free(&self, memory: &GlobalMemory) {
        for (base, ..) in self.places.values() {
            // Allocated above, and known to nobody else.
            let _ = memory.free(*base);
        }
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
        let (base, ..) = self.places[variable.name];
        memory.write(base, &bytes).map_err(|e| e.to_string())
    }

    /// Address of a variable.
    pub fn address(&self, name: &str) -> Option<u64> {
        self.places.get(name).map(|(base, ..)| *base)
    }

    /// Bytes of an element of a variable.
    pub fn element(&self, name: &str) -> Option<u32> {
        self.places.get(name).map(|(.., element)| *element)
    }

    /// Why a variable cannot be had.
    pub fn refusal(&self, name: &str) -> Option<&str> {
        self.refused.get(name).map(String::as_str)
    }

    /// Name to address and size.
    pub fn addresses(&self) -> HashMap<String, (u64, u64)> {
        self.places.iter().map(|(name, &(base, bytes, _))| (name.to_string(), (base, bytes))).collect()
    }
}
