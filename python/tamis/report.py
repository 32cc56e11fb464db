"""What was done to each layer and what it brought: one Report for every call."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from dataclasses import asdict, dataclass, field
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
        nbytes: Stored bytes now, all arrays together; of a layer that ``prepack_`` left packed those on
            its device.
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
    """Layers, totals and host of one call; `str(report)` is the table that `print` writes.

    Attributes:
        title: One line saying what was done.
        layers: In model order, layers left alone included (their `reason` says why).
        metrics: Totals by name; a name ending in `_ms`, `_s` or `_bytes` carries its unit.
        host: Versions, instruction set, threads, seed.
        variants: Whole models compared with each other, the reference first.
        parts: One report per variant, where a call made several.
    """

    title: str
    layers: list[LayerReport] = field(default_factory=list)
    metrics: dict[str, float | int | str] = field(default_factory=dict)
    host: dict[str, str] = field(default_factory=dict)
    variants: list[Variant] = field(default_factory=list)
    parts: list[Report] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Stored bytes of all layers listed."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the same layers stored dense."""
        return sum(layer.dense_nbytes for layer in self.layers)

    def print(self, file: TextIO | None = None, *, full: bool = False) -> None:
        """Writes the table; layers alike but for their index share a row unless `full`."""
        print(self.text(full=full), file=file or sys.stdout)

    def __str__(self) -> str:
        return self.text()

    def text(self, *, full: bool = False) -> str:
        """The table as text: title, variants, layers, totals, host."""
        from tamis.report_text import text

        return text(self, full=full)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `to_json` writes them."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes the report as JSON.

        Raises:
            TamisFileError: The file cannot be written.
        """
        _write(Path(path), json.dumps(self.to_dict(), indent=1) + "\n", "Report.to_json")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """The report that `to_dict` turned into plain values.

        Raises:
            TamisValueError: The values are not a report of this schema version.
        """
        version = data.get("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            raise TamisValueError(
                f"Report.from_dict: schema_version: got {version}, wanted {SCHEMA_VERSION}; "
                "read it with the tamis that wrote it."
            )
        try:
            return cls(
                title=data["title"],
                layers=[
                    LayerReport(**{**layer, "shape": tuple(layer["shape"])})
                    for layer in data.get("layers", [])
                ],
                metrics=dict(data.get("metrics", {})),
                host=dict(data.get("host", {})),
                variants=[Variant(**variant) for variant in data.get("variants", [])],
                parts=[cls.from_dict(part) for part in data.get("parts", [])],
            )
        except (KeyError, TypeError) as error:
            raise TamisValueError(
                f"Report.from_dict: data: got {error}, wanted the fields of a tamis report; "
                "pass what Report.to_json wrote."
            ) from error

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Writes one self-contained page: comparison, charts as inline SVG, tables.

        Raises:
            TamisFileError: The file cannot be written.
        """
        from tamis.report_html import page

        _write(Path(path), page(self), "Report.to_html")


def host_facts(**extra: object) -> dict[str, str]:
    """What a figure depends on: versions, CPU, instruction set, threads, plus `extra` (seed=0)."""
    import tamis

    facts = {"tamis": tamis.__version__, "python": platform.python_version()}
    for package in ("numpy", "torch", "transformers"):
        if package in sys.modules:
            facts[package] = _version(package)
    facts["cpu"] = _cpu_name()
    try:
        from tamis import _C

        facts["isa"] = str(_C.isa()["active"])
        facts["threads"] = str(_C.num_threads())
    except ImportError:
        facts["isa"] = "none (the compiled part is missing)"
    return facts | {key: str(value) for key, value in extra.items()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1) if found else platform.machine()


def _write(path: Path, text: str, caller: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TamisFileError(
            f"{caller}: path: got {path} ({error.strerror}), wanted a file that can be written; "
            "choose another folder."
        ) from error
