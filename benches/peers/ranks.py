"""vLLM's default over the GPUs of one host, without vLLM, and our binary before and after it.

    python3 benches/peers/ranks.py --ranks 2 --peers DIR --binary ./fp8-moe --json ranks.json
    python3 benches/peers/ranks.py --ranks 2          # exchanges alone

A layer of the peer, on each rank, by torch.distributed and NCCL:

    own rows --quantise--> e4m3 --all_gather_into_tensor--> all rows                  dispatch
    all rows --experts that are here--> bf16                                          experts
    bf16 --reduce_scatter--> own rows                                                 combine

What is gathered, in one coalesced group: rows, group scales, ids, weights. The experts are vLLM's Triton
kernel with an expert map, and from 256 rows on DeepGEMM too (contiguous, its scatter and gather with the
map): what vLLM has on one host without DeepEP. As there, Triton sorts all experts' rows and writes zeros for
those of other ranks. Unlike there, few rows are not sorted, as without a map, and configurations are swept:
both favour the peer.

Each part in a CUDA graph of its own; a sample is the mean over a chain of replays between two events, behind
a barrier; the median over samples; the slowest rank counts. Ranks have the same routings in all programs,
each its own. Our binary (`bench --ranks`, a process to a rank) has a turn before and one behind, and its rows
hold the mean. Before any time is taken, a small layer over the ranks is compared with `reference.py`. Rows
are of schema `fp8-moe-bench/1`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Sequence

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

import reference
from data import (CHECK_SHAPE, E4M3_MAX, GROUP, MODELS, Case, Shape, WeightBank, Weights, random_hidden,
                  route_table, save_routing)
from deepgemm import MASKED_BELOW, Contiguous
from peer import Layer
from sources import Sources
from vllm_triton import Config, TritonLayer, VllmTriton

SAMPLES, SAMPLE_US, MOST_REPLAYS = 11, 5000.0, 200
CHECK_TOKENS = 160  # of each rank: enough for DeepGEMM
TURN_SECONDS = 120.0  # that our binary may take for one turn


class TritonOverRanks(TritonLayer):
    """`layer` is the experts alone, on the rows that have been gathered."""

    def __init__(self, expert_map: torch.Tensor, case: Case, kernel: Any, config: Config,
                 second: Config | None = None):
        super().__init__(case, kernel, config, second)
        self.map, self.found = expert_map, self.expert_ids
        self.expert_ids = torch.empty_like(self.found)
        if self.aligned:
            self.found.zero_()
        self.quantise(case.hidden, self.xq, self.x_scale)

    def layer(self, w: Weights) -> None:
        self.experts(w)

    def assign(self) -> None:
        # As `moe_align_block_size` and the map behind it.
        own, self.expert_ids = self.expert_ids, self.found
        super().assign()
        self.expert_ids = own
        own.copy_(self.map[self.found])


class DeepGemmOverRanks(Contiguous):
    """`layer` is the experts alone, on the rows that have been gathered."""

    def __init__(self, expert_map: torch.Tensor, first: int, case: Case, sources: Sources):
        super().__init__(case, sources)
        self.expert_map, self.first = expert_map, first
        quantise(case.hidden, self.xq, self.x_scale)

    def layer(self, w: Weights) -> None:
        self.experts(w)


def quantise(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> None:
    torch.ops._C.per_token_group_fp8_quant(x, q, scale, GROUP, 1e-10, -E4M3_MAX, E4M3_MAX, False, False,
                                           False)


class Ranks:
    """What a rank has of a model: its experts' weights, and everybody's tokens."""

    def __init__(self, name: str, shape: Shape, rank: int, ranks: int, most: int, device: torch.device):
        if shape.experts % ranks:
            raise SystemExit(f"{name}: {shape.experts} experts are no multiple of {ranks} ranks")
        self.name, self.full, self.rank, self.ranks = name, shape, rank, ranks
        self.local = replace(shape, experts=shape.experts // ranks)
        self.first = rank * self.local.experts
        self.bank = WeightBank(self.local, device)
        # One more, for what the sorting leaves at the end of its list: number -1.
        self.map = torch.full((shape.experts + 1,), -1, dtype=torch.int32, device=device)
        here = slice(self.first, self.first + self.local.experts)
        self.map[here] = torch.arange(self.local.experts, dtype=torch.int32)
        self.routed = [routing(shape, rank, most) for rank in range(ranks)]

    def case(self, tokens: int) -> Case:
        """All ranks' tokens, `tokens` each, for this rank's experts."""
        device = self.bank.device
        ids, gates = (torch.cat([pair[n][:tokens] for pair in self.routed]).to(device) for n in (0, 1))
        hidden = random_hidden(self.ranks * tokens, self.full.hidden, device, 1)
        return Case(self.name, self.full, self.local, 1, "block", "uniform", hidden, ids, gates,
                    self.bank.sets(1, "block"))

    def layers(self, case: Case, triton: VllmTriton, sources: Sources) -> dict[str, Callable[[], Layer]]:
        triton.layer_of = lambda *rest: TritonOverRanks(self.map, *rest)
        makers: dict[str, Callable[[], Layer]] = {"vllm-triton": lambda: triton.build(case)}
        if case.tokens >= MASKED_BELOW:
            makers["deepgemm"] = lambda: DeepGemmOverRanks(self.map, self.first, case, sources)
        return makers


def routing(shape: Shape, rank: int, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """That of a rank: a batch takes the first rows."""
    batches = sorted({tokens for tokens in (1, 8, 64, 512) if tokens < most} | {most})
    return route_table(batches, shape, "uniform", 100 * (rank + 1))


class Parts:
    """A rank's part of the layer: `dispatch`, `experts`, `combine`, and all of it."""

    def __init__(self, layer: Any, case: Case, rank: int, ranks: int):
        each = case.tokens // ranks
        own = slice(rank * each, (rank + 1) * each)
        self.layer, self.weights, self.device = layer, case.sets[0], case.hidden.device
        self.hidden, self.xq, self.scale = (x[own].clone() for x in (case.hidden, layer.xq, layer.x_scale))
        small = [(case.ids[own].clone(), case.ids), (case.gates[own].clone(), case.gates)]
        self.pairs = [(self.xq.view(torch.uint8), layer.xq.view(torch.uint8)), (self.scale, layer.x_scale),
                      *small]
        self.out = torch.empty(each, case.shape.hidden, dtype=torch.bfloat16, device=self.device)
        self.calls = {"layer": self.all, "dispatch": self.dispatch, "experts": self.experts,
                      "combine": self.combine}

    def dispatch(self) -> None:
        quantise(self.hidden, self.xq, self.scale)
        gather(self.pairs, self.device)

    def experts(self) -> None:
        self.layer.layer(self.weights)

    def combine(self) -> None:
        dist.reduce_scatter_tensor(self.out, self.layer.out)

    def all(self) -> None:
        self.dispatch()
        self.experts()
        self.combine()


