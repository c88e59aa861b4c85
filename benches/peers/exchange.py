"""What vLLM's default takes to move rows between the GPUs of one host, without vLLM: torch.distributed over NCCL.

    python3 benches/peers/exchange.py --ranks 2 --models deepseek-v3,qwen3-235b --json exchange.json

dispatch: `all_gather_into_tensor` of FP8 rows, group scales, ids and weights, in one coalesced group. combine:
`reduce_scatter_tensor` of bf16 results. Each in a CUDA graph; a sample is the mean over a chain of replays between two
events, behind a barrier; the median over samples; the slowest rank counts. The experts between the two are those of
`run.py`'s peers. Rows are of schema `fp8-moe-bench/1`, as `fp8-moe bench --ranks N --json` writes ours.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from typing import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from data import GROUP, MODELS, Shape

SAMPLES, SAMPLE_US, MOST_REPLAYS = 11, 5000.0, 200


def tensors(shape: Shape, tokens: int, ranks: int, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What travels out: this rank's part, and room for all ranks'."""
    sizes = [(shape.hidden, torch.uint8), (math.ceil(shape.hidden / GROUP), torch.float32),
             (shape.top_k, torch.int32), (shape.top_k, torch.float32)]
    pairs = []
    for columns, dtype in sizes:
        part = torch.randint(0, 100, (tokens, columns), device=device).to(dtype)
        pairs.append((part, torch.empty(ranks * tokens, columns, dtype=dtype, device=device)))
    return pairs


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


def rank(index: int, arguments: argparse.Namespace) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(arguments.port))
    torch.cuda.set_device(index)
    device = torch.device("cuda", index)
    dist.init_process_group("nccl", rank=index, world_size=arguments.ranks, device_id=device)
    rows = []
    for model in arguments.models.split(","):
        shape = MODELS[model]
        for tokens in (int(text) for text in arguments.tokens.split(",")):
            pairs = tensors(shape, tokens, arguments.ranks, device)
            partial = torch.randn(arguments.ranks * tokens, shape.hidden, device=device, dtype=torch.bfloat16)
            out = torch.empty(tokens, shape.hidden, device=device, dtype=torch.bfloat16)

            def dispatch() -> None:
                with dist._coalescing_manager(device=device):
                    for part, everybody in pairs:
                        dist.all_gather_into_tensor(everybody, part)

            def combine() -> None:
                dist.reduce_scatter_tensor(out, partial)

            times = {"dispatch": measure(captured(dispatch)), "combine": measure(captured(combine))}
            if index == 0:
                print(f"{model} {tokens:>6}  dispatch {times['dispatch']:8.1f} us  combine {times['combine']:8.1f} us",
                      flush=True)
            for part, us in times.items():
                rows.append({"implementation": "torch-distributed", "model": model, "shape": shape.as_list(), "tp": 1,
                             "ep": arguments.ranks, "tokens": tokens, "scheme": "block", "routing": "uniform",
                             "part": f"{part} over ranks", "median_us": us})
    if index == 0 and arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"schema": "fp8-moe-bench/1", "program": "exchange.py", "rows": rows}, file, indent=1)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--models", default="deepseek-v3,qwen3-235b")
    parser.add_argument("--tokens", default="1,8,64,512,4096")
    parser.add_argument("--port", type=int, default=29511)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    processes.spawn(rank, (arguments,), nprocs=arguments.ranks)


if __name__ == "__main__":
    main()
