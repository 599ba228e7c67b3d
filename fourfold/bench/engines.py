"""Engines that can be measured side by side: workers of ours, and llama-bench."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fourfold.errors import RequestError

_PATIENCE = 2.0  # seconds that a process has for ending


@dataclass(frozen=True)
class Cell:
    """What is measured: `prefill` tokens, and `decode` (0: none) one by one, each after `context` tokens."""

    threads: int
    context: int
    prefill: int
    decode: int


@dataclass(frozen=True)
class Sample:
    """Tokens a second in one repetition; None where the engine cannot measure it.

    fill_seconds: from nothing to the context, when this sample did it and the engine tells.
    """

    prefill: float | None
    decode: float | None
    fill_seconds: float | None = None


class Engine(Protocol):
    """Something that runs the model."""

    name: str

    def measure(self, cell: Cell) -> Sample:
        """One repetition.  RequestError: the engine failed."""

    def report(self) -> dict[str, Any]:
        """What there is to say about it at the end: version, seconds to start and load, peak memory."""

    def close(self) -> None:
        """End its process, if it has one."""


class WorkerEngine:
    """An engine in a fresh process (worker.py), loaded once.

    `start_seconds` is from the start of the process, its imports included, to the loaded model.
    """

    def __init__(self, name: str, folder: Path, **load: str | None) -> None:
        """load: what `fourfold.load` takes besides the folder.  RequestError: it cannot be loaded."""
        self.name = name
        begin = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _program(name), name, str(folder), json.dumps(load)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=_environment(name),
            start_new_session=True,  # Ctrl-C is ours to hear; the process ends when we do
        )
        try:
            self._facts: dict[str, Any] = self._reply()
        except BaseException:
            self.close()
            raise
        self._facts["start_seconds"] = time.perf_counter() - begin

    def measure(self, cell: Cell) -> Sample:
        found = self._ask(vars(cell))
        return Sample(
            cell.prefill / found["prefill_seconds"],
            cell.decode / found["decode_seconds"] if cell.decode else None,
            found["fill_seconds"],
        )

    def report(self) -> dict[str, Any]:
        found = self._ask({"report": True})
        return {**self._facts, "peak_bytes": found["peak_bytes"], **found["about"]}

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended already
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:  # we were interrupted while it was computing
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the reply, or its absence, says why
            print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            why = "; was there too little memory?" if code == -signal.SIGKILL else ""
            raise RequestError(f"{self.name}: its process ended with exit code {code}{why}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise RequestError(f"{self.name}: {found['error']}")
        return found


def _program(name: str) -> str:
    # torch first: its OpenMP then starts with the environment's settings, not with those that fourfold makes.
    first = "import torch; " if name == "transformers" else ""
    # stdout carries replies alone: what libraries print (torch_npu, when torch imports it) goes to stderr.
    replies = "import os; replies = os.dup(1); os.dup2(2, 1); "
    return f"{replies}{first}from fourfold.bench.worker import main; main(replies)"


def _environment(name: str) -> dict[str, str]:
    """A peer's process does not inherit how we set up OpenMP for ourselves."""
    variables = dict(os.environ)
    if name == "transformers":
        variables.pop("OMP_WAIT_POLICY", None)
        variables["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    return variables


class LlamaBench:
    """llama.cpp, or what descends from it, by its own benchmark program and a GGUF of the same weights.

    The program starts anew for each repetition, with a warm-up of its own.  Where it has no `--n-depth`, as
    in ik_llama.cpp, decoding is measured after a prompt of the context's length, prefill at context 0 only.
    """

    def __init__(self, name: str, program: Path, gguf: Path, arguments: list[str]) -> None:
        """RequestError: a file is missing, or the program is no llama-bench."""
        self.name = name
        for file in (program, gguf):
            if not file.is_file():
                raise RequestError(f"{name}: there is no file {file}")
        self._command = [str(program), "-m", str(gguf), *arguments]
        self._facts: dict[str, Any] = {"gguf": gguf.name, "arguments": " ".join(arguments)}
        usage = self._run([str(program), "--help"])
        self._has_depth = "--n-depth" in usage
        if not self._has_depth and "-gp " not in usage:
            raise RequestError(f"{name}: {program} is no llama-bench; its --help lacks --n-depth and -gp")

    def measure(self, cell: Cell) -> Sample:
        words = ["-t", str(cell.threads), "-r", "1", "-o", "json"]
        tests = ["-p", str(cell.prefill), "-n", str(cell.decode)]
        if self._has_depth:
            words += ["-d", str(cell.context)]
        elif cell.context:
            tests = ["-p", "0", "-n", "0", "-gp", f"{cell.context},{cell.decode}"]
        rows = self._rows(self._run([*self._command, *words, *tests]))
        rates = {bool(row["n_gen"]): float(max(row["samples_ts"])) for row in rows}
        if rows:
            build = {"version": rows[0].get("build_commit"), "weights": rows[0].get("model_type")}
            self._facts |= build
        return Sample(rates.get(False), rates.get(True))

    def report(self) -> dict[str, Any]:
        return self._facts

    def close(self) -> None:
        """Nothing of it runs between two repetitions."""

    def _run(self, command: list[str]) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise RequestError(f"{self.name}: {command[0]} cannot be run ({error.strerror})") from None
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise RequestError(f"{self.name}: llama-bench ended with exit code {done.returncode}: {said}")
        return done.stdout

    def _rows(self, text: str) -> list[dict[str, Any]]:
        try:
            rows = json.loads(text)
            assert isinstance(rows, list) and all("samples_ts" in row and "n_gen" in row for row in rows)
        except (ValueError, AssertionError, TypeError):
            raise RequestError(
                f"{self.name}: llama-bench wrote no JSON that we know: {text[:80]!r}"
            ) from None
        return rows
