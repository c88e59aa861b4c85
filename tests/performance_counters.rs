//! What a small layer costs in numbers that no machine changes: launches, bytes through global memory, bank
//! conflicts and tensor-core operations, as the emulated device counts them, beside the least that the work
//! needs; and the bytes that the GEMMs have on their way to an SM.
//!
//! The table is committed: a fusion that comes undone, a copy that doubles or a conflict that creeps in shows
//! in the diff of the commit that did it. `FP8_MOE_UPDATE=1 cargo test --test performance_counters` writes it
//! anew.

mod common;

use std::fmt::Write as _;
use std::path::Path;

use common::families;
use cust::sim::{Counters, set_seed};
use fp8_moe::internals::{HopperTile, PortableTile};
use fp8_moe::{Device, Family, Gather, MoeConfig, Tuning};
use fp8_moe_cli::{Fusion, Layers, Load, Part, RoutingKind, Run, Scheme, Shape, Work};

/// The table.
const TABLE: &str = "tests/performance_counters.txt";
const COMMITTED: &str = include_str!("performance_counters.txt");

const SHAPE: Shape = Shape { experts: 8, top_k: 2, hidden: 512, intermediate: 256 };
/// A decode batch, whose work is the weights' stream, one with many rows per expert, and one with so many
/// that Hopper's kernels can gather them; and when they do.
const BATCHES: [(usize, Gather); 3] = [(4, Gather::Auto), (128, Gather::Auto), (256, Gather::Always)];

/// One line of the table.
fn line(config: &MoeConfig, load: &Load, fusion: Fusion, part: Part, counters: &Counters) -> String {
    let work = Work::new(part, config, load, fusion);
    let ratio = |n: u64, least: u64| {
        if least == 0 { "-".into() } else { format!("{:.2}", n as f64 / least as f64) }
    };
    let Counters {
        launches, global_load_bytes, global_store_bytes, shared_bank_conflicts, tensor_flops, ..
    } = *counters;
    format!(
        "{part:<10} {launches:>8} {global_load_bytes:>10} {global_store_bytes:>10} {:>10} {:>6} {tensor_flops:>11} {:>11} \
         {:>6} {shared_bank_conflicts:>9}",
        work.bytes,
        ratio(global_load_bytes + global_store_bytes, work.bytes),
        work.flops,
        ratio(tensor_flops, work.flops),
    )
}

/// The lines of one layer.
fn lines(device: &Device, scheme: Scheme, (tokens, gather): (usize, Gather)) -> String {
    // In one launch blocks look for each other's words, and how often depends on the timing.
    let mut tuning = Tuning::default();
    (tuning.one_launch_packed_mb, tuning.one_launch_checkpoint_mb) = ([0; 8], [0; 8]);
    let config =
        SHAPE.config(scheme, 1, 1).unwrap().to_builder().gather(gather).tuning(tuning).build().unwrap();
    let routed = RoutingKind::Uniform.draw(tokens, SHAPE.experts, SHAPE.top_k, 0).unwrap();
    let load = Load::new(&config, &routed);
    let layers = Layers::random(device, &config, 1, &load.active, 0).unwrap();
    let mut run = Run::new(&layers, tokens, &routed, 0).unwrap();
    let fusion = Fusion::of(run.layer(), tokens).unwrap();
    let counted = run.count().unwrap();
    let mut text = format!("\n{}, {scheme}, {tokens} tokens\n", device.family());
    for (part, counters) in &counted {
        let _ = writeln!(text, "{}", line(&config, &load, fusion, *part, counters));
    }
    text
}

/// The lines of what the GEMMs of a device have on their way to an SM.
fn in_flight(device: &Device) -> String {
    let mut text =
        format!("\n{}, bytes in flight to an SM: tiles of so many rows, fast, promoted\n", device.family());
    let mut line = |block_m: usize, bytes: [u32; 2]| {
        let _ = writeln!(text, "{block_m:<10} {:>8} {:>10}", bytes[0], bytes[1]);
    };
    if device.family() == Family::Sm90a {
        HopperTile::ALL.iter().for_each(|tile| line(tile.block_m(), [tile.bytes_in_flight(); 2]));
    } else {
        for tile in PortableTile::ALL {
            line(tile.block_m(), [false, true].map(|promoted| tile.bytes_in_flight(99 * 1024, promoted)));
        }
    }
    text
}

#[test]
fn the_counters_are_as_committed() {
    let families = families();
    if !families[0].is_emulated() {
        eprintln!("skipped: a GPU does not count");
        return;
    }
    set_seed(0);
    let Shape { experts, top_k, hidden, intermediate } = SHAPE;
    let mut table = format!(
        "What a layer of {experts} experts, top {top_k}, hidden {hidden}, intermediate {intermediate} does, as the emulated \
         device counts it.\n\
         Written by `FP8_MOE_UPDATE=1 cargo test --test performance_counters`, checked by the same without the variable.\n\n\
         {:<10} {:>8} {:>10} {:>10} {:>10} {:>6} {:>11} {:>11} {:>6} {:>9}\n",
        "part", "launches", "loaded B", "stored B", "least B", "ratio", "FLOP", "least", "ratio", "conflicts"
    );
    for device in &families {
        table += &in_flight(device);
        for scheme in Scheme::ALL {
            for batch in BATCHES {
                table += &lines(device, scheme, batch);
            }
        }
    }
    if std::env::var_os("FP8_MOE_UPDATE").is_some() {
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(TABLE), table).unwrap();
        return;
    }
    let differences: Vec<_> = COMMITTED
        .lines()
        .zip(table.lines())
        .filter(|(committed, now)| committed != now)
        .map(|(committed, now)| format!("- {committed}\n+ {now}"))
        .collect();
    assert!(
        COMMITTED == table,
        "the counters differ from {TABLE}; if that is meant, `FP8_MOE_UPDATE=1 cargo test --test performance_counters` and \
         commit:\n{}",
        differences.join("\n")
    );
}
