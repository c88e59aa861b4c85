//! A folder whose index is the fuzzer's bytes, beside one sound shard and a sound config.

#![no_main]

mod load;

use libfuzzer_sys::fuzz_target;

const LAYER: &[u8] = include_bytes!("../../tests/fixtures/models/gelu.safetensors");

fuzz_target!(
    init: {
        let (_, header) = safetensors::SafeTensors::read_metadata(LAYER).expect("a header");
        let config = &header.metadata().as_ref().expect("metadata")["config"];
        load::write(&[("model-1.safetensors", LAYER), ("config.json", config.as_bytes())]);
    },
    |bytes: &[u8]| {
        let folder = load::write(&[("model.safetensors.index.json", bytes)]);
        load::load(folder, LAYER.len() + bytes.len());
    }
);
