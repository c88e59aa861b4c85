//! The choices of a plan that depend on shape, as a table of numbers that were measured on a GPU.
//!
//! ```text
//!   host/config/tuning.json, of an H200 ---> Tuning::default() --+
//!   a file that `fp8-moe tune` wrote  ---> Tuning::read     ---+--> MoeConfig::tuning ---> Plan
//! ```
//!
//! | key | what it decides | of |
//! |---|---|---|
//! | `one_launch_packed_mb` | the layer behind the router is one launch | MB of packed weights that 1, 2, .. 8 tokens read: at most |
//! | `one_launch_checkpoint_mb` | likewise | of weights as a checkpoint has them |
//! | `one_launch_unit_bytes` | how that launch cuts its matrices | bytes of the stream that a unit costs besides its own |
//! | `one_launch_copy_bytes` | likewise | bytes: shorter copies take as long |
//! | `one_launch_draw_bytes` | its blocks draw the first matrix's work from a counter | bytes of weights for each hidden state: at least |
//! | `one_launch_draw_second_mb` | they draw the last quarter of the second's | MB of weights: at least |
//! | `hopper_rows_8`, `_16` | tiles of 8, 16 or 128 rows, Hopper's kernels | mean rows of an expert that has any: at most |
//! | `hopper_rows_32` | tiles of 32 rows, not 128, where rows times tiles of 256 columns are up to 200 an SM | likewise |
//! | `hopper_large_mb` | tiles of 32 rows, not 8 or 16, from 128 rows on | MB of an expert's w13: at least |
//! | `gather_from` | GEMM 1 gathers its rows, in tiles of 128, where one of the next two holds as well | rows of a token on this rank, on average: at least |
//! | `gather_rows` | weights' stream hides what gathering costs | mean rows of an expert that has any: at most |
//! | `gather_intermediate` | rows are gathered few times | I, columns of the intermediate: at most |
//! | `portable_rows_16`, `_64` | tiles of 16, 64 or 128 rows, portable kernels | mean rows of an expert that has any: at most |
//! | `router_few_tokens` | the router's kernel for few tokens | tokens: at most |
//! | `router_tile_16x8_logits` | its kernel of 16 by 8 logits, else 64 by 64 | logits, tokens by experts: at most |
//!
//! A number decides what is fastest and never what is right: with any table within the ranges below a layer
//! computes the same, up to the order of sums and the rounding of experts' outputs, which one launch leaves
//! out. What follows from a GPU's multiprocessors and memory alone,
//! grids and rings of stages, is worked out from those and in no table.
//!
//! To force a choice is to write a table: `hopper_rows_8 = 0` and `hopper_rows_16 = 4294967295` is tiles of
//! 16 rows everywhere, but for experts as large as `hopper_large_mb` says.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::error::{Error, Result, require};

const OP: &str = "Tuning";

/// The format of a file and its version: it changes with every change of the keys or of what they mean.
const FORMAT: &str = "fp8-moe-tuning/1";

