"""Gets letters delivered: again and again, less and less often, until somebody takes them or a day has passed.

One that is not taken waits longer each time, from seconds to an hour. Letters go out some at a time, in a few rounds
beside each other, and few of one user's at a time: receivers that hang keep those waiting whose receivers they are.
Nothing else waits for any of it.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Protocol

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from pwm.api.v1.store_pb2 import PendingNotice
from pwm.controlplane.core.targets import shown
from pwm.controlplane.delivery.outbox import Outbox, Write, letter_id
from pwm.controlplane.store import errors as store_errors

log = structlog.get_logger(__name__)

# A day is long enough for a server that somebody has to repair; what is older helps nobody.
GIVE_UP_AFTER_MS = 24 * 3_600_000
FIRST_PAUSE_MS = 5_000
LONGEST_PAUSE_MS = 3_600_000
LETTERS_IN_A_ROUND = 20
# Of one user, in all rounds: a quarter of what one round takes.
LETTERS_OF_A_USER_AT_ONCE = 5
ROUNDS_AT_ONCE = 4
# Looked at this often though nothing is due: the wall clock may have been set.
LONGEST_WAIT_S = 30.0
# What is due and has to let others go first is looked at again after so long, or when a round is over.
HELD_BACK_S = 1.0
STORE_PAUSE_S = 1.0
# On their way at one time. A user who has so many has hundreds of workloads that crash, and is told of these.
MOST_LETTERS = 10_000
MOST_LETTERS_OF_A_USER = 500


class Sender(Protocol):
    async def deliver(self, letters: Sequence[PendingNotice]) -> list[str]:
        """What went wrong with each; "" where nothing did."""
        ...


def pause_ms(attempts: int) -> int:
    """How long after so many attempts: 5 s, 15 s, 45 s, ... an hour."""
    return int(min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 3 ** min(attempts - 1, 10)))


class Post:
    """For one term of leading the chores."""

    def __init__(
        self,
        *,
        outbox: Outbox,
        sender: Sender,
        now_ms: Callable[[], int],
        given_up: Callable[[PendingNotice, str], Awaitable[None]],
    ) -> None:
        """`given_up`: told of a letter that is let go of undelivered, and why; before it is."""
        self._outbox = outbox
        self._given_up = given_up
        self._sender = sender
        self._now_ms = now_ms
        self._letters: dict[str, PendingNotice] = {}
        self._of_user: Counter[str] = Counter()
        # Those of present rounds.
        self._under_way: dict[str, PendingNotice] = {}
        self._more = asyncio.Event()

    def full(self, user: str) -> bool:
        """Whether no more of that user's are to be taken."""
        return len(self._letters) >= MOST_LETTERS or self._of_user[user] >= MOST_LETTERS_OF_A_USER

    def take(self, letters: Iterable[PendingNotice]) -> None:
        """Those that have been written into the outbox."""
        for letter in letters:
            self._of_user[letter.user] += letter_id(letter) not in self._letters
            self._letters[letter_id(letter)] = letter
        self._more.set()

    def _let_go(self, letter: PendingNotice) -> Write:
        del self._letters[letter_id(letter)]
        self._of_user[letter.user] -= 1
        if not self._of_user[letter.user]:
            del self._of_user[letter.user]
        return self._outbox.drop(letter)

    async def run(self) -> None:
        """Until cancelled. Raises FenceLost when another replica leads."""
        async with asyncio.TaskGroup() as rounds:
            running: set[asyncio.Task[None]] = set()

            def over(task: asyncio.Task[None]) -> None:
                running.discard(task)
                self._more.set()

            while True:
                self._more.clear()
                while len(running) < ROUNDS_AT_ONCE and (due := self._due()):
                    task = rounds.create_task(self._round(due))
                    running.add(task)
                    task.add_done_callback(over)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._wait_s()):
                        await self._more.wait()

    def _due(self) -> list[PendingNotice]:
        now_ms = self._now_ms()
        due: list[PendingNotice] = []
        of_user = Counter(letter.user for letter in self._under_way.values())
        # One round at a time for each, or an end would overtake its beginning.
        busy = {letter.address for letter in self._under_way.values()}
        for letter in self._letters.values():
            if len(due) == LETTERS_IN_A_ROUND:
                break
            free = letter.address not in busy and of_user[letter.user] < LETTERS_OF_A_USER_AT_ONCE
            if free and letter.next_attempt.ToMilliseconds() <= now_ms:
                due.append(letter)
                of_user[letter.user] += 1
        self._under_way.update((letter_id(letter), letter) for letter in due)
        return due

    def _wait_s(self) -> float:
        waiting = (letter for id, letter in self._letters.items() if id not in self._under_way)
        first_ms = min((letter.next_attempt.ToMilliseconds() for letter in waiting), default=None)
        if first_ms is None:
            return LONGEST_WAIT_S
        left_s = (first_ms - self._now_ms()) / 1000
        return min(LONGEST_WAIT_S, left_s if left_s > 0 else HELD_BACK_S)

    async def _round(self, letters: list[PendingNotice]) -> None:
        errors = await self._sender.deliver(letters)
        writes = [await self._after(letter, error) for letter, error in zip(letters, errors, strict=True)]
        await keep_writing(self._outbox, writes)
        for letter in letters:
            del self._under_way[letter_id(letter)]

    async def _after(self, letter: PendingNotice, error: str) -> Write:
        now_ms, id = self._now_ms(), letter_id(letter)
        about = {"notice": letter.id, "kind": letter.kind, "to": shown(letter.address), "user": letter.user}
        if not error:
            log.info("notice delivered", attempts=letter.attempts + 1, **about)
            return self._let_go(letter)
        attempts = letter.attempts + 1
        if now_ms - letter.accepted.ToMilliseconds() >= GIVE_UP_AFTER_MS:
            log.error("notice given up", attempts=attempts, why=error, **about)
            await self._given_up(letter, error)
            return self._let_go(letter)
        log.warning("notice not delivered", attempts=attempts, why=error, **about)
        again = PendingNotice()
        again.CopyFrom(letter)
        again.attempts = attempts
        again.next_attempt.CopyFrom(_timestamp(now_ms + pause_ms(attempts)))
        self._letters[id] = again
        return self._outbox.put(again)


async def keep_writing(outbox: Outbox, writes: Sequence[Write]) -> None:
    """Until the store takes it: what is written is the same each time. Raises FenceLost."""
    while True:
        try:
            await outbox.write(writes)
            return
        except store_errors.KVError as error:
            log.warning("the outbox waits", why=str(error))
            await asyncio.sleep(STORE_PAUSE_S)


def _timestamp(at_ms: int) -> Timestamp:
    time = Timestamp()
    time.FromMilliseconds(at_ms)
    return time
