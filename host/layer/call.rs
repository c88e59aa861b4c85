//! What a forward is asked to do: its inputs, its routing, its memory and its output.
//!
//! ```text
//!   hidden     bf16 | f16 | e4m3 with scales          [T, H]
//!   routing    the layer's own | ids and weights      [T, k] each
//!   token ids  for a router that looks experts up     [T]
//!   out        bf16 | f16 | f32, written | added to   [T, H]
//! ```
//!
//! [`Forward`] names them as slices, [`RawForward`] as addresses. What cannot be combined is refused before
//! anything is launched.

use std::ffi::c_void;

use half::{bf16, f16};

use super::step::{Observer, Step};
use super::workspace::Workspace;
use super::{OP, OutputElement};
use crate::config::{ActivationScales, COPY_BYTES, MoeConfig, Reduction, Routing, SharedRun};
use crate::error::{Error, Result, require};
use crate::fp8::E4m3;
use crate::gpu::buffer::{Buffer, Slice, SliceMut};
use crate::gpu::device::Device;
use crate::gpu::launch::DevicePtr;
use crate::gpu::stream::Stream;
use crate::ops::few_tokens::Control;
use crate::ops::quantize::{Activations, ActivationsMut};
use crate::plan::elements;
use crate::plan::rows::ScaleLayout;
use crate::plan::workspace::ALIGNMENT;

/// Hidden states `[T, H]`.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Hidden<'a> {
    /// bfloat16.
    Bf16(Slice<'a, bf16>),
    /// IEEE binary16.
    F16(Slice<'a, f16>),
    /// Quantised by the layer's scheme, with a given routing that does not weigh the input.
    Quantised {
        /// `[T, H]`, 16-byte aligned.
        values: Slice<'a, E4m3>,
        /// One for each token, or for each token and 128 columns, as [`Quantization`](crate::Quantization)
        /// has it; none where one is given for all.
        scales: Option<Slice<'a, f32>>,
        /// Where `scales` are: `ScaleLayout::row_major` of 1, or of H / 128 rounded up, as a rule.
        layout: ScaleLayout,
    },
}

/// Expert ids `[T, k]`. Those below 0 or past the last expert contribute nothing.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum ExpertIds<'a> {
    /// Signed.
    I32(Slice<'a, i32>),
    /// Unsigned.
    U32(Slice<'a, u32>),
}

/// Token ids `[T]`. A token whose id is not one of the vocabulary has no experts but a shared one.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum TokenIds<'a> {
    /// Signed.
    I32(Slice<'a, i32>),
    /// Unsigned.
    U32(Slice<'a, u32>),
}

/// Where the result `[T, H]` goes.
#[derive(Debug)]
#[non_exhaustive]
pub enum Output<'a> {
    /// Every row is written.
    Write(ActivationsMut<'a>),
    /// The result is added to what is there, as for shared experts and residuals: in f32, with one rounding
    /// at the end; with [`Reduction::OrderFree`](crate::Reduction::OrderFree) and an output in f32, expert by
    /// expert.
    Add(ActivationsMut<'a>),
}

impl<'a> Output<'a> {
    /// Adds to `out` `[T, H]`, of bf16, f16 or f32.
    pub fn add<O: OutputElement>(out: impl Into<SliceMut<'a, O>>) -> Output<'a> {
        Output::Add(O::erase(out.into()))
    }
}

macro_rules! hidden {
    ($($variant:ident: $ty:ty),*) => {$(
        impl<'a> From<Slice<'a, $ty>> for Hidden<'a> {
            fn from(slice: Slice<'a, $ty>) -> Self {
                Hidden::$variant(slice)
            }
        }

        impl<'a> From<&'a Buffer<$ty>> for Hidden<'a> {
            fn from(buffer: &'a Buffer<$ty>) -> Self {
                Hidden::$variant(buffer.as_slice())
            }
        }
    )*};
}

hidden!(Bf16: bf16, F16: f16);

impl<'a, O: OutputElement> From<SliceMut<'a, O>> for Output<'a> {
    fn from(slice: SliceMut<'a, O>) -> Self {
        Output::Write(O::erase(slice))
    }
}

impl<'a, O: OutputElement> From<&'a mut Buffer<O>> for Output<'a> {
    fn from(buffer: &'a mut Buffer<O>) -> Self {
        Output::Write(O::erase(buffer.as_mut_slice()))
    }
}

macro_rules! ids {
    ($($of:ident: $variant:ident, $ty:ty;)*) => {$(
        impl<'a> From<Slice<'a, $ty>> for $of<'a> {
            fn from(slice: Slice<'a, $ty>) -> Self {
                $of::$variant(slice)
            }
        }

        impl<'a> From<&'a Buffer<$ty>> for $of<'a> {
            fn from(buffer: &'a Buffer<$ty>) -> Self {
                $of::$variant(buffer.as_slice())
            }
        }
    )*};
}

