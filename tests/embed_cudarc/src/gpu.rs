//! A layer in cudarc's context, on a GPU.

use std::time::Instant;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, DevicePtr, DevicePtrMut};
use fp8_moe::{
    Device, E4m3, ExpertWeights, MoeConfig, MoeLayer, MoeWeights, OutputType, RawForward, RawHidden,
    RawOutput, RawRouting,
};
use half::bf16;

const EXPERTS: usize = 8;
const HIDDEN: usize = 256;
const INTERMEDIATE: usize = 128;
const TOKENS: usize = 9;
/// Forwards between two waits: fewer than the driver's queue has room for.
const AT_A_TIME: usize = 32;

pub fn run() -> Result<(), Box<dyn std::error::Error>> {
    let context = CudaContext::new(0)?;
    let stream = context.new_stream()?;
    let device = Device::from_cudarc(&context)?;
    println!("cudarc: {}; fp8-moe: {device:?}, emulated: {}", context.name()?, device.is_emulated());

    let matrix = |seed: usize| -> Vec<E4m3> {
        (0..HIDDEN * INTERMEDIATE)
            .map(|i| E4m3::from_f32(((i * 7 + seed * 13) as f32 * 0.37).sin()))
            .collect()
    };
    let expert = |n: usize| {
        let scales = vec![0.06_f32; 2];
        let [gate, up, down] = [0, 1, 2].map(|which| matrix(3 * n + which));
        ExpertWeights::new().gate(gate, scales.clone()).up(up, scales.clone()).down(down, scales)
    };
    let config = MoeConfig::builder().experts(EXPERTS).top_k(2).hidden_size(HIDDEN);
    let config = config.intermediate_size(INTERMEDIATE).build()?;
    let router: Vec<bf16> = (0..EXPERTS * HIDDEN).map(|i| bf16::from_f32((i as f32 * 0.11).cos())).collect();
    let weights = MoeWeights::new((0..EXPERTS).map(expert).collect()).router(router);
    let layer = MoeLayer::new(&device, &config, &weights)?;

    // The safe call, in cudarc's memory.
    let states: Vec<u16> =
        (0..TOKENS * HIDDEN).map(|i| bf16::from_f32((i as f32 * 0.23).sin()).to_bits()).collect();
    let hidden = stream.clone_htod(&states)?;
    let mut out = stream.alloc_zeros::<f32>(TOKENS * HIDDEN)?;
    let mut workspace = layer.workspace(TOKENS)?;
    device.cudarc_scope(&stream, |scope| {
        let hidden = scope.view(&hidden)?.cast::<bf16>();
        layer.forward(scope.stream(), hidden, &mut workspace, scope.view_mut(&mut out)?)
    })?;
    let safe: Vec<u32> = stream.clone_dtoh(&out)?.into_iter().map(f32::to_bits).collect();
    assert!(safe.iter().any(|&bits| bits != 0));

    // The raw call, in a graph of cudarc's.
    let bytes = layer.workspace_bytes(TOKENS)?;
    let mut memory = stream.alloc_zeros::<u8>(bytes)?;
    stream.memset_zeros(&mut out)?;
    stream.synchronize()?;
    let call = RawForward {
        stream: stream.cu_stream().cast(),
        tokens: TOKENS,
        hidden: RawHidden::Bf16(hidden.device_ptr(&stream).0),
        routing: RawRouting::Own,
        workspace: memory.device_ptr_mut(&stream).0,
        workspace_bytes: bytes,
        out: RawOutput { address: out.device_ptr_mut(&stream).0, element: OutputType::F32, add: false },
    };
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    // SAFETY: the slices are as long as the call says, of the stream's context, and outlive the graph, which
    // alone uses them until it has been waited for.
    unsafe { layer.forward_raw(call) }?;
    let graph = stream.end_capture(CUgraphInstantiate_flags(0))?.expect("a graph");
    graph.launch()?;
    let raw: Vec<u32> = stream.clone_dtoh(&out)?.into_iter().map(f32::to_bits).collect();
    assert_eq!(raw, safe, "the raw call in cudarc's graph gives the bits of the safe call");
    println!("raw call in a graph of cudarc's: the bits of the safe call, {} values", raw.len());

    // What a forward takes of this thread: all launches enqueued, with a routing that is given.
    let own = device.default_stream();
    let hidden = device.upload(&states.into_iter().map(bf16::from_bits).collect::<Vec<_>>())?;
    let ids = device.upload(&(0..TOKENS * 2).map(|i| (i % EXPERTS) as i32).collect::<Vec<_>>())?;
    let weights = device.upload(&[0.5_f32; TOKENS * 2])?;
    let mut out = device.zeros::<bf16>(TOKENS * HIDDEN)?;
    let mut times = Vec::new();
    for _ in 0..50 {
        for _ in 0..AT_A_TIME {
            let began = Instant::now();
            layer.forward_routed(&own, &hidden, &ids, &weights, &mut workspace, &mut out)?;
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
        own.synchronize()?;
    }
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[(times.len() as f64 * part) as usize];
    println!("host time of a forward: median {:.1} us, p10 {:.1}, p90 {:.1}", at(0.5), at(0.1), at(0.9));
    Ok(())
}
