//! Programs that load `libcuda.so.1` themselves, in C and in Python, run on this library.

use std::path::{Path, PathBuf};
use std::process::Command;

const PTX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../ptx_sim/tests/driver/kernels.ptx");

/// A folder with this library under the driver's name; `None` where this program was taken elsewhere without
/// it.
fn installed() -> Option<tempfile::TempDir> {
    let Some(library) = library() else {
        // Cargo, which sets this variable, has also built the library.
        assert!(
            std::env::var_os("CARGO_MANIFEST_DIR").is_none(),
            "liblibcuda_sim.so is not where cargo builds it"
        );
        eprintln!("skipped: liblibcuda_sim.so is not beside this program");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(library, folder.path().join("libcuda.so.1")).unwrap();
    Some(folder)
}

/// Where cargo has put the library: beside this program.
fn library() -> Option<PathBuf> {
    let library = std::env::current_exe().unwrap().with_file_name("liblibcuda_sim.so");
    library.exists().then_some(library)
}

fn exists(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: no {program} on this computer");
    }
    found
}

/// Runs a program on the library in `folder` and gives what it prints.
fn run(folder: &Path, program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .env("LD_LIBRARY_PATH", folder)
        .env("FP8_MOE_SIM_ARCH", "90")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_c_program() {
    let Some(folder) = installed() else { return };
    let Some(program) = compiled(folder.path(), "saxpy") else { return };
    assert_eq!(run(folder.path(), &program, &[PTX]), "10.5 11 11.5 12\n");
}

/// Compiles a C program of this folder.
fn compiled(folder: &Path, name: &str) -> Option<PathBuf> {
    if !exists("cc") {
        return None;
    }
    let program = folder.join(name);
    let source = format!("{}/tests/{name}.c", env!("CARGO_MANIFEST_DIR"));
    let status = Command::new("cc").args(["-w", &source, "-ldl", "-o"]).arg(&program).status().unwrap();
    assert!(status.success());
    Some(program)
}

#[test]
fn calls_from_static_destructors_are_answered() {
    let Some(folder) = installed() else { return };
    let Some(program) = compiled(folder.path(), "exit") else { return };
    // The thread's contexts are gone by then: CUDA_ERROR_DEINITIALIZED.
    assert_eq!(run(folder.path(), &program, &[PTX]), "running 0 0\nending 4 4 4\n");
}

#[test]
fn a_fault_is_printed_on_standard_error() {
    let Some(folder) = installed() else { return };
    let Some(program) = compiled(folder.path(), "fault") else { return };
    let output = |quiet: &str| {
        let output = Command::new(&program)
            .arg(PTX)
            .env("LD_LIBRARY_PATH", folder.path())
            .env("FP8_MOE_SIM_ARCH", "90")
            .env("FP8_MOE_SIM_QUIET", quiet)
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "700 700\n");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let told = output("0");
    assert!(told.starts_with("ptx_sim: out-of-bounds access in kernel null_read, block (0,0,0)"), "{told}");
    assert!(told.contains("thread (0,0,0)") && told.contains("ld.global.u32"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    assert_eq!(output("1"), "");
}

#[test]
fn a_python_program() {
    let Some(folder) = installed() else { return };
    if !exists("python3") {
        return;
    }
    let text = run(
        folder.path(),
        Path::new("python3"),
        &[concat!(env!("CARGO_MANIFEST_DIR"), "/tests/saxpy.py"), PTX],
    );
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..2], ["ptx_sim (emulated H200)", "10.5 11 11.5 12"]);
    assert!(lines[2].starts_with("700 out-of-bounds access in kernel null_read"), "{}", lines[2]);
}

/// The child of the next test: a program over our `cust`, which finds the library in the place of NVIDIA's.
#[test]
fn cust_child() {
    if std::env::var_os("CUST_CHILD").is_none() {
        return;
    }
    let driver = cust::Driver::cuda().unwrap();
    let device = cust::Device::get(driver, 0).unwrap();
    println!(
        "> {} {:?} emulated: {}",
        device.name().unwrap(),
        device.capability().unwrap(),
        driver.is_emulated()
    );
    let context = cust::Context::primary(device).unwrap();
    let error = cust::DeviceMemory::uninitialized(&context, 0).unwrap_err();
    println!("> {error}");
    assert_eq!(cust::Driver::cuda(), Ok(driver), "there is one");
}

#[test]
fn cust_finds_an_installed_driver() {
    let Some(folder) = installed() else { return };
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cust_child", "--nocapture"])
        .env("LD_LIBRARY_PATH", folder.path())
        .env("FP8_MOE_SIM_ARCH", "89")
        .env("CUST_CHILD", "1")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = text.lines().filter_map(|line| line.split_once("> ")).map(|(_, line)| line).collect();
    assert_eq!(
        lines,
        [
            "ptx_sim (emulated L40S) (8, 9) emulated: true",
            "cuMemAlloc failed: invalid argument: bytesize is 0 (CUDA error 1)",
        ],
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
