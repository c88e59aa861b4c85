//! The device layer: everything that the CUDA driver API has and the layer needs.
//!
//! | file | what it is |
//! |---|---|
//! | `device` | opening a device, its properties, launching a kernel |
//! | `buffer` | device memory: owned, and borrowed by slices |
//! | `stream` | streams, events, captured graphs |
//! | `launch` | what a generated launcher is made of: addresses, kernels, the trait that marshals arguments, grids |
//! | `kernel_cache` | the kernels that a device has loaded |
//! | `tensor_map` | descriptors for TMA |
//!
//! Nothing here knows of operations or layers.

pub(crate) mod buffer;
pub(crate) mod device;
pub(crate) mod kernel_cache;
pub(crate) mod launch;
pub(crate) mod stream;
pub(crate) mod tensor_map;
