"""What sparsify_ works on: layers by name, the pattern of what stays, and each layer's share of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real

from torch import nn

from tamis.errors import TamisTypeError, TamisValueError
from tamis.formats import tied
from tamis.model import family_of
from tamis.nn import SparseExperts, SparseLinear
from tamis.policy import allocate as allocation
from tamis.recipe import Pattern, PruneRecipe
from tamis.transposed import is_conv1d, is_linear

__all__ = [
    "DEFAULT_IGNORE",
    "allocate",
    "check_in_memory",
    "check_keys",
    "check_model",
    "find_linears",
    "ignoring",
    "left_dense",
    "parse_pattern",
]

DEFAULT_IGNORE = ("lm_head",)
CLASSES = ("Linear", "Conv2d", "Conv1D")  # of what may be pruned


def parse_pattern(text: str) -> Pattern:
    """Pattern of "unstructured", "N:M", "block:RxC" or "vector:G".

    Raises:
        TamisValueError: The text is none of these, or its numbers are out of range.
    """
    if text == "unstructured":
        return Pattern()
    if found := re.fullmatch(r"(\d+):(\d+)", str(text)):
        keep, of = int(found[1]), int(found[2])
        if 1 <= keep <= of <= 32:
            return Pattern("nm", keep=keep, of=of)
    elif found := re.fullmatch(r"block:(\d+)x(\d+)|vector:(\d+)", str(text)):
        rows, cols = int(found[1] or found[3]), int(found[2] or 1)
        if rows >= 1 and cols >= 1:
            return Pattern("block", rows=rows, cols=cols)
    raise TamisValueError(
        f"sparsify_: pattern: got {text!r}, wanted 'unstructured', 'N:M' with 1 <= N <= M <= 32 "
        "(N weights kept of M), 'block:RxC' or 'vector:G'; for example '2:4' or 'block:16x16'."
    )


def find_linears(
    model: nn.Module,
    targets: Sequence[str] | None = None,
    ignore: Sequence[str] = DEFAULT_IGNORE,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
) -> dict[str, nn.Module]:
    """The nn.Linear, nn.Conv2d and Conv1D modules that may be pruned, by name in model order.

    Output layers and weights shared with another module are left alone unless a target names them
    exactly, convolutions larger than 1x1 unless any target finds them.

    Raises:
        TamisTypeError: model is not a module, or targets or ignore is one string.
        TamisValueError: A target or ignore matches nothing, or nothing is left.
    """
    check_model("sparsify_", model)
    if filter_fn is not None and not callable(filter_fn):
        raise TamisTypeError(
            f"sparsify_: filter_fn: got {type(filter_fn).__name__}, wanted a function of (module, "
            "name)."
        )
    if targets is not None:
        check_keys("sparsify_: targets", targets)
    check_keys("sparsify_: ignore", ignore)
    linears = {
        n: m
        for n, m in model.named_modules()
        if is_linear(m) or (type(m) is nn.Conv2d and m.groups == 1) or is_conv1d(m)
    }
    _check_names("targets", targets, linears)
    _check_names("ignore", () if tuple(ignore) == DEFAULT_IGNORE else ignore, linears)
    kept_dense = _kept_dense(model, linears, by_family=targets is None)
    wanted = targets if targets is not None else CLASSES
    found = {
        name: linear
        for name, linear in linears.items()
        if any(_names(key, name, linear) for key in wanted)
        and (name in wanted or name not in kept_dense)
        and not any(_names(key, name, linear) for key in ignore)
        and (filter_fn is None or filter_fn(linear, name))
    }
    if not found:
        why = _why_none(model, bool(linears), bool(linears.keys() - kept_dense))
        raise TamisValueError(
            f"sparsify_: targets: got no layer to prune among {len(linears)} nn.Linear and nn.Conv2d, "
            f"wanted at least one; {why}."
        )
    return found


def ignoring(names: Sequence[str], layers: Iterable[str]) -> str:
    """The argument of sparsify_ that leaves these of its layers alone, by pattern if they are several."""
    leaves = {name.rpartition(".")[2] for name in names}
    others = {name.rpartition(".")[2] for name in set(layers) - set(names)}
    keys = list(names)
    if len(names) > 1 and not leaves & others:
        keys = [f"re:.*{re.escape(leaf)}" for leaf in sorted(leaves)]
    return f"ignore={keys}"


def left_dense(model: nn.Module, by_default: bool = False) -> dict[str, int | str]:
    """Classes that hold matrices which nothing here reads, most first, and their bytes; {} if none.

    Routers of mixtures are such, and subclasses of nn.Linear. What is less than 1 % of all matrices
    is not worth a word.

    Args:
        model: Any.
        by_default: Whether linears outside a family's blocks were left because no target named them,
            as those of Llava's image encoder are.
    """
    known = {nn.Conv1d, nn.Conv2d, nn.Conv3d}
    outside = _outside(model) if by_default else {}
    total, found = 0, dict[str, int]()
    for module in model.modules():
        kind = type(module)
        matrices = [p for p in module.parameters(recurse=False) if p.dim() > 1]
        size = sum(p.numel() * p.element_size() for p in matrices)
        total += module.layout.dense_nbytes if isinstance(module, SparseLinear) else size
        if module in outside:
            found[outside[module]] = found.get(outside[module], 0) + size
        if (
            kind in known
            or is_linear(module)
            or is_conv1d(module)
            or SparseExperts.takes(module)
            or isinstance(module, nn.Embedding)
            or kind.__module__.startswith("tamis.")
        ):
            continue
        if matrices:
            found[kind.__name__] = found.get(kind.__name__, 0) + size
    most = sorted(found.items(), key=lambda item: -item[1])
    worth = {name: size for name, size in most if size * 100 >= total}
    if not worth:
        return {}
    return {"left_dense": ", ".join(worth), "left_dense_bytes": sum(worth.values())}


def _outside(model: nn.Module) -> dict[nn.Module, str]:
    """Linears that belong to no block of the model's family and are no output layer."""
    family = family_of(model)
    if family is None:
        return {}
    blocks = family.find_blocks(model)
    inside = tuple(f"{name}." for name in blocks)
    kind = type(next(iter(blocks.values()))).__name__
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {
        module: f"nn.Linear outside {kind} (name them as targets)"
        for name, module in model.named_modules()
        if is_linear(module)
        and module is not head
        and not name.startswith(inside)
        and _leaf(name) not in family.head
    }


