"""A model's rotary frequencies, from its config."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tamis.errors import TamisUnsupported


def frequencies(config: Any) -> Tensor:
    """Radians a token of each rotated pair of channels, [pairs] f32: channels i and i + pairs turn.

    Of the layers with full attention, where the kinds of layers turn differently.

    Raises:
        TamisUnsupported: Frequencies depend on the length, or are unknown.
    """
    text = config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None)
    kind_of_layer = None
    if isinstance(rope, dict) and "full_attention" in rope:
        kind_of_layer = "full_attention"
        rope = rope[kind_of_layer]
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        raise TamisUnsupported(
            f"kv: config: got {type(config).__name__} without rotary parameters, wanted keys that "
            "are rotated; choose another method."
        )
    kind = rope.get("rope_type", "default")
    d = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if kind == "default":
        turned = int(d * rope.get("partial_rotary_factor", 1.0))
        exponent = torch.arange(0, turned, 2, dtype=torch.float32) / turned
        made: Tensor = 1.0 / rope["rope_theta"] ** exponent
        return made
    if kind in ("dynamic", "longrope") or kind not in ROPE_INIT_FUNCTIONS:
        raise TamisUnsupported(
            f"kv: config: got rotary type {kind!r}, whose frequencies change, wanted fixed ones; "
            "choose another method."
        )
    found: Tensor = ROPE_INIT_FUNCTIONS[kind](text, torch.device("cpu"), layer_type=kind_of_layer)[
        0
    ]
    return found.float()
