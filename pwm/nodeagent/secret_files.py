"""Secrets as files: folders in memory that a container gets read-only.

They lie on a file system that is kept in memory (/run, or another one), below a folder that only the agent's user can
enter, for as long as the container exists; nothing of them ever is on a disk, where a deleted file can be found again.
Whoever runs in the container can read them: the user that the workload names, or anybody where it names none, since
the user that an image brings along is not known. After a restart of the agent the folders are still there; after one
of the machine they are gone, and so are the containers.
"""

import os
import shutil
import stat
from collections.abc import Collection
from pathlib import Path

from pwm.api.v1.agent_pb2 import ContainerSecrets
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.workload_pb2 import RunAs
from pwm.nodeagent.drivers.driver import DriverError

# What Linux calls file systems that are kept in memory.
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})


class SecretFiles:
    """Of one driver of one agent; `owner` tells them from those of others on the machine."""

    def __init__(self, owner: str, *, places: Collection[Path] | None = None) -> None:
        """`places`: where a file system in memory may be; the first one that is there is used."""
        self._owner = owner
        self._places = tuple(places) if places is not None else usual_places()

    def write(
        self, uid: str, given: ContainerSecrets, user: RunAs | None, *, reached_from_outside: bool = False
    ) -> dict[str, Path]:
        """Makes the folders of a container, anew if it has some; gives target -> folder. Raises DriverError.

        `user`: who may read them; None: whoever has them mounted. With `reached_from_outside` the user may come to
        them by their path on the machine, too.
        """
        if not given.folders:
            return {}
        folders: dict[str, Path] = {}
        try:
            self.remove(uid)
            home = self._home() / uid
            home.mkdir(mode=0o700)
            for number, folder in enumerate(given.folders):
                # By name; one that comes twice, for two places, has a number besides.
                path = home / folder.name
                if path.exists():
                    path = home / f"{folder.name}.{number}"
                folders[folder.target] = path
                _write_folder(path, dict(folder.files), user)
            if user is not None and reached_from_outside:
                _hand_over(home, user)
        except OSError as error:
            self.remove(uid)
            message = f"The secrets of the container could not be written: {error.strerror}"
            raise DriverError(Reason.ERROR_CREATING_CONTAINER, message) from error
        return folders

    def remove(self, uid: str) -> None:
        for place in self._places:
            shutil.rmtree(place / self._owner / uid, ignore_errors=True)

    def keep_only(self, uids: Collection[str]) -> None:
        """Remove what an agent that was killed left behind."""
        for place in self._places:
            for left in (place / self._owner).glob("*"):
                if left.name not in uids:
                    shutil.rmtree(left, ignore_errors=True)

    def _home(self) -> Path:
        for place in self._places:
            if _is_in_memory(place):
                _make_private(place)
                home = place / self._owner
                home.mkdir(mode=0o711, exist_ok=True)
                return home
        looked = ", ".join(str(place.parent) for place in self._places)
        message = f"This node has no file system in memory for secrets; looked at {looked}"
        raise DriverError(Reason.ERROR_CREATING_CONTAINER, message)


def usual_places() -> tuple[Path, ...]:
    """Where to look for a file system in memory, best first; what is made there is made private."""
    if os.geteuid() == 0:
        return Path("/run/pwm"), Path("/dev/shm/pwm")
    own = os.environ.get("XDG_RUNTIME_DIR")
    shared = Path(f"/dev/shm/pwm-{os.geteuid()}")
    return (Path(own) / "pwm", shared) if own else (shared,)


def _is_in_memory(place: Path) -> bool:
    """Whether the folder that `place` is in is writable, and kept in memory."""
    folder = place.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        return False
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0] in _IN_MEMORY
    return False


def _make_private(place: Path) -> None:
    """Others may write beside it: it must be a folder of ours in which nobody else can see or make anything."""
    place.mkdir(mode=0o711, exist_ok=True)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o066:
        raise PermissionError(0, f"{place} is not this agent's own")


def _write_folder(path: Path, files: dict[str, bytes], user: RunAs | None) -> None:
    # Where the agent cannot give them to the user, everybody to whom they are mounted can read them.
    private = user is not None and os.geteuid() in (0, user.uid)
    path.mkdir(mode=0o700)
    for name, content in files.items():
        file = path / name
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        file.chmod(0o400 if private else 0o444)
        if user is not None:
            _hand_over(file, user)
    path.chmod(0o700 if private else 0o755)
    if user is not None:
        _hand_over(path, user)


def _hand_over(path: Path, user: RunAs) -> None:
    if os.geteuid() == 0:
        os.chown(path, user.uid, user.gid)
