"""From an assignment to what a real process gets: user, variables, folder; and from a failure to a sentence.

The manifest was checked by the control plane; the agent checks again, since here a mistake would run on the bare
machine.
"""

import errno
import os
import pwd
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pwm.api.v1.agent_pb2 import Assignment
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.workload_pb2 import ContainerSpec, RunAs
from pwm.nodeagent.drivers import docker_spec, process_shim
from pwm.nodeagent.drivers.driver import DriverError

# `nobody`: who processes are where the agent is root and the workload names no user.
_NOBODY = 65534
# Says where the files of a process's secrets are: FOLDER/NAME/KEY.
SECRETS_FOLDER = "PWM_SECRETS"
PLAIN_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def check(assignment: Assignment, *, allow_root: bool) -> None:
    """Raises `DriverError` for what may not run on this node."""
    docker_spec.check(assignment)
    spec = assignment.spec
    if not (spec.entrypoint or spec.cmd):
        raise _refused("A process needs a command: set config.cmd")
    if not spec.HasField("user"):
        return
    if os.geteuid() != 0:
        if spec.user.uid != os.geteuid():
            raise _refused(f"This node runs processes as uid {os.geteuid()} only; leave config.user out")
    elif (spec.user.uid == 0 or spec.user.gid == 0) and not allow_root:
        raise _refused("This node runs no processes as root; set config.user to another user")


def surroundings(spec: ContainerSpec, *, argv: list[str], tty: bool) -> dict[str, Any]:
    """What the shim needs to know of a command, as it reads it; uid and gid None: as the agent."""
    uid, gid = _user(spec)
    home, name = _home(os.geteuid() if uid is None else uid)
    env = {**PLAIN_ENV, "HOME": home, "USER": name, "LOGNAME": name, "SHELL": "/bin/sh"}
    if tty:
        env["TERM"] = "xterm"
    env |= dict(spec.env)
    # Also when it has none: a process must not find GPUs that it was not given.
    env["CUDA_VISIBLE_DEVICES"] = ",".join(spec.gpu_uuids)
    return {
        "argv": argv,
        "env": env,
        "cwd": spec.working_dir or home,
        "uid": uid,
        "gid": gid,
        "tty": tty,
        "cpu_ids": list(spec.cpu_ids),
        "data_bytes": 0,
        "cgroups": [],
        "die_with_parent": True,
        "secret_env": [],
    }


def runs_as(spec: ContainerSpec) -> RunAs:
    """The user of the process."""
    uid, gid = _user(spec)
    return RunAs(uid=os.geteuid() if uid is None else uid, gid=os.getegid() if gid is None else gid)


def variables_of(pid: int, names: Iterable[str]) -> dict[str, str]:
    """Those of these variables that a process was started with; none if it has just ended."""
    wanted = set(names)
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    found = (os.fsdecode(entry).partition("=") for entry in entries)
    return {name: value for name, _, value in found if name in wanted}


def start_error(spec: ContainerSpec, error: dict[str, Any] | None, remark: str) -> DriverError:
    """`error`: what the shim wrote (errno, file); None if it failed itself, with `remark` as its last words."""
    if error is None:
        return DriverError(
            Reason.ERROR_STARTING_CONTAINER, f"The process could not be started: {remark or 'no reason given'}"
        )
    command, what = [*spec.entrypoint, *spec.cmd][0], os.strerror(error["errno"])
    if error["file"] and error["file"] == spec.working_dir:
        return DriverError(
            Reason.ERROR_STARTING_CONTAINER, f"The working directory {spec.working_dir} cannot be used: {what}"
        )
    if error["errno"] == errno.ENOENT:
        return DriverError(
            Reason.COMMAND_NOT_FOUND,
            f"There is no command {command!r} on this node",
            exit_code=process_shim.NOT_FOUND,
        )
    return DriverError(
        Reason.ERROR_STARTING_CONTAINER,
        f"The command {command!r} cannot be run: {what}",
        exit_code=process_shim.CANNOT_RUN,
    )


def _user(spec: ContainerSpec) -> tuple[int | None, int | None]:
    if os.geteuid() != 0:
        return None, None
    if not spec.HasField("user"):
        return _NOBODY, _NOBODY
    return spec.user.uid, spec.user.gid


def _home(uid: int) -> tuple[str, str]:
    """(existing home folder, name) of a user; the root folder for one that has none."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return "/", str(uid)
    return (entry.pw_dir if Path(entry.pw_dir).is_dir() else "/"), entry.pw_name


def _refused(message: str) -> DriverError:
    return DriverError(Reason.CONFIG_NOT_ALLOWED, message)
