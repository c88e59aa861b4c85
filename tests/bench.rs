//! What benchmarks are made of: random layers on the device, captured parts, the timer, the dump.

mod common;

use common::device;
use fp8_moe::{Device, E4m3, ExpertWeights, MoeConfig, MoeLayer, MoeWeights};
use fp8_moe_cli::{Layers, Part, Routed, RoutingKind, Run, Scheme, Shape, Timer, dump};
use half::bf16;
use safetensors::SafeTensors;

const TOKENS: usize = 9;
/// An intermediate size that blocks of 128 pad.
const SHAPE: Shape = Shape { experts: 8, top_k: 2, hidden: 256, intermediate: 192 };

/// Layers, their config, and a routing.
fn case(device: &Device, scheme: Scheme, ep: usize, sets: usize) -> (MoeConfig, Layers, Routed) {
    let config = SHAPE.config(scheme, 1, ep).unwrap();
    let routed = RoutingKind::Uniform.draw(TOKENS, SHAPE.experts, SHAPE.top_k, 1).unwrap();
    let layers = Layers::random(device, &config, sets, &vec![true; config.local_count()], 2).unwrap();
    (config, layers, routed)
}

/// The host's copy of a dumped layer, and the output that was dumped with it.
fn load(device: &Device, config: &MoeConfig, bytes: &[u8]) -> (Vec<f32>, Vec<f32>) {
    let tensors = SafeTensors::deserialize(bytes).unwrap();
    let data = |name: &str| tensors.tensor(name).unwrap().data();
    let floats = |name: &str| -> Vec<f32> { bytemuck::pod_collect_to_vec(data(name)) };
    let e4m3 = |name: &str| -> Vec<E4m3> { bytemuck::pod_collect_to_vec(data(name)) };
    let (w13, w2, w13_scale, w2_scale) = (e4m3("w13"), e4m3("w2"), floats("w13_scale"), floats("w2_scale"));
    let local = config.local_count();
    let halves: Vec<_> = w13.chunks_exact(w13.len() / local / 2).collect();
    let scales: Vec<_> = w13_scale.chunks_exact(w13_scale.len() / local / 2).collect();
    // The loader takes one scale per matrix where they are per tensor.
    let per_matrix = |scales: &[f32]| match tensors.tensor("input_scales") {
        Ok(_) => scales[..1].to_vec(),
        Err(_) => scales.to_vec(),
    };
    let experts = (0..local)
        .map(|e| {
            let (down, down_scale) = (w2.len() / local, w2_scale.len() / local);
            ExpertWeights::new()
                .gate(halves[2 * e], per_matrix(scales[2 * e]))
                .up(halves[2 * e + 1], per_matrix(scales[2 * e + 1]))
                .down(&w2[e * down..][..down], &w2_scale[e * down_scale..][..down_scale])
        })
        .collect();
    let input_scales = tensors.tensor("input_scales").ok().map(|t| {
        let scales: Vec<f32> = bytemuck::pod_collect_to_vec(t.data());
        [scales[0], scales[1]]
    });
    let mut weights = MoeWeights::new(experts);
    weights.input_scales = input_scales;
    let layer = MoeLayer::new(device, config, &weights).unwrap();

    let stream = device.default_stream();
    let hidden = device.upload(&bytemuck::pod_collect_to_vec::<u8, bf16>(data("hidden"))).unwrap();
    let ids = device.upload(&bytemuck::pod_collect_to_vec::<u8, i32>(data("topk_ids"))).unwrap();
    let weights = device.upload(&floats("topk_weights")).unwrap();
    let mut workspace = layer.workspace(TOKENS).unwrap();
    let mut out = device.zeros::<f32>(hidden.len()).unwrap();
    layer.forward_routed(&stream, &hidden, &ids, &weights, &mut workspace, &mut out).unwrap();
    (out.to_vec(&stream).unwrap(), floats("out"))
}

