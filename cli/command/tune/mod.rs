//! `fp8-moe tune`: measures which choices of a plan are fastest on a GPU, and writes the table that makes
//! them.
//!
//! ```text
//!   models x sizes --measure--> us of each choice, in turn --fit--> limits that lose least --> Tuning, as JSON
//! ```
//!
//! The default table was made so on an H200. What the GPU has no kernels for, and what the time limit leaves
//! out, stays as it is in the table that the command begins with.

mod fit;
mod measure;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use fp8_moe::{Device, DeviceSpec, Error, Result, Tuning};
use fp8_moe_cli::{Model, Scheme, Timer};

use crate::terminal;
use fit::Case;
use measure::{CUTS, Few, GRID, Gathered, Measured, Router, Study};

/// Arguments of `fp8-moe tune`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Models and shares of one rank whose layers are measured, by name, separated by commas
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "qwen3.5-35b,qwen3-30b,deepseek-v3-tp8,qwen3-235b,mixtral-8x7b,llama4-maverick,deepseek-v2-lite,glm-4.6,gpt-oss-120b"
    )]
    model: Vec<String>,
    /// FP8 scheme: per-token, per-tensor or block
    #[arg(long, value_name = "NAME", default_value = "block")]
    scheme: String,
    /// Where tokens go: uniform, zipf:S, or a safetensors file with topk_ids. Of several, tiles and gathering
    /// are measured with each and weigh alike, the rest with the first
    #[arg(long, value_name = "HOW", value_delimiter = ',', default_value = "uniform,zipf:1.0")]
    routing: Vec<String>,
    /// The table to begin with [default: that of an H200]
    #[arg(long, value_name = "FILE")]
    tuning: Option<PathBuf>,
    /// Write the table here
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
    /// auto or cuda:N
    #[arg(long, default_value = "auto")]
    device: DeviceSpec,
    /// Seed of weights, hidden states and routing
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Begin no new measurement after this many seconds
    #[arg(long, value_name = "SECONDS")]
    time_limit: Option<f64>,
    /// Use no more than so much device memory
    #[arg(long, value_name = "GIB")]
    memory_limit: Option<f64>,
}

/// Runs the command.
pub fn tune(arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let models = arguments.model.iter().map(|name| Model::named(name)).collect::<Result<Vec<_>>>()?;
    let scheme: Scheme = arguments.scheme.parse()?;
    let routings = arguments.routing.iter().map(|text| text.parse()).collect::<Result<Vec<_>>>()?;
    let base = read(arguments.tuning.as_deref())?;
    let deadline = match arguments.time_limit {
        Some(seconds) => {
            let limit = Duration::try_from_secs_f64(seconds).ok();
            let refuse = || Error::argument("tune", "time-limit", seconds, "must be 0 or more");
            started.checked_add(limit.ok_or_else(refuse)?)
        }
        None => None,
    };
    terminal::try_output(arguments.json.as_deref())?;
    let device = terminal::open_device(arguments.device)?;
    if device.is_emulated() {
        let reason = "has no clock of its own, and to tune is to time: on a GPU alone".into();
        return Err(Error::Device { spec: device.to_string(), reason });
    }
    let memory = arguments.memory_limit.map_or(u64::MAX, |gib| (gib * f64::from(1 << 30)) as u64);
    let mut study = Study {
        timer: Timer::new(&device)?,
        memory: memory.saturating_sub(Timer::memory_bytes(&device)),
        device,
        grid: GRID,
        base,
        scheme,
        routings,
        seed: arguments.seed,
        deadline,
        measured: Measured::default(),
        left_out: 0,
    };
    let mut routers = Vec::new();
    for model in &models {
        study.model(model)?;
        let router = (model.shape.experts, model.shape.hidden);
        if !routers.contains(&router) {
            routers.push(router);
            study.router(router.0, router.1)?;
        }
    }
    if study.left_out > 0 {
        eprintln!("note     time or memory left out {} measurements", study.left_out);
    }
    let table = table(&study.base, &study.measured, &study.device);
    report(&study.base, &table, &study.measured);
    match &arguments.json {
        Some(path) => {
            std::fs::write(path, table.to_json()).map_err(|e| Error::io(path, e))?;
            eprintln!("wrote    {}", path.display());
        }
        None => print!("\n{}", table.to_json()),
    }
    Ok(())
}

