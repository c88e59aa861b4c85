//! `fp8-moe bench` and `fp8-moe report` as their users see them.

#[path = "common/command.rs"]
mod command;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use command::{assert_one_line_error, command, fp8_moe};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::tempdir;

/// A layer that the emulated device runs in milliseconds.
const SMALL: [&str; 4] = ["bench", "--shape", "8,2,128,64", "--matrix-rate=100"];

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn bench_measures_every_part_and_writes_it() {
    let folder = tempdir().unwrap();
    let (json_file, plot) = (folder.path().join("x.json"), folder.path().join("x.svg"));
    let files = ["--json", json_file.to_str().unwrap(), "--plot", plot.to_str().unwrap()];
    let options =
        ["--tokens", "1,9", "--ep", "2", "--part", "all", "--routing", "zipf:1", "--scheme", "block"];
    let run = fp8_moe(SMALL.into_iter().chain(options).chain(files));
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(
        run.stdout.contains("custom [8, 2, 128, 64], tp 1, ep 2, block, promoted sums, zipf:1 routing"),
        "{}",
        run.stdout
    );
    assert!(std::fs::read_to_string(&plot).unwrap().starts_with("<svg"));

    let record = read_json(&json_file);
    assert_eq!(record["schema"], "fp8-moe-bench/1");
    assert_eq!(record["program"], "fp8-moe");
    let emulated = record["device"]["emulated"].as_bool().unwrap();
    assert!(record["command"].as_str().unwrap().starts_with("fp8-moe bench --shape 8,2,128,64"));
    let date = record["date"].as_str().unwrap();
    assert!(date.len() == 10 && date.starts_with("20") && date.matches('-').count() == 2, "{date}");
    match &record["cold_start"] {
        Value::Null => assert!(emulated, "timed on a GPU"),
        cold => {
            assert!(!emulated && cold["first_forward_ms"].as_f64() > cold["second_forward_ms"].as_f64());
            assert!((1..12).contains(&cold["kernels"].as_u64().unwrap()), "{cold}");
        }
    }
    let rows = record["rows"].as_array().unwrap();
    let parts: Vec<_> = rows.iter().map(|row| row["part"].as_str().unwrap()).collect();
    assert_eq!(parts.iter().filter(|part| **part == "layer").count(), 2, "{parts:?}");
    assert!(["permute", "quantise", "gemm1", "gemm2", "unpermute"].iter().all(|part| parts.contains(part)));
    for row in rows {
        assert_eq!(row["shape"], json!([8, 2, 128, 64]));
        assert_eq!((&row["implementation"], &row["error"]), (&json!("fp8-moe"), &Value::Null));
        assert!(row["launches"].as_u64().unwrap() > 0 && row["bytes"].as_u64().unwrap() > 0, "{row}");
        if !emulated {
            assert!(row["median_us"].as_f64().unwrap() > 0.0, "{row}");
        } else {
            assert_eq!(row["median_us"], Value::Null, "the emulated device tells no times");
            assert_eq!(row["launches"], row["counted"]["launches"]);
        }
    }
    if emulated {
        let counted = |part: &str, what: &str| -> u64 {
            let of_part = rows.iter().filter(|row| row["part"] == part && row["tokens"] == 5);
            of_part.map(|row| row["counted"][what].as_u64().unwrap()).sum()
        };
        for what in ["launches", "global_load_bytes", "global_store_bytes", "tensor_flops"] {
            let parts = ["permute", "quantise", "gemm1", "activation", "gemm2", "unpermute"];
            let sum: u64 = parts.iter().map(|part| counted(part, what)).sum();
            assert_eq!(sum, counted("layer", what), "{what}: the parts make the layer");
        }
    }
}

