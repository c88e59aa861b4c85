//! Tensors by name from safetensors files, memory-mapped: one file, or a folder of shards with an index.
//!
//! ```text
//! file     u64 length of header | JSON header: name -> dtype, shape, offsets | tensor data
//! folder   model.safetensors.index.json: {"weight_map": {name: shard file}}  (or one *.safetensors file)
//! ```
//!
//! A shard is mapped when a tensor of it is first asked for, so a folder may lack the shards of other layers.
//! A name that stands in two files is an error, with the index as without: which of them holds the truth is
//! not for us to guess.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Metadata, SafeTensorError};
use serde::de::{Error as _, MapAccess, Visitor};

use super::foreign;
use super::tensor::Tensor;
use crate::error::{Error, Result};

/// The tensors of a file or folder.
pub(crate) struct Files {
    path: PathBuf,
    shards: Vec<Shard>,
    /// Tensor name to shard.
    names: BTreeMap<String, usize>,
}

struct Shard {
    path: PathBuf,
    mapped: OnceLock<Mapped>,
}

struct Mapped {
    bytes: Mmap,
    header: Metadata,
    data_start: usize,
}

const INDEX: &str = "model.safetensors.index.json";

impl Files {
    /// Opens a safetensors file, or a folder of them.
    pub fn open(path: &Path) -> Result<Files> {
        let attributes = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if !attributes.is_dir() {
            return Self::from_shards(path, vec![path.to_path_buf()]);
        }
        let index = path.join(INDEX);
        if index.exists() {
            return Self::from_index(path, &index);
        }
        let mut found = Vec::new();
        for entry in std::fs::read_dir(path).map_err(|e| Error::io(path, e))? {
            let file = entry.map_err(|e| Error::io(path, e))?.path();
            if file.extension().is_some_and(|x| x == "safetensors") {
                found.push(file);
            }
        }
        found.sort();
        if found.is_empty() {
            let mut what = format!("a folder with neither {INDEX} nor a .safetensors file");
            if let Some((file, format)) = foreign::in_folder(path)? {
                what.push_str(&format!("; {file} is {format}"));
            }
            return Err(Error::checkpoint(path, what));
        }
        Self::from_shards(path, found)
    }

    fn from_shards(path: &Path, files: Vec<PathBuf>) -> Result<Files> {
        let mut names: BTreeMap<String, usize> = BTreeMap::new();
        let mut shards: Vec<Shard> = Vec::new();
        for (shard, file) in files.into_iter().enumerate() {
            let mapped = map(&file)?;
            for name in mapped.header.offset_keys() {
                if let Some(&other) = names.get(&name) {
                    let (first, second) = (file_name(&shards[other].path), file_name(&file));
                    let what = format!(
                        "{name} stands in both {first} and {second}, and no {INDEX} says which is meant"
                    );
                    return Err(Error::checkpoint(path, what));
                }
                names.insert(name, shard);
            }
            shards.push(Shard { path: file, mapped: mapped.into() });
        }
        Ok(Files { path: path.to_path_buf(), shards, names })
    }

    fn from_index(folder: &Path, index: &Path) -> Result<Files> {
        let text = std::fs::read(index).map_err(|e| Error::io(index, e))?;
        let Index { weight_map: WeightMap(weight_map) } = serde_json::from_slice(&text).map_err(|e| {
            let what = match foreign::format(&text) {
                Some(format) => format!("is {format}, not an index of safetensors shards"),
                None => format!("is not an index of safetensors shards: {e}"),
            };
            Error::checkpoint(index, what)
        })?;
        let mut numbers: HashMap<String, usize> = HashMap::new();
        let mut shards = Vec::new();
        let mut names = BTreeMap::new();
        for (name, file) in weight_map {
            if Path::new(&file).components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
                let what = format!("{name} is in \"{file}\": a shard must be a file of this folder");
                return Err(Error::checkpoint(index, what));
            }
            let shard = *numbers.entry(file).or_insert_with_key(|file| {
                shards.push(Shard { path: folder.join(file), mapped: OnceLock::new() });
                shards.len() - 1
            });
            names.insert(name, shard);
        }
        Ok(Files { path: folder.to_path_buf(), shards, names })
    }

    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// The names that begin with `start`, sorted.
    pub fn names_under<'a>(&'a self, start: &'a str) -> impl Iterator<Item = &'a str> {
        let from = self.names.range::<str, _>((Bound::Included(start), Bound::Unbounded));
        from.map(|(name, _)| name.as_str()).take_while(move |name| name.starts_with(start))
    }

    /// Whether there is a tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// The entry `key` of the metadata of a single file.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        let [shard] = self.shards.as_slice() else { return None };
        shard.mapped.get()?.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// The tensor `name`.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        let Some((name, &shard)) = self.names.get_key_value(name) else {
            return Err(Error::checkpoint(&self.path, format!("there is no tensor {name}")));
        };
        let mapped = self.mapped(shard, name)?;
        let shard = &self.shards[shard];
        let info = mapped.header.info(name).ok_or_else(|| {
            Error::checkpoint(&shard.path, format!("lacks the tensor {name}, which {INDEX} says is here"))
        })?;
        let (start, end) = info.data_offsets;
        let bytes = &mapped.bytes[mapped.data_start + start..mapped.data_start + end];
        Ok(Tensor { file: &shard.path, name, dtype: info.dtype, shape: &info.shape, bytes })
    }
}

