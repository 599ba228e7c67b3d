"""The Chromium that shows the page; `python -m tests.page.browser` brings one where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable() -> str | None:
    """The one on this machine; None: Playwright's own."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def arguments() -> list[str]:
    """Chromium's sandbox refuses to work for root, who runs the tests in containers."""
    return ["--no-sandbox"] if os.geteuid() == 0 else []


def bring() -> None:
    """Have Playwright download its own where there is none.  SystemExit: it cannot."""
    if executable() is not None:
        return
    if subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"]).returncode:
        raise SystemExit(
            f"the page cannot be tested: no browser is here ({', '.join(NAMES)}), and Playwright could not "
            "bring its own; install Chromium"
        )


if __name__ == "__main__":
    bring()
