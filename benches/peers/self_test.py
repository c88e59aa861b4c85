"""Tests of this program that need no GPU: `run.py --self-test`, with `--peers DIR` also against the peers'
own code.

Triton kernels run in Triton's interpreter where Triton is installed; other operators are replaced by `fakes`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import time
import traceback
from importlib.util import find_spec
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Callable
from unittest import mock

os.environ.setdefault("TRITON_INTERPRET", "1")  # before the first import of triton

import torch

import fakes
import ours
import reference
import report
import timing
from data import (CHECK_SHAPE, E4M3, MODELS, Case, Shape, WeightBank, Weights, active_experts, load_case,
                  make_case,
                  random_e4m3, random_hidden, route, route_table, save_case, sets_needed, zipf_exponent)
from sources import Sources

CPU = torch.device("cpu")
TESTS: list[Callable[[], str | None]] = []


class Skip(Exception):
    """What the test needs is not here."""


def test(function: Callable[[], str | None]) -> Callable[[], str | None]:
    TESTS.append(function)
    return function


def small_case(scheme: str, tokens: int, shape: Shape = Shape(8, 2, 1024, 256)) -> Case:
    torch.manual_seed(tokens)
    routed = route(tokens, shape, "uniform", 1)
    return make_case("check", shape, 1, scheme, "uniform", routed, WeightBank(shape, CPU), 0, 1 << 34)


@test
def routing_is_distinct_and_normalised() -> None:
    shape = MODELS["qwen3-235b"]
    for kind in ("uniform", "zipf:1.2"):
        ids, gates = route(512, shape, kind, 3)
        assert ids.dtype == torch.int32 and ids.shape == gates.shape == (512, 8)
        assert 0 <= int(ids.min()) and int(ids.max()) < 128
        assert all(len(set(row)) == 8 for row in ids.tolist())
        assert torch.allclose(gates.sum(1), torch.ones(512))
        again = route(512, shape, kind, 3)
        assert torch.equal(ids, again[0]) and torch.equal(gates, again[1])
    counts = [torch.bincount(route(4096, shape, kind, 3)[0].view(-1).long(), minlength=128)
              for kind in ("uniform", "zipf:1")]
    assert counts[0].min() > 128 and counts[1].max() > 3 * counts[0].max()
    table, _ = route_table([1, 8, 64], shape, "uniform", 1)
    one, few, many = active_experts(table, [1, 8, 64])
    assert table.shape == (64, 8) and one == 8 and abs(few - 51.5) < 3 and abs(many
        - 126) < 3  # the expected counts
    for kind in ("zipf", "zipf:x", "zipf:11", "all"):
        try:
            zipf_exponent(kind)
        except ValueError:
            continue
        raise AssertionError(f"{kind} was taken")


@test
def weights_are_finite_and_sets_outgrow_the_cache() -> None:
    w = random_e4m3((4, 256, 256), CPU).float()
    assert torch.isfinite(w).all() and w.abs().max() <= 448 and 80 < float(w.std()) < 120
    assert sets_needed(MODELS["qwen3-30b"], 8, 50 << 20, 80 << 30) == 6
    assert sets_needed(MODELS["mixtral-8x7b"], 2, 50 << 20, 80 << 30) == 1
    assert sets_needed(MODELS["deepseek-v3"], 1, 50 << 20, 36 << 30) == 3
    try:
        sets_needed(MODELS["deepseek-v3"], 1, 50 << 20, 8 << 30)
    except MemoryError as error:
        assert "10.5 GiB, 8.0 GiB may be used" in str(error)
    else:
        raise AssertionError("weights larger than the memory were taken")


@test
def the_most_important_cases_come_first() -> None:
    import schedule
    from schedule import Group

    def order(**changes: list) -> list[Group]:
        arguments = {"models": ["mixtral-8x7b", "qwen3-30b"], "schemes": ["block", "per-token"],
                     "tokens": [1, 8, 4096],
                     "parts": ["layer"], "first": [1, 4096], "gemm_models": ["qwen3-30b"],
                     "gemm_tokens": [4096]}
        return schedule.order(**{**arguments, **changes})

    groups, layer, gemms = order(), ("layer",), ("gemm1", "gemm2")
    assert groups[:4] == [Group(m, s, (1, 4096), layer) for s in ("block", "per-token")
                          for m in ("mixtral-8x7b", "qwen3-30b")]
    assert groups[4:6] == [Group("qwen3-30b", s, (4096,), gemms) for s in ("block", "per-token")]
    assert groups[6:] == [Group(g.model, g.scheme, (8,), layer) for g in groups[:4]]
    assert not any(g.parts == gemms for g in order(parts=["layer", "gemm1", "gemm2"])), "no case twice"
    assert all(g.tokens == (8,) for g in order(tokens=[8], gemm_models=[]))


@test
def every_model_fits_an_80_gb_card() -> None:
    from schedule import program_budget, weight_memory

    for model, shape in MODELS.items():
        for programs, most in ((2, 16384), (3, 4096)):
            memory = weight_memory(shape, most, program_budget(80 * 10**9, programs))
            assert memory > shape.weight_bytes, f"{model}, {programs} programs: {memory / 2**30:.1f} GiB"


@test
def quantisers() -> None:
    x = torch.tensor([[0.0, 1.0, -448.0, 3.3], [0.0, 0.0, 0.0, 0.0]])
    q, s = reference.quantise_rows(x)
    assert s[0] == 1.0 and s[1] == 1.0 / (448 * 512) and q.float()[0].tolist() == [0.0, 1.0, -448.0, 3.25]
    q, s = reference.quantise_groups(torch.randn(3, 200))
    assert q.shape == (3, 200) and s.shape == (3, 2) and torch.isfinite(q.float()).all()


@test
def each_gemm_has_its_fastest_configuration() -> None:
    import vllm_triton
    from vllm_triton import VllmTriton, candidates

    case = small_case("block", 8)
    many = [candidates(small_case("block", tokens), 99) for tokens in (8, 128, 1024)]
    assert all(len(found) >= 10 and len({json.dumps(c, sort_keys=True) for c in found}) == len(found)
               for found in many)
    # At height 16 the first GEMM likes option 1 and the second option 2; at height 32 one is better in the
    # first alone.
    times = {("gemm1", 0): 5.0, ("gemm1", 1): 4.0, ("gemm1", 2): 6.0, ("gemm1", 5): 1.0,
             ("gemm2", 0): 5.0, ("gemm2", 1): 6.0, ("gemm2", 2): 3.0, ("gemm2", 5): 9.0}
    options = candidates(case, 6)

    class Fake:
        def __init__(self, case: Case, kernel: object, config: dict) -> None:
            self.parts = {part: (part, options.index(config)) for part in ("gemm1", "gemm2")}

        def forward(self, weights: object) -> None:
            if self.parts["gemm1"][1] == 3:
                raise RuntimeError("out of shared memory")

    class Timed:
        def __init__(self, call: tuple[str, int], sets: object) -> None:
            self.call = call

        def best(self, samples: int) -> float:
            return times.get(self.call, 99.0)

    triton = VllmTriton.__new__(VllmTriton)
    triton.kernel, triton.folder, triton.sweep = None, None, 6
    with mock.patch.object(triton, "layer_of", Fake, create=True), mock.patch.object(timing, "Graphs",
        Timed), \
            mock.patch.object(triton, "options", lambda case: options):
        assert triton.fastest(case) == (options[1], options[2])


@test
def reference_against_loops() -> None:
    """The same sums, one output element at a time."""
    for scheme in ("per-token", "block"):
        shape = Shape(3, 2, 160, 144)  # no multiples of 128, on purpose
        case = small_case(scheme, 3, shape)
        w, got = case.sets[0], reference.layer(case, case.sets[0])

        def weight(q: torch.Tensor, s: torch.Tensor, e: int, n: int, k: int) -> float:
            return float(q[e, n, k]) * float(s[e, n] if scheme == "per-token" else s[e, n // 128, k // 128])

        def value(q: torch.Tensor, s: torch.Tensor, k: int) -> float:
            return float(q[0, k]) * float(s[0] if scheme == "per-token" else s[0, k // 128])

        token, want = 1, [0.0, 0.0]
        xq, xs = reference.quantise(case.hidden[token : token + 1], scheme)
        for slot in range(2):
            e, both = int(case.ids[token, slot]), []
            for n in range(288):
                both.append(sum(value(xq, xs, k) * weight(w.w13, w.w13_scale, e, n, k) for k in range(160)))
            gate, up = torch.tensor(both[:144], dtype=torch.float64), torch.tensor(both[144:],
                dtype=torch.float64)
            aq, as_ = reference.quantise((gate / (1 + torch.exp(-gate)) * up)[None], scheme)
            for column in range(2):
                y = sum(value(aq, as_, k) * weight(w.w2, w.w2_scale, e, column, k) for k in range(144))
                want[column] += y * float(case.gates[token, slot])
        assert all(abs(float(got[token, c]) - want[c]) < 1e-6 * (1 + abs(want[c])) for c in range(2)), scheme


@test
def dumped_cases_come_back() -> None:
    if not find_spec("safetensors"):
        raise Skip("safetensors is not installed")
    case = small_case("block", 5)
    with tempfile.TemporaryDirectory() as folder:
        save_case(case, f"{folder}/case.safetensors")
        back, out = load_case(f"{folder}/case.safetensors", "block", CPU)
    assert out is None and back.shape == case.shape and torch.equal(back.ids, case.ids)
    assert torch.equal(reference.layer(back, back.sets[0]), reference.layer(case, case.sets[0]))


@test
def floors() -> None:
    shape = MODELS["mixtral-8x7b"]
    ids = torch.tensor([[0, 5]], dtype=torch.int32)
    case = Case("mixtral-8x7b", shape, shape, 1, "per-token", "uniform", random_hidden(1, 4096, CPU, 1), ids,
                torch.ones(1, 2))
    flops, size = report.work(case, "layer")
    assert flops == 6 * 2 * 14336 * 4096
    assert size == 2 * (3 * 14336 * 4096 + 4 * (2 * 14336 + 4096)) + 4 * 4096 + 16
    rates = {"matrix_flops_per_s": 1.6e15, "copy_bytes_per_s": 4.3e12}
    assert abs(report.floor_us(flops, size, rates) - 82.0) < 0.5
    one, two = report.work(case, "gemm1"), report.work(case, "gemm2")
    assert one[0] + two[0] == flops and one[0] == 2 * two[0]


@test
def documents_have_the_schema() -> None:
    case = small_case("block", 4)
    rates = {"matrix_flops_per_s": 1e15, "copy_bytes_per_s": 3e12}
    with tempfile.TemporaryDirectory() as folder:
        made = report.Report(f"{folder}/out.json", "run.py", {"name": "none"})
        made.rates.update(rates)
        made.check("deepgemm", "block", {"rel_l2": 0.005, "exact_rel_l2": 0.0172})
        times = timing.summary([[3.0, 1.0, 2.0], [5.0, 4.0, 6.0], [2.0, 2.0, 2.0]])
        assert times["median_us"] == 2.0 and times["p10_us"] == 1.8 and 5.0 <= times["p90_us"] <= 5.4
        made.add(report.timed_row("deepgemm", case, "gemm1", times, 3, rates))
        made.add(report.empty_row("fp8-moe", "m", [1, 1, 1, 1], 1, 4, "block", "uniform", "layer",
                                  "no such thing"))
        assert "no such thing" not in made.table() and "error" in made.table()
        document = json.loads(Path(f"{folder}/out.json").read_text())
        assert "1.72e-02" in made.table()
    assert report.problems(document) == []
    assert [row["exact_rel_l2"] for row in document["rows"]] == [0.0172, None]
    assert report.memory_rate({"copy_bytes_per_s": 4.3e12, "read_bytes_per_s": 4.6e12}) == 4.6e12
    assert report.memory_rate({"copy_bytes_per_s": 4.3e12, "read_bytes_per_s": None}) == 4.3e12
    del document["rows"][0]["floor_us"]
    document["rows"][1]["error"] = None
    assert len(report.problems(document)) == 2


FAKE_BINARY = """
import json, sys
if '--dump' in sys.argv: sys.exit('no such option')
value = lambda name: sys.argv[sys.argv.index(name) + 1].split(',')
print('a line that is no JSON')
for t in value('--tokens'):
    for part in value('--part'):
        print(json.dumps({'ready': {'tokens': int(t), 'part': part, 'launches': 4, 'extra': 1}}), flush=True)
        for line in sys.stdin:
            if line.strip() == 'next': break
            if line.strip() == 'quit': sys.exit(0)
            if t == '64': sys.exit('out of memory')
            print(json.dumps({'us': [float(t), 2.0]}), flush=True)
