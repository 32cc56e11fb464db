"""Calibration: runs data through a model block by block and collects what each linear sees.

Peak memory is one block's statistics plus the activations of all samples at one block boundary:
the inputs of block b are replaced in place by its outputs, which are the inputs of block b + 1.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from tamis.errors import TamisUnsupported, TamisValueError
from tamis.experts import are_alike
from tamis.model import family_of
from tamis.nn import SparseExperts
from tamis.recipe import Stats
from tamis.samples import Sample, call_model
from tamis.scope import ignoring

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tamis.model.family import Family

STATISTICS = frozenset({"x_sq", "hessian"})

Visit = Callable[[dict[str, Stats]], "dict[str, Tensor]"]
"""Prunes linears given their statistics; returns the new weights [n, k] by linear name."""


Settle = Callable[["BlockRun | None", dict[str, "Tensor"]], "dict[str, Tensor]"]
"""Finishes the weights that a Visit returned, with the block they are in (None: none)."""


# Statistics of the inputs of linears


@dataclass
class _Sums:
    """Running sums over real tokens, kept in f64."""

    tokens: int = 0
    x_sq: Tensor | None = None
    hessian: Tensor | None = None

    def add(self, x: Tensor, needs: frozenset[str]) -> None:
        """Adds the tokens x [t, k]; products in f32 (or better) per call, sums in f64."""
        if x.dtype not in (torch.float32, torch.float64):
            x = x.float()
        self.tokens += x.shape[0]
        if "hessian" in needs:
            part = (x.t() @ x).double()
            self.hessian = part if self.hessian is None else self.hessian.add_(part)
        elif "x_sq" in needs:
            part = x.square().sum(0, dtype=torch.float64)
            self.x_sq = part if self.x_sq is None else self.x_sq.add_(part)

    def join(self, other: _Sums) -> None:
        """Adds the tokens that another has seen."""
        self.tokens += other.tokens
        self.hessian = _sum(self.hessian, other.hessian)
        self.x_sq = _sum(self.x_sq, other.x_sq)

    def stats(self, name: str) -> Stats:
        """The means.

        Raises:
            TamisValueError: Some input was not finite.
        """
        hessian = None if self.hessian is None else self.hessian / self.tokens
        x_sq = None if self.x_sq is None else self.x_sq / self.tokens
        x_sq = hessian.diagonal().clone() if hessian is not None else x_sq
        if x_sq is not None and not bool(x_sq.isfinite().all()):
            raise TamisValueError(
                f"calibrate: {name}: got inputs that are NaN or infinite, wanted finite ones; "
                "check the data and the model's dtype."
            )
        return Stats(self.tokens, x_sq, hessian)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


@dataclass
class Collector:
    """Hooks on linears; those that read the very same tensor share one set of sums.

    Experts' linears, found below `root`, see the tokens that were routed to them.
    """

    root: nn.Module
    linears: Mapping[str, nn.Module]
    needs: frozenset[str]
    real: Tensor | None = None  # of the sample that runs; in a decoder beside an encoder, its own
    _encoded: tuple[Tensor | None, Tensor | None] = (None, None)  # what such a decoder reads, real
    _routed: dict[nn.Module, Tensor] = field(default_factory=dict)  # which of its tokens are real
    _sums: dict[str, _Sums] = field(default_factory=dict)
    _leader: dict[str, str] = field(default_factory=dict)
    _inputs: list[tuple[Tensor, str]] = field(default_factory=list)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Collects inside the block; hooks are removed whatever happens."""
        handles = [
            linear.register_forward_pre_hook(self._hook(name))
            for name, linear in self.linears.items()
        ]
        handles += [
            experts.register_forward_pre_hook(self._route, with_kwargs=True)
            for experts in self.root.modules()
            if isinstance(experts, SparseExperts)
        ]
        if getattr(getattr(self.root, "config", None), "is_encoder_decoder", False):
            decoder: nn.Module = self.root.get_decoder()  # type: ignore[operator]
            handles.append(decoder.register_forward_pre_hook(self._decode, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.begin(None)

    def begin(self, real: Tensor | None) -> None:
        """Starts a sample whose real tokens are `real` [b, s] (None: all)."""
        self.real = real
        self._inputs.clear()
        self._routed.clear()
        self._encoded = (None, None)

    def stats(self) -> dict[str, Stats]:
        """Statistics by linear; sharing linears get the same object.

        Raises:
            TamisValueError: A linear saw no token, or inputs that are not finite.
        """
        seen = [name for name in self.linears if name in self._leader]
        unseen = [
            name
            for name in self.linears
            if name not in self._leader and not any(are_alike(name, other) for other in seen)
        ]
        if unseen:
            raise TamisValueError(
                f"calibrate: {unseen[0]}: got no tokens, wanted some: the model did not call it; pass "
                f"more data or {ignoring(unseen, self.linears)}."
            )
        made = {leader: sums.stats(leader) for leader, sums in self._sums.items()}
        return {
            name: made[self._leader[name]] if name in self._leader else self._of_others(name)
            for name in self.linears
        }

    def _of_others(self, name: str) -> Stats:
        """Of an expert that no token went to: the mean over the other experts' tokens, but no tokens."""
        others = _Sums()
        for other, sums in self._sums.items():
            if are_alike(name, other):
                others.join(sums)
        return replace(others.stats(name), tokens=0)

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def collect(module: nn.Module, args: tuple[Any, ...]) -> None:
            x: Tensor = args[0]
            real = self._real(module, x)
            if real is not None and not bool(real.any()):
                return  # an expert that got padding alone
            if name not in self._leader:
                same = (leader for seen, leader in self._inputs if seen is x)
                self._leader[name] = next(same, name)
                self._inputs.append((x, self._leader[name]))
            if self._leader[name] == name:
                sums = self._sums.setdefault(name, _Sums())
                sums.add(_tokens(x, real, name), self.needs)

        return collect

    def _real(self, module: nn.Module, x: Tensor) -> Tensor | None:
        """Which tokens of a linear's input are real.

        None: all, as of images beside a text, or where there is one vector for each sequence.
        """
        if module in self._routed:
            return self._routed[module]
        real = self._encoded[1] if x is self._encoded[0] else self.real
        if real is None or (x.dim() == 3 and x.shape[:2] != real.shape):
            return None
        return None if x.dim() == 2 and x.shape[0] == real.shape[0] else real

    def _decode(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes the mask that a decoder was given for its own tokens."""
        self._encoded = kwargs.get("encoder_hidden_states"), self.real
        mask = kwargs.get("attention_mask")
        self.real = mask.bool() if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None

    def _route(self, experts: SparseExperts, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes which of the tokens that each expert is about to get are real."""
        if self.real is None:
            return
        index: Tensor = kwargs["top_k_index"] if "top_k_index" in kwargs else args[1]
        flat = self.real.reshape(-1)
        if flat.numel() == index.shape[0]:
            for e, expert in enumerate(experts.each):
                real = flat[torch.where(index == e)[0]]
                self._routed |= {linear: real for linear in expert.children()}


def _tokens(x: Tensor, real: Tensor | None, name: str) -> Tensor:
    """Real tokens of x [..., k] as [t, k]."""
    flat = x.detach().reshape(-1, x.shape[-1])
    if real is None:
        return flat
    if flat.shape[0] != real.numel():
        raise TamisUnsupported(
            f"calibrate: {name}: got {flat.shape[0]} tokens under an attention mask of "
            f"{real.numel()}, wanted as many; calibrate without padding."
        )
    return flat[real.reshape(-1)]


# Running block by block


@dataclass
class _Call:
    """How the model calls one block for one sample; hidden states are put in anew each time."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hidden: str  # keyword of the hidden states, "" if they come first

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The block's output hidden states."""
        kwargs = {**self.kwargs, self.hidden: hidden} if self.hidden else self.kwargs
        out = block(*self.args, **kwargs) if self.hidden else block(hidden, *self.args, **kwargs)
        states: Tensor = out[0] if isinstance(out, tuple) else out
        return states


@dataclass
class BlockRun:
    """One block with the inputs it gets now, and the outputs that it gave on them when dense."""

    block: nn.Module
    calls: list[_Call]
    hidden: list[Tensor]
    targets: list[Tensor]
    real: list[Tensor | None]  # tokens [b, s] that count; None: all

    def __len__(self) -> int:
        return len(self.hidden)

    def loss(self, i: int) -> Tensor:
        """Mean squared error of the block's output on the real tokens of sample i, scalar f32."""
        out = self.calls[i].run(self.block, self.hidden[i]).float()
        wanted, real = self.targets[i].float(), self.real[i]
        if real is not None and out.shape[:2] == real.shape:
            out, wanted = out[real], wanted[real]
        return torch.nn.functional.mse_loss(out, wanted)

    def error(self, samples: Iterable[int]) -> float:
        """The mean of `loss` over samples, without gradients."""
        losses = [float(self.loss(i)) for i in samples]
        return sum(losses) / len(losses)

    def replaced(self, forwards: Mapping[nn.Module, Callable[..., Any]]) -> Any:
        """Context in which modules of the block have other forwards."""
        return _forwards(forwards)


class _Recorded(Exception):
    """Ends the recording pass once the last block was reached."""


def run_blocks(
    model: nn.Module,
    data: list[Sample],
    linears: Mapping[str, nn.Linear],
    needs: frozenset[str],
    visit: Visit,
    sequential: bool = True,
    settle: Settle | None = None,
) -> None:
    """Collects statistics of `linears` and hands them to `visit`, block after block.

    sequential: the weights that `visit` returns are put in place while the block runs again, so
    that later blocks see what the pruned ones produce; otherwise the model runs once, unpruned.
    The model's weights, hooks and training mode are as before when this returns or raises.

    settle: called after `visit` with the block and its dense outputs; its weights count then.

    Linears outside the family's blocks, or all of a model of no known family, are collected in one
    pass of the whole model (after the blocks, unpruned).

    Raises:
        TamisValueError: A linear saw no token or inputs that are not finite.
        TamisUnsupported: A padded sample reaches a linear in another shape.
    """
    family = family_of(model)
    with _evaluating(model), torch.no_grad():
        inside: set[str] = set()
        if family is not None:
            blocks = family.find_blocks(model)
            groups = {b: _within(linears, b) for b in blocks}
            inside = {name for group in groups.values() for name in group}
            if inside:
                _stream(model, family, data, groups, needs, (visit, settle), sequential)
        rest = {name: linear for name, linear in linears.items() if name not in inside}
        if rest:
            _whole(model, data, rest, needs, (visit, settle))


def _within(linears: Mapping[str, nn.Linear], block: str) -> dict[str, nn.Linear]:
    return {name: linear for name, linear in linears.items() if name.startswith(block + ".")}


def _stream(
    model: nn.Module,
    family: Family,
    data: list[Sample],
    groups: dict[str, dict[str, nn.Linear]],
    needs: frozenset[str],
    then: tuple[Visit, Settle | None],
    sequential: bool,
) -> None:
    blocks = family.find_blocks(model)
    hidden, calls = _record(model, family, blocks, data)
    last = max(i for i, name in enumerate(blocks) if groups[name])
    for index, (name, block) in enumerate(blocks.items()):
        if index > last:
            break
        again = sequential and bool(groups[name]) and index < last
        called = [calls[i][index] for i in range(len(data))]
        run = BlockRun(block, called, hidden, [], [sample.real for sample in data])
        weights = _visit_block(run, data, groups[name], needs, then, again)
        if run.targets and not again:
            hidden = run.targets
        if again:
            with _replaced(groups[name], weights):
                for i in range(len(data)):
                    hidden[i] = calls[i][index].run(block, hidden[i])
        del weights
        trim()


def _visit_block(
    run: BlockRun,
    data: list[Sample],
    linears: dict[str, nn.Linear],
    needs: frozenset[str],
    then: tuple[Visit, Settle | None],
    again: bool,
) -> dict[str, Tensor]:
    """What the linears of a block become.

    Its outputs go to `run.targets` if it is trained to give them, else, unless it runs again, in
    place of its inputs.
    """
    visit, settle = then
    collector = Collector(run.block, linears, needs)
    with collector.watching():
        for i, sample in enumerate(data):
            collector.begin(sample.real)
            out = run.calls[i].run(run.block, run.hidden[i])
            if settle is not None and linears:
                run.targets.append(out)
            elif not again:
                run.hidden[i] = out
    if not linears:
        return {}
    weights = visit(collector.stats())
    del collector
    return weights if settle is None else settle(run, weights)


def _whole(
    model: nn.Module,
    data: list[Sample],
    linears: dict[str, nn.Linear],
    needs: frozenset[str],
    then: tuple[Visit, Settle | None],
) -> None:
    visit, settle = then
    collector = Collector(model, linears, needs)
    with collector.watching():
        for sample in data:
            collector.begin(sample.real)
            call_model(model, sample)
    weights = visit(collector.stats())
    if settle is not None:
        settle(None, weights)


def _record(
    model: nn.Module, family: Family, blocks: dict[str, nn.Module], data: list[Sample]
) -> tuple[list[Tensor], list[list[_Call]]]:
    """Inputs of the first block, and how each block is called, per sample.

    While recording, every block only notes its arguments and passes its hidden states on, so that
    each block gets the masks and position embeddings the model makes for it, at no cost.
    """
    hidden: list[Tensor] = []
    calls: list[list[_Call]] = []
    final = next(reversed(blocks.values()))

    def recorder(block: nn.Module) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            key = family.hidden if family.hidden in kwargs else ""
            states = kwargs.pop(key) if key else args[0]
            if not calls[-1]:
                hidden.append(states)
            args = tuple(map(_uncached, args if key else args[1:]))
            kwargs = {name: _uncached(value) for name, value in kwargs.items()}
            calls[-1].append(_Call(args, kwargs, key))
            if block is final:
                raise _Recorded
            return states

        return record

    with _forwards({block: recorder(block) for block in blocks.values()}):
        for sample in data:
            calls.append([])
            with suppress(_Recorded):
                call_model(model, sample)
    return hidden, calls


def _uncached(value: Any) -> Any:
    """An argument of a block, but no KV cache: the block runs more than once."""
    return None if hasattr(value, "get_seq_length") else value


@contextmanager
def _forwards(instead: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Gives modules another forward, on the instance: their class is not touched."""
    own: dict[nn.Module, Any] = {module: module.__dict__.get("forward") for module in instead}
    try:
        for module, forward in instead.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, forward in own.items():
            if forward is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = forward


def trim() -> None:
    """Hands freed heap pages back to the system.

    glibc keeps what lies between long-lived arrays: measured on 8 blocks of 576 x 1536, half of the
    resident memory after pruning was such pages.
    """
    if sys.platform.startswith("linux"):
        with suppress(AttributeError, OSError):  # musl has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def _replaced(linears: Mapping[str, nn.Linear], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Puts `weights` in place of the linears' own, for as long as the context lasts."""
    originals = {name: linears[name].weight.data for name in weights}
    try:
        for name, weight in weights.items():
            linears[name].weight.data = weight
        yield
    finally:
        for name, weight in originals.items():
            linears[name].weight.data = weight


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module's own mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
