//! NVIDIA's assembler and disassembler, from PyPI.
//!
//! The exact versions matter: the committed resource table holds this assembler's register counts. The wheels
//! are plain archives; nothing of Python is installed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::toolchain_dir;
use crate::process::output;

/// Package, version, program in it.
const TOOLS: [(&str, &str, &str); 2] =
    [("nvidia-cuda-nvcc", "13.0.88", "ptxas"), ("nvidia-cuda-nvdisasm", "13.5.37", "nvdisasm")];

/// Package and version of `compute-sanitizer`, which only a bundle with `--sanitizer` carries.
const SANITIZER: (&str, &str) = ("nvidia-cuda-sanitizer-api", "13.0.85");

/// Makes sure that `.toolchain/cuda/bin` has the programs.
pub fn ensure() -> Result<()> {
    let bin = toolchain_dir().join("cuda/bin");
    for (package, version, program) in TOOLS {
        let path = bin.join(program);
        if path.is_file() {
            println!("{program}: present at {}", path.display());
            continue;
        }
        println!("{program}: downloading {package} {version} from PyPI");
        install(package, version, program, &bin).with_context(|| format!("{package}=={version}"))?;
        println!("{program}: installed at {}", path.display());
    }
    Ok(())
}

fn install(package: &str, version: &str, program: &str, bin: &Path) -> Result<()> {
    let unpacked = Wheel::download(package, version)?;
    // nvidia/cu13/bin/ptxas, or wherever the next release puts it.
    let Some(found) =
        unpacked.files("bin")?.into_iter().find(|path| path.file_name().is_some_and(|name| name == program))
    else {
        bail!("the wheel holds no bin/{program}");
    };
    install_file(&found, bin)
}

/// Puts `compute-sanitizer` and its libraries into `directory`.
pub fn sanitizer(directory: &Path) -> Result<()> {
    let (package, version) = SANITIZER;
    println!("compute-sanitizer: downloading {package} {version} from PyPI");
    let wheel = Wheel::download(package, version).with_context(|| format!("{package}=={version}"))?;
    for file in wheel.files("bin")?.into_iter().chain(wheel.files("lib")?) {
        install_file(&file, directory)?;
    }
    Ok(())
}

/// A downloaded and unpacked wheel; the folder goes when it is dropped.
struct Wheel {
    work: PathBuf,
}

impl Wheel {
    fn download(package: &str, version: &str) -> Result<Self> {
        let work = toolchain_dir().join("pip");
        fs::create_dir_all(&work).with_context(|| format!("could not create {}", work.display()))?;
        let wheel = Wheel { work };
        let pip = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"];
        output(Command::new("python3").args(pip).arg(&wheel.work).arg(format!("{package}=={version}")))?;
        let archive = fs::read_dir(&wheel.work)
            .context("could not list the downloads")?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .with_context(|| format!("pip downloaded no wheel of {package}"))?;
        output(
            Command::new("python3")
                .args(["-m", "zipfile", "-e"])
                .arg(&archive)
                .arg(wheel.work.join("unpacked")),
        )?;
        Ok(wheel)
    }

    /// The files in the wheel's folders of this name.
    fn files(&self, folder: &str) -> Result<Vec<PathBuf>> {
        let unpacked = self.work.join("unpacked");
        let listing = output(Command::new("find").arg(unpacked).args([
            "-type",
            "f",
            "-path",
            &format!("*/{folder}/*"),
        ]))?;
        Ok(listing.lines().map(PathBuf::from).collect())
    }
}

impl Drop for Wheel {
    fn drop(&mut self) {
        // What stays behind is overwritten by the next download.
        let _ = fs::remove_dir_all(&self.work);
    }
}

/// Copies an executable file or library into `directory`.
fn install_file(file: &Path, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("could not create {}", directory.display()))?;
    let path = directory.join(file.file_name().unwrap_or_default());
    fs::copy(file, &path).with_context(|| format!("could not copy {}", file.display()))?;
    // A wheel unpacked without pip has lost its permissions.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).context("could not make it executable")
}
