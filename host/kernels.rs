//! The compiled kernels: the PTX of each family, what each kernel uses, and what the host calls them by.
//!
//! All of it is compiled and generated from `kernels-gpu` and committed in `host/kernels`; `build.rs` says
//! when it is compiled instead. `launchers` has a constant for each kernel, its arguments as a struct, and
//! the numbers, kinds and functions that the device side gives the host. None of them is written again here.

use crate::Result;
use crate::gpu::device::Device;
use crate::gpu::family::Family;
use crate::gpu::launch::KernelText;

/// What is generated of the device crate's records; see `cuda_builder::launchers`.
#[allow(
    clippy::undocumented_unsafe_blocks,
    reason = "generated: fields, threads and waits are those of the records in the PTX, which is of the same build"
)]
pub(crate) mod launchers {
    use super::module;
    use crate::gpu::launch::{Arguments, DevicePtr, Kernel, TensorMap};

    include!(concat!(env!("FP8_MOE_KERNELS"), "/launchers.rs"));
}

include!(concat!(env!("FP8_MOE_KERNELS"), "/summaries.rs"));

/// What one kernel uses, as its source declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelSummary {
    /// The entry's name in the PTX.
    pub name: &'static str,
    /// Threads per block.
    pub threads: u32,
    /// Blocks that fit on one SM at a time.
    pub min_blocks: u32,
    /// Bytes of static shared memory per block.
    pub static_shared: u32,
    /// Where its entry begins and ends in the family's PTX.
    text: (usize, usize),
}

/// The PTX of `family`: what the entries share, then the entry of every kernel.
pub fn ptx(family: Family) -> &'static str {
    match family {
        Family::Sm89 => include_str!(concat!(env!("FP8_MOE_KERNELS"), "/kernels-gpu.sm_89.ptx")),
        Family::Sm90a => include_str!(concat!(env!("FP8_MOE_KERNELS"), "/kernels-gpu.sm_90a.ptx")),
    }
}

/// The PTX of one kernel of `family` as a module of its own; none if the family has no such kernel.
pub fn module(family: Family, kernel: &str) -> Option<String> {
    let (ptx, kernels) = (ptx(family), summaries(family));
    let index = kernels.binary_search_by_key(&kernel, |summary| summary.name).ok()?;
    let (start, end) = kernels[index].text;
    let shared = kernels.iter().map(|summary| summary.text.0).min()?;
    Some([&ptx[..shared], &ptx[start..end]].concat())
}

/// The kernels of `family`, by name.
pub fn summaries(family: Family) -> &'static [KernelSummary] {
    match family {
        Family::Sm89 => SM_89,
        Family::Sm90a => SM_90A,
    }
}

impl Device {
    /// Loads all kernels now, on as many threads as there are cores, so that no batch size has to wait for
    /// its own later.
    ///
    /// # Errors
    /// If the driver refuses a kernel.
    pub fn load_kernels(&self) -> Result<()> {
        let texts = summaries(self.family()).iter().map(|kernel| KernelText { name: kernel.name, module });
        self.load(&texts.collect::<Vec<_>>())
    }
}
