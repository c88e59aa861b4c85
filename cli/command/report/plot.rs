//! Plots as SVG: a row of charts for every shape, scheme and part.
//!
//! ```text
//!   time over batch size, log-log,      fraction of the floor      best peer / ours      legend
//!   and the floor, dashed               over batch size            over batch size
//! ```
//!
//! The third chart is there where something is compared; an implementation has the same colour in every row.
//!
//! Where there is one implementation alone, its parts share a row of charts. Rows that the emulated device
//! counted show bytes through global memory instead, and how many times the least they are.

use std::collections::BTreeMap;
use std::path::Path;

use fp8_moe::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::series::{Batches, Key, Merged, PartName, implementations, lead, merge};
use crate::record::{Record, Row, is_ours};

/// Pixels of a row of charts, of its title, and of its columns.
const HEIGHT: u32 = 340;
const TITLE: u32 = 34;
const VALUES: u32 = 500;
const RATIOS: u32 = 420;
const LEGEND: u32 = 150;

/// Colours that colour-blind readers can tell apart (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];

/// Values over the batch size.
type Points = Vec<(f64, f64)>;

/// Rows of one line, with its label.
type Labelled<'r> = (String, Vec<&'r Row>);

/// One line of a row of charts.
struct Line {
    label: String,
    colour: RGBColor,
    /// Microseconds, or megabytes.
    value: Points,
    /// The same of the least work, drawn dashed.
    floor: Points,
    /// Value by floor, or floor by value.
    ratio: Points,
    /// The fastest peer's value by this one; empty for all but ours.
    lead: Points,
}

/// A row of charts.
struct Panel {
    title: String,
    counted: bool,
    /// Whether all lines have the same floor.
    one_floor: bool,
    lines: Vec<Line>,
}

/// Draws the rows of `records` to an SVG file.
pub fn draw(path: &Path, records: &[Record]) -> Result<()> {
    let merged = merge(records);
    let panels = panels(&merged);
    if panels.is_empty() {
        return Err(Error::argument(
            "plot",
            "rows",
            0,
            "there must be one with a time or a count; nothing to draw",
        ));
    }
    let compared = panels.iter().flat_map(|panel| &panel.lines).any(|line| !line.lead.is_empty());
    let width = VALUES + RATIOS * (1 + u32::from(compared)) + LEGEND;
    let size = (width, (HEIGHT + TITLE) * panels.len() as u32);
    let mut svg = String::new();
    render(&mut svg, size, &panels)
        .map_err(|e| Error::argument("plot", "file", path.display(), e.to_string()))?;
    std::fs::write(path, svg).map_err(|e| Error::io(path, e))
}

fn panels(merged: &Merged<'_>) -> Vec<Panel> {
    let names = implementations(merged);
    let alone = names.len() == 1;
    let mut panels: BTreeMap<(Key, bool), Vec<Labelled<'_>>> = BTreeMap::new();
    for (key, batches) in merged {
        let mut by_name: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
        for rows in batches.values() {
            for (name, row) in rows {
                by_name.entry(name).or_default().push(row);
            }
        }
        for (name, rows) in by_name {
            let counted = rows.iter().all(|row| row.counted.is_some());
            let drawn = rows.iter().any(|row| row.counted.is_some() || row.median_us.is_some());
            if !drawn {
                continue;
            }
            let (key, label) = if alone {
                (Key { part: PartName::new(""), ..key.clone() }, key.part.name.clone())
            } else {
                (key.clone(), name.to_owned())
            };
            panels.entry((key, counted)).or_default().push((label, rows));
        }
    }
    let panel = |((key, counted), mut lines): ((Key, bool), Vec<Labelled<'_>>)| {
        lines.sort_by_key(|(label, _)| (!is_ours(label), PartName::new(label)));
        let part = match key.part.name.as_str() {
            "" | "layer" => String::new(),
            name => format!(", {name} alone"),
        };
        let batches = merged.get(&key);
        let draw = |(index, (label, rows)): (usize, &Labelled<'_>)| {
            let index = names.iter().position(|name| name == label).unwrap_or(index);
            let lead =
                batches.filter(|_| is_ours(label)).map_or(Points::new(), |batches| leads(label, batches));
            Line { lead, ..line(label, rows, COLOURS[index % COLOURS.len()], counted) }
        };
        Panel {
            title: key.title() + &part,
            counted,
            one_floor: !alone,
            lines: lines.iter().enumerate().map(draw).collect(),
        }
    };
    panels.into_iter().map(panel).collect()
}

