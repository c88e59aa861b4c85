//! Tables that force a choice: whatever is taken, a layer's values are right.

use fp8_moe::{MoeLayer, Quantization, Routing, Tuning};

use crate::common::checks::out_of_bounds;
use crate::common::layers::{Poison, Skew, config, on_device, random_routing, run_own, run_routed};
use crate::common::oracle::{self, Layer};
use crate::common::{families, timing};

/// Tables that force something, with what they force.
fn forced() -> Vec<(&'static str, Tuning)> {
    let with = |change: fn(&mut Tuning)| {
        let mut tuning = Tuning::default();
        change(&mut tuning);
        tuning
    };
    vec![
        ("one launch wherever it fits", with(|t| t.one_launch_packed_mb = [u32::MAX; 8])),
        (
            "units without a cost",
            with(|t| (t.one_launch_packed_mb, t.one_launch_unit_bytes) = ([u32::MAX; 8], 0)),
        ),
        ("units of the fewest rows", {
            with(|t| {
                t.one_launch_packed_mb = [u32::MAX; 8];
                (t.one_launch_unit_bytes, t.one_launch_copy_bytes) = (0, 1);
            })
        }),
        ("units of a high cost", {
            with(|t| (t.one_launch_packed_mb, t.one_launch_unit_bytes) = ([u32::MAX; 8], 1 << 30))
        }),
        ("copies of a high cost", {
            with(|t| (t.one_launch_packed_mb, t.one_launch_copy_bytes) = ([u32::MAX; 8], 1 << 20))
        }),
        ("never one launch", with(|t| t.one_launch_packed_mb = [0; 8])),
        ("the lowest tiles", {
            with(|t| {
                (t.one_launch_packed_mb, t.hopper_rows_8, t.portable_rows_16) = ([0; 8], u32::MAX, u32::MAX);
            })
        }),
        ("tiles in between", {
            with(|t| {
                (t.one_launch_packed_mb, t.hopper_rows_8, t.hopper_rows_16) = ([0; 8], 0, u32::MAX);
                (t.portable_rows_16, t.portable_rows_64) = (0, u32::MAX);
            })
        }),
        ("tiles of 32 rows", {
            with(|t| {
                (t.one_launch_packed_mb, t.hopper_rows_8, t.hopper_rows_16) = ([0; 8], 0, 0);
                t.hopper_rows_32 = u32::MAX;
            })
        }),
        ("the highest tiles, gathered", {
            with(|t| {
                (t.one_launch_packed_mb, t.hopper_rows_8, t.hopper_rows_16) = ([0; 8], 0, 0);
                t.hopper_rows_32 = 0;
                (t.portable_rows_16, t.portable_rows_64) = (0, 0);
                (t.gather_from, t.gather_rows) = (0, u32::MAX);
            })
        }),
        ("the highest tiles, scattered", {
            with(|t| {
                (t.one_launch_packed_mb, t.hopper_rows_8, t.hopper_rows_16) = ([0; 8], 0, 0);
                t.hopper_rows_32 = 0;
                t.gather_from = u32::MAX;
            })
        }),
    ]
}

#[test]
fn forced_choices_give_right_values() {
    let softmax = Routing::Softmax { renormalize: true };
    for (seed, quantization) in (0..).zip([Quantization::Block128, Quantization::ChannelToken]) {
        let layer = Layer::random(config(quantization, softmax, [6, 2, 256, 128]), seed);
        for (device, tokens) in families().into_iter().flat_map(|device| [3, 50].map(|t| (device.clone(), t)))
        {
            let stream = device.default_stream();
            let hidden = oracle::hidden_states(tokens * 256, seed ^ 1);
            let (ids, weights) = random_routing(&layer.config, tokens, Skew::Invalid, seed ^ 2);
            let expected = layer.forward(&hidden, &ids, &weights);
            let base = on_device(&device, &layer);
            for (what, tuning) in forced() {
                timing(seed);
                let tuned = base.tuned(tuning).unwrap();
                let ours: Vec<f32> =
                    run_routed(&stream, &tuned, &hidden, &ids, &weights, Poison::Byte(0xff)).unwrap();
                assert_eq!(
                    out_of_bounds(&ours, &expected),
                    None,
                    "{device}, {quantization}, {tokens}: {what}"
                );
            }
        }
    }
}

/// The router's kernels too, in a layer whose weights two tables share.
#[test]
fn forced_routers_choose_alike() {
    let softmax = Routing::Softmax { renormalize: true };
    let (seed, tokens) = (3, 19);
    let layer = Layer::random(config(Quantization::Block128, softmax, [16, 4, 144, 128]), seed);
    let hidden = oracle::hidden_states(tokens * 144, seed);
    let (ids, weights) = layer.route(&hidden);
    for device in families() {
        let base = on_device(&device, &layer);
        let layers = [(65535, 0), (0, u32::MAX), (0, 0)].map(|(few, tile)| {
            let mut tuning = Tuning::default();
            (tuning.router_few_tokens, tuning.router_tile_16x8_logits) = (few, tile);
            base.tuned(tuning).unwrap()
        });
        // The weights stay as long as one of them.
        drop(base);
        for tuned in layers {
            timing(seed);
            let (out, chosen, _) = run_own(&device.default_stream(), &tuned, &hidden).unwrap();
            assert_eq!(chosen, ids, "{device}");
            assert_eq!(out_of_bounds(&out, &layer.forward(&hidden, &ids, &weights)), None, "{device}");
        }
    }
}

#[test]
fn wrong_tables_and_workspaces_of_others_are_refused() {
    let softmax = Routing::Softmax { renormalize: true };
    let layer = Layer::random(config(Quantization::Block128, softmax, [4, 2, 128, 128]), 1);
    let device = crate::common::device();
    let base = on_device(&device, &layer);
    let mut tuning = Tuning::default();
    tuning.one_launch_copy_bytes = 0;
    let expected = "Tuning: one_launch_copy_bytes = 0: must be a whole number in 1..=1048576";
    assert_eq!(base.tuned(tuning.clone()).unwrap_err().to_string(), expected);
    let refused = layer.config.to_builder().tuning(tuning.clone()).build();
    assert_eq!(refused.unwrap_err().to_string(), expected);
    let mut unchecked = layer.config.clone();
    unchecked.tuning = tuning;
    let refused = MoeLayer::new(&device, &unchecked, &layer.weights(&layer.config));
    assert_eq!(refused.unwrap_err().to_string(), expected);

    let mut other = Tuning::default();
    other.hopper_rows_8 += 1;
    let tuned = base.tuned(other).unwrap();
    let stream = device.default_stream();
    let hidden = device.zeros::<half::bf16>(128).unwrap();
    let mut out = device.zeros::<f32>(128).unwrap();
    let mut workspace = base.workspace(1).unwrap();
    let refused = tuned.forward(&stream, &hidden, &mut workspace, &mut out).unwrap_err();
    assert!(
        refused.to_string().contains("must be of this layer, or of one with an equal config"),
        "{refused}"
    );
}
