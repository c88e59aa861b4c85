"""Tries every peer in processes of its own before anything is timed.

That serves three ends: a peer that crashes the device takes no other down; results are compared with the
reference; and the compilers (Triton, DeepGEMM's nvcc) run side by side, filling caches on disk that the
timing process then hits. A trial makes no random weights and times nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import reference
from data import (E4M3, MODELS, PARTS, SCHEMES, Case, Shape, Weights, load_case, random_hidden, route,
                  scale_shape)
from ours import ACCUMULATION
from peer import Peer, Unsupported
from schedule import GIB, Group, activation_bytes, say
from sources import Sources

PARALLEL = 16
MEMORY_SHARE = 0.85  # of the device: what all trial processes may hold at once


def make_peer(name: str, sources: Sources, sweep: int) -> Peer:
    """Imports one peer's module; its constructor loads the peer's libraries."""
    if name == "vllm-cutlass":
        from vllm_cutlass import VllmCutlass

        return VllmCutlass(sources)
    if name == "vllm-triton":
        from vllm_triton import VllmTriton

        return VllmTriton(sources, sweep)
    if name == "deepgemm":
        from deepgemm import DeepGemm

        return DeepGemm(sources)
    from torch_grouped import CublasLt, TorchGrouped

    return {"torch-grouped": TorchGrouped, "cublaslt": CublasLt}[name]()


# What each peer has: schemes, parts.
OFFERS = {"vllm-cutlass": (("per-token",), PARTS), "vllm-triton": (SCHEMES, PARTS),
          "deepgemm": (("block",), PARTS),
          "torch-grouped": (("per-token",), PARTS[1:]), "cublaslt": (SCHEMES, PARTS[1:]),
          "fp8-moe": (SCHEMES, PARTS), "fp8-moe-fast": (("per-token",), PARTS)}
# Those whose first call on a shape takes seconds, and the batch size at which the kernels change most.
COMPILES, SPLIT = ("vllm-triton", "deepgemm"), 256


def offers(implementation: str, scheme: str, part: str) -> bool:
    """Whether there is such a thing to measure."""
    schemes, parts = OFFERS[implementation]
    return scheme in schemes and part in parts


@dataclass
class Trial:
    """What one process tries: one peer, one scheme, some models."""

    implementation: str
    scheme: str
    models: list[str]
    tokens: list[int]
    tp: int
    routing: str
    peers: str | None
    sweep: int
    check_file: str | None
    result: str

    @property
    def device_bytes(self) -> int:
        """What the process holds at most: the weights of one model at a time, buffers, a context."""
        shapes = [MODELS[m].split(self.tp) for m in self.models]
        most = max(self.tokens, default=0)
        return int(max((s.weight_bytes + activation_bytes(s, most) for s in shapes), default=0) + GIB)

    def __str__(self) -> str:
        tokens = ", ".join(map(str, self.tokens))
        what = f"{', '.join(self.models)}; {tokens} tokens" if self.models else "check"
        return f"{self.implementation}, {self.scheme}: {what}"


def one_line(error: BaseException) -> str:
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    return f"{type(error).__name__}: " + " ".join(f"{error}{cause}".split())[:300]


def blank_case(model: str, trial: Trial, tokens: int, weights: Weights, device: torch.device) -> Case:
    full = MODELS[model]
    shape = full.split(trial.tp)
    ids, gates = route(tokens, shape, trial.routing, 1)
    return Case(model, full, shape, trial.tp * full.tp, trial.scheme, trial.routing,
                random_hidden(tokens, shape.hidden, device, 1), ids.to(device), gates.to(device), [weights])


def blank_weights(shape: Shape, scheme: str, device: torch.device) -> Weights:
    """Weights of any content: a trial run compiles, and its numbers are not looked at."""
    e, h, i = shape.experts, shape.hidden, shape.inter

    def scales(rows: int, cols: int) -> torch.Tensor:
        return torch.ones(scale_shape(e, rows, cols, scheme), device=device)

    return Weights(torch.empty(e, 2 * i, h, dtype=E4M3, device=device), scales(2 * i, h),
                   torch.empty(e, h, i, dtype=E4M3, device=device), scales(h, i))


def run_trial(spec: str) -> None:
    """The child process: results go to a file after each step, so that a crash loses only the step it hit."""
    trial = Trial(**json.loads(Path(spec).read_text()))
    result: dict[str, Any] = {"check": None, "cases": {}}

    def save() -> None:
        Path(trial.result).write_text(json.dumps(result))

    device = torch.device("cuda")
    try:
        peer = make_peer(trial.implementation, Sources(trial.peers), trial.sweep)
        if trial.check_file:
            case, _ = load_case(trial.check_file, trial.scheme, device)
            rel_l2, exact = peer.check(case)
            result["check"] = {"rel_l2": rel_l2, "exact_rel_l2": exact}
    except Exception as error:
        result["check"] = {"error": one_line(error)}
        save()
        return
    save()
    for model in trial.models:
        weights: Weights | None = None
        for tokens in trial.tokens:
            found = None
            try:
                weights = weights or blank_weights(MODELS[model].split(trial.tp), trial.scheme, device)
                peer.warm(blank_case(model, trial, tokens, weights, device))
                torch.cuda.synchronize()
            except (Unsupported, torch.OutOfMemoryError):
                # Other trials share the device's memory: whether the case fits is seen when it is measured.
                pass
            except Exception as error:
                found = one_line(error)
            result["cases"][f"{model}/{tokens}"] = found
            save()
        del weights
        torch.cuda.empty_cache()


def plan(implementations: list[str], schemes: list[str], groups: list[Group], common: dict[str, Any],
         checks: dict[str, str], folder: Path, check_only: bool) -> list[Trial]:
    """One process for each peer and scheme, over the cases of `groups` that it offers; several where a peer
    compiles.

    Such a peer's check is a process too, as it compiles for sizes of its own. DeepGEMM compiles for a model's
    sizes. Triton compiles for a number of experts per token, whatever the sizes: in one process, models of
    the same find what the first of them compiled.
    """
    trials: list[Trial] = []
    for name in (name for name in implementations if name not in ACCUMULATION):
        for scheme in (s for s in schemes if s in OFFERS[name][0]):
            wanted = [g for g in groups if g.scheme == scheme
                      and any(offers(name, scheme, part) for part in g.parts)]
            models = list(dict.fromkeys(g.model for g in wanted))
            tokens = sorted({t for g in wanted for t in g.tokens})
            cuts = [(models, tokens)]
            if name in COMPILES:
                small, large = [t for t in tokens if t < SPLIT], [t for t in tokens if t >= SPLIT]
                halves = [half for half in (small, large) if half]
                alike: dict[Any, list[str]] = {}
                for model in models:
                    alike.setdefault(MODELS[model].top_k if name == "vllm-triton" else model,
                                     []).append(model)
                cuts = [([], []), *((some, half) for some in alike.values() for half in halves)]
            for index, (some, batch) in enumerate([([], [])] if check_only else cuts):
                trials.append(Trial(name, scheme, some, batch,
                                    check_file=checks[scheme] if index == 0 else None,
                                    result=str(folder / f"trial-{len(trials)}.json"), **common))
    # The longest first: compilers, of them the checks and those with several models, then the largest
    # weights.
    return sorted(trials, key=lambda t: (t.implementation not in COMPILES, len(t.models) > 0, -len(t.models),
                                         -t.device_bytes))


class Outcome:
    """What the trials found, as answers to: may this peer be timed on this case?"""

    def __init__(self) -> None:
        self.checks: dict[tuple[str, str], dict[str, Any]] = {}
        self.cases: dict[tuple[str, str, str], str | None] = {}

    def collect(self, trial: Trial, ended: str | None) -> None:
        path = Path(trial.result)
        found = json.loads(path.read_text()) if path.exists() else {"check": None, "cases": {}}
        if trial.check_file:
            self.checks[trial.implementation, trial.scheme] = found["check"] or {"error": ended
                or "no result"}
        for model in trial.models:
            for tokens in trial.tokens:
                key = f"{model}/{tokens}"
                self.cases[trial.implementation, trial.scheme, key] = found["cases"].get(key,
                    ended or "not tried")

    def objection(self, implementation: str, scheme: str, model: str, tokens: int) -> str | None:
        check = self.checks.get((implementation, scheme), {})
        if check.get("error"):
            return check["error"]
        if check.get("rel_l2", 0.0) > reference.TOLERANCE:
            return f"wrong result: relative L2 {check['rel_l2']:.2e}"
        return self.cases.get((implementation, scheme, f"{model}/{tokens}"))


def run_trials(trials: list[Trial], outcome: Outcome, memory_bytes: int, seconds: float) -> None:
    """Run the trials side by side, as many as processors and device memory allow, for at most `seconds`."""
    waiting = list(trials)
    running: list[tuple[Trial, subprocess.Popen[bytes], Path]] = []
    stop = time.monotonic() + seconds
    most = min(PARALLEL, os.cpu_count() or 1)
    while waiting or running:
        used = sum(trial.device_bytes for trial, _, _ in running)
        for trial in list(waiting):
            if len(running) < most and (not running or used + trial.device_bytes < MEMORY_SHARE
                                        * memory_bytes):
                running.append(start(trial))
                waiting.remove(trial)
                used += trial.device_bytes
        late = time.monotonic() > stop
        for entry in list(running):
            trial, process, log = entry
            if process.poll() is None and not late:
                continue
            if process.poll() is None:
                process.kill()
                process.wait()
            running.remove(entry)
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            if late:
                ended = "skipped: not compiled within the time limit"
            else:
                ended = f"trial ended with {process.returncode}: {lines[-1][:200] if lines else ''}"
            outcome.collect(trial, ended)
            say(f"trial ended with {process.returncode}: {trial}")
        if late:
            for trial in waiting:
                outcome.collect(trial, "skipped: not tried within the time limit")
            break
        time.sleep(0.05)


def start(trial: Trial) -> tuple[Trial, subprocess.Popen[bytes], Path]:
    spec, log = Path(trial.result).with_suffix(".spec"), Path(trial.result).with_suffix(".log")
    spec.write_text(json.dumps(asdict(trial)))
    run = Path(__file__).with_name("run.py")
    with open(log, "wb") as out:
        process = subprocess.Popen([sys.executable, str(run), "--trial", str(spec)], stdout=out, stderr=out)
    return trial, process, log
