//! JSON files of checkpoints. Python writes `NaN` and `Infinity` into some of them, which JSON has not. A key
//! that stands twice with different values is an error: parsers take one of them without a word.

use std::path::Path;

use serde_core::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

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
        Ok(Unique(value)) => return Ok(value),
        Err(error) => error,
    };
    let second = without_special_numbers(text).map(|text| serde_json::from_str(&text));
    match second {
        Some(Ok(Unique(value))) => Ok(value),
        Some(Err(error)) if error.is_data() => Err(Error::checkpoint(file, format!("{what}: {error}"))),
        None if first.is_data() => Err(Error::checkpoint(file, format!("{what}: {first}"))),
        _ => Err(Error::checkpoint(
            file,
            match foreign::format(text.as_bytes()) {
                Some(format) => format!("{what} is not JSON: it is {format}"),
                None => format!("{what} is not JSON: {first}"),
            },
        )),
    }
}

/// A value none of whose objects has a key twice with different values.
struct Unique(Value);

type Outcome<E> = std::result::Result<Unique, E>;

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Outcome<D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Unique;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Outcome<E> {
                Ok(Unique(Value::Null))
            }

            fn visit_bool<E>(self, value: bool) -> Outcome<E> {
                Ok(Unique(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Outcome<E> {
                Ok(Unique(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Outcome<E> {
                Ok(Unique(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Outcome<E> {
                Ok(Unique(value.into()))
            }

            fn visit_str<E>(self, value: &str) -> Outcome<E> {
                Ok(Unique(value.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Outcome<A::Error> {
                let mut list = Vec::new();
                while let Some(Unique(item)) = items.next_element()? {
                    list.push(item);
                }
                Ok(Unique(list.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Outcome<A::Error> {
                let mut map = Map::new();
                while let Some((key, Unique(value))) = entries.next_entry::<String, Unique>()? {
                    if let Some(other) = map.get(&key).filter(|&other| *other != value) {
                        return Err(A::Error::custom(format!("{key} stands twice, as {other} and {value}")));
                    }
                    map.insert(key, value);
                }
                Ok(Unique(map.into()))
            }
        }

        deserializer.deserialize_any(Any)
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
        let twice = parse(r#"{"a": {"b": 1, "c": NaN, "b": 1, "c": 2}}"#).expect_err("twice").to_string();
        assert!(twice.starts_with("f: config: c stands twice, as null and 2 at line 1"), "{twice}");
        let twice = parse(r#"{"a": [{"b": 1, "b": 1, "c": 1, "c": true}]}"#).expect_err("twice").to_string();
        assert!(twice.starts_with("f: config: c stands twice, as 1 and true at line 1"), "{twice}");
        for broken in ["", "{", "{\"a\": NaN", "nan", "\"\\", "{\"a\": Infinit}"] {
            let error = parse(broken).expect_err("not JSON").to_string();
            assert!(error.starts_with("f: config is not JSON: "), "{error}");
        }
    }
}
