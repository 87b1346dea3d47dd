"""Real faults on real processes: `python -m tests.faults [--scale 0.1] [--only NAME,...] [--seed N]`, as root.

Prints how each scenario went and what the judge found; exit code 1 when a promise was not kept. A full run
(`--scale 1`) takes about an hour, a tenth of it is part of the tests.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from tests.faults.bench_put import Putter
from tests.faults.cluster import FaultCluster, until
from tests.faults.judge import Findings, Judge, running
from tests.faults.ledger import Ledger
from tests.faults.network import Network
from tests.faults.programme import SCENARIOS, Scenario
from tests.faults.scenarios import LIMIT_S, Scene
from tests.faults.troubles import why_not

NODES = 3
BYSTANDERS = 6


async def perform(
    cluster: FaultCluster, scenarios: Sequence[Scenario], *, scale: float, seed: int
) -> tuple[dict[str, dict[str, list[float]]], Findings, int]:
    """Figures by scenario, the judge's findings, and how many faults there were."""
    await cluster.start()
    judge, putter = Judge(cluster.etcd_addresses), Putter(cluster.etcd_addresses)
    ledger = Ledger(cluster.servers, cluster.token, image=cluster.image)
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    *_, writing = tasks = [asyncio.ensure_future(each.run()) for each in (judge, putter, ledger)]
    faults = 0
    try:
        for number in range(BYSTANDERS):
            await ledger.apply_until_acknowledged(f"bystander-{number}", command=["sleep", "1000000"])
        await until(lambda: _all_run(cluster), "bystanders run")
        before = await asyncio.to_thread(running, cluster.docker.host, cluster.name)
        scene = Scene(cluster, ledger, judge, putter, random.Random(seed))
        for scenario in scenarios:
            if reason := why_not(scenario.name):
                print(f"{scenario.name:<24} not here: {reason}", flush=True)
                continue
            for _ in range(max(1, round(scenario.times * scale))):
                _still_run(tasks)
                for name, figure in (await scenario.run(scene)).items():
                    figures[scenario.name][name].append(figure)
                faults += 1
            print(_lines(scenario.name, figures[scenario.name]), flush=True)
        await asyncio.sleep(2.0)
        after = await asyncio.to_thread(running, cluster.docker.host, cluster.name)
        await _end(writing)
        await judge.seen(max(ack.revision for ack in ledger.books.acks), limit_s=LIMIT_S)
    finally:
        await _end(*tasks)
    findings = judge.judge(ledger.books, before=before, after=after)
    return figures, findings, faults


async def _end(*tasks: "asyncio.Task[None]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _all_run(cluster: FaultCluster) -> bool:
    return len(await asyncio.to_thread(running, cluster.docker.host, cluster.name)) >= BYSTANDERS


def _still_run(tasks: Sequence["asyncio.Task[None]"]) -> None:
    for task in tasks:
        if task.done():
            task.result()


def _lines(name: str, figures: dict[str, list[float]]) -> str:
    lines = []
    for what, values in figures.items():
        ordered = sorted(values)
        p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        lines.append(
            f"{name:<24} {what:<26} n={len(values):<4} p50 {statistics.median(values):7.3f}   p99 {p99:7.3f}"
            f"   max {ordered[-1]:7.3f}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--keep-logs", type=Path)
    given = parser.parse_args()
    wanted = [s for s in SCENARIOS if not given.only or s.name in given.only.split(",")]
    # However it is ended, what it started is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # What its own store clients notice is what it does to them.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    started = time.monotonic()
    with contextlib.ExitStack() as ending:
        network = Network()
        ending.callback(network.close)
        scratch = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="pwm-faults-")))
        cluster = FaultCluster(scratch, network, nodes=NODES)
        if given.keep_logs:
            ending.callback(_keep_logs, scratch, given.keep_logs)
        ending.callback(cluster.close)
        with network.enter(network.host("driver")):
            figures, findings, faults = asyncio.run(perform(cluster, wanted, scale=given.scale, seed=given.seed))
    print(f"\n{faults} faults in {time.monotonic() - started:.0f} s; {findings.acknowledged} writes acknowledged")
    for name, value in vars(findings).items():
        if name != "acknowledged":
            shown = value if isinstance(value, int) else len(value)
            print(
                f"  {name.replace('_', ' '):<20} {shown}" + (f"   {value[:3]}" if value and shown is not value else "")
            )
    if given.save:
        given.save.write_text(json.dumps(_record(figures, findings, faults), indent=2) + "\n")
    return 0 if findings.clean else 1


def _keep_logs(scratch: Path, kept: Path) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    for log in scratch.glob("*.log"):
        shutil.copy(log, kept / log.name)


def _record(figures: dict[str, dict[str, list[float]]], findings: Findings, faults: int) -> dict[str, Any]:
    def summary(values: list[float]) -> dict[str, float]:
        ordered = sorted(values)
        return {
            "n": len(values), "p50": round(statistics.median(values), 4),
            "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 4), "max": round(ordered[-1], 4),
        }  # fmt: skip

    return {
        "faults": faults,
        "findings": vars(findings),
        "seconds": {s: {name: summary(v) for name, v in named.items()} for s, named in figures.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
