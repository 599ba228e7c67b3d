"""The cache on disk behind an engine: the same bits in a new process, whatever happened to the one before."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import fourfold
from fourfold import ConfigError, EngineConfig
from fourfold.engine import disk, disk_folder
from fourfold.engine.disk_format import write_whole
from fourfold.engine.engine import Engine
from fourfold.engine.fingerprint import cache_facts
from fourfold.kernels import cpu
from fourfold.model.transformer import Transformer
from tests.engine.served import serve

ROOT = Path(__file__).parents[2]


def words(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, 400, (count,), generator=generator).tolist()


SYSTEM = words(140, 1)
PROMPTS = [SYSTEM + words(20, 2), SYSTEM + words(150, 3), words(70, 4), SYSTEM + words(20, 2) + words(9, 5)]


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Transformer:
    return fourfold.load(tiny_folder, numerics="fast")


@pytest.fixture(scope="module")
def alone(model: Transformer) -> list[dict[str, Any]]:
    return [serve(model, None, [prompt], first=n, snapshots=0)[0] for n, prompt in enumerate(PROMPTS)]


def check(got: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    what = ("ids", "logits") if cpu.available() else ("ids",)
    for one, right in zip(got, expected, strict=True):
        assert [one[name] for name in what] == [right[name] for name in what]


def begin(folder: Path, cache: Path, times: int) -> subprocess.Popen[str]:
    served = [sys.executable, "-m", "tests.engine.served"]
    command = [*served, str(folder), "fast", str(cache), json.dumps(PROMPTS), str(times)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_two_processes_at_once_one_of_them_killed_and_a_third_that_finds_it_all(
    tiny_folder, tmp_path, model, alone
):
    killed, other = begin(tiny_folder, tmp_path, 1000), begin(tiny_folder, tmp_path, 1)
    assert killed.stdout is not None
    check(json.loads(killed.stdout.readline()), alone)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    said, _ = other.communicate()
    check(json.loads(said), alone)
    said, _ = begin(tiny_folder, tmp_path, 1).communicate()
    third = json.loads(said)
    check(third, alone)
    assert [one["cached"] for one in third] == [len(prompt) - 1 for prompt in PROMPTS]
    # And as this process' key is theirs, what they left is found here, too.
    here = serve(model, str(tmp_path), PROMPTS)
    check(here, alone)
    assert [one["cached"] for one in here] == [len(prompt) - 1 for prompt in PROMPTS]


def test_preempted_requests_and_a_memory_that_holds_one_sequence(tmp_path, model, alone):
    """Room for three blocks and two snapshots: what does not stay in memory comes from disk."""
    shape = model.cache_shape
    values = {"max_running": 2, "snapshots": 2, "step_tokens": 60, "saved_memory": 1 << 30}
    fixed = EngineConfig(**{**values, "memory": None})._fixed(shape)
    values["memory"] = fixed + 4 * shape.block_bytes
    for _ in range(3):
        check(serve(model, str(tmp_path), PROMPTS, **values), alone)


def test_damaged_files_are_named_and_the_answers_are_right(tmp_path, model, alone, capsys):
    serve(model, str(tmp_path), PROMPTS)
    files = [path for path in tmp_path.rglob("*") if path.suffix in (".block", ".state")]
    for number, path in enumerate(files):
        data = bytearray(path.read_bytes())
        data[number * 997 % len(data)] ^= 16
        path.write_bytes(data)
    named: list[str] = []
    # A file is found damaged when it is first asked for, and then written again.
    said = [""]
    while said:
        check(serve(model, str(tmp_path), PROMPTS), alone)
        said = [line for line in capsys.readouterr().err.splitlines() if "its checksum is wrong" in line]
        named += said
    assert len(set(named)) == len(named)
    assert len(named) > 4


def test_a_full_disk_is_told_once_and_the_engine_serves_on(tmp_path, model, alone, monkeypatch, capsys):
    written: list[Path] = []

    def full(path: Path, parts: object) -> None:
        if len(written) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        write_whole(path, parts)

    monkeypatch.setattr(disk_folder, "write_whole", full)
    check(serve(model, str(tmp_path), PROMPTS), alone)
    said = capsys.readouterr().err
    assert said.count("cannot be written to (No space left on device)") == 1
    assert not list(tmp_path.rglob("*.unfinished"))


def test_a_disk_that_cannot_keep_up_is_not_waited_for(tmp_path, model, alone, monkeypatch):
    stuck = threading.Event()

    def slow(path: Path, parts: Any) -> None:
        stuck.wait(60)
        write_whole(path, parts)

    with Engine(model, EngineConfig(cache_dir=tmp_path, step_tokens=64, max_running=3)) as own:
        monkeypatch.setattr(disk, "_WAITING", 2 * model.cache_shape.slot_bytes)
        monkeypatch.setattr(disk_folder, "write_whole", slow)
        for prompt in PROMPTS:
            list(own.stream(fourfold.Request(prompt=prompt, max_tokens=2)))
        stuck.set()
    states = list(tmp_path.rglob("*.state"))
    assert 1 <= len(states) <= 3
    check(serve(model, str(tmp_path), PROMPTS), alone)


def test_a_size_that_holds_no_state_is_refused(tmp_path, model):
    with pytest.raises(ConfigError, match=r"cache_size is 1.0 KiB; allowed: .* and more"):
        Engine(model, EngineConfig(cache_dir=tmp_path, cache_size="1KiB"))


def test_the_key_names_all_that_the_bits_depend_on(tiny_folder, model):
    facts = cache_facts(model)
    assert cache_facts(fourfold.load(tiny_folder, numerics="fast")) == facts
    deployed = cache_facts(fourfold.load(tiny_folder, numerics="deployed"))
    assert {name for name in facts if facts[name] != deployed[name]} == {"numerics"}
    other = fourfold.load(tiny_folder, numerics="fast")
    weight = dict(other.named_parameters())["layers.1.attn.wq_a.weight"]
    weight.view(torch.uint8).view(-1)[5] ^= 1
    changed = cache_facts(other)
    assert {name for name in facts if facts[name] != changed[name]} == {"weights"}


def test_a_model_whose_experts_are_streamed_has_a_key_of_its_files(tiny_folder):
    streamed = fourfold.load(tiny_folder, numerics="fast", ram="1700KiB")
    assert streamed.tiers is not None
    before = cache_facts(streamed)["weights"]
    streamed(torch.tensor([[1, 2, 3]]))
    assert cache_facts(streamed)["weights"] == before
    again = fourfold.load(tiny_folder, numerics="fast", ram="1700KiB")
    assert cache_facts(again)["weights"] == before
    streamed.tiers.close()


def test_scopes_share_nothing_in_memory_or_on_disk(tmp_path, model):
    """What one scope has computed saves no other one a token."""

    def cached(own: Engine, scope: str) -> int:
        answer = own.submit(fourfold.Request(prompt=PROMPTS[0], max_tokens=2, scope=scope))
        list(own.chunks(answer))
        return answer.cached_tokens

    for begun in (0, len(PROMPTS[0]) - 1):  # the second engine finds on disk what the first has left
        with Engine(model, EngineConfig(max_running=2, step_tokens=60, cache_dir=tmp_path)) as own:
            found = [cached(own, scope) for scope in ("a", "b", "a", "")]
        assert found == [begun, begun, len(PROMPTS[0]) - 1, begun]


def test_scopes_are_computed_side_by_side(model):
    """A prompt does not wait for one of another scope that begins alike."""
    with Engine(model, EngineConfig(max_running=2, step_tokens=60)) as own:
        answers = [
            own.submit(fourfold.Request(prompt=PROMPTS[1], max_tokens=2, scope=scope)) for scope in ("a", "b")
        ]
        for answer in answers:
            list(own.chunks(answer))
        assert [answer.cached_tokens for answer in answers] == [0, 0]
