"""What a run leaves to look at: run.json, metrics.csv as it runs, its pictures, and lines for who waits."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

COLUMNS = (
    "step", "seconds", "tokens", "share", "lr", "loss", "kl", "mtp_loss", "balance", "indexer_loss",
    "grad_norm", "max_load", "tokens_per_second", "held_out_loss", "rounded", "anticipated",
    "reward", "answer_tokens", "cut_off", "clipped", "rollout_seconds",
)  # fmt: skip


class Metrics:
    """metrics.csv, one row a step; on resume it is continued without the rows after `step`."""

    def __init__(self, path: Path, step: int) -> None:
        kept = [row for row in read_metrics(path) if row["step"] <= step] if path.is_file() and step else []
        # Rewritten beside itself and renamed: a run killed right here must not lose what earlier ones
        # recorded.
        partial = path.with_suffix(".partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="")
            writer.writeheader()
            writer.writerows(map(_rounded, kept))
        os.replace(partial, path)
        self._file: TextIO = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, COLUMNS, restval="")

    def add(self, values: Mapping[str, float]) -> None:
        """Append one row; columns that are not given stay empty."""
        self._writer.writerow(_rounded(values))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _rounded(values: Mapping[str, float]) -> dict[str, float | str]:
    """Seven digits, and whole numbers (steps, tokens) in full."""
    return {k: str(int(v)) if v == int(v) else f"{v:.7g}" for k, v in values.items()}


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv, empty cells left out."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def plot(curves: Mapping[str, Path], target: Path) -> None:
    """Draw training and held-out loss over tokens for each named metrics.csv.  Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120)
    for name, path in curves.items():
        rows = read_metrics(path)
        trained = [(r["tokens"] / 1e6, r["loss"]) for r in rows if "loss" in r]
        held = [(r["tokens"] / 1e6, r["held_out_loss"]) for r in rows if "held_out_loss" in r]
        if trained:
            (line,) = axes.plot(
                *zip(*trained, strict=True), linewidth=0.8, alpha=0.5, label=f"{name}, training"
            )
            if held:
                axes.plot(
                    *zip(*held, strict=True),
                    "o-",
                    markersize=3,
                    color=line.get_color(),
                    label=f"{name}, held out",
                )
        rounded = [r["tokens"] / 1e6 for r in rows if r.get("rounded")]
        if rounded:
            axes.axvline(rounded[0], linestyle=":", color="grey", label=f"{name}: weights rounded from here")
    axes.set(xlabel="tokens learnt from (millions)", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(target)
    pyplot.close(figure)


def plot_columns(path: Path, target: Path) -> None:
    """Draw every other column of a metrics.csv over the steps, each by itself.  Needs matplotlib."""
    from matplotlib import pyplot

    rows = read_metrics(path)
    apart = ("step", "seconds", "tokens", "share", "loss", "held_out_loss")
    names = [name for name in COLUMNS if name not in apart and any(row.get(name) for row in rows)]
    lines = max(1, -(-len(names) // 3))
    figure, grid = pyplot.subplots(lines, 3, figsize=(12, 2.4 * lines), dpi=100, squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        known = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*known, strict=True), linewidth=0.8)
        axes.set_title(name, fontsize=9)
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(names) :]:
        axes.axis("off")
    figure.tight_layout()
    figure.savefig(target)
    pyplot.close(figure)


def note_start(path: Path, config: Mapping[str, Any], step: int, environment: Mapping[str, Any]) -> None:
    """Write run.json: the configuration as it is now, and when, at which step and where each start was."""
    earlier = json.loads(path.read_text(encoding="utf-8"))["starts"] if path.is_file() else []
    now = datetime.now(UTC).isoformat(timespec="seconds")
    document = {"config": config, "starts": [*earlier, {"time": now, "step": step, **environment}]}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


class Progress:
    """A bar with numbers on a terminal, otherwise a plain line now and then; always on stderr.

    shown: False for a process that another one speaks for.
    """

    def __init__(self, every: int, *, shown: bool = True) -> None:
        self.every, self.shown = every, shown
        self._bar = None
        if shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                BarColumn(), TextColumn("{task.percentage:.0f} %"), TextColumn("{task.description}"),
                TimeElapsedColumn(), console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0)

    def step(self, values: Mapping[str, float]) -> None:
        """Show one step's numbers."""
        text = (
            f"step {values['step']:.0f} · {values['tokens'] / 1e6:.2f}M tokens · loss {values['loss']:.3f}"
            f" · {values['tokens_per_second']:,.0f} tokens/s"
        )
        text += "".join(f" · {name} {values[name]:.3f}" for name in ("kl", "reward") if values.get(name))
        if self._bar is not None:
            self._bar.update(self._task, completed=values["share"], description=text)
        elif values["step"] % self.every == 0:
            self.say(f"{values['share']:6.1%} · {text} · lr {values['lr']:.2e}")

    def part(self, name: str, done: int, total: int) -> None:
        """Show how far something before the first step is."""
        if self._bar is not None:
            self._bar.update(
                self._task, completed=done / total, description=f"{name}: {done:,} of {total:,} tokens"
            )
        elif done == total:
            self.say(f"{name}: {total:,} tokens")

    def say(self, text: str) -> None:
        """One line for the reader, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(text)
        elif self.shown:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
