//! The experts of a Qwen3-MoE block as a candle op: hidden states bf16 `[.., H]` to what the block adds to
//! the residual, bf16 `[.., H]`. The layer's own router chooses.
//!
//! ```text
//!   candle's tensor is on    what happens
//!   the CPU                  a copy to the layer's device, which may be the emulated one, and one back
//!   a GPU (feature `cuda`)   candle's memory, on candle's stream: no copies, no waiting on the host
//! ```

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape, Tensor, bail};
use fp8_moe::{MoeLayer, Workspace};
use half::bf16;

/// A layer, and a workspace for its forwards.
pub struct Experts {
    layer: MoeLayer,
    workspace: Mutex<Workspace>,
}

impl Experts {
    /// The experts of `layer`, for up to `tokens` tokens at a time. For tensors on a GPU its device is
    /// `fp8_moe::Device::from_cudarc` of candle's context.
    pub fn new(layer: MoeLayer, tokens: usize) -> fp8_moe::Result<Experts> {
        let workspace = Mutex::new(layer.workspace(tokens)?);
        Ok(Experts { layer, workspace })
    }

    /// What the experts make of `hidden`, bf16 `[.., H]`.
    pub fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let (columns, h) = (hidden.dim(candle_core::D::Minus1)?, self.layer.config().hidden_size);
        if columns != h {
            bail!("fp8-moe: hidden states have {columns} columns: must be {h}");
        }
        hidden.contiguous()?.apply_op1_no_bwd(self)
    }

    fn on_copies(&self, hidden: &[bf16]) -> fp8_moe::Result<Vec<bf16>> {
        let device = self.layer.device();
        let (hidden, mut out) = (device.upload(hidden)?, device.uninit::<bf16>(hidden.len())?);
        let stream = device.default_stream();
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        self.layer.forward(&stream, &hidden, &mut workspace, &mut out)?;
        out.to_vec(&stream)
    }
}

/// Where the elements of a tensor are in its storage.
fn range(layout: &Layout) -> Result<std::ops::Range<usize>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("fp8-moe: hidden states are not contiguous")
    };
    Ok(start..end)
}

impl CustomOp1 for Experts {
    fn name(&self) -> &'static str {
        "fp8-moe"
    }

    fn cpu_fwd(&self, hidden: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let CpuStorage::BF16(hidden) = hidden else { bail!("fp8-moe: hidden states must be bf16") };
        let out = self.on_copies(&hidden[range(layout)?]).map_err(Error::wrap)?;
        Ok((CpuStorage::BF16(out), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        hidden: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::CudaStorage;
        use candle_core::backend::BackendStorage;

        let candle = hidden.device().clone();
        let stream = candle.cuda_stream();
        let hidden = hidden.as_cuda_slice::<bf16>()?.slice(range(layout)?);
        // SAFETY: the forward writes every element.
        let mut out = unsafe { candle.alloc::<bf16>(layout.shape().elem_count()) }?;
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let forward = self.layer.device().cudarc_scope(&stream, |scope| {
            let (hidden, out) = (scope.view(hidden)?, scope.view_mut(&mut out)?);
            self.layer.forward(scope.stream(), hidden, &mut workspace, out)
        });
        forward.map_err(Error::wrap)?;
        Ok((CudaStorage::wrap_cuda_slice(out, candle), layout.shape().clone()))
    }
}
