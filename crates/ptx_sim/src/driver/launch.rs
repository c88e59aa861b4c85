//! Kernel launches: the limits that the driver checks, and the way of the arguments into the parameter block.
//!
//! ```text
//!   kernelParams ─▶ [ &a, &n, &x ]      one pointer per parameter, to a value of the parameter's size
//!                       │   │   │
//!   parameter block  [ a a a a a a a a | n n n n | x x x x ]     at the entry's offsets
//! ```

use std::ffi::{c_uint, c_void};
use std::sync::atomic::Ordering;

use super::abi::*;
use super::context::current;
use super::module::{Function, function_of};
use super::profile::{BLOCK_LIMIT, GRID_LIMIT, THREADS_PER_BLOCK};
use super::state::{Outcome, api, device, fail};
use super::stream::submit;
use super::work::{KernelCall, Work};

/// Blocks of a cluster without, and with, `NON_PORTABLE_CLUSTER_SIZE_ALLOWED`.
const CLUSTER_LIMIT: u32 = 8;
const LARGE_CLUSTER_LIMIT: u32 = 16;

/// How a kernel is to be launched, without its arguments.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cluster: [u32; 3],
    pub dynamic_shared: u32,
    pub programmatic: bool,
    pub cooperative: bool,
}

impl Shape {
    /// A launch without clusters and other attributes.
    pub fn plain(grid: [u32; 3], block: [u32; 3], dynamic_shared: u32) -> Self {
        Shape { grid, block, cluster: [1; 3], dynamic_shared, programmatic: false, cooperative: false }
    }
}