#[test]
fn bench_errors_are_one_line() {
    let bench = |arguments: &[&str]| fp8_moe(["bench"].iter().chain(arguments));
    assert_one_line_error(
        &bench(&["--model", "gpt-5"]),
        "model = gpt-5: must be one of mixtral-8x7b, qwen3-235b, llama4-maverick, deepseek-v3, qwen3-30b, glm-4.6",
    );
    assert_one_line_error(&bench(&["--shape", "8,2,128"]), "shape = 8,2,128: must be E,k,H,I");
    assert_one_line_error(
        &bench(&["--shape", "8,2,120,64"]),
        "hidden_size = 120: must be a positive multiple of 16",
    );
    assert_one_line_error(&bench(&["--tp", "5"]), "tp = 5: must divide the intermediate size, 768");
    assert_one_line_error(&bench(&["--ep", "3"]), "ep = 3: must divide the 128 experts");
    assert_one_line_error(&bench(&["--scheme", "int4"]), "scheme = int4: must be one of per-token");
    assert_one_line_error(
        &bench(&["--accumulation", "exact"]),
        "accumulation = exact: must be auto, fast or promoted",
    );
    assert_one_line_error(
        &bench(&["--accumulation", "fast", "--scheme", "per-token,block"]),
        "accumulation = fast: must not go with scheme block, whose scales are applied every 128 of K",
    );
    assert_one_line_error(
        &bench(&["--reduction", "any"]),
        "MoeConfig: reduction = any: must be deterministic or order-free",
    );
    assert_one_line_error(&bench(&["--gather", "yes"]), "gather = yes: must be auto, always or never");
    assert_one_line_error(&bench(&["--part", "router"]), "part = router: must be all, or of layer, permute");
    assert_one_line_error(&bench(&["--routing", "skewed"]), "routing = skewed: must be uniform, zipf:S or a");
    assert_one_line_error(&bench(&["--tokens", "0"]), "tokens = 0: must be in 1..2^24");
    assert_one_line_error(
        &bench(&["--tokens", "1,2", "--dump", "x"]),
        "dump = a file: must go with one model",
    );
    assert_one_line_error(
        &bench(&["--shape", "4096,1,16384,16384"]),
        "GiB of device memory, 3072.75 of them weights",
    );
    assert_one_line_error(
        &bench(&["--shape", "8,2,128,64", "--tokens", "1", "--memory-limit", "0.000001"]),
        "GiB of device memory, 0.00 of them weights; ",
    );
}

#[test]
fn bench_dumps_a_case() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("case.safetensors");
    let options = ["--tokens", "3", "--scheme", "block", "--dump", file.to_str().unwrap()];
    let run = fp8_moe(SMALL.into_iter().chain(options));
    assert_eq!(run.code, 0, "{}", run.stderr);
    let bytes = std::fs::read(&file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for (name, dtype, shape) in [
        ("hidden", Dtype::BF16, vec![3, 128]),
        ("topk_ids", Dtype::I32, vec![3, 2]),
        ("topk_weights", Dtype::F32, vec![3, 2]),
        ("w13", Dtype::F8_E4M3, vec![8, 128, 128]),
        ("w13_scale", Dtype::F32, vec![8, 2, 1]),
        ("w2", Dtype::F8_E4M3, vec![8, 128, 64]),
        ("w2_scale", Dtype::F32, vec![8, 1, 1]),
        ("out", Dtype::F32, vec![3, 128]),
    ] {
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (dtype, &shape[..]), "{name}");
    }
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = metadata.metadata().as_ref().unwrap();
    assert_eq!((metadata["scheme"].as_str(), metadata["shape"].as_str()), ("block", "[8, 2, 128, 64]"));
    assert_eq!(metadata["accumulation"], "promoted");
}

#[test]
fn a_dump_that_the_time_limit_leaves_out_is_an_error() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("case.safetensors");
    let options = ["--tokens", "3", "--time-limit", "0", "--dump", file.to_str().unwrap()];
    let run = fp8_moe(SMALL.into_iter().chain(options));
    let last = run.stderr.lines().last().unwrap_or_default();
    assert!(run.code != 0 && last.ends_with("was not written: the time limit left its case out"), "{last}");
    assert!(!file.exists());
}

#[test]
fn bench_measures_one_ranks_share_of_a_model() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("x.json");
    let options = ["--model", "qwen3.5-35b-tp4", "--tokens", "9", "--part", "gemm2", "--matrix-rate=100"];
    let run = fp8_moe(["bench", "--json", file.to_str().unwrap()].into_iter().chain(options));
    assert_eq!(run.code, 0, "{}", run.stderr);
    let record = read_json(&file);
    let row = &record["rows"][0];
    assert_eq!((&row["shape"], &row["tp"]), (&json!([256, 8, 2048, 512]), &json!(4)));
    // On Hopper one token goes through one launch, which is no part.
    let run = fp8_moe([
        "bench",
        "--model",
        "qwen3.5-35b-tp4",
        "--tokens",
        "1",
        "--part",
        "gemm2",
        "--matrix-rate=100",
    ]);
    let told = run.stderr.contains("T = 1: the layer has no gemm2");
    assert!(told != run.stdout.contains("gemm2"), "{}{}", run.stdout, run.stderr);
    // For each of 9 tokens 8 experts of 2048 x 128.
    assert_eq!(row["flops"], json!(2 * 9 * 8 * 2048 * 128));
}

