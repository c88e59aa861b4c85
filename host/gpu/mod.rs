//! The device layer: everything that the CUDA driver API has and the layer needs.
//!
//! | file | what it is |
//! |---|---|
//! | `spec`, `family` | which device to open, and by which driver; which kernels a GPU runs |
//! | `device` | opening a device, and what it says of itself |
//! | `shared` | what the devices of one context share |
//! | `notes` | what a thread has said about the memory that its operations use |
//! | `order` | who uses which memory on which stream, and who waits for whom |
//! | `stream` | streams and events |
//! | `slice`, `buffer` | device memory: borrowed, and owned |
//! | `staging` | page-locked host memory on its way to a device |
//! | `graph` | captured work |
//! | `launch` | what a generated launcher is made of: addresses, kernels, the trait that marshals arguments, grids |
//! | `enqueue` | launching a kernel |
//! | `kernel_cache` | the kernels that have been loaded into a context |
//! | `map_cache` | the tensor maps that have been encoded in a context |
//! | `tensor_map` | descriptors for TMA |
//! | `cudarc` | contexts, streams and memory of cudarc's (feature `cudarc`) |
//!
//! Nothing here knows of operations, layers, or which kernels there are. A file uses those above it in the
//! order `family`, `launch`, `kernel_cache`, `map_cache`, `notes`, `order`, `shared`, `spec`, `device`,
//! `stream`, `slice`, `buffer`, then the others.
//!
//! # What is safe, and why
//! No sequence of safe calls makes two streams race, or uses memory that has been freed:
//!
//! - *Races.* Whatever an operation uses is checked, by `Slice::check` and `SliceMut::check`, and a check
//!   makes the operation's stream wait for conflicting work on others (`order`, which says why that suffices,
//!   also for several threads). Copies and fills do the same.
//! - *Borrows.* A slice borrows its buffer until the call returns, no longer: the work is still to run. What
//!   comes later on the same stream runs later; on another stream it waits; on the host, copies wait for
//!   their stream before they return.
//! - *Freed memory.* An allocation waits, when it is dropped, for all work that uses it, on whatever stream.
//!   Where it cannot be waited for, since a fault has taken the context away, the memory is not freed.
//! - *Graphs.* A graph holds the memory that it uses, waits at each launch like an operation, and when it is
//!   dropped waits for its launches. It writes memory that nobody lends it. What operations rely on may lie
//!   there: the lists of permutations. An operation that is given such lists after the launch is refused
//!   (`order::Unchanged`); a captured operation is given lists of its own capture alone, which every launch
//!   makes anew. Captures run on a stream of their own, so that no other thread's work gets into them, and
//!   copies to the host, waits and events are refused in them.
//! - *Streams.* A stream whose last handle is dropped leaves an event behind its work, for which others wait.
//! - *Kernels.* Modules are unloaded when the last device of their context is dropped, after the context's
//!   work.
//! - *Memory and streams of others* come in by `unsafe` functions, whose contracts say what the library
//!   cannot know.

pub(crate) mod buffer;
#[cfg(feature = "cudarc")]
pub mod cudarc;
pub(crate) mod device;
pub(crate) mod enqueue;
pub(crate) mod family;
pub(crate) mod graph;
pub(crate) mod kernel_cache;
pub(crate) mod launch;
pub(crate) mod map_cache;
mod notes;
pub(crate) mod order;
pub(crate) mod shared;
pub(crate) mod slice;
pub(crate) mod spec;
pub(crate) mod staging;
pub(crate) mod stream;
pub(crate) mod tensor_map;
