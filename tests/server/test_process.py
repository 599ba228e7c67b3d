"""`fourfold serve` as a process: the lines that it prints, real sockets, and its end."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from fourfold.cli.main import main

ASK = [{"role": "user", "content": "Tell me a story."}]
NAME = "fourfold-16m"


@dataclass
class Running:
    """A server process, its address, and the lines that it printed to paste."""

    process: subprocess.Popen[str]
    url: str
    pasted: list[str]

    def log(self) -> list[dict[str, Any]]:
        """What it has logged, when it has ended."""
        assert self.process.stderr is not None
        lines = self.process.stderr.read().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.fixture
def server() -> Iterator[Running]:
    command = [
        sys.executable,
        "-m",
        "fourfold",
        "serve",
        "--port",
        "0",
        "--threads",
        "1",
        "--drain-timeout",
        "120",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pasted = [process.stdout.readline() for _ in range(3)]
        (url,) = re.findall(r"http://127\.0\.0\.1:\d+", pasted[2])
        yield Running(process, url, pasted)
        process.kill()


def test_a_server_from_its_first_request_to_its_last(server, capfd, monkeypatch):
    curl, python, agent = (shlex.split(line) for line in server.pasted)
    if shutil.which("curl"):
        said = subprocess.run(curl, capture_output=True, text=True, check=True, timeout=60)
        assert json.loads(said.stdout)["choices"][0]["message"]["content"]
    body = json.loads(curl[curl.index("-d") + 1])
    reply = httpx2.post(curl[1], json=body, headers={"x-request-id": "pasted"}, timeout=60)
    assert reply.json()["choices"][0]["message"]["content"]
    said = subprocess.run(
        [sys.executable, *python[1:]], capture_output=True, text=True, check=True, timeout=60
    )
    assert said.stdout.strip()
    assert f"ANTHROPIC_BASE_URL={server.url}" in agent

    client: Any = openai.OpenAI(api_key="none", base_url=f"{server.url}/v1", max_retries=0)
    claude: Any = anthropic.Anthropic(api_key="none", base_url=f"{server.url}/anthropic", max_retries=0)
    options = {"seed": 7, "max_tokens": 60}
    whole = client.chat.completions.create(model=NAME, messages=ASK, **options).choices[0].message.content
    stream = client.chat.completions.create(model=NAME, messages=ASK, stream=True, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole
    greedy = claude.messages.create(model=NAME, messages=ASK, max_tokens=40, extra_body={"temperature": 0})
    with claude.messages.stream(
        model=NAME, messages=ASK, max_tokens=40, extra_body={"temperature": 0}
    ) as events:
        assert "".join(events.text_stream) == greedy.content[0].text

    monkeypatch.setattr(sys, "stdin", io.StringIO("Tell me a story.\nGo on.\n"))
    assert main(["chat", "--url", server.url, "-n", "20", "--seed", "1"]) == 0
    shown = capfd.readouterr()
    assert len(shown.out.split("\n")) >= 3 and shown.err.count("in the prompt cached") == 2

    # Who hangs up frees the engine.
    endless = {"model": NAME, "messages": ASK, "stream": True, "ignore_eos": True}
    with httpx2.stream("POST", f"{server.url}/v1/chat/completions", json=endless, timeout=60) as half:
        next(half.iter_lines())
    for _ in range(200):
        if httpx2.get(f"{server.url}/health").json()["running"] == 0:
            break
    else:
        raise AssertionError("the request of a client that has gone still runs")

    # What runs at SIGTERM ends as it would have; nobody else is let in.
    stream = client.chat.completions.create(model=NAME, messages=ASK, stream=True, seed=7, max_tokens=60)
    pieces = [next(stream).choices[0].delta.content or ""]
    server.process.send_signal(signal.SIGTERM)
    pieces += [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == whole
    assert server.process.wait(timeout=130) == 0
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{server.url}/health")
    log = server.log()
    assert [line["event"] for line in log[-3:]].count("stopped") == 1
    assert any(line.get("id") == "pasted" and line["status"] == 200 for line in log)
    assert any(line.get("status") == 499 for line in log)


def test_what_is_wrong_is_told_before_anything_is_loaded(capfd, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for words, told in [
            (["--host", "0.0.0.0"], "add --api-key"),
            (["--host", "0.0.0.0", "--api-key", "short"], "8 ASCII characters"),
            (["--api-key-file", keys], "holds no key"),
            (["--port", taken.getsockname()[1]], "choose another --host or --port"),
            (["--host", "no.such.host.invalid", "--insecure"], "cannot listen"),
        ]:
            assert main(["serve", *map(str, words)]) == 1
            assert told in capfd.readouterr().err


def test_a_chat_with_a_server_that_is_not_there(capfd, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    assert main(["chat", "--url", url]) == 1
    assert "cannot be reached" in capfd.readouterr().err
    assert main(["chat", "--url", "ftp://x"]) == 1
    assert "http://" in capfd.readouterr().err
    for option in ("--threads", "--kv", "--repetition-penalty"):
        assert main(["chat", "--url", url, option, "bf16" if option == "--kv" else "2"]) == 2
        assert f"{option} has no effect with --url" in capfd.readouterr().err


def test_keys_come_from_all_places(tmp_path, monkeypatch):
    from fourfold.cli.serve import KEYS_VARIABLE, _keys

    file = tmp_path / "keys"
    file.write_text("first-key\nsecond-key\n")
    monkeypatch.setitem(os.environ, KEYS_VARIABLE, "third-key  fourth-key")
    other = tmp_path / "others"
    other.write_text("fifth-key\n")
    assert _keys([], [file, other])[-1] == "fifth-key"
    assert _keys(["first-key"], [file]) == ("first-key", "third-key", "fourth-key", "second-key")


def test_a_model_answers_to_its_repo_id_too(tmp_path):
    from fourfold.cli.serve import _repo_id

    assert _repo_id("deepseek-ai/DeepSeek-V4-Flash") == ("deepseek-ai/DeepSeek-V4-Flash",)
    assert _repo_id(None) == _repo_id("folder") == _repo_id(str(tmp_path)) == ()
