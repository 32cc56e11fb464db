"""Plan: what the core needs of decoder layers, and whether they still are what it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tamis.nn.linear import SparseLinear
from tamis.ops.decoder import Layer, unchanged
from tamis.ops.entry import entry_of

__all__ = ["ACTIVATIONS", "Plan", "Unplannable", "is_sparse", "plan_layers", "plan_stack"]

ACTIVATIONS = ("SiLU", "SiLUActivation")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_MOST_HEAD_DIM = 256  # what the core's attention takes, in multiples of 16
_PLAIN = ("sdpa", "eager")  # what computes softmax attention and nothing else
# Settings of a configuration, however a version of transformers spells them, that a step depends on.
_SETTINGS = (
    "attn_implementation",
    "layer_types",
    "num_hidden_layers",
    "output_",
    "return_dict",
    "sliding_window",
    "use_",
)
_FIRST_POSITIONS = 256


class Unplannable(Exception):
    """A layer is not what the core computes; the text says what it is instead."""


class _Watch:
    """Collects what must not change: entries of dictionaries, hooks, addresses of tensors."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self.empty: list[Any] = []
        self.tensors: list[Any] = []

    def entry(self, dictionary: dict[str, Any], name: str) -> Any:
        """The value of ``name``, which is to stay that object; ``...`` where it is to stay absent."""
        value = dictionary.get(name, ...)
        self.entries += (dictionary, name, value)
        return value

    def address(self, tensor: Tensor) -> int:
        """Where the tensor lies, and is to stay; writes do not matter."""
        address = tensor.data_ptr()
        self.tensors += (tensor, -1, address)
        return address

    def writes(self, tensor: Tensor, version: int) -> None:
        """Nobody may write to the tensor from that version on."""
        self.tensors += (tensor, version, -1)

    def module(self, parent: nn.Module, name: str) -> Any:
        """The child ``name``, which nobody may hook or replace, nor its forward."""
        child = self.entry(parent.__dict__["_modules"], name)
        self.unhooked(child)
        return child

    def unhooked(self, module: Any) -> None:
        """Nobody may hook the module, nor replace its forward."""
        hooks = module._forward_hooks, module._forward_pre_hooks
        if any(hooks) or self.entry(module.__dict__, "forward") is not ...:
            raise Unplannable(f"a {type(module).__name__} has hooks or a forward of its own")
        self.empty += hooks

    def config(self, config: Any) -> None:
        """Settings of a configuration that a step depends on."""
        for name in config.__dict__:
            if name.lstrip("_").startswith(_SETTINGS):
                self.entry(config.__dict__, name)


