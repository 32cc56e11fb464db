"""What was done to each layer and what it brought: one Report for every call, as text, JSON or HTML."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from tamis.errors import TamisFileError, TamisValueError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LayerReport:
    """One linear layer: what it is now, what it costs and why it was chosen.

    Attributes:
        name: Module path, `model.layers.0.mlp.up_proj`.
        shape: `(out_features, in_features)`.
        sparsity: Fraction of zeros, 0 to 1.
        format: Label of the layout ("bitmap bf16", "2:4 bf16") or "dense bf16".
        nbytes: Stored bytes now, all arrays together.
        dense_nbytes: Bytes of the same weight stored dense in the same float type.
        kernel: Name of the kernel that one token runs, or why none does.
        predicted_ms: Time of one token by the cost model.
        measured_ms: Measured time of one token.
        dense_ms: Measured time of one token through the dense layer.
        memory_limit: Fraction of this machine's read bandwidth reached, 0 to 1 (or above, from cache).
        reason: One sentence on the choice, or why the layer was left alone.
    """

    name: str
    shape: tuple[int, int]
    sparsity: float
    format: str
    nbytes: int
    dense_nbytes: int
    kernel: str = ""
    predicted_ms: float | None = None
    measured_ms: float | None = None
    dense_ms: float | None = None
    memory_limit: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Variant:
    """One model in a comparison; the first one of a report is the reference.

    Attributes:
        name: What the reader calls it ("dense", "wanda 50 %").
        perplexity: On the text named in the report's metrics.
        tokens_per_s: Median decode speed, one sequence.
        speed: Decode speed over the reference's, both measured in the same interleaved run.
        nbytes: Bytes of the checkpoint files on disk.
        linear_nbytes: Bytes of the linear layers the method may touch.
        peak_rss: Largest resident memory of a process that loads and runs only this model.
        text: What it wrote.
    """

    name: str
    perplexity: float | None = None
    tokens_per_s: float | None = None
    speed: float | None = None
    nbytes: int | None = None
    linear_nbytes: int | None = None
    peak_rss: int | None = None
    text: str = ""


@dataclass
class Report:
    """Layers, totals and host of one call.

    Attributes:
        title: One line saying what was done.
        layers: In model order, layers left alone included (their `reason` says why).
        metrics: Totals by name; a name ending in `_ms`, `_s` or `_bytes` carries its unit.
        host: Versions, instruction set, threads, seed.
        variants: Whole models compared with each other, the reference first.
    """

    title: str
    layers: list[LayerReport] = field(default_factory=list)
    metrics: dict[str, float | int | str] = field(default_factory=dict)
    host: dict[str, str] = field(default_factory=dict)
    variants: list[Variant] = field(default_factory=list)
