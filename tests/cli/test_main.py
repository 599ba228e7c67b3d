"""The manners of the whole command: streams, exit codes, errors."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import fourfold
from fourfold.cli import main as module
from fourfold.errors import CheckpointError

COMMANDS = ("chat", "generate", "inspect", "plan", "verify", "export", "synth", "train", "kernels")


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
        (["generate", "x", "--temperature", "500"], "temperature is 500.0; allowed: a number from 0"),
        (["generate", "x", "--temperature", "nan"], "temperature is nan"),
        (["generate", "x", "--top-p", "0"], "top_p is 0.0; allowed: a number above 0"),
        (["generate", "x", "--top-k", "-1"], "top_k is -1"),
        (["generate", "x", "--min-p", "2"], "min_p is 2.0"),
        (["generate", "x", "--seed", "-1"], "seed is -1"),
        (["generate", "x", "--stop", ""], "stop holds ''"),
        (["generate", "x", "--numerics", "rough"], "'exact', 'deployed'"),
        (["generate", "x", "--chat", "--effort", "huge"], "'low', 'high', 'max'"),
        (["generate", "x", "--chat", "--prompt-format", "1999"], "'preview', '0813'"),
        (["generate", "x", "--device", "abacus"], "'abacus' is no device; allowed: cpu"),
        (["chat", "--effort", "huge"], "'low', 'high', 'max'"),
        (["verify", "--device", "abacus"], "'abacus' is no device"),
        (["kernels", "--device", "abacus"], "'abacus' is no device"),
        (["export", "a", "b", "--experts", "fp6"], "'keep', 'fp4', 'fp8', 'bf16'"),
        (["export", "a", "b", "--linears", "fp4"], "'keep', 'fp8', 'bf16'"),
        (["synth", "x", "--like", "huge"], "'huge' is neither one of flash, pro, flash-base, pro-base"),
        (["synth", "x", "--layers", "0"], "--layers"),
        (["synth", "x", "--set", "novalue"], "KEY=VALUE"),
        (["train", "x.toml", "--set", "novalue=1"], "SECTION.KEY=VALUE"),
        (["plan", "flash", "--hardware", "abacus"], "'abacus' is not known; allowed: here, "),
        (["plan", "flash", "--host", "abacus"], "'abacus' is not known; allowed: here, "),
        (["plan", "flash", "--ram", "much"], "'much' is no size; allowed: a number above 0 and a unit"),
        (["plan", "flash", "--disk", "0GB/s"], "'0GB/s' is neither a rate"),
        (["plan", "flash", "--power", "100"], "--power needs --electricity"),
    ],
)
def test_wrong_usage_is_2_before_anything_is_loaded(run, monkeypatch, words, message):
    for name in ("fourfold.loading.resolve", "fourfold.cli.model.resolve", "fourfold.weights.export.resolve"):
        monkeypatch.setattr(name, lambda *_: pytest.fail("a checkpoint was opened"))
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
        ["plan", "/no/such/folder", "--hardware", "h200"],
        ["export", "/no/such/folder", "/no/such/target"],
        ["train", "/no/such/config.toml"],
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
    monkeypatch.setattr("fourfold.cli.app.app", failing(error))
    ran = run("kernels")
    assert ran.code == 1
    assert text in ran.err
    assert "Traceback" not in ran.err
    assert "Traceback" in run("kernels", "--debug").err


def test_debug_after_a_double_dash_is_text():
    assert module._take_debug(["generate", "--", "--debug"]) == (["generate", "--", "--debug"], False)
    assert module._take_debug(["generate", "--debug", "x"]) == (["generate", "x"], True)


def test_interruption_is_130_without_a_word(run, monkeypatch):
    monkeypatch.setattr("fourfold.cli.app.app", failing(KeyboardInterrupt()))
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
