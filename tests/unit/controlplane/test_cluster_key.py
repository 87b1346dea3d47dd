"""The cluster key: what it seals, what it opens, and which files are no keys."""

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pwm.controlplane.cluster_key import CannotOpen, ClusterKey, ClusterKeyError

KEY = ClusterKey.generate()


@given(plain=st.binary(max_size=300), context=st.text(max_size=40))
def test_what_was_sealed_is_opened_for_the_same_context_and_is_not_to_be_seen(plain: bytes, context: str) -> None:
    sealed = KEY.encrypt(plain, context)
    assert KEY.decrypt(sealed, context) == plain
    assert len(plain) < 8 or plain not in sealed


@given(plain=st.binary(max_size=40), data=st.data())
def test_a_value_that_was_changed_anywhere_is_not_opened(plain: bytes, data: st.DataObject) -> None:
    sealed = bytearray(KEY.encrypt(plain, "here"))
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CannotOpen):
        KEY.decrypt(bytes(sealed), "here")


def test_a_value_does_not_open_in_another_place() -> None:
    with pytest.raises(CannotOpen, match="b is damaged, or was sealed for another place"):
        KEY.decrypt(KEY.encrypt(b"value", "a"), "b")


@pytest.mark.parametrize(
    "sealed", [b"", b"PWM\x01", b"PWM\x01" + bytes(20), b"plain text that nobody ever sealed at all"]
)
def test_what_is_not_sealed_is_not_opened(sealed: bytes) -> None:
    with pytest.raises(CannotOpen):
        KEY.decrypt(sealed, "here")


def test_two_seals_of_the_same_value_have_nothing_in_common_but_their_key() -> None:
    one, other = KEY.encrypt(b"value", "here"), KEY.encrypt(b"value", "here")
    assert one[:12] == other[:12]
    assert one[12:] != other[12:]


def test_a_new_first_key_seals_and_the_old_one_still_opens(tmp_path: Path) -> None:
    old, new = ClusterKey.generate(), ClusterKey.generate()
    both = ClusterKey.parse((new.text() + old.text()).encode(), source="keys")
    sealed = old.encrypt(b"value", "here")
    assert both.id == new.id
    assert both.decrypt(sealed, "here") == b"value"
    assert both.outdated(sealed)
    again = both.encrypt(b"value", "here")
    assert not both.outdated(again)
    assert new.decrypt(again, "here") == b"value"
    with pytest.raises(CannotOpen, match=f"{new.id}, which this controller does not have"):
        old.decrypt(again, "here")


def test_the_file_is_made_once_for_all_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    file = tmp_path / "state" / "cluster-key"
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: ClusterKey.load_or_make(file), range(8)))
    assert {key.id for key in keys} == {ClusterKey.load(file).id}
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["cluster-key"]
    assert keys[0].decrypt(keys[7].encrypt(b"value", "here"), "here") == b"value"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "cluster-key"
    ClusterKey.load_or_make(file)
    file.chmod(mode)
    with pytest.raises(ClusterKeyError, match="others can read the cluster key: chmod 600"):
        ClusterKey.load_or_make(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "there is no cluster key in keys"),
        (b"# only a comment\n", "there is no cluster key in keys"),
        (b"\n0011223344556677\n", "keys:2 is no key"),
        (b"0011223344556677 not/base64!", "keys:1 is no key"),
        (b"001122 " + base64.b64encode(bytes(32)), "an id has 8 bytes"),
        (b"0011223344556677 " + base64.b64encode(bytes(16)), "a key 32"),
        (b"\xff\xfe" * 40_000, "there is no cluster key in keys"),
        ((b"0011223344556677 " + base64.b64encode(bytes(32)) + b"\n") * 2, "two keys have the same id"),
    ],
)
def test_a_file_that_is_no_key_is_refused_without_repeating_what_is_in_it(text: bytes, said: str) -> None:
    with pytest.raises(ClusterKeyError, match=said) as refused:
        ClusterKey.parse(text, source="keys")
    assert "AAAA" not in str(refused.value)
    assert "not/base64" not in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterKeyError, match=r"No such file or directory: .*nowhere"):
        ClusterKey.load(tmp_path / "nowhere")


def test_neither_a_key_nor_a_value_is_in_what_it_says_of_itself() -> None:
    secret = KEY.text().split()[-1]
    assert secret not in repr(KEY)
    assert KEY.id in repr(KEY)