impl Files {
    /// The shard `number`, mapped now if it has not been; `wanted` is the tensor that it is for.
    fn mapped(&self, number: usize, wanted: &str) -> Result<&Mapped> {
        let shard = &self.shards[number];
        if let Some(mapped) = shard.mapped.get() {
            return Ok(mapped);
        }
        if !shard.path.exists() {
            let what = format!("is missing; {INDEX} says that {wanted} is in it");
            return Err(Error::checkpoint(&shard.path, what));
        }
        let mapped = map(&shard.path)?;
        for name in mapped.header.offset_keys() {
            if let Some(&other) = self.names.get(&name).filter(|&&other| other != number) {
                let (first, second) = (file_name(&self.shards[other].path), file_name(&shard.path));
                let what = format!("{name} stands in {second} too; {INDEX} says that it is in {first}");
                return Err(Error::checkpoint(&self.path, what));
            }
        }
        Ok(shard.mapped.get_or_init(|| mapped))
    }
}

/// The last part of a path.
fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy()
}

/// The index: which file a tensor is in.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// Tensor name to file; a name that stands twice is an error.
struct WeightMap(BTreeMap<String, String>);

impl<'de> serde::Deserialize<'de> for WeightMap {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<WeightMap, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = WeightMap;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensor names and file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<WeightMap, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((name, file)) = entries.next_entry::<String, String>()? {
                    if let Some(other) = map.get(&name).filter(|&other| *other != file) {
                        return Err(A::Error::custom(format!("{name} is in both {other} and {file}")));
                    }
                    map.insert(name, file);
                }
                Ok(WeightMap(map))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// Maps a file and reads its header.
fn map(path: &Path) -> Result<Mapped> {
    let refuse = |what: String| Error::checkpoint(path, what);
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
    if length < 8 {
        return Err(refuse(format!(
            "is not a safetensors file: {length} bytes, shorter than its length field"
        )));
    }
    // SAFETY: the mapping is read-only. That nobody truncates or rewrites a checkpoint while it is being
    // loaded is the condition under which any memory-mapped reader works; the documentation of
    // `Checkpoint::open` states it.
    let bytes = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
    let (header_bytes, header) =
        SafeTensors::read_metadata(&bytes).map_err(|e| refuse(explain(&bytes, &e)))?;
    Ok(Mapped { data_start: header_bytes + 8, bytes, header })
}

/// What is wrong with a file whose header could not be read.
fn explain(bytes: &[u8], error: &SafeTensorError) -> String {
    if let Some(format) = foreign::format(bytes).filter(|_| bytes.get(8) != Some(&b'{')) {
        return format!("is not a safetensors file: it is {format}");
    }
    let declared = u64::from_le_bytes(bytes[..8].try_into().expect("at least eight bytes"));
    let length = bytes.len();
    match error {
        SafeTensorError::InvalidHeaderLength if bytes.get(8) == Some(&b'{') => {
            format!("is truncated: the header alone has {declared} bytes, the file {length}")
        }
        SafeTensorError::MetadataIncompleteBuffer => {
            let expected = data_end(&bytes[8..8 + declared as usize]).map(|end| 8 + declared + end);
            match expected {
                Some(expected) if expected > length as u64 => {
                    format!("is truncated: the header describes {expected} bytes, the file has {length}")
                }
                _ => format!("the header and the file's {length} bytes do not agree"),
            }
        }
        other => format!("is not a safetensors file: {other}"),
    }
}

/// The largest end offset in a header that is JSON.
fn data_end(header: &[u8]) -> Option<u64> {
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    header.values().filter_map(|t| t.get("data_offsets")?.get(1)?.as_u64()).max()
}
