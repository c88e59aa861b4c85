//! Stream capture: what becomes a node, what is refused, what must be joined.

use std::ptr::null_mut;

use ptx_sim::driver::abi::*;
use ptx_sim::driver::*;

use crate::{download, error, ok, start, stream, upload};

const MODE: u32 = CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

fn end(s: CUstream) -> (CUresult, CUgraph) {
    let mut graph = null_mut();
    // SAFETY: a pointer to a live handle.
    (unsafe { cuStreamEndCapture(s, &mut graph) }, graph)
}

fn status(s: CUstream) -> u32 {
    let mut status = 9;
    // SAFETY: a pointer to a live integer.
    ok(unsafe { cuStreamIsCapturing(s, &mut status) });
    status
}

fn event() -> CUevent {
    let mut event = null_mut();
    // SAFETY: a pointer to a live handle.
    ok(unsafe { cuEventCreate(&mut event, CU_EVENT_DISABLE_TIMING) });
    event
}

#[test]
fn work_is_recorded_and_does_not_run() {
    start();
    let a = upload(&[1_u32; 4]);
    let s = stream();
    ok(cuStreamBeginCapture_v2(s, MODE));
    assert_eq!(status(s), CU_STREAM_CAPTURE_STATUS_ACTIVE);
    ok(cuMemsetD32Async(a, 9, 4, s));
    assert_eq!(cuStreamBeginCapture_v2(s, MODE), CUDA_ERROR_ILLEGAL_STATE);
    let (result, graph) = end(s);
    ok(result);
    assert_eq!(status(s), CU_STREAM_CAPTURE_STATUS_NONE);
    assert_eq!(download::<u32>(a, 4), [1; 4]);
    ok(cuGraphDestroy(graph));
}

#[test]
fn forbidden_calls_invalidate() {
    start();
    let a = upload(&[1_u32; 4]);
    let calls: [(&str, CUresult, fn(CUstream) -> CUresult); 5] = [
        ("cuStreamSynchronize", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, |s| cuStreamSynchronize(s)),
        ("cuStreamQuery", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, |s| cuStreamQuery(s)),
        ("cuCtxSynchronize", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, |_| cuCtxSynchronize()),
        ("cuMemAlloc", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, |_| {
            let mut address = 0;
            // SAFETY: a pointer to a live address.
            unsafe { cuMemAlloc_v2(&mut address, 16) }
        }),
        ("cuMemAllocAsync", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, |s| {
            let mut address = 0;
            // SAFETY: a pointer to a live address.
            unsafe { cuMemAllocAsync(&mut address, 16, s) }
        }),
    ];
    for (name, expected, call) in calls {
        let s = stream();
        ok(cuStreamBeginCapture_v2(s, MODE));
        assert_eq!(call(s), expected, "{name}");
        assert_eq!(status(s), CU_STREAM_CAPTURE_STATUS_INVALIDATED, "{name}");
        assert_eq!(cuMemsetD32Async(a, 9, 4, s), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "{name}");
        assert_eq!(end(s), (CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, null_mut()), "{name}");
        assert_eq!(status(s), CU_STREAM_CAPTURE_STATUS_NONE, "{name}");
        ok(cuStreamSynchronize(s));
    }
}

#[test]
fn default_streams_do_not_capture() {
    start();
    assert_eq!(cuStreamBeginCapture_v2(null_mut(), MODE), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    assert!(error().contains("use a stream of your own"));
    assert_eq!(end(stream()).0, CUDA_ERROR_ILLEGAL_STATE);
}

#[test]
fn streams_fork_and_join() {
    start();
    let a = upload(&[0_u32; 4]);
    let (s, t, fork, join) = (stream(), stream(), event(), event());
    ok(cuStreamBeginCapture_v2(s, MODE));
    ok(cuMemsetD32Async(a, 1, 4, s));
    ok(cuEventRecord(fork, s));
    assert_eq!(cuEventQuery(event()), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    let _ = end(s);

    ok(cuStreamBeginCapture_v2(s, MODE));
    ok(cuMemsetD32Async(a, 1, 4, s));
    ok(cuEventRecord(fork, s));
    ok(cuStreamWaitEvent(t, fork, 0));
    assert_eq!(status(t), CU_STREAM_CAPTURE_STATUS_ACTIVE);
    ok(cuMemsetD32Async(a, 2, 2, t));
    ok(cuMemsetD32Async(a + 8, 3, 2, s));
    ok(cuEventRecord(join, t));
    ok(cuStreamWaitEvent(s, join, 0));
    let (result, graph) = end(s);
    ok(result);
    assert_eq!(status(t), CU_STREAM_CAPTURE_STATUS_NONE);
    let mut edges = 0;
    // SAFETY: null arrays ask for the count.
    ok(unsafe { cuGraphGetEdges(graph, null_mut(), null_mut(), &mut edges) });
    assert_eq!(edges, 2, "both later fills come after the first, in no order between them");
}

#[test]
fn a_fork_must_be_joined() {
    start();
    let a = upload(&[0_u32; 4]);
    let (s, t, fork) = (stream(), stream(), event());
    ok(cuStreamBeginCapture_v2(s, MODE));
    ok(cuMemsetD32Async(a, 1, 4, s));
    ok(cuEventRecord(fork, s));
    ok(cuStreamWaitEvent(t, fork, 0));
    ok(cuMemsetD32Async(a, 2, 2, t));
    assert_eq!(end(t).0, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
    let _ = end(s);

    ok(cuStreamBeginCapture_v2(s, MODE));
    ok(cuMemsetD32Async(a, 1, 4, s));
    ok(cuEventRecord(fork, s));
    ok(cuStreamWaitEvent(t, fork, 0));
    ok(cuMemsetD32Async(a, 2, 2, t));
    assert_eq!(end(s).0, CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    assert_eq!(status(t), CU_STREAM_CAPTURE_STATUS_NONE);
}

#[test]
fn outside_work_cannot_be_waited_for() {
    start();
    let (s, outside) = (stream(), event());
    ok(cuEventRecord(outside, stream()));
    ok(cuStreamBeginCapture_v2(s, MODE));
    assert_eq!(cuStreamWaitEvent(s, outside, 0), CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    assert_eq!(end(s).0, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
}

#[test]
fn a_blocking_stream_keeps_the_legacy_stream_out() {
    start();
    // A context of its own, as the legacy stream of the primary one is in use by other tests.
    let mut context = null_mut();
    // SAFETY: a pointer to a live handle.
    ok(unsafe { cuCtxCreate_v2(&mut context, 0, 0) });
    let a = upload(&[0_u32; 4]);
    let mut s = null_mut();
    // SAFETY: a pointer to a live handle.
    ok(unsafe { cuStreamCreate(&mut s, 0) });
    ok(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_RELAXED));
    assert_eq!(cuMemsetD32_v2(a, 1, 4), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    assert_eq!(end(s).0, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    ok(cuMemsetD32_v2(a, 1, 4));
    // SAFETY: it has no page-locked memory.
    ok(unsafe { cuCtxDestroy_v2(context) });
}
