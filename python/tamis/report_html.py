"""A Report as one self-contained HTML page: inline SVG, no script, no outside resource."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from tamis.report import LayerReport, Report, Variant
from tamis.report_text import (
    collapse,
    label,
    layer_rows,
    megabytes,
    milliseconds,
    number,
    percent,
    totals,
    variant_rows,
)

# Both colours of a pair keep 3:1 against the page and against each other, light and dark.
_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de;
  --now: #0b62c4; --dense: #aab4c0; --band: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1419; --ink: #e6edf3; --soft: #9aa4af;
  --line: #343c46; --now: #58a6ff; --dense: #566270; --band: #171d24; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 80rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.75rem 0 .25rem; }
p, figcaption { margin: .25rem 0 .75rem; color: var(--soft); }
.lead { color: var(--ink); font-size: 1.05rem; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; text-align: left; white-space: nowrap; }
th { background: var(--band); font-weight: 600; }
tr + tr > * { border-top: 1px solid var(--line); }
td.n, th.n { text-align: right; }
td.r { white-space: normal; min-width: 14rem; }
figure { margin: 1rem 0; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg text.v { fill: var(--ink); }
.now { fill: var(--now); } .dense { fill: var(--dense); }
.axis { stroke: var(--line); stroke-width: 1; }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin: 0 .35rem 0 0;
  vertical-align: -1px; } .key + span { margin-right: 1rem; }
.key.now { background: var(--now); } .key.dense { background: var(--dense); }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--now); }
blockquote { margin: .25rem 0 1rem; padding: .25rem 0 .25rem .9rem;
  border-left: 3px solid var(--line); white-space: pre-wrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .875rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 1000, 220, 64, 12, 24


def page(report: Report) -> str:
    """The whole page."""
    body = [f"<h1>{escape(report.title)}</h1>", *_variants(report), *_section(report)]
    for part in report.parts:
        body += [f"<h2>{escape(part.title)}</h2>", *_section(part)]
    if report.host:
        body += ["<h2>Measured with</h2>", _pairs(report.host)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(report: Report) -> list[str]:
    """Totals, charts and tables of one report's layers."""
    out = [_pairs({label(key): number(value) for key, value in report.metrics.items()})]
    if not report.layers:
        return out if report.metrics else []
    out = [f'<p class="lead">{escape(totals(report))}</p>', *(out if report.metrics else [])]
    layers, left_out = _to_scale(report.layers)
    if left_out:
        names = ", ".join(layer.name for layer in left_out)
        out.append(f"<p>Left dense and too large for the scale of the charts: {escape(names)}.</p>")
    out.append(
        _chart(
            "Bytes of each layer",
            layers,
            [lambda a: a.dense_nbytes, lambda a: a.nbytes],
            megabytes_of,
        )
    )
    if any(layer.measured_ms is not None for layer in layers):
        out.append(
            _chart(
                "Time of one token through each layer",
                layers,
                [lambda a: a.dense_ms or 0.0, lambda a: a.measured_ms or 0.0],
                milliseconds,
            )
        )
    out.append(_chart("Sparsity of each layer", layers, [lambda a: a.sparsity], percent, top=1.0))
    merged = collapse(report.layers)
    out.append(_table(layer_rows(merged), "Layers alike but for their index"))
    if len(merged) < len(report.layers):
        every = _table(layer_rows(report.layers), "Every layer")
        out.append(f"<details><summary>All {len(report.layers)} layers</summary>{every}</details>")
    return out


def _to_scale(layers: list[LayerReport]) -> tuple[list[LayerReport], list[LayerReport]]:
    """(charted, left out): an untouched vocabulary projection would flatten every other bar."""
    changed = [layer for layer in layers if not layer.format.startswith("dense")]
    limit = 2 * max((layer.dense_nbytes for layer in changed or layers), default=0)
    charted = [layer for layer in layers if layer.dense_nbytes <= limit]
    return charted, [layer for layer in layers if layer.dense_nbytes > limit]


def _variants(report: Report) -> list[str]:
    variants = report.variants
    if not variants:
        return []
    out = [_table(variant_rows(variants), "Models compared")]
    if any(variant.tokens_per_s for variant in variants):
        out.append(_bars("Tokens a second", variants, lambda a: a.tokens_per_s, "{:.1f}"))
    if any(variant.linear_nbytes for variant in variants):
        out.append(
            _bars(
                "Bytes of the linear layers (MB)",
                variants,
                lambda a: None if a.linear_nbytes is None else a.linear_nbytes / 1e6,
                "{:.1f}",
            )
        )
    for variant in variants:
        if variant.text:
            out.append(f"<h3>What {escape(variant.name)} wrote</h3>")
            out.append(f"<blockquote>{escape(variant.text.strip())}</blockquote>")
    return out


