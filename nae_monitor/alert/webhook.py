"""Alerts posted to a URL, one a request, signed or as Slack reads them.

The address comes from the configuration or the environment only; no redirect is followed and no
proxy of the environment is used.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import urllib3

from nae_monitor.alert import webhook_body
from nae_monitor.alert.ocsf import PACKAGE_VERSION
from nae_monitor.alert.outbox import UNREADABLE, Outbox
from nae_monitor.alert.outbox_place import outbox_path
from nae_monitor.alert.outbox_rows import Row
from nae_monitor.alert.privacy import ContentPolicy
from nae_monitor.alert.relaying import DELIVERED, Fate, FrontRow, RelayingSink
from nae_monitor.alert.restored_alert import attributes_of, restored
from nae_monitor.errors import Mark, Problem
from nae_monitor.health import Health
from nae_monitor.sink_settings import WebhookSettings

MAX_RETRY_AFTER_S = 300.0
ANSWER_BYTES = 4096  # read of an answer, so that its connection can be used again
_LATER = frozenset({408, 425, 429})  # and every 5xx: the same request may be taken later


class WebhookSink(RelayingSink):
    """``delivered`` means answered with 2xx.

    A far end that is away, slow, or says later (408, 425, 429, 5xx) is tried again with growing
    pauses, and not before its ``Retry-After``; alerts wait in the outbox, in order. An alert that
    is answered with 5xx for minutes, while the next one is taken, is refused too. Any other
    answer, a redirect among them, refuses the alert: it is set aside and counted as ``refused``.
    """

    batch_rows = 10

    def __init__(
        self,
        settings: WebhookSettings,
        policy: ContentPolicy,
        health: Health,
        name: str = "webhook",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Open the outbox and start sending what an earlier process left in it.

        Raises:
            OSError: the outbox cannot be written, or is something else.
            sqlite3.Error: SQLite cannot use it.
        """
        env = os.environ if environ is None else environ
        self._settings = settings
        self._url = url_of(settings, env)
        secret = env.get(settings.secret_env or "", "") if settings.format == "json" else ""
        self._key = webhook_body.secret_bytes(secret) if secret else None
        ca_file = settings.ca_file and str(Path(settings.ca_file).expanduser())
        self._tls = ssl.create_default_context(cafile=ca_file)
        super().__init__(
            name,
            policy,
            health,
            queue_events=settings.queue_events,
            path=outbox_path(settings),
            max_bytes=settings.outbox_bytes,
        )

    def _start_afresh(self) -> None:
        self._pool: urllib3.PoolManager | None = None  # its sockets would be the parent's too
        self._not_before_s = 0.0
        self._front = FrontRow()
        super()._start_afresh()

    def _carry(self, rows: Sequence[Row]) -> list[Fate]:
        fates: list[Fate] = []
        for row in rows:
            if time.monotonic() >= self._stop_at_s:
                break
            try:
                fate = self._fate_of(row)
            except Exception as error:
                if not fates:
                    raise
                # What the others have come to must not be forgotten with this one's fault.
                self._why_later = type(error).__name__
                break
            if fate is None and not fates and self._is_alone_at_fault(row, rows[1:]):
                refused = Fate(f"answered_{self._why_later}")
                return [refused, DELIVERED, *self._carry(rows[2:])]
            if fate is None:
                break
            fates.append(fate)
        return fates

    def _is_alone_at_fault(self, row: Row, others: Sequence[Row]) -> bool:
        """Whether the far end fails over this row for good: it then has the next one already."""
        if not self._why_later.startswith("5"):
            return False
        is_stuck = self._front.is_stuck(row)
        if not is_stuck or not others or self._not_before_s > time.monotonic():
            return False
        why = self._why_later
        taken = self._fate_of(others[0]) is DELIVERED
        self._why_later = why
        return taken

    def _fate_of(self, row: Row) -> Fate | None:
        """Delivered, refused, or None: later."""
        try:
            event_id, body = self._body(row)
        except (ValueError, KeyError, TypeError, AttributeError):
            return Fate(UNREADABLE)
        try:
            status, retry_after = self._post(event_id, body)
        except urllib3.exceptions.HTTPError as error:
            self._why_later = type(error).__name__
            return None
        if status in _LATER or status >= 500:
            self._not_before_s = time.monotonic() + wait_s(retry_after)
            self._why_later = str(status)
            return None
        if 200 <= status < 300:
            return DELIVERED
        self._tally.count(f"answered.{status}")
        return Fate(f"answered_{status}")

    def _body(self, row: Row) -> tuple[str, bytes]:
        event_id = attributes_of(row)["id"]
        if self._settings.format == "slack":
            return event_id, webhook_body.slack_body(restored(row), event_id)
        return event_id, webhook_body.event_body(row)

    def _post(self, event_id: str, body: bytes) -> tuple[int, str]:
        """The status of the answer and its ``Retry-After``."""
        if self._pool is None:
            self._pool = urllib3.PoolManager(num_pools=1, ssl_context=self._tls)
        answer = self._pool.request(
            "POST",
            self._url,
            body=body,
            headers=self._headers(event_id, body),
            timeout=urllib3.Timeout(total=self._settings.timeout_s),
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        try:
            if len(answer.read(ANSWER_BYTES)) == ANSWER_BYTES:
                answer.close()  # whatever else it wants to say
        finally:
            answer.release_conn()
        return answer.status, answer.headers.get("retry-after", "")

    def _headers(self, event_id: str, body: bytes) -> dict[str, str]:
        is_slack = self._settings.format == "slack"
        headers = {
            "content-type": "application/json" if is_slack else "application/cloudevents+json",
            "user-agent": f"nae-monitor/{PACKAGE_VERSION}",
        }
        if is_slack:
            return headers
        now_s = int(time.time())
        headers |= {"webhook-id": event_id, "webhook-timestamp": str(now_s)}
        if self._key is not None:
            signed = webhook_body.signature(self._key, event_id, now_s, body)
            headers["webhook-signature"] = signed
        return headers

    def _pause_sending(self, why: str) -> None:
        super()._pause_sending(why)
        self._send_at_s = max(self._send_at_s, self._not_before_s)

    def _let_go(self, outbox: Outbox) -> None:
        super()._let_go(outbox)
        if self._pool is not None:
            self._pool.clear()


def url_of(settings: WebhookSettings, environ: Mapping[str, str]) -> str:
    """The address, wherever it stands; "" where the variable is not set."""
    return settings.url or environ.get(settings.url_env or "", "").strip()


def wait_s(retry_after: str) -> float:
    """Seconds that a ``Retry-After`` asks for (RFC 9110, 10.2.3), at most 300; 0 if unreadable."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return min(MAX_RETRY_AFTER_S, float(text[:9]))
    try:
        until = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return 0.0
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return min(MAX_RETRY_AFTER_S, max(0.0, (until - datetime.now(UTC)).total_seconds()))


def check(
    settings: WebhookSettings, where: Mark, environ: Mapping[str, str] | None = None
) -> list[Problem]:
    """What can never work, without asking the network.

    No address is quoted: it may be a secret.
    """
    env = os.environ if environ is None else environ
    problems = _problems_of_address(url_of(settings, env), settings.url_env, where)
    name = settings.secret_env if settings.format == "json" else None
    if name is not None:
        problems += _problems_of_secret(env.get(name, ""), name, where)
    if settings.ca_file is not None:
        try:
            ssl.create_default_context(cafile=str(Path(settings.ca_file).expanduser()))
        except (OSError, ssl.SSLError):
            mend = "name a PEM file with certificates"
            problems.append(Problem(where, f"cannot read ca_file {settings.ca_file}", mend))
    return problems


def _problems_of_address(url: str, variable: str | None, where: Mark) -> list[Problem]:
    if not url:
        mend = f"export {variable}=https://…"
        return [Problem(where, f"the environment variable {variable} is not set", mend)]
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host, parts = "", SplitResult("", "", "", "", "")
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc:
        mend = "write https://HOST[:PORT]/PATH, without user and password"
        return [Problem(where, "the address is no URL that can be posted to", mend)]
    if parts.scheme == "http" and not _is_loopback(host):
        return [Problem(where, "http would show alerts to the network", "use https")]
    return []


def _problems_of_secret(secret: str, name: str, where: Mark) -> list[Problem]:
    if not secret:
        mend = f"export {name}, or write `secret_env: null` to send unsigned"
        return [Problem(where, f"the signing secret {name} is not set", mend)]
    try:
        webhook_body.secret_bytes(secret)
    except ValueError as error:
        return [Problem(where, f"{name}: {error}", "take the secret as the receiver shows it")]
    return []


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
