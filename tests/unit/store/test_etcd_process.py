"""An etcd of our own: found or explained, healthy or explained, and gone at the end."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pwm.etcd_process import BINARY_VARIABLE, EtcdProcess, EtcdProcessError, find_etcd, free_port


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_named_binary_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = tmp_path / "my-etcd"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv(BINARY_VARIABLE, str(binary))
    assert find_etcd() == str(binary)


def test_a_named_binary_that_is_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BINARY_VARIABLE, "/nowhere/etcd")
    with pytest.raises(EtcdProcessError, match="/nowhere/etcd"):
        find_etcd()


def test_no_etcd_at_all_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(BINARY_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EtcdProcessError, match="install the package etcd-server"):
        find_etcd()


@pytest.mark.etcd
def test_a_member_starts_stops_and_starts_again_with_its_data(own_etcd: Callable[..., EtcdProcess]) -> None:
    member = own_etcd()
    pid = member.pid
    assert member.healthy()
    member.stop()
    assert not alive(pid)
    assert member.pid == 0
    member.start()
    assert member.healthy()


@pytest.mark.etcd
def test_a_start_that_fails_ends_with_etcds_own_words(own_etcd: Callable[..., EtcdProcess], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        member = EtcdProcess(tmp_path / "failing", client_port=taken.getsockname()[1], peer_port=free_port())
        with pytest.raises(EtcdProcessError, match="address already in use"):
            member.start()
        assert member.pid == 0
