//! Permutations that were never computed, and those that a replay of a graph has overwritten.

use fp8_moe::ops::permutation::Permutation;
use fp8_moe::ops::permute::PermuteShape;
use fp8_moe::ops::quantize::{Destinations, Quantize, QuantizeShape, Scheme, quantize};
use fp8_moe::ops::unpermute::{Unpermute, unpermute};
use fp8_moe::{Buffer, E4m3, Step, Stream};
use half::bf16;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::common::gemm::devices;
use crate::lists::Forged;
use crate::{Memory, Sizes, assert_harmless, common, operations};

/// What was captured has not run: its permutation is refused outside, and in another capture.
#[test]
fn a_captured_permutation_stays_in_its_capture() {
    let shape = PermuteShape { tokens: 8, top_k: 1, experts: 2, local_experts: 2, alignment: 1 };
    let device = common::device();
    let (stream, other) = (Stream::new(&device).unwrap(), Stream::new(&device).unwrap());
    let ids = device.zeros::<i32>(8).unwrap();
    let (y, mut out): (Buffer<bf16>, Buffer<bf16>) = (device.zeros(64).unwrap(), device.zeros(64).unwrap());
    device.default_stream().synchronize().unwrap();
    let mut sum = |stream: &Stream, permutation: &Permutation<'_>| {
        let (y, out) = ((&y).into(), (&mut out).into());
        unpermute(
            stream,
            Unpermute { y, permutation, topk_weights: None, addend: None, hidden: 8, out, adds: false },
        )
    };
    let mut memory = Memory::new(&device, shape);
    let mut escaped = None;
    stream
        .capture(|stream| {
            let permutation = memory.permute(stream, &ids, None)?;
            sum(stream, &permutation)?;
            let refused = sum(&other, &permutation).unwrap_err().to_string();
            assert!(refused.contains("must be used in the capture that it was made in"), "{refused}");
            escaped = Some(permutation);
            Ok(())
        })
        .unwrap();
    let permutation = escaped.expect("a permutation");
    for stream in [&stream, &other] {
        let refused = sum(stream, &permutation).unwrap_err().to_string();
        assert!(refused.contains("must be used in the capture that it was made in"), "{refused}");
    }
    let again = stream.capture(|stream| {
        let refused = sum(stream, &permutation).unwrap_err().to_string();
        assert!(refused.contains("must be used in the capture that it was made in"), "{refused}");
        Ok(())
    });
    assert_eq!(again.unwrap().kernels(), 0);
}

/// At a replay the lists of a permutation from outside may be gone: captures refuse it.
#[test]
fn a_permutation_from_outside_stays_out_of_captures() {
    let shape = PermuteShape { tokens: 8, top_k: 1, experts: 2, local_experts: 2, alignment: 1 };
    for device in devices() {
        let stream = Stream::new(&device).unwrap();
        let ids = device.zeros::<i32>(8).unwrap();
        let (y, mut out): (Buffer<bf16>, Buffer<bf16>) =
            (device.zeros(64).unwrap(), device.zeros(64).unwrap());
        let (mut q, mut q_scales) = (device.zeros::<E4m3>(64).unwrap(), device.zeros::<f32>(8).unwrap());
        let mut memory = Memory::new(&device, shape);
        let permutation = memory.permute(&stream, &ids, None).unwrap();
        let mut both = |stream: &Stream| {
            let args = Unpermute {
                y: (&y).into(),
                permutation: &permutation,
                topk_weights: None,
                addend: None,
                hidden: 8,
                out: (&mut out).into(),
                adds: false,
            };
            let summed = unpermute(stream, args);
            let args = Quantize {
                x: (&y).into(),
                row_weight: None,
                destinations: Destinations::Scatter { permutation: &permutation, fill_padding: true },
                scheme: Scheme::Token { scales: q_scales.as_mut_slice(), absmax_limit: None },
                q: q.as_mut_slice(),
                cleared: None,
            };
            [summed, quantize(stream, QuantizeShape { rows: 8, columns: 8 }, args)]
        };
        let graph = stream.capture(|capturing| {
            for result in both(capturing) {
                let refused = result.unwrap_err().to_string();
                assert!(refused.contains("must be made in the capture that it is used in"), "{refused}");
            }
            Ok(())
        });
        assert_eq!(graph.unwrap().kernels(), 0);
        both(&stream).into_iter().for_each(|result| result.unwrap());
        stream.synchronize().unwrap();
    }
}

