"""Output of containers: taken to the agent's own disk, kept after the end, read byte-exactly.

docker_local.py, docker_json.py   bytes of the engine's log files → batches
tail.py                           follows such a file through its rotations
spool.py                          one container's output on disk, crash-safe
reader.py                         reads it: tail, since, timestamps, from an offset
store.py                          all of them, in the agent's event loop: start reading here
"""

from pwm.nodeagent.logs.store import LogStore, UnknownLog

__all__ = ["LogStore", "UnknownLog"]