def gather(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], device: torch.device) -> None:
    with dist._coalescing_manager(device=device):
        for part, everybody in pairs:
            dist.all_gather_into_tensor(everybody, part)


def exchanges(shape: Shape, tokens: int, ranks: int, device: torch.device) -> dict[str, Callable[[], None]]:
    """The exchanges alone, of rows as they are: neither quantised nor computed."""
    sizes = [(shape.hidden, torch.uint8), (math.ceil(shape.hidden / GROUP), torch.float32),
             (shape.top_k, torch.int32), (shape.top_k, torch.float32)]
    pairs = []
    for columns, dtype in sizes:
        part = torch.randint(0, 100, (tokens, columns), device=device).to(dtype)
        pairs.append((part, torch.empty(ranks * tokens, columns, dtype=dtype, device=device)))
    partial = torch.randn(ranks * tokens, shape.hidden, device=device, dtype=torch.bfloat16)
    out = torch.empty(tokens, shape.hidden, device=device, dtype=torch.bfloat16)
    return {"dispatch": lambda: gather(pairs, device),
            "combine": lambda: dist.reduce_scatter_tensor(out, partial)}


def captured(call: Callable[[], None]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    return graph


def slowest(value: float) -> float:
    largest = torch.tensor([value], dtype=torch.float64, device="cuda")
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return float(largest.item())


def measure(graph: torch.cuda.CUDAGraph) -> float:
    """Microseconds of one replay, on the rank with the largest median."""
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def sample(count: int) -> float:
        torch.cuda.synchronize()
        dist.barrier()
        start.record()
        for _ in range(count):
            graph.replay()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) * 1e3 / count

    sample(5)
    count = max(1, min(MOST_REPLAYS, math.ceil(SAMPLE_US / slowest(sample(5)))))
    return slowest(statistics.median(sample(count) for _ in range(SAMPLES)))


def start_rank(index: int, arguments: argparse.Namespace) -> torch.device:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(arguments.port))
    torch.cuda.set_device(index)
    device = torch.device("cuda", index)
    dist.init_process_group("nccl", rank=index, world_size=arguments.ranks, device_id=device)
    return device


