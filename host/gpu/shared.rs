//! What the devices of one context share: the context itself, its default stream, and the kernels that have been loaded into it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use cust::Context;

use crate::error::Result;
use crate::gpu::kernel_cache::KernelCache;

/// A context, and what belongs to it.
pub(crate) struct Shared {
    pub kernels: KernelCache,
    pub default_stream: cust::Stream,
    pub context: Context,
}

/// The contexts in use.
static IN_USE: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());

impl Shared {
    /// Those of `context`: what there is already, or new ones.
    pub fn of(context: Context) -> Result<Arc<Shared>> {
        let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        in_use.retain(|shared| shared.strong_count() > 0);
        if let Some(shared) = in_use.iter().filter_map(Weak::upgrade).find(|shared| shared.context == context)
        {
            return Ok(shared);
        }
        let kernels = KernelCache::new(&context);
        let shared = Arc::new(Shared { kernels, default_stream: cust::Stream::new(&context)?, context });
        in_use.push(Arc::downgrade(&shared));
        Ok(shared)
    }
}