/// A replay writes memory that somebody has borrowed meanwhile. The lists that lay there are refused,
/// whichever operation is given them, until they are made again.
#[test]
fn a_replay_ends_the_permutations_that_it_overwrites() {
    let shape = PermuteShape { tokens: 24, top_k: 2, experts: 4, local_experts: 4, alignment: 1 };
    // As many rows, in the memory of the same lists, of which no token has more than half of the other's.
    let other = PermuteShape { tokens: 12, top_k: 4, ..shape };
    for device in devices() {
        let streams = [Stream::new(&device).unwrap(), Stream::new(&device).unwrap()];
        let all = device.upload(&[1i32; 48]).unwrap();
        let few = device.upload(&(0..48).map(|r| if r < 4 { r } else { -1 }).collect::<Vec<i32>>()).unwrap();
        let mut memory = Memory::new(&device, shape);
        let sizes = memory.sizes();
        let graph = {
            memory.shape = other;
            streams[0].capture(|stream| memory.permute(stream, &all, None).map(drop)).unwrap()
        };
        memory.shape = shape;
        for (stream, replays_on) in [(0, 0), (0, 1), (1, 0)].map(|(a, b)| (&streams[a], &streams[b])) {
            let mut permutation = memory.permute(stream, &few, None).unwrap();
            operations(&device, stream, &mut permutation, sizes).into_iter().for_each(|r| r.unwrap());
            graph.launch(replays_on).unwrap();
            for result in operations(&device, stream, &mut permutation, sizes) {
                let refused = result.unwrap_err().to_string();
                assert!(refused.contains("must be made again"), "{refused}");
            }
        }
        let mut permutation = memory.permute(&streams[0], &few, None).unwrap();
        drop(graph);
        operations(&device, &streams[0], &mut permutation, sizes).into_iter().for_each(|r| r.unwrap());
    }
}

/// A scan of lists is worth nothing once a replay has written them.
#[test]
fn a_replay_ends_scanned_lists() {
    let device = common::device();
    let stream = Stream::new(&device).unwrap();
    let rng = &mut ChaCha8Rng::seed_from_u64(3);
    let mut lists = Forged::right(6, 2, 3, 0, rng).upload(&device);
    let graph = {
        let lists = lists.borrow();
        let mut offsets = lists.expert_offsets;
        stream.capture(|stream| offsets.fill_bytes(0x7f, stream)).unwrap()
    };
    let mut permutation = Permutation::from_lists(&stream, lists.borrow()).unwrap();
    let sizes = Sizes { tokens: 6, rows: 12, experts: 3 };
    operations(&device, &stream, &mut permutation, sizes).into_iter().for_each(|result| result.unwrap());
    graph.launch(&stream).unwrap();
    for result in operations(&device, &stream, &mut permutation, sizes) {
        let refused = result.unwrap_err().to_string();
        assert!(refused.contains("must be made again"), "{refused}");
    }
    assert!(Permutation::from_lists(&stream, lists.borrow()).is_err());
}

/// A graph of a forward, launched while another forward is being enqueued in the same workspace, before any
/// of its operations: that one ends with an error, or is not touched. Layers take turns in one workspace.
#[test]
fn a_replay_within_a_forward() {
    use crate::common::layers::{config, on_device};
    use crate::common::oracle::{Layer, hidden_states};
    use fp8_moe::{Forward, Quantization, Routing};
    let sizes = [8, 2, 64, 32];
    for quantization in [Quantization::ChannelToken, Quantization::TensorStatic] {
        let config = config(quantization, Routing::Softmax { renormalize: true }, sizes);
        let device = common::device();
        let layers = [1, 2].map(|seed| on_device(&device, &Layer::random(config.clone(), seed)));
        let (stream, other) = (Stream::new(&device).unwrap(), Stream::new(&device).unwrap());
        let mut workspace = layers[0].workspace(40).unwrap();
        let hidden = [40, 3].map(|tokens| device.upload(&hidden_states(tokens * 64, 5)).unwrap());
        let mut outs = [40, 3].map(|tokens| device.zeros::<f32>(tokens * 64).unwrap());
        let [wide, out] = &mut outs;
        let graph = stream
            .capture(|stream| layers[1].forward(stream, &hidden[0], &mut workspace, &mut *wide))
            .unwrap();
        layers[0].forward(&stream, &hidden[1], &mut workspace, &mut *out).unwrap();
        let alone = out.to_vec(&stream).unwrap();
        for at in 0..Step::NAMES.len() {
            for replays_on in [&stream, &other] {
                let observe = |step: Step| {
                    if step.index == at {
                        graph.launch(replays_on).unwrap();
                    }
                };
                let forward = Forward::new(&hidden[1], &mut workspace, &mut *out).observed(&observe);
                match layers[0].forward_with(&stream, forward) {
                    // Before the routing, or the sort of it, a launch does no harm to the lists.
                    // This layer is not one launch.
                    Ok(()) => {
                        let is_absent = Step::NAMES[at] == "one launch";
                        assert!(is_absent || at < 3 || at == 5 || at == 8, "{}", Step::NAMES[at]);
                    }
                    Err(error) => {
                        assert!(at >= 3, "{}: {error}", Step::NAMES[at]);
                        assert!(error.to_string().contains("must be made again"), "{error}");
                    }
                }
                stream.synchronize().unwrap();
            }
        }
        // Weights take turns with no trace of each other.
        graph.launch(&other).unwrap();
        layers[0].forward(&stream, &hidden[1], &mut workspace, &mut *out).unwrap();
        assert_eq!(out.to_vec(&stream).unwrap(), alone);
    }
}

