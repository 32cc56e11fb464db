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
_MORE_POSITIONS = 256


class Unplannable(Exception):
    """A layer is not what the core computes; the text says what it is instead."""


class _Watch:
    """Collects what must not change: dictionaries' entries, hooks, classes, tensors' addresses."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self.empty: list[Any] = []
        self.tensors: list[Any] = []
        self.types: list[Any] = []
        self.methods: list[Any] = []

    def entry(self, dictionary: dict[str, Any], name: str) -> Any:
        """The value of ``name``, which is to stay that object."""
        if name not in dictionary:
            raise Unplannable(f"one of its modules has no {name}")
        value = dictionary[name]
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

    def module(self, parent: nn.Module, name: str, source: str = "") -> Any:
        """The child ``name``, which nobody may hook or replace, nor its class or forward.

        ``source``: The Python module that its class and forward must come from.
        """
        child = self.entry(parent.__dict__["_modules"], name)
        kind = type(child)
        if child is None or (source and not _comes_from(source, kind)):
            raise Unplannable(f"{name} is a {kind.__name__}, not one of {source}")
        hooks = child._forward_hooks, child._forward_pre_hooks
        if any(hooks) or "forward" in child.__dict__:
            raise Unplannable(f"a {kind.__name__} has hooks or a forward of its own")
        self.empty += hooks
        self.entries += (child.__dict__, "forward", ...)
        self.types += (child, kind)
        self.method(kind)
        return child

    def own(self, kind: type) -> str:
        """The Python module that the class comes from, as its forward must."""
        if not _comes_from(kind.__module__, kind):
            raise Unplannable(f"the forward of {kind.__name__} is not its own")
        self.method(kind)
        return kind.__module__

    def method(self, kind: type) -> None:
        """The class's ``forward``, which is to stay that function."""
        if kind not in self.methods:
            self.methods += (kind, "forward", kind.forward)  # type: ignore[attr-defined]

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
        width: Channels of x.
        last: Address and eps of the norm after the layers; 0 where there is none.
        turns: cos and sin by position, where the plan is of a whole model.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.layers: list[Layer] = []
        self.indices: list[int] = []
        self.dtype, self.limit, self.heads, self.width = dtype, 1 << 62, (0, 0, 0), 0
        self.last: tuple[int, float] = (0, 0.0)
        self.turns: Turns | None = None
        self._watched: tuple[tuple[Any, ...], ...] = ()

    def holds(self, dtype: torch.dtype) -> bool:
        """Whether it is of this dtype, and all that it was made of is still there."""
        return self.dtype is dtype and unchanged(*self._watched)

    def watch(self, watch: _Watch) -> None:
        """What ``holds`` looks at."""
        parts = watch.entries, watch.empty, watch.tensors, watch.types, watch.methods
        self._watched = tuple(map(tuple, parts))


