//! What a stream executes and a graph records: kernels, copies, fills and host functions.

use std::ffi::{c_uint, c_void};
use std::mem::MaybeUninit;
use std::sync::Arc;

use super::abi::*;
use super::context;
use super::control::{self, LaunchRecord};
use super::module::Function;
use super::state::{Failure, Outcome, device};
use crate::{Chain, FaultKind, Launch};

/// An address in the memory of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HostAddress(pub usize);

/// A kernel with everything it needs to run.
#[derive(Clone)]
pub(super) struct KernelCall {
    pub function: Arc<Function>,
    /// The handle the caller named the function by.
    pub handle: usize,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cluster: [u32; 3],
    pub dynamic_shared: u32,
    pub programmatic: bool,
    pub cooperative: bool,
    /// The parameter block.
    pub params: Vec<u8>,
}

/// One unit of stream-ordered work.
pub(super) enum Work {
    Kernel(KernelCall),
    HostToDevice { dst: u64, src: HostAddress, bytes: usize },
    DeviceToHost { dst: HostAddress, src: u64, bytes: usize },
    DeviceToDevice { dst: u64, src: u64, bytes: usize },
    HostToHost { dst: HostAddress, src: HostAddress, bytes: usize },
    Fill { dst: u64, pattern: [u8; 4], width: usize, count: usize },
    Host { function: unsafe extern "C" fn(*mut c_void), data: usize },
}

impl Work {
    /// `CUgraphNodeType` of a node with this work.
    pub fn node_type(&self) -> c_uint {
        match self {
            Work::Kernel(_) => CU_GRAPH_NODE_TYPE_KERNEL,
            Work::Fill { .. } => CU_GRAPH_NODE_TYPE_MEMSET,
            Work::Host { .. } => CU_GRAPH_NODE_TYPE_HOST,
            _ => CU_GRAPH_NODE_TYPE_MEMCPY,
        }
    }

    /// Does it, now. `chain`: what has run before in its stream.
    ///
    /// # Safety
    /// Host addresses are valid for their lengths, for reading or writing as the work needs, and a host
    /// function may be called with its data: what the CUDA API asks of a caller until the work is done.
    pub unsafe fn run(&self, chain: &mut Chain, from_graph: bool) -> Outcome {
        let machine = &device()?.machine;
        match self {
            Work::Kernel(call) => return call.run(chain, from_graph),
            Work::HostToDevice { dst, src, bytes } => {
                // SAFETY: the caller promises that the range can be read.
                machine.write(*dst, unsafe { std::slice::from_raw_parts(src.0 as *const u8, *bytes) })?;
            }
            Work::DeviceToHost { dst, src, bytes } => {
                // SAFETY: the caller promises that the range can be written and that nobody else uses it, but
                // not that anybody has written it before.
                let dst = unsafe { std::slice::from_raw_parts_mut(dst.0 as *mut MaybeUninit<u8>, *bytes) };
                machine.read_new(*src, dst)?;
            }
            Work::DeviceToDevice { dst, src, bytes } => machine.copy(*dst, *src, *bytes as u64)?,
            Work::HostToHost { dst, src, bytes } => {
                // SAFETY: the caller promises both ranges; `copy` allows them to overlap.
                unsafe { std::ptr::copy(src.0 as *const u8, dst.0 as *mut u8, *bytes) }
            }
            Work::Fill { dst, pattern, width, count } => {
                machine.fill(*dst, &pattern[..*width], *count as u64)?
            }
            // SAFETY: the caller promises that the function may be called with this data.
            Work::Host { function, data } => unsafe { function(*data as *mut c_void) },
        }
        chain.interrupt();
        Ok(())
    }
}

impl KernelCall {
    fn run(&self, chain: &mut Chain, from_graph: bool) -> Outcome {
        let (seed, workers) = control::next_launch();
        let launch = Launch {
            module: &self.function.module.module,
            entry: &self.function.entry.name,
            grid: self.grid,
            block: self.block,
            cluster: self.cluster,
            dynamic_shared: self.dynamic_shared,
            cooperative: self.cooperative,
            params: &self.params,
            seed,
            workers,
        };
        let result = device()?.machine.launch_in(chain, self.programmatic, &launch);
        control::record(LaunchRecord {
            kernel: self.function.entry.name.clone(),
            grid: self.grid,
            block: self.block,
            cluster: self.cluster,
            dynamic_shared: self.dynamic_shared,
            programmatic: self.programmatic,
            from_graph,
            seed,
            counters: result.as_ref().ok().cloned(),
        });
        match result {
            Ok(_) => Ok(()),
            Err(fault) => {
                let text = fault.to_string();
                let code = code_of(fault.kind);
                control::set_last_fault(text.clone());
                if fault.kind != FaultKind::InvalidLaunch && !control::forgives_faults() {
                    context::break_down(self.function.module.context, code, &text);
                }
                Err(Failure { code, text })
            }
        }
    }
}

/// The result code nearest to what a GPU would report.
fn code_of(kind: FaultKind) -> CUresult {
    match kind {
        FaultKind::InvalidLaunch => CUDA_ERROR_INVALID_VALUE,
        FaultKind::OutOfBounds | FaultKind::UseAfterFree => CUDA_ERROR_ILLEGAL_ADDRESS,
        FaultKind::Misaligned => CUDA_ERROR_MISALIGNED_ADDRESS,
        FaultKind::Assertion => CUDA_ERROR_ASSERT,
        FaultKind::Deadlock => CUDA_ERROR_LAUNCH_TIMEOUT,
        FaultKind::InvalidOperand => CUDA_ERROR_ILLEGAL_INSTRUCTION,
        // What a GPU would let pass, with wrong results at some time: an unspecified failure.
        _ => CUDA_ERROR_LAUNCH_FAILED,
    }
}
