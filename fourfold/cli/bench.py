"""`fourfold bench`: how fast a checkpoint runs here, against the machine's limits and other engines."""

from __future__ import annotations

import json as json_format
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

import fourfold
from fourfold.cli import console, options
from fourfold.cli.model import model_name

_Words = list[str] | None


def _numbers(name: str, least: int) -> Callable[[str | None], str | None]:
    """A check of a comma-separated list of whole numbers."""

    def check(text: str | None) -> str | None:
        for word in text.split(",") if text is not None else ():
            if not word.isdecimal() or int(word) < least:
                raise typer.BadParameter(f"{word!r} in --{name} is not a whole number from {least}")
        return text

    return check


def _peers(text: str) -> str:
    from fourfold.bench.peers import PEERS

    for word in filter(None, text.split(",")):
        if word not in PEERS:
            raise typer.BadParameter(f"{word!r} in --compare is unknown; allowed: {', '.join(PEERS)}")
    return text


def _plot_file(file: Path | None) -> Path | None:
    from fourfold.bench.plot import SUFFIXES

    if file is not None and file.suffix not in SUFFIXES:
        raise typer.BadParameter(f"{file} ends in neither of {', '.join(SUFFIXES)}")
    return options.new_file(file)


def bench(
    path: Annotated[
        str | None, typer.Argument(help="Checkpoint folder or repo id.", show_default="the shipped model")
    ] = None,
    contexts: Annotated[
        str | None,
        typer.Option(
            callback=_numbers("contexts", 0),
            help="Tokens already seen, for each measurement.",
            show_default="0,512,2048 as far as the model reaches",
        ),
    ] = None,
    prefill: Annotated[
        str,
        typer.Option(
            callback=_numbers("prefill", 1),
            help="Tokens of the prompt that is timed; of several, the first after every context, the others "
            "from nothing.",
        ),
    ] = "512",
    decode: Annotated[int, typer.Option(help="Tokens that are timed one by one.", min=1)] = 32,
    threads: Annotated[
        str, typer.Option(callback=_numbers("threads", 1), help="CPU threads, one measurement for each.")
    ] = "1,2",
    repetitions: Annotated[int, typer.Option(help="Rounds; the best counts.", min=1)] = 5,
    numerics: options.Numerics = "fast",
    device: options.Device = "cpu",
    device_memory: options.DeviceMemory = None,
    ram: options.Ram = None,
    expert_copy: options.ExpertCopy = None,
    compare: Annotated[
        str, typer.Option(callback=_peers, help="Other engines in the same run: transformers,llama.cpp.")
    ] = "",
    llama_bench: Annotated[
        _Words,
        typer.Option(metavar="[LABEL=]PATH", help="llama.cpp's or a descendant's llama-bench; repeatable."),
    ] = None,
    gguf: Annotated[
        _Words, typer.Option(metavar="[LABEL=]PATH", help="The same weights as a GGUF; repeatable.")
    ] = None,
    llama_args: Annotated[
        _Words, typer.Option(metavar="[LABEL=]WORDS", help='More for a llama-bench: ik="-rtr 1".')
    ] = None,
    accuracy: Annotated[
        bool, typer.Option("--accuracy", help="Also the distance of these numerics from exact ones.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(callback=_plot_file, help="Draw the rates over the context: .svg or .png.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(callback=options.new_file, help="Write the JSON document here too.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Measure how fast a checkpoint runs.

    Prefill and decode at each context and number of threads, best of several rounds in which all engines take
    turns, beside this machine's own limits. The last line on stdout is the JSON document.
    """
    from fourfold.bench import plot as plots
    from fourfold.bench.peers import llama_peers
    from fourfold.bench.run import Settings, usual_contexts
    from fourfold.bench.session import bench as measure
    from fourfold.config import ModelConfig
    from fourfold.weights.hub import resolve

    peers = tuple(filter(None, compare.split(",")))
    if (llama_bench or gguf or llama_args) and "llama.cpp" not in peers:
        raise typer.BadParameter("--llama-bench, --gguf and --llama-args need --compare llama.cpp")
    if plot is not None:
        plots.require()
    folder = resolve(path or fourfold.shipped_model())
    prompts = tuple(map(int, prefill.split(",")))
    longest = ModelConfig.from_file(folder).max_position_embeddings - max(prompts[0], decode)
    settings = Settings(
        contexts=tuple(map(int, contexts.split(","))) if contexts else usual_contexts(longest),
        threads=tuple(map(int, threads.split(","))),
        prefill=prompts,
        decode=decode,
        repetitions=repetitions,
    )
    llamas = llama_peers(llama_bench or (), gguf or (), llama_args or ())
    with _progress() as tell:
        document = measure(
            folder,
            model_name(path),
            settings,
            numerics,
            device=device,
            device_memory=device_memory,
            ram=ram,
            expert_copy=expert_copy,
            compare=peers,
            llamas=llamas,
            with_accuracy=accuracy,
            progress=tell,
            warn=console.note,
        )
    if json:
        console.document(document)
    else:
        _print(document)
        console.answer(json_format.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")
    if out is not None:
        out.write_text(json_format.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if plot is not None:
        plots.draw(document, plot)


def _print(document: dict[str, Any]) -> None:
    """Two tables: rates, and what belongs to an engine as a whole; then the machine's limits."""
    from fourfold.bench.report import table

    model = document["model"]
    title = f"{model['name']}, {model['numerics']} numerics, on {document['machine']['processor']}"
    console.table(title, *table(document))
    console.answer("\n")
    engines = [
        (
            name,
            _seconds(facts.get("start_seconds")),
            _seconds(facts.get("load_seconds")),
            console.size(facts["peak_bytes"]) if "peak_bytes" in facts else "-",
            str(facts.get("version") or document["fourfold"]),
        )
        for name, facts in document["engines"].items()
    ]
    console.table("Processes", ("engine", "cold start", "of it loading", "peak memory", "version"), engines)
    console.answer("\n")
    for line in _remarks(document):
        console.answer(f"{line}\n")


def _remarks(document: dict[str, Any]) -> Iterator[str]:
    own = document["results"][0]
    yield (
        f"a decoded token reads {console.size(own['bytes_per_token'])}, a prompt's token takes "
        f"{console.number(own['operations_per_token'] / 1e9)} GFLOP ({own['compute_type']} products)"
    )
    if (nodes := document["machine"]["memory_nodes"] or 1) > 1:
        yield f"memory in {nodes} nodes, which weights are to alternate between"
    for threads in dict.fromkeys(limit["threads"] for limit in document["limits"]):
        found = [limit for limit in document["limits"] if limit["threads"] == threads]
        read = max(limit["read_bytes_per_second"]["best"] for limit in found)
        peaks = ", ".join(
            f"{name} {console.number(value / 1e9)}"
            for name, value in found[0]["operations_per_second"].items()
        )
        yield f"{threads} thread{'s'[: threads > 1]}: reads {read / 1e9:.1f} GB/s; peak in GFLOP/s: {peaks}"
    if document["accuracy"]:
        found = document["accuracy"]
        yield (
            f"{found['numerics']} against exact: KL {found['kl_nats']:.2e} nats, same first choice "
            f"{found['same_first_choice']:.1%}, over {found['tokens']} tokens ({found['text']})"
        )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{console.number(value)} s"


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Yields tell(what): a line that changes on a terminal; silence elsewhere."""
    screen = console.stderr_console()
    if not screen.is_terminal:
        yield lambda what: None
        return
    with screen.status("fourfold: measuring") as status:
        yield lambda what: status.update(f"fourfold: {what}")
