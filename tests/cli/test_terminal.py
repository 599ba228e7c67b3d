"""The chat on a real terminal: a prompt, an answer that Ctrl-C stops, Ctrl-D to leave."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

SECONDS = 60
# In a process of its own: a fork of this one, which has threads, is not safe.  A run in a shell's background
# inherits that Ctrl-C is ignored; on a real terminal it never is.
SPAWN = """import os, pty, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"""


class Terminal:
    """A command under a pseudo-terminal."""

    def __init__(self, *words: str) -> None:
        self.seen = b""
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "dumb"}
        command = [sys.executable, "-c", SPAWN, sys.executable, "-m", "fourfold", *words]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.keyboard, self.screen = self.process.stdin, self.process.stdout

    def expect(self, text: bytes) -> None:
        """Read until `text` has come; what came before it is dropped."""
        end = time.monotonic() + SECONDS
        while text not in self.seen:
            assert time.monotonic() < end, (text, self.seen)
            if select.select([self.screen], [], [], 0.1)[0]:
                self.seen += os.read(self.screen.fileno(), 4096)
        self.seen = self.seen[self.seen.index(text) + len(text) :]

    def expect_more(self) -> None:
        """Wait for anything that has not been read yet."""
        end = time.monotonic() + SECONDS
        while not self.seen:
            assert time.monotonic() < end
            if select.select([self.screen], [], [], 0.1)[0]:
                self.seen += os.read(self.screen.fileno(), 4096)

    def type(self, text: bytes) -> None:
        self.keyboard.write(text)

    def close(self) -> int:
        """The exit code, once the command has ended."""
        code = self.process.wait(SECONDS)
        self.keyboard.close()
        self.screen.close()
        return code


def test_chat_on_a_terminal(tiny_folder):
    terminal = Terminal("chat", str(tiny_folder), "-n", "450", "--threads", "1", "--seed", "1")
    terminal.expect(b"> ")
    terminal.type(b"hello\r")
    terminal.expect(b"hello\r\n")
    terminal.expect_more()  # the answer has begun; it is over within a second
    terminal.type(b"\x03")
    terminal.expect(b"tok/s")
    terminal.expect(b"> ")
    time.sleep(0.3)  # the prompt is seen before it reads keys
    terminal.type(b"\x03")
    terminal.expect(b"Ctrl-D or /quit leaves")
    terminal.expect(b"> ")
    terminal.type(b"\x04")
    assert terminal.close() == 0