/// The table of a file, or that of an H200.
pub fn read(path: Option<&std::path::Path>) -> Result<Tuning> {
    path.map_or_else(|| Ok(Tuning::default()), Tuning::read)
}

/// The costs by which cuts of the launch for few tokens are chosen; the first are the table's.
fn costs(base: &Tuning) -> impl Iterator<Item = [u32; 2]> {
    std::iter::once([base.one_launch_unit_bytes, base.one_launch_copy_bytes]).chain(CUTS)
}

/// Which of the costs lose least where packed weights are read by one launch.
fn best_costs(measured: &Measured) -> usize {
    let few = measured.few.iter().filter(|few| few.packed);
    fit::setting(&few.map(|few| few.one.clone()).collect::<Vec<_>>())
}

/// One launch, cut by the costs of such a number, beside several, over the megabytes.
fn one_launch(measured: &Measured, packed: bool, tokens: usize, costs: usize) -> Vec<Case> {
    let few = measured.few.iter().filter(|few| few.packed == packed && few.tokens == tokens);
    few.map(|few: &Few| Case { x: few.megabytes, us: vec![few.one[costs], few.several] }).collect()
}

/// The table that `measured` makes of `base`.
fn table(base: &Tuning, measured: &Measured, device: &Device) -> Tuning {
    let mut table = base.clone();
    table.gpu = device.name().chars().filter(|c| !c.is_control()).collect();
    let chosen = best_costs(measured);
    if let Some([units, copies]) = costs(base).nth(chosen) {
        (table.one_launch_unit_bytes, table.one_launch_copy_bytes) = (units, copies);
    }
    for packed in [true, false] {
        let limits =
            if packed { &mut table.one_launch_packed_mb } else { &mut table.one_launch_checkpoint_mb };
        let mut last = None;
        // A number of tokens that was not measured takes what the next larger one has.
        for (index, limit) in limits.iter_mut().enumerate().rev() {
            let cases = one_launch(measured, packed, index + 1, chosen);
            if !cases.is_empty() {
                last = Some(number(fit::limits(&cases, &[f64::from(*limit)])[0].ceil()));
            }
            *limit = last.unwrap_or(*limit);
        }
    }
    let whole = |cases: &[Case], present: [u32; 2]| {
        let limits = fit::limits(cases, &present.map(f64::from));
        [limits[0], limits[1]].map(|limit| number(limit.floor()))
    };
    [table.hopper_rows_8, table.hopper_rows_16] =
        whole(&measured.hopper, [base.hopper_rows_8, base.hopper_rows_16]);
    [table.portable_rows_16, table.portable_rows_64] =
        whole(&measured.portable, [base.portable_rows_16, base.portable_rows_64]);
    let one = |cases: &[Case], present: u32| number(fit::limits(cases, &[f64::from(present)])[0].floor());
    table.router_few_tokens = one(&few_router(measured), base.router_few_tokens);
    table.router_tile_16x8_logits = one(&tile_router(measured), base.router_tile_16x8_logits);
    let gathered = &measured.gathered;
    let places = [0, 1, 2].map(|size| fit::places(gathered.iter().map(|case| case.sizes[size])));
    let [from, rows, columns] =
        fit::search(&gathering(base), &places, |limits| gathering_loss(gathered, limits))[..]
    else {
        return table;
    };
    // What has as many rows as `gather_from` is gathered, what lies at the limit is not.
    table.gather_from = number((from + 1.0).floor());
    (table.gather_rows, table.gather_intermediate) = (number(rows.floor()), number(columns.floor()));
    table
}

