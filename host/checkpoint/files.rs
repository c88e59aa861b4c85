//! Tensors by name from safetensors files, memory-mapped: one file, or a folder of shards with an index.
//!
//! ```text
//! file     u64 length of header | JSON header: name -> dtype, shape, offsets | tensor data
//! folder   model.safetensors.index.json: {"weight_map": {name: shard file}}  (or one *.safetensors file)
//! ```
//!
//! A shard is mapped when a tensor of it is first asked for, so a folder may lack the shards of other layers.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use memmap2::Mmap;
use safetensors::tensor::{Metadata, SafeTensorError};
use safetensors::{Dtype, SafeTensors};

use crate::error::{Error, Result};

/// A tensor of a mapped file.
#[derive(Clone, Copy)]
pub(crate) struct Tensor<'a> {
    pub file: &'a Path,
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

impl Tensor<'_> {
    /// An error about this tensor.
    pub fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::checkpoint(self.file, format!("{}: {what}", self.name))
    }

    /// The elements as f32; refuses types that f32 cannot hold.
    pub fn to_f32(self) -> Result<Vec<f32>> {
        let words = |n: usize| self.bytes.chunks_exact(n);
        match self.dtype {
            Dtype::F32 => Ok(words(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
            Dtype::BF16 => Ok(words(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()),
            Dtype::F16 => Ok(words(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()),
            other => Err(self.error(format!("has type {other:?}; F32, BF16 or F16 is expected"))),
        }
    }

    /// The elements as i64; refuses types that are not integers of 32 or 64 bits.
    pub fn to_i64(self) -> Result<Vec<i64>> {
        match self.dtype {
            Dtype::I64 => {
                let word = |b: &[u8]| i64::from_le_bytes(b.try_into().expect("eight bytes"));
                Ok(self.bytes.chunks_exact(8).map(word).collect())
            }
            Dtype::I32 => {
                let word = |b: &[u8]| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                Ok(self.bytes.chunks_exact(4).map(word).collect())
            }
            other => Err(self.error(format!("has type {other:?}; I64 or I32 is expected"))),
        }
    }

    /// Itself, if it has type `dtype` and shape `shape`.
    pub fn expect(self, dtype: Dtype, shape: &[usize]) -> Result<Self> {
        if self.dtype != dtype {
            return Err(self.error(format!("has type {:?}; {dtype:?} is expected", self.dtype)));
        }
        self.expect_shape(shape)
    }

    /// Itself, if it has shape `shape`.
    pub fn expect_shape(self, shape: &[usize]) -> Result<Self> {
        if self.shape == shape {
            return Ok(self);
        }
        Err(self.error(format!("has shape {:?}; the config says {shape:?}", self.shape)))
    }
}

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
            return Err(Error::checkpoint(
                path,
                format!("a folder with neither {INDEX} nor a .safetensors file"),
            ));
        }
        Self::from_shards(path, found)
    }

    fn from_shards(path: &Path, files: Vec<PathBuf>) -> Result<Files> {
        let mut names = BTreeMap::new();
        let mut shards = Vec::new();
        for (shard, file) in files.into_iter().enumerate() {
            let mapped = map(&file)?;
            names.extend(mapped.header.tensors().into_keys().map(|name| (name, shard)));
            shards.push(Shard { path: file, mapped: mapped.into() });
        }
        Ok(Files { path: path.to_path_buf(), shards, names })
    }

    fn from_index(folder: &Path, index: &Path) -> Result<Files> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = std::fs::read_to_string(index).map_err(|e| Error::io(index, e))?;
        let Index { weight_map } = serde_json::from_str(&text)
            .map_err(|e| Error::checkpoint(index, format!("is not an index of safetensors shards: {e}")))?;
        let mut numbers: HashMap<String, usize> = HashMap::new();
        let mut shards = Vec::new();
        let mut names = BTreeMap::new();
        for (name, file) in weight_map {
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
        let shard = &self.shards[shard];
        let mapped = match shard.mapped.get() {
            Some(mapped) => mapped,
            None => {
                let mapped = map(&shard.path)?;
                shard.mapped.get_or_init(|| mapped)
            }
        };
        let info = mapped.header.info(name).ok_or_else(|| {
            Error::checkpoint(&shard.path, format!("lacks the tensor {name}, which {INDEX} says is here"))
        })?;
        let (start, end) = info.data_offsets;
        let bytes = &mapped.bytes[mapped.data_start + start..mapped.data_start + end];
        Ok(Tensor { file: &shard.path, name, dtype: info.dtype, shape: &info.shape, bytes })
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
    // SAFETY: the mapping is read-only. That nobody truncates or rewrites a checkpoint while it is being loaded is the
    // condition under which any memory-mapped reader works; the documentation of `Checkpoint::open` states it.
    let bytes = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
    let (header_bytes, header) =
        SafeTensors::read_metadata(&bytes).map_err(|e| refuse(explain(&bytes, &e)))?;
    Ok(Mapped { data_start: header_bytes + 8, bytes, header })
}

/// What is wrong with a file whose header could not be read.
fn explain(bytes: &[u8], error: &SafeTensorError) -> String {
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
