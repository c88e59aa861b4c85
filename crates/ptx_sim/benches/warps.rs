//! Speed of the emulator on whole kernels, in warp instructions per second.
//!
//! `cargo bench -p ptx_sim --bench warps`. Element-wise kernels must reach 10 million on one core.

use std::time::Instant;

use ptx_sim::counters::Counters;
use ptx_sim::{Launch, Machine, MachineConfig};

/// Elements of the vectors; a multiple of the block size.
const N: u64 = 1 << 20;

fn main() {
    let machine = Machine::new(MachineConfig::default());
    let vector = machine.load(include_str!("../tests/nvcc/vector.ptx")).expect("vector.ptx loads");
    let arithmetic = machine.load(include_str!("../tests/nvcc/reduce.ptx")).expect("reduce.ptx loads");
    let buffer = |bytes: u64| {
        let pointer = machine.alloc(bytes).expect("memory for the benchmark");
        machine.fill(pointer, &1.5f32.to_le_bytes(), bytes / 4).expect("inside the allocation");
        pointer
    };
    let (x, y) = (buffer(8 * N), buffer(8 * N));
    let n = (N as i32).to_le_bytes();

    let mut saxpy = vec![];
    saxpy.extend(n);
    saxpy.extend(2f32.to_le_bytes());
    saxpy.extend(x.to_le_bytes());
    saxpy.extend(y.to_le_bytes());
    let mut daxpy = vec![];
    daxpy.extend(n);
    daxpy.extend([0; 4]);
    daxpy.extend(0.5f64.to_le_bytes());
    daxpy.extend(x.to_le_bytes());
    daxpy.extend(y.to_le_bytes());
    let mut block_sum = vec![];
    block_sum.extend(x.to_le_bytes());
    block_sum.extend(n);
    block_sum.extend([0; 4]);
    block_sum.extend(y.to_le_bytes());
    block_sum.extend(y.to_le_bytes());

    let blocks = (N / 256) as u32;
    for (name, module, entry, grid, params) in [
        ("saxpy, one element a thread", &vector, "saxpy", blocks, &saxpy),
        ("saxpy, grid-stride", &vector, "saxpy", 264, &saxpy),
        ("scale4, 128-bit accesses", &vector, "scale4", blocks / 4, &saxpy),
        ("daxpy, with a division", &vector, "daxpy", blocks, &daxpy),
        ("block_sum, shuffles", &arithmetic, "block_sum", 264, &block_sum),
    ] {
        for workers in [1, machine.config().workers] {
            let launch = Launch {
                module,
                entry,
                grid: [grid, 1, 1],
                block: [256, 1, 1],
                cluster: [1, 1, 1],
                dynamic_shared: 0,
                cooperative: false,
                params,
                seed: 0,
                workers: Some(workers),
            };
            let (mut best, mut counters) = (f64::MAX, Counters::default());
            for _ in 0..5 {
                let start = Instant::now();
                counters = machine.launch(&launch).unwrap_or_else(|fault| panic!("{fault}"));
                best = best.min(start.elapsed().as_secs_f64());
            }
            let rate = counters.warp_instructions() as f64 / best / 1e6;
            println!(
                "{name:<30} {workers:>3} worker(s) {rate:>8.1} M warp instructions/s {:>8.2} ms",
                best * 1e3
            );
        }
    }
}
