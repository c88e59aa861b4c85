//! Graphs: captured or built, instantiated, launched again and again.

use std::ffi::c_void;
use std::ptr::null_mut;

use ptx_sim::driver::abi::*;
use ptx_sim::driver::*;

use crate::{download, function, load, ok, saxpy, start, stream, upload};

fn instantiate(graph: CUgraph) -> CUgraphExec {
    let mut exec = null_mut();
    // SAFETY: a pointer to a live handle.
    ok(unsafe { cuGraphInstantiateWithFlags(&mut exec, graph, 0) });
    exec
}

fn run(exec: CUgraphExec, stream: CUstream) {
    // SAFETY: these graphs name no host memory that is gone.
    ok(unsafe { cuGraphLaunch(exec, stream) });
}

#[test]
fn a_captured_graph_replays() {
    start();
    let module = load();
    let f = function(module, "saxpy");
    let (s, x, y) = (stream(), upload(&[1.0_f32; 300]), upload(&[0.0_f32; 300]));
    ok(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    ok(cuMemsetD32Async(y, 0, 300, s));
    ok(saxpy(f, s, y, x, 2.0, 300));
    ok(saxpy(f, s, y, x, 3.0, 300));
    let mut graph = null_mut();
    // SAFETY: a pointer to a live handle.
    ok(unsafe { cuStreamEndCapture(s, &mut graph) });

    let (mut count, mut nodes) = (0, [null_mut(); 8]);
    let mut kinds = Vec::new();
    // SAFETY: an array of as many handles as the count says.
    unsafe {
        ok(cuGraphGetNodes(graph, null_mut(), &mut count));
        assert_eq!(count, 3);
        count = nodes.len();
        ok(cuGraphGetNodes(graph, nodes.as_mut_ptr(), &mut count));
        assert_eq!(count, 3);
        for &node in &nodes[..3] {
            let mut kind = 99;
            ok(cuGraphNodeGetType(node, &mut kind));
            kinds.push(kind);
        }
        assert_eq!(cuGraphNodeGetType(nodes[3], &mut 0), CUDA_ERROR_INVALID_VALUE);
    }
    assert_eq!(kinds, [CU_GRAPH_NODE_TYPE_MEMSET, CU_GRAPH_NODE_TYPE_KERNEL, CU_GRAPH_NODE_TYPE_KERNEL]);

    let mut params = CUDA_KERNEL_NODE_PARAMS {
        func: null_mut(),
        grid_dim: [0; 3],
        block_dim: [0; 3],
        shared_mem_bytes: 9,
        kernel_params: null_mut(),
        extra: null_mut(),
    };
    // SAFETY: a pointer to a live structure; parameter 2 of saxpy is an f32.
    unsafe {
        ok(cuGraphKernelNodeGetParams(nodes[2], &mut params));
        assert_eq!((*params.kernel_params.add(2)).cast::<f32>().read(), 3.0);
        assert_eq!(cuGraphKernelNodeGetParams(nodes[0], &mut params), CUDA_ERROR_INVALID_VALUE);
    }
    assert_eq!((params.func, params.grid_dim, params.block_dim), (f, [2, 1, 1], [256, 1, 1]));

    let exec = instantiate(graph);
    ok(cuGraphDestroy(graph));
    ok(cuMemsetD32_v2(y, 0x4120_0000, 300));
    take_launch_log();
    for _ in 0..2 {
        run(exec, s);
        assert_eq!(download::<f32>(y, 300), [5.0; 300]);
    }
    let log = take_launch_log();
    assert_eq!(log.len(), 4);
    assert!(log.iter().all(|launch| launch.from_graph));
    ok(cuGraphExecDestroy(exec));
    assert_eq!(cuGraphExecDestroy(exec), CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn independent_nodes_run_in_any_order() {
    start();
    let module = load();
    let f = function(module, "saxpy");
    let (x, y) = (upload(&[1.0_f32]), upload(&[0.0_f32]));
    let (mut graph, mut node, mut one) = (null_mut(), null_mut(), 1_u32);
    // SAFETY: a pointer to a live handle.
    ok(unsafe { cuGraphCreate(&mut graph, 0) });
    let (mut px, mut py) = (x, y);
    for mut a in [1.0_f32, 2.0, 3.0, 4.0] {
        let mut values: [*mut c_void; 4] =
            [(&raw mut py).cast(), (&raw mut px).cast(), (&raw mut a).cast(), (&raw mut one).cast()];
        let params = CUDA_KERNEL_NODE_PARAMS {
            func: f,
            grid_dim: [1; 3],
            block_dim: [a as u32, 1, 1],
            shared_mem_bytes: 0,
            kernel_params: values.as_mut_ptr(),
            extra: null_mut(),
        };
        // SAFETY: four parameters, each pointing to a value of its type; no dependencies.
        ok(unsafe { cuGraphAddKernelNode(&mut node, graph, std::ptr::null(), 0, &params) });
    }
    let exec = instantiate(graph);
    let orders: std::collections::BTreeSet<Vec<u32>> = (0..20)
        .map(|seed| {
            set_seed(seed);
            take_launch_log();
            run(exec, null_mut());
            take_launch_log().iter().map(|launch| launch.block[0]).collect()
        })
        .collect();
    assert!(orders.len() > 5, "{orders:?}");
    assert_eq!(download::<f32>(y, 1), [200.0]);
}

#[test]
fn host_functions_run_in_their_place() {
    extern "C" fn count(data: *mut c_void) {
        // SAFETY: the test passes a pointer to a live integer.
        unsafe { *data.cast::<u32>() += 1 };
    }
    start();
    let s = stream();
    let mut calls = 0_u32;
    let data = (&raw mut calls).cast();
    // SAFETY: the function may be called with the integer, which outlives the graph.
    unsafe {
        ok(cuLaunchHostFunc(s, Some(count), data));
        ok(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
        ok(cuLaunchHostFunc(s, Some(count), data));
        let mut graph = null_mut();
        ok(cuStreamEndCapture(s, &mut graph));
        let exec = instantiate(graph);
        run(exec, s);
        run(exec, s);
    }
    assert_eq!(calls, 3);
}
