"""Weeks, prices, notices and refusals."""

from datetime import UTC, datetime

import pytest

from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.credits_pb2 import CreditNotice
from pwm.api.v1.identity_pb2 import User
from pwm.api.v1.node_pb2 import Inventory
from pwm.api.v1.workload_pb2 import ContainerSpec
from pwm.controlplane.core import credits, ledger
from pwm.controlplane.core.credits import Balance, CreditPolicy, CreditSettingsError, Week
from pwm.controlplane.core.limits import Account
from pwm.quantity import format_credits

ANN = Account("User", "ann")
POLICY = CreditPolicy(stop_grace_ms=60_000)
WEEK = Week(0)


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("moment", "reset_day", "begins"),
    [
        ("2026-11-22T21:39:00", "monday", "2026-11-16"),
        ("2026-11-22T23:59:59.999", "monday", "2026-11-16"),
        ("2026-11-23T00:00:00", "monday", "2026-11-23"),
        ("2026-11-22T00:00:00", "sunday", "2026-11-22"),
        ("2026-11-21T12:00:00", "sunday", "2026-11-15"),
        ("2026-11-22T12:00:00", "thursday", "2026-11-19"),
        ("2028-02-29T12:00:00", "wednesday", "2028-02-23"),
    ],
)
def test_a_week_begins_at_midnight_utc_of_the_configured_day(moment: str, reset_day: str, begins: str) -> None:
    week = CreditPolicy(reset_day=reset_day).week_of(at(moment))
    assert week.name == begins
    assert week.start_ms == at(begins) <= at(moment) < week.end_ms


def test_a_day_that_is_none_is_refused() -> None:
    with pytest.raises(CreditSettingsError, match="'someday' is no day of the week"):
        CreditPolicy(reset_day="someday").check()


@pytest.mark.parametrize(
    ("product", "hourly"),
    [
        ("NVIDIA A100-SXM4-80GB", 3),
        ("NVIDIA A100-PCIE-40GB", 2),
        ("nvidia a100-pcie-40gb", 2),
        ("NVIDIA GeForce RTX 3090", 1),
        ("NVIDIA GeForce RTX 3090 Ti", 0),
        ("NVIDIA T4", 0),
    ],
)
def test_the_longest_name_that_finds_a_product_is_its_price(product: str, hourly: int) -> None:
    prices = {"A100": 9, "A100-PCIE": 2, "NVIDIA A100-SXM4-80GB": 3, "RTX 3090": 1, "NVIDIA": 0}
    assert ledger.price_for(product, prices) == hourly


@pytest.mark.parametrize(("hour", "micro"), [(0.1, 100_000), (1e-6, 1), (2.5, 2_500_000), (0.07, 70_000), (3, 3_000_000)])  # fmt: skip # noqa: E501
def test_a_price_is_taken_by_its_digits(hour: float, micro: int) -> None:
    assert ledger.micro(float(hour)) == micro


@pytest.mark.parametrize(
    ("micro", "text"),
    [(0, "0"), (1, "0.000001"), (500_000, "0.5"), (1_000_000, "1"), (12_349_999, "12.34"), (1_000_001, "1")],
)
def test_credits_are_written_without_needless_digits(micro: int, text: str) -> None:
    assert format_credits(micro) == text


def test_a_container_has_what_its_machine_calls_its_devices() -> None:
    inventory = Inventory(cpu_product="Xeon", cpu_count=8)
    for uuid, product in (("a", "A100"), ("b", "A100"), ("c", "H100")):
        inventory.gpus.add(uuid=uuid, product_name=product)
    spec = ContainerSpec(gpu_uuids=["b", "a", "c", "gone"])
    spec.resources.cpu_millis = 1500
    shares = [(share.product_name, share.millis) for share in ledger.devices_of(spec, inventory)]
    assert shares == [("A100", 2000), ("H100", 1000), ("Xeon", 1500)]


def balance(spent: float, weekly: float | None = 10) -> Balance:
    limit = None if weekly is None else int(weekly * 1_000_000)
    return Balance(ANN, int(spent * 1_000_000) * ledger.UNITS_PER_MICRO, limit, WEEK)


@pytest.mark.parametrize(
    ("spent", "weekly", "level"),
    [
        (7.999999, 10, CreditNotice.LEVEL_UNSPECIFIED),
        (8, 10, CreditNotice.LOW),
        (9.999999, 10, CreditNotice.LOW),
        (10, 10, CreditNotice.OUT),
        (11, 10, CreditNotice.OUT),
        (0, 0, CreditNotice.OUT),
        (1e6, None, CreditNotice.LEVEL_UNSPECIFIED),
    ],
)
def test_credits_are_low_at_four_fifths_and_out_when_all_are_spent(
    spent: float, weekly: float | None, level: CreditNotice.Level.ValueType
) -> None:
    assert balance(spent, weekly).level == level
    denied = credits.denial([balance(0, None), balance(spent, weekly)])
    assert (denied is not None) is (level == CreditNotice.OUT)


def test_a_refusal_tells_the_figures_and_the_day() -> None:
    denied = credits.denial([balance(12.5)])
    assert denied == Reason(
        code=Reason.OUT_OF_CREDITS,
        message="user ann has spent 12.5 of 10 credits this week; the next begins on Thursday 1970-01-08, 00:00 UTC",
    )


def told(user: User, notice: CreditNotice | None) -> User:
    if notice is not None:
        user.status.credits.CopyFrom(notice)
    return user


def test_each_notice_is_given_once_and_again_for_another_week_or_limit() -> None:
    user = User()
    user.metadata.name = "ann"

    def level(spent: Balance) -> int | None:
        notice = credits.due_notice(user, spent, now_ms=1000, policy=POLICY)
        told(user, notice)
        return notice.level if notice is not None else None

    assert level(balance(1)) is None
    assert level(balance(8)) == CreditNotice.LOW
    assert level(balance(9)) is None
    assert credits.stop_at_ms(user, balance(10)) == 0, "nothing is stopped before it was told"
    assert level(balance(10)) == CreditNotice.OUT
    assert level(balance(11)) is None
    assert credits.stop_at_ms(user, balance(11)) == 61_000
    assert credits.stop_at_ms(user, balance(11, weekly=20)) == 0, "it was given more"
    assert level(balance(20, weekly=20)) == CreditNotice.OUT, "which is spent, too"
    next_week = Balance(ANN, 0, 20_000_000, Week(credits.WEEK_MS))
    assert level(next_week) is None
    assert credits.stop_at_ms(user, next_week) == 0
    assert level(Balance(ANN, 16_000_000 * ledger.UNITS_PER_MICRO, 20_000_000, next_week.week)) == CreditNotice.LOW
