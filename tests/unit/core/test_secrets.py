"""Secrets as decisions: what a document changes, what a workload waits for, what a container is given."""

from typing import Any

import pytest
from google.protobuf import json_format

from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.events_pb2 import SecretApplied
from pwm.api.v1.identity_pb2 import Secret, SecretValues
from pwm.api.v1.services_pb2 import ApplyResult
from pwm.api.v1.workload_pb2 import ContainerSpec, Workload
from pwm.controlplane.core.decide import Refusal
from pwm.controlplane.core.manifest import parse_document
from pwm.controlplane.core.secrets import apply_secret, given_to, missing, no_login_for, references_of, used_by

LOGIN = {"server": "hub.example.org", "username": "ann", "password": "secret"}


def parsed(**spec: Any) -> Secret:
    found = parse_document({"kind": "Secret", "metadata": {"name": "s"}, "spec": spec}, default_group="g").message
    assert isinstance(found, Secret)
    return found


def there(values: SecretValues, **spec: Any) -> Secret:
    """The state of a Secret: which keys it has, and nothing of what they hold."""
    state = Secret(kind="Secret")
    state.metadata.name, state.metadata.group, state.metadata.version = "s", "g", 1
    for key in values.data:
        state.spec.data[key] = ""
    state.spec.registry.server = "hub.example.org" if values.password else ""
    return state


def values(login: bool = False, **data: bytes) -> SecretValues:
    return SecretValues(data=data, **({"username": "ann", "password": "secret"} if login else {}))


def test_an_event_says_which_keys_there_are_and_nothing_else() -> None:
    wanted = parsed(data={"b": "text\n", "a": "ü"}, base64={"c": "/w\n  A="}, registry=LOGIN)
    outcome, payloads, kept = apply_secret(None, wanted, None)
    assert outcome == ApplyResult.CREATED
    assert payloads == (SecretApplied(keys=["a", "b", "c"], registry="hub.example.org"),)
    assert kept == values(login=True, a="ü".encode(), b=b"text\n", c=b"\xff\x00")


@pytest.mark.parametrize(
    ("spec", "outcome", "kept"),
    [
        ({"data": {"a": "1", "b": "2"}}, "UNCHANGED", values(a=b"1", b=b"2")),
        ({"data": {"a": "", "b": ""}}, "UNCHANGED", values(a=b"1", b=b"2")),
        ({"data": {"a": None, "b": None}}, "UNCHANGED", values(a=b"1", b=b"2")),
        ({"data": {"a": "", "b": "3"}}, "CONFIGURED", values(a=b"1", b=b"3")),
        ({"data": {"a": ""}}, "CONFIGURED", values(a=b"1")),
        ({"data": {"a": "", "b": "", "c": "3"}}, "CONFIGURED", values(a=b"1", b=b"2", c=b"3")),
        ({"base64": {"a": "MQ=="}, "data": {"b": ""}}, "UNCHANGED", values(a=b"1", b=b"2")),
    ],
)
def test_an_empty_value_keeps_what_is_there_and_what_is_left_out_goes(
    spec: Any, outcome: str, kept: SecretValues
) -> None:
    before = values(a=b"1", b=b"2")
    found, payloads, now = apply_secret(there(before), parsed(**spec), before)
    assert (ApplyResult.Outcome.Name(found), now) == (outcome, kept)
    assert bool(payloads) == (outcome != "UNCHANGED")


def test_what_get_shows_can_be_applied_again() -> None:
    before = values(login=True, a=b"1")
    shown = json_format.MessageToDict(there(before))
    assert "secret" not in str(shown["spec"])
    outcome, _, now = apply_secret(there(before), parsed(**shown["spec"]), before)
    assert (outcome, now) == (ApplyResult.UNCHANGED, before)


@pytest.mark.parametrize(
    "login",
    [
        {"server": "hub.example.org", "username": "ann"},
        {"server": "hub.example.org"},
    ],
)
def test_a_login_keeps_its_password_at_its_own_registry_only(login: dict[str, str]) -> None:
    before = values(login=True)
    _, _, now = apply_secret(there(before), parsed(registry=login), before)
    assert now == before
    elsewhere = parsed(registry=login | {"server": "evil.example.org"})
    with pytest.raises(Refusal, match=r"the login at evil\.example\.org in secret s has no password"):
        apply_secret(there(before), elsewhere, before)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"data": {"a": ""}}, "the key a of secret s has no value"),
        ({"registry": {"server": "hub.example.org", "username": "ann"}}, "has no password"),
        ({"registry": {"server": "hub.example.org"}}, "has no password"),
    ],
)
def test_a_new_secret_needs_values(spec: Any, said: str) -> None:
    with pytest.raises(Refusal, match=said):
        apply_secret(None, parsed(**spec), None)


# ---- workloads


def workload(**spec: Any) -> Workload:
    document = {"kind": "Workload", "metadata": {"name": "w"}, "spec": {"image": "a", **spec}}
    found = parse_document(document, default_group="g").message
    assert isinstance(found, Workload)
    return found


