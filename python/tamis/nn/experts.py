"""SparseExperts: the experts of a layer as one linear each, where transformers stacks them in 3-D parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SparseExperts"]

# What transformers' own experts classes say of themselves, and every forward of theirs goes by.
_FACTS = ("has_gate", "has_bias", "is_transposed", "num_experts")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class SparseExperts(nn.Module):
    """y [t, k] = sum over a token's experts e of weight * down_e(gate(up_e(x))); routing is the model's.

    Takes the place of an experts module of transformers (Mixtral, Qwen MoE, DeepSeek, gpt-oss), whose
    weights are parameters [experts, ., .]: ``each.3.gate_up`` (or ``up``) and ``each.3.down`` are the
    linears of expert 3, so each may be an nn.Linear or a SparseLinear. Gates and activations are those of
    the class that it stands for. Tokens go to their experts one expert after the other, as in
    transformers' own loop. Which are hit is asked of the device, which a CUDA graph cannot: in one every
    token goes through every expert, so that all weights are read, and what it was not routed to is left out.

    Attributes:
        kind: The class that it stands for.
        each: The experts' linears.

    Args:
        stack: The experts module; the linears share its memory.
    """

    kind: type[nn.Module]

    def __init__(self, stack: nn.Module) -> None:
        super().__init__()
        self.kind = type(stack)
        own = vars(nn.Module())
        vars(self).update({name: value for name, value in vars(stack).items() if name not in own})
        for name, child in stack.named_children():
            self.add_module(name, child)
        self.each = nn.ModuleList(
            nn.ModuleDict({name: self._linear(stack, name, e) for name in self.names})
            for e in range(self.count)
        )
        self.train(stack.training)

    @property
    def names(self) -> tuple[str, str]:
        """Names of an expert's two linears; the stack's parameters are these and ``_proj``."""
        return ("gate_up" if self._is("has_gate") else "up"), "down"

    @property
    def count(self) -> int:
        """Experts here."""
        return int(vars(self)["num_experts"])

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Outputs [t, k] of tokens [t, k] that go to experts [t, top k] by weights of that shape."""
        out = torch.zeros_like(hidden_states)
        if _captured(hidden_states):
            for e in range(self.count):
                hit = top_k_index == e
                y = self._expert(e, hidden_states) * (top_k_weights * hit).sum(1, keepdim=True)
                out += torch.where(hit.any(1, keepdim=True), y.to(out.dtype), 0)
            return out
        for e in torch.unique(top_k_index).tolist():
            if e >= self.count:
                continue  # transformers' mark of an expert on another device
            token, place = torch.where(top_k_index == e)
            y = self._expert(e, hidden_states[token]) * top_k_weights[token, place, None]
            out.index_add_(0, token, y.to(out.dtype))
        return out

    def _expert(self, e: int, x: Tensor) -> Tensor:
        first, second = self.names
        expert: Any = self.each[e]
        y: Tensor = expert[second](self._gated(expert[first](x)))
        norm = vars(self).get("has_post_expert_norm")
        return self.get_submodule("post_expert_norm")(y) if norm else y

    def to_stack(self) -> nn.Module:
        """The module that it stands for, with the linears' dense weights."""
        stack = self.kind.__new__(self.kind)
        nn.Module.__init__(stack)
        own = {*vars(nn.Module()), "kind"}
        vars(stack).update({name: value for name, value in vars(self).items() if name not in own})
        for name, child in self.named_children():
            if name != "each":
                stack.add_module(name, child)
        for name in self.names:
            linears: list[Any] = [expert[name] for expert in self.each]  # type: ignore[index]
            grad = any(linear.weight.requires_grad for linear in linears)
            weight = torch.stack([_dense(linear, self._is("is_transposed")) for linear in linears])
            setattr(stack, f"{name}_proj", nn.Parameter(weight, grad))
            if self._is("has_bias"):
                grad = any(linear.bias.requires_grad for linear in linears)
                bias = torch.stack([linear.bias.detach() for linear in linears])
                setattr(stack, f"{name}_proj_bias", nn.Parameter(bias, grad))
        return stack.train(self.training)

    def extra_repr(self) -> str:
        """Class and number."""
        return f"{self.count} experts of {self.kind.__name__}"

    @classmethod
    def takes(cls, module: nn.Module) -> bool:
        """Whether the module is a stack of experts that one of these can stand for."""
        facts, own = vars(module), module._parameters
        if isinstance(module, cls) or not all(name in facts for name in _FACTS):
            return False
        names = [f"{name}_proj" for name in ("gate_up" if facts["has_gate"] else "up", "down")]
        wanted = {*names, *(f"{name}_bias" for name in names if facts["has_bias"])}
        stacks = [own.get(name) for name in names]
        return own.keys() == wanted and all(
            isinstance(p, nn.Parameter)
            and p.dim() == 3
            and p.shape[0] == facts["num_experts"]
            and p.dtype in _DTYPES
            for p in stacks
        )

    def _is(self, fact: str) -> bool:
        return bool(vars(self)[fact])

    def _gated(self, x: Tensor) -> Tensor:
        this: Any = self  # act_fn and what gates read are attributes of the kind
        y: Tensor = this.kind._apply_gate(this, x) if self._is("has_gate") else this.act_fn(x)
        return y

    def _linear(self, stack: Any, name: str, e: int) -> nn.Linear:
        """Expert e's part of a stack, in the memory of it."""
        stacked = getattr(stack, f"{name}_proj")
        weight = stacked.detach()[e]
        weight = weight.t() if self._is("is_transposed") else weight
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight, stacked.requires_grad)
        if self._is("has_bias"):
            bias = getattr(stack, f"{name}_proj_bias")
            linear.bias = nn.Parameter(bias.detach()[e], bias.requires_grad)
        return linear


def _captured(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _dense(linear: Any, transposed: bool) -> Tensor:
    weight = linear.weight if isinstance(linear, nn.Linear) else linear.weight.to_dense()
    return weight.detach().t() if transposed else weight.detach()
