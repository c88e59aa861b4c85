//! Tables of times: a column per implementation, and how each of ours compares with the best of the others.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::series::{Key, Merged, best_peer, implementations, lead};
use crate::record::{Row, is_ours, is_peer};

/// A table for every shape, scheme and part, as text or Markdown.
pub fn tables(merged: &Merged<'_>, markdown: bool) -> String {
    let mut text = String::new();
    for (key, batches) in merged {
        let heading = if markdown { "**" } else { "" };
        let part = if key.part.name == "layer" { "whole layer" } else { &key.part.name };
        let _ = writeln!(text, "{heading}{}, {part}{heading}\n", key.title());
        let cells = cells(key, batches);
        if markdown {
            markdown_table(&mut text, &cells, 0);
        } else {
            plain_table(&mut text, &cells);
        }
        text.push_str(&distances(batches));
        text.push('\n');
    }
    text
}

/// A line that says how far each implementation's results were from exact arithmetic, if that is known.
fn distances(batches: &BTreeMap<usize, BTreeMap<&str, &Row>>) -> String {
    let known: BTreeMap<&str, f64> = batches
        .values()
        .flatten()
        .filter_map(|(name, row)| row.exact_rel_l2.map(|distance| (*name, distance)))
        .collect();
    if known.is_empty() {
        return String::new();
    }
    let each: Vec<_> = known.iter().map(|(name, distance)| format!("{name} {distance:.1e}")).collect();
    format!("\ndistance from exact arithmetic on the quantised operands, relative L2: {}\n", each.join(", "))
}

/// One table of all models: our time at each batch size, the fastest peer's by it, and which that is.
pub fn summary(merged: &Merged<'_>, markdown: bool) -> String {
    let batches: BTreeSet<usize> = merged.values().flat_map(BTreeMap::keys).copied().collect();
    let mut header = ["model", "scheme", "part", "ours"].map(str::to_owned).to_vec();
    header.extend(batches.iter().map(|tokens| format!("T = {tokens}")));
    let mut lines = vec![header];
    for (key, measured) in merged {
        let names = implementations(&Merged::from([(key.clone(), measured.clone())]));
        for name in names.iter().filter(|name| is_ours(name)) {
            let mut line = [&key.model, &key.scheme, &key.part.name, name].map(String::clone).to_vec();
            line.extend(
                batches
                    .iter()
                    .map(|tokens| {
                        let rows = measured.get(tokens)?;
                        let time = time(rows.get(name.as_str())?);
                        Some(match (lead(name, rows), best_peer(rows)) {
                            (Some(lead), Some((peer, _))) => format!("{time}; {lead:.2} {peer}"),
                            _ => time,
                        })
                    })
                    .map(|cell| cell.unwrap_or("-".into())),
            );
            lines.push(line);
        }
    }
    let mut text = String::new();
    if markdown {
        markdown_table(&mut text, &lines, 4);
    } else {
        plain_table(&mut text, &lines);
    }
    text
}

/// The cells of a table, the header first.
fn cells(key: &Key, batches: &BTreeMap<usize, BTreeMap<&str, &Row>>) -> Vec<Vec<String>> {
    let names = implementations(&Merged::from([(key.clone(), batches.clone())]));
    let peers = names.iter().any(|name| is_peer(name));
    let ours: Vec<_> = names.iter().filter(|name| peers && is_ours(name)).collect();
    let floors = batches.values().flat_map(|rows| rows.values()).any(|row| row.fraction.is_some());
    let mut header = vec!["tokens".to_owned()];
    header.extend(names.iter().map(|name| format!("{name}, us")));
    match ours[..] {
        [_] => header.push("best peer / ours".into()),
        _ => header.extend(ours.iter().map(|name| format!("best peer / {name}"))),
    }
    if floors {
        header.push("floor, us".into());
        header.push("of it".into());
    }
    let mut cells = vec![header];
    for (tokens, rows) in batches {
        let mut line = vec![tokens.to_string()];
        line.extend(names.iter().map(|name| rows.get(name.as_str()).map_or("-".into(), |row| time(row))));
        line.extend(ours.iter().map(|name| lead(name, rows).map_or("-".into(), |lead| format!("{lead:.2}"))));
        if floors {
            let row = rows.get(names[0].as_str());
            let floor = row.and_then(|row| row.floor_us);
            let fraction = row.and_then(|row| row.fraction);
            line.push(floor.map_or("-".into(), |us| format!("{us:.1}")));
            line.push(fraction.map_or("-".into(), |fraction| format!("{:.0} %", fraction * 100.0)));
        }
        cells.push(line);
    }
    cells
}

/// A time, or why there is none.
fn time(row: &Row) -> String {
    match (row.median_us, &row.counted) {
        (Some(us), _) => format!("{us:.1}"),
        (None, Some(_)) => "counted".into(),
        (None, None) => "failed".into(),
    }
}

fn plain_table(text: &mut String, cells: &[Vec<String>]) {
    let widths: Vec<usize> = (0..cells[0].len())
        .map(|column| cells.iter().map(|line| line[column].len()).max().unwrap_or(0))
        .collect();
    for line in cells {
        let padded: Vec<_> =
            line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:>width$}")).collect();
        let _ = writeln!(text, "{}", padded.join("  "));
    }
}

