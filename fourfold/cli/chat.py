"""`fourfold chat`: a conversation on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Protocol

import typer

from fourfold.cli import DONE, FAILED, INTERRUPTED, console, options
from fourfold.cli.answer import Spoken, messages_of, speak, speed_line
from fourfold.cli.groups import Drawing, Loading, Speeding, grouped
from fourfold.cli.model import Opened, model_name, open_model, tiers_line
from fourfold.cli.remote import Remote, RemoteConversation
from fourfold.engine.generate import GenerateOptions
from fourfold.engine.session import Session
from fourfold.errors import FourfoldError, RequestError
from fourfold.protocol import Chat
from fourfold.protocol import prompt_format as format_of

HELP = """/reset  forget the conversation
/quit   leave (so does Ctrl-D)
/help   this list
Ctrl-C  stop the answer; what was said so far stays"""


_LOCAL = (
    "min_p",
    "repetition_penalty",
    "prompt_format",
    "stats",
    *(option.name for group in (Speeding, Loading) for option in fields(group)),
)
"""What a server decides, and not who asks it."""


@grouped
def chat(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            help="Checkpoint folder or repo id; with --url, a name.", show_default="the shipped model"
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Talk with the model of a server instead.", show_default="none")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="FOURFOLD_API_KEY", help="What the server at --url wants.")
    ] = None,
    system: options.System = None,
    think: options.Think = False,
    effort: options.Effort = None,
    prompt_format: options.PromptFormat = None,
    max_tokens: options.MaxTokens = 1024,
    seed: options.Seed = None,
    stats: options.Stats = False,
    *,
    drawing: Drawing,
    speeding: Speeding,
    loading: Loading,
) -> int:
    """Talk with a model. Without a terminal, each line of stdin is one turn."""
    if url is not None:
        given = [name for name in _LOCAL if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
        if given:
            raise typer.BadParameter(f"--{given[0].replace('_', '-')} has no effect with --url; remove it")
        remote = Remote(url, api_key)
        values: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": drawing.temperature,
            "top_p": drawing.top_p,
            "top_k": drawing.top_k,
        }
        values |= {"seed": seed, "reasoning_effort": effort}
        values |= {"thinking": {"type": "enabled"}} if think or effort else {}
        asked = {name: value for name, value in values.items() if value is not None}
        return _talk(RemoteConversation(remote, model or _first_model(remote), system, asked))
    beginning = Chat(
        messages=messages_of(system, ""),
        thinking=think or effort is not None,
        effort=effort,
        format=prompt_format or format_of(model_name(model)),
    )
    beginning.prompt()  # what is wrong with it is told now, not after the first turn
    opened = open_model(model, loading)
    sampling = opened.sampler(drawing, seed)
    session = Session(opened.model, **speeding.given())
    talk = Conversation(opened, session, beginning, {"max_tokens": max_tokens, **sampling}, stats)
    return _talk(talk)


def _talk(talk: Talk) -> int:
    """By lines of stdin, or with a user at a terminal."""
    if sys.stdin is None or not sys.stdin.isatty():
        return repl(talk, _read_pipe, terminal=False)
    console.note("/help lists the commands, Ctrl-D leaves")
    return repl(talk, _read_terminal)


def _first_model(remote: Remote) -> str:
    """RequestError: the server has none."""
    if not (names := remote.models()):
        raise RequestError(f"{remote.url} has no models")
    console.note(f"{names[0]} at {remote.url}")
    return names[0]


class Talk(Protocol):
    """A conversation, here or at a server."""

    def say(self, text: str) -> Spoken: ...

    def reset(self) -> None: ...


@dataclass
class Conversation:
    """The turns so far, and the model's memory of them.

    beginning: its first message, if any, is the system's; the last is not said. It has the options of all.
    """

    opened: Opened
    session: Session
    beginning: Chat
    generate_options: GenerateOptions
    stats: bool = False
    turns: list[dict[str, Any]] = field(default_factory=list)

    def say(self, text: str) -> Spoken:
        """One turn: the user's text, the model's answer. One that fails leaves the conversation as it was."""
        question = {"role": "user", "content": text}
        messages = [*self.beginning.messages[:-1], *self.turns, question]
        request = replace(self.beginning, messages=messages)
        ids = request.prompt().encode(self.opened.tokenizer)
        generation = self.session.generate(ids, **self.generate_options)
        spoken = speak(generation, request)
        console.answer("\n")
        console.note(("stopped, " if spoken.interrupted else "") + speed_line(generation))
        if self.stats:
            console.note(tiers_line(self.opened.model))
        answer = {"role": "assistant", "content": spoken.text, "reasoning_content": spoken.reasoning}
        self.turns += [question, answer]
        return spoken

    def reset(self) -> None:
        """Forget every turn."""
        self.turns.clear()
        self.session.reset()


def repl(talk: Talk, read: Callable[[], str], *, terminal: bool = True) -> int:
    """Read turns and commands until the input ends or /quit; returns the exit code.

    On a terminal the user sees what fails and what Ctrl-C stops, and goes on: 0. Else Ctrl-C ends it with
    130, and turns that failed make it 1.
    """
    worst = DONE
    while True:
        try:
            line = read().strip()
        except EOFError:
            return worst
        except KeyboardInterrupt:
            if not terminal:
                return INTERRUPTED
            print(file=sys.stderr)
            console.note("Ctrl-D or /quit leaves")
            continue
        if line == "/quit":
            return worst
        code = _command(talk, line) if _is_command(line) else _turn(talk, line)
        if terminal:
            continue
        if code == INTERRUPTED:
            return code
        worst = max(worst, code)


def _is_command(line: str) -> bool:
    """A path, or a sentence that begins with one, is a message."""
    return line.startswith("/") and " " not in line and line.count("/") == 1


def _command(talk: Talk, line: str) -> int:
    if line == "/help":
        print(HELP, file=sys.stderr)
    elif line == "/reset":
        talk.reset()
        console.note("the conversation is forgotten")
    else:
        console.note(f"there is no command {line}; /help lists them")
    return DONE


def _turn(talk: Talk, line: str) -> int:
    if not line:
        return DONE
    try:
        return INTERRUPTED if talk.say(line).interrupted else DONE
    except FourfoldError as wrong:
        console.error(f"{wrong} (/reset begins anew)")
        return FAILED


def _read_terminal() -> str:
    import readline  # noqa: F401  # gives input() editing and history

    try:
        return input("> ")
    except EOFError:
        print(file=sys.stderr)
        raise


def _read_pipe() -> str:
    line = console.stdin(line=True)
    if not line:
        raise EOFError
    return line
