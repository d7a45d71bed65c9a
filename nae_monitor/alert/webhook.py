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
from nae_monitor.alert.event import occurrence_id
from nae_monitor.alert.ocsf import PACKAGE_VERSION
from nae_monitor.alert.privacy import ContentPolicy, RedactedAlert
from nae_monitor.alert.sink import log
from nae_monitor.alert.threaded import RetryingSink
from nae_monitor.errors import Mark, Problem
from nae_monitor.health import Health
from nae_monitor.sink_settings import WebhookSettings

MAX_RETRY_AFTER_S = 300.0
ANSWER_BYTES = 4096  # read of an answer, so that its connection can be used again
_LATER = frozenset({408, 425, 429})  # and every 5xx: the same request may be taken later


class WebhookSink(RetryingSink):
    """``delivered`` means answered with 2xx. What waits for its turn is in memory only.

    A far end that is away, slow, or says later (408, 425, 429, 5xx) is tried again with growing
    pauses, and not before its ``Retry-After``; alerts wait, in order. Any other answer, a
    redirect among them, refuses the alert: it is dropped as ``refused``.
    """

    def __init__(
        self,
        settings: WebhookSettings,
        policy: ContentPolicy,
        health: Health,
        name: str = "webhook",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        env = os.environ if environ is None else environ
        self._settings = settings
        self._url = url_of(settings, env)
        secret = env.get(settings.secret_env or "", "") if settings.format == "json" else ""
        self._key = webhook_body.secret_bytes(secret) if secret else None
        ca_file = settings.ca_file and str(Path(settings.ca_file).expanduser())
        self._tls = ssl.create_default_context(cafile=ca_file)
        super().__init__(name, policy, health, settings.queue_events)

    def _start_afresh(self) -> None:
        self._pool: urllib3.PoolManager | None = None  # its sockets would be the parent's too
        self._not_before_s = 0.0
        self._is_down = False
        super()._start_afresh()

    def _deliver(self, alerts: Sequence[RedactedAlert]) -> int:
        for done, alert in enumerate(alerts):
            if time.monotonic() >= self._stop_at_s or not self._is_settled(alert):
                return done
        return len(alerts)

    def _delivered(self, alerts: int) -> None:
        """Counted one by one: some were refused."""

    def _is_settled(self, alert: RedactedAlert) -> bool:
        """Whether the far end took or refused it."""
        try:
            status, retry_after = self._post(alert)
        except urllib3.exceptions.HTTPError as error:
            self._later(type(error).__name__)
            return False
        if status in _LATER or status >= 500:
            self._not_before_s = time.monotonic() + wait_s(retry_after)
            self._later(str(status))
            return False
        self._is_down = False
        if 200 <= status < 300:
            self._tally.count("delivered")
        else:
            self._tally.count(f"answered.{status}")
            self._tally.dropped("refused")
        return True

    def _post(self, alert: RedactedAlert) -> tuple[int, str]:
        """The status of the answer and its ``Retry-After``."""
        if self._settings.format == "slack":
            body = webhook_body.slack_body(alert)
        else:
            body = webhook_body.event_body(alert, self._policy)
        if self._pool is None:
            self._pool = urllib3.PoolManager(num_pools=1, ssl_context=self._tls)
        answer = self._pool.request(
            "POST",
            self._url,
            body=body,
            headers=self._headers(occurrence_id(alert), body),
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

    def _later(self, why: str) -> None:
        self._tally.count(f"retried.{why}")
        if not self._is_down:
            self._is_down = True
            log.warning("sink %s: not taken (%s); alerts wait in memory", self.name, why)

    def _pause(self) -> None:
        super()._pause()
        self._retry_at_s = max(self._retry_at_s, self._not_before_s)

    def _finish(self) -> None:
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
    except ValueError:
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
