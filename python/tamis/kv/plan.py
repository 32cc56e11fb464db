"""Plan: what calibration found out about a model's layers, as a JSON file.

``{"tamis_kv_plan": 1, "kind": ..., "options": {...}, "layers": {"0": {"mark": ..., "data": ...}}}``.
``data`` of a layer, by kind: ``channels``: [g][d], each KV head's channels by falling weight; ``spans``:
[g][2], alpha in tokens and beta of each head's window; ``ranks``: one number, the rank of its keys.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tamis.errors import TamisFileError, TamisValueError
from tamis.kv.identity import check_mark

KINDS = ("channels", "spans", "ranks")
_VERSION = 1


@dataclass(frozen=True)
class LayerPlan:
    """One layer's part of a plan; ``mark`` tells whose layer it is."""

    kind: str
    data: Any
    mark: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def check(self, mark: str) -> None:
        """Refuses a layer of another model than the plan was made for.

        Raises:
            TamisValueError: The marks differ.
        """
        check_mark("kv.Cache", "plan", self.mark, mark)


@dataclass(frozen=True)
class Plan:
    """What ``kv.calibrate`` returns: ``kind``, options and the layers' parts by their place."""

    kind: str
    layers: dict[int, LayerPlan]
    options: dict[str, Any] = field(default_factory=dict)

    def of_layer(self, layer: int) -> LayerPlan:
        """The part of one layer.

        Raises:
            TamisValueError: The plan has no such layer.
        """
        if layer not in self.layers:
            raise TamisValueError(
                f"kv.Cache: plan: got one of {len(self.layers)} layers without layer {layer}, wanted "
                "one of this model; calibrate it."
            )
        return self.layers[layer]

    def save(self, path: str | Path) -> None:
        """Writes the JSON file.

        Raises:
            TamisFileError: It cannot be written.
        """
        layers = {str(i): {"mark": x.mark, "data": x.data} for i, x in self.layers.items()}
        whole = {"tamis_kv_plan": _VERSION, "kind": self.kind, "options": self.options}
        try:
            Path(path).write_text(json.dumps(whole | {"layers": layers}) + "\n")
        except OSError as error:
            raise TamisFileError(
                f"kv.Plan.save: path: got {path} ({error.strerror}), wanted a file that can be "
                "written; make its folder first."
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Reads what ``save`` wrote.

        Raises:
            TamisFileError: Missing, damaged, or from another version.
        """
        try:
            return _parsed(json.loads(Path(path).read_text()))
        except OSError as error:
            raise TamisFileError(
                f"kv.Plan.load: path: got {path}, which cannot be read ({error.strerror}), wanted a "
                "plan that Plan.save wrote."
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise TamisFileError(
                f"kv.Plan.load: path: got {path}, which is no whole plan of version {_VERSION}, "
                "wanted one that Plan.save wrote; calibrate again."
            ) from None


def _parsed(whole: Any) -> Plan:
    kind, options = whole["kind"], dict(whole["options"])
    if whole["tamis_kv_plan"] != _VERSION or kind not in KINDS or not whole["layers"]:
        raise ValueError("not a plan")
    layers = {}
    for i, layer in whole["layers"].items():
        _check_data(kind, layer["data"])
        layers[int(i)] = LayerPlan(kind, layer["data"], str(layer["mark"]), options)
    return Plan(kind, layers, options)


def _check_data(kind: str, data: Any) -> None:
    """Raises ValueError where a layer's data is not what its kind holds."""
    if kind == "ranks":
        good = isinstance(data, int) and data > 0
    elif kind == "spans":
        good = all(len(head) == 2 and 0 <= head[1] <= 1 for head in data) and len(data) > 0
    else:
        good = all(sorted(head) == list(range(len(head))) for head in data) and len(data) > 0
    if not good:
        raise ValueError("layer data")
