"""The engines that a user names, opened; or why one cannot be compared."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fourfold.bench.engines import Engine, LlamaBench, WorkerEngine
from fourfold.errors import RequestError

PEERS = ("transformers", "llama.cpp")
_DEFAULT = "llama.cpp"


@dataclass(frozen=True)
class LlamaPeer:
    """A llama-bench program with the GGUF that it reads and extra arguments; what is None was not named."""

    label: str
    program: str | None = None
    gguf: str | None = None
    arguments: str = ""


def llama_peers(programs: Sequence[str], ggufs: Sequence[str], arguments: Sequence[str]) -> list[LlamaPeer]:
    """Pair the options by their labels.

    programs, ggufs: [LABEL=]PATH, arguments: [LABEL=]WORDS; without a label they belong to "llama.cpp".  A
    program without a GGUF of its own reads that of "llama.cpp"; without any program it is llama-bench on the
    PATH.  RequestError: a label that no program has, that is given twice, or that names another engine.
    """
    tools = _labelled("--llama-bench", programs)
    files = _labelled("--gguf", ggufs)
    words = _labelled("--llama-args", arguments)
    tools = tools or {_DEFAULT: shutil.which("llama-bench") or ""}
    if taken := tools.keys() & {"fourfold", "transformers"}:
        raise RequestError(f"--llama-bench cannot be labelled {taken.pop()!r}: that is another engine's name")
    for name in files.keys() - tools.keys() - {_DEFAULT} | words.keys() - tools.keys():
        raise RequestError(f"no --llama-bench is labelled {name!r}; allowed: {', '.join(tools)}")
    return [
        LlamaPeer(name, program or None, files.get(name, files.get(_DEFAULT)), words.get(name, ""))
        for name, program in tools.items()
    ]


def open_peers(
    names: Sequence[str], llamas: Sequence[LlamaPeer], folder: Path, tell: Callable[[str], None]
) -> tuple[list[Engine], dict[str, str]]:
    """The engines that could be opened, and for each of the others why not.  tell: what is being loaded."""
    found: list[Engine] = []
    missing: dict[str, str] = {}

    def attempt(name: str, make: Callable[[], Engine]) -> None:
        tell(f"loading {name}")
        try:
            found.append(make())
        except RequestError as error:
            missing[name] = str(error)

    for name in names:
        if name == "transformers":
            attempt(name, lambda: WorkerEngine("transformers", folder))
            continue
        for peer in llamas:
            attempt(peer.label, lambda peer=peer: _open_llama(peer))  # type: ignore[misc]
    return found, missing


def _labelled(option: str, values: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values:
        label, separator, rest = value.partition("=")
        # A path or an argument may have an = of its own: what stands before is a label only if it is a name.
        if not separator or not label or any(sign in label for sign in "/\\ -"):
            label, rest = _DEFAULT, value
        if label in found:
            raise RequestError(
                f"{option} is given twice for {label!r}; give each a label: {option} LABEL={rest}"
            )
        found[label] = rest
    return found


def _open_llama(peer: LlamaPeer) -> LlamaBench:
    if peer.program is None:
        raise RequestError(f"{peer.label}: there is no llama-bench on the PATH; name it: --llama-bench PATH")
    if peer.gguf is None:
        raise RequestError(f"{peer.label}: name the GGUF of the same weights: --gguf PATH")
    return LlamaBench(peer.label, Path(peer.program), Path(peer.gguf), shlex.split(peer.arguments))
