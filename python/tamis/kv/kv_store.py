"""KvStore: the keys and values of one layer, held and read the way a recipe says."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from tamis.errors import TamisTypeError, TamisUnsupported, TamisValueError
from tamis.kv import eviction, packed, reading
from tamis.kv.limits import Limits
from tamis.kv.memory import KvMemory
from tamis.kv.methods import recipe_of
from tamis.kv.past import Past, Tail
from tamis.kv.plan import LayerPlan
from tamis.kv.rows import Rows
from tamis.kv.tiers import Tier
from tamis.ops.tensors import DTYPE_NAME
from tamis.policy.kv_recipe import KvRecipe


def store(
    method: str | KvRecipe,
    k: Tensor,
    v: Tensor,
    *,
    budget: int | None = None,
    plan: LayerPlan | None = None,
) -> KvStore:
    """A store that holds keys and values k, v [b, g, s, d] of one layer.

    Args:
        method: Of ``tamis.method.names("kv")``, or a recipe.
        k: Keys.
        v: Values.
        budget: Tokens that stay or are read, where the method has one.
        plan: What calibration found for the layer, ``plan.of_layer(i)``.

    Raises:
        TamisValueError: Unknown method, or a budget or plan that does not fit it or exceeds s.
        TamisTypeError: k and v are not float32, float16 or bfloat16.
    """
    made = KvStore(method, budget=budget, plan=plan)
    _check_pair("kv.store", k, v)
    if plan is not None and isinstance(plan.data, list) and len(plan.data) != k.shape[1]:
        raise TamisValueError(
            f"kv.store: plan: got one of {len(plan.data)} KV heads, wanted the {k.shape[1]} of the "
            "keys; pass the plan of this layer."
        )
    if budget is not None and budget > k.shape[2]:
        raise TamisValueError(
            f"kv.store: budget: got {budget}, wanted at most the {k.shape[2]} tokens given; a store "
            "that is to grow is made by kv.KvStore and append."
        )
    made.append(k, v)
    made.settle()
    return made


class KvStore(KvMemory):
    """One layer's cache: append tokens, attend to them, evict, count bytes.

    Args:
        recipe: How tokens are stored, which stay, which are read; or a method's name.
        budget: Tokens per KV head that stay (evicting recipes) or are read (selecting ones).
        layer: Place of the layer in the model; some layers may be exempt.
        plan: What calibration found for this layer, where the recipe takes a plan.
        frequencies: Radians a token of the rotated pairs of channels, for recipes that take keys back
            before rotation; None for keys that were not rotated.
        tier: Where keys and values lie instead of memory, for layers that select.
        limits: Contexts below which a step reads everything, or reads by torch's SDPA, as that is
            faster; None keeps to the recipe's way.

    Raises:
        TamisValueError: The budget or the plan does not fit the recipe.
        TamisUnsupported: The recipe quantizes and also evicts or selects.
    """

    def __init__(
        self,
        recipe: str | KvRecipe,
        *,
        budget: int | None = None,
        layer: int = 0,
        plan: LayerPlan | None = None,
        frequencies: Tensor | None = None,
        tier: Tier | None = None,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(
            recipe_of(recipe),
            budget=budget,
            layer=layer,
            plan=plan,
            frequencies=frequencies,
            tier=tier,
        )
        self.limits = limits
        self.way: reading.Way | None = None  # of the latest step
        self.choose_bytes = 0  # that it would have had to leave out to choose
        self.awaits = False  # whether keys that a model handed in still have to reach attention

    def fresh(self) -> KvStore:
        """An empty one of the same kind."""
        return KvStore(
            self.recipe,
            budget=self.budget,
            layer=self.layer,
            plan=self.plan,
            frequencies=self.frequencies,
            tier=copy.deepcopy(self.tier),
            limits=self.limits,
        )

    # Tokens in.

    def prefill(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None, pad: Tensor | None
    ) -> Tensor | None:
        """Attention [b, h, n, d] of a first prompt where the recipe makes it sparse; else None."""
        if self.past is None:
            return None
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        return self.past.prefill(Tail(k, v, self.length, q, scale, pad))

    def append(self, k: Tensor, v: Tensor) -> None:
        """Adds tokens k, v [b, g, n, d] as they are; ``settle`` compresses.

        Raises:
            TamisValueError: They do not belong together, or not to the tokens held.
            TamisTypeError: Their dtype is none that kernels read.
        """
        _check_pair("KvStore.append", k, v)
        if self.rows:
            self._check_more(k, v)
        self._wait()
        if not self.rows and self.tier is not None:
            self.tier.check(k)
            self.rows = {"keys": self.tier.rows(k), "values": self.tier.rows(v)}
        elif not self.rows:
            self.rows = {"keys": Rows.copy_of(k), "values": Rows.copy_of(v)}
        else:
            self.rows["keys"].append(k)
            self.rows["values"].append(v)
        if "positions" in self.rows:
            self.rows["positions"].append(_places(self.length, k))
        elif self.recipe.evict is not None and self.past is None:
            self.rows["positions"] = Rows(_places(self.length, k))
        self.length += k.shape[2]

    def _check_more(self, k: Tensor, v: Tensor) -> None:
        """Refuses tokens of other sequences, heads or channels: a copy would repeat or round them."""
        for name, x in (("keys", k), ("values", v)):
            held = self.rows[name].buffer
            b, g, _, d = held.shape
            if (*x.shape[:2], x.shape[3]) != (b, g, d) or x.dtype != held.dtype:
                raise TamisValueError(
                    f"KvStore.append: {name}: got {x.dtype} {list(x.shape)}, wanted {held.dtype} "
                    f"[{b}, {g}, n, {d}] as the store holds."
                )

    def settle(
        self, q: Tensor | None = None, *, scale: float | None = None, pad: Tensor | None = None
    ) -> None:
        """Compresses what was appended, now that its queries q [b, h, n, d] have been answered.

        Without q, recipes that observe queries leave everything as it is.

        Args:
            q: The queries of the last n tokens.
            scale: Of the scores; 1 / sqrt(d) by default.
            pad: Padded tokens at the start of each sequence, [b].
        """
        if self.recipe.quantize is not None:
            packed.seal(self.rows, self.recipe.quantize)
        if self.selection is not None and q is not None:
            self.selection.observe(q, self.rows["keys"].view, self.first(pad), scale)
        if self.past is not None:
            self._absorb(self.past, q, scale, pad)
        elif self.recipe.evict is not None and self.budget is not None:
            first, how = self.first(pad), self.recipe.evict
            kept = eviction.kept(self.rows, how, self.budget, q, scale=scale, first=first)
            if kept is not None:
                self._keep(kept)
        self._drop()

    def _absorb(
        self, past: Past, q: Tensor | None, scale: float | None, pad: Tensor | None
    ) -> None:
        """Lets the past take its part of the tail."""
        keys, values = self.rows["keys"], self.rows["values"]
        scale = keys.buffer.shape[-1] ** -0.5 if scale is None else scale
        begin = self.length - keys.count
        taken = past.absorb(Tail(keys.view, values.view, begin, q, scale, pad))
        if taken:
            keys.drop_first(taken)
            values.drop_first(taken)

    def keep(self, index: Tensor) -> None:
        """Keeps tokens ``index`` [b, g, k] of each KV head, ascending; the others leave for good.

        Raises:
            TamisValueError: An index lies outside the tokens held.
            TamisUnsupported: Tokens are quantized or held otherwise than as they came.
        """
        if self.tokens > self.tail_tokens:
            raise TamisUnsupported(
                f"KvStore.keep: got a store with {self.tokens - self.tail_tokens} tokens in another "
                "form, wanted every token as it came; keep first and quantize then."
            )
        wanted = self.rows["keys"].buffer.shape[:2] if self.rows else (0, 0)
        if not isinstance(index, Tensor) or index.dtype not in (torch.int32, torch.int64):
            raise TamisValueError(
                f"KvStore.keep: index: got {getattr(index, 'dtype', type(index).__name__)}, wanted "
                "a tensor of int64."
            )
        if index.dim() != 3 or index.shape[:2] != wanted or _outside(index, self.tokens):
            raise TamisValueError(
                f"KvStore.keep: index: got shape {list(index.shape)}, wanted {[*wanted, 'k']} "
                f"ascending within the {self.tokens} tokens held."
            )
        if "positions" not in self.rows:
            self.rows["positions"] = Rows(_places(0, self.rows["keys"].view))
        self._keep(index)

    def _keep(self, index: Tensor) -> None:
        for rows in self.rows.values():
            rows.keep(index)
        if self.selection is not None:
            self.selection.forget()
        self._forget()

    def first(self, pad: Tensor | None) -> Tensor | None:
        """First held token of each sequence that is not padding, [b, g]; None for the first."""
        if pad is None:
            return None
        if self.past is not None:
            pad = (pad - (self.length - self.tail_tokens)).clamp(min=0)
        if "positions" in self.rows:
            return (self.rows["positions"].view < pad.view(-1, 1, 1)).sum(-1)
        return pad.view(-1, 1).expand(-1, self.rows["keys"].buffer.shape[1])

    # Tokens out.

    def attend(
        self,
        q: Tensor,
        *,
        scale: float | None = None,
        softcap: float = 0.0,
        pad: Tensor | None = None,
    ) -> Tensor:
        """Attention of q [b, h, n, d] over all tokens held, [b, h, n, d] in q's dtype.

        Args:
            q: Queries, each of which sees every token held; h a multiple of the KV heads.
            scale: Of the scores; 1 / sqrt(d) by default.
            softcap: c of c * tanh(score / c); 0 for none.
            pad: Padded tokens at the start of each sequence, [b].

        Raises:
            TamisValueError: Nothing was appended yet, or q has the wrong shape.
        """
        found = reading.attend(self, self._asked(q, scale, softcap, pad))
        self._drop()
        return found

    @property
    def read(self) -> str:
        """What the latest step read, how and why; "" before one."""
        return reading.explain(self)

    def attend_lse(
        self,
        q: Tensor,
        *,
        scale: float | None = None,
        softcap: float = 0.0,
        pad: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``attend`` and the logarithm of its weights' sum [b, h, n] f32, for ``merge_lse``.

        Raises:
            TamisValueError: Nothing was appended yet, or q has the wrong shape.
        """
        found = reading.attend_lse(self, self._asked(q, scale, softcap, pad))
        self._drop()
        return found

    def _asked(
        self, q: Tensor, scale: float | None, softcap: float, pad: Tensor | None
    ) -> reading.Asked:
        if not self.rows:
            raise TamisValueError(
                "KvStore.attend: got an empty store, wanted tokens; append first."
            )
        if not isinstance(q, Tensor) or q.dim() != 4:
            raise TamisValueError(
                f"KvStore.attend: q: got {_kind(q)}, wanted a tensor [b, h, n, d]."
            )
        return reading.Asked(q, q.shape[-1] ** -0.5 if scale is None else scale, softcap, pad)

    def fetch_ahead(self, q: Tensor) -> None:
        """Starts to bring what a step with queries like q [b, h, 1, d] would read; returns at once."""
        reading.fetch_ahead(self, q)


