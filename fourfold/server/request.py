"""What request bodies have in common: strict types, unknown fields refused, fields without effect listed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from starlette.requests import Request as HttpRequest

from fourfold.engine.sampler import Sampling
from fourfold.errors import RequestError
from fourfold.server.backend import Server
from fourfold.server.calls import Call
from fourfold.server.errors import ApiError


class Body(BaseModel):
    """A JSON object whose fields are all known."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        """Clients send nulls in fields of other servers, which ask for nothing."""
        if isinstance(value, dict):
            return {key: own for key, own in value.items() if own is not None}
        return value

    def given(self, *names: str) -> dict[str, Any]:
        """Those of these fields that the client has sent, as JSON values, without nulls."""
        return self.model_dump(include=set(names), exclude_none=True, by_alias=True)


class SamplingFields(Body):
    """Fields of every protocol that choose how tokens are drawn.  null: the model's own."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None

    def sampling(self, server: Server) -> Sampling:
        """What the client says, and the checkpoint's recommendation where it says nothing.

        RequestError: a value is not allowed.
        """
        names = [name for name in Sampling.__dataclass_fields__ if name in type(self).model_fields]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if given.get("top_k") == -1:  # vLLM's word for all
            given["top_k"] = 0
        if "logit_bias" in given:
            given["logit_bias"] = _bias(given["logit_bias"])
        return replace(server.config.recommended.sampling, **given)


def _bias(values: dict[str, float]) -> dict[int, float]:
    if wrong := [token for token in values if not (token.isascii() and token.isdigit())]:
        raise RequestError(f"logit_bias names {wrong[0]!r}; allowed: token ids as texts")
    return {int(token): bias for token, bias in values.items()}


def server_of(request: HttpRequest) -> Server:
    found = request.app.state.server
    assert isinstance(found, Server)
    return found


def call_of(request: HttpRequest) -> Call:
    found = request.state.call
    assert isinstance(found, Call)
    return found


def check_model(server: Server, name: str) -> None:
    """ApiError 404: this server has no model of that name."""
    if name not in server.config.names:
        raise ApiError(
            404,
            f"there is no model {name!r} here; this server has {', '.join(server.config.names)}",
            code="model_not_found",
            param="model",
        )


def check_count(server: Server, messages: list[Any]) -> None:
    """ApiError 413: there are too many messages."""
    if len(messages) > server.config.messages:
        raise ApiError(
            413,
            f"there are {len(messages):,} messages; allowed: {server.config.messages:,}",
            param="messages",
        )
