"""The timing loop: every case of every group, all programs in turn, one row each."""

from __future__ import annotations

import contextlib
import gc
import time
from pathlib import Path
from typing import Any

import torch

import timing
from data import MODELS, Case, WeightBank, make_case, route_table, save_routing
from ours import ACCUMULATION, BinaryFailed, Ours
from peer import Layer, Peer, Unsupported
from report import Report, Row, empty_row, floor_us, timed_row
from schedule import GIB, Group, program_budget, say, weight_memory
from sources import Sources
from trial import OFFERS, Outcome, make_peer, offers, one_line


class Deadline:
    """The moment after which no further case is begun."""

    def __init__(self, seconds: float):
        self.stop = time.monotonic() + seconds

    def left(self) -> float:
        return self.stop - time.monotonic()


def our_names(implementations: list[str], group: Group) -> list[str]:
    """The names under which our binary is measured in a group."""
    return [name for name in implementations if name in ACCUMULATION
            and offers(name, group.scheme, group.parts[0])]


def programs(implementations: list[str], group: Group) -> int:
    """How many processes have weights on the device: ours, and this one with all peers."""
    return len(our_names(implementations, group)) + 1


class Measurement:
    def __init__(self, args: Any, groups: list[Group], sources: Sources, outcome: Outcome, report: Report,
                 deadline: Deadline, device: torch.device, l2_bytes: int, memory_bytes: int, folder: Path):
        self.args, self.groups, self.sources, self.outcome = args, groups, sources, outcome
        self.report, self.deadline = report, deadline
        self.device, self.l2, self.memory, self.folder = device, l2_bytes, memory_bytes, folder
        self.peers: dict[str, Peer] = {}
        self.routed: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.slowest = 5.0  # seconds that a batch size has taken at most: the reserve for the next

    def run(self) -> None:
        for group in self.groups:
            self._group(group)
            gc.collect()
            torch.cuda.empty_cache()

    def _routing(self, model: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The model's routing, the same for all its groups; also written for our binary."""
        if model not in self.routed:
            most = sorted({t for group in self.groups if group.model == model for t in group.tokens})
            self.routed[model] = route_table(most, MODELS[model], self.args.routing, 1)
            save_routing(*self.routed[model], self._routing_file(model))
        return self.routed[model]

    def _routing_file(self, model: str) -> str:
        return str(self.folder / f"{model}.safetensors")

    def _group(self, group: Group) -> None:
        if self.deadline.left() < self.slowest:
            for tokens in group.tokens:
                self._skip(group, tokens)
            return
        routed, ours = self._routing(group.model), self._ours(group)
        budget = program_budget(self.memory, programs(self.args.implementations, group))
        bank = WeightBank(MODELS[group.model].split(self.args.tp), self.device)
        try:
            for tokens in group.tokens:
                if self.deadline.left() < self.slowest:
                    self._skip(group, tokens)
                    continue
                began = time.monotonic()
                say(f"{group}: {tokens} tokens")
                self._case(group, tokens, (routed[0][:tokens], routed[1][:tokens]), bank, budget, ours)
                gc.collect()
                self.slowest = max(self.slowest, time.monotonic() - began)
        finally:
            for program in ours.values():
                program.close()

    def _ours(self, group: Group) -> dict[str, Ours]:
        """Our binary under its names, each a process over all cases of the group."""
        rate = self.report.rates["matrix_flops_per_s"] / 1e12
        names = our_names(self.args.implementations, group)
        budget = program_budget(self.memory, programs(self.args.implementations, group))
        started = {}
        for name in names:
            started[name] = Ours([self.args.binary, "bench", "--model", group.model, "--scheme", group.scheme,
                                  "--tp",
                                  str(self.args.tp), "--accumulation", ACCUMULATION[name], "--memory-limit",
                                  f"{budget / GIB:.3f}", "--routing", self._routing_file(group.model),
                                  "--matrix-rate", f"{rate:.3f}"])
            with contextlib.suppress(OSError):  # each case tries again and gets a row that says why
                started[name].start(group.tokens, group.parts)
        return started

    def _skip(self, group: Group, tokens: int) -> None:
        self._errors(group, tokens, "skipped: time limit")

    def _errors(self, group: Group, tokens: int, error: str) -> None:
        """A row with the error for everything that the case would have measured."""
        for part in group.parts:
            for name in self.args.implementations:
                if offers(name, group.scheme, part):
                    self.report.add(self._error(name, group.model, group.scheme, tokens, part, error))

    def _error(self, name: str, model: str, scheme: str, tokens: int, part: str, error: str) -> Row:
        return empty_row(name, model, MODELS[model].as_list(), self.args.tp * MODELS[model].tp, tokens,
                         scheme, self.args.routing, part, error)

    def _case(self, group: Group, tokens: int, routed: tuple[torch.Tensor, torch.Tensor], bank: WeightBank,
              budget: int, ours: dict[str, Ours]) -> None:
        try:
            case = make_case(group.model, MODELS[group.model], self.args.tp, group.scheme, self.args.routing,
                             routed, bank, self.l2, weight_memory(bank.shape, tokens, budget))
        except (MemoryError, torch.OutOfMemoryError) as error:
            self._errors(group, tokens, one_line(error))
            return
        for program in ours.values():
            # It prepares on the same device, which would disturb the choice among Triton configurations. A
            # failure is met again, and reported, with the part.
            with contextlib.suppress(BinaryFailed, OSError):
                program.case(tokens, group.parts[0])
        layers: dict[str, Layer] = {}
        failed: dict[str, str] = {}
        peers = [name for name in self.args.implementations if name not in ACCUMULATION]
        for name in (n for n in peers if any(offers(n, case.scheme, part) for part in group.parts)):
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
        for part in group.parts:
            self._part(case, part, layers, failed, ours)

    def _part(self, case: Case, part: str, layers: dict[str, Layer], failed: dict[str, str],
              ours: dict[str, Ours]) -> None:
        contenders: dict[str, timing.Contender] = {}
        errors = dict(failed)
        ready: dict[str, dict[str, Any]] = {}
        for name, program in ours.items():
            objection = self.outcome.objection(name, case.scheme, case.model, case.tokens)
            try:
                if objection:
                    raise BinaryFailed(objection)
                ready[name] = program.case(case.tokens, part)
                contenders[name] = program
            except (BinaryFailed, OSError) as error:
                errors[name] = str(error)
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
                chosen = getattr(layers.get(name), "configuration", None)
                self.report.add(self._row(name, case, part, times, contenders[name], ready.get(name), chosen))
        for name, reason in errors.items():
            if offers(name, case.scheme, part):
                self.report.add(self._error(name, case.model, case.scheme, case.tokens, part, reason))

    def _row(self, name: str, case: Case, part: str, times: list[list[float]], contender: timing.Contender,
             ready: dict[str, Any] | None, configuration: Any) -> Row:
        row = timed_row(name, case, part, timing.summary(times), getattr(contender, "launches", None),
                        self.report.rates)
        row["configuration"] = configuration
        if ready is not None:
            # Our own account of its work, where it gives one: its first GEMM may contain the activation.
            told = ("launches", "flops", "bytes", "counted", "accumulation")
            row.update({key: ready[key] for key in told if key in ready})
            if self.report.rates and row["flops"] and row["bytes"]:
                floor = floor_us(row["flops"], row["bytes"], self.report.rates)
                row.update(floor_us=floor, fraction=floor / row["median_us"])
        return row