"""


@test
def lockstep_with_a_fake_binary() -> None:
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder, "fake")
        binary.write_text(f"#!{sys.executable}\n{FAKE_BINARY}")
        binary.chmod(0o755)
        program = ours.Ours([str(binary), "bench", "--model", "mixtral-8x7b"])
        program.start([1, 8, 64], ["layer", "gemm1"])
        assert program.case(1, "layer")["launches"] == 4
        assert program.round() == [1.0, 2.0] and program.round() == [1.0, 2.0]
        assert program.case(8, "gemm1")["tokens"] == 8  # passes over two cases
        found = timing.interleave({"fp8-moe": program}, 3)["fp8-moe"]
        assert found == [[8.0, 2.0]] * 3
        assert program.case(8, "gemm1")["part"] == "gemm1"  # the present one: nothing is asked of the process
        program.case(64, "layer")
        failure = timing.interleave({"fp8-moe": program}, 2)["fp8-moe"]
        assert isinstance(failure, ours.BinaryFailed) and "out of memory" in str(failure)
        assert program.case(1, "gemm1")["part"] == "gemm1"  # a new process
        refused = ours.Ours([sys.executable, "-c", "raise SystemExit('refused')"])
        began = time.monotonic()
        for tokens in (1, 8):
            try:
                refused.case(tokens, "layer")
                raise AssertionError("a binary that ended was ready")
            except ours.BinaryFailed as error:
                assert "refused" in str(error), error
        assert time.monotonic() - began < 20
        program.close()
        try:
            ours.Dump(str(binary), "fp8-moe", CHECK_SHAPE.as_list(), 64, "block", f"{folder}/x").finish()
            raise AssertionError("a failed dump went unnoticed")
        except ours.BinaryFailed as error:
            assert "no such option" in str(error)


@test
def measuring_goes_on_past_failures() -> None:
    """The whole loop with stand-ins for the graphs and the peers: who fails gets an error row, the rest are
    timed.
    """
    import measure
    import trial
    from peer import Layer, Peer, Unsupported
    from schedule import Group

    class Timed:
        launches = 7

        def __init__(self, call: Callable, sets: list) -> None:
            call(sets[0])

        def round(self) -> list[float]:
            return [10.0, 11.0, 12.0]

    class Fake(Peer):
        def __init__(self, name: str):
            self.name = name

        def build(self, case: Case) -> Layer:
            if self.name == "cublaslt":
                raise Unsupported("too small")
            layer = Layer()
            layer.forward = lambda w: w.w13
            layer.parts = {"gemm1": lambda w: None}
            if self.name == "vllm-triton":
                layer.parts["gemm1"] = lambda w: 1 // 0
            return layer

    args = SimpleNamespace(routing="uniform", tp=2, rounds=2, triton_sweep=1, binary="/nonexistent",
                           implementations=["fp8-moe", "fp8-moe-fast", "vllm-cutlass", "vllm-triton",
                                            "torch-grouped", "cublaslt"])
    groups = [Group("tiny", scheme, (2, 4096), ("layer", "gemm1")) for scheme in ("block", "per-token")]
    groups.append(Group("huge", "block", (2,), ("layer",)))
    outcome = trial.Outcome()
    outcome.checks["vllm-cutlass", "per-token"] = {"rel_l2": 0.5}
    outcome.cases["torch-grouped", "per-token", "tiny/2"] = None
    made = report.Report(None, "test", {})
    made.rates.update(matrix_flops_per_s=1e15, copy_bytes_per_s=3e12)
    deadline = measure.Deadline(1000.0)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(timing, "Graphs", Timed), \
            mock.patch.dict(MODELS, tiny=Shape(4, 2, 256, 512), huge=Shape(1 << 20, 2, 1024, 512)), \
            mock.patch.object(measure, "make_peer", lambda name, sources, sweep: Fake(name)):
        measure.Measurement(args, groups, Sources(None), outcome, made, deadline, CPU, 50 << 20, 80 << 30,
                            Path(folder)).run()
        deadline.stop = 0.0
        measured = len(made.document["rows"])
        measure.Measurement(args, groups, Sources(None), outcome, made, deadline, CPU, 50 << 20, 80 << 30,
                            Path(folder)).run()
    assert report.problems(made.document) == []
    rows, late = made.document["rows"][:measured], made.document["rows"][measured:]
    assert late and all(row["error"] == "skipped: time limit" for row in late)
    timed = [row for row in rows if row["error"] is None]
    assert {(r["implementation"], r["part"]) for r in timed} == {("torch-grouped", "gemm1")}
    assert not any(r["implementation"] in ("torch-grouped", "cublaslt") for r in late if r["part"] == "layer")
    assert all("GiB may be used" in r["error"] for r in rows
               if r["model"] == "huge"), "too large for the card"
    assert timed[0]["median_us"] == 11.0 and timed[0]["launches"] == 7
    assert timed[0]["shape"] == [4, 2, 256, 512]
    errors = {row["implementation"]: row["error"] for row in rows if row["error"] and row["part"] == "gemm1"}
    assert "0.5" not in errors["fp8-moe"] and "fp8-moe-fast" in errors
    assert "5.00e-01" in errors["vllm-cutlass"]
    assert "ZeroDivisionError" in errors["vllm-triton"] and "cublaslt" not in errors


@test
def trials_run_apart() -> None:
    import trial
    from schedule import Group

    with tempfile.TemporaryDirectory() as folder:
        common = {"tp": 1, "routing": "uniform", "peers": None, "sweep": 2}
        checks = {"per-token": "a", "block": "b"}
        models = ["mixtral-8x7b", "qwen3-30b", "glm-4.6"]
        groups = [Group(m, s, (1, 8, 512), ("layer",)) for s in ("per-token", "block") for m in models]
        groups.append(Group("qwen3-30b", "per-token", (4096,), ("gemm1",)))
        names = ["fp8-moe", "vllm-cutlass", "vllm-triton", "deepgemm", "torch-grouped"]
        plan = trial.plan(names, ["per-token", "block"], groups, common, checks, Path(folder), False)
        found = {(t.implementation, t.scheme, *t.models, *t.tokens) for t in plan}
        assert {("deepgemm", "block", m, *t) for m in models for t in ((1, 8), (512,))} <= found
        assert ("vllm-triton", "block", "qwen3-30b", "glm-4.6", 1,
                8) in found, "the same number of experts per token"
        assert ("torch-grouped", "per-token", "qwen3-30b",
                4096) in found, "what has no layer is tried on the GEMMs alone"
        assert [str(t) for t in plan][:3] == ["vllm-triton, per-token: check", "vllm-triton, block: check",
                                              "deepgemm, block: check"], [str(t) for t in plan]
        assert len(plan) == 3 + 6 + 8 + 1 + 1 and plan[-1].implementation in ("vllm-cutlass", "torch-grouped")
        checked = {(t.implementation, t.scheme) for t in plan if t.check_file}
        assert len(checked) == 5 and sum(bool(t.check_file) for t in plan) == 5
        cutlass = [t for t in plan if t.implementation == "vllm-cutlass"]
        if torch.cuda.is_available():
            raise Skip("a trial would run the device")
        outcome = trial.Outcome()
        trial.run_trials(cutlass, outcome, 1 << 40, 120)
        error = outcome.objection("vllm-cutlass", "per-token", "qwen3-30b", 8)
        assert error and "not installed" in error, error


def _sources() -> Sources:
    from run import arguments

    sources = Sources(arguments().peers)
    sources.unpack()
    return sources


def _with_fakes(real: bool) -> None:
    """Put the stand-ins where the layers look for vLLM's operators."""
    for name, operators in (("_C", fakes.C), ("_moe_C", fakes.MOE_C)):
        loaded = getattr(torch.ops, name) if real else None
        setattr(torch.ops, name, fakes.namespace(operators, loaded))