#[test]
fn bench_names_fast_sums() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("x.json");
    for (accumulation, name, sums) in [
        ("auto", "fp8-moe", "promoted"),
        ("promoted", "fp8-moe", "promoted"),
        ("fast", "fp8-moe-fast", "fast"),
    ] {
        let options = ["--tokens", "2", "--accumulation", accumulation, "--json", file.to_str().unwrap()];
        let run = fp8_moe(SMALL.into_iter().chain(options));
        assert_eq!(run.code, 0, "{}", run.stderr);
        let row = &read_json(&file)["rows"][0];
        assert_eq!((&row["implementation"], &row["accumulation"]), (&json!(name), &json!(sums)));
    }
}

#[test]
fn bench_names_the_order_free_reduction() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("x.json");
    for (accumulation, name) in [("auto", "fp8-moe-order-free"), ("fast", "fp8-moe-fast-order-free")] {
        let options = ["--tokens", "9", "--part", "all", "--reduction", "order-free"];
        let options =
            options.into_iter().chain(["--accumulation", accumulation, "--json", file.to_str().unwrap()]);
        let run = fp8_moe(SMALL.into_iter().chain(options));
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert!(run.stdout.contains("order-free reduction"), "{}", run.stdout);
        let json = read_json(&file);
        let rows = json["rows"].as_array().unwrap();
        assert!(rows.iter().all(|row| row["implementation"] == name));
        let parts: Vec<_> = rows.iter().map(|row| row["part"].as_str().unwrap()).collect();
        assert_eq!(parts, ["layer", "permute", "quantise", "gemm1", "gemm2", "cast"]);
    }
}

#[test]
fn bench_gathers_when_told_to() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("x.json");
    let row = |gather: &str| {
        // 64 rows an expert, in tiles of 128.
        let options = ["--tokens", "256", "--part", "quantise", "--gather", gather];
        let run = fp8_moe(SMALL.into_iter().chain(options).chain(["--json", file.to_str().unwrap()]));
        assert_eq!(run.code, 0, "{}", run.stderr);
        read_json(&file)["rows"][0].clone()
    };
    let rows = ["auto", "always", "never"].map(row);
    if rows[1]["gathered"] == json!(false) {
        eprintln!("skipped: the device's kernels do not gather");
        return;
    }
    assert_eq!(rows.each_ref().map(|row| row["gathered"].clone()), [false, true, false].map(|b| json!(b)));
    if let Some(stored) = rows[1]["counted"]["global_store_bytes"].as_u64() {
        // A token once, or for each of its two experts; its scale for each of them.
        assert_eq!(stored, 256 * (128 + 2 * 4));
        assert_eq!(rows[2]["counted"]["global_store_bytes"], json!(256 * 2 * (128 + 4)));
    }
}

#[test]
fn bench_stops_at_its_time_limit() {
    let run =
        fp8_moe(SMALL.into_iter().chain(["--tokens", "1,2", "--part", "layer,gemm1", "--time-limit", "0"]));
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stderr.contains("the time limit left out 4 measurements"), "{}", run.stderr);
}