/// The table: see the head of `host/config/tuning.rs`, or the section on tuning of `docs/PERFORMANCE.md`.
///
/// `Tuning::default()` was measured on an H200. Layers take theirs from
/// [`MoeConfig::tuning`](crate::MoeConfig::tuning).
///
/// ```
/// use fp8_moe::{MoeConfig, Tuning};
///
/// let mut tuning = Tuning::default();
/// tuning.hopper_rows_8 = 4;
/// assert_eq!(Tuning::from_json(&tuning.to_json())?, tuning);
///
/// let sizes = MoeConfig::builder().hidden_size(2048).intermediate_size(768).experts(128).top_k(8);
/// let config = sizes.tuning(tuning).build()?;
/// assert_eq!(config.tuning.hopper_rows_8, 4);
/// # Ok::<(), fp8_moe::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tuning {
    /// The GPU that it was measured on. Nothing depends on it.
    pub gpu: String,
    /// Most megabytes (10^6 bytes) of packed weights with which the layer behind the router is one launch,
    /// for one token, two, and so on up to eight; 0 for never. They are those that a batch reads if its
    /// tokens spread evenly.
    pub one_launch_packed_mb: [u32; 8],
    /// Likewise, of weights as a checkpoint has them.
    pub one_launch_checkpoint_mb: [u32; 8],
    /// What a unit of work of that launch costs besides its bytes, in bytes of the stream.
    pub one_launch_unit_bytes: u32,
    /// Copies of that launch that are shorter take as long as this many bytes; at least 1.
    pub one_launch_copy_bytes: u32,
    /// Fewest bytes of weights that such a launch reads for each hidden state with which blocks draw the first
    /// matrix's work from a counter, and not an equal share each.
    pub one_launch_draw_bytes: u32,
    /// Fewest megabytes (10^6 bytes) of weights that it reads with which they draw the last quarter of the
    /// second matrix's.
    pub one_launch_draw_second_mb: u32,
    /// Most mean rows of an expert for tiles of 8 rows, Hopper's kernels.
    pub hopper_rows_8: u32,
    /// Most mean rows of an expert for tiles of 16 rows, else 128.
    pub hopper_rows_16: u32,
    /// Most mean rows of an expert for tiles of 32 rows, not 128, where a layer is little work: rows times
    /// tiles of 256 columns, of both GEMMs, are up to 200 to an SM.
    pub hopper_rows_32: u32,
    /// Fewest megabytes (10^6 bytes) of an expert's first matrix for tiles of 32 rows instead of 8 or 16,
    /// with 128 rows or more in all.
    pub hopper_large_mb: u32,
    /// Fewest rows of a token, on average and on this rank, with which GEMM 1 gathers its rows.
    pub gather_from: u32,
    /// Most mean rows of an expert for that, but where the intermediate is as narrow as the next field says.
    pub gather_rows: u32,
    /// Most columns of the intermediate with which it gathers whatever the rows.
    pub gather_intermediate: u32,
    /// Most mean rows of an expert for tiles of 16 rows, portable kernels.
    pub portable_rows_16: u32,
    /// Most mean rows of an expert for tiles of 64 rows, else 128.
    pub portable_rows_64: u32,
    /// Most tokens for the router's kernel of a block for each expert; at most 65535.
    pub router_few_tokens: u32,
    /// Most logits, tokens by experts, for its kernel of 16 tokens by 8 experts, else 64 by 64.
    pub router_tile_16x8_logits: u32,
}

/// A key of the file: its numbers, and what each may be.
struct Key {
    name: &'static str,
    range: RangeInclusive<u32>,
    numbers: fn(&mut Tuning) -> &mut [u32],
}

const ANY: RangeInclusive<u32> = 0..=u32::MAX;

/// A key of one number, or of several, named as its field.
macro_rules! key {
    ($field:ident, $range:expr) => {
        Key {
            name: stringify!($field),
            range: $range,
            numbers: |tuning| std::slice::from_mut(&mut tuning.$field),
        }
    };
    ([$field:ident], $range:expr) => {
        Key { name: stringify!($field), range: $range, numbers: |tuning| &mut tuning.$field }
    };
}

/// All of them, in the order in which they are written.
const KEYS: [Key; 17] = [
    key!([one_launch_packed_mb], ANY),
    key!([one_launch_checkpoint_mb], ANY),
    key!(one_launch_unit_bytes, 0..=1 << 30),
    key!(one_launch_copy_bytes, 1..=1 << 20),
    key!(one_launch_draw_bytes, ANY),
    key!(one_launch_draw_second_mb, ANY),
    key!(hopper_rows_8, ANY),
    key!(hopper_rows_16, ANY),
    key!(hopper_rows_32, ANY),
    key!(hopper_large_mb, ANY),
    key!(gather_from, ANY),
    key!(gather_rows, ANY),
    key!(gather_intermediate, ANY),
    key!(portable_rows_16, ANY),
    key!(portable_rows_64, ANY),
    // Blocks along y, for eight tokens each, are 65535 at most.
    key!(router_few_tokens, 0..=65535),
    key!(router_tile_16x8_logits, ANY),
];

/// The table of an H200.
static H200: LazyLock<Tuning> =
    LazyLock::new(|| Tuning::from_json(include_str!("tuning.json")).expect("a table that a test reads"));

impl Default for Tuning {
    /// The table of an H200.
    fn default() -> Tuning {
        H200.clone()
    }
}

