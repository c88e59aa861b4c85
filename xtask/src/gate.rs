//! The PTX gate: what every kernel uses of the GPU, pinned by a committed table.
//!
//! Each family is compiled and assembled; the table says per kernel the launch bounds, registers and shared
//! memory in `ptxas`'s count, and the instructions that matter in the machine code. A change shows up in the
//! diff of the commit that made it. Spills, stack frames, local memory, C75xx remarks, and warpgroup
//! tensor-core instructions of another shape than the kernel declares are refused whatever the table says.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, bail};
use cuda_builder::sass::{self, Instructions};
use cuda_builder::{Arch, Built, CudaBuilder, KernelInfo, Resources};

use crate::occupancy;
use crate::process::{root, target_dir};

/// The committed table.
fn table_path() -> PathBuf {
    root().join("kernels-gpu/resources.txt")
}

/// Compiles for one family or all and prints the table.
pub fn show(arch: Option<Arch>) -> Result<()> {
    let archs = arch.map_or(Arch::ALL.to_vec(), |arch| vec![arch]);
    let mut violations = Vec::new();
    for arch in archs {
        let compiled = compile(arch)?;
        println!("{}", compiled.table);
        println!("PTX: {}\n", compiled.built.ptx_path.display());
        violations.extend(compiled.violations);
    }
    refuse(&violations)
}

/// Compares with the committed table, or rewrites it.
pub fn run(update: bool) -> Result<()> {
    // Side by side: each is one program at a time.
    let compiled = thread::scope(|scope| {
        let families = Arch::ALL.map(|arch| scope.spawn(move || compile(arch)));
        families.map(|family| family.join().expect("a compilation does not panic"))
    });
    let compiled = compiled.into_iter().collect::<Result<Vec<_>>>()?;
    let Some(ptxas) = compiled.iter().find_map(|compiled| compiled.built.ptxas.as_ref()) else {
        bail!("the gate needs ptxas: type `cargo xtask setup`");
    };
    refuse(&compiled.iter().flat_map(|compiled| compiled.violations.clone()).collect::<Vec<_>>())?;

    let mut table = format!(
        "What each GPU kernel uses. Written by `cargo xtask gate --update`, checked by `cargo xtask gate`.\n\
         regs: per thread; shared: static bytes per block; occ: blocks that an SM holds at a time, before dynamic shared\n\
         memory; SASS: instructions in the machine code; QGMMA shape: M x N x K of its warpgroup products; ptxas {}.\n",
        ptxas.version()?
    );
    for compiled in &compiled {
        let _ = write!(table, "\n{}", compiled.table);
    }
    let path = table_path();
    if update {
        fs::write(&path, &table).with_context(|| format!("could not write {}", path.display()))?;
        println!("wrote {}", path.display());
        return Ok(());
    }
    let committed =
        fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
    let changes = differences(&committed, &table);
    if !changes.is_empty() {
        bail!(
            "kernel resources differ from {}; if that is meant, `cargo xtask gate --update` and commit:\n{}",
            path.display(),
            changes.join("\n")
        );
    }
    let kernels: usize = compiled.iter().map(|compiled| compiled.built.kernels.len()).sum();
    println!(
        "{kernels} kernels: no spills, no stack frames, no remarks, QGMMA as declared, resources as committed"
    );
    Ok(())
}

struct Compiled {
    built: Built,
    table: String,
    violations: Vec<String>,
}

fn compile(arch: Arch) -> Result<Compiled> {
    let target = target_dir();
    let ptx_dir = target.join("ptx");
    let built = CudaBuilder::new(root().join("kernels-gpu"))
        .arch(arch)
        .target_dir(&target)
        .ptx_dir(&ptx_dir)
        .keep_cubin()
        .build()?;
    let mut counts = None;
    if built.ptxas.is_some() {
        counts = sass::count(&built.ptx_path.with_extension("cubin"), root())?;
    }
    let mut violations = built.violations();
    for kernel in &built.kernels {
        let Some(counts) = &counts else { break };
        let count = counts.iter().find(|(name, _)| *name == kernel.name).map(|(_, count)| count);
        let found = misuses(kernel, count);
        violations.extend(found.into_iter().map(|misuse| format!("{arch} {}: {misuse}", kernel.name)));
    }
    let table = table(&built, counts.as_deref());
    Ok(Compiled { built, table, violations })
}

/// What a kernel's machine code, if the disassembly has it, holds that it must not, and lacks that it must
/// have.
fn misuses(kernel: &KernelInfo, count: Option<&Instructions>) -> Vec<String> {
    let Some(count) = count else { return vec!["no machine code".to_owned()] };
    let mut misuses = Vec::new();
    if count.local != 0 {
        misuses.push(format!("{} instructions on local memory", count.local));
    }
    let declared = kernel.wgmma_n.iter().map(|n| format!("64x{n}x32")).collect::<Vec<_>>();
    for shape in count.qgmma_shapes.iter().filter(|shape| !declared.contains(shape)) {
        let instead = match declared.is_empty() {
            true => "declares no `wgmma_n`".to_owned(),
            false => format!("declares {} by its `wgmma_n`", declared.join(", ")),
        };
        misuses.push(format!("has QGMMA.{shape}, but {instead}"));
    }
    for shape in declared.iter().filter(|shape| !count.qgmma_shapes.contains(*shape)) {
        misuses.push(format!("has no QGMMA.{shape}, which it declares by its `wgmma_n`"));
    }
    misuses
}