class Turns:
    """Cosines and sines of positions, as a model's rotary embedding computes them, kept."""

    def __init__(self, rotary: Any, dtype: torch.dtype) -> None:
        self._rotary, self._dtype = rotary, dtype
        self._table = torch.empty(0), torch.empty(0)

    def at(self, position: int) -> tuple[Tensor, Tensor]:
        """Cos and sin [d] at one position, not below 0."""
        cos, sin = self._reaching(position)
        return cos[position], sin[position]

    def gathered(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cos and sin [m, d] at positions [m], none below 0."""
        cos, sin = self._reaching(int(positions.max()))
        return cos[positions], sin[positions]

    def _reaching(self, position: int) -> tuple[Tensor, Tensor]:
        """Cos and sin [more than position, d]; another thread may lay new ones meanwhile."""
        table = self._table
        if position >= table[0].shape[0]:
            like = torch.empty(0, dtype=self._dtype)
            positions = torch.arange(position + max(_MORE_POSITIONS, position // 8)).unsqueeze(0)
            cos, sin = self._rotary(like, positions)
            self._table = table = cos[0].contiguous(), sin[0].contiguous()
        return table


def _comes_from(source: str, kind: type) -> bool:
    """Whether a class and its forward were written in that Python module."""
    forward: Any = getattr(kind, "forward", None)
    return source == kind.__module__ and source == getattr(forward, "__module__", None)


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


def plan_stack(model: nn.Module, dtype: torch.dtype, front: type) -> Plan:
    """Of a model's layers, all fused by ``front``, the norm after them and its rotations.

    Raises:
        Unplannable: One of them is not what the core computes.
    """
    plan, watch = Plan(dtype), _Watch()
    layers = watch.module(model, "layers")
    source = watch.own(type(model).__bases__[-1])
    for name in list(layers._modules):
        layer = watch.module(layers, name)
        if type(layer).__bases__[0] is not front:
            raise Unplannable(f"a layer is a {type(layer).__name__} that is not fused")
        _add_layer(plan, watch, layer)
    plan.last = _norm(plan, watch, watch.module(model, "norm", source), plan.width)
    plan.turns = _turns(plan, watch, watch.module(model, "rotary_emb", source))
    config = watch.entry(model.__dict__, "config")
    watch.config(config)
    plan.watch(watch)
    if len({*plan.indices}) != len(plan.indices):
        raise Unplannable("layers share a place in the cache")
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
    if not frequencies.is_cpu:
        raise Unplannable(f"rotations lie on {frequencies.device}")
    # These change their frequencies as the context grows.
    if not isinstance(kind, str) or "dynamic" in kind or kind == "longrope":
        raise Unplannable(f"rotations of type {kind} change with the context")
    if frequencies.is_inference():
        raise Unplannable("rotations were made in inference mode")
    if 2 * frequencies.numel() != plan.heads[2]:
        raise Unplannable("rotations leave channels out")
    watch.address(frequencies)
    watch.writes(frequencies, frequencies._version)
    return Turns(rotary, plan.dtype)


def _add_layer(plan: Plan, watch: _Watch, layer: nn.Module) -> None:
    if watch.entry(layer.__dict__, "training"):
        raise Unplannable("the model is training; call eval()")
    # A fused layer's own class is behind the one that fuses it; all parts are of its file.
    source = watch.own(type(layer).__bases__[-1])
    attention, mlp = (watch.module(layer, name, source) for name in ("self_attn", "mlp"))
    config = watch.entry(attention.__dict__, "config")
    watch.config(config)
    if config._attn_implementation not in _PLAIN:
        raise Unplannable(f"attention is {config._attn_implementation}, not {' or '.join(_PLAIN)}")
    linears = [watch.module(attention, name) for name in _ATTENTION]
    linears += [watch.module(mlp, name) for name in _MLP]
    if type(watch.module(mlp, "act_fn")).__name__ not in ACTIVATIONS:
        raise Unplannable("the MLP's activation is not SiLU")
    weights = [_weight(plan, watch, linear) for linear in linears]
    width = linears[0].in_features
    norms = [_norm(plan, watch, watch.module(layer, name, source), width) for name in _NORMS]
    head_dim = watch.entry(attention.__dict__, "head_dim")
    scale = watch.entry(attention.__dict__, "scaling")
    index = watch.entry(attention.__dict__, "layer_idx")
    heads = linears[0].out_features // head_dim, linears[1].out_features // head_dim, head_dim
    if head_dim % 16 != 0 or head_dim > _MOST_HEAD_DIM:
        raise Unplannable(f"heads have {head_dim} channels, not 16, 32, .. {_MOST_HEAD_DIM}")
    if plan.layers and (heads != plan.heads or width != plan.width):
        raise Unplannable("layers differ in shape")
    plan.heads, plan.width = heads, width
    plan.indices.append(index)
    plan.layers.append(Layer(weights, norms, scale))


def _norm(plan: Plan, watch: _Watch, norm: Any, width: int) -> tuple[int, float]:
    weight = watch.entry(norm._parameters, "weight")
    eps = watch.entry(norm.__dict__, "variance_epsilon")
    return _vector(plan, watch, weight, width, "a norm's weight"), eps


def _vector(plan: Plan, watch: _Watch, vector: Tensor, length: int, what: str) -> int:
    """Its address."""
    if vector.dtype is not plan.dtype or not vector.is_cpu:
        raise Unplannable(f"{what} is {vector.dtype} on {vector.device}, not {plan.dtype}")
    if vector.shape != (length,) or not vector.is_contiguous():
        raise Unplannable(f"{what} is of shape {list(vector.shape)}, not [{length}]")
    return watch.address(vector)


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
    if scales is not None:
        watch.address(scales)
    if bias is None:
        return entry.matrix, 0
    return entry.matrix, _vector(plan, watch, bias, entry.rows, "a bias")