/// The router's kernel for few tokens beside the better of the others, over the tokens.
fn few_router(measured: &Measured) -> Vec<Case> {
    let case = |&Router { tokens, us: [few, tile, large], .. }: &Router| Case {
        x: tokens as f64,
        us: vec![few, tile.min(large)],
    };
    measured.router.iter().map(case).collect()
}

/// Its kernel of 16 by 8 logits beside that of 64 by 64, over the logits.
fn tile_router(measured: &Measured) -> Vec<Case> {
    let case = |&Router { tokens, experts, us: [_, tile, large] }: &Router| Case {
        x: (tokens * experts) as f64,
        us: vec![tile, large],
    };
    measured.router.iter().map(case).collect()
}

/// The limits by which a table gathers: rows of a token beyond the first, and rows of an expert up to the
/// second or columns up to the third.
fn gathering(tuning: &Tuning) -> [f64; 3] {
    let Tuning { gather_from, gather_rows, gather_intermediate, .. } = *tuning;
    [below(gather_from), f64::from(gather_rows), f64::from(gather_intermediate)]
}

/// The mean loss of such limits.
fn gathering_loss(cases: &[Gathered], limits: &[f64]) -> f64 {
    let of_case = |case: &Gathered| {
        let beyond = |size: usize| case.sizes[size] > limits[size];
        let gathers = beyond(0) && !(beyond(1) && beyond(2));
        Case { x: 0.0, us: case.us.to_vec() }.loss(usize::from(gathers))
    };
    cases.iter().map(of_case).sum::<f64>() / cases.len().max(1) as f64
}

/// A limit that leaves out all from this number on.
fn below(from: u32) -> f64 {
    f64::from(from) - 0.5
}

/// A limit as a table has it.
fn number(limit: f64) -> u32 {
    // Saturates.
    limit as u32
}

/// Says what has changed, and what the tables lose against the best choice in every case.
fn report(base: &Tuning, table: &Tuning, measured: &Measured) {
    println!("\n{:<34} {:>12} {:>12} {:>6}   over the best choices", "", base.gpu, "now", "cases");
    let say = |name: &str, numbers: [String; 2], cases: usize, losses: [f64; 2]| {
        let [was, is] = numbers;
        let [before, now] = losses.map(|loss| 100.0 * loss);
        let losses = if cases > 0 { format!("{before:.2} % -> {now:.2} %") } else { String::new() };
        println!("{name:<34} {was:>12} {is:>12} {cases:>6}   {losses}");
    };
    let line = |name: &str, numbers: [String; 2], cases: &[Case], limits: [&[f64]; 2]| {
        say(name, numbers, cases.len(), limits.map(|limits| fit::loss(cases, limits)));
    };
    let chosen = best_costs(measured);
    let text = |a: u32, b: u32| [a.to_string(), b.to_string()];
    let pair = |a: [u32; 2], b: [u32; 2]| [a, b].map(|[low, high]| format!("{low}, {high}"));
    let cost = |tuning: &Tuning| [tuning.one_launch_unit_bytes, tuning.one_launch_copy_bytes];
    line("one_launch_unit_, _copy_bytes", pair(cost(base), cost(table)), &[], [&[], &[]]);
    for packed in [true, false] {
        let of = |tuning: &Tuning, tokens: usize| match packed {
            true => tuning.one_launch_packed_mb[tokens - 1],
            false => tuning.one_launch_checkpoint_mb[tokens - 1],
        };
        for tokens in 1..=8 {
            let cases = one_launch(measured, packed, tokens, chosen);
            let (was, is) = (of(base, tokens), of(table, tokens));
            let key = if packed { "one_launch_packed_mb" } else { "one_launch_checkpoint_mb" };
            let limits: [&[f64]; 2] = [&[f64::from(was)], &[f64::from(is)]];
            line(&format!("{key}, {tokens} tokens"), text(was, is), &cases, limits);
        }
    }
    for (name, cases, of) in [
        (
            "hopper_rows_8, _16",
            &measured.hopper,
            (|t| [t.hopper_rows_8, t.hopper_rows_16]) as fn(&Tuning) -> [u32; 2],
        ),
        ("portable_rows_16, _64", &measured.portable, |t| [t.portable_rows_16, t.portable_rows_64]),
    ] {
        let limits = [of(base), of(table)].map(|limits| limits.map(f64::from));
        line(name, pair(of(base), of(table)), cases, [&limits[0], &limits[1]]);
    }
    for (name, cases, of) in [
        ("router_few_tokens", few_router(measured), (|t| t.router_few_tokens) as fn(&Tuning) -> u32),
        ("router_tile_16x8_logits", tile_router(measured), |t| t.router_tile_16x8_logits),
    ] {
        let (was, is) = (of(base), of(table));
        line(name, text(was, is), &cases, [&[f64::from(was)], &[f64::from(is)]]);
    }
    let all = |t: &Tuning| format!("{}, {}, {}", t.gather_from, t.gather_rows, t.gather_intermediate);
    let losses = [base, table].map(|tuning| gathering_loss(&measured.gathered, &gathering(tuning)));
    say("gather_from, _rows, _intermediate", [all(base), all(table)], measured.gathered.len(), losses);
}

