"""The application: routes, what they share, and errors in the shapes of their protocols."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

import fourfold
from fourfold.errors import FourfoldError
from fourfold.server import chat, completions, inspection, messages, operations, page, responses, tokens
from fourfold.server.backend import Server
from fourfold.server.errors import ApiError, api_error, invalid
from fourfold.server.gate import Gate
from fourfold.server.request import call_of, server_of


def create_app(server: Server) -> FastAPI:
    """The ASGI application that serves one model."""
    app = FastAPI(
        title="Fourfold",
        version=fourfold.__version__,
        description="DeepSeek-V4 behind the protocols of OpenAI and Anthropic.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.state.server = server
    for module in (chat, completions, responses, messages, tokens, operations, inspection, page):
        app.include_router(module.router)
    app.include_router(messages.router, prefix="/anthropic", include_in_schema=False)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(FourfoldError, _failed)
    app.add_middleware(Gate, server=server)
    if server.config.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=server.config.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return app


def _answer(request: Request, error: ApiError) -> Response:
    call = call_of(request)
    return server_of(request).failed(call, error).response(request.url.path, call.id)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _answer(request, invalid(error.errors()))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    known: Mapping[int, str] = {
        404: f"there is no {path}; GET /openapi.json lists what there is",
        405: f"{path} does not take {request.method}",
    }
    return _answer(request, ApiError(error.status_code, known.get(error.status_code, str(error.detail))))


async def _failed(request: Request, error: Exception) -> Response:
    return _answer(request, api_error(error))
