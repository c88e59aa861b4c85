//! What has become slower or faster since an earlier file.

use std::fmt;

use super::series::Merged;
use crate::record::is_ours;

/// Relative change of a median that counts.
const NOTABLE: f64 = 0.05;

/// Two files compared.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Times of ours that both have.
    pub compared: usize,
    /// The ones that grew by more than 5 %, the worst first.
    pub slower: Vec<Change>,
    /// The ones that fell by more than 5 %, the best first.
    pub faster: Vec<Change>,
}

/// A time that changed.
#[derive(Debug)]
pub struct Change {
    what: String,
    before_us: f64,
    now_us: f64,
}

impl Change {
    /// Relative, positive for slower.
    fn relative(&self) -> f64 {
        self.now_us / self.before_us - 1.0
    }
}

/// Compares our times.
pub fn compare(now: &Merged<'_>, before: &Merged<'_>) -> Comparison {
    let mut comparison = Comparison::default();
    for (key, batches) in now {
        for (tokens, rows) in batches {
            for (name, row) in rows.iter().filter(|(name, _)| is_ours(name)) {
                let before = before.get(key).and_then(|batches| batches.get(tokens)?.get(name)?.median_us);
                let (Some(now_us), Some(before_us)) = (row.median_us, before) else { continue };
                comparison.compared += 1;
                let what = format!("{name}, {}, {}, {tokens} tokens", key.title(), key.part.name);
                let change = Change { what, before_us, now_us };
                match change.relative() {
                    relative if relative > NOTABLE => comparison.slower.push(change),
                    relative if relative < -NOTABLE => comparison.faster.push(change),
                    _ => {}
                }
            }
        }
    }
    comparison.slower.sort_by(|a, b| b.relative().total_cmp(&a.relative()));
    comparison.faster.sort_by(|a, b| a.relative().total_cmp(&b.relative()));
    comparison
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (word, changes) in [("slower", &self.slower), ("faster", &self.faster)] {
            for change in changes {
                let Change { what, before_us, now_us } = change;
                let percent = change.relative() * 100.0;
                writeln!(f, "{word}   {what}: {now_us:.2} us, was {before_us:.2} ({percent:+.1} %)")?;
            }
        }
        let (slower, faster) = (self.slower.len(), self.faster.len());
        writeln!(
            f,
            "compared {} times: {slower} slower and {faster} faster by more than {:.0} %",
            self.compared,
            NOTABLE * 100.0
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::OURS;
    use crate::record::tests::{record, row};
    use crate::report::series::merge;

    #[test]
    fn regressions_are_found() {
        let now = [record(vec![
            row(OURS, 1, 106.0),
            row(OURS, 2, 104.0),
            row(OURS, 4, 90.0),
            row(OURS, 8, 130.0),
            row("deepgemm", 16, 999.0),
            row(OURS, 32, 1.0),
        ])];
        let before = [record(
            [1, 2, 4, 8, 16]
                .map(|tokens| row(if tokens == 16 { "deepgemm" } else { OURS }, tokens, 100.0))
                .into(),
        )];
        let comparison = compare(&merge(&now), &merge(&before));
        assert_eq!(comparison.compared, 4, "ours that both have");
        let percents = |changes: &[Change]| -> Vec<i64> {
            changes.iter().map(|change| (change.relative() * 100.0).round() as i64).collect()
        };
        assert_eq!(percents(&comparison.slower), [30, 6], "the worst first");
        assert_eq!(percents(&comparison.faster), [-10]);
        let text = comparison.to_string();
        assert!(text.contains("8 tokens: 130.00 us, was 100.00 (+30.0 %)"), "{text}");
        assert!(text.ends_with("compared 4 times: 2 slower and 1 faster by more than 5 %\n"), "{text}");
    }

    #[test]
    fn failed_rows_are_not_compared() {
        let mut failed = row(OURS, 1, 1.0);
        failed.median_us = None;
        let (now, before) = ([record(vec![failed])], [record(vec![row(OURS, 1, 1.0)])]);
        assert_eq!(compare(&merge(&now), &merge(&before)).compared, 0);
    }
}
