//! A kernel made of a few lines of PTX, and what it needs to run.

use ptx_sim::{Counters, Fault, FaultKind, Launch, Machine, MachineConfig, Module};
use std::sync::Arc;

/// A kernel under test, on a machine of its own.
pub struct Kernel {
    pub machine: Machine,
    pub module: Arc<Module>,
    params: Vec<u8>,
    pub dynamic_shared: u32,
    pub cluster: u32,
    pub cooperative: bool,
    pub seed: u64,
}

impl Kernel {
    /// `text` is parameters, `---`, and a body. Registers `%p`, `%rs`, `%r`, `%rd`, `%f`, `%fd` are declared.
    #[allow(dead_code, reason = "not every test file starts from a body")]
    pub fn new(text: &str) -> Kernel {
        let (params, body) = text.split_once("---").expect("parameters --- body");
        let module = format!(
            ".version 8.7\n.target sm_90a\n.address_size 64\n.visible .entry k({params})\n{{\n\
             .reg .pred %p<64>;\n.reg .b16 %rs<64>;\n.reg .b32 %r<256>;\n.reg .b64 %rd<64>;\n\
             .reg .f32 %f<64>;\n.reg .f64 %fd<64>;\n.reg .b128 %rq<8>;\n{body}\n}}\n"
        );
        Kernel::from_module(&module)
    }

    /// A whole module with an entry `k`.
    pub fn from_module(text: &str) -> Kernel {
        let machine =
            Machine::new(MachineConfig { workers: 1, memory_bytes: 1 << 32, ..MachineConfig::default() });
        let module = machine.load(text).unwrap_or_else(|error| panic!("{error}"));
        Kernel {
            machine,
            module,
            params: Vec::new(),
            dynamic_shared: 0,
            cluster: 1,
            cooperative: false,
            seed: 0,
        }
    }

    /// Adds an 8-byte argument.
    pub fn arg(&mut self, value: u64) -> &mut Kernel {
        let aligned = self.params.len().next_multiple_of(8);
        self.params.resize(aligned, 0);
        self.params.extend(value.to_le_bytes());
        self
    }

    pub fn alloc(&mut self, bytes: u64) -> u64 {
        self.machine.alloc(bytes).expect("enough memory")
    }

    /// An initialised buffer.
    #[allow(dead_code, reason = "not every test file has input")]
    pub fn upload(&mut self, words: &[u32]) -> u64 {
        let at = self.alloc(4 * words.len() as u64);
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.machine.write(at, &bytes).expect("fits");
        at
    }

    pub fn run(&self, blocks: u32, threads: u32) -> Result<Counters, Fault> {
        self.machine.launch(&Launch {
            module: &self.module,
            entry: "k",
            grid: [blocks, 1, 1],
            block: [threads, 1, 1],
            cluster: [self.cluster, 1, 1],
            dynamic_shared: self.dynamic_shared,
            cooperative: self.cooperative,
            params: &self.params,
            seed: self.seed,
            workers: None,
        })
    }

    #[allow(dead_code, reason = "not every test file has output")]
    pub fn words(&self, at: u64, count: usize) -> Vec<u32> {
        let mut bytes = vec![0; 4 * count];
        self.machine.read(at, &mut bytes).expect("in bounds");
        bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
}

/// The fault that a run must have ended with.
#[allow(dead_code, reason = "not every test file has wrong kernels")]
#[track_caller]
pub fn expect_fault(result: Result<Counters, Fault>, kind: FaultKind) -> Fault {
    match result {
        Ok(_) => panic!("ran to its end, but {kind:?} was expected"),
        Err(fault) => {
            assert_eq!(fault.kind, kind, "{fault}");
            println!("{fault}");
            fault
        }
    }
}
