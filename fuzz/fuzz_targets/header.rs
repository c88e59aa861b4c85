//! A safetensors file of the fuzzer's bytes: its header, and the config in its metadata.

#![no_main]

mod load;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("model.safetensors");
    std::fs::write(&file, bytes).expect("a file");
    load::load(&file);
});
