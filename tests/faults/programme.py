"""Which faults, and how often in a full run."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.faults.scenarios import (
    Figures,
    Scene,
    agent_cut_off,
    agent_killed,
    both_leaders_killed,
    docker_killed,
    etcd_member_frozen,
    etcd_member_killed,
    everything_killed,
    leader_cut_from_etcd,
    leader_frozen,
    leader_killed,
    leader_stopped,
    leader_unheard,
    links_flap,
    packets_lost,
    quorum_lost,
)
from tests.faults.troubles import (
    clock_jumps,
    compacted_at_the_head,
    container_removed,
    disk_full,
    docker_hung,
    fsync_fails,
    many_watchers,
    most_nodes_cut_off,
    node_lost,
    slow_fsync,
    space_used_up,
)


@dataclass(frozen=True)
class Scenario:
    run: Callable[[Scene], Awaitable[Figures]]
    # How often in a full run.
    times: int

    @property
    def name(self) -> str:
        return self.run.__name__


SCENARIOS = (
    Scenario(leader_killed, 200),
    Scenario(leader_stopped, 50),
    Scenario(leader_frozen, 50),
    Scenario(both_leaders_killed, 30),
    Scenario(leader_cut_from_etcd, 30),
    Scenario(leader_unheard, 30),
    Scenario(etcd_member_killed, 30),
    Scenario(etcd_member_frozen, 30),
    Scenario(quorum_lost, 20),
    Scenario(agent_killed, 50),
    Scenario(agent_cut_off, 50),
    Scenario(docker_killed, 20),
    Scenario(links_flap, 50),
    Scenario(packets_lost, 10),
    Scenario(everything_killed, 10),
    Scenario(node_lost, 20),
    Scenario(most_nodes_cut_off, 10),
    Scenario(container_removed, 20),
    Scenario(docker_hung, 10),
    Scenario(disk_full, 10),
    Scenario(slow_fsync, 10),
    Scenario(fsync_fails, 10),
    Scenario(compacted_at_the_head, 20),
    Scenario(space_used_up, 5),
    Scenario(clock_jumps, 20),
    Scenario(many_watchers, 3),
)
