//! A sound file with a config.json of the fuzzer's bytes.

#![no_main]

mod load;

use libfuzzer_sys::fuzz_target;

const LAYER: &[u8] = include_bytes!("../../tests/fixtures/models/gelu.safetensors");

fuzz_target!(
    init: {
        load::write(&[("model.safetensors", LAYER)]);
    },
    |bytes: &[u8]| {
        let folder = load::write(&[("config.json", bytes)]);
        load::load(folder, LAYER.len() + bytes.len());
    }
);
