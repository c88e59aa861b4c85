//! The header of a safetensors file: which tensors there are, of which types and shapes, and where.
//!
//! ```text
//!   {"__metadata__": {key: text}, name: {"dtype": "BF16", "shape": [4, 64], "data_offsets": [0, 512]}, ...}
//! ```
//!
//! The crate `safetensors` would read it too, and take twice as long to compile as the rest of this module's
//! folder, for the derived code of `serde`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde_core::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

/// The tensors of a file: one behind the other, each as long as its type and shape say.
pub(super) struct Header {
    pub metadata: HashMap<String, String>,
    pub tensors: BTreeMap<String, Info>,
    /// Bytes of all tensors.
    pub data_len: usize,
}

/// What a header says of a tensor.
#[derive(Debug)]
pub(super) struct Info {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Its first byte and its end, counted from the header's end.
    pub data_offsets: (usize, usize),
}

macro_rules! dtypes {
    ($($name:ident: $bits:literal,)*) => {
        /// The type of a tensor's elements, by safetensors' names.
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Dtype {
            $($name,)*
        }

        impl Dtype {
            fn of_name(name: &str) -> Option<Dtype> {
                match name {
                    $(stringify!($name) => Some(Dtype::$name),)*
                    _ => None,
                }
            }

            /// Bits of an element.
            fn bits(self) -> usize {
                match self {
                    $(Dtype::$name => $bits,)*
                }
            }
        }
    };
}

dtypes! {
    BOOL: 8, F4: 4, F6_E2M3: 6, F6_E3M2: 6, U8: 8, I8: 8, F8_E5M2: 8, F8_E4M3: 8, F8_E8M0: 8,
    I16: 16, U16: 16, F16: 16, BF16: 16, I32: 32, U32: 32, F32: 32, F64: 64, I64: 64, U64: 64,
}

impl Header {
    /// Reads the JSON text of a header; an error says what is wrong with the file.
    pub fn read(text: &[u8]) -> Result<Header, String> {
        let Entries { metadata, tensors } = serde_json::from_slice(text).map_err(|e| match e.classify() {
            // What is wrong with a value says so by itself.
            serde_json::error::Category::Data => format!("its header: {e}"),
            _ => format!("its header is not JSON: {e}"),
        })?;
        let mut by_place: Vec<_> = tensors.iter().collect();
        by_place.sort_by_key(|(_, info)| info.data_offsets);
        let mut next = 0;
        for (name, Info { dtype, shape, data_offsets: (start, end) }) in by_place {
            if *start != next || end < start {
                return Err(format!("its header: {name} is at {start}..{end}; it must begin at {next}"));
            }
            let elements = shape.iter().try_fold(1_usize, |all, &size| all.checked_mul(size));
            let bits = elements.and_then(|elements| elements.checked_mul(dtype.bits()));
            if bits.is_none_or(|bits| bits % 8 != 0 || bits / 8 != end - start) {
                let bytes = end - start;
                return Err(format!("its header: {name}: {dtype:?} {shape:?} does not have {bytes} bytes"));
            }
            next = *end;
        }
        Ok(Header { metadata: metadata.unwrap_or_default(), tensors, data_len: next })
    }
}

/// A header as it is written.
struct Entries {
    metadata: Option<HashMap<String, String>>,
    tensors: BTreeMap<String, Info>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entries, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Entries, A::Error> {
                let (mut metadata, mut tensors) = (None, BTreeMap::new());
                while let Some(name) = entries.next_key::<String>()? {
                    let is_twice = match name.as_str() {
                        "__metadata__" => metadata.replace(entries.next_value()?).is_some(),
                        _ => tensors.insert(name.clone(), entries.next_value()?).is_some(),
                    };
                    if is_twice {
                        return Err(A::Error::custom(format!("{name} stands in it twice")));
                    }
                }
                Ok(Entries { metadata: metadata.flatten(), tensors })
            }
        }

        deserializer.deserialize_map(Object)
    }
}

impl<'de> Deserialize<'de> for Info {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Info, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Info;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Info, A::Error> {
                let (mut dtype, mut shape, mut offsets) = (None, None, None);
                while let Some(key) = entries.next_key::<String>()? {
                    let is_twice = match key.as_str() {
                        "dtype" => dtype.replace(entries.next_value()?).is_some(),
                        "shape" => shape.replace(entries.next_value()?).is_some(),
                        "data_offsets" => offsets.replace(entries.next_value()?).is_some(),
                        _ => {
                            entries.next_value::<IgnoredAny>()?;
                            false
                        }
                    };
                    if is_twice {
                        return Err(A::Error::custom(format!("{key} stands twice")));
                    }
                }
                let missing = A::Error::missing_field;
                Ok(Info {
                    dtype: dtype.ok_or_else(|| missing("dtype"))?,
                    shape: shape.ok_or_else(|| missing("shape"))?,
                    data_offsets: offsets.ok_or_else(|| missing("data_offsets"))?,
                })
            }
        }

        deserializer.deserialize_map(Object)
    }
}

impl<'de> Deserialize<'de> for Dtype {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Dtype, D::Error> {
        let name = String::deserialize(deserializer)?;
        Dtype::of_name(&name)
            .ok_or_else(|| D::Error::custom(format!("dtype {name:?} is not one of safetensors'")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header() {
        let text = br#"{"b": {"shape": [2, 3], "data_offsets": [8, 20], "dtype": "BF16", "more": {"x": [1]}},
            "__metadata__": {"config": "c"}, "a": {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}}"#;
        let header = Header::read(text).expect("a header");
        assert_eq!((header.data_len, header.metadata["config"].as_str()), (20, "c"));
        let Info { dtype, shape, data_offsets } = &header.tensors["b"];
        assert_eq!((*dtype, shape.as_slice(), *data_offsets), (Dtype::BF16, [2, 3].as_slice(), (8, 20)));
        assert_eq!(header.tensors["a"].dtype, Dtype::F4);
    }

    #[test]
    fn refusals() {
        for (text, what) in [
            (
                r#"{"a": {"dtype": "F9", "shape": [1], "data_offsets": [0, 1]}}"#,
                "dtype \"F9\" is not one of safetensors'",
            ),
            (r#"{"a": {"dtype": "U8", "data_offsets": [0, 1]}}"#, "missing field `shape`"),
            (
                r#"{"a": {"dtype": "U8", "shape": [1], "shape": [1], "data_offsets": [0, 1]}}"#,
                "shape stands twice",
            ),
            (
                r#"{"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}"#,
                "a: F4 [3] does not have 2 bytes",
            ),
            (r#"{"__metadata__": null, "__metadata__": {}}"#, "__metadata__ stands in it twice"),
            (r#"{"__metadata__": {"a": 1}}"#, "invalid type: integer"),
            (r#"{"a": 1}"#, "expected an object with dtype, shape and data_offsets"),
        ] {
            let error = Header::read(text.as_bytes()).err().unwrap_or_default();
            assert!(error.starts_with("its header: ") && error.contains(what), "{text}: {error}");
        }
    }
}
