"""`pwm run`: a workload without YAML, as `docker run` would do it, on whichever node has room.

Attached, it says on a terminal what it waits for, then hands on the container's output and ends with its
exit code; 125 when the container never ran. The first Ctrl-C stops the workload with its grace period,
the second leaves it to itself; both end with 130.

With `-it` the container is held by a small shell loop and the command runs beside it on this terminal, as
`pwm shell` would run it: a container's own standard input does not reach through a fail-over, a shell's
session need not. The image must have `sh` and `sleep`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from pwm.cli import exit_codes
from pwm.cli.command import SCOPE, Argument, Command, Option, whole_number
from pwm.cli.errors import CliError, NotFoundError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType, TracebackType
    from typing import Any, Self

    from pwm.cli.invocation import Invocation
    from pwm.cli.progress import StatusLine
    from pwm.cli.target import Target

# Ends at once when it is told to: a shell that waits for a child in the foreground would not.
HOLD = ["sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done"]
NAME_TRIES = 5


def run(invocation: Invocation, *, image: str, command: tuple[str, ...], **options: Any) -> int:
    from pwm.cli.progress import StatusLine
    from pwm.cli.target import Target

    interactive = options["tty"] or options["interactive"]
    if interactive and options["detach"]:
        raise UsageError("-it and -d contradict each other", next_step="Leave out one of them.")
    if options["rm"] and options["detach"]:
        raise UsageError("--rm needs somebody who waits for the end", next_step="Leave out -d, or --rm.")
    if interactive and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("-it needs a terminal", next_step="Leave out -it; to feed input, see `pwm shell`.")
    document = workload_document(image, HOLD if interactive else command, options)
    if interactive:
        document["spec"]["config"]["entrypoint"] = HOLD[:1]
        document["spec"]["config"]["cmd"] = HOLD[1:]
    try:
        name = _create(invocation, document, given=options["name"] or "")
    except CliError as error:
        error.exit_code = exit_codes.NEVER_STARTED
        raise
    if options["detach"]:
        invocation.say(name)
        return exit_codes.DONE
    target = Target(name, group=invocation.group)
    with StatusLine(invocation.err) as line, Interrupts(invocation, target, line) as interrupts:
        try:
            code = _attached(invocation, target, line, interactive=list(command) if interactive else None)
        except Detached:
            options["rm"] = False
            line.note(f"left {name} to itself; `pwm logs wk {name} -f` and `pwm stop wk {name}` find it again")
            return exit_codes.INTERRUPTED
        finally:
            interrupts.settle()
            if options["rm"]:
                _remove(invocation, target)
    return interrupts.exit_code or code


# --- the document -----------------------------------------------------------------------------------


def workload_document(image: str, command: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """The Workload that the options describe, as a user would write it."""
    config: dict[str, Any] = {"cmd": list(command)} if command else {}
    if options["env"]:
        config["env"] = dict(_variable(text) for text in options["env"])
    for field, option in (("memory", "memory"), ("workingDir", "workdir"), ("restartPolicy", "restart")):
        if options[option]:
            config[field] = options[option]
    selectors: dict[str, Any] = {}
    if options["gpu"] or options["gpu_model"]:
        selectors["gpu"] = {"count": options["gpu"] or 1}
        if options["gpu_model"]:
            selectors["gpu"]["product_name"] = list(options["gpu_model"])
    if options["cpu"]:
        selectors["cpu"] = {"count": options["cpu"]}
    if options["node"]:
        selectors["node"] = {"name": options["node"]}
    spec: dict[str, Any] = {"image": image, "config": config}
    if selectors:
        spec["selectors"] = selectors
    if options["volume"]:
        spec["volumes"] = [volume_mount(text) for text in options["volume"]]
    return {"apiVersion": "v1", "kind": "Workload", "metadata": {}, "spec": spec}


def _variable(text: str) -> tuple[str, str]:
    """`K=V`, or `K` for what our own environment says, as docker takes them."""
    name, equals, value = text.partition("=")
    return name, value if equals else os.environ.get(name, "")


def environment_entry(text: str) -> str:
    name, equals, _ = text.partition("=")
    if not name or (not equals and name not in os.environ):
        raise ValueError(f"{text!r} is not a variable; write NAME=VALUE, or the NAME of one that is set here")
    return text


def volume_mount(text: str) -> dict[str, Any]:
    """`VOLUME:PATH`, `GROUP/VOLUME:PATH:ro`."""
    volume, _, rest = text.partition(":")
    path, _, policy = rest.partition(":")
    if not volume or not path.startswith("/") or policy not in ("", "ro", "rw"):
        raise ValueError(f"{text!r} is not a mount; write VOLUME:/PATH, or VOLUME:/PATH:ro")
    group, slash, name = volume.rpartition("/")
    mount = {"name": name, "target": path}
    if slash:
        mount["group"] = group
    if policy:
        mount["policy"] = "readonly" if policy == "ro" else "rw"
    return mount


def checked_mount(text: str) -> str:
    volume_mount(text)
    return text


def _create(invocation: Invocation, document: dict[str, Any], *, given: str) -> str:
    """Creates the workload under a name that was free, and returns the name."""
    from pwm.cli.client import quote
    from pwm.cli.errors import exit_of_status
    from pwm.cli.names import readable_name

    for _ in range(NAME_TRIES):
        name = given or readable_name()
        try:
            # An existing workload would be reconfigured instead of a new one created.
            query = {"group": invocation.group}
            invocation.client.call("GET", f"/v1/resources/Workload/{quote(name)}", query=query)
        except CliError as error:
            if error.exit_code != NotFoundError.exit_code:
                raise
            break
        if given:
            raise CliError(
                f"there is a workload {name!r} already",
                next_step=f"Choose another --name, or remove it: `pwm delete wk {name}`",
            )
    document["metadata"] = {"name": name, **({"group": invocation.group} if invocation.group else {})}
    if invocation.zone:
        document["spec"]["zone"] = invocation.zone
    answer = invocation.client.call("POST", "/v1/apply", body={"documents": [document], "group": invocation.group})
    result = answer["results"][0]
    for warning in result.get("warnings", []):
        invocation.warn(warning.get("message", ""))
    if result.get("outcome") == "REFUSED":
        problems = result.get("problems", [])
        said = "; ".join(f"{p['field']}: {p['message']}" if p.get("field") else p["message"] for p in problems)
        steps = "\n  ".join(p["nextStep"] for p in problems if p.get("nextStep"))
        code = exit_of_status(problems[0].get("code", 0)) if problems else exit_codes.FAILED
        raise CliError(f"refused: {said or 'no reason was given'}", next_step=steps, exit_code=code)
    return name


# --- attached ---------------------------------------------------------------------------------------


def _attached(invocation: Invocation, target: Target, line: StatusLine, *, interactive: list[str] | None) -> int:
    """Waits, shows what it prints, and returns its exit code; with `interactive`, that command's."""
    from pwm.cli.commands.logs import stream_logs
    from pwm.cli.commands.shell import run_on_terminal
    from pwm.cli.workload_status import OVER, WAITING, in_words, phase_of, statuses

    begun: dict[str, Any] = {}
    for workload in statuses(invocation, target):
        line.say(f"{target.name} · {in_words(workload)}")
        if phase_of(workload) not in WAITING:
            begun = workload
            break
    line.clear()
    if interactive is not None and phase_of(begun) == "RUNNING":
        start = {"name": target.name, "group": target.group, "cmd": interactive}
        try:
            return run_on_terminal(invocation, start, tty=True)
        finally:
            invocation.client.call("POST", target.path("stop"), body={"group": target.group})
    if not _never_ran(begun):
        stream_logs(invocation, target, query={"group": target.group, "follow": True})
    for workload in statuses(invocation, target):
        if phase_of(workload) in OVER:
            return _verdict(invocation, target, workload)
    raise AssertionError("statuses() goes on until the workload is deleted")


