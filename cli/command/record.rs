//! The JSON file of a benchmark, which every program that measures writes and `fp8-moe report` reads.

use std::path::Path;
use std::process::Command;

use fp8_moe::{Accumulation, Device, Error, MoeConfig, Reduction, Result};
use fp8_moe_cli::{Rates, Timing, Work};
use serde::{Deserialize, Serialize};

/// The version of the format.
pub const SCHEMA: &str = "fp8-moe-bench/1";
/// Our name among the implementations.
pub const OURS: &str = "fp8-moe";
/// Our name where sums stay in the tensor cores although the layer's default promotes them.
pub const OURS_FAST: &str = "fp8-moe-fast";
/// Our name where GEMM 2 adds expert outputs up in any order.
pub const OURS_ORDER_FREE: &str = "fp8-moe-order-free";
/// Our name where both hold.
pub const OURS_FAST_ORDER_FREE: &str = "fp8-moe-fast-order-free";

/// Whether an implementation is this program.
pub fn is_ours(implementation: &str) -> bool {
    [OURS, OURS_FAST, OURS_ORDER_FREE, OURS_FAST_ORDER_FREE].contains(&implementation)
}

/// Whether an implementation is what ours is compared with: another program's MoE layer, or its grouped GEMM.
/// Dense cuBLASLt of as many rows is shown beside them as a ceiling, and does another thing.
pub fn is_peer(implementation: &str) -> bool {
    !is_ours(implementation) && implementation != "cublaslt"
}

/// Our name with these choices.
pub fn our_name(config: &MoeConfig) -> &'static str {
    match (config.accumulation == Accumulation::Fast, config.reduction == Reduction::OrderFree) {
        (false, false) => OURS,
        (true, false) => OURS_FAST,
        (false, true) => OURS_ORDER_FREE,
        (true, true) => OURS_FAST_ORDER_FREE,
    }
}

/// One run of a benchmark program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: String,
    pub program: String,
    pub version: String,
    /// `YYYY-MM-DD`, UTC.
    pub date: String,
    /// The command line.
    pub command: String,
    pub device: DeviceRecord,
    /// Without rates where nothing was timed.
    #[serde(default)]
    pub rates: Option<RatesRecord>,
    /// How long the first output took, where it was timed.
    #[serde(default)]
    pub cold_start: Option<ColdStart>,
    pub rows: Vec<Row>,
}

/// What it ran on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceRecord {
    pub name: String,
    /// Compute capability, e.g. `9.0`.
    pub capability: String,
    pub multiprocessors: u32,
    pub memory_bytes: u64,
    pub emulated: bool,
    /// The driver: its version where it tells, else the CUDA version it supports.
    pub driver: String,
}

/// Rates measured at the start of the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RatesRecord {
    /// Of a large copy in device memory, read and written bytes together.
    pub copy_bytes_per_s: f64,
    /// Of a stream of 2 GiB or more that is only read, where it was measured: floors are of it then, else of
    /// the copy.
    #[serde(default)]
    pub read_bytes_per_s: Option<f64>,
    pub matrix_flops_per_s: f64,
    /// What the second rate is of.
    #[serde(default)]
    pub matrix_rate_of: String,
}

