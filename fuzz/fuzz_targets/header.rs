//! A safetensors file of the fuzzer's bytes: its header, and the config in its metadata.

#![no_main]

mod load;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = load::write(&[("model.safetensors", bytes)]);
    load::load(&folder.join("model.safetensors"), bytes.len());
});
