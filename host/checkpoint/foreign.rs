//! Files that stand where safetensors are expected, recognised so that errors can name them.

use std::path::Path;

use crate::error::{Error, Result};

/// What a file is that begins with `bytes`; `None` where nothing known does.
pub(crate) fn format(bytes: &[u8]) -> Option<&'static str> {
    const FORMATS: [(&[u8], &str); 6] = [
        (
            b"version https://git-lfs",
            "a Git LFS pointer (the weights were not downloaded; `git lfs pull` fetches them)",
        ),
        (b"GGUF", "a GGUF file"),
        (b"PK\x03\x04", "a zip archive, as PyTorch's .bin and .pth files are"),
        (b"\x80\x02", "a Python pickle, as older PyTorch .bin and .pth files are"),
        (b"\x89HDF", "an HDF5 file"),
        (b"<", "a web page or XML (a download that failed?)"),
    ];
    FORMATS.into_iter().find(|(start, _)| bytes.starts_with(start)).map(|(_, name)| name)
}

/// The first file of a folder, by name, that may be weights in another format, and which.
pub(crate) fn in_folder(folder: &Path) -> Result<Option<(String, &'static str)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        let format = match path.extension().and_then(|extension| extension.to_str()) {
            Some("bin" | "pt" | "pth") => "a PyTorch file",
            Some("gguf") => "a GGUF file",
            Some("h5") => "an HDF5 file",
            Some("msgpack") => "a Flax file",
            _ => continue,
        };
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        found.push((name.unwrap_or_default(), format));
    }
    found.sort();
    Ok(found.into_iter().next())
}
