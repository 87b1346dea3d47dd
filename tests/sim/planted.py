"""Bugs that the simulator must find: each takes one thing away that the product does on purpose.

A simulator that finds nothing proves nothing. So each of these is planted into the product's own code (in a
child process, for one run), and must be found by some seed among the first thousands. A bug that can no
longer be planted because the code has moved fails loudly: `_patch` and `_edit` insist on what they replace.
"""

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SEEDS_AT_MOST = 3000


@dataclass(frozen=True, slots=True)
class Bug:
    """What is missing, the kinds of faults that show it best, and how it is planted.

    `seed` is where a sharp hunt looks first: one that found it with those faults. When it does not any more, because
    the code has changed, others will.
    """

    name: str
    sentence: str
    more: tuple[str, ...]
    seed: int
    plant: Callable[[], None]


BUGS: dict[str, Bug] = {}


def bug(*more: str, seed: int = 0) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def register(plant: Callable[[], None]) -> Callable[[], None]:
        name = plant.__name__.replace("_", "-")
        BUGS[name] = Bug(name, (plant.__doc__ or "").strip(), more, seed, plant)
        return plant

    return register


class MovedOn(Exception):
    """The code that a bug is planted into is not what it was: plant it elsewhere."""


def edit(owner: Any, name: str, *changes: tuple[str, str]) -> None:
    """Replaces pieces of a function's source, each of which must be there exactly once."""
    function = inspect.getattr_static(owner, name)
    wrapped = function.__func__ if isinstance(function, staticmethod | classmethod) else function
    source = textwrap.dedent(inspect.getsource(wrapped))
    for before, after in changes:
        if source.count(before) != 1:
            raise MovedOn(f"{owner.__name__}.{name} has {source.count(before)} times: {before!r}")
        source = source.replace(before, after)
    scope: dict[str, Any] = {}
    module = inspect.getmodule(wrapped)
    assert module is not None
    exec(compile(source, f"<planted in {name}>", "exec"), module.__dict__, scope)
    made = scope[wrapped.__name__]
    setattr(owner, name, type(function)(made) if isinstance(function, staticmethod | classmethod) else made)


# ---- the store client


@bug(seed=1)
def blind_retry() -> None:
    """A transaction whose outcome is unknown is sent again, and this time without its conditions."""
    from pwm.controlplane.store.groupcommit import GroupCommit

    edit(GroupCommit, "_attempt", ("self._kv.txn(compares, ", "self._kv.txn([] if unknown else compares, "))


@bug()
def heads_not_compared() -> None:
    """A decision is written although the stream has moved on since."""
    from pwm.controlplane.store import prepared

    edit(prepared, "_prepare_stream", ("prepared.compares.append(", "str("))


@bug()
def names_not_compared() -> None:
    """A name that somebody else has is taken all the same."""
    from pwm.controlplane.store import prepared

    edit(prepared, "_prepare_names", ("prepared.compares.append(Compare(key, Target.CREATE, 0))", "pass"))


@bug("cut-agent-from-a-controller", "reset-connections", seed=2)
def older_session_withdraws_the_newer() -> None:
    """A session that is over takes the node's newest one with it."""
    from pwm.controlplane.store.registry import Registry

    edit(Registry, "replace", ("[Compare(key, Target.MOD, guard.mod_revision)]", "[]"))


@bug()
def exiting_is_free() -> None:
    """The devices of a container that is told to stop are free before it has ended."""
    from pwm.controlplane.core.scheduling import cluster
    from pwm.lifecycle import P

    cluster.LIVE = cluster.LIVE - {P.EXITING}


@bug("hang-up-watches", "watches-lag")
def watch_resumes_at_its_last_revision_plus_two() -> None:
    """A watch that resumes skips one revision."""
    from pwm.controlplane.store.etcd_watch import _Position

    edit(
        _Position,
        "restart",
        ("self._fragments = []", "self._fragments = []; self.next_revision += self.next_revision > 50"),
    )


@bug()
def fragments_taken_for_whole() -> None:
    """The parts of a large revision are delivered one by one: what comes after the first is dropped."""
    from pwm.controlplane.store.etcd_watch import _Position

    edit(_Position, "accept", ("if answer.fragment:", "if False:"))


@bug("watches-lag", "hang-up-watches", "slow-disk", seed=9)
def progress_believed() -> None:
    """The answer to a progress request counts, although it may overtake events."""
    from pwm.controlplane.store.etcd_watch import _Position

    edit(_Position, "accept", ("if answer.watch_id != _UNSOLICITED:", "if True:"))


