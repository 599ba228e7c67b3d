from __future__ import annotations

import io
import sys

from fourfold.weights import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(*, show: bool = True) -> None:
    with progress.byte_progress("loading", 100, show=show) as advance:
        advance(40)
        advance(60)


def test_silent_where_nobody_looks(capsys):
    work()
    assert capsys.readouterr() == ("", "")


def test_a_bar_only_on_a_terminal_and_only_if_it_takes_long(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    work()
    assert terminal.getvalue() == ""
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    work(show=False)
    assert terminal.getvalue() == ""
    work()
    assert "fourfold: loading" in terminal.getvalue()
    assert capsys.readouterr().out == ""
