"""Keys, limits, what one client can learn of another, and clients that vanish, wait or send nonsense."""

from __future__ import annotations

import asyncio
import io
import json
import re
from typing import Any

import anthropic
import openai
import pytest

from fourfold.engine.defaults import Recommended
from fourfold.engine.sampler import Sampling
from fourfold.errors import ConfigError
from fourfold.server import ServerConfig
from fourfold.server.access import Quota
from fourfold.server.calls import Log
from fourfold.server.errors import ApiError
from tests.server.conftest import NAME
from tests.server.test_chat import ASK

KEYS = ("a-first-key", "another-key")
BODY = {"model": NAME, "messages": ASK}


def run(work):
    return asyncio.run(work)


async def call(app, path="/v1/chat/completions", *, body=b"", headers=(), receive=None, send=None):
    """One request by plain ASGI: (status, body)."""
    got: list[dict[str, Any]] = []
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def own_receive():
        if not parts:
            await asyncio.Event().wait()
        return parts.pop()

    async def own_send(message):
        got.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(b"content-type", b"application/json"), (b"host", b"server"), *headers],
        "client": ("127.0.0.1", 1),
        "server": ("server", 80),
    }
    await app(scope, receive or own_receive, send or own_send)
    status = next((message["status"] for message in got if "status" in message), None)
    return status, b"".join(message.get("body", b"") for message in got)


def test_a_key_is_needed(serve):
    async def work():
        served = serve(keys=KEYS)
        for key in KEYS:
            assert (await served.openai(key).chat.completions.create(**BODY)).choices
            assert (await served.anthropic(key).messages.create(**BODY, max_tokens=9)).content
        with pytest.raises(openai.AuthenticationError, match="wrong"):
            await served.openai("no-such-key").chat.completions.create(**BODY)
        with pytest.raises(anthropic.AuthenticationError, match="wrong"):
            await served.anthropic("no-such-key").messages.create(**BODY, max_tokens=9)
        http = served.http()
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
            reply = await http.get(path)
            assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
        for path in ("/health", "/ready"):
            assert (await http.get(path)).status_code == 200
        log = served.log.getvalue()
        assert not any(key in log for key in KEYS)
        assert len({line.get("key") for line in served.lines() if line["status"] == 200}) == 2

    run(work())


@pytest.mark.parametrize(("scope", "hit"), [("key", False), ("global", True)])
def test_one_key_does_not_see_what_another_has_cached(serve, scope, hit):
    async def work():
        served = serve(keys=KEYS, cache_scope=scope)
        found = []
        for key in (KEYS[0], KEYS[1], KEYS[0]):
            answer = await served.openai(key).chat.completions.create(**BODY)
            found.append(answer.usage.prompt_cache_hit_tokens > 0)
        assert found == [False, hit, True]

    run(work())


def test_the_log_has_no_text_unless_asked(serve):
    async def work():
        for wanted in (False, True):
            served = serve("A secret answer.", log_prompts=wanted)
            http = served.http()
            await http.post("/v1/chat/completions", json=BODY, headers={"x-request-id": "mine-1"})
            await http.post("/v1/completions", json={"model": NAME, "prompt": "all of it"})
            for wrong in ({"temperature": "A secret answer."}, {"logit_bias": {"A secret answer.": 1}}):
                reply = await http.post("/v1/chat/completions", json={**BODY, **wrong})
                assert "secret answer" in reply.json()["error"]["message"]
            log = served.log.getvalue()
            assert ("secret answer" in log) == wanted and ("all of it" in log) == wanted
            line = served.lines()[0]
            assert line["id"] == "mine-1" and line["completion_tokens"] > 3 and line["finish"] == ["stop"]

    run(work())


def test_limits_of_a_key(serve):
    async def work():
        served = serve(None, keys=KEYS, key_running=1, key_rate=3)
        first, second = served.openai(KEYS[0]), served.openai(KEYS[1])
        running = asyncio.ensure_future(first.chat.completions.create(**BODY, max_tokens=400))
        await until(lambda: served.engine.stats().running == 1)
        with pytest.raises(openai.RateLimitError, match="1 requests") as refused:
            await first.chat.completions.create(**BODY)
        assert refused.value.response.headers["retry-after"] == "1"
        assert (await second.chat.completions.create(**BODY, max_tokens=2)).choices
        await running
        for _ in range(2):
            await first.chat.completions.create(**BODY, max_tokens=1)
        with pytest.raises(openai.RateLimitError, match="3 requests of a minute") as refused:
            await first.chat.completions.create(**BODY)
        assert 1 < int(refused.value.response.headers["retry-after"]) <= 20

    run(work())


