"""`pwm controller` and `pwm agent`: the two daemons, run in the foreground until a signal.

Here their settings are read; what they do begins in `pwm.controlplane.app` and `pwm.nodeagent.app`, which are
imported only now.
"""

from __future__ import annotations

from typing import Any

from pwm.cli.command import Command
from pwm.cli.errors import CliError, UsageError
from pwm.cli.invocation import Invocation
from pwm.cli.settings import (
    CONFIG_OPTION,
    Setting,
    duration,
    duration_or_never,
    host_and_port,
    label,
    network,
    path,
    positive,
    read_settings,
    size,
    split_address,
    whole,
)

_LOG_LEVEL = Setting("log_level", "How much to log.", choices=("debug", "info", "warning", "error"))
_LOG_FORMAT = Setting("log_format", "Log lines for people or as JSON.", choices=("text", "json"))

# Where people log in (docs/login.md); `pwm up` takes them, too.
OIDC_SETTINGS = (
    Setting("oidc_issuer", "URL of an OpenID Connect provider that people may log in at.", metavar="URL"),
    Setting("oidc_client_id", "As what PWM is registered there.", metavar="ID"),
    Setting("oidc_client_secret_file", "File with its secret there, if it has one.", metavar="FILE", convert=path),
    Setting(
        "oidc_claim", "What says who it is: email, of spec.contact.email, or a claim with the user's name; email.",
        metavar="CLAIM",
    ),
    Setting("oidc_scope", "What to ask the provider for; what the claim needs.", metavar="SCOPE", multiple=True),
    Setting("oidc_ca", "Authorities that the provider's certificate comes from, PEM.", metavar="FILE", convert=path),
    Setting(
        "oidc_token_life", "How long tokens of a log-in there are good for; 12h.", metavar="TIME", convert=duration,
    ),
)  # fmt: skip
CONTROLLER_SETTINGS = (
    Setting("etcd", "etcd's client addresses.", metavar="HOST:PORT", multiple=True, convert=host_and_port),
    Setting("prefix", "Prefix of all keys in etcd."),
    Setting("http", "Address for the API and the web app.", metavar="HOST:PORT", convert=host_and_port),
    Setting("agents", "Address for node agents.", metavar="HOST:PORT", convert=host_and_port),
    Setting("advertise", "Host by which others reach this one, if not by the addresses above.", metavar="HOST"),
    Setting("replica", "Name of this replica; made up if there is none."),
    Setting(
        "strangers_per_address", "Connections from one address without a valid token; 0: as many as come.", metavar="N",
        convert=int,
    ),
    Setting("strangers", "Such connections of all addresses; 0: as many as come.", metavar="N", convert=int),
    Setting(
        "streams_per_user", "Watches, logs and shells that one user may have open here.", metavar="N", convert=int,
    ),
    Setting("credits_reset_day", "Weekday on which weekly credits begin anew, at 00:00 UTC; monday.", metavar="DAY"),
    Setting(
        "credits_stop_grace", "How long what runs may go on without credits; 10m.", metavar="TIME", convert=duration,
    ),
    Setting("audit_keep", "How long it is kept who did what; 30d.", metavar="TIME", convert=duration),
    Setting("rate_limit", "Requests a second from one address; 30, 0: any number.", metavar="N", convert=whole),
    Setting("rate_burst", "Requests at once from one address, after a pause; 300.", metavar="N", convert=positive),
    Setting("ban_after", "Wrong tokens after which an address is banned; 3, 0: never.", metavar="N", convert=whole),
    Setting("ban_time", "How long; 2m.", metavar="TIME", convert=duration),
    Setting(
        "trusted_proxy", "A proxy, or a network of them, whose X-Forwarded-For is believed.", metavar="ADDRESS",
        multiple=True, convert=network,
    ),
    Setting("admin_token_file", "Where a new cluster's first admin token goes.", metavar="FILE", convert=path),
    Setting("node_token_file", "Where a new cluster's first node token goes.", metavar="FILE", convert=path),
    Setting(
        "cluster_key_file", "Key that secrets in etcd are encrypted with, the same at every controller.",
        metavar="FILE", convert=path,
    ),
    Setting("ca_file", "Where the certificate of the cluster's authority goes.", metavar="FILE", convert=path),
    Setting(
        "certificate_life", "How long certificates of nodes and controllers are good for; 24h.", metavar="TIME",
        convert=duration,
    ),
    Setting("tls_name", "Another name or address in this controller's certificate.", metavar="HOST", multiple=True),
    Setting("tls_cert", "A certificate from elsewhere for API and web app, PEM.", metavar="FILE", convert=path),
    Setting("tls_key", "Its key.", metavar="FILE", convert=path),
    Setting("plaintext", "No TLS: whoever is on the way can read tokens. For tests, on loopback.", flag=True),
    Setting("etcd_ca", "Authorities that etcd's certificates come from, PEM.", metavar="FILE", convert=path),
    Setting("etcd_cert", "This controller's certificate for etcd, PEM.", metavar="FILE", convert=path),
    Setting("etcd_key", "Its key.", metavar="FILE", convert=path),
    Setting("registry", "Registries that images may come from; all if none is named.", metavar="HOST", multiple=True),
    Setting("node_grace", "Silence after which a node is NOT_READY; 15s.", metavar="TIME", convert=duration),
    Setting("node_lost_after", "Silence after which a node is LOST; 2m.", metavar="TIME", convert=duration),
    Setting(
        "self_fence", "Time without contact after which an agent ends containers that may start elsewhere; 90s.",
        metavar="TIME", convert=duration,
    ),
    Setting(
        "idle_pause_after", "Time without use of its GPUs after which a workload is stopped; 15m, or never.",
        metavar="TIME", convert=duration_or_never,
    ),
    Setting(
        "idle_warn_before", "How long before that it is warned; 5m, or a third where that is less.", metavar="TIME",
        convert=duration,
    ),
    Setting(
        "idle_after_start", "How long a workload is spared after its start; 1h.", metavar="TIME", convert=duration,
    ),
    Setting(
        "gpu_used_from", "Percent busy from which on a GPU counts as used; 5.", metavar="PERCENT", convert=positive,
    ),
    Setting("smtp", "Mail server for notices.", metavar="HOST:PORT", convert=host_and_port),
    Setting("smtp_sender", "From whom they are.", metavar="ADDRESS"),
    Setting("smtp_user", "Log-in at the mail server.", metavar="NAME"),
    Setting("smtp_password_file", "File with the password of it.", metavar="FILE", convert=path),
    Setting("smtp_tls", "How to talk to it; starttls.", choices=("none", "starttls", "tls")),
    Setting("telegram_token_file", "File with the token of the cluster's Telegram bot.", metavar="FILE", convert=path),
    Setting(
        "notify_to", "Addresses that users may have notices sent to, such as tgram://* or https://*.example.org.",
        metavar="PATTERN", multiple=True,
    ),
    Setting(
        "notify_network", "A network that notices may go to though it is not public.", metavar="ADDRESS",
        multiple=True, convert=network,
    ),
    *OIDC_SETTINGS,
    _LOG_LEVEL,
    _LOG_FORMAT,
)  # fmt: skip
AGENT_SETTINGS = (
    Setting(
        "controllers", "Controllers' addresses for agents, tried in turn.", metavar="HOST:PORT", multiple=True,
        convert=host_and_port,
    ),
    Setting(
        "join_token_file", "File with the token to join with, once; or set PWM_JOIN_TOKEN.", metavar="FILE",
        convert=path,
    ),
    Setting("join", "Controllers to join at; their hosts at port 4700 otherwise.", metavar="URL", multiple=True),
    Setting("plaintext", "No TLS, and a node token instead of a certificate. For tests, on loopback.", flag=True),
    Setting(
        "node_token_file", "With --plaintext: file with the node's token; or set PWM_NODE_TOKEN.", metavar="FILE",
        convert=path,
    ),
    Setting("node", "Name of this node; the host's name if there is none.", metavar="NAME"),
    Setting("node_zone", "Zone of this node.", metavar="ZONE"),
    Setting("label", "A label of this node.", metavar="K=V", variable="PWM_NODE_LABELS", multiple=True, convert=label),
    Setting("address", "Where others reach this node.", variable="PWM_NODE_ADDRESS"),
    Setting("cluster", "Name of the cluster, which tells containers of several apart."),
    Setting("state_dir", "Where the agent keeps its journal and logs.", metavar="DIR", convert=path),
    Setting("docker_host", "Docker's socket, such as unix:///var/run/docker.sock.", metavar="URL"),
    Setting("allow_process", "Allow workloads that are processes without a container.", flag=True),
    Setting("log_max_bytes", "Most that is kept of one container's output.", metavar="SIZE", convert=size),
    Setting("log_total_bytes", "Most that is kept of all output.", metavar="SIZE", convert=size),
    Setting("log_keep_days", "Days that output is kept after the end.", metavar="N", convert=int),
    Setting("cpus", "Most CPUs to offer, where others use this machine too.", metavar="N", convert=positive),
    Setting("memory", "Most memory to offer.", metavar="SIZE", convert=size),
    Setting("gpus", "GPUs to offer, by UUID, or none; otherwise all.", metavar="UUID", multiple=True),
    Setting("health", "Address for health checks and metrics.", metavar="HOST:PORT", convert=host_and_port),
    _LOG_LEVEL,
    _LOG_FORMAT,
)  # fmt: skip


