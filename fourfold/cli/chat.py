"""`fourfold chat`: a conversation on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from fourfold.cli import console, options
from fourfold.cli.answer import messages_of, speak, speed_line
from fourfold.cli.model import Opened, open_model
from fourfold.engine.session import Session
from fourfold.errors import FourfoldError, RequestError
from fourfold.protocol import Chat

HELP = """/reset  forget the conversation
/quit   leave (so does Ctrl-D)
/help   this list
Ctrl-C  stop the answer; what was said so far stays"""


def chat(
    model: Annotated[
        str | None, typer.Argument(help="Checkpoint folder or repo id.", show_default="the shipped model")
    ] = None,
    system: options.System = None,
    think: options.Think = False,
    effort: options.Effort = None,
    prompt_format: options.PromptFormat = None,
    max_tokens: options.MaxTokens = 1024,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    device: options.Device = "cpu",
    numerics: options.Numerics = "exact",
    threads: options.Threads = 0,
) -> None:
    """Talk with a model. Without a terminal, each line of stdin is one turn."""
    opened = open_model(model, device=device, numerics=numerics, threads=threads)
    if opened.model.tokenizer is None:
        raise RequestError(f"{opened.name} has no tokenizer.json; put the model's own into its folder")
    sampling = opened.sampler(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed)
    thinking: dict[str, Any] = {
        "thinking": think or effort is not None,
        "effort": effort,
        "format": opened.format(prompt_format),
    }
    talk = Conversation(opened, system, thinking, {"max_tokens": max_tokens, **sampling})
    Chat(
        messages=messages_of(system, ""), **thinking
    ).prompt()  # a wrong option is told now, not after the first turn
    if sys.stdin.isatty():
        console.note("/help lists the commands, Ctrl-D leaves")
    repl(talk, _read_terminal if sys.stdin.isatty() else _read_pipe)


@dataclass
class Conversation:
    """The turns so far, and the model's memory of them."""

    opened: Opened
    system: str | None
    chat_options: dict[str, Any]
    generate_options: dict[str, Any]
    turns: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.session = Session(self.opened.model)

    def say(self, text: str) -> None:
        """One turn: the user's text, the model's answer. An answer that fails leaves the conversation as it
        was.
        """
        first = messages_of(self.system, text)
        messages = first[:-1] + self.turns + first[-1:]
        request = Chat(messages=messages, **self.chat_options)
        tokenizer = self.opened.model.tokenizer
        assert tokenizer is not None
        generation = self.session.generate(request.prompt().encode(tokenizer), **self.generate_options)
        spoken = speak(generation, request)
        console.answer("\n")
        console.note(("stopped, " if spoken.interrupted else "") + speed_line(generation))
        answer = {"role": "assistant", "content": spoken.text, "reasoning_content": spoken.reasoning}
        self.turns += [first[-1], answer]

    def reset(self) -> None:
        """Forget every turn."""
        self.turns.clear()
        self.session.reset()


def repl(talk: Conversation, read: Callable[[], str]) -> None:
    """Read turns and commands until the input ends or /quit."""
    while True:
        try:
            line = read().strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            print(file=sys.stderr)
            console.note("Ctrl-D or /quit leaves")
            continue
        if line == "/quit":
            return
        if line == "/help":
            print(HELP, file=sys.stderr)
        elif line == "/reset":
            talk.reset()
            console.note("the conversation is forgotten")
        elif line.startswith("/") and " " not in line and line.count("/") == 1:
            console.note(f"there is no command {line}; /help lists them")
        elif line:
            _turn(talk, line)


def _turn(talk: Conversation, line: str) -> None:
    try:
        talk.say(line)
    except FourfoldError as wrong:
        console.error(f"{wrong} (/reset begins anew)")


def _read_terminal() -> str:
    import readline  # noqa: F401  # gives input() editing and history

    try:
        return input("> ")
    except EOFError:
        print(file=sys.stderr)
        raise


def _read_pipe() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
