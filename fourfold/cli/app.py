"""The subcommands of `fourfold`."""

from __future__ import annotations

from typing import Annotated

import typer

import fourfold
from fourfold.cli.bench import bench
from fourfold.cli.chat import chat
from fourfold.cli.distil import distil
from fourfold.cli.evaluate import evaluate
from fourfold.cli.export import export
from fourfold.cli.generate import generate
from fourfold.cli.inspect import inspect
from fourfold.cli.kernels import kernels
from fourfold.cli.merge import merge
from fourfold.cli.plan import plan
from fourfold.cli.serve import serve
from fourfold.cli.synth import synth
from fourfold.cli.train import train
from fourfold.cli.verify import verify

app = typer.Typer(
    name="fourfold",
    help="DeepSeek-V4 models, computed exactly: published checkpoints in, text out, on the machine you have.",
    epilog="--debug, anywhere before --, shows the traceback of an error. "
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    chat, generate, serve, inspect, plan, bench, verify, export, merge, synth, train, distil, kernels,
):  # fmt: skip
    app.command()(command)
app.command("eval")(evaluate)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fourfold {fourfold.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options of the command as a whole."""