def _never_ran(workload: dict[str, Any]) -> bool:
    from pwm.cli.workload_status import NEVER_RAN, phase_of, reason_code

    return phase_of(workload) in ("DENIED", "DELETED") or reason_code(workload) in NEVER_RAN


def _verdict(invocation: Invocation, target: Target, workload: dict[str, Any]) -> int:
    """The exit code of a workload that is over; what was not its own doing is said."""
    from pwm.cli.workload_status import phase_of

    status = workload.get("status", {})
    message = status.get("reason", {}).get("message", "")
    if _never_ran(workload):
        raise CliError(
            f"{target.name} never ran: {message or phase_of(workload)}",
            next_step=f"`pwm why wk {target.name}` says more.",
            exit_code=exit_codes.NEVER_STARTED,
        )
    code = int(status.get("exitCode", 0))
    if phase_of(workload) == "CRASHED" and status.get("reason", {}).get("code") != "EXIT_CODE":
        invocation.note(f"{target.name} crashed: {message}")
    return code or (exit_codes.FAILED if phase_of(workload) == "CRASHED" else exit_codes.DONE)


def _remove(invocation: Invocation, target: Target) -> None:
    try:
        invocation.client.call("DELETE", target.resource_path, query={"group": target.group})
    except CliError as error:
        invocation.warn(f"{target.name} could not be removed: {error.message}")


class Detached(BaseException):
    """The second Ctrl-C. Not an Exception: nothing on the way may take it for an error of its own."""


