"""How large the pages of a walk through etcd are, and when they are asked for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from pwm.controlplane.store import errors
from pwm.controlplane.store.etcd import PAGE_BYTES, EtcdKV
from pwm.controlplane.store.kv import PAGE_KEYS, KeyValue, Page
from tests.patience import PATIENCE_S

KEYS = [b"k/%06d" % i for i in range(60_000)]


class Shelf(EtcdKV):
    """An etcd that has `KEYS`, with no server behind it; it notes what it is asked for."""

    def __init__(self, *, most_keys: int = 10**9, value: bytes = b"") -> None:
        super().__init__(["127.0.0.1:1"])
        self.asked: list[int] = []
        self.walks_on = asyncio.Event()
        self._most_keys = most_keys
        self._value = value

    async def range(
        self,
        key: bytes,
        end: bytes = b"",
        *,
        limit: int = 0,
        revision: int = 0,
        keys_only: bool = False,
        min_mod_revision: int = 0,
    ) -> Page:
        self.asked.append(limit)
        if len(self.asked) > 1:
            self.walks_on.set()
        if limit > self._most_keys:
            raise errors.RequestTooLarge("a message larger than the client takes")
        found = [k for k in KEYS if key <= k < end][: limit + 1]
        kvs = [KeyValue(k, self._value, 1, 1, 1, 0) for k in found[:limit]]
        return Page(revision or 7, kvs, more=len(found) > limit)


@pytest.fixture
async def shelf() -> AsyncIterator[Shelf]:
    async with Shelf() as shelf:
        yield shelf


async def walk(kv: EtcdKV) -> list[bytes]:
    keys: list[bytes] = []
    async with aclosing(kv.pages(b"k/")) as pages:
        async for page in pages:
            assert page.revision == 7
            keys += [x.key for x in page.kvs]
    return keys


async def test_pages_grow_as_long_as_they_are_light(shelf: Shelf) -> None:
    assert await walk(shelf) == KEYS
    assert shelf.asked[0] == PAGE_KEYS
    assert shelf.asked == sorted(shelf.asked)
    assert len(shelf.asked) < 6


async def test_heavy_values_keep_pages_small() -> None:
    async with Shelf(value=bytes(4096)) as shelf:
        assert await walk(shelf) == KEYS
    assert max(shelf.asked) <= PAGE_BYTES // 4096


async def test_a_page_that_turns_out_too_heavy_is_read_in_smaller_ones() -> None:
    async with Shelf(most_keys=PAGE_KEYS) as shelf:
        assert await walk(shelf) == KEYS
    assert max(shelf.asked) > PAGE_KEYS


async def test_a_first_page_that_is_too_heavy_is_an_error() -> None:
    async with Shelf(most_keys=PAGE_KEYS - 1) as shelf:
        with pytest.raises(errors.RequestTooLarge):
            await walk(shelf)


async def test_the_next_page_is_asked_for_while_the_caller_works_on_this_one(shelf: Shelf) -> None:
    async with aclosing(shelf.pages(b"k/")) as pages:
        await anext(pages)
        async with asyncio.timeout(PATIENCE_S):
            await shelf.walks_on.wait()
        await anext(pages)