def _why_none(model: nn.Module, any_linears: bool, any_by_default: bool) -> str:
    """What to do where nothing can be pruned."""
    kinds = {type(module) for module in model.modules()}
    if any(issubclass(kind, SparseLinear) for kind in kinds):
        return "call dense_ first: its linears are sparse already"
    others = left_dense(model).get("left_dense")
    if others and not any_by_default:
        return f"its weights are in {others}, which may do more than nn.Linear; replace them by it first"
    return "widen targets" if any_linears else "pass a model that has some"


def _kept_dense(model: nn.Module, linears: Mapping[str, nn.Module], by_family: bool) -> set[str]:
    """Linears left alone by default: tied, output layers, and those outside a family's blocks."""
    shared = tied(model)
    dense = {name for name, linear in linears.items() if linear in shared}
    find_head = getattr(model, "get_output_embeddings", None)
    head = find_head() if callable(find_head) else None
    dense |= {name for name, linear in linears.items() if linear is head}
    family = family_of(model)
    if by_family:
        large = (n for n, m in linears.items() if isinstance(m, nn.Conv2d))
        dense |= {n for n in large if family or linears[n].kernel_size != (1, 1)}
    if family is not None:
        dense |= {name for name in linears if _leaf(name) in family.head}
    if family is not None and by_family:
        blocks = tuple(f"{name}." for name in family.find_blocks(model))
        dense |= {
            name
            for name in linears
            if not (name.startswith(blocks) and _leaf(name) in family.linears)
        }
    return dense | {name for name in linears if ".lora_" in name}


