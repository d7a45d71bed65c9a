from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tiny_nla
import torch

from nae_monitor.decode import load_nla, open_av
from nae_monitor.decode.engines.http import MAX_RESPONSE_BYTES
from nae_monitor.decode.engines.torch_engine import TorchEngine
from nae_monitor.decode.prompts import PromptBatch, Sampling
from nae_monitor.decode.verbalizer import Verbalizer, load_verbalizer
from nae_monitor.decode.weights import load_causal_lm
from nae_monitor.errors import AbandonedError, EngineError
from nae_monitor.settings import NlaSettings

CPU = torch.device("cpu")
Answer = tuple[int, bytes]


class Double:
    """A loopback server that speaks both protocols, backed by a real tiny verbalizer.

    ``script`` may replace the first answers: a status and body, or None to hang until the end.
    """

    def __init__(self, tiny: Any) -> None:
        checkpoint = open_av(tiny.official[0], tiny.resolve)
        model = load_causal_lm(checkpoint.source, dtype=torch.float32, device=CPU)
        self.engine = TorchEngine(model, checkpoint.tokenizer, batch_size=1)
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.embeddings: list[torch.Tensor] = []
        self.script: list[Answer | None] = []
        self.info: dict[str, Any] | None = {"disable_radix_cache": True}
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> Answer | None:
        with self._lock:
            self.requests.append((path, body))
            if self.script:
                return self.script.pop(0)
        if path == "/v1/completions":
            # The double reads with weights_only, as the server does.
            data = base64.b64decode(body["prompt_embeds"])
            embeddings = torch.load(io.BytesIO(data), weights_only=True)
            sampling = Sampling(body["max_tokens"], body["temperature"], (body.get("seed", 0),))
        elif path == "/generate":
            embeddings = torch.tensor(body["input_embeds"], dtype=torch.float32)
            options = body["sampling_params"]
            seeds = (options.get("sampling_seed", 0),)
            sampling = Sampling(options["max_new_tokens"], options["temperature"], seeds)
        else:
            return 404, b"{}"
        with self._lock:
            self.embeddings.append(embeddings)
            done = self.engine.generate(PromptBatch(embeddings[None], 0), sampling)[0]
        if path == "/generate":
            found: dict[str, Any] = {
                "text": done.text,
                "meta_info": {"completion_tokens": done.tokens},
            }
        else:
            choice = {"index": 0, "text": done.text, "finish_reason": "stop"}
            found = {"choices": [choice], "usage": {"completion_tokens": done.tokens}}
        return 200, json.dumps(found).encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/get_server_info" and double.info is not None:
                    self.reply((200, json.dumps(double.info).encode()))
                else:
                    self.reply((404, b"{}"))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.reply(double.answer(self.path, body))

            def reply(self, answer: Answer | None) -> None:
                if answer is None:
                    double.over.wait()
                    self.close_connection = True
                    return
                status, content = answer
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                pass

        return Handler


@pytest.fixture
def double(tiny_of: Callable[[str], Any]) -> Iterator[Double]:
    made = Double(tiny_of("gemma3"))
    yield made
    made.close()


@pytest.fixture
def gemma(tiny_of: Callable[[str], Any]) -> Any:
    return tiny_of("gemma3")


def remote(kind: str, double: Double, tiny: Any, timeout_s: float = 20.0) -> Verbalizer:
    checkpoint = open_av(tiny.official[0], tiny.resolve)
    options = NlaSettings(engine=f"{kind}:{double.url}", timeout_s=timeout_s)
    return load_verbalizer(checkpoint, options, dtype=torch.float32, device=CPU)


def local(tiny: Any) -> Verbalizer:
    checkpoint = open_av(tiny.official[0], tiny.resolve)
    return load_verbalizer(checkpoint, NlaSettings(), dtype=torch.float32, device=CPU)


def vectors(count: int) -> torch.Tensor:
    return 3 * torch.randn(count, tiny_nla.D, generator=torch.Generator().manual_seed(1))


