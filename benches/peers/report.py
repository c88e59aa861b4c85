"""Rows, floors, and the JSON that is written after every row, so that a killed run leaves what it
measured.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
from typing import Any

from data import GROUP, PARTS, SCHEMES, Case

SCHEMA = "fp8-moe-bench/1"
VERSION = "0.1.0"
IMPLEMENTATIONS = ("fp8-moe", "fp8-moe-fast", "vllm-cutlass", "vllm-triton", "deepgemm", "torch-grouped",
                   "cublaslt")
TIMES = ("median_us", "p10_us", "p90_us")
ROW_KEYS = ("implementation", "model", "shape", "tp", "ep", "tokens", "scheme", "routing", "part",
            "accumulation", *TIMES, "launches", "flops", "bytes", "floor_us", "fraction", "error", "counted",
            "exact_rel_l2", "configuration")
Row = dict[str, Any]


def work(case: Case, part: str) -> tuple[int, int]:
    """Operations, and the bytes that must cross the memory bus at least once.

    Weights and scales of the active experts, and the part's inputs and outputs; what stays inside a layer is
    not counted, as it could stay in the cache.
    """
    h, i, rows, active = case.shape.hidden, case.shape.inter, case.rows, case.active

    def weights(n: int, k: int) -> int:
        scales = n if case.scheme == "per-token" else -(-n // GROUP) * -(-k // GROUP)
        return active * (n * k + 4 * scales)

    def activations(cols: int) -> int:
        return cols + 4 * (1 if case.scheme == "per-token" else -(-cols // GROUP))

    flops = {"gemm1": 4 * rows * i * h, "gemm2": 2 * rows * i * h}
    size = {"gemm1": weights(2 * i, h) + rows * (activations(h) + 4 * i),
            "gemm2": weights(h, i) + rows * (activations(i) + 2 * h)}
    if part != "layer":
        return flops[part], size[part]
    return sum(flops.values()), weights(2 * i, h) + weights(h, i) + 4 * case.tokens * h + 8 * rows


def memory_rate(rates: dict[str, Any]) -> float:
    """Bytes a second that memory delivers: of a stream that is only read, or where there is none of a
    copy.
    """
    return max(rates.get("read_bytes_per_s") or 0.0, rates["copy_bytes_per_s"])


def floor_us(flops: int, size: int, rates: dict[str, Any]) -> float:
    """The longer of the time to compute and the time to move the bytes, at the card's measured rates."""
    return round(max(flops / rates["matrix_flops_per_s"], size / memory_rate(rates)) * 1e6, 3)


def empty_row(implementation: str, model: str, shape: list[int], tp: int, tokens: int, scheme: str,
              routing: str, part: str, error: str | None = None) -> Row:
    row: Row = dict.fromkeys(ROW_KEYS)
    row.update(implementation=implementation, model=model, shape=shape, tp=tp, ep=1, tokens=tokens,
               scheme=scheme, routing=routing, part=part, flops=0, bytes=0, error=error)
    return row


def timed_row(implementation: str, case: Case, part: str, times: dict[str, float], launches: int | None,
              rates: dict[str, Any]) -> Row:
    row = empty_row(implementation, case.model, case.full.as_list(), case.tp, case.tokens, case.scheme,
                    case.routing, part)
    flops, size = work(case, part)
    floor = floor_us(flops, size, rates)
    row.update(times, launches=launches, flops=flops, bytes=size, floor_us=floor,
               fraction=floor / times["median_us"])
    return row


def problems(document: dict[str, Any]) -> list[str]:
    """What keeps a document from being of this schema."""
    found = [f"no {key}" for key in ("program", "version", "date", "command", "device", "rates", "rows")
             if key not in document]
    if document.get("schema") != SCHEMA:
        found.append(f"schema is {document.get('schema')!r}")
    for index, row in enumerate(document.get("rows", [])):
        missing = [key for key in ROW_KEYS if key not in row]
        if missing:
            found.append(f"row {index} lacks {', '.join(missing)}")
            continue
        known = row["part"] in PARTS and row["scheme"] in SCHEMES
        if not known or row["implementation"] not in IMPLEMENTATIONS:
            found.append(f"row {index} has an unknown part, scheme or implementation")
        if row["error"] is None and not all(isinstance(row[key], float) for key in TIMES):
            found.append(f"row {index} has neither times nor an error")
    return found


