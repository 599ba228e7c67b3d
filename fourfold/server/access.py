"""Who may ask, and how much: API keys, requests at once, requests a minute."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from fourfold.server.errors import ApiError

ANYBODY = ""
"""The key of those who need none."""


class Keys:
    """The keys that are let in.  Only their hashes are held."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._hashes = [_hash(key) for key in keys]

    def check(self, headers: Mapping[str, str]) -> str:
        """A short name for the key in a request's headers, by which no one can guess it.

        headers: with lower-case names.  ApiError 401: there is none, or it is another.
        """
        if not self._hashes:
            return ANYBODY
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not given:
            raise ApiError(
                401, "there is no API key; send one as Authorization: Bearer KEY or x-api-key: KEY"
            )
        hashed = _hash(given)
        # All of them every time: how long it takes must not tell which one is near.
        alike = [hmac.compare_digest(hashed, known) for known in self._hashes]
        if not any(alike):
            raise ApiError(401, "the API key is wrong; ask who runs this server", code="invalid_api_key")
        return hashed.hex()[:12]


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Quota:
    """Requests of one key at once and a minute; 0: any number.

    The minute's are tokens in a bucket that fills evenly, so that a pause is made up for, once.
    """

    def __init__(self, running: int, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_running = running
        self._rate = rate
        self._clock = clock
        self._running: Counter[str] = Counter()
        self._buckets: dict[str, tuple[float, float]] = {}

    @contextmanager
    def request(self, key: str) -> Iterator[None]:
        """Lasts as long as a request of this key.  ApiError 429: it has too many."""
        if self._most_running and self._running[key] >= self._most_running:
            raise ApiError(
                429,
                f"{self._running[key]} requests of this API key are running; allowed: {self._most_running}; "
                "wait for one to end",
                code="concurrency_limit_exceeded",
                retry_after=1,
            )
        self._spend(key)
        self._running[key] += 1
        try:
            yield
        finally:
            self._running[key] -= 1

    def _spend(self, key: str) -> None:
        if not self._rate:
            return
        now = self._clock()
        left, then = self._buckets.get(key, (float(self._rate), now))
        left = min(float(self._rate), left + (now - then) * self._rate / 60)
        self._buckets[key] = (left - 1 if left >= 1 else left, now)
        if left < 1:
            raise ApiError(
                429,
                f"this API key has had its {self._rate} requests of a minute; wait",
                code="rate_limit_exceeded",
                retry_after=(1 - left) * 60 / self._rate,
            )
