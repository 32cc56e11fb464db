"""Plan: the thresholds of one model, as data that can be saved."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tamis.errors import TamisFileError

KIND = "tamis activation plan"


@dataclass(frozen=True)
class Threshold:
    """Where one module leaves activations out.

    Attributes:
        kind: "neurons" of a gated MLP or "inputs" of a linear layer.
        bound: What magnitudes times weights are compared with.
        weights: Of the channels; None: all 1.
        sparsity: Share of activations below, on the calibration data.
    """

    kind: Literal["neurons", "inputs"]
    bound: float
    weights: tuple[float, ...] | None
    sparsity: float

    def per_channel(self, channels: int) -> Tensor:
        """Smallest magnitude that counts, [channels] f32; a weight of 0 drops its channel."""
        if self.weights is None:
            return torch.full((channels,), self.bound)
        weights = torch.tensor(self.weights, dtype=torch.float32)
        if self.bound == 0:
            return torch.zeros(channels)
        return self.bound / weights


@dataclass(frozen=True)
class Plan:
    """Thresholds by module path.

    Attributes:
        method: Name of the recipe.
        sparsity: Share of activations that was asked for.
        mark: Of the model it was made for.
        thresholds: By module path.
    """

    method: str
    sparsity: float
    mark: str
    thresholds: dict[str, Threshold]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON.

        Raises:
            TamisFileError: It cannot be written.
        """
        try:
            Path(path).write_text(json.dumps({"kind": KIND, **asdict(self)}) + "\n")
        except OSError as error:
            raise TamisFileError(
                f"activation.Plan.save: path: got {path} ({error.strerror}), wanted a file that can "
                "be written; make its folder first."
            ) from error

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Reads a saved plan.

        Raises:
            TamisFileError: There is no such file, or something in it is not as `save` writes it.
        """
        try:
            data = json.loads(Path(path).read_text())
            if data.pop("kind") != KIND:
                raise ValueError("another kind of file")
            found = {name: _threshold(item) for name, item in data.pop("thresholds").items()}
            return Plan(
                str(data["method"]), float(data["sparsity"]), str(data["mark"]), thresholds=found
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TamisFileError(
                f"activation.Plan.load: path: got {str(path)!r}, wanted a plan that "
                f"Plan.save wrote ({type(error).__name__}: {error}); calibrate again."
            ) from error


def _threshold(item: dict[str, Any]) -> Threshold:
    if item["kind"] not in ("neurons", "inputs"):
        raise ValueError(f"kind {item['kind']!r}")
    weights = item["weights"]
    made = Threshold(
        item["kind"],
        float(item["bound"]),
        None if weights is None else tuple(float(w) for w in weights),
        float(item["sparsity"]),
    )
    numbers = (made.bound, made.sparsity, *(made.weights or ()))
    if not all(math.isfinite(v) and v >= 0 for v in numbers):
        raise ValueError("a number below 0 or not finite")
    return made
