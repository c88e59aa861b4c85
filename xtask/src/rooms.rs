//! Who may know whom: the rooms of a crate, and that imports point one way.
//!
//! A room is a file or a folder right below a crate's root. [`Rooms::arrows`] lists the rooms in order, and
//! for each the rooms that it may use, all of them above it: so the arrows have no circles. Read are the
//! paths that begin with `crate`, `super` or `self`, in imports and elsewhere; what the root re-exports
//! counts as its room's.
//!
//! Files of one room must not form circles either. A folder's `mod.rs` stands for the folder, and is left out
//! of that.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::process::{heading, root};

/// A crate's rooms.
struct Rooms {
    /// Folder with the crate's root file, from the repository's root.
    source: &'static str,
    /// Rooms, lowest first, and the rooms that each may use.
    arrows: &'static [(&'static str, &'static [&'static str])],
    /// Rooms whose files still form circles.
    tangled: &'static [&'static str],
}

const CRATES: [Rooms; 3] = [HOST, KERNELS, PTX_SIM];

/// The library `fp8-moe`: the device layer, what is decided once, operations over both, layers, checkpoints,
/// ranks.
const HOST: Rooms = Rooms {
    source: "host",
    arrows: &[
        ("error", &[]),
        ("fp8", &[]),
        ("threads", &["error"]),
        ("gpu", &["error", "fp8", "threads"]),
        ("kernels", &["error", "gpu"]),
        ("config", &["error", "kernels"]),
        ("plan", &["config", "error", "gpu", "kernels"]),
        ("ops", &["config", "error", "fp8", "gpu", "kernels", "plan"]),
        ("layer", &["config", "error", "fp8", "gpu", "ops", "plan", "threads"]),
        ("checkpoint", &["config", "error", "fp8", "gpu", "layer", "threads"]),
        ("parallel", &["config", "error", "fp8", "gpu", "kernels", "layer", "ops", "plan"]),
        ("internals", &["config", "error", "fp8", "gpu", "kernels", "layer", "ops", "parallel", "plan"]),
    ],
    tangled: &[],
};

/// The device crate: what the host knows too, the tile list, and over them the kernels of each step.
const KERNELS: Rooms = Rooms {
    source: "kernels-gpu/src",
    arrows: &[
        ("abi", &[]),
        ("scan", &[]),
        ("schedule", &["abi", "scan"]),
        ("permute", &["abi", "scan", "schedule"]),
        ("router", &["abi"]),
        ("elementwise", &["abi"]),
        ("ranks", &["abi", "elementwise"]),
        ("gemm", &["abi", "elementwise", "schedule"]),
        ("few_tokens", &["abi", "elementwise", "gemm"]),
        ("read_stream", &[]),
    ],
    tangled: &[],
};

/// `crates/ptx_sim`: text, syntax tree, decoded instructions, execution over the state of a machine,
/// launches, driver.
const PTX_SIM: Rooms = Rooms {
    source: "crates/ptx_sim/src",
    arrows: &[
        ("formats", &[]),
        ("approx", &["formats"]),
        ("fault", &[]),
        ("random", &[]),
        ("counters", &["random"]),
        ("limits", &[]),
        ("ptx", &["fault"]),
        ("ldmatrix", &[]),
        ("mma", &["formats"]),
        ("wgmma", &["mma", "ldmatrix"]),
        ("tensor_map", &["wgmma"]),
        ("code", &["counters", "fault"]),
        ("state", &["code", "fault", "formats", "limits", "mma", "tensor_map", "wgmma"]),
        ("engine", &["counters", "fault", "random", "state", "tensor_map"]),
        (
            "exec",
            &[
                "code",
                "counters",
                "engine",
                "fault",
                "ldmatrix",
                "mma",
                "random",
                "state",
                "tensor_map",
                "wgmma",
            ],
        ),
        ("module", &["code", "exec", "fault", "state"]),
        (
            "decode",
            &[
                "approx", "code", "counters", "exec", "fault", "formats", "limits", "mma", "module", "ptx",
                "state",
            ],
        ),
        ("run", &["code", "counters", "engine", "exec", "fault", "random", "state"]),
        (
            "machine",
            &["counters", "decode", "fault", "mma", "code", "limits", "module", "ptx", "run", "state"],
        ),
        ("driver", &["counters", "fault", "machine", "mma", "module", "state", "tensor_map"]),
    ],
    tangled: &["driver"],
};

