//! The lines that `fp8-moe bench` prints.

use super::How;
use crate::record::{Counted, Row};

/// The header of the lines of a case.
pub fn header(how: &How) -> String {
    match how {
        How::Time(_) => format!(
            "{:>7} {:<11} {:>11} {:>11} {:>11} {:>8} {:>8} {:>7} {:>11} {:>6}",
            "tokens", "part", "median us", "p10", "p90", "launches", "TFLOP/s", "TB/s", "floor us", "of it"
        ),
        How::Count => format!(
            "{:>7} {:<11} {:>8} {:>12} {:>12} {:>12} {:>7} {:>10} {:>10} {:>7} {:>10}",
            "tokens",
            "part",
            "launches",
            "kB loaded",
            "kB stored",
            "least kB",
            "ratio",
            "MFLOP",
            "least",
            "ratio",
            "conflicts"
        ),
    }
}

/// A row as a line.
pub fn line(row: &Row) -> String {
    let start = format!("{:>7} {:<11}", row.tokens, row.part);
    if let Some(error) = &row.error {
        return format!("{start} {error}");
    }
    match &row.counted {
        Some(counted) => format!("{start} {}", counts(row, counted)),
        None => format!("{start} {}", times(row)),
    }
}

fn times(row: &Row) -> String {
    let us = |value: Option<f64>| value.map_or("-".into(), |us| format!("{us:.2}"));
    let (tflops, tbs) = row.throughput().unwrap_or_default();
    format!(
        "{:>11} {:>11} {:>11} {:>8} {tflops:>8.1} {tbs:>7.2} {:>11} {:>6}",
        us(row.median_us),
        us(row.p10_us),
        us(row.p90_us),
        row.launches.map_or("-".into(), |n| n.to_string()),
        us(row.floor_us),
        row.fraction.map_or("-".into(), |fraction| format!("{:.0} %", fraction * 100.0))
    )
}

fn counts(row: &Row, counted: &Counted) -> String {
    let kilo = |n: u64| format!("{:.1}", n as f64 / 1e3);
    let mega = |n: u64| format!("{:.2}", n as f64 / 1e6);
    let ratio =
        |n: u64, least: u64| if least == 0 { "-".into() } else { format!("{:.2}", n as f64 / least as f64) };
    format!(
        "{:>8} {:>12} {:>12} {:>12} {:>7} {:>10} {:>10} {:>7} {:>10}",
        counted.launches,
        kilo(counted.global_load_bytes),
        kilo(counted.global_store_bytes),
        kilo(row.bytes),
        ratio(counted.global_bytes(), row.bytes),
        mega(counted.tensor_flops),
        mega(row.flops),
        ratio(counted.tensor_flops, row.flops),
        counted.shared_bank_conflicts
    )
}
