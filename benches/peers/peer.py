"""What a peer is: a factory of layers, each with parts that can be captured into a CUDA graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Iterable

import torch

import reference
from data import Case, Weights


class Unsupported(Exception):
    """The peer does not offer this case: it gets no row, and that is no error."""


class Layer:
    """One case's buffers and calls. `parts` maps layer, gemm1, gemm2 to a function of a weight set.

    `gemm1` and `gemm2` read what an earlier `forward` left in the buffers, so call that once first.
    """

    parts: dict[str, Callable[[Weights], None]]

    def forward(self, weights: Weights) -> torch.Tensor:
        raise NotImplementedError

    def distance(self, case: Case, weights: Weights) -> float:
        """Relative L2 distance of this layer's result from the reference."""
        return self.distances(case, weights)[0]

    def distances(self, case: Case, weights: Weights) -> tuple[float, float]:
        """That, and the distance from exact arithmetic on the quantised operands."""
        return reference.distances(self.forward(weights), case, weights)


class Peer:
    """One program to measure."""

    def build(self, case: Case) -> Layer:
        raise NotImplementedError

    def warm(self, case: Case) -> None:
        """Calls everything that measuring the case will call, so that it is compiled; the results are not
        looked at.
        """
        layer = self.build(case)
        for call in layer.parts.values():
            call(case.sets[0])

    def check(self, case: Case) -> tuple[float, float]:
        """The largest distances, from the reference and from exact arithmetic; smaller batches take other
        paths in most programs."""
        batches = (case, *(first(case, tokens) for tokens in (64, 8, 1)))
        return largest(self.build(part).distances(part, part.sets[0]) for part in batches)


def largest(distances: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Of each kind the largest."""
    from_reference, from_exact = zip(*distances)
    return max(from_reference), max(from_exact)


def first(case: Case, tokens: int) -> Case:
    """The same case with its first few tokens only."""
    return replace(case, hidden=case.hidden[:tokens], ids=case.ids[:tokens], gates=case.gates[:tokens])