kinds = pytest.mark.parametrize("kind", ["vllm", "sglang"])


@kinds
def test_texts_over_http_equal_the_local_engines(kind: str, double: Double, gemma: Any) -> None:
    batch = vectors(5)
    over_http = remote(kind, double, gemma).decode(batch, max_new_tokens=10)
    here = local(gemma).decode(batch, max_new_tokens=10)
    assert [(d.text, d.closed, d.tokens) for d in over_http] == [
        (d.text, d.closed, d.tokens) for d in here
    ]


@kinds
def test_the_bytes_on_the_wire_are_exactly_the_prompt_embeddings(
    kind: str, double: Double, gemma: Any
) -> None:
    verbalizer = remote(kind, double, gemma)
    batch = vectors(1)
    verbalizer.decode(batch, max_new_tokens=3)
    expected = local(gemma)._prompts.build(batch).embeddings[0]
    assert double.embeddings[0].dtype == torch.float32
    assert torch.equal(double.embeddings[0], expected)


def test_vllm_requests_stop_at_the_tag_and_carry_no_token_ids(double: Double, gemma: Any) -> None:
    remote("vllm", double, gemma).decode(vectors(1), max_new_tokens=3)
    path, body = double.requests[0]
    assert path == "/v1/completions"
    assert body["stop"] == ["</explanation>"]
    assert body["include_stop_str_in_output"] is True
    assert not {"prompt", "seed", "model"} & set(body)


def test_a_vllm_request_holds_one_prompt_and_not_its_batch(double: Double, gemma: Any) -> None:
    """A saved view would drag the whole batch's storage along."""
    verbalizer = remote("vllm", double, gemma)
    verbalizer.decode(vectors(1), max_new_tokens=1)
    verbalizer.decode(vectors(8), max_new_tokens=1)
    sizes = {len(body["prompt_embeds"]) for _, body in double.requests}
    assert max(sizes) - min(sizes) < 64


def test_a_fragment_of_the_url_names_the_served_model(double: Double, gemma: Any) -> None:
    double.url += "#my-av"
    remote("vllm", double, gemma).decode(vectors(1), max_new_tokens=1)
    assert double.requests[0][1]["model"] == "my-av"


def test_sglang_requests_stop_at_the_tag_and_carry_no_token_ids(double: Double, gemma: Any) -> None:
    remote("sglang", double, gemma).decode(vectors(1), max_new_tokens=3)
    path, body = double.requests[0]
    assert path == "/generate"
    assert set(body) == {"input_embeds", "sampling_params"}
    assert body["sampling_params"]["stop"] == ["</explanation>"]
    assert body["sampling_params"]["no_stop_trim"] is True


@pytest.mark.parametrize(("kind", "place"), [("vllm", "seed"), ("sglang", "sampling_seed")])
def test_each_sample_carries_its_own_seed(
    kind: str, place: str, double: Double, gemma: Any
) -> None:
    remote(kind, double, gemma).decode(
        vectors(3), max_new_tokens=2, temperature=0.8, seeds=[4, 5, 6]
    )
    bodies = [body.get("sampling_params", body) for _, body in double.requests]
    assert sorted(body[place] for body in bodies) == [4, 5, 6]
    assert {body["temperature"] for body in bodies} == {0.8}


@kinds
def test_a_server_that_fails_twice_is_asked_again(kind: str, double: Double, gemma: Any) -> None:
    double.script = [(503, b"busy"), (500, b"{}")]
    assert len(remote(kind, double, gemma).decode(vectors(1), max_new_tokens=2)) == 1
    assert len(double.requests) == 3


@kinds
def test_a_server_that_never_answers_is_given_up_at_the_deadline(
    kind: str, double: Double, gemma: Any
) -> None:
    double.script = [None] * 10
    with pytest.raises(EngineError, match="in time"):
        remote(kind, double, gemma, timeout_s=0.4).decode(vectors(2))
    assert not double.over.is_set()  # it was still being silent


