"""CUDA graphs over rotating weight sets, in chains between two events, taking turns with other programs."""

from __future__ import annotations

import ctypes
import math
import statistics
from typing import Any, Callable, Protocol, Sequence

import torch

median = statistics.median


def quantile(values: Sequence[float], q: float) -> float:
    """Linear interpolation between the two nearest ranks."""
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


class Contender(Protocol):
    """Something that can run a round of replays and say how long each took, in microseconds."""

    def round(self) -> list[float]: ...


def graph_nodes(graph: torch.cuda.CUDAGraph) -> int | None:
    """How many kernels, copies and fills a captured graph launches; None where torch does not show the
    graph.
    """
    try:
        driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_size_t()
        status = driver.cuGraphGetNodes(ctypes.c_void_p(graph.raw_cuda_graph()), None, ctypes.byref(count))
        return count.value if status == 0 else None
    except (AttributeError, OSError, RuntimeError):
        return None


CHAIN_US, MOST_REPLAYS = 1000.0, 256
SLEEP_CYCLES = 40_000  # of the device for each replay that the host enqueues: about 20 us


class Graphs:
    """One graph for each weight set, replayed in turn.

    A sample is the mean over a chain of about a millisecond, in whole rounds over the sets: the same as our
    own binary's, so that the events' own time and the gaps between graphs count alike.
    """

    def __init__(self, call: Callable[[Any], object], sets: Sequence[Any]):
        self.chain = 0
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for weights in sets:  # outside of any capture: compiles, allocates and fills lazily made buffers
                call(weights)
        stream.synchronize()
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self.launches: int | None = None
        for weights in sets:
            graph = torch.cuda.CUDAGraph(keep_graph=True)
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                call(weights)
            self.launches = graph_nodes(graph)
            graph.instantiate()
            self.graphs.append(graph)
        torch.cuda.synchronize()

    def sample(self, rounds: int) -> float:
        """Microseconds of one replay, over `rounds` rounds of the sets."""
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        replays = rounds * len(self.graphs)
        # The device waits while the host enqueues the chain, so no gap between launches is the host's.
        torch.cuda._sleep(SLEEP_CYCLES * (replays + 2))
        start.record()
        for _ in range(rounds):
            for graph in self.graphs:
                graph.replay()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) * 1000.0 / replays

    def round(self) -> list[float]:
        if not self.chain:  # the first samples warm up and tell how many replays make a chain
            self.sample(1)
            sets = len(self.graphs)
            wanted = math.ceil(CHAIN_US / (self.sample(1) * sets))
            self.chain = max(1, min(wanted, MOST_REPLAYS // sets))
            self.sample(self.chain)
        return [self.sample(self.chain)]

    def best(self, samples: int) -> float:
        """The median of several samples."""
        return median([self.round()[0] for _ in range(samples)])


def interleave(contenders: dict[str, Contender], rounds: int) -> dict[str, list[list[float]] | Exception]:
    """A B C A B C ...: every contender's rounds. One that fails drops out with its exception; the others go
    on.
    """
    found: dict[str, list[list[float]] | Exception] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            times = found[name]
            if isinstance(times, list):
                try:
                    times.append(contender.round())
                except Exception as error:
                    found[name] = error
    return found


def summary(rounds: list[list[float]]) -> dict[str, float]:
    """The median over rounds of each round's median; the outer tenths over all samples."""
    every = [us for one in rounds for us in one]
    return {"median_us": round(median([median(one) for one in rounds]), 3),
            "p10_us": round(quantile(every, 0.1), 3), "p90_us": round(quantile(every, 0.9), 3)}


def copy_rate(device: torch.device, size: int = 1 << 30) -> float:
    """Bytes read plus bytes written a second, by a copy far larger than the L2 cache."""
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (Graphs(lambda _: target.copy_(source), [None]).best(11) * 1e-6)


def read_rate(device: torch.device, size: int = 2 << 30) -> float:
    """Bytes read a second, by a reduction of data far larger than the L2 cache."""
    source = torch.randn(size // 4, device=device)
    found = torch.empty((), device=device)
    return size / (Graphs(lambda _: torch.amax(source, 0, out=found), [None]).best(11) * 1e-6)


def matrix_rate(device: torch.device, size: int = 8192) -> float:
    """Operations a second of dense FP8 with row-wise scales and fast accumulation, on random data."""
    from torch_grouped import dense, matrix_operands

    a, b, a_scale, b_scale = matrix_operands(size, device)
    runs = Graphs(lambda _: dense(a, a_scale, b, b_scale, "per-token"), [None])
    return 2 * size**3 / (runs.best(21) * 1e-6)