/// Checks every crate that has a table.
pub fn run() -> Result<()> {
    heading("directions of imports");
    let faults: Vec<String> = CRATES.iter().map(Rooms::faults).collect::<Result<Vec<_>>>()?.concat();
    if !faults.is_empty() {
        bail!("imports against the table in xtask/src/rooms.rs:\n  {}", faults.join("\n  "));
    }
    Ok(())
}

/// A module by the names on its path; the crate's root has none.
type Module = Vec<String>;

impl Rooms {
    /// What is wrong, a sentence each.
    fn faults(&self) -> Result<Vec<String>> {
        let source = root().join(self.source);
        let mut texts = BTreeMap::new();
        for file in rust_files(&source)? {
            let relative = file.strip_prefix(&source).unwrap_or(&file).to_path_buf();
            let text =
                fs::read_to_string(&file).with_context(|| format!("could not read {}", file.display()))?;
            texts.insert(module_of(&relative), text);
        }
        Ok(self.check(&texts))
    }

    /// As [`Rooms::faults`], of sources in hand.
    fn check(&self, texts: &BTreeMap<Module, String>) -> Vec<String> {
        let mut faults = self.table_faults();
        let exports = texts.get(&Module::new()).map(|text| exports(text)).unwrap_or_default();
        let mut files: BTreeMap<&Module, BTreeSet<Module>> = BTreeMap::new();
        for (module, text) in texts.iter().filter(|(module, _)| !module.is_empty()) {
            let room = &module[0];
            if room == "bin" {
                continue;
            }
            let Some((_, allowed)) = self.arrows.iter().find(|(name, _)| name == room) else {
                faults.push(format!("{}: room `{room}` is not in the table", self.source));
                continue;
            };
            for path in paths(text, module) {
                let Some(first) = path.first() else { continue };
                let other = exports.get(first).unwrap_or(first);
                let known = self.arrows.iter().any(|(name, _)| name == other);
                if known && other != room && !allowed.contains(&other.as_str()) {
                    let path = path.join("::");
                    faults.push(format!(
                        "{}/{}: `{room}` uses `{other}` (crate::{path})",
                        self.source,
                        module.join("/")
                    ));
                }
                let file = (1..=path.len()).rev().map(|n| &path[..n]).find(|path| texts.contains_key(*path));
                if let Some(file) = file
                    && file != module.as_slice()
                    && !(module.starts_with(file) || file.starts_with(module))
                    && !self.tangled.contains(&room.as_str())
                {
                    files.entry(module).or_default().insert(file.to_vec());
                }
            }
        }
        faults.sort();
        faults.dedup();
        faults.extend(circle(&files).map(|circle| format!("{}: files in a circle: {circle}", self.source)));
        faults
    }

    /// Rooms that use what is not above them.
    fn table_faults(&self) -> Vec<String> {
        let below = |at: usize, other: &str| !self.arrows[..at].iter().any(|(name, _)| *name == other);
        let arrows = self.arrows.iter().enumerate();
        let bad = arrows.flat_map(|(at, (room, uses))| {
            uses.iter()
                .filter(move |other| below(at, other))
                .map(move |other| format!("the table lets `{room}` use `{other}`, which is not above it"))
        });
        bad.collect()
    }
}

