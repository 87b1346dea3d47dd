"""Reading documents: nothing crashes it, and what it gives reads as itself again."""

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from hypothesis import given, settings
from hypothesis import strategies as st

from pwm.controlplane.core.kinds import APPLIED
from pwm.controlplane.core.manifest import Parsed, Refused, parse_document

GROUP = "users"

names = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,8}[a-z0-9]", fullmatch=True).filter(lambda n: n.lower() != "all")
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=12))
any_json = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
)


def field_names(descriptor: Any, found: set[str]) -> set[str]:
    """Names of all fields that a kind has, at any depth."""
    for field in descriptor.fields:
        if field.json_name not in found:
            found.add(field.json_name)
            if field.message_type is not None:
                field_names(field.message_type, found)
    return found


KNOWN = sorted(set().union(*(field_names(kind.message.DESCRIPTOR, set()) for kind in APPLIED.values())))
OLD = ["workspace", "network", "plugins", "startMode", "cpu", "meta", "telegram", "sendOn", "credits", "endpoint"]
known_names = st.sampled_from(KNOWN + OLD)
# Values that pass somewhere, so that the walk goes deep.
plausible = st.one_of(
    scalars,
    st.sampled_from(
        ["1", "2GiB", "500m", "10s", "pwm.all", "nfs", "get", "/data", "a/b", "A=1", "cd x && y", "rw", 3, 0.5]
    ),
)
near_misses = st.recursive(
    plausible,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(known_names, inner, max_size=6)),
    max_leaves=30,
)


def outcome(document: Any) -> Parsed | None:
    try:
        return parse_document(document, default_group=GROUP)
    except Refused as refused:
        problems = refused.problems
    assert 0 < len(problems) <= 30
    for problem in problems:
        assert problem.message
        assert (problem.field + problem.message + problem.next_step).isprintable()
        assert problem.code in (3, 7, 9)
    return None


def reads_as_itself(parsed: Parsed) -> None:
    written = json.loads(json.dumps(json_format.MessageToDict(parsed.message)))
    assert parse_document(written, default_group="another").message == parsed.message


@given(any_json)
def test_no_json_at_all_gets_anything_but_an_answer(document: Any) -> None:
    outcome(document)


