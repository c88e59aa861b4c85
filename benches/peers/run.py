#!/usr/bin/env python3
"""Measures other programs' FP8 MoE layers on a GPU, and our binary beside them. README.md here says how."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

PEERS = ("vllm-cutlass", "vllm-triton", "deepgemm", "torch-grouped", "cublaslt")


def arguments() -> argparse.Namespace:
    from data import MODELS, PARTS, SCHEMES, zipf_exponent

    def several(known: tuple[str, ...]) -> Any:
        def parse(text: str) -> list[str]:
            chosen = text.split(",")
            unknown = [name for name in chosen if name not in known]
            if unknown:
                raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(known)}")
            return chosen

        return parse

    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--peers", help="folder of the peers' files, for those that are not installed")
    p.add_argument("--binary", help="our program, to measure beside them")
    p.add_argument("--models", type=several(tuple(MODELS)), default=["mixtral-8x7b", "qwen3-235b"])
    p.add_argument("--tokens", type=lambda s: [int(t) for t in s.split(",")], default=[1, 8, 64, 4096])
    p.add_argument("--schemes", type=several(SCHEMES), default=list(SCHEMES))
    p.add_argument("--parts", type=several(PARTS), default=list(PARTS))
    p.add_argument("--implementations", type=several(("fp8-moe", *PEERS)), help="default: all there are")
    p.add_argument("--routing", default="uniform", help="uniform or zipf:S")
    p.add_argument("--tp", type=int, default=1, help="divide the intermediate dimension by this")
    p.add_argument("--rounds", type=int, default=11)
    p.add_argument("--triton-sweep", type=int, default=4, metavar="N",
                   help="configurations to try where vLLM has none tuned for the shape")
    p.add_argument("--time-limit", type=float, default=480.0, metavar="SECONDS")
    p.add_argument("--json", metavar="FILE")
    p.add_argument("--check-only", action="store_true", help="compare results, time nothing")
    p.add_argument("--self-test", action="store_true", help="test this program itself; needs no GPU")
    p.add_argument("--trial", help=argparse.SUPPRESS)
    args = p.parse_args()
    args.parts = [part for part in PARTS if part in args.parts]  # our binary's order
    try:
        zipf_exponent(args.routing)
    except ValueError as error:
        p.error(str(error))
    if args.implementations is None:
        args.implementations = [*(["fp8-moe"] if args.binary else []), *PEERS]
    if "fp8-moe" in args.implementations and not args.binary:
        p.error("fp8-moe is measured through --binary")
    return args


def device_info() -> dict[str, Any]:
    import torch

    from report import nvidia_smi

    properties = torch.cuda.get_device_properties(0)
    driver = nvidia_smi("driver_version")
    return {"name": properties.name, "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count, "memory_bytes": properties.total_memory,
            "emulated": False, "driver": driver[0] if driver else "unknown"}


def clocks(when: str) -> None:
    from report import nvidia_smi

    fields = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "clocks_event_reasons.active")
    values = nvidia_smi(",".join(fields))
    print(f"{when}: " + ", ".join(f"{f} {v}" for f, v in zip(fields, values)), flush=True)


def check_inputs(args: argparse.Namespace, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """A file of inputs for each scheme: our binary's dump, or our own; and why a dump could not be had."""
    import torch

    from data import CHECK_SHAPE, CHECK_TOKENS, WeightBank, make_case, route, save_case
    from ours import BinaryFailed, dump

    files, failures = {}, {}
    for scheme in args.schemes:
        files[scheme] = str(folder / f"check-{scheme}.safetensors")
        if args.binary:
            try:
                dump(args.binary, CHECK_SHAPE.as_list(), CHECK_TOKENS, scheme, files[scheme])
                continue
            except BinaryFailed as error:
                failures[scheme] = str(error)
        bank = WeightBank(CHECK_SHAPE, torch.device("cuda"))
        routed = route(CHECK_TOKENS, CHECK_SHAPE, "uniform", 1)
        save_case(make_case("check", CHECK_SHAPE, 1, scheme, "uniform", routed, bank, 0, 1 << 34), files[scheme])
    return files, failures


def check_ours(files: dict[str, str], failures: dict[str, str], outcome: Any) -> None:
    """Our binary's output against the reference, on the inputs that it dumped."""
    import torch

    import reference
    from data import load_case

    for scheme, path in files.items():
        found: dict[str, Any] = {"error": failures.get(scheme)}
        if scheme not in failures:
            try:
                case, out = load_case(path, scheme, torch.device("cuda"))
                found = ({"error": "the dump has no output"} if out is None
                         else {"rel_l2": reference.distance(out, case, case.sets[0])})
            except (KeyError, RuntimeError, ValueError) as error:
                found = {"error": f"the dump cannot be read: {error}"}
        outcome.checks["fp8-moe", scheme] = found


def main() -> int:
    args = arguments()
    if args.self_test:
        import self_test

        return self_test.main()
    import torch

    if args.trial:
        import trial

        trial.run_trial(args.trial)
        return 0
    if not torch.cuda.is_available():
        print("no CUDA device: only --self-test works here", file=sys.stderr)
        return 2

    import timing
    from measure import Deadline, Measurement
    from report import Report
    from sources import Sources
    from trial import plan, run_trials

    deadline, began = Deadline(args.time_limit), time.monotonic()
    report = Report(args.json, shlex.join(sys.argv), device_info())
    report.write()
    clocks("before")
    with tempfile.TemporaryDirectory(prefix="fp8-moe-peers-") as name:
        folder = Path(name)
        sources = Sources(args.peers)
        sources.unpack()
        files, failures = check_inputs(args, folder)
        common = {"tp": args.tp, "routing": args.routing, "peers": args.peers, "sweep": args.triton_sweep}
        trials = plan(args.implementations, args.schemes, args.models, args.tokens, common, files, folder,
                      args.check_only)
        properties = torch.cuda.get_device_properties(0)
        memory = properties.total_memory
        # Leave at least 40 % of the time for measuring, whatever the compilers do.
        outcome = run_trials(trials, memory, 0.6 * deadline.left())
        if "fp8-moe" in args.implementations:
            check_ours(files, failures, outcome)
        print(f"checks, after {time.monotonic() - began:.0f} s:")
        for (implementation, scheme), found in sorted(outcome.checks.items()):
            report.check(implementation, scheme, found.get("rel_l2"), found.get("error"))
        if args.check_only:
            return 0
        try:
            device = torch.device("cuda")
            report.rates.update(copy_bytes_per_s=timing.copy_rate(device),
                                matrix_flops_per_s=timing.matrix_rate(device),
                                matrix_rate_of="dense FP8 of torch._scaled_mm, row-wise scales, 8192 x 8192 x 8192")
            print("rates: copy {copy_bytes_per_s:.3e} bytes/s, dense FP8 {matrix_flops_per_s:.3e} flop/s"
                  .format(**report.rates), flush=True)
            clocks("warm")
            Measurement(args, sources, outcome, report, deadline, device, properties.L2_cache_size, memory,
                        folder).run()
        finally:
            report.write()
            print(report.table())
            clocks("after")
            print(f"{time.monotonic() - began:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
