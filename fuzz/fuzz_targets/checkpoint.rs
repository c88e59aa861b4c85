//! A whole checkpoint with some bytes changed: each four bytes of the fuzzer are a place and a value.

#![no_main]

mod load;

use libfuzzer_sys::fuzz_target;

/// Layers of different layouts and schemes.
const LAYERS: [&[u8]; 7] = [
    include_bytes!("../../tests/fixtures/models/qwen3_vl_moe_columns.safetensors"),
    include_bytes!("../../tests/fixtures/models/mixtral_compressed_static.safetensors"),
    include_bytes!("../../tests/fixtures/models/deepseek_v32_bytes.safetensors"),
    include_bytes!("../../tests/fixtures/models/scheme_quark_channel.safetensors"),
    include_bytes!("../../tests/fixtures/models/gpt_oss_fused.safetensors"),
    include_bytes!("../../tests/fixtures/models/shared_bf16_qwen3_next.safetensors"),
    include_bytes!("../../tests/fixtures/models/deepseek_v4_lookup.safetensors"),
];

fuzz_target!(|bytes: &[u8]| {
    let [which, changes @ ..] = bytes else { return };
    let mut layer = LAYERS[usize::from(*which) % LAYERS.len()].to_vec();
    for change in changes.chunks_exact(4) {
        let place = usize::from(change[0]) << 16 | usize::from(change[1]) << 8 | usize::from(change[2]);
        let place = place % layer.len();
        layer[place] = change[3];
    }
    let folder = load::write(&[("model.safetensors", &layer)]);
    load::load(&folder.join("model.safetensors"), layer.len());
});