class Report:
    """The document of one run."""

    def __init__(self, path: str | None, command: str, device: dict[str, Any]):
        self.path = path
        self.errors: dict[tuple[str, str], float] = {}
        self.document: dict[str, Any] = {
            "schema": SCHEMA, "program": "peers", "version": VERSION,
            "date": datetime.date.today().isoformat(),
            "command": command, "device": device, "rates": {}, "checks": [], "rows": [],
        }

    @property
    def rates(self) -> dict[str, Any]:
        return self.document["rates"]

    def add(self, row: Row) -> None:
        row["exact_rel_l2"] = self.errors.get((row["implementation"], row["scheme"]))
        self.document["rows"].append(row)
        self.write()
        said = f"error: {row['error']}" if row["error"] else f"{row['median_us']:10.2f} us"
        if row["fraction"]:
            said += f"  {100 * row['fraction']:5.1f} % of the floor"
        print(f"  {row['implementation']:14} {row['part']:6} {said}", flush=True)

    def check(self, implementation: str, scheme: str, found: dict[str, Any]) -> None:
        """What a program's results were compared with: `rel_l2` from the nearest reference, `exact_rel_l2`
        from exact arithmetic on the quantised operands. The latter goes to every row of the program as
        well."""
        distance, exact, error = (found.get(key) for key in ("rel_l2", "exact_rel_l2", "error"))
        self.document["checks"].append({"implementation": implementation, "scheme": scheme,
                                        "rel_l2": distance, "exact_rel_l2": exact, "error": error})
        if exact is not None:
            self.errors[implementation, scheme] = exact
        self.write()
        from_exact = f", {exact:.2e} from exact arithmetic" if exact else ""
        said = error or f"relative L2 {distance:.2e}{from_exact}"
        print(f"  {implementation:14} {scheme:10} {said}", flush=True)

    def write(self) -> None:
        """Replace the file at once, so that it is whole at any moment."""
        if self.path:
            with open(self.path + ".part", "w") as out:
                json.dump({**self.document, "rates": self.rates or None}, out, indent=1)
                out.write("\n")
            os.replace(self.path + ".part", self.path)

    def table(self) -> str:
        """Implementations side by side: microseconds, and the fraction of the floor."""
        names = [n for n in IMPLEMENTATIONS if any(r["implementation"] == n for r in self.document["rows"])]
        lines: dict[tuple[Any, ...], dict[str, str]] = {}
        for row in self.document["rows"]:
            key = tuple(row[k] for k in ("model", "scheme", "part", "tokens"))
            if row["error"]:
                cell = "skipped" if row["error"].startswith("skipped") else "error"
            else:
                fraction = f" {100 * row['fraction']:.0f}%" if row["fraction"] else ""
                cell = f"{row['median_us']:.1f}{fraction}"
            lines.setdefault(key, {})[row["implementation"]] = cell
        head = f"{'model':18}{'scheme':11}{'part':7}{'tokens':>7}" + "".join(f"{n:>16}" for n in names)
        body = [f"{k[0]:18}{k[1]:11}{k[2]:7}{k[3]:>7}" + "".join(f"{cells.get(n, '-'):>16}" for n in names)
                for k, cells in sorted(lines.items())]
        found = sorted(self.errors.items())
        exact = ["distance from exact arithmetic on the quantised operands, relative L2:",
                 *(f"  {name:14} {scheme:10} {distance:.2e}" for (name, scheme), distance in found)]
        exact = exact if found else []
        return "\n".join([head, *body, *exact])


def nvidia_smi(fields: str) -> list[str]:
    """Values of the first device's fields, or nothing where the tool is missing."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", "-i", "0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [value.strip() for value in done.stdout.strip().split(",")]