# Among numbers of signals.
_NO_SIGNAL = b"\0"
# Between attempts to break the main thread off.
_POKE_EVERY_S = 0.02


class Interrupts:
    """Ctrl-C and SIGTERM while attached: the first stops the workload, the second leaves it.

    The first must not break into the stream of output, which goes on until the container has ended, so the stop is
    sent by a thread with a client of its own. Signals are counted by another thread, which hears of each by itself:
    Python runs a handler between two steps of the main thread, once for all signals of a kind that came meanwhile, and
    the main thread may have just begun to wait for output when one came. So at the second it is poked until it notices.
    """

    def __init__(self, invocation: Invocation, target: Target, line: StatusLine) -> None:
        self._invocation = invocation
        self._target = target
        self._line = line
        self._handlers: dict[int, Any] = {}
        # Whether it is to be left, and whether it is over: main has noticed, or has come to the end by itself.
        self._left = self._settled = False
        self._heard, self._wake = os.pipe()
        self._before = -1
        self._main = threading.get_ident()
        self._listening = threading.Thread(target=self._listen, name="interrupts", daemon=True)
        # What to end with because of a signal; 0: none came.
        self.exit_code = 0

    def __enter__(self) -> Self:
        self._listening.start()
        os.set_blocking(self._wake, False)
        self._before = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before)
        os.close(self._wake)
        self._listening.join()
        os.close(self._heard)

    def settle(self) -> None:
        """From now on nothing is broken off. Waits until a stop that was asked for has been sent."""
        self._settled = True
        os.write(self._wake, _NO_SIGNAL)
        self._listening.join()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._left and not self._settled:
            self._settled = True
            raise Detached

    def _listen(self) -> None:
        stopping: threading.Thread | None = None
        while (number := os.read(self._heard, 1)) not in (b"", _NO_SIGNAL):
            if stopping is None:
                self.exit_code = 128 + number[0]
                stopping = threading.Thread(target=self._stop, name="stop", daemon=True)
                stopping.start()
            elif not self._settled:
                self._left = True
                time.sleep(_POKE_EVERY_S)
                # Is heard here as well: so it goes on until it was noticed.
                signal.pthread_kill(self._main, signal.SIGINT)
        if stopping is not None:
            stopping.join()

    def _stop(self) -> None:
        from pwm.cli.client import Client

        self._line.note(f"stopping {self._target.name}; Ctrl-C again leaves it to itself")
        client = Client(self._invocation.profile, warn=self._invocation.warn)
        try:
            client.call("POST", self._target.path("stop"), body={"group": self._target.group})
        except CliError as error:
            self._line.note(f"could not stop it: {error.message}")
        finally:
            client.close()


COMMANDS = {
    "run": Command(
        "run",
        run,
        help="Run a workload without YAML: shows its output and ends with its exit code (125: it never ran).",
        epilog="Ctrl-C stops the workload. Write -- before the command: pwm run busybox --gpu 1 -- sh -c 'echo hi'",
        parameters=(
            Argument("image", metavar="IMAGE"),
            Argument("command", multiple=True, required=False, metavar="[-- CMD...]"),
            Option("name", "--name", help="Its name; otherwise one is made up.", metavar="NAME"),
            Option("gpu", "--gpu", "--gpus", help="GPUs.", metavar="N", convert=whole_number),
            Option("gpu_model", "--gpu-model", help="Acceptable GPU model; may be repeated.", multiple=True),
            Option("cpu", "--cpu", "--cpus", help="CPU cores, such as 2, 0.5 or 500m.", metavar="N"),
            Option("memory", "-m", "--mem", "--memory", help="Memory, such as 2GiB.", metavar="SIZE"),
            Option(
                "env", "-e", "--env", help="Variable; K alone takes ours.", metavar="K=V", multiple=True,
                convert=environment_entry,
            ),
            Option(
                "volume", "-v", "--volume", help="Mount a volume, :ro for reading only.", metavar="VOL:PATH",
                multiple=True, convert=checked_mount,
            ),
            Option("workdir", "-w", "--workdir", help="Directory to start in.", metavar="DIR"),
            Option("node", "--node", help="On this node.", metavar="NAME"),
            Option("restart", "--restart", help="When it ends.", choices=("Never", "OnFailure", "Always")),
            Option("interactive", "-i", "--interactive", help="With -t: the command on this terminal.", flag=True),
            Option("tty", "-t", "--tty", help="With -i: the command on this terminal.", flag=True),
            Option("rm", "--rm", help="Remove the workload when it has ended.", flag=True),
            Option("detach", "-d", "--detach", help="Print the name and return at once.", flag=True),
            *SCOPE,
        ),
    )
}  # fmt: skip