/// A kernel call that the device can run: shape checked, arguments copied.
///
/// # Safety
/// `params` and `extra` are null or as the CUDA API asks for this function.
pub(super) unsafe fn prepare(
    handle: CUfunction,
    shape: Shape,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Outcome<KernelCall> {
    let function = function_of(handle)?;
    check(&function, &shape)?;
    // SAFETY: the caller's promise.
    let params = unsafe { parameter_block(&function, params, extra)? };
    Ok(KernelCall {
        function,
        handle: handle as usize,
        grid: shape.grid,
        block: shape.block,
        cluster: shape.cluster,
        dynamic_shared: shape.dynamic_shared,
        programmatic: shape.programmatic,
        cooperative: shape.cooperative,
        params,
    })
}

fn check(function: &Function, shape: &Shape) -> Outcome {
    let name = &function.entry.name;
    let profile = &device()?.profile;
    let refuse = |what: String| fail(CUDA_ERROR_INVALID_VALUE, format!("kernel {name}: {what}"));
    for (axis, i) in ["x", "y", "z"].iter().zip(0..) {
        let (grid, block) = (shape.grid[i], shape.block[i]);
        if grid == 0 || grid > GRID_LIMIT[i] {
            return refuse(format!("{grid} blocks in {axis}: must be 1 to {}", GRID_LIMIT[i]));
        }
        if block == 0 || block > BLOCK_LIMIT[i] {
            return refuse(format!("{block} threads in {axis}: must be 1 to {}", BLOCK_LIMIT[i]));
        }
    }
    let threads: u32 = shape.block.iter().product();
    if threads > THREADS_PER_BLOCK {
        return refuse(format!("{threads} threads in a block: at most {THREADS_PER_BLOCK} are possible"));
    }
    if threads > function.max_threads() {
        return refuse(format!(
            "{threads} threads in a block: its .maxntid allows {}",
            function.max_threads()
        ));
    }
    if let Some(required) = function.entry.required_threads
        && required != shape.block
    {
        return refuse(format!("a block of {:?} threads: its .reqntid demands {required:?}", shape.block));
    }
    check_shared(function, shape.dynamic_shared)?;
    if shape.cluster != [1; 3] {
        check_cluster(function, shape)?;
    }
    if shape.cooperative {
        let blocks = shape.grid.iter().map(|&n| u64::from(n)).product::<u64>();
        let resident = function.blocks_per_sm(profile, threads, shape.dynamic_shared.into());
        let most = u64::from(resident) * u64::from(profile.sm_count);
        if blocks > most {
            return fail(
                CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE,
                format!("kernel {name}: {blocks} cooperating blocks, the device holds {most} at once"),
            );
        }
    }
    Ok(())
}

fn check_shared(function: &Function, dynamic: u32) -> Outcome {
    let name = &function.entry.name;
    let fixed = function.entry.static_shared;
    let most = device()?.profile.shared_per_block;
    if u64::from(fixed) + u64::from(dynamic) > u64::from(most) {
        return fail(
            CUDA_ERROR_INVALID_VALUE,
            format!(
                "kernel {name}: {fixed} + {dynamic} bytes of static and dynamic shared memory: at most {most} are possible"
            ),
        );
    }
    let allowed = function.dynamic_shared_limit();
    if dynamic > allowed {
        return fail(
            CUDA_ERROR_INVALID_VALUE,
            format!(
                "kernel {name}: {dynamic} bytes of dynamic shared memory: {allowed} are allowed until \
                 cuFuncSetAttribute(MAX_DYNAMIC_SHARED_SIZE_BYTES) raises it"
            ),
        );
    }
    Ok(())
}

fn check_cluster(function: &Function, shape: &Shape) -> Outcome {
    let name = &function.entry.name;
    let (major, minor) = device()?.profile.capability;
    if major < 9 {
        return fail(
            CUDA_ERROR_INVALID_CLUSTER_SIZE,
            format!("kernel {name}: clusters need compute capability 9.0, this device has {major}.{minor}"),
        );
    }
    let blocks: u64 = shape.cluster.iter().map(|&n| u64::from(n)).product();
    let large = function.large_clusters.load(Ordering::Relaxed);
    let most = if large { LARGE_CLUSTER_LIMIT } else { CLUSTER_LIMIT };
    if blocks == 0 || blocks > u64::from(most) {
        return fail(
            CUDA_ERROR_INVALID_CLUSTER_SIZE,
            format!("kernel {name}: clusters of {:?} blocks: 1 to {most} are possible", shape.cluster),
        );
    }
    if shape.grid.iter().zip(shape.cluster).any(|(grid, cluster)| grid % cluster != 0) {
        return fail(
            CUDA_ERROR_INVALID_VALUE,
            format!(
                "kernel {name}: a grid of {:?} blocks is not whole clusters of {:?}",
                shape.grid, shape.cluster
            ),
        );
    }
    Ok(())
}

/// # Safety
/// As [`prepare`].
unsafe fn parameter_block(
    function: &Function,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Outcome<Vec<u8>> {
    let entry = &function.entry;
    let name = &entry.name;
    let size = entry.params_size as usize;
    if !extra.is_null() {
        if !params.is_null() {
            return fail(
                CUDA_ERROR_INVALID_VALUE,
                format!("kernel {name}: both kernelParams and extra are given"),
            );
        }
        // SAFETY: the caller's promise.
        return unsafe { packed_block(name, size, extra) };
    }
    let mut block = vec![0; size];
    if params.is_null() && !entry.params.is_empty() {
        return fail(
            CUDA_ERROR_INVALID_VALUE,
            format!("kernel {name}: kernelParams is null, it takes {}", entry.params.len()),
        );
    }
    for (i, param) in entry.params.iter().enumerate() {
        // SAFETY: there is one pointer per parameter.
        let value = unsafe { *params.add(i) };
        if value.is_null() {
            return fail(CUDA_ERROR_INVALID_VALUE, format!("kernel {name}: kernelParams[{i}] is null"));
        }
        let at = param.offset as usize;
        // SAFETY: each pointer is to a value of the parameter's size.
        let bytes = unsafe { std::slice::from_raw_parts(value.cast::<u8>(), param.size as usize) };
        block[at..at + bytes.len()].copy_from_slice(bytes);
    }
    Ok(block)
}

/// The parameter block from the key-value array of the `extra` form.
///
/// # Safety
/// `extra` is such an array, ended by `CU_LAUNCH_PARAM_END`.
unsafe fn packed_block(name: &str, size: usize, extra: *mut *mut c_void) -> Outcome<Vec<u8>> {
    let (mut buffer, mut bytes) = (None, None);
    let mut at = extra;
    loop {
        // SAFETY: the array goes on until its end key, which has not been seen yet.
        match unsafe { *at } as usize {
            CU_LAUNCH_PARAM_END => break,
            // SAFETY: a value follows each key.
            CU_LAUNCH_PARAM_BUFFER_POINTER => buffer = Some(unsafe { *at.add(1) }),
            // SAFETY: as above, and this one points to a size.
            CU_LAUNCH_PARAM_BUFFER_SIZE => bytes = Some(unsafe { *(*at.add(1)).cast::<usize>() }),
            key => {
                return fail(CUDA_ERROR_INVALID_VALUE, format!("kernel {name}: unknown key {key} in extra"));
            }
        }
        // SAFETY: behind the pair lies at least the end key.
        at = unsafe { at.add(2) };
    }
    let (Some(buffer), Some(bytes)) = (buffer, bytes) else {
        return fail(CUDA_ERROR_INVALID_VALUE, format!("kernel {name}: extra lacks the buffer or its size"));
    };
    if bytes < size || buffer.is_null() {
        return fail(
            CUDA_ERROR_INVALID_VALUE,
            format!("kernel {name}: a parameter buffer of {bytes} bytes, the kernel takes {size}"),
        );
    }
    // SAFETY: the caller's buffer has `bytes` bytes, which is at least `size`.
    Ok(unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), size) }.to_vec())
}

