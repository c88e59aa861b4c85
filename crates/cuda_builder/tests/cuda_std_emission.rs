//! Compiles `cuda_std`'s emission crate for every family and looks at the PTX: each item becomes the
//! instructions that its documentation promises, ptxas accepts them, and barriers stay where they were
//! written.

use std::fs;
use std::path::{Path, PathBuf};
use std::slice;
use std::sync::OnceLock;

use cuda_builder::records::ParamType;
use cuda_builder::{Arch, Built, CudaBuilder, enclosing_target_dir, launchers};

/// The build for one family, made once.
fn build(arch: Arch) -> &'static (Built, String) {
    static SM_89: OnceLock<(Built, String)> = OnceLock::new();
    static SM_90A: OnceLock<(Built, String)> = OnceLock::new();
    let cell = match arch {
        Arch::Sm89 => &SM_89,
        Arch::Sm90a => &SM_90A,
    };
    cell.get_or_init(|| build_anew(arch))
}

fn build_anew(arch: Arch) -> (Built, String) {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cuda_std/tests/emission");
    let scratch = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let target_dir = enclosing_target_dir(&scratch);
    let built = CudaBuilder::new(crate_dir).arch(arch).target_dir(target_dir).ptx_dir(scratch).build();
    let built = built.unwrap_or_else(|error| panic!("{error}"));
    let text = fs::read_to_string(&built.ptx_path).expect("the PTX was just written");
    (built, text)
}

/// The lines of an entry, from its head to the next one's. (A closing brace may also end a scope of inline
/// assembly.)
fn body<'a>(text: &'a str, kernel: &str) -> Vec<&'a str> {
    let head = format!(".visible .entry {kernel}(");
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&head));
    let first = lines.next();
    first.into_iter().chain(lines.take_while(|line| !line.starts_with(".visible .entry "))).collect()
}

/// Whether a line holds the words of `expected` in this order.
fn holds(line: &str, expected: &str) -> bool {
    let is_separator = |c: char| c.is_whitespace() || ",;[]{}".contains(c);
    let mut words = line.split(is_separator);
    expected.split(' ').all(|wanted| words.any(|word| word == wanted))
}

fn check(arch: Arch) {
    let (built, text) = build(arch);
    let mut missing = Vec::new();
    let mut checked = 0;
    for record in text.lines().filter_map(|line| line.strip_prefix("//#emits ")) {
        let (kernel, instructions) = record.split_once(": ").expect("a record is `name: instructions`");
        let lines = body(text, kernel);
        for instruction in instructions.split(", ") {
            checked += 1;
            if !lines.iter().any(|line| holds(line, instruction)) {
                missing.push(format!("{kernel}: no `{instruction}` in\n{}", lines.join("\n")));
            }
        }
    }
    assert!(missing.is_empty(), "{arch}:\n{}", missing.join("\n\n"));
    assert!(checked > 80, "only {checked} instructions were looked for");
    assert!(built.violations().is_empty(), "{:?}", built.violations());
    if built.ptxas.is_none() {
        println!("no ptxas: the PTX for {arch} was not assembled");
    }
}

#[test]
fn every_item_becomes_its_instruction_on_sm_89() {
    check(Arch::Sm89);
}

#[test]
fn every_item_becomes_its_instruction_on_sm_90a() {
    check(Arch::Sm90a);
}

#[test]
fn a_barrier_is_not_duplicated_into_branches() {
    let (_, text) = build(Arch::Sm90a);
    let barriers = body(text, "barrier_after_branch").iter().filter(|line| holds(line, "bar.sync")).count();
    assert_eq!(barriers, 1);
}

#[test]
fn loops_stay_rolled_where_the_attribute_says_so() {
    for arch in Arch::ALL {
        let (built, text) = build(arch);
        let is_pragma = |line: &&str| line.starts_with(".pragma");
        for kernel in &built.kernels {
            // In bodies LLVM has pragmas of its own, for single loops.
            let lines = body(text, &kernel.name);
            let pragmas = lines.iter().take_while(|&&line| line != "{").copied().filter(is_pragma);
            let expected = if kernel.name == "rolled" { vec![".pragma \"nounroll\";"] } else { vec![] };
            assert_eq!(pragmas.collect::<Vec<_>>(), expected, "{arch}: {}", kernel.name);
            assert_eq!(kernel.may_unroll, kernel.name != "rolled", "{arch}: {}", kernel.name);
        }
        assert_eq!(text.lines().filter(is_pragma).count(), 1, "{arch}");
    }
}

#[test]
fn static_shared_memory_agrees_with_ptxas() {
    let (built, _) = build(Arch::Sm90a);
    for kernel in &built.kernels {
        let Some(resources) = &kernel.resources else { return };
        // ptxas aligns the end for the module's dynamic array, which begins there.
        let (counted, own) = (resources.static_shared, kernel.static_shared);
        assert!(
            counted == own || counted == own.next_multiple_of(1024),
            "{}: {own} bytes in PTX, {counted} by ptxas",
            kernel.name
        );
    }
}

#[test]
fn the_record_has_arguments_and_default_bounds() {
    let (built, text) = build(Arch::Sm90a);
    let kernel = built
        .kernels
        .iter()
        .find(|kernel| kernel.name == "barrier_after_branch")
        .expect("it is in the crate");
    assert_eq!((kernel.threads, kernel.min_blocks, kernel.static_shared), (128, 1, 512));
    let params =
        kernel.params.iter().map(|param| (param.name.as_str(), param.ty.clone())).collect::<Vec<_>>();
    let pointer = || ParamType::Pointer("u32".into());
    assert_eq!(params, [("input", pointer()), ("output", pointer()), ("n", ParamType::Number("u32".into()))]);
    assert!(body(text, "barrier_after_branch").contains(&".maxntid 128"));
    let source = launchers::generate(slice::from_ref(built)).expect("its types have host types");
    assert!(source.contains("pub struct BarrierAfterBranch"));
}

#[test]
fn shipped_ptx_names_no_machine_path_and_no_debugging_information() {
    let (_, text) = build(Arch::Sm89);
    let files = text.lines().filter(|line| line.trim_start().starts_with(".file")).collect::<Vec<_>>();
    assert!(
        files.iter().any(|line| line.contains("\"crates/cuda_std/tests/emission/src/lib.rs\"")),
        "{files:?}"
    );
    assert!(files.iter().all(|line| !line.contains("\"/")), "{files:?}");
    assert!(!text.contains(".section") && !text.contains(", debug"));
}
