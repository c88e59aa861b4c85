//! A loaded module: its entries and its global variables.

use std::collections::HashMap;
use std::sync::Arc;

use crate::code::Frame;
use crate::exec::Code;
use crate::fault::LoadError;
use crate::state::memory::GlobalMemory;

/// One kernel parameter's place in the packed parameter block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Name in the PTX.
    pub name: String,
    /// Offset in bytes from the start of the parameter block.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
    /// Alignment in bytes.
    pub align: u32,
}

/// One kernel of a module.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Name in the PTX.
    pub name: String,
    /// Parameters in order.
    pub params: Vec<Param>,
    /// Size of the packed parameter block in bytes.
    pub params_size: u32,
    /// Bound on threads per block from `.maxntid` or `.reqntid`.
    pub max_threads: Option<u32>,
    /// Exact block shape from `.reqntid`.
    pub required_threads: Option<[u32; 3]>,
    /// Blocks per SM asked for by `.minnctapersm`.
    pub min_blocks: Option<u32>,
    /// Bytes of statically declared shared memory.
    pub static_shared: u32,
    /// Bytes of local memory per thread.
    pub local_bytes: u32,
    /// A guess at 32-bit registers per thread: declared virtual registers, capped at 255.
    pub registers_estimate: u32,
}

/// PTX made ready to run on one [`crate::Machine`].
pub struct Module {
    pub(crate) target: String,
    pub(crate) entries: Vec<Entry>,
    /// Parallel to `entries`.
    pub(crate) frames: Vec<Frame>,
    /// Parallel to `entries`: why one cannot be launched.
    pub(crate) refusals: Vec<Option<LoadError>>,
    pub(crate) code: Code,
    pub(crate) globals: HashMap<String, (u64, u64)>,
    pub(crate) memory: Arc<GlobalMemory>,
}

impl Module {
    /// The entry of that name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.name == name)
    }

    /// Every entry, in the order of the PTX.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Why the entry of that name cannot be launched: it, or a function that it calls, uses what is not
    /// emulated.
    pub fn refusal(&self, name: &str) -> Option<&LoadError> {
        let at = self.entries.iter().position(|e| e.name == name)?;
        self.refusals[at].as_ref()
    }

    /// Address and size in bytes of a `.global` or `.const` variable.
    pub fn global(&self, name: &str) -> Option<(u64, u64)> {
        self.globals.get(name).copied()
    }

    /// What `.target` names, for example `sm_90a`.
    pub fn target(&self) -> &str {
        &self.target
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        for (address, _) in self.globals.values() {
            // The variables were allocated at load and nobody else may free them.
            let _ = self.memory.free(*address);
        }
    }
}
