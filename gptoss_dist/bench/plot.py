"""Latency against throughput as a PNG. matplotlib is an extra, imported when a plot is asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from gptoss_dist.bench.load import Kind
from gptoss_dist.bench.statistics import RowResult
from gptoss_dist.errors import ConfigError
from gptoss_dist.files import user_path


def check_plot(path: str) -> None:
    """Refuse, before anything is measured, a plot that could not be drawn or written."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(f"job.plot={path}: drawing needs matplotlib: pip install 'gptoss-dist[plot]'.")
    file = user_path(path, "job.plot")
    if file.suffix.lower() != ".png":
        raise ConfigError(f"job.plot={path}: the plot is a PNG. Name it FILE.png.")
    if not file.parent.is_dir():
        raise ConfigError(f"job.plot={path}: there is no folder {file.parent}. Make it, or name another file.")


def draw(results: Sequence[RowResult], title: str, path: str) -> Path | None:
    """Write the plot of the rows that decode; None, and no file, if none of them has numbers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [one for one in results if one.kind == Kind.decode.value and one.output_tokens_per_s and one.ttft_p50_ms]
    if not rows:
        return None
    rows.sort(key=lambda one: one.output_tokens_per_s or 0.0)
    figure = Figure(figsize=(12, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    names = (("time to first token, ms", "ttft"), ("time between tokens, ms", "itl"))
    for panel, (name, key) in zip(panels, names, strict=True):
        for percent in ("p50", "p99"):
            points = [
                (one.output_tokens_per_s, value, str(one.streams or f"{one.rate:g}/s"))
                for one in rows
                if (value := getattr(one, f"{key}_{percent}_ms")) is not None
            ]
            panel.plot([x for x, _, _ in points], [y for _, y, _ in points], marker="o", label=percent)
            if percent == "p50":
                for x, y, label in points:
                    panel.annotate(label, (x, y), textcoords="offset points", xytext=(0, -14), ha="center", fontsize=8)
        panel.set(xlabel="output tokens a second in all; at the points: streams", ylabel=name)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend()
    figure.suptitle(title, fontsize=9)
    file = user_path(path, "job.plot")
    figure.savefig(file, format="png")
    return file
