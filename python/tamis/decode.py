"""fuse_decode_: decoder layers that compute a new token in two calls each."""

from __future__ import annotations

from torch import nn

from tamis.errors import TamisUnsupported
from tamis.model import families, family_of
from tamis.nn.decoder import fused, is_sparse
from tamis.scope import check_model

__all__ = ["fuse_decode_"]

_ACTIVATIONS = ("SiLU", "SiLUActivation")


def fuse_decode_(model: nn.Module) -> list[str]:
    """Lets decoder layers compute each new token in two calls, in place; returns their names.

    A token of a small model spends as long in the Python around its products as in them. A fused
    layer does norms, rotations, attention, residuals and the gate in the core, between products and
    without an operator's call for each, on the CPU: see ``tamis.nn.FusedDecoder`` for when it does, which it
    decides call by call; prompts, training, masks and other caches run the layer's own forward.
    Parameters, their names and what ``tamis.save`` writes stay as they are. ``dense_`` takes it back.

    Args:
        model: Of Llama's form (Llama, SmolLM2, Mistral, Qwen 2), its linears pruned. Layers with a dense linear are left.

    Raises:
        TamisTypeError: model is not a module.
        TamisUnsupported: No layer is of that form, or none has all its linears pruned.
    """
    check_model("fuse_decode_", model)
    family = family_of(model)
    blocks = () if family is None else family.fusable
    found = {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__ in blocks
        and type(getattr(module.get_submodule("mlp"), "act_fn", None)).__name__ in _ACTIVATIONS
    }
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
        fused(found[name])
    return names