#[test]
fn a_dumped_layer_loads_and_gives_the_dumped_output() {
    let device = device();
    let folder = tempfile::tempdir().unwrap();
    for (scheme, ep) in
        [(Scheme::PerToken, 1), (Scheme::PerTensor, 1), (Scheme::Block, 1), (Scheme::Block, 2)]
    {
        let (config, layers, routed) = case(&device, scheme, ep, 1);
        let mut run = Run::new(&layers, TOKENS, &routed, 3).unwrap();
        let path = folder.path().join("case.safetensors");
        dump(&path, &mut run, &routed, Default::default()).unwrap();
        let (found, dumped) = load(&device, &config, &std::fs::read(&path).unwrap());
        assert_eq!(found, dumped, "{scheme}, ep {ep}: bit for bit");
        let mean = dumped.iter().map(|x| x.abs()).sum::<f32>() / dumped.len() as f32;
        assert!((0.01..10.0).contains(&mean), "{scheme}: outputs of moderate size, not {mean}");
    }
}

#[test]
fn parts_launch_what_the_layer_launches() {
    let device = device();
    let (_, layers, routed) = case(&device, Scheme::PerToken, 1, 3);
    let mut run = Run::new(&layers, TOKENS, &routed, 3).unwrap();
    let counted = run.count().unwrap();
    let captured = run.capture(3).unwrap();
    let launches = |part| captured.replays(part).unwrap().map(|replays| replays.launches());
    let parts: Vec<Part> = captured.parts().collect();
    assert_eq!(parts[0], Part::Layer);
    let sum: usize = parts[1..].iter().map(|part| launches(*part).unwrap()).sum();
    assert_eq!(launches(Part::Layer), Some(sum));
    for (part, counters) in &counted {
        if device.is_emulated() {
            assert_eq!(launches(*part), Some(counters.launches as usize), "{part}");
        }
    }
    assert_eq!(captured.replays(Part::Gemm1).unwrap().unwrap().len(), 3, "one graph per layer");
}

#[test]
fn replays_are_timed_and_leave_the_output_right() {
    let device = device();
    let (_, layers, routed) = case(&device, Scheme::Block, 1, 2);
    let mut run = Run::new(&layers, TOKENS, &routed, 3).unwrap();
    let before = run.output().unwrap().to_vec(&device.default_stream()).unwrap();
    let mut timer = Timer::new(&device).unwrap();
    assert!(timer.copy_bytes_per_second() > 1e6);
    let captured = run.capture(2).unwrap();
    for part in [Part::Layer, Part::Gemm2] {
        let replays = captured.replays(part).unwrap().unwrap();
        let timing = timer.measure(replays, std::time::Duration::ZERO).unwrap();
        assert!(
            timing.p10_us > 0.0 && timing.p10_us <= timing.median_us && timing.median_us <= timing.p90_us
        );
    }
    drop(captured);
    assert_eq!(run.output().unwrap().to_vec(&device.default_stream()).unwrap(), before);
}

#[test]
fn device_weights_that_do_not_fit_are_refused() {
    let device = device();
    let config = SHAPE.config(Scheme::Block, 1, 1).unwrap();
    let [w13, w2, w13_scale, w2_scale] = fp8_moe::MoeDeviceWeights::lengths(&config);
    assert_eq!([w13, w2], [8 * 2 * 256 * 256, 8 * 256 * 256], "I padded to 256");
    let zeros = |len: usize| device.zeros::<f32>(len).unwrap();
    let weights = |w2: usize, input_scales| {
        let (w13, w2) = (device.zeros::<E4m3>(w13).unwrap(), device.zeros::<E4m3>(w2).unwrap());
        let mut weights = fp8_moe::MoeDeviceWeights::new(w13, zeros(w13_scale), w2, zeros(w2_scale));
        weights.input_scales = input_scales;
        weights
    };
    let refusal = |weights| match MoeLayer::from_device(&device, &config, weights) {
        Ok(_) => panic!("not refused"),
        Err(error) => error.to_string(),
    };
    assert_eq!(
        refusal(weights(w2 - 1, None)),
        format!("MoeLayer::new: w2 = {} elements: must have {w2}", w2 - 1)
    );
    assert!(refusal(weights(w2, Some([1.0, 1.0]))).starts_with("MoeLayer::new: input_scales"));
    assert!(MoeLayer::from_device(&device, &config, weights(w2, None)).is_ok());
}
