"""Shapes, random inputs and quantised weights that every program is given alike.

Data is random on purpose: FP8 tensor cores run up to 13 % faster on zeros or constants, because they draw
less power. Weights follow a normal distribution whose largest values come near the e4m3 limit, as a quantised
checkpoint's do.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field, replace
from typing import Sequence

import torch

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
GROUP = 128
SCHEMES = ("block", "per-token")
PARTS = ("layer", "gemm1", "gemm2")


@dataclass(frozen=True)
class Shape:
    """Experts, experts per token, hidden size and intermediate size of one rank."""

    experts: int
    top_k: int
    hidden: int
    inter: int
    tp: int = 1  # ranks that the model's name divides the intermediate dimension among, besides --tp

    def as_list(self) -> list[int]:
        return [self.experts, self.top_k, self.hidden, self.inter]

    def split(self, tp: int) -> "Shape":
        """The part of one rank when the intermediate dimension is divided among `tp` ranks, and among the
        name's.
        """
        tp *= self.tp
        if self.inter % tp:
            raise ValueError(f"intermediate size {self.inter} is no multiple of tp {tp}")
        return replace(self, inter=self.inter // tp, tp=1)

    @property
    def weight_bytes(self) -> int:
        return self.experts * 3 * self.hidden * self.inter


MODELS = {
    "mixtral-8x7b": Shape(8, 2, 4096, 14336),
    "llama4-maverick": Shape(128, 1, 5120, 8192),
    "qwen3-235b": Shape(128, 8, 4096, 1536),
    "deepseek-v3": Shape(256, 8, 7168, 2048),
    "qwen3-30b": Shape(128, 8, 2048, 768),
    "glm-4.6": Shape(160, 8, 5120, 1536),
    "qwen3.5-35b": Shape(256, 8, 2048, 512),
    "qwen3-next": Shape(512, 10, 2048, 512),
    "deepseek-v2-lite": Shape(64, 6, 2048, 1408),
    "kimi-k2": Shape(384, 8, 7168, 2048),
    "gpt-oss-120b": Shape(128, 4, 2880, 2880),
    "mixtral-8x7b-tp8": Shape(8, 2, 4096, 14336, 8),
    "qwen3-235b-tp4": Shape(128, 8, 4096, 1536, 4),
    "deepseek-v3-tp8": Shape(256, 8, 7168, 2048, 8),
    "qwen3.5-35b-tp4": Shape(256, 8, 2048, 512, 4),
}
# What results are compared on. Many rows an expert and few take other kernels; peers compute both, and still
# fewer.
CHECK_SHAPE, CHECK_TOKENS = Shape(8, 2, 1024, 512), (1024, 64)


@dataclass
class Weights:
    """w13 [E, 2I, H] (gate rows, then up rows), w2 [E, H, I], and their scales in the layout of the
    scheme.
    """

    w13: torch.Tensor
    w13_scale: torch.Tensor
    w2: torch.Tensor
    w2_scale: torch.Tensor


@dataclass
class Case:
    """One measurement's inputs. `full` is the model's shape, `shape` one rank's; `sets` are rotated
    through.
    """

    model: str
    full: Shape
    shape: Shape
    tp: int
    scheme: str
    routing: str
    hidden: torch.Tensor  # bf16 [T, H]
    ids: torch.Tensor  # i32 [T, k]
    gates: torch.Tensor  # f32 [T, k]
    sets: list[Weights] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return self.hidden.shape[0]

    @property
    def rows(self) -> int:
        return self.ids.numel()

    @property
    def active(self) -> int:
        """Experts with at least one token: those whose weights must be read."""
        return int(self.ids.unique().numel())


def zipf_exponent(kind: str) -> float:
    """S of `zipf:S`; 0 of `uniform`, which is the same as no skew at all."""
    if kind == "uniform":
        return 0.0
    name, _, exponent = kind.partition(":")
    try:
        if name == "zipf" and 0.0 <= float(exponent) <= 10.0:
            return float(exponent)
    except ValueError:
        pass
    raise ValueError(f"routing {kind!r} is neither uniform nor zipf:S with S from 0 to 10")


def route(tokens: int, shape: Shape, kind: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Expert ids [T, k] (distinct in a row) and weights that sum to one, on the CPU.

    The n-th most popular expert is drawn with a probability proportional to 1 / n^S; which expert is how
    popular is drawn too. Adding Gumbel noise to log-probabilities and taking the k largest draws without
    replacement.
    """
    rng = torch.Generator().manual_seed(seed)
    logp = -zipf_exponent(kind) * torch.log(torch.arange(1, shape.experts + 1, dtype=torch.float32))
    logp = logp[torch.randperm(shape.experts, generator=rng)]
    noise = -torch.log(torch.empty(tokens, shape.experts).exponential_(generator=rng))
    top = torch.topk(logp + noise, shape.top_k, dim=1)
    gates = torch.softmax(torch.randn(tokens, shape.top_k, generator=rng), dim=1)
    return top.indices.to(torch.int32), gates


def active_in_expectation(shape: Shape, tokens: int) -> float:
    """How many experts a uniformly routed batch hits on average."""
    return shape.experts * (1.0 - (1.0 - shape.top_k / shape.experts) ** tokens)


def active_experts(ids: torch.Tensor, batches: Sequence[int]) -> list[int]:
    return [int(ids[:tokens].unique().numel()) for tokens in batches]


