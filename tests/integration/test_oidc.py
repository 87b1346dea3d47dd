"""`pwm login --oidc` at a real provider: two real controllers, a certified provider, and people with browsers."""

import asyncio
import http.client
import json
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pwm.controlplane.oidc.provider import LoginOver, NotYet, Provider, ProviderUnfit
from pwm.controlplane.oidc.settings import OidcSettings
from tests.etcd_server import require_etcd
from tests.oidc_provider import SECRET, OidcProvider
from tests.pwm_cluster import PwmCluster, Result, eventually

pytestmark = [pytest.mark.etcd]

REFUSED, NO_SERVER, INTERRUPTED = 5, 6, 130
PEOPLE: dict[str, dict[str, Any]] = {
    "ann": {"email": "Ann@Example.org", "email_verified": True, "preferred_username": "ann"},
    "bob": {"email": "bob@example.org", "email_verified": True},
    "eve": {"email": "eve@example.org", "email_verified": True},
    "mallory": {"email": "ann@example.org", "email_verified": False, "preferred_username": "mallory"},
}
SPECS: dict[str, dict[str, Any]] = {
    "anna": {"contact": {"email": "ann@example.org"}, "groups": [{"name": "users"}]},
    "robert": {"contact": {"email": "bob@example.org"}, "active": False},
}
USERS = [{"kind": "User", "metadata": {"name": name}, "spec": spec} for name, spec in SPECS.items()]


@pytest.fixture(scope="module")
def pwm(oidc_provider: OidcProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PwmCluster]:
    """Two controllers that know the provider; no agent."""
    require_etcd()
    oidc_provider.people = PEOPLE
    oidc_provider.start()
    directory = tmp_path_factory.mktemp("pwm")
    (directory / "secret").write_text(SECRET + "\n")
    settings = {
        "ISSUER": oidc_provider.issuer,
        "CLIENT_ID": "pwm",
        "CLIENT_SECRET_FILE": str(directory / "secret"),
        "CA": str(oidc_provider.ca),
        "TOKEN_LIFE": "2h",
    }
    made = PwmCluster(directory, "", controllers=2, environment={f"PWM_OIDC_{k}": v for k, v in settings.items()})
    try:
        made.etcd.start()
        for replica in made.replicas:
            made.start_controller(replica.part)
        made.ok("apply", "-f", "-", input="\n---\n".join(map(json.dumps, USERS)))
        yield made
    finally:
        for replica in made.replicas:
            with suppress(KeyError):  # it does not run
                made.kill(replica.part)
        made.etcd.kill()