def _leaf(name: str) -> str:
    """Last part of a name; of a layer that peft gave adapters, what it was called before."""
    return name.removesuffix(".base_layer").rpartition(".")[2]


def _names(key: str, name: str, layer: nn.Module) -> bool:
    kind = "Linear" if is_linear(layer) else type(layer).__name__
    return key == kind or allocation.matches(key, name)


def check_in_memory(function: str, model: nn.Module) -> None:
    """Refuses what has no weights here.

    Raises:
        TamisValueError: A parameter or buffer is on the meta device.
    """
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_meta:
            raise TamisValueError(
                f"{function}: model: got {name} on the meta device, wanted weights in memory; load the "
                "model without offloading."
            )


def check_keys(argument: str, keys: object) -> None:
    """Refuses what is not a list of names.

    Raises:
        TamisTypeError: It is none.
    """
    if isinstance(keys, str):
        raise TamisTypeError(
            f"{argument}: got the string {keys!r}, wanted a list of names; pass [{keys!r}]."
        )
    if not isinstance(keys, Iterable) or not all(isinstance(key, str) for key in keys):
        raise TamisTypeError(f"{argument}: got {keys!r}, wanted a list of names; pass [] for none.")


def _check_names(
    argument: str, keys: Sequence[str] | None, layers: Mapping[str, nn.Module]
) -> None:
    for key in keys or ():
        if not any(_names(key, name, layer) for name, layer in layers.items()):
            raise TamisValueError(
                f"sparsify_: {argument}: got {key!r}, wanted a name that some nn.Linear has, such "
                f"as {next(iter(layers), 'none')!r}; correct it or prefix a pattern with 're:'."
            )


def check_model(function: str, model: object) -> None:
    """Refuses what is not a module.

    Raises:
        TamisTypeError: It is none.
    """
    if not isinstance(model, nn.Module):
        raise TamisTypeError(
            f"{function}: model: got {type(model).__name__}, wanted a torch.nn.Module; "
            "load it first."
        )


def allocate(
    linears: Mapping[str, nn.Linear],
    pattern: Pattern,
    sparsity: float,
    how: str | Mapping[str, float],
    recipe: PruneRecipe,
) -> dict[str, float]:
    """Sparsity by layer: ``how`` names an allocation or has it, where the pattern leaves a choice.

    Raises:
        TamisValueError: The sparsity is no fraction below 1, or not what the pattern or ``how`` allows.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real) or not 0 <= sparsity < 1:
        raise TamisValueError(
            f"sparsify_: sparsity: got {sparsity!r}, wanted 0 <= sparsity < 1; it is the fraction "
            "of zeros."
        )
    sparsity = float(sparsity)
    shapes = {n: (m.out_features, m.in_features) for n, m in linears.items()}
    if how != "uniform" and (pattern.kind == "nm" or recipe.group == "global"):
        fixed = f"the pattern {pattern}" if pattern.kind == "nm" else "a global group"
        raise TamisValueError(
            f"sparsify_: allocate: got {how!r} with {fixed}, wanted 'uniform'; {fixed} decides "
            "every layer's sparsity itself."
        )
    if pattern.kind == "nm":
        own = 1 - pattern.keep / pattern.of
        if sparsity not in (0.5, own):  # 0.5 is the default
            raise TamisValueError(
                f"sparsify_: sparsity: got {sparsity} with pattern '{pattern}', wanted {own:g}; "
                "leave sparsity out or change N:M."
            )
        return allocation.uniform(shapes, own)
    if isinstance(how, Mapping):
        return allocation.given(shapes, sparsity, how)
    known = {"uniform": allocation.uniform, "erk": allocation.erk}
    if not isinstance(how, str) or how not in known:
        raise TamisValueError(
            f"sparsify_: allocate: got {how!r}, wanted 'uniform', 'erk' or a dict of sparsities by "
            "layer name; correct it."
        )
    return known[how](shapes, sparsity)
