//! The CUDA driver API's binary interface: the types, handles and constants of `cuda.h` that the functions
//! of [`crate::driver`] take. Names and values are NVIDIA's; integers stand where C has enums, because a
//! newer caller may pass a value that this page does not list.
#![allow(non_camel_case_types, missing_docs)]

use std::ffi::{c_char, c_int, c_uint, c_void};

/// A device address.
pub type CUdeviceptr = u64;
/// A device ordinal.
pub type CUdevice = c_int;
pub type CUcontext = *mut c_void;
pub type CUmodule = *mut c_void;
pub type CUfunction = *mut c_void;
/// A module, as loaded independently of contexts.
pub type CUlibrary = *mut c_void;
/// A function of a library.
pub type CUkernel = *mut c_void;
pub type CUstream = *mut c_void;
pub type CUevent = *mut c_void;
pub type CUgraph = *mut c_void;
pub type CUgraphExec = *mut c_void;
pub type CUgraphNode = *mut c_void;
pub type CUhostFn = Option<unsafe extern "C" fn(*mut c_void)>;
pub type CUoccupancyB2DSize = Option<unsafe extern "C" fn(c_int) -> usize>;

/// What every driver function returns.
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
    ($($name:ident = $value:literal, $text:literal;)*) => {
        $(pub const $name: CUresult = CUresult($value);)*

        /// NVIDIA's name of a result code and one line that says what it means, both NUL-terminated.
        pub(crate) fn describe(result: CUresult) -> Option<(&'static [u8], &'static [u8])> {
            match result {
                $($name => Some((
                    concat!(stringify!($name), "\0").as_bytes(),
                    concat!($text, "\0").as_bytes(),
                )),)*
                _ => None,
            }
        }
    };
}

results! {
    CUDA_SUCCESS = 0, "no error";
    CUDA_ERROR_INVALID_VALUE = 1, "invalid argument";
    CUDA_ERROR_OUT_OF_MEMORY = 2, "out of memory";
    CUDA_ERROR_NOT_INITIALIZED = 3, "initialization error";
    CUDA_ERROR_DEINITIALIZED = 4, "driver shutting down";
    CUDA_ERROR_STUB_LIBRARY = 34, "CUDA driver is a stub library";
    CUDA_ERROR_NO_DEVICE = 100, "no CUDA-capable device is detected";
    CUDA_ERROR_INVALID_DEVICE = 101, "invalid device ordinal";
    CUDA_ERROR_INVALID_IMAGE = 200, "device kernel image is invalid";
    CUDA_ERROR_INVALID_CONTEXT = 201, "invalid device context";
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209, "no kernel image is available for execution on the device";
    CUDA_ERROR_UNSUPPORTED_LIMIT = 215, "limit is not supported on this architecture";
    CUDA_ERROR_INVALID_PTX = 218, "a PTX JIT compilation failed";
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222, "the provided PTX was compiled with an unsupported toolchain";
    CUDA_ERROR_INVALID_SOURCE = 300, "device kernel source is invalid";
    CUDA_ERROR_FILE_NOT_FOUND = 301, "file not found";
    CUDA_ERROR_INVALID_HANDLE = 400, "invalid resource handle";
    CUDA_ERROR_ILLEGAL_STATE = 401, "the operation cannot be performed in the present state";
    CUDA_ERROR_NOT_FOUND = 500, "named symbol not found";
    CUDA_ERROR_NOT_READY = 600, "device not ready";
    CUDA_ERROR_ILLEGAL_ADDRESS = 700, "an illegal memory access was encountered";
    CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES = 701, "too many resources requested for launch";
    CUDA_ERROR_LAUNCH_TIMEOUT = 702, "the launch timed out and was terminated";
    CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE = 708, "cannot set while device is active in this process";
    CUDA_ERROR_CONTEXT_IS_DESTROYED = 709, "context is destroyed";
    CUDA_ERROR_ASSERT = 710, "device-side assert triggered";
    CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED = 712, "part or all of the requested memory range is already mapped";
    CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED = 713, "pointer does not correspond to a registered memory region";
    CUDA_ERROR_ILLEGAL_INSTRUCTION = 715, "an illegal instruction was encountered";
    CUDA_ERROR_MISALIGNED_ADDRESS = 716, "misaligned address";
    CUDA_ERROR_INVALID_ADDRESS_SPACE = 717, "operation not supported on global/shared address space";
    CUDA_ERROR_LAUNCH_FAILED = 719, "unspecified launch failure";
    CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE = 720, "too many blocks in cooperative launch";
    CUDA_ERROR_NOT_PERMITTED = 800, "operation not permitted";
    CUDA_ERROR_NOT_SUPPORTED = 801, "operation not supported";
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900, "operation not permitted when stream is capturing";
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901, "operation failed due to a previous error during capture";
    CUDA_ERROR_STREAM_CAPTURE_MERGE = 902, "operation would result in a merge of separate capture sequences";
    CUDA_ERROR_STREAM_CAPTURE_UNMATCHED = 903, "capture was not ended in the same stream as it began";
    CUDA_ERROR_STREAM_CAPTURE_UNJOINED = 904, "capturing stream has unjoined work";
    CUDA_ERROR_STREAM_CAPTURE_ISOLATION = 905, "dependency created on uncaptured work in another stream";
    CUDA_ERROR_STREAM_CAPTURE_IMPLICIT = 906, "operation would make the legacy stream depend on a capturing blocking stream";
    CUDA_ERROR_CAPTURED_EVENT = 907, "operation not permitted on an event last recorded in a capturing stream";
    CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD = 908, "attempt to terminate a thread-local capture sequence from another thread";
    CUDA_ERROR_INVALID_CLUSTER_SIZE = 912, "an invalid cluster size was requested";
    CUDA_ERROR_UNKNOWN = 999, "unknown error";
}

