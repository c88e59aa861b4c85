//! The `fp8-moe` command as its users see it: output, files, exit codes, one-line errors.

#[path = "../../tests/common/checkpoints.rs"]
#[allow(dead_code, reason = "shared with the checkpoint tests")]
mod checkpoints;
#[path = "common/command.rs"]
mod command;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use checkpoints::mixtral;
use command::{assert_one_line_error, fp8_moe};
use safetensors::SafeTensors;
use tempfile::tempdir;

fn fixture(name: &str) -> PathBuf {
    let folder = std::env::var_os("FP8_MOE_FIXTURES")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures"), PathBuf::from);
    folder.join(format!("{name}.safetensors"))
}

#[test]
fn check_matches_every_fixture() {
    for name in ["mixtral_static_tensor", "qwen3_moe_block", "llama4_channel_token", "deepseek_v3_block"] {
        let run = fp8_moe([OsStr::new("check"), fixture(name).as_os_str()]);
        assert_eq!(run.code, 0, "{name}: {}{}", run.stdout, run.stderr);
        assert!(run.stdout.contains("top-k ids that agree"), "{}", run.stdout);
        assert!(run.stdout.contains("relative L2 distance, io.output "), "{}", run.stdout);
        assert!(run.stdout.lines().last().unwrap().starts_with("match"), "{}", run.stdout);
    }
}

/// A copy of a fixture in which the tensor `name` has its first bytes changed.
fn spoil(folder: &Path, fixture_name: &str, name: &str) -> PathBuf {
    let mut bytes = std::fs::read(fixture(fixture_name)).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let start = header + 8 + metadata.info(name).expect("the tensor").data_offsets.0;
    bytes[start..start + 64].fill(0x42);
    let file = folder.join("spoiled.safetensors");
    std::fs::write(&file, bytes).unwrap();
    file
}

#[test]
fn check_exits_1_out_of_tolerance() {
    let folder = tempdir().unwrap();
    for tensor in ["io.output_w8a8", "io.output", "io.topk_weights"] {
        let file = spoil(folder.path(), "mixtral_static_tensor", tensor);
        let run = fp8_moe([OsStr::new("check"), file.as_os_str()]);
        assert_eq!(run.code, 1, "{tensor}: {}{}", run.stdout, run.stderr);
        assert!(run.stdout.contains("OUT OF TOLERANCE"), "{}", run.stdout);
        assert!(run.stderr.ends_with("error: 1 of 1 fixtures out of tolerance\n"), "{}", run.stderr);
    }
}

#[test]
fn run_writes_what_check_compares() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out.safetensors");
    let layer = fixture("qwen3_moe_block");
    let arguments = ["run".as_ref(), layer.as_os_str(), "--input".as_ref(), "io.hidden_states".as_ref()];
    let run = fp8_moe(arguments.into_iter().chain(["--output".as_ref(), out.as_os_str()]));
    assert_eq!(run.code, 0, "{}", run.stderr);
    let (bytes, reference) = (std::fs::read(&out).unwrap(), std::fs::read(&layer).unwrap());
    let (ours, reference) =
        (SafeTensors::deserialize(&bytes).unwrap(), SafeTensors::deserialize(&reference).unwrap());
    assert_eq!(ours.tensor("hidden_states").unwrap().shape(), [33, 256]);
    assert_eq!(ours.tensor("hidden_states").unwrap().dtype(), safetensors::Dtype::F32);
    assert_eq!(ours.tensor("topk_ids").unwrap().data(), reference.tensor("io.topk_ids").unwrap().data());
    assert_eq!(ours.tensor("topk_weights").unwrap().shape(), [33, 4]);
}

#[test]
fn run_draws_the_same_tokens_for_a_seed() {
    let folder = tempdir().unwrap();
    let layer = mixtral().write(folder.path());
    let run = |tokens: &str, seed: &str| {
        let out = folder.path().join("out.safetensors");
        let arguments =
            [layer.to_str().unwrap(), "--tokens", tokens, "--seed", seed, "--output", out.to_str().unwrap()];
        let run = fp8_moe(["run"].into_iter().chain(arguments));
        assert_eq!(run.code, 0, "{}", run.stderr);
        std::fs::read(out).unwrap()
    };
    assert_eq!(run("5", "1"), run("5", "1"));
    assert_ne!(run("5", "1"), run("5", "2"));
    run("0", "1");
}

