"""calibrate: what a KV method needs to know of a model, found once and saved as a plan."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tamis.errors import TamisValueError
from tamis.kv.identity import layer_mark
from tamis.kv.observe import observing, token_ids
from tamis.kv.plan import KINDS, LayerPlan, Plan
from tamis.kv.rope import frequencies
from tamis.policy.kv_estimate import channel_weights
from tamis.policy.kv_lowrank import energy_rank, rotate
from tamis.policy.kv_spans import influence, search_spans

_OPTIONS: dict[str, set[str]] = {
    "channels": set(),
    "ranks": {"energy"},
    "spans": {"density", "lengths", "block", "sink"},
}


def calibrate(
    model: Any,
    texts: Iterable[Any],
    kind: str = "channels",
    *,
    tokenizer: Any = None,
    max_length: int = 512,
    **options: Any,
) -> Plan:
    """Runs texts through a model and returns the plan of one kind, for ``kv.Cache(..., plan=plan)``.

    ``channels`` (double_sparsity): each KV head's channels by mean |q k| of a token with itself.
    ``ranks`` (shadowkv): the smallest rank that holds ``energy`` (0.98) of the keys before rotary
    embedding. ``spans`` (moa): windows that lose least at ``density`` (0.5) of the causal blocks, for
    every one of ``lengths`` (max_length and its half); takes gradients, so about three passes a text.

    Args:
        model: A transformers model whose attention can be replaced, in evaluation mode.
        texts: Strings (with ``tokenizer``) or token ids, some thousand tokens in all.
        kind: "channels", "spans" or "ranks".
        tokenizer: For strings.
        max_length: Tokens taken of each text.
        options: ``energy``; ``density``, ``lengths``, ``block`` (64), ``sink`` (1 block).

    Raises:
        TamisValueError: Unknown kind or option, no text, or lengths that no text reaches.
        TamisTypeError: Texts are neither strings nor token ids.
        TamisUnsupported: The model does not take attention functions.
    """
    if kind not in KINDS:
        raise TamisValueError(
            f"kv.calibrate: kind: got {kind!r}, wanted one of {', '.join(KINDS)}."
        )
    unknown = sorted(options.keys() - _OPTIONS[kind])
    if unknown:
        raise TamisValueError(
            f"kv.calibrate: options: got {', '.join(unknown)} for {kind!r}, wanted "
            f"{', '.join(sorted(_OPTIONS[kind])) or 'none'}; leave it out."
        )
    device = next(model.parameters()).device
    ids = [x.to(device) for x in token_ids(texts, tokenizer, max_length)]
    if kind == "spans":
        return _spans(model, ids, max_length, options)
    return _channels(model, ids) if kind == "channels" else _ranks(model, ids, options)


@torch.no_grad()
def _channels(model: Any, ids: list[Tensor]) -> Plan:
    sums: dict[int, Tensor] = {}
    marks: dict[int, str] = {}

    def visit(module: Any, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        layer = module.layer_idx
        found = channel_weights(q, k) * q.shape[2]
        sums[layer] = sums[layer] + found if layer in sums else found
        marks[layer] = layer_mark(module)

    _run(model, ids, visit)
    data = {i: x.argsort(dim=-1, descending=True).tolist() for i, x in sums.items()}
    return _plan("channels", data, marks, {})


@torch.no_grad()
def _ranks(model: Any, ids: list[Tensor], options: dict[str, Any]) -> Plan:
    energy = float(options.get("energy", 0.98))
    grams: dict[int, Tensor] = {}
    marks: dict[int, str] = {}
    inverse = frequencies(model.config)

    def visit(module: Any, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        layer = module.layer_idx
        if getattr(module, "is_sliding", False):  # stays transformers' own
            return
        plain = rotate(k.float(), torch.arange(k.shape[2], device=k.device), inverse, back=True)
        flat = plain.transpose(1, 2).flatten(0, 1).flatten(1).double()
        grams[layer] = grams.get(layer, torch.zeros(())) + flat.T @ flat
        marks[layer] = layer_mark(module)

    _run(model, ids, visit)
    data = {i: energy_rank(x, energy) for i, x in grams.items()}
    return _plan("ranks", data, marks, {"energy": energy})


def _spans(model: Any, ids: list[Tensor], max_length: int, options: dict[str, Any]) -> Plan:
    block, sink = int(options.get("block", 64)), int(options.get("sink", 1))
    lengths = [int(x) for x in options.get("lengths", (max_length // 2, max_length))]
    if any(n % block or n < 2 * block for n in lengths):
        raise TamisValueError(
            f"kv.calibrate: lengths: got {lengths}, wanted multiples of {block} of two blocks and more."
        )
    marks: dict[int, str] = {}
    found: dict[int, dict[int, Tensor]] = {}
    for n in lengths:
        used = [x[:, :n] for x in ids if x.shape[1] >= n]
        if not used:
            raise TamisValueError(
                f"kv.calibrate: texts: got none of {n} tokens once cut to max_length={max_length}, "
                "wanted at least one; pass longer texts, a larger max_length= or shorter lengths=."
            )
        found[n] = profile_influence(model, used, block, marks)
    bound = float(options.get("density", 0.5))
    spans = search_spans(found, block=block, sink=sink, density=bound)
    settings = {"block": block, "sink": sink, "density": bound, "lengths": lengths}
    return _plan("spans", spans, marks, settings)


def profile_influence(
    model: Any, ids: list[Tensor], block: int, marks: dict[int, str] | None = None
) -> dict[int, Tensor]:
    """How much the loss would change without each block pair, [g, m, m] by layer, the mean over texts.

    The loss is that of the second half of each text.
    """
    total: dict[int, Tensor] = {}

    def visit(module: Any, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        if getattr(module, "is_sliding", False):  # stays transformers' own
            return
        layer, scale = module.layer_idx, float(getattr(module, "scaling", q.shape[-1] ** -0.5))
        if marks is not None:
            marks[layer] = layer_mark(module)
        held = q.detach(), k.detach(), v.detach()

        def backward(gradient: Tensor) -> None:
            found = influence(*held, gradient.transpose(1, 2), scale=scale, block=block)
            found = found.cpu() / len(ids)
            total[layer] = total[layer] + found if layer in total else found

        out.register_hook(backward)  # type: ignore[no-untyped-call]

    frozen = [p for p in model.parameters() if p.requires_grad]
    for p in frozen:  # gradients flow through activations alone
        p.requires_grad_(False)
    try:
        with observing(model, visit), torch.enable_grad():
            for x in ids:
                embedded = model.get_input_embeddings()(x).detach().requires_grad_()
                logits = model(inputs_embeds=embedded, use_cache=False).logits.float()
                half = x.shape[1] // 2
                loss = torch.nn.functional.cross_entropy(logits[0, half:-1], x[0, half + 1 :])
                loss.backward()  # type: ignore[no-untyped-call]
    finally:
        for p in frozen:
            p.requires_grad_(True)
    return total


def _run(model: Any, ids: list[Tensor], visit: Any) -> None:
    with observing(model, visit):
        for x in ids:
            model(x, use_cache=False)


def _plan(kind: str, data: dict[int, Any], marks: dict[int, str], options: dict[str, Any]) -> Plan:
    layers = {i: LayerPlan(kind, x, marks[i], options) for i, x in sorted(data.items())}
    return Plan(kind, layers, options)