#[test]
fn lockstep_measures_when_told_to() {
    let mut child = command()
        .args(SMALL)
        .args(["--tokens", "1,2", "--lockstep"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut to, mut from) =
        (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
    let mut next = || -> Value { serde_json::from_str(&from.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["ready"]["tokens"], 1);
    for _ in 0..2 {
        writeln!(to, "go").unwrap();
        assert!(next()["us"][0].as_f64().unwrap() > 0.0);
    }
    writeln!(to, "next").unwrap();
    let ready = next();
    assert_eq!((&ready["ready"]["tokens"], &ready["ready"]["part"]), (&json!(2), &json!("layer")));
    writeln!(to, "quit").unwrap();
    assert!(child.wait().unwrap().success());
}

/// A file of one row.
fn one_row(folder: &Path, name: &str, implementation: &str, median_us: f64) -> String {
    let path = folder.join(name);
    let record = json!({
        "schema": "fp8-moe-bench/1", "program": implementation, "version": "1", "date": "2026-01-31", "command": "c",
        "device": {"name": "GPU", "capability": "9.0", "multiprocessors": 132, "memory_bytes": 1, "emulated": false,
                   "driver": "1"},
        "rows": [{"implementation": implementation, "model": "qwen3-30b", "shape": [128, 8, 2048, 768], "tp": 1, "ep": 1,
                  "tokens": 64, "scheme": "block", "routing": "uniform", "part": "layer", "median_us": median_us}],
    });
    std::fs::write(&path, record.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn report_compares_files() {
    let folder = tempdir().unwrap();
    let ours = one_row(folder.path(), "ours.json", "fp8-moe", 100.0);
    let peer = one_row(folder.path(), "peer.json", "deepgemm", 150.0);
    let run = fp8_moe(["report", &ours, &peer, "--markdown"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stdout.contains("| 64 | 100.0 | 150.0 | 1.50 |"), "{}", run.stdout);

    let run = fp8_moe(["report", &ours, &peer, "--summary", "--part", "layer", "--markdown"]);
    assert!(
        run.stdout.contains(
            "|---|---|---|---|---:|\n| qwen3-30b | block | layer | fp8-moe | 100.0; 1.50 deepgemm |"
        ),
        "{}",
        run.stdout
    );
    for (other, name) in [("--part", "gemm1"), ("--scheme", "per-token")] {
        assert!(!fp8_moe(["report", &ours, other, name]).stdout.contains("qwen3-30b"), "another {other}");
    }
    assert!(fp8_moe(["report", &ours, "--scheme", "block"]).stdout.contains("qwen3-30b"));

    let slower = one_row(folder.path(), "slower.json", "fp8-moe", 110.0);
    let against = |fail: &[&str]| fp8_moe(["report", &slower, "--against", &ours].iter().chain(fail));
    assert_eq!(against(&[]).code, 0);
    let failed = against(&["--fail"]);
    assert_eq!(failed.code, 1, "{}", failed.stderr);
    assert!(failed.stdout.contains("110.00 us, was 100.00 (+10.0 %)"), "{}", failed.stdout);
    assert_eq!(fp8_moe(["report", &ours, "--against", &slower, "--fail"]).code, 0, "faster is no failure");
}

#[test]
fn report_errors_are_one_line() {
    let folder = tempdir().unwrap();
    let ours = one_row(folder.path(), "ours.json", "fp8-moe", 100.0);
    let peer = one_row(folder.path(), "peer.json", "deepgemm", 150.0);
    assert_one_line_error(&fp8_moe(["report", "/nonexistent.json"]), "/nonexistent.json: No such file");
    assert_one_line_error(&fp8_moe(["report", &peer, "--against", &ours]), "has no time of ours");
    let text = folder.path().join("text.json");
    std::fs::write(&text, "{}").unwrap();
    assert_one_line_error(&fp8_moe(["report", text.to_str().unwrap()]), "no benchmark: missing field");
}

/// Ranks in one process have no time, but bytes.
#[test]
fn bench_over_ranks_counts_what_travels() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("ranks.json");
    let device =
        if std::env::var_os("FP8_MOE_DEVICE").is_none_or(|name| name == "sim") { "sim" } else { "cuda:0" };
    let options = ["--ranks", "2", "--device", device, "--tokens", "1,5", "--scheme", "block"];
    let run = fp8_moe(SMALL.into_iter().chain(options).chain(["--json", file.to_str().unwrap()]));
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(
        run.stdout.contains("custom [8, 2, 128, 64] over 2 ranks, block, uniform routing"),
        "{}",
        run.stdout
    );
    let record = read_json(&file);
    let rows = record["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 8, "two batch sizes of four parts");
    for (row, part) in rows.iter().zip(["layer", "dispatch", "experts", "combine"].into_iter().cycle()) {
        assert_eq!(row["part"], format!("{part} over ranks"));
        assert!(row["median_us"].is_null());
        // Of a token: e4m3 and a scale, two ids and weights; bf16 on the way back.
        let (out, back) = (128 + 4 + 16, 256);
        let bytes = match part {
            "layer" => out + back,
            "dispatch" => out,
            "combine" => back,
            _ => 0,
        };
        assert_eq!(row["bytes"].as_u64().unwrap(), bytes * row["tokens"].as_u64().unwrap(), "{part}");
    }
}