/// A circle of files, if there is one.
fn circle(files: &BTreeMap<&Module, BTreeSet<Module>>) -> Option<String> {
    // What only leads out of circles is struck off until nothing changes.
    let mut left: BTreeSet<&Module> = files.keys().copied().collect();
    loop {
        let before = left.len();
        let stays = |module: &&Module| files[*module].iter().any(|other| left.contains(other));
        left = left.iter().copied().filter(stays).collect();
        if left.len() == before {
            break;
        }
    }
    let mut walk = vec![*left.first()?];
    loop {
        let next = files[walk[walk.len() - 1]].iter().find_map(|other| left.get(other))?;
        if let Some(start) = walk.iter().position(|module| module == next) {
            walk.push(next);
            return Some(
                walk[start..].iter().map(|module| module.join("::")).collect::<Vec<_>>().join(" -> "),
            );
        }
        walk.push(next);
    }
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("could not list {}", folder.display()))? {
        let path = entry.context("could not list a file")?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

/// The module that a file, named from the crate's root, holds.
fn module_of(file: &Path) -> Module {
    let mut names: Module =
        file.with_extension("").iter().map(|name| name.to_string_lossy().into_owned()).collect();
    if names.last().is_some_and(|name| name == "mod" || name == "lib") {
        names.pop();
    }
    names
}

/// Names that the root re-exports, and their rooms.
fn exports(text: &str) -> BTreeMap<String, String> {
    let code = without_comments(text);
    let uses = code.split("pub use ").skip(1).filter_map(|rest| rest.split_once(';'));
    let paths = uses.flat_map(|(tree, _)| expand(tree));
    paths.filter(|path| path.len() > 1).map(|path| (path[path.len() - 1].clone(), path[0].clone())).collect()
}

/// The paths inside the crate that a file of `module` names, from the crate's root.
fn paths(text: &str, module: &Module) -> Vec<Module> {
    let code = without_comments(text);
    let mut found = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back().unwrap_or(' ');
            if before.is_alphanumeric() || before == '_' || before == ':' {
                continue;
            }
            for path in expand(tree_at(&code[at..])) {
                let supers = path.iter().take_while(|name| *name == "super").count();
                let base: &[String] = match path[0].as_str() {
                    "crate" => &[],
                    "self" => module,
                    _ => &module[..module.len().saturating_sub(supers)],
                };
                found.push([base, &path[supers.max(1)..]].concat());
            }
        }
    }
    found
}

fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

/// The path or tree of paths at the beginning of some code.
fn tree_at(code: &str) -> &str {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => {
                depth -= 1;
                if depth == 0 {
                    return &code[..=at];
                }
            }
            ':' | '_' => {}
            c if depth > 0 || c.is_alphanumeric() => {}
            _ => return &code[..at],
        }
    }
    code
}

/// The paths of a tree: `a::{b, c::d}` are `a::b` and `a::c::d`.
fn expand(tree: &str) -> Vec<Module> {
    let tree = tree.trim();
    let names = |path: &str| -> Module {
        path.split("::").map(|name| name.split_whitespace().next().unwrap_or("").to_string()).collect()
    };
    let Some((prefix, inner)) = tree.split_once('{') else { return vec![names(tree)] };
    let prefix = names(prefix.trim_end_matches("::"));
    let inner = inner.strip_suffix('}').unwrap_or(inner);
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inner[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    let parts = parts.into_iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(expand).map(|path| [prefix.clone(), path].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_point_one_way() {
        for rooms in &CRATES {
            assert_eq!(rooms.faults().expect("the sources can be read"), Vec::<String>::new());
        }
    }

    fn check(files: &[(&str, &str)]) -> Vec<String> {
        const ROOMS: Rooms = Rooms { source: "s", arrows: &[("low", &[]), ("high", &["low"])], tangled: &[] };
        let module = |file: &str| module_of(Path::new(file));
        ROOMS.check(&files.iter().map(|(file, text)| (module(file), text.to_string())).collect())
    }

    #[test]
    fn an_arrow_that_is_not_in_the_table_is_found() {
        let low = ("low.rs", "pub struct Low;");
        assert_eq!(check(&[low, ("high/mod.rs", "use crate::low::Low; // crate::nothing")]), [""; 0]);
        for text in ["use crate::{a, high::{self, b}};", "fn f() { super::high::g() }", "use crate::High;"] {
            let faults = check(&[
                ("lib.rs", "pub use high::High;"),
                ("low.rs", text),
                ("high/mod.rs", "struct High;"),
            ]);
            assert!(
                !faults.is_empty() && faults.iter().all(|fault| fault.contains("`low` uses `high`")),
                "{text}: {faults:?}"
            );
        }
        assert!(check(&[("other.rs", "")])[0].contains("not in the table"));
    }

    #[test]
    fn a_circle_of_files_is_found() {
        let files = [
            ("high/mod.rs", "mod a; mod b;"),
            ("high/a.rs", "use super::b::B;"),
            ("high/b.rs", "use super::a::{A, C};"),
            ("high/c.rs", "use super::a::A;"),
        ];
        assert_eq!(check(&files), ["s: files in a circle: high::a -> high::b -> high::a"]);
    }

    #[test]
    fn a_table_with_a_circle_is_refused() {
        let rooms = Rooms { source: "s", arrows: &[("a", &["b"]), ("b", &[])], tangled: &[] };
        assert_eq!(rooms.table_faults(), ["the table lets `a` use `b`, which is not above it"]);
    }
}