def controller(invocation: Invocation, **given: Any) -> int:
    """Runs a control-plane replica."""
    from pwm.controlplane import app
    from pwm.controlplane.config import ControllerConfig

    values = read_settings(CONTROLLER_SETTINGS, given)
    for name, field in (("http", "http"), ("agents", "agent")):
        if name in values:
            values[f"{field}_host"], values[f"{field}_port"] = split_address(values.pop(name))
    for name in ("node_grace", "node_lost_after", "self_fence", "credits_stop_grace", "ban_time", "audit_keep"):
        if name in values:
            values[f"{name}_ms"] = values.pop(name)
    for name in ("idle_pause_after", "idle_warn_before", "idle_after_start"):
        if name in values:
            values[f"{name}_ms"] = values.pop(name)
    if "gpu_used_from" in values:
        values["gpu_used_from_percent"] = values.pop("gpu_used_from")
    if "registry" in values:
        values["registries"] = values.pop("registry")
    if "trusted_proxy" in values:
        values["trusted_proxies"] = values.pop("trusted_proxy")
    if "tls_name" in values:
        values["tls_names"] = values.pop("tls_name")
    if "oidc_token_life" in values:
        values["oidc_token_life_ms"] = values.pop("oidc_token_life")
    if "certificate_life" in values:
        values["certificate_life_ms"] = values.pop("certificate_life")
    if "log_format" in values:
        values["log_json"] = values.pop("log_format") == "json"
    try:
        config = ControllerConfig(**values)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if config.tls and config.cluster_key_file is None:
        raise UsageError(
            "a controller needs a cluster key, the same as all others have",
            next_step="--cluster-key-file FILE makes the first one; --plaintext goes without TLS.",
        )
    return app.main(config)


