"""How well a language model answers from compressed KV caches, and how many bytes they hold.

Contexts are compressed before any question is seen, as in SCBench (arXiv:2412.10319). Two ways to
ask: "shared" goes back to the context before each question, "turns" goes on, with the right
answer of each turn in the cache. How the context itself is attended to, densely or along a sparse
pattern, is an axis of its own. Answers are scored while the right one is fed, token by token: a
turn counts as ``right`` if every token of the answer was the most likely one, which is when greedy
decoding would have written it; ``share`` is the share of such tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tamis.errors import TamisValueError
from tamis.evaluate import cache_argument
from tamis.kv.attention import attach
from tamis.kv.cache import Cache, StoreLayer
from tamis.kv.kv_store import KvStore
from tamis.kv.methods import check_budget, recipe_of
from tamis.kv.plan import Plan
from tamis.kv.together import Together
from tamis.kv_scores import Score
from tamis.kv_tasks import Session
from tamis.policy.kv_layout import AShape
from tamis.policy.kv_recipe import KvRecipe, Pattern

MODES = ("shared", "turns")
_BLOCK = 64  # tokens of a block of windows
_LAST = 2  # blocks of a tri-shape's last rows


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
class Attention:
    """How a context is attended to while it is read.

    Attributes:
        name: For the reader.
        recipe: Whose sparse pattern or subset of tokens; of none, it is dense.
        plan: Of the recipe, where it takes one.
    """

    name: str = "dense"
    recipe: KvRecipe = KvRecipe()
    plan: Plan | None = None

    def __str__(self) -> str:
        return self.name


_ANY = 1 << 20  # tokens of a context, of which any share is budget enough
DENSE = Attention()


def parse_attention(text: str) -> Attention:
    """``dense``, ``a_shape:TOKENS``, ``tri_shape:TOKENS``, or a method whose prompts are sparse.

    The shapes see the first block and the latest TOKENS tokens; in a tri-shape the last rows see
    everything. ``moa:FILE`` names its plan.

    Raises:
        TamisValueError: None of these, or TOKENS is no multiple of 64.
        TamisFileError: There is no such plan.
    """
    name, _, rest = text.partition(":")
    if text == "dense":
        return DENSE
    if name in ("a_shape", "tri_shape") and rest.isdecimal() and rest.isascii():
        window = int(rest)
        if window >= _BLOCK and window % _BLOCK == 0:
            last = _LAST if name == "tri_shape" else 0
            shape = AShape(sink=1, local=window // _BLOCK, block=_BLOCK, last=last)
            return Attention(text, KvRecipe(pattern=Pattern(shape)))
    elif name not in ("a_shape", "tri_shape"):
        recipe = recipe_of(name)
        sparse = recipe.classes is not None and recipe.classes.sparse_prefill
        if (sparse or recipe.pattern is not None) and bool(rest) == recipe.needs_plan:
            return Attention(name, recipe, Plan.load(rest) if rest else None)
    raise TamisValueError(
        f"kv_eval: attention: got {text!r}, wanted dense, zipvl_sparse, s2, moa:PLAN.json, or "
        f"a_shape:TOKENS or tri_shape:TOKENS with a multiple of {_BLOCK}."
    )


def parse_case(text: str) -> Case:
    """``method`` or ``method:budget`` as a command line has them.

    Raises:
        TamisValueError: Unknown method, one that wants a plan, or a budget that is no number above 0,
            missing or not the method's.
    """
    method, _, budget = text.partition(":")
    recipe = recipe_of(method)
    try:
        value = float(budget) if budget else None
    except ValueError:
        value = -1.0
    if value is not None and (value <= 0 or (value >= 1 and value != int(value))):
        raise TamisValueError(
            f"kv_eval: case: got {text!r}, wanted METHOD, METHOD:TOKENS or METHOD:SHARE such as "
            "snapkv:0.25."
        )
    if recipe.needs_plan or (value is None and recipe.evict is not None):
        wanted = "none that wants a plan" if recipe.needs_plan else f"a budget, as in {method}:0.25"
        raise TamisValueError(f"kv_eval: case: got {text!r}, wanted {wanted}.")
    case = Case(method, value)
    check_budget(recipe, case.tokens(_ANY))
    return case


@torch.no_grad()
def evaluate(
    model: Any,
    tokenizer: Any,
    sessions: Sequence[Session],
    cases: Sequence[Case],
    *,
    modes: Sequence[str] = MODES,
    attentions: Sequence[Attention] = (DENSE,),
    progress: Callable[[int, int], None] | None = None,
) -> list[Score]:
    """Every session asked of every case, in every mode, read by every attention.

    A context is computed once for each attention, whatever the cache, and handed to all cases.

    Args:
        model: A causal language model of transformers on the CPU.
        tokenizer: Its tokenizer.
        sessions: Contexts and questions.
        cases: Caches to compare.
        modes: Of ``MODES``.
        attentions: How contexts are read.
        progress: Called with (contexts done, contexts); each is read once an attention.

    Raises:
        TamisValueError: Unknown mode, a budget that does not fit, or a context too long.
    """
    if not modes or any(mode not in MODES for mode in modes):
        raise TamisValueError(f"kv_eval: modes: got {list(modes)}, wanted some of {list(MODES)}.")
    scores: list[Score] = []
    done = 0
    with attach(model):
        for session in sessions:
            ids = _ids(model, tokenizer, session.context, first=True)
            _check_length(model, ids.shape[1])
            for attention in attentions:
                context = _Context(model, ids, attention)
                scores += _ask(model, tokenizer, session, cases, context, modes)
                done += 1
                if progress is not None:
                    progress(done, len(sessions) * len(attentions))
    return scores


def _ask(
    model: Any,
    tokenizer: Any,
    session: Session,
    cases: Sequence[Case],
    context: _Context,
    modes: Sequence[str],
) -> list[Score]:
    """One session asked of all cases at once, where the model's layers allow it."""
    caches = [context.fill(_cache(model, case, context.tokens)) for case in cases]
    starts, sizes = [c.snapshot() for c in caches], [c.nbytes() for c in caches]
    together = all(isinstance(layer, StoreLayer) for layer in context.layers)
    groups = [caches] if together else [[cache] for cache in caches]
    found = []
    for mode in modes:
        _restore(caches, starts)
        for number, turn in enumerate(session.turns, 1):
            asked = [_ids(model, tokenizer, text) for text in (turn.question, turn.answer)]
            hits = [row for group in groups for row in _answer(model, group, *asked)]
            found += [
                Score(
                    attention=str(context.attention),
                    case=str(case),
                    task=session.task,
                    mode=mode,
                    turn=number,
                    right=all(row),
                    share=sum(row) / max(1, len(row)),
                    nbytes=size,
                    bytes_share=size / context.nbytes_16,
                )
                for case, row, size in zip(cases, hits, sizes, strict=True)
            ]
            if mode == "shared":
                _restore(caches, starts)
    return found


