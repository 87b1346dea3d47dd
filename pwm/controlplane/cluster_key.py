"""The cluster key: what must stay secret although it lies in etcd is encrypted with it.

etcd's disks, its backups and whoever can read it see only sealed values. The key is a file that each controller of a
cluster is given, and that nobody else can read:

    # PWM's cluster key: the first one seals, all of them open
    9f86d081884c7d65 mJ2v…base64 of 32 bytes…=
    60303ae22b998861 …

Each sealed value names the key that it was sealed with. So a key is replaced without a pause: add a new line below
the first at every controller, then move it to the top at each; `outdated` tells which values still hang on an older
one. AES-256-GCM seals, and a value opens only where it was sealed for: its *context*, such as `secret/UID/3`, is
authenticated with it, so that nobody who can write to etcd can put one value in place of another.

Nothing here prints a key or a value: errors name the file, the key's id and the context, and `repr` says only ids.
"""

import base64
import binascii
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
KEY_ID_BYTES = 8
# What GCM is made for. Drawn at random: one key may seal 2**32 values before two are likely to share one.
NONCE_BYTES = 12
TAG_BYTES = 16
# Says what it is and how it was sealed, so that another method can follow.
_MAGIC = b"PWM\x01"
_HEADER_BYTES = len(_MAGIC) + KEY_ID_BYTES
_COMMENT = "# PWM's cluster key: the first one seals, all of them open. Without it secrets cannot be read.\n"
# A key file is a few lines; anything longer is another file.
_MAX_FILE_BYTES = 64 * 1024


class ClusterKeyError(Exception):
    """The key file cannot be used, or a value cannot be opened. The message is a sentence for the admin."""


class CannotOpen(ClusterKeyError):
    """A sealed value that none of the keys opens here: another cluster's, damaged, or moved from another place."""


@dataclass(frozen=True, slots=True)
class _Key:
    id: bytes
    secret: bytes = field(repr=False)


class ClusterKey:
    """The keys of one cluster. The first one seals; each opens what it has sealed."""

    def __init__(self, keys: Sequence[_Key]) -> None:
        """For `load`, `load_or_make`, `parse` and `generate`."""
        assert keys, "there is a key to seal with"
        self._first = keys[0]
        self._ciphers = {key.id: AESGCM(key.secret) for key in keys}
        self._keys = tuple(keys)

    def __repr__(self) -> str:
        return f"ClusterKey({', '.join(key.id.hex() for key in self._keys)})"

    # ---- where it comes from

    @classmethod
    def generate(cls) -> "ClusterKey":
        return cls([_Key(os.urandom(KEY_ID_BYTES), os.urandom(KEY_BYTES))])

    @classmethod
    def load(cls, file: Path) -> "ClusterKey":
        """Raises ClusterKeyError when it is not there, is no key file, or others than its owner can read it."""
        try:
            with file.open("rb") as stream:
                mode = os.fstat(stream.fileno()).st_mode
                text = stream.read(_MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ClusterKeyError(f"the cluster key cannot be read: {error.strerror}: {file}") from error
        if stat.S_IMODE(mode) & 0o077:
            raise ClusterKeyError(f"others can read the cluster key: chmod 600 {file}")
        return cls.parse(text, source=str(file))

    @classmethod
    def load_or_make(cls, file: Path) -> "ClusterKey":
        """As `load`, but makes the file where there is none. Of several that make it at once, all get the same."""
        if not file.exists():
            try:
                _write_new(file, cls.generate().text())
            except OSError as error:
                raise ClusterKeyError(f"the cluster key cannot be written: {error.strerror}: {file}") from error
        return cls.load(file)

    @classmethod
    def parse(cls, text: bytes, *, source: str) -> "ClusterKey":
        """The keys in a file's text; `source` is what errors call it."""
        keys: list[_Key] = []
        lines = text.decode("utf-8", errors="replace").splitlines() if len(text) <= _MAX_FILE_BYTES else []
        for number, line in enumerate(lines, start=1):
            if line.strip() and not line.lstrip().startswith("#"):
                keys.append(_parse_line(line.split(), f"{source}:{number}"))
        if not keys:
            raise ClusterKeyError(f"there is no cluster key in {source}")
        if len({key.id for key in keys}) < len(keys):
            raise ClusterKeyError(f"two keys have the same id in {source}")
        return cls(keys)

    def text(self) -> str:
        """What the key file holds. This is the secret itself."""
        lines = (f"{key.id.hex()} {base64.b64encode(key.secret).decode()}\n" for key in self._keys)
        return _COMMENT + "".join(lines)

    # ---- what it is for

    @property
    def id(self) -> str:
        """Of the key that seals now."""
        return self._first.id.hex()

    def encrypt(self, plain: bytes, context: str) -> bytes:
        """Seal `plain` so that it can be opened only with this key and for the same context."""
        header = _MAGIC + self._first.id
        nonce = os.urandom(NONCE_BYTES)
        return header + nonce + self._ciphers[self._first.id].encrypt(nonce, plain, header + context.encode())

    def decrypt(self, sealed: bytes, context: str) -> bytes:
        """What was sealed for this context. Raises CannotOpen."""
        header, rest = sealed[:_HEADER_BYTES], sealed[_HEADER_BYTES:]
        if not header.startswith(_MAGIC) or len(rest) < NONCE_BYTES + TAG_BYTES:
            raise CannotOpen(f"{context} was not sealed with a cluster key")
        cipher = self._ciphers.get(header[len(_MAGIC) :])
        if cipher is None:
            wanted = header[len(_MAGIC) :].hex()
            raise CannotOpen(f"{context} was sealed with the cluster key {wanted}, which this controller does not have")
        try:
            return cipher.decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], header + context.encode())
        except InvalidTag as error:
            raise CannotOpen(f"{context} is damaged, or was sealed for another place") from error

    def outdated(self, sealed: bytes) -> bool:
        """Whether it was sealed with another key than the one that seals now."""
        return sealed[:_HEADER_BYTES] != _MAGIC + self._first.id


def _parse_line(words: list[str], where: str) -> _Key:
    """`where` is file:line. What stands there is not repeated: it may be most of a key."""
    try:
        id_text, secret_text = words
        key = _Key(bytes.fromhex(id_text), base64.b64decode(secret_text, validate=True))
    except (ValueError, binascii.Error):
        raise ClusterKeyError(f"{where} is no key: it should be the key's id and the key, in base64") from None
    if len(key.id) != KEY_ID_BYTES or len(key.secret) != KEY_BYTES:
        raise ClusterKeyError(f"{where} is no key: an id has {KEY_ID_BYTES} bytes and a key {KEY_BYTES}")
    return key


def _write_new(file: Path, text: str) -> None:
    """Whole, for its owner alone, and only if there still is none: a key that something hangs on is never replaced."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = file.with_name(f".{file.name}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(scratch, file)
        except FileExistsError:
            return
    finally:
        scratch.unlink()