def test_a_bucket_fills_evenly():
    now = [0.0]
    quota = Quota(0, 2, clock=lambda: now[0])
    for wait, ok in [
        (0, True),
        (0, True),
        (0, False),
        (29, False),
        (1, True),
        (0, False),
        (600, True),
        (0, True),
    ]:
        now[0] += wait
        if ok:
            with quota.request("k"):
                continue
        with pytest.raises(ApiError) as refused, quota.request("k"):
            pass
        assert refused.value.status == 429 and 0 < (refused.value.retry_after or 0) <= 30
    with quota.request("other"):
        pass


async def until(true):
    """Wait until something is so."""
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came")


def test_overload_is_told_before_it_hurts(serve):
    async def work():
        served = serve(None, waiting=3)
        client, stats = served.openai(), served.engine.stats
        endless = {**BODY, "max_tokens": 5000, "extra_body": {"ignore_eos": True}}
        many = []
        for running, waiting in [*((n + 1, 0) for n in range(8)), (8, 1), (8, 2), (8, 3)]:
            many.append(asyncio.ensure_future(client.chat.completions.create(**endless)))
            await until(lambda now=(running, waiting): (stats().running, stats().waiting) == now)
        assert (await served.http().get("/ready")).status_code == 503
        with pytest.raises(openai.InternalServerError, match="overloaded") as refused:
            await client.chat.completions.create(**BODY)
        assert refused.value.status_code == 503 and refused.value.response.headers["retry-after"]
        assert stats().running == 8 and not any(task.done() for task in many)
        for task in many:
            task.cancel()
        await asyncio.gather(*many, return_exceptions=True)
        await until(served.idle)
        assert (await served.http().get("/ready")).status_code == 200

    run(work())


def test_large_and_endless_bodies(serve):
    async def work():
        served = serve(body_bytes=2000)
        reply = await served.http().post("/v1/chat/completions", json={**BODY, "user": "x" * 3000})
        assert reply.status_code == 413 and "2,000 bytes" in reply.json()["error"]["message"]
        pieces = [0]

        async def endless():
            pieces[0] += 1
            return {"type": "http.request", "body": b" " * 100, "more_body": True}

        status, _ = await call(served.app, receive=endless)
        assert status == 413 and pieces[0] == 21
        reply = await served.http().post("/v1/messages", json={**BODY, "metadata": {"x": "x" * 3000}})
        assert reply.json()["error"]["type"] == "request_too_large"
        served = serve(messages=2)
        reply = await served.http().post("/v1/chat/completions", json={**BODY, "messages": ASK * 3})
        assert reply.status_code == 413 and "3 messages" in reply.json()["error"]["message"]

    run(work())


