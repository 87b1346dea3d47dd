"""`pwm up`: a whole PWM on this machine, in the foreground, until Ctrl-C.

It starts etcd, a controller and an agent (`localcluster.py`), makes the profile `local` with the token that
the controller gave, and says what to do next. With `--controllers`, `--etcd` and `--nodes` there are several of
each, to see for oneself what happens when some of them die. `--demo` also makes a first workload and shows it run.
With `--rm` nothing is kept: its containers and its state are removed at the end. Otherwise containers that
run go on when it stops, and the next `pwm up` finds them again.
"""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import Command, Option
from pwm.cli.commands.daemons import OIDC_SETTINGS
from pwm.cli.errors import CliError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pwm.cli.invocation import Invocation
    from pwm.cli.settings import Setting
    from pwm.localcluster import LocalCluster, Settings

PROFILE = "local"
# To stop and remove what a --rm or --demo left, before the agent is stopped. Stop grace is 10 s by default.
CLEAR_LIMIT_S = 30.0
CLEAR_POLL_S = 0.1
# For trying things out on one machine: each is a process of some 100 MB. etcd's own advice is at most seven.
MOST_CONTROLLERS, MOST_MEMBERS, MOST_NODES = 9, 7, 64


def up(invocation: Invocation, **options: Any) -> int:
    import gc
    import shutil
    import tempfile
    from pathlib import Path

    from pwm.localcluster import Settings, default_state_dir

    gc.enable()  # `main` turns it off, which suits only short lives
    given = options["state_dir"]
    if options["rm"]:
        if given:
            raise CliError("--rm keeps nothing, so there is nothing for --state-dir", exit_code=exit_codes.USAGE)
        state_dir = Path(tempfile.mkdtemp(prefix="pwm-up-"))
    else:
        state_dir = Path(given).absolute() if given else default_state_dir()
    _demand_ports(options)
    settings = Settings(
        state_dir=state_dir,
        port=options["port"],
        controllers=options["controllers"],
        etcd=options["etcd"],
        nodes=options["nodes"],
        node=options["node"] or "",
        docker_host=_docker_host(),
        allow_process=options["allow_process"],
        controller_options=_passed_on(options),
    )
    try:
        return _run(invocation, settings, options)
    finally:
        if options["rm"]:
            shutil.rmtree(state_dir, ignore_errors=True)


def _passed_on(options: dict[str, Any]) -> tuple[str, ...]:
    """What is only for the controllers; their variables they inherit."""
    flags: list[str] = []
    for setting in OIDC_SETTINGS:
        given = options[setting.name]
        for text in given if setting.multiple else [given] if given else ():
            flags.append(f"{setting.option.spellings[0]}={text}")
    return tuple(flags)


def _for_controllers(setting: Setting) -> Option:
    """The setting's own option, checked here, and kept as it was typed."""
    own = setting.option

    def checked(text: str) -> str:
        setting.convert(text)
        return text

    return Option(
        own.name, *own.spellings, help=own.help, metavar=own.metavar, multiple=own.multiple, convert=checked,
    )  # fmt: skip


def _demand_ports(options: dict[str, Any]) -> None:
    from pwm.localground import LAST_PORT, last_port

    last = last_port(options["port"], max(options["controllers"], options["etcd"]))
    if last > LAST_PORT:
        raise UsageError(f"--port {options['port']} is too high: the last port would be {last}")


def _docker_host() -> str:
    import os

    host = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if not host.startswith("unix://"):
        raise CliError(
            f"DOCKER_HOST is {host!r}, but an agent runs beside its engine",
            next_step="Unset it, or set it to unix:///PATH of a socket on this machine.",
        )
    return host


def _run(invocation: Invocation, settings: Settings, options: dict[str, Any]) -> int:
    import asyncio

    from pwm.localcluster import prepared
    from pwm.localground import UpError

    try:
        with prepared(settings, say=invocation.note) as cluster:
            return asyncio.run(_Session(invocation, cluster, options).live())
    except UpError as error:
        raise CliError(str(error), next_step=error.next_step) from error