ids! {
    ExpertIds: I32, i32;
    ExpertIds: U32, u32;
    TokenIds: I32, i32;
    TokenIds: U32, u32;
}

macro_rules! signed {
    ($($of:ident),*) => {$(
        impl<'a> $of<'a> {
            /// As the kernels read them. An id over 2^31 becomes a negative one, as invalid as it was.
            pub(crate) fn signed(self) -> Slice<'a, i32> {
                match self {
                    $of::I32(ids) => ids,
                    $of::U32(ids) => ids.cast(),
                }
            }
        }
    )*};
}

signed!(ExpertIds, TokenIds);

/// A forward, for [`MoeLayer::forward_with`](crate::MoeLayer::forward_with).
///
/// ```
/// # fn main() -> fp8_moe::Result<()> {
/// # if cfg!(not(feature = "sim")) { return Ok(()); }
/// # use fp8_moe::{Device, DeviceSpec, E4m3, ExpertWeights, MoeConfig, MoeLayer, MoeWeights};
/// # use half::bf16;
/// # let device = Device::open(DeviceSpec::Sim)?;
/// # let config = MoeConfig::builder().hidden_size(64).intermediate_size(64).experts(2).top_k(1).build()?;
/// # let ones = vec![E4m3::from_f32(1.0); 64 * 64];
/// # let expert = ExpertWeights::new().gate(&ones, &[1.0]).up(&ones, &[1.0]).down(&ones, &[1.0]);
/// # let weights = MoeWeights::new(vec![expert; 2]).router(vec![bf16::ONE; 2 * 64]);
/// # let layer = MoeLayer::new(&device, &config, &weights)?;
/// # let stream = device.default_stream();
/// use fp8_moe::{Forward, Output};
/// use half::f16;
///
/// let hidden = device.upload(&[f16::ONE; 3 * 64])?;
/// let (ids, weights) = (device.upload(&[0_u32, 1, 1])?, device.upload(&[1.0_f32; 3])?);
/// let (mut workspace, mut out) = (layer.workspace(3)?, device.zeros::<f32>(3 * 64)?);
/// let forward = Forward::new(&hidden, &mut workspace, &mut out).routed(&ids, &weights);
/// layer.forward_with(&stream, forward)?;
/// let once = out.to_vec(&stream)?;
/// let forward = Forward::new(&hidden, &mut workspace, Output::add(&mut out)).routed(&ids, &weights);
/// layer.forward_with(&stream, forward)?; // out += ..
/// assert_eq!(out.to_vec(&stream)?[0], 2.0 * once[0]);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct Forward<'a> {
    pub(super) hidden: Hidden<'a>,
    pub(super) routed: Option<Routed<'a>>,
    pub(super) token_ids: Option<Slice<'a, i32>>,
    pub(super) workspace: &'a mut Workspace,
    pub(super) out: Output<'a>,
    pub(super) observe: Option<Observer<'a>>,
}

impl<'a> Forward<'a> {
    /// A forward of `hidden` `[T, H]` into `out` `[T, H]`, by the layer's own router.
    pub fn new(
        hidden: impl Into<Hidden<'a>>,
        workspace: &'a mut Workspace,
        out: impl Into<Output<'a>>,
    ) -> Forward<'a> {
        let (hidden, out) = (hidden.into(), out.into());
        Forward { hidden, routed: None, token_ids: None, workspace, out, observe: None }
    }

    /// With a given routing, `[T, k]` each.
    pub fn routed(self, ids: impl Into<ExpertIds<'a>>, weights: impl Into<Slice<'a, f32>>) -> Forward<'a> {
        Forward {
            routed: Some(Routed { topk_ids: ids.into().signed(), topk_weights: weights.into() }),
            ..self
        }
    }

    /// With the ids `[T]` of the tokens, by which the layer's own router looks experts up where its config
    /// has a vocabulary ([`Routing::SqrtSoftplus`]). Other layers do not read them, so that a model may give
    /// them to all.
    pub fn token_ids(self, ids: impl Into<TokenIds<'a>>) -> Forward<'a> {
        Forward { token_ids: Some(ids.into().signed()), ..self }
    }

    /// Telling `observe` of every operation before it is enqueued. The emulated device runs an operation when
    /// it is enqueued, so that there this shows how far the forward is.
    pub fn observed(self, observe: &'a dyn Fn(Step)) -> Forward<'a> {
        Forward { observe: Some(observe), ..self }
    }
}

impl std::fmt::Debug for Forward<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Forward { hidden, routed, token_ids, workspace, out, .. } = self;
        let mut fields = f.debug_struct("Forward");
        fields
            .field("hidden", hidden)
            .field("routed", routed)
            .field("token_ids", token_ids)
            .field("workspace", workspace)
            .field("out", out);
        fields.finish_non_exhaustive()
    }
}

