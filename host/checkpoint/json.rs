//! JSON files of checkpoints. Python writes `NaN` and `Infinity` into some of them, which JSON has not.

use std::path::Path;

use serde_json::Value;

use super::foreign;
use crate::error::{Error, Result};

/// The text of a file.
pub(crate) fn read(file: &Path) -> Result<String> {
    let bytes = std::fs::read(file).map_err(|e| Error::io(file, e))?;
    String::from_utf8(bytes).map_err(|_| Error::checkpoint(file, "is not text in UTF-8"))
}

/// Parses `text`, called `what` in errors. `NaN`, `Infinity` and `-Infinity` are read as null.
pub(crate) fn parse(file: &Path, what: &str, text: &str) -> Result<Value> {
    let first = match serde_json::from_str(text) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    match without_special_numbers(text).map(|text| serde_json::from_str(&text)) {
        Some(Ok(value)) => Ok(value),
        _ => Err(Error::checkpoint(
            file,
            match foreign::format(text.as_bytes()) {
                Some(format) => format!("{what} is not JSON: it is {format}"),
                None => format!("{what} is not JSON: {first}"),
            },
        )),
    }
}

/// The text with Python's special numbers replaced by null; `None` where there are none.
fn without_special_numbers(text: &str) -> Option<String> {
    const NAMES: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    let (mut in_string, mut replaced) = (false, false);
    while let Some(c) = rest.chars().next() {
        let name = NAMES.into_iter().find(|name| !in_string && rest.starts_with(name));
        let taken = match (name, c) {
            (Some(name), _) => {
                replaced = true;
                out.push_str("null");
                rest = &rest[name.len()..];
                continue;
            }
            // A backslash takes the character behind it along.
            (None, '\\') if in_string => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            (None, '"') => {
                in_string = !in_string;
                1
            }
            (None, c) => c.len_utf8(),
        };
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    replaced.then_some(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn special_numbers_are_null() {
        let parse = |text| parse(Path::new("f"), "config", text);
        let text = r#"{"a": [0.0, Infinity], "b": -Infinity, "c": NaN, "d": "NaN \" Infinity ü \\", "e": 1}"#;
        let expected = json!({"a": [0.0, null], "b": null, "c": null, "d": "NaN \" Infinity ü \\", "e": 1});
        assert_eq!(parse(text).expect("JSON"), expected);
        for broken in ["", "{", "{\"a\": NaN", "nan", "\"\\", "{\"a\": Infinit}"] {
            let error = parse(broken).expect_err("not JSON").to_string();
            assert!(error.starts_with("f: config is not JSON: "), "{error}");
        }
    }
}