/// The fastest peer's time by ours, over the batch size.
fn leads(ours: &str, batches: &Batches<'_>) -> Points {
    batches.iter().filter_map(|(tokens, rows)| Some((*tokens as f64, lead(ours, rows)?))).collect()
}

fn line(label: &str, rows: &[&Row], colour: RGBColor, counted: bool) -> Line {
    let points = |value: &dyn Fn(&Row) -> Option<f64>| -> Points {
        let point = |row: &&Row| Some((row.tokens as f64, value(row).filter(|y| *y > 0.0)?));
        rows.iter().filter_map(point).collect()
    };
    let bytes = |row: &Row| row.counted.as_ref().map(|counted| counted.global_bytes() as f64);
    let (value, floor, ratio) = if counted {
        (
            points(&|row| bytes(row).map(|bytes| bytes / 1e6)),
            points(&|row| Some(row.bytes as f64 / 1e6)),
            points(&|row| bytes(row).map(|bytes| bytes / row.bytes as f64)),
        )
    } else {
        (points(&|row| row.median_us), points(&|row| row.floor_us), points(&|row| row.fraction))
    };
    Line { label: label.to_owned(), colour, value, floor, ratio, lead: Points::new() }
}

type Drawn<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn render(svg: &mut String, size: (u32, u32), panels: &[Panel]) -> Drawn {
    let root = SVGBackend::with_string(svg, size).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, panel) in root.split_evenly((panels.len(), 1)).iter().zip(panels) {
        let (title, area) = area.split_vertically(TITLE);
        let style = ("sans-serif", 18).into_font().color(&BLACK);
        title.draw_text(&panel.title, &style, (14, 12))?;
        let (left, rest) = area.split_horizontally(VALUES);
        let (middle, mut right) = rest.split_horizontally(RATIOS);
        values(&left, panel)?;
        let name = if panel.counted { "times the least" } else { "fraction of the roofline" };
        ratios(&middle, panel, name, |line| &line.ratio)?;
        if size.0 > VALUES + RATIOS + LEGEND {
            let (third, rest) = right.split_horizontally(RATIOS);
            if panel.lines.iter().any(|line| !line.lead.is_empty()) {
                ratios(&third, panel, "best peer / ours", |line| &line.lead)?;
            }
            right = rest;
        }
        legend(&right, panel)?;
    }
    root.present()?;
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The range of batch sizes, in powers of two, with some room at either end.
fn batch_range(panel: &Panel) -> std::ops::Range<f64> {
    let batches = panel.lines.iter().flat_map(|line| &line.value).map(|(tokens, _)| tokens.log2());
    let (low, high) = batches.fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)));
    low - 0.2..high.max(low + 1.0) + 0.2
}

/// Powers of two, as the axis counts batches.
fn batch_label(log2: &f64) -> String {
    if log2.fract().abs() > 1e-9 || *log2 < 0.0 {
        return String::new();
    }
    match 1u64 << *log2 as u64 {
        kilo if kilo >= 1024 => format!("{}k", kilo / 1024),
        few => few.to_string(),
    }
}

/// How many labels put one at every power of two.
fn batch_labels(range: &std::ops::Range<f64>) -> usize {
    (range.end - range.start).ceil() as usize + 1
}

