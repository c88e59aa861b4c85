"""What a layer over many ranks would take, on paper: from what two ranks took, and a stated model of links.

Nothing here is a measurement of more than two ranks. The input is the JSON of `fp8-moe bench --ranks 2 --json
FILE`; the model first predicts those two ranks from itself, so that one sees how far to trust it.

    python3 benches/simulate/simulate.py two.json                       # 2, 4, 8, 16, 64, 320 ranks
    python3 benches/simulate/simulate.py two.json --ranks 8,64 --nic 50 --host 8
    python3 benches/simulate/simulate.py --self-test

The model, for R ranks with T tokens each, k slots, E experts, hidden size H, intermediate size I:

    dispatch   steps + (bytes to ranks of this host) / link + (bytes to ranks of other hosts) / nic
               bytes to one rank: T * (H + 4 * ceil(H / 128) + 8 * k)
    combine    the same with 2 * T * H bytes
    steps      a + b * (R - 1): a fitted to the smallest and the largest batch of two ranks; b is --per-peer
    experts    max(weights of the experts hit / stream, 2 * rows * 3 * H * I / matrix) / efficiency
               rows: R * T * k / R on average, times the expected imbalance of the fullest rank
               efficiency: floor / measured time at two ranks, interpolated over rows an expert
    layer      dispatch + experts + combine: nothing overlaps

Rates inside a host are those of the file where it has them. What stands outside the model: contention between
hosts, switches, stragglers, NCCL's choice of algorithms, and tiles that get emptier when an expert's rows are
spread.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    experts: int
    top_k: int
    hidden: int
    inter: int

    def row_bytes(self) -> tuple[int, int]:
        """Of a token to another rank, and back."""
        return self.hidden + 4 * math.ceil(self.hidden / 128) + 8 * self.top_k, 2 * self.hidden


@dataclass(frozen=True)
class Links:
    """Bytes per second of a rank in each direction, ranks of a host, and microseconds for each further
    peer.
    """

    link: float
    nic: float
    host: int
    per_peer: float
    stream: float = 4.5e12
    matrix: float = 1.5e15

    def exchange_us(self, ranks: int, bytes_to_one: float, start_us: float) -> float:
        near = min(ranks, self.host) - 1
        far = ranks - 1 - near
        wire = near * bytes_to_one / self.link + far * bytes_to_one / self.nic
        return start_us + self.per_peer * (ranks - 2) + wire * 1e6


def imbalance(rows: float, ranks: int) -> float:
    """The fullest of `ranks` ranks over the mean, of `rows` independent rows each on average (normal
    extremes).
    """
    if ranks < 2 or rows <= 0:
        return 1.0
    return 1.0 + math.sqrt(2.0 * math.log(ranks) / rows)


def experts_floor_us(shape: Shape, ranks: int, tokens: int, links: Links) -> float:
    """Weights of the experts that are hit, or products, whichever takes longer."""
    rows = tokens * shape.top_k * imbalance(tokens * shape.top_k, ranks)
    local = shape.experts / ranks
    hit = local * (1.0 - (1.0 - 1.0 / local) ** rows) if local > 1 else 1.0
    weights = 3.0 * shape.hidden * shape.inter
    return max(hit * weights / links.stream, 2.0 * rows * weights / links.matrix) * 1e6


@dataclass
class Measured:
    """Two ranks, one model: microseconds by part and tokens."""

    shape: Shape
    times: dict[str, dict[int, float]]

    def efficiency(self, links: Links, rows_per_expert: float) -> float:
        points = sorted(
            (2.0 * t * self.shape.top_k / self.shape.experts, experts_floor_us(self.shape, 2, t, links) / us)
            for t, us in self.times["experts"].items())
        below = [p for p in points if p[0] <= rows_per_expert] or points[:1]
        above = [p for p in points if p[0] >= rows_per_expert] or points[-1:]
        (x0, y0), (x1, y1) = below[-1], above[0]
        if x0 == x1:
            return y0
        part = (math.log(rows_per_expert) - math.log(x0)) / (math.log(x1) - math.log(x0))
        return y0 + part * (y1 - y0)

    def start_us(self, part: str, index: int, links: Links) -> float:
        """What the smallest batch took beyond its bytes."""
        tokens, us = min(self.times[part].items())
        return us - tokens * self.shape.row_bytes()[index] / links.link * 1e6


def predict(measured: Measured, ranks: int, tokens: int, links: Links) -> dict[str, float]:
    shape = measured.shape
    out = {}
    for index, part in enumerate(("dispatch", "combine")):
        bytes_to_one = tokens * shape.row_bytes()[index]
        out[part] = links.exchange_us(ranks, bytes_to_one, measured.start_us(part, index, links))
    rows_per_expert = ranks * tokens * shape.top_k / shape.experts
    out["experts"] = experts_floor_us(shape, ranks, tokens, links) / measured.efficiency(links,
        rows_per_expert)
    out["layer"] = sum(out.values())
    return out


def read(path: str) -> dict[str, Measured]:
    models: dict[str, Measured] = {}
    for row in json.load(open(path))["rows"]:
        part, _, over = row["part"].partition(" ")
        if over == "over ranks" and row["ep"] == 2 and row.get("median_us"):
            name = f"{row['model']}, {row['scheme']}, {row['routing']}"
            measured = models.setdefault(name, Measured(Shape(*row["shape"]), {}))
            measured.times.setdefault(part, {})[row["tokens"]] = row["median_us"]
    return models


def fitted_link(measured: Measured) -> float:
    """Bytes per second by the difference of the largest and the smallest combination."""
    times = measured.times["combine"]
    (small, a), (large, b) = min(times.items()), max(times.items())
    return (large - small) * measured.shape.row_bytes()[1] / max(b - a, 1e-3) * 1e6


def report(models: dict[str, Measured], ranks: list[int], arguments: argparse.Namespace) -> None:
    print("ON PAPER: a model's predictions from two measured ranks, not measurements.\n")
    for name, measured in models.items():
        link = arguments.link * 1e9 if arguments.link else fitted_link(measured)
        links = Links(link, arguments.nic * 1e9, arguments.host, arguments.per_peer)
        print(f"{name}: link {link / 1e9:.0f} GB/s, nic {arguments.nic:.0f} GB/s, "
              f"{arguments.host} ranks a host")
        print(f"{'tokens':>7} {'measured 2':>11} {'predicted 2':>12}"
              + "".join(f"{r:>10} ranks" for r in ranks))
        for tokens, us in sorted(measured.times["layer"].items()):
            two = predict(measured, 2, tokens, links)["layer"]
            many = [predict(measured, r, tokens, links)["layer"] for r in ranks]
            print(f"{tokens:>7} {us:>11.1f} {two:>12.1f}" + "".join(f"{v:>16.1f}" for v in many))
        print()


def self_test() -> None:
    shape = Shape(256, 8, 7168, 2048)
    assert shape.row_bytes() == (7168 + 224 + 64, 14336)
    links = Links(link=400e9, nic=50e9, host=8, per_peer=0.5)
    # Two ranks whose parts follow the model are predicted exactly, at every batch size.
    times: dict[str, dict[int, float]] = {part: {} for part in ("dispatch", "combine", "experts", "layer")}
    for tokens in (1, 64, 4096):
        for index, part in enumerate(("dispatch", "combine")):
            times[part][tokens] = links.exchange_us(2, tokens * shape.row_bytes()[index], 10.0)
        times["experts"][tokens] = experts_floor_us(shape, 2, tokens, links) / 0.8
        times["layer"][tokens] = sum(times[part][tokens] for part in ("dispatch", "combine", "experts"))
    measured = Measured(shape, times)
    for tokens in (1, 64, 4096):
        assert math.isclose(predict(measured, 2, tokens, links)["layer"], times["layer"][tokens],
                            rel_tol=1e-9)
    assert math.isclose(fitted_link(measured), 400e9, rel_tol=1e-6)
    # More ranks move more, and across hosts through slower links; each reads fewer weights.
    at = {r: predict(measured, r, 64, links) for r in (2, 8, 16)}
    assert at[2]["combine"] < at[8]["combine"] < at[16]["combine"]
    assert at[16]["combine"] - at[8]["combine"] > 8 * 64 * 14336 / 50e9 * 1e6
    assert at[8]["experts"] < at[2]["experts"]
    assert imbalance(8, 1) == 1.0 and imbalance(8, 64) > imbalance(800, 64) > 1.0
    print("self-test passed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", help="JSON of `fp8-moe bench --ranks 2`")
    parser.add_argument("--ranks", default="4,8,16,64,320", help="ranks to predict")
    parser.add_argument("--link", type=float,
                        help="GB/s of a rank inside a host; fitted to the file otherwise")
    parser.add_argument("--nic", type=float, default=50.0, help="GB/s of a rank between hosts")
    parser.add_argument("--host", type=int, default=8, help="ranks of a host")
    parser.add_argument("--per-peer", type=float, default=0.5,
                        help="microseconds that each further peer adds")
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    if arguments.self_test:
        return self_test()
    if not arguments.file:
        parser.error("name the JSON of `fp8-moe bench --ranks 2`")
    models = read(arguments.file)
    if not models:
        sys.exit(f"{arguments.file} has no times of two ranks")
    report(models, [int(text) for text in arguments.ranks.split(",")], arguments)


if __name__ == "__main__":
    main()
