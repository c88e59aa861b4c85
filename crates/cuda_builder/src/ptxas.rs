//! NVIDIA's assembler, `ptxas`: found, run, and its report read.
//!
//! It needs no GPU and no CUDA installation; the PyPI package `nvidia-cuda-nvcc` carries it. Where there is
//! none, the build goes on without the check: the driver assembles PTX at load time anyway.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Arch, Error};

/// What a kernel uses of an SM, in `ptxas`'s count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Registers per thread.
    pub registers: u32,
    /// Named barriers.
    pub barriers: u32,
    /// Bytes of static shared memory per block.
    pub static_shared: u32,
    /// Bytes of stack frame per thread.
    pub stack: u32,
    /// Bytes stored to spill registers, per thread.
    pub spill_stores: u32,
    /// Bytes loaded to restore spilled registers, per thread.
    pub spill_loads: u32,
}

/// A `ptxas` program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ptxas {
    path: PathBuf,
}

impl Ptxas {
    /// The program at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Ptxas { path: path.into() }
    }

    /// The first of: `.toolchain/cuda/bin` in `dir` or above it, `PATH`, `CUDA_HOME/bin`, `CUDA_PATH/bin`.
    pub fn find(dir: &Path) -> Option<Self> {
        find_program("ptxas", dir).map(Ptxas::at)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version: `V13.0.88`.
    pub fn version(&self) -> Result<String, Error> {
        let output = Command::new(&self.path).arg("--version").output();
        let output = output.map_err(|source| Error::io("run", &self.path, source))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split_whitespace().find(|word| word.starts_with('V') && word.contains('.'));
        version
            .map(str::to_owned)
            .ok_or_else(|| Error::Tool { program: self.path.clone(), messages: text.clone() })
    }

    /// Assembles `ptx`; keeps the machine code in `cubin` if given.
    pub fn assemble(&self, ptx: &Path, arch: Arch, cubin: Option<&Path>) -> Result<Report, Error> {
        let scratch = ptx.with_extension("cubin.scratch");
        let output = Command::new(&self.path)
            .args(["--verbose", "--warn-on-spills", "--gpu-name", arch.name(), "--output-file"])
            .arg(cubin.unwrap_or(&scratch))
            .arg(ptx)
            .output()
            .map_err(|source| Error::io("run", &self.path, source))?;
        let _ = fs::remove_file(&scratch);
        let messages =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        if output.status.success() {
            Ok(Report::parse(&messages))
        } else {
            Err(Error::Ptxas { path: ptx.to_path_buf(), arch: arch.name(), messages })
        }
    }
}

/// The first program of this name in the places where CUDA's tools are.
pub fn find_program(name: &str, dir: &Path) -> Option<PathBuf> {
    let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_path_buf());
    let own = dir.ancestors().map(|ancestor| ancestor.join(".toolchain/cuda/bin")).collect::<Vec<_>>();
    let path =
        env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default();
    let installed =
        ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(|home| PathBuf::from(home).join("bin"));
    own.into_iter().chain(path).chain(installed).map(|dir| dir.join(name)).find(|program| program.is_file())
}

/// What `ptxas --verbose` said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    kernels: Vec<(String, Resources)>,
    /// The lines with a C75xx code: serialised `wgmma`, ignored `setmaxnreg`.
    pub remarks: Vec<String>,
}

impl Report {
    /// The resources of a kernel.
    pub fn resources(&self, kernel: &str) -> Option<&Resources> {
        self.kernels.iter().find(|(name, _)| name == kernel).map(|(_, resources)| resources)
    }

    /// Reads the report:
    ///
    /// ```text
    /// ptxas info    : Compiling entry function 'scale' for 'sm_90a'
    /// ptxas info    : Function properties for scale
    ///     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
    /// ptxas info    : Used 18 registers, used 1 barriers, 1024 bytes smem
    /// ```
    pub fn parse(messages: &str) -> Self {
        let mut report = Report::default();
        for line in messages.lines() {
            if line.contains("(C75") {
                report.remarks.push(line.trim().to_owned());
            } else if let Some((_, rest)) = line.split_once("Compiling entry function '") {
                let name = rest.split('\'').next().unwrap_or_default();
                report.kernels.push((name.to_owned(), Resources::default()));
            } else if let Some((_, resources)) = report.kernels.last_mut() {
                let number = |unit: &str| number_before(line, unit);
                if line.contains("bytes stack frame") {
                    resources.stack += number(" bytes stack frame");
                    resources.spill_stores += number(" bytes spill stores");
                    resources.spill_loads += number(" bytes spill loads");
                } else if line.contains(": Used ") {
                    resources.registers = number(" registers");
                    resources.barriers = number(" barriers");
                    resources.static_shared = number(" bytes smem");
                }
            }
        }
        report
    }
}

/// The number right before the first `unit`; 0 where there is none.
fn number_before(line: &str, unit: &str) -> u32 {
    let before = line.split(unit).next().filter(|before| before.len() < line.len()).unwrap_or_default();
    let digits = before.len() - before.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    before[before.len() - digits..].parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_registers_shared_memory_spills_and_remarks() {
        let report = Report::parse(
            "ptxas info    : 0 bytes gmem\n\
             ptxas info    : Compiling entry function 'scale' for 'sm_90a'\n\
             ptxas info    : Function properties for scale\n    \
             16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
             ptxas info    : Used 18 registers, used 5 barriers, 16 bytes cumulative stack size, 1024 bytes smem, 368 bytes cmem[0]\n\
             ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized in function 'gemm'\n\
             ptxas info    : Compiling entry function 'plain' for 'sm_90a'\n\
             ptxas info    : Function properties for plain\n    \
             0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
             ptxas info    : Used 8 registers, used 0 barriers\n",
        );
        let spilled = Resources {
            registers: 18,
            barriers: 5,
            static_shared: 1024,
            stack: 16,
            spill_stores: 8,
            spill_loads: 12,
        };
        assert_eq!(report.resources("scale"), Some(&spilled));
        assert_eq!(report.resources("plain"), Some(&Resources { registers: 8, ..Resources::default() }));
        assert_eq!(report.resources("absent"), None);
        assert_eq!(report.remarks.len(), 1);
        assert!(report.remarks[0].contains("C7510"));
    }
}
