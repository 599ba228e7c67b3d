"""`fourfold serve`: the model behind the protocols of OpenAI and Anthropic."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

import fourfold
from fourfold.cli import DONE, FAILED, console, options
from fourfold.cli.groups import Drawing, Loading, Speeding, grouped
from fourfold.cli.model import model_name
from fourfold.config import ModelConfig
from fourfold.engine.config import EngineConfig
from fourfold.engine.defaults import recommended
from fourfold.engine.trace_file import TraceFile
from fourfold.errors import ConfigError, RequestError
from fourfold.protocol import prompt_format as format_of
from fourfold.protocol import thinks_unasked
from fourfold.weights.hub import resolve

KEYS_VARIABLE = "FOURFOLD_API_KEYS"


def _named(texts: list[str] | None) -> list[str] | None:
    for text in texts or ():
        if not all(text.partition("=")):
            raise typer.BadParameter(f"{text} is not of the form NAME=DIR")
    return texts


@grouped
def serve(
    model: Annotated[
        str | None, typer.Argument(help="Checkpoint folder or repo id.", show_default="the shipped model")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    name: Annotated[
        str | None, typer.Option(help="What requests call the model.", show_default="its folder's name")
    ] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Another name for it; may be repeated.")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            callback=_named,
            help="A low-rank adapter of the model, for requests of MODEL:NAME; may be repeated.",
        ),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A key that clients must send; may be repeated. Or in {KEYS_VARIABLE}, by spaces."
        ),
    ] = None,
    api_key_file: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A file of keys, one a line; may be repeated."),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Certificate chain (PEM): serve https. Read again when it changes."
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Its private key, without a password.", show_default="in --tls-cert"
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine without a key.")
    ] = False,
    think: Annotated[
        bool | None,
        typer.Option(
            "--think/--no-think",
            help="Reason where a request does not say.",
            show_default="yes for published V4 models",
        ),
    ] = None,
    prompt_format: options.PromptFormat = None,
    max_running: Annotated[int, typer.Option(help="Requests that are computed at once.", min=1)] = 32,
    max_waiting: Annotated[
        int, typer.Option(help="Requests that may wait; more are told to come later.", min=1)
    ] = 256,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", "-n", help="The longest answer.", min=1, show_default="what fits"),
    ] = None,
    max_choices: Annotated[int, typer.Option(help="The most answers of one request (n).", min=1)] = 16,
    max_body: Annotated[int, typer.Option(help="The largest request, in MiB.", min=1)] = 16,
    max_messages: Annotated[int, typer.Option(help="The most messages of one request.", min=1)] = 4096,
    step_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens of one forward pass, prompts and answers together.",
            min=2,
            show_default="512, twice --max-running at least",
        ),
    ] = None,
    cache_memory: Annotated[
        str | None,
        typer.Option(
            callback=options.size("cache_memory"),
            metavar="SIZE",
            help="Memory of the KV cache.",
            show_default="by what is free",
        ),
    ] = None,
    saved_memory: Annotated[
        str | None,
        typer.Option(
            callback=options.size("saved_memory"),
            metavar="SIZE",
            help="RAM for requests that are put aside and for what comes from --cache-dir.",
            show_default="a 4th of --cache-memory",
        ),
    ] = None,
    snapshots: Annotated[
        int, typer.Option(help="States kept for prompts that begin alike; 0: none.", min=0)
    ] = EngineConfig.snapshots,
    snapshot_every: Annotated[
        int, typer.Option(help="Tokens between two of them inside a text.", min=1)
    ] = EngineConfig.snapshot_every,
    cache_scope: Annotated[
        Literal["key", "global"], typer.Option(help="Who finds whose cached prefixes: one API key's, or all.")
    ] = "key",
    key_concurrency: Annotated[int, typer.Option(help="Requests of one key at once; 0: any.", min=0)] = 0,
    key_rate: Annotated[int, typer.Option(help="Requests of one key a minute; 0: any.", min=0)] = 0,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="A web page's origin that browsers may ask from; may be repeated."),
    ] = None,
    keep_alive: Annotated[
        float, typer.Option(help="Seconds between comments in a stream that has nothing to say.", min=0.01)
    ] = 10,
    read_timeout: Annotated[
        float, typer.Option(help="Seconds that a client may leave its stream unread.", min=0.01)
    ] = 60,
    drain_timeout: Annotated[
        float, typer.Option(help="Seconds that running requests have after SIGTERM.", min=1)
    ] = 30,
    log_format: Annotated[
        Literal["json", "text"], typer.Option(help="Of the lines on stderr, one for each request.")
    ] = "json",
    trace_file: Annotated[
        Path | None,
        typer.Option(
            callback=options.new_file,
            metavar="FILE",
            help="Write what happens to each request there, for ui.perfetto.dev; 64 MiB, and a .1 before.",
            show_default="none",
        ),
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Put prompts and answers into the log.")
    ] = False,
    *,
    drawing: Drawing,
    speeding: Speeding,
    loading: Loading,
) -> int:
    """Serve a model to clients of OpenAI, Anthropic and DeepSeek."""
    try:
        from fourfold.server import Backend, Process, Server, ServerConfig
        from fourfold.server.calls import Log
        from fourfold.server.run import address, bound, is_loopback, run
        from fourfold.server.tls import Certificate
        from fourfold.worker.wire import launch
    except ModuleNotFoundError as missing:
        raise RequestError(
            f"{missing.name} is not installed; pip install 'fourfold[serve]' brings what the server needs"
        ) from None

    keys = _keys(api_key or (), api_key_file or ())
    if not is_loopback(host) and not keys and not insecure:
        raise ConfigError(
            f"host is {host}, which others reach, and there is no key; add --api-key KEY, or --insecure if "
            "something in front of it lets nobody in"
        )
    adapters = dict(one.split("=", 1) for one in adapter or ())
    if tls_key is not None and tls_cert is None:
        raise typer.BadParameter("--tls-key needs --tls-cert")
    certificate = None if tls_cert is None else Certificate(tls_cert, tls_key)
    own = model_name(model)
    config = ServerConfig(
        name=name or own,
        aliases=(*(alias or ()), *_repo_id(model)),
        adapters=tuple(adapters),
        format=prompt_format or format_of(own),
        thinking=thinks_unasked(own) if think is None else think,
        keys=keys,
        cache_scope=cache_scope,
        body_bytes=max_body << 20,
        messages=max_messages,
        choices=max_choices,
        answer_tokens=max_tokens,
        waiting=max_waiting,
        key_running=key_concurrency,
        key_rate=key_rate,
        keep_alive=keep_alive,
        slow_reader=read_timeout,
        drain=drain_timeout,
        hosts=("localhost", "127.0.0.1", "::1", host) if is_loopback(host) else (),
        origins=tuple(cors_origin or ()),
        log_prompts=log_prompts,
        trace_file=trace_file,
    )
    engine_config = EngineConfig(
        max_running=max_running,
        step_tokens=step_tokens or max(EngineConfig.step_tokens, 2 * max_running),
        memory=cache_memory,
        snapshots=snapshots,
        snapshot_every=snapshot_every,
        saved_memory=saved_memory,
        trace_file=None if trace_file is None else str(trace_file),
        **speeding.given(),
    )
    if trace_file is not None:
        TraceFile(trace_file, fresh=True).close()
    with bound(host, port) as listening:
        folder = resolve(model or str(fourfold.shipped_model()))
        advice = recommended(folder)
        advice = replace(advice, sampling=replace(advice.sampling, **drawing.given()))
        config = replace(config, recommended=advice)
        process = Process(launch(folder, engine_config, adapters, **asdict(loading)))
        known = ModelConfig.from_file(folder / "config.json")
        engine = Backend(process, fourfold.tokenizer(folder), known, Log(log_format))
        server = Server(engine, config)
        url = address(listening, secure=certificate is not None)
        ended = run(server, listening, lambda: _announce(config.name, url, bool(keys)), certificate)
    return DONE if ended else FAILED


def _keys(given: Sequence[str], files: Sequence[Path]) -> tuple[str, ...]:
    """All keys that there are: of options, of files and of the environment."""
    found = [*given, *os.environ.get(KEYS_VARIABLE, "").split()]
    for file in files:
        own = file.read_text(encoding="utf-8").split()
        if not own:
            raise ConfigError(f"{file} holds no key; write one into each of its lines")
        found += own
    return tuple(dict.fromkeys(found))


def _repo_id(model: str | None) -> tuple[str, ...]:
    """What clients of the hosted service call a model that was asked for by its repo id."""
    return () if model is None or "/" not in model or Path(model).exists() else (model,)


def _announce(name: str, url: str, locked: bool) -> None:
    """Where it listens, and what to paste: for the shell, for Python, for an agent."""
    key = "$FOURFOLD_API_KEY" if locked else "none"
    header = f' -H "Authorization: Bearer {key}"' if locked else ""
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "Tell me a story."}]})
    python_key = 'os.environ["FOURFOLD_API_KEY"]' if locked else '"none"'
    python = (
        f"import openai{', os' if locked else ''}; "
        f'client = openai.OpenAI(base_url="{url}/v1", api_key={python_key}); '
        f'print(client.chat.completions.create(model="{name}", messages='
        '[{"role": "user", "content": "Tell me a story."}]).choices[0].message.content)'
    )
    console.note(f"{name} listens on {url}; Ctrl-C ends it")
    print(f"curl {url}/v1/chat/completions{header} -H 'Content-Type: application/json' -d '{body}'")
    print(f"python -c '{python}'")
    own = f"ANTHROPIC_MODEL={name} ANTHROPIC_SMALL_FAST_MODEL={name}"
    print(f"ANTHROPIC_BASE_URL={url} ANTHROPIC_AUTH_TOKEN={key} {own} claude", flush=True)
