"""An etcd that speaks TLS and wants to see a certificate, as the ones of other people do."""

import asyncio
import ipaddress
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pwm.certificates import key_pem, new_key
from pwm.controlplane.config import ControllerConfig, UnusableFile
from pwm.controlplane.store.errors import Unavailable
from pwm.controlplane.store.etcd import EtcdKV
from pwm.etcd_process import find_etcd, free_port
from tests.etcd_server import require_etcd
from tests.patience import PATIENCE_S
from tests.pwm_cluster import eventually

pytestmark = pytest.mark.etcd

PEM = serialization.Encoding.PEM


class Authority:
    """Somebody's own, of whom PWM knows nothing."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._key = new_key()
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._sign(self._name, self._key.public_key(), is_authority=True)
        self.file = directory / f"{name}.pem"
        self.file.write_bytes(self._certificate.public_bytes(PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Files of a certificate for loopback, and of its key."""
        key = new_key()
        made = self._sign(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key.public_key())
        files = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        files[0].write_bytes(made.public_bytes(PEM))
        files[1].write_bytes(key_pem(key))
        return files

    def _sign(self, name: x509.Name, key: ec.EllipticCurvePublicKey, *, is_authority: bool = False) -> x509.Certificate:
        now = datetime.now(UTC)
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if not is_authority:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            builder = builder.add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
        return builder.sign(self._key, hashes.SHA256())


class SecureEtcd:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority(directory, "authority")
        self.address = f"127.0.0.1:{free_port()}"
        certificate, key = self.authority.issue("etcd")
        url, peer = f"https://{self.address}", f"http://127.0.0.1:{free_port()}"
        command = [
            find_etcd(), "--name=e", f"--data-dir={directory / 'member'}", f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}", f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=e={peer}", "--unsafe-no-fsync", "--log-level=error", "--logger=zap",
            f"--cert-file={certificate}", f"--key-file={key}", f"--trusted-ca-file={self.authority.file}",
            "--client-cert-auth", "--quota-backend-bytes=123456789",
        ]  # fmt: skip
        with (directory / "etcd.log").open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def listens(self) -> bool:
        host, _, port = self.address.partition(":")
        context = ssl.create_default_context(cafile=str(self.authority.file))
        try:
            with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as probe:
                context.wrap_socket(probe, server_hostname=host).close()
        except OSError:
            return False
        return True

    def options(self) -> list[str]:
        """What PWM is told."""
        certificate, key = self.authority.issue("pwm")
        return [f"--etcd-ca={self.authority.file}", f"--etcd-cert={certificate}", f"--etcd-key={key}"]


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureEtcd]:
    require_etcd()
    made = SecureEtcd(tmp_path_factory.mktemp("etcd"))
    try:
        eventually(made.listens, "etcd listens")
        yield made
    finally:
        made.process.kill()
        made.process.wait()


def pwm(*words: str, home: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PWM_")}
    return subprocess.run(
        [sys.executable, "-m", "pwm", *words], env={**kept, "HOME": str(home), **environment},
        capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_a_cluster_begins_and_runs_on_an_etcd_that_wants_certificates(etcd: SecureEtcd, tmp_path: Path) -> None:
    made = pwm(
        "admin", "init", f"--etcd={etcd.address}", f"--cluster-key-file={tmp_path}/key", f"--ca-file={tmp_path}/ca.pem",
        *etcd.options(), home=tmp_path,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    http, agents = (f"127.0.0.1:{free_port()}" for _ in range(2))
    controller = subprocess.Popen(
        [sys.executable, "-m", "pwm", "controller", f"--etcd={etcd.address}", *etcd.options(), f"--http={http}",
         f"--agents={agents}", f"--cluster-key-file={tmp_path}/key"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:

        def status() -> "subprocess.CompletedProcess[str]":
            token, ca = made.stdout.strip(), f"{tmp_path}/ca.pem"
            return pwm("admin", "status", f"--server=https://{http}", home=tmp_path, PWM_TOKEN=token, PWM_CA=ca)

        eventually(lambda: status().returncode == 0, "the controller answers")
        assert "117.7MiB" in status().stdout, "the quota, which old versions of etcd tell in their metrics only"
    finally:
        controller.terminate()
        controller.wait(PATIENCE_S)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nothing", "if etcd speaks TLS, say so with --etcd-ca"),
        ("no certificate", "etcd wants another certificate than it is shown, see --etcd-cert"),
        ("another's certificate", "etcd wants another certificate than it is shown, see --etcd-cert"),
        ("another authority", "etcd's certificate cannot be believed; --etcd-ca has to name the authorities"),
    ],
)
async def test_what_etcd_does_not_take_is_said_in_words(etcd: SecureEtcd, tmp_path: Path, what: str, said: str) -> None:
    other, (certificate, key) = Authority(tmp_path, "other"), etcd.authority.issue("pwm")
    good = {"etcd_ca": etcd.authority.file, "etcd_cert": certificate, "etcd_key": key}
    given = {
        "nothing": {},
        "no certificate": {"etcd_ca": etcd.authority.file},
        "another's certificate": good | dict(zip(("etcd_cert", "etcd_key"), other.issue("pwm"), strict=True)),
        "another authority": good | {"etcd_ca": other.file},
    }[what]
    await until_served(etcd, good)
    config = ControllerConfig(etcd=(etcd.address,), **given)
    async with EtcdKV(config.etcd, credentials=config.etcd_credentials) as kv:
        with pytest.raises(Unavailable, match=said):
            await kv.check_versions()


async def until_served(etcd: SecureEtcd, good: dict[str, Path]) -> None:
    config = ControllerConfig(etcd=(etcd.address,), **good)
    async with asyncio.timeout(PATIENCE_S), EtcdKV(config.etcd, credentials=config.etcd_credentials) as kv:
        while True:
            try:
                await kv.range(b"/")
                return
            except Unavailable:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("broken", ["nothing.pem", "empty.pem"])
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, broken: str) -> None:
    (tmp_path / "empty.pem").touch()
    with pytest.raises(UnusableFile, match=broken):
        _ = ControllerConfig(etcd_ca=tmp_path / broken).etcd_credentials
