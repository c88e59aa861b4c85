//! Compiles `cuda_std`'s kernels for Hopper's asynchronous items (its crate `tests/hopper`) and runs them on
//! the emulated device: right ones give what an oracle says under every seed, wrong ones are caught.

#![allow(clippy::result_large_err)]

mod loads;
mod stores;
#[path = "../../../cuda_std/tests/hopper/src/ways.rs"]
mod ways;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use cuda_builder::{Arch, CudaBuilder, enclosing_target_dir};
use ptx_sim::tensor_map::{TensorMap, TiledArguments};
use ptx_sim::{Counters, Fault, FaultKind, Launch, Machine, MachineConfig, Module};

/// Seeds, each of which times warps and copies in another way.
const SEEDS: std::ops::Range<u64> = 0..12;

/// `CU_TENSOR_MAP_SWIZZLE_NONE`.
const PLAIN: u32 = 0;
/// `CU_TENSOR_MAP_SWIZZLE_128B`.
const SWIZZLED: u32 = 3;
/// `CU_TENSOR_MAP_DATA_TYPE_UINT32`.
const UINT32: u32 = 2;
/// `CU_TENSOR_MAP_DATA_TYPE_FLOAT32`.
const FLOAT32: u32 = 7;

/// The crate's PTX, made once.
fn ptx() -> &'static str {
    static PTX: OnceLock<String> = OnceLock::new();
    PTX.get_or_init(|| {
        let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cuda_std/tests/hopper");
        let scratch = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let target_dir = enclosing_target_dir(&scratch);
        let builder = CudaBuilder::new(crate_dir).arch(Arch::Sm90a).target_dir(target_dir).ptx_dir(scratch);
        let built = builder.build().unwrap_or_else(|error| panic!("{error}"));
        assert!(built.violations().is_empty(), "{:?}", built.violations());
        fs::read_to_string(&built.ptx_path).expect("the PTX was just written")
    })
}

/// One argument of a kernel.
enum Argument {
    Map(Box<[u8; 128]>),
    Pointer(u64),
    Word(u32),
}

impl From<u64> for Argument {
    fn from(pointer: u64) -> Argument {
        Argument::Pointer(pointer)
    }
}

impl From<u32> for Argument {
    fn from(word: u32) -> Argument {
        Argument::Word(word)
    }
}

impl From<i32> for Argument {
    fn from(coordinate: i32) -> Argument {
        Argument::Word(coordinate as u32)
    }
}

/// An emulated device with the kernels, under one seed.
struct Device {
    machine: Machine,
    module: Arc<Module>,
    seed: u64,
}

impl Device {
    fn new(seed: u64) -> Device {
        let machine =
            Machine::new(MachineConfig { workers: 1, memory_bytes: 1 << 32, ..MachineConfig::default() });
        let module = machine.load(ptx()).unwrap_or_else(|error| panic!("{error}"));
        Device { machine, module, seed }
    }

    fn upload(&self, words: &[u32]) -> u64 {
        let at = self.machine.alloc(4 * words.len() as u64).expect("enough memory");
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.machine.write(at, &bytes).expect("fits");
        at
    }

    fn words(&self, at: u64, count: usize) -> Vec<u32> {
        let mut bytes = vec![0; 4 * count];
        self.machine.read(at, &mut bytes).expect("in bounds");
        bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
    }

    /// Runs blocks of `threads` threads.
    fn run(
        &self,
        kernel: &str,
        (blocks, cluster, threads): (u32, u32, u32),
        arguments: Vec<Argument>,
    ) -> Result<Counters, Fault> {
        let entry = self.module.entry(kernel).expect("a kernel of the crate");
        let mut params = vec![0; entry.params_size as usize];
        assert_eq!(entry.params.len(), arguments.len(), "{kernel}");
        for (param, argument) in entry.params.iter().zip(arguments) {
            let bytes = match argument {
                Argument::Map(bytes) => bytes.to_vec(),
                Argument::Pointer(value) => value.to_le_bytes().to_vec(),
                Argument::Word(value) => value.to_le_bytes().to_vec(),
            };
            assert_eq!(param.size as usize, bytes.len(), "{kernel}: {}", param.name);
            params[param.offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
        self.machine.launch(&Launch {
            module: &self.module,
            entry: kernel,
            grid: [blocks, 1, 1],
            block: [threads, 1, 1],
            cluster: [cluster, 1, 1],
            dynamic_shared: 0,
            cooperative: false,
            params: &params,
            seed: self.seed,
            workers: None,
        })
    }
}

/// The map of a tensor of words at `address`.
fn map(data_type: u32, address: u64, dims: &[u64], box_dims: &[u32], swizzle: u32) -> Argument {
    let mut strides = vec![];
    let mut stride = 4;
    for dim in &dims[..dims.len() - 1] {
        stride *= dim;
        strides.push(stride);
    }
    let map = TensorMap::tiled(&TiledArguments {
        data_type,
        address,
        dims,
        strides: &strides,
        box_dims,
        element_strides: &[1; 5][..dims.len()],
        interleave: 0,
        swizzle,
        l2_promotion: 0,
        oob_fill: 0,
    });
    Argument::Map(Box::new(map.expect("a valid map").encode()))
}

/// The word of a box with rows of 32 words that element `column` of row `row` is.
fn word_of_box(row: usize, column: usize, swizzle: u32) -> usize {
    let chunk = (column / 4) ^ if swizzle == SWIZZLED { row % 8 } else { 0 };
    32 * row + 4 * chunk + column % 4
}

/// Words that are all different.
fn words(count: u32) -> Vec<u32> {
    (1..=count).map(|i| i.wrapping_mul(2_654_435_761)).collect()
}

/// Asserts that a run ended well.
#[track_caller]
fn right(device: &Device, result: Result<Counters, Fault>) -> Counters {
    result.unwrap_or_else(|fault| panic!("seed {}: {fault}", device.seed))
}

/// Asserts that a run ended with a fault of this kind.
#[track_caller]
fn caught(device: &Device, result: Result<Counters, Fault>, kind: FaultKind) {
    match result {
        Ok(_) => panic!("seed {}: ran to its end, but {kind:?} was expected", device.seed),
        Err(fault) => assert_eq!(fault.kind, kind, "seed {}: {fault}", device.seed),
    }
}