/// `CUstream` values with a meaning of their own.
pub const CU_STREAM_LEGACY: usize = 1;
pub const CU_STREAM_PER_THREAD: usize = 2;
pub const CU_STREAM_NON_BLOCKING: c_uint = 1;

pub const CU_STREAM_CAPTURE_MODE_GLOBAL: c_uint = 0;
pub const CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: c_uint = 1;
pub const CU_STREAM_CAPTURE_MODE_RELAXED: c_uint = 2;
pub const CU_STREAM_CAPTURE_STATUS_NONE: c_uint = 0;
pub const CU_STREAM_CAPTURE_STATUS_ACTIVE: c_uint = 1;
pub const CU_STREAM_CAPTURE_STATUS_INVALIDATED: c_uint = 2;

pub const CU_EVENT_DISABLE_TIMING: c_uint = 2;

pub const CU_GRAPH_NODE_TYPE_KERNEL: c_uint = 0;
pub const CU_GRAPH_NODE_TYPE_MEMCPY: c_uint = 1;
pub const CU_GRAPH_NODE_TYPE_MEMSET: c_uint = 2;
pub const CU_GRAPH_NODE_TYPE_HOST: c_uint = 3;

pub const CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: c_uint = 0;
pub const CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: c_uint = 1;
pub const CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES: c_uint = 2;
pub const CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: c_uint = 3;
pub const CU_FUNC_ATTRIBUTE_NUM_REGS: c_uint = 4;
pub const CU_FUNC_ATTRIBUTE_PTX_VERSION: c_uint = 5;
pub const CU_FUNC_ATTRIBUTE_BINARY_VERSION: c_uint = 6;
pub const CU_FUNC_ATTRIBUTE_CACHE_MODE_CA: c_uint = 7;
pub const CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: c_uint = 8;
pub const CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: c_uint = 9;
pub const CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED: c_uint = 14;

pub const CU_JIT_INFO_LOG_BUFFER: c_uint = 3;
pub const CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES: c_uint = 4;
pub const CU_JIT_ERROR_LOG_BUFFER: c_uint = 5;
pub const CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES: c_uint = 6;