/// A routing: `[T, k]` each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Routed<'a> {
    pub topk_ids: Slice<'a, i32>,
    pub topk_weights: Slice<'a, f32>,
}

/// A forward by addresses, for [`MoeLayer::forward_raw`](crate::MoeLayer::forward_raw): for programs that
/// manage device memory and streams themselves (cudarc, candle, their own).
#[derive(Clone, Copy, Debug)]
#[allow(clippy::exhaustive_structs, reason = "arguments by name: one more is a new version")]
pub struct RawForward {
    /// A `CUstream` of the context of the layer's device, or null for its legacy default stream.
    pub stream: *mut c_void,
    /// T.
    pub tokens: usize,
    /// The hidden states.
    pub hidden: RawHidden,
    /// Who chooses the experts.
    pub routing: RawRouting,
    /// Address of the workspace, a multiple of 256.
    pub workspace: u64,
    /// Its length: at least [`MoeLayer::workspace_bytes`](crate::MoeLayer::workspace_bytes).
    pub workspace_bytes: usize,
    /// Where the result goes.
    pub out: RawOutput,
}

/// As [`Hidden`], by addresses that are multiples of 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RawHidden {
    /// bfloat16 `[T, H]`.
    Bf16(u64),
    /// IEEE binary16 `[T, H]`.
    F16(u64),
    /// e4m3 `[T, H]` with scales.
    Quantised {
        /// e4m3 `[T, H]`.
        values: u64,
        /// f32, as the layer's scheme has them; `None` where one is given for all.
        scales: Option<u64>,
        /// Where they are.
        layout: ScaleLayout,
    },
}

/// Who chooses the experts, by addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RawRouting {
    /// The layer's router.
    Own,
    /// The layer's router, which looks experts up by token id, as [`Forward::token_ids`] has it.
    ByToken {
        /// i32 or u32 `[T]`.
        token_ids: u64,
    },
    /// The caller.
    Given {
        /// i32 or u32 `[T, k]`.
        ids: u64,
        /// f32 `[T, k]`.
        weights: u64,
    },
}

/// The element type of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutputType {
    /// bfloat16.
    Bf16,
    /// IEEE binary16.
    F16,
    /// IEEE binary32.
    F32,
}

/// As [`Output`], by an address that is a multiple of 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "arguments by name: one more is a new version")]
pub struct RawOutput {
    /// Address of `[T, H]`.
    pub address: u64,
    /// Type of its elements.
    pub element: OutputType,
    /// Whether the result is added to what is there.
    pub add: bool,
}

/// A forward with its memory as slices, for both ways to ask.
pub(crate) struct Request<'a> {
    pub hidden: Hidden<'a>,
    pub routed: Option<Routed<'a>>,
    /// `[T]`, for a router that looks experts up.
    pub token_ids: Option<Slice<'a, i32>>,
    pub workspace: SliceMut<'a, u8>,
    /// Words that a launch finds as the last one left them; without them, some of the workspace, which are
    /// cleared first.
    pub control: Option<Control<'a>>,
    pub out: Output<'a>,
    pub observe: Option<Observer<'a>>,
    /// Of quantised hidden states: whether a routing that weighs the input has been applied to them.
    pub is_weighed: bool,
}