@pytest.mark.parametrize(
    "env",
    [
        {"A": {"secret": "s", "key": "k"}, "B": "plain"},
        [{"name": "A", "secret": "s", "key": "k"}, {"name": "B", "value": "plain"}],
        [{"name": "A", "secret": "s", "key": "k"}, "B=plain"],
    ],
)
def test_variables_refer_to_secrets_in_both_forms(env: Any) -> None:
    config = workload(config={"env": env}).spec.config
    assert dict(config.env) == {"B": "plain"}
    assert {name: (key.secret, key.key) for name, key in config.secret_env.items()} == {"A": ("s", "k")}


@pytest.mark.parametrize("secrets", ["s", ["s"], {"name": "s"}, [{"name": "s"}]])
def test_files_are_written_in_four_ways(secrets: Any) -> None:
    (files,) = workload(config={"secrets": secrets}).spec.config.secrets
    assert (files.name, files.group, files.target) == ("s", "", "")


def test_references_name_their_field_and_their_group() -> None:
    found = references_of(
        workload(
            image={"image": "a", "registrySecret": "hub"},
            config={
                "env": {"A": {"secret": "s", "key": "k"}, "B": {"secret": "t", "key": "l", "group": "pwm.resource"}},
                "secrets": ["s"],
            },
        )
    )
    assert found == [
        ("spec.config.secretEnv.A", ("g", "s", "k")),
        ("spec.config.secretEnv.B", ("pwm.resource", "t", "l")),
        ("spec.config.secrets[0]", ("g", "s", "")),
        ("spec.image.registrySecret", ("g", "hub", "")),
    ]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"config": {"env": {"A": {"secret": "s", "key": "a"}}, "secrets": ["s"]}}, ""),
        ({"config": {"env": {"A": {"secret": "s", "key": "z"}}}}, "the secret s has no key z"),
        ({"config": {"env": {"A": {"secret": "t", "key": "z"}}}}, "there is no secret t in group g"),
        ({"config": {"secrets": [{"name": "s", "group": "h"}]}}, "there is no secret s in group h"),
        ({"image": {"image": "a", "registrySecret": "s"}},
         "the secret s has a login at hub.example.org, and a:latest comes from docker.io"),
        ({"image": {"image": "hub.example.org/a", "registrySecret": "s"}}, ""),
    ],
)  # fmt: skip
def test_a_workload_waits_for_the_secrets_that_are_not_there(spec: Any, said: str) -> None:
    state = there(values(login=True, a=b"1"))
    found = missing(workload(**spec), lambda group, name: state if (group, name) == ("g", "s") else None)
    assert (found.reason.message if found else "") == said
    assert found is None or found.reason.code == Reason.SECRET_NOT_EXIST


@pytest.mark.parametrize(
    ("image", "server", "fits"),
    [
        ("busybox:1", "docker.io", True),
        ("library/busybox", "index.docker.io", True),
        ("docker.io/library/busybox", "registry-1.docker.io", True),
        ("hub.example.org/a/b", "hub.example.org", True),
        ("hub.example.org:5000/a", "hub.example.org:5000", True),
        ("hub.example.org:5000/a", "hub.example.org", False),
        ("evil.example.org/hub.example.org/a", "hub.example.org", False),
        ("localhost/a", "localhost", True),
        ("busybox", "hub.example.org", False),
        ("busybox", "", False),
    ],
)
def test_a_login_goes_to_its_own_registry_only(image: str, server: str, fits: bool) -> None:
    state = Secret()
    state.spec.registry.server = server
    assert (no_login_for(image, state) == "") == fits


# ---- containers

SPEC = {
    "image": "hub.example.org/a",
    "secretEnv": {"A": {"secret": "s", "key": "text"}},
    "secrets": [{"name": "s"}, {"name": "s", "target": "/keys"}],
    "registrySecret": {"name": "s"},
}


def container(**spec: Any) -> ContainerSpec:
    return json_format.ParseDict(spec, ContainerSpec())


def test_a_container_is_given_what_it_refers_to() -> None:
    held = values(login=True, text="ü".encode(), raw=b"\xff\x00")
    assert used_by(container(**SPEC), "g") == {("g", "s")}
    given = given_to(container(**SPEC), "g", {("g", "s"): (there(held), held)})
    assert not given.HasField("refused")
    assert dict(given.env) == {"A": "ü"}
    assert [(f.name, f.target, dict(f.files)) for f in given.folders] == [
        ("s", "/run/secrets/s", dict(held.data)),
        ("s", "/keys", dict(held.data)),
    ]
    assert (given.registry.server, given.registry.username, given.registry.password) == (
        "hub.example.org", "ann", "secret",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("raw", "the key raw of secret s is no text, so no variable can hold it: use spec.config.secrets"),
        ("nul", "the key nul of secret s is no text, so no variable can hold it: use spec.config.secrets"),
        ("gone", "the secret s has no key gone"),
    ],
)
def test_a_container_whose_variable_cannot_be_set_is_given_nothing(key: str, said: str) -> None:
    held = values(raw=b"tell-nobody\xff", nul=b"tell\0nobody")
    spec = container(secretEnv={"A": {"secret": "s", "key": key}}, secrets=[{"name": "s"}])
    given = given_to(spec, "g", {("g", "s"): (there(held), held)})
    assert given.refused.message == said
    assert "nobody" not in str(given)


def test_a_container_whose_secret_has_gone_is_given_nothing() -> None:
    given = given_to(container(**SPEC), "g", {})
    assert given.refused.message == "there is no secret s in group g"