/// Keys of the `extra` array of a launch.
pub const CU_LAUNCH_PARAM_END: usize = 0;
pub const CU_LAUNCH_PARAM_BUFFER_POINTER: usize = 1;
pub const CU_LAUNCH_PARAM_BUFFER_SIZE: usize = 2;

pub const CU_LAUNCH_ATTRIBUTE_IGNORE: c_uint = 0;
pub const CU_LAUNCH_ATTRIBUTE_COOPERATIVE: c_uint = 2;
pub const CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION: c_uint = 4;
pub const CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE: c_uint = 5;
pub const CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION: c_uint = 6;
pub const CU_LAUNCH_ATTRIBUTE_PRIORITY: c_uint = 8;

/// One attribute of an extended launch: an id and a union of 64 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CUlaunchAttribute {
    pub id: c_uint,
    pub pad: [u8; 4],
    pub value: CUlaunchAttributeValue,
}

/// The value of a launch attribute; which field holds it follows from the id.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub union CUlaunchAttributeValue {
    pub pad: [u8; 64],
    pub cluster_dim: [c_uint; 3],
    pub programmatic_stream_serialization_allowed: c_int,
    pub cooperative: c_int,
    pub priority: c_int,
}

impl CUlaunchAttribute {
    const fn with(id: c_uint, fill: CUlaunchAttributeValue) -> Self {
        Self { id, pad: [0; 4], value: fill }
    }

    /// Blocks per cluster, by dimension.
    pub const fn cluster(dim: [c_uint; 3]) -> Self {
        let mut value = CUlaunchAttributeValue { pad: [0; 64] };
        value.cluster_dim = dim;
        Self::with(CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, value)
    }

    /// Lets the kernel start before the previous one in the stream has finished (it must then wait by
    /// `griddepcontrol.wait`).
    pub const fn programmatic_stream_serialization(allowed: bool) -> Self {
        let mut value = CUlaunchAttributeValue { pad: [0; 64] };
        value.programmatic_stream_serialization_allowed = allowed as c_int;
        Self::with(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, value)
    }

    /// All blocks of the grid must be resident at once.
    pub const fn cooperative(required: bool) -> Self {
        let mut value = CUlaunchAttributeValue { pad: [0; 64] };
        value.cooperative = required as c_int;
        Self::with(CU_LAUNCH_ATTRIBUTE_COOPERATIVE, value)
    }
}

/// The argument of `cuLaunchKernelEx`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CUlaunchConfig {
    pub grid_dim: [c_uint; 3],
    pub block_dim: [c_uint; 3],
    pub shared_mem_bytes: c_uint,
    pub stream: CUstream,
    pub attrs: *mut CUlaunchAttribute,
    pub num_attrs: c_uint,
}

/// The parameters of a kernel node.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CUDA_KERNEL_NODE_PARAMS {
    pub func: CUfunction,
    pub grid_dim: [c_uint; 3],
    pub block_dim: [c_uint; 3],
    pub shared_mem_bytes: c_uint,
    pub kernel_params: *mut *mut c_void,
    pub extra: *mut *mut c_void,
}

/// The parameters of a kernel node since CUDA 12: those above, and two ways to name a kernel that is not
/// loaded into a context yet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CUDA_KERNEL_NODE_PARAMS_v2 {
    pub v1: CUDA_KERNEL_NODE_PARAMS,
    pub kern: *mut c_void,
    pub ctx: CUcontext,
}

/// 128 opaque bytes that describe a tensor to the TMA unit.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct CUtensorMap {
    pub opaque: [u64; 16],
}

/// A UUID.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CUuuid {
    pub bytes: [c_char; 16],
}

const _: () = {
    assert!(size_of::<CUlaunchAttribute>() == 72);
    assert!(size_of::<CUlaunchConfig>() == 56);
    assert!(size_of::<CUDA_KERNEL_NODE_PARAMS>() == 56);
    assert!(size_of::<CUDA_KERNEL_NODE_PARAMS_v2>() == 72);
    assert!(size_of::<CUtensorMap>() == 128);
};