@test
def silu_quantise_kernel() -> None:
    try:
        import deepgemm_kernels
    except ImportError:
        raise Skip("triton is not installed") from None
    h1 = torch.randn(20, 512).to(torch.bfloat16)
    q, scale = torch.empty(20, 256, dtype=E4M3), torch.empty(2, 20).t()
    deepgemm_kernels.silu_quantise(h1, q, scale)
    want, want_scale = reference.quantise_groups(fakes.silu_mul(h1))
    assert torch.allclose(scale, want_scale, rtol=1e-5, atol=0)
    # One unit in the last place. The interpreter rounds less well than the GPU: it loses the carry into the
    # exponent, so results that are powers of two are left out, and values under 2^-6 may become zero.
    step = (want.float().abs() / 8).clamp(min=2.0**-6)
    power = torch.frexp(want.float().abs()).mantissa == 0.5
    assert bool((((q.float() - want.float()).abs() <= step) | power).all())


def _peers_with_fakes() -> tuple[Sources, bool]:
    """The peers' sources with stand-in operators, and whether those know the real ones' schemas."""
    if not find_spec("triton"):
        raise Skip("triton is not installed")
    sources, real = _sources(), True
    try:
        sources.load_vllm_ops()
    except (OSError, ImportError):
        real = False  # the libraries need a driver to load
    _with_fakes(real)
    sources.deep_gemm = lambda: fakes.deep_gemm
    return sources, real