def _check_pair(where: str, k: Tensor, v: Tensor) -> None:
    """Refuses keys and values that are not of the same tokens."""
    if (
        not isinstance(k, Tensor)
        or not isinstance(v, Tensor)
        or k.dim() != 4
        or k.shape[:3] != v.shape[:3]
        or k.dtype != v.dtype
        or k.device != v.device
    ):
        raise TamisValueError(
            f"{where}: k, v: got {_kind(k)} and {_kind(v)}, wanted two tensors [b, g, n, d] of the "
            "same tokens, dtype and device."
        )
    if k.dtype not in DTYPE_NAME:
        raise TamisTypeError(
            f"{where}: k, v: got {k.dtype}, wanted float32, float16 or bfloat16; convert them, or the "
            "model by model.to(torch.bfloat16)."
        )


def _kind(x: object) -> str:
    """A tensor's dtype, shape and device, or a type's name, for an error."""
    if isinstance(x, Tensor):
        return f"{x.dtype} {list(x.shape)} on {x.device}"
    return type(x).__name__


def _places(first: int, k: Tensor) -> Tensor:
    """Places in their sequence of tokens k [b, g, n, d], [b, g, n] int32."""
    b, g, n, _ = k.shape
    return torch.arange(first, first + n, dtype=torch.int32, device=k.device).expand(b, g, n)


def _outside(index: Tensor, tokens: int) -> bool:
    """Whether indices [b, g, k] are not ascending places of ``tokens`` tokens."""
    if index.shape[2] == 0:
        return False
    steps = index.diff(dim=2)
    return int(index.min()) < 0 or int(index.max()) >= tokens or bool((steps <= 0).any())
