"""Draws what peers.py measured: time against density, and share of the memory limit."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from peerlib.compare import Row
from peerlib.table import is_dense

COLORS = {
    "tamis": "#d62728",
    "tamis csr": "#ff9f1c",
    "tamis 2:4": "#e377c2",
    "tamis block": "#7f0000",
    "torch": "#1f77b4",
    "torch csr": "#17becf",
    "torch bsr": "#7fc4d8",
    "scipy": "#bcbd22",
    "mkl": "#8c564b",
    "onnxruntime": "#2ca02c",
    "deepsparse": "#9467bd",
    "ggml": "#4d4d4d",
}
STYLES = {"f32": "-", "bf16": "--", "i8": ":", "i4": "-."}
MARKERS = {"2:4": "D", "block": "s", "csr": "^", "bsr": "s"}


def draw(rows: Sequence[Row], folder: Path) -> Iterator[Path]:
    """Writes PNG files; yields their names."""
    folder.mkdir(parents=True, exist_ok=True)
    timed = [row for row in rows if row.ms]
    by_shape = sorted(timed, key=lambda row: (row.shape, row.threads))
    for (shape, threads), group in groupby(by_shape, lambda row: (row.shape, row.threads)):
        yield _save(_times(list(group)), folder / f"peers-{shape}-{threads}t.png")
    for threads in sorted({row.threads for row in timed}):
        chosen = [row for row in timed if row.threads == threads]
        yield _save(_limits(chosen), folder / f"peers-limit-{threads}t.png")


def _times(rows: list[Row]) -> Figure:
    """One panel per m: ms against density; dense products, which do not see zeros, are level."""
    batches = sorted({row.m for row in rows})
    across = min(4, len(batches))
    down = -(-len(batches) // across)
    fig = Figure(figsize=(2.2 + 3.6 * across, 1.2 + 3.2 * down))
    panels = fig.subplots(down, across, squeeze=False, sharex=True)
    for panel, m in zip(panels.flat, batches, strict=False):
        _time_panel(panel, [row for row in rows if row.m == m])
        panel.set_title(f"m = {m}", fontsize=10)
    for panel in panels.flat[len(batches) :]:
        panel.axis("off")
    for panel in panels[-1]:
        panel.set_xlabel("density (share of weights kept)")
    for panel in panels[:, 0]:
        panel.set_ylabel("ms per product")
    first = rows[0]
    fig.suptitle(
        f"{first.shape}: w [{first.n}, {first.k}], {first.threads} thread(s), weights not in cache"
    )
    handles: dict[str, Artist] = {}
    for panel in panels.flat:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    fig.legend(list(handles.values()), list(handles), loc="center right", fontsize=9, frameon=False)
    fig.tight_layout(rect=(0, 0, 1 - 2.2 / fig.get_figwidth(), 1))
    return fig


def _time_panel(panel: Axes, rows: list[Row]) -> None:
    for name in dict.fromkeys(row.candidate for row in rows):
        line = sorted((row for row in rows if row.candidate == name), key=lambda row: row.density)
        kind = name.split()[1]
        panel.plot(
            [row.density for row in line],
            [row.ms for row in line],
            STYLES[line[0].dtype],
            color=_color(name),
            marker=MARKERS.get(kind, "o"),
            markersize=4,
            linewidth=2 if name.startswith("tamis") else 1.1,
            label=name + (" (dense)" if is_dense(line[0]) else ""),
        )
    panel.set_yscale("log")
    panel.grid(alpha=0.3, which="both", linewidth=0.5)


def _limits(rows: list[Row]) -> Figure:
    """One panel per shape at one token: share of the stream-read limit, bars per density."""
    rows = [row for row in rows if row.m == 1] or rows  # unless none was measured there
    shapes = list(dict.fromkeys(row.shape for row in rows))
    fig = Figure(figsize=(11, 1.6 + 2.4 * len(shapes)))
    panels = fig.subplots(len(shapes), 1, squeeze=False, sharex=True)
    names = [
        name
        for name in dict.fromkeys(row.candidate for row in rows)
        if any(row.limit_share for row in rows if row.candidate == name)
    ]
    densities = sorted({row.density for row in rows}, reverse=True)
    width = 0.85 / len(densities)
    shades = colormaps["viridis"]
    for panel, shape in zip(panels[:, 0], shapes, strict=True):
        here = [row for row in rows if row.shape == shape and row.limit_share]
        m = min(row.m for row in here)
        at = {(r.candidate, r.density): 100 * r.limit_share for r in here if r.m == m}
        for i, density in enumerate(densities):
            panel.bar(
                [x + (i - (len(densities) - 1) / 2) * width for x in range(len(names))],
                [at.get((name, density), 0) for name in names],
                width,
                color=shades(i / max(1, len(densities) - 1) * 0.9),
                label=f"density {density:g}",
            )
        panel.axhline(100, color="black", linewidth=0.8)
        panel.set_ylabel("% of plain read")
        panel.set_title(f"{shape} [{here[0].n}, {here[0].k}], m = {m}", fontsize=10)
        panel.grid(axis="y", alpha=0.3, linewidth=0.5)
    panels[-1, 0].set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    panels[0, 0].legend(fontsize=8, ncols=len(densities), loc="upper right")
    fig.suptitle(
        f"Stored bytes over time, in % of a plain read of memory, {rows[0].threads} thread(s)"
    )
    fig.tight_layout(rect=(0, 0, 1, 1 - 0.3 / fig.get_figheight()))
    return fig


def _color(name: str) -> str:
    for prefix in sorted(COLORS, key=len, reverse=True):
        if name.startswith(prefix):
            return COLORS[prefix]
    return "grey"


def _save(fig: Figure, path: Path) -> Path:
    fig.savefig(path, dpi=110)
    return path
