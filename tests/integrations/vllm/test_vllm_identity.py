"""Who a request belongs to, and who may say so."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from nae_monitor.integrations.engines.identity import bounded, read_headers, trace_of
from nae_monitor.integrations.vllm.http import (
    IdentityMiddleware,
    _identity,
    put_in_front,
    with_identity,
)
from nae_monitor.integrations.vllm.identity import group_of, request_of
from nae_monitor.placement.frame import Kind, pack, unpack
from nae_monitor.placement.turns import Begin
from nae_monitor.records import TraceRef

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Params(SimpleNamespace):
    def clone(self) -> Params:
        return Params(**vars(self))


@pytest.mark.parametrize(
    ("engine_id", "given"),
    [
        ("chatcmpl-abc-1-0123abcd", "abc-1"),
        ("chatcmpl-req-7f-0123abcd", "req-7f"),
        ("cmpl-order66-0-0123abcd", "order66"),
        ("1_chatcmpl-order66-0123abcd", "order66"),
        ("0-a4f5d984", "0-a4f5d984"),
        ("anything", "anything"),
    ],
)
def test_the_callers_id_is_read_out_of_the_engines(engine_id: str, given: str) -> None:
    assert group_of(engine_id) == given


def test_a_request_carries_tenant_session_and_span_of_the_headers() -> None:
    headers = [
        (b"X-Tenant-Id", b"acme"), (b"x-session-id", b"s1"), (b"traceparent", PARENT.encode()),
        (b"authorization", b"Bearer secret"),
    ]  # fmt: skip
    params = with_identity(Params(extra_args=None), read_headers(headers))
    request = request_of("chatcmpl-r1-0123abcd", params.extra_args, "m")
    assert (request.group_id, request.tenant, request.session_id) == ("r1", "acme", "s1")
    assert request.trace == TraceRef(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, 1)
    assert "secret" not in str(params)


def test_a_header_wins_over_what_the_client_says_in_vllm_xargs() -> None:
    said = {"nae_tenant": "rival", "nae_session": "s9"}
    params = with_identity(Params(extra_args=said), {"tenant": "acme"})
    request = request_of("r", params.extra_args, "m")
    assert (request.tenant, request.session_id) == ("acme", "s9")


@pytest.mark.parametrize("headers", [{}, {"session": "s1"}])
def test_a_client_cannot_set_what_only_the_server_may(headers: dict[str, str]) -> None:
    forged = {"nae_monitor": {"tenant": "acme"}, "other": 1}
    params = with_identity(Params(extra_args=forged), headers)
    assert request_of("r", params.extra_args, "m").tenant is None
    assert params.extra_args["other"] == 1


def test_the_callers_own_parameters_are_left_as_they_are() -> None:
    given: dict[str, Any] = {"other": 1}
    with_identity(Params(extra_args=given), {"tenant": "acme"})
    assert given == {"other": 1}


@pytest.mark.parametrize(
    "bad", [None, 3, "", "00-xyz", PARENT.upper(), f"00-{'0' * 32}-{'0' * 16}-01", PARENT + "x"]
)
def test_a_bad_traceparent_is_no_span(bad: object) -> None:
    assert trace_of(bad) is None


def test_values_are_cut_to_a_bounded_length() -> None:
    request = request_of("r", {"nae_tenant": "x" * 10_000, "nae_session": ["no", "text"]}, "m")
    assert request.tenant == "x" * 256
    assert request.session_id is None


@pytest.mark.parametrize("part", ["x", "\ud800", "\u00e9"])
@pytest.mark.parametrize("length", [1, 256, 5000])
def test_no_id_that_a_client_chooses_keeps_a_turn_from_its_worker(part: str, length: int) -> None:
    request = request_of(f"chatcmpl-{part * length}-0123abcd", {"nae_session": part}, "m")
    begin = Begin(0, request, ())
    assert Begin.read(unpack(pack(Kind.BEGIN, begin.header(), begin.body()))) == begin


def test_long_ids_are_cut_and_stay_different() -> None:
    ids = [f"{'x' * 5000}{end}" for end in "ab"]
    assert len({bounded(one) for one in ids}) == 2
    assert all(len(bounded(one)) == 256 for one in ids)
    assert bounded(bounded(ids[0])) == bounded(ids[0])
    assert bounded("x" * 256) == "x" * 256


def test_concurrent_http_requests_keep_their_own_headers() -> None:
    seen = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)
        seen[scope["path"]] = _identity.get()

    async def serve() -> None:
        middleware = IdentityMiddleware(app)
        scopes = [
            {"type": "http", "path": name, "headers": [(b"x-tenant-id", name.encode())]}
            for name in ("a", "b")
        ]
        await asyncio.gather(*(asyncio.create_task(middleware(s, None, None)) for s in scopes))

    asyncio.run(serve())
    assert seen == {"a": {"tenant": "a"}, "b": {"tenant": "b"}}


@pytest.mark.parametrize("standing", [True, False])
def test_an_app_runs_behind_the_middleware_whether_or_not_its_own_stands(standing: bool) -> None:
    added: list[Any] = []
    app = SimpleNamespace(
        middleware_stack="its own" if standing else None, add_middleware=added.append
    )
    put_in_front(app)
    assert isinstance(app.middleware_stack, IdentityMiddleware) is standing
    assert added == ([] if standing else [IdentityMiddleware])
