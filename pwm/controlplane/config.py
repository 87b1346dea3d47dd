"""Settings of a controller. Each is a flag of `pwm controller`, a variable PWM_… or a key of its config file."""

import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from pwm.controlplane.core.antechamber import ConnectionLimits
from pwm.controlplane.core.authorities import CERTIFICATE_LIFE_MS, check_life
from pwm.controlplane.core.credits import DEFAULT_POLICY, CreditPolicy
from pwm.controlplane.core.door import DoorLimits
from pwm.controlplane.core.idle import DEFAULT_POLICY as DEFAULT_IDLE
from pwm.controlplane.core.idle import IdlePolicy
from pwm.controlplane.core.logins import EMAIL
from pwm.controlplane.core.nodes import NodeTimes
from pwm.controlplane.core.targets import Allowed
from pwm.controlplane.delivery.courier import MailServer, NoticeSettings
from pwm.controlplane.oidc.settings import DEFAULT_TOKEN_LIFE_MS, OidcSettings, read_secret


class UnusableFile(Exception):
    """A file that a setting names; the message is a sentence for the admin."""


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    # etcd's client addresses, HOST:PORT.
    etcd: tuple[str, ...] = ("127.0.0.1:4702",)
    prefix: str = "/pwm/v1/"
    http_host: str = "127.0.0.1"
    http_port: int = 4700
    agent_host: str = "127.0.0.1"
    agent_port: int = 4701
    # Host by which users, agents and other replicas reach this one; empty: the addresses above, or this host's name.
    advertise: str = ""
    # Names this replica for as long as it runs; empty: made up at each start.
    replica: str = ""
    # Where a first admin token and a first node token are written.
    admin_token_file: Path | None = None
    node_token_file: Path | None = None
    # What the cluster's secrets, its certificate authority's key among them, are encrypted with in etcd.
    cluster_key_file: Path | None = None
    # No TLS: tokens and all that is said can be read and changed on the way.
    plaintext: bool = False
    # How long the certificates of nodes and controllers are good for.
    certificate_life_ms: int = CERTIFICATE_LIFE_MS
    # More names and addresses by which clients with a CA file of their own look for this replica.
    tls_names: tuple[str, ...] = ()
    # A certificate from somewhere else for the API and the web app, and its key; PEM.
    tls_cert: Path | None = None
    tls_key: Path | None = None
    # Where the authority's certificate is written, for those who shall trust it.
    ca_file: Path | None = None
    # etcd's own TLS: whom to believe, and who this controller is; PEM.
    etcd_ca: Path | None = None
    etcd_cert: Path | None = None
    etcd_key: Path | None = None
    # Silence after which a node is NOT_READY and LOST, and time after which an agent that is cut off ends the
    # containers that may then start elsewhere. 0: the default, or what goes with the others.
    node_grace_ms: int = 0
    node_lost_after_ms: int = 0
    self_fence_ms: int = 0
    # GPUs that nobody uses (core/idle.py): after how long a workload is stopped (0: only those that ask for it), how
    # long before that it is warned (None: in proportion), how long it is spared after its start, and from how many
    # percent on a GPU counts as used.
    idle_pause_after_ms: int = DEFAULT_IDLE.pause_after_ms
    idle_warn_before_ms: int | None = None
    idle_after_start_ms: int = DEFAULT_IDLE.spared_ms
    gpu_used_from_percent: int = DEFAULT_IDLE.used_from_percent
    # Streams (watches, logs, shells) that one user may have open at this replica.
    streams_per_user: int = 1_000
    # Connections over which no valid token came (core/antechamber.py): from one address, and of all. 0: no limit.
    strangers_per_address: int = 256
    strangers: int = 4_096
    # The weekday on which weekly credits begin anew, at 00:00 UTC, and how long what runs may go on without any.
    credits_reset_day: str = DEFAULT_POLICY.reset_day
    credits_stop_grace_ms: int = DEFAULT_POLICY.stop_grace_ms
    # How long it is kept who did what.
    audit_keep_ms: int = 30 * 86_400_000
    # What one address may ask of this replica (core/door.py). 0: no limit, and no bans.
    rate_limit: int = 30
    rate_burst: int = 300
    ban_after: int = 3
    ban_time_ms: int = 120_000
    # Addresses and networks of proxies whose X-Forwarded-For is believed.
    trusted_proxies: tuple[str, ...] = ()
    # Where mail of notices goes out, HOST:PORT, and from whom. Empty: none is sent.
    smtp: str = ""
    smtp_sender: str = ""
    smtp_user: str = ""
    smtp_password_file: Path | None = None
    # none, starttls or tls.
    smtp_tls: str = "starttls"
    telegram_token_file: Path | None = None
    # Addresses that users may write, as patterns of SCHEME://HOST, and networks besides the public ones they may be in.
    notify_to: tuple[str, ...] = ()
    notify_network: tuple[str, ...] = ()
    # A provider of OpenID Connect that people may log in at (oidc/settings.py). Empty: there is none.
    oidc_issuer: str = ""
    oidc_client_id: str = ""
    oidc_client_secret_file: Path | None = None
    oidc_scope: tuple[str, ...] = ()
    oidc_claim: str = EMAIL
    oidc_ca: Path | None = None
    oidc_token_life_ms: int = DEFAULT_TOKEN_LIFE_MS
    # Hosts of the registries that images may come from. None: all.
    registries: tuple[str, ...] = ()
    log_level: str = "info"
    log_json: bool = False
    hostname: str = field(default_factory=socket.gethostname)

    def __post_init__(self) -> None:
        _ = self.times, self.idle
        self.credit_policy.check()
        check_life(self.certificate_life_ms)
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("a given certificate is two files, --tls-cert and --tls-key")
        if self.oidc_issuer and self.cluster_key_file is None:
            raise ValueError(
                "a provider to log in at needs --cluster-key-file: log-ins that have begun are sealed with it"
            )
        _ = self.oidc
        if bool(self.smtp) != bool(self.smtp_sender):
            raise ValueError("notices by mail need --smtp and --smtp-sender")
        if bool(self.etcd_cert) != bool(self.etcd_key):
            raise ValueError("a certificate for etcd is two files, --etcd-cert and --etcd-key")

    @property
    def credit_policy(self) -> CreditPolicy:
        return CreditPolicy(reset_day=self.credits_reset_day.lower(), stop_grace_ms=self.credits_stop_grace_ms)

    @property
    def tls(self) -> bool:
        """Tokens of nodes are for agents without certificates: who asks for one wants no TLS."""
        return not self.plaintext and self.node_token_file is None

    @property
    def etcd_credentials(self) -> grpc.ChannelCredentials | None:
        """None: etcd without TLS. Raises UnusableFile."""
        context = self.etcd_tls
        if context is None:
            return None
        # gRPC says nothing about files that it cannot use; they have been tried.
        files = (self.etcd_ca, self.etcd_key, self.etcd_cert)
        ca, key, certificate = (file.read_bytes() if file is not None else None for file in files)
        return grpc.ssl_channel_credentials(ca, key, certificate)

    @property
    def etcd_tls(self) -> ssl.SSLContext | None:
        """The same for what is not gRPC. Raises UnusableFile."""
        if self.etcd_ca is None and self.etcd_cert is None:
            return None
        try:
            context = ssl.create_default_context(cafile=self.etcd_ca)
            if self.etcd_cert is not None:
                context.load_cert_chain(self.etcd_cert, self.etcd_key)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(str(file) for file in (self.etcd_ca, self.etcd_cert, self.etcd_key) if file is not None)
            raise UnusableFile(f"the files for etcd ({files}) cannot be used: {error}") from error
        return context

    @property
    def http_scheme(self) -> str:
        return "https" if self.tls else "http"

    @property
    def tls_hosts(self) -> tuple[str, ...]:
        """Where this replica can be found, for its certificate."""
        listening = (host for host in (self.http_host, self.agent_host) if host not in ("", "0.0.0.0", "::", "[::]"))
        known = ("localhost", "127.0.0.1", "::1", self.hostname)
        return (*known, *listening, *filter(None, (self.advertise,)), *self.tls_names)

    @property
    def times(self) -> NodeTimes:
        """Raises NodeTimesError for settings that cannot work together."""
        return NodeTimes.of(
            grace_ms=self.node_grace_ms, lost_after_ms=self.node_lost_after_ms, self_fence_ms=self.self_fence_ms
        )

    @property
    def idle(self) -> IdlePolicy:
        """Raises ValueError for settings that cannot work together."""
        return IdlePolicy(
            pause_after_ms=self.idle_pause_after_ms,
            warn_before_ms=self.idle_warn_before_ms,
            spared_ms=self.idle_after_start_ms,
            used_from_percent=self.gpu_used_from_percent,
        )

    @property
    def door(self) -> DoorLimits:
        return DoorLimits(
            requests_per_s=self.rate_limit,
            burst=self.rate_burst,
            failures=self.ban_after,
            ban_s=self.ban_time_ms / 1000,
        )

    @property
    def connections(self) -> ConnectionLimits:
        return ConnectionLimits(per_address=self.strangers_per_address, total=self.strangers)

    @property
    def notices(self) -> NoticeSettings:
        """Raises OSError for a file that cannot be read."""
        host, _, port = self.smtp.rpartition(":")
        password = self.smtp_password_file.read_text().strip() if self.smtp_password_file is not None else ""
        token = self.telegram_token_file.read_text().strip() if self.telegram_token_file is not None else ""
        mail = None
        if host:
            mail = MailServer(
                host=host.strip("[]"), port=int(port), sender=self.smtp_sender, user=self.smtp_user, password=password,
                tls=self.smtp_tls,
            )  # fmt: skip
        allowed = Allowed(patterns=self.notify_to)
        return NoticeSettings(mail=mail, telegram_token=token, allowed=allowed, networks=self.notify_network)

    @property
    def oidc(self) -> OidcSettings | None:
        """Raises ValueError for settings that cannot work, and for a secret that cannot be read."""
        if not self.oidc_issuer:
            return None
        return OidcSettings(
            issuer=self.oidc_issuer,
            client_id=self.oidc_client_id,
            client_secret=read_secret(self.oidc_client_secret_file),
            scopes=self.oidc_scope,
            claim=self.oidc_claim,
            ca=self.oidc_ca,
            token_life_ms=self.oidc_token_life_ms,
        )

    def reached_by(self, host: str) -> str:
        """What to announce for an address to listen on."""
        if self.advertise:
            return self.advertise
        return self.hostname if host in ("", "0.0.0.0", "::", "[::]") else host
