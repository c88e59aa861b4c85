//! The driver's types and constants, and the [`Table`] of its functions. Names are NVIDIA's, from `cuda.h`.
#![allow(non_snake_case, non_camel_case_types, clippy::upper_case_acronyms)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::fmt;

/// What a driver function returns: 0, or why it failed.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub struct CUresult(pub c_uint);

impl CUresult {
    /// Whether the call succeeded.
    pub const fn is_success(self) -> bool {
        self.0 == 0
    }
}

macro_rules! results {
    ($($name:ident = $code:literal;)*) => {
        $(
            /// The result code of this name.
            pub const $name: CUresult = CUresult($code);
        )*
    };
}

results! {
    CUDA_SUCCESS = 0;
    CUDA_ERROR_INVALID_VALUE = 1;
    CUDA_ERROR_OUT_OF_MEMORY = 2;
    CUDA_ERROR_NO_DEVICE = 100;
    CUDA_ERROR_INVALID_DEVICE = 101;
    CUDA_ERROR_INVALID_IMAGE = 200;
    CUDA_ERROR_INVALID_PTX = 218;
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222;
    CUDA_ERROR_INVALID_HANDLE = 400;
    CUDA_ERROR_NOT_READY = 600;
    CUDA_ERROR_ILLEGAL_ADDRESS = 700;
    CUDA_ERROR_LAUNCH_TIMEOUT = 702;
    CUDA_ERROR_ASSERT = 710;
    CUDA_ERROR_HARDWARE_STACK_ERROR = 714;
    CUDA_ERROR_ILLEGAL_INSTRUCTION = 715;
    CUDA_ERROR_MISALIGNED_ADDRESS = 716;
    CUDA_ERROR_INVALID_ADDRESS_SPACE = 717;
    CUDA_ERROR_INVALID_PC = 718;
    CUDA_ERROR_LAUNCH_FAILED = 719;
    CUDA_ERROR_NOT_SUPPORTED = 801;
}

/// A device's number.
pub type CUdevice = c_int;
/// An address in device memory.
pub type CUdeviceptr = u64;
/// A context.
pub type CUcontext = *mut c_void;
/// A loaded module.
pub type CUmodule = *mut c_void;
/// A kernel of a loaded module.
pub type CUfunction = *mut c_void;
/// A stream; null is the legacy default stream of the current context.
pub type CUstream = *mut c_void;
/// An event.
pub type CUevent = *mut c_void;
/// A graph that cannot run yet.
pub type CUgraph = *mut c_void;
/// A graph that can run.
pub type CUgraphExec = *mut c_void;
/// A node of a graph.
pub type CUgraphNode = *mut c_void;

/// An event that takes no time stamp, and so costs less.
pub const CU_EVENT_DISABLE_TIMING: c_uint = 2;

/// Potentially unsafe calls of this thread alone are refused during a capture.
pub const CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: c_uint = 1;
/// Nothing is refused during a capture.
pub const CU_STREAM_CAPTURE_MODE_RELAXED: c_uint = 2;
/// The stream is not being captured.
pub const CU_STREAM_CAPTURE_STATUS_NONE: c_uint = 0;

/// A node that launches a kernel.
pub const CU_GRAPH_NODE_TYPE_KERNEL: c_uint = 0;

/// Static shared memory of a function, bytes.
pub const CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: c_uint = 1;
/// Dynamic shared memory that a function is allowed, bytes.
pub const CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: c_uint = 8;

/// Option of a module's load: where to put messages of errors.
pub const CU_JIT_ERROR_LOG_BUFFER: c_uint = 5;
/// Option of a module's load: the size of that buffer.
pub const CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES: c_uint = 6;

/// Launch attribute: blocks of a cluster.
pub const CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION: c_uint = 4;
/// Launch attribute: all blocks are resident at once.
pub const CU_LAUNCH_ATTRIBUTE_COOPERATIVE: c_uint = 2;
/// Launch attribute: the kernel may begin before its predecessor in the stream has ended.
pub const CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION: c_uint = 6;

/// One attribute of an extended launch: an id, and 64 bytes whose meaning follows from it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CUlaunchAttribute {
    /// `CU_LAUNCH_ATTRIBUTE_*`.
    pub id: c_uint,
    /// Nothing.
    pub pad: [u8; 4],
    /// The value.
    pub value: CUlaunchAttributeValue,
}

/// The value of a launch attribute.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub union CUlaunchAttributeValue {
    /// All bytes.
    pub pad: [u8; 64],
    /// Of [`CU_LAUNCH_ATTRIBUTE_COOPERATIVE`].
    pub cooperative: c_int,
    /// Of [`CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION`].
    pub cluster_dim: [c_uint; 3],
    /// Of [`CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`].
    pub programmatic_stream_serialization_allowed: c_int,
}

