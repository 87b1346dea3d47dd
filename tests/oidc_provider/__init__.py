"""A real OpenID Connect provider for tests: a process that they start, and a browser to log in there with.

It is panva's oidc-provider for Node.js, which is certified and has the device flow with all its pages; in Python there
are libraries to make one of, and imitations. What it is made of is pinned by `package-lock.json` and installed once
for all checkouts, into `~/.cache/pwm-tests`: 40 packages, 2 s. Where that cannot be done, tests that need it are
skipped by name, unless PWM_TESTS_NEED_OIDC says that they must run.
"""

import fcntl
import hashlib
import json
import os
import shutil
import ssl
import subprocess
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from html.parser import HTMLParser
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any, NoReturn

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pwm.etcd_process import free_port

HERE = Path(__file__).parent
FILES = ("package.json", "package-lock.json", "server.mjs")
INSTALL_LIMIT_S, START_LIMIT_S, PAGE_LIMIT_S = 120, 60, 30
GRANT = "urn:ietf:params:oauth:grant-type:device_code"
SECRET = "a:secret/with+signs%20"


def _cannot(why: str) -> NoReturn:
    if os.environ.get("PWM_TESTS_NEED_OIDC"):
        pytest.fail(f"no OpenID Connect provider, and PWM_TESTS_NEED_OIDC is set: {why}")
    pytest.skip(f"needs an OpenID Connect provider: {why}")


@cache
def installed() -> Path | str:
    """The folder with the provider, or why there is none."""
    if missing := [program for program in ("node", "npm") if shutil.which(program) is None]:
        return f"there is no {missing[0]}"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pwm-tests"
    content = b"".join((HERE / name).read_bytes() for name in FILES)
    folder = home / f"oidc-provider-{hashlib.sha256(content).hexdigest()[:16]}"
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder if folder.exists() else _install(folder)


def _install(folder: Path) -> Path | str:
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        for name in FILES:
            shutil.copy(HERE / name, made)
        try:
            done = subprocess.run(
                ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"],
                cwd=made, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"npm ci took more than {INSTALL_LIMIT_S} s"
        if done.returncode:
            return f"npm ci failed: {done.stderr.strip()[-300:]}"
        made.rename(folder)
    return folder


@dataclass
class OidcProvider:
    """`start` it, and `stop` it; at each start it has new keys."""

    folder: Path
    # Authorities to believe, PEM.
    ca: Path
    private_key: str = field(repr=False)
    # Name to claims.
    people: dict[str, dict[str, Any]] = field(default_factory=dict)
    # Whether claims are in the ID token, as with many providers, or to be asked for, as the standard has it.
    in_id_token: bool = False

    def __post_init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[str] | None = None

    @property
    def issuer(self) -> str:
        return f"https://localhost:{self.port}"

    def start(self) -> "OidcProvider":
        common = {"grant_types": [GRANT], "redirect_uris": [], "response_types": []}
        secret = {"client_secret": SECRET, **common}
        settings = {
            "port": self.port,
            "cert": self.ca.read_text(),
            "key": self.private_key,
            "people": self.people,
            "inIdToken": self.in_id_token,
            "clients": [
                {"client_id": "pwm", "client_name": "PWM", **secret},
                {"client_id": "pwm-post", "token_endpoint_auth_method": "client_secret_post", **secret},
                {"client_id": "pwm-public", "token_endpoint_auth_method": "none", **common},
                # Its codes are good for a second.
                {"client_id": "pwm-brief", "client_name": "brief", **secret},
            ],
        }
        log = (self.ca.parent / "provider.log").open("a")
        self._process = subprocess.Popen(
            ["node", str(self.folder / "server.mjs")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            text=True,
        )  # fmt: skip
        log.close()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(settings) + "\n")
        self._process.stdin.flush()
        said = self._process.stdout.readline()
        assert said == "ready\n", f"the provider does not start: {(self.ca.parent / 'provider.log').read_text()}"
        return self

    def stop(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def browser(self) -> "Browser":
        return Browser(self.ca)


class Browser:
    """Somebody's browser: it keeps cookies and submits forms."""

    def __init__(self, ca: Path) -> None:
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca)),
            urllib.request.HTTPCookieProcessor(CookieJar()),
        )

    def confirm(self, address: str, person: str) -> None:
        """Logs in as this person and says yes to everything."""
        page = self._submit(self._to_code(address), confirm="yes")
        page = self._submit(page, login=person, password="of no interest")
        page = self._submit(page)
        assert "Sign-in Success" in page, page

    def refuse(self, address: str) -> None:
        """Says that this is not what they began."""
        page = self._submit(self._to_code(address), abort="yes")
        assert "interrupted" in page, page

    def _to_code(self, address: str) -> str:
        """The page that asks whether the code is right."""
        page = self._submit(self._open(address))
        assert "Confirm Device" in page, page
        return page

    def _submit(self, page: str, **typed: str) -> str:
        form = _Form()
        form.feed(page)
        assert form.action, f"there is no form in {page}"
        return self._open(form.action, urllib.parse.urlencode({**form.fields, **typed}).encode())

    def _open(self, address: str, content: bytes | None = None) -> str:
        try:
            with self._opener.open(address, content, timeout=PAGE_LIMIT_S) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return error.read().decode()


class _Form(HTMLParser):
    """The first form of a page: where it goes, and what is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.action = ""
        self.fields: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag == "form" and not self.action:
            self.action = found.get("action", "")
        if tag == "input" and found.get("type") == "hidden":
            self.fields.setdefault(found["name"], found.get("value", ""))


def _certificate() -> tuple[str, str]:
    """Of localhost, signed by itself, for a day; and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.public_bytes(pem).decode(), private.decode()


@pytest.fixture(scope="module")
def oidc_provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OidcProvider]:
    """One for all tests of a module, not started: its people are theirs to say."""
    found = installed()
    if isinstance(found, str):
        _cannot(found)
    directory = tmp_path_factory.mktemp("oidc")
    certificate, private_key = _certificate()
    (directory / "ca.pem").write_text(certificate)
    made = OidcProvider(found, directory / "ca.pem", private_key)
    try:
        yield made
    finally:
        made.stop()
