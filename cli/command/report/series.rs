//! Rows of several files as lines over the batch size.

use std::collections::BTreeMap;

use fp8_moe_cli::Part;

use crate::record::{Record, Row, is_ours, is_peer};

/// What rows must have in common to be compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub model: String,
    pub shape: [usize; 4],
    pub tp: usize,
    pub ep: usize,
    pub scheme: String,
    pub routing: String,
    /// The part, which sorts in the order of the layer's operations.
    pub part: PartName,
}

/// The name of a part, of ours or a peer's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartName {
    /// Among our parts; a peer's own come first.
    position: Option<usize>,
    pub name: String,
}

impl PartName {
    /// Of a name.
    pub fn new(name: &str) -> PartName {
        let position = Part::ALL.iter().position(|part| part.name() == name);
        PartName { position, name: name.into() }
    }
}

impl Key {
    /// Of a row.
    pub fn of(row: &Row) -> Key {
        Key {
            model: row.model.clone(),
            shape: row.shape,
            tp: row.tp,
            ep: row.ep,
            scheme: row.scheme.clone(),
            routing: row.routing.clone(),
            part: PartName::new(&row.part),
        }
    }

    /// Everything but the part, in words.
    pub fn title(&self) -> String {
        let [experts, top_k, hidden, intermediate] = self.shape;
        let ranks = |name: &str, n: usize| if n == 1 { String::new() } else { format!(", {name} {n}") };
        format!(
            "{} [{experts}, {top_k}, {hidden}, {intermediate}]{}{}, {}, {} routing",
            self.model,
            ranks("tp", self.tp),
            ranks("ep", self.ep),
            self.scheme,
            self.routing
        )
    }
}

/// All rows, by what they can be compared in, the number of tokens, and the implementation. Of several
/// measurements of the same, the last counts.
pub type Merged<'r> = BTreeMap<Key, Batches<'r>>;

/// By the number of tokens, the rows of each implementation.
pub type Batches<'r> = BTreeMap<usize, BTreeMap<&'r str, &'r Row>>;

/// The fastest peer of one measurement, with its time.
pub fn best_peer<'r>(rows: &BTreeMap<&'r str, &Row>) -> Option<(&'r str, f64)> {
    let peers = rows.iter().filter(|(name, _)| is_peer(name));
    peers.filter_map(|(name, row)| Some((*name, row.median_us?))).min_by(|a, b| a.1.total_cmp(&b.1))
}

/// The time of the fastest peer by that of `ours`: over 1 where we are faster.
pub fn lead(ours: &str, rows: &BTreeMap<&str, &Row>) -> Option<f64> {
    Some(best_peer(rows)?.1 / rows.get(ours)?.median_us?)
}

/// Merges the rows of records.
pub fn merge(records: &[Record]) -> Merged<'_> {
    let mut merged = Merged::new();
    for row in records.iter().flat_map(|record| &record.rows) {
        let batches = merged.entry(Key::of(row)).or_default();
        batches.entry(row.tokens).or_default().insert(&row.implementation, row);
    }
    merged
}

/// The implementations of rows, ours first, then by name.
pub fn implementations(merged: &Merged<'_>) -> Vec<String> {
    let mut names: Vec<String> = merged
        .values()
        .flat_map(|batches| batches.values())
        .flat_map(|rows| rows.keys().map(|name| (*name).to_owned()))
        .collect();
    names.sort_unstable_by_key(|name| (!is_ours(name), name.clone()));
    names.dedup();
    names
}
