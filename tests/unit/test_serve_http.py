"""The HTTP interface over a toy: shapes of OpenAI's API, limits, keys, hostile requests."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("starlette", reason="serving needs the extra `serve`")

from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from bitwright.runtime.continuation import Wish
from bitwright.serving.app import Api, Door
from bitwright.serving.engine import Engine
from tests.unit.serve_toys import Bytes, Faulty, Toys, engine, served, until

KEY = "correct-horse-battery"


@contextmanager
def client(
    toys: Toys | None = None, door: Door | None = None, limits: dict[str, Any] | None = None, **changes: Any
) -> Iterator[tuple[TestClient, Engine]]:
    with engine(toys or Toys(), **(limits or {})) as running:
        api = Api(running, served(**changes), door or Door())
        try:
            with TestClient(api.app(), base_url="http://127.0.0.1:1") as found:
                yield found, running
        finally:
            api.close()


@pytest.fixture(scope="module")
def toy() -> Iterator[TestClient]:
    with client() as (found, _):
        yield found


def _complete(toy: TestClient, **body: Any) -> Any:
    return toy.post("/v1/completions", json=body)


def _chat(toy: TestClient, content: Any, **body: Any) -> Any:
    return toy.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}], **body})


def _events(response: Any) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def _refused(response: Any, status: int, words: str, param: str | None = None) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert words in error["message"]
    assert error["param"] == param
    return error


def test_completions_have_the_shape_of_openai(toy: TestClient) -> None:
    found = _complete(toy, model="toy", prompt="abc", max_tokens=4, temperature=0).json()
    assert found["object"] == "text_completion"
    assert found["id"].startswith("cmpl-")
    assert found["model"] == "toy"
    assert found["choices"] == [{"index": 0, "finish_reason": "length", "logprobs": None, "text": "defg"}]
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert {name: found["usage"][name] for name in usage} == usage
    assert _complete(toy, prompt="w").json()["choices"][0] == {
        "index": 0, "finish_reason": "stop", "logprobs": None, "text": "xyz",
    }  # fmt: skip
    for prompt in ([97, 98], [[97, 98]], ["ab"]):
        assert _complete(toy, prompt=prompt, max_tokens=2).json()["choices"][0]["text"] == "cd"
    assert len(_complete(toy, prompt="a").json()["choices"][0]["text"]) == 16
    cached = _complete(toy, prompt="abcd", max_tokens=1).json()["usage"]["prompt_tokens_details"]
    assert cached["cached_tokens"] == 3


def test_chats_have_the_shape_of_openai(toy: TestClient) -> None:
    found = _chat(toy, "w", logprobs=True, top_logprobs=2).json()
    assert found["object"] == "chat.completion"
    choice = found["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "xyz", "refusal": None}
    first = choice["logprobs"]["content"][0]
    assert (first["token"], first["bytes"], len(first["top_logprobs"])) == ("x", [120], 2)
    assert first["logprob"] == pytest.approx(0, abs=1e-6)
    parts = [{"type": "text", "text": "u"}, {"type": "text", "text": "v"}]
    assert _chat(toy, parts, max_completion_tokens=2).json()["choices"][0]["message"]["content"] == "wx"
    assert found["usage"]["prompt_tokens"] == len("user:w")


def test_streams_join_to_the_whole_answer(toy: TestClient) -> None:
    events = _events(_complete(toy, prompt="u", stream=True, logprobs=1, stream_options={"include_usage": True}))
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == "vwxyz"
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * 5 + ["stop"]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 6
    assert all(event["usage"] is None for event in events[:-1])
    assert [event["choices"][0]["logprobs"]["text_offset"] for event in events[:-1]] == [[0], [1], [2], [3], [4], [5]]
    assert len({event["id"] for event in events}) == 1
    events = _events(_chat(toy, "w", stream=True))
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == "xyz"
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert all("usage" not in event for event in events)


def test_stop_strings_bias_and_seeds_are_heard(toy: TestClient) -> None:
    choice = _complete(toy, prompt="a", stop=["ef", "zz"]).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("bcd", "stop")
    events = _events(_complete(toy, prompt="a", stop="ef", stream=True))
    assert "".join(event["choices"][0]["text"] for event in events) == "bcd"
    assert _complete(toy, prompt="a", max_tokens=1, logit_bias={"113": 100}).json()["choices"][0]["text"] == "q"
    hot = {"prompt": "a", "max_tokens": 12, "temperature": 50, "logit_bias": {"127": -100}}
    first, again, other = (_complete(toy, **hot, seed=seed).json()["choices"][0]["text"] for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert _complete(toy, **{**hot, "top_k": 1}).json()["choices"][0]["text"] == "bcdefghijklm"


@pytest.mark.parametrize(
    ("body", "words", "param"),
    [
        ({}, "Field required", "prompt"),
        ({"prompt": ""}, "no tokens", "prompt"),
        ({"prompt": ["a", "b"]}, "one prompt per request", "prompt"),
        ({"prompt": [5, 128]}, "token ids are 0 to 127", "prompt"),
        ({"prompt": [-1]}, "token ids", "prompt"),
        ({"prompt": [10**400]}, "token ids are", "prompt"),
        ({"prompt": [1, "a"]}, "give a text, or a list of token ids", "prompt"),
        ({"prompt": []}, "no tokens", "prompt"),
        ({"prompt": "a", "temperature": 10**400}, "valid number", "temperature"),
        ({"prompt": "a" * 41}, "at most 40", "prompt"),
        ({"prompt": "\u00fc"}, "cannot be read", None),
        ({"prompt": "a", "max_tokens": 31}, "allows 30", "max_tokens"),
        ({"prompt": "a", "max_tokens": -1}, "greater than or equal", "max_tokens"),
        ({"prompt": "a", "max_tokens": True}, "valid integer", "max_tokens"),
        ({"prompt": "a", "temperature": -0.5}, "greater than or equal to 0", "temperature"),
        ({"prompt": "a", "temperature": "hot"}, "valid number", "temperature"),
        ({"prompt": "a", "n": 2}, "n: not served but for 1", "n"),
        ({"prompt": "a", "echo": True}, "echo", "echo"),
        ({"prompt": "a", "tools": [1]}, "tools: not served", "tools"),
        ({"prompt": "a", "temprature": 1}, "did you mean 'temperature'", "temprature"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "no token id", "logit_bias"),
        ({"prompt": "a", "logit_bias": {"500": 1}}, "the vocabulary has 128", None),
        ({"prompt": "a", "stop": ""}, "at least 1 character", "stop"),
        ({"prompt": "a", "seed": 2**64}, "less than", "seed"),
    ],
)  # fmt: skip
def test_wrong_fields_are_named(toy: TestClient, body: dict[str, Any], words: str, param: str | None) -> None:
    error = _refused(_complete(toy, **body), 400, words, param)
    assert error["type"] == "invalid_request_error"


def test_what_says_nothing_about_the_text_is_ignored(toy: TestClient) -> None:
    extra = {"user": "me", "n": 1, "store": False, "metadata": {"a": "b"}, "suffix": None, "best_of": 1, "tools": []}
    assert _complete(toy, prompt="y", **extra).json()["choices"][0]["text"] == "z"
    _refused(_complete(toy, prompt="y", n=True), 400, "n: not served", "n")
    assert _chat(toy, "y", response_format={"type": "text"}).status_code == 200
    _refused(_chat(toy, "y", response_format={"type": "json_object"}), 400, "response_format", "response_format")


def test_chats_that_a_template_refuses(toy: TestClient) -> None:
    image = [{"type": "image_url", "text": "x"}]
    _refused(_chat(toy, image), 400, "only text", "messages")
    body = {"messages": [{"role": "tool", "content": "x"}]}
    _refused(toy.post("/v1/chat/completions", json=body), 400, "a chat begins with the user")
    plain = Bytes()
    plain.chat_template = ""
    with client(tokenizer=plain) as (bare, _):
        _refused(_chat(bare, "x"), 400, "no chat template", "messages")


def test_paths_models_and_health(toy: TestClient) -> None:
    assert toy.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0, "together": 0}
    assert [card["id"] for card in toy.get("/v1/models").json()["data"]] == ["toy"]
    assert toy.get("/v1/models/toy").json()["context_length"] == 64
    for refused in (toy.get("/v1/models/gpt"), _complete(toy, model="gpt", prompt="a")):
        assert _refused(refused, 404, "this server has 'toy'", "model")["code"] == "model_not_found"
    _refused(toy.get("/v2"), 404, "no such path")
    _refused(toy.get("/v1/completions"), 405, "method")


def test_bodies_are_json_and_bounded() -> None:
    with client(door=Door(body_bytes=200)) as (toy, _):
        head = {"content-type": "application/json"}
        _refused(toy.post("/v1/completions", content=b"{", headers=head), 400, "not JSON")
        _refused(
            toy.post("/v1/completions", content=b'{"prompt":"a","temperature":NaN}', headers=head), 400, "not JSON"
        )
        _refused(toy.post("/v1/completions", content=b"[]", headers=head), 400, "must be a JSON object")
        _refused(toy.post("/v1/completions", content=b"\xff\x00", headers=head), 400, "not JSON")
        _refused(toy.post("/v1/completions", content=b'"\\ud800"', headers=head), 400, "")
        _refused(_complete(toy, prompt="a" * 300), 413, "200 bytes")
        parts = (b" " * 50 for _ in range(10))
        _refused(toy.post("/v1/completions", content=parts, headers=head), 413, "200 bytes")
        _refused(toy.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"}), 415, "JSON")
    deep = b'{"prompt":' + b"[" * 100_000
    with client() as (toy, _):
        _refused(toy.post("/v1/completions", content=deep, headers=head), 400, "not JSON")


def test_keys_and_names_are_checked() -> None:
    with client(door=Door(keys=("another-key", KEY))) as (toy, _):
        assert toy.get("/health").status_code == 200
        for header in (
            {},
            {"authorization": f"Basic {KEY}"},
            {"authorization": "Bearer "},
            {"authorization": KEY[:-1]},
        ):
            refused = toy.get("/v1/models", headers=header)
            _refused(refused, 401, "API key")
            assert refused.headers["www-authenticate"] == "Bearer"
            assert KEY not in refused.text
        assert toy.get("/v1/models", headers={"authorization": f"bearer {KEY}"}).status_code == 200
    with client() as (toy, _):
        assert toy.get("/v1/models", headers={"host": "localhost:80"}).status_code == 200
        assert toy.get("/v1/models", headers={"host": "[::1]:80"}).status_code == 200
        _refused(toy.get("/v1/models", headers={"host": "evil.example:80"}), 403, "localhost")
        assert "access-control-allow-origin" not in toy.get("/health", headers={"origin": "https://a.example"}).headers
    with client(door=Door(origins=("https://a.example",))) as (toy, _):
        found = toy.get("/health", headers={"origin": "https://a.example"}).headers
        assert found["access-control-allow-origin"] == "https://a.example"
        assert "access-control-allow-origin" not in toy.get("/health", headers={"origin": "https://b.example"}).headers


OTHER = "another-good-long-key"


@pytest.mark.parametrize("shared", [False, True])
def test_clients_with_different_keys_share_the_prompt_cache_only_if_that_is_asked_for(shared: bool) -> None:
    def known(toy: TestClient, key: str, prompt: str) -> int:
        headers = {"authorization": f"Bearer {key}"}
        found = toy.post("/v1/completions", json={"prompt": prompt, "max_tokens": 2}, headers=headers).json()
        details: dict[str, int] = found["usage"]["prompt_tokens_details"]
        return details["cached_tokens"]

    with client(door=Door(keys=(KEY, OTHER), shared_cache=shared)) as (toy, running):
        assert known(toy, KEY, "abcdefghij") == 0
        until(lambda: running.load == (0, 0))
        assert known(toy, OTHER, "abcdefghij") == (9 if shared else 0)
        until(lambda: running.load == (0, 0))
        assert known(toy, KEY, "abcdefghijk") == 10
        until(lambda: running.load == (0, 0))
        assert known(toy, OTHER, "abcdefghijk") == 10


def test_metrics_count_what_is_done_and_need_a_key() -> None:
    with client(door=Door(keys=(KEY,))) as (toy, running):
        headers = {"authorization": f"Bearer {KEY}"}
        assert toy.get("/metrics").status_code == 401
        toy.post("/v1/completions", json={"prompt": "abc", "max_tokens": 4}, headers=headers)
        until(lambda: running.load == (0, 0))
        found = toy.get("/metrics", headers=headers)
        assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = dict(line.split(" ") for line in found.text.splitlines() if not line.startswith("#"))
        assert lines == {
            "bitwright_answers_running": "0", "bitwright_answers_waiting": "0", "bitwright_step_rows": "1",
            "bitwright_steps_total": "3", "bitwright_step_rows_total": "3", "bitwright_prompt_tokens_total": "3",
            "bitwright_prompt_tokens_cached_total": "0", "bitwright_generated_tokens_total": "4",
            "bitwright_answers_total": "1", "bitwright_answer_errors_total": "0",
        }  # fmt: skip
        names = [line.split(" ")[2] for line in found.text.splitlines() if line.startswith("# TYPE")]
        assert names == list(lines)


def test_a_full_queue_and_the_end_are_503(caplog: pytest.LogCaptureFixture) -> None:
    toys = Toys(gated=True)
    with client(toys, limits={"parallel": 1, "queue": 0}) as (toy, running):
        ticket = running.submit(Wish((97,), 5), lambda item: None)
        until(lambda: running.load == (1, 0))
        refused = _complete(toy, prompt="b")
        assert _refused(refused, 503, "too many")["code"] == "queue_full"
        assert refused.headers["retry-after"] == "2"
        running.cancel(ticket)
        toys.gate.set()
        until(lambda: running.load == (0, 0))
        running.drain(0)
        assert toy.get("/health").status_code == 503
        assert _refused(_complete(toy, prompt="b", stream=True), 503, "stopping")["type"] == "server_error"


def test_failures_of_the_model_say_nothing_about_the_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with client(Toys(Faulty)) as (toy, _):
        assert _refused(_complete(toy, prompt="a!"), 500, "the server failed")["code"] == "internal_error"
        assert _complete(toy, prompt="confidential", max_tokens=1).status_code == 200
        events = _complete(toy, prompt=" ", max_tokens=3, stream=True).text
        assert json.loads(events.split("\n\n")[0].removeprefix("data: "))["choices"][0]["text"] == "!"
        assert json.loads(events.split("\n\n")[1].removeprefix("data: "))["error"]["code"] == "internal_error"
        assert "[DONE]" not in events
    assert caplog.text.count("RuntimeError while answering") == 2
    assert "cannot read b'" not in caplog.text
    assert "confidential" not in caplog.text
    assert "12 prompt tokens (0 known), 1 drawn, length" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_its_answer(stream: bool) -> None:
    toys = Toys(gated=True)
    toys.gate.set()
    raw = json.dumps({"prompt": "a", "max_tokens": 30, "stream": stream, "logit_bias": {"127": -100}}).encode()
    sent: list[Any] = []

    async def call(running: Engine) -> None:
        left = asyncio.Event()
        bodies = iter([{"type": "http.request", "body": raw, "more_body": False}])

        async def receive() -> Any:
            if (body := next(bodies, None)) is not None:
                return body
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            if b"data" in message.get("body", b""):
                left.set()

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "method": "POST", "headers": headers,
            "path": "/v1/completions", "query_string": b"", "http_version": "1.1", "scheme": "http", "root_path": "",
        }  # fmt: skip
        toys.gate.clear()
        api = Api(running, served(), Door())
        answering = asyncio.create_task(api.app()(scope, receive, send))
        while running.load != (1, 0):
            await asyncio.sleep(0.002)
        left.set()
        await asyncio.wait_for(answering, 20)
        toys.gate.set()
        api.close()

    with engine(toys) as running:
        asyncio.run(call(running))
        until(lambda: running.load == (0, 0))
    assert len(toys.made[0].read) <= 2
    assert not any(b"choices" in message.get("body", b"") for message in sent)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_NAMES = st.sampled_from([
    "best_of", "echo", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens", "messages", "model", "n",
    "presence_penalty", "prompt", "response_format", "seed", "stop", "stream", "stream_options", "temperature", "tools",
    "top_k", "top_logprobs", "top_p", "min_p", "user",
])  # fmt: skip
_GOOD = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.text("abcxyz", min_size=1, max_size=5),
        "messages": st.just([{"role": "user", "content": "hi"}]),
        "stream": st.booleans(),
        "max_tokens": st.integers(1, 4),
        "temperature": st.floats(0, 100),
        "top_p": st.floats(0.01, 1),
        "top_k": st.integers(-1, 200),
        "frequency_penalty": st.floats(-2, 2),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "logit_bias": st.dictionaries(st.integers(0, 140).map(str), st.floats(-100, 100), max_size=3),
        "stop": st.text("bcy", min_size=1, max_size=2),
    },
)


@given(
    path=st.sampled_from(["completions", "chat/completions"]),
    good=_GOOD,
    bad=st.dictionaries(_NAMES, _VALUES, max_size=2),
)
def test_no_body_makes_the_server_fail(toy: TestClient, path: str, good: Any, bad: Any) -> None:
    response = toy.post(f"/v1/{path}", json={**good, **bad})
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"]
    elif {**good, **bad}.get("stream"):
        assert _events(response)
    else:
        assert response.json()["choices"][0]["finish_reason"] in ("stop", "length")


@given(st.binary(max_size=60))
def test_no_bytes_make_the_server_fail(toy: TestClient, raw: bytes) -> None:
    response = toy.post("/v1/completions", content=raw, headers={"content-type": "application/json"})
    _refused(response, 400, "", response.json()["error"]["param"])