def check(rank: int, ranks: int, triton: VllmTriton, sources: Sources,
          device: torch.device) -> dict[str, float]:
    """The largest distance, over the ranks, of a small layer's result from the reference."""
    torch.manual_seed(rank)
    of_rank = Ranks("check", CHECK_SHAPE, rank, ranks, CHECK_TOKENS, device)
    case = of_rank.case(CHECK_TOKENS)
    own = case.sets[0]

    def everybodys(part: torch.Tensor) -> torch.Tensor:
        whole = torch.empty(ranks * part.shape[0], *part.shape[1:], dtype=part.dtype, device=device)
        dist.all_gather_into_tensor(whole.view(torch.uint8), part.contiguous().view(torch.uint8))
        return whole

    whole = Weights(*(everybodys(part) for part in (own.w13, own.w13_scale, own.w2, own.w2_scale)))
    mine = slice(rank * CHECK_TOKENS, (rank + 1) * CHECK_TOKENS)
    exact = replace(case, shape=CHECK_SHAPE, hidden=case.hidden[mine], ids=case.ids[mine].clone(),
                    gates=case.gates[mine].clone())
    found = {}
    for name, make in of_rank.layers(case, triton, sources).items():
        parts = Parts(make(), case, rank, ranks)
        parts.all()
        found[name] = slowest(min(reference.distance(parts.out, exact, whole), 1e9))
    return found


def row(arguments: argparse.Namespace, name: str, model: str, tokens: int, part: str, us: float | None,
        error: str | None = None) -> dict[str, Any]:
    return {"implementation": name, "model": model, "shape": MODELS[model].as_list(), "tp": 1,
            "ep": arguments.ranks, "tokens": tokens, "scheme": "block", "routing": "uniform",
            "part": f"{part} over ranks", "median_us": us, "error": error}


def peers(rank: int, arguments: argparse.Namespace, path: str) -> None:
    """Measures the peer's layers; rank 0 writes the rows."""
    device, rows = start_rank(rank, arguments), []
    sources = Sources(arguments.peers) if arguments.peers else None
    triton = VllmTriton(sources, arguments.triton_sweep) if sources else None

    def write() -> None:
        if rank == 0:
            Path(path).write_text(json.dumps(rows))

    if sources:
        for name, distance in check(rank, arguments.ranks, triton, sources, device).items():
            if distance > reference.TOLERANCE:
                raise SystemExit(f"{name} over ranks is {distance:.2e} from the reference")
            if rank == 0:
                print(f"check    {name}: {distance:.2e} from the reference", flush=True)
    for model in arguments.models:
        shape = MODELS[model]
        most = max(arguments.tokens)
        of_rank = Ranks(model, shape, rank, arguments.ranks, most, device) if sources else None
        for tokens in arguments.tokens:
            implementations: dict[str, Callable[[], dict[str, Callable[[], None]]]] = {
                "torch-distributed": lambda: exchanges(shape, tokens, arguments.ranks, device)}
            if of_rank:
                case = of_rank.case(tokens)
                for name, make in of_rank.layers(case, triton, sources).items():
                    implementations[name] = lambda make=make: Parts(make(), case, rank, arguments.ranks).calls
            for name, make_calls in implementations.items():
                # One rank's clock is another's late barrier: all go on, or none.
                if slowest(time.time() - arguments.started) > arguments.time_limit:
                    rows.append(row(arguments, name, model, tokens, "layer", None, "skipped: time limit"))
                    continue
                graphs = {part: captured(call) for part, call in make_calls().items()}
                times = {part: measure(graph) for part, graph in graphs.items()}
                rows.extend(row(arguments, name, model, tokens, part, us) for part, us in times.items())
                if rank == 0:
                    text = "  ".join(f"{part} {us:8.1f}" for part, us in times.items())
                    print(f"{model:12} {tokens:>5} {name:18} {text} us", flush=True)
                del graphs
            write()
            torch.cuda.empty_cache()
    write()
    dist.destroy_process_group()


def warm(index: int, arguments: argparse.Namespace) -> None:
    """Compiles what one of the cases needs, without the other ranks; all cases side by side."""
    cases = [("check", CHECK_TOKENS),
             *((model, tokens) for model in arguments.models for tokens in arguments.tokens)]
    name, tokens = cases[index]
    rank = index % arguments.ranks
    torch.cuda.set_device(rank)
    device, sources = torch.device("cuda", rank), Sources(arguments.peers)
    triton = VllmTriton(sources, arguments.triton_sweep)
    of_rank = Ranks(name, MODELS.get(name, CHECK_SHAPE), rank, arguments.ranks, tokens, device)
    case = of_rank.case(tokens)
    for kind, make in of_rank.layers(case, triton, sources).items():
        try:
            if kind == "vllm-triton":
                triton.warm(case)
            else:
                make().forward(case.sets[0])
            torch.cuda.synchronize()
        except Exception as error:  # who measures it will say so
            print(f"warm     {name} {tokens} {kind}: {error}", flush=True)


