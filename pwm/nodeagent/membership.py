"""What makes this agent its node's: a certificate of the cluster's own authority, and the secret key that goes with it.

It gets the first one for a join token: it asks a controller for its authorities, goes on only if one has the
fingerprint that is in the token, and shows the token then. The key is made here and never leaves; it is on disk before
the token is used up, so that an answer that got lost can be asked for again, with the same key. A certificate is good
for a day; at two thirds of that, or as soon as the control plane says that it trusts other authorities, the agent asks
for the next one, over a connection that only this node can have. A session that is open goes on; the next one uses
what is new.

An admin may end a node's certificates at any time. The agent goes on asking, and once it is started with another join
token, it joins anew.

    STATE/tls/identity.pem      key and certificate, for this user only
    STATE/tls/joining.pem       the key to join with, until it has joined
    STATE/tls/authorities.pem   whom to believe
"""

import asyncio
import os
import random
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from pwm.api.v1.agent_pb2 import RenewRequest
from pwm.api.v1.agent_pb2_grpc import AgentServiceStub
from pwm.certificates import NODE, Identity, key_pem, new_key, proof, read_key, signing_request
from pwm.nodeagent.config import AgentConfig, ConfigError
from pwm.nodeagent.session import CHANNEL_OPTIONS, Channel
from pwm.trust import (
    SERVER_NAME,
    Refusal,
    TrustError,
    ask,
    bundle_id,
    certificates_in,
    find_authorities,
    parse_fingerprint,
    pinned,
)

log = structlog.get_logger(__name__)

JOIN_PREFIX = "pwmjoin."
JOINING = "joining.pem"
# Controllers serve the API there unless they are told otherwise.
API_PORT = 4700
# Between attempts to join, and to renew: short beside the third of its life that is left to a certificate then.
RETRY_S = 2.0
# A controller that has said no to a certificate that has ended will hardly say yes in a moment.
REFUSED_PAUSE_S = 30.0
# HTTP: to be asked again after a while.
TOO_MANY = 429
RENEW_TIMEOUT_S = 10.0
# So that the agents of a thousand nodes that began together do not renew together: a share of the time left.
JITTER = 0.1
# Looked at again at least so often: a clock that was set moves the moment.
LOOK_EVERY_S = 60.0


