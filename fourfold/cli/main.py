"""The command `fourfold`: its subcommands, and a message and an exit code for every way to fail."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

import fourfold
from fourfold.cli import console
from fourfold.cli.chat import chat
from fourfold.cli.export import export
from fourfold.cli.generate import generate
from fourfold.cli.inspect import inspect
from fourfold.cli.kernels import kernels
from fourfold.cli.synth import synth
from fourfold.cli.train import train
from fourfold.cli.verify import verify
from fourfold.errors import FourfoldError

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="fourfold",
    help="DeepSeek-V4 models, computed exactly: published checkpoints in, text out, on the machine you have.",
    epilog="--debug, anywhere before --, shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (chat, generate, inspect, verify, export, synth, train, kernels):
    app.command()(command)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    words, debug = _take_debug(list(sys.argv[1:] if arguments is None else arguments))
    try:
        code = app(args=words, prog_name="fourfold", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else DONE
    except (KeyboardInterrupt, typer.Abort):
        print(file=sys.stderr)
        return INTERRUPTED
    except typer.TyperException as wrong:
        return _wrong_usage(wrong)
    except BrokenPipeError:
        # Whoever read our answer has gone; Python must not complain when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as failure:
        if debug:
            traceback.print_exc()
        console.error(_explain(failure))
        return FAILED


def _take_debug(words: list[str]) -> tuple[list[str], bool]:
    """The arguments without --debug, which may stand anywhere before --."""
    options = words[: words.index("--")] if "--" in words else words
    return [word for word in options if word != "--debug"] + words[len(options) :], "--debug" in options


def _wrong_usage(wrong: typer.TyperException) -> int:
    """Say what is wrong with the arguments and where help is. Help itself, asked for by no arguments, is no
    error.
    """
    context = getattr(wrong, "ctx", None)
    if type(wrong).__name__ == "NoArgsIsHelpError":
        print(context.get_help() if context is not None else "", file=sys.stderr)
        return USAGE
    message = wrong.format_message() if hasattr(wrong, "format_message") else str(wrong)
    path = context.command_path if context is not None else "fourfold"
    console.error(f"{message.rstrip('.')}; see {path} --help")
    return USAGE


def _explain(failure: Exception) -> str:
    """One line for the user."""
    if isinstance(failure, FourfoldError):
        return str(failure)
    if isinstance(failure, OSError):
        where = f"{failure.filename}: " if failure.filename else ""
        return f"{where}{failure.strerror or failure}"
    first = (str(failure).splitlines() or [""])[0]
    return f"{type(failure).__name__}: {first} (a mistake of ours: --debug shows where)"


if __name__ == "__main__":
    sys.exit(main())
