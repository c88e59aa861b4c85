//! Tensors by name from safetensors files: one file, or a folder of shards with an index.
//!
//! ```text
//! file     u64 length of header | JSON header: name -> dtype, shape, offsets | tensor data
//! folder   model.safetensors.index.json: {"weight_map": {name: shard file}}  (or one *.safetensors file)
//! ```
//!
//! A shard is opened when a tensor of it is first asked for, so a folder may lack the shards of other layers.
//! Its header is read then, its tensors where they are wanted ([`Tensor`]). Nothing is mapped: a file that
//! somebody rewrites meanwhile gives other numbers, or an error, and no more than that.
//! A name that stands in two files is an error, with the index as without: which of them holds the truth is
//! not for us to guess.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_core::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::foreign;
use super::header::Header;
use super::tensor::{Tensor, read_exact_at};
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
    opened: OnceLock<Opened>,
}

struct Opened {
    file: File,
    header: Header,
    /// Where the tensors' data begins.
    data_start: u64,
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
            let opened = open(&file)?;
            for name in opened.header.tensors.keys() {
                if let Some(&other) = names.get(name) {
                    let (first, second) = (file_name(&shards[other].path), file_name(&file));
                    let what = format!(
                        "{name} stands in both {first} and {second}, and no {INDEX} says which is meant"
                    );
                    return Err(Error::checkpoint(path, what));
                }
                names.insert(name.clone(), shard);
            }
            shards.push(Shard { path: file, opened: opened.into() });
        }
        Ok(Files { path: path.to_path_buf(), shards, names })
    }

    fn from_index(folder: &Path, index: &Path) -> Result<Files> {
        let text = std::fs::read(index).map_err(|e| Error::io(index, e))?;
        let Index(WeightMap(weight_map)) = serde_json::from_slice(&text).map_err(|e| {
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
                shards.push(Shard { path: folder.join(file), opened: OnceLock::new() });
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
        shard.opened.get()?.header.metadata.get(key).map(String::as_str)
    }

    /// The tensor `name`.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        let Some((name, &shard)) = self.names.get_key_value(name) else {
            return Err(Error::checkpoint(&self.path, format!("there is no tensor {name}")));
        };
        let opened = self.opened(shard, name)?;
        let path = &self.shards[shard].path;
        let info = opened.header.tensors.get(name).ok_or_else(|| {
            Error::checkpoint(path, format!("lacks the tensor {name}, which {INDEX} says is here"))
        })?;
        let (start, end) = info.data_offsets;
        Ok(Tensor {
            path,
            name,
            dtype: info.dtype,
            shape: &info.shape,
            file: &opened.file,
            start: opened.data_start + start as u64,
            len: end - start,
        })
    }

    /// The shard `number`, opened now if it has not been; `wanted` is the tensor that it is for.
    fn opened(&self, number: usize, wanted: &str) -> Result<&Opened> {
        let shard = &self.shards[number];
        if let Some(opened) = shard.opened.get() {
            return Ok(opened);
        }
        if !shard.path.exists() {
            let what = format!("is missing; {INDEX} says that {wanted} is in it");
            return Err(Error::checkpoint(&shard.path, what));
        }
        let opened = open(&shard.path)?;
        for name in opened.header.tensors.keys() {
            if let Some(&other) = self.names.get(name).filter(|&&other| other != number) {
                let (first, second) = (file_name(&self.shards[other].path), file_name(&shard.path));
                let what = format!("{name} stands in {second} too; {INDEX} says that it is in {first}");
                return Err(Error::checkpoint(&self.path, what));
            }
        }
        Ok(shard.opened.get_or_init(|| opened))
    }
}

/// The last part of a path.
fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy()
}

/// The index, `{"weight_map": {..}}`: which file a tensor is in.
struct Index(WeightMap);

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Index, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Index;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object with a weight_map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Index, A::Error> {
                let mut map = None;
                while let Some(key) = entries.next_key::<String>()? {
                    if key != "weight_map" {
                        entries.next_value::<IgnoredAny>()?;
                    } else if map.replace(entries.next_value()?).is_some() {
                        return Err(A::Error::custom("weight_map stands in it twice"));
                    }
                }
                map.map(Index).ok_or_else(|| A::Error::missing_field("weight_map"))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// Tensor name to file; a name that stands twice is an error.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WeightMap, D::Error> {
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

/// Opens a file and reads its header.
fn open(path: &Path) -> Result<Opened> {
    let refuse = |what: String| Error::checkpoint(path, what);
    if !std::fs::metadata(path).map_err(|e| Error::io(path, e))?.is_file() {
        return Err(refuse("is not a safetensors file: it is no file".into()));
    }
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
    if length < 8 {
        return Err(refuse(format!(
            "is not a safetensors file: {length} bytes, shorter than its length field"
        )));
    }
    // The length field, and enough behind it to tell other formats by.
    let mut start = vec![0; length.min(64) as usize];
    read_exact_at(path, &file, 0, &mut start)?;
    let is_header = start.get(8) == Some(&b'{');
    let is_not = |what: String| match foreign::format(&start).filter(|_| !is_header) {
        Some(format) => refuse(format!("is not a safetensors file: it is {format}")),
        None => refuse(format!("is not a safetensors file: {what}")),
    };
    let declared = u64::from_le_bytes(start[..8].try_into().expect("eight bytes"));
    if declared > MOST_HEADER {
        return Err(is_not(format!("its header would have {declared} bytes, more than {MOST_HEADER}")));
    }
    if declared > length - 8 {
        return Err(match is_header {
            true => refuse(format!("is truncated: the header alone has {declared} bytes, the file {length}")),
            false => is_not(format!("its header would have {declared} bytes, the file has {length}")),
        });
    }
    let mut text = vec![0; declared as usize];
    read_exact_at(path, &file, 8, &mut text)?;
    let header = Header::read(&text).map_err(is_not)?;
    let data_start = 8 + declared;
    let end = data_start.saturating_add(header.data_len as u64);
    if end > length {
        return Err(refuse(format!("is truncated: the header describes {end} bytes, the file has {length}")));
    }
    if end < length {
        return Err(refuse(format!("the header describes {end} bytes, the file has {length}")));
    }
    Ok(Opened { file, header, data_start })
}

/// Bytes of a header at most; safetensors has the same limit.
const MOST_HEADER: u64 = 100_000_000;
