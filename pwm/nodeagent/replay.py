"""Output that can be sent again: what a client has not said it has.

A shell's output is one sequence of bytes, standard output and error together, numbered from its start. Chunks wait
here from the moment they are read from the command until the client acknowledges them, so that a client whose
connection broke anywhere goes on at the byte where it was. The buffer is bounded by those who fill it: while it is
`full` they stop reading, and the command waits in its own write, as at a terminal that was stopped.

Pure: who waits for what is `shells.py`'s business.
"""

from bisect import bisect_right

# As much as fills a fast line for the time of an answer: 10 MB/s at 100 ms.
LIMIT_BYTES = 1 << 20
# Neighbours of one channel are kept together up to this size, so that a command that prints single bytes costs
# a few chunks, not a million.
CHUNK_BYTES = 64 * 1024
# What a chunk costs besides its bytes, for a command that changes between output and error all the time.
CHUNK_COST_BYTES = 256


class Replay:
    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        # Chunks (is it standard error?, bytes), and the offset at which each begins.
        self._chunks: list[tuple[bool, bytearray]] = []
        self._starts: list[int] = []
        # Offsets of the first byte that is kept and of the one to come.
        self.start = 0
        self.end = 0

    @property
    def full(self) -> bool:
        return self.end - self.start + len(self._chunks) * CHUNK_COST_BYTES >= self._limit_bytes

    def append(self, data: bytes, *, stderr: bool) -> None:
        if not data:
            return
        if self._chunks and self._chunks[-1][0] == stderr and len(self._chunks[-1][1]) < CHUNK_BYTES:
            self._chunks[-1][1].extend(data)
        else:
            self._chunks.append((stderr, bytearray(data)))
            self._starts.append(self.end)
        self.end += len(data)

    def acknowledge(self, offset: int) -> None:
        """Bytes before `offset` are not asked for again. What was never sent cannot be acknowledged."""
        self.start = max(self.start, min(offset, self.end))
        # The chunk that `start` is in stays whole: it is small.
        done = bisect_right(self._starts, self.start) - 1
        if self.start == self.end:
            done = len(self._chunks)
        if done > 0:
            del self._chunks[:done], self._starts[:done]

    def after(self, offset: int) -> tuple[bool, bytes] | None:
        """(is it standard error?, the bytes from `offset` on to the end of its chunk); None: there are none yet."""
        assert self.start <= offset <= self.end, "only what is kept can be sent"
        if offset == self.end:
            return None
        index = bisect_right(self._starts, offset) - 1
        stderr, data = self._chunks[index]
        return stderr, bytes(memoryview(data)[offset - self._starts[index] :])
