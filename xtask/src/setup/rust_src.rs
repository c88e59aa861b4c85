//! The source of Rust's `core`, which the NVPTX target is built from.
//!
//! rustup's component `rust-src` is the usual way. Where rustup cannot download, Debian packages the same
//! files: the source package of exactly our version, from the suite named below, unpacked into a folder of
//! the project's own and linked into the sysroot. apt runs with its own configuration and lists, so the
//! system's are neither used nor changed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::toolchain_dir;
use crate::process::{output, root};

const SUITE: &str = "trixie-backports";
const MIRROR: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Makes sure that the sysroot has it.
pub fn ensure() -> Result<()> {
    let place = sysroot()?.join("lib/rustlib/src/rust");
    if is_source(&place) {
        println!("rust-src: present at {}", place.display());
        return Ok(());
    }
    let unpacked = toolchain_dir().join("rust-src");
    let version = rustc_version()?;
    let source = unpacked.join(format!("usr/src/rustc-{version}"));
    if !is_source(&source) {
        println!("rust-src: not at {}; looking for Rust {version}'s in Debian", place.display());
        if let Err(error) = from_debian(&version, &unpacked) {
            println!("rust-src: not from Debian: {error:#}");
            return from_rustup(&place);
        }
    }
    if !is_source(&source) {
        bail!("Debian's rust-src {version} does not hold {}", source.join("library/core").display());
    }
    link(&source, &place)?;
    println!("rust-src: linked {} to {}", place.display(), source.display());
    Ok(())
}

fn is_source(place: &Path) -> bool {
    place.join("library/core/src/lib.rs").is_file()
}

fn sysroot() -> Result<PathBuf> {
    let printed = output(Command::new("rustc").args(["--print", "sysroot"]).current_dir(root()))?;
    Ok(PathBuf::from(printed.trim()))
}

/// `1.95.0`, of the rustc that builds this project.
fn rustc_version() -> Result<String> {
    let printed = output(Command::new("rustc").arg("--version").current_dir(root()))?;
    let version = printed.split(' ').nth(1).context("`rustc --version` names no version")?;
    Ok(version.to_owned())
}

/// Downloads Debian's package of exactly `version` and unpacks it to `unpacked`.
fn from_debian(version: &str, unpacked: &Path) -> Result<()> {
    if !Path::new(KEYRING).is_file() {
        bail!("{KEYRING} is not there to check signatures with");
    }
    let work = toolchain_dir().join("apt");
    for dir in ["sources", "lists/partial", "cache/archives/partial"] {
        let dir = work.join(dir);
        fs::create_dir_all(&dir).with_context(|| format!("could not create {}", dir.display()))?;
    }
    let source =
        format!("Types: deb\nURIs: {MIRROR}\nSuites: {SUITE}\nComponents: main\nSigned-By: {KEYRING}\n");
    fs::write(work.join("sources/rust-src.sources"), source).context("could not write apt's source list")?;
    let apt = |program: &str| {
        let mut command = Command::new(program);
        command.current_dir(&work);
        for (option, value) in [
            ("Dir::Etc::sourcelist", "/dev/null".to_owned()),
            ("Dir::Etc::sourceparts", work.join("sources").display().to_string()),
            ("Dir::State::Lists", work.join("lists").display().to_string()),
            ("Dir::Cache", work.join("cache").display().to_string()),
            ("APT::Sandbox::User", "root".to_owned()),
        ] {
            command.arg("-o").arg(format!("{option}={value}"));
        }
        command
    };

    output(apt("apt-get").args(["--quiet", "update"]))?;
    let offered = output(apt("apt-cache").args(["madison", "rust-src"]))?;
    let package = find_version(&offered, version)
        .with_context(|| format!("{SUITE} offers no rust-src {version}, only:\n{}", offered.trim()))?;
    println!("rust-src: downloading Debian's rust-src {package}");
    output(apt("apt-get").args(["--quiet", "download"]).arg(format!("rust-src={package}")))?;
    let deb = fs::read_dir(&work)
        .context("could not list apt's folder")?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package")?;
    output(Command::new("dpkg").arg("-x").arg(&deb).arg(unpacked))?;
    fs::remove_dir_all(&work).context("could not remove apt's folder")?;
    Ok(())
}

/// The Debian version of upstream `version` in `apt-cache madison`'s lines `rust-src | 1.95.0+dfsg1-2~bpo13+1
/// | ..`.
fn find_version<'a>(offered: &'a str, version: &str) -> Option<&'a str> {
    let mut versions = offered.lines().filter_map(|line| Some(line.split('|').nth(1)?.trim()));
    versions.find(|candidate| {
        let rest = candidate.strip_prefix(version);
        rest.is_some_and(|rest| rest.starts_with(['+', '-', '~']))
    })
}

fn from_rustup(place: &Path) -> Result<()> {
    println!("rust-src: asking rustup");
    output(Command::new("rustup").args(["component", "add", "rust-src"]).current_dir(root()))
        .context("rust-src is neither in the toolchain, nor offered by Debian, nor downloadable by rustup")?;
    if !is_source(place) {
        bail!("rustup added rust-src, but {} is not there", place.join("library/core").display());
    }
    println!("rust-src: added by rustup");
    Ok(())
}

/// Makes `place` a link to `source`, replacing a link that leads nowhere.
fn link(source: &Path, place: &Path) -> Result<()> {
    if place.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink()) {
        fs::remove_file(place).with_context(|| format!("could not replace the link {}", place.display()))?;
    }
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent).with_context(|| format!("could not create {}", parent.display()))?;
    }
    symlink(source, place)
        .with_context(|| format!("could not link {} to {}", place.display(), source.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_the_exact_upstream_version() {
        let offered = " rust-src | 1.95.1+dfsg1-1 | http://mirror x/main amd64 Packages\n\
                       \x20rust-src | 1.95.0+dfsg1-2~bpo13+1 | http://mirror x/main amd64 Packages\n";
        assert_eq!(find_version(offered, "1.95.0"), Some("1.95.0+dfsg1-2~bpo13+1"));
        assert_eq!(find_version(offered, "1.95"), None);
        assert_eq!(find_version("", "1.95.0"), None);
    }

    #[test]
    fn a_dangling_link_is_replaced() {
        let dir = std::env::temp_dir().join(format!("xtask-link-{}", std::process::id()));
        let place = dir.join("src/rust");
        link(Path::new("/nowhere/at/all"), &place).expect("a fresh link");
        link(&dir, &place).expect("a replaced link");
        assert_eq!(fs::read_link(&place).expect("a link"), dir);
        fs::remove_dir_all(&dir).expect("our own folder");
    }
}
