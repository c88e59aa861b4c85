//! A Qwen3-MoE block's experts in a candle program, against the output that the checkpoint has stored:
//! `embed_candle CHECKPOINT`. With candle on the CPU the layer is on the device of `FP8_MOE_DEVICE`; with the
//! feature `cuda`, which takes `nvcc` to build, both are on a GPU, in one context.

mod experts;

use std::error::Error;

use candle_core::{D, DType, Device, Tensor};
use experts::Experts;
use fp8_moe::Checkpoint;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: embed_candle CHECKPOINT")?;
    let checkpoint = Checkpoint::open(path, None)?;
    let (candle, device) = devices()?;
    let experts = Experts::new(checkpoint.load_layer(&device, None)?, 64)?;

    let h = checkpoint.config().moe.hidden_size;
    let tensor = |name: &str| -> Result<Tensor, Box<dyn Error>> {
        let numbers = checkpoint.floats(name)?.data;
        let tokens = numbers.len() / h;
        Ok(Tensor::from_vec(numbers, (tokens, h), &candle)?)
    };
    let (hidden, expected) = (tensor("io.hidden_states")?.to_dtype(DType::BF16)?, tensor("io.output")?);
    let out = experts.forward(&hidden)?;

    // The error of FP8 activations, which the checkpoint tells, and one rounding to bf16.
    let noise: f64 = checkpoint.metadata("w8a8_rel_l2").ok_or("no w8a8_rel_l2")?.parse()?;
    let bound = 1.15 * noise + 2.0_f64.powi(-9);
    let error = distance(&out, &expected)?;
    println!("candle on {candle:?}, layer on {device:?}: {:?}, relative error {error:.4}", out.shape());
    assert!(error <= bound, "{error} is more than {bound}");

    // A part of a tensor, of more dimensions, and one that is not contiguous.
    let part = hidden.narrow(0, 5, 12)?;
    let of_part = experts.forward(&part.reshape((3, 4, h))?)?;
    assert_eq!(of_part.dims(), [3, 4, h]);
    // Fewer tokens may be summed in another order, and round otherwise here and there.
    let error = distance(&of_part.reshape((12, h))?, &out.narrow(0, 5, 12)?)?;
    assert!(error < 1e-2, "a part: {error}");
    let turned = part.t()?.contiguous()?.t()?;
    assert!(!turned.is_contiguous());
    assert_eq!(distance(&experts.forward(&turned)?, &of_part.reshape((12, h))?)?, 0.0, "the same bits");

    for refused in [hidden.to_dtype(DType::F32)?, hidden.narrow(D::Minus1, 0, h / 2)?] {
        println!("refused: {}", experts.forward(&refused).expect_err("not what a layer takes"));
    }
    Ok(())
}

/// The norm of the difference over that of `expected`.
fn distance(out: &Tensor, expected: &Tensor) -> candle_core::Result<f64> {
    let (out, expected) = (out.to_dtype(DType::F32)?, expected.to_dtype(DType::F32)?);
    let norm = |x: Tensor| x.sqr()?.sum_all()?.to_scalar::<f32>();
    Ok((f64::from(norm((&out - &expected)?)?) / f64::from(norm(expected)?)).sqrt())
}

/// candle's device, and the layer's.
#[cfg(not(feature = "cuda"))]
fn devices() -> Result<(Device, fp8_moe::Device), Box<dyn Error>> {
    Ok((Device::Cpu, fp8_moe::Device::open(fp8_moe::DeviceSpec::Auto)?))
}

#[cfg(feature = "cuda")]
fn devices() -> Result<(Device, fp8_moe::Device), Box<dyn Error>> {
    let candle = Device::new_cuda(0)?;
    let device = fp8_moe::Device::from_cudarc(candle.as_cuda_device()?.cuda_stream().context())?;
    Ok((candle, device))
}