impl RawForward {
    /// The slices of the addresses. Misaligned addresses and lengths that do not fit are refused.
    ///
    /// # Safety
    /// The contract of [`MoeLayer::forward_raw`](crate::MoeLayer::forward_raw).
    pub(super) unsafe fn request<'a>(&self, device: &'a Device, config: &MoeConfig) -> Result<Request<'a>> {
        let (rows, h) = (self.tokens, config.hidden_size);
        let matrix = elements(OP, "tokens", &[rows, h])?;
        let slots = elements(OP, "tokens", &[rows, config.top_k])?;
        aligned("workspace", self.workspace, ALIGNMENT as u64)?;
        aligned("out", self.out.address, MATRIX)?;
        // SAFETY: lengths and use are the caller's contract.
        let (hidden, routed, token_ids) = unsafe {
            let hidden = match self.hidden {
                RawHidden::Bf16(address) => Hidden::Bf16(slice(device, "hidden", address, matrix, MATRIX)?),
                RawHidden::F16(address) => Hidden::F16(slice(device, "hidden", address, matrix, MATRIX)?),
                RawHidden::Quantised { values, scales, layout } => {
                    let groups = scale_groups(config);
                    let extent = layout.extent(rows, groups.unwrap_or(0));
                    let of = |address| slice(device, "scales", address, extent, MATRIX);
                    let (values, scales) =
                        (slice(device, "hidden", values, matrix, MATRIX)?, scales.map(of).transpose()?);
                    Hidden::Quantised { values, scales, layout }
                }
            };
            let routed = match self.routing {
                RawRouting::Own | RawRouting::ByToken { .. } => None,
                RawRouting::Given { ids, weights } => Some(Routed {
                    topk_ids: slice(device, "topk_ids", ids, slots, 4)?,
                    topk_weights: slice(device, "topk_weights", weights, slots, 4)?,
                }),
            };
            let token_ids = match self.routing {
                RawRouting::ByToken { token_ids } => Some(slice(device, "token_ids", token_ids, rows, 4)?),
                RawRouting::Own | RawRouting::Given { .. } => None,
            };
            (hidden, routed, token_ids)
        };
        let RawOutput { address, element, add } = self.out;
        // SAFETY: as above.
        let (out, workspace) = unsafe {
            let out = match element {
                OutputType::Bf16 => {
                    ActivationsMut::Bf16(SliceMut::from_raw(device, DevicePtr::from_raw(address), matrix))
                }
                OutputType::F16 => {
                    ActivationsMut::F16(SliceMut::from_raw(device, DevicePtr::from_raw(address), matrix))
                }
                OutputType::F32 => {
                    ActivationsMut::F32(SliceMut::from_raw(device, DevicePtr::from_raw(address), matrix))
                }
            };
            let workspace =
                SliceMut::from_raw(device, DevicePtr::from_raw(self.workspace), self.workspace_bytes);
            (out, workspace)
        };
        let out = if add { Output::Add(out) } else { Output::Write(out) };
        let control = None;
        Ok(Request { hidden, routed, token_ids, workspace, control, out, observe: None, is_weighed: false })
    }
}

/// What addresses of matrices are multiples of.
const MATRIX: u64 = COPY_BYTES as u64;

fn aligned(name: &str, address: u64, alignment: u64) -> Result<()> {
    require(address.is_multiple_of(alignment), OP, name, format_args!("{address:#x}"), || {
        format!("must be a multiple of {alignment}")
    })
}

/// # Safety
/// As [`Slice::from_raw`].
unsafe fn slice<'a, T: bytemuck::Pod>(
    device: &'a Device,
    name: &str,
    address: u64,
    len: usize,
    alignment: u64,
) -> Result<Slice<'a, T>> {
    aligned(name, address, alignment)?;
    // SAFETY: the caller's contract.
    Ok(unsafe { Slice::from_raw(device, DevicePtr::from_raw(address), len) })
}

/// Scales of a quantised token; none where one is given for all.
fn scale_groups(config: &MoeConfig) -> Option<usize> {
    let scales = config.first_scales();
    (scales != ActivationScales::Static).then(|| scales.of_row(config.hidden_size))
}

impl Hidden<'_> {
    /// Elements.
    fn len(&self) -> usize {
        match self {
            Hidden::Bf16(slice) => slice.len(),
            Hidden::F16(slice) => slice.len(),
            Hidden::Quantised { values, .. } => values.len(),
        }
    }

    /// What decides kernels: the type.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Hidden::Bf16(_) => "bf16",
            Hidden::F16(_) => "f16",
            Hidden::Quantised { .. } => "e4m3",
        }
    }
}

