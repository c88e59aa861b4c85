"""Which cases are measured in which order, what memory each program may use for them, and how long they will
take.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Sequence

from data import MODELS, Shape, active_in_expectation

GIB = float(1 << 30)
RESERVE = 6 * GIB  # contexts, loaded libraries, and the buffers that the copy rate is measured on
GEMMS = ("gemm1", "gemm2")
START = time.monotonic()


def say(text: str) -> None:
    """A line with the seconds since the start."""
    print(f"[{time.monotonic() - START:6.1f} s] {text}", flush=True)


@dataclass(frozen=True)
class Group:
    """Cases that share weights and a process of our binary."""

    model: str
    scheme: str
    tokens: tuple[int, ...]
    parts: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.model}, {self.scheme}, {', '.join(self.parts)}"


def order(models: Sequence[str], schemes: Sequence[str], tokens: Sequence[int], parts: Sequence[str],
          first: Sequence[int], gemm_models: Sequence[str], gemm_tokens: Sequence[int]) -> list[Group]:
    """The groups, the most important first, so that a run that meets its time limit has measured every model.

    The batch sizes of `first` come before the others, the schemes in their order; the GEMMs alone in between.
    """
    gemms = tuple(part for part in GEMMS if part not in parts)
    early, late = [t for t in tokens if t in first], [t for t in tokens if t not in first]
    groups = [Group(m, s, tuple(early), tuple(parts)) for s in schemes for m in models]
    groups += [Group(m, s, tuple(gemm_tokens), gemms) for s in schemes for m in models if m in gemm_models]
    groups += [Group(m, s, tuple(late), tuple(parts)) for s in schemes for m in models]
    return [group for group in groups if group.tokens and group.parts]


def activation_bytes(shape: Shape, tokens: int) -> int:
    """An upper bound of what the buffers of all peers' layers take for one case."""
    rows, h, i = tokens * shape.top_k, shape.hidden, shape.inter
    padded = rows + min(rows, shape.experts) * 127
    slots = shape.experts * 256 if tokens < 256 else 0  # the masked layout: whole tiles for every expert
    return max(padded, slots) * (3 * h + 5 * i) + 2 * rows * (3 * h + 7 * i)


def program_budget(memory_bytes: int, programs: int) -> int:
    """Bytes of the device that each of so many programs may use: ours, and the one with all peers."""
    return int((memory_bytes - RESERVE) / programs)


def weight_memory(shape: Shape, tokens: int, budget: int) -> int:
    """What is left of a budget for weight sets."""
    return budget - activation_bytes(shape, tokens)


def estimate(group: Group, tokens: int, contenders: int, rounds: int, tp: int) -> float:
    """Seconds that a case takes, roughly: set-up of every program, then rounds of chains of at least a
    millisecond.
    """
    shape = MODELS[group.model].split(tp)
    active = active_in_expectation(shape, tokens)
    operations = 6 * tokens * shape.top_k * shape.hidden * shape.inter
    layer = 1.5 * max(operations / 1e15, active * 3 * shape.hidden * shape.inter / 2.5e12)
    chain = max(1e-3, layer) + 3e-3
    return 0.5 + len(group.parts) * contenders * (0.15 + chain * (rounds + 3))


SET_UP = 2.0  # seconds a group: weights are made, our binary starts
BEFORE = {"vllm-triton": 45.0, "deepgemm": 50.0}  # seconds until compiled, on some sixteen processor cores
UNPACK_AND_CHECK = 20.0


def describe(groups: Sequence[Group], contenders: Any, implementations: Sequence[str], rounds: int, tp: int,
             memory_bytes: int, programs: Any) -> str:
    """The cases in their order with estimated seconds, and what they need of the device's memory."""
    elapsed = UNPACK_AND_CHECK + max((BEFORE.get(name, 0.0) for name in implementations), default=0.0)
    lines = [f"trials and checks: about {elapsed:.0f} s"]
    for group in groups:
        shape, budget = MODELS[group.model].split(tp), program_budget(memory_bytes, programs(group))
        most = max(group.tokens)
        sets = int(weight_memory(shape, most, budget) // shape.weight_bytes)
        fits = f"at most {sets} weight sets" if sets else "DOES NOT FIT"
        buffers = activation_bytes(shape, most) / GIB
        lines.append(f"{group}: {programs(group)} programs of {budget / GIB:.1f} GiB, {fits} of "
                     f"{shape.weight_bytes / GIB:.1f} GiB, buffers up to {buffers:.1f} GiB")
        elapsed += SET_UP
        for tokens in group.tokens:
            elapsed += estimate(group, tokens, contenders(group), rounds, tp)
            lines.append(f"    {tokens:6} tokens, until about {elapsed:4.0f} s")
    return "\n".join(lines)
