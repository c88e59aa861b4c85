"""The layer in plain torch at f64, and the quantisers: what every program's result is compared with.

The activations are quantised where the programs quantise them (before each GEMM), so what remains is the
order of accumulation and the rounding of intermediates. The latter matters: a bf16 rounding before the second
quantisation moves some values to a neighbouring e4m3 number, which alone makes a distance of 2e-2. So the
reference can round like the programs: not at all, what the GEMMs store, or what the activation stores too.
The nearest of the three counts.
"""

from __future__ import annotations

import torch

from data import E4M3, E4M3_MAX, GROUP, Case, Weights

# Right results come under 1e-2, fast accumulation included; a wrong scale, expert or gate gives far more.
ROUNDINGS = ((), ("gemm",), ("gemm", "activation"))
TOLERANCE = 4e-2


def largest_by_448(x: torch.Tensor) -> torch.Tensor:
    """x / 448 in f32, by a division: by a Python number a GPU divides with the reciprocal, which is off in
    the last bit, and roundings to e4m3 that are ties then go the other way."""
    return x / torch.full((), E4M3_MAX, dtype=torch.float32, device=x.device)


def quantise_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One dynamic scale a row, with the floor that keeps all-zero rows finite."""
    scale = largest_by_448(x.float().abs().amax(dim=-1)).clamp(min=1.0 / (E4M3_MAX * 512.0))
    q = (x.float() / scale[..., None]).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)
    return q, scale


def quantise_groups(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One dynamic scale for each 128 columns of a row; the last group may be short."""
    rows, cols = x.shape
    groups = -(-cols // GROUP)
    padded = torch.nn.functional.pad(x.float(), (0, groups * GROUP - cols)).view(rows, groups, GROUP)
    scale = largest_by_448(padded.abs().amax(dim=-1).clamp(min=1e-10))
    q = (padded / scale[..., None]).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)
    return q.view(rows, groups * GROUP)[:, :cols].contiguous(), scale


def quantise(x: torch.Tensor, scheme: str) -> tuple[torch.Tensor, torch.Tensor]:
    return quantise_rows(x) if scheme == "per-token" else quantise_groups(x)


def expand(scale: torch.Tensor, rows: int, cols: int, scheme: str) -> torch.Tensor:
    """A weight matrix's scales, one for each element (or broadcast along the columns)."""
    if scheme == "per-token":
        return scale[:, None]
    return scale.repeat_interleave(GROUP, 0)[:rows].repeat_interleave(GROUP, 1)[:, :cols]


def dequantise(q: torch.Tensor, scale: torch.Tensor, scheme: str, dtype: torch.dtype) -> torch.Tensor:
    return q.to(dtype) * expand(scale, q.shape[0], q.shape[1], scheme).to(dtype)


def fake_quantise(x: torch.Tensor, scheme: str, dtype: torch.dtype) -> torch.Tensor:
    q, scale = quantise(x, scheme)
    if scheme == "per-token":
        return q.to(dtype) * scale[:, None].to(dtype)
    return q.to(dtype) * scale.repeat_interleave(GROUP, 1)[:, : x.shape[1]].to(dtype)


def layer(case: Case, weights: Weights, dtype: torch.dtype = torch.float64,
          rounded: tuple[str, ...] = ()) -> torch.Tensor:
    """[T, H] at `dtype`: every expert's SwiGLU on its tokens, weighted and summed.

    What the steps named in `rounded` store is rounded to bf16.
    """

    def stored(x: torch.Tensor, step: str) -> torch.Tensor:
        return x.to(torch.bfloat16).to(dtype) if step in rounded else x

    inter = case.shape.inter
    out = torch.zeros(case.tokens, case.shape.hidden, dtype=dtype, device=case.hidden.device)
    x = fake_quantise(case.hidden, case.scheme, dtype)
    for expert in case.ids.unique().tolist():
        token, slot = (case.ids == expert).nonzero(as_tuple=True)
        both = x[token] @ dequantise(weights.w13[expert], weights.w13_scale[expert], case.scheme, dtype).T
        both = stored(both, "gemm")
        act = stored(torch.nn.functional.silu(both[:, :inter]) * both[:, inter:], "activation")
        act = fake_quantise(act, case.scheme, dtype)
        y = act @ dequantise(weights.w2[expert], weights.w2_scale[expert], case.scheme, dtype).T
        y = stored(y, "gemm")
        out.index_add_(0, token, y * case.gates[token, slot].to(dtype)[:, None])
    return out


def rel_l2(got: torch.Tensor, want: torch.Tensor) -> float:
    """|got - want| / |want|; infinite when anything is not finite."""
    got, want = got.double(), want.double().to(got.device)
    if not bool(torch.isfinite(got).all()):
        return float("inf")
    return float((got - want).norm() / want.norm())


def distances(got: torch.Tensor, case: Case, weights: Weights) -> tuple[float, float]:
    """From the nearest of the references, and from exact arithmetic on the quantised operands, which rounds
    nothing.
    """
    found = [rel_l2(got, layer(case, weights, rounded=rounded)) for rounded in ROUNDINGS]
    return min(found), found[ROUNDINGS.index(())]


def distance(got: torch.Tensor, case: Case, weights: Weights) -> float:
    """From the nearest of the references."""
    return distances(got, case, weights)[0]
