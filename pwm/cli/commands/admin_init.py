"""`pwm admin init`: the first things of a new cluster, straight into its etcd."""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import Command, Option
from pwm.cli.errors import CliError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pwm.cli.invocation import Invocation


def init(invocation: Invocation, *, etcd: tuple[str, ...], admin_token_file: str | None, ca_file: str | None,
         cluster_key_file: str, prefix: str, **etcd_tls: str | None) -> int:  # fmt: skip
    """Makes what a cluster begins with; CONFLICT when it was made before."""
    from pwm.cli.settings import host_and_port, path
    from pwm.controlplane.config import ControllerConfig
    from pwm.controlplane.initialise import CannotInitialise, initialise

    given: dict[str, Any] = {name: path(value) for name, value in etcd_tls.items() if value}
    try:
        addresses = tuple(host_and_port(word) for words in etcd for word in words.split(","))
        config = ControllerConfig(
            etcd=addresses or ControllerConfig().etcd, prefix=prefix, cluster_key_file=path(cluster_key_file), **given
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        made = initialise(config)
    except CannotInitialise as error:
        raise CliError(
            str(error), next_step="Nothing is lost by trying again; --etcd HOST:PORT says where etcd is."
        ) from error
    if ca_file:
        _write(ca_file, made.authorities)
    invocation.note(f"authority    {made.fingerprint}")
    invocation.note(f"cluster key  {cluster_key_file}; every controller needs it, and a copy belongs in a safe")
    if not made.admin_token:
        invocation.note("This cluster was initialised before: its admin and groups stay as they are.")
        return exit_codes.CONFLICT
    if admin_token_file:
        _write(admin_token_file, made.admin_token + "\n")
        invocation.note(f"admin        its token is in {admin_token_file}")
    else:
        invocation.note("admin        its token follows, this once")
        invocation.say(made.admin_token)
    return exit_codes.DONE


def _write(name: str, text: str) -> None:
    """For this user only."""
    import os

    descriptor = os.open(os.path.expanduser(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # noqa: PTH111
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)


INIT = Command(
    "init",
    init,
    help="Make the first things of a new cluster in an empty etcd: authority, groups, the first admin. Once.",
    parameters=(
        Option("etcd", "--etcd", help="etcd's client addresses.", metavar="HOST:PORT", multiple=True),
        Option("prefix", "--prefix", help="Prefix of all keys in etcd.", metavar="PREFIX", default="/pwm/v1/"),
        Option(
            "cluster_key_file",
            "--cluster-key-file",
            help="The cluster key; made if there is none.",
            metavar="FILE",
            default="cluster-key",
            completes="file",
        ),
        Option("admin_token_file", "--admin-token-file", help="Where the token goes, not shown then.", metavar="FILE"),
        Option("ca_file", "--ca-file", help="Where the authority's certificate goes.", metavar="FILE"),
        Option("etcd_ca", "--etcd-ca", help="Authorities that etcd's certificates come from, PEM.", metavar="FILE"),
        Option("etcd_cert", "--etcd-cert", help="A certificate for etcd, PEM.", metavar="FILE"),
        Option("etcd_key", "--etcd-key", help="Its key.", metavar="FILE"),
    ),
    epilog="pwm admin init --etcd HOST:2379 --cluster-key-file cluster-key --admin-token-file admin-token",
)
