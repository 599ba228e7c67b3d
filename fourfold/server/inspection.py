"""`/fourfold/inspect`: what the model chose when it wrote a token, for the page's live view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from fourfold.engine.inspection import LayerChoice
from fourfold.engine.request import Request as EngineRequest
from fourfold.errors import RequestError
from fourfold.server.answering import admit
from fourfold.server.backend import Server
from fourfold.server.calls import Call
from fourfold.server.errors import ApiError, Document
from fourfold.server.logprobs import token_text
from fourfold.server.request import Body, call_of, check_model, server_of
from fourfold.server.stream import unless_gone

router = APIRouter(tags=["operations"])

MOST_TOKENS = 32_768
"""Of one inspection: it may have to compute them all."""

_RANK = -1
"""The priority of an inspection: below that of all other requests."""


class InspectRequest(Body):
    """tokens: of a prompt and its answer.  position: of the token to look at, among them; the first has no
    choices, since nothing was computed before it.  model: its name, or that of one of its adapters."""

    model: str | None = None
    tokens: Annotated[list[int], Field(min_length=2, max_length=MOST_TOKENS)]
    position: Annotated[int, Field(ge=1)]


@router.post("/fourfold/inspect", response_model=None)
async def inspect(body: InspectRequest, request: Request) -> Response:
    """Each layer's experts and the context that its indexer picked when the model decided on a token.

    The tokens before it are computed once more, from the cache as far as that goes, below the rank of every
    other request; one inspection at a time.
    """
    server, call = server_of(request), call_of(request)
    if body.model is not None:
        check_model(server, body.model)
    if body.position >= len(body.tokens):
        raise RequestError(
            f"position is {body.position}, but there are {len(body.tokens)} tokens; allowed: 1 to "
            f"{len(body.tokens) - 1}"
        )
    wanted = EngineRequest(
        prompt=body.tokens[: body.position],
        max_tokens=1,
        inspect=True,
        priority=_RANK,
        adapter="" if body.model is None else server.config.adapter_of(body.model),
        label=call.label(),
        scope=server.scope(call),
    )
    admit(server)
    if server.inspecting:
        raise ApiError(
            503, "another inspection is running; try again", code="inspection_running", retry_after=1
        )
    server.inspecting = True
    try:
        layers = await unless_gone(request, _layers(server, call, wanted))
    finally:
        server.inspecting = False
    tokenizer = server.engine.tokenizer
    found = {
        "object": "fourfold.inspection",
        "position": body.position,
        "token_strs": [token_text(token, tokenizer) for token in body.tokens],
        "n_routed_experts": server.model.n_routed_experts,
        "sliding_window": server.model.sliding_window,
        "layers": [_described(layer) for layer in layers],
    }
    return Document(found)


async def _layers(server: Server, call: Call, wanted: EngineRequest) -> tuple[LayerChoice, ...]:
    ticket = await server.engine.submit(wanted)
    try:
        call.prompt_tokens = len(ticket.prompt_ids)
        async for _ in ticket.chunks():
            call.cached_tokens = ticket.cached_tokens
        return ticket.layers
    finally:
        server.engine.cancel(ticket)


def _described(layer: LayerChoice) -> dict[str, Any]:
    """spans: ranges [from, to) of tokens whose compressed entries the indexer chose; null: all are seen."""
    spans = None if layer.entries is None else [*_spans(layer.entries, layer.ratio)]
    return {
        "kind": layer.kind,
        "ratio": layer.ratio,
        "hashed": layer.hashed,
        "experts": layer.experts,
        "weights": [round(weight, 6) for weight in layer.weights],
        "visible": layer.visible,
        "chosen": layer.visible if layer.entries is None else len(layer.entries),
        "spans": spans,
    }


def _spans(entries: Sequence[int], ratio: int) -> Iterator[tuple[int, int]]:
    """The tokens of ascending entries, those of neighbours as one range."""
    start = end = None
    for entry in entries:
        if entry != end:
            if start is not None and end is not None:
                yield start * ratio, end * ratio
            start = entry
        end = entry + 1
    if start is not None and end is not None:
        yield start * ratio, end * ratio
