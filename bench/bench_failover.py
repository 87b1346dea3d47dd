"""A dead leader, as users feel it: against Docker Swarm with three managers, on the same machine.

The leading controller (or manager) is killed with -9, and at that moment a workload (or a service) is applied at
another one: how long until its container runs? Three controllers, three etcd members and a node, each a real
process on a make-believe host; the Swarm is three engines on hosts of the same kind. To reach: a tenth of Swarm's.

    python bench/bench_failover.py [--rounds 5]        as root
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.paired import save, summary
from bench.swarm import Swarm
from tests.faults.bench_put import Putter
from tests.faults.cluster import FaultCluster
from tests.faults.judge import Judge
from tests.faults.ledger import Ledger
from tests.faults.network import Network
from tests.faults.scenarios import Scene

RUN_LIMIT_S = 30.0


async def pwm(cluster: FaultCluster, rounds: int) -> list[float]:
    """Seconds from kill -9 of the leading controller until a workload applied at that moment runs."""
    await cluster.start()
    judge, putter = Judge(cluster.etcd_addresses), Putter(cluster.etcd_addresses)
    ledger = Ledger(cluster.servers, cluster.token, image=cluster.image)
    watching = asyncio.ensure_future(judge.run())
    scene = Scene(cluster, ledger, judge, putter, random.Random(1))
    took = []
    try:
        await ledger.apply_until_acknowledged("warm-up")
        await judge.running_after("warm-up", 0.0, limit_s=RUN_LIMIT_S)
        for _ in range(rounds):
            began_s = scene.now_s()
            cluster.kill(scene.leader().name)
            # Half a core: a container that may use next to none takes a second to start.
            name = await scene.begin_workload(command=["sleep", "2"], cpu="500m")
            took.append(await judge.running_after(name, began_s, limit_s=RUN_LIMIT_S))
            await scene.settle()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    network = Network()
    with tempfile.TemporaryDirectory(prefix="pwm-bench-") as scratch:
        cluster, swarm = FaultCluster(Path(scratch), network, nodes=1), Swarm(network)
        try:
            with network.enter(network.host("driver")):
                ours = asyncio.run(pwm(cluster, given.rounds))
            swarm.start()
            theirs = [swarm.leader_killed() for _ in range(given.rounds)]
        finally:
            swarm.close()
            cluster.close()
            network.close()
    ratio = summary(list(zip(ours, theirs, strict=True)))
    print(ratio.line("leader killed -> running / Swarm with 3 managers", target="<= 0.1", unit="s"))
    print(f"  PWM {[round(t, 3) for t in ours]}, Swarm {[round(t, 1) for t in theirs]} s")
    save("failover", {"leader_killed_to_running": ratio.record("<= 0.1"), "pwm_s": ours, "swarm_s": theirs,
                      "pwm_median_s": statistics.median(ours)})  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
