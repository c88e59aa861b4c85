//! The kernels that a device has loaded: each at its first use, those of a list side by side.
//!
//! The driver compiles the text of a kernel when it loads it, on the thread that asks, for 0.02 to 0.4 s. Of several kernels that
//! are known to be needed, each goes to a thread of its own, as far as there are cores.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;

use cust::context::{Context, CurrentContext};
use cust::module::Module;
use cust::sys::{self, CUfunction, CUfunction_attribute, CUstreamCaptureMode};

use crate::error::{Error, Result, check};
use crate::gpu::device::{Family, driver};

/// What the driver allows a function unasked: static and dynamic shared memory together, bytes.
const DEFAULT_SHARED: u32 = 48 * 1024;

/// The loaded kernels of a device.
pub(crate) struct Functions {
    family: Family,
    loaded: Mutex<HashMap<&'static str, Function>>,
}

/// A loaded kernel.
struct Function {
    raw: CUfunction,
    /// Holds this kernel alone: the driver compiles a module as a whole, and a program uses few of the kernels.
    _module: Module,
    /// Dynamic shared memory the function has been allowed so far.
    dynamic_shared: u32,
    static_shared: u32,
}

// SAFETY: the raw handles may be used from any thread while their context lives, in which the device keeps them.
unsafe impl Send for Function {}

impl Function {
    /// Loads the kernel `name` from its text into the current context.
    fn load(name: &'static str, ptx: &str) -> Result<Function> {
        let module = Module::from_ptx(ptx, &[]).map_err(driver("cuModuleLoadDataEx"))?;
        let raw = module.get_function(name).map_err(driver("cuModuleGetFunction"))?.to_raw();
        let mut fixed = 0;
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        // SAFETY: `fixed` is a valid place for one int, and the function is one of the module just loaded.
        check("cuFuncGetAttribute", unsafe { sys::cuFuncGetAttribute(&mut fixed, attribute, raw) })?;
        let static_shared = fixed as u32;
        Ok(Function { raw, _module: module, dynamic_shared: DEFAULT_SHARED - static_shared, static_shared })
    }
}

impl Functions {
    /// None of the kernels of `family`.
    pub fn new(family: Family) -> Functions {
        Functions { family, loaded: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<&'static str, Function>> {
        self.loaded.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The names of those that have been loaded.
    pub fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.lock().keys().copied().collect();
        names.sort_unstable();
        names
    }

    /// The kernel `name`, loaded into the current context at its first use and allowed to use `dynamic_shared` bytes of the
    /// `shared_per_block` that there are.
    pub fn get(&self, name: &'static str, dynamic_shared: u32, shared_per_block: u32) -> Result<CUfunction> {
        let mut loaded = self.lock();
        let function = match loaded.entry(name) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let text = self.text(name)?;
                entry.insert(while_capturing(|| Function::load(name, &text))?)
            }
        };
        if dynamic_shared > function.dynamic_shared {
            let most = shared_per_block - function.static_shared;
            if dynamic_shared > most {
                let rule = format!("must be at most {most}");
                return Err(Error::argument(name, "dynamic_shared_bytes", dynamic_shared, rule));
            }
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function handle belongs to the module beside it.
            let code = unsafe { sys::cuFuncSetAttribute(function.raw, attribute, dynamic_shared as i32) };
            check("cuFuncSetAttribute", code)?;
            function.dynamic_shared = dynamic_shared;
        }
        Ok(function.raw)
    }

    /// Loads those of `names` that are missing into `context`, which is current: side by side, the longest first. Whoever needs a
    /// kernel meanwhile waits.
    pub fn load(&self, context: &Context, names: &[&'static str]) -> Result<()> {
        let mut loaded = self.lock();
        let mut texts = HashMap::new();
        for name in names.iter().copied().filter(|&name| !loaded.contains_key(name)) {
            texts.insert(name, self.text(name)?);
        }
        let mut texts: Vec<_> = texts.into_iter().collect();
        texts.sort_unstable_by_key(|(name, text)| (Reverse(text.len()), *name));
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<(&'static str, Function)>> {
            let mut functions = Vec::new();
            // Relaxed: the number alone is shared.
            while let Some((name, text)) = texts.get(next.fetch_add(1, Ordering::Relaxed)) {
                functions.push((*name, while_capturing(|| Function::load(name, text))?));
            }
            Ok(functions)
        };
        let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
        let outcomes = thread::scope(|scope| {
            let help = || {
                CurrentContext::set_current(context).map_err(driver("cuCtxSetCurrent"))?;
                work()
            };
            // Where the system has no thread to give, the work remains to the others; this one takes part.
            let helpers: Vec<_> = (1..cores.min(texts.len()))
                .filter_map(|_| thread::Builder::new().spawn_scoped(scope, help).ok())
                .collect();
            let mut outcomes = vec![work()];
            outcomes.extend(helpers.into_iter().map(|helper| helper.join().expect("loading does not panic")));
            outcomes
        });
        let mut first_error = Ok(());
        for outcome in outcomes {
            match outcome {
                Ok(functions) => loaded.extend(functions),
                Err(error) => first_error = first_error.and(Err(error)),
            }
        }
        first_error
    }

    /// The PTX of a kernel.
    fn text(&self, name: &'static str) -> Result<String> {
        crate::kernels::module(self.family, name).ok_or_else(|| {
            Error::argument(name, "family", self.family, "must be one that this kernel is compiled for")
        })
    }
}

/// Calls `load` with what a capture forbids its thread allowed: loading is nothing that a graph records. (The driver may put
/// it off until the function is asked for, so that belongs in here too.) Another thread's capture may forbid as much to this one.
fn while_capturing<T>(load: impl FnOnce() -> Result<T>) -> Result<T> {
    let exchange = |mode: &mut CUstreamCaptureMode| {
        // SAFETY: `mode` is a valid place for one mode, which is read and written.
        check("cuThreadExchangeStreamCaptureMode", unsafe { sys::cuThreadExchangeStreamCaptureMode(mode) })
    };
    let mut mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    exchange(&mut mode)?;
    let loaded = load();
    exchange(&mut mode)?;
    loaded
}
