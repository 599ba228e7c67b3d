"""What operators and their tools ask: models, health, version, metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

import fourfold
from fourfold.server.backend import Server
from fourfold.server.errors import ApiError, Document
from fourfold.server.metrics import CONTENT_TYPE
from fourfold.server.request import server_of

router = APIRouter(tags=["operations"])


@router.get("/v1/models", response_model=None)
async def models(request: Request) -> Response:
    """The model, its other names, and its adapters."""
    server = server_of(request)
    return Document({"object": "list", "data": [_model(server, name) for name in server.config.names]})


@router.get("/v1/models/{name:path}", response_model=None)
async def model(name: str, request: Request) -> Response:
    server = server_of(request)
    if name not in server.config.names:
        raise ApiError(404, f"there is no model {name!r} here; GET /v1/models lists what there is")
    return Document(_model(server, name))


def _model(server: Server, name: str) -> dict[str, Any]:
    base = server.config.name
    parent = {"parent": base} if server.config.adapter_of(name) else {}
    return {
        "id": name,
        "object": "model",
        "created": server.started,
        "owned_by": "fourfold",
        "root": base,
        **parent,
        "max_model_len": server.model.max_position_embeddings,
    }


@router.get("/health", response_model=None)
async def health(request: Request) -> Response:
    """200: the process lives, and its engine does or will soon; 503: no engine starts any more."""
    engine = server_of(request).engine
    stats = engine.stats()
    found = {
        "status": "failed" if engine.state == "failed" else "ok",
        "running": stats.running,
        "waiting": stats.waiting,
        "engine": {"state": engine.state, "restarts": engine.restarts, "last_reason": engine.reason or None},
    }
    return Document(found, 503 if engine.state == "failed" else 200)


@router.get("/ready", response_model=None)
async def ready(request: Request) -> Response:
    """200: new requests are computed; 503: there is no engine, it shuts down, or too many wait."""
    server = server_of(request)
    waiting = server.engine.stats().waiting
    if server.draining:
        return Document({"status": "draining"}, 503)
    if server.engine.state != "ready":
        return Document({"status": server.engine.state}, 503)
    if waiting >= max(1, server.config.waiting):
        return Document({"status": "overloaded", "waiting": waiting}, 503)
    return Document({"status": "ready"})


@router.get("/version", response_model=None)
async def version() -> Response:
    return Document({"version": fourfold.__version__})


@router.get("/metrics", response_model=None)
async def metrics(request: Request) -> Response:
    """In Prometheus' text format."""
    return Response(server_of(request).metrics.text(), media_type=CONTENT_TYPE)
