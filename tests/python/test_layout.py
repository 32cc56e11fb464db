"""Layout: as JSON and as a token, and what of both is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tamis.errors import TamisTypeError, TamisValueError
from tamis.layout import Layout


@pytest.mark.parametrize(
    "layout",
    [
        Layout("bitmap", 3, 5, "bf16"),
        Layout("csr", 3, 5, "i8", group_size=2),
        Layout("nm", 3, 8, "f16", keep=2, of=4),
        Layout("block", 6, 8, "f32", block=(3, 4)),
    ],
)
def test_layout_survives_json_and_tokens(layout: Layout) -> None:
    assert Layout.from_json(layout.to_json()) == layout
    assert Layout.from_token(layout.token) is Layout.from_token(layout.token)
    assert Layout.from_token(layout.token) == layout


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"format": "ell"}, ValueError),
        ({"format": ["nm"]}, ValueError),
        ({"rows": 0}, ValueError),
        ({"rows": 2**40}, ValueError),
        ({"rows": "3"}, TypeError),
        ({"rows": True}, TypeError),
        ({"cols": 5.0}, TypeError),
        ({"dtype": "f64"}, ValueError),
        ({"keep": 2}, ValueError),
        ({"block": [1, 2]}, ValueError),
        ({"block": "ab"}, TypeError),
        ({"group_size": 4}, ValueError),
        ({"surprise": 1}, ValueError),
        ({"rows": None}, TypeError),
    ],
)
def test_layout_refuses_untrusted_json(change: dict[str, Any], error: type[Exception]) -> None:
    data = {**Layout("bitmap", 3, 5, "f32").to_json(), **change}
    with pytest.raises(error, match="Layout"):
        Layout.from_json(data)


def test_layout_refuses_missing_fields_and_other_types() -> None:
    with pytest.raises(TamisValueError, match="no \\['dtype'\\]"):
        Layout.from_json({"format": "csr", "rows": 1, "cols": 1})
    with pytest.raises(TamisTypeError, match="got list, wanted a dict"):
        Layout.from_json([1])
