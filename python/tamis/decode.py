"""fuse_decode_: decoder layers that compute a new token in one call."""

from __future__ import annotations

from torch import nn

from tamis.errors import TamisUnsupported
from tamis.model import families, family_of
from tamis.nn.decoder import FusedDecoder, FusedStack, fused, refusal
from tamis.nn.decoder_plan import ACTIVATIONS, is_sparse
from tamis.scope import check_model

__all__ = ["fuse_decode_", "fusion"]


def fuse_decode_(model: nn.Module) -> list[str]:
    """Lets decoder layers compute each new token in one call, in place; returns their names.

    A token of a small model spends as long in the Python around its products as in them. Where all
    layers are fused, one call of the core takes a token through them, the norm after them included:
    norms, rotations, attention, residuals and gates between products, without an operator's call
    for each, on the CPU. Where some have a dense linear, each of the others is a call. When they do
    so is decided step by step, see ``tamis.nn.FusedStack`` and ``FusedDecoder``: prompts, training,
    padded batches and other caches run the model's own forward. Parameters, their names and what
    ``tamis.save`` writes stay as they are. ``dense_`` takes it back.

    Args:
        model: Of Llama's form (Llama, SmolLM2, Mistral, Qwen 2), its linears pruned. Layers with a
            dense linear are left.

    Raises:
        TamisTypeError: model is not a module.
        TamisUnsupported: No layer is of that form, or none has all its linears pruned.
    """
    check_model("fuse_decode_", model)
    found = _candidates(model)
    if not found:
        known = ", ".join(sorted(block for f in families() for block in f.fusable))
        raise TamisUnsupported(
            f"fuse_decode_: model: got {type(model).__name__} without a layer that can be fused, "
            f"wanted one of {known} with SiLU; leave this model as it is."
        )
    names = [name for name, module in found.items() if is_sparse(module)]
    if not names:
        raise TamisUnsupported(
            f"fuse_decode_: model: got {type(model).__name__} whose {len(found)} layers all have a "
            "dense linear, wanted one with all of them sparse; call sparsify_ first."
        )
    for name in names:
        fused(found[name], FusedDecoder)
    family = family_of(model)
    stacks = () if family is None else family.stacks
    for module in model.modules():
        if type(module).__name__ in stacks:
            layers = module.get_submodule("layers").children()
            if all(isinstance(layer, FusedDecoder) for layer in layers):
                fused(module, FusedStack)
    return names


def fusion(model: nn.Module) -> str:
    """One sentence on what ``fuse_decode_`` did to the model, or could; "" where it could nothing."""
    found = _candidates(model).values()
    sparse = sum(map(is_sparse, found))
    if not sparse:
        return ""
    fused_ones = [layer for layer in found if isinstance(layer, FusedDecoder)]
    if not fused_ones:
        return f"no layer; fuse_decode_ would fuse {sparse} of {len(found)}"
    stacks: list[nn.Module] = [each for each in model.modules() if isinstance(each, FusedStack)]
    calls = "one call a token" if stacks else "a call each"
    dense = f", the others have a dense linear; {calls}" if sparse < len(found) else f", {calls}"
    why = next(filter(None, map(refusal, stacks or fused_ones)), "")
    note = f"; not now, as {why}" if why else ""
    return f"{len(fused_ones)} of {len(found)} layers{dense}{note}"


def _candidates(model: nn.Module) -> dict[str, nn.Module]:
    """Layers of a form that the core computes, by name."""
    family = family_of(model)
    blocks = () if family is None else family.fusable
    return {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__ in blocks
        and type(getattr(module.get_submodule("mlp"), "act_fn", None)).__name__ in ACTIVATIONS
    }
