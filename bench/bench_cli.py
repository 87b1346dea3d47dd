"""What a call of `pwm` costs, against a Python interpreter that starts and does nothing.

`pwm version` and `pwm get c` with 10,000 rows ask a real gateway with real services, whose view is filled with
containers beforehand; it runs in a process of its own. Each round runs the bare interpreter and each command once, in
turns, and gives one ratio; the server's answer is part of the time. For comparison the list is fetched over a plain
socket, too.

    python bench/bench_cli.py [--rounds 30] [--rows 10000]
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "cli.json"
TOKEN = "pwm_benchmark"
# The interpreter itself: `python3` on PATH may be a script that looks for one.
BARE = [os.path.realpath(sys.executable), "-I", "-S", "-c", "pass"]
PROGRAM = str(Path(sys.executable).parent / "pwm")
TARGETS = {"version": 5.0, "get c": 12.0}
WARM_UP_ROUNDS = 3


def serve(rows: int, pipe: Connection) -> None:
    """A gateway over a view with `rows` containers."""
    import uvloop

    uvloop.run(_serve(rows, pipe))


async def _serve(rows: int, pipe: Connection) -> None:
    from prometheus_client import CollectorRegistry

    from pwm.controlplane.clock import Clock
    from pwm.controlplane.gateway.gateway import Gateway
    from pwm.controlplane.plane import ControlPlane
    from pwm.controlplane.servicers import servicers
    from pwm.controlplane.store.keys import Keys
    from pwm.controlplane.store.memory import MemoryKV
    from pwm.version import VERSION

    plane = ControlPlane(
        kv=MemoryKV(), keys=Keys(b"/pwm/v1/"), replica="bench", address="http://127.0.0.1", clock=Clock()
    )
    fill(plane.view, rows)
    gateway = Gateway(
        services=servicers(plane),
        authenticate=plane.authenticator.user,
        authorize=plane.authorizer.check_of,
        health=plane.health,
        registry=CollectorRegistry(),
        title="PWM",
        version=VERSION,
    )
    pipe.send(await gateway.start("127.0.0.1", 0))
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    await gateway.stop(0)


def fill(view: Any, rows: int) -> None:
    """A user with a token, and containers that run."""
    from pwm.api.v1.identity_pb2 import Token, User
    from pwm.api.v1.workload_pb2 import Container, ContainerStatus
    from pwm.controlplane.auth import token_uid

    user = User(api_version="v1", kind="User")
    user.metadata.name, user.metadata.uid = "ann", "u"
    membership = user.spec.groups.add(name="vision")
    membership.policy["pwm.all"].verbs.append("pwm.all")
    token = Token(api_version="v1", kind="Token")
    token.metadata.uid = token.metadata.name = token_uid(TOKEN)
    token.spec.user = "ann"
    view.load("User", "u", state=user.SerializeToString(), revision=1)
    view.load("Token", token.metadata.uid, state=token.SerializeToString(), revision=1)
    for number in range(rows):
        container = Container(api_version="v1", kind="Container")
        container.metadata.name = f"train-{number // 4}.{number % 4}.1"
        container.metadata.group, container.metadata.uid = "vision", f"c{number}"
        container.metadata.created_at.GetCurrentTime()
        container.spec.workload, container.spec.workload_uid = f"train-{number // 4}", f"w{number // 4}"
        container.spec.replica, container.spec.attempt = number % 4, 1
        container.spec.node, container.spec.image = f"gpu{number % 500:03}", "pytorch/pytorch:2.4"
        container.spec.resources.cpu_millis, container.spec.resources.memory_bytes = 8000, 32 << 30
        container.spec.gpu_uuids.extend([f"GPU-{number}-0", f"GPU-{number}-1"])
        container.status.phase = ContainerStatus.RUNNING
        container.status.since.GetCurrentTime()
        container.status.started_at.GetCurrentTime()
        view.load("Container", f"c{number}", state=container.SerializeToString(), revision=1)
    view.loaded(1)


def timed(command: list[str], environment: dict[str, str]) -> float:
    """Seconds until the command has ended; its output goes nowhere."""
    nothing = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
    started = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, environment, file_actions=nothing)
    _, status = os.waitpid(pid, 0)
    took_s = time.perf_counter() - started
    code = os.waitstatus_to_exitcode(status)
    assert code == 0, f"{command} ended with {code}"
    return took_s


def fetched(port: int) -> float:
    """Seconds for the list over a plain socket: the server's share."""
    started = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            f"GET /v1/resources/Container?format=TABLE HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        while connection.recv(1 << 20):
            pass
    return time.perf_counter() - started


def measure(port: int, rows: int, rounds: int, environment: dict[str, str]) -> dict[str, Any]:
    runs: dict[str, Callable[[], float]] = {
        "bare": lambda: timed(BARE, environment),
        "version": lambda: timed([PROGRAM, "version"], environment),
        "get c": lambda: timed([PROGRAM, "get", "c"], environment),
        "server": lambda: fetched(port),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(WARM_UP_ROUNDS + rounds):
        order = list(runs) if number % 2 else list(reversed(runs))
        for name in order:
            took_s = runs[name]()
            if number >= WARM_UP_ROUNDS:
                times[name].append(took_s)
    result: dict[str, Any] = {"rows": rows, "rounds": rounds, "python": platform.python_version(), "commands": {}}
    result["bare_ms"] = _ms(times["bare"])
    result["server_list_ms"] = _ms(times["server"])
    for name, target in TARGETS.items():
        ratios = sorted(mine / bare for mine, bare in zip(times[name], times["bare"], strict=True))
        result["commands"][name] = {
            "ms": _ms(times[name]),
            "ratio": round(statistics.median(ratios), 2),
            "ratio_spread": [round(ratios[len(ratios) // 10], 2), round(ratios[-1 - len(ratios) // 10], 2)],
            "target_ratio": target,
        }
    return result


def _ms(seconds: list[float]) -> float:
    return round(statistics.median(seconds) * 1000, 1)


def _check(port: int, rows: int, environment: dict[str, str]) -> None:
    """The rows are really there: a list that is refused would be fast as well."""
    import subprocess

    done = subprocess.run([PROGRAM, "get", "c"], env=environment, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == rows + 1, done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rows", type=int, default=10_000)
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(options.rows, theirs))
    server.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            port: int = ours.recv()
            # As somebody's shell would have it, with compiled modules kept.
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
            config = Path(folder) / "config"
            config.write_text(
                f"profile: bench\napi:\n  bench:\n    server:\n    - http://127.0.0.1:{port}\n"
                f"    auth:\n      token: {TOKEN}\n"
            )
            config.chmod(0o600)
            environment |= {"PWM_CONFIG": str(config), "PYTHONPYCACHEPREFIX": folder}
            for name in ("PWM_SERVER", "PWM_TOKEN", "PWM_PROFILE"):
                environment.pop(name, None)
            _check(port, options.rows, environment)
            result = measure(port, options.rows, options.rounds, environment)
    finally:
        ours.send(None)
        server.join(10)
        if server.is_alive():
            server.kill()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(f"bare interpreter {result['bare_ms']} ms, the server's list alone {result['server_list_ms']} ms")
    for name, figures in result["commands"].items():
        low, high = figures["ratio_spread"]
        print(f"pwm {name:<8} {figures['ms']} ms  {figures['ratio']}x ({low}-{high}), target <= {TARGETS[name]}x")


if __name__ == "__main__":
    main()