/// From the start of the command to the first output of a layer, milliseconds of the host's clock. Making the
/// layer's random weights lies between the two and is not counted: a program would load a checkpoint there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ColdStart {
    pub model: String,
    pub scheme: String,
    pub tokens: usize,
    /// Until the device is open: the driver starts, its context is made.
    pub open_ms: f64,
    /// The first forward: the driver compiles the kernels, or finds them in its cache on disk.
    pub first_forward_ms: f64,
    /// The same once more, with nothing left to compile.
    pub second_forward_ms: f64,
    /// Kernels that the forward loaded.
    pub kernels: usize,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub implementation: String,
    /// A model's name, or `custom`.
    pub model: String,
    /// E, k, H and I of the model, before they are divided among ranks.
    pub shape: [usize; 4],
    pub tp: usize,
    pub ep: usize,
    pub tokens: usize,
    pub scheme: String,
    pub routing: String,
    pub part: String,
    /// How sums are kept: `fast` or `promoted`; what scales that change along K allow.
    #[serde(default)]
    pub accumulation: Option<String>,
    /// Whether the first GEMM gathered its rows by token.
    #[serde(default)]
    pub gathered: Option<bool>,
    /// Times are `null` on the emulated device, and where there is an error.
    #[serde(default)]
    pub median_us: Option<f64>,
    #[serde(default)]
    pub p10_us: Option<f64>,
    #[serde(default)]
    pub p90_us: Option<f64>,
    #[serde(default)]
    pub launches: Option<usize>,
    /// The least work: FLOPs, bytes through memory, and the time they take at the run's rates.
    #[serde(default)]
    pub flops: u64,
    #[serde(default)]
    pub bytes: u64,
    #[serde(default)]
    pub floor_us: Option<f64>,
    /// `floor_us / median_us`.
    #[serde(default)]
    pub fraction: Option<f64>,
    #[serde(default)]
    pub error: Option<String>,
    /// Relative L2 distance of the implementation's results, in this scheme, from exact arithmetic on the
    /// quantised operands, where it was compared: on small cases, not on this one.
    #[serde(default)]
    pub exact_rel_l2: Option<f64>,
    /// What the emulated device counted.
    #[serde(default)]
    pub counted: Option<Counted>,
}

/// Counts of the emulated device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Counted {
    pub launches: u64,
    pub blocks: u64,
    pub warp_instructions: u64,
    pub global_load_bytes: u64,
    pub global_load_sectors: u64,
    pub global_store_bytes: u64,
    pub global_store_sectors: u64,
    pub shared_bank_conflicts: u64,
    pub tensor_flops: u64,
}

#[cfg(feature = "sim")]
impl From<&cust::sim::Counters> for Counted {
    fn from(counters: &cust::sim::Counters) -> Counted {
        Counted {
            launches: counters.launches,
            blocks: counters.blocks,
            warp_instructions: counters.warp_instructions(),
            global_load_bytes: counters.global_load_bytes,
            global_load_sectors: counters.global_load_sectors,
            global_store_bytes: counters.global_store_bytes,
            global_store_sectors: counters.global_store_sectors,
            shared_bank_conflicts: counters.shared_bank_conflicts,
            tensor_flops: counters.tensor_flops,
        }
    }
}

impl Counted {
    /// Bytes through global memory.
    pub fn global_bytes(&self) -> u64 {
        self.global_load_bytes + self.global_store_bytes
    }
}

impl Record {
    /// An empty record of this program, today, with this process's command line.
    pub fn new(device: &Device) -> Result<Record> {
        let (major, minor) = device.capability();
        let arguments: Vec<_> = std::env::args().skip(1).collect();
        Ok(Record {
            schema: SCHEMA.into(),
            program: OURS.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            date: time::OffsetDateTime::now_utc().date().to_string(),
            command: format!("fp8-moe {}", arguments.join(" ")),
            device: DeviceRecord {
                name: device.name().into(),
                capability: format!("{major}.{minor}"),
                multiprocessors: device.multiprocessors(),
                memory_bytes: device.memory_bytes(),
                emulated: device.is_emulated(),
                driver: driver(device)?,
            },
            rates: None,
            cold_start: None,
            rows: Vec::new(),
        })
    }

    /// Reads a file.
    pub fn read(path: &Path) -> Result<Record> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let record: Record =
            serde_json::from_str(&text).map_err(|e| Error::checkpoint(path, format!("no benchmark: {e}")))?;
        if record.schema != SCHEMA {
            let what = format!("schema {} is not known; {SCHEMA} is expected", record.schema);
            return Err(Error::checkpoint(path, what));
        }
        Ok(record)
    }

    /// Writes a file, one row to a line.
    pub fn write(&self, path: &Path) -> Result<()> {
        let json = |value: Result<String, serde_json::Error>| value.expect("a record has no maps");
        let head = Record { rows: Vec::new(), ..self.clone() };
        let head = json(serde_json::to_string_pretty(&head));
        let rows: Vec<_> = self.rows.iter().map(|row| json(serde_json::to_string(row))).collect();
        let text = if rows.is_empty() {
            head
        } else {
            let head = head.trim_end().strip_suffix("[]\n}").expect("rows come last").to_owned();
            format!("{head}[\n    {}\n  ]\n}}", rows.join(",\n    "))
        };
        std::fs::write(path, text + "\n").map_err(|e| Error::io(path, e))
    }
}

