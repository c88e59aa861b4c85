"""vLLM's CUTLASS FP8 layer: per-token activations, per-channel weights; the calls of its
`run_cutlass_moe_fp8`.
"""

from __future__ import annotations

import torch

from data import E4M3, Case, Weights
from peer import Layer, Peer
from sources import Sources


class CutlassLayer(Layer):
    def __init__(self, case: Case):
        self.c, self.moe = torch.ops._C, torch.ops._moe_C
        self.case = case
        t, k, rows = case.tokens, case.shape.top_k, case.rows
        e, h, i = case.shape.experts, case.shape.hidden, case.shape.inter
        dev = case.hidden.device

        def new(*size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
            return torch.empty(size, dtype=dtype, device=dev)

        self.xq, self.x_scale = new(t, h, dtype=E4M3), new(t, 1, dtype=torch.float32)
        self.xp, self.h1, self.act = new(rows, h, dtype=E4M3), new(rows, 2 * i), new(rows, i)
        self.xp_scale = new(rows, 1, dtype=torch.float32)
        self.q, self.q_scale = new(rows, i, dtype=E4M3), new(rows, 1, dtype=torch.float32)
        self.h2, self.out = new(rows, h), new(t, h)
        self.first = new(e + 1, dtype=torch.int64)
        self.inverse, self.perm = new(t, k, dtype=torch.int32), new(rows, dtype=torch.int32)
        self.source = torch.arange(rows, dtype=torch.int32, device=dev).view(t, k)
        # The permutation's scratch, allocated once as vLLM does, so that a captured graph holds no allocation
        # for it.
        self.sort_space = new(self.moe.moe_permute_sort_workspace_size(rows, e), dtype=torch.int8)
        self.scratch = [new(t, k, dtype=torch.int32) for _ in range(3)]
        self.sizes1, self.sizes2 = new(e, 3, dtype=torch.int32), new(e, 3, dtype=torch.int32)

        def stride(value: int) -> torch.Tensor:
            return torch.full((e,), value, dtype=torch.int64, device=dev)

        self.ab1, self.c1, self.ab2, self.c2 = stride(h), stride(2 * i), stride(i), stride(h)
        self.parts = {"layer": self.layer, "gemm1": self.gemm1, "gemm2": self.gemm2}

    def layer(self, w: Weights) -> None:
        case, k, e = self.case, self.case.shape.top_k, self.case.shape.experts
        self.c.dynamic_per_token_scaled_fp8_quant(self.xq, case.hidden, self.x_scale, None)
        self.perm.fill_(case.rows)
        self.moe.moe_permute_with_scratch(self.xq, case.ids, self.source, None, e, e, k, self.xp, self.first,
                                          self.inverse, self.perm, self.sort_space, *self.scratch)
        torch.index_select(self.x_scale, 0, self.perm.clamp(max=case.rows - 1) // k, out=self.xp_scale)
        swap_ab = case.rows <= 64  # vLLM's own rule
        self.c.get_cutlass_moe_mm_problem_sizes_from_expert_offsets(
            self.first, self.sizes1, self.sizes2, case.shape.inter, case.shape.hidden, swap_ab)
        self.gemm1(w)
        self.c.silu_and_mul(self.act, self.h1)
        self.c.dynamic_per_token_scaled_fp8_quant(self.q, self.act, self.q_scale, None)
        self.gemm2(w)
        self.moe.moe_unpermute(self.h2, case.gates, self.inverse.view(-1), self.first, k, self.out)

    def gemm1(self, w: Weights) -> None:
        self.c.cutlass_moe_mm(self.h1, self.xp, w.w13, self.xp_scale, w.w13_scale.unsqueeze(-1),
                              self.first[:-1], self.sizes1, self.ab1, self.ab1, self.c1, True, True)

    def gemm2(self, w: Weights) -> None:
        self.c.cutlass_moe_mm(self.h2, self.q, w.w2, self.q_scale, w.w2_scale.unsqueeze(-1), self.first[:-1],
                              self.sizes2, self.ab2, self.ab2, self.c2, True, True)

    def forward(self, weights: Weights) -> torch.Tensor:
        self.layer(weights)
        return self.out


class VllmCutlass(Peer):
    def __init__(self, sources: Sources):
        sources.load_vllm_ops()

    def build(self, case: Case) -> Layer:
        return CutlassLayer(case)