@pytest.mark.parametrize("stream", [True, False])
def test_who_vanishes_costs_one_step_more_at_most(serve, stream):
    async def work():
        served = serve(None)
        gone, sent = asyncio.Event(), []
        parts = [json.dumps({**BODY, "stream": stream, "ignore_eos": True}).encode()]

        async def receive():
            if parts:
                return {"type": "http.request", "body": parts.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        task = asyncio.ensure_future(call(served.app, receive=receive, send=send))
        await until(lambda: served.engine.stats().counters.steps > 5)
        gone.set()
        await task
        steps = served.engine.stats().counters.steps
        await until(served.idle)
        # One may have begun before we looked, and another before the engine heard of it.
        assert served.engine.stats().counters.steps <= steps + 2
        assert served.lines()[-1]["status"] == 499

    run(work())


def test_a_long_prefill_is_kept_alive(serve):
    async def work():
        served = serve("Hello.", keep_alive=0.01)
        slow = served.model.paged_streams

        def paged_streams(*arguments):
            import time

            time.sleep(0.03)
            return slow(*arguments)

        served.model.paged_streams = paged_streams
        _, body = await call(served.app, body=json.dumps({**BODY, "stream": True}).encode())
        assert body.startswith(b": keep-alive\n\n") and b'"content":"H' in body
        # No client stumbles over them.
        stream = await served.openai().chat.completions.create(**BODY, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Hello."
        async with served.anthropic().messages.stream(**BODY, max_tokens=99) as stream:
            assert await stream.get_final_text() == "Hello."

    run(work())


def test_who_does_not_read_is_given_up(serve):
    async def work():
        served = serve(None, slow_reader=0.05)
        sent = 0

        async def send(message):
            nonlocal sent
            sent += 1
            if sent > 4:
                await asyncio.Event().wait()

        await call(served.app, body=json.dumps({**BODY, "stream": True}).encode(), send=send)
        await until(served.idle)
        assert "nobody read" in served.lines()[-1]["error"]
        assert b"fourfold:slow_readers_total" in served.server.metrics.text()

    run(work())


def test_pages_of_others_are_kept_out(serve):
    async def work():
        served = serve(hosts=("localhost", "127.0.0.1", "::1"))
        http = served.http()
        for host, status in [
            ("evil.example", 403),
            ("localhost:8000", 200),
            ("[::1]:8000", 200),
            ("127.0.0.1", 200),
        ]:
            assert (await http.get("/v1/models", headers={"host": host})).status_code == status
        # Neither a plain form nor a preflight gets through.
        own = {"host": "localhost"}
        reply = await http.post(
            "/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain", **own}
        )
        assert reply.status_code == 415
        asked = {"origin": "https://evil.example", "access-control-request-method": "POST", **own}
        reply = await http.options("/v1/chat/completions", headers=asked)
        assert reply.status_code == 405 and "access-control-allow-origin" not in reply.headers
        page = "https://mine.example"
        served = serve(origins=(page,), keys=KEYS)
        reply = await served.http().options("/v1/chat/completions", headers={**asked, "origin": page})
        assert reply.headers["access-control-allow-origin"] == page

    run(work())


def test_metrics_are_those_of_the_requests(serve):
    async def work():
        served = serve("Hello.")
        client = served.openai()
        for _ in range(2):
            answer = await client.chat.completions.create(**BODY)
        text = (await served.http().get("/metrics")).text

        def value(name):
            (found,) = re.findall(rf"^fourfold:{name}(?:{{[^}}]*}})? (\S+)$", text, re.M)
            return float(found)

        assert value("prompt_tokens_total") == 2 * answer.usage.prompt_tokens
        assert value("generation_tokens_total") == 2 * answer.usage.completion_tokens
        assert value("prefix_cache_hits_total") == answer.usage.prompt_cache_hit_tokens
        assert value("time_to_first_token_seconds_count") == 2
        assert value("inter_token_latency_seconds_count") == 2 * (answer.usage.completion_tokens - 1)
        assert value("num_requests_running") == 0
        await served.http().get("/some/path/that/a/client/made/up")
        text = (await served.http().get("/metrics")).text
        assert 'path="other",status="404"' in text and "made" not in text

    run(work())


def test_operations(serve):
    async def work():
        served = serve(aliases=("gpt-4", "org/model"))
        client = served.openai()
        assert [model.id async for model in client.models.list()] == [NAME, "gpt-4", "org/model"]
        assert (await client.models.retrieve("org/model")).id == "org/model"
        assert (await client.chat.completions.create(model="gpt-4", messages=ASK)).model == "gpt-4"
        http = served.http()
        assert (await http.get("/version")).json()["version"]
        reply = await http.post("/tokenize", json={"prompt": "a <｜User｜> b", "return_token_strs": True})
        found = reply.json()
        assert found["tokens"][0] == 0 and found["count"] == len(found["tokens"]) == len(found["token_strs"])
        assert served.model.tokenizer.special_ids["<｜User｜>"] not in found["tokens"]
        text = (await http.post("/detokenize", json={"tokens": found["tokens"][1:]})).json()["prompt"]
        assert text == "a <｜User｜> b"
        asked = (await http.post("/tokenize", json={"messages": ASK})).json()
        assert asked["prompt"].endswith("<｜Assistant｜></think>")
        answer = await client.chat.completions.create(model=NAME, messages=ASK)
        assert asked["count"] == answer.usage.prompt_tokens
        for body in ({"tokens": [100_000]}, {"tokens": [-1]}, {"tokens": "x"}):
            assert (await http.post("/detokenize", json=body)).status_code in (400, 422)
        assert (await http.post("/tokenize", json={})).status_code == 400
        served.server.draining = True
        assert (await http.get("/ready")).status_code == 503
        assert (await http.post("/v1/chat/completions", json=BODY)).status_code == 503

    run(work())


def test_what_the_checkpoint_recommends_holds_where_a_request_says_nothing(serve):
    async def work():
        advice = Recommended(sampling=Sampling(temperature=0.5, repetition_penalty=1.2), max_tokens=5)
        served = serve(None, recommended=advice)
        client = served.openai()
        assert (await client.chat.completions.create(**BODY)).usage.completion_tokens == 5
        answer = await client.chat.completions.create(**BODY, max_tokens=9, seed=3)
        assert answer.usage.completion_tokens == 9
        # Another end of answers than config.json's.
        (full_stop,) = served.model.tokenizer.encode(".")
        served = serve("One. Two.", recommended=Recommended(stop_tokens=(full_stop,)))
        for more, text in (({}, "One"), ({"ignore_eos": True}, "One. Two.")):
            answer = await served.openai().chat.completions.create(**BODY, max_tokens=20, extra_body=more)
            assert answer.choices[0].message.content.startswith(text)
            assert (answer.choices[0].message.content == "One") == (text == "One")
        served = serve(None, recommended=advice, answer_tokens=2)
        answer = await served.openai().chat.completions.create(**BODY)
        assert answer.usage.completion_tokens == 2

    run(work())


def test_lines_of_words():
    out = io.StringIO()
    log = Log("text", out)
    log.write("request", id="a\nb", status=200, finish=["stop"])
    (line,) = out.getvalue().splitlines()
    assert line.split(" ", 1)[1] == r'request id="a\nb" status=200 finish=["stop"]'


@pytest.mark.parametrize(
    "wrong", [{"keys": ("short",)}, {"waiting": -1}, {"answer_tokens": 0}, {"keep_alive": 0}], ids=str
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(ConfigError):
        ServerConfig(name="x", **wrong)


def test_a_trace_tells_of_requests_from_their_first_byte_to_their_last(serve, tmp_path):
    async def work():
        path = tmp_path / "trace.json"
        served = serve("A secret answer.", trace_file=path)
        http = served.http()
        await http.post("/v1/chat/completions", json=BODY, headers={"x-request-id": "mine"})
        await http.post("/v1/chat/completions", json={}, headers={"x-request-id": "wrong"})
        await http.get("/v1/models")
        events = [json.loads(line.rstrip(",")) for line in path.read_text().splitlines()[1:]]
        spans = [(one["id"], one["ph"], one["args"]) for one in events if one["name"] == "request"]
        assert [span[:2] for span in spans] == [("mine", "b"), ("mine", "e"), ("wrong", "b"), ("wrong", "e")]
        assert spans[1][2]["status"] == 200 and spans[1][2]["completion_tokens"] > 3
        assert spans[3][2]["status"] == 422 and "secret" not in path.read_text()

    run(work())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", BODY),
        ("/v1/completions", {"model": NAME, "prompt": "a"}),
        ("/v1/responses", {"model": NAME, "input": "a"}),
        ("/v1/messages", {**BODY, "max_tokens": 9}),
    ],
)
def test_each_refusal_has_the_shape_of_its_protocol(serve, path, body):
    claude = path == "/v1/messages"

    async def work():
        served = serve("a", keys=KEYS, hosts=("server",), body_bytes=2000, key_rate=5, waiting=1)
        http = served.http(headers={"x-api-key": KEYS[0]})

        async def told(status, kind, wait=False, **more):
            reply = await http.post(path, **{"json": body, **more})
            assert reply.status_code == status, reply.text
            document = reply.json()
            assert document["error"]["message"] and ("retry-after" in reply.headers) == wait
            if claude:
                assert document["type"] == "error" and document["error"]["type"] == kind
                assert set(document["error"]) == {"type", "message"} and document["request_id"]
            else:
                assert set(document) == {"error"}
                assert set(document["error"]) == {"message", "type", "param", "code"}

        await told(401, "authentication_error", headers={"x-api-key": "no-such-key"})
        await told(403, "permission_error", headers={"host": "evil.example"})
        await told(413, "request_too_large", json={**body, "x": "y" * 3000})
        await told(404, "not_found_error", json={**body, "model": "another"})
        await told(400, "invalid_request_error", json={**body, "colour": "red"})
        await told(400 if claude else 422, "invalid_request_error", json={**body, "temperature": "hot"})
        served.server.draining = True
        await told(503, "overloaded_error", wait=True)
        await told(429, "rate_limit_error", wait=True)

    run(work())


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "stub", "messages": ' + b"[" * 100_000,
        b'{"model": "stub", "metadata": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b', "messages": []}',
        b"\xff\xfe{}",
        b"[1, 2]",
        b"null",
        b'{"model": "stub", "messages": [], "seed": ' + b"9" * 5000 + b"}",
    ],
    ids=["open brackets", "nested", "no UTF-8", "a list", "null", "a long number"],
)
def test_bodies_that_are_no_request_are_no_mistake_of_ours(serve, body):
    async def work():
        served = serve()
        for path in ("/v1/chat/completions", "/v1/messages"):
            reply = await served.http().post(path, content=body, headers={"content-type": "application/json"})
            assert 400 <= reply.status_code < 500, reply.text
            assert reply.json()["error"]["message"]

    run(work())
