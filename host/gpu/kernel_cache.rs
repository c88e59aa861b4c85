//! The kernels that have been loaded into a context: each at its first use, those of a list side by side.
//!
//! The driver compiles the text of a kernel when it loads it, on the thread that asks, for 0.02 to 0.4 s. Of
//! several kernels that are known to be needed, each goes to a thread of its own, as far as there are cores.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cust::{Context, Function, Module};

use crate::error::{Error, Result};
use crate::gpu::family::Family;
use crate::gpu::launch::KernelText;
use crate::threads;

/// What the driver allows a function unasked: static and dynamic shared memory together, bytes.
const DEFAULT_SHARED: u32 = 48 * 1024;

/// The loaded kernels of a context.
pub(crate) struct KernelCache {
    context: Context,
    loaded: Mutex<HashMap<Key, Loaded>>,
}

/// A kernel's family and name.
type Key = (Family, &'static str);

/// A loaded kernel, in a module of its own: the driver compiles a module as a whole, and a program uses few
/// of the kernels.
struct Loaded {
    function: Function,
    /// Dynamic shared memory the function has been allowed so far.
    dynamic_shared: u32,
    static_shared: u32,
}

impl Loaded {
    /// Loads the kernel `name` from its text.
    ///
    /// Loading is nothing that a graph records, so what a capture forbids its thread is allowed. (The driver
    /// may put it off until the function is asked for, so that belongs in here too.) Another thread's capture
    /// may forbid as much to this one.
    fn new(context: &Context, name: &'static str, ptx: &str) -> Result<Loaded> {
        context.relaxed(|| {
            // SAFETY: the text is part of this library, from `host/kernels`: rustc has written it, and ptxas
            // has compiled it before it was committed.
            let module = unsafe { Module::from_ptx(context, ptx) }?;
            let function = module.function(name)?;
            let static_shared = function.static_shared()?;
            Ok(Loaded { function, dynamic_shared: DEFAULT_SHARED - static_shared, static_shared })
        })
    }
}

impl KernelCache {
    /// None, of `context`.
    pub fn new(context: &Context) -> KernelCache {
        KernelCache { context: context.clone(), loaded: Mutex::default() }
    }

    /// Leaves the modules loaded when the cache is dropped.
    pub fn stay_loaded(&mut self) {
        std::mem::forget(std::mem::take(self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner)));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Loaded>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names of those of `family` that have been loaded.
    pub fn names(&self, family: Family) -> Vec<&'static str> {
        let loaded = self.lock();
        let mut names: Vec<_> = loaded.keys().filter(|key| key.0 == family).map(|key| key.1).collect();
        names.sort_unstable();
        names
    }

    /// The kernel `text`, loaded at its first use and allowed to use `dynamic_shared` bytes of the
    /// `shared_per_block` that there are.
    pub fn get(
        &self,
        family: Family,
        text: KernelText,
        dynamic_shared: u32,
        shared_per_block: u32,
    ) -> Result<Function> {
        let (name, mut loaded) = (text.name, self.lock());
        let kernel = match loaded.entry((family, name)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Loaded::new(&self.context, name, &ptx(family, text)?)?),
        };
        if dynamic_shared > kernel.dynamic_shared {
            let most = shared_per_block - kernel.static_shared;
            if dynamic_shared > most {
                let rule = format!("must be at most {most}");
                return Err(Error::argument(name, "dynamic_shared_bytes", dynamic_shared, rule));
            }
            kernel.function.allow_dynamic_shared(dynamic_shared)?;
            kernel.dynamic_shared = dynamic_shared;
        }
        Ok(kernel.function.clone())
    }

    /// Loads those of `kernels` that are missing: side by side, the longest first. Whoever needs a kernel
    /// meanwhile waits.
    pub fn load(&self, family: Family, kernels: &[KernelText]) -> Result<()> {
        let mut loaded = self.lock();
        let mut texts = HashMap::new();
        for kernel in kernels.iter().filter(|kernel| !loaded.contains_key(&(family, kernel.name))) {
            texts.insert(kernel.name, ptx(family, *kernel)?);
        }
        let mut texts: Vec<_> = texts.into_iter().collect();
        texts.sort_unstable_by_key(|(name, text)| (Reverse(text.len()), *name));
        loaded.extend(threads::each(texts.len(), |at| {
            let (name, text) = &texts[at];
            Ok(((family, *name), Loaded::new(&self.context, name, text)?))
        })?);
        Ok(())
    }
}

/// The PTX of a kernel.
fn ptx(family: Family, kernel: KernelText) -> Result<String> {
    (kernel.module)(family, kernel.name).ok_or_else(|| {
        Error::argument(kernel.name, "family", family, "must be one that this kernel is compiled for")
    })
}
