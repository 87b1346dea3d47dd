"""Paired runs: two things measured in turns, so that what else the machine does meets both alike."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Ratio:
    """Median of the pairs' ratios, their quartiles, and the medians of both sides."""

    ratio: float
    low: float
    high: float
    ours: float
    theirs: float
    pairs: int

    def line(self, what: str, *, target: str = "", unit: str = "") -> str:
        wanted = f"   to reach {target}" if target else ""
        return (
            f"{what:<52} {self.ratio:6.2f}x  ({self.low:.2f} to {self.high:.2f}, {self.pairs} pairs)"
            f"   {self.ours:.4g} against {self.theirs:.4g} {unit}{wanted}"
        )

    def record(self, target: str = "") -> dict[str, Any]:
        return {
            "ratio": round(self.ratio, 3),
            "quartiles": [round(self.low, 3), round(self.high, 3)],
            "ours": self.ours,
            "theirs": self.theirs,
            "pairs": self.pairs,
            "target": target,
        }


def paired(ours: Callable[[], float], theirs: Callable[[], float], *, pairs: int, warm_up: int = 1) -> Ratio:
    """Ratio ours / theirs of what the two return (seconds, or a rate), from `pairs` alternating runs."""
    for _ in range(warm_up):
        ours()
        theirs()
    measured = [(ours(), theirs()) for _ in range(pairs)]
    return summary(measured)


def summary(measured: Sequence[tuple[float, float]]) -> Ratio:
    ratios = [a / b for a, b in measured]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0], 0, ratios[0])
    return Ratio(
        ratio=statistics.median(ratios),
        low=low,
        high=high,
        ours=statistics.median(a for a, _ in measured),
        theirs=statistics.median(b for _, b in measured),
        pairs=len(measured),
    )


def save(name: str, results: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    machine = {"python": platform.python_version(), "cores": os.cpu_count()}
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine, **results}, indent=2) + "\n")


def saved(name: str) -> dict[str, Any]:
    """What was saved last; empty if nothing was."""
    path = RESULTS / f"{name}.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results.pop("machine", None)
    return results
