//! The layer beside cudarc, over this library in the place of NVIDIA's: devices of cudarc's contexts,
//! forwards on its streams and in its memory, and captures of its own.
//!
//! Each test runs in a child process, whose `libcuda.so.1` is this library.

use std::process::Command;
use std::sync::Arc;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut};
use fp8_moe::{
    Device, E4m3, Error, ExpertWeights, MoeConfig, MoeLayer, MoeWeights, OutputType, Quantization,
    RawForward, RawHidden, RawOutput, RawRouting, Result, Slice,
};
use half::bf16;

/// Runs the test of this name in a process that finds this library as the driver, and says what it wrote to
/// standard error. In that process it runs `work`.
fn in_a_child(name: &str, work: impl FnOnce() -> Result<()>) -> Option<String> {
    if std::env::var_os("LAYER_CHILD").is_some() {
        work().unwrap();
        println!("> the child is done");
        return None;
    }
    let program = std::env::current_exe().unwrap();
    let library = program.with_file_name("liblibcuda_sim.so");
    if !library.exists() {
        // Cargo, which sets this variable, has also built the library.
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_none(), "{library:?} is not where cargo builds it");
        eprintln!("skipped: liblibcuda_sim.so is not beside this program");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::os::unix::fs::symlink(&library, folder.path().join(name)).unwrap();
    }
    let output = Command::new(program)
        .args(["--exact", name, "--nocapture"])
        .env("LAYER_CHILD", "1")
        .env("FP8_MOE_SIM_ARCH", "90")
        .env("LD_LIBRARY_PATH", folder.path())
        .output()
        .unwrap();
    let (text, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success() && text.contains("> the child is done"), "{text}{errors}");
    Some(errors)
}

const TOKENS: usize = 5;
const HIDDEN: usize = 64;
const INTERMEDIATE: usize = 32;
const EXPERTS: usize = 4;

