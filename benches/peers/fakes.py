"""Stand-ins for the peers' GPU operators, in plain torch on the CPU: for testing the calls around them.

Each does what its operator is documented to do, so a layer put together from them must agree with the
reference. With vLLM's libraries loaded, every call is first held against the real operator's schema.
DeepGEMM's checks of layouts are repeated here, since they cannot run without a GPU.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Callable

import torch

import reference
from data import E4M3, GROUP

Operators = dict[str, Callable[..., Any]]


def _fill(target: torch.Tensor, value: torch.Tensor) -> None:
    target.copy_(value.reshape(target.shape).to(target.dtype))


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.float().chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def dynamic_per_token_scaled_fp8_quant(result: Any, x: Any, scale: Any, scale_ub: Any) -> None:
    q, s = reference.quantise_rows(x)
    _fill(result, q)
    _fill(scale, s)


def per_token_group_fp8_quant(x: Any, q: Any, scale: Any, group: int, eps: float, low: float, high: float,
                              ue8m0: bool, transposed: bool, tma_aligned: bool) -> None:
    assert group == GROUP and not ue8m0 and (low, high) == (-448.0, 448.0)
    made, s = reference.quantise_groups(x)
    _fill(q, made)
    _fill(scale, s)


def silu_and_mul(result: Any, x: Any) -> None:
    _fill(result, silu_mul(x))


def silu_and_mul_per_block_quant(out: Any, x: Any, scales: Any, group: int, scale_ub: Any,
                                 transposed: bool) -> None:
    assert group == GROUP and x.dim() == 2 and not transposed
    q, s = reference.quantise_groups(silu_mul(x))
    _fill(out, q)
    _fill(scales, s)


def persistent_masked_m_silu_mul_quant(x: Any, counts: Any, q: Any, scale: Any, ue8m0: bool) -> None:
    assert scale.stride() == (scale.shape[1] * scale.shape[2], 1, scale.shape[1])
    for expert, rows in enumerate(counts.tolist()):
        made, s = reference.quantise_groups(silu_mul(x[expert, :rows]))
        _fill(q[expert, :rows], made)
        _fill(scale[expert, :rows], s)


def problem_sizes(first: Any, sizes1: Any, sizes2: Any, n: int, k: int, swap_ab: bool) -> None:
    rows = (first[1:] - first[:-1]).to(torch.int32)
    for sizes, width, depth in ((sizes1, 2 * n, k), (sizes2, k, n)):
        wide, deep = torch.full_like(rows, width), torch.full_like(rows, depth)
        sizes.copy_(torch.stack([wide, rows, deep] if swap_ab else [rows, wide, deep], 1))


def cutlass_moe_mm(out: Any, a: Any, b: Any, a_scale: Any, b_scale: Any, offsets: Any, sizes: Any, ab1: Any,
                   ab2: Any, c: Any, per_token: bool, per_channel: bool) -> None:
    assert per_token and per_channel and b_scale.shape == (*b.shape[:2], 1) and a_scale.shape == (a.shape[0],
        1)
    assert set(ab1.tolist()) == set(ab2.tolist()) == {b.shape[2]} and set(c.tolist()) == {b.shape[1]}
    swapped = a.shape[0] <= 64
    for expert, start in enumerate(offsets.tolist()):
        rows = int(sizes[expert, 1 if swapped else 0])
        assert sizes[expert, 0 if swapped else 1] == b.shape[1] and sizes[expert, 2] == b.shape[2]
        part = slice(start, start + rows)
        out[part] = (a[part].float() * a_scale[part] @ (b[expert].float() * b_scale[expert]).T).to(out.dtype)


def moe_permute_with_scratch(x: Any, ids: Any, source: Any, expert_map: Any, experts: int, local: int, k: int,
                             xp: Any, first: Any, inverse: Any, perm: Any, space: Any, *scratch: Any) -> None:
    assert experts == local and expert_map is None and all(s.shape == ids.shape for s in scratch)
    order = torch.argsort(ids.view(-1), stable=True)
    perm.copy_(order)
    inverse.view(-1)[order] = torch.arange(order.numel(), dtype=torch.int32)
    first.zero_()
    first[1:] = torch.bincount(ids.view(-1).long(), minlength=experts).cumsum(0)
    _fill(xp.view(torch.uint8), x.view(torch.uint8)[order // k])


def moe_unpermute(y: Any, gates: Any, inverse: Any, first: Any, k: int, out: Any) -> None:
    _fill(out, (y[inverse.long()].float().view(-1, k, y.shape[1]) * gates[..., None]).sum(1))


def moe_align_block_size(ids: Any, experts: int, block: int, sorted_ids: Any, expert_ids: Any, padded: Any,
                         expert_map: Any) -> None:
    flat, place = ids.view(-1), 0
    sorted_ids.fill_(flat.numel())
    for expert in range(experts):
        rows = (flat == expert).nonzero().view(-1)
        sorted_ids[place : place + rows.numel()] = rows.to(torch.int32)
        blocks = -(-rows.numel() // block)
        expert_ids[place // block : place // block + blocks] = expert
        place += blocks * block
    padded.fill_(place)


def moe_sum(x: Any, out: Any, ids: Any = None, expert_map: Any = None) -> None:
    _fill(out, x.float().sum(1))


C: Operators = {f.__name__: f for f in (
    dynamic_per_token_scaled_fp8_quant, per_token_group_fp8_quant, silu_and_mul, silu_and_mul_per_block_quant,
    persistent_masked_m_silu_mul_quant, cutlass_moe_mm)}
C["get_cutlass_moe_mm_problem_sizes_from_expert_offsets"] = problem_sizes
MOE_C: Operators = {f.__name__: f for f in (
    moe_permute_with_scratch, moe_unpermute, moe_align_block_size, moe_sum)}
MOE_C["moe_permute_sort_workspace_size"] = lambda rows, experts: 256


def accepts(operator: Any, values: tuple[Any, ...]) -> None:
    """Raises unless the operator's schema takes these positional arguments."""
    arguments = operator._schema.arguments
    required = [a for a in arguments if not a.has_default_value()]
    if not len(required) <= len(values) <= len(arguments):
        raise TypeError(f"{operator._schema.name} takes {len(arguments)} arguments, not {len(values)}")
    kinds = {"Tensor": torch.Tensor, "int": int, "float": float, "bool": bool}
    for argument, value in zip(arguments, values):
        kind = str(argument.type)
        if value is None and kind.startswith("Optional"):
            continue
        wanted = kinds[kind.removeprefix("Optional[").removesuffix("]")]
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise TypeError(f"{operator._schema.name}: {argument.name} is {type(value).__name__}, not {kind}")


