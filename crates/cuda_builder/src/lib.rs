//! Compiles a `no_std` Rust device crate to PTX with the NVPTX back end of rustc, and says what came out.
//!
//! ```text
//! device crate --cargo rustc, -Zbuild-std=core, nvptx64--> whole-program assembly (fat LTO, one codegen unit)
//!     --rewrite (ptx)--> launch bounds in, DWARF and machine paths out --> <ptx_dir>/<crate>.<arch>.ptx
//!     --ptxas, where there is one--> registers, shared memory, spills, remarks per kernel
//!     --records, launchers--> Rust source for the host: entries, their arguments, numbers, kinds
//! ```
//!
//! A build script uses it so:
//!
//! ```no_run
//! # fn main() -> Result<(), cuda_builder::Error> {
//! use cuda_builder::{Arch, CudaBuilder};
//!
//! let out_dir = std::env::var("OUT_DIR").unwrap_or_default();
//! let built = CudaBuilder::new("kernels-gpu").arch(Arch::Sm90a).ptx_dir(&out_dir).build()?;
//! for kernel in &built.kernels {
//!     println!("{}: {} threads, {:?}", kernel.name, kernel.threads, kernel.resources);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The device crate is compiled with `RUSTC_BOOTSTRAP=1`, since the NVPTX target's language features are
//! unstable; that setting reaches the device crate alone. Everything the build script inherits from the outer
//! cargo (`CARGO_*`, `RUSTFLAGS`, wrappers) is removed, and the nested target folder
//! `<target>/cuda_builder/<arch>` is shared between the profiles of the outer build, so that `core` is
//! compiled once per family.

mod compile;
mod error;
pub mod launchers;
pub mod ptx;
pub mod ptxas;
pub mod records;
pub mod sass;
mod sources;
mod toolchain;

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

pub use error::Error;
pub use ptx::KernelInfo;
pub use ptxas::{Ptxas, Resources};
use records::{Arguments, HostItem, Records};
pub use sources::source_paths;

/// A GPU family: what the device crate sees as `cfg(target_feature = "..")`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    /// Ada (compute capability 8.9): `cp.async`, `ldmatrix`, FP8 `mma.sync`. Also runs on anything newer.
    Sm89,
    /// Hopper (compute capability 9.0) with its architecture-specific instructions: TMA, `wgmma`.
    Sm90a,
}

impl Arch {
    /// Every family.
    pub const ALL: [Arch; 2] = [Arch::Sm89, Arch::Sm90a];

    /// The name that rustc and ptxas know it by.
    pub fn name(self) -> &'static str {
        match self {
            Arch::Sm89 => "sm_89",
            Arch::Sm90a => "sm_90a",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// One compilation of a device crate.
#[derive(Clone, Debug)]
pub struct CudaBuilder {
    crate_dir: PathBuf,
    arch: Arch,
    ptx_dir: Option<PathBuf>,
    target_dir: Option<PathBuf>,
    ptxas: PtxasChoice,
    keeps_cubin: bool,
}

/// Which `ptxas` looks at the result.
#[derive(Clone, Debug)]
enum PtxasChoice {
    /// The first one found, none if there is none.
    Search,
    /// This one.
    At(PathBuf),
    /// None.
    Skip,
}

impl CudaBuilder {
    /// Compiles the crate in `crate_dir`, for [`Arch::Sm89`] unless told otherwise.
    pub fn new(crate_dir: impl Into<PathBuf>) -> Self {
        CudaBuilder {
            crate_dir: crate_dir.into(),
            arch: Arch::Sm89,
            ptx_dir: None,
            target_dir: None,
            ptxas: PtxasChoice::Search,
            keeps_cubin: false,
        }
    }

    /// Sets the family.
    pub fn arch(mut self, arch: Arch) -> Self {
        self.arch = arch;
        self
    }

    /// Sets the folder for `<crate>.<arch>.ptx`; default `OUT_DIR`, else the target folder.
    pub fn ptx_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.ptx_dir = Some(dir.into());
        self
    }

    /// Sets the outer target folder; default the one that holds `OUT_DIR`, else `CARGO_TARGET_DIR`, else
    /// `target` in the device crate's workspace.
    pub fn target_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.target_dir = Some(dir.into());
        self
    }

    /// Verifies with this `ptxas` instead of the first found.
    pub fn ptxas(mut self, path: impl Into<PathBuf>) -> Self {
        self.ptxas = PtxasChoice::At(path.into());
        self
    }

    /// Keeps the machine code that `ptxas` makes: beside the PTX, as `.cubin`.
    pub fn keep_cubin(mut self) -> Self {
        self.keeps_cubin = true;
        self
    }

    /// Does not look for a `ptxas`.
    pub fn without_ptxas(mut self) -> Self {
        self.ptxas = PtxasChoice::Skip;
        self
    }

