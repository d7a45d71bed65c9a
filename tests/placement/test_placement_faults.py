"""Workers that die, hang, refuse or never come: counted, told, and never clean."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq
from placement_parts import (
    D_MODEL,
    LAYER,
    Server,
    configuration,
    make_worker,
    server,
    serving_anyway,
    titles,
    wait_until,
    worker_process,
)

from nae_monitor.errors import ConfigurationError
from nae_monitor.placement.frame import MAGIC, VERSION, FrameError, Kind, VersionError, pack, unpack
from nae_monitor.placement.greetings import Hello, read_reason
from nae_monitor.records import Phase, VerdictState
from nae_monitor.settings import ActionSettings, IpcSettings, Settings
from nae_monitor.verdicts import is_balanced


def quick(settings: Settings, **changes: Any) -> Settings:
    """Waits for no worker."""
    return replace(settings, ipc=replace(settings.ipc, connect_s=0.2, **changes))


def is_ready(one: Server) -> bool:
    return set(one.outpost.state().values()) == {"ready"}


@contextmanager
def peer(settings: Settings, kind: int) -> Iterator[zmq.Socket[bytes]]:
    """A socket of the test's own on the settings' endpoint."""
    context = zmq.Context(1)
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    endpoint = settings.ipc.endpoints[0]
    try:
        if kind == zmq.ROUTER:
            Path(endpoint.removeprefix("ipc://")).parent.mkdir(mode=0o700, exist_ok=True)
            socket.bind(endpoint)
        else:
            socket.connect(endpoint)
        yield socket
    finally:
        socket.close()
        context.term()


def test_a_worker_killed_in_mid_stream_leaves_its_requests_undecided_and_serving_alone(
    tmp_path: Path,
) -> None:
    settings = configuration(tmp_path)
    with worker_process(settings, decode_s=30.0) as worker, server(settings) as one:
        one.start("r1")
        one.rows("r1", (0, 1, 2))
        one.start("r2")
        one.rows("r2", (0,))
        one.finish("r2")
        wait_until(lambda: one.outpost._worker.waiting)  # r2's end is shipped
        worker.kill()
        verdict = one.verdict("r2")
        assert verdict.state is VerdictState.UNDECIDED
        assert any("its worker went away" in reason for reason in verdict.reasons)
        assert verdict.coverage.dropped_tokens == {"worker_lost": 1}
        one.rows("r1", (3, 4))  # nobody is there
        one.finish("r1")
        verdict = one.verdict("r1")
        assert verdict.state is VerdictState.UNDECIDED
        assert verdict.coverage.dropped_tokens == {"worker_lost": 3, "no_worker": 2}
        assert is_balanced(verdict.coverage)
        with worker_process(settings):
            wait_until(lambda: is_ready(one))
            assert one.one("r3").state is VerdictState.CLEAN
    assert titles(tmp_path)[0].startswith("Monitor is blind: ipc.worker-0 (the connection broke")


def test_a_request_goes_on_at_the_next_worker_with_all_of_its_text(tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    with worker_process(settings, decode_s=30.0) as first, server(settings) as one:
        one.start("r1")
        one.rows("r1", (0, 1))
        one.generate("r1", [1])  # "b"
        wait_until(lambda: not len(one.outpost._queue) and not one.outpost._worker.in_hand)
        first.kill()
        wait_until(lambda: not is_ready(one))
        with worker_process(settings):
            wait_until(lambda: is_ready(one))
            one.listener.tokens("r1", (0,))  # "ba": the rule wants a b
            one.rows("r1", (4,), coordinate=1, phase=Phase.COMPLETION)
            one.finish("r1")
            verdict = one.verdict("r1")
        assert verdict.state is VerdictState.ALERT
        assert [f.position for f in verdict.findings] == [4]
        assert verdict.coverage.judged_tokens == 1
        assert verdict.coverage.dropped_tokens == {"worker_lost": 3}
        assert is_balanced(verdict.coverage)


def test_a_worker_that_ends_in_order_answers_what_it_has(tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    with worker_process(settings, decode_s=0.05) as worker, server(settings) as one:
        for number in range(3):
            one.start(f"r{number}")
            one.rows(f"r{number}", (0, 1))
            one.finish(f"r{number}")
        wait_until(lambda: any(one.health.counted("tokens.judged", f"r{n}") for n in range(3)))
        worker.end()
        assert {one.verdict(f"r{n}").state for n in range(3)} == {VerdictState.CLEAN}


def test_a_silent_worker_is_taken_for_gone_and_taken_on_again(tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    settings = replace(settings, ipc=replace(settings.ipc, liveness_s=0.5))
    with worker_process(settings) as worker, server(settings) as one:
        assert one.one("r1").state is VerdictState.CLEAN
        worker.pause(on=True)
        one.start("r2")
        one.rows("r2", (0,))
        wait_until(lambda: not is_ready(one))
        one.finish("r2")
        assert one.verdict("r2").state is VerdictState.UNDECIDED
        worker.pause(on=False)
        wait_until(lambda: is_ready(one))
        assert one.one("r3").state is VerdictState.CLEAN


def test_a_worker_that_takes_nothing_costs_rows_and_never_the_serving_thread(
    tmp_path: Path,
) -> None:
    settings = configuration(tmp_path)
    settings = replace(settings, ipc=replace(settings.ipc, high_water_frames=8))
    settings = replace(settings, capture=replace(settings.capture, queue_bytes=200_000))
    with worker_process(settings) as worker, server(settings) as one:
        worker.pause(on=True)
        one.start("r1")
        for start in range(0, 20_000, 50):
            one.rows("r1", range(start, start + 50))
        one.finish("r1")
        assert one.verdict("r1", wait_s=0.0).state is VerdictState.UNDECIDED
        worker.pause(on=False)
        verdict = one.verdict("r1")
        assert verdict.coverage.sampled_tokens == 20_000
        assert verdict.coverage.dropped_tokens
        assert set(verdict.coverage.dropped_tokens) <= {"queue_full", "link_full"}
        assert is_balanced(verdict.coverage)
        assert verdict.state is VerdictState.UNDECIDED


def test_without_a_worker_a_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no worker has answered yet"):
        Server(quick(configuration(tmp_path)))


def test_on_failure_serve_starts_blind_says_so_and_takes_a_worker_on_when_it_comes(
    tmp_path: Path,
) -> None:
    settings = serving_anyway(quick(configuration(tmp_path)))
    with server(settings) as one:
        verdict = one.one("r1")
        assert verdict.state is VerdictState.UNDECIDED
        assert verdict.coverage.dropped_tokens == {"no_worker": 3}
        wait_until(lambda: titles(tmp_path))
        assert titles(tmp_path) == ["Monitor is blind: ipc.worker-0 (no worker has answered yet)"]
        with worker_process(settings):
            wait_until(lambda: is_ready(one))
            assert one.one("r2").state is VerdictState.CLEAN


def test_a_request_without_any_row_is_undecided_where_no_worker_is(tmp_path: Path) -> None:
    settings = serving_anyway(quick(configuration(tmp_path)))
    with server(settings) as one:
        one.start("r1")
        one.health.count("tokens.seen", 3, request_id="r1")
        one.health.count("tokens.screened", 3, request_id="r1")
        one.finish("r1")
        verdict = one.verdict("r1")
        assert any("no worker was there" in reason for reason in verdict.reasons)


def test_a_worker_of_another_protocol_version_is_refused_with_the_reason(tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    with peer(settings, zmq.ROUTER) as worker:
        one = Server(serving_anyway(quick(settings)))
        address, hello = worker.recv_multipart()
        assert unpack(hello).kind is Kind.HELLO
        worker.send_multipart([address, pack(Kind.WELCOME, {}, version=VERSION + 1)])
        wait_until(lambda: "protocol version" in str(one.outpost.state()))
        assert one.one("r1").state is VerdictState.UNDECIDED
        wait_until(lambda: any("protocol version 2, not 1" in title for title in titles(tmp_path)))
        one.outpost.close(1.0)


def test_a_serving_process_of_another_protocol_version_is_refused_with_the_reason(
    tmp_path: Path,
) -> None:
    settings = configuration(tmp_path)
    with worker_process(settings) as worker, server(settings):
        with peer(settings, zmq.DEALER) as socket:
            socket.send(pack(Kind.HELLO, {}, version=VERSION + 1))
            answer = unpack(socket.recv())
        assert answer.kind is Kind.REFUSED
        assert "protocol version 2, not 1" in read_reason(answer)
        assert worker.end()["ipc.refused"] == 1


@pytest.mark.parametrize(
    "captured", [{"model": "other"}, {"layer": LAYER + 1}, {"d_model": D_MODEL + 1}]
)
def test_a_serving_process_that_captures_something_else_is_refused(
    tmp_path: Path, captured: dict[str, Any]
) -> None:
    settings = configuration(tmp_path)
    with worker_process(settings), pytest.raises(ConfigurationError, match="the worker reads"):
        Server(settings, **captured)


def test_hostile_messages_are_counted_and_hurt_nobody(tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    hello = Hello(uuid.uuid4().hex, "bench", LAYER, D_MODEL).header()
    hostile = [
        b"",
        os.urandom(200),
        MAGIC,
        pack(Kind.BEGIN, {"turn": 1}),
        pack(Kind.HELLO, hello)[:-1],
        pack(Kind.HELLO, {**hello, "d_model": 2**70}),
        pack(Kind.ROWS, {"turn": [[[]]], "rows": -1}),
    ]
    with worker_process(settings) as worker, server(settings) as one:
        one.start("r1")
        one.rows("r1", (0,))
        with peer(settings, zmq.DEALER) as socket:
            for data in hostile:
                socket.send(data)
            socket.send_multipart([b"two", b"parts"])
            assert unpack(socket.recv()).kind is Kind.STRANGER  # to BEGIN and to ROWS
            assert unpack(socket.recv()).kind is Kind.STRANGER
            socket.send(pack(Kind.HELLO, hello))
            while unpack(socket.recv()).kind is not Kind.WELCOME:
                pass
            for number, data in enumerate((b'{"turn": 0}', b"[]", b"\xff"), start=1):
                frame = pack(Kind.END, {}, sequence=number)
                prefix = bytearray(frame[: len(frame) - 2])
                prefix[12:16] = len(data).to_bytes(4, "little")
                socket.send(bytes(prefix) + data)
            one.finish("r1")
            assert one.verdict("r1").state is VerdictState.CLEAN
        counted = worker.end()
        assert counted["ipc.malformed_frames"] == 9
        assert not any(name.startswith("failed.") for name in counted)


def test_frames_that_went_missing_make_every_request_of_the_process_undecided(
    tmp_path: Path,
) -> None:
    settings = configuration(tmp_path)
    with worker_process(settings) as worker, server(settings) as one:
        one.start("r1")
        one.rows("r1", (0,))
        wait_until(lambda: not len(one.outpost._queue) and not one.outpost._worker.in_hand)
        (link,) = one.outpost._way.links
        link._sent += 2  # as if two had been sent and lost
        one.finish("r1")
        verdict = one.verdict("r1")
        assert verdict.state is VerdictState.UNDECIDED
        assert any("frames of it were lost" in reason for reason in verdict.reasons)
        one.outpost.close(30.0)
        assert worker.end()["ipc.frames_lost"] == 2


def test_a_second_worker_on_an_endpoint_is_refused(tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    first = make_worker(settings)
    with pytest.raises(ConfigurationError, match="another worker listens there"):
        make_worker(settings)
    first.stop()
    assert first.run(deadline_s=5.0)
    again = make_worker(settings)
    again.stop()
    assert again.run(deadline_s=5.0)


def test_a_socket_directory_that_others_may_enter_is_refused_by_both(tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(0o755)
    with pytest.raises(ConfigurationError, match="may be entered by others"):
        make_worker(settings)
    with pytest.raises(ConfigurationError, match="may be entered by others"):
        Server(serving_anyway(settings))


def test_a_generation_cannot_be_held_for_a_worker(tmp_path: Path) -> None:
    held = ActionSettings(stop_generation="enforce", hold_s=1.0)
    with pytest.raises(ConfigurationError, match="cannot be held"):
        Server(configuration(tmp_path, actions=held))


@pytest.mark.parametrize(
    "endpoint",
    [
        "ipc://relative",
        "tcp://0.0.0.0:5555",
        "tcp://10.0.0.1:5",
        "tcp://127.0.0.1",
        "ipc:///" + "a" * 101,
    ],
)
def test_endpoints_beyond_this_host_or_out_of_reach_are_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"absolute|use ipc|longer"):
        IpcSettings((endpoint,))


def test_a_frame_says_which_version_it_is_of() -> None:
    with pytest.raises(VersionError) as caught:
        unpack(pack(Kind.BEAT, {}, version=7))
    assert caught.value.version == 7
    assert isinstance(caught.value, FrameError)
