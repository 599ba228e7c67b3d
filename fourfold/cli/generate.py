"""`fourfold generate`: one answer, streamed, and its speed."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from fourfold.cli import DONE, INTERRUPTED, console, options
from fourfold.cli.answer import Spoken, messages_of, speak, speed_line
from fourfold.cli.constraint import constraint_of
from fourfold.cli.groups import Drawing, Loading, Speeding, grouped
from fourfold.cli.model import Opened, model_name, open_model, tiers_line
from fourfold.engine.generate import GenerateOptions, Generation
from fourfold.engine.generate import generate as run
from fourfold.protocol import Chat
from fourfold.protocol import prompt_format as format_of


@grouped
def generate(
    prompt: Annotated[
        str, typer.Argument(help="The text to continue, or with --chat the question; - reads stdin.")
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Checkpoint folder or repo id.", show_default="the shipped model"),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat/--raw", help="Answer a question in the chat format, or continue the text.")
    ] = False,
    system: options.System = None,
    think: options.Think = False,
    effort: options.Effort = None,
    prompt_format: options.PromptFormat = None,
    max_tokens: options.MaxTokens = 256,
    seed: options.Seed = None,
    stop: options.Stop = None,
    json_schema: options.JsonSchema = None,
    regex: options.Regex = None,
    stats: options.Stats = False,
    json: options.Json = False,
    *,
    drawing: Drawing,
    speeding: Speeding,
    loading: Loading,
) -> int:
    """Print one answer and its speed.

    A continuation of PROMPT, or with --chat a reply to it.
    """
    if not chat and (system or think or effort or prompt_format):
        raise typer.BadParameter("--system, --think, --effort and --prompt-format need --chat")
    text = console.stdin() if prompt == "-" else prompt
    conversation = rendered = None
    if chat:
        conversation = Chat(
            messages=messages_of(system, text),
            thinking=think or effort is not None,
            effort=effort,
            format=prompt_format or format_of(model_name(model)),
        )
        rendered = conversation.prompt()
    constraint = constraint_of(json_schema, regex)
    if constraint is not None and conversation is not None and conversation.thinking:
        constraint = constraint.after_thinking()
    opened = open_model(model, loading)
    sampling = opened.sampler(drawing, seed)
    given = text if rendered is None else rendered.encode(opened.tokenizer)
    wanted: GenerateOptions = {
        "max_tokens": max_tokens,
        "stop": stop or (),
        "constraint": constraint,
        **sampling,
    }
    generation = run(opened.model, given, **speeding.given(), **wanted)
    if not chat and not json and sys.stdout.isatty():
        console.aside(text)
    spoken = speak(generation, conversation, show=not json)
    if json:
        console.document(_document(opened, generation, spoken))
    elif spoken.text and not spoken.text.endswith("\n"):
        console.answer("\n")
    console.note(speed_line(generation))
    if constraint is not None and generation.finish_reason != "stop":
        console.note("the answer ended early: it is not whole")
    if stats:
        console.note(tiers_line(opened.model))
    return INTERRUPTED if spoken.interrupted else DONE


def _document(opened: Opened, generation: Generation, spoken: Spoken) -> dict[str, Any]:
    timing = generation.timing
    return {
        "model": opened.name,
        "text": spoken.text,
        "reasoning": spoken.reasoning,
        "finish_reason": "interrupted" if spoken.interrupted else generation.finish_reason,
        "seed": generation.sampling.seed,
        "prompt_tokens": len(generation.prompt_ids),
        "cached_tokens": generation.cached_tokens,
        "tokens": len(generation.ids),
        "prefill_tokens_per_second": round(timing.prefill_rate, 2),
        "decode_tokens_per_second": round(timing.decode_rate, 2),
        "tiers": None if opened.model.tiers is None else opened.model.tiers.stats().to_dict(),
    }
