//! Driver functions that `cust` 0.3.2 does not wrap or that are newer than the header it was made from, through
//! the same door. A driver too old for one of them answers `CUDA_ERROR_NOT_SUPPORTED`.
//!
//! Handles are plain pointers, so those of `cust` (`stream.as_inner().cast()`) and of other crates fit.
//!
//! ```no_run
//! use cuda_driver::sys::*;
//!
//! # fn launch(function: CUfunction, stream: CUstream, params: *mut *mut std::ffi::c_void) {
//! let mut attributes = [CUlaunchAttribute::programmatic_stream_serialization(true)];
//! let config = CUlaunchConfig {
//!     grid_dim: [132, 1, 1],
//!     block_dim: [256, 1, 1],
//!     shared_mem_bytes: 0,
//!     stream,
//!     attrs: attributes.as_mut_ptr(),
//!     num_attrs: 1,
//! };
//! // SAFETY: the kernel's parameters are what `params` points to.
//! let result = unsafe { cuLaunchKernelEx(&config, function, params, std::ptr::null_mut()) };
//! assert_eq!(result, CUDA_SUCCESS);
//! # }
//! ```

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};

pub use ptx_sim::driver::abi::*;

macro_rules! functions {
    ($($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?);)*) => {
        // SAFETY: the trampolines define these symbols, and the signatures are those of cuda.h.
        unsafe extern "C" {
            $(
                $(#[$doc])*
                ///
                /// # Safety
                /// Pointers must be valid for what the CUDA driver API says is read or written there.
                pub fn $name($($argument: $type),*) -> CUresult;
            )*
        }
    };
}

functions! {
    /// The version of the driver API, as 1000 * major + 10 * minor.
    fn cuDriverGetVersion(version: *mut c_int);
    /// One line on a result code; see [`error_text`].
    fn cuGetErrorString(error: CUresult, text: *mut *const c_char);
    /// The name of a result code; see [`error_name`].
    fn cuGetErrorName(error: CUresult, text: *mut *const c_char);
    /// The address of a driver function by its name without suffix. From the emulated device, null for what
    /// it does not implement.
    fn cuGetProcAddress_v2(
        symbol: *const c_char,
        function: *mut *mut c_void,
        cuda_version: c_int,
        flags: c_ulonglong,
        status: *mut c_uint,
    );
    /// Loads PTX, with log buffers among the options; see [`load_module`].
    fn cuModuleLoadDataEx(
        module: *mut CUmodule,
        image: *const c_void,
        num_options: c_uint,
        options: *mut c_uint,
        option_values: *mut *mut c_void,
    );
    /// Reads one number about a function (`CU_FUNC_ATTRIBUTE_*`).
    fn cuFuncGetAttribute(value: *mut c_int, attribute: c_uint, function: CUfunction);
    /// Sets what a function may do (`CU_FUNC_ATTRIBUTE_*`).
    fn cuFuncSetAttribute(function: CUfunction, attribute: c_uint, value: c_int);
    /// Blocks of a kernel that one SM can hold.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut c_int,
        function: CUfunction,
        block_threads: c_int,
        dynamic_shared: usize,
    );
    /// Launches a kernel with attributes: clusters, programmatic dependent launch.
    fn cuLaunchKernelEx(
        config: *const CUlaunchConfig,
        function: CUfunction,
        kernel_params: *mut *mut c_void,
        extra: *mut *mut c_void,
    );
    /// From here the stream's work becomes a graph instead of running.
    fn cuStreamBeginCapture_v2(stream: CUstream, mode: c_uint);
    /// Ends a capture and gives its graph.
    fn cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph);
    /// Whether a stream is capturing (`CU_STREAM_CAPTURE_STATUS_*`).
    fn cuStreamIsCapturing(stream: CUstream, status: *mut c_uint);
    /// Makes a graph ready to run.
    fn cuGraphInstantiateWithFlags(exec: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong);
    /// Runs a graph.
    fn cuGraphLaunch(exec: CUgraphExec, stream: CUstream);
    /// Destroys an executable graph.
    fn cuGraphExecDestroy(exec: CUgraphExec);
    /// Destroys a graph.
    fn cuGraphDestroy(graph: CUgraph);
    /// The nodes of a graph, or with null how many there are.
    fn cuGraphGetNodes(graph: CUgraph, nodes: *mut CUgraphNode, count: *mut usize);
    /// What kind of node a node is (`CU_GRAPH_NODE_TYPE_*`).
    fn cuGraphNodeGetType(node: CUgraphNode, kind: *mut c_uint);
    /// What a pointer points to.
    fn cuPointerGetAttribute(value: *mut c_void, attribute: c_uint, pointer: CUdeviceptr);
    /// Describes a tiled tensor for the TMA unit.
    fn cuTensorMapEncodeTiled(
        map: *mut CUtensorMap,
        data_type: c_uint,
        rank: c_uint,
        address: *mut c_void,
        global_dim: *const u64,
        global_strides: *const u64,
        box_dim: *const u32,
        element_strides: *const u32,
        interleave: c_uint,
        swizzle: c_uint,
        l2_promotion: c_uint,
        out_of_bounds_fill: c_uint,
    );
}

/// The driver's line on a result code.
pub fn error_text(error: CUresult) -> String {
    // SAFETY: the function writes a static text or null.
    describe(error, |text| unsafe { cuGetErrorString(error, text) })
}

/// NVIDIA's name of a result code, such as `CUDA_ERROR_INVALID_VALUE`.
pub fn error_name(error: CUresult) -> String {
    // SAFETY: the function writes a static text or null.
    describe(error, |text| unsafe { cuGetErrorName(error, text) })
}

fn describe(error: CUresult, ask: impl FnOnce(*mut *const c_char) -> CUresult) -> String {
    let mut text = std::ptr::null();
    let result = ask(&mut text);
    if !result.is_success() || text.is_null() {
        return format!("CUDA error {}", error.0);
    }
    // SAFETY: on success the driver gives a NUL-terminated text that lives as long as the process.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Room for the driver's complaints about a module.
const LOG_BYTES: usize = 16 << 10;

/// Loads a module from PTX text into the current context. Release it with `cuModuleUnload`.
///
/// # Errors
/// The result code, and the text that the driver's compiler, or the emulator, left about it.
pub fn load_module(ptx: &CStr) -> Result<CUmodule, (CUresult, String)> {
    let mut log = vec![0_u8; LOG_BYTES];
    let mut options = [CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast::<c_void>(), LOG_BYTES as *mut c_void];
    let mut module = std::ptr::null_mut();
    // SAFETY: the image is NUL-terminated; there are as many options as values, and the log has its size.
    let result = unsafe {
        cuModuleLoadDataEx(
            &mut module,
            ptx.as_ptr().cast(),
            options.len() as c_uint,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    if result.is_success() {
        return Ok(module);
    }
    let text = CStr::from_bytes_until_nul(&log).map(|text| text.to_string_lossy().trim().to_owned());
    match text {
        Ok(text) if !text.is_empty() => Err((result, text)),
        _ => Err((result, error_text(result))),
    }
}