fn table(built: &Built, counts: Option<&[(String, Instructions)]>) -> String {
    let mut table = format!(
        "{:<44} {:>7} {:>6} {:>5} {:>7} {:>4} {:>6} {:>6} {:>5} {:>5} {:>8}  QGMMA shape\n",
        built.arch.name(),
        "threads",
        "blocks",
        "regs",
        "shared",
        "occ",
        "SASS",
        "QGMMA",
        "QMMA",
        "HMMA",
        "generic"
    );
    for KernelInfo { name, threads, min_blocks, static_shared, resources, .. } in &built.kernels {
        let known = |f: &dyn Fn(u32) -> u32| {
            let registers = resources.as_ref().map(|Resources { registers, .. }| *registers);
            registers.map_or("?".to_owned(), |registers| f(registers).to_string())
        };
        let registers = known(&|registers| registers);
        let occupancy =
            known(&|registers| occupancy::blocks(built.arch, *threads, registers, *static_shared));
        let _ = write!(
            table,
            "{name:<44} {threads:>7} {min_blocks:>6} {registers:>5} {static_shared:>7} {occupancy:>4}"
        );
        let count = counts.and_then(|counts| counts.iter().find(|(kernel, _)| kernel == name));
        if let Some((_, Instructions { total, qgmma, qgmma_shapes, qmma, hmma, generic, .. })) = count {
            let _ = write!(table, " {total:>6} {qgmma:>6} {qmma:>5} {hmma:>5} {generic:>8}");
            for (i, shape) in qgmma_shapes.iter().enumerate() {
                let _ = write!(table, "{}{shape}", if i == 0 { "  " } else { ", " });
            }
        }
        table.push('\n');
    }
    table
}

fn refuse(violations: &[String]) -> Result<()> {
    if !violations.is_empty() {
        bail!("the kernels do what they must not:\n{}", violations.join("\n"));
    }
    Ok(())
}

/// The lines of either table that the other lacks, `-` for the committed one and `+` for the new one.
fn differences(committed: &str, new: &str) -> Vec<String> {
    let lacks = |table: &str, line: &str| !table.lines().any(|other| other == line);
    let gone = committed.lines().filter(|line| lacks(new, line)).map(|line| format!("- {line}"));
    let come = new.lines().filter(|line| lacks(committed, line)).map(|line| format!("+ {line}"));
    gone.chain(come).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(wgmma_n: &[u32]) -> KernelInfo {
        KernelInfo {
            name: "gemm".into(),
            threads: 288,
            min_blocks: 1,
            cluster: 1,
            wgmma_n: wgmma_n.to_vec(),
            overlap: false,
            may_unroll: true,
            dynamic_shared: 0,
            params: Vec::new(),
            static_shared: 0,
            text: 0..0,
            resources: Some(Resources { registers: 168, ..Resources::default() }),
        }
    }

    fn with_shapes(shapes: &[&str]) -> Instructions {
        let qgmma_shapes = shapes.iter().map(|&shape| shape.to_owned()).collect();
        Instructions { total: 900, qgmma: 4 * shapes.len() as u32, qgmma_shapes, ..Instructions::default() }
    }

    #[test]
    fn the_declared_shapes_are_the_only_ones() {
        let misuses =
            |wgmma_n: &[u32], shapes: &[&str]| misuses(&kernel(wgmma_n), Some(&with_shapes(shapes)));
        assert!(misuses(&[], &[]).is_empty());
        assert!(misuses(&[128], &["64x128x32"]).is_empty());
        assert_eq!(misuses(&[], &["64x8x32"]), ["has QGMMA.64x8x32, but declares no `wgmma_n`"]);
        let missing = "has no QGMMA.64x128x32, which it declares by its `wgmma_n`";
        assert_eq!(misuses(&[128], &[]), [missing]);
        let other = "has QGMMA.64x256x32, but declares 64x128x32 by its `wgmma_n`";
        assert_eq!(misuses(&[128], &["64x256x32"]), [other, missing]);
        assert_eq!(misuses(&[128], &["64x128x32", "64x256x32"]), [other]);
        assert!(misuses(&[8, 128], &["64x128x32", "64x8x32"]).is_empty());
    }

    #[test]
    fn local_memory_and_missing_code_are_refused() {
        let spilled = Instructions { local: 2, ..with_shapes(&[]) };
        assert_eq!(misuses(&kernel(&[]), Some(&spilled)), ["2 instructions on local memory"]);
        assert_eq!(misuses(&kernel(&[]), None), ["no machine code"]);
    }

    #[test]
    fn the_table_names_the_shape() {
        let built = |kernel| Built {
            arch: Arch::Sm90a,
            ptx_path: "x.ptx".into(),
            kernels: vec![kernel],
            arguments: Vec::new(),
            items: Vec::new(),
            remarks: Vec::new(),
            ptxas: None,
        };
        let row = |shapes| {
            let counts = [("gemm".to_owned(), with_shapes(shapes))];
            table(&built(kernel(&[8])), Some(&counts)).lines().nth(1).map(str::to_owned)
        };
        assert!(row(&["64x8x32"]).is_some_and(|row| row.ends_with("  4     0     0        0  64x8x32")));
        assert!(row(&[]).is_some_and(|row| row.ends_with("  0     0     0        0")));
    }

    #[test]
    fn differences_name_the_lines() {
        assert!(differences("a 1\nb 2\n", "a 1\nb 2\n").is_empty());
        assert_eq!(differences("a 1\nb 2\n", "a 1\nb 3\nc 4\n"), ["- b 2", "+ b 3", "+ c 4"]);
    }
}
