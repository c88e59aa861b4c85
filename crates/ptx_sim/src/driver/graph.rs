//! Graphs: work with dependencies, recorded by stream capture or built node by node, run as often as wanted.
//!
//! A launch runs the nodes one after another in an order that the dependencies allow, drawn from the calling
//! thread's seed: a dependency that was forgotten shows.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{c_char, c_uint, c_ulonglong, c_void};
use std::sync::{Arc, LazyLock, Mutex};

use super::abi::*;
use super::capture;
use super::context::current;
use super::control;
use super::launch::{Shape, prepare};
use super::state::{Outcome, Registry, api, fail, give, lock, new_handle};
use super::stream::continued;
use super::work::{KernelCall, Work};
use crate::Chain;

/// One node: its work and the nodes that must run before it, by index in the graph; all come before it there.
#[derive(Clone)]
pub(super) struct Node {
    handle: usize,
    work: Arc<Work>,
    pub dependencies: BTreeSet<usize>,
}

impl Node {
    pub fn new(work: Arc<Work>, dependencies: BTreeSet<usize>) -> Self {
        Node { handle: new_handle(), work, dependencies }
    }
}

struct Graph {
    nodes: Mutex<Vec<Node>>,
}

/// A graph made ready to run: a copy, which later changes of the graph do not reach.
struct Executable {
    nodes: Vec<Node>,
}

/// A node as its handle shows it, with the pointer array that `cuGraphKernelNodeGetParams` gives out.
struct NodeRecord {
    graph: usize,
    work: Arc<Work>,
    /// Addresses of the parameters in the work's parameter block.
    param_pointers: Vec<usize>,
}

static GRAPHS: Registry<Graph> = Registry::new("graph");
static EXECUTABLES: Registry<Executable> = Registry::new("executable graph");
static NODES: LazyLock<Mutex<HashMap<usize, NodeRecord>>> = LazyLock::new(Mutex::default);

/// Makes a graph of captured nodes and gives its handle.
pub(super) fn register(nodes: Vec<Node>) -> CUgraph {
    let graph = GRAPHS.insert(Arc::new(Graph { nodes: Mutex::new(nodes.clone()) }));
    for node in &nodes {
        remember(graph, node);
    }
    graph
}

fn remember(graph: CUgraph, node: &Node) {
    let param_pointers = match &*node.work {
        Work::Kernel(call) => param_pointers(call),
        _ => Vec::new(),
    };
    let record = NodeRecord { graph: graph as usize, work: node.work.clone(), param_pointers };
    lock(&NODES).insert(node.handle, record);
}

fn param_pointers(call: &KernelCall) -> Vec<usize> {
    let base = call.params.as_ptr() as usize;
    call.function.entry.params.iter().map(|param| base + param.offset as usize).collect()
}

/// Makes an empty graph.
///
/// # Safety
/// As every function here: pointers are valid for what the CUDA driver API says is read or written there.
pub unsafe extern "C" fn cuGraphCreate(out: *mut CUgraph, flags: c_uint) -> CUresult {
    api("cuGraphCreate", || {
        if flags != 0 || out.is_null() {
            return fail(CUDA_ERROR_INVALID_VALUE, "flags must be 0 and phGraph not null");
        }
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "phGraph", register(Vec::new())) }
    })
}

/// Destroys a graph and its nodes; executables made from it stay.
pub extern "C" fn cuGraphDestroy(handle: CUgraph) -> CUresult {
    api("cuGraphDestroy", || {
        GRAPHS.remove(handle)?;
        lock(&NODES).retain(|_, node| node.graph != handle as usize);
        Ok(())
    })
}

/// Adds a kernel to a graph.
///
/// # Safety
/// As [`cuGraphCreate`].
pub unsafe extern "C" fn cuGraphAddKernelNode(
    out: *mut CUgraphNode,
    handle: CUgraph,
    dependencies: *const CUgraphNode,
    count: usize,
    params: *const CUDA_KERNEL_NODE_PARAMS,
) -> CUresult {
    api("cuGraphAddKernelNode", || {
        let graph = GRAPHS.get(handle)?;
        if params.is_null() || out.is_null() || (count > 0 && dependencies.is_null()) {
            return fail(CUDA_ERROR_INVALID_VALUE, "phGraphNode, dependencies or nodeParams is null");
        }
        // SAFETY: not null, and then valid for a read by the caller's promise.
        let params = unsafe { &*params };
        let shape = Shape::plain(params.grid_dim, params.block_dim, params.shared_mem_bytes);
        // SAFETY: the caller's promise about the parameter arrays.
        let call = unsafe { prepare(params.func, shape, params.kernel_params, params.extra)? };
        let mut nodes = lock(&graph.nodes);
        let mut before = BTreeSet::new();
        for i in 0..count {
            // SAFETY: the array has that many handles.
            let wanted = unsafe { *dependencies.add(i) } as usize;
            match nodes.iter().position(|node| node.handle == wanted) {
                Some(index) => before.insert(index),
                None => {
                    return fail(
                        CUDA_ERROR_INVALID_VALUE,
                        format!("dependencies[{i}] is not a node of the graph"),
                    );
                }
            };
        }
        let node = Node::new(Arc::new(Work::Kernel(call)), before);
        remember(handle, &node);
        let node_handle = node.handle;
        nodes.push(node);
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "phGraphNode", node_handle as CUgraphNode) }
    })
}

