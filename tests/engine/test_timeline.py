"""Traces: what happens to requests, in files that processes share, that end anywhere and grow no further."""

from __future__ import annotations

import fcntl
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fourfold.engine.config import EngineConfig
from fourfold.engine.engine import Engine
from fourfold.engine.request import Request
from fourfold.engine.trace_file import TraceFile
from fourfold.errors import ConfigError


def events(path: Path) -> list[dict[str, Any]]:
    """As readers of the format take them: the closing bracket is absent."""
    return json.loads(path.read_text().rstrip().rstrip(",") + "]")


def told(path: Path, track: str) -> list[tuple[str, str]]:
    """(name, ph) of a request's events, in the order of time."""
    own = [event for event in events(path) if event.get("id") == track]
    return [(event["name"], event["ph"]) for event in sorted(own, key=lambda event: event["ts"])]


def config(path: Path, **more) -> EngineConfig:
    return EngineConfig(
        **{"max_running": 4, "snapshots": 4, "step_tokens": 16, "memory": 2000, "trace_file": path, **more}
    )


def test_the_timeline_of_requests(stub, tmp_path):
    path = tmp_path / "trace.json"
    with Engine(stub, config(path)) as engine:
        prompt = list(range(40, 80))
        list(engine.stream(Request(prompt=prompt, max_tokens=3, ignore_eos=True, label="first")))
        list(engine.stream(Request(prompt=prompt, max_tokens=2, ignore_eos=True, label="second", n=2)))
        stream = engine.stream(Request(prompt="A secret.", max_tokens=50, ignore_eos=True))
        next(stream)
        stream.close()
        stub.poison = {99}
        with pytest.raises(RuntimeError):
            list(engine.stream(Request(prompt=[99], label="melts")))
    chunk = [("prefill", "b"), ("prefill", "e")]
    begin = [("queued", "b"), ("queued", "e"), ("admitted", "n")]
    end = [("first token", "n"), ("decode", "b"), ("decode", "e"), ("finished", "n")]
    assert told(path, "first") == [*begin, *chunk, *chunk, *chunk, *end]
    assert told(path, "second") == told(path, "second choice 1") == [*begin, *chunk, *end]
    found = events(path)
    cached = {event["id"]: event["args"] for event in found if event["name"] == "admitted"}
    assert cached["first"]["cached_tokens"] == 0 and cached["second"]["cached_tokens"] == 39
    reasons = {event["id"]: event["args"]["reason"] for event in found if event["name"] == "finished"}
    assert reasons["first"] == "length" and reasons["melts"] == "RuntimeError"
    assert reasons["request 1"] == "cancelled"
    steps = [event for event in found if event["ph"] == "X"]
    assert sum(step["args"]["prompt_tokens"] for step in steps[:3]) == 40
    assert all(one["ts"] + one["dur"] <= other["ts"] for one, other in pairwise(steps))
    assert "secret" not in path.read_text()


def test_what_is_put_aside_shows(stub, tmp_path):
    path = tmp_path / "trace.json"
    with Engine(stub, config(path, max_running=2, memory=140, snapshots=0)) as engine:
        answers = [
            engine.submit(Request(prompt=[50 + i] * 9, max_tokens=40, ignore_eos=True, label=str(i)))
            for i in range(2)
        ]
        for answer in answers:
            list(engine.chunks(answer))
        assert engine.stats().counters.preempted
    names = told(path, "1")
    first = names.index(("preempted", "b"))
    assert names[first - 1] == ("decode", "e") and names[first + 1] == ("preempted", "e")
    assert ("decode", "b") in names[first:] and names[-1] == ("finished", "n")


def test_a_file_of_several_writers_that_ends_anywhere(tmp_path):
    path = tmp_path / "trace.json"
    one, other = TraceFile(path), TraceFile(path)
    one.write({"a": 1})
    other.write({"b": 2}, {"c": 3})
    assert [*map(list, events(path))][2:] == [["a"], ["b"], ["c"]]
    with path.open("ab") as file:
        file.write(b'{"killed": "in the mi')
    TraceFile(path).write({"d": 4})
    assert [*map(list, events(path))][2:] == [["a"], ["b"], ["c"], ["d"]]


def test_it_grows_no_further(tmp_path):
    path = tmp_path / "trace.json"
    one, other = TraceFile(path, most=2000), TraceFile(path, most=2000)
    for number in range(200):
        (one if number % 3 else other).write({"number": number})
    before = tmp_path / "trace.json.1"
    assert {*tmp_path.iterdir()} == {path, before} and path.stat().st_size <= 2000 >= before.stat().st_size
    numbers = [event["number"] for file in (before, path) for event in events(file)[2:]]
    assert numbers == [*range(numbers[0], 200)]
    TraceFile(path, fresh=True)
    assert len(events(path)) == 2 and events(before)[-1] == {"number": 199}


def test_nobody_waits_for_a_trace(tmp_path):
    path = tmp_path / "trace.json"
    file = TraceFile(path)
    with path.open("ab") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        for number in range(3):
            file.write({"lost": number})
    file.write({"kept": 1})
    assert events(path)[-1] == {"kept": 1} and "lost" not in path.read_text()


def test_a_place_that_cannot_be_written_to(tmp_path, capfd):
    with pytest.raises(ConfigError, match="trace_file"):
        TraceFile(tmp_path / "no folder" / "trace.json")
    folder = tmp_path / "folder"
    folder.mkdir()
    file = TraceFile(folder / "trace.json")
    (folder / "trace.json").unlink()
    folder.rmdir()
    for _ in range(2):
        file.write({"a": 1})
    assert capfd.readouterr().err.count("not traced any more") == 1
