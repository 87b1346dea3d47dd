"""Who should lead what: evenly, and the same on every replica."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pwm.controlplane.core.leaders import order

names = st.lists(st.text("abcdef0123456789", min_size=1, max_size=6), min_size=1, max_size=8, unique=True)


@given(roles=names, replicas=names)
def test_every_replica_is_a_candidate_and_roles_are_spread_evenly(roles: list[str], replicas: list[str]) -> None:
    orders = {role: order(role, roles=roles, replicas=replicas) for role in roles}
    assert all(sorted(candidates) == sorted(replicas) for candidates in orders.values())
    load = Counter(candidates[0] for candidates in orders.values())
    assert max(load.values()) - min(load[replica] for replica in replicas) <= 1


@given(roles=names, replicas=names, data=st.data())
def test_all_replicas_come_to_the_same_order(roles: list[str], replicas: list[str], data: st.DataObject) -> None:
    role = data.draw(st.sampled_from(roles))
    seen = [data.draw(st.permutations(roles)), data.draw(st.permutations(replicas))]
    assert order(role, roles=seen[0], replicas=seen[1]) == order(role, roles=roles, replicas=replicas)


def test_without_replicas_nobody_is_meant() -> None:
    assert order("zone/default", roles=["zone/default"], replicas=[]) == []