@test
def layers_of_the_peers() -> str:
    """Each peer's layer with stand-in operators, against the reference; Triton kernels interpreted."""
    sources, real = _peers_with_fakes()
    import deepgemm_kernels
    from deepgemm import Contiguous, Masked
    from peer import first
    from vllm_cutlass import CutlassLayer
    from vllm_triton import TritonLayer, candidates

    def check(name: str, layer, case: Case) -> None:
        distance = layer.distance(case, case.sets[0])
        # Twice the tolerance of a GPU: the interpreter's rounding to bf16 is off in places.
        what = f"{name}, {case.tokens} tokens, {case.scheme}"
        assert distance < 2 * reference.TOLERANCE, f"{what}: {distance:.2e}"
        done.append(f"{name}/{case.scheme}/{case.tokens} {distance:.0e}")

    done: list[str] = []
    for tokens in (5, 48):
        case = small_case("per-token", tokens)
        check("cutlass", CutlassLayer(case), case)
    check("cutlass, first 8", CutlassLayer(first(case, 8)), first(case, 8))
    try:
        kernel = sources.triton_moe().invoke_fused_moe_triton_kernel
    except ImportError:
        raise Skip(f"no --peers; done: {', '.join(done)}") from None
    for scheme in ("per-token", "block"):
        for tokens, shape in ((24, Shape(8, 2, 1024, 256)), (1, Shape(8, 2, 1024, 256))):
            case = small_case(scheme, tokens, shape)
            check("triton", TritonLayer(case, kernel, candidates(case, 1)[0]), case)
    # The interpreter's rounding to e4m3 would blur the comparison, so this kernel is tested apart, above.
    deepgemm_kernels.silu_quantise = lambda h1, q, scale: fakes.silu_and_mul_per_block_quant(q, h1, scale,
        128, None,
                                                                                             False)
    for kind in (Masked, Contiguous):
        case = small_case("block", 20)
        check(f"deepgemm {kind.__name__}", kind(case, sources), case)
    return ("operator schemas checked; " if real else "operator schemas not checked; ") + ", ".join(done)