@bug("compact-all", "hang-up-watches", "watches-lag", seed=28)
def compaction_ignored() -> None:
    """A watch that was compacted away goes on with what comes next: no relist."""
    from pwm.controlplane.store import etcd_watch

    edit(
        etcd_watch, "_batches",
        ("raise errors.Compacted(answer.compact_revision)",
         "position.next_revision = answer.compact_revision + 1; raise _Broken('compacted')"),
    )  # fmt: skip


# ---- leading


@bug("freeze-leader", "cut-leader-from-etcd")
def no_fence() -> None:
    """What a leader writes does not depend on its leading."""
    from pwm.controlplane.commands import Commands
    from pwm.controlplane.store.keys import Keys

    leader = Keys(b"/sim/").all_leaders
    for name in ("run", "run_in_parts"):
        original = getattr(Commands, name)

        def unfenced(self: Any, *args: Any, original: Any = original, guards: Any = (), **kwargs: Any) -> Any:
            return original(self, *args, guards=[g for g in guards if not g.key.startswith(leader)], **kwargs)

        setattr(Commands, name, unfenced)


@bug("kill-leader", "freeze-leader")
def no_full_pass() -> None:
    """A new leader waits for changes instead of looking at everything, and nobody looks again later."""
    from pwm.controlplane.controllers.workloads import WorkloadController

    edit(
        WorkloadController, "_mark_due",
        ('dict.fromkeys(w.metadata.uid for w in self._view.all("Workload"))', "{}"),
        ("self._marked.update(", "str("),
    )  # fmt: skip


@bug("watches-lag", seed=2)
def conflicts_swallowed() -> None:
    """A decision that lost against another is not made again."""
    from pwm.controlplane.commands import Commands

    edit(
        Commands, "run",
        ("await self._catch_up(error.streams)\n            continue", "return Outcome(self._view.revision, ())"),
    )  # fmt: skip


@bug("etcd-misbehaves", "cut-client-off", seed=8)
def receipts_forgotten() -> None:
    """A command that is repeated under its key is carried out again."""
    from pwm.controlplane.commands import Commands

    original = Commands.run

    async def without(self: Any, *args: Any, receipt: Any = None, **kwargs: Any) -> Any:
        return await original(self, *args, **kwargs)

    Commands.run = without  # type: ignore[method-assign]


@bug("watches-lag")
def reads_do_not_wait() -> None:
    """A replica asked for a revision answers with what it has."""
    from pwm.controlplane.services.resources import ResourceService

    async def at_once(self: Any, revision: int) -> None: ...

    if not hasattr(ResourceService, "_reach"):
        raise MovedOn("ResourceService._reach")
    ResourceService._reach = at_once  # type: ignore[method-assign]


@bug("cut-agent-off", "clock-jumps", "box-crashes", "compact-all", "hang-up-watches", seed=15)
def lost_is_free() -> None:
    """The devices of a lost container count as free."""
    from pwm.controlplane.core.scheduling import cluster
    from pwm.lifecycle import P

    cluster.LIVE = cluster.LIVE - {P.LOST}


@bug("cut-controller-from-etcd", "watches-lag", "cut-agent-from-a-controller", seed=5)
def lost_without_asking_again() -> None:
    """A node is called silent or lost although another replica has heard of it in that moment."""
    from pwm.controlplane.controllers.nodes import NodeController

    edit(NodeController, "_call_silent", ("(self._fence, still_silent)", "(self._fence,)"))


@bug("clock-jumps", "cut-agent-off")
def silence_by_the_wall_clock() -> None:
    """How long a node has been silent is measured by a clock that people set."""
    from pwm.controlplane.presence import Presence

    for name in ("_sessions_are", "contact"):
        edit(Presence, name, ("self._clock.monotonic_s()", "(self._clock.now_ms() / 1000)"))


@bug("clock-jumps", "kill-leader", seed=11)
def back_off_by_the_wall_clock() -> None:
    """The next attempt waits until a time that another machine's clock has named."""
    from pwm.controlplane.controllers.workloads import WorkloadController

    edit(
        WorkloadController, "_ready",
        ("vacancy.not_before_ms <= now_ms or left_ms <= 0", "vacancy.not_before_ms <= now_ms"),
        ("(now_ms + left_ms, uid)", "(vacancy.not_before_ms, uid)"),
    )  # fmt: skip


# ---- sessions