impl Tuning {
    /// The table that layers without one of their own have.
    pub(crate) fn h200() -> &'static Tuning {
        &H200
    }

    /// Reads a file that `fp8-moe tune` wrote.
    ///
    /// # Errors
    /// A file that cannot be read; those of [`Tuning::from_json`].
    pub fn read(path: impl AsRef<Path>) -> Result<Tuning> {
        let path = path.as_ref();
        Self::from_json(&std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?)
    }

    /// The table that `text` has: a JSON object of `format`, which is `fp8-moe-tuning/1`, and of all fields
    /// by their names.
    ///
    /// # Errors
    /// Text that is no JSON object; another format; a key that is missing or that no table has; a value that
    /// is no whole number within its range, or a list of another length. The error names key, value and rule.
    pub fn from_json(text: &str) -> Result<Tuning> {
        let wrong = |e: serde_json::Error| Error::argument(OP, "text", e, "must be a JSON object");
        let mut object: Map<String, Value> = serde_json::from_str(text).map_err(wrong)?;
        let mut take = |key: &str, rule: &str| {
            object.remove(key).ok_or_else(|| Error::argument(OP, key, "nothing", rule))
        };
        let rule = format!("must be {FORMAT:?}");
        let format = take("format", &rule)?;
        require(format == FORMAT, OP, "format", format, || rule)?;
        let rule = "must be the name of a GPU";
        let gpu = match take("gpu", rule)? {
            Value::String(gpu) if !gpu.contains(char::is_control) => gpu,
            other => return Err(Error::argument(OP, "gpu", other, rule)),
        };
        let mut tuning = Tuning { gpu, ..Self::nothing() };
        for key in KEYS {
            let numbers = (key.numbers)(&mut tuning);
            let rule = key.rule(numbers.len());
            let value = take(key.name, &rule)?;
            let given = if numbers.len() == 1 { Some(std::slice::from_ref(&value)) } else { None };
            let given = given.or(value.as_array().map(Vec::as_slice)).unwrap_or(&[]);
            require(given.len() == numbers.len(), OP, key.name, &value, || rule.clone())?;
            for (number, given) in numbers.iter_mut().zip(given) {
                let read = given.as_u64().and_then(|given| u32::try_from(given).ok());
                let read = read.filter(|read| key.range.contains(read));
                *number = read.ok_or_else(|| Error::argument(OP, key.name, &value, &rule))?;
            }
        }
        match object.into_iter().next() {
            None => Ok(tuning),
            Some((key, value)) => {
                let keys = KEYS.map(|key| key.name).join(", ");
                Err(Error::argument(OP, key, value, format!("must be one of format, gpu, {keys}")))
            }
        }
    }

    /// The table as a file has it: a key a line.
    pub fn to_json(&self) -> String {
        let mut copy = self.clone();
        let lines = KEYS.map(|key| {
            let numbers = (key.numbers)(&mut copy);
            let value = if let [one] = numbers { Value::from(*one) } else { Value::from(&numbers[..]) };
            format!("  {:?}: {value}", key.name)
        });
        let (format, gpu) = (Value::from(FORMAT), Value::from(&self.gpu[..]));
        format!("{{\n  \"format\": {format},\n  \"gpu\": {gpu},\n{}\n}}\n", lines.join(",\n"))
    }

    /// Refuses numbers outside their ranges.
    pub(crate) fn validate(&self) -> Result<()> {
        let mut copy = self.clone();
        for key in KEYS {
            let numbers = (key.numbers)(&mut copy);
            if let Some(wrong) = numbers.iter().find(|number| !key.range.contains(number)) {
                return Err(Error::argument(OP, key.name, wrong, key.rule(numbers.len())));
            }
        }
        Ok(())
    }

    /// Most bytes of weights with which so many tokens are one launch.
    pub(crate) fn one_launch_bytes(&self, tokens: usize, packed: bool) -> f64 {
        let table = if packed { &self.one_launch_packed_mb } else { &self.one_launch_checkpoint_mb };
        let megabytes = tokens.checked_sub(1).and_then(|index| table.get(index));
        megabytes.map_or(0.0, |&megabytes| f64::from(megabytes) * 1e6)
    }

    /// Zeros, to be filled.
    fn nothing() -> Tuning {
        Tuning {
            gpu: String::new(),
            one_launch_packed_mb: [0; 8],
            one_launch_checkpoint_mb: [0; 8],
            one_launch_unit_bytes: 0,
            one_launch_copy_bytes: 0,
            one_launch_draw_bytes: 0,
            one_launch_draw_second_mb: 0,
            hopper_rows_8: 0,
            hopper_rows_16: 0,
            hopper_rows_32: 0,
            hopper_large_mb: 0,
            gather_from: 0,
            gather_rows: 0,
            gather_intermediate: 0,
            portable_rows_16: 0,
            portable_rows_64: 0,
            router_few_tokens: 0,
            router_tile_16x8_logits: 0,
        }
    }
}

