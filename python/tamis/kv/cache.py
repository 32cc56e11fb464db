"""Cache: what ``model.generate(cache=...)`` takes, one KvStore per attention layer."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, DynamicCache, DynamicLayer

from tamis.errors import TamisUnsupported, TamisValueError
from tamis.kv import saved
from tamis.kv.attention import NAME, STORE
from tamis.kv.kv_store import KvStore
from tamis.kv.limits import limits
from tamis.kv.methods import check_budget, recipe_of
from tamis.kv.plan import Plan
from tamis.kv.rope import frequencies
from tamis.kv.tiers import Tiers
from tamis.ops.cuda_kv import on_device
from tamis.policy.kv_recipe import KvRecipe


def text_config(function: str, config: Any) -> Any:
    """What a model's config says about its decoder.

    Raises:
        TamisValueError: It is no config.
    """
    if not isinstance(config, PreTrainedConfig):
        raise TamisValueError(
            f"{function}: config: got {type(config).__name__}, wanted a model's config; pass "
            "model.config."
        )
    return config.get_text_config(decoder=True)


class Cache(DynamicCache):
    """A transformers cache whose full-attention layers are tamis stores.

    Sliding-window, linear and shared layers stay what transformers makes them. The model must be
    attached (``tamis.kv.attach(model)``), as its attention reads the stores.

    Args:
        config: The model's config.
        method: Name of a method, or a KvRecipe.
        budget: Tokens per KV head that stay or are read, where the method has one.
        plan: What ``kv.calibrate`` found about the model, where the method takes a plan.
        tiers: Keys and values in a file or in the host's memory with a pool of them in memory or on the
            GPU, for methods that select.
        fallback: Short contexts are read whole, and by torch's SDPA, where that is measured faster
            (``tamis info --measure``); False keeps to the method from the first token on.

    Raises:
        TamisValueError: Something other than a config, an unknown method, a budget or plan that does
            not fit it, or tiers with a method that reads every token.
    """

    def __init__(
        self,
        config: Any,
        method: str | KvRecipe,
        *,
        budget: int | None = None,
        plan: Plan | None = None,
        tiers: Tiers | None = None,
        fallback: bool = True,
    ) -> None:
        recipe, text = recipe_of(method), text_config("kv.Cache", config)
        budget = check_budget(recipe, budget)
        for name, given, kind in (("plan", plan, Plan), ("tiers", tiers, Tiers)):
            if given is not None and not isinstance(given, kind):
                raise TamisValueError(
                    f"kv.Cache: {name}: got {type(given).__name__}, wanted a kv.{kind.__name__}."
                )
        super().__init__(config=config)
        self.recipe, self.budget = recipe, budget
        longest = getattr(text, "max_position_embeddings", None)
        if budget is not None and longest is not None and budget > longest:
            raise TamisValueError(
                f"kv.Cache: budget: got {budget}, wanted at most the {longest} tokens that this "
                "model can see."
            )
        turns = None if recipe.lowrank is None else frequencies(config)
        ours = [i for i, layer in enumerate(self.layers) if type(layer) is DynamicLayer]
        for i in ours:
            part = None if plan is None else plan.of_layer(i)
            tier = None if tiers is None else tiers.of_layer(recipe, ours)
            store = KvStore(
                recipe,
                budget=budget,
                layer=i,
                plan=part,
                frequencies=turns,
                tier=tier,
                limits=limits() if fallback else None,
            )
            self.layers[i] = StoreLayer(text, store)
        if not self.stores:
            raise TamisUnsupported(
                "kv.Cache: config: got a model without full-attention layers, wanted at least one."
            )

    @property
    def stores(self) -> list[KvStore]:
        """The stores of the layers that have one."""
        return [layer.store for layer in self._ours]

    @property
    def _ours(self) -> list[StoreLayer]:
        return [layer for layer in self.layers if isinstance(layer, StoreLayer)]

    def nbytes(self) -> int:
        """Bytes in memory for all tokens, in stores and in the layers that stay transformers' own.

        Room for tokens to come is not among them: ``reserved_nbytes``.
        """
        return sum(self.report()["bytes"].values())

    def reserved_nbytes(self) -> int:
        """Bytes of room for tokens to come, beside ``nbytes``: about an eighth of a long context.

        On the CPU no memory is taken for it before tokens are written there (but for the rest of a huge
        page where a buffer has 4 MB or more); on a GPU it is.
        """
        return sum(store.reserved_nbytes() for store in self.stores)

    def report(self) -> dict[str, Any]:
        """What it holds: for reading, and as JSON.

        ``tokens`` seen, ``held`` tokens per layer with a store, ``held_by_head`` those of each KV
        head, and ``bytes`` in memory by part. With tiers also ``file_bytes``, and ``pool_hits``: the
        share of what steps read that was in the pool when they came to it. Where the pool is a GPU's,
        ``bytes`` are its own, ``device_bytes``, and those that stay in the host's memory,
        ``host_bytes``.
        """
        parts: dict[str, int] = {}
        for layer in self.layers:
            for name, size in _bytes_by_part(layer).items():
                parts[name] = parts.get(name, 0) + size
        return self._tier_facts(sum(parts.values())) | {
            "tokens": self.get_seq_length(),
            "held": [store.tokens for store in self.stores],
            "held_by_head": [store.held for store in self.stores],
            "bytes": parts,
        }

    def _tier_facts(self, nbytes: int) -> dict[str, Any]:
        """Bytes of each tier, of ``nbytes`` in memory, and hits; nothing without tiers."""
        tiers = [store.tier for store in self.stores if store.tier is not None]
        if not tiers:
            return {}
        reads, hits = (sum(x) for x in zip(*(tier.found for tier in tiers), strict=True))
        host = sum(store.host_bytes for store in self.stores)
        return {
            "file_bytes": sum(store.file_bytes for store in self.stores),
            "host_bytes": host,
            "device_bytes": nbytes - host if tiers[0].on_device else 0,
            "pool_hits": hits / max(1, reads),
        }

    def explain(self) -> dict[str, list[int]]:
        """How the latest step read and why, with the layers that did so; empty before one."""
        ways: dict[str, list[int]] = {}
        for store in self.stores:
            if store.read:
                ways.setdefault(store.read, []).append(store.layer)
        return ways

    def snapshot(self) -> list[Any]:
        """All that the layers hold, stores and transformers' own, to go back to with ``restore``."""
        return [
            layer.store.snapshot() if isinstance(layer, StoreLayer) else copy.deepcopy(vars(layer))
            for layer in self.layers
        ]

    def restore(self, state: list[Any]) -> None:
        """Back to a ``snapshot``, any number of times.

        Raises:
            TamisValueError: It is no snapshot, or of a cache with another method or number of layers.
        """
        if not isinstance(state, list):
            raise TamisValueError(
                f"kv.Cache.restore: state: got {type(state).__name__}, wanted what snapshot returned."
            )
        if len(state) != len(self.layers):
            raise TamisValueError(
                f"kv.Cache.restore: state: got {len(state)} layers, wanted {len(self.layers)}."
            )
        for layer, saved_layer in zip(self.layers, state, strict=True):
            if isinstance(layer, StoreLayer):
                layer.store.restore(saved_layer)
                layer.is_initialized = layer.store.length > 0
            else:
                vars(layer).clear()
                vars(layer).update(copy.deepcopy(saved_layer))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything held to one safetensors file, for ``load`` of a cache made alike.

        Raises:
            TamisFileError: The file cannot be written; what was there is unchanged.
            TamisUnsupported: The model has layers other than attention.
        """
        saved.save(self, Path(path))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Becomes what ``save`` wrote; a file with any fault is refused and changes nothing.

        A model other than the one that filled it is refused when it first uses the cache.

        Raises:
            TamisFileError: The file is missing, damaged, truncated, or of another method or model.
        """
        saved.load(self, Path(path))


