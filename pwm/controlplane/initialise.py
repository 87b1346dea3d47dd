"""A new cluster's first things, made before any controller runs: `pwm admin init`.

Whoever can reach etcd and has the cluster key can do what it does; so it asks nobody. It makes the cluster key if there
is none, the certificate authority, and what `bootstrap` makes; a controller that finds an empty store does the same by
itself. Only once: the first admin's token is given to whoever made the first admin.
"""

import asyncio
from dataclasses import dataclass

from pwm import daemon_log
from pwm.controlplane.bootstrap import Bootstrap
from pwm.controlplane.clock import Clock
from pwm.controlplane.cluster_key import ClusterKey, ClusterKeyError
from pwm.controlplane.config import ControllerConfig, UnusableFile
from pwm.controlplane.credentials import CannotServe, Credentials
from pwm.controlplane.errors import ApiError
from pwm.controlplane.plane import ControlPlane
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.etcd import EtcdKV
from pwm.controlplane.store.keys import Keys

REPLICA = "init"
# An etcd that is there answers in milliseconds; one that is not shall not be waited for.
LIMIT_S = 30.0


class CannotInitialise(Exception):
    """Nothing was made, or not all; doing it again is safe. The message is a sentence for the admin."""


@dataclass(frozen=True, slots=True)
class Made:
    """`admin_token` is empty when there was an admin already: then only what was missing has been made."""

    admin_token: str
    fingerprint: str
    authorities: str


def initialise(config: ControllerConfig) -> Made:
    """Blocks. Raises CannotInitialise."""
    daemon_log.configure(level="error", as_json=False)
    try:
        return asyncio.run(_initialise(config))
    except store_errors.Unavailable as error:
        raise CannotInitialise(f"etcd at {', '.join(config.etcd)} cannot be reached: {error}") from error
    except (store_errors.StoreError, ApiError, ClusterKeyError, CannotServe, UnusableFile) as error:
        raise CannotInitialise(str(error)) from error
    except TimeoutError as error:
        raise CannotInitialise(f"etcd at {', '.join(config.etcd)} does not answer") from error


async def _initialise(config: ControllerConfig) -> Made:
    assert config.cluster_key_file is not None, "it is asked for"
    clock, keys = Clock(), Keys(config.prefix.encode())
    async with asyncio.timeout(LIMIT_S), EtcdKV(config.etcd, credentials=config.etcd_credentials) as kv:
        await kv.check_versions()
        cluster_key = ClusterKey.load_or_make(config.cluster_key_file)
        credentials = Credentials(
            kv, keys=keys, cluster_key=cluster_key, clock=clock, replica=REPLICA, hosts=config.tls_hosts
        )
        await credentials.load()
        plane = ControlPlane(kv=kv, keys=keys, replica=REPLICA, address="", clock=clock)
        async with plane.store:
            following = asyncio.create_task(plane.follower.run())
            try:
                await plane.view.wait_for(0)
                bootstrap = Bootstrap(view=plane.view, commands=plane.commands, clock=clock)
                token = await bootstrap.first_admin()
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
    return Made(token, credentials.fingerprint, credentials.roots)
