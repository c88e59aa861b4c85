"""vLLM's Triton fused-MoE kernel, with the calls of its `TritonExperts`: both quantisation schemes.

The configuration that vLLM tuned for the shape, where there is one, and several others are tried, on each
GEMM apart, as SGLang tunes them, and the fastest pair of the same tile height is kept: the height decides how
rows are sorted. (Tuned ones alone understate the kernel: most were chosen before its operands were swapped
for few rows.)
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any, Callable

import torch

import timing
from data import E4M3, E4M3_MAX, GROUP, Case, Weights
from peer import Layer, Peer
from sources import Sources

Config = dict[str, Any]


class TritonLayer(Layer):
    def __init__(self, case: Case, kernel: Any, config: Config, second: Config | None = None):
        """`config` is of the first GEMM, and unless there is another of the second."""
        import triton.language as tl

        self.second = second or config
        self.configuration = [config, self.second]

        self.c, self.moe, self.invoke, self.config = torch.ops._C, torch.ops._moe_C, kernel, config
        self.case, self.block, self.compute_type = case, case.scheme == "block", tl.bfloat16
        t, k, rows = case.tokens, case.shape.top_k, case.rows
        h, i, dev = case.shape.hidden, case.shape.inter, case.hidden.device

        def new(*size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
            return torch.empty(size, dtype=dtype, device=dev)

        self.xq, self.q = new(t, h, dtype=E4M3), new(rows, i, dtype=E4M3)
        self.x_scale = new(t, -(-h // GROUP) if self.block else 1, dtype=torch.float32)
        self.q_scale = new(rows, -(-i // GROUP) if self.block else 1, dtype=torch.float32)
        self.h1, self.act, self.h2, self.out = new(t, k, 2 * i), new(rows, i), new(t, k, h), new(t, h)
        self.sorted_ids: torch.Tensor | None = None
        self.expert_ids = case.ids.view(-1)
        self.padded = torch.full((1,), rows * config["BLOCK_SIZE_M"], dtype=torch.int32, device=dev)
        # vLLM's own rule: when few experts are hit, each row gets a block of its own and nothing is sorted.
        self.aligned = rows * 4 > case.full.experts
        if self.aligned:
            block_m, experts = config["BLOCK_SIZE_M"], case.full.experts
            most = rows + experts * (block_m - 1)
            most = min(rows * block_m, most) if rows < experts else most
            self.sorted_ids = new(most, dtype=torch.int32)
            self.expert_ids = new(-(-most // block_m), dtype=torch.int32)
        self.parts = {"layer": self.layer, "gemm1": self.gemm1, "gemm2": self.gemm2}

    def layer(self, w: Weights) -> None:
        self.quantise(self.case.hidden, self.xq, self.x_scale)
        self.experts(w)

    def assign(self) -> None:
        """Rows to blocks of one expert each."""
        case, height = self.case, self.config["BLOCK_SIZE_M"]
        if self.aligned:
            self.moe.moe_align_block_size(case.ids, case.full.experts, height, self.sorted_ids,
                                          self.expert_ids, self.padded, None)
        else:
            self.padded.fill_(case.rows * height)

    def experts(self, w: Weights) -> None:
        """All that comes behind the first quantisation."""
        i = self.case.shape.inter
        self.assign()
        self.gemm1(w)
        h1 = self.h1.view(-1, 2 * i)
        if self.block:
            self.c.silu_and_mul_per_block_quant(self.q, h1, self.q_scale, GROUP, None, False)
        else:
            self.c.silu_and_mul(self.act, h1)
            self.quantise(self.act, self.q, self.q_scale)
        self.gemm2(w)
        self.moe.moe_sum(self.h2, self.out)

    def quantise(self, x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> None:
        if self.block:
            self.c.per_token_group_fp8_quant(x, q, scale, GROUP, 1e-10, -E4M3_MAX, E4M3_MAX, False, False,
                                             False)
        else:
            self.c.dynamic_per_token_scaled_fp8_quant(q, x, scale, None)

    def gemm1(self, w: Weights) -> None:
        self._gemm(self.xq, self.x_scale, w.w13, w.w13_scale, self.h1, None, self.case.shape.top_k,
                   self.config)

    def gemm2(self, w: Weights) -> None:
        self._gemm(self.q, self.q_scale, w.w2, w.w2_scale, self.h2, self.case.gates, 1, self.second)

    def _gemm(self, a: torch.Tensor, a_scale: torch.Tensor, b: torch.Tensor, b_scale: torch.Tensor,
              c: torch.Tensor, gates: torch.Tensor | None, top_k: int, config: Config) -> None:
        self.invoke(a, b, c, a_scale, b_scale, gates, self.sorted_ids, self.expert_ids, self.padded,
                    gates is not None,
                    top_k, config, compute_type=self.compute_type, use_fp8_w8a8=True, use_int8_w8a8=False,
                    use_int8_w8a16=False, use_int4_w4a16=False, per_channel_quant=not self.block,
                    block_shape=[GROUP, GROUP] if self.block else None)

    def forward(self, weights: Weights) -> torch.Tensor:
        self.layer(weights)
        return self.out


def config(m: int, n: int, k: int, group: int, warps: int, stages: int) -> Config:
    return {"BLOCK_SIZE_M": m, "BLOCK_SIZE_N": n, "BLOCK_SIZE_K": k, "GROUP_SIZE_M": group,
            "num_warps": warps, "num_stages": stages}


def candidates(case: Case, count: int) -> list[Config]:
    """Configurations to try, the likeliest first: tile height follows the rows that an expert gets."""
    t, per_expert = case.tokens, case.rows / case.full.experts
    if t <= 64 or per_expert <= 16:
        found = [config(16, 64, 128, 1, 4, 4), config(16, 128, 128, 1, 4, 4), config(16, 128, 128, 1, 4, 3),
                 config(16, 64, 256, 1, 4, 3), config(16, 64, 128, 32, 4, 5), config(32, 64, 128, 1, 4, 4),
                 config(16, 128, 256, 1, 4, 3), config(16, 32, 256, 1, 4, 4), config(16, 32, 128, 1, 4, 5),
                 config(16, 128, 128, 1, 8, 4), config(16, 256, 128, 1, 8, 3), config(16, 128, 128, 32, 4, 5)]
    elif per_expert <= 64:
        found = [config(64, 128, 128, 1, 4, 3), config(64, 128, 128, 16, 4, 4),
                 config(32, 128, 128, 16, 4, 4),
                 config(64, 256, 128, 16, 8, 3), config(64, 64, 128, 16, 4, 4),
                 config(128, 128, 128, 16, 8, 3),
                 config(64, 128, 128, 1, 4, 4), config(32, 128, 128, 1, 4, 4), config(32, 64, 128, 16, 4, 5),
                 config(64, 128, 128, 16, 8, 4), config(64, 64, 256, 16, 4, 3),
                 config(32, 128, 256, 16, 4, 3)]
    else:
        found = [config(128, 128, 128, 16, 8, 3), config(128, 256, 128, 16, 8, 3),
                 config(64, 128, 128, 16, 4, 4),
                 config(64, 256, 128, 32, 8, 4), config(128, 128, 128, 32, 4, 4),
                 config(256, 128, 128, 16, 8, 3),
                 config(128, 128, 128, 1, 8, 4), config(128, 256, 128, 32, 8, 4),
                 config(128, 64, 128, 16, 4, 4),
                 config(64, 128, 128, 32, 4, 4), config(128, 128, 128, 64, 8, 4),
                 config(64, 256, 128, 1, 8, 3)]
    return found[:count]


class VllmTriton(Peer):
    def __init__(self, sources: Sources, sweep: int):
        sources.load_vllm_ops()
        self.kernel = sources.triton_moe().invoke_fused_moe_triton_kernel
        self.folder, self.sweep = sources.configs(), max(1, sweep)
        self.layer_of: Callable[..., TritonLayer] = TritonLayer
        self.chosen: dict[tuple[Any, ...], tuple[Config, Config]] = {}

    def tuned(self, case: Case) -> Config | None:
        """vLLM's configuration for the nearest batch, for this device's name or its nearest relative."""
        if self.folder is None:
            return None
        block = f",block_shape=[{GROUP},{GROUP}]" if case.scheme == "block" else ""
        pattern = re.compile(re.escape(f"E={case.shape.experts},N={case.shape.inter},device_name=")
                             + r"NVIDIA_(H\d+)" + r"[^,]*" + re.escape(f",dtype=fp8_w8a8{block}.json"))
        here = torch.cuda.get_device_name()
        files = [(m[1] not in here, f) for f in sorted(self.folder.iterdir())
                 if (m := pattern.fullmatch(f.name))]
        if not files:
            return None
        table = json.loads(min(files)[1].read_text())
        table.pop("triton_version", None)
        return table[min(table, key=lambda size: abs(int(size) - case.tokens))]

    def options(self, case: Case) -> list[Config]:
        tuned = self.tuned(case)
        found = [tuned] if tuned else []
        count = 1 if case.model == "check" else self.sweep
        return found + [option for option in candidates(case, count) if option not in found]

    def warm(self, case: Case) -> None:
        """Compiles all configurations that `build` will choose from."""
        for option in self.options(case):
            with contextlib.suppress(Exception):  # one that fails is passed over by `build`, which says why
                self.layer_of(case, self.kernel, option).forward(case.sets[0])

    def build(self, case: Case) -> Layer:
        key = (case.shape, case.tokens, case.scheme)
        if key not in self.chosen:
            self.chosen[key] = self.fastest(case)
        return self.layer_of(case, self.kernel, *self.chosen[key])

    def fastest(self, case: Case) -> tuple[Config, Config]:
        """The configurations of both GEMMs: each GEMM's fastest at the height where their sum is least."""
        options = self.options(case)
        if len(options) == 1:
            return options[0], options[0]
        best: dict[int, dict[str, tuple[float, int]]] = {}
        failure: Exception | None = None
        for index, option in enumerate(options):
            of_height = best.setdefault(option["BLOCK_SIZE_M"], {})
            try:
                layer = self.layer_of(case, self.kernel, option)
                layer.forward(case.sets[0])
                for part in ("gemm1", "gemm2"):
                    time = timing.Graphs(layer.parts[part], case.sets).best(3)
                    of_height[part] = min(of_height.get(part, (time, index)), (time, index))
            except Exception as error:  # e.g. a tile that needs more shared memory than there is
                failure = error
        pairs = [pair for pair in best.values() if len(pair) == 2]
        if not pairs:
            raise RuntimeError(f"no configuration works: {failure}")
        pair = min(pairs, key=lambda pair: pair["gemm1"][0] + pair["gemm2"][0])
        return options[pair["gemm1"][1]], options[pair["gemm2"][1]]