fn values(area: &Area<'_>, panel: &Panel) -> Drawn {
    let batches = batch_range(panel);
    let all = panel.lines.iter().flat_map(|line| line.value.iter().chain(&line.floor)).map(|(_, y)| *y);
    let (low, high) = all.fold((f64::MAX, f64::MIN), |(low, high), y| (low.min(y), high.max(y)));
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .margin_right(20)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(batches.clone(), (low / 1.4..high * 1.4).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("tokens")
        .y_desc(if panel.counted { "MB through global memory" } else { "microseconds" })
        .x_labels(batch_labels(&batches))
        .x_label_formatter(&batch_label)
        .y_label_formatter(&|y| format!("{y}"))
        .x_max_light_lines(1)
        .light_line_style(BLACK.mix(0.06))
        .bold_line_style(BLACK.mix(0.15))
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .draw()?;
    let floors = if panel.one_floor { 1 } else { panel.lines.len() };
    for line in &panel.lines[..floors] {
        let floor = line.floor.iter().map(|(x, y)| (x.log2(), *y));
        let colour = if panel.one_floor { BLACK } else { line.colour };
        chart.draw_series(DashedLineSeries::new(floor, 4, 4, colour.mix(0.7).stroke_width(1)))?;
    }
    for line in &panel.lines {
        let value: Points = line.value.iter().map(|(x, y)| (x.log2(), *y)).collect();
        chart.draw_series(LineSeries::new(value.clone(), line.colour.stroke_width(2)))?;
        chart.draw_series(value.iter().map(|point| Circle::new(*point, 3, line.colour.filled())))?;
    }
    Ok(())
}

fn ratios(area: &Area<'_>, panel: &Panel, name: &str, ratio: impl Fn(&Line) -> &Points) -> Drawn {
    let batches = batch_range(panel);
    let highest = panel.lines.iter().flat_map(&ratio).map(|(_, y)| *y).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .margin_right(20)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(batches.clone(), 0.0..highest * 1.08)?;
    chart
        .configure_mesh()
        .x_desc("tokens")
        .y_desc(name)
        .x_labels(batch_labels(&batches))
        .x_label_formatter(&batch_label)
        .x_max_light_lines(1)
        .y_max_light_lines(1)
        .light_line_style(BLACK.mix(0.06))
        .bold_line_style(BLACK.mix(0.15))
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .draw()?;
    // Equality: with the floor, with the least, or with the fastest peer.
    chart.draw_series(LineSeries::new([(batches.start, 1.0), (batches.end, 1.0)], BLACK.mix(0.5)))?;
    for line in &panel.lines {
        let ratio: Points = ratio(line).iter().map(|(x, y)| (x.log2(), *y)).collect();
        chart.draw_series(LineSeries::new(ratio.clone(), line.colour.stroke_width(2)))?;
        chart.draw_series(ratio.iter().map(|point| Circle::new(*point, 3, line.colour.filled())))?;
    }
    Ok(())
}

fn legend(area: &Area<'_>, panel: &Panel) -> Drawn {
    let style = ("sans-serif", 15).into_font().color(&BLACK);
    for (line, y) in panel.lines.iter().zip((24..).step_by(24)) {
        area.draw(&PathElement::new([(0, y), (24, y)], line.colour.stroke_width(2)))?;
        area.draw(&Circle::new((12, y), 3, line.colour.filled()))?;
        area.draw_text(&line.label, &style, (32, y - 7))?;
    }
    let y = 24 * (panel.lines.len() as i32 + 1);
    for x in [0, 10, 20] {
        area.draw(&PathElement::new([(x, y), (x + 5, y)], BLACK.mix(0.7).stroke_width(1)))?;
    }
    area.draw_text(if panel.counted { "the least" } else { "floor" }, &style, (32, y - 7))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::OURS;
    use crate::record::tests::{record, row};

    /// Tags that are opened and closed in order, as an XML reader demands.
    fn assert_well_formed(svg: &str) {
        let mut open = Vec::new();
        for tag in svg.split('<').skip(1) {
            let (tag, _) = tag.split_once('>').expect("a closed tag");
            match tag.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name), "in order"),
                None if tag.ends_with('/') || tag.starts_with(['?', '!']) => {}
                None => open.push(tag.split_whitespace().next().expect("a name")),
            }
        }
        assert_eq!(open, Vec::<&str>::new(), "all closed");
    }

    #[test]
    fn the_plot_is_well_formed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("plot.svg");
        let tokens = [1, 8, 64];
        let ours = record(tokens.map(|tokens| row(OURS, tokens, tokens as f64 * 10.0)).into());
        let peers = record(tokens.map(|tokens| row("a<b&c", tokens, tokens as f64 * 12.0)).into());
        draw(&path, &[ours, peers]).expect("a plot");
        let svg = std::fs::read_to_string(&path).expect("a file");
        assert_well_formed(&svg);
        for expected in
            ["<svg", "fp8-moe", "a&lt;b&amp;c", "tokens", "microseconds", "floor", "best peer / ours"]
        {
            assert!(svg.contains(expected), "no {expected}");
        }
    }

    #[test]
    fn one_batch_size_can_be_drawn_and_none_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("plot.svg");
        draw(&path, &[record(vec![row(OURS, 1, 10.0)])]).expect("a plot of one point");
        let mut failed = row(OURS, 1, 10.0);
        failed.median_us = None;
        let refusal = draw(&path, &[record(vec![failed])]).expect_err("nothing to draw").to_string();
        assert!(refusal.contains("nothing to draw"), "{refusal}");
    }
}
