//! `fp8-moe bench`: how long layers and their parts take on a GPU, or what they do on the emulated device.
//!
//! ```text
//!   models x schemes --> weights --> batch sizes --> inputs --> parts --> a row of table and JSON file
//! ```
//!
//! How times are taken and what floors are made of is documented in `fp8_moe_cli`.

mod lockstep;
mod plan;
mod table;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fp8_moe::{Device, DeviceSpec, Error, Result};
use fp8_moe_cli::{
    Captured, Fusion, Layers, Part, Rates, Run, Timer, Work, matrix_flops_per_second, read_bytes_per_second,
};

use crate::record::{ColdStart, RatesRecord, Record, Row};
use crate::terminal;
use lockstep::Lockstep;
use plan::{Batch, Case};

/// Arguments of `fp8-moe bench`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Models and shares of one rank, by name, separated by commas; all: every one that has a name
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "qwen3-30b")]
    model: Vec<String>,
    /// A shape of your own instead: experts, top k, hidden size, intermediate size
    #[arg(long, value_name = "E,k,H,I", conflicts_with = "model")]
    shape: Option<String>,
    /// Batch sizes [default: 1,2,4 ... 16384; on the emulated device 1,8]
    #[arg(long, value_name = "T,..", value_delimiter = ',')]
    tokens: Vec<usize>,
    /// Divide the intermediate size among so many ranks, and measure one
    #[arg(long, value_name = "N", default_value_t = 1)]
    tp: usize,
    /// Divide the experts among so many ranks, and measure one; tokens are routed to the experts of all
    #[arg(long, value_name = "N", default_value_t = 1)]
    ep: usize,
    /// Spread the experts over so many ranks, and measure all: a process and a GPU each. Batch sizes are
    /// those of each rank
    #[arg(long, value_name = "N", conflicts_with_all = ["tp", "ep", "lockstep", "dump", "plot", "part"])]
    ranks: Option<usize>,
    /// FP8 schemes: per-token, per-tensor, block
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "per-token")]
    scheme: Vec<String>,
    /// How sums over K are kept: auto (the layer's default), fast (in the tensor cores, where no scale
    /// changes along K) or promoted (folded into f32 every 128 of K)
    #[arg(long, value_name = "HOW", default_value = "auto")]
    accumulation: String,
    /// How expert outputs are added up: deterministic, or order-free (by GEMM 2, in any order; on Hopper)
    #[arg(long, value_name = "HOW", default_value = "deterministic")]
    reduction: String,
    /// Whether the first GEMM gathers its rows by token: auto, always (where its kernels can) or never
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    gather: String,
    /// Which kernels: auto, one-launch (the layer behind the router in one, up to eight tokens), hopper (its
    /// GEMMs) or portable
    #[arg(long, value_name = "WHICH", default_value = "auto")]
    path: String,
    /// What is fastest at which shape, as `fp8-moe tune` has written it [default: on an H200]
    #[arg(long, value_name = "FILE")]
    tuning: Option<PathBuf>,
    /// Where tokens go: uniform, zipf:S, or a safetensors file with topk_ids
    #[arg(long, value_name = "HOW", default_value = "uniform")]
    routing: String,
    /// What to measure: layer, permute, quantise, gemm1, activation, gemm2, unpermute, cast, or all
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "layer")]
    part: Vec<String>,
    /// auto, cuda:N or sim
    #[arg(long, default_value = "auto")]
    device: DeviceSpec,
    /// Seed of weights, hidden states and routing
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Begin no new measurement after this many seconds
    #[arg(long, value_name = "SECONDS")]
    time_limit: Option<f64>,
    /// Use no more than so much device memory, where other programs need some too
    #[arg(long, value_name = "GIB")]
    memory_limit: Option<f64>,
    /// Rate for the floors instead of that of our own dense GEMM
    #[arg(long, value_name = "TFLOPS")]
    matrix_rate: Option<f64>,
    /// Write the rows here, after each of them
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw time and fraction of the floor over the batch size here
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Write inputs, weights and our output of the case here; one model, scheme and batch size
    #[arg(long, value_name = "FILE.safetensors")]
    dump: Option<PathBuf>,
    /// Replay only when told to on stdin: go, next, quit; answers in JSON, to take turns with other programs
    #[arg(long, conflicts_with_all = ["json", "plot", "time_limit"])]
    lockstep: bool,
}

/// The longest that the samples of one row are taken for.
const ROW_LIMIT: Duration = Duration::from_secs(2);

