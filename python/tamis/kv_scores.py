"""What compressed KV caches answered, for a reader: a summary, a table, a plot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_COLOURS = ("#0b62c4", "#c4500b", "#2f8f3a", "#8a3fb0", "#b0902f", "#4f6f7a")


@dataclass(frozen=True)
class Score:
    """One question asked of one cache.

    Attributes:
        attention: Of the prompt, as ``Attention`` prints it.
        case: The cache, as ``Case`` prints it.
        task: Of the session.
        mode: "shared" or "turns".
        turn: Which question, from 1.
        right: Whether every token of the answer was the most likely one.
        share: Share of the answer's tokens that were.
        nbytes: Bytes of the cache after the context.
        bytes_share: The same, of a plain cache in 16 bits.
    """

    attention: str
    case: str
    task: str
    mode: str
    turn: int
    right: bool
    share: float
    nbytes: int
    bytes_share: float


def summary(scores: Iterable[Score]) -> list[dict[str, Any]]:
    """One row for each attention and cache: bytes, and the share of right turns by mode and task."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    held: dict[tuple[tuple[str, str], str], list[Score]] = {}
    for s in scores:
        pair = s.attention, s.case
        rows.setdefault(pair, {"attention": s.attention, "cache": s.case, "scores": {}})
        held.setdefault((pair, f"{s.mode}/{s.task}"), []).append(s)
    for (pair, column), found in held.items():
        rows[pair]["scores"][column] = sum(s.right for s in found) / len(found)
        rows[pair].setdefault("shares", []).extend(s.bytes_share for s in found)
    for row in rows.values():
        shares = row.pop("shares")
        row["bytes_share"] = sum(shares) / len(shares)
        row["mean"] = sum(row["scores"].values()) / len(row["scores"])
    return list(rows.values())


def table_rows(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """``summary`` as cells, the head first."""
    columns = list(rows[0]["scores"]) if rows else []
    head = ["attention", "cache", "bytes/16 bit", *columns, "mean"]
    return [
        head,
        *(
            [row["attention"], row["cache"], f"{row['bytes_share']:.3f}"]
            + [f"{row['scores'][c]:.2f}" for c in columns]
            + [f"{row['mean']:.2f}"]
            for row in rows
        ),
    ]


def to_dict(scores: Sequence[Score]) -> dict[str, Any]:
    """Plain values: the summary and every score."""
    return {"summary": summary(scores), "scores": [asdict(s) for s in scores]}


def plot(rows: Sequence[dict[str, Any]]) -> str:
    """Quality against bytes as one SVG: a dot for each row of ``summary``, a colour for each attention."""
    attentions = list(dict.fromkeys(row["attention"] for row in rows))
    width, height, left, bottom = 760, 420, 60, 50
    most = max([1.0, *(row["bytes_share"] for row in rows)])
    x = [left + row["bytes_share"] / most * (width - left - 150) for row in rows]
    y = [height - bottom - row["mean"] * (height - bottom - 30) for row in rows]
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<path d="M{left} 20V{height - bottom}H{width - 20}" fill="none" stroke="#888"/>',
    ]
    for i in range(6):
        up = height - bottom - i / 5 * (height - bottom - 30)
        along = left + i / 5 * (width - left - 150)
        out.append(f'<text x="{left - 8}" y="{up + 4:.0f}" text-anchor="end">{i / 5:g}</text>')
        out.append(
            f'<text x="{along:.0f}" y="{height - bottom + 18}" text-anchor="middle">'
            f"{i / 5 * most:.2g}</text>"
        )
    out.append(f'<text x="{left}" y="14">share of right answers</text>')
    out.append(
        f'<text x="{width / 2}" y="{height - 10}" text-anchor="middle">bytes held, of a plain cache '
        "in 16 bits</text>"
    )
    for i, name in enumerate(attentions):
        colour = _COLOURS[i % len(_COLOURS)]
        along = left + 200 + 120 * i
        out.append(f'<text x="{along}" y="14" fill="{colour}">{name}</text>')
    for row, at, up in zip(rows, x, y, strict=True):
        colour = _COLOURS[attentions.index(row["attention"]) % len(_COLOURS)]
        out.append(f'<circle cx="{at:.1f}" cy="{up:.1f}" r="5" fill="{colour}"/>')
        out.append(f'<text x="{at + 8:.1f}" y="{up + 4:.1f}">{row["cache"]}</text>')
    return "\n".join([*out, "</svg>\n"])