def ours(arguments: argparse.Namespace, model: str, folder: Path, turn: int) -> list[dict[str, Any]]:
    """A turn of our binary: a process to a rank, each with its own routing."""
    path = folder / f"{model}-{turn}.json"
    running = []
    for rank in range(arguments.ranks):
        command = [arguments.binary, "bench", "--ranks", str(arguments.ranks), "--model", model, "--scheme",
                   "block", "--tokens", ",".join(map(str, arguments.tokens)),
                   "--routing", str(folder / f"{model}-{rank}.safetensors")]
        if rank == 0:
            command += ["--json", str(path)]
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": arguments.ranks, "MASTER_ADDR": "127.0.0.1",
                 "FP8_MOE_PORT": arguments.port + 1}
        environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
        running.append(subprocess.Popen(command, env=environment))
    end = time.time() + TURN_SECONDS
    try:
        for process in running:
            if process.wait(max(1.0, end - time.time())):
                raise SystemExit(f"{arguments.binary} ended with {process.returncode}")
    finally:
        for process in running:
            process.kill()
    rows = json.loads(path.read_text())["rows"]
    return [{**row, "routing": "uniform"} for row in rows]


def mean_of_turns(turns: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    rows = []
    for of_turns in zip(*turns, strict=True):
        times = [row["median_us"] for row in of_turns]
        rows.append({**of_turns[0], "median_us": statistics.mean(times), "turns_us": times})
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> None:
    """Ours beside the fastest peer."""
    print(f"\n{'layer over ranks, us':24} {'ours':>8} {'turns':>18} {'peer':>8}  {'ratio':>5}  fastest peer")
    for row in rows:
        if row["implementation"] == "fp8-moe" and row["part"] == "layer over ranks":
            same = ("model", "tokens", "part")
            others = [other for other in rows
                      if other["implementation"] not in ("fp8-moe", "torch-distributed")
                      and other["median_us"] and all(other[key] == row[key] for key in same)]
            best = min(others, key=lambda other: other["median_us"], default=None)
            ratio = best["median_us"] / row["median_us"] if best else 0.0
            peer = f"{best['median_us']:8.1f}  {ratio:5.2f}  {best['implementation']}" if best else "       -"
            turns = ", ".join(f"{us:.1f}" for us in row.get("turns_us", ()))
            print(f"{row['model']:16} {row['tokens']:>7} {row['median_us']:8.1f} {turns:>18} {peer}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--models", type=lambda text: text.split(","), default=["deepseek-v3", "qwen3-235b"])
    parser.add_argument("--tokens", type=lambda text: [int(n) for n in text.split(",")],
                        default=[1, 8, 64, 512, 4096], help="of each rank")
    parser.add_argument("--peers", help="the folder of README.md; without it exchanges alone are measured")
    parser.add_argument("--binary", help="our fp8-moe, to run beside")
    parser.add_argument("--triton-sweep", type=int, default=12)
    parser.add_argument("--time-limit", type=float, default=1e9,
                        help="seconds after which peers begin no case")
    parser.add_argument("--port", type=int, default=29511)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    arguments.started = time.time()

    def note(what: str) -> None:
        print(f"[{time.time() - arguments.started:5.1f} s] {what}", flush=True)

    if arguments.peers:
        Sources(arguments.peers).unpack()
        cases = 1 + len(arguments.models) * len(arguments.tokens)
        processes.spawn(warm, (arguments,), nprocs=cases)
        note("compiled")
    rows: list[dict[str, Any]] = []
    turns: list[list[dict[str, Any]]] = [[], []]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def turn(number: int) -> None:
            if arguments.binary:
                for model in arguments.models:
                    turns[number].extend(ours(arguments, model, folder, number))
                note(f"our turn {number + 1} of 2")

        if arguments.binary:
            for model in arguments.models:
                for rank in range(arguments.ranks):
                    save_routing(*routing(MODELS[model], rank, max(arguments.tokens)),
                                 str(folder / f"{model}-{rank}.safetensors"))
        turn(0)
        path, failure = folder / "peers.json", None
        path.write_text("[]")
        try:
            processes.spawn(peers, (arguments, str(path)), nprocs=arguments.ranks)
        except Exception as error:
            failure = error  # ours are kept, and what it had measured
        note("peers")
        turn(1)
        rows = mean_of_turns(turns) + json.loads(path.read_text())
    summary(rows)
    if arguments.json:
        document = {"schema": "fp8-moe-bench/1", "program": "ranks.py", "rows": rows}
        Path(arguments.json).write_text(json.dumps(document, indent=1))
    if failure:
        raise SystemExit(f"peers: {failure}")


if __name__ == "__main__":
    main()