/// The same where the layer is one launch, whose blocks wait for each other by words of the workspace:
/// launches in one workspace take turns, and each finds the words as it needs them.
#[test]
fn a_replay_beside_one_launch() {
    use crate::common::layers::{config, on_device};
    use crate::common::oracle::{Layer, hidden_states};
    use fp8_moe::ops::grouped_gemm::Path;
    use fp8_moe::{Family, Forward, Quantization, Routing};
    let device = common::device();
    if device.family() != Family::Sm90a {
        return;
    }
    let routing = Routing::Softmax { renormalize: true };
    let mut config = config(Quantization::ChannelToken, routing, [8, 2, 128, 64]);
    config.path = Path::OneLaunch;
    let layers = [1, 2].map(|seed| on_device(&device, &Layer::random(config.clone(), seed)));
    let (stream, other) = (Stream::new(&device).unwrap(), Stream::new(&device).unwrap());
    let mut workspace = layers[0].workspace(8).unwrap();
    let hidden = [8, 3].map(|tokens| device.upload(&hidden_states(tokens * 128, 5)).unwrap());
    let mut outs = [8, 3].map(|tokens| device.zeros::<f32>(tokens * 128).unwrap());
    let [wide, out] = &mut outs;
    let graph =
        stream.capture(|stream| layers[1].forward(stream, &hidden[0], &mut workspace, &mut *wide)).unwrap();
    layers[0].forward(&stream, &hidden[1], &mut workspace, &mut *out).unwrap();
    let alone = out.to_vec(&stream).unwrap();
    for replays_on in [&stream, &other] {
        let seen = std::cell::Cell::new(false);
        let observe = |step: Step| {
            seen.set(seen.get() || step.name == "one launch");
            graph.launch(replays_on).unwrap();
        };
        let forward = Forward::new(&hidden[1], &mut workspace, &mut *out).observed(&observe);
        // Its routing may be the other's, but nothing waits for ever.
        layers[0].forward_with(&stream, forward).unwrap();
        graph.launch(&other).unwrap();
        assert!(seen.get());
        layers[0].forward(&stream, &hidden[1], &mut workspace, &mut *out).unwrap();
        assert_eq!(out.to_vec(&stream).unwrap(), alone);
    }
}

/// Two threads, one memory: one launches a graph that writes it, the other sorts and uses what it has sorted.
/// Each operation runs on its own lists, or is refused.
#[test]
fn a_replay_on_another_thread() {
    let shape = PermuteShape { tokens: 24, top_k: 2, experts: 4, local_experts: 4, alignment: 1 };
    let device = common::device();
    let stream = Stream::new(&device).unwrap();
    let all = device.upload(&[1i32; 48]).unwrap();
    let few = device.upload(&(0..48).map(|r| if r < 4 { r } else { -1 }).collect::<Vec<i32>>()).unwrap();
    let mut memory = Memory::new(&device, shape);
    let sizes = memory.sizes();
    let graph = stream.capture(|stream| memory.permute(stream, &all, None).map(drop)).unwrap();
    std::thread::scope(|scope| {
        let launches = scope.spawn(|| {
            let stream = Stream::new(&device).unwrap();
            for _ in 0..20 {
                graph.launch(&stream).unwrap();
                std::thread::yield_now();
            }
            stream.synchronize().unwrap();
        });
        while !launches.is_finished() {
            let mut permutation = memory.permute(&stream, &few, None).unwrap();
            let results = operations(&device, &stream, &mut permutation, sizes);
            assert_harmless(&results);
        }
    });
}
