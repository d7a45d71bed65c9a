"""The webhook against a real server on the loopback interface, which misbehaves on request."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from alert_parts import CANARIES, free_port, make_alert, make_evidence, make_policy, wait_until
from hypothesis import example, given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from nae_monitor.alert import build_sinks, relaying
from nae_monitor.alert.event import occurrence_id
from nae_monitor.alert.outbox import Outbox
from nae_monitor.alert.resend import restore_rejected, state_of
from nae_monitor.alert.webhook import MAX_RETRY_AFTER_S, WebhookSink, check, wait_s
from nae_monitor.alert.webhook_body import slack_body
from nae_monitor.errors import ConfigurationError, Mark
from nae_monitor.health import Health
from nae_monitor.records import Severity
from nae_monitor.settings import PrivacySettings
from nae_monitor.sink_settings import AlertSettings, SinkSettings, WebhookSettings

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # the example of Standard Webhooks
ENV = {"NAE_MONITOR_WEBHOOK_SECRET": SECRET}
HANG, RESET = "hang", "reset"


@dataclass
class Receiver:
    """Answers as ``script`` says, one item a request, then with 200."""

    script: list[Any] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)  # of answers other than 200
    bodies: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)  # alert ids answered with 200
    never: str = ""  # an alert that is answered with 500
    port: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/alerts"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["content-length"]))
        self.bodies.append(({k.lower(): v for k, v in handler.headers.items()}, body))
        status = self.script.pop(0) if self.script else 200
        if self.never and self.never == json.loads(body).get("id"):
            status = 500
        if status == HANG:
            self.over.wait(60)
            handler.close_connection = True
            return
        if status == RESET:
            handler.connection.close()
            return
        if status == 200:
            self.taken.append(json.loads(body).get("id", ""))
        handler.send_response(status)
        for name, value in self.headers.items() if status != 200 else ():
            handler.send_header(name, value)
        handler.send_header("content-length", "2")
        handler.end_headers()
        handler.wfile.write(b"ok")


@pytest.fixture
def there() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            receiver.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except (ConnectionError, ValueError):
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield receiver
    receiver.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


def sink_to(url: str, health: Health, content: str = "hash", **options: Any) -> WebhookSink:
    return WebhookSink(WebhookSettings(url, **options), make_policy(content), health, environ=ENV)


def test_alerts_arrive_in_order_signed_as_the_standard_says(
    there: Receiver, health: Health
) -> None:
    sink = sink_to(there.url, health)
    alerts = [make_alert(n) for n in range(60)]
    for alert in alerts:
        sink.emit(alert)
    assert sink.close(30)
    assert there.taken == [occurrence_id(alert) for alert in alerts]
    stats = sink.stats()
    assert (stats["accepted"], stats["delivered"], stats["pending"]) == (60, 60, 0)
    for headers, body in there.bodies:
        assert Webhook(SECRET).verify(body, headers) == json.loads(body)
        assert headers["webhook-id"] == json.loads(body)["id"]
        with pytest.raises(Exception, match="No matching signature"):
            Webhook(SECRET).verify(body.replace(b"high", b"none", 1) + b" ", headers)


@pytest.mark.parametrize("fault", [500, 503, 429, 408, RESET, HANG])
def test_a_far_end_that_cannot_take_an_alert_now_gets_it_later_and_in_order(
    fault: Any, there: Receiver, health: Health
) -> None:
    there.script = [200, fault, fault]
    sink = sink_to(there.url, health, timeout_s=0.3)
    alerts = [make_alert(n) for n in range(4)]
    for alert in alerts:
        sink.emit(alert)
    wait_until(lambda: len(there.taken) == 4)
    assert sink.close(30)
    assert there.taken == [occurrence_id(alert) for alert in alerts]
    retried = sum(n for name, n in sink.stats().items() if name.startswith("retried."))
    assert retried == 2
    assert sink.stats()["delivered"] == 4


def test_a_far_end_that_is_away_is_waited_for(health: Health) -> None:
    sink = sink_to(f"http://127.0.0.1:{free_port()}/", health, queue_events=2)
    sink.emit(make_alert())
    wait_until(lambda: sink.stats().get("retried.NewConnectionError"))
    for n in range(1, 200):
        sink.emit(make_alert(n))
    assert not sink.close(0.5)
    stats = sink.stats()
    assert stats.get("dropped.queue_full", 0) == 200 - stats["accepted"]
    assert health.counters().get("alert.webhook.dropped.queue_full", 0) == 200 - stats["accepted"]
    assert stats["outbox_events"] == stats["pending"] == stats["accepted"] > 0


def test_what_waits_is_on_disk_and_delivered_by_the_next_process(
    there: Receiver, health: Health, tmp_path: Path
) -> None:
    outbox = str(tmp_path / "o.sqlite")
    alerts = [make_alert(n) for n in range(25)]
    first = sink_to(f"http://127.0.0.1:{free_port()}/", health, outbox=outbox)
    for alert in alerts:
        first.emit(alert)
    assert not first.close(0.5)
    assert first._thread is not None
    first._thread.join()  # then the file is free
    second = sink_to(there.url, Health(), outbox=outbox)
    assert second.close(30)
    assert there.taken == [occurrence_id(alert) for alert in alerts]
    assert second.stats()["recovered"] == 25


def test_alerts_are_committed_while_the_far_end_hangs(there: Receiver, health: Health) -> None:
    there.script = [HANG]
    sink = sink_to(there.url, health, timeout_s=300.0)
    sink.emit(make_alert(0))
    wait_until(lambda: there.bodies)
    for n in range(1, 40):
        sink.emit(make_alert(n))
    wait_until(lambda: sink.stats()["accepted"] == 40)
    assert sink.stats()["delivered"] == 0
    there.over.set()
    wait_until(lambda: sink.stats()["delivered"] == 40)
    assert sink.close(30)
    assert there.taken == [occurrence_id(make_alert(n)) for n in range(40)]


def test_a_file_damaged_while_the_far_end_hangs_costs_what_was_in_it_and_says_so(
    there: Receiver, health: Health, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.script = [HANG]
    sink = sink_to(there.url, health, timeout_s=300.0, outbox=str(tmp_path / "o.sqlite"))
    sink.emit(make_alert(0))
    wait_until(lambda: there.bodies)
    for n in range(1, 40):
        sink.emit(make_alert(n))
    wait_until(lambda: sink.stats()["accepted"] == 40)
    outbox = sink._outbox
    assert outbox is not None
    damage = sqlite3.DatabaseError("as SQLite says of a damaged file")
    damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    real_add, damages = outbox.add, [damage]

    def add(*args: Any, **options: Any) -> int:
        if damages:
            raise damages.pop()
        return real_add(*args, **options)

    monkeypatch.setattr(outbox, "add", add)
    sink.emit(make_alert(40))
    there.over.set()
    wait_until(lambda: occurrence_id(make_alert(40)) in there.taken)
    sink.close(30)
    stats = sink.stats()
    assert stats["outbox_damaged"] == 1
    lost = stats.get("dropped.outbox_damaged", 0)
    assert stats["delivered"] + lost == stats["accepted"] == 41
    assert {occurrence_id(make_alert(0)), occurrence_id(make_alert(40))} <= set(there.taken)


def test_a_full_outbox_drops_the_lowest_severity_and_counts_it(
    there: Receiver, health: Health
) -> None:
    there.script = [503] * 3
    sink = sink_to(there.url, health, outbox_bytes=20_000)
    low = [make_alert(n, severity=Severity.LOW) for n in range(20)]
    high = [make_alert(n, severity=Severity.CRITICAL) for n in range(20, 23)]
    for alert in [*low, *high]:
        sink.emit(alert)
    wait_until(lambda: sink.stats()["accepted"] == 23)
    wait_until(lambda: sink.stats()["pending"] == 0)
    sink.close(30)
    stats = sink.stats()
    assert stats["dropped.outbox_full"] > 0
    assert stats["delivered"] + stats["dropped.outbox_full"] == 23
    assert {occurrence_id(alert) for alert in high} <= set(there.taken)


def test_what_was_refused_is_kept_for_another_trial(
    there: Receiver, health: Health, tmp_path: Path
) -> None:
    there.script = [400]
    outbox = tmp_path / "o.sqlite"
    sink = sink_to(there.url, health, outbox=str(outbox))
    sink.emit(make_alert(0))
    wait_until(lambda: sink.stats().get("dropped.refused"))
    sink.close(30)
    assert state_of(outbox).rejected == {"answered_400": 1}
    assert restore_rejected(outbox) == 1
    again = sink_to(there.url, Health(), outbox=str(outbox))
    assert again.close(30)
    assert there.taken == [occurrence_id(make_alert(0))]


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 410])
def test_an_answer_that_refuses_drops_that_alert_alone_and_follows_nothing(
    status: int, there: Receiver, health: Health
) -> None:
    there.script, there.headers = [status], {"location": there.url}
    sink = sink_to(there.url, health)
    for n in range(2):
        sink.emit(make_alert(n))
    assert not sink.close(30)
    assert there.taken == [occurrence_id(make_alert(1))]
    assert len(there.bodies) == 2
    stats = sink.stats()
    assert (stats["dropped.refused"], stats["delivered"], stats["pending"]) == (1, 1, 0)
    assert stats[f"answered.{status}"] == 1


def test_retry_after_is_waited_for_and_close_does_not_wait_for_it(
    there: Receiver, health: Health
) -> None:
    there.script, there.headers = [429, 200], {"retry-after": "200"}
    sink = sink_to(there.url, health)
    sink.emit(make_alert())
    wait_until(lambda: sink.stats().get("retried.429"))
    assert not sink.close(0.5)
    assert len(there.bodies) == 1
    assert sink.stats()["pending"] == 1


@given(st.text(max_size=20) | st.integers().map(str))
@example("Mon, 01 Jan 99999999999 00:00:00 GMT")
@example("Mon, 01 Jan 2029 00:00:00 +9999999999999999999")
def test_any_retry_after_means_a_bounded_wait(text: str) -> None:
    assert 0 <= wait_s(text) <= MAX_RETRY_AFTER_S


def test_retry_after_is_seconds_or_a_date() -> None:
    assert (wait_s("7"), wait_s("9999999999"), wait_s("")) == (7.0, MAX_RETRY_AFTER_S, 0.0)
    now = datetime.now(UTC)
    assert wait_s(format_datetime(now - timedelta(minutes=1), usegmt=True)) == 0.0
    assert 0 < wait_s(format_datetime(now + timedelta(minutes=1), usegmt=True)) <= 60


@pytest.mark.parametrize("form", ["json", "slack"])
@pytest.mark.parametrize("content", ["hash", "none"])
def test_nothing_sensitive_leaves_by_default(
    form: Any, content: str, there: Receiver, health: Health, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    there.script = [500, 400]
    sink = sink_to(there.url, health, content, format=form)
    for n in range(3):
        sink.emit(make_alert(n))
    wait_until(lambda: sink.stats()["delivered"] == 2)
    sink.close(30)
    said = b"".join(body for _, body in there.bodies).decode() + caplog.text
    assert not [name for name, canary in CANARIES.items() if canary in said]
    assert SECRET not in said


def test_slack_gets_plain_text_that_can_call_nobody() -> None:
    evil = "<!channel> & <http://evil|click> " + "x" * 5000
    alert = replace(make_alert(), title=evil, evidence=(make_evidence(),))
    alert = replace(alert, evidence=(replace(alert.evidence[0], explanation=evil),))
    message = json.loads(slack_body(make_policy("full").redact(alert), "an-id"))
    assert "<" not in message["text"]
    texts = [b["text"] for b in message["blocks"] if "text" in b] + message["blocks"][-1][
        "elements"
    ]
    assert {text["type"] for text in texts} == {"plain_text"}
    assert all(0 < len(text["text"]) <= 3000 for text in texts)
    assert len(message["blocks"][0]["text"]["text"]) <= 150
    assert CANARIES["matched"] in json.dumps(message)


def test_slack_gets_no_signature_and_needs_no_secret(there: Receiver, health: Health) -> None:
    settings = WebhookSettings(url_env="HOOK", format="slack")
    assert check(settings, Mark("w"), {"HOOK": there.url}) == []
    sink = WebhookSink(settings, make_policy(), health, environ={"HOOK": there.url})
    sink.emit(make_alert())
    assert sink.close(30)
    headers, body = there.bodies[0]
    assert not [name for name in headers if name.startswith("webhook-")]
    assert json.loads(body)["blocks"][0]["type"] == "header"


@pytest.mark.parametrize(
    ("options", "env", "said"),
    [
        ({"url": "ftp://h/"}, ENV, "no URL that can be posted to"),
        ({"url": "https://user:pw@h/"}, ENV, "no URL that can be posted to"),
        ({"url": "https://h:port/"}, ENV, "no URL that can be posted to"),
        ({"url": "http://example.org/"}, ENV, "use https"),
        ({"url_env": "HOOK"}, ENV, "HOOK is not set"),
        ({"url": "https://h/"}, {}, "NAE_MONITOR_WEBHOOK_SECRET is not set"),
        ({"url": "https://h/"}, {"NAE_MONITOR_WEBHOOK_SECRET": "whsec_%"}, "is not base64"),
        ({"url": "https://h/", "ca_file": "/dev/null/x"}, ENV, "cannot read ca_file"),
    ],
)
def test_what_can_never_work_is_told_without_the_address(
    options: dict[str, Any], env: dict[str, str], said: str
) -> None:
    (problem,) = check(WebhookSettings(**options), Mark("w"), env)
    assert said in str(problem)
    assert "pw" not in str(problem)


def test_a_webhook_that_can_never_work_stops_the_start(
    health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NAE_MONITOR_WEBHOOK_SECRET", raising=False)
    sinks = (SinkSettings("webhook", WebhookSettings("https://h/")),)
    with pytest.raises(ConfigurationError, match=r"alert.sinks\[0\].webhook: the signing secret"):
        build_sinks(AlertSettings(sinks), PrivacySettings(), health)


def test_a_disk_that_takes_no_refusal_makes_no_good_alert_go_twice(
    there: Receiver, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nae_monitor.alert.relaying.BACKOFF_LAST_S", 0.05)
    there.script = [503]  # all of the alerts then go in one batch
    plain, full = Outbox.reject, [3]

    def reject(self: Outbox, *arguments: Any) -> int:
        if full[0]:
            full[0] -= 1
            raise sqlite3.OperationalError("database or disk is full")
        return plain(self, *arguments)

    monkeypatch.setattr(Outbox, "reject", reject)
    sink = sink_to(there.url, health)
    for number in range(6):
        sink.emit(make_alert(number))
    wait_until(lambda: there.bodies)
    there.script[:0] = [200, 400, 200, 200, 200, 200]
    wait_until(lambda: sink.stats().get("dropped.refused"))
    wait_until(lambda: sink.stats()["pending"] == 0)
    assert not sink.close(10)  # one is refused
    assert full == [0]
    assert len(there.taken) == len(set(there.taken)) == 5
    assert sink.stats()["delivered"] == 5


def test_an_alert_that_alone_is_never_taken_holds_up_no_other_for_good(
    there: Receiver, health: Health, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "STUCK_ATTEMPTS", 2)
    bad = occurrence_id(make_alert(1))
    there.never = bad
    sink = sink_to(there.url, health, outbox=str(tmp_path / "o.sqlite"))
    alerts = [make_alert(n) for n in range(5)]
    for alert in alerts:
        sink.emit(alert)
    wait_until(lambda: len(there.taken) == 4)
    assert sink.close(30) is False  # one was refused
    assert there.taken == [occurrence_id(alert) for alert in alerts if occurrence_id(alert) != bad]
    assert (sink.stats()["delivered"], sink.stats()["dropped.refused"]) == (4, 1)
    with closing(sqlite3.connect(tmp_path / "o.sqlite")) as db:
        assert db.execute("SELECT reason FROM rejected").fetchall() == [("answered_500",)]


def test_a_far_end_that_takes_nothing_costs_no_alert_however_often_it_says_so(
    there: Receiver, health: Health, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "STUCK_ATTEMPTS", 2)
    there.script = [500] * 9
    sink = sink_to(there.url, health, outbox=str(tmp_path / "o.sqlite"))
    alerts = [make_alert(n) for n in range(3)]
    for alert in alerts:
        sink.emit(alert)
    wait_until(lambda: len(there.taken) == 3)
    assert sink.close(30)
    assert there.taken == [occurrence_id(alert) for alert in alerts]


def test_a_fault_of_ours_at_one_alert_sends_no_earlier_one_again(
    there: Receiver, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = sink_to(there.url, health)
    real, faults = sink._headers, [RuntimeError("ours")]

    def headers(event_id: str, body: bytes) -> dict[str, str]:
        if faults and event_id == occurrence_id(make_alert(2)):
            raise faults.pop()
        return real(event_id, body)

    monkeypatch.setattr(sink, "_headers", headers)
    alerts = [make_alert(n) for n in range(4)]
    for alert in alerts:
        sink.emit(alert)
    wait_until(lambda: len(there.taken) == 4)
    assert sink.close(30)
    assert there.taken == [occurrence_id(alert) for alert in alerts]