class _Session:
    """From the start to the end of one `pwm up`."""

    def __init__(self, invocation: Invocation, cluster: LocalCluster, options: dict[str, Any]) -> None:
        self._invocation = invocation
        self._cluster = cluster
        self._options = options
        self._profile: str = options["new_profile"] or PROFILE

    async def live(self) -> int:
        """Starts everything, waits for Ctrl-C, stops everything."""
        import asyncio
        import signal

        from pwm.supervise import StartError

        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stopping.set)
        try:
            async with asyncio.TaskGroup() as group:
                try:
                    await self._start_and_wait(group, stopping)
                finally:
                    await self._cluster.stop()
        except* StartError as errors:
            raise _explained(errors.exceptions[0]) from None
        return exit_codes.DONE

    async def _start_and_wait(self, group: Any, stopping: Any) -> None:
        import asyncio

        async def start() -> None:
            await self._start(group)

        starting = group.create_task(start(), name="start")
        waiting = group.create_task(stopping.wait(), name="stop")
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            self._invocation.note("stopping")
            return
        starting.result()
        await waiting
        self._invocation.note("\nstopping" if self._invocation.err.isatty() else "stopping")
        if self._options["rm"] or self._options["demo"]:
            await asyncio.to_thread(self._clear)

    async def _start(self, group: Any) -> None:
        import asyncio
        import time

        from pwm.cli.pins import keep
        from pwm.cli.profiles import add_profile
        from pwm.version import VERSION

        say, cluster = self._invocation.say, self._cluster
        say(f"PWM {VERSION} in {cluster.settings.state_dir}")
        before = time.monotonic()
        async for name, about in cluster.start(group):
            now = time.monotonic()
            say(f"  {_tick(self._invocation)} {name:<13}{about}  ({now - before:.1f} s)")
            self._invocation.out.flush()
            before = now
        # With --rm the profile outlives its server; it is not made the one to use.
        pinned, ca_file = keep(cluster.authorities)
        add_profile(
            self._profile, servers=cluster.urls, token=cluster.token, use=not self._options["rm"], ca_file=ca_file,
            pinned=pinned,
        )  # fmt: skip
        image = await asyncio.to_thread(self._hello_image)
        if self._options["demo"] and image is not None:
            await asyncio.to_thread(self._first_workload, image)
        self._say_next_steps(image)

    # --- words ------------------------------------------------------------------------------------

    def _say_next_steps(self, image: str | None) -> None:
        say, cluster = self._invocation.say, self._cluster
        flag = f" --profile {self._profile}" if self._options["rm"] else ""
        say(f"\nReady. The profile {self._profile!r} has the token." + ("" if flag else " It is the one in use now."))
        if image is not None:
            say(f"  pwm run{flag} {image}       a workload, its output, its exit code")
            say(f"  pwm apply{flag} -f examples/hello.yaml    the same from YAML; then: pwm get wk")
        say(f"  pwm top{flag}                             nodes, GPUs and workloads, live")
        if cluster.settings.controllers > 1:
            say(f"  pwm admin status{flag}                    who leads, how far each one is")
            say(f"  pwm admin failover{flag}                  kill the leader, and see what it costs")
        if self._options["rm"]:
            say("\nCtrl-C stops it and removes its containers and all its state.")
        elif self._options["demo"]:
            say("\nCtrl-C stops it and removes the first workload.")
        else:
            say("\nCtrl-C stops it; containers that run go on, and the next `pwm up` finds them again.")
        self._invocation.out.flush()

    # --- a first workload, and the end of it --------------------------------------------------------

    def _client(self) -> Any:
        from pwm.cli.client import Client
        from pwm.cli.pins import keep
        from pwm.cli.profiles import Profile

        cluster = self._cluster
        pinned, ca_file = keep(cluster.authorities)
        profile = Profile(self._profile, servers=cluster.urls, token=cluster.token, ca_file=ca_file, pinned=pinned)
        return Client(profile, warn=self._invocation.warn)

    def _hello_image(self) -> str | None:
        """The image of the examples, which no registry has; None, with a warning, where it cannot be made."""
        from pwm.images import ImageError, ensure_hello

        try:
            return ensure_hello(self._cluster.settings.docker_host)
        except ImageError as error:
            self._invocation.warn(f"the examples cannot run here, their image cannot be made: {error}")
            return None

    def _first_workload(self, image: str) -> None:
        document = {"apiVersion": "v1", "kind": "Workload", "metadata": {"name": "hello"}, "spec": {"image": image}}
        client = self._client()
        try:
            client.call("POST", "/v1/apply", body={"documents": [document]})
        finally:
            client.close()
        self._invocation.say(f"\nA first workload runs: hello, from the image {image}.")
        self._invocation.say("  pwm logs wk hello -f")

    def _clear(self) -> None:
        """Deletes the workloads that shall not stay, and waits until their containers have gone."""
        import time

        client = self._client()
        deadline = time.monotonic() + CLEAR_LIMIT_S
        try:
            workloads = self._to_clear(client)
            for metadata in workloads:
                path = f"/v1/resources/Workload/{metadata['name']}"
                client.call("DELETE", path, query={"group": metadata.get("group")})
            while workloads and self._to_clear(client):
                if time.monotonic() > deadline:
                    self._invocation.warn("some containers did not stop in time; `docker ps` shows them")
                    return
                time.sleep(CLEAR_POLL_S)
        except CliError as error:
            self._invocation.warn(f"workloads could not be removed: {error.message}")
        finally:
            client.close()

    def _to_clear(self, client: Any) -> list[dict[str, str]]:
        listed = client.call("GET", "/v1/resources/Workload", query={"allGroups": True}).get("items", [])
        everything: list[dict[str, str]] = [item["metadata"] for item in listed]
        return everything if self._options["rm"] else [m for m in everything if m["name"] == "hello"]


