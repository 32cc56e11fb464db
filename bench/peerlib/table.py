"""Rows as text: one table per weight, who wins, where tamis loses."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from peerlib.cases import BY_NAME
from peerlib.compare import Row

SLOWER = 1.03  # a loss is more than this times the best dense peer


def tables(rows: Sequence[Row]) -> str:
    """One table per shape, density and threads: ms per product, columns are m."""
    return "\n\n".join(_table(list(group)) for _, group in groupby(rows, _weight_key))


def losses(rows: Sequence[Row], *, any_dtype: bool = False) -> list[tuple[Row, Row]]:
    """(tamis, dense) where compress's own choice is slower than the best dense peer.

    Dense peers of the same dtype; f32 and bf16 with any_dtype.
    """
    found = []
    for _, group in groupby(sorted(rows, key=_point_key), _point_key):
        point = [row for row in group if row.ms]
        for row in point:
            if row.candidate not in ("tamis f32", "tamis bf16", "tamis i8"):
                continue
            wanted = ("f32", "bf16") if any_dtype else (row.dtype,)
            dense = [r for r in point if is_dense(r) and r.dtype in wanted]
            best = min(dense, key=lambda r: r.ms or 0, default=None)
            if best is not None and row.ms > SLOWER * best.ms:
                found.append((row, best))
    return found


def loss_lines(rows: Sequence[Row]) -> list[str]:
    """The list of losses, worst first; the last column compares the fastest rounds."""
    found = sorted(losses(rows), key=lambda pair: -pair[0].ms / pair[1].ms)
    return [
        f"{row.shape:14} density {row.density:<4g} m {row.m:<4} threads {row.threads}  "
        f"{row.candidate:10} {row.ms:9.4f} ms  {best.candidate:15} {best.ms:9.4f} ms  "
        f"{row.ms / best.ms:6.2f}x {row.best_ms / best.best_ms:6.2f}x"
        for row, best in found
    ]


def notes(rows: Iterable[Row]) -> list[str]:
    """One line per candidate and reason why it has no time somewhere."""
    reasons = dict.fromkeys((row.candidate, row.note) for row in rows if row.note)
    return [f"{name}: {note}" for name, note in reasons]


def is_dense(row: Row) -> bool:
    """Whether it multiplied by every weight, zeros included."""
    candidate = BY_NAME[row.candidate]
    return candidate.dense or (candidate.peer == "deepsparse" and row.density == 1)


def _table(rows: list[Row]) -> str:
    first = rows[0]
    batches = sorted({row.m for row in rows})
    limit = max(row.limit_gbs for row in rows)
    title = (
        f"{first.shape} {first.n}x{first.k}, density {first.density:g}, {first.threads} thread(s), "
        f"plain read {limit:.1f} GB/s; ms per product, * = fastest, % of the plain read at "
        f"m = {batches[0]}"
    )
    head = f"{'':18}" + "".join(f"{'m=' + str(m):>11}" for m in batches) + f"{'MB':>9}{'read':>8}"
    cells = {(row.candidate, row.m): row for row in rows}
    best = {m: min((r.ms for r in rows if r.m == m and r.ms), default=0.0) for m in batches}
    lines = [title, head]
    for name in dict.fromkeys(row.candidate for row in rows):
        at = [cells[name, m] for m in batches if (name, m) in cells]
        line = f"{name:18}" + "".join(_cell(row, best[row.m]) for row in at)
        size, share = at[0].nbytes, at[0].limit_share
        line += f"{size / 1e6:9.2f}" if size else f"{'?':>9}"
        lines.append(line + (f"{share:8.0%}" if share else f"{'':>8}"))
    return "\n".join(lines)


def _cell(row: Row, best: float) -> str:
    if not row.ms:
        return f"{'wrong' if row.note.startswith('wrong') else 'failed':>10} "
    digits = 4 if row.ms < 1 else 3 if row.ms < 100 else 1
    return f"{row.ms:10.{digits}f}" + ("*" if row.ms == best else " ")


def _weight_key(row: Row) -> tuple[str, float, int]:
    return row.shape, row.density, row.threads


def _point_key(row: Row) -> tuple[str, float, int, int]:
    return row.shape, row.density, row.threads, row.m
