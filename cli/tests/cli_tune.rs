//! `fp8-moe tune`, and the tables that it writes, as their users see them.

#[path = "common/command.rs"]
mod command;

use std::path::Path;

use command::{assert_one_line_error, fp8_moe};
use fp8_moe::{Device, DeviceSpec, Family, Tuning};
use serde_json::Value;
use tempfile::tempdir;

fn device() -> Device {
    let spec = std::env::var("FP8_MOE_DEVICE").map_or(Ok(DeviceSpec::Sim), |text| text.parse());
    Device::open(spec.expect("FP8_MOE_DEVICE")).expect("a device")
}

/// Launches of a small layer with one token, by the table in `path`.
fn launches(path: &Path, record: &Path) -> u64 {
    let table = ["--tuning", path.to_str().unwrap(), "--json", record.to_str().unwrap()];
    let options = ["--tokens", "1", "--scheme", "block", "--matrix-rate=100"];
    let run = fp8_moe(["bench", "--shape", "8,2,128,128"].into_iter().chain(options).chain(table));
    assert_eq!(run.code, 0, "{}", run.stderr);
    let record: Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    record["rows"][0]["launches"].as_u64().unwrap()
}

#[test]
fn bench_takes_what_a_table_says() {
    let folder = tempdir().unwrap();
    let (path, record) = (folder.path().join("table.json"), folder.path().join("record.json"));
    let mut tuning = Tuning::default();
    for (megabytes, expected) in [(0, 5), (u32::MAX, 1)] {
        tuning.one_launch_packed_mb = [megabytes; 8];
        std::fs::write(&path, tuning.to_json()).unwrap();
        let is_hopper = device().family() == Family::Sm90a;
        let expected = if is_hopper { expected } else { 6 };
        assert_eq!(launches(&path, &record), expected, "{megabytes} MB");
    }
}

#[test]
fn wrong_tables_are_refused_in_one_line() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("table.json");
    let refused = |text: &str| {
        std::fs::write(&path, text).unwrap();
        fp8_moe(["bench", "--shape", "8,2,128,128", "--tokens", "1", "--tuning", path.to_str().unwrap()])
    };
    let (table, rows) = (Tuning::default().to_json(), Tuning::default().hopper_rows_8);
    assert_one_line_error(
        &refused(&table.replace("\"hopper_rows_8\": ", "\"hopper_rows_8\": -")),
        &format!("Tuning: hopper_rows_8 = -{rows}: must be a whole number in 0..=4294967295"),
    );
    assert_one_line_error(
        &refused(&table.replace("tuning/1", "tuning/2")),
        "Tuning: format = \"fp8-moe-tuning/2\": must be \"fp8-moe-tuning/1\"",
    );
    assert_one_line_error(&refused("{"), "must be a JSON object");
    let missing = fp8_moe(["run", "x.safetensors", "--tuning", "/no/such/table.json"]);
    assert_one_line_error(&missing, "/no/such/table.json: No such file");
}

/// The emulated device has no clock, and says so; what is asked for in vain is said before.
#[test]
fn tune_is_for_a_gpu() {
    let tune = |arguments: &[&str]| fp8_moe(["tune"].iter().chain(arguments));
    assert_one_line_error(&tune(&["--model", "gpt-5"]), "model = gpt-5: must be one of mixtral-8x7b");
    assert_one_line_error(&tune(&["--scheme", "int4"]), "scheme = int4: must be one of per-token");
    assert_one_line_error(&tune(&["--time-limit=-1"]), "time-limit = -1: must be 0 or more");
    if device().is_emulated() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("table.json");
        let refused = tune(&["--json", path.to_str().unwrap()]);
        assert_one_line_error(&refused, "to tune is to time: on a GPU alone");
        assert!(!path.exists() && refused.stdout.is_empty(), "{}", refused.stdout);
    }
}
