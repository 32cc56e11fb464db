"""How well a language model answers from compressed KV caches, and how many bytes they hold.

Contexts are compressed before any question is seen, as in SCBench (arXiv:2412.10319). Two ways to
ask: "shared" goes back to the context before each question, "turns" goes on, with the right
answer of each turn in the cache. Answers are scored while the right one is fed, token by token: a
turn counts as ``right`` if every token of the answer was the most likely one, which is when greedy
decoding would have written it; ``share`` is the share of such tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tamis.errors import TamisValueError
from tamis.kv.attention import attach
from tamis.kv.cache import Cache, StoreLayer
from tamis.kv.kv_store import KvStore
from tamis.kv.methods import recipe_of
from tamis.kv_tasks import Session

MODES = ("shared", "turns")


@dataclass(frozen=True)
class Case:
    """A cache method and what it may keep or read: tokens from 1 up, a share of the context below."""

    method: str
    budget: float | None = None

    def __str__(self) -> str:
        return self.method if self.budget is None else f"{self.method}:{self.budget:g}"

    def tokens(self, context: int) -> int | None:
        """The budget in tokens, a multiple of 16 where it is a share."""
        if self.budget is None or self.budget >= 1:
            return None if self.budget is None else int(self.budget)
        return max(16, round(self.budget * context / 16) * 16)


@dataclass(frozen=True)
class Score:
    """One question asked of one cache.

    Attributes:
        case: The cache, as ``Case`` prints it.
        task: Of the session.
        mode: "shared" or "turns".
        turn: Which question, from 1.
        right: Whether every token of the answer was the most likely one.
        share: Share of the answer's tokens that were.
        nbytes: Bytes of the cache after the context.
        bytes_share: The same, of a plain cache in 16 bits.
    """

    case: str
    task: str
    mode: str
    turn: int
    right: bool
    share: float
    nbytes: int
    bytes_share: float


def parse_case(text: str) -> Case:
    """``method`` or ``method:budget`` as a command line has them.

    Raises:
        TamisValueError: Unknown method, or a budget that is no number above 0.
    """
    method, _, budget = text.partition(":")
    recipe_of(method)
    try:
        value = float(budget) if budget else None
    except ValueError:
        value = -1.0
    if value is not None and (value <= 0 or (value >= 1 and value != int(value))):
        raise TamisValueError(
            f"kv_eval: case: got {text!r}, wanted METHOD, METHOD:TOKENS or METHOD:SHARE such as "
            "snapkv:0.25."
        )
    return Case(method, value)


@torch.no_grad()
def evaluate(
    model: Any,
    tokenizer: Any,
    sessions: Sequence[Session],
    cases: Sequence[Case],
    *,
    modes: Sequence[str] = MODES,
    progress: Callable[[int, int], None] | None = None,
) -> list[Score]:
    """Every session asked of every case, in every mode.

    Prompts go through dense attention whatever the cache, so each context is computed once and
    handed to all cases.

    Args:
        model: A causal language model of transformers on the CPU.
        tokenizer: Its tokenizer.
        sessions: Contexts and questions.
        cases: Caches to compare.
        modes: Of ``MODES``.
        progress: Called with (cases done, cases).

    Raises:
        TamisValueError: Unknown mode, a budget that does not fit, or a context too long.
    """
    if not modes or any(mode not in MODES for mode in modes):
        raise TamisValueError(f"kv_eval: modes: got {list(modes)}, wanted some of {list(MODES)}.")
    scores: list[Score] = []
    done = 0
    with attach(model):
        for session in sessions:
            ids = _ids(tokenizer, session.context, first=True)
            _check_length(model, ids.shape[1])
            context = _Context(model, ids)
            for case in cases:
                scores += _ask(model, tokenizer, session, case, context, modes)
                done += 1
                if progress is not None:
                    progress(done, len(sessions) * len(cases))
    return scores


def _ask(
    model: Any,
    tokenizer: Any,
    session: Session,
    case: Case,
    context: _Context,
    modes: Sequence[str],
) -> list[Score]:
    cache = Cache(model.config, case.method, budget=case.tokens(context.tokens))
    context.fill(cache)
    start, nbytes = cache.snapshot(), cache.nbytes()
    found = []
    for mode in modes:
        cache.restore(start)
        for number, turn in enumerate(session.turns, 1):
            question = _ids(tokenizer, turn.question)
            answer = _ids(tokenizer, turn.answer)
            hits = _answer(model, cache, question, answer)
            found.append(
                Score(
                    case=str(case),
                    task=session.task,
                    mode=mode,
                    turn=number,
                    right=all(hits),
                    share=sum(hits) / max(1, len(hits)),
                    nbytes=nbytes,
                    bytes_share=nbytes / context.nbytes_16,
                )
            )
            if mode == "shared":
                cache.restore(start)
    return found


def _answer(model: Any, cache: Cache, question: Tensor, answer: Tensor) -> list[bool]:
    """Whether each token of the answer was the most likely; the answer stays in the cache."""
    logits = model(question, past_key_values=cache).logits[0, -1]
    hits = []
    for token in answer[0]:
        hits.append(bool(logits.argmax() == token))
        logits = model(token.view(1, 1), past_key_values=cache).logits[0, -1]
    return hits


def _ids(tokenizer: Any, text: str, *, first: bool = False) -> Tensor:
    ids: Tensor = tokenizer(text, return_tensors="pt", add_special_tokens=first)["input_ids"]
    return ids


def _check_length(model: Any, tokens: int) -> None:
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and tokens > longest:
        raise TamisValueError(
            f"kv_eval: context: got {tokens} tokens, wanted at most the {longest} that this model can "
            "see; pass a smaller --tokens or another model."
        )


class _Recorder(KvStore):
    """A store that keeps the queries it is shown, so that other stores can be shown them."""

    def settle(
        self, q: Tensor | None = None, *, scale: float | None = None, pad: Tensor | None = None
    ) -> None:
        self.q, self.scale = q, scale


class _Context:
    """A prompt's keys, values and queries of every layer, computed once."""

    def __init__(self, model: Any, ids: Tensor) -> None:
        self.tokens = ids.shape[1]
        cache = Cache(model.config, "full")
        for layer in cache.layers:
            if isinstance(layer, StoreLayer):
                layer.store = _Recorder(cache.recipe, layer=layer.store.layer)
        model(ids, past_key_values=cache, logits_to_keep=1)
        self.layers = cache.layers
        stores = [layer.store for layer in cache.layers if isinstance(layer, StoreLayer)]
        self.nbytes_16 = sum(2 * rows.view.numel() for s in stores for rows in s.rows.values())

    def fill(self, cache: Cache) -> None:
        """Makes the cache what it would be had it seen the prompt."""
        for i, layer in enumerate(self.layers):
            mine = cache.layers[i]
            if not isinstance(mine, StoreLayer) or not isinstance(layer, StoreLayer):
                cache.layers[i] = copy.deepcopy(layer)
                continue
            seen: Any = layer.store
            keys, values = seen.rows["keys"].view, seen.rows["values"].view
            mine.lazy_initialization(keys, values)
            mine.store.layer_of, mine.store.mark = seen.layer_of, seen.mark
            mine.store.append(keys, values)
            mine.store.settle(seen.q, scale=seen.scale)


