"""`/`: the chat page, and the files that it consists of.

A browser asks for them without a key; what the page then asks for needs one, if the server does.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import Response

from fourfold.server.errors import ApiError

router = APIRouter(include_in_schema=False)

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

# Nothing but our own files and our own server, and no way from a text to markup or script.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def _read() -> dict[str, _File]:
    """The page's files by their paths on the server."""
    found = {}
    for file in (files("fourfold.server") / "static").iterdir():
        content = file.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'
        path = "/" if file.name == "index.html" else f"/static/{file.name}"
        found[path] = _File(content, _TYPES[file.name.rpartition(".")[2]], etag)
    return found


_FILES = _read()
PATHS = frozenset(_FILES)


@router.get("/")
@router.get("/static/{name}")
async def page(request: Request) -> Response:
    """One of the files."""
    file = _FILES.get(request.url.path)
    if file is None:
        raise ApiError(404, f"there is no {request.url.path}; the page is at /")
    headers = {**_HEADERS, "etag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
