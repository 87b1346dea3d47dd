"""The next version of PWM, as it may be one day: a copy of the package that knows more than this one.

What it adds is of every sort that versions must live together with: a payload of events, a field of a known
payload that changes what its event does, a stored field of a state, and messages of the session both ways.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSION = "3.1.0"

_PROTO = [
    ("events.proto", "    WorkloadRestarted workload_restarted = 23;\n", "    WorkloadNoted workload_noted = 29;\n"),
    ("events.proto", "message WorkloadScaled {\n  int32 count = 1;\n", "  string why = 9;\n"),
    ("events.proto", 'import "pwm/v1/workload.proto";\n', "message WorkloadNoted {\n  string note = 1;\n}\n"),
    ("workload.proto", "message WorkloadStatus {\n", "  string note = 900;\n  string scaled_because = 901;\n"),
    ("agent.proto", "    Hold hold = 8;\n", "    Tomorrow tomorrow = 99;\n"),
    ("agent.proto", "    Inventory inventory = 4;\n", "    Tomorrow tomorrow = 99;\n"),
    ("agent.proto", 'import "pwm/v1/workload.proto";\n', "message Tomorrow {\n  string word = 1;\n}\n"),
]
_CODE = [
    (
        "controlplane/core/evolve.py",
        "    state.spec.replica.count = event.workload_scaled.count\n",
        # Only if it is set: what an event of an older version does must stay the same.
        "    if event.workload_scaled.why:\n"
        "        state.status.scaled_because = event.workload_scaled.why\n"
        "\n\ndef _workload_noted(state: Any, event: ev.Event) -> None:\n"
        "    state.status.note = event.workload_noted.note\n",
    ),
    (
        "controlplane/core/evolve.py",
        '    "workload_scaled": _workload_scaled,\n',
        '    "workload_noted": _workload_noted,\n',
    ),
    (
        "controlplane/core/decide.py",
        "def scale_workload(workload: Workload, count: int) -> tuple[Payload, ...]:\n",
        '    return (ev.WorkloadScaled(count=count, why="tomorrow"), ev.WorkloadNoted(note=f"to {count}"))\n',
    ),
    (
        "controlplane/dispatcher/dispatcher.py",
        "            await context.write(SessionResponse(welcome=self._welcome(session)))\n",
        "            from pwm.api.v1.agent_pb2 import Tomorrow\n"
        '            await context.write(SessionResponse(tomorrow=Tomorrow(word="hello")))\n',
    ),
    (
        "nodeagent/session.py",
        "        owner.connected_to = self._address\n",
        "        from pwm.api.v1.agent_pb2 import Tomorrow\n"
        '        await self._write(SessionRequest(tomorrow=Tomorrow(word="hello")))\n',
    ),
]


def make(directory: Path) -> dict[str, str]:
    """Writes it below `directory`; the environment in which `python -m pwm` is that version."""
    shutil.copytree(ROOT / "pwm", directory / "pwm", ignore=shutil.ignore_patterns("__pycache__", "api"))
    shutil.copytree(ROOT / "proto", directory / "proto")
    _replace(directory / "pwm" / "version.py", 'VERSION = "3.0.0"', f'VERSION = "{VERSION}"')
    for name, after, more in _PROTO:
        _replace(directory / "proto" / "pwm" / "v1" / name, after, after + more)
    for name, after, more in _CODE:
        _replace(directory / "pwm" / name, after, after + more)
    subprocess.run([sys.executable, str(directory / "proto" / "generate.py")], check=True)
    # Nothing of the directory that the tests run in.
    return {"PYTHONPATH": os.pathsep.join([str(directory)]), "PYTHONSAFEPATH": "1"}


def _replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, f"{file.name} has {text.count(old)} times: {old}"
    file.write_text(text.replace(old, new))
