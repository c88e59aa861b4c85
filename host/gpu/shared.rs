//! What the devices of one context share: the context itself, its default stream, and the kernels that have
//! been loaded into it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cust::Context;
use cust::context::Owner;

use crate::error::Result;
use crate::gpu::kernel_cache::KernelCache;
use crate::gpu::map_cache::MapCache;
use crate::gpu::order::Queue;

/// A context, and what belongs to it.
pub(crate) struct Shared {
    pub kernels: KernelCache,
    pub maps: MapCache,
    /// The stream that is there from the start.
    pub default_queue: Arc<Queue>,
    /// Other programs' streams, by their handle.
    foreign_queues: Mutex<HashMap<usize, Weak<Queue>>>,
    /// Held while memory that graphs hold is ordered and used (`order`).
    pub gate: Mutex<()>,
    /// What keeps the context alive for those who came later.
    owners: Mutex<Vec<Owner>>,
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
            shared.keep(context.owner());
            return Ok(shared);
        }
        let shared = Arc::new(Shared {
            kernels: KernelCache::new(&context),
            maps: MapCache::default(),
            default_queue: Queue::new(cust::Stream::new(&context)?),
            foreign_queues: Mutex::default(),
            gate: Mutex::default(),
            owners: Mutex::default(),
            context,
        });
        in_use.push(Arc::downgrade(&shared));
        Ok(shared)
    }

    /// Keeps `owner` too, which the context that is there may not have.
    fn keep(&self, owner: Option<&Owner>) {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        let is_kept = |owner| owners.iter().chain(self.context.owner()).any(|kept| Arc::ptr_eq(kept, owner));
        if let Some(owner) = owner.filter(|owner| !is_kept(owner)) {
            owners.push(owner.clone());
        }
    }

    /// The queue of another program's stream, with one handle more: the same as long as memory notes it.
    pub fn foreign_queue(&self, stream: cust::Stream) -> Arc<Queue> {
        let mut queues = self.foreign_queues.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = stream.as_raw() as usize;
        if let Some(queue) = queues.get(&handle).and_then(Weak::upgrade).filter(|queue| queue.open()) {
            return queue;
        }
        queues.retain(|_, queue| queue.strong_count() > 0);
        let queue = Queue::new(stream);
        queues.insert(handle, Arc::downgrade(&queue));
        queue
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Streams whose handles are gone may still run kernels.
        if self.context.relaxed(|| self.context.synchronize()).is_err() {
            self.kernels.stay_loaded();
        }
    }
}
