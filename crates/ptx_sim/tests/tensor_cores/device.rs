//! The device under test, through the driver API: NVIDIA's driver, or the emulated one.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;

use super::cases::Tile;

macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*);)*) => {
        /// Functions of the driver.
        #[allow(non_snake_case, reason = "the names are NVIDIA's")]
        struct Table { $($name: unsafe extern "C" fn($($argument),*) -> c_uint,)* }

        impl Table {
            /// # Safety
            /// `find` gives the addresses of functions with these names and of these types.
            unsafe fn new(find: impl Fn(&str) -> Option<*const c_void>) -> Option<Table> {
                // SAFETY: by the caller's promise; an address is as large as a function pointer.
                Some(unsafe {
                    Table {
                        $($name: std::mem::transmute::<
                            *const c_void,
                            unsafe extern "C" fn($($argument),*) -> c_uint,
                        >(find(stringify!($name))?),)*
                    }
                })
            }
        }
    };
}

functions! {
    cuInit: fn(c_uint);
    cuDeviceGetCount: fn(*mut c_int);
    cuDeviceGet: fn(*mut c_int, c_int);
    cuDeviceGetAttribute: fn(*mut c_int, c_uint, c_int);
    cuDevicePrimaryCtxRetain: fn(*mut *mut c_void, c_int);
    cuCtxSetCurrent: fn(*mut c_void);
    cuCtxSynchronize: fn();
    cuModuleLoadData: fn(*mut *mut c_void, *const c_void);
    cuModuleGetFunction: fn(*mut *mut c_void, *mut c_void, *const c_char);
    cuMemAlloc_v2: fn(*mut u64, usize);
    cuMemFree_v2: fn(u64);
    cuMemcpyHtoD_v2: fn(u64, *const c_void, usize);
    cuMemcpyDtoH_v2: fn(*mut c_void, u64, usize);
    cuLaunchKernel: fn(
        *mut c_void, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, *mut c_void, *mut *mut c_void,
        *mut *mut c_void
    );
}

/// A device, with its primary context.
pub struct Device {
    table: Table,
    context: usize,
    pub emulated: bool,
    /// Compute capability.
    pub capability: (i32, i32),
}

/// The device of `FP8_MOE_DEVICE`: `sim` (the default), `cuda:N`, or `auto`, a GPU if there is one.
pub fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let asked = std::env::var("FP8_MOE_DEVICE").unwrap_or_else(|_| "sim".to_string());
        let ordinal = asked.strip_prefix("cuda:").unwrap_or("0").parse().expect("FP8_MOE_DEVICE: a number");
        let gpu = (asked != "sim").then(|| Device::gpu(ordinal)).flatten();
        match gpu {
            Some(device) => device,
            None if asked == "sim" || asked == "auto" => Device::emulated(),
            None => panic!("FP8_MOE_DEVICE is {asked}, and there is no such device"),
        }
    })
}

fn check(what: &str, code: c_uint) {
    assert_eq!(code, 0, "{what} failed; {}", ptx_sim::driver::last_error().unwrap_or_default());
}

impl Device {
    fn gpu(ordinal: c_int) -> Option<Device> {
        // SAFETY: the driver's library is meant to be loaded; its initialisers ask for nothing.
        let library = unsafe { libloading::Library::new("libcuda.so.1") }.ok()?;
        let library: &'static libloading::Library = Box::leak(Box::new(library));
        let find = |name: &str| {
            // SAFETY: the symbol is looked up as an address only.
            unsafe { library.get::<*const c_void>(name.as_bytes()) }.ok().map(|symbol| *symbol)
        };
        // SAFETY: `libcuda.so.1` exports these functions, of these types, and is never unloaded.
        let table = unsafe { Table::new(find) }?;
        let mut count = 0;
        // SAFETY: the pointer is valid for a write.
        let found = unsafe { (table.cuInit)(0) == 0 && (table.cuDeviceGetCount)(&mut count) == 0 };
        (found && ordinal < count).then(|| Device::open(table, ordinal, false))
    }

    fn emulated() -> Device {
        // SAFETY: the emulated driver has these functions, of these types.
        let table = unsafe { Table::new(ptx_sim::driver::function) }.expect("all are there");
        // SAFETY: no pointer is given.
        check("cuInit", unsafe { (table.cuInit)(0) });
        Device::open(table, 0, true)
    }

