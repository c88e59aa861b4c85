//! Graphs: captured work that runs with one call.

use std::fmt;

use crate::context::Context;
use crate::error::{CudaResult, call};
use crate::stream::Stream;
use crate::sys::{self, CUgraph, CUgraphExec};

/// What a capture has recorded, before it can run.
#[derive(Debug)]
pub struct Template {
    context: Context,
    raw: CUgraph,
}

impl Template {
    pub(crate) fn new(context: Context, raw: CUgraph) -> Template {
        Template { context, raw }
    }

    /// How many of its nodes launch a kernel.
    pub fn kernels(&self) -> CudaResult<usize> {
        let driver = self.context.driver();
        let _current = self.context.enter()?;
        let mut count = 0;
        // SAFETY: without an array the driver writes the number of nodes alone.
        unsafe { call!(driver, cuGraphGetNodes(self.raw, std::ptr::null_mut(), &mut count)) }?;
        let mut nodes = vec![std::ptr::null_mut(); count];
        if count > 0 {
            // SAFETY: `nodes` has room for `count` handles.
            unsafe { call!(driver, cuGraphGetNodes(self.raw, nodes.as_mut_ptr(), &mut count)) }?;
        }
        let mut kernels = 0;
        for node in nodes {
            let mut kind = 0;
            // SAFETY: the node is the graph's, and `kind` is a valid place for one number.
            unsafe { call!(driver, cuGraphNodeGetType(node, &mut kind)) }?;
            kernels += usize::from(kind == sys::CU_GRAPH_NODE_TYPE_KERNEL);
        }
        Ok(kernels)
    }

    /// Makes it ready to run.
    pub fn instantiate(&self) -> CudaResult<GraphExec> {
        let _current = self.context.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` is a valid place for one handle, and the graph is alive. Its kernels are loaded, by
        // the contract of `Stream::launch`; its memory is looked at by a launch alone.
        unsafe { call!(self.context.driver(), cuGraphInstantiateWithFlags(&mut raw, self.raw, 0)) }?;
        Ok(GraphExec { context: self.context.clone(), raw })
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        let Ok(_current) = self.context.enter() else { return };
        if !self.raw.is_null() {
            // SAFETY: the graph came from a capture and is destroyed once; instantiated graphs do not refer
            // to it.
            let _ = unsafe { call!(self.context.driver(), cuGraphDestroy(self.raw)) };
        }
    }
}

/// A graph that is ready to run.
pub struct GraphExec {
    context: Context,
    raw: CUgraphExec,
}

// SAFETY: the handle may be used from any thread. The driver wants launches of one graph one at a time: that
// is the contract of `launch`, the only function that takes it but for the drop.
unsafe impl Send for GraphExec {}
// SAFETY: as above.
unsafe impl Sync for GraphExec {}

impl GraphExec {
    /// Enqueues the graph on a stream of the same driver; others are refused.
    ///
    /// # Safety
    /// What its nodes were captured with must hold again: memory that is allocated, and not used by others,
    /// until the stream has run them. No other thread may launch the graph at the same time.
    pub unsafe fn launch(&self, stream: &Stream) -> CudaResult<()> {
        if stream.driver() != self.context.driver() {
            return self.context.driver().check("cuGraphLaunch", sys::CUDA_ERROR_INVALID_HANDLE);
        }
        let _current = self.context.enter()?;
        // SAFETY: both are alive, and of one driver; the memory is the caller's contract.
        unsafe { call!(self.context.driver(), cuGraphLaunch(self.raw, stream.as_raw())) }
    }
}

impl Drop for GraphExec {
    fn drop(&mut self) {
        let Ok(_current) = self.context.enter() else { return };
        // SAFETY: instantiated once, destroyed once; the driver finishes launches that are still running.
        let _ = unsafe { call!(self.context.driver(), cuGraphExecDestroy(self.raw)) };
    }
}

impl fmt::Debug for GraphExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "graph {:?} of {:?}", self.raw, self.context)
    }
}
