//! Every operation with one argument wrong: a slice of another context, too short, or off its alignment; a
//! number that no array has.

use std::cell::Cell;

use cust::Context;
use fp8_moe::{Device, Error, Family};

use crate::calls::{CALLS, Call, HOPPER_CALLS, Source, Wrong};
use crate::common;
use crate::common::gemm::devices;

/// The same device in a context of its own.
fn elsewhere(device: &Device) -> Device {
    let driver = if device.is_emulated() { cust::Driver::sim() } else { cust::Driver::cuda() }.unwrap();
    let ordinal = device.to_string().rsplit_once(':').map_or(0, |(_, ordinal)| ordinal.parse().unwrap());
    let context = Context::create(cust::Device::get(driver, ordinal).unwrap()).unwrap();
    Device::in_context(context, Some(device.family())).unwrap()
}

fn calls(family: Family) -> impl Iterator<Item = &'static Call> {
    let hopper = if family == Family::Sm90a { HOPPER_CALLS } else { &[] };
    CALLS.iter().chain(hopper)
}

/// Calls an operation with one argument wrong, or none; returns what it says, and how many slices and numbers
/// it was given. What it has enqueued must not fault.
#[track_caller]
fn call(
    (name, call): &Call,
    [device, other]: [&Device; 2],
    wrong: Option<(usize, Wrong)>,
) -> (Result<(), Error>, usize, usize) {
    let stream = device.default_stream();
    let source = Source { device, other, wrong, slices: Cell::new(0), numbers: Cell::new(0) };
    let result = call(&source, &stream);
    stream.synchronize().unwrap_or_else(|e| panic!("{name}, {wrong:?}: {e}"));
    let refused = matches!(result, Ok(()) | Err(Error::Argument { .. }));
    assert!(refused, "{name}, {wrong:?}: {}", result.unwrap_err());
    (result, source.slices.get(), source.numbers.get())
}

#[test]
fn every_slice_is_checked() {
    for device in devices() {
        let other = elsewhere(&device);
        for operation in calls(device.family()) {
            let (name, _) = operation;
            let (right, slices, _) = call(operation, [&device, &other], None);
            right.unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(slices > 1, "{name}");
            for at in 0..slices {
                for wrong in [Wrong::Elsewhere, Wrong::Short] {
                    // The length of the offsets says how many experts there are.
                    if (*name, at, wrong) == ("Permutation::from_lists", 0, Wrong::Short) {
                        continue;
                    }
                    let (result, ..) = call(operation, [&device, &other], Some((at, wrong)));
                    assert!(result.is_err(), "{name} takes its slice {at} {wrong:?}");
                }
                // Refused, or of no consequence.
                let _ = call(operation, [&device, &other], Some((at, Wrong::Shifted)));
            }
        }
    }
}

/// Sizes that make products of sizes overflow, or that no kernel can count: refused, where they are not
/// right by chance.
#[test]
fn every_number_is_checked() {
    let powers = [8, 16, 31, 32, 33, 40, 62, 63].map(|bits| 1 << bits);
    let wrong: Vec<usize> = powers.into_iter().chain([0, usize::MAX, usize::MAX - 15]).collect();
    for device in devices() {
        let other = elsewhere(&device);
        for operation in calls(device.family()) {
            let (_, _, numbers) = call(operation, [&device, &other], None);
            for at in 0..numbers {
                for &number in &wrong {
                    let _ = call(operation, [&device, &other], Some((at, Wrong::Number(number))));
                }
            }
        }
    }
}

/// Two numbers that are wrong together: no experts of matrices that nobody has, and padding that passes 2^31
/// by rounding up alone.
#[test]
fn numbers_that_are_wrong_together() {
    use fp8_moe::ops::pack_weights::PackedShape;
    use fp8_moe::ops::permute::PermuteShape;
    for matrices in [
        PackedShape::plain(0, usize::MAX - 7, usize::MAX - 15),
        PackedShape::gated(0, usize::MAX - 15, usize::MAX - 15),
        PackedShape::plain(0, 8, usize::MAX - 15),
    ] {
        assert!(matches!(matrices, Err(Error::Argument { .. })), "{matrices:?}");
    }
    let shape = PermuteShape {
        tokens: (1 << 30) + 5,
        top_k: 1,
        experts: 1,
        local_experts: 1,
        alignment: (1 << 30) - 10,
    };
    assert_eq!(shape.capacity(), 3 * shape.alignment);
    let device = common::device();
    let mut memory = crate::Memory::new(&device, PermuteShape { tokens: 1, alignment: 1, ..shape });
    memory.shape = shape;
    let ids = device.zeros(1).unwrap();
    let refused = memory.permute(&device.default_stream(), &ids, None).unwrap_err().to_string();
    assert!(refused.starts_with("permute: alignment = 1073741814: must keep the "), "{refused}");
}

/// A device of another family of kernels in the same context has the same memory, and other kernels: a
/// forward that takes some that it lacks is refused, and its output stays as it was.
#[test]
fn streams_of_another_family() {
    use common::layers::config;
    use common::oracle::{Layer, hidden_states};
    use fp8_moe::{MoeLayer, Quantization, Routing};
    let routing = Routing::Softmax { renormalize: true };
    let oracle = Layer::random(config(Quantization::ChannelToken, routing, [4, 2, 64, 32]), 1);
    let families = common::families();
    let layers: Vec<MoeLayer> =
        families.iter().map(|device| common::layers::on_device(device, &oracle)).collect();
    for (device, layer) in families.iter().zip(&layers) {
        for of in &families {
            let stream = of.default_stream();
            let hidden = device.upload(&hidden_states(3 * 64, 5)).unwrap();
            let (mut workspace, mut out) =
                (layer.workspace(3).unwrap(), device.zeros::<f32>(3 * 64).unwrap());
            let result = layer.forward(&stream, &hidden, &mut workspace, &mut out);
            stream.synchronize().unwrap();
            let is_written = out.to_vec(&stream).unwrap().iter().any(|&y| y != 0.0);
            match result {
                Ok(()) => assert!(is_written),
                Err(error) => {
                    assert!(matches!(error, Error::Argument { .. }) && !is_written, "{error}");
                    assert_ne!(of.family(), device.family());
                }
            }
        }
    }
}
