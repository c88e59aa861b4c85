"""The small Triton kernels that a DeepGEMM layer needs around its GEMMs.

vLLM has kernels of the same design in modules that cannot be imported alone, so these are written anew.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _count(ids, counts, total, first, BLOCK: tl.constexpr):
    """One program an expert, from the expert `first` on: how many rows it gets."""
    expert = tl.program_id(0)
    found = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in range(0, total, BLOCK):
        at = start + tl.arange(0, BLOCK)
        found += tl.where(tl.load(ids + at, mask=at < total, other=-1) == first + expert, 1, 0)
    tl.store(counts + expert, tl.sum(found))


@triton.jit
def _scatter(x, scale, ids, counts, xp, scale_p, index, slots, TOP_K: tl.constexpr, HIDDEN: tl.constexpr,
             HIDDEN_P2: tl.constexpr, GROUPS: tl.constexpr, GROUPS_P2: tl.constexpr):
    """One program a token: its row goes to the next free slot of each of its experts, its scales into
    columns.
    """
    token = tl.program_id(0).to(tl.int64)
    column, group = tl.arange(0, HIDDEN_P2), tl.arange(0, GROUPS_P2)
    row = tl.load(x + token * HIDDEN + column, mask=column < HIDDEN)
    row_scale = tl.load(scale + token * GROUPS + group, mask=group < GROUPS)
    for k in range(TOP_K):
        expert = tl.load(ids + token * TOP_K + k).to(tl.int64)
        slot = tl.atomic_add(counts + expert, 1).to(tl.int64)
        place = expert * slots + slot
        tl.store(index + token * TOP_K + k, place.to(tl.int32))
        tl.store(xp + place * HIDDEN + column, row, mask=column < HIDDEN)
        tl.store(scale_p + expert * slots * GROUPS + group * slots + slot, row_scale, mask=group < GROUPS)


@triton.jit
def _silu_quantise(h1, q, scale, rows, inter, ROWS: tl.constexpr, GROUP: tl.constexpr):
    """silu(gate) * up, then e4m3 with a scale for each 128 columns; one program for 8 rows of one group."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    keep = (row < rows)[:, None]
    at = row[:, None] * (2 * inter) + column[None, :]
    gate = tl.load(h1 + at, mask=keep, other=0.0).to(tl.float32)
    up = tl.load(h1 + at + inter, mask=keep, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    s = tl.maximum(tl.max(tl.abs(y), axis=1), 1e-10) / 448.0
    y = tl.clamp(y / s[:, None], -448.0, 448.0).to(q.dtype.element_ty)
    tl.store(q + row[:, None] * inter + column[None, :], y, mask=keep)
    tl.store(scale + tl.program_id(1).to(tl.int64) * rows + row, s, mask=row < rows)


def count(ids: torch.Tensor, counts: torch.Tensor, first: int = 0) -> None:
    _count[(counts.numel(),)](ids, counts, ids.numel(), first,
                              BLOCK=min(1024, triton.next_power_of_2(ids.numel())))


def scatter(x: torch.Tensor, scale: torch.Tensor, ids: torch.Tensor, counts: torch.Tensor, xp: torch.Tensor,
            scale_p: torch.Tensor, index: torch.Tensor) -> None:
    """Rows into [E, slots, H]; `scale_p` [E, slots, G] is column-major inside an expert, as TMA wants it."""
    counts.zero_()
    (tokens, hidden), groups = x.shape, scale.shape[1]
    _scatter[(tokens,)](x.view(torch.uint8), scale, ids, counts, xp.view(torch.uint8), scale_p, index,
                        xp.shape[1],
                        TOP_K=ids.shape[1], HIDDEN=hidden, HIDDEN_P2=triton.next_power_of_2(hidden),
                        GROUPS=groups, GROUPS_P2=triton.next_power_of_2(groups), num_warps=8)


def silu_quantise(h1: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> None:
    """`scale` [rows, I / 128] is column-major."""
    rows, inter = q.shape
    _silu_quantise[(triton.cdiv(rows, 8), inter // 128)](h1, q, scale, rows, inter, ROWS=8, GROUP=128)
