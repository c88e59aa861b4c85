//! Loads PTX files and says which of their kernels are ready to run, or why they are not.
//!
//! ```sh
//! cargo run -p ptx_sim --example load -- kernels.sm_90a.ptx
//! ```

use ptx_sim::{Machine, MachineConfig};

fn main() {
    let machine = Machine::new(MachineConfig::default());
    let mut failed = false;
    for path in std::env::args().skip(1) {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => {
                eprintln!("{path}: {error}");
                failed = true;
                continue;
            }
        };
        match machine.load(&text) {
            Ok(module) => {
                println!("{path}: {}, {} entries", module.target(), module.entries().count());
                for entry in module.entries() {
                    println!(
                        "  {}: {} bytes of parameters, {} shared",
                        entry.name, entry.params_size, entry.static_shared
                    );
                }
            }
            Err(error) => {
                eprintln!("{path}: {error}");
                failed = true;
            }
        }
    }
    std::process::exit(i32::from(failed));
}
