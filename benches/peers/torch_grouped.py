"""The GEMMs that torch itself has: the grouped one, and dense cuBLASLt as the ceiling for a batch of the same
size.
"""

from __future__ import annotations

import torch

import reference
from data import E4M3, GROUP, Case, Weights
from peer import Layer, Peer, Unsupported

DENSE_ROWS = 1024  # below this a dense GEMM reads one weight matrix, where experts read many: no comparison


class GroupedLayer(Layer):
    """`torch._scaled_grouped_mm` on rows that were sorted by expert beforehand: the GEMMs alone."""

    def __init__(self, case: Case):
        self.case = case
        flat = case.ids.view(-1).long()
        self.order = torch.argsort(flat, stable=True)
        self.ends = torch.bincount(flat, minlength=case.shape.experts).cumsum(0).to(torch.int32)
        xq, scale = reference.quantise_rows(case.hidden)
        source = self.order // case.shape.top_k
        self.xp, self.xp_scale = xq[source].contiguous(), scale[source].contiguous()
        inter = case.shape.inter
        # Timing gemm2 alone needs some input of the right shape; `forward` replaces it.
        self.q, self.q_scale = reference.quantise_rows(torch.randn(case.rows, inter, device=xq.device))
        self.h1 = self.h2 = torch.empty(0)
        self.parts = {"gemm1": self.gemm1, "gemm2": self.gemm2}

    def gemm1(self, w: Weights) -> None:
        self.h1 = self._gemm(self.xp, self.xp_scale, w.w13, w.w13_scale)

    def gemm2(self, w: Weights) -> None:
        self.h2 = self._gemm(self.q, self.q_scale, w.w2, w.w2_scale)

    def _gemm(self, a: torch.Tensor, a_scale: torch.Tensor, b: torch.Tensor,
              b_scale: torch.Tensor) -> torch.Tensor:
        return torch._scaled_grouped_mm(a, b.transpose(-2, -1), a_scale, b_scale, offs=self.ends,
                                        out_dtype=torch.bfloat16, use_fast_accum=True)

    def forward(self, weights: Weights) -> torch.Tensor:
        case, inter = self.case, self.case.shape.inter
        self.gemm1(weights)
        act = torch.nn.functional.silu(self.h1[:, :inter].float()) * self.h1[:, inter:].float()
        self.q, self.q_scale = reference.quantise_rows(act)
        self.gemm2(weights)
        out = torch.zeros(case.tokens, case.shape.hidden, device=act.device)
        weighted = self.h2.float() * case.gates.view(-1)[self.order, None]
        return out.index_add_(0, self.order // case.shape.top_k, weighted)


class TorchGrouped(Peer):
    def build(self, case: Case) -> Layer:
        return GroupedLayer(case)


def dense(a: torch.Tensor, a_scale: torch.Tensor, b: torch.Tensor, b_scale: torch.Tensor,
          scheme: str) -> torch.Tensor:
    """a [M, K] times b [N, K] transposed, through `torch._scaled_mm`; scales as `dense_scales` lays them
    out.
    """
    return torch._scaled_mm(a, b.t(), scale_a=a_scale, scale_b=b_scale, out_dtype=torch.bfloat16,
                            use_fast_accum=scheme == "per-token")


def dense_scales(a_scale: torch.Tensor, b_scale: torch.Tensor,
                 scheme: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Row-wise: [M, 1] and [1, N]. Blocks: A's scales column-major, B's [K/128, N/128] with K padded to four
    blocks.
    """
    if scheme == "per-token":
        return a_scale.view(-1, 1), b_scale.view(1, -1)
    n_blocks, k_blocks = b_scale.shape
    padded = torch.zeros(n_blocks, -(-k_blocks // 4) * 4, device=b_scale.device)
    padded[:, :k_blocks] = b_scale
    return a_scale.t().contiguous().t(), padded[:, :k_blocks].t()


class DenseLayer(Layer):
    """One dense GEMM of all R rows against one expert's matrix: as many operations as the grouped GEMM."""

    def __init__(self, case: Case):
        self.case, self.scheme = case, case.scheme
        source = torch.arange(case.rows, device=case.hidden.device) // case.shape.top_k
        xq, x_scale = reference.quantise(case.hidden, case.scheme)
        self.inputs = {"gemm1": (xq[source].contiguous(), x_scale[source].contiguous())}
        act = torch.randn(case.rows, case.shape.inter, device=xq.device)
        self.inputs["gemm2"] = reference.quantise(act, case.scheme)
        self.out = torch.empty(0)
        self.scales: dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self.parts = {part: lambda w, part=part: self.gemm(part, w) for part in ("gemm1", "gemm2")}

    def gemm(self, part: str, w: Weights) -> None:
        b, b_scale = (w.w13, w.w13_scale) if part == "gemm1" else (w.w2, w.w2_scale)
        a, a_scale = self.inputs[part]
        key = (part, b_scale.data_ptr())
        if key not in self.scales:  # laid out in the first, uncaptured call
            self.scales[key] = dense_scales(a_scale, b_scale[0], self.scheme)
        self.out = dense(a, self.scales[key][0], b[0], self.scales[key][1], self.scheme)

    def forward(self, weights: Weights) -> torch.Tensor:
        self.gemm("gemm1", weights)
        return self.out

    def distance(self, case: Case, weights: Weights) -> float:
        a, a_scale = self.inputs["gemm1"]
        wide = a_scale[:, None] if self.scheme == "per-token" else a_scale.repeat_interleave(GROUP, 1)[:,
            : a.shape[1]]
        b = reference.dequantise(weights.w13[0], weights.w13_scale[0], self.scheme, torch.float64)
        return reference.rel_l2(self.forward(weights), (a.double() * wide.double()) @ b.T)


class CublasLt(Peer):
    def build(self, case: Case) -> Layer:
        if case.model != "check" and case.rows < DENSE_ROWS:
            raise Unsupported(f"fewer than {DENSE_ROWS} rows")
        return DenseLayer(case)

    def check(self, case: Case) -> tuple[float, float]:
        return self.build(case).distances(case, case.sets[0])


def matrix_operands(size: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Random operands for the matrix rate: a, b and their row-wise scales."""
    a, b = (torch.randn(size, size, device=device).mul_(100).clamp_(-448, 448).to(E4M3) for _ in range(2))
    one = torch.full((size,), 1e-4, device=device)
    return (a, b, *dense_scales(one, one, "per-token"))
