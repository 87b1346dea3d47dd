"""The process that sends notices: letters come in as JSON, and for each a line says what became of it.

It is a process of its own because what sends is not to be trusted with the controller: apprise blocks, imports much,
and goes where users say. Here it may hang or be killed, and `guard` sees to where it goes. Letters are sent several at
a time, each with a time limit; the controller ends the process when all of it takes too long.

In:   {"mail": {...} or null, "networks": [...], "letters": [{"id", "address", "subject", "text", ...}]}
Out:  {"number": 0, "error": ""}, a line for each letter as soon as it is known
"""

import json
import smtplib
import ssl
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any

from pwm.controlplane.delivery import webhook
from pwm.controlplane.delivery.guard import guard_this_process, trusted

AT_ONCE = 8
# To connect, and for each answer.
TIMEOUT_S = 10.0
MAIL = "mailto:"

_writing = threading.Lock()


def main() -> int:
    task: dict[str, Any] = json.load(sys.stdin)
    letters: list[dict[str, Any]] = task["letters"]
    _warm_up(letters)
    guard_this_process(task["networks"])
    # In order for each address: that something ended is not told before that it began.
    by_address: dict[str, list[int]] = {}
    for number, letter in enumerate(letters):
        by_address.setdefault(letter["address"], []).append(number)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for numbers in by_address.values():
            pool.submit(_deliver_all, numbers, letters, task["mail"])
    return 0


def _deliver_all(numbers: list[int], letters: list[dict[str, Any]], mail: dict[str, Any] | None) -> None:
    for number in numbers:
        _deliver(number, letters[number], mail)


def _warm_up(letters: list[dict[str, Any]]) -> None:
    """What is imported before the guard is set need not get by it."""
    ssl.create_default_context()
    if any(_is_for_apprise(letter["address"]) for letter in letters):
        import apprise

        apprise.Apprise.instantiate("json://localhost")


def _is_for_apprise(address: str) -> bool:
    return not address.startswith((MAIL, "https://", "http://"))


def _deliver(number: int, letter: dict[str, Any], mail: dict[str, Any] | None) -> None:
    error = ""
    try:
        if letter["address"].startswith(MAIL):
            _mail(letter, mail)
        elif _is_for_apprise(letter["address"]):
            _by_apprise(letter)
        else:
            webhook.post(letter, now_s=int(time.time()), timeout_s=TIMEOUT_S)
    except Exception as failure:  # whatever it is, this notice was not delivered, and the others are
        error = _said(failure, letter["address"])
    with _writing:
        sys.stdout.write(json.dumps({"number": number, "error": error}) + "\n")
        sys.stdout.flush()


def _said(failure: Exception, address: str) -> str:
    """One line, without the address and so without what is secret in it."""
    text = " ".join(str(failure).split()) or type(failure).__name__
    return text.replace(address, "…")[:300]


def _mail(letter: dict[str, Any], mail: dict[str, Any] | None) -> None:
    if mail is None:
        raise webhook.NotTaken("there is no mail server any more")
    message = EmailMessage()
    message["From"], message["To"] = mail["sender"], letter["address"].removeprefix(MAIL)
    message["Subject"] = letter["subject"]
    message["Date"] = format_datetime(datetime.fromisoformat(letter["time"]).astimezone(UTC))
    # The same for every attempt: mailboxes that look at it show a repeated one once.
    message["Message-ID"] = f"<{letter['id']}@{mail['sender'].rpartition('@')[2].strip('<> ')}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(letter["text"])
    with trusted(), _server(mail) as server:
        if mail["user"]:
            server.login(mail["user"], mail["password"])
        server.send_message(message)


def _server(mail: dict[str, Any]) -> smtplib.SMTP:
    host, port, tls = mail["host"], mail["port"], mail["tls"]
    if tls == "tls":
        return smtplib.SMTP_SSL(host, port, timeout=TIMEOUT_S, context=ssl.create_default_context())
    server = smtplib.SMTP(host, port, timeout=TIMEOUT_S)
    if tls == "starttls":
        server.starttls(context=ssl.create_default_context())
    return server


def _by_apprise(letter: dict[str, Any]) -> None:
    import apprise

    asset = apprise.AppriseAsset(app_id="PWM", app_desc="PWM", app_url="", async_mode=False, storage_mode="memory")
    service = apprise.Apprise(asset=asset)
    if not service.add(letter["address"]):
        raise webhook.NotTaken("apprise does not know this kind of address, or something is missing in it")
    # What apprise logs has tokens in it, so it says no more than yes or no.
    if not service.notify(body=letter["text"], title=letter["subject"], body_format=apprise.NotifyFormat.TEXT):
        raise webhook.NotTaken("the service did not take it, or cannot be reached")


if __name__ == "__main__":
    sys.exit(main())