/// Runs the command.
pub fn bench(arguments: &Arguments) -> Result<()> {
    if let Some(count) = arguments.ranks {
        terminal::try_output(arguments.json.as_deref())?;
        let cases = plan::cases_over_ranks(arguments)?;
        return crate::ranks::start(count, arguments.device, |communicator| {
            crate::ranks::bench::run(&cases, communicator, arguments.json.as_deref())
        });
    }
    let started = Instant::now();
    let parts = plan::parts(&arguments.part)?;
    for path in [&arguments.json, &arguments.plot, &arguments.dump] {
        terminal::try_output(path.as_deref())?;
    }
    let device = terminal::open_device(arguments.device)?;
    let open = started.elapsed();
    let cases = plan::cases(arguments, device.is_emulated())?;
    if arguments.dump.is_some() && cases.iter().map(|case| case.batches.len()).sum::<usize>() != 1 {
        let rule = "must go with one model, one scheme and one number of tokens";
        return Err(Error::argument("bench", "dump", "a file", rule));
    }
    let timed = arguments.lockstep || !device.is_emulated();
    let taken = if timed { Timer::memory_bytes(&device) } else { 0 };
    let memory = arguments.memory_limit.map_or(u64::MAX, |gib| (gib * f64::from(1 << 30)) as u64);
    for case in &cases {
        case.sets(&device, device.free_memory_bytes()?.min(memory).saturating_sub(taken))?;
    }
    let mut bench = Bench {
        record: Record::new(&device)?,
        rates: None,
        how: if timed { How::Time(Timer::new(&device)?) } else { How::Count },
        started,
        left_out: 0,
        dumped: false,
        memory: memory.saturating_sub(taken),
        parts,
        arguments,
        device,
    };
    if let (false, Some(case)) = (arguments.lockstep, cases.first()) {
        bench.cold_start(case, open)?;
    }
    bench.measure_rates()?;
    let result = if arguments.lockstep { bench.lockstep(&cases) } else { bench.run(&cases) };
    if bench.left_out > 0 {
        eprintln!("note     the time limit left out {} measurements", bench.left_out);
    }
    result?;
    if let Some(path) = arguments.dump.as_ref().filter(|_| !bench.dumped) {
        let rule = "was not written: the time limit left its case out";
        return Err(Error::argument("bench", "dump", path.display(), rule));
    }
    if let Some(path) = &arguments.plot {
        crate::report::plot::draw(path, std::slice::from_ref(&bench.record))?;
        eprintln!("wrote    {}", path.display());
    }
    Ok(())
}

/// What a measurement is.
enum How {
    /// Time on the device.
    Time(Timer),
    /// Counts of the emulated device.
    Count,
}

/// A run of the command.
struct Bench<'a> {
    arguments: &'a Arguments,
    device: Device,
    /// Parts to measure; the layer first.
    parts: Vec<Part>,
    how: How,
    rates: Option<Rates>,
    record: Record,
    started: Instant,
    /// Measurements that the time limit left out.
    left_out: usize,
    /// Whether the case was written that `--dump` asks for.
    dumped: bool,
    /// Most memory for layers and their inputs, bytes.
    memory: u64,
}

