"""The log of requests: what a killed engine had begun is finished by another with the same bits."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fourfold
from fourfold import Chunk, EngineConfig, Request, RequestError, Sampling
from fourfold.engine import log as module
from fourfold.engine.constraint import Constraint
from fourfold.engine.engine import Engine
from fourfold.engine.log import RequestLog
from fourfold.model.transformer import Transformer

ROOT = Path(__file__).parents[2]
PROMPT = list(range(20, 60))


class Said:
    """As much of an answer as the log looks at."""

    def __init__(self, name: str, prompt: list[int], n: int = 1) -> None:
        self.request = Request(prompt=prompt, n=n, sampling=Sampling(seed=5, logit_bias={7: 1.5}), id=name)
        self.prompt_ids, self.limit = prompt, 90
        self.choices = [type("Choice", (), {"index": i, "ids": []})() for i in range(n)]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[list[RequestLog]]:
    logs: list[RequestLog] = []
    yield logs
    for own in logs:
        own.close()


def crash(own: RequestLog) -> None:
    """What the system does when a process is gone: its locks are."""
    assert own._file is not None
    fcntl.flock(own._file, fcntl.LOCK_UN)


def test_what_had_not_ended_is_found_with_its_tokens(tmp_path, opened):
    opened.append(RequestLog(tmp_path))
    one, two, done = Said("one", [1, 2]), Said("two", [3], n=2), Said("done", [4])
    for said in (one, two, done):
        opened[0].begin(said)
    one.choices[0].ids += [10, 11]
    two.choices[1].ids += [12]
    opened[0].progress([one, two, two, done])
    one.choices[0].ids += [13]
    opened[0].progress([one])
    opened[0].end("done")
    opened.append(RequestLog(tmp_path))
    assert opened[1].interrupted == {}  # its engine is alive
    crash(opened[0])
    opened.append(RequestLog(tmp_path))
    found = opened[2].interrupted
    assert {name: lost.ids for name, lost in found.items()} == {"one": ((10, 11, 13),), "two": ((), (12,))}
    request = found["one"].request
    assert (request.prompt, request.max_tokens) == ([1, 2], 90)
    assert (request.sampling, request.id) == (one.request.sampling, "one")


def test_a_second_crash_before_anything_was_resumed_loses_nothing(tmp_path, opened):
    opened.append(RequestLog(tmp_path))
    said = Said("one", [1, 2])
    opened[0].begin(said)
    for _ in range(2):
        crash(opened[-1])
        opened.append(RequestLog(tmp_path))
    assert list(opened[-1].interrupted) == ["one"]
    opened[-1].resume("one")
    said.choices[0].ids += [9]
    opened[-1].progress([said])
    crash(opened[-1])
    opened.append(RequestLog(tmp_path))
    assert opened[-1].found("one").ids == ((9,),)
    opened[-1].end("one")
    crash(opened[-1])
    opened.append(RequestLog(tmp_path))
    assert opened[-1].interrupted == {}


def test_torn_anywhere_the_lines_before_count(tmp_path, opened, capsys):
    opened.append(RequestLog(tmp_path / "whole"))
    said = Said("one", [1, 2])
    opened[0].begin(said)
    for token in range(5):
        said.choices[0].ids.append(token)
        opened[0].progress([said])
    (path,) = (tmp_path / "whole").iterdir()
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    first = len(lines[0])
    for length in range(first, len(data) + 1):
        torn = tmp_path / f"{length}.log"
        torn.write_bytes(data[:length])
        with torn.open("rb") as file:
            (entry,) = module._read(torn, file)
        count = data[:length].count(b"\n") - 1
        assert entry.ids == [list(range(count))]
    assert capsys.readouterr().err == ""
    torn.write_bytes(data[: first + 12] + b"?" + data[first + 13 :])
    with torn.open("rb") as file:
        (entry,) = module._read(torn, file)
    assert entry.ids == [[]]
    assert "line 2 is damaged" in capsys.readouterr().err


def test_names_are_unique_and_unknown_ones_refused(tmp_path, opened):
    opened.append(RequestLog(tmp_path))
    opened[0].begin(Said("one", [1]))
    with pytest.raises(RequestError, match=r"id is 'one'; allowed: another one.* runs"):
        opened[0].begin(Said("one", [1]))
    with pytest.raises(RequestError, match=r"that of an interrupted request \(there is none\)"):
        opened[0].resume("one")


def test_the_file_is_bounded_and_goes_when_nothing_is_left(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(module, "_SPARE", 4000)
    opened.append(RequestLog(tmp_path))
    long = Said("long", [1] * 10)
    opened[0].begin(long)
    for number in range(300):
        said = Said(f"short {number}", [1, 2, 3])
        opened[0].begin(said)
        said.choices[0].ids += range(10)
        long.choices[0].ids += [number]
        opened[0].progress([said, long])
        opened[0].end(f"short {number}")
        (path,) = tmp_path.iterdir()
        assert path.stat().st_size < 4000 + 2 * (2048 + 8 * 330) + 1000
    crash(opened[0])
    opened.append(RequestLog(tmp_path))
    assert opened[1].found("long").ids == (tuple(range(300)),)
    opened[1].end("long")
    opened[1].close()
    assert list(tmp_path.iterdir()) == []


def test_after_a_day_it_is_forgotten(tmp_path, opened, monkeypatch):
    opened.append(RequestLog(tmp_path))
    opened[0].begin(Said("one", [1]))
    crash(opened[0])
    monkeypatch.setattr(module, "_KEPT", 0.0)
    opened.append(RequestLog(tmp_path))
    assert opened[1].interrupted == {}


def test_a_full_disk_is_told_once(tmp_path, opened, monkeypatch, capsys):
    opened.append(RequestLog(tmp_path))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_all", full)
    for name in ("one", "two"):
        opened[0].begin(Said(name, [1]))
    assert capsys.readouterr().err.count("No space left on device") == 1


# Engines.


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Transformer:
    return fourfold.load(tiny_folder, numerics="fast")


def requests() -> dict[str, Request]:
    """Every way to choose tokens that has a state."""
    seeded = Sampling(seed=3, temperature=1.5)
    warm = Sampling(seed=4, repetition_penalty=1.3, presence_penalty=0.5, logit_bias={30: 2.0})
    return {
        "plain": Request(prompt=PROMPT, max_tokens=40, sampling=seeded, id="plain"),
        "two": Request(prompt=PROMPT[:9], max_tokens=40, n=2, sampling=warm, id="two"),
        "regex": Request(
            prompt=PROMPT,
            max_tokens=40,
            sampling=seeded,
            constraint=Constraint.regex("[a-f]{60}"),
            id="regex",
        ),
        "scored": Request(prompt=PROMPT, max_tokens=20, sampling=seeded, logprobs=2, id="scored"),
        "greedy": Request(prompt=PROMPT, max_tokens=40, sampling=Sampling(temperature=0), id="greedy"),
    }


def told(chunks: list[Chunk]) -> dict[int, Any]:
    """What a client has in the end, of each choice."""
    return {
        index: (
            "".join(chunk.text for chunk in chunks if chunk.index == index),
            [(chunk.ids, chunk.logprobs, chunk.finish_reason) for chunk in chunks if chunk.index == index],
        )
        for index in {chunk.index for chunk in chunks}
    }


KILLED = """
import json, sys
import fourfold
from tests.engine.test_log import requests

