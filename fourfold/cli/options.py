"""Options that several commands share, each worded once."""

from __future__ import annotations

from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, npu …")]
Numerics = Annotated[
    str,
    typer.Option(help="exact: float32 mathematics of the stored weights; deployed: the published rounding."),
]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 leaves the choice to torch.", min=0)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]

MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", help="The longest answer, in tokens.", min=1)]
Temperature = Annotated[
    float | None,
    typer.Option(help="0 is greedy, 1 the model's own distribution.", show_default="the checkpoint's"),
]
TopP = Annotated[
    float | None, typer.Option(help="Sample from the most likely tokens that reach this probability.")
]
TopK = Annotated[int | None, typer.Option(help="Sample from this many tokens at most; 0 is all.")]
MinP = Annotated[float | None, typer.Option(help="Drop tokens this much less likely than the first.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same answer.", show_default="random")]
Stop = Annotated[list[str] | None, typer.Option(help="End the answer before this text; may be repeated.")]

System = Annotated[str | None, typer.Option(help="System text in front of the conversation.")]
Think = Annotated[
    bool, typer.Option("--think/--no-think", help="Let the model reason first (on stderr, grey).")
]
Effort = Annotated[str | None, typer.Option(help="How hard to think: low, high or max. Implies --think.")]
PromptFormat = Annotated[
    str | None,
    typer.Option(help="preview (April release) or 0813.", show_default="by the checkpoint's name"),
]

ShardSize = Annotated[float, typer.Option(help="Largest shard, in GB (10^9 bytes).", min=0.000001)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")]


def shard_bytes(gigabytes: float) -> int:
    """Bytes of a shard size in GB."""
    return int(gigabytes * 1e9)
