"""Layout under its public name; it lives below ``ops``, which needs it too."""

from __future__ import annotations

from tamis.layout import DTYPES, FORMATS, ITEMSIZE, Layout

__all__ = ["DTYPES", "FORMATS", "ITEMSIZE", "Layout"]
