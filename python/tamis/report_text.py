"""A Report as aligned text, and the rows and number formats that the HTML page shares."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from tamis.report import LayerReport, Report, Variant

T = TypeVar("T")

_FACTS: list[tuple[str, Callable[[LayerReport], str]]] = [
    ("layer", lambda a: a.name),
    ("shape", lambda a: f"{a.shape[0]} x {a.shape[1]}"),
    ("sparsity", lambda a: percent(a.sparsity)),
    ("format", lambda a: a.format),
    ("MB", lambda a: f"{a.nbytes / 1e6:.2f}"),
    ("of dense", lambda a: percent(a.nbytes / a.dense_nbytes) if a.dense_nbytes else ""),
    ("ms predicted", lambda a: _plain(a.predicted_ms)),
    ("measured", lambda a: _plain(a.measured_ms)),
    ("dense", lambda a: _plain(a.dense_ms)),
    ("memory limit", lambda a: percent(a.memory_limit)),
]


def text(report: Report, *, full: bool = False) -> str:
    """The report as text: title, variants, layers, totals, parts, host."""
    blocks = [report.title]
    if report.variants:
        blocks.append(table(variant_rows(report.variants)))
    if report.layers:
        blocks.append(table(layer_rows(report.layers)) if full else _brief(report.layers))
        blocks.append(totals(report))
    if report.metrics:
        blocks.append("\n".join(f"{label(k)}: {number(v)}" for k, v in report.metrics.items()))
    blocks += [text(part, full=full) for part in report.parts]
    if report.host:
        blocks.append(", ".join(f"{key} {value}" for key, value in report.host.items()))
    return "\n\n".join(blocks)


def collapse(layers: Sequence[LayerReport]) -> list[LayerReport]:
    """Layers alike but for the index in their name, merged: bytes summed, times and sparsity averaged.

    The name of a merged row reads `30 x model.layers.*.mlp.up_proj`.
    """
    groups: dict[tuple[object, ...], list[LayerReport]] = {}
    for layer in layers:
        reason = re.sub(r"[\d.]+", "#", layer.reason)
        key = (_stem(layer.name), layer.shape, layer.format, layer.kernel, reason)
        groups.setdefault(key, []).append(layer)
    return [_merge(group) for group in groups.values()]


def _stem(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _merge(group: list[LayerReport]) -> LayerReport:
    if len(group) == 1:
        return group[0]

    def mean(get: Callable[[LayerReport], float | None]) -> float | None:
        values = [value for value in map(get, group) if value is not None]
        return sum(values) / len(values) if values else None

    return replace(
        group[0],
        name=f"{len(group)} x {_stem(group[0].name)}",
        sparsity=sum(layer.sparsity for layer in group) / len(group),
        nbytes=sum(layer.nbytes for layer in group),
        dense_nbytes=sum(layer.dense_nbytes for layer in group),
        predicted_ms=mean(lambda layer: layer.predicted_ms),
        measured_ms=mean(lambda layer: layer.measured_ms),
        dense_ms=mean(lambda layer: layer.dense_ms),
        memory_limit=mean(lambda layer: layer.memory_limit),
    )


def layer_rows(layers: Sequence[LayerReport]) -> list[list[str]]:
    """Header and cells of the layer table; a column that no layer fills is left out."""
    columns: list[tuple[str, Callable[[LayerReport], str]]] = [
        *_FACTS,
        ("kernel", lambda a: a.kernel),
        ("reason", lambda a: a.reason),
    ]
    return _rows(columns, layers)


def _brief(layers: Sequence[LayerReport]) -> str:
    """The collapsed table for a terminal: kernels and reasons, which are long, stand below it."""
    merged = collapse(layers)
    notes = {(a.kernel, a.reason): "" for a in merged if a.kernel or a.reason}
    for i, key in enumerate(notes):
        notes[key] = f"({i + 1})"
    rows = _rows([*_FACTS, ("note", lambda a: notes.get((a.kernel, a.reason), ""))], merged)
    below = [f"{mark} {': '.join(filter(None, key))}" for key, mark in notes.items()]
    return "\n".join([table(rows), *below])


def variant_rows(variants: Sequence[Variant]) -> list[list[str]]:
    """Header and cells of the comparison table; a column that no variant fills is left out."""
    columns: list[tuple[str, Callable[[Variant], str]]] = [
        ("model", lambda a: a.name),
        ("perplexity", lambda a: "" if a.perplexity is None else f"{a.perplexity:.1f}"),
        ("tokens/s", lambda a: "" if a.tokens_per_s is None else f"{a.tokens_per_s:.1f}"),
        ("speed", lambda a: "" if a.speed is None else f"{a.speed:.2f}x"),
        ("checkpoint", lambda a: megabytes(a.nbytes)),
        ("linear layers", lambda a: megabytes(a.linear_nbytes)),
        ("peak memory", lambda a: megabytes(a.peak_rss)),
    ]
    return _rows(columns, variants)


def _rows(columns: list[tuple[str, Callable[[T], str]]], items: Sequence[T]) -> list[list[str]]:
    filled = [(title, [cell(item) for item in items]) for title, cell in columns]
    kept = [(title, cells) for title, cells in filled if any(cells)]
    return [[title for title, _ in kept], *map(list, zip(*(c for _, c in kept), strict=True))]


def totals(report: Report) -> str:
    """One line on all layers: bytes now and dense, time now and dense where measured."""
    line = f"{len(report.layers)} layers: {megabytes(report.nbytes)}"
    if report.dense_nbytes:
        line += (
            f" of {megabytes(report.dense_nbytes)} dense"
            f" ({percent(report.nbytes / report.dense_nbytes)})"
        )
    timed = [(a.measured_ms, a.dense_ms) for a in report.layers if a.measured_ms is not None]
    if timed and all(dense is not None for _, dense in timed):
        now, dense = (sum(value or 0.0 for value in column) for column in zip(*timed, strict=True))
        line += f", {milliseconds(now)} a token of {milliseconds(dense)} dense"
    return line


def table(rows: Sequence[Sequence[str]]) -> str:
    """Cells in aligned columns under a ruled header; columns of numbers are set flush right."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(not cell or cell[0].isdigit() for cell in column[1:]) for column in columns]
    right = [flag and " x " not in column[1] for flag, column in zip(right, columns, strict=True)]

    def line(cells: Sequence[str]) -> str:
        set_ = (
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(cells, widths, right, strict=True)
        )
        return "  ".join(set_).rstrip()

    return "\n".join([line(rows[0]), "  ".join("-" * w for w in widths), *map(line, rows[1:])])


def label(key: str) -> str:
    """A metric's name as words."""
    return key.replace("_", " ")


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def megabytes(nbytes: int | None) -> str:
    """`269.1 MB` (10^6 bytes), `12.3 kB` below 100 kB; empty for None."""
    if not nbytes:
        return "" if nbytes is None else "0"
    return f"{nbytes / 1e6:.1f} MB" if nbytes >= 1e5 else f"{nbytes / 1e3:.1f} kB"


def percent(share: float | None) -> str:
    """`50.0 %`; empty for None."""
    return "" if share is None else f"{100 * share:.1f} %"


def milliseconds(value: float | None) -> str:
    """`0.123 ms`, three digits after the point below 10; empty for None."""
    if not value:
        return "" if value is None else "0"
    return f"{_plain(value)} ms"


def number(value: float | int | str) -> str:
    """Four significant digits for a float; anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