impl Key {
    /// What a value of `numbers` numbers must be.
    fn rule(&self, numbers: usize) -> String {
        let range = format!("in {}..={}", self.range.start(), self.range.end());
        match numbers {
            1 => format!("must be a whole number {range}"),
            _ => format!("must be a list of {numbers} whole numbers {range}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::{KEYS, Tuning};

    /// A table of any numbers within their ranges.
    fn tables() -> impl Strategy<Value = Tuning> {
        (any::<[u32; 32]>(), "[^\\p{C}]{0,20}").prop_map(|(numbers, gpu)| {
            let mut tuning = Tuning { gpu, ..Tuning::nothing() };
            let mut numbers = numbers.into_iter();
            for key in KEYS {
                let (least, most) = (u64::from(*key.range.start()), u64::from(*key.range.end()));
                for place in (key.numbers)(&mut tuning) {
                    let number = u64::from(numbers.next().expect("enough numbers"));
                    *place = (least + number % (most - least + 1)) as u32;
                }
            }
            tuning
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(tuning in tables()) {
            prop_assert!(tuning.validate().is_ok());
            prop_assert_eq!(Tuning::from_json(&tuning.to_json()).expect("its own text"), tuning);
        }

        #[test]
        fn no_text_panics(text in ".*", key in 0..KEYS.len(), value in "[-\\[\\]{}0-9.e\"n,]{0,12}") {
            let _ = Tuning::from_json(&text);
            let line = format!("\"{}\": ", KEYS[key].name);
            let whole = Tuning::default().to_json();
            let (before, after) = whole.split_once(&line).expect("the key's line");
            let _ = Tuning::from_json(&format!("{before}{line}{value}{}", &after[after.find('\n').unwrap()..]));
        }
    }

    /// The committed table is the text of what it says, so that `fp8-moe tune` on an H200 rewrites it.
    #[test]
    fn the_default_is_a_file_of_this_format() {
        assert_eq!(Tuning::default().to_json(), include_str!("tuning.json"));
        assert_eq!(Tuning::default().gpu, "NVIDIA H200");
    }

    #[test]
    fn wrong_files_are_refused_by_key_value_and_rule() {
        let refusal = |key: &str, value: Option<Value>| {
            let mut table: Value = serde_json::from_str(&Tuning::default().to_json()).expect("JSON");
            let object = table.as_object_mut().expect("an object");
            match value {
                Some(value) => object.insert(key.into(), value),
                None => object.remove(key),
            };
            Tuning::from_json(&table.to_string()).expect_err(key).to_string()
        };
        let number = "must be a whole number in 0..=4294967295";
        for (key, value, expected) in [
            (
                "format",
                Some(json!("fp8-moe-tuning/2")),
                "format = \"fp8-moe-tuning/2\": must be \"fp8-moe-tuning/1\"",
            ),
            ("format", None, "format = nothing: must be \"fp8-moe-tuning/1\""),
            ("gpu", Some(json!(5)), "gpu = 5: must be the name of a GPU"),
            ("gpu", Some(json!("a\nb")), "gpu = \"a\\nb\": must be the name of a GPU"),
            ("hopper_rows_8", Some(json!(-1)), &format!("hopper_rows_8 = -1: {number}")),
            ("hopper_rows_16", Some(json!(1.5)), &format!("hopper_rows_16 = 1.5: {number}")),
            ("hopper_rows_16", Some(json!("11")), &format!("hopper_rows_16 = \"11\": {number}")),
            ("gather_from", Some(json!([4])), &format!("gather_from = [4]: {number}")),
            ("gather_from", Some(json!(1_u64 << 32)), &format!("gather_from = 4294967296: {number}")),
            ("portable_rows_64", None, &format!("portable_rows_64 = nothing: {number}")),
            (
                "one_launch_packed_mb",
                Some(json!([1, 2])),
                "one_launch_packed_mb = [1,2]: must be a list of 8 whole numbers in 0..=4294967295",
            ),
            (
                "one_launch_copy_bytes",
                Some(json!(0)),
                "one_launch_copy_bytes = 0: must be a whole number in 1..=1048576",
            ),
            (
                "router_few_tokens",
                Some(json!(65536)),
                "router_few_tokens = 65536: must be a whole number in 0..=65535",
            ),
            ("rows", Some(json!(7)), "rows = 7: must be one of format, gpu, one_launch_packed_mb, "),
        ] {
            let refused = refusal(key, value);
            assert!(refused.starts_with(&format!("Tuning: {expected}")), "{refused}");
        }
        for text in ["", "[]", "7", "{", "{\"format\""] {
            let refused = Tuning::from_json(text).expect_err(text).to_string();
            assert!(refused.ends_with("must be a JSON object"), "{refused}");
        }
    }
}