impl Bench<'_> {
    /// Times the first forward of the process, on a GPU.
    fn cold_start(&mut self, case: &Case, open: Duration) -> Result<()> {
        let Some(batch) = case.batches.first().filter(|_| !self.device.is_emulated()) else { return Ok(()) };
        let layers = Layers::random(&self.device, &case.config, 1, &batch.load.active, self.arguments.seed)?;
        let mut run = Run::new(&layers, batch.tokens, &batch.routed, self.arguments.seed)?;
        let mut forward_ms = || {
            let began = Instant::now();
            run.forward().map(|()| began.elapsed().as_secs_f64() * 1e3)
        };
        let cold = ColdStart {
            model: case.model.clone(),
            scheme: case.scheme.to_string(),
            tokens: batch.tokens,
            open_ms: open.as_secs_f64() * 1e3,
            first_forward_ms: forward_ms()?,
            second_forward_ms: forward_ms()?,
            kernels: self.device.loaded_kernels().len(),
        };
        eprintln!(
            "cold     device open after {:.0} ms; first forward {:.0} ms with {} kernels to compile, second {:.2} ms",
            cold.open_ms, cold.first_forward_ms, cold.kernels, cold.second_forward_ms
        );
        self.record.cold_start = Some(cold);
        Ok(())
    }

    /// Measures the rates for the floors, on a GPU.
    fn measure_rates(&mut self) -> Result<()> {
        let How::Time(timer) = &mut self.how else { return Ok(()) };
        if self.device.is_emulated() {
            return Ok(());
        }
        let copy = timer.copy_bytes_per_second();
        // Beside other programs the memory is theirs too, and so are the rates. Where large weights have been
        // freed before, an H200 read at 3.95 TB/s, slower than it copied: the faster counts.
        let read = if self.arguments.lockstep { None } else { read_bytes_per_second(&self.device)? };
        let (matrix, of) = match self.arguments.matrix_rate {
            Some(tflops) => (tflops * 1e12, "given by --matrix-rate"),
            None => (matrix_flops_per_second(timer)?, "our own dense GEMM, 8192 x 8192 x 8192"),
        };
        let told = read.map(|read| format!("read {:.2}, ", read / 1e12)).unwrap_or_default();
        eprintln!("rates    {told}copy {:.2} TB/s; matrix {:.0} TFLOP/s, {of}", copy / 1e12, matrix / 1e12);
        self.rates =
            Some(Rates { bytes_per_second: read.unwrap_or(copy).max(copy), matrix_flops_per_second: matrix });
        self.record.rates = Some(RatesRecord {
            copy_bytes_per_s: copy,
            read_bytes_per_s: read,
            matrix_flops_per_s: matrix,
            matrix_rate_of: of.into(),
        });
        Ok(())
    }

    fn run(&mut self, cases: &[Case]) -> Result<()> {
        for case in cases {
            if self.out_of_time() {
                self.left_out += self.parts.len() * case.batches.len();
                continue;
            }
            let layers = self.layers(case)?;
            println!("\n{case}");
            println!("{}", table::header(&self.how));
            for batch in &case.batches {
                if self.out_of_time() {
                    self.left_out += self.parts.len();
                    continue;
                }
                let mut run = Run::new(&layers, batch.tokens, &batch.routed, self.arguments.seed)?;
                self.dump(case, batch, &mut run)?;
                match &self.how {
                    How::Count => self.count(case, batch, &mut run)?,
                    How::Time(_) => self.time(case, batch, &mut run)?,
                }
            }
        }
        if let Some(path) = &self.arguments.json {
            self.record.write(path)?;
            eprintln!("wrote    {}", path.display());
        }
        Ok(())
    }

    fn out_of_time(&self) -> bool {
        self.arguments.time_limit.is_some_and(|limit| self.started.elapsed().as_secs_f64() > limit)
    }

    /// The layers of a case: as many as take turns, or fit.
    fn layers(&self, case: &Case) -> Result<Layers> {
        let sets = match self.how {
            How::Count => 1,
            How::Time(_) => {
                let free = self.device.free_memory_bytes()?.min(self.memory);
                let (wanted, sets) = case.sets(&self.device, free)?;
                if sets < wanted {
                    eprintln!(
                        "note     memory for {sets} of the {wanted} weight sets that would outgrow the L2 cache"
                    );
                }
                sets
            }
        };
        Layers::random(&self.device, &case.config, sets, &case.active(), self.arguments.seed)
    }

    fn dump(&mut self, case: &Case, batch: &Batch, run: &mut Run<'_>) -> Result<()> {
        let Some(path) = &self.arguments.dump else { return Ok(()) };
        let metadata = [
            ("program", "fp8-moe".to_owned()),
            ("model", case.model.clone()),
            ("shape", format!("{:?}", case.shape_array())),
            ("tp", case.tp.to_string()),
            ("ep", case.ep.to_string()),
            ("scheme", case.scheme.to_string()),
            ("intermediate_scales", format!("{:?}", case.config.intermediate_scales)),
            ("accumulation", plan::accumulation_name(case.config.accumulation).to_owned()),
            ("reduction", case.config.reduction.to_string()),
            ("routing", case.routing.to_string()),
            ("seed", self.arguments.seed.to_string()),
        ];
        let metadata: HashMap<_, _> = metadata.map(|(key, value)| (key.to_owned(), value)).into();
        fp8_moe_cli::dump(path, run, &batch.routed, metadata)?;
        self.dumped = true;
        eprintln!("wrote    {}", path.display());
        Ok(())
    }

    /// A row without a measurement.
    fn row(&self, case: &Case, batch: &Batch, part: Part, fusion: Fusion) -> Row {
        let mut row = Row {
            implementation: crate::record::our_name(&case.config).into(),
            model: case.model.clone(),
            shape: case.shape_array(),
            tp: case.tp,
            ep: case.ep,
            tokens: batch.tokens,
            scheme: case.scheme.to_string(),
            routing: case.routing.to_string(),
            part: part.to_string(),
            accumulation: Some(plan::accumulation_name(case.config.accumulation).into()),
            gathered: Some(fusion.gather),
            median_us: None,
            p10_us: None,
            p90_us: None,
            launches: None,
            flops: 0,
            bytes: 0,
            floor_us: None,
            fraction: None,
            error: None,
            exact_rel_l2: None,
            counted: None,
        };
        row.set_work(Work::new(part, &case.config, &batch.load, fusion), self.rates.as_ref());
        row
    }

    /// Shows a row, keeps it, and writes the file.
    fn keep(&mut self, row: Row) -> Result<()> {
        println!("{}", table::line(&row));
        self.record.rows.push(row);
        match &self.arguments.json {
            Some(path) => self.record.write(path),
            None => Ok(()),
        }
    }

    /// Refused: only the emulated device counts.
    #[cfg(not(feature = "sim"))]
    fn count(&mut self, _: &Case, _: &Batch, _: &mut Run<'_>) -> Result<()> {
        let reason = "this program was built without the feature `sim`, whose device counts".into();
        Err(Error::Device { spec: self.device.to_string(), reason })
    }

    #[cfg(feature = "sim")]
    fn count(&mut self, case: &Case, batch: &Batch, run: &mut Run<'_>) -> Result<()> {
        let counted = terminal::watch_bench(batch.tokens, || run.count())?;
        let fusion = Fusion::of(run.layer(), batch.tokens)?;
        self.tell_missing(batch, counted.iter().map(|(part, _)| *part).collect());
        for (part, counters) in &counted {
            if !self.parts.contains(part) {
                continue;
            }
            let mut row = self.row(case, batch, *part, fusion);
            row.launches = Some(counters.launches as usize);
            row.counted = Some(crate::record::Counted::from(counters));
            self.keep(row)?;
        }
        Ok(())
    }

    fn time(&mut self, case: &Case, batch: &Batch, run: &mut Run<'_>) -> Result<()> {
        let fusion = Fusion::of(run.layer(), batch.tokens)?;
        let captured = match run.capture(case.turns(batch, &self.device)) {
            Ok(captured) => captured,
            Err(error) => return self.fail(self.row(case, batch, Part::Layer, fusion), error),
        };
        self.tell_missing(batch, captured.parts().collect());
        for part in self.available(&captured) {
            if self.out_of_time() {
                self.left_out += 1;
                continue;
            }
            let mut row = self.row(case, batch, part, fusion);
            let How::Time(timer) = &mut self.how else { return Ok(()) };
            let timing = captured.replays(part).and_then(|replays| {
                let Some(replays) = replays else { return Ok(None) };
                row.launches = Some(replays.launches());
                timer.measure(replays, ROW_LIMIT).map(Some)
            });
            match timing {
                Ok(timing) => {
                    if let Some(timing) = timing {
                        row.set_timing(timing);
                    }
                    self.keep(row)?;
                }
                Err(error) => return self.fail(row, error),
            }
        }
        Ok(())
    }

    /// Says which parts were asked for by name that the layer has not at this batch size, given those it
    /// `has`.
    fn tell_missing(&self, batch: &Batch, has: Vec<Part>) {
        let all = self.arguments.part.iter().any(|name| name == "all");
        for part in self.parts.iter().filter(|part| !all && !has.contains(part)) {
            let tokens = batch.tokens;
            eprintln!("note     T = {tokens}: the layer has no {part}, or has it in another kernel");
        }
    }

    /// The parts to measure that the layer has.
    fn available(&self, captured: &Captured<'_>) -> Vec<Part> {
        captured.parts().filter(|part| self.parts.contains(part)).collect()
    }

    /// Keeps a row with its error. A refused argument is that row's alone; after anything else the device is
    /// not to be trusted.
    fn fail(&mut self, mut row: Row, error: Error) -> Result<()> {
        row.error = Some(error.to_string());
        self.keep(row)?;
        if matches!(error, Error::Argument { .. }) { Ok(()) } else { Err(error) }
    }

    /// Measures when told to, until told to quit.
    fn lockstep(&mut self, cases: &[Case]) -> Result<()> {
        let mut lockstep = Lockstep::default();
        for case in cases {
            let layers = self.layers(case)?;
            for batch in &case.batches {
                let mut run = Run::new(&layers, batch.tokens, &batch.routed, self.arguments.seed)?;
                self.dump(case, batch, &mut run)?;
                let fusion = Fusion::of(run.layer(), batch.tokens)?;
                let captured = run.capture(case.turns(batch, &self.device))?;
                for part in self.available(&captured) {
                    let mut row = self.row(case, batch, part, fusion);
                    let How::Time(timer) = &mut self.how else { return Ok(()) };
                    let Some(replays) = captured.replays(part)? else { continue };
                    row.launches = Some(replays.launches());
                    if lockstep.serve(&row, replays, timer)?.is_break() {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }
}
