"""TLS with a certificate that is renewed while the server runs: connections that are there keep theirs."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NoReturn

from fourfold.errors import ConfigError


class Certificate:
    """A certificate and its key in PEM files.  ConfigError: they cannot be used.

    chain: the certificate and those between it and a root.  key: None: it is in `chain`, too.
    """

    def __init__(self, chain: Path, key: Path | None = None) -> None:
        self._chain = chain
        self._key = key
        self._seen = self._state()
        self._current = self._read()
        self.context = self._read()
        """For a server's socket; every handshake takes the newest certificate."""
        self.context.sni_callback = self._choose

    def refresh(self, *, forced: bool = False) -> bool:
        """Whether the files have changed, or it was forced, and new handshakes take what they hold now.

        ConfigError, once for each change: that cannot be used, and nothing has changed.
        """
        state = self._state()
        if state == self._seen and not forced:
            return False
        self._seen = state
        self._current = self._read()
        return True

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        connection.context = self._current

    def _state(self) -> list[tuple[int, int, int] | None]:
        """What tells one version of the files from another; None for one that is not there."""
        found: list[tuple[int, int, int] | None] = []
        for path in filter(None, (self._chain, self._key)):
            try:
                stat = path.stat()
                found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
            except OSError:
                found.append(None)
        return found

    def _read(self) -> ssl.SSLContext:
        files = " and ".join(str(path) for path in filter(None, (self._chain, self._key)))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._chain, self._key, _no_password)
        except OSError as error:  # SSLError is one, too
            reason = getattr(error, "reason", None) or error.strerror or str(error)
            raise ConfigError(
                f"{files} cannot be used for TLS ({reason}); allowed: a certificate chain and its key, PEM"
            ) from None
        return context


def _no_password() -> NoReturn:
    raise ConfigError("the TLS key has a password; allowed: one without, in a file that others cannot read")
