"""The values of secrets: sealed with the cluster key on their way into the store, opened on their way to a container.

They are never in the view, and no replica keeps one: they are read when a Secret is changed, and when an agent asks
for what a container needs. Each is sealed for one version of one Secret. So nobody who can write to etcd can give a
container the value of another secret, or an old one that was replaced because it had become known.
"""

import structlog
from google.protobuf.message import DecodeError

from pwm.api.v1.agent_pb2 import ContainerSecrets
from pwm.api.v1.identity_pb2 import Secret, SecretValues
from pwm.api.v1.store_pb2 import Sealed
from pwm.api.v1.workload_pb2 import Container
from pwm.controlplane.cluster_key import CannotOpen, ClusterKey, ClusterKeyError
from pwm.controlplane.core.secrets import given_to, used_by
from pwm.controlplane.store.commits import StreamId
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.store.kv import KV, Compare, Put, Target
from pwm.controlplane.view import View

log = structlog.get_logger(__name__)

KIND = "Secret"
# What every replica of a cluster can open, or has another key.
_SIGN, _SIGN_CONTEXT = b"this is the key of this cluster", "cluster-key"


class SecretsClosed(Exception):
    """Values can be neither sealed nor opened here. The message is a sentence; it holds no value."""


class Secrets:
    def __init__(self, *, store: EventStore, view: View, key: ClusterKey | None) -> None:
        self._store = store
        self._view = view
        self._key = key

    @property
    def _open_key(self) -> ClusterKey:
        if self._key is None:
            raise SecretsClosed("this controller has no cluster key; start it with --cluster-key-file")
        return self._key

    async def check_key(self, kv: KV) -> None:
        """That this is the key of the cluster; the first one that comes is. Raises ClusterKeyError, StoreError."""
        if self._key is None:
            return
        place = self._store.keys.cluster_key
        sign = self._key.encrypt(_SIGN, _SIGN_CONTEXT)
        if (await kv.txn([Compare(place, Target.CREATE, 0)], [Put(place, sign)])).succeeded:
            return
        known = (await kv.range(place)).kvs[0].value
        try:
            self._key.decrypt(known, _SIGN_CONTEXT)
        except CannotOpen as error:
            said = "the cluster has another key than this controller was given: give all of them the same file"
            raise ClusterKeyError(said) from error
        if self._key.outdated(known):
            await kv.txn([], [Put(place, sign)])

    def seal(self, values: SecretValues, *, uid: str, version: int) -> bytes:
        """What is kept of the values that come with a version of a Secret. Raises SecretsClosed."""
        plain = values.SerializeToString(deterministic=True)
        sealed = self._open_key.encrypt(plain, _context(uid, version))
        return Sealed(version=version, value=sealed).SerializeToString()

    async def values(self, secret: Secret) -> tuple[int, SecretValues]:
        """What a Secret holds now, and the version that this came with. Raises SecretsClosed, KVError."""
        key, uid = self._open_key, secret.metadata.uid
        sealed = _sealed(await self._store.sealed(StreamId(KIND, uid)))
        if sealed.version < secret.metadata.version:
            raise SecretsClosed(f"the values of secret {secret.metadata.name} are lost; apply it again")
        try:
            plain = key.decrypt(sealed.value, _context(uid, sealed.version))
        except CannotOpen as error:
            raise SecretsClosed(f"the values of secret {secret.metadata.name} cannot be read: {error}") from error
        return sealed.version, SecretValues.FromString(plain)

    async def reseal(self) -> int:
        """Seal everything with the first key that another has sealed; how much that was. Raises KVError.

        Who has changed a Secret meanwhile has sealed it anew anyhow.
        """
        done = 0
        for secret in list(self._view.all(KIND)) if self._key is not None else ():
            stream = StreamId(KIND, secret.metadata.uid)
            old = await self._store.sealed(stream)
            sealed = _sealed(old)
            if old is None or not self._open_key.outdated(sealed.value):
                continue
            context = _context(secret.metadata.uid, sealed.version)
            try:
                plain = self._open_key.decrypt(sealed.value, context)
            except CannotOpen as error:
                log.error("a secret is left as it is", group=secret.metadata.group, why=str(error))
                continue
            sealed.value = self._open_key.encrypt(plain, context)
            done += await self._store.replace_sealed(stream, old=old, new=sealed.SerializeToString())
        return done

    async def given_to(self, container: Container) -> ContainerSecrets:
        """What a container is given, or why it gets nothing. Raises SecretsClosed, KVError."""
        group = container.metadata.group
        found: dict[tuple[str, str], tuple[Secret, SecretValues]] = {}
        for owner, name in used_by(container.spec, group):
            secret: Secret | None = self._view.by_name(KIND, name, group=owner)
            if secret is not None:
                _, values = await self.values(secret)
                found[owner, name] = secret, values
        given = given_to(container.spec, group, found)
        given.container_uid = container.metadata.uid
        return given


def _sealed(found: bytes | None) -> Sealed:
    """What was found; nothing, if it was not written by a controller."""
    try:
        return Sealed.FromString(found or b"")
    except DecodeError:
        return Sealed()


def _context(uid: str, version: int) -> str:
    return f"secret/{uid}/{version}"