/// `words`: columns of text, the first ones; numbers follow, which end in line.
fn markdown_table(text: &mut String, cells: &[Vec<String>], words: usize) {
    for (number, line) in cells.iter().enumerate() {
        let _ = writeln!(text, "| {} |", line.join(" | "));
        if number == 0 {
            let _ = writeln!(text, "|{}{}", "---|".repeat(words), "---:|".repeat(line.len() - words));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{record, row};
    use crate::record::{OURS, OURS_FAST};
    use crate::report::series::merge;

    #[test]
    fn files_are_merged_into_one_table() {
        let ours = record(vec![row(OURS, 8, 50.0), row(OURS, 1, 10.0)]);
        let mut failed = row("vllm-triton", 8, 0.0);
        (failed.median_us, failed.error) = (None, Some("out of memory".into()));
        let peers = record(vec![row("vllm-cutlass", 1, 15.0), row("vllm-triton", 1, 12.0), failed]);
        let text = tables(&merge(&[ours, peers]), false);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            text.lines().next(),
            Some("qwen3-30b [128, 8, 2048, 768], per-token, uniform routing, whole layer")
        );
        assert_eq!(
            lines[2].join(" "),
            "tokens fp8-moe, us vllm-cutlass, us vllm-triton, us best peer / ours floor, us of it"
        );
        assert_eq!(lines[3], ["1", "10.0", "15.0", "12.0", "1.20", "5.0", "50", "%"]);
        assert_eq!(lines[4], ["8", "50.0", "-", "failed", "-", "25.0", "50", "%"]);
    }

    #[test]
    fn distances_stand_below_the_times() {
        let mut peer = row("deepgemm", 1, 15.0);
        peer.exact_rel_l2 = Some(0.0172);
        let text = tables(&merge(&[record(vec![row(OURS, 1, 10.0), peer])]), false);
        let line = "distance from exact arithmetic on the quantised operands, relative L2: deepgemm 1.7e-2";
        assert_eq!(text.lines().filter(|text| *text == line).count(), 1, "{text}");
        let text = tables(&merge(&[record(vec![row(OURS, 1, 10.0)])]), false);
        assert!(!text.contains("distance"), "{text}");
    }

    #[test]
    fn a_summary_names_the_fastest_peer_and_no_ceiling() {
        let ours = record(vec![row(OURS, 1, 10.0), row(OURS, 8, 50.0), row(OURS_FAST, 8, 40.0)]);
        let peers =
            record(vec![row("vllm-cutlass", 8, 60.0), row("deepgemm", 8, 80.0), row("cublaslt", 8, 1.0)]);
        let text = summary(&merge(&[ours, peers]), true);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "| model | scheme | part | ours | T = 1 | T = 8 |");
        assert_eq!(lines[2], "| qwen3-30b | per-token | layer | fp8-moe | 10.0 | 50.0; 1.20 vllm-cutlass |");
        assert_eq!(
            lines[3],
            "| qwen3-30b | per-token | layer | fp8-moe-fast | - | 40.0; 1.50 vllm-cutlass |"
        );
    }

    #[test]
    fn the_later_measurement_counts() {
        let records = [record(vec![row(OURS, 1, 10.0)]), record(vec![row(OURS, 1, 20.0)])];
        let text = tables(&merge(&records), true);
        assert!(
            text.contains(
                "| tokens | fp8-moe, us | floor, us | of it |\n|---:|---:|---:|---:|\n| 1 | 20.0 |"
            ),
            "{text}"
        );
    }

    #[test]
    fn parts_come_in_the_order_of_the_layer() {
        let part = |name: &str| crate::record::Row { part: name.into(), ..row(OURS, 1, 1.0) };
        let record = record(["unpermute", "gemm1", "layer", "permute"].map(part).into());
        let text = tables(&merge(&[record]), false);
        let positions = ["whole layer", ", permute", ", gemm1", ", unpermute"].map(|part| text.find(part));
        assert!(positions.is_sorted() && positions[0].is_some(), "{text}");
    }

    #[test]
    fn each_of_ours_is_compared_with_the_peers_alone() {
        let ours = record(vec![row(OURS, 1, 20.0), row(OURS_FAST, 1, 10.0)]);
        let text = tables(&merge(&[ours.clone(), record(vec![row("vllm-cutlass", 1, 15.0)])]), true);
        assert!(text.contains("| best peer / fp8-moe | best peer / fp8-moe-fast |"), "{text}");
        assert!(text.contains("| 1 | 20.0 | 10.0 | 15.0 | 0.75 | 1.50 |"), "{text}");
        assert!(!tables(&merge(&[ours]), true).contains("best peer"), "ours alone have no peer");
    }

    #[test]
    fn other_schemes_have_tables_of_their_own() {
        let mut block = row("deepgemm", 1, 10.0);
        block.scheme = "block".into();
        let text = tables(&merge(&[record(vec![row(OURS, 1, 20.0), block])]), false);
        assert!(!text.contains("best peer"), "not comparable: {text}");
    }
}
