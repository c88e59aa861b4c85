//! The device layer: everything that the CUDA driver API has and the layer needs.
//!
//! | file | what it is |
//! |---|---|
//! | `spec`, `family` | which device to open, and by which driver; which kernels a GPU runs |
//! | `device` | opening a device, its properties, launching a kernel |
//! | `shared` | what the devices of one context share |
//! | `buffer` | device memory: owned, and borrowed by slices |
//! | `stream` | streams, events, captured graphs |
//! | `launch` | what a generated launcher is made of: addresses, grids, the trait that marshals arguments |
//! | `kernel_cache` | the kernels that a device has loaded |
//! | `tensor_map` | descriptors for TMA |
//!
//! Nothing here knows of operations, layers, or which kernels there are.

pub(crate) mod buffer;
pub(crate) mod device;
pub(crate) mod family;
pub(crate) mod kernel_cache;
pub(crate) mod launch;
pub(crate) mod shared;
pub(crate) mod spec;
pub(crate) mod stream;
pub(crate) mod tensor_map;
