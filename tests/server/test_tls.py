"""TLS: certificates that change while streams run, and files that are none."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import threading
import time
from pathlib import Path

import httpx2
import pytest

from fourfold.cli.main import main
from fourfold.errors import ConfigError
from fourfold.server.run import address, bound, run
from fourfold.server.tls import Certificate
from tests.server.conftest import NAME
from tests.server.test_chat import ASK

VECTORS = Path(__file__).parents[1] / "vectors"
FIRST, SECOND = VECTORS / "tls_1.pem", VECTORS / "tls_2.pem"
"""Each a certificate of localhost until 2126 and its key, which keeps nothing secret: openssl req -x509
-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 -subj /CN=localhost
-addext subjectAltName=DNS:localhost,IP:127.0.0.1"""


def client(pem: Path) -> httpx2.Client:
    """One that believes in this certificate alone."""
    return httpx2.Client(verify=ssl.create_default_context(cafile=pem), timeout=30)


def test_a_certificate_is_renewed_under_a_running_stream(serve, tmp_path):
    served = serve(None)
    pem = tmp_path / "server.pem"
    shutil.copy(FIRST, pem)
    failed: list[BaseException] = []

    def become(content: bytes) -> None:
        fresh = tmp_path / "fresh.pem"
        fresh.write_bytes(content)
        fresh.replace(pem)

    def ask(url: str, pem: Path) -> bool:
        with client(pem) as asking:
            try:
                return asking.get(f"{url}/health").status_code == 200
            except httpx2.ConnectError:
                return False

    def until(wanted) -> None:
        end = time.monotonic() + 20
        while not wanted():
            assert time.monotonic() < end
            time.sleep(0.02)

    def work(url: str) -> None:
        try:
            assert url.startswith("https://") and ask(url, FIRST) and not ask(url, SECOND)
            body = {"model": NAME, "messages": ASK, "stream": True, "ignore_eos": True, "max_tokens": 400}
            with (
                client(FIRST) as asking,
                asking.stream("POST", f"{url}/v1/chat/completions", json=body) as reply,
            ):
                lines = reply.iter_lines()
                next(lines)
                become(SECOND.read_bytes())
                until(lambda: ask(url, SECOND))
                assert not ask(url, FIRST)
                rest = list(lines)
            assert '"finish_reason":"length"' in rest[-4] and rest[-2] == "data: [DONE]"
            # What is no certificate changes nothing, and the next one is taken.
            become(b"no certificate")
            os.kill(os.getpid(), signal.SIGHUP)
            until(lambda: "the old one stays" in served.log.getvalue())
            assert ask(url, SECOND)
            become(FIRST.read_bytes())
            os.kill(os.getpid(), signal.SIGHUP)
            until(lambda: ask(url, FIRST))
        except BaseException as error:
            failed.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    with bound("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=work, args=(address(listening, secure=True),))
        assert run(served.server, listening, thread.start, Certificate(pem))
    thread.join()
    if failed:
        raise failed[0]


def test_files_that_are_no_certificate(tmp_path):
    halves = SECOND.read_text().split("-----BEGIN PRIVATE KEY-----")
    key = tmp_path / "key.pem"
    key.write_text("-----BEGIN PRIVATE KEY-----" + halves[1])
    Certificate(SECOND, key)
    for chain, other in [(tmp_path / "none", None), (key, None), (FIRST, key), (SECOND, tmp_path / "none")]:
        with pytest.raises(ConfigError, match="cannot be used for TLS"):
            Certificate(chain, other)


def test_the_options(capfd, tmp_path):
    assert main(["serve", "--tls-key", str(tmp_path / "key")]) == 2
    assert "--tls-key needs --tls-cert" in capfd.readouterr().err
    assert main(["serve", "--tls-cert", str(tmp_path / "none")]) == 1
    assert "cannot be used for TLS" in capfd.readouterr().err
