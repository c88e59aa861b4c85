//! A small emulated GPU with one module, and the transfers that a test needs.

use std::sync::Arc;

use bytemuck::Pod;
use ptx_sim::{Launch, Machine, MachineConfig, Module};

/// A small GPU with one module.
pub struct Gpu {
    machine: Machine,
    module: Arc<Module>,
}

/// A kernel argument.
#[derive(Clone, Copy)]
pub enum Arg {
    /// A device address, 64 bits.
    Pointer(u64),
    /// 32 bits.
    Int(i32),
    /// 32 bits.
    Float(f32),
    /// 64 bits.
    Double(f64),
    /// A tensor map passed by value.
    Map([u8; 128]),
}

impl Gpu {
    /// Loads `ptx`.
    pub fn new(ptx: &str) -> Gpu {
        let machine =
            Machine::new(MachineConfig { sm_count: 4, memory_bytes: 1 << 28, ..MachineConfig::default() });
        let module = machine.load(ptx).unwrap_or_else(|error| panic!("{error}"));
        Gpu { machine, module }
    }

    /// Allocates and fills a buffer.
    pub fn upload<T: Pod>(&self, values: &[T]) -> Arg {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let pointer = self.machine.alloc(bytes.len() as u64).unwrap();
        self.machine.write(pointer, bytes).unwrap();
        Arg::Pointer(pointer)
    }

    /// Allocates an uninitialised buffer.
    pub fn output<T: Pod>(&self, length: usize) -> Arg {
        Arg::Pointer(self.machine.alloc((length * size_of::<T>()) as u64).unwrap())
    }

    /// Reads a buffer back.
    pub fn download<T: Pod>(&self, from: Arg, length: usize) -> Vec<T> {
        let Arg::Pointer(pointer) = from else { panic!("not a pointer") };
        let mut values = vec![T::zeroed(); length];
        self.machine.read(pointer, bytemuck::cast_slice_mut(&mut values)).unwrap();
        values
    }

    /// Runs a kernel on a grid of `grid` blocks of `block` threads.
    pub fn launch(&self, entry: &str, seed: u64, grid: u32, block: u32, args: &[Arg]) {
        self.launch_with_shared(entry, seed, grid, block, 0, args);
    }

    /// As [`Gpu::launch`], with `dynamic_shared` bytes of shared memory.
    pub fn launch_with_shared(
        &self,
        entry: &str,
        seed: u64,
        grid: u32,
        block: u32,
        dynamic_shared: u32,
        args: &[Arg],
    ) {
        let mut params = vec![];
        for arg in args {
            let bytes = match arg {
                Arg::Pointer(value) => value.to_le_bytes().to_vec(),
                Arg::Int(value) => value.to_le_bytes().to_vec(),
                Arg::Float(value) => value.to_le_bytes().to_vec(),
                Arg::Double(value) => value.to_le_bytes().to_vec(),
                Arg::Map(map) => map.to_vec(),
            };
            params.resize(params.len().next_multiple_of(bytes.len().min(64)), 0);
            params.extend(bytes);
        }
        let launch = Launch {
            module: &self.module,
            entry,
            grid: [grid, 1, 1],
            block: [block, 1, 1],
            cluster: [1, 1, 1],
            dynamic_shared,
            cooperative: false,
            params: &params,
            seed,
            workers: None,
        };
        self.machine.launch(&launch).unwrap_or_else(|fault| panic!("{fault}"));
    }
}