/// The driver's version as NVIDIA's kernel module tells it, else the CUDA version that the driver supports.
fn driver(device: &Device) -> Result<String> {
    if !device.is_emulated()
        && let Ok(output) =
            Command::new("nvidia-smi").args(["--query-gpu=driver_version", "--format=csv,noheader"]).output()
        && let Some(version) = String::from_utf8_lossy(&output.stdout).lines().next()
        && output.status.success()
    {
        return Ok(version.trim().to_owned());
    }
    let (major, minor) = device.driver_version()?;
    Ok(format!("CUDA {major}.{minor}"))
}

impl Row {
    /// Sets the least work, and the floor where there are rates.
    pub fn set_work(&mut self, work: Work, rates: Option<&Rates>) {
        (self.flops, self.bytes) = (work.flops, work.bytes);
        self.floor_us = rates.map(|rates| work.floor_us(rates));
    }

    /// Sets the times, and the fraction of the floor.
    pub fn set_timing(&mut self, timing: Timing) {
        self.median_us = Some(timing.median_us);
        (self.p10_us, self.p90_us) = (Some(timing.p10_us), Some(timing.p90_us));
        self.fraction = self.floor_us.map(|floor| floor / timing.median_us);
    }

    /// TFLOP/s and TB/s of the least work.
    pub fn throughput(&self) -> Option<(f64, f64)> {
        let us = self.median_us?;
        Some((self.flops as f64 / us / 1e6, self.bytes as f64 / us / 1e6))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A row with the usual values.
    pub fn row(implementation: &str, tokens: usize, median_us: f64) -> Row {
        Row {
            implementation: implementation.into(),
            model: "qwen3-30b".into(),
            shape: [128, 8, 2048, 768],
            tp: 1,
            ep: 1,
            tokens,
            scheme: "per-token".into(),
            routing: "uniform".into(),
            part: "layer".into(),
            accumulation: None,
            gathered: None,
            median_us: Some(median_us),
            p10_us: Some(median_us),
            p90_us: Some(median_us),
            launches: Some(6),
            flops: 1,
            bytes: 1,
            floor_us: Some(median_us / 2.0),
            fraction: Some(0.5),
            error: None,
            exact_rel_l2: None,
            counted: None,
        }
    }

    /// A record of these rows.
    pub fn record(rows: Vec<Row>) -> Record {
        Record {
            schema: SCHEMA.into(),
            program: "test".into(),
            version: "0".into(),
            date: "2026-01-31".into(),
            command: "test".into(),
            device: DeviceRecord {
                name: "a GPU".into(),
                capability: "9.0".into(),
                multiprocessors: 132,
                memory_bytes: 1,
                emulated: false,
                driver: "0".into(),
            },
            rates: None,
            cold_start: None,
            rows,
        }
    }

    #[test]
    fn a_record_survives_a_round_trip() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for rows in [vec![], vec![row(OURS, 1, 10.0), row("deepgemm", 8, 20.5)]] {
            let record = record(rows);
            record.write(file.path()).expect("written");
            assert_eq!(Record::read(file.path()).expect("read"), record);
        }
    }

    #[test]
    fn peers_may_leave_out_what_they_do_not_know() {
        let text = r#"{"schema":"fp8-moe-bench/1","program":"p","version":"1","date":"2026-01-31","command":"c",
            "device":{"name":"n","capability":"9.0","multiprocessors":1,"memory_bytes":1,"emulated":false,"driver":"d"},
            "rows":[{"implementation":"deepgemm","model":"m","shape":[1,1,16,16],"tp":1,"ep":1,"tokens":1,
            "scheme":"block","routing":"uniform","part":"gemm1","median_us":3.5,"extra":1}]}"#;
        let record: Record = serde_json::from_str(text).expect("a record");
        assert_eq!((record.rows[0].median_us, record.rows[0].launches), (Some(3.5), None));
    }

    #[test]
    fn another_schema_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        Record { schema: "other/2".into(), ..record(vec![]) }.write(file.path()).expect("written");
        let text = Record::read(file.path()).expect_err("refused").to_string();
        assert!(text.ends_with("schema other/2 is not known; fp8-moe-bench/1 is expected"), "{text}");
    }
}