def agent(invocation: Invocation, **given: Any) -> int:
    """Runs the agent of this node."""
    from pwm.nodeagent import app
    from pwm.nodeagent.config import AgentConfig, ConfigError

    values = read_settings(AGENT_SETTINGS, given)
    values["servers"] = values.pop("controllers", ("127.0.0.1:4701",))
    values["token"] = _token(values.pop("node_token_file", None), "PWM_NODE_TOKEN")
    values["join_token"] = _token(values.pop("join_token_file", None), "PWM_JOIN_TOKEN")
    if "join" in values:
        values["join_at"] = values.pop("join")
    # A node token is of use where there are no certificates only.
    values["plaintext"] = values.get("plaintext", False) or bool(values["token"] and not values["join_token"])
    if "log_format" in values:
        values["log_json"] = values.pop("log_format") == "json"
    for name, field in (("node_zone", "zone"), ("health", "health_address"), ("memory", "memory_bytes")):
        if name in values:
            values[field] = values.pop(name)
    if "label" in values:
        values["labels"] = dict(values.pop("label"))
    if "gpus" in values:
        values["gpus"] = frozenset(values["gpus"]) - {"none"}
    try:
        return app.main(AgentConfig(**values))
    except ConfigError as error:
        raise UsageError(str(error)) from error


def _token(file: Any, variable: str) -> str:
    import os

    if file is None:
        return os.environ.get(variable, "").strip()
    try:
        return str(file.read_text().strip())
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{file} cannot be read: {error}", next_step="`pwm admin join-token` makes a token.") from error


COMMANDS = {
    "controller": Command(
        "controller",
        controller,
        help="Run a control-plane replica, until SIGTERM or Ctrl-C. Any number of them may run, all equal.",
        parameters=(CONFIG_OPTION, *(setting.option for setting in CONTROLLER_SETTINGS)),
    ),
    "agent": Command(
        "agent",
        agent,
        help="Run the agent of this node, until SIGTERM or Ctrl-C. Its containers go on without it.",
        parameters=(CONFIG_OPTION, *(setting.option for setting in AGENT_SETTINGS)),
    ),
}