def _tick(invocation: Invocation) -> str:
    return "\x1b[32m✓\x1b[0m" if invocation.colour else "✓"


def _explained(error: BaseException) -> CliError:
    from pwm.supervise import StartError

    assert isinstance(error, StartError)
    tail = "\n  ".join(error.log_tail.splitlines())
    return CliError(str(error), next_step=f"The end of its log ({error.log}):\n  {tail}" if tail else "")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65532:
        raise ValueError(f"{text!r} is not a port; PWM takes four in a row, from 0 (any) to 65532")
    return int(text)


def _up_to(most: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise ValueError(f"{text!r} is not a number from 1 to {most}")
        return int(text)

    return convert


COMMANDS = {
    "up": Command(
        "up",
        up,
        help="A whole PWM on this machine, until Ctrl-C: etcd, controllers and agents, on loopback only.",
        parameters=(
            Option("demo", "--demo", help="Also run a first workload.", flag=True),
            Option("rm", "--rm", help="Keep nothing: remove containers and state at the end.", flag=True),
            Option(
                "port", "--port", help="First of its ports; 0: any that are free.", metavar="P", default=4700,
                convert=_port,
            ),
            Option(
                "controllers", "--controllers", help="How many controllers, to try failover.", metavar="N", default=1,
                convert=_up_to(MOST_CONTROLLERS),
            ),
            Option(
                "etcd", "--etcd", help="How many etcd members; 3 survive the loss of one.", metavar="N", default=1,
                convert=_up_to(MOST_MEMBERS),
            ),
            Option(
                "nodes", "--nodes", help="How many nodes share this machine and its engine.", metavar="N", default=1,
                convert=_up_to(MOST_NODES),
            ),
            Option("state_dir", "--state-dir", help="Where it keeps its state.", metavar="DIR", completes="file"),
            Option("node", "--node", help="Name of this machine's node.", metavar="NAME"),
            Option("allow_process", "--allow-process", help="Also run workloads as plain processes.", flag=True),
            Option("new_profile", "--profile", help="Name of the profile to write.", metavar="NAME"),
            *map(_for_controllers, OIDC_SETTINGS),
        ),
    )
}  # fmt: skip
