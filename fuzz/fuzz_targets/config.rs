//! A sound file with a config.json of the fuzzer's bytes.

#![no_main]

mod load;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).expect("a file");
    write("model.safetensors", include_bytes!("../../tests/fixtures/models/gelu.safetensors"));
    write("config.json", bytes);
    load::load(folder.path());
});