impl fmt::Debug for CUlaunchAttributeValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CUlaunchAttributeValue { .. }")
    }
}

/// The argument of `cuLaunchKernelEx`.
#[repr(C)]
#[derive(Debug)]
pub struct CUlaunchConfig {
    /// Blocks of the grid.
    pub grid_dim: [c_uint; 3],
    /// Threads of a block.
    pub block_dim: [c_uint; 3],
    /// Dynamic shared memory of a block.
    pub shared_mem_bytes: c_uint,
    /// Where to launch.
    pub stream: CUstream,
    /// Attributes.
    pub attrs: *mut CUlaunchAttribute,
    /// How many.
    pub num_attrs: c_uint,
}

/// 128 opaque bytes that describe a tensor to the TMA unit.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct CUtensorMap {
    /// The bytes.
    pub opaque: [u64; 16],
}

const _: () = {
    assert!(size_of::<CUlaunchAttribute>() == 72);
    assert!(size_of::<CUlaunchConfig>() == 56);
    assert!(size_of::<CUtensorMap>() == 128);
};

macro_rules! table {
    // `$d` is a dollar sign.
    (($d:tt) $($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?);)*) => {
        /// The driver's functions, one pointer each. Those whose names end in `_v2` are what `cuda.h` calls
        /// by the name without it.
        #[derive(Clone, Copy)]
        #[non_exhaustive]
        pub struct Table {
            $($(#[$doc])* pub $name: unsafe extern "system" fn($($argument: $type),*) -> CUresult,)*
        }

        impl fmt::Debug for Table {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "Table of {} functions", Table::NAMES.len())
            }
        }

        impl Table {
            /// The functions' names, as the driver exports them.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];

            /// Fills the table, asking `lookup` for the address of each function. The error is the name of
            /// the first that it does not have.
            ///
            /// # Safety
            /// `lookup` must give, for each name, null or the address of a function of the meaning and
            /// signature that NVIDIA's driver has under it, which stays there as long as the process.
            pub unsafe fn fill(lookup: impl Fn(&CStr) -> *const c_void) -> Result<Table, &'static str> {
                Ok(Table {
                    $($name: {
                        const NAME: &[u8] = concat!(stringify!($name), "\0").as_bytes();
                        const TEXT: &CStr = match CStr::from_bytes_with_nul(NAME) {
                            Ok(name) => name,
                            Err(_) => panic!("a name has no NUL"),
                        };
                        let address = lookup(TEXT);
                        if address.is_null() {
                            return Err(stringify!($name));
                        }
                        // SAFETY: by the caller's contract this is a function of that signature.
                        unsafe {
                            std::mem::transmute::<
                                *const c_void,
                                unsafe extern "system" fn($($type),*) -> CUresult,
                            >(address)
                        }
                    },)*
                })
            }
        }

        /// `driver_function!(name, m, ..)` is `m! { fn name(argument: type, ..) .. }`, with the signature that
        /// the driver's function of that name has: for functions that take its place ([`Driver::with`]). Types
        /// are named as in this module, and of `std::ffi`; both are to be in scope.
        ///
        /// [`Driver::with`]: crate::Driver::with
        #[macro_export]
        macro_rules! driver_function {
            $(($name, $d callback:ident $d(, $d more:tt)*) => {
                $d callback! { fn $name($($argument: $type),*) $d($d more)* }
            };)*
        }
    };
}

