//! Reads and rewrites the PTX text that LLVM writes.
//!
//! ```text
//! .version 7.8                                becomes 8.4, which inline PTX needs
//! .target sm_90a, debug                       the `debug` flag goes: it switches ptxas's optimiser off
//! //#kernel scale threads=256 ..              a record (see `records`): read, and goes
//! .shared .align 16 .b8 scale_tile[1024];     counts for the kernels that mention it
//! .visible .entry scale(
//!     .param .u64 .ptr .align 1 scale_param_0,
//!     .param .u32 scale_param_1
//! )
//!     .maxntid 256                            inserted: rustc has no attribute for launch bounds
//!     .minnctapersm 2
//!     .pragma "nounroll";                     inserted where the record says `unroll=0`
//! {
//!     .loc 1 45 9                             stays: faults and profiles name Rust lines by it
//! $L__tmp3:                                   goes: only DWARF refers to it
//! }
//!     .file 1 "kernels-gpu/src/scale.rs"      stays, without the machine's part of the path
//!     .section .debug_info { .. }             goes
//! ```
//!
//! What belongs to no entry (declarations, `.file` lines) moves before the first. So the text up to there,
//! followed by any one entry, is a module of its own: [`KernelInfo::text`] is where an entry lies.

use std::fmt::Write as _;
use std::ops::Range;

use crate::records::{FlatParam, Param, ParamType, Records};
use crate::{Error, Resources};

/// The PTX version of what we ship: the first with every FP8 `mma`; drivers from CUDA 12.4 on read it.
///
/// LLVM writes the lowest version that its own instructions need and does not know what inline PTX needs.
const PTX_VERSION: &str = "8.4";

/// One kernel, as its `#[kernel]` attribute and its `.entry` describe it.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelInfo {
    /// Its name in the PTX.
    pub name: String,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks that fit on an SM at a time.
    pub min_blocks: u32,
    /// Blocks of a cluster.
    pub cluster: u32,
    /// N of its `wgmma`s: the shapes that its machine code must show.
    pub wgmma_n: Vec<u32>,
    /// Whether it may begin before its predecessor in the stream has ended.
    pub overlap: bool,
    /// Whether `ptxas` may unroll its loops.
    pub may_unroll: bool,
    /// Bytes of dynamic shared memory, where they are the same for every launch; else 0.
    pub dynamic_shared: u32,
    /// Its parameters in the source, in order.
    pub params: Vec<Param>,
    /// Bytes of the rewritten text that are its entry.
    pub text: Range<usize>,
    /// Bytes of static shared memory.
    pub static_shared: u32,
    /// What `ptxas` says, where there was one.
    pub resources: Option<Resources>,
}

/// The alignment that the TMA unit asks of a tensor map.
const TENSOR_MAP_ALIGNMENT: &str = ".align 64";

/// Rewrites LLVM's PTX for shipping, and reads its records.
///
/// `prefixes` are the beginnings of paths in `.file` lines and what replaces them.
pub fn rewrite(assembly: &str, prefixes: &[(String, String)]) -> Result<(String, Records), Error> {
    let mut records = Records::read(assembly)?;
    let params = records.kernels.iter().map(|kernel| records.flatten(&kernel.params));
    let params = params.collect::<Result<Vec<_>, _>>()?;
    let kernels = &mut records.kernels;

    let shared = assembly.lines().filter_map(parse_shared).collect::<Vec<_>>();
    // What is outside of the entries, and the entries.
    let (mut text, mut bodies) = (String::new(), String::with_capacity(assembly.len()));
    let mut lines = assembly.lines();
    let mut entries = 0;
    while let Some(line) = lines.next() {
        if let Some(rest) = line.strip_prefix(".visible .entry ") {
            let name = rest.split('(').next().unwrap_or_default();
            let index = kernels.iter().position(|kernel| kernel.name == name).ok_or_else(|| {
                Error::Format(format!("the PTX has an entry `{name}` that is not a `#[kernel]` function"))
            })?;
            let kernel = &mut kernels[index];
            entries += 1;
            kernel.text.start = bodies.len();
            entry(line, &mut lines, kernel, &params[index], &shared, &mut bodies)?;
            kernel.text.end = bodies.len();
        } else if line.trim_start().starts_with(".section") {
            skip_section(line, &mut lines);
        } else if let Some(line) = rewrite_line(line, prefixes) {
            text.push_str(&line);
            text.push('\n');
        }
    }
    if entries != kernels.len() {
        return Err(Error::Format(format!(
            "the PTX has {entries} entries and {} `#[kernel]` records",
            kernels.len()
        )));
    }
    for kernel in kernels {
        kernel.text = text.len() + kernel.text.start..text.len() + kernel.text.end;
    }
    text.push_str(&bodies);
    Ok((text, records))
}

