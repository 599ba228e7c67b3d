"""An engine in a process of its own: `python -m fourfold.bench.worker ENGINE FOLDER NUMERICS DEVICE`.

Requests and replies are lines of JSON on stdin and stdout.  The first reply, {"load_seconds": …}, comes when
the model is loaded; then {"threads": t, "context": c, "prefill": p, "decode": d} is answered with seconds,
and {"report": true} with the peak of the memory.  A failure is {"error": why}; stdin's end is the process's.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from fourfold.errors import FourfoldError

CHUNK = 512  # tokens of a prompt that an engine gets at once
_SEED = 1

State = TypeVar("State")


class Adapter(Protocol[State]):
    """A loaded model, as the worker drives it."""

    config_vocab: int

    def use_threads(self, threads: int) -> None:
        """Compute with so many threads."""

    def fresh(self, room: int) -> State:
        """A state that has seen nothing; up to `room` tokens at its end will be taken back."""

    def branch(self, state: State) -> State:
        """The state as it was when `keep` was last called, to be continued."""

    def keep(self, state: State) -> State:
        """What has been fed so far is what `branch` returns to."""

    def feed(self, state: State, ids: torch.Tensor) -> None:
        """Continue with ids [1, T]; logits are computed for the last of them only."""

    def wait(self) -> None:
        """Until all that was fed is computed."""

    def about(self) -> dict[str, Any]:
        """Anything else worth a place in the document."""


def open_adapter(engine: str, folder: Path, load: dict[str, str]) -> Adapter[Any]:
    """Load the model as `load` says; peers have their own defaults and run on the CPU.

    Adapters are imported here: one engine's libraries are no other's concern.
    """
    if engine == "transformers":
        from fourfold.bench.peers_transformers import Transformers

        return Transformers(folder)
    from fourfold.bench.own import Own

    return Own(folder, **load)


class Worker:
    """Answers requests; keeps one state for each context."""

    def __init__(self, adapter: Adapter[Any]) -> None:
        self._adapter = adapter
        self._threads = 0
        self._states: dict[int, Any] = {}
        self._ids = torch.Generator().manual_seed(_SEED)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request's reply."""
        if "report" in request:
            return {"peak_bytes": peak_memory(), "about": self._adapter.about()}
        threads, context, prefill, decode = (
            request[key] for key in ("threads", "context", "prefill", "decode")
        )
        fill = None
        with torch.inference_mode():
            if threads != self._threads:
                self._begin(threads)
            if context not in self._states:
                fill = self._fill(context, max(prefill, decode) if context else 0)
            kept = self._states[context]
            prompt = self._run(self._adapter.branch(kept), prefill, CHUNK)
            answer = self._run(self._adapter.branch(kept), decode, 1)
        return {"fill_seconds": fill, "prefill_seconds": prompt, "decode_seconds": answer}

    def _begin(self, threads: int) -> None:
        """Change the number of threads; what happens only once (buffers, threads) happens untimed."""
        self._adapter.use_threads(threads)
        self._threads = threads
        self._states.clear()
        state = self._adapter.keep(self._adapter.fresh(0))
        self._run(state, 16, CHUNK)
        self._run(state, 1, 1)

    def _fill(self, context: int, room: int) -> float:
        """Seconds from nothing to `context` tokens; the state stays, up to `room` more can be taken back."""
        state = self._adapter.fresh(room)
        seconds = self._run(state, context, CHUNK)
        self._states[context] = self._adapter.keep(state)
        return seconds

    def _run(self, state: Any, tokens: int, chunk: int) -> float:
        vocab = self._adapter.config_vocab
        ids = torch.randint(0, vocab, (1, tokens), generator=self._ids)
        begin = time.perf_counter()
        for part in ids.split(chunk, dim=1) if tokens else ():
            self._adapter.feed(state, part)
        self._adapter.wait()
        return time.perf_counter() - begin


def peak_memory() -> int:
    """The most bytes of memory that this process ever had."""
    try:
        # Not ru_maxrss: on Linux a process inherits that of the one which started it.
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    except OSError:  # not Linux
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def main(replies: int) -> None:
    """Serve until stdin ends; replies go to that descriptor."""
    engine, folder, load = sys.argv[1:4]
    out = os.fdopen(replies, "w", encoding="utf-8")

    def reply(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=out, flush=True)

    try:
        begin = time.perf_counter()
        worker = Worker(open_adapter(engine, Path(folder), json.loads(load)))
        reply({"load_seconds": time.perf_counter() - begin})
        for line in sys.stdin:
            reply(worker.answer(json.loads(line)))
    except FourfoldError as error:
        reply({"error": str(error)})
    except Exception as error:  # said in one line to whoever asked, and whole on stderr
        traceback.print_exc()
        reply({"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"})