#[cfg(test)]
mod tests {
    use fp8_moe_cli::{Model, RoutingKind, Shape};

    use super::measure::Grid;
    use super::*;

    fn device() -> Device {
        let spec = std::env::var("FP8_MOE_DEVICE").map_or(Ok(DeviceSpec::Sim), |text| text.parse());
        Device::open(spec.expect("FP8_MOE_DEVICE")).expect("a device")
    }

    /// The whole way on a layer that the emulated device runs in milliseconds: its own times mean nothing,
    /// but every choice is taken and noted, and the table is one.
    #[test]
    fn every_choice_is_measured() {
        let device = device();
        let grid = Grid {
            few: &[1, 2],
            hopper_means: &[1, 2],
            portable_means: &[1, 2],
            gathered: &[3],
            router: &[1, 9],
            most_tokens: 16,
            samples: 1,
        };
        let mut study = Study {
            timer: Timer::new(&device).expect("a timer"),
            memory: u64::MAX,
            grid,
            base: Tuning::default(),
            scheme: Scheme::Block,
            routings: vec![RoutingKind::Uniform, RoutingKind::Zipf(1.0)],
            seed: 1,
            deadline: None,
            measured: Measured::default(),
            left_out: 0,
            device: device.clone(),
        };
        let shape = Shape { experts: 4, top_k: 2, hidden: 128, intermediate: 128 };
        study.model(&Model { name: "small", shape, tp: 1, ep: 1 }).expect("a model");
        study.router(4, 128).expect("a router");
        let Measured { few, hopper, portable, gathered, router } = &study.measured;
        if device.family() == fp8_moe::Family::Sm90a {
            assert_eq!((few.len(), hopper.len(), portable.len(), gathered.len()), (4, 4, 0, 2));
            assert!(few.iter().all(|few| few.one.len() == 1 + CUTS.len() && few.several > 0.0));
        } else {
            assert_eq!((few.len(), hopper.len(), portable.len(), gathered.len()), (0, 0, 4, 0));
        }
        assert_eq!(router.len(), 2);
        let heights = hopper.iter().chain(portable).flat_map(|case| &case.us);
        let others = gathered.iter().flat_map(|case| &case.us).chain(router.iter().flat_map(|case| &case.us));
        assert!(heights.chain(others).all(|&us| us > 0.0));
        let table = table(&study.base, &study.measured, &device);
        assert_eq!(Tuning::from_json(&table.to_json()).expect("a table"), table);
        report(&study.base, &table, &study.measured);
        // Past its time it begins nothing.
        study.deadline = Some(Instant::now() - Duration::from_millis(1));
        let before = study.measured.router.len();
        study.model(&Model { name: "small", shape, tp: 1, ep: 1 }).expect("nothing");
        study.router(4, 128).expect("nothing");
        assert_eq!((study.left_out, study.measured.router.len()), (3, before));
    }