def route_table(batches: Sequence[int], shape: Shape, kind: str,
                seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One routing for all batch sizes: a batch takes the first rows. Every program gets the same one.

    How many experts a small batch hits varies much with the seed, and with it the weights to be read. Of
    several draws, the one is taken whose counts are nearest to the medians.
    """
    counts = {s: active_experts(route(max(batches), shape, kind, s)[0], batches)
              for s in range(seed, seed + 17)}
    medians = [statistics.median(column) for column in zip(*counts.values())]
    best = min(counts, key=lambda s: sum(abs(n - m) / m for n, m in zip(counts[s], medians)))
    return route(max(batches), shape, kind, best)


def save_routing(ids: torch.Tensor, gates: torch.Tensor, path: str) -> None:
    """As a file that our binary's `--routing` reads."""
    from safetensors.torch import save_file

    save_file({"topk_ids": ids.contiguous(), "topk_weights": gates.contiguous()}, path)


def random_e4m3(size: tuple[int, ...], device: torch.device, std: float = 100.0) -> torch.Tensor:
    """Normal values at `std`, saturated, as e4m3: made in pieces so that the wide temporaries stay small."""
    out = torch.empty(size, dtype=E4M3, device=device)
    flat = out.view(-1)
    for piece in flat.split(1 << 27):
        values = torch.randn(piece.numel(), device=device, dtype=torch.bfloat16)
        piece.copy_(values.mul_(std).clamp_(-E4M3_MAX, E4M3_MAX))
    return out


def random_hidden(tokens: int, hidden: int, device: torch.device, seed: int) -> torch.Tensor:
    rng = torch.Generator(device).manual_seed(seed)
    return torch.randn(tokens, hidden, generator=rng, device=device).to(torch.bfloat16)


def scale_shape(experts: int, rows: int, cols: int, scheme: str) -> tuple[int, ...]:
    if scheme == "per-token":
        return (experts, rows)
    return (experts, math.ceil(rows / GROUP), math.ceil(cols / GROUP))


class WeightBank:
    """Random weight sets of one shape: the e4m3 bytes are shared by the schemes, only scales differ."""

    def __init__(self, shape: Shape, device: torch.device):
        self.shape, self.device = shape, device
        self._bytes: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._sets: dict[str, list[Weights]] = {}

    def sets(self, count: int, scheme: str) -> list[Weights]:
        e, h, i = self.shape.experts, self.shape.hidden, self.shape.inter
        while len(self._bytes) < count:
            self._bytes.append((random_e4m3((e, 2 * i, h), self.device), random_e4m3((e, h, i), self.device)))
        made = self._sets.setdefault(scheme, [])
        for w13, w2 in self._bytes[len(made) : count]:
            made.append(Weights(w13, self._scales(2 * i, h, scheme), w2, self._scales(h, i, scheme)))
        return made[:count]

    def _scales(self, rows: int, cols: int, scheme: str) -> torch.Tensor:
        size = scale_shape(self.shape.experts, rows, cols, scheme)
        # Dequantised weights get a deviation near 1/sqrt(K), so activations keep their magnitude through the
        # layer.
        return (0.5 + torch.rand(size, device=self.device)) / (100.0 * math.sqrt(cols))


def sets_needed(shape: Shape, active: int, l2_bytes: int, memory_bytes: int) -> int:
    """How many weight sets keep any call from finding its weights in the L2 cache: four times its size in
    between.

    As many as fit into the memory given; an error where not one does.
    """
    touched = active * 3 * shape.hidden * shape.inter
    wanted, fit = math.ceil(4 * l2_bytes / max(1, touched)), memory_bytes // shape.weight_bytes
    if fit < 1:
        raise MemoryError(f"one layer's weights are {shape.weight_bytes / 2**30:.1f} GiB, "
                          f"{memory_bytes / 2**30:.1f} GiB may be used")
    return max(1, min(wanted, fit))


def make_case(model: str, full: Shape, tp: int, scheme: str, routing: str,
              routed: tuple[torch.Tensor, torch.Tensor],
              bank: WeightBank, l2_bytes: int, memory_bytes: int) -> Case:
    """A case on the bank's device, for the tokens of `routed` (ids and weights)."""
    shape, (ids, gates) = full.split(tp), routed
    case = Case(model, full, shape, tp * full.tp, scheme, routing,
                random_hidden(ids.shape[0], shape.hidden, bank.device, 1),
                ids.to(bank.device), gates.to(bank.device))
    case.sets = bank.sets(sets_needed(shape, case.active, l2_bytes, memory_bytes), scheme)
    return case


def load_case(path: str, scheme: str, device: torch.device) -> tuple[Case, torch.Tensor | None]:
    """Inputs that our binary dumped (or `save_case` wrote), and its output if the file has one."""
    from safetensors.torch import load_file

    t = {name: value.to(device) for name, value in load_file(path).items()}
    e, two_i, h = t["w13"].shape
    shape = Shape(e, t["topk_ids"].shape[1], h, two_i // 2)
    sizes = {"w13_scale": scale_shape(e, two_i, h, scheme), "w2_scale": scale_shape(e, h, two_i // 2, scheme)}
    scales = {name: t[name].float().reshape(size) for name, size in sizes.items()}
    case = Case("check", shape, shape, 1, scheme, "uniform", t["hidden"].to(torch.bfloat16).contiguous(),
                t["topk_ids"].to(torch.int32).contiguous(), t["topk_weights"].float().contiguous(),
                [Weights(t["w13"], scales["w13_scale"], t["w2"], scales["w2_scale"])])
    return case, t.get("out")


def save_case(case: Case, path: str) -> None:
    """Write the inputs in the layout of our binary's dump."""
    from safetensors.torch import save_file

    w = case.sets[0]
    tensors = {"hidden": case.hidden, "topk_ids": case.ids, "topk_weights": case.gates, "w13": w.w13,
               "w13_scale": w.w13_scale, "w2": w.w2, "w2_scale": w.w2_scale}
    save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, path)
