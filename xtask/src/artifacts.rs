//! The executables of the workspace's tests, by what cargo says of them.
//!
//! All come from one build, of the whole workspace as `cargo test --workspace` makes it. To name one test to
//! cargo would choose other features for its packages, and compile the emulator anew: four minutes.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::cargo;

/// An executable, from one of cargo's messages:
/// `{"reason":"compiler-artifact","manifest_path":"..","target":{"name":"..","kind":["test"]},
/// "profile":{"test":true},"executable":".."}`.
#[derive(Debug, PartialEq)]
pub struct Artifact {
    /// The manifest of its package.
    pub manifest: String,
    /// The name of its cargo target.
    pub target: String,
    /// `test`, `bin`, `lib`, `example`, ..
    pub kind: String,
    /// Whether it runs tests.
    pub is_test: bool,
    /// Where it lies.
    pub executable: PathBuf,
}

impl Artifact {
    fn read(message: &str) -> Option<Artifact> {
        let message: Value = serde_json::from_str(message).ok()?;
        if message["reason"] != "compiler-artifact" {
            return None;
        }
        Some(Artifact {
            manifest: message["manifest_path"].as_str()?.to_owned(),
            target: message["target"]["name"].as_str()?.to_owned(),
            kind: message["target"]["kind"][0].as_str()?.to_owned(),
            is_test: message["profile"]["test"].as_bool()?,
            executable: message["executable"].as_str()?.into(),
        })
    }

    /// `grid`, or of tests beside their code `fp8_moe_unit` and `fp8_moe_bin`.
    pub fn test_name(&self) -> String {
        let suffix = match self.kind.as_str() {
            "test" => "",
            "bin" => "_bin",
            _ => "_unit",
        };
        format!("{}{suffix}", self.target.replace('-', "_"))
    }
}

/// Builds all tests of the workspace, where they are not built yet. Returns their executables, and those of
/// the commands and examples.
pub fn build(release: bool) -> Result<Vec<Artifact>> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-run", "--quiet", "--message-format=json-render-diagnostics"]);
    if release {
        command.arg("--release");
    }
    let built = command.stderr(Stdio::inherit()).output().context("could not run cargo")?;
    if !built.status.success() {
        bail!("the tests do not build");
    }
    let messages = String::from_utf8(built.stdout).context("cargo's messages are not UTF-8")?;
    Ok(messages.lines().filter_map(Artifact::read).collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn reads_cargos_messages() {
        let message = |test: bool, kind: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/m","target":{{"name":"fp8-moe","kind":["{kind}"]}},"profile":{{"test":{test}}},"executable":"/t/x"}}"#
            )
        };
        let name = |kind: &str| Artifact::read(&message(true, kind)).map(|found| found.test_name());
        assert_eq!(name("test").as_deref(), Some("fp8_moe"));
        assert_eq!(name("lib").as_deref(), Some("fp8_moe_unit"));
        assert_eq!(name("bin").as_deref(), Some("fp8_moe_bin"));
        let program = Artifact::read(&message(false, "bin")).expect("an executable");
        assert!(!program.is_test && program.executable == Path::new("/t/x"));
        assert_eq!(Artifact::read("not json"), None);
        assert_eq!(Artifact::read(&message(true, "lib").replace(r#""/t/x""#, "null")), None, "no executable");
    }
}
