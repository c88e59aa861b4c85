//! What the generated launchers are made of: device addresses, kernels, the trait that marshals arguments,
//! grids.

use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;

use crate::gpu::family::Family;

/// An address in device memory of elements of type `T`. What a kernel's `*const T` or `*mut T` argument
/// takes.
#[repr(transparent)]
pub struct DevicePtr<T> {
    address: u64,
    element: PhantomData<*mut T>,
}

// SAFETY: a number; the host never dereferences it, so it may go to any thread whatever `T` is.
unsafe impl<T> Send for DevicePtr<T> {}
// SAFETY: as above; it has no interior state.
unsafe impl<T> Sync for DevicePtr<T> {}

impl<T> DevicePtr<T> {
    /// The pointer to `address`, which nothing has checked yet.
    pub const fn from_raw(address: u64) -> DevicePtr<T> {
        DevicePtr { address, element: PhantomData }
    }

    /// The null pointer, which kernels take where an argument is optional.
    pub const fn null() -> DevicePtr<T> {
        DevicePtr::from_raw(0)
    }

    /// The address as a `CUdeviceptr`.
    pub const fn raw(self) -> u64 {
        self.address
    }

    /// Whether it is the null pointer.
    pub const fn is_null(self) -> bool {
        self.address == 0
    }

    /// The address `elements` further on.
    pub const fn offset(self, elements: usize) -> DevicePtr<T> {
        DevicePtr::from_raw(self.address + (elements * size_of::<T>()) as u64)
    }

    /// The same address, for elements of another type.
    pub const fn cast<U>(self) -> DevicePtr<U> {
        DevicePtr::from_raw(self.address)
    }
}

impl<T> Clone for DevicePtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for DevicePtr<T> {}
impl<T> PartialEq for DevicePtr<T> {
    fn eq(&self, other: &Self) -> bool {
        self.address == other.address
    }
}
impl<T> Eq for DevicePtr<T> {}
impl<T> fmt::Debug for DevicePtr<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.address)
    }
}

/// A tensor map as a kernel's argument: 128 opaque bytes that `cuTensorMapEncodeTiled` writes, aligned to 64.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct TensorMap(pub [u64; 16]);

/// A kernel's name and its text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelText {
    /// The entry's name in the PTX.
    pub name: &'static str,
    /// The PTX of a module with the kernel of a name alone; none if the family has no such kernel. The file
    /// that includes the launchers says it, so that this layer does not know which kernels there are.
    pub module: fn(Family, &str) -> Option<String>,
}

/// A kernel that takes the arguments `A`.
pub(crate) struct Kernel<A> {
    pub text: KernelText,
    /// Threads per block, as the kernel declares them.
    pub threads: u32,
    /// Blocks of a cluster, as the kernel declares them; the grid is a multiple of it.
    pub cluster: u32,
    /// Whether the kernel may begin before its predecessor in the stream has ended: it waits before it
    /// touches what that one writes.
    pub overlap: bool,
    /// Whether its blocks wait for each other, so that all must be resident at once.
    pub cooperative: bool,
    /// Bytes of dynamic shared memory per block: what the kernel declares, or what
    /// [`with_shared`](Self::with_shared) says.
    pub shared_bytes: u32,
    arguments: PhantomData<fn(&A)>,
}

impl<A> Kernel<A> {
    /// The kernel `name`.
    ///
    /// # Safety
    /// Its module declares so many threads and cluster blocks, and the parameters that [`Arguments`] of `A`
    /// has; with `overlap` it waits for its predecessor in all threads. The generated launchers, which are
    /// made from the same records as the module, alone make one.
    pub const unsafe fn new(
        name: &'static str,
        threads: u32,
        cluster: u32,
        overlap: bool,
        shared_bytes: u32,
        module: fn(Family, &str) -> Option<String>,
    ) -> Self {
        let text = KernelText { name, module };
        Kernel { text, threads, cluster, overlap, cooperative: false, shared_bytes, arguments: PhantomData }
    }

    /// The kernel with so many bytes of dynamic shared memory, where they depend on its arguments.
    pub const fn with_shared(self, shared_bytes: u32) -> Self {
        Kernel { shared_bytes, ..self }
    }

    /// The kernel, launched so that all its blocks are resident at once; a grid that is too large for that is
    /// an error of the driver.
    pub const fn cooperative(self) -> Self {
        Kernel { cooperative: true, ..self }
    }
}

impl<A> Clone for Kernel<A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<A> Copy for Kernel<A> {}

/// Arguments of a kernel. Implemented by the generated structs alone.
///
/// # Safety
/// `with_params` calls `f` with one pointer for each parameter of the kernels that take these arguments, in
/// order, each to a value of that parameter's size.
pub(crate) unsafe trait Arguments {
    /// Calls `f` with pointers to the values of the parameters.
    fn with_params<R>(&self, f: impl FnOnce(&mut [*mut c_void]) -> R) -> R;
}

/// Blocks of a launch, in up to three dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks along x.
    pub x: u32,
    /// Blocks along y, at most 65535.
    pub y: u32,
    /// Blocks along z, at most 65535.
    pub z: u32,
}

impl From<u32> for Grid {
    fn from(x: u32) -> Grid {
        Grid { x, y: 1, z: 1 }
    }
}

impl From<(u32, u32)> for Grid {
    fn from((x, y): (u32, u32)) -> Grid {
        Grid { x, y, z: 1 }
    }
}

impl From<(u32, u32, u32)> for Grid {
    fn from((x, y, z): (u32, u32, u32)) -> Grid {
        Grid { x, y, z }
    }
}
