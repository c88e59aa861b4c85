"""The timing loop: every case of every model, all programs in turn, one row each."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

import torch

import timing
from data import MODELS, Case, WeightBank, make_case, route_table, save_routing
from ours import BinaryFailed, Ours
from peer import Layer, Peer, Unsupported
from report import Report, Row, empty_row, floor_us, timed_row
from sources import Sources
from trial import OFFERS, Outcome, make_peer, offers, one_line


class Deadline:
    """The moment after which no further case is begun."""

    def __init__(self, seconds: float):
        self.stop = time.monotonic() + seconds

    def left(self) -> float:
        return self.stop - time.monotonic()


class Measurement:
    def __init__(self, args: Any, sources: Sources, outcome: Outcome, report: Report, deadline: Deadline,
                 device: torch.device, l2_bytes: int, memory_bytes: int, folder: Path):
        self.args, self.sources, self.outcome = args, sources, outcome
        self.report, self.deadline = report, deadline
        self.device, self.l2, self.memory, self.folder = device, l2_bytes, memory_bytes, folder
        self.peers: dict[str, Peer] = {}
        self.slowest = 5.0  # seconds that a batch size has taken at most: the reserve for the next

    def run(self) -> None:
        for model in self.args.models:
            bank = WeightBank(MODELS[model].split(self.args.tp), self.device)
            routed = route_table(self.args.tokens, MODELS[model], self.args.routing, 1)
            save_routing(*routed, str(self.folder / f"{model}.safetensors"))
            for scheme in self.args.schemes:
                self._scheme(model, scheme, bank, routed)
            del bank
            gc.collect()
            torch.cuda.empty_cache()

    def _scheme(self, model: str, scheme: str, bank: WeightBank, routed: tuple[torch.Tensor, torch.Tensor]) -> None:
        args, ours = self.args, None
        if "fp8-moe" in args.implementations and self.deadline.left() > 0:
            rate = self.report.rates["matrix_flops_per_s"] / 1e12
            ours = Ours([args.binary, "bench", "--model", model, "--scheme", scheme, "--tp", str(args.tp), "--routing",
                         str(self.folder / f"{model}.safetensors"), "--matrix-rate", f"{rate:.3f}"])
            try:
                ours.start(args.tokens, args.parts)
            except OSError:
                pass  # each case tries again and gets a row that says why
        try:
            for tokens in args.tokens:
                if self.deadline.left() < self.slowest:
                    self._skip(model, scheme, tokens)
                    continue
                began = time.monotonic()
                print(f"{model} {scheme} {tokens} tokens", flush=True)
                first = (routed[0][:tokens], routed[1][:tokens])
                case = make_case(model, MODELS[model], args.tp, scheme, args.routing, first, bank, self.l2, self.memory)
                self._case(case, ours)
                gc.collect()
                self.slowest = max(self.slowest, time.monotonic() - began)
        finally:
            if ours:
                ours.close()

    def _skip(self, model: str, scheme: str, tokens: int) -> None:
        for part in self.args.parts:
            for name in self.args.implementations:
                if offers(name, scheme, part):
                    self.report.add(self._error(name, model, scheme, tokens, part, "skipped: time limit"))

    def _error(self, name: str, model: str, scheme: str, tokens: int, part: str, error: str) -> Row:
        return empty_row(name, model, MODELS[model].as_list(), self.args.tp, tokens, scheme, self.args.routing, part,
                         error)

    def _case(self, case: Case, ours: Ours | None) -> None:
        layers: dict[str, Layer] = {}
        failed: dict[str, str] = {}
        if ours:
            try:  # it prepares on the same device, which would disturb the choice among Triton configurations
                ours.case(case.tokens, self.args.parts[0])
            except (BinaryFailed, OSError):
                pass  # tried again, and reported, with the part
        for name in self.args.implementations:
            if name == "fp8-moe" or case.scheme not in OFFERS[name][0]:
                continue
            objection = self.outcome.objection(name, case.scheme, case.model, case.tokens)
            if objection:
                failed[name] = objection
                continue
            try:
                if name not in self.peers:
                    self.peers[name] = make_peer(name, self.sources, self.args.triton_sweep)
                layers[name] = self.peers[name].build(case)
                if "layer" in layers[name].parts:  # leaves the inputs of gemm1 and gemm2 in its buffers
                    layers[name].forward(case.sets[0])
            except Unsupported:
                layers.pop(name, None)
            except Exception as error:
                layers.pop(name, None)
                failed[name] = one_line(error)
        for part in self.args.parts:
            self._part(case, part, layers, failed, ours)

    def _part(self, case: Case, part: str, layers: dict[str, Layer], failed: dict[str, str],
              ours: Ours | None) -> None:
        contenders: dict[str, timing.Contender] = {}
        errors = dict(failed)
        ready: dict[str, Any] = {}
        if ours:
            objection = self.outcome.objection("fp8-moe", case.scheme, case.model, case.tokens)
            try:
                if objection:
                    raise BinaryFailed(objection)
                ready = ours.case(case.tokens, part)
                contenders["fp8-moe"] = ours
            except (BinaryFailed, OSError) as error:
                errors["fp8-moe"] = str(error)
        for name, layer in layers.items():
            if part in layer.parts:
                try:
                    contenders[name] = timing.Graphs(layer.parts[part], case.sets)
                except Exception as error:
                    errors[name] = one_line(error)
        found = timing.interleave(contenders, self.args.rounds)
        for name in self.args.implementations:
            times = found.get(name)
            if isinstance(times, Exception):
                errors[name] = one_line(times)
            elif times:
                self.report.add(self._row(name, case, part, times, contenders[name], ready))
        for name, reason in errors.items():
            if offers(name, case.scheme, part):
                self.report.add(self._error(name, case.model, case.scheme, case.tokens, part, reason))

    def _row(self, name: str, case: Case, part: str, times: list[list[float]], contender: timing.Contender,
             ready: dict[str, Any]) -> Row:
        row = timed_row(name, case, part, timing.summary(times), getattr(contender, "launches", None),
                        self.report.rates)
        if name == "fp8-moe":
            # Its own account of its work, where it gives one: its first GEMM may contain the activation.
            row.update({key: ready[key] for key in ("launches", "flops", "bytes", "counted") if key in ready})
            if self.report.rates and row["flops"] and row["bytes"]:
                floor = floor_us(row["flops"], row["bytes"], self.report.rates)
                row.update(floor_us=floor, fraction=floor / row["median_us"])
        return row