@bug("watches-lag", "cut-agent-from-a-controller", "reset-connections", seed=17)
def stale_orders() -> None:
    """A replica gives an agent its orders without knowing whether its view is up to date."""
    from pwm.controlplane.dispatcher.dispatcher import Dispatcher

    edit(
        Dispatcher, "_begin", ("await self._view.wait_for(guard.mod_revision or 0, timeout_s=VIEW_PATIENCE_S)", "pass")
    )


@bug("kill-controller", "lose-quorum", seed=1)
def acknowledged_too_early() -> None:
    """Reports are acknowledged when they arrive, not when they are in the log."""
    from pwm.controlplane.dispatcher.reports import ReportIntake

    edit(
        ReportIntake, "run",
        ("await self._arrived.wait()", "await self._arrived.wait()\n        await self._acknowledge(self._sequence)"),
    )  # fmt: skip


@bug(seed=0)
def totals_overlooked() -> None:
    """What somebody has is not asked for before more is given."""
    from pwm.controlplane.core import limits

    edit(
        limits,
        "_reached",
        ("used + needs > allowed", "needs > allowed"),
        ("use.workloads >= bounds.workloads", "False"),
    )


# ---- the agent


@bug(seed=9)
def no_self_fence() -> None:
    """An agent that is cut off ends nothing, nor does its watchdog, which would make up for it."""
    from pwm.nodeagent.supervisor import Supervisor
    from pwm.nodeagent.watchdog import Watch

    edit(Watch, "look", ("else (END, 0)", "else (WAIT, 1000)"))

    if not hasattr(Supervisor, "fence"):
        raise MovedOn("Supervisor.fence")
    Supervisor.fence = lambda self, fencing: None  # type: ignore[method-assign]


@bug(seed=12)
def watchdog_asleep() -> None:
    """Nobody ends anything for an agent that is dead or hangs."""
    from pwm.nodeagent.watchdog import Watch

    edit(Watch, "look", ("else (END, 0)", "else (WAIT, 1000)"))


@bug("stop-agent", "clock-jumps", "box-crashes", "compact-all", seed=6)
def promise_taken_for_granted() -> None:
    """A node whose agent has taken its promise back is given up as if it had not."""
    from pwm.controlplane.core import nodes

    edit(nodes, "_is_fenced", ("fenced_after_ms > 0", "fenced_after_ms >= 0"))


@bug(seed=1)
def gaps_in_orders_overlooked() -> None:
    """Changes of orders are taken for complete: what got lost between them is not noticed, and something does."""
    from pwm.controlplane.dispatcher.session import Session
    from pwm.nodeagent.session import _Session

    edit(_Session, "_assign", ("not assignments.full and assignments.applies_to != self._set", "False"))
    edit(
        Session, "_delta",
        ("base = self._set_number", "base = self._set_number\n    self._lost = getattr(self, '_lost', 0) + 1"
         "\n    if self._lost % 3 == 0:\n        orders.clear()"),
    )  # fmt: skip


@bug("kill-agent")
def strangers_before_listing() -> None:
    """An agent that starts takes its engine for empty before it has asked it."""
    from pwm.nodeagent.container import Container

    edit(Container, "run", ("self._adopt(self._engine)", "pass"))


@bug()
def told_ended_too_early() -> None:
    """A container is said to have ended when it is told to stop."""
    from pwm.nodeagent.container import Container

    edit(
        Container, "_do",
        ("self._report_once(P.EXITING, reason=self._stop_reason())",
         "self._report_once(P.EXITED, reason=self._stop_reason())"),
    )  # fmt: skip


@bug("freeze-agent", "kill-watchdog", seed=189)
def beside_the_one_before() -> None:
    """An attempt starts while the one before it, which nobody has ended in time, still runs on the same machine."""
    from pwm.nodeagent.supervisor import Supervisor

    edit(Supervisor, "_elder_runs", ("container.may_run", "False"))


@bug("box-is-removed")
def started_again() -> None:
    """A container that somebody removed is created again."""
    from pwm.nodeagent import container, step

    edit(step, "_absent", ("if now.created_before or now.phase >= P.RUNNING:", "if now.phase >= P.EXITING:"))
    container.next_step = step.next_step


@bug("kill-agent", "cut-agent-off")
def journal_not_kept() -> None:
    """An agent that starts has forgotten what it has not told yet."""
    from pwm.nodeagent.journal import Journal

    edit(Journal, "_load", ("self._pending[sequence] = Report.FromString(payload)", "pass"))
