"""The command `fourfold`: a message and an exit code for every way to fail."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import typer

from fourfold.cli import DONE, FAILED, INTERRUPTED, USAGE, console
from fourfold.errors import FourfoldError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    words, debug = _take_debug(list(sys.argv[1:] if arguments is None else arguments))
    try:
        # Imported here: what is wrong with the machine or its environment shows when torch and kernels load.
        from fourfold.cli.app import app

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
    """Say what is wrong with the arguments and where help is; without any arguments, the help itself."""
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
