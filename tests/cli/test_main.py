"""The manners of the whole command: streams, exit codes, errors."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import fourfold
from fourfold.cli import main as module
from fourfold.errors import CheckpointError

COMMANDS = ("chat", "generate", "inspect", "verify", "export", "synth", "train", "kernels")


def test_version_is_the_packages(run):
    ran = run("--version")
    assert (ran.code, ran.out, ran.err) == (0, f"fourfold {fourfold.__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_a_short_first_line(run, command):
    ran = run(command, "--help")
    assert ran.code == 0
    assert f"Usage: fourfold {command}" in ran.out
    assert "..." not in next(
        line for line in run("--help").out.splitlines() if line.startswith(f"  {command} ")
    )


def test_no_arguments_is_wrong_usage_and_shows_the_help(run):
    ran = run()
    assert ran.code == 2
    assert ran.out == ""
    assert "Commands:" in ran.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bogus"], "No such command 'bogus'; see fourfold --help"),
        (["generate"], "Missing argument"),
        (["kernels", "--bogus"], "No such option: --bogus; see fourfold kernels --help"),
        (["generate", "x", "--max-tokens", "0"], "--max-tokens"),
        (["generate", "x", "--temperature", "warm"], "--temperature"),
        (["generate", "x", "--think"], "need --chat"),
        (["synth", "x", "--set", "novalue"], "KEY=VALUE"),
    ],
)
def test_wrong_usage_is_2_and_says_where_help_is(run, words, message):
    ran = run(*words)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("fourfold: error: ")
    assert message in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "x", "--model", "/no/such/folder"],
        ["chat", "/no/such/folder"],
        ["inspect", "/no/such/folder"],
        ["verify", "/no/such/folder"],
        ["export", "/no/such/folder", "/tmp/never"],
        ["train", "/no/such/config.toml"],
        ["kernels", "--device", "abacus"],
    ],
)
def test_failures_are_1_and_one_line(run, words):
    ran = run(*words)
    assert ran.code == 1
    assert ran.out == ""
    assert ran.err.startswith("fourfold: error: ")
    assert words[-1] in ran.err or words[1] in ran.err
    assert "Traceback" not in ran.err
    assert len(ran.err.splitlines()) == 1


def failing(error: BaseException):
    def app(**_: object) -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (CheckpointError("layer 3 is missing"), "fourfold: error: layer 3 is missing\n"),
        (
            OSError(28, "No space left on device", "/x/model.safetensors"),
            "/x/model.safetensors: No space left",
        ),
        (RuntimeError("boom\nmore"), "RuntimeError: boom (a mistake of ours: --debug shows where)"),
    ],
)
def test_errors_have_no_traceback_without_debug(run, monkeypatch, error, text):
    monkeypatch.setattr(module, "app", failing(error))
    ran = run("kernels")
    assert ran.code == 1
    assert text in ran.err
    assert "Traceback" not in ran.err
    assert "Traceback" in run("kernels", "--debug").err


def test_debug_after_a_double_dash_is_text():
    assert module._take_debug(["generate", "--", "--debug"]) == (["generate", "--", "--debug"], False)
    assert module._take_debug(["generate", "--debug", "x"]) == (["generate", "x"], True)


def test_interruption_is_130_without_a_word(run, monkeypatch):
    monkeypatch.setattr(module, "app", failing(KeyboardInterrupt()))
    ran = run("kernels")
    assert (ran.code, ran.err.strip()) == (130, "")


def test_python_dash_m_and_a_reader_that_goes_away():
    command = [sys.executable, "-m", "fourfold", "kernels", "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=120)
    assert "Traceback" not in err
    assert process.returncode in (0, 1)
