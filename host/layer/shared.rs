//! A shared expert beside the grouped GEMMs: before them, on the same stream.
//!
//! ```text
//! in bf16      hidden [T, H] --w13--> f32 [T, 2 Is] --activation [* sigmoid(x . w_gate)]--> bf16 [T, Is]
//!                                                                            --w2--> f32 [T, H]
//! quantised    a layer of one expert, whose router is the gate                      --> f32 [T, H]
//! ```
//!
//! The router's kernels are a GEMM in bf16 with f32 sums: they multiply here too. The result is the addend of
//! the sum over experts, or with the order-free reduction what its sums begin with.

use super::OP;
use super::call::{Hidden, Output, Request, Routed};
use super::forward::SharedParts;
use super::step::Call;
use super::weights::shared::Shared;
use crate::error::{Error, Result};
use crate::gpu::buffer::SliceMut;
use crate::gpu::stream::Stream;
use crate::layer::memory::DeviceMemory;
use crate::ops::activation::{ActivationPlain, ActivationShape, activation_plain};
use crate::ops::quantize::{Activations, ActivationsMut};
use crate::ops::router::{AppendShared, RouterLogits, append_shared, router_logits};
use crate::plan::SharedPlan;
use crate::plan::router::RouterLogitsPath;
use half::bf16;

/// `[T, rows] = x [T, columns] * matrix [planes, rows, columns]^T`.
struct Product<'a> {
    x: Activations<'a>,
    matrix: &'a DeviceMemory<bf16>,
    rows: usize,
    columns: usize,
    out: SliceMut<'a, f32>,
}

/// Hidden states that are not quantised.
fn numbers(hidden: Hidden<'_>) -> Result<Activations<'_>> {
    match hidden {
        Hidden::Bf16(hidden) => Ok(Activations::Bf16(hidden)),
        Hidden::F16(hidden) => Ok(Activations::F16(hidden)),
        Hidden::Quantised { .. } => {
            Err(Error::argument(OP, "hidden", hidden.type_name(), "must be bf16 or f16"))
        }
    }
}

impl Call<'_> {
    fn multiply(&self, stream: &Stream, product: Product<'_>) -> Result<()> {
        let Product { x, matrix, rows, columns, out } = product;
        let args = RouterLogits {
            tokens: self.plan.tokens(),
            experts: rows,
            hidden: columns,
            hidden_states: x,
            gate: matrix.as_slice(),
            planes: matrix.len() / (rows * columns),
            bias: None,
            logits: out,
            path: RouterLogitsPath::Auto.resolve(self.plan.tokens(), rows, &self.config.tuning),
        };
        router_logits(stream, args)
    }

    /// Writes what the shared expert beside the others gives to `out` `[T, H]`.
    pub(super) fn shared_beside(
        &self,
        stream: &Stream,
        hidden: Hidden<'_>,
        parts: SharedParts<'_>,
        out: SliceMut<'_, f32>,
    ) -> Result<()> {
        let SharedParts { mut products, mut middle, mut logits, layer } = parts;
        match (&self.plan.shared, &self.weights.shared) {
            (SharedPlan::Layer(plan), Some(Shared::Layer(weights))) => {
                let Some(config) = self.config.shared_layer() else { return Ok(()) };
                let call = Call { config: &config, weights, plan, observe: None };
                let out = Output::Write(ActivationsMut::F32(out));
                let request = Request {
                    hidden,
                    is_weighed: false,
                    routed: None,
                    token_ids: None,
                    workspace: layer,
                    control: None,
                    out,
                    observe: None,
                };
                call.enqueue(stream, request)
            }
            (SharedPlan::Bf16, Some(Shared::Bf16 { w13, w2, gate })) => {
                let x = numbers(hidden)?;
                let (h, tokens) = (self.config.hidden_size, self.plan.tokens());
                let size = self.config.shared.map_or(0, |shared| shared.intermediate_size);
                let out_of_first = products.reborrow();
                self.multiply(
                    stream,
                    Product {
                        x,
                        matrix: w13,
                        rows: self.config.halves() * size,
                        columns: h,
                        out: out_of_first,
                    },
                )?;
                if let Some(gate) = gate {
                    let out = logits.reborrow();
                    self.multiply(stream, Product { x, matrix: gate, rows: 1, columns: h, out })?;
                }
                let args = ActivationPlain {
                    x: products.as_slice(),
                    row_logits: gate.is_some().then(|| logits.as_slice()),
                    gating: self.config.gating(),
                    out: middle.reborrow(),
                };
                activation_plain(stream, ActivationShape { rows: tokens, intermediate: size }, args)?;
                let x = Activations::Bf16(middle.as_slice());
                self.multiply(stream, Product { x, matrix: w2, rows: h, columns: size, out })
            }
            _ => Ok(()),
        }
    }

    /// Writes a routing of the caller's with the slots of a shared expert that is computed as experts; false
    /// where there is none, and nothing is written.
    pub(super) fn append_shared(
        &self,
        stream: &Stream,
        hidden: Hidden<'_>,
        given: Routed<'_>,
        mut logits: SliceMut<'_, f32>,
        topk_ids: SliceMut<'_, i32>,
        topk_weights: SliceMut<'_, f32>,
    ) -> Result<bool> {
        let (Some(Shared::Experts { gate }), shared @ 1..) =
            (&self.weights.shared, self.config.shared_slots())
        else {
            return Ok(false);
        };
        if let Some(gate) = gate {
            let x = numbers(hidden)?;
            let (columns, out) = (self.config.hidden_size, logits.reborrow());
            self.multiply(stream, Product { x, matrix: gate, rows: 1, columns, out })?;
        }
        let args = AppendShared {
            tokens: self.plan.tokens(),
            experts: self.config.experts,
            top_k: self.config.top_k,
            shared,
            given_ids: given.topk_ids,
            given_weights: given.topk_weights,
            gate_logits: gate.is_some().then(|| logits.as_slice()),
            topk_ids,
            topk_weights,
        };
        append_shared(stream, args).map(|()| true)
    }
}