def _cache(model: Any, case: Case, tokens: int) -> Cache:
    """An empty one, which keeps to its method however short the context is."""
    return Cache(model.config, case.method, budget=case.tokens(tokens), fallback=False)


def _restore(caches: Sequence[Cache], states: Sequence[list[Any]]) -> None:
    for cache, state in zip(caches, states, strict=True):
        cache.restore(state)


def _answer(
    model: Any, caches: Sequence[Cache], question: Tensor, answer: Tensor
) -> list[list[bool]]:
    """Per cache, whether each token of the answer was the most likely; it stays in the cache."""
    cache = Together(model.config, caches) if len(caches) > 1 else caches[0]
    held: dict[str, Any] = {cache_argument(model): cache}
    rows = len(caches)
    logits = model(question.expand(rows, -1), logits_to_keep=1, **held).logits[:, -1]
    hits = []
    for token in answer[0]:
        hits.append((logits.argmax(-1) == token).tolist())
        logits = model(token.expand(rows, 1), **held).logits[:, -1]
    return [list(row) for row in zip(*hits, strict=True)] if hits else [[] for _ in caches]


def _ids(model: Any, tokenizer: Any, text: str, *, first: bool = False) -> Tensor:
    ids: Tensor = tokenizer(text, return_tensors="pt", add_special_tokens=first)["input_ids"]
    return ids.to(next(model.parameters()).device)


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

    def __init__(self, model: Any, ids: Tensor, attention: Attention = DENSE) -> None:
        self.tokens, self.attention = ids.shape[1], attention
        cache = Cache(model.config, attention.recipe, plan=attention.plan)
        for layer in cache.layers:
            if isinstance(layer, StoreLayer):
                old = layer.store
                layer.store = _Recorder(old.recipe, layer=old.layer, plan=old.plan)
        model(ids, logits_to_keep=1, **{cache_argument(model): cache})
        self.layers = cache.layers
        stores = [layer.store for layer in cache.layers if isinstance(layer, StoreLayer)]
        self.nbytes_16 = sum(2 * rows.view.numel() for s in stores for rows in s.rows.values())

    def fill(self, cache: Cache) -> Cache:
        """The cache, as it would be had it seen the prompt."""
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
        return cache