    /// Times that say plainly what is best become that table, whatever was there before.
    #[test]
    fn measurements_become_a_table() {
        let device = device();
        let best = |x: f64, limits: &[f64]| -> Case {
            let best = limits.iter().filter(|&&limit| x > limit).count();
            Case { x, us: (0..=limits.len()).map(|choice| 10.0 + best.abs_diff(choice) as f64).collect() }
        };
        let cases = |xs: &[f64], limits: &[f64]| xs.iter().map(|&x| best(x, limits)).collect::<Vec<_>>();
        let few = |tokens, megabytes, several| {
            // The sixth of the cuts is better than the present one.
            let one: Vec<f64> = (0..=CUTS.len()).map(|cut| if cut == 6 { 10.0 } else { 11.0 }).collect();
            Few { packed: true, tokens, megabytes, several, one }
        };
        // Gathered rows pay from six to a token on, with up to 100 to an expert or up to 1000 columns.
        let sizes = |f: fn([f64; 3]) -> [f64; 2]| {
            let each = [2.0, 6.0, 8.0].into_iter();
            let each = each.flat_map(|token| [64.0, 256.0].map(|rows| [token, rows]));
            let each = each.flat_map(|[token, rows]| [512.0, 2048.0].map(|columns| [token, rows, columns]));
            each.map(move |sizes| Gathered { sizes, us: f(sizes) })
        };
        let gathered = sizes(|[token, rows, columns]| {
            let pays = token >= 6.0 && (rows <= 100.0 || columns <= 1000.0);
            [10.0, if pays { 9.0 } else { 11.0 }]
        });
        // The router's kernels change beyond 1 token, and beyond 2048 logits.
        let router = [1, 8, 64, 512].into_iter().flat_map(|tokens| [8, 128].map(|experts| (tokens, experts)));
        let router = router.map(|(tokens, experts)| {
            let is_large = tokens * experts > 2048;
            let us = [if tokens == 1 { 4.0 } else { 20.0 }, if is_large { 9.0 } else { 5.0 }, 6.0];
            Router { tokens, experts, us }
        });
        let measured = Measured {
            few: vec![few(1, 30.0, 20.0), few(1, 240.0, 12.0), few(1, 960.0, 8.0), few(4, 60.0, 9.0)],
            hopper: cases(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0], &[2.0, 16.0]),
            portable: Vec::new(),
            gathered: gathered.collect(),
            router: router.collect(),
        };
        let mut base = Tuning::default();
        base.one_launch_packed_mb = [200, 60, 0, 0, 0, 0, 0, 0];
        (base.hopper_rows_8, base.hopper_rows_16) = (0, 0);
        (base.gather_from, base.gather_rows, base.gather_intermediate) = (1, 0, 0);
        (base.router_few_tokens, base.router_tile_16x8_logits) = (0, 0);
        let table = table(&base, &measured, &device);
        // Between 240 and 960 MB; with four tokens never, nor with three, which were not measured.
        assert_eq!(table.one_launch_packed_mb, [480, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(table.one_launch_checkpoint_mb, Tuning::default().one_launch_checkpoint_mb);
        assert_eq!([table.one_launch_unit_bytes, table.one_launch_copy_bytes], CUTS[5]);
        assert_eq!([table.hopper_rows_8, table.hopper_rows_16], [2, 22]);
        assert_eq!(table.portable_rows_16, Tuning::default().portable_rows_16);
        // Between the sizes on either side, by their geometric mean.
        assert_eq!([table.gather_from, table.gather_rows, table.gather_intermediate], [4, 128, 1024]);
        assert_eq!([table.router_few_tokens, table.router_tile_16x8_logits], [2, 2048]);
        assert_eq!(table.gpu, device.name());
    }
}