@given(st.sampled_from(sorted(APPLIED)), names, near_misses, near_misses)
@settings(max_examples=400)
def test_documents_of_known_fields_are_read_or_refused(kind: str, name: str, spec: Any, metadata: Any) -> None:
    metadata = {**metadata, "name": name} if isinstance(metadata, dict) else {"name": name}
    parsed = outcome({"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec})
    if parsed is not None:
        reads_as_itself(parsed)


# ---- documents that are right: each strategy makes one form of a part, old ones among them

sizes = st.one_of(
    st.integers(1, 4096),
    st.sampled_from(["512MiB", "1.5G", "32GiB", "64"]),
    st.floats(0.25, 64).map(lambda f: round(f, 2)),
)
cpu_counts = st.one_of(st.integers(0, 256), st.sampled_from(["500m", "0.5", "8", "pwm.zero"]), st.just(0.25))
any_words = st.sampled_from(["pwm.all", "All", ""])
products = st.one_of(any_words, names, st.lists(names, min_size=1, max_size=3))
env_values = st.one_of(
    st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=10),
    st.booleans(),
    st.integers(-9999, 9999),
)
env_names = st.from_regex(r"[A-Z][A-Z0-9_]{0,6}", fullmatch=True).filter(lambda n: not n.startswith(("LD_", "NVIDIA_")))
paths = st.from_regex(r"/data/[a-z]{1,6}(/[a-z]{1,6})?", fullmatch=True)
commands = st.one_of(
    st.sampled_from(["bash", "python main.py --n 3", "cd /x && ls", "echo 'a b'"]),
    st.lists(st.one_of(st.text(alphabet="abc $&", max_size=6), st.integers(0, 99)), min_size=1, max_size=4),
)
ports = st.lists(st.integers(1, 65535), unique=True, max_size=3).map(lambda found: [{"port": p} for p in found])


def some(**parts: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any subset of the parts."""
    return st.fixed_dictionaries({}, optional=parts)


selectors = some(
    node=st.one_of(st.fixed_dictionaries({"name": st.one_of(any_words, names)}), names),
    gpu=some(product_name=products, productName=names, count=st.integers(0, 8), memory=sizes).filter(
        lambda gpu: not {"product_name", "productName"} <= set(gpu)
    ),
    cpu=some(product_name=products, count=cpu_counts, exclusive=st.booleans()),
    label=st.dictionaries(names, st.one_of(names, st.integers(0, 99)), max_size=3),
)
config = some(
    cmd=commands,
    env=st.one_of(
        st.dictionaries(env_names, env_values, max_size=3),
        st.dictionaries(env_names, names, max_size=3).map(lambda pairs: [f"{k}={v}" for k, v in pairs.items()]),
    ),
    memory=sizes,
    shmSize=st.integers(1, 2**40),
    restartPolicy=st.sampled_from(["Never", "onfailure", "ALWAYS", "On-Failure"]),
    affinity=st.sampled_from(["fill", "Random", "DISTRIBUTE"]),
    startMode=st.sampled_from(["-itd", "-d", "strange"]),
    labels=st.dictionaries(names, names, max_size=2).map(lambda p: [{"name": k, "value": v} for k, v in p.items()]),
    user=st.one_of(st.integers(0, 5000), st.just("1000:100"), st.just({"uid": 0, "gid": 0})),
    ports=ports,
    timeLimit=st.sampled_from(["24h", "1h30m", "90s"]),
    tty=st.booleans(),
)
workload_specs = st.fixed_dictionaries(
    {"image": st.sampled_from(["ubuntu", "reg.example.org:5000/a/b:v1", {"image": "ubuntu", "pullPolicy": "always"}])},
    optional={
        "driver": st.sampled_from(["Docker", "pwm.docker", "pwm.nvidiadocker"]),
        "replica": st.fixed_dictionaries({"count": st.integers(0, 10_000)}),
        "selectors": selectors,
        "config": config,
        "volumes": st.lists(paths, unique=True, max_size=2).map(
            lambda found: [{"name": f"v{i}", "target": p, "policy": "RO"} for i, p in enumerate(found)]
        ),
        "priority": st.one_of(st.sampled_from(["low", "High"]), st.integers(-1000, 1000)),
        "gang": st.booleans(),
        "notify": st.one_of(st.booleans(), st.just({"byEmail": True, "on": "running"})),
        "plugins": st.just({"telegram": {"id": 5, "sendOn": ["exited"]}}),
        "zone": st.one_of(any_words, names),
    },
)  # fmt: skip
policies = st.one_of(
    st.just("pwm.all"),
    st.dictionaries(
        st.sampled_from(["Workload", "workspace", "All", "GPU", "Volume"]),
        st.one_of(
            st.just("pwm.all"), st.lists(st.sampled_from(["Get", "cancel", "getone", "Create", "use"]), max_size=4)
        ),
        max_size=3,
    ),
)
user_specs = some(
    active=st.booleans(),
    contact=st.just({"email": "a@b"}),
    groups=st.lists(
        st.fixed_dictionaries({"name": st.one_of(names, st.just("All"))}, optional={"policy": policies, "role": names}),
        max_size=3,
    ),
    limits=some(credits=st.just({"weekly": 12.5}), resources=some(memory=sizes, gpus=st.just({"total": 4}))),
)
node_specs = some(
    zone=names,
    labels=st.dictionaries(names, st.one_of(names, st.integers(0, 99)), max_size=3),
    allow=st.one_of(st.just("pwm.all"), st.lists(st.sampled_from(["cpuworkload", "GPUWorkload"]), max_size=2)),
    maintenance=st.booleans(),
    address=st.one_of(st.just("10.0.0.1:3000"), st.lists(st.just("10.0.0.1:3000"), max_size=2)),
)
RIGHT = {
    "Workload": workload_specs,
    "User": user_specs,
    "Node": node_specs,
    "Role": st.fixed_dictionaries({"permission": policies}),
    "Group": some(description=st.text(alphabet="abc é", max_size=9)),
    "Volume": st.fixed_dictionaries({"storage": names}, optional={"size": sizes, "policy": st.just("readOnly")}),
    "ResourceCredit": st.fixed_dictionaries({"credit": st.fixed_dictionaries({"per": st.just({"hour": 2})})}),
}
documents = st.sampled_from(sorted(RIGHT)).flatmap(
    lambda kind: st.fixed_dictionaries(
        {
            "apiVersion": st.just("v1"),
            "kind": st.sampled_from([kind, kind.lower()]),
            "metadata": st.fixed_dictionaries(
                {"name": names}, optional={"labels": st.dictionaries(names, names, max_size=2)}
            ),
            "spec": RIGHT[kind],
        }
    )
)


@given(documents)
@settings(max_examples=400)
def test_a_right_document_is_read_and_what_comes_out_reads_as_itself(document: dict[str, Any]) -> None:
    reads_as_itself(parse_document(document, default_group=GROUP))


@given(documents, near_misses, st.randoms(use_true_random=False))
@settings(max_examples=400)
def test_a_right_document_with_one_part_exchanged_is_read_or_refused(
    document: dict[str, Any], part: Any, random: Random
) -> None:
    # Strategies give parts that are the same object in every example.
    document = copy.deepcopy(document)
    places = list(_places(document))
    holder, key = random.choice(places)
    holder[key] = part
    parsed = outcome(document)
    if parsed is not None:
        reads_as_itself(parsed)


@given(documents)
def test_a_document_means_the_same_after_its_way_through_the_api(document: dict[str, Any]) -> None:
    """The API carries documents as protobuf Structs, whose numbers are all doubles."""
    struct = json_format.ParseDict(document, Struct())
    floats = _as_floats(json_format.MessageToDict(struct))
    assert parse_document(floats, default_group=GROUP).message == parse_document(document, default_group=GROUP).message


@given(documents, st.data())
def test_one_unknown_field_refuses_the_document_and_is_named(document: dict[str, Any], data: st.DataObject) -> None:
    place = data.draw(st.sampled_from(["", "metadata", "spec"]))
    document = copy.deepcopy(document)
    (document[place] if place else document)["notAField"] = 1
    with pytest.raises(Refused) as refused:
        parse_document(document, default_group=GROUP)
    assert f"{place}.notAField".lstrip(".") in [problem.field for problem in refused.value.problems]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a document that holds a value."""
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(child, dict | list):
            yield from _places(child)


def _as_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_floats(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_as_floats(child) for child in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
