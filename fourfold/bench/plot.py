"""The plot of a run: prefill and decode rates over the context, one line for each engine and thread count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fourfold.errors import RequestError

SUFFIXES = (".svg", ".png")


def require() -> None:
    """RequestError: matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise RequestError("--plot needs matplotlib; pip install 'fourfold[bench]'") from None


def draw(document: dict[str, Any], file: Path) -> None:
    """Write the plot of a bench document as SVG or PNG, by the file's suffix."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{document['model']['name']}, {document['machine']['processor']}", fontsize=10)
    for axes, key in zip(figure.subplots(1, 2), ("prefill", "decode"), strict=True):
        for (engine, threads), points in _lines(document, key).items():
            style = "-" if engine == "fourfold" else "--"
            label = f"{engine}, {threads} thread{'' if threads == 1 else 's'}"
            axes.plot(*zip(*points, strict=True), style, marker="o", markersize=3, label=label)
        if key == "decode":
            for threads, points in _limit(document).items():
                axes.plot(*zip(*points, strict=True), ":", color="grey", label=f"memory limit, {threads}")
        axes.set(xlabel="context, tokens", ylabel="tokens/s", title=key, ylim=(0, None))
        axes.set_xscale("symlog", linthresh=128)
        contexts = sorted({row["context"] for row in document["results"]})
        axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(file, dpi=150)


def _lines(document: dict[str, Any], key: str) -> dict[tuple[str, int], list[tuple[int, float]]]:
    lines: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for row in document["results"]:
        # A further prompt is no point of the context's line: it is an average from nothing to its end.
        if row[key] is not None and row["prompt"] == document["settings"]["prefill"][0]:
            lines.setdefault((row["engine"], row["threads"]), []).append((row["context"], row[key]["best"]))
    return lines


def _limit(document: dict[str, Any]) -> dict[int, list[tuple[int, float]]]:
    """Tokens a second if every byte came at the plain-read bandwidth."""
    lines: dict[int, list[tuple[int, float]]] = {}
    for row in document["results"]:
        if row.get("bandwidth_share"):
            rate = row["decode"]["best"] / row["bandwidth_share"]
            lines.setdefault(row["threads"], []).append((row["context"], rate))
    return lines