class Membership:
    """`open` it once, `dial` with it, and `run` it beside."""

    def __init__(self, config: AgentConfig, *, now_ms: Callable[[], int]) -> None:
        self._config = config
        self._now_ms = now_ms
        self._dir = config.state_dir / "tls"
        self._identity: Identity | None = None
        self._authorities = ""
        self._authorities_id = ""
        self._told = asyncio.Event()
        self._shut_out = asyncio.Event()
        # Whether somebody who is believed will give no certificate for the one that has ended.
        self._refused = False
        # Renewals since the start.
        self.renewals = 0

    async def open(self) -> None:
        """Read what is there, or join. Raises ConfigError for what cannot work; waits for a controller to answer."""
        self._read()
        if self._identity is None or (self._config.join_token and self._has_ended):
            await self._join()
        elif self._config.join_token and await self._is_elsewhere():
            raise ConfigError(
                f"The certificate in {self._dir} is of another cluster than the join token; to join that of the token, "
                "give another --state-dir, or remove that folder"
            )
        holder = self.identity.holder
        if holder is None or (holder.role, holder.name) != (NODE, self._config.node):
            whose = holder.name if holder else "nobody"
            raise ConfigError(
                f"The certificate in {self._dir} is for node {whose}, not for {self._config.node}; remove it to join "
                "under another name"
            )

    async def _is_elsewhere(self) -> bool:
        """Whether the token leads to controllers that have no authority which this node believes."""
        fingerprint = self._fingerprint()
        if fingerprint in _fingerprints(self._authorities):
            return False
        for host, port in self._join_at():
            try:
                found = await asyncio.to_thread(find_authorities, host, port, fingerprint)
            except TrustError:
                continue  # it is away, or the authority of an old token has been exchanged
            return not _fingerprints(found) & _fingerprints(self._authorities)
        return False

    @property
    def identity(self) -> Identity:
        assert self._identity is not None, "opened"
        return self._identity

    @property
    def _has_ended(self) -> bool:
        return self.identity.ends_ms <= self._now_ms()

    def dial(self, address: str) -> Channel:
        """A connection that only a controller of this cluster can take, with the certificate of now."""
        identity = self.identity
        credentials = grpc.ssl_channel_credentials(self._authorities.encode(), identity.key, identity.chain)
        options = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", SERVER_NAME))
        return grpc.aio.secure_channel(address, credentials, options=options)

    # ---- joining

    async def _join(self) -> None:
        token = self._config.join_token
        if not token:
            raise ConfigError(
                f"This node has not joined yet: there is no certificate in {self._dir}. An admin makes a token for it "
                f"with `pwm admin join-token {self._config.node}`; give it in --join-token-file"
            )
        fingerprint = self._fingerprint()
        key = self._key_to_join_with()
        body = {"token": token, "node": self._config.node, "signingRequest": signing_request(key)}
        said = ""
        while True:
            for host, port in self._join_at():
                try:
                    answer = await asyncio.to_thread(_join_one, host, port, fingerprint, body)
                except Refusal as error:
                    if error.status < 500 and error.status != TOO_MANY:
                        raise ConfigError(f"This node may not join: {error}") from None
                    why = str(error)
                except TrustError as error:
                    why = str(error)
                else:
                    self._keep(Identity(answer["certificate"].encode(), key_pem(key)), answer["authorities"])
                    (self._dir / JOINING).unlink(missing_ok=True)
                    log.info("joined", node=self._config.node, controller=f"{host}:{port}")
                    return
                if why != said:
                    log.warning("cannot join yet", why=why)
                    said = why
            await asyncio.sleep(RETRY_S)

    def _fingerprint(self) -> str:
        """Of the authority that the join token names. Raises ConfigError."""
        try:
            return parse_fingerprint(self._config.join_token.removeprefix(JOIN_PREFIX).partition(".")[0])
        except ValueError:
            raise ConfigError("This is no join token: one begins with pwmjoin. and a fingerprint") from None

    def _key_to_join_with(self) -> EllipticCurvePrivateKey:
        """The one that a join was tried with before, if it was: it may be known with that already."""
        file = self._dir / JOINING
        try:
            return read_key(file.read_bytes())
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.warning("the key in the state directory cannot be used, another one is made", why=str(error))
        key = new_key()
        self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(file, key_pem(key))
        return key

    def _join_at(self) -> list[tuple[str, int]]:
        """Where controllers serve their API."""
        given = [urlsplit(url if "://" in url else f"https://{url}") for url in self._config.join_at]
        if given:
            return [(url.hostname or "", url.port or API_PORT) for url in given]
        return [(server.rpartition(":")[0].strip("[]"), API_PORT) for server in self._config.servers]

    # ---- renewing

    def told(self, authorities_id: str) -> None:
        """The control plane trusts the authorities of that name."""
        if authorities_id and authorities_id != self._authorities_id:
            self._told.set()

    def shut_out(self, why: str) -> None:
        """A controller of this cluster says that the certificate counts for nothing any more."""
        self._shut_out.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_renewed())
            if self._config.join_token:
                tasks.create_task(self._join_anew())

    async def _join_anew(self) -> None:
        """With the token that the agent was started with, once: it may be one that was used long ago."""
        await self._shut_out.wait()
        try:
            await self._join()
        except ConfigError as error:
            log.error("this node is shut out, and its join token does not help", why=str(error))

    async def _keep_renewed(self) -> None:
        while True:
            await self._until_due()
            self._told.clear()
            if await self._renew():
                self.renewals += 1
            else:
                left_s = (self.identity.ends_ms - self._now_ms()) / 1000
                await asyncio.sleep(REFUSED_PAUSE_S if self._refused else min(RETRY_S, max(0.2, left_s / 10)))

    async def _until_due(self) -> None:
        identity = self.identity
        due_ms = identity.renew_ms + int((identity.ends_ms - identity.renew_ms) * random.uniform(0, JITTER))
        while not self._told.is_set() and (left_ms := due_ms - self._now_ms()) > 0:
            try:
                async with asyncio.timeout(min(LOOK_EVERY_S, left_ms / 1000)):
                    await self._told.wait()
            except TimeoutError:
                continue

    async def _come_back(self) -> bool:
        """As `_renew`, with a certificate that has ended: no controller takes a connection with it, but the API may."""
        key = new_key()
        text = signing_request(key)
        shown = {"certificate": self.identity.chain.decode(), "proof": b64encode(proof(self.identity, text)).decode()}
        body = {"node": self._config.node, "signingRequest": text, **shown}
        why, self._refused = "", False
        for host, port in self._join_at():
            try:
                context = pinned(self._authorities)
                answer = await asyncio.to_thread(ask, host, port, "POST", "/v1/join", context=context, body=body)
            except TrustError as error:
                why = str(error)
                self._refused = self._refused or (isinstance(error, Refusal) and error.status < 500)
                continue
            self._refused = False
            self._keep(Identity(answer["certificate"].encode(), key_pem(key)), answer["authorities"])
            log.info("came back with a certificate that had ended", node=self._config.node, controller=f"{host}:{port}")
            return True
        log.warning("the certificate has ended, and there is no other yet; an admin makes a token to join anew with"
                    " `pwm admin join-token`", why=why)  # fmt: skip
        return False

    async def _renew(self) -> bool:
        """Whether a controller has given another one."""
        if self._has_ended:
            return await self._come_back()
        key = new_key()
        request = RenewRequest(signing_request=signing_request(key))
        why = ""
        for server in self._config.servers:
            try:
                async with self.dial(server) as channel:
                    answer = await AgentServiceStub(channel).Renew(request, timeout=RENEW_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                why = f"{error.code().name}: {error.details()}"
                continue
            self._keep(Identity(answer.certificate.encode(), key_pem(key)), answer.authorities)
            log.info("certificate renewed", node=self._config.node, controller=server)
            return True
        log.warning("the certificate cannot be renewed yet", why=why)
        return False

    # ---- on disk

    def _read(self) -> None:
        try:
            pem = (self._dir / "identity.pem").read_bytes()
            self._authorities = (self._dir / "authorities.pem").read_text()
            key, mark, chain = pem.partition(b"-----BEGIN CERTIFICATE-----")
            identity = Identity(mark + chain, key)
            _ = identity.ends_ms
            self._authorities_id = bundle_id(self._authorities)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise ConfigError(f"The certificate in {self._dir} cannot be read: {error}") from error
        self._identity = identity

    def _keep(self, identity: Identity, authorities: str) -> None:
        """On disk first: what was used up for it cannot be used again."""
        pinned(authorities)
        self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(self._dir / "authorities.pem", authorities.encode())
        _write(self._dir / "identity.pem", identity.key + identity.chain)
        self._identity, self._authorities = identity, authorities
        self._authorities_id = bundle_id(authorities)


def _fingerprints(bundle: str) -> set[str]:
    return {sha256(der).hexdigest() for der in certificates_in(bundle)}


def _join_one(host: str, port: int, fingerprint: str, body: dict[str, str]) -> dict[str, str]:
    """Raises TrustError, Refusal."""
    context = pinned(find_authorities(host, port, fingerprint))
    return ask(host, port, "POST", "/v1/join", context=context, body=body)


def _write(file: Path, content: bytes) -> None:
    """For this user only, whole or not at all."""
    scratch = file.with_name(f".{file.name}.new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    scratch.replace(file)
