//! The README's table of features: every "yes" names tests, and they exist.
//!
//! ```text
//!   | hidden states bf16, f16 | yes: `properties::forward::f16_hidden_states` | yes |
//!                                     program  :: file(s) :: function, in tests/, or FOLDER/program::..
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::process::{heading, root};

/// Fails unless every "yes" names a test, and every test that is named exists.
pub fn run() -> Result<()> {
    heading("README: tests of its features");
    let text = fs::read_to_string(root().join("README.md")).context("could not read README.md")?;
    let tests = named(&text)?;
    for test in &tests {
        ensure!(exists(root(), test), "README.md: there is no test `{test}`");
    }
    println!("    {} tests", tests.len());
    Ok(())
}

/// The tests that the rows name in their second column.
fn named(text: &str) -> Result<Vec<&str>> {
    let mut tests = Vec::new();
    for row in text.lines().filter(|line| line.starts_with('|')) {
        let Some(cell) = row.split('|').nth(2).map(str::trim).filter(|cell| cell.starts_with("yes")) else {
            continue;
        };
        let of_row: Vec<_> = cell.split('`').skip(1).step_by(2).collect();
        ensure!(!of_row.is_empty(), "README.md: a \"yes\" without a test: {row}");
        tests.extend(of_row);
    }
    ensure!(!tests.is_empty(), "README.md has no table of features");
    Ok(tests)
}

/// Whether the file that a test's path leads to has a `#[test]` of its name.
fn exists(root: &Path, test: &str) -> bool {
    let (folder, path) = test.rsplit_once('/').unwrap_or(("tests", test));
    let Some((files, function)) = path.rsplit_once("::") else { return false };
    let file = root.join(folder).join(files.replace("::", "/"));
    let places: [PathBuf; 3] = [file.with_extension("rs"), file.join("main.rs"), file.join("mod.rs")];
    let Some(text) = places.iter().find_map(|place| fs::read_to_string(place).ok()) else { return false };
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let start = format!("fn {function}(");
    let Some(at) = lines.iter().position(|line| line.starts_with(&start)) else { return false };
    let above = lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    above.into_iter().any(|line| *line == "#[test]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_names_tests_that_exist() {
        run().unwrap_or_else(|error| panic!("{error}"));
    }

    #[test]
    fn rows_and_tests() {
        let table =
            "| | a | b |\n|---|---|---|\n| x | yes: `p::f`, q::g; `c/t/p::m::h` | yes |\n| y | no | yes |\n";
        assert_eq!(named(table).expect("a table"), ["p::f", "c/t/p::m::h"]);
        assert!(named("| x | yes: all of them | no |").is_err());
        assert!(named("no table").is_err());

        let folder = tempfile::tempdir().expect("a folder");
        let tests = folder.path().join("tests");
        fs::create_dir_all(tests.join("p")).expect("a folder");
        let source = "proptest! {\n    #[test]\n    /// What.\n    fn f(x: u8) {}\n}\n\nfn helper() {}\n";
        fs::write(tests.join("p/main.rs"), source).expect("a file");
        fs::write(tests.join("p/m.rs"), "#[test]\nfn h() {}\n").expect("a file");
        for (test, is_there) in [
            ("p::f", true),
            ("p::m::h", true),
            ("p::helper", false),
            ("p::h", false),
            ("p", false),
            ("tests/p::f", true),
        ] {
            assert_eq!(exists(folder.path(), test), is_there, "{test}");
        }
    }
}
