"""A machine that costs no time, and programs that pretend to be llama-bench."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fourfold.bench import machine

LLAMA = '''#!{python}
"""Says what llama-bench says: {rate} tokens a second in prefill, a tenth of it in decode."""
import json, sys
words = sys.argv[1:]
if "--help" in words:
    print("usage: llama-bench\\n {option} <n>")
    sys.exit()
given = dict(zip(words[::2], words[1::2]))
assert given["-o"] == "json" and given["-r"] == "1", words
rows = []
if int(given["-p"]):
    rows.append({{"n_prompt": int(given["-p"]), "n_gen": 0, "samples_ts": [{rate}]}})
if int(given["-n"]):
    rows.append({{"n_prompt": 0, "n_gen": int(given["-n"]), "samples_ts": [{rate} / 10]}})
if "-gp" in given:
    prompt, tokens = map(int, given["-gp"].split(","))
    rows.append({{"n_prompt": prompt, "n_gen": tokens, "samples_ts": [{rate} / 20]}})
for row in rows:
    row |= {{"build_commit": "abc", "model_type": "deepseek4 " + given.get("-rtr", "plain")}}
print(json.dumps(rows))
'''


@pytest.fixture
def quick_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probes at a size that takes milliseconds."""
    monkeypatch.setattr(machine, "probe_size", lambda: 4 << 20)
    monkeypatch.setattr(machine, "_PEAK_SECONDS", 0.001)
    monkeypatch.setattr(machine, "_MATMUL", 64)


@pytest.fixture
def llama_bench(tmp_path: Path) -> Callable[..., Path]:
    """llama_bench(name, rate=…, option=…) -> an executable; option: how it spells its context."""

    def write(name: str = "llama-bench", rate: float = 100.0, option: str = "-d, --n-depth") -> Path:
        program = tmp_path / name
        program.write_text(LLAMA.format(python=sys.executable, rate=rate, option=option), encoding="utf-8")
        program.chmod(0o755)
        return program

    return write