class LogIn:
    """A `pwm login --oidc` of somebody who has logged in nowhere yet, without a terminal."""

    def __init__(self, pwm: PwmCluster, home: Path) -> None:
        home.mkdir(exist_ok=True)
        self.home = home
        kept = {k: v for k, v in pwm.cli_environment.items() if k != "PWM_TOKEN"}
        self.environment = {**kept, "HOME": str(home)}
        self._pwm = pwm
        with (home / "out").open("w") as out, (home / "err").open("w") as err:
            self.process = subprocess.Popen(
                pwm.command("login", "--oidc"), stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=self.environment
            )

    @property
    def said(self) -> str:
        return (self.home / "err").read_text()

    @property
    def address(self) -> str:
        """The one to open."""
        found = eventually(
            lambda: re.search(r"https://\S+user_code=\S+", self.said), lambda: f"an address: {self.said}"
        )
        assert found is not None
        return found[0]

    @property
    def config(self) -> Path:
        return self.home / ".pwm" / "config"

    def end(self) -> Result:
        code = self.process.wait(timeout=60)
        return Result(code, (self.home / "out").read_text(), self.said)

    def then(self, *words: str) -> str:
        """What another command says, with the profile that is there now."""
        done = subprocess.run(
            self._pwm.command(*words), env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def beginning(pwm: PwmCluster, home: Path) -> Iterator[LogIn]:
    made = LogIn(pwm, home)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()


def audit(pwm: PwmCluster, *actions: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(pwm.ok("events", "--audit", "-o", "json", "-n", "1000"))
    return [entry for entry in found if entry["action"] in actions]


def test_who_confirms_the_code_is_logged_in_and_has_a_private_profile(
    pwm: PwmCluster, oidc_provider: OidcProvider, tmp_path: Path
) -> None:
    with beginning(pwm, tmp_path / "home") as login:
        oidc_provider.browser().confirm(login.address, "ann")
        result = login.end()
        assert result.code == 0, result.err
        assert "\033" not in result.out + result.err, "there is no terminal"
        assert re.search(r"logged in at \S+, \S+ as anna; the token oidc-\S+ is good until ", result.out)
        assert login.config.stat().st_mode & 0o777 == 0o600
        secret = re.search(r"pwm_[\w-]{43}", login.config.read_text())
        assert secret is not None
        who = json.loads(login.then("whoami", "-o", "json"))
        assert (who["user"], who["defaultGroup"]) == ("anna", "users")
        (token,) = json.loads(login.then("token", "ls", "-o", "json"))
        assert token["name"].startswith("oidc-")
        assert (token["state"], token["createdBy"]["name"], token["description"]) == (
            "LIVE", "anna", f"log-in at {oidc_provider.issuer}",
        )  # fmt: skip
        assert "in 1h" in login.then("token", "ls")
    for text in (result.out, result.err, *(pwm.log(replica.part) for replica in pwm.replicas)):
        assert secret[0] not in text
        assert SECRET not in text

    def written() -> bool:
        entries = [e for e in audit(pwm, "LOGIN", "CHANGE") if e.get("user") == "anna"]
        said = {(e["action"], e.get("what"), e["address"]) for e in entries}
        return {
            ("LOGIN", f"at {oidc_provider.issuer}", "127.0.0.1"), ("CHANGE", "token_issued", "127.0.0.1"),
        } <= said  # fmt: skip

    eventually(written, "who has logged in, and from where, is in the audit")


def test_a_log_in_goes_on_when_the_controller_dies_that_began_it(
    pwm: PwmCluster, oidc_provider: OidcProvider, tmp_path: Path
) -> None:
    with beginning(pwm, tmp_path / "home") as login:
        address = login.address
        for replica in pwm.replicas:
            pwm.kill(replica.part)
        oidc_provider.browser().confirm(address, "ann")
        pwm.start_controller(pwm.replicas[1].part)
        result = login.end()
        assert result.code == 0, result.err
        assert "as anna" in result.out
    pwm.start_controller(pwm.replicas[0].part)


def test_nobody_else_gets_in_and_each_is_told_why(pwm: PwmCluster, oidc_provider: OidcProvider, tmp_path: Path) -> None:
    """All at once, since everybody waits for the next question of `pwm`."""
    expected = {
        "eve": "no user here has the e-mail address eve@example.org\n  ask an admin",
        "mallory": "the provider has not verified that ann@example.org is your e-mail address",
        "bob": "user robert is deactivated",
        "refuses": "the log-in was refused at the provider",
    }
    logins = {name: LogIn(pwm, tmp_path / name) for name in expected}
    try:
        for name, login in logins.items():
            browser = oidc_provider.browser()
            if name == "refuses":
                browser.refuse(login.address)
            else:
                browser.confirm(login.address, name)
        for name, login in logins.items():
            result = login.end()
            assert (result.code, result.out) == (REFUSED, "")
            assert expected[name] in result.err
            assert not login.config.exists()
    finally:
        for login in logins.values():
            login.process.kill()
            login.process.wait()

    def written() -> bool:
        said = {(e.get("user", ""), e["what"]) for e in audit(pwm, "LOGIN_FAILED")}
        return {("", "the log-in was refused at the provider"), ("robert", "user robert is deactivated")} <= said

    eventually(written, "failures are in the audit")
    assert not audit(pwm, "BANNED"), "they are no guesses"


def test_ctrl_c_ends_it_and_leaves_nothing(pwm: PwmCluster, tmp_path: Path) -> None:
    with beginning(pwm, tmp_path / "home") as login:
        assert login.address
        login.process.send_signal(signal.SIGINT)
        result = login.end()
        assert (result.code, result.out) == (INTERRUPTED, "")
        assert "Traceback" not in result.err
        assert not login.config.exists()


def post(pwm: PwmCluster, number: int, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """What one of the controllers answers to nobody."""
    connection = http.client.HTTPConnection(pwm.replicas[number].http, timeout=30)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        found: dict[str, Any] = json.loads(answer.read())
        return answer.status, found
    finally:
        connection.close()


def begin(pwm: PwmCluster, number: int = 0) -> tuple[dict[str, str], str]:
    """What the log-in is completed with, and the address to open."""
    status, begun = post(pwm, number, "/v1/login/begin", {})
    assert status == 200, begun
    return {"handle": begun["handle"], "host": "here"}, begun["verificationUriComplete"]


def complete(pwm: PwmCluster, number: int, body: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """The answer to the first question that is not too soon after another one."""

    def ask() -> tuple[int, dict[str, Any]] | None:
        answer = post(pwm, number, "/v1/login/complete", body)
        return answer if answer[1].get("state") != "SLOW_DOWN" else None

    found = eventually(ask, "a question that is not too early")
    assert found is not None
    return found


def test_a_log_in_is_completed_once_and_by_any_controller(pwm: PwmCluster, oidc_provider: OidcProvider) -> None:
    body, address = begin(pwm)
    assert post(pwm, 1, "/v1/login/complete", body) == (200, {"state": "PENDING"})
    oidc_provider.browser().confirm(address, "ann")
    status, answer = complete(pwm, 1, body)
    assert status == 200
    assert (answer["state"], answer["entry"]["user"], answer["entry"]["name"]) == ("DONE", "anna", "oidc-here")
    for number in (0, 1):
        status, answer = complete(pwm, number, body)
        assert status == 401
        assert "has been completed already" in answer["message"]


def test_of_two_who_complete_it_at_once_one_at_most_is_logged_in(pwm: PwmCluster, oidc_provider: OidcProvider) -> None:
    body, address = begin(pwm)
    oidc_provider.browser().confirm(address, "ann")
    together = threading.Barrier(2)

    def ask(number: int) -> tuple[int, dict[str, Any]]:
        together.wait()
        return post(pwm, number, "/v1/login/complete", body)

    with ThreadPoolExecutor(2) as both:
        answers = list(both.map(ask, (0, 1)))
    assert len([answer for status, answer in answers if status == 200]) <= 1
    assert {answer["message"] for status, answer in answers if status != 200} <= {
        "this log-in has been completed already, or the provider has forgotten it",
        "the provider has taken this log-in back",
    }
    assert {status for status, _ in answers} <= {200, 401}


def test_new_keys_of_the_provider_are_believed_at_once(
    pwm: PwmCluster, oidc_provider: OidcProvider, tmp_path: Path
) -> None:
    oidc_provider.stop()
    # As many providers do it.
    oidc_provider.in_id_token = True
    oidc_provider.start()
    with beginning(pwm, tmp_path / "home") as login:
        oidc_provider.browser().confirm(login.address, "ann")
        result = login.end()
        assert result.code == 0, result.err


def test_without_the_provider_it_is_said_and_nothing_else_suffers(
    pwm: PwmCluster, oidc_provider: OidcProvider, tmp_path: Path
) -> None:
    oidc_provider.stop()
    try:
        with beginning(pwm, tmp_path / "home") as login:
            result = login.end()
        assert result.code == NO_SERVER
        assert "the provider to log in at is out of reach" in result.err
        assert "or log in with a token: pwm login" in result.err
        assert pwm.ok("token", "create", "-o", "name").startswith("pwm_")
    finally:
        oidc_provider.start()


@pytest.mark.parametrize(
    ("client", "secret", "claim"),
    [("pwm", SECRET, "email"), ("pwm-post", SECRET, "preferred_username"), ("pwm-public", "", "preferred_username")],
)
async def test_each_kind_of_client_gets_the_claim_that_it_needs(
    pwm: PwmCluster, oidc_provider: OidcProvider, client: str, secret: str, claim: str
) -> None:
    settings = OidcSettings(oidc_provider.issuer, client, secret, claim=claim, ca=oidc_provider.ca)
    async with Provider(settings) as provider:
        begun = await provider.begin()
        with pytest.raises(NotYet):
            await provider.complete(begun.device_code)
        await asyncio.to_thread(oidc_provider.browser().confirm, begun.verification_uri_complete, "mallory")
        claims = await provider.complete(begun.device_code)
        assert claims[claim] == PEOPLE["mallory"][claim]
        assert claims["sub"] == "mallory"
        assert claims["aud"] == client
        with pytest.raises(LoginOver, match="completed already"):
            await provider.complete(begun.device_code)


async def until_over(provider: Provider, device_code: str) -> None:
    while True:
        with suppress(NotYet):
            await provider.complete(device_code)
        await asyncio.sleep(0.1)


async def test_a_code_ends_when_the_provider_says(pwm: PwmCluster, oidc_provider: OidcProvider) -> None:
    async with Provider(OidcSettings(oidc_provider.issuer, "pwm-brief", SECRET, ca=oidc_provider.ca)) as provider:
        begun = await provider.begin()
        assert begun.lifetime_s == 1
        with pytest.raises(LoginOver, match="not confirmed in time"):
            await until_over(provider, begun.device_code)


async def test_a_provider_that_does_not_want_this_client_says_so(pwm: PwmCluster, oidc_provider: OidcProvider) -> None:
    async with Provider(OidcSettings(oidc_provider.issuer, "pwm", "a wrong secret", ca=oidc_provider.ca)) as provider:
        with pytest.raises(ProviderUnfit, match="invalid_client"):
            await provider.begin()
