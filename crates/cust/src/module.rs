//! Modules: PTX in, kernels out.

use std::ffi::{CStr, CString, c_uint, c_void};
use std::fmt;
use std::sync::Arc;

use crate::context::Context;
use crate::error::{CudaError, CudaResult, call};
use crate::sys::{self, CUfunction, CUmodule};

/// Room for the driver's complaints about a module.
const LOG_BYTES: usize = 16 << 10;

/// PTX that the driver has compiled for a context. Unloaded when it and all its functions are dropped.
#[derive(Clone)]
pub struct Module {
    inner: Arc<Inner>,
}

struct Inner {
    context: Context,
    raw: CUmodule,
}

// SAFETY: the handle may be used from any thread; the driver API is thread-safe.
unsafe impl Send for Inner {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for Inner {}

impl Module {
    /// Loads PTX into `context`. The error has what the driver's compiler, or the emulated device, says of
    /// it. Nothing of it runs before a launch.
    ///
    /// # Safety
    /// `ptx` must be what a compiler has written, or a text to which the driver is known to answer. NVIDIA's
    /// driver compiles it inside this process, and promises nothing for other bytes.
    pub unsafe fn from_ptx(context: &Context, ptx: &str) -> CudaResult<Module> {
        let driver = context.driver();
        let Ok(text) = CString::new(ptx) else {
            let mut error = CudaError::of(driver, "cuModuleLoadDataEx", sys::CUDA_ERROR_INVALID_IMAGE);
            error.meaning = "the PTX has a NUL in it".into();
            return Err(error);
        };
        let _current = context.enter()?;
        let mut log = vec![0_u8; LOG_BYTES];
        let mut options = [sys::CU_JIT_ERROR_LOG_BUFFER, sys::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), LOG_BYTES as *mut c_void];
        let mut raw = std::ptr::null_mut();
        // SAFETY: the image is NUL-terminated, and its text is the caller's contract; there are as many
        // options as values, and the log has its size.
        let loaded = unsafe {
            call!(
                driver,
                cuModuleLoadDataEx(
                    &mut raw,
                    text.as_ptr().cast(),
                    options.len() as c_uint,
                    options.as_mut_ptr(),
                    values.as_mut_ptr(),
                )
            )
        };
        loaded.map_err(|mut error| {
            let log = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy);
            if let Some(log) =
                log.ok().filter(|log| !log.trim().is_empty() && !error.meaning.contains(log.trim()))
            {
                error.meaning = format!("{}: {}", error.meaning, log.trim());
            }
            error
        })?;
        Ok(Module { inner: Arc::new(Inner { context: context.clone(), raw }) })
    }

    /// Its kernel `name`.
    pub fn function(&self, name: &str) -> CudaResult<Function> {
        let Inner { context, raw: module } = &*self.inner;
        let mut raw = std::ptr::null_mut();
        // A name with a NUL is no kernel's: the driver finds none that is empty.
        let text = CString::new(name).unwrap_or_default();
        let _current = context.enter()?;
        // SAFETY: `raw` is a valid place for one handle, the name is NUL-terminated, and the module is
        // loaded.
        unsafe { call!(context.driver(), cuModuleGetFunction(&mut raw, *module, text.as_ptr())) }?;
        Ok(Function { module: self.clone(), raw })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Ok(_current) = self.context.enter() else { return };
        let _ = self.context.relaxed(|| {
            // SAFETY: loaded by `from_ptx`, unloaded once: every function of it held a clone. That none of
            // them is still to run is the contract of `Stream::launch`.
            unsafe { call!(self.context.driver(), cuModuleUnload(self.raw)) }
        });
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "module {:?} in {:?}", self.inner.raw, self.inner.context)
    }
}

/// A kernel of a [`Module`], which it keeps loaded.
#[derive(Clone, Debug)]
pub struct Function {
    module: Module,
    raw: CUfunction,
}

// SAFETY: the handle may be used from any thread while its module is loaded, which this keeps.
unsafe impl Send for Function {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for Function {}

impl Function {
    /// The `CUfunction`.
    pub fn as_raw(&self) -> CUfunction {
        self.raw
    }

    /// The context that it is loaded into.
    pub fn context(&self) -> &Context {
        &self.module.inner.context
    }

    /// Its static shared memory, bytes.
    pub fn static_shared(&self) -> CudaResult<u32> {
        let (context, mut bytes) = (self.context(), 0);
        let _current = context.enter()?;
        let attribute = sys::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        // SAFETY: `bytes` is a valid place for one int, and the function's module is loaded.
        unsafe { call!(context.driver(), cuFuncGetAttribute(&mut bytes, attribute, self.raw)) }?;
        Ok(bytes as u32)
    }

    /// Allows it `bytes` bytes of dynamic shared memory.
    pub fn allow_dynamic_shared(&self, bytes: u32) -> CudaResult<()> {
        let context = self.context();
        let _current = context.enter()?;
        let attribute = sys::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // A number that does not fit becomes one that the driver refuses.
        let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
        // SAFETY: the function's module is loaded.
        unsafe { call!(context.driver(), cuFuncSetAttribute(self.raw, attribute, bytes)) }
    }
}
