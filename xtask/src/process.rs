//! Running programs, and saying which.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// The repository's root: of the checkout that `cargo xtask` runs in, also where this program was compiled in
/// another, with which it shares a target directory.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let manifest =
            env::var_os("CARGO_MANIFEST_DIR").map_or(env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        manifest.parent().unwrap_or(Path::new(".")).to_owned()
    })
}

/// The folder that cargo builds into.
pub fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// The cargo that runs this program.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // `cargo run` sets these for us; a build that saw them would be another build.
    for (name, _) in env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            command.env_remove(name);
        }
    }
    command
}

/// `cargo <task>` in a crate outside the workspace, with nothing in its environment but where programs,
/// crates and toolchains are.
pub fn stranger(directory: &Path, task: &str) -> Command {
    let mut command = cargo();
    command.env_clear().current_dir(directory);
    for name in ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"] {
        if let Some(value) = env::var_os(name) {
            command.env(name, value);
        }
    }
    command.arg(task);
    if ["build", "check", "run", "rustc"].contains(&task) {
        command.arg("--target-dir").arg(target_dir().join("strangers"));
        // Built once, for nobody to debug.
        command.args(["--config", "profile.dev.debug=false", "--config", "profile.dev.incremental=false"]);
    }
    command
}

/// Prints a heading, runs the program with its output shown, and fails if it fails.
pub fn step(title: &str, command: &mut Command) -> Result<()> {
    heading(title);
    let start = Instant::now();
    let program = display(command);
    let status = command.status().with_context(|| format!("could not run {program}"))?;
    if !status.success() {
        bail!("{title} failed ({status}): {program}");
    }
    println!("    {title}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// A program that runs beside others. What it prints is shown when it has ended, so that each heading keeps
/// its own.
pub struct Beside {
    title: &'static str,
    child: Child,
    printed: PathBuf,
}

impl Beside {
    /// Starts it.
    pub fn start(title: &'static str, command: &mut Command) -> Result<Self> {
        let printed = target_dir().join("beside.log");
        let file =
            File::create(&printed).with_context(|| format!("could not create {}", printed.display()))?;
        let errors = file.try_clone().context("could not share a file")?;
        let program = display(command);
        let child = command.stdout(file).stderr(errors).spawn();
        Ok(Beside { title, child: child.with_context(|| format!("could not run {program}"))?, printed })
    }

    /// Waits for it, shows what it has printed, and fails if it failed.
    pub fn finish(mut self) -> Result<()> {
        let start = Instant::now();
        let status = self.child.wait().with_context(|| format!("could not wait for {}", self.title))?;
        print!("{}", fs::read_to_string(&self.printed).unwrap_or_default());
        if !status.success() {
            bail!("{} failed ({status})", self.title);
        }
        println!("    {}: waited {:.1} s for them", self.title, start.elapsed().as_secs_f64());
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Another check has failed. What this one has started ends by itself, soon.
        let _ = self.child.kill();
    }
}

/// Prints the title of a section.
pub fn heading(title: &str) {
    println!("\n==> {title}");
}

/// Runs the program quietly; its output, or an error with its messages.
pub fn output(command: &mut Command) -> Result<String> {
    let program = display(command);
    let output = command.output().with_context(|| format!("could not run {program}"))?;
    if !output.status.success() {
        bail!("{program} failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn display(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
