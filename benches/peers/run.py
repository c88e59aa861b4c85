#!/usr/bin/env python3
"""Measures other programs' FP8 MoE layers on a GPU, and our binary beside them. README.md here says how."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

OURS = ("fp8-moe", "fp8-moe-fast")
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

    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",") if number]

    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--peers", help="folder of the peers' files, for those that are not installed")
    p.add_argument("--binary", help="our program, to measure beside them")
    p.add_argument("--models", type=several(tuple(MODELS)), default=list(MODELS), help="default: all")
    p.add_argument("--tokens", type=numbers, default=[1 << power for power in range(15)],
                   help="default: the powers of two up to 16384")
    p.add_argument("--first", type=numbers, default=[1, 8, 64, 512, 4096], metavar="TOKENS",
                   help="batch sizes to measure for all models and schemes before the others")
    p.add_argument("--schemes", type=several(SCHEMES), default=list(SCHEMES), help="the more important first")
    p.add_argument("--parts", type=several(PARTS), default=["layer"], help="of every case")
    p.add_argument("--gemm-models", type=several(tuple(MODELS)), default=list(MODELS),
                   help="models whose GEMMs are measured alone too; default: all")
    p.add_argument("--gemm-tokens", type=numbers, default=[4096], metavar="TOKENS",
                   help="at these batch sizes")
    p.add_argument("--implementations", type=several((*OURS, *PEERS)), help="default: all there are")
    p.add_argument("--routing", default="uniform", help="uniform or zipf:S")
    p.add_argument("--tp", type=int, default=1, help="divide the intermediate dimension by this")
    p.add_argument("--rounds", type=int, default=11)
    p.add_argument("--triton-sweep", type=int, default=12, metavar="N",
                   help="configurations to try besides the one that vLLM tuned for the shape, if any")
    p.add_argument("--time-limit", type=float, default=300.0, metavar="SECONDS")
    p.add_argument("--json", metavar="FILE")
    p.add_argument("--dry-run", action="store_true",
                   help="print the cases in their order, with estimated seconds and memory; needs no GPU")
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
        args.implementations = [*(OURS if args.binary or args.dry_run else ()), *PEERS]
    if any(name in OURS for name in args.implementations) and not (args.binary or args.dry_run):
        p.error("our own program is measured through --binary")
    args.gemm_models = [model for model in args.gemm_models if model in args.models]
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


def start_dumps(args: argparse.Namespace, folder: Path) -> dict[tuple[str, str, int], Any]:
    """Our binary at work on small cases of each of its names and schemes, to be compared with the
    reference.
    """
    from data import CHECK_SHAPE, CHECK_TOKENS
    from ours import Dump
    from trial import offers

    wanted = [(name, scheme, tokens) for name in args.implementations if name in OURS
              for scheme in args.schemes if offers(name, scheme, "layer") for tokens in CHECK_TOKENS]
    return {(name, scheme, tokens): Dump(args.binary, name, CHECK_SHAPE.as_list(), tokens, scheme,
                                         str(folder / f"check-{name}-{scheme}-{tokens}.safetensors"))
            for name, scheme, tokens in wanted}


def check_inputs(args: argparse.Namespace, folder: Path, dumps: dict[tuple[str, str, int], Any],
                 outcome: Any) -> dict[str, str]:
    """A file of inputs for each scheme: our binary's dump, or our own. What became of the dumps goes to
    `outcome`.
    """
    import torch

    import reference
    from data import CHECK_SHAPE, CHECK_TOKENS, WeightBank, load_case, make_case, route, save_case
    from ours import BinaryFailed

    files: dict[str, str] = {}
    for (name, scheme, tokens), dump in dumps.items():
        found = outcome.checks.setdefault((name, scheme), {"rel_l2": 0.0, "exact_rel_l2": 0.0})
        try:
            dump.finish()
            case, out = load_case(dump.path, scheme, torch.device("cuda"))
            for key, distance in zip(("rel_l2", "exact_rel_l2"),
                                     reference.distances(out, case, case.sets[0])):
                found[key] = max(found[key], distance)
            files.setdefault(scheme, dump.path)  # the first is that of most tokens
        except (AttributeError, BinaryFailed, KeyError, RuntimeError, ValueError) as error:
            found["error"] = f"{tokens} tokens: no dump to compare: {error}"
    for scheme in (scheme for scheme in args.schemes if scheme not in files):
        files[scheme] = str(folder / f"check-{scheme}.safetensors")
        bank = WeightBank(CHECK_SHAPE, torch.device("cuda"))
        routed = route(max(CHECK_TOKENS), CHECK_SHAPE, "uniform", 1)
        save_case(make_case("check", CHECK_SHAPE, 1, scheme, "uniform", routed, bank, 0, 1 << 34),
                  files[scheme])
    return files


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
    import schedule

    groups = schedule.order(args.models, args.schemes, args.tokens, args.parts, args.first, args.gemm_models,
                            args.gemm_tokens)
    if args.dry_run:
        print(dry_run(args, groups))
        return 0
    if not torch.cuda.is_available():
        print("no CUDA device: only --self-test and --dry-run work here", file=sys.stderr)
        return 2

    import timing
    from measure import Deadline, Measurement
    from report import Report
    from sources import Sources
    from trial import Outcome, plan, run_trials

    say, deadline = schedule.say, Deadline(args.time_limit - (time.monotonic() - schedule.START))
    report = Report(args.json, shlex.join(sys.argv), device_info())
    report.write()
    clocks("before")
    with tempfile.TemporaryDirectory(prefix="fp8-moe-peers-") as name:
        folder, outcome = Path(name), Outcome()
        dumps = start_dumps(args, folder)
        sources = Sources(args.peers)
        sources.unpack()
        say("the peers are unpacked")
        files = check_inputs(args, folder, dumps, outcome)
        say("our binary has computed its checks")
        common = {"tp": args.tp, "routing": args.routing, "peers": args.peers, "sweep": args.triton_sweep}
        trials = plan(args.implementations, args.schemes, groups, common, files, folder, args.check_only)
        properties = torch.cuda.get_device_properties(0)
        memory = properties.total_memory
        # Leave at least 40 % of the time for measuring, whatever the compilers do.
        torch.cuda.empty_cache()
        run_trials(trials, outcome, memory, 0.6 * deadline.left())
        say("checks:")
        for (implementation, scheme), found in sorted(outcome.checks.items()):
            report.check(implementation, scheme, found)
        if args.check_only:
            return 0
        try:
            device = torch.device("cuda")
            # Weights are read and not written: floors take the rate of a stream that is only read, where our
            # binary can measure one.
            report.rates.update(copy_bytes_per_s=max(timing.copy_rate(device), timing.read_rate(device)),
                                copy_rate_of="the faster of a copy of 1 GiB and a reduction of 2 GiB",
                                read_bytes_per_s=read_rate(args.binary, folder),
                                matrix_flops_per_s=timing.matrix_rate(device),
                                matrix_rate_of="dense FP8 of torch._scaled_mm, row-wise scales, "
                                               "8192 x 8192 x 8192")
            say("rates: copy {copy_bytes_per_s:.3e} bytes/s, read {read_bytes_per_s} bytes/s, "
                "dense FP8 {matrix_flops_per_s:.3e} flop/s".format(**report.rates))
            clocks("warm")
            torch.cuda.empty_cache()
            Measurement(args, groups, sources, outcome, report, deadline, device, properties.L2_cache_size,
                        memory, folder).run()
        finally:
            report.write()
            print(report.table())
            clocks("after")
            say("done")
    return 0


def read_rate(binary: str | None, folder: Path) -> float | None:
    """Bytes a second of a stream of 2 GiB that is only read, by our binary; None where there is none."""
    if not binary:
        return None
    path = folder / "rates.json"
    subprocess.run([binary, "bench", "--shape", "8,2,256,256", "--tokens", "1", "--part", "permute",
                    "--matrix-rate", "1", "--json", str(path)],
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120, check=False)
    try:
        return json.loads(path.read_text())["rates"].get("read_bytes_per_s")
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def dry_run(args: argparse.Namespace, groups: list[Any]) -> str:
    """The cases in their order, for a card of 80 GB."""
    import schedule
    from measure import programs
    from trial import offers

    def contenders(group: Any) -> int:
        return sum(any(offers(name, group.scheme, part) for part in group.parts)
                   for name in args.implementations)

    return schedule.describe(groups, contenders, args.implementations, args.rounds, args.tp, 80 * 10**9,
                             lambda group: programs(args.implementations, group))


if __name__ == "__main__":
    sys.exit(main())