def megabytes_of(value: float) -> str:
    """`megabytes` of a number that a chart's scale made fractional."""
    return megabytes(round(value))


def _bars(
    title: str, variants: Sequence[Variant], get: Callable[[Variant], float | None], form: str
) -> str:
    """Horizontal bars, one a model, the value written at the end; the first is the reference."""
    values = [get(variant) for variant in variants]
    top = max((value for value in values if value), default=1.0)
    step, left, room = 30, 220, 640
    rows = []
    for i, (variant, value) in enumerate(zip(variants, values, strict=True)):
        y, kind = i * step + 6, "now" if i else "dense"
        width = room * (value or 0.0) / top
        text = "not measured" if value is None else form.format(value)
        rows.append(
            f'<text class="v" x="{left - 10}" y="{y + 14}" text-anchor="end">'
            f"{escape(variant.name)}</text>"
            f'<rect class="{kind}" x="{left}" y="{y}" width="{width:.1f}" height="20" rx="2"/>'
            f'<text class="v" x="{left + width + 8:.1f}" y="{y + 14}">{text}</text>'
        )
    said = ", ".join(
        f"{variant.name} {'not measured' if value is None else form.format(value)}"
        for variant, value in zip(variants, values, strict=True)
    )
    return (
        f"<h3>{escape(title)}</h3>\n<figure>{_svg(len(variants) * step + 6, title, said)}"
        + "".join(rows)
        + "</svg></figure>"
    )


def _chart(
    title: str,
    layers: Sequence[LayerReport],
    series: Sequence[Callable[[LayerReport], float]],
    form: Callable[[float], str],
    top: float | None = None,
) -> str:
    """One thin bar a layer in model order; with two series the dense value stands behind."""
    top = top or max((get(layer) for layer in layers for get in series), default=0.0) or 1.0
    height, width = _HEIGHT - _TOP - _BOTTOM, (_WIDTH - _LEFT) / len(layers)
    kinds = ["dense", "now"][-len(series) :]
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = _TOP + height * (1 - share)
        parts.append(
            f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{form(share * top)}</text>'
        )
    for i, layer in enumerate(layers):
        values = [get(layer) for get in series]
        bars = "".join(
            f'<rect class="{kind}" x="{_LEFT + i * width:.2f}" '
            f'y="{_TOP + height * (1 - value / top):.2f}" '
            f'width="{max(width - min(1.0, width / 4), 0.5):.2f}" height="{height * value / top:.2f}"/>'
            for kind, value in zip(kinds, values, strict=True)
        )
        tip = " of ".join(form(value) for value in reversed(values))
        parts.append(f"<g><title>{escape(layer.name)}: {tip}</title>{bars}</g>")
    parts.append(
        f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{escape(layers[0].name)}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT - 6}" text-anchor="end">{escape(layers[-1].name)}</text>'
    )
    sums = [sum(get(layer) for layer in layers) for get in series]
    said = f"{len(layers)} layers in model order; the table below has every value"
    key = "" if len(series) == 1 else _key(form, sums)
    return (
        f"<h3>{escape(title)}</h3>\n<figure>{key}{_svg(_HEIGHT, title, said)}"
        + "".join(parts)
        + "</svg></figure>"
    )


def _key(form: Callable[[float], str], sums: Sequence[float]) -> str:
    return (
        f'<figcaption><span class="key now"></span><span>now, {form(sums[1])} in all</span>'
        f'<span class="key dense"></span><span>dense, {form(sums[0])} in all</span></figcaption>'
    )


def _svg(height: int, title: str, said: str) -> str:
    return (
        f'<svg role="img" viewBox="0 0 {_WIDTH} {height}" '
        f'aria-label="{escape(title)}: {escape(said)}">'
    )


def _table(rows: Sequence[Sequence[str]], caption: str) -> str:
    head, *body = rows
    kinds = [_kind(title, [row[i] for row in body]) for i, title in enumerate(head)]
    cells = "".join(
        f'<th scope="col"{kind}>{escape(title)}</th>'
        for title, kind in zip(head, kinds, strict=True)
    )
    lines = [
        "<tr>"
        + "".join(f"<td{k}>{escape(c)}</td>" for c, k in zip(row, kinds, strict=True))
        + "</tr>"
        for row in body
    ]
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<thead><tr>{cells}</tr></thead><tbody>" + "".join(lines) + "</tbody></table></div>"
    )


def _kind(title: str, cells: Sequence[str]) -> str:
    if title == "reason":
        return ' class="r"'
    numeric = title != "shape" and all(not cell or cell[0].isdigit() for cell in cells)
    return ' class="n"' if numeric and title not in ("layer", "format") else ""


def _pairs(pairs: dict[str, str]) -> str:
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs.items())
    return f"<dl>{rows}</dl>"
