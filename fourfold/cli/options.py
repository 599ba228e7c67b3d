"""Options that several commands share, each worded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from fourfold import kernels
from fourfold.engine.sampler import Sampling
from fourfold.engine.stop import StopStrings
from fourfold.errors import RequestError
from fourfold.protocol import Effort as _Effort
from fourfold.protocol import PromptFormat as _PromptFormat
from fourfold.tiers.memory import parse_ram


def known_device(name: str | None) -> str | None:
    """A device that torch has a name for; whether this machine has it shows later."""
    if name is None:
        return None
    kernels.discover(name.split(":")[0])
    try:
        torch.device(name)
    except RuntimeError:
        raise typer.BadParameter(f"{name!r} is no device; allowed: cpu, cuda, npu … as torch names") from None
    return name


def _sampling(name: str) -> Callable[[Any], Any]:
    """A check of one option by the rules of Sampling."""

    def check(value: Any) -> Any:
        try:
            return value if value is None else getattr(Sampling(**{name: value}), name)
        except RequestError as wrong:
            raise typer.BadParameter(str(wrong)) from None

    return check


def _stop(strings: list[str] | None) -> list[str] | None:
    try:
        StopStrings(strings or ())
    except RequestError as wrong:
        raise typer.BadParameter(str(wrong)) from None
    return strings


def size(name: str) -> Callable[[str | None], str | None]:
    """A check of a number of bytes."""

    def check(text: str | None) -> str | None:
        try:
            if text is not None:
                parse_ram(text, name)
        except RequestError as wrong:
            raise typer.BadParameter(str(wrong)) from None
        return text

    return check


def new_file(file: Path | None) -> Path | None:
    """Known before the long run: there is a folder to write into."""
    if file is not None and not file.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {file.parent} for {file.name}")
    return file


Device = Annotated[
    str, typer.Option(callback=known_device, help="Where to compute: cpu, cuda, cuda:1, npu …")
]
Numerics = Annotated[
    Literal["exact", "deployed", "fast"],
    typer.Option(
        help="exact: float32 mathematics of the stored weights; deployed: the published rounding; fast: bf16 "
        "products and cache."
    ),
]
Kv = Annotated[
    Literal["published", "bf16"] | None,
    typer.Option(
        help="How the KV cache is stored: published is FP8 and FP4, half of bf16; deployed numerics round to "
        "that anyway.",
        show_default="bf16, float32 with exact",
    ),
]
Threads = Annotated[int, typer.Option(help="CPU threads that compute; 0 leaves it to torch.", min=0)]
Ram = Annotated[
    str | None,
    typer.Option(
        callback=size("ram"),
        metavar="SIZE",
        help="RAM for weights, 24GiB for one; experts beyond it are read from disk when needed.",
        show_default="what is free, less an 8th",
    ),
]
DeviceMemory = Annotated[
    str | None,
    typer.Option(
        callback=size("device_memory"),
        metavar="SIZE",
        help="Of --device, for weights; experts beyond it stay in RAM and are computed by the CPU meanwhile.",
        show_default="what is free there, less an 8th",
    ),
]
ExpertCopy = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Keep a page-aligned copy of the experts there, for faster reads where they exceed --ram.",
        show_default="none",
    ),
]
ExpertCounts = Annotated[
    Path | None,
    typer.Option(
        callback=new_file,
        metavar="FILE",
        help="Count there how often each expert is chosen; the most used ones are those on the device, from "
        "the next start on.",
        show_default="none",
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Keep the cache of prompts and answers there: a prompt that begins like one before is not "
        "computed again, in a later run either.",
        show_default="none",
    ),
]
CacheSize = Annotated[
    str,
    typer.Option(callback=size("cache_size"), metavar="SIZE", help="How much of --cache-dir may be used."),
]
Stats = Annotated[bool, typer.Option("--stats", help="Say on stderr what reading experts has cost.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]

MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", help="The longest answer, in tokens.", min=1)]
Temperature = Annotated[
    float | None,
    typer.Option(
        callback=_sampling("temperature"),
        help="From 0, greedy, to 100; 1 is the model's own distribution.",
        show_default="the checkpoint's",
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        callback=_sampling("top_p"),
        help="Sample from the most likely tokens that reach this probability, above 0 and at most 1.",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(callback=_sampling("top_k"), help="Sample from this many tokens at most; 0 is all."),
]
MinP = Annotated[
    float | None,
    typer.Option(
        callback=_sampling("min_p"), help="Drop tokens this much less likely than the first, from 0 to 1."
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        callback=_sampling("repetition_penalty"),
        help="Above 1, tokens that came before become less likely; 1 is none.",
        show_default="the checkpoint's",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(callback=_sampling("seed"), help="Same seed, same answer.", show_default="random"),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(callback=_stop, help="End the answer before this text; may be repeated."),
]

JsonSchema = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Answer with JSON of the JSON schema in this file."),
]
Regex = Annotated[str | None, typer.Option(help="Answer with a text that this regular expression matches.")]
Draft = Annotated[
    Literal["mtp", "ngram", "none"],
    typer.Option(
        help="Guess tokens and verify several at once, as long as that is faster: ngram by repetition, mtp "
        "by the checkpoint's MTP block, too. The answer is the same."
    ),
]

System = Annotated[str | None, typer.Option(help="System text in front of the conversation.")]
Think = Annotated[
    bool, typer.Option("--think/--no-think", help="Let the model reason first (on stderr, grey).")
]
Effort = Annotated[_Effort | None, typer.Option(help="How hard to think. Implies --think.")]
PromptFormat = Annotated[
    _PromptFormat | None,
    typer.Option(help="preview is the April release's.", show_default="by the checkpoint's name"),
]

ShardSize = Annotated[float, typer.Option(help="Largest shard, in GB (10^9 bytes).", min=0.000001)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")]


def shard_bytes(gigabytes: float) -> int:
    """Bytes of a shard size in GB."""
    return int(gigabytes * 1e9)