/// Copies one entry with its launch bounds and its pragma; fills in the kernel's shared memory.
fn entry<'a>(
    head: &str,
    lines: &mut impl Iterator<Item = &'a str>,
    kernel: &mut KernelInfo,
    params: &[FlatParam],
    shared: &[SharedArray<'a>],
    text: &mut String,
) -> Result<(), Error> {
    let mut sizes = Vec::new();
    let mut line = head;
    loop {
        if let Some(size) = param_size(line) {
            let is_map = params.get(sizes.len()).is_some_and(|param| param.ty == ParamType::TensorMap);
            sizes.push(size);
            text.push_str(&if is_map {
                line.replacen(".align 8", TENSOR_MAP_ALIGNMENT, 1)
            } else {
                line.to_owned()
            });
        } else {
            text.push_str(line);
        }
        text.push('\n');
        if line.trim_end().ends_with(')') {
            break;
        }
        line =
            lines.next().ok_or_else(|| Error::Format(format!("the entry `{}` has no body", kernel.name)))?;
    }
    let expected = params.iter().map(|param| param.size).collect::<Vec<_>>();
    if sizes != expected {
        let name = &kernel.name;
        return Err(Error::Format(format!(
            "the parameters of `{name}` have {sizes:?} bytes in PTX, {expected:?} in Rust"
        )));
    }
    let KernelInfo { threads, min_blocks, cluster, may_unroll, .. } = kernel;
    let _ = writeln!(text, ".maxntid {threads}\n.minnctapersm {min_blocks}");
    if *cluster > 1 {
        let _ = writeln!(text, ".explicitcluster\n.reqnctapercluster {cluster}, 1, 1");
    }
    if !*may_unroll {
        // Before the body it is about every loop of the entry. Within, it would be about one, the loop whose
        // first block it stands in.
        text.push_str(".pragma \"nounroll\";\n");
    }

    let mut used = vec![false; shared.len()];
    // Scopes of inline assembly nest in the body, and vector operands are in braces too.
    let mut depth = 0;
    for line in lines {
        if let Some(line) = rewrite_line(line, &[]) {
            text.push_str(&line);
            text.push('\n');
        }
        depth += line.matches('{').count();
        depth -= line.matches('}').count().min(depth);
        if depth == 0 && line.contains('}') {
            break;
        }
        for (used, array) in used.iter_mut().zip(shared) {
            *used |= mentions(line, array.name);
        }
    }
    let arrays = shared.iter().zip(used).filter(|(_, used)| *used).map(|(array, _)| array);
    kernel.static_shared = arrays.fold(0, |end: u32, array| end.next_multiple_of(array.align) + array.bytes);
    Ok(())
}

