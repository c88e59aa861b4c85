//! Running the `fp8-moe` command, and what it says.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

/// What a run of the command gave.
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// The command, with the device of the tests.
pub fn command() -> Command {
    let program = std::env::var_os("FP8_MOE_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_fp8-moe")), PathBuf::from);
    let mut command = Command::new(program);
    if std::env::var_os("FP8_MOE_DEVICE").is_none() {
        command.env("FP8_MOE_DEVICE", "sim");
    }
    command
}

/// Runs the command.
pub fn fp8_moe<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Run {
    run(command().args(arguments))
}

/// Runs a command.
pub fn run(command: &mut Command) -> Run {
    let output = command.output().expect("the command starts");
    Run {
        code: output.status.code().expect("an exit code"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Asserts that the command failed with one line that contains `expected`.
#[track_caller]
pub fn assert_one_line_error(run: &Run, expected: &str) {
    assert_eq!(run.code, 2, "{}", run.stderr);
    let errors: Vec<_> = run.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{}", run.stderr);
    assert!(errors[0].contains(expected), "{}", errors[0]);
    assert_eq!(run.stderr.lines().last(), Some(errors[0]), "the error comes last");
}
