"""DeepGEMM between the kernels a layer needs: 1x128 activations, 128x128 weight blocks.

Large batches use its contiguous layout with vLLM's scatter and gather; small ones its masked layout, where
every expert owns a fixed number of slots. DeepGEMM compiles each kernel at its first call with nvcc (about 9
seconds).
"""

from __future__ import annotations

import torch

from data import E4M3, E4M3_MAX, GROUP, Case, Weights
from peer import Layer, Peer, Unsupported, largest
from sources import Sources

MASKED_BELOW = 256  # tokens: under this the contiguous layout is mostly padding
ALIGN = 128  # rows: both layouts store whole tiles of at most this height


class DeepGemmLayer(Layer):
    """Buffers and steps that both layouts share."""

    h2: torch.Tensor
    # Of a layer over ranks: the first expert that is here, and by expert its number among those.
    first, expert_map = 0, None

    def __init__(self, case: Case, sources: Sources):
        import deepgemm_kernels

        self.kernels, self.dg, self.utils = deepgemm_kernels, sources.deep_gemm(), sources.dg_utils()
        self.case, dev = case, case.hidden.device
        t, h = case.tokens, case.shape.hidden
        self.xq = torch.empty(t, h, dtype=E4M3, device=dev)
        self.x_scale = torch.empty(t, h // GROUP, dtype=torch.float32, device=dev)
        self.index = torch.empty(t, case.shape.top_k, dtype=torch.int32, device=dev)
        self.counts = torch.empty(case.shape.experts, dtype=torch.int32, device=dev)
        self.out = torch.empty(t, h, dtype=torch.bfloat16, device=dev)
        self.parts = {"layer": self.layer, "gemm1": self.gemm1, "gemm2": self.gemm2}

    def layer(self, w: Weights) -> None:
        torch.ops._C.per_token_group_fp8_quant(self.case.hidden, self.xq, self.x_scale, GROUP, 1e-10,
                                               -E4M3_MAX, E4M3_MAX, False, False, False)
        self.experts(w)

    def experts(self, w: Weights) -> None:
        """All that comes behind the first quantisation."""
        self.dispatch()
        self.gemm1(w)
        self.activate()
        self.gemm2(w)
        self.utils.ep_gather(self.h2.view(-1, self.case.shape.hidden), self.case.ids, self.case.gates,
                             self.index, self.expert_map, self.out)

    def dispatch(self) -> None:
        """Rows and scales to their experts."""
        raise NotImplementedError

    def gemm1(self, w: Weights) -> None:
        raise NotImplementedError

    def activate(self) -> None:
        """SwiGLU and the second quantisation."""
        raise NotImplementedError

    def gemm2(self, w: Weights) -> None:
        raise NotImplementedError

    def forward(self, weights: Weights) -> torch.Tensor:
        self.layer(weights)
        return self.out


class Contiguous(DeepGemmLayer):
    def __init__(self, case: Case, sources: Sources):
        super().__init__(case, sources)
        h, i, dev = case.shape.hidden, case.shape.inter, case.hidden.device
        most = case.rows + min(case.rows, case.shape.experts) * (ALIGN - 1)
        rows = -(-most // ALIGN) * ALIGN
        self.start = torch.empty_like(self.counts)
        self.expert = torch.empty(rows, dtype=torch.int32, device=dev)
        # Padding rows are read by the activation, so they must at least be finite.
        self.xp = torch.zeros(rows, h, dtype=E4M3, device=dev)
        self.xp_scale = torch.ones(rows, h // GROUP, dtype=torch.float32, device=dev)
        self.h1 = torch.zeros(rows, 2 * i, dtype=torch.bfloat16, device=dev)
        self.q = torch.empty(rows, i, dtype=E4M3, device=dev)
        self.q_scale = torch.empty(i // GROUP, rows, dtype=torch.float32, device=dev).t()
        self.h2 = torch.empty(rows, h, dtype=torch.bfloat16, device=dev)

    def dispatch(self) -> None:
        self.kernels.count(self.case.ids, self.counts, self.first)
        self.expert.fill_(-1)  # rows that nobody writes are skipped by the GEMMs
        self.utils.ep_scatter(recv_x=self.xq, recv_x_scale=self.x_scale, recv_topk=self.case.ids,
                              num_recv_tokens_per_expert=self.counts, expert_map=self.expert_map,
                              expert_start_loc=self.start,
                              output_tensor=self.xp, output_tensor_scale=self.xp_scale, m_indices=self.expert,
                              output_index=self.index)

    def gemm1(self, w: Weights) -> None:
        self.dg.m_grouped_fp8_gemm_nt_contiguous((self.xp, self.xp_scale), (w.w13, w.w13_scale), self.h1,
                                                 self.expert, disable_ue8m0_cast=True)

    def activate(self) -> None:
        self.kernels.silu_quantise(self.h1, self.q, self.q_scale)

    def gemm2(self, w: Weights) -> None:
        self.dg.m_grouped_fp8_gemm_nt_contiguous((self.q, self.q_scale), (w.w2, w.w2_scale), self.h2,
                                                 self.expert, disable_ue8m0_cast=True)


class Masked(DeepGemmLayer):
    def __init__(self, case: Case, sources: Sources):
        super().__init__(case, sources)
        e, h, i, dev = case.shape.experts, case.shape.hidden, case.shape.inter, case.hidden.device
        # Every expert could get every token; whole tiles are stored, so a tile must not reach into the next
        # expert.
        slots = -(-case.tokens // ALIGN) * ALIGN
        self.expected = max(1, -(-case.rows // e))

        def columns(cols: int) -> torch.Tensor:
            groups = cols // GROUP
            size, stride = (e, slots, groups), (slots * groups, 1, slots)
            return torch.empty_strided(size, stride, dtype=torch.float32, device=dev)

        self.xp, self.xp_scale = torch.zeros(e, slots, h, dtype=E4M3, device=dev), columns(h)
        self.q, self.q_scale = torch.zeros(e, slots, i, dtype=E4M3, device=dev), columns(i)
        self.h1 = torch.empty(e, slots, 2 * i, dtype=torch.bfloat16, device=dev)
        self.h2 = torch.empty(e, slots, h, dtype=torch.bfloat16, device=dev)

    def dispatch(self) -> None:
        self.kernels.scatter(self.xq, self.x_scale, self.case.ids, self.counts, self.xp, self.xp_scale,
                             self.index)

    def gemm1(self, w: Weights) -> None:
        self.dg.m_grouped_fp8_gemm_nt_masked((self.xp, self.xp_scale), (w.w13, w.w13_scale), self.h1,
                                             self.counts, self.expected, disable_ue8m0_cast=True)

    def activate(self) -> None:
        torch.ops._C.persistent_masked_m_silu_mul_quant(self.h1, self.counts, self.q, self.q_scale, False)

    def gemm2(self, w: Weights) -> None:
        self.dg.m_grouped_fp8_gemm_nt_masked((self.q, self.q_scale), (w.w2, w.w2_scale), self.h2, self.counts,
                                             self.expected, disable_ue8m0_cast=True)


class DeepGemm(Peer):
    def __init__(self, sources: Sources):
        sources.load_vllm_ops()  # for the quantisation kernels
        self.sources = sources

    def build(self, case: Case) -> Layer:
        if case.shape.hidden % 1024 or case.shape.inter % GROUP:
            raise Unsupported("vLLM's gather wants H as a multiple of 1024, the GEMM wants I as one of 128")
        kind = Masked if case.tokens < MASKED_BELOW else Contiguous
        return kind(case, self.sources)

    def check(self, case: Case) -> tuple[float, float]:
        return largest(kind(case, self.sources).distances(case, case.sets[0])
                       for kind in (Masked, Contiguous))