class Plan:
    """Layers as the core takes them; ``holds`` says whether the modules are still those.

    Attributes:
        layers: In order.
        indices: Their places in a cache.
        dtype: Of x, norms, biases and caches.
        limit: The most sequences for which every product goes to its kernel.
        heads: Query heads, KV heads, head_dim.
        last: Address and eps of the norm after the layers; 0 where there is none.
        turns: cos and sin by position, where the plan is of a whole model.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.layers: list[Layer] = []
        self.indices: list[int] = []
        self.dtype, self.limit, self.heads = dtype, 1 << 62, (0, 0, 0)
        self.last: tuple[int, float] = (0, 0.0)
        self.turns: Turns | None = None
        self._watched: tuple[tuple[Any, ...], ...] = ((), (), ())

    def holds(self, dtype: torch.dtype) -> bool:
        """Whether it is of this dtype, and all that it was made of is still there."""
        return self.dtype is dtype and unchanged(*self._watched)

    def watch(self, watch: _Watch) -> None:
        """What ``holds`` looks at."""
        self._watched = tuple(watch.entries), tuple(watch.empty), tuple(watch.tensors)


class Turns:
    """Cosines and sines of positions, as a model's rotary embedding computes them, kept."""

    def __init__(self, rotary: Any, dtype: torch.dtype, head_dim: int) -> None:
        self._rotary, self._dtype, self._head_dim = rotary, dtype, head_dim
        self._positions = 0
        self._cos = self._sin = torch.empty(0)

    def at(self, position: int) -> tuple[int, int, int]:
        """Addresses of cos and sin [d] at one position, and 1."""
        self._reach(position)
        offset = position * self._head_dim * self._cos.element_size()
        return self._cos.data_ptr() + offset, self._sin.data_ptr() + offset, 1

    def gathered(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cos and sin [m, d] at positions [m], none below 0."""
        self._reach(int(positions.max()))
        return self._cos[positions], self._sin[positions]

    def _reach(self, position: int) -> None:
        if position < self._positions:
            return
        self._positions = max(_FIRST_POSITIONS, 2 * position)
        like = torch.empty(0, dtype=self._dtype)
        positions = torch.arange(self._positions).unsqueeze(0)
        cos, sin = self._rotary(like, positions)
        self._cos, self._sin = cos[0].contiguous(), sin[0].contiguous()


def is_sparse(layer: nn.Module) -> bool:
    """Whether every linear of a decoder layer is a SparseLinear, which the core takes."""
    attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
    linears = [attention.get_submodule(name) for name in _ATTENTION]
    linears += [mlp.get_submodule(name) for name in _MLP]
    return all(type(linear) is SparseLinear for linear in linears)


def plan_layers(layers: Sequence[nn.Module], dtype: torch.dtype) -> Plan:
    """Of decoder layers.

    Raises:
        Unplannable: The core cannot compute one of them.
    """
    plan, watch = Plan(dtype), _Watch()
    for layer in layers:
        _add_layer(plan, watch, layer)
    plan.watch(watch)
    return plan


def plan_stack(model: nn.Module, dtype: torch.dtype) -> Plan:
    """Of a model's layers, the norm after them and its rotations.

    Raises:
        Unplannable: One of them is not what the core computes.
    """
    plan, watch = Plan(dtype), _Watch()
    layers = watch.module(model, "layers")
    for name in list(layers._modules):
        _add_layer(plan, watch, watch.module(layers, name))
    plan.last = _norm(plan, watch, watch.module(model, "norm"))
    plan.turns = _turns(plan, watch, watch.module(model, "rotary_emb"))
    config: Any = model.config
    watch.config(config)
    plan.watch(watch)
    kinds = getattr(config, "layer_types", None) or ()
    if config.num_hidden_layers != len(plan.layers):
        raise Unplannable(f"its configuration asks for {config.num_hidden_layers} layers")
    if getattr(config, "sliding_window", None) or any(k != "full_attention" for k in kinds):
        raise Unplannable("attention has a window")
    if config.output_hidden_states or config.output_attentions:
        raise Unplannable("its configuration asks for hidden states or attentions")
    return plan


def _turns(plan: Plan, watch: _Watch, rotary: Any) -> Turns:
    kind = watch.entry(rotary.__dict__, "rope_type")
    watch.entry(rotary.__dict__, "attention_scaling")
    frequencies = watch.entry(rotary._buffers, "inv_freq")
    # These change their frequencies as the context grows.
    if not isinstance(kind, str) or "dynamic" in kind or kind == "longrope":
        raise Unplannable(f"rotations of type {kind} change with the context")
    if frequencies.is_inference():
        raise Unplannable("rotations were made in inference mode")
    if 2 * frequencies.numel() != plan.heads[2]:
        raise Unplannable("rotations leave channels out")
    watch.writes(frequencies, frequencies._version)
    return Turns(rotary, plan.dtype, plan.heads[2])


def _add_layer(plan: Plan, watch: _Watch, layer: nn.Module) -> None:
    if watch.entry(layer.__dict__, "training"):
        raise Unplannable("the model is training; call eval()")
    attention, mlp = watch.module(layer, "self_attn"), watch.module(layer, "mlp")
    watch.config(attention.config)
    kind = attention.config._attn_implementation
    if kind not in _PLAIN:
        raise Unplannable(f"attention is {kind}, not {' or '.join(_PLAIN)}")
    norms = [_norm(plan, watch, watch.module(layer, name)) for name in _NORMS]
    linears = [watch.module(attention, name) for name in _ATTENTION]
    linears += [watch.module(mlp, name) for name in _MLP]
    if type(watch.module(mlp, "act_fn")).__name__ not in ACTIVATIONS:
        raise Unplannable("the MLP's activation is not SiLU")
    weights = [_weight(plan, watch, linear) for linear in linears]
    head_dim = watch.entry(attention.__dict__, "head_dim")
    scale = watch.entry(attention.__dict__, "scaling")
    index = watch.entry(attention.__dict__, "layer_idx")
    heads = linears[0].out_features // head_dim, linears[1].out_features // head_dim, head_dim
    if head_dim % 16 != 0 or head_dim > _MOST_HEAD_DIM:
        raise Unplannable(f"heads have {head_dim} channels, not 16, 32, .. {_MOST_HEAD_DIM}")
    if plan.layers and heads != plan.heads:
        raise Unplannable("layers differ in heads")
    plan.heads = heads
    plan.indices.append(index)
    plan.layers.append(Layer(weights, norms, scale))


def _norm(plan: Plan, watch: _Watch, norm: Any) -> tuple[int, float]:
    weight = watch.entry(norm._parameters, "weight")
    if weight.dtype is not plan.dtype or not (weight.is_cpu and weight.is_contiguous()):
        raise Unplannable(f"a norm's weight is {weight.dtype} on {weight.device}")
    return watch.address(weight), watch.entry(norm.__dict__, "variance_epsilon")


def _weight(plan: Plan, watch: _Watch, linear: Any) -> tuple[Any, int]:
    """The checked matrix and the address of its bias."""
    if type(linear) is not SparseLinear:
        raise Unplannable(f"a linear is a {type(linear).__name__}, not a SparseLinear")
    parameters, buffers = linear._parameters, linear._buffers
    token = watch.entry(linear.__dict__, "_token")
    where = parameters if "weight_values" in parameters else buffers
    values = watch.entry(where, "weight_values")
    mask, offsets, columns, scales = (
        watch.entry(buffers, f"weight_{name}")
        for name in ("mask", "row_offsets", "col_indices", "scales")
    )
    bias = watch.entry(parameters, "bias")
    if not values.is_cpu:
        raise Unplannable(f"weights lie on {values.device}")
    entry = entry_of(token, values, (mask, offsets, columns, scales))
    plan.limit = min(plan.limit, entry.direct.get(plan.dtype, (0, -1))[1])
    # Nobody counts the writes to a tensor made in inference mode.
    if min(entry.first_version, entry.second_version) < 0:
        raise Unplannable("weights were made in inference mode")
    if plan.limit < 0:
        raise Unplannable(f"no kernel takes {plan.dtype} with weights of {entry.layout.label}")
    watch.address(values)
    watch.writes(entry.first, entry.first_version)
    watch.writes(entry.second, entry.second_version)
    if bias is None:
        return entry.matrix, 0
    if bias.dtype is not plan.dtype or not bias.is_contiguous():
        raise Unplannable(f"a bias is {bias.dtype}")
    return entry.matrix, watch.address(bias)