    /// Compiles, rewrites, writes the PTX, and has `ptxas` assemble it where there is one.
    pub fn build(&self) -> Result<Built, Error> {
        let crate_dir = fs::canonicalize(&self.crate_dir)
            .map_err(|source| Error::io("find the device crate", &self.crate_dir, source))?;
        let target_dir = match &self.target_dir {
            Some(dir) => dir.clone(),
            None => default_target_dir(&crate_dir),
        };
        let ptx_dir = match (&self.ptx_dir, env::var_os("OUT_DIR")) {
            (Some(dir), _) => dir.clone(),
            (None, Some(out_dir)) => PathBuf::from(out_dir),
            (None, None) => target_dir.join("cuda_builder"),
        };
        let assembly = compile::compile(&crate_dir, self.arch, &target_dir)?;
        let (text, mut records) = ptx::rewrite(&assembly.text, &assembly.prefixes)?;

        fs::create_dir_all(&ptx_dir).map_err(|source| Error::io("create", &ptx_dir, source))?;
        let ptx_path = ptx_dir.join(format!("{}.{}.ptx", assembly.crate_name, self.arch));
        if fs::read_to_string(&ptx_path).ok().as_deref() != Some(&text) {
            fs::write(&ptx_path, &text).map_err(|source| Error::io("write", &ptx_path, source))?;
        }

        let ptxas = match &self.ptxas {
            PtxasChoice::Search => Ptxas::find(&crate_dir),
            PtxasChoice::At(path) => Some(Ptxas::at(path)),
            PtxasChoice::Skip => None,
        };
        let mut remarks = Vec::new();
        if let Some(ptxas) = &ptxas {
            let cubin = self.keeps_cubin.then(|| ptx_path.with_extension("cubin"));
            let report = ptxas.assemble(&ptx_path, self.arch, cubin.as_deref())?;
            for kernel in &mut records.kernels {
                kernel.resources = report.resources(&kernel.name).cloned();
            }
            remarks = report.remarks;
        }
        let Records { kernels, arguments, items } = records;
        Ok(Built { arch: self.arch, ptx_path, kernels, arguments, items, remarks, ptxas })
    }
}

/// Compiles the crate in `crate_dir` for every family, side by side, and writes into `folder` what a library
/// embeds:
///
/// ```text
/// <crate>.sm_89.ptx  <crate>.sm_90a.ptx    the PTX
/// launchers.rs                             what launchers::generate returns
/// summaries.rs                             what launchers::table returns
/// ```
///
/// The same sources give the same bytes, wherever they and the toolchain lie. No `ptxas` is run. What is
/// compiled on the way goes into the target folder `target_dir`.
pub fn package(crate_dir: &Path, folder: &Path, target_dir: &Path) -> Result<(), Error> {
    let build = |arch| {
        let builder = CudaBuilder::new(crate_dir).arch(arch).target_dir(target_dir);
        builder.ptx_dir(folder).without_ptxas().build()
    };
    let builds = thread::scope(|scope| {
        let builds = Arch::ALL.map(|arch| scope.spawn(move || build(arch)));
        builds.map(|build| build.join().expect("the builder does not panic"))
    });
    let builds = builds.into_iter().collect::<Result<Vec<_>, _>>()?;
    let generated =
        [("launchers.rs", launchers::generate(&builds)?), ("summaries.rs", launchers::table(&builds)?)];
    for (name, source) in generated {
        let path = folder.join(name);
        fs::write(&path, source).map_err(|source| Error::io("write", &path, source))?;
    }
    Ok(())
}

/// What a build produced.
#[derive(Clone, Debug)]
pub struct Built {
    /// The family it is for.
    pub arch: Arch,
    /// The PTX, ready for the driver.
    pub ptx_path: PathBuf,
    /// Its kernels, by name.
    pub kernels: Vec<KernelInfo>,
    /// The structs that they take, by name.
    pub arguments: Vec<Arguments>,
    /// What else the host has as well, by name.
    pub items: Vec<HostItem>,
    /// What `ptxas` remarked on performance (its C75xx lines), verbatim.
    pub remarks: Vec<String>,
    /// The `ptxas` that assembled it, if any.
    pub ptxas: Option<Ptxas>,
}

impl Built {
    /// What no kernel may have: spills, a stack frame, a performance remark. One line each.
    pub fn violations(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for kernel in &self.kernels {
            let Some(resources) = &kernel.resources else { continue };
            let (name, arch) = (&kernel.name, self.arch);
            if resources.spill_stores != 0 || resources.spill_loads != 0 {
                let Resources { spill_stores, spill_loads, .. } = resources;
                lines.push(format!(
                    "{arch} {name}: spills {spill_stores} bytes of stores, {spill_loads} bytes of loads"
                ));
            }
            if resources.stack != 0 {
                lines.push(format!("{arch} {name}: {} bytes of stack frame", resources.stack));
            }
        }
        lines.extend(self.remarks.iter().map(|remark| format!("{}: {remark}", self.arch)));
        lines
    }
}

/// The outer target folder where nobody named one.
fn default_target_dir(crate_dir: &Path) -> PathBuf {
    if let Some(out_dir) = env::var_os("OUT_DIR") {
        return enclosing_target_dir(Path::new(&out_dir));
    }
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => crate_dir.join("target"),
    }
}

/// The cargo target folder that `path` lies in: the nearest ancestor that cargo has tagged, else `path`
/// itself.
pub fn enclosing_target_dir(path: &Path) -> PathBuf {
    let tagged = path.ancestors().find(|ancestor| ancestor.join("CACHEDIR.TAG").is_file());
    tagged.unwrap_or(path).to_path_buf()
}
