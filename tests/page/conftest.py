"""A browser, servers for it that say what a test wants, and one that can be killed.

Whatever a page complains about in its console fails the test, a violation of its policy among it.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from tests.page.browser import arguments, executable
from tests.server.conftest import ScriptedModel, Served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDE = {"width": 1280, "height": 800}


class SlowModel(ScriptedModel):
    """Takes its time, `pause` seconds a step."""

    pause = 0.0

    def paged_streams(self, *args: Any) -> Any:
        time.sleep(self.pause)
        return super().paged_streams(*args)


class Listening(Served):
    """A server in a thread of this process, on a socket."""

    def __init__(self, model: SlowModel, **config: Any) -> None:
        super().__init__(model, **config)
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        own = uvicorn.Config(
            self.app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1
        )
        self.process = uvicorn.Server(own)
        self.thread = threading.Thread(target=self.process.run, args=([self.socket],))
        self.thread.start()
        while not self.process.started:
            time.sleep(0.01)

    def close(self) -> None:
        self.process.should_exit = True
        self.thread.join()
        self.socket.close()
        self.engine.close()


@pytest.fixture
def serve(tokenizer_file: Path) -> Iterator[Callable[..., Listening]]:
    """serve("what the model says", pause=…, keys=…)."""
    made: list[Listening] = []

    def make(text: str | None = "Hello.", pause: float = 0.0, **config: Any) -> Listening:
        model = SlowModel(tokenizer_file)
        model.say(text)
        model.pause = pause
        made.append(Listening(model, **config))
        return made[-1]

    yield make
    for served in made:
        served.close()


class Process:
    """`fourfold serve` with a tiny model of random weights, always on the same port."""

    def __init__(self, model: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._model = model
        self.start()

    def start(self) -> None:
        words = [
            "serve",
            str(self._model),
            "--port",
            str(self.port),
            "--threads",
            "1",
            "--cache-memory",
            "20MiB",
        ]
        self._running = subprocess.Popen(
            [sys.executable, "-m", "fourfold", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._running.stdout is not None
        assert self._running.stdout.readline(), "it did not start"

    def kill(self) -> None:
        assert self._running.stdout is not None
        self._running.kill()
        self._running.wait()
        self._running.stdout.close()


@pytest.fixture
def process(tiny_folder: Path) -> Iterator[Process]:
    made = Process(tiny_folder)
    yield made
    made.kill()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable(), args=arguments())
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """visit(url, …) -> a page in a browser that was never there.  expected: complaints that may come."""
    complaints: list[str] = []
    contexts = []

    def make(url: str, expected: str = "(?!)", **options: Any) -> Page:
        contexts.append(browser.new_context(**{"viewport": WIDE, "color_scheme": "light", **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)

        def heard(text: str) -> None:
            if not re.search(expected, text):
                complaints.append(text)

        page.on("console", lambda said: heard(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"a dialog: {dialog.message}"))
        page.goto(url)
        return page

    yield make
    for context in contexts:
        context.close()
    assert not complaints


def ask(page: Page, text: str) -> None:
    page.fill("#input", text)
    page.press("#input", "Enter")


def until(page: Page, condition: str) -> None:
    """Wait for a condition in JavaScript: Playwright's own way needs eval, which the policy forbids."""
    for _ in range(600):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(25)
    raise AssertionError(f"it does not come true: {condition}")


def answered(page: Page, number: int = 1) -> None:
    """Wait for so many answers to end."""
    done = "document.querySelectorAll('.message.assistant[aria-busy=false]').length"
    until(page, f"{done} === {number} && !document.querySelector('#send.running')")


def begun(page: Page, least: int = 20) -> None:
    """Wait for so many characters of an answer."""
    until(page, f"document.querySelector('.message.assistant > .body')?.innerText.length > {least}")