/// # Safety
/// As [`prepare`].
unsafe fn launch(
    handle: CUfunction,
    shape: Shape,
    stream: CUstream,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Outcome {
    current()?;
    // SAFETY: the caller's promise.
    let call = unsafe { prepare(handle, shape, params, extra)? };
    // SAFETY: a kernel touches no host memory.
    unsafe { submit(stream, Work::Kernel(call)) }
}

/// Launches a kernel.
///
/// # Safety
/// As every function here: pointers are valid for what the CUDA driver API says is read or written there.
pub unsafe extern "C" fn cuLaunchKernel(
    function: CUfunction,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    dynamic_shared: c_uint,
    stream: CUstream,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> CUresult {
    let shape = Shape::plain([grid_x, grid_y, grid_z], [block_x, block_y, block_z], dynamic_shared);
    // SAFETY: the caller's promise.
    api("cuLaunchKernel", || unsafe { launch(function, shape, stream, params, extra) })
}

/// Launches a kernel whose blocks may wait for each other.
///
/// # Safety
/// As [`cuLaunchKernel`].
pub unsafe extern "C" fn cuLaunchCooperativeKernel(
    function: CUfunction,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    dynamic_shared: c_uint,
    stream: CUstream,
    params: *mut *mut c_void,
) -> CUresult {
    let mut shape = Shape::plain([grid_x, grid_y, grid_z], [block_x, block_y, block_z], dynamic_shared);
    shape.cooperative = true;
    // SAFETY: the caller's promise.
    api("cuLaunchCooperativeKernel", || unsafe {
        launch(function, shape, stream, params, std::ptr::null_mut())
    })
}

/// Launches a kernel with attributes: clusters, cooperation, programmatic dependent launch (which here means
/// that the kernel runs after the one before it, as it must be able to).
///
/// # Safety
/// As [`cuLaunchKernel`].
pub unsafe extern "C" fn cuLaunchKernelEx(
    config: *const CUlaunchConfig,
    function: CUfunction,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> CUresult {
    api("cuLaunchKernelEx", || {
        if config.is_null() {
            return fail(CUDA_ERROR_INVALID_VALUE, "config is null");
        }
        // SAFETY: not null, and then valid for a read by the caller's promise.
        let config = unsafe { &*config };
        let mut shape = Shape::plain(config.grid_dim, config.block_dim, config.shared_mem_bytes);
        if config.num_attrs > 0 && config.attrs.is_null() {
            return fail(
                CUDA_ERROR_INVALID_VALUE,
                format!("{} attributes, but attrs is null", config.num_attrs),
            );
        }
        for i in 0..config.num_attrs as usize {
            // SAFETY: the array has that many attributes.
            let attribute = unsafe { &*config.attrs.add(i) };
            // SAFETY: which field of the union holds the value follows from the id; all bits are valid
            // integers.
            unsafe {
                match attribute.id {
                    CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION => shape.cluster = attribute.value.cluster_dim,
                    CU_LAUNCH_ATTRIBUTE_COOPERATIVE => shape.cooperative = attribute.value.cooperative != 0,
                    CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION => {
                        shape.programmatic = attribute.value.programmatic_stream_serialization_allowed != 0;
                    }
                    CU_LAUNCH_ATTRIBUTE_IGNORE
                    | CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE
                    | CU_LAUNCH_ATTRIBUTE_PRIORITY => {}
                    other => {
                        return fail(
                            CUDA_ERROR_NOT_SUPPORTED,
                            format!("launch attribute {other} is not implemented"),
                        );
                    }
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { launch(function, shape, config.stream, params, extra) }
    })
}