@test
def experts_over_ranks() -> str:
    """What the ranks' experts make of all rows adds up to the whole layer."""
    sources, _ = _peers_with_fakes()
    import deepgemm_kernels
    from ranks import DeepGemmOverRanks, Ranks, TritonOverRanks
    from vllm_triton import candidates

    try:
        kernel = sources.triton_moe().invoke_fused_moe_triton_kernel
    except ImportError:
        raise Skip("no --peers") from None
    shape, done = Shape(8, 2, 1024, 256), []
    deepgemm_kernels.silu_quantise = lambda h1, q, scale: fakes.silu_and_mul_per_block_quant(q, h1, scale,
        128, None,
                                                                                             False)
    for tokens in (12, 1):
        cases, ranks = [], [Ranks("check", shape, rank, 2, tokens, CPU) for rank in range(2)]
        for rank, of_rank in enumerate(ranks):
            torch.manual_seed(rank)
            cases.append(of_rank.case(tokens))
        own = [case.sets[0] for case in cases]
        whole = Weights(*(torch.cat([getattr(w, name).view(torch.uint8) for w in own]).view(getattr(own[0],
            name).dtype)
                          for name in ("w13", "w13_scale", "w2", "w2_scale")))
        full = replace(cases[0], shape=shape)
        kinds = {"triton": lambda rank, case: TritonOverRanks(rank.map, case, kernel, candidates(case, 1)[0]),
                 "deepgemm": lambda rank, case: DeepGemmOverRanks(rank.map, rank.first, case, sources)}
        for name, make in kinds.items():
            parts = [make(rank, case).forward(case.sets[0]).float() for rank, case in zip(ranks, cases)]
            distance = reference.distance(sum(parts), full, whole)
            assert distance < 2 * reference.TOLERANCE, f"{name}, {tokens} tokens: {distance:.2e}"
            assert min(float(part.norm()) for part in parts) > 0.0, "each rank has some of the experts"
            done.append(f"{name}/{tokens} {distance:.0e}")
    return ", ".join(done)


def main() -> int:
    tally = {"passed": 0, "failed": 0, "skipped": 0}
    for function in TESTS:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                said = function()
            verdict = "passed"
        except Skip as reason:
            verdict, said = "skipped", str(reason)
        except Exception:
            verdict, said = "failed", traceback.format_exc()
        tally[verdict] += 1
        print(f"{verdict:8} {function.__name__}" + (f": {said}" if said else ""), flush=True)
    print(", ".join(f"{count} {verdict}" for verdict, count in tally.items()))
    return 1 if tally["failed"] else 0