/// A line without debugging information, or nothing if it is nothing else.
fn rewrite_line(line: &str, prefixes: &[(String, String)]) -> Option<String> {
    let trimmed = line.trim();
    if Records::is_record(line) {
        return None;
    }
    if let Some(version) = trimmed.strip_prefix(".version ") {
        let number =
            |version: &str| version.split('.').map(|part| part.parse().unwrap_or(0)).collect::<Vec<u32>>();
        let newer = if number(version) < number(PTX_VERSION) { PTX_VERSION } else { version };
        return Some(format!(".version {newer}"));
    }
    if trimmed.starts_with(".target ") {
        return Some(line.replace(", debug", ""));
    }
    if let Some(label) = trimmed.strip_prefix("$L__").and_then(|rest| rest.strip_suffix(':')) {
        let is_debug = ["tmp", "func_begin", "func_end", "sec_end", "info_string"]
            .iter()
            .any(|kind| label.starts_with(kind));
        return (!is_debug).then(|| line.to_owned());
    }
    if trimmed.starts_with(".loc") {
        // An `inlined_at` refers to a string in a DWARF section.
        return Some(line.split(", function_name").next().unwrap_or(line).to_owned());
    }
    if trimmed.starts_with(".file") {
        let shorter = prefixes.iter().find_map(|(prefix, replacement)| {
            let (before, after) = line.split_once(&format!("\"{prefix}"))?;
            Some(format!("{before}\"{replacement}{after}"))
        });
        return Some(shorter.unwrap_or_else(|| line.to_owned()));
    }
    Some(line.to_owned())
}

/// Skips a `.section`, whose head was read: to its closing brace.
fn skip_section<'a>(head: &str, lines: &mut impl Iterator<Item = &'a str>) {
    if !head.trim_end().ends_with('}') {
        let _ = lines.find(|line| line.trim() == "}");
    }
}

/// Bytes of the parameter that a line of an entry's head declares: `.param .u64 ..` or `.param .align 8 .b8
/// NAME[128]`.
fn param_size(line: &str) -> Option<u32> {
    if line.trim_start().starts_with(".param .align ") {
        return line.split_once('[')?.1.split_once(']')?.0.parse().ok();
    }
    let ty = line.trim_start().strip_prefix(".param .")?.split_whitespace().next()?;
    ty.trim_start_matches(char::is_alphabetic).parse::<u32>().ok().map(|bits| bits / 8)
}

/// A `.shared` array of module scope.
struct SharedArray<'a> {
    name: &'a str,
    align: u32,
    bytes: u32,
}

/// `.shared .align 16 .b8 NAME[1024];`, and not an `.extern` one.
fn parse_shared(line: &str) -> Option<SharedArray<'_>> {
    let mut words = line.trim().strip_prefix(".shared .align ")?.split(' ');
    let align = words.next()?.parse().ok()?;
    let (name, rest) = words.nth(1)?.split_once('[')?;
    let bytes = rest.strip_suffix("];")?.parse().ok()?;
    Some(SharedArray { name, align, bytes })
}