table! { ($)
    /// Starts the driver.
    fn cuInit(flags: c_uint);
    /// The CUDA version of the driver, 1000 * major + 10 * minor.
    fn cuDriverGetVersion(version: *mut c_int);
    /// One line on a result code.
    fn cuGetErrorString(error: CUresult, text: *mut *const c_char);
    /// NVIDIA's name of a result code.
    fn cuGetErrorName(error: CUresult, text: *mut *const c_char);
    /// How many devices there are.
    fn cuDeviceGetCount(count: *mut c_int);
    /// The device of a number.
    fn cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
    /// A device's name.
    fn cuDeviceGetName(name: *mut c_char, length: c_int, device: CUdevice);
    /// A device's memory, bytes.
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
    /// One number about a device.
    fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, device: CUdevice);
    /// Makes a device's primary context, or retains it once more.
    fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    /// Gives one retention back.
    fn cuDevicePrimaryCtxRelease_v2(device: CUdevice);
    /// Makes a context, and makes it current.
    fn cuCtxCreate_v2(context: *mut CUcontext, flags: c_uint, device: CUdevice);
    /// Destroys a context.
    fn cuCtxDestroy_v2(context: CUcontext);
    /// The thread's current context.
    fn cuCtxGetCurrent(context: *mut CUcontext);
    /// Makes a context current, over the one that is.
    fn cuCtxPushCurrent_v2(context: CUcontext);
    /// Makes the context current that was before the last push.
    fn cuCtxPopCurrent_v2(context: *mut CUcontext);
    /// The device of the current context.
    fn cuCtxGetDevice(device: *mut CUdevice);
    /// Waits for all work of the current context.
    fn cuCtxSynchronize();
    /// Exchanges what captures forbid this thread.
    fn cuThreadExchangeStreamCaptureMode(mode: *mut c_uint);
    /// Free and total memory of the current context's device.
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    /// Allocates device memory.
    fn cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize);
    /// Frees device memory.
    fn cuMemFree_v2(address: CUdeviceptr);
    /// Allocates page-locked host memory.
    fn cuMemHostAlloc(memory: *mut *mut c_void, bytes: usize, flags: c_uint);
    /// Frees page-locked host memory.
    fn cuMemFreeHost(memory: *mut c_void);
    /// Copies from the host, in a stream's order.
    fn cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    /// Copies to the host, in a stream's order.
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    /// Copies in device memory, in a stream's order.
    fn cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
    /// Sets bytes of device memory, in a stream's order.
    fn cuMemsetD8Async(address: CUdeviceptr, byte: u8, bytes: usize, stream: CUstream);
    /// Loads a module into the current context.
    fn cuModuleLoadDataEx(
        module: *mut CUmodule,
        image: *const c_void,
        num_options: c_uint,
        options: *mut c_uint,
        option_values: *mut *mut c_void,
    );
    /// Unloads a module.
    fn cuModuleUnload(module: CUmodule);
    /// A kernel of a module.
    fn cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    /// One number about a function.
    fn cuFuncGetAttribute(value: *mut c_int, attribute: c_uint, function: CUfunction);
    /// Sets what a function may do.
    fn cuFuncSetAttribute(function: CUfunction, attribute: c_uint, value: c_int);
    /// Launches a kernel with attributes.
    fn cuLaunchKernelEx(
        config: *const CUlaunchConfig,
        function: CUfunction,
        kernel_params: *mut *mut c_void,
        extra: *mut *mut c_void,
    );
    /// Makes a stream in the current context.
    fn cuStreamCreate(stream: *mut CUstream, flags: c_uint);
    /// Destroys a stream, whose work goes on.
    fn cuStreamDestroy_v2(stream: CUstream);
    /// Waits for the work of a stream.
    fn cuStreamSynchronize(stream: CUstream);
    /// Whether the work of a stream is done.
    fn cuStreamQuery(stream: CUstream);
    /// Makes a stream wait for an event.
    fn cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint);
    /// Whether a stream is being captured.
    fn cuStreamIsCapturing(stream: CUstream, status: *mut c_uint);
    /// From here the stream's work becomes a graph instead of running.
    fn cuStreamBeginCapture_v2(stream: CUstream, mode: c_uint);
    /// Ends a capture and gives its graph.
    fn cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph);
    /// Makes an event.
    fn cuEventCreate(event: *mut CUevent, flags: c_uint);
    /// Destroys an event.
    fn cuEventDestroy_v2(event: CUevent);
    /// Puts an event behind the work of a stream.
    fn cuEventRecord(event: CUevent, stream: CUstream);
    /// Whether the work before an event is done.
    fn cuEventQuery(event: CUevent);
    /// Waits for the work before an event.
    fn cuEventSynchronize(event: CUevent);
    /// Milliseconds between two events.
    fn cuEventElapsedTime(milliseconds: *mut f32, start: CUevent, end: CUevent);
    /// The nodes of a graph, or with null how many there are.
    fn cuGraphGetNodes(graph: CUgraph, nodes: *mut CUgraphNode, count: *mut usize);
    /// What kind of node a node is.
    fn cuGraphNodeGetType(node: CUgraphNode, kind: *mut c_uint);
    /// Makes a graph ready to run.
    fn cuGraphInstantiateWithFlags(exec: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong);
    /// Runs a graph.
    fn cuGraphLaunch(exec: CUgraphExec, stream: CUstream);
    /// Destroys a graph that can run.
    fn cuGraphExecDestroy(exec: CUgraphExec);
    /// Destroys a graph that cannot.
    fn cuGraphDestroy(graph: CUgraph);
    /// Describes a tensor to the TMA unit.
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