/// The same tokens, within rounding.
#[test]
fn run_reduces_in_any_order() {
    let folder = tempdir().unwrap();
    let layer = mixtral().write(folder.path());
    let run = |reduction: &str| {
        let out = folder.path().join("out.safetensors");
        let arguments = [
            layer.to_str().unwrap(),
            "--tokens",
            "5",
            "--reduction",
            reduction,
            "--output",
            out.to_str().unwrap(),
        ];
        let run = fp8_moe(["run"].into_iter().chain(arguments));
        assert_eq!(run.code, 0, "{}", run.stderr);
        let bytes = std::fs::read(out).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        bytemuck::pod_collect_to_vec::<u8, f32>(tensors.tensor("hidden_states").unwrap().data())
    };
    let (ours, same) = (run("order-free"), run("deterministic"));
    let squares = |values: &[f32]| values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    let difference: Vec<f32> = ours.iter().zip(&same).map(|(a, b)| a - b).collect();
    assert!(squares(&difference) < 2.5e-5 * squares(&same), "{difference:?}");
}

#[test]
fn says_which_device_and_why() {
    let folder = tempdir().unwrap();
    let layer = mixtral().write(folder.path());
    let run = fp8_moe(["run", layer.to_str().unwrap(), "--tokens", "2"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let device =
        run.stderr.lines().find(|line| line.starts_with("device ")).expect("a line about the device");
    if !device.contains("cuda:") {
        assert!(device.contains("sim, the emulated device: "), "{device}");
    }
    assert!(run.stdout.contains("token 0: experts "), "{}", run.stdout);
}

#[test]
fn errors_are_one_line() {
    let folder = tempdir().unwrap();
    let sound = mixtral().write(folder.path());
    let sound = sound.to_str().unwrap();
    let run = |arguments: &[&str]| fp8_moe(["run"].iter().chain(arguments));
    assert_one_line_error(&run(&["/nonexistent.safetensors"]), "/nonexistent.safetensors: No such file");
    assert_one_line_error(&run(&[sound, "--layer", "7"]), "has no MoE layer 7; it has model.layers.0");
    assert_one_line_error(
        &run(&[sound, "--input", "io.absent"]),
        "neither a tensor of the checkpoint nor a file",
    );
    let gate = "model.layers.0.block_sparse_moe.gate.weight";
    assert_eq!(run(&[sound, "--input", gate]).code, 0, "any [T, 64] tensor will do");
    let scale = "model.layers.0.block_sparse_moe.experts.0.w1.weight_scale";
    assert_one_line_error(&run(&[sound, "--input", scale]), "has shape [1]; [T, 64] is expected");
    assert_one_line_error(&run(&[sound, "--config", "/nonexistent.json"]), "/nonexistent.json: No such file");

    let text = folder.path().join("text.safetensors");
    std::fs::write(&text, "this is no safetensors file at all").unwrap();
    assert_one_line_error(&run(&[text.to_str().unwrap()]), "is not a safetensors file");
    let mut odd = mixtral();
    odd.config["hidden_size"] = 72.into();
    let odd = odd.write(folder.path());
    assert_one_line_error(
        &run(&[odd.to_str().unwrap()]),
        "config: hidden_size = 72: must be a positive multiple of 16",
    );
    assert_one_line_error(&fp8_moe(["check", odd.to_str().unwrap()]), "hidden_size = 72");
}

#[test]
fn too_many_tokens_are_refused() {
    let folder = tempdir().unwrap();
    let layer = mixtral().write(folder.path());
    // Products with the hidden size that wrap around to little, that do not, and that memory has no room for.
    for tokens in ["72057594037927936", "18014398509481985", "1000000000000"] {
        let run = fp8_moe(["run", layer.to_str().unwrap(), "--tokens", tokens]);
        let rule = "must be at most 1073741823 with top_k 2: rows are counted in i32";
        assert_one_line_error(&run, &format!("run: --tokens = {tokens}: {rule}"));
    }
    let run = fp8_moe(["run", layer.to_str().unwrap(), "--tokens", "1000000000"]);
    assert_one_line_error(&run, "run: --tokens = 1000000000: takes ");
}

#[test]
fn output_paths_are_tried_first() {
    let folder = tempdir().unwrap();
    let layer = mixtral().write(folder.path());
    let (absent, directory) = (folder.path().join("absent/out"), folder.path());
    for path in [absent.to_str().unwrap(), directory.to_str().unwrap()] {
        for arguments in [
            &["run", layer.to_str().unwrap(), "--tokens", "2", "--output", path][..],
            &["bench", "--shape", "2,1,128,128", "--tokens", "1", "--json", path],
            &["bench", "--shape", "2,1,128,128", "--tokens", "1", "--plot", path],
            &["bench", "--shape", "2,1,128,128", "--tokens", "1", "--dump", path],
            &["report", "absent.json", "--plot", path],
        ] {
            let run = fp8_moe(arguments);
            assert_one_line_error(&run, &format!("{path}: "));
            assert!(run.stdout.is_empty() && !run.stderr.contains("device "), "{}{}", run.stdout, run.stderr);
        }
    }
    // Trying leaves no file behind, and what stands there as it is.
    let (new, old) = (folder.path().join("new"), folder.path().join("old"));
    std::fs::write(&old, "kept").unwrap();
    for path in [&new, &old] {
        let run = fp8_moe(["run", "/nonexistent", "--output", path.to_str().unwrap()]);
        assert_eq!(run.code, 2);
        let run = fp8_moe(["report", "absent.json", "--plot", path.to_str().unwrap()]);
        assert_eq!(run.code, 2);
    }
    assert!(!new.exists());
    assert_eq!(std::fs::read_to_string(&old).unwrap(), "kept");
}

/// The subcommands, as the help lists them.
fn subcommands() -> Vec<String> {
    let help = fp8_moe(["--help"]).stdout;
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = lines.take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    names.map(str::to_owned).collect()
}

/// `fp8-moe info | head`: no panic, whether output, errors or both go to the reader that has gone.
#[cfg(unix)]
#[test]
fn readers_may_go_away() {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;

    let folder = tempdir().unwrap();
    let (layer, fixture) = (mixtral().write(folder.path()), fixture("mixtral_static_tensor"));
    let (layer, fixture) = (layer.to_str().unwrap(), fixture.to_str().unwrap());
    let record = folder.path().join("record.json");
    let record = record.to_str().unwrap();
    let bench = ["bench", "--shape", "2,1,128,128", "--tokens", "1", "--json", record];
    assert_eq!(fp8_moe(bench).code, 0);
    // What says something on success: all of it on standard output.
    let speaking = [
        &["--help"][..],
        &["--version"],
        &["help"],
        &["info"],
        &["info", layer],
        &["check", fixture],
        &["check", fixture, fixture],
        &["run", layer, "--tokens", "1"],
        &["run", layer, "--tokens", "3", "--ranks", "2", "--device", "sim"],
        &["report", record],
        &["report", record, record],
        &bench,
    ];
    // What may be refused where there is no GPU: something goes to one of the two in any case.
    let tune = ["tune", "--model", "qwen3-30b", "--time-limit", "0"];
    let named = |name: &str| name == tune[0] || speaking.iter().any(|arguments| arguments[0] == name);
    let missing: Vec<String> = subcommands().into_iter().filter(|name| !named(name)).collect();
    assert!(missing.is_empty(), "no case for {missing:?}: its reader may go away, too");
    // With `--help`, and in an error, which goes to standard error.
    let names = subcommands();
    let helps = names.iter().filter(|name| *name != "help").map(|name| vec![name.as_str(), "--help"]);
    let errors = names.iter().map(|name| vec![name.as_str(), "--no-such-option"]).chain([tune.to_vec()]);
    let speaking = speaking.iter().map(|arguments| arguments.to_vec()).chain(helps);
    let cases = speaking.map(|arguments| (arguments, false)).chain(errors.map(|arguments| (arguments, true)));

    let gone = || Stdio::from(std::io::pipe().unwrap().1);
    for (arguments, fails) in cases {
        for errors_too in if fails { &[true][..] } else { &[false, true] } {
            let mut command = command::command();
            command.args(&arguments).stdout(gone()).stderr(if *errors_too { gone() } else { Stdio::piped() });
            let output = command.output().unwrap();
            let words = String::from_utf8(output.stderr).unwrap();
            assert!(!words.contains("panicked"), "{arguments:?}: {words}");
            assert_eq!(output.status.signal(), Some(libc::SIGPIPE), "{arguments:?}: {words}");
        }
    }
    // A reader that goes after the first line, as `head -1` does.
    for arguments in [&["info"][..], &["--help"], &["info", layer]] {
        use std::io::BufRead;
        let (from, to) = std::io::pipe().unwrap();
        let mut command = command::command();
        let mut child = command.args(arguments).stdout(to).stderr(Stdio::piped()).spawn().unwrap();
        drop(command);
        let mut line = String::new();
        std::io::BufReader::new(from).read_line(&mut line).unwrap();
        assert!(!line.is_empty());
        let status = child.wait().unwrap();
        // What the pipe has room for may be all there is.
        assert!(status.success() || status.signal() == Some(libc::SIGPIPE), "{arguments:?}: {status}");
    }
}

#[test]
fn a_checkpoint_is_not_a_fixture() {
    let folder = tempdir().unwrap();
    let file = mixtral().write(folder.path());
    let run = fp8_moe(["check", file.to_str().unwrap()]);
    assert_one_line_error(&run, "has no io.* tensors to compare with");
}

#[test]
fn devices_that_are_not_there() {
    let folder = tempdir().unwrap();
    let file = mixtral().write(folder.path());
    let run = |device: &str| fp8_moe(["run", file.to_str().unwrap(), "--tokens", "1", "--device", device]);
    assert_one_line_error(&run("cuda:99"), "device cuda:99: ");
    let unknown = run("tpu");
    assert_eq!(unknown.code, 2);
    assert!(unknown.stderr.contains("must be auto, sim or cuda:N"), "{}", unknown.stderr);
}

#[test]
fn info_lists_kernels_of_every_family() {
    let run = fp8_moe(["info"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    for expected in
        ["device ", "driver ", "kernels   sm_89: ", "kernels   sm_90a: ", "grouped_gemm_", "static shared"]
    {
        assert!(run.stdout.contains(expected), "no {expected:?} in {}", run.stdout);
    }
}

#[test]
fn help_teaches() {
    let help = fp8_moe(["--help"]);
    assert_eq!(help.code, 0);
    for expected in ["Examples:", "fp8-moe check", "Devices:", "sim      an emulated GPU"] {
        assert!(help.stdout.contains(expected), "{}", help.stdout);
    }
    let commands = subcommands();
    assert!(commands.len() > 5 && commands.iter().any(|name| name == "bench"), "{commands:?}");
    for command in commands.iter().filter(|name| *name != "help") {
        assert_eq!(fp8_moe([command, "--help"]).code, 0);
    }
}

/// The values of a tensor of an output, as bytes.
fn tensor(file: &Path, name: &str) -> Vec<u8> {
    let bytes = std::fs::read(file).unwrap();
    SafeTensors::deserialize(&bytes).unwrap().tensor(name).expect("the tensor").data().to_vec()
}

/// Experts spread over ranks give the routing of the whole layer, and its output up to the rounding of the
/// ranks' parts to bf16.
#[test]
fn run_spreads_experts_over_ranks() {
    let folder = tempdir().unwrap();
    let run = |ranks: &[&str], file: &str| {
        let path = folder.path().join(file);
        let layer = fixture("qwen3_moe_block");
        let arguments = ["run", layer.to_str().unwrap(), "--tokens", "5", "--output", path.to_str().unwrap()];
        let run = fp8_moe(arguments.iter().chain(ranks));
        assert_eq!(run.code, 0, "{}", run.stderr);
        (path, run.stderr)
    };
    let (whole, _) = run(&[], "whole.safetensors");
    // Over one device, also where there are several GPUs: `auto` would start processes.
    let device =
        if std::env::var_os("FP8_MOE_DEVICE").is_none_or(|name| name == "sim") { "sim" } else { "cuda:0" };
    let (spread, said) = run(&["--ranks", "3", "--device", device], "spread.safetensors");
    assert!(said.contains("ranks    3 threads over one device"), "{said}");
    assert!(said.contains("5 tokens on 3 ranks"), "{said}");
    for name in ["topk_ids", "topk_weights"] {
        assert_eq!(tensor(&whole, name), tensor(&spread, name), "{name}");
    }
    let of = |path: &Path| -> Vec<f32> { bytemuck::pod_collect_to_vec(&tensor(path, "hidden_states")) };
    let (whole, spread) = (of(&whole), of(&spread));
    assert_eq!(whole.len(), spread.len());
    // Three parts, each rounded by at most 2^-9 of itself: far below this unless they cancel.
    let largest = whole.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    for (index, (a, b)) in whole.iter().zip(&spread).enumerate() {
        assert!((a - b).abs() <= largest / 64.0, "element {index}: {a} and {b}");
    }
}

#[test]
fn ranks_that_cannot_be_are_refused() {
    let layer = fixture("qwen3_moe_block");
    let layer = layer.to_str().unwrap();
    let run = fp8_moe(["run", layer, "--ranks", "0", "--device", "sim"]);
    assert_one_line_error(&run, "ranks: --ranks = 0: must be at least 1");
    let mut rank = command::command();
    rank.args(["run", layer, "--ranks", "2"]).env("RANK", "0");
    let output = rank.output().expect("the command starts");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    let expected = "WORLD_SIZE = unset: must be set, as torchrun or `fp8-moe run --ranks` does";
    assert!(said.contains(expected), "{said}");
}