/// Whether `line` mentions the symbol `name` as a whole word.
fn mentions(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(start, _)| {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
        !line[..start].ends_with(is_word) && !line[start + name.len()..].starts_with(is_word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASSEMBLY: &str = "\
.version 8.4
.target sm_90a, debug
.address_size 64

//#kernel scale threads=256 min_blocks=2 cluster=1 wgmma_n=64 overlap=0 unroll=0 shared=0 \
(x : * const f32 , n : u32)
//#kernel empty threads=32 min_blocks=1 cluster=1 wgmma_n=0 overlap=0 unroll=1 shared=0 ()
.shared .align 16 .b8 scale_a[20];
.shared .align 64 .b8 scale_ab[64];
.extern .shared .align 1024 .b8 dynamic_shared[];

.visible .entry scale(
\t.param .u64 .ptr .align 1 scale_param_0,
\t.param .u32 scale_param_1
)
{
\t.reg .b32 \t%r<3>;
\t.loc\t1 45 9
$L__func_begin0:
\tmov.u32 %r1, scale_a;
$L__BB0_1:
$L__tmp3:
\t.loc\t2 7 1, function_name $L__info_string0, inlined_at 1 50 3
\tret;
$L__func_end0:
}
.visible .entry empty()
{
\tmov.u32 %r1, scale_a;
{
.reg .pred done;
ld.shared.v2.b32 {%r3, %r4}, [%r1];
}
\tmov.u32 %r2, scale_ab;
\tret;
}
\t.file\t1 \"/home/me/moe/kernels-gpu/src/scale.rs\"
\t.file\t2 \"/elsewhere/lib.rs\"
\t.section\t.debug_info
\t{
.b32 391
\t}
\t.section\t.debug_macinfo\t{\t}
";

    fn rewritten() -> (String, Vec<KernelInfo>) {
        let prefixes = [("/home/me/moe/".to_owned(), String::new())];
        let (text, records) = rewrite(ASSEMBLY, &prefixes).expect("the sample is well formed");
        (text, records.kernels)
    }

    #[test]
    fn inserts_launch_bounds_between_head_and_body() {
        let (text, _) = rewritten();
        assert!(
            text.contains("\t.param .u32 scale_param_1\n)\n.maxntid 256\n.minnctapersm 2\n.pragma"),
            "{text}"
        );
        assert!(text.contains(".visible .entry empty()\n.maxntid 32\n.minnctapersm 1\n{\n"), "{text}");
    }

    #[test]
    fn the_pragma_is_of_one_entry() {
        let (text, _) = rewritten();
        assert!(text.contains(".minnctapersm 2\n.pragma \"nounroll\";\n{\n"), "{text}");
        assert_eq!(text.matches(".pragma").count(), 1, "{text}");
    }

    #[test]
    fn strips_dwarf_and_keeps_lines() {
        let (text, _) = rewritten();
        for gone in ["//#kernel", "debug", "section", "391", "$L__tmp", "$L__func", "inlined_at", "/home"] {
            assert!(!text.contains(gone), "{gone} is still in\n{text}");
        }
        for kept in [
            ".loc\t1 45 9",
            ".loc\t2 7 1\n",
            "$L__BB0_1:",
            ".file\t1 \"kernels-gpu/src/scale.rs\"",
            "\"/elsewhere/lib.rs\"",
        ] {
            assert!(text.contains(kept), "{kept} is missing in\n{text}");
        }
    }

    #[test]
    fn raises_an_old_version_and_keeps_a_new_one() {
        let version = |text: &str| rewrite_line(text, &[]).expect("a version line stays");
        assert_eq!(version(".version 7.8"), ".version 8.4");
        assert_eq!(version(".version 8.10"), ".version 8.10");
    }

    #[test]
    fn reads_kernels_back() {
        let (_, kernels) = rewritten();
        let [empty, scale] = &kernels[..] else { panic!("{kernels:?}") };
        assert_eq!((empty.name.as_str(), empty.params.len(), empty.static_shared), ("empty", 0, 128));
        assert_eq!((scale.threads, scale.min_blocks, scale.static_shared), (256, 2, 20));
        assert_eq!((&scale.wgmma_n[..], &empty.wgmma_n[..]), (&[64][..], &[][..]));
        assert_eq!(scale.params[0].ty, ParamType::Pointer("f32".into()));
        assert_eq!(scale.params[1].ty, ParamType::Number("u32".into()));
    }

    #[test]
    fn every_entry_makes_a_module_with_what_comes_before_the_first() {
        let (text, kernels) = rewritten();
        let head = kernels.iter().map(|kernel| kernel.text.start).min().expect("two kernels");
        for declared in [".version", ".shared .align 16 .b8 scale_a[20];", ".extern .shared", ".file\t1"] {
            assert!(text[..head].contains(declared), "{declared} is missing in\n{}", &text[..head]);
        }
        for kernel in &kernels {
            let entry = &text[kernel.text.clone()];
            assert!(entry.starts_with(&format!(".visible .entry {}(", kernel.name)), "{entry}");
            assert!(entry.ends_with("\tret;\n}\n") && entry.matches(".entry").count() == 1, "{entry}");
        }
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let refused = |from: &str, to: &str| {
            let error = rewrite(&ASSEMBLY.replace(from, to), &[]).expect_err(to);
            error.to_string()
        };
        assert!(refused("n : u32)", "n : u64)").contains("[8, 4] bytes in PTX, [8, 8] in Rust"));
        assert!(refused("//#kernel empty", "//#kernel other").contains("`empty` that is not a `#[kernel]`"));
        assert!(refused("//#kernel empty", "//#kernel scale").contains("two kernels are named `scale`"));
    }
}