class StoreLayer(CacheLayerMixin):
    """One layer of a Cache: hands new keys and values to the attention call, which stores them."""

    is_sliding = False
    is_compileable = False

    def __init__(self, config: Any, store: KvStore) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.config, self.store = config, store
        self.is_croppable = store.recipe.croppable

    def __deepcopy__(self, memo: dict[int, object]) -> StoreLayer:
        """A layer of its own tokens; the model's config, which says what it attends by, is shared."""
        twin = copy.copy(self)
        twin.config = memo.get(id(self.config), self.config)  # that of a model copied along
        twin.store = copy.deepcopy(self.store, memo)
        return twin

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Remembers dtype and device."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The new keys and values alone; the keys carry the store to the attention call.

        Raises:
            TamisUnsupported: The model is not attached, computes on another device, or did not attend
                to what it handed in before.
            TamisValueError: The store belongs to sequences of another shape or model.
        """
        if self.config._attn_implementation != NAME:
            raise TamisUnsupported(
                "kv.Cache: got a model whose attention is "
                f"{self.config._attn_implementation!r}, wanted {NAME!r}; call "
                "tamis.kv.attach(model) first, and make the cache with that model's own model.config."
            )
        if not key_states.is_cpu and not on_device("kv.Cache", key_states):
            raise TamisUnsupported(
                f"kv.Cache: keys: got device {key_states.device}, wanted cpu or cuda."
            )
        if not self.is_initialized or self.device != key_states.device:
            self.store.move(key_states.device)  # it may have been loaded
            self.lazy_initialization(key_states, value_states)
        self._check(key_states)
        if self.store.awaits:
            raise TamisUnsupported(
                f"kv.Cache: layer {self.store.layer}: got a model that changes keys between cache and "
                "attention, as the latent attention of DeepSeek-V3 does, wanted one whose attention "
                "reads keys as it hands them in; use transformers' own cache."
            )
        self.store.awaits = True
        keys = key_states.view_as(key_states)  # an object of its own, to carry the store
        setattr(keys, STORE, self.store)
        return keys, value_states

    def _check(self, keys: Tensor) -> None:
        if not self.store.rows:
            return
        held = self.store.rows["keys"].buffer
        b, g, _, d = keys.shape
        if (b, g, d) != (held.shape[0], held.shape[1], held.shape[3]) or keys.dtype != held.dtype:
            raise TamisValueError(
                f"kv.Cache: keys: got {keys.dtype} [{b}, {g}, n, {d}], wanted {held.dtype} "
                f"[{held.shape[0]}, {held.shape[1]}, n, {held.shape[3]}] as the cache holds; use a "
                "new cache for another model or batch."
            )

    def get_seq_length(self) -> int:
        """Tokens seen, evicted ones too: models count positions by it."""
        return self.store.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The mask covers every token seen; the stores read only its padding."""
        return self.store.length + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def reset(self) -> None:
        """Forgets everything."""
        self.store = self.store.fresh()
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the latest tokens; a negative number says how many, as transformers has it.

        Raises:
            TamisValueError: Positive, or more than there are.
            TamisUnsupported: The method evicts.
        """
        if tokens_to_remove > 0:
            raise TamisValueError(
                f"kv.Cache.crop: tokens_to_remove: got {tokens_to_remove}, wanted minus the number "
                "of tokens."
            )
        if tokens_to_remove < 0 and self.is_initialized:
            self.store.crop(self.store.length + tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Sequence i continues what sequence ``beam_idx[i]`` was."""
        self.store.take_batches(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every sequence ``repeats`` times."""
        if self.store.rows:
            b = self.store.rows["keys"].buffer.shape[0]
            self.store.take_batches(torch.arange(b).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only the sequences ``indices``."""
        if self.store.rows:
            b = self.store.rows["keys"].buffer.shape[0]
            self.store.take_batches(torch.arange(b)[indices])


def _bytes_by_part(layer: Any) -> dict[str, int]:
    if isinstance(layer, StoreLayer):
        return layer.store.bytes_by_part()
    held = [x for x in vars(layer).values() if isinstance(x, Tensor)]
    return {"other layers": sum(x.numel() * x.element_size() for x in held)}