/// Numbers that look random, in -1..1.
fn numbers(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// A layer with its own router.
fn layer(device: &Device) -> Result<MoeLayer> {
    let config = MoeConfig::builder()
        .experts(EXPERTS)
        .top_k(2)
        .hidden_size(HIDDEN)
        .intermediate_size(INTERMEDIATE)
        .quantization(Quantization::Block128)
        .build()?;
    let matrix = |seed| -> Vec<E4m3> {
        numbers(seed, HIDDEN * INTERMEDIATE).into_iter().map(|x| E4m3::from_f32(x * 0.3)).collect()
    };
    let expert = |seed| {
        let matrix = |which| matrix(3 * seed + which);
        ExpertWeights::new().gate(matrix(0), &[1.0]).up(matrix(1), &[1.0]).down(matrix(2), &[1.0])
    };
    let router: Vec<bf16> = numbers(99, EXPERTS * HIDDEN).into_iter().map(bf16::from_f32).collect();
    let weights = MoeWeights::new((0..EXPERTS as u32).map(expert).collect()).router(router);
    MoeLayer::new(device, &config, &weights)
}

fn hidden() -> Vec<bf16> {
    numbers(7, TOKENS * HIDDEN).into_iter().map(bf16::from_f32).collect()
}

/// As cudarc has them without its feature `f16`.
fn states(states: &[bf16]) -> Vec<u16> {
    states.iter().map(|x| x.to_bits()).collect()
}

/// What the layer makes of [`hidden`] with this library alone.
fn expected(layer: &MoeLayer) -> Result<Vec<f32>> {
    let device = layer.device();
    let (stream, hidden) = (device.default_stream(), device.upload(&hidden())?);
    let (mut workspace, mut out) = (layer.workspace(TOKENS)?, device.zeros::<f32>(hidden.len())?);
    layer.forward(&stream, &hidden, &mut workspace, &mut out)?;
    out.to_vec(&stream)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// The refusal's text.
fn refusal<T>(result: Result<T>) -> String {
    match result {
        Err(error @ Error::Argument { .. }) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("was accepted"),
    }
}

#[test]
fn a_forward_in_cudarcs_memory() {
    in_a_child("a_forward_in_cudarcs_memory", || {
        let context = CudaContext::new(0)?;
        let device = Device::from_cudarc(&context)?;
        assert!(device.is_emulated(), "{device:?}");
        let layer = layer(&device)?;
        let expected = expected(&layer)?;
        let mut workspace = layer.workspace(TOKENS)?;
        // The legacy default stream, and two others.
        for stream in [context.default_stream(), context.new_stream()?, context.new_stream()?] {
            let all = stream.clone_htod(&states(&[hidden(), hidden()].concat()))?;
            let mut out = stream.alloc_zeros::<f32>(2 * expected.len())?;
            let half = TOKENS * HIDDEN;
            device.cudarc_scope(&stream, |scope| {
                let hidden: Slice<'_, bf16> = scope.view(all.slice(half..))?.cast();
                let out = scope.view_mut(out.slice_mut(half..))?;
                layer.forward(scope.stream(), hidden, &mut workspace, out)
            })?;
            let out = stream.clone_dtoh(&out)?;
            assert!(out[..half].iter().all(|&x| x == 0.0));
            assert_eq!(bits(&out[half..]), bits(&expected));
        }

        // Work of this library on a stream of its own, between cudarc's.
        let stream = context.new_stream()?;
        let own = fp8_moe::Stream::new(&device)?;
        let given = stream.clone_htod(&states(&hidden()))?;
        let mut out = stream.alloc_zeros::<f32>(expected.len())?;
        device.cudarc_scope(&stream, |scope| {
            layer.forward(&own, scope.view(&given)?.cast::<bf16>(), &mut workspace, scope.view_mut(&mut out)?)
        })?;
        assert_eq!(bits(&stream.clone_dtoh(&out)?), bits(&expected));

        let again = Device::from_cudarc(&context)?;
        assert!(again.same_as(&device) && again.loaded_kernels() == device.loaded_kernels());
        // The device keeps what it is made of.
        drop((stream, given, out, context, again));
        assert_eq!(bits(&self::expected(&layer)?), bits(&expected));
        Ok(())
    });
}

#[test]
fn what_cudarc_captures_is_refused() {
    in_a_child("what_cudarc_captures_is_refused", || {
        let context = CudaContext::new(0)?;
        let (device, stream) = (Device::from_cudarc(&context)?, context.new_stream()?);
        let layer = layer(&device)?;
        let given = device.upload(&hidden())?;
        let (mut workspace, mut out) = (layer.workspace(TOKENS)?, device.zeros::<f32>(given.len())?);
        layer.forward(&device.default_stream(), &given, &mut workspace, &mut out)?;

        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        stream.begin_capture(mode)?;
        let refused = refusal(device.cudarc_scope(&stream, |_| Ok(())));
        assert!(refused.contains("must not be one that is being captured"), "{refused}");
        stream.end_capture(CUgraphInstantiate_flags(0))?;

        let refused = device.cudarc_scope(&stream, |scope| {
            stream.begin_capture(mode)?;
            layer.forward(scope.stream(), &given, &mut workspace, &mut out)
        });
        let refused = refusal(refused);
        assert!(refused.contains("must not be captured while it is lent"), "{refused}");
        stream.end_capture(CUgraphInstantiate_flags(0))?;

        let states = stream.clone_htod(&states(&hidden()))?;
        let refused = refusal(device.cudarc_scope(&stream, |scope| {
            let states = scope.view(&states)?.cast::<bf16>();
            scope.stream().capture(|stream| layer.forward(stream, states, &mut workspace, &mut out))
        }));
        assert!(refused.contains("must not be captured: the graph would outlive the loan"), "{refused}");

        let per_thread = refusal(device.cudarc_scope(&context.per_thread_stream(), |_| Ok(())));
        assert!(per_thread.contains("must not be the per-thread stream"), "{per_thread}");
        Ok(())
    });
}

/// The forward by addresses on `stream`, in memory of cudarc's.
fn raw(
    layer: &MoeLayer,
    stream: &Arc<CudaStream>,
    hidden: u64,
    workspace: (u64, usize),
    out: u64,
) -> RawForward {
    assert_eq!(layer.config().hidden_size, HIDDEN);
    RawForward {
        stream: stream.cu_stream().cast(),
        tokens: TOKENS,
        hidden: RawHidden::Bf16(hidden),
        routing: RawRouting::Own,
        workspace: workspace.0,
        workspace_bytes: workspace.1,
        out: RawOutput { address: out, element: OutputType::F32, add: false },
    }
}

#[test]
fn a_raw_forward_in_cudarcs_graph() {
    in_a_child("a_raw_forward_in_cudarcs_graph", || {
        let context = CudaContext::new(0)?;
        let (device, stream) = (Device::from_cudarc(&context)?, context.new_stream()?);
        let layer = layer(&device)?;
        let expected = expected(&layer)?;
        let bytes = layer.workspace_bytes(TOKENS)?;
        let given = stream.clone_htod(&states(&hidden()))?;
        let mut workspace = stream.alloc_zeros::<u8>(bytes)?;
        let mut out = stream.alloc_zeros::<f32>(expected.len())?;
        stream.synchronize()?;
        let call = {
            let (hidden, (workspace, _), (out, _)) =
                (given.device_ptr(&stream).0, workspace.device_ptr_mut(&stream), out.device_ptr_mut(&stream));
            raw(&layer, &stream, hidden, (workspace, bytes), out)
        };
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        // SAFETY: the slices are as long as the call says, of the stream's context, and outlive the graph,
        // which alone uses them until it has run.
        unsafe { layer.forward_raw(call) }?;
        let graph = stream.end_capture(CUgraphInstantiate_flags(0))?.expect("a graph");
        assert!(stream.clone_dtoh(&out)?.iter().all(|&x| x == 0.0), "nothing has run yet");
        for _ in 0..2 {
            stream.memset_zeros(&mut out)?;
            graph.launch()?;
            assert_eq!(bits(&stream.clone_dtoh(&out)?), bits(&expected));
        }
        Ok(())
    });
}

#[test]
fn the_callers_context_stays_current() {
    in_a_child("the_callers_context_stays_current", || {
        let context = CudaContext::new(0)?;
        let stream = context.new_stream()?;
        let given = stream.clone_htod(&states(&hidden()))?;
        let mut out = stream.alloc_zeros::<f32>(TOKENS * HIDDEN)?;
        let driver = cust::Driver::cuda().expect("a driver");
        let other = cust::Context::create(cust::Device::get(driver, 0)?)?;
        let _current = other.enter()?;
        let is_current = |when: &str| assert_eq!(driver.current_context(), Ok(other.as_raw()), "{when}");
        is_current("before");
        let device = Device::from_cudarc(&context)?;
        is_current("after from_cudarc");
        let layer = layer(&device)?;
        is_current("after an upload");
        let mut workspace = layer.workspace(TOKENS)?;
        device.cudarc_scope(&stream, |scope| {
            layer.forward(
                scope.stream(),
                scope.view(&given)?.cast::<bf16>(),
                &mut workspace,
                scope.view_mut(&mut out)?,
            )
        })?;
        is_current("after a forward");
        drop((workspace, layer, device));
        is_current("after all is dropped");
        Ok(())
    });
}

/// The error of the public call names the kernel, the thread and the line of its source, and the context is
/// lost, as on a GPU.
#[test]
fn a_fault_is_told_by_the_call_that_sees_it() {
    let errors = in_a_child("a_fault_is_told_by_the_call_that_sees_it", || {
        let context = CudaContext::new(0)?;
        let (device, stream) = (Device::from_cudarc(&context)?, context.new_stream()?);
        let layer = layer(&device)?;
        let mut workspace = layer.workspace(TOKENS)?;
        let workspace = workspace.memory().ptr().raw();
        let out = device.zeros::<f32>(TOKENS * HIDDEN)?;
        let bytes = layer.workspace_bytes(TOKENS)?;
        let call = raw(&layer, &stream, 0x10, (workspace, bytes), out.ptr().raw());
        // SAFETY: none: no hidden states are there. The emulated device reports it and touches nothing.
        let fault = unsafe { layer.forward_raw(call) }.and_then(|()| device.default_stream().synchronize());
        let Err(Error::Fault(text)) = fault else { panic!("{fault:?}") };
        for part in ["in kernel router", "thread (", "PTX line", ".rs:"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(matches!(device.upload(&[1_u8]), Err(Error::Fault(_))), "the context is lost");
        Ok(())
    });
    if let Some(errors) = errors {
        assert!(errors.contains("ptx_sim: out-of-bounds access in kernel router"), "{errors}");
    }
}
