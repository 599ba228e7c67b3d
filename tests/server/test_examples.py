"""The examples of asking a server run, and stay short."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from fourfold.engine.request import Request
from tests.server.conftest import listening

EXAMPLES = Path(__file__).parents[2] / "examples" / "server"
CALL = (
    '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="multiply">\n'
    '<｜DSML｜parameter name="a" string="false">6</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="b" string="false">7</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
)


def run(name, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", [name, *words])
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_a_tool_is_called_and_its_result_goes_back(serve, monkeypatch, capsys):
    served = serve("I multiply." + CALL)
    say = served.engine.submit

    def submit(request, **more):
        if len(submitted) == 1:
            served.model.say("It is 42.")
        submitted.append(request)
        return say(request, **more)

    submitted: list[Request] = []
    monkeypatch.setattr(served.engine, "submit", submit)
    with listening(served) as url:
        messages = run("tool_loop.py", monkeypatch, url, "What is 6 times 7?")["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[2]["content"] == "42"
    assert capsys.readouterr().out == "It is 42.\n"


def test_an_answer_as_it_comes(serve, monkeypatch, capsys):
    with listening(serve("Once upon a time.")) as url:
        run("live.py", monkeypatch, url, "Tell me a story.")
    first, second = capsys.readouterr().out.splitlines()
    assert first == "Once upon a time." and "of the prompt cached" in second


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_they_are_short(example):
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 40