    fn open(table: Table, ordinal: c_int, emulated: bool) -> Device {
        let (mut device, mut major, mut minor, mut context) = (0, 0, 0, null_mut());
        // SAFETY: the pointers are valid for writes.
        unsafe {
            check("cuDeviceGet", (table.cuDeviceGet)(&mut device, ordinal));
            check("cuDeviceGetAttribute", (table.cuDeviceGetAttribute)(&mut major, 75, device));
            check("cuDeviceGetAttribute", (table.cuDeviceGetAttribute)(&mut minor, 76, device));
            check("cuDevicePrimaryCtxRetain", (table.cuDevicePrimaryCtxRetain)(&mut context, device));
        }
        Device { table, context: context as usize, emulated, capability: (major, minor) }
    }

    /// Runs the entry `product` of a module, one block per tile of elements of `bytes` bytes; the results, 64
    /// x 8 each.
    pub fn run(&self, module: &str, tiles: &[Tile], bytes: usize) -> Vec<Vec<[f32; 8]>> {
        let operand = |lines: fn(&Tile) -> &Vec<Vec<u32>>| -> Vec<u8> {
            let elements = tiles.iter().flat_map(|tile| lines(tile).iter().flatten());
            elements.flat_map(|bits| bits.to_le_bytes().into_iter().take(bytes)).collect()
        };
        let (a, b) = (operand(|tile| &tile.a), operand(|tile| &tile.b));
        // By block, thread and register.
        let place = |thread: usize, i: usize| {
            (16 * (thread / 32) + thread % 32 / 4 + 8 * (i / 2), 2 * (thread % 4) + i % 2)
        };
        let mut c = Vec::with_capacity(tiles.len() * 2048);
        for tile in tiles {
            for (row, column) in (0..512).map(|at| place(at / 4, at % 4)) {
                c.extend(tile.c[row][column].to_le_bytes());
            }
        }
        let text = CString::new(module).expect("PTX has no NUL");
        let mut d = vec![0u8; c.len()];
        let t = &self.table;
        // SAFETY: all pointers are valid for what the driver API reads and writes there; the kernel's
        // arguments are four addresses of memory as large as it touches, which lives until it has been waited
        // for.
        unsafe {
            check("cuCtxSetCurrent", (t.cuCtxSetCurrent)(self.context as *mut c_void));
            let (mut loaded, mut function) = (null_mut(), null_mut());
            check("cuModuleLoadData", (t.cuModuleLoadData)(&mut loaded, text.as_ptr().cast()));
            check("cuModuleGetFunction", (t.cuModuleGetFunction)(&mut function, loaded, c"product".as_ptr()));
            let upload = |data: &[u8]| {
                let mut at = 0;
                check("cuMemAlloc", (t.cuMemAlloc_v2)(&mut at, data.len()));
                check("cuMemcpyHtoD", (t.cuMemcpyHtoD_v2)(at, data.as_ptr().cast(), data.len()));
                at
            };
            let mut addresses = [upload(&a), upload(&b), upload(&c), upload(&d)];
            let mut arguments =
                addresses.each_mut().map(|address| std::ptr::from_mut(address).cast::<c_void>());
            let (grid, list) = (tiles.len() as c_uint, arguments.as_mut_ptr());
            let launched =
                (t.cuLaunchKernel)(function, grid, 1, 1, 128, 1, 1, 0, null_mut(), list, null_mut());
            check("cuLaunchKernel", launched);
            check("cuCtxSynchronize", (t.cuCtxSynchronize)());
            check("cuMemcpyDtoH", (t.cuMemcpyDtoH_v2)(d.as_mut_ptr().cast(), addresses[3], d.len()));
            addresses.into_iter().for_each(|address| check("cuMemFree", (t.cuMemFree_v2)(address)));
        }
        let words: Vec<f32> = d.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let one = |block: &[f32]| {
            let mut rows = vec![[0.0; 8]; 64];
            for (at, value) in block.iter().enumerate() {
                let (row, column) = place(at / 4, at % 4);
                rows[row][column] = *value;
            }
            rows
        };
        words.chunks_exact(512).map(one).collect()
    }
}