/// Adds a kernel to a graph.
///
/// # Safety
/// As [`cuGraphCreate`].
pub unsafe extern "C" fn cuGraphAddKernelNode_v2(
    out: *mut CUgraphNode,
    handle: CUgraph,
    dependencies: *const CUgraphNode,
    count: usize,
    params: *const CUDA_KERNEL_NODE_PARAMS_v2,
) -> CUresult {
    // SAFETY: the same contract; the parameters begin with those of the older function.
    unsafe { cuGraphAddKernelNode(out, handle, dependencies, count, params.cast()) }
}

/// The nodes of a graph, or how many there are if `nodes` is null.
///
/// # Safety
/// As [`cuGraphCreate`].
pub unsafe extern "C" fn cuGraphGetNodes(
    handle: CUgraph,
    nodes_out: *mut CUgraphNode,
    count: *mut usize,
) -> CUresult {
    api("cuGraphGetNodes", || {
        let graph = GRAPHS.get(handle)?;
        let nodes = lock(&graph.nodes);
        // SAFETY: the caller's pointers are valid for the counted elements.
        unsafe {
            give_list(count, nodes.len(), |i| {
                if nodes_out.is_null() {
                    false
                } else {
                    nodes_out
                        .add(i)
                        .write(nodes.get(i).map_or(std::ptr::null_mut(), |node| node.handle as CUgraphNode));
                    true
                }
            })
        }
    })
}

/// The dependencies of a graph as pairs, or how many there are if `from` and `to` are null.
///
/// # Safety
/// As [`cuGraphCreate`].
pub unsafe extern "C" fn cuGraphGetEdges(
    handle: CUgraph,
    from: *mut CUgraphNode,
    to: *mut CUgraphNode,
    count: *mut usize,
) -> CUresult {
    api("cuGraphGetEdges", || {
        let graph = GRAPHS.get(handle)?;
        let nodes = lock(&graph.nodes);
        let edges: Vec<(usize, usize)> = nodes
            .iter()
            .flat_map(|node| node.dependencies.iter().map(|&before| (nodes[before].handle, node.handle)))
            .collect();
        // SAFETY: the caller's pointers are valid for the counted elements.
        unsafe {
            give_list(count, edges.len(), |i| {
                if from.is_null() || to.is_null() {
                    false
                } else {
                    let (before, after) = edges.get(i).copied().unwrap_or((0, 0));
                    from.add(i).write(before as CUgraphNode);
                    to.add(i).write(after as CUgraphNode);
                    true
                }
            })
        }
    })
}

/// The counted-array convention of the graph queries: without an array `*count` becomes the number there is;
/// with one, `*count` elements are written, nulls past the last, and `*count` becomes how many were real.
///
/// # Safety
/// `count` is null or valid for reads and writes; `write(i)` may be called for i below `*count`.
unsafe fn give_list(count: *mut usize, there: usize, write: impl Fn(usize) -> bool) -> Outcome {
    if count.is_null() {
        return fail(CUDA_ERROR_INVALID_VALUE, "the count is null");
    }
    // SAFETY: not null, and then valid by the caller's promise.
    let room = unsafe { *count };
    let all_written = (0..room).all(write);
    let result = if all_written && room > 0 { there.min(room) } else { there };
    // SAFETY: as above.
    unsafe { give(count, "count", result) }
}

/// What kind of node a node is.
///
/// # Safety
/// As [`cuGraphCreate`].
pub unsafe extern "C" fn cuGraphNodeGetType(handle: CUgraphNode, out: *mut c_uint) -> CUresult {
    api("cuGraphNodeGetType", || {
        let kind = with_node(handle, |node| Ok(node.work.node_type()))?;
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "type", kind) }
    })
}

fn with_node<T>(handle: CUgraphNode, f: impl FnOnce(&NodeRecord) -> Outcome<T>) -> Outcome<T> {
    match lock(&NODES).get(&(handle as usize)) {
        Some(node) => f(node),
        None => fail(CUDA_ERROR_INVALID_VALUE, format!("{handle:p} is not a node of a live graph")),
    }
}

