"""What users and groups have spent and may spend: the books and the limits, put together for whoever asks.

The scheduler asks before it places, the leader of the chores before it gives notice or stops, and people ask how
much is left. All get the same answer, from the same replica's view.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.credits_pb2 import CreditAccount, CreditNotice
from pwm.api.v1.identity_pb2 import User
from pwm.api.v1.workload_pb2 import DeviceShare, Workload
from pwm.controlplane.books import Books
from pwm.controlplane.commands import timestamp
from pwm.controlplane.core import authz, credits, ledger
from pwm.controlplane.core.credits import Balance, Week
from pwm.controlplane.core.ledger import Lines
from pwm.controlplane.core.limits import GROUP, USER, Account, accounts_of, owner_of
from pwm.controlplane.view import View


class Treasury:
    def __init__(self, *, books: Books, view: View) -> None:
        self.books = books
        self._view = view
        self._spent: tuple[Lines | None, dict[Account, int]] = (None, {})

    @property
    def in_use(self) -> bool:
        """Whether anything has a price."""
        return self._view.count("ResourceCredit") > 0

    def reset_at_ms(self) -> int:
        """When everybody has all credits again."""
        return self.books.lines()[0].end_ms

    def holder(self, account: Account) -> Any | None:
        """The User or the Group."""
        return self._view.by_name(account.kind, account.name)

    def limited(self) -> Iterable[tuple[Any, Balance]]:
        """Every user and group with a limit, and what it has spent."""
        for kind in (USER, GROUP):
            for holder in list(self._view.all(kind)):
                if credits.weekly_micro(holder) is not None:
                    yield holder, self.balance(Account(kind, holder.metadata.name))

    def balance(self, account: Account) -> Balance:
        week, spent = self._spent_this_week()
        holder = self.holder(account)
        weekly = credits.weekly_micro(holder) if holder is not None else None
        return Balance(account, spent.get(account, 0), weekly, week)

    def denial(self, workload: Workload) -> Reason | None:
        """Why nothing of a workload may start for want of credits."""
        accounts = accounts_of(owner_of(workload), workload.metadata.group)
        # Without a limit nothing has to be added up.
        limited = [account for account in accounts if self._has_limit(account)]
        return credits.denial(map(self.balance, limited)) if limited else None

    def of_user(self, user: User) -> list[CreditAccount]:
        """The user's own account, then those of its groups that have a limit."""
        groups = (m.name for m in user.spec.groups if m.name not in (authz.ALL, authz.SHARED))
        limited = [Account(GROUP, name) for name in groups if self._has_limit(Account(GROUP, name))]
        return [self.shown(account) for account in (Account(USER, user.metadata.name), *limited)]

    def shown(self, account: Account) -> CreditAccount:
        """An account as people see it."""
        balance = self.balance(account)
        shown = CreditAccount(
            kind=account.kind, name=account.name, spent_micro=balance.spent_micro, weekly_micro=balance.weekly_micro,
            hourly_micro=self.hourly_micro(account), level=balance.level,
        )  # fmt: skip
        stop_at_ms = credits.stop_at_ms(self.holder(account), balance)
        if stop_at_ms:
            shown.stop_at.CopyFrom(timestamp(stop_at_ms))
        return shown

    def remark(self, workload: Workload) -> tuple[str, bool]:
        """What its owner should know of the credits it needs, if anything, and whether nothing of it may start."""
        accounts = accounts_of(owner_of(workload), workload.metadata.group)
        balances = [self.balance(account) for account in accounts if self._has_limit(account)]
        worst = max(balances, key=lambda balance: balance.level, default=None)
        if worst is None or not worst.level:
            return "", False
        return str(worst), worst.level == CreditNotice.OUT

    def price_of(self, devices: Iterable[DeviceShare]) -> int:
        """What devices cost an hour, in micro-credits."""
        prices = self.books.prices()
        return sum(d.millis * ledger.price_for(d.product_name, prices) for d in devices) // ledger.WHOLE_DEVICE

    def _has_limit(self, account: Account) -> bool:
        holder = self.holder(account)
        return holder is not None and credits.weekly_micro(holder) is not None

    def _spent_this_week(self) -> tuple[Week, dict[Account, int]]:
        """Units by account."""
        week, lines = self.books.lines()
        if self._spent[0] is not lines:
            spent: dict[Account, int] = defaultdict(int)
            for key, device_us in lines.items():
                for account in accounts_of(key.owner, key.group):
                    spent[account] += key.hourly_micro * device_us
            self._spent = lines, dict(spent)
        return week, self._spent[1]

    def hourly_micro(self, account: Account) -> int:
        """What an account spends in an hour with what runs now."""
        running = self.books.running()
        thousandths = 0
        for holding in running.running.values():
            if account in accounts_of(holding.owner, holding.group):
                thousandths += sum(
                    millis * ledger.price_for(product, running.prices) for product, millis in holding.shares
                )
        return thousandths // ledger.WHOLE_DEVICE