# What was found, for a reader.


def summary(scores: Iterable[Score]) -> list[dict[str, Any]]:
    """One row for each case: bytes, and the share of right turns by mode and task."""
    rows: dict[str, dict[str, Any]] = {}
    held: dict[tuple[str, str], list[Score]] = {}
    for s in scores:
        rows.setdefault(s.case, {"cache": s.case, "scores": {}})
        held.setdefault((s.case, f"{s.mode}/{s.task}"), []).append(s)
    for (case, column), found in held.items():
        rows[case]["scores"][column] = sum(s.right for s in found) / len(found)
        rows[case].setdefault("shares", []).extend(s.bytes_share for s in found)
    for row in rows.values():
        shares = row.pop("shares")
        row["bytes_share"] = sum(shares) / len(shares)
        row["mean"] = sum(row["scores"].values()) / len(row["scores"])
    return list(rows.values())


def table_rows(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """``summary`` as cells, the head first."""
    columns = list(rows[0]["scores"]) if rows else []
    head = ["cache", "bytes/16 bit", *columns, "mean"]
    return [
        head,
        *(
            [row["cache"], f"{row['bytes_share']:.3f}"]
            + [f"{row['scores'][c]:.2f}" for c in columns]
            + [f"{row['mean']:.2f}"]
            for row in rows
        ),
    ]


def to_dict(scores: Sequence[Score]) -> dict[str, Any]:
    """Plain values: the summary and every score."""
    return {"summary": summary(scores), "scores": [asdict(s) for s in scores]}


def plot(rows: Sequence[dict[str, Any]]) -> str:
    """Quality against bytes as one SVG: a dot for each row of ``summary``."""
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
    for row, at, up in zip(rows, x, y, strict=True):
        out.append(f'<circle cx="{at:.1f}" cy="{up:.1f}" r="5" fill="#0b62c4"/>')
        out.append(f'<text x="{at + 8:.1f}" y="{up + 4:.1f}">{row["cache"]}</text>')
    return "\n".join([*out, "</svg>\n"])