/// The launch of a kernel node. The parameter pointers stay valid as long as the graph.
///
/// # Safety
/// As [`cuGraphCreate`].
pub unsafe extern "C" fn cuGraphKernelNodeGetParams(
    handle: CUgraphNode,
    out: *mut CUDA_KERNEL_NODE_PARAMS,
) -> CUresult {
    api("cuGraphKernelNodeGetParams", || {
        let params = with_node(handle, |node| {
            let Work::Kernel(call) = &*node.work else {
                return fail(CUDA_ERROR_INVALID_VALUE, "the node is not a kernel");
            };
            Ok(CUDA_KERNEL_NODE_PARAMS {
                func: call.handle as CUfunction,
                grid_dim: call.grid,
                block_dim: call.block,
                shared_mem_bytes: call.dynamic_shared,
                kernel_params: node.param_pointers.as_ptr() as *mut *mut c_void,
                extra: std::ptr::null_mut(),
            })
        })?;
        // SAFETY: the caller's pointer is valid for a write.
        unsafe { give(out, "nodeParams", params) }
    })
}

/// The launch of a kernel node. The parameter pointers stay valid as long as the graph.
///
/// # Safety
/// As [`cuGraphCreate`].
pub unsafe extern "C" fn cuGraphKernelNodeGetParams_v2(
    handle: CUgraphNode,
    out: *mut CUDA_KERNEL_NODE_PARAMS_v2,
) -> CUresult {
    // SAFETY: the same contract; the parameters begin with those of the older function.
    let result = unsafe { cuGraphKernelNodeGetParams(handle, out.cast()) };
    if result.is_success() {
        // SAFETY: success says that `out` is not null, and then it is valid for writes.
        unsafe {
            (*out).kern = std::ptr::null_mut();
            (*out).ctx = std::ptr::null_mut();
        }
    }
    result
}

fn instantiate(handle: CUgraph) -> Outcome<CUgraphExec> {
    let nodes = lock(&GRAPHS.get(handle)?.nodes).clone();
    Ok(EXECUTABLES.insert(Arc::new(Executable { nodes })))
}

/// Makes a graph ready to run.
///
/// # Safety
/// As [`cuGraphCreate`].
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(
    out: *mut CUgraphExec,
    handle: CUgraph,
    _flags: c_ulonglong,
) -> CUresult {
    // SAFETY: the caller's pointer is valid for a write.
    api("cuGraphInstantiateWithFlags", || unsafe { give(out, "phGraphExec", instantiate(handle)?) })
}

/// Makes a graph ready to run; there is nothing to log.
///
/// # Safety
/// As [`cuGraphCreate`]; the error node and the log may be null.
pub unsafe extern "C" fn cuGraphInstantiate_v2(
    out: *mut CUgraphExec,
    handle: CUgraph,
    error_node: *mut CUgraphNode,
    log: *mut c_char,
    log_bytes: usize,
) -> CUresult {
    api("cuGraphInstantiate_v2", || {
        // SAFETY: the caller's pointers are null or valid for writes.
        unsafe {
            if !error_node.is_null() {
                give(error_node, "phErrorNode", std::ptr::null_mut())?;
            }
            if !log.is_null() && log_bytes > 0 {
                give(log, "logBuffer", 0)?;
            }
            give(out, "phGraphExec", instantiate(handle)?)
        }
    })
}

/// Prepares the launch of a graph, which needs no preparation.
pub extern "C" fn cuGraphUpload(handle: CUgraphExec, stream: CUstream) -> CUresult {
    api("cuGraphUpload", || {
        current()?;
        capture::forbid_in(stream)?;
        EXECUTABLES.get(handle).map(drop)
    })
}

/// Runs a graph.
///
/// # Safety
/// Host memory that its nodes name is still valid for them.
pub unsafe extern "C" fn cuGraphLaunch(handle: CUgraphExec, stream: CUstream) -> CUresult {
    api("cuGraphLaunch", || {
        current()?;
        if stream as usize == 0 || stream as usize == CU_STREAM_LEGACY {
            capture::forbid_legacy_stream()?;
        }
        capture::forbid_in(stream)?;
        let graph = EXECUTABLES.get(handle)?;
        // A graph begins when the stream's work has ended, and what follows when the graph has.
        let mut chain = Chain::new();
        let mut last = None;
        let mut pending: Vec<usize> = (0..graph.nodes.len()).collect();
        let mut done = BTreeSet::new();
        while !pending.is_empty() {
            let ready: Vec<usize> = (0..pending.len())
                .filter(|&at| graph.nodes[pending[at]].dependencies.is_subset(&done))
                .collect();
            let at = ready[control::choose(ready.len())];
            let index = pending.remove(at);
            let node = &graph.nodes[index];
            // Edges are programmatic only from one node to the next of a chain.
            if last.is_none() || !node.dependencies.iter().copied().eq(last) {
                chain.interrupt();
            }
            // SAFETY: the caller's promise.
            unsafe { node.work.run(&mut chain, true)? };
            last = Some(index);
            done.insert(index);
        }
        continued(stream, Chain::interrupt)
    })
}

/// Destroys an executable graph.
pub extern "C" fn cuGraphExecDestroy(handle: CUgraphExec) -> CUresult {
    api("cuGraphExecDestroy", || EXECUTABLES.remove(handle).map(drop))
}
