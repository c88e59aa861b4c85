//! `fp8-moe report`: benchmark files side by side, and against an earlier one.

mod against;
pub mod plot;
mod series;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use fp8_moe::{Error, Result};

use crate::record::Record;
use crate::terminal;

/// Arguments of `fp8-moe report`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Files that `fp8-moe bench --json` or a peer's benchmark wrote; where two have the same measurement,
    /// the later counts
    #[arg(value_name = "FILE.json", required = true)]
    files: Vec<PathBuf>,
    /// Draw time and fraction of the floor over the batch size here
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Print the tables as Markdown
    #[arg(long)]
    markdown: bool,
    /// Print one table of all models instead: our times, and the fastest peer's by ours
    #[arg(long)]
    summary: bool,
    /// Only this part, e.g. layer
    #[arg(long, value_name = "NAME")]
    part: Option<String>,
    /// Only this FP8 scheme, e.g. block
    #[arg(long, value_name = "NAME")]
    scheme: Option<String>,
    /// Say what has become slower or faster than in this file, by more than 5 %
    #[arg(long, value_name = "FILE.json")]
    against: Option<PathBuf>,
    /// Exit 1 when something has become slower
    #[arg(long, requires = "against")]
    fail: bool,
}

/// Runs the command; exit code 1 with `--fail` when something has become slower.
pub fn report(arguments: &Arguments) -> Result<ExitCode> {
    terminal::try_output(arguments.plot.as_deref())?;
    let mut records = arguments.files.iter().map(|path| Record::read(path)).collect::<Result<Vec<_>>>()?;
    let wanted = |filter: &Option<String>, name: &str| filter.as_deref().is_none_or(|filter| filter == name);
    for record in &mut records {
        record
            .rows
            .retain(|row| wanted(&arguments.part, &row.part) && wanted(&arguments.scheme, &row.scheme));
    }
    let before = arguments.against.as_ref().map(|path| Record::read(path)).transpose()?;
    let mut devices: Vec<_> = records.iter().chain(&before).map(|record| &record.device.name).collect();
    devices.dedup();
    if let [first, second, ..] = devices[..] {
        eprintln!("note     measured on different devices: {first} and {second}");
    }
    let merged = series::merge(&records);
    let tables = if arguments.summary { table::summary } else { table::tables };
    print!("{}", tables(&merged, arguments.markdown));
    if let Some(path) = &arguments.plot {
        plot::draw(path, &records)?;
        eprintln!("wrote    {}", path.display());
    }
    let (Some(before), Some(path)) = (&before, &arguments.against) else { return Ok(ExitCode::SUCCESS) };
    let comparison = against::compare(&merged, &series::merge(std::slice::from_ref(before)));
    if comparison.compared == 0 {
        return Err(Error::checkpoint(path, "has no time of ours that the other files have too"));
    }
    print!("{comparison}");
    Ok(ExitCode::from(u8::from(arguments.fail && !comparison.slower.is_empty())))
}