@kinds
def test_a_dead_server_is_an_engine_error(kind: str, double: Double, gemma: Any) -> None:
    verbalizer = remote(kind, double, gemma, timeout_s=0.3)
    double.close()
    with pytest.raises(EngineError, match="in time"):
        verbalizer.decode(vectors(1))


@kinds
@pytest.mark.parametrize(
    "content",
    [b"<html>", b"[]", b"{}", b'{"text": 3, "choices": [{"text": null}]}', b"[" * 100_000],
)
def test_a_garbage_answer_is_an_engine_error_that_does_not_quote_it(
    kind: str, content: bytes, double: Double, gemma: Any
) -> None:
    double.script = [(200, content)]
    with pytest.raises(EngineError) as caught:
        remote(kind, double, gemma).decode(vectors(1))
    assert "html" not in str(caught.value)
    assert len(double.requests) == 1


@kinds
def test_an_oversize_answer_is_refused(kind: str, double: Double, gemma: Any) -> None:
    double.script = [(200, b" " * (MAX_RESPONSE_BYTES + 1))]
    with pytest.raises(EngineError, match="larger"):
        remote(kind, double, gemma).decode(vectors(1))


@kinds
@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_a_refusal_is_not_retried(kind: str, status: int, double: Double, gemma: Any) -> None:
    double.script = [(status, b"secret prompt")]
    with pytest.raises(EngineError) as caught:
        remote(kind, double, gemma).decode(vectors(1))
    assert "secret" not in str(caught.value)
    assert len(double.requests) == 1


def test_sglang_with_its_radix_cache_on_is_refused(double: Double, gemma: Any) -> None:
    double.info = {"disable_radix_cache": False}
    with pytest.raises(EngineError, match="disable-radix-cache"):
        remote("sglang", double, gemma).decode(vectors(1))
    assert double.requests == []


def test_sglang_that_says_nothing_of_its_cache_is_warned_about_once(
    double: Double, gemma: Any, caplog: pytest.LogCaptureFixture
) -> None:
    double.info = None
    verbalizer = remote("sglang", double, gemma)
    verbalizer.decode(vectors(1), max_new_tokens=1)
    verbalizer.decode(vectors(1), max_new_tokens=1)
    assert sum("radix" in record.message for record in caplog.records) == 1


def test_a_pair_decodes_over_http_with_fidelity(double: Double, gemma: Any) -> None:
    nla = load_nla(
        *gemma.official,
        settings=NlaSettings(engine=f"vllm:{double.url}", max_new_tokens=6, device="cpu"),
        resolve_base=gemma.resolve,
    )
    (found,) = nla.decode(vectors(1))
    assert found.fve is not None


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_decode_that_is_given_up_ends_and_the_next_one_is_whole(
    tiny_of: Callable[[str], Any], tmp_path: Path, is_frozen: bool
) -> None:
    tiny = tiny_of("llama")
    endless = tiny_nla.write_endless(tiny.official[0], tmp_path / "endless")
    checkpoint = open_av(endless, tiny.resolve)
    model = load_causal_lm(checkpoint.source, dtype=torch.float32, device=CPU)
    engine = TorchEngine(model, checkpoint.tokenizer, batch_size=2, is_frozen=is_frozen)
    batch = PromptBatch(torch.randn(3, 7, tiny_nla.D, generator=torch.Generator()), 0)
    before = engine.generate(batch, Sampling(8))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(engine.generate, batch, Sampling(100_000))
        while not running.done():
            assert engine.abandon()  # before it has begun there is nothing to give up
            time.sleep(0.01)
        with pytest.raises(AbandonedError):
            running.result()
    assert engine.generate(batch, Sampling(8)) == before


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_remote_decode_cannot_be_given_up(engine: str, tiny: Any) -> None:
    checkpoint = open_av(tiny.official[0], tiny.resolve)
    settings = NlaSettings(engine=f"{engine}:http://127.0.0.1:9")
    remote = load_verbalizer(checkpoint, settings, dtype=torch.float32, device=CPU)
    assert remote.abandon() is False
