//! A folder whose index is the fuzzer's bytes, beside one sound shard and a sound config.

#![no_main]

mod load;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).expect("a file");
    let layer = include_bytes!("../../tests/fixtures/models/gelu.safetensors");
    write("model-1.safetensors", layer);
    let (_, header) = safetensors::SafeTensors::read_metadata(layer).expect("a header");
    write("config.json", header.metadata().as_ref().expect("metadata")["config"].as_bytes());
    write("model.safetensors.index.json", bytes);
    load::load(folder.path());
});
