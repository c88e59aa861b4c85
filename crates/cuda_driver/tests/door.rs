//! The choice, which a process makes once: every case here is a process of its own, this test program again.

use std::process::Command;

use cuda_driver::{Backend, DeviceRequest};

/// What the child process does: makes the choices that `DOOR_CHOICES` lists and prints what comes of each.
#[test]
fn child() {
    let Ok(choices) = std::env::var("DOOR_CHOICES") else { return };
    for choice in choices.split_whitespace() {
        let answer = match choice {
            "auto" => cuda_driver::choose(Backend::Auto),
            "cuda" => cuda_driver::choose(Backend::Cuda),
            "sim" => cuda_driver::choose(Backend::Sim),
            // The first call of a driver function, without a word to the door.
            _ => {
                println!("> init {:?}", cust::init(cust::CudaFlags::empty()));
                cuda_driver::backend()
            }
        };
        match answer {
            Ok(backend) => println!("> {backend}: {}", cuda_driver::reason().unwrap_or_default()),
            Err(error) => println!("> error: {error}"),
        }
    }
}

/// The lines the child prints for these choices with this value of `FP8_MOE_DEVICE`, on a computer without a
/// driver: the library is looked for in an empty search path.
fn door(variable: Option<&str>, choices: &str) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "child", "--nocapture", "--test-threads=1"]).env("DOOR_CHOICES", choices);
    match variable {
        Some(value) => child.env("FP8_MOE_DEVICE", value),
        None => child.env_remove("FP8_MOE_DEVICE"),
    };
    let output = child.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split_once("> ")).map(|(_, line)| line.to_owned()).collect()
}

/// Whether this computer has a driver, in which case `auto` may mean it.
fn driver_installed() -> bool {
    // SAFETY: the name is that of NVIDIA's driver, which is made to be loaded like this.
    unsafe { libloading::Library::new("libcuda.so.1") }.is_ok()
}

#[test]
fn without_a_driver_it_is_the_emulated_device() {
    if driver_installed() {
        eprintln!("skipped: this computer has a driver");
        return;
    }
    let missing = "no NVIDIA driver: libcuda.so.1 not found";
    assert_eq!(door(None, "auto auto sim"), vec![format!("sim: {missing}"); 3]);
    assert_eq!(door(None, "init"), ["init Ok(())".to_owned(), format!("sim: {missing}")]);
    let refused = |who: &str| format!("error: {who} asked for cuda, but {missing}");
    assert_eq!(door(None, "cuda auto"), [refused("the program"), format!("sim: {missing}")]);
    assert_eq!(door(Some("cuda:1"), "init"), ["init Err(NoDevice)".to_owned(), refused("FP8_MOE_DEVICE")]);
}

#[test]
fn the_choice_holds() {
    assert_eq!(
        door(None, "sim auto cuda"),
        [
            "sim: the program asked for sim",
            "sim: the program asked for sim",
            "error: device cuda requested, but this process already uses sim: one per process",
        ]
    );
}

#[test]
fn the_environment_chooses_where_the_program_does_not() {
    assert_eq!(door(Some("sim"), "init"), ["init Ok(())", "sim: FP8_MOE_DEVICE asked for sim"]);
    assert_eq!(
        door(Some("gpu"), "auto init sim"),
        [
            "error: FP8_MOE_DEVICE=gpu: must be auto, cuda, cuda:N or sim",
            "init Err(NoDevice)",
            "error: FP8_MOE_DEVICE=gpu: must be auto, cuda, cuda:N or sim",
            "sim: the program asked for sim",
        ]
    );
}

#[test]
fn device_names() {
    let parse = |name: &str| name.parse::<DeviceRequest>().map(|r| (r.backend, r.ordinal));
    assert_eq!(parse("sim"), Ok((Backend::Sim, None)));
    assert_eq!(parse("cuda"), Ok((Backend::Cuda, None)));
    assert_eq!(parse("cuda:3"), Ok((Backend::Cuda, Some(3))));
    assert_eq!(parse("auto"), Ok((Backend::Auto, None)));
    for bad in ["", "cuda:", "cuda:x", "cuda:-1", "sim:0", "CUDA"] {
        assert!(parse(bad).is_err(), "{bad:?}");
    }
}