impl Request<'_> {
    /// The same, for a call that takes it by value.
    pub fn reborrow(&mut self) -> Request<'_> {
        let Request { hidden, routed, token_ids, workspace, control, out, observe, is_weighed } = self;
        let out = match out {
            Output::Write(out) => Output::Write(out.reborrow()),
            Output::Add(out) => Output::Add(out.reborrow()),
        };
        let (workspace, control) = (workspace.reborrow(), control.as_mut().map(Control::reborrow));
        let (hidden, routed, token_ids) = (*hidden, *routed, *token_ids);
        let (observe, is_weighed) = (*observe, *is_weighed);
        Request { hidden, routed, token_ids, workspace, control, out, observe, is_weighed }
    }

    /// Whether hidden states and output are aligned for the layer in one launch, as matrices are.
    pub fn is_aligned(&self) -> bool {
        let hidden = match &self.hidden {
            Hidden::Bf16(hidden) => hidden.ptr().raw(),
            Hidden::F16(hidden) => hidden.ptr().raw(),
            Hidden::Quantised { values, .. } => values.ptr().raw(),
        };
        let (Output::Write(out) | Output::Add(out)) = &self.out;
        let out = match out {
            ActivationsMut::Bf16(out) => out.ptr().raw(),
            ActivationsMut::F16(out) => out.ptr().raw(),
            ActivationsMut::F32(out) => out.ptr().raw(),
        };
        (hidden | out).is_multiple_of(MATRIX)
    }

    /// Refuses arguments that do not fit `config` or each other; returns the number of tokens.
    pub fn check(&self, config: &MoeConfig, stream: &Stream) -> Result<usize> {
        let h = config.hidden_size;
        let len = self.hidden.len();
        require(len.is_multiple_of(h), OP, "hidden", format_args!("{len} elements"), || {
            format!("must be a multiple of {h}, the hidden size")
        })?;
        let tokens = len / h;
        match self.hidden {
            Hidden::Bf16(hidden) => Activations::Bf16(hidden).check(OP, "hidden", len, stream)?,
            Hidden::F16(hidden) => Activations::F16(hidden).check(OP, "hidden", len, stream)?,
            Hidden::Quantised { values, scales, layout } => {
                values.check(OP, "hidden", len, stream)?;
                aligned("hidden", values.ptr().raw(), MATRIX)?;
                let weighs = config.routing == Routing::SigmoidInput && !self.is_weighed;
                require(!weighs, OP, "hidden", "e4m3", || {
                    "must not be quantised where the routing weighs the input".into()
                })?;
                check_given_scales(config, tokens, scales, layout, stream)?;
            }
        }
        let (Output::Write(out) | Output::Add(out)) = &self.out;
        out.check(OP, "out", len, stream)?;
        self.check_shared(config)?;
        match &self.routed {
            Some(Routed { topk_ids, topk_weights }) => {
                let slots = elements(OP, "topk_ids", &[tokens, config.top_k])?;
                topk_ids.check(OP, "topk_ids", slots, stream)?;
                topk_weights.check(OP, "topk_weights", slots, stream)?;
            }
            None => {
                let can_route = !matches!(self.hidden, Hidden::Quantised { .. });
                require(can_route, OP, "hidden", self.hidden.type_name(), || {
                    "must be bf16 or f16 for the layer's own router; quantised ones take a given routing"
                        .into()
                })?;
                if config.vocabulary().is_some() && self.token_ids.is_none() {
                    return Err(no_token_ids());
                }
            }
        }
        if let Some(token_ids) = &self.token_ids {
            token_ids.check(OP, "token_ids", tokens, stream)?;
        }
        Ok(tokens)
    }

    /// Refuses what a shared expert beside the others, or its gate, cannot have.
    fn check_shared(&self, config: &MoeConfig) -> Result<()> {
        let is_beside = config.shared_run() == SharedRun::Beside;
        let is_quantised = matches!(self.hidden, Hidden::Quantised { .. });
        let needs_numbers = is_beside || config.routes_shared();
        require(!is_quantised || !needs_numbers, OP, "hidden", self.hidden.type_name(), || {
            "must be bf16 or f16 for a shared expert beside the others, or one with a gate".into()
        })?;
        // The sums begin with what it gives, and they are the output.
        let in_place = config.reduction == Reduction::OrderFree
            && matches!(self.out, Output::Add(ActivationsMut::F32(_)));
        require(!in_place || !is_beside, OP, "out", "Add to f32", || {
            "must be Write with the order-free reduction and a shared expert beside the others".into()
        })
    }
}

/// The error about a router that looks experts up by token id, and has no ids.
pub(super) fn no_token_ids() -> Error {
    let rule = "must be given: this layer's router looks experts up by token id; or give a routing";
    Error::argument(OP, "token_ids", "None", rule)
}

/// Refuses scales of quantised hidden states that are not those of the layer's scheme.
fn check_given_scales(
    config: &MoeConfig,
    tokens: usize,
    scales: Option<Slice<'_, f32>>,
    layout: ScaleLayout,
    stream: &Stream,
) -> Result<()> {
    match (scale_groups(config), scales) {
        (None, None) => Ok(()),
        (Some(groups), Some(scales)) => scales.check(OP, "scales", layout.extent(tokens, groups), stream),
        (Some(_), None) => {
            Err(Error::argument(OP, "scales", "None", format!("must be given for {}", config.quantization)))
        }
        (None, Some(_)) => {
            let rule = format!("must be None for {}: the layer has it", config.quantization);
            Err(Error::argument(OP, "scales", "Some", rule))
        }
    }
}