config = fourfold.EngineConfig(cache_dir=sys.argv[2], step_tokens=64)
engine = fourfold.Engine(fourfold.load(sys.argv[1], numerics="fast"), config)
answers = [engine.submit(request) for request in requests().values()]
while True:
    engine.step()
    print(min(len(answer.ids) for answer in answers), flush=True)
"""


def test_a_killed_engines_requests_are_finished_with_the_same_bits(tiny_folder, tmp_path, model):
    killed = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tiny_folder), str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert killed.stdout is not None
    while int(json.loads(killed.stdout.readline())) < 9:
        pass
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    with Engine(model) as own:
        expected = {name: told(list(own.stream(request))) for name, request in requests().items()}
    with Engine(model, EngineConfig(cache_dir=tmp_path, step_tokens=64)) as own:
        lost = own.interrupted
        assert set(lost) == set(expected)
        assert all(len(ids) >= 9 for found in lost.values() for ids in found.ids)
        generated = own.stats().counters.computed_tokens
        answers = {name: own.resume(name) for name in lost}
        assert own.interrupted == {}
        got = {name: told(list(own.chunks(answer))) for name, answer in answers.items()}
        assert own.stats().counters.computed_tokens > generated
    assert got == expected
    with Engine(model, EngineConfig(cache_dir=tmp_path)) as own:
        assert own.interrupted == {}


def test_a_closed_engine_leaves_what_runs_and_a_cancelled_request_is_forgotten(tmp_path, model):
    first, second = (Request(prompt=PROMPT, max_tokens=9, sampling=Sampling(seed=1), id=i) for i in "ab")
    own = Engine(model, EngineConfig(cache_dir=tmp_path))
    left, given_up = own.submit(first), own.submit(second)
    own.step()
    own.cancel(given_up, wait=True)
    own.close()
    with Engine(model) as other:
        expected = told(list(other.stream(first)))
    with Engine(model, EngineConfig(cache_dir=tmp_path)) as other:
        assert set(other.interrupted) == {"a"}
        with pytest.raises(RequestError, match="was interrupted"):
            other.submit(first)
        assert told(list(other.chunks(other.resume("a")))) == expected
        other.submit(second)
    with Engine(model, EngineConfig(cache_dir=tmp_path)) as other:
        other.forget("b")
        assert other.interrupted == {}
    assert left.finish_reason is None


def test_without_a_folder_nothing_can_be_resumed(model):
    with Engine(model) as own:
        assert own.interrupted == {}
        with pytest.raises(RequestError, match="has no cache_dir"):
            own.resume("a")
        with pytest.raises(RequestError, match="has no cache_dir"):
            own.forget("a")


def test_an_id_is_a_text():
    with pytest.raises(RequestError, match="id is ''; allowed: a text of 1 to 200 characters"):
        Request(prompt=[1], id="")