def namespace(operators: Operators, real: Any | None) -> Any:
    """The stand-ins as an object; with the real operators at hand, calls are held against their schemas."""

    def guarded(name: str, stand_in: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any) -> Any:
            if real is not None:
                accepts(getattr(real, name).default, values)
            return stand_in(*values)

        return call

    return SimpleNamespace(**{name: guarded(name, f) for name, f in operators.items()})


def _blocks(w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.stack([reference.dequantise(q, s, "block", torch.float32) for q, s in zip(w, scale)])


def _groups(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x.float() * scale.repeat_interleave(GROUP, -1)


def m_grouped_contiguous(a: Any, b: Any, d: Any, layout: Any, disable_ue8m0_cast: bool) -> None:
    assert a[0].dtype == b[0].dtype == E4M3 and d.dtype == torch.bfloat16 and layout.dtype == torch.int32
    assert a[0].shape[0] % GROUP == 0 and layout.shape[0] == a[0].shape[0] == d.shape[0]
    w = _blocks(*b)
    for tile in range(0, layout.numel(), GROUP):
        expert = int(layout[tile])
        if expert >= 0:
            part = slice(tile, tile + GROUP)
            assert set(layout[part].tolist()) <= {expert, -1}
            d[part] = (_groups(a[0][part], a[1][part]) @ w[expert].T).to(d.dtype)


def m_grouped_masked(a: Any, b: Any, d: Any, counts: Any, expected: int, disable_ue8m0_cast: bool) -> None:
    experts, slots, groups = a[1].shape
    assert a[1].stride() == (slots * groups, 1, slots) and slots % GROUP == 0 and expected > 0
    w = _blocks(*b)
    for expert, rows in enumerate(counts.tolist()):
        d[expert, :rows] = (_groups(a[0][expert, :rows], a[1][expert, :rows]) @ w[expert].T).to(d.dtype)


deep_gemm = SimpleNamespace(m_grouped_fp8_gemm_nt_contiguous=m_grouped_contiguous,
                            m_grouped_fp8_gemm_nt_masked=m_grouped_masked)
